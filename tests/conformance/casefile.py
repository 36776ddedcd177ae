"""Case files, and the packets that their expressions describe. See docs/CONFORMANCE.md."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import captures
import packets
import rules
import scapy.all as scapy_all
import scapy.layers.inet6 as scapy_inet6
import words
import world
from mistake import Mistake
from rules import MODES

class Pending(Exception):
    """An expression that needs the outcome of an earlier packet, which has not been replayed yet."""


@dataclass
class Case:
    """One case of a file, for one mode."""

    path: Path
    name: str
    mode: str
    table: dict

    @property
    def title(self):
        return f"{self.path.name}: {self.name} [{self.mode}]"

    def packets(self):
        """{number: packet} of those that this mode has, each with the results of this mode.

        Numbers count all packets of the case, so that one number is one packet in every mode.
        """
        return rules.packets_of(self.table["packet"], self.mode)

    def in_file(self):
        """How many packets the case has in all of its modes."""
        return len(self.table["packet"])

    def counters(self):
        """Expected change of counters over the case, by name."""
        return rules.for_mode(self.table, self.mode).get("counters", {})

    def texts(self):
        """Configuration and neighbours, as TOML."""
        changes = rules.for_mode(self.table, self.mode)
        config, neighbours = changes.get("config", {}), changes.get("neighbours", {})
        if isinstance(config, str):
            return _beside(self.path, config), _beside(self.path, neighbours)
        nics = changes.get("nics", 2)
        built = world.config(self.mode, nics, changes.get("vips", world.usual(self.mode)))
        built = world.changed(built, config)
        near = world.changed(world.neighbours(nics, built), neighbours)
        return world.config_toml(built), world.neighbours_toml(near)


def read(path):
    """The cases of a file, one for each mode, and the mistakes in the others: a bad case leaves the rest alone."""
    path = Path(path)
    try:
        table = _load(path)
    except Mistake as mistake:
        return [], [str(mistake)]
    mistakes = [f"{path}: {text}" for text in rules.file_faults(table)]
    cases = []
    for case in [] if mistakes else table["case"]:
        try:
            cases += _read_case(path, case)
        except Mistake as mistake:
            mistakes += str(mistake).splitlines()
    return cases, mistakes


def heading(path):
    """The row of facts that a file is about, and its summary."""
    table = _load(path)
    for key in ("row", "what"):
        if key not in table:
            raise Mistake(f"{path}: no {key}: the table of docs/CONFORMANCE.md shows it")
    return table["row"], table["what"]


def _load(path):
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Mistake(f"{path}: {error}") from None


def _beside(path, name):
    """The text of a file beside a case file."""
    try:
        return (path.parent / name).read_text()
    except OSError as error:
        raise Mistake(f"{path}: {error}") from None


def _read_case(path, case):
    where = f"{path}: {case.get('name', 'a case without a name')}"
    _refuse(where, rules.shape_faults(case))
    own = isinstance(case.get("config"), str)
    if not own and isinstance(case.get("neighbours"), str):
        raise Mistake(f"{where}: neighbours = \"FILE\" needs config = \"FILE\", too")
    usual = _modes_of_own(path, where, case) if own else MODES
    modes = rules.modes_of(case, usual)
    others = sorted(set(modes) - {*usual})
    if others:
        raise Mistake(f"{where}: {case['config']} has no VIP of mode {others[0]}; there are {', '.join(sorted(usual))}")
    _refuse(where, rules.case_faults(case, usual))
    return [Case(path, case["name"], mode, case) for mode in modes]


def _refuse(where, faults):
    """Raises all of the faults, which are (packet, text), if there are any."""
    lines = [f"{where}: {text}" if number is None else f"{where}, packet {number}: {text}" for number, text in faults]
    if lines:
        raise Mistake("\n".join(lines))


def _modes_of_own(path, where, case):
    """The modes of the VIPs of a case's own configuration."""
    if not isinstance(case.get("neighbours"), str):
        raise Mistake(f"{where}: with a configuration of its own it needs neighbours = \"FILE\", see docs/REPLAY.md")
    by_mode = {key for selector in rules.SELECTORS for key in case.get(selector, ())}
    ignored = sorted(({"vips", "nics"} & set(case)) | (by_mode - {"counters"}))
    if ignored:
        raise Mistake(f"{where}: {ignored[0]} has no effect: the configuration is {case['config']}")
    try:
        vips = tomllib.loads(_beside(path, case["config"])).get("vip", [])
    except tomllib.TOMLDecodeError as error:
        raise Mistake(f"{where}: {case['config']}: {error}") from None
    found = {"proxy" if vip.get("proxy") == "v2" else vip.get("forward") for vip in vips} & {*MODES}
    if not found:
        raise Mistake(f"{where}: {case['config']} has no VIP")
    return sorted(found)


class Words:
    """Names for the expressions of a case: those of scapy and of world.py, and the packets that came before."""

    def __init__(self, case, numbers, received, outcomes):
        """`numbers` are the packets of this mode; `received[n]` is the first frame of packet n, `outcomes[n]` its
        outcome, for those that were replayed."""
        self.numbers, self.count = numbers, case.in_file()
        self.received, self.outcomes = received, outcomes
        # The packet of the expression, and whether the packet's own frame exists already.
        self.number, self.came = None, False
        self.names = {name: getattr(scapy_all, name) for name in dir(scapy_all) if name[0].isupper()}
        self.names |= {name: getattr(scapy_inet6, name) for name in dir(scapy_inet6) if name[0].isupper()}
        self.names |= {name: getattr(world, name) for name in dir(world) if name.isupper()}
        self.names |= {name: vip[0] for name, vip in world.VIPS.items()}
        self.names |= {f"B{n}": world.BACKEND_MACS[f"b{n}"] for n in (1, 2, 3)}
        self.names |= {"received": self._received, "sent": self._sent, "backend": self._backend}
        self.names |= {name: getattr(words, name) for name in words.FOR_CASES}

    def frames(self, number, expression, came=False):
        """The frames (bytes) that an expression of packet `number` describes: one, or a list.

        `came`: the packet's own frame exists, so that the expression may name it.
        """
        self.number, self.came = number, came
        try:
            # A case file is a program that its author runs.
            value = eval(expression, dict(self.names))  # pylint: disable=eval-used
            frames = [words.as_frame(one) for one in (value if isinstance(value, list) else [value])]
        except Pending:
            raise
        except Mistake as mistake:
            raise Mistake(f"packet {number}: {expression}: {mistake}") from None
        except Exception as error:
            raise Mistake(f"packet {number}: {expression}: {type(error).__name__}: {error}") from None
        if not frames:
            raise Mistake(f"packet {number}: {expression}: no frame, so nothing would be judged")
        return frames

    def _received(self, index):
        self._check("received", index, may_be_own=self.came)
        return packets.Ether(_known(self.received, index))

    def _sent(self, index, frame=0):
        self._check("sent", index)
        outcome = _known(self.outcomes, index)
        if not 0 <= frame < len(outcome.sent):
            raise Mistake(f"sent({index}, {frame}): {len(outcome.sent)} frames were sent for packet {index}: {outcome}")
        return packets.Ether(outcome.sent[frame][1])

    def _backend(self, index):
        self._check("backend", index)
        return _known(self.outcomes, index).backend

    def _check(self, word, index, may_be_own=False):
        fault = rules.reference_fault(index, self.number, self.numbers, self.count, may_be_own)
        if fault:
            raise Mistake(f"{word}({index}): {fault}")


def _known(found, index):
    if index not in found:
        raise Pending
    return found[index]


def capture(path, name, wanted=None):
    """(number, frame) of a capture beside a case file; `wanted` are numbers and ranges such as "4-9", without it all."""
    try:
        frames = list(enumerate(frame.data for frame in captures.read(path.parent / name)))
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: {error}") from None
    if wanted is None and frames:
        return frames
    if not wanted:
        raise Mistake(f"{path}: {name}: no frame, so nothing would be judged")
    found = []
    for entry in wanted:
        first, _, last = str(entry).partition("-")
        if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first) < len(frames)):
            raise Mistake(f"{path}: frames: {entry!r}: {name} has 0 to {len(frames) - 1}; write [0, \"4-9\"]")
        found += frames[int(first):int(last or first) + 1]
    return found
