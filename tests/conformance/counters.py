"""Names of counters, from the documents. A counter that does not exist never moves: an expected 0 would always hold."""

import functools
import re
from pathlib import Path

from mistake import did_you_mean

DOCUMENTS = Path(__file__).parents[2] / "docs"


def fault(name, owners):
    """Returns the fault of a counter's name (docs/REPLAY.md, "Counters"), or None; `owners`: prefixes such as vips.web4."""
    owner = next((owner for owner in ("workers", *owners) if name.startswith(owner + ".")), None)
    if owner is None:
        return did_you_mean(".".join(name.split(".")[:2]), ["workers", *owners])
    last = name.rpartition(".")[2]
    return None if last in documented() else f"no {last}; {did_you_mean(last, documented())}"


@functools.cache
def documented():
    """Returns every name in the first column of a table in API.md, COUNTERS.md or REPLAY.md."""
    rows = [line.split("|")[1] for name in ("API.md", "COUNTERS.md", "REPLAY.md")
            for line in (DOCUMENTS / name).read_text().splitlines() if line.startswith("| `")]
    return frozenset(name for row in rows for name in re.findall(r"`(\w+)`", row))
