"""The error of a case file."""

import difflib


class Mistake(Exception):
    """A case file that cannot be run, with the place and the cure."""


def did_you_mean(word, known):
    """The end of a message about an unknown word."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
