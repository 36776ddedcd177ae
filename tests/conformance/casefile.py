"""Case files: what they may say, and the packets that their expressions describe. See docs/CONFORMANCE.md."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import captures
import packets
import scapy.all as scapy_all
import scapy.layers.inet6 as scapy_inet6
import words
import world

MODES = ("dsr", "nat", "full_nat", "proxy", "ipip", "gue")
GROUPS = {"tunnels": ("ipip", "gue"), "translating": ("nat", "full_nat", "proxy"), "full": ("full_nat", "proxy")}
FILE_KEYS = {"row", "what", "case"}
CASE_KEYS = {"name", "why", "modes", "vips", "nics", "config", "neighbours", "packet", "counters", *MODES, *GROUPS}
PACKET_KEYS = {"in", "pcap", "frames", "repeat", "at", "cut", "out", "drop", "kernel", "reply", "free", "flow", "vip", "backend",
               "same_backend_as", "other_backend_than", "never", "spread", "nic", "modes", *MODES, *GROUPS}
WAYS = ("out", "drop", "kernel", "reply", "cut")


class Mistake(Exception):
    """A case file that cannot be run, with the place and the cure."""


class Pending(Exception):
    """An expression that needs what was sent for an earlier packet, which has not run yet."""


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
        """The packets that this mode has, each with what holds for this mode."""
        found = [self._for_mode(packet) for packet in self.table["packet"]]
        return [packet for packet in found if self.mode in _modes(packet.get("modes", MODES), self.path)]

    def _for_mode(self, table):
        merged = {key: value for key, value in table.items() if key not in MODES and key not in GROUPS}
        for key in [group for group, modes in GROUPS.items() if self.mode in modes] + [self.mode]:
            if key in table:
                if any(way in table[key] for way in WAYS):
                    merged = {name: value for name, value in merged.items() if name not in WAYS}
                merged |= table[key]
        return merged

    def counters(self):
        """How far counters have moved in the end, by name."""
        return self._for_mode(self.table).get("counters", {})

    def texts(self):
        """Configuration and neighbours, as TOML."""
        changes = self._for_mode(self.table)
        config, neighbours = changes.get("config", {}), changes.get("neighbours", {})
        if isinstance(config, str):
            return _beside(self.path, config), _beside(self.path, neighbours)
        nics = changes.get("nics", 2)
        built = world.config(self.mode, nics, changes.get("vips", world.usual(self.mode)))
        built = world.changed(built, config)
        near = world.changed(world.neighbours(nics, built), neighbours)
        return world.config_toml(built), world.neighbours_toml(near)


def read(path):
    """The cases of a file, one for each mode."""
    path = Path(path)
    table = _load(path)
    _check_keys(path, "the file", table, FILE_KEYS)
    return [Case(path, case["name"], mode, case)
            for case in table["case"] for mode in _checked(path, case)]


def heading(path):
    """The row of facts that a file is about, and what that row says."""
    table = _load(path)
    return table["row"], table["what"]


def _load(path):
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Mistake(f"{path}: {error}") from None
    missing = [key for key in ("row", "what", "case") if key not in table]
    if missing:
        raise Mistake(f"{path}: no {missing[0]}; a file has row = \"own\", what = \"...\", and a [[case]] at least")
    return table


def _beside(path, name):
    """The text of a file beside a case file."""
    try:
        return (path.parent / name).read_text()
    except OSError as error:
        raise Mistake(f"{path}: {error}") from None


def _modes_of_own(path, case):
    """The modes of the VIPs of a case's own configuration."""
    where = f"{path}: {case.get('name')}"
    if not isinstance(case.get("neighbours"), str):
        raise Mistake(f"{where}: with a configuration of its own it needs neighbours = \"FILE\", see docs/REPLAY.md")
    try:
        vips = tomllib.loads(_beside(path, case["config"])).get("vip", [])
    except tomllib.TOMLDecodeError as error:
        raise Mistake(f"{where}: {case['config']}: {error}") from None
    found = {"proxy" if vip.get("proxy") == "v2" else vip.get("forward") for vip in vips} & {*MODES}
    others = set(_modes(case.get("modes", found), path)) - found
    if others:
        raise Mistake(f"{where}: {case['config']} has no VIP of mode {min(others)}; there are {', '.join(sorted(found))}")
    return sorted(found)


def _checked(path, case):
    where = case.get("name", "a case without a name")
    _check_keys(path, where, case, CASE_KEYS)
    for key in ("name", "packet"):
        if key not in case:
            raise Mistake(f"{path}: {where}: no {key}")
    for index, packet in enumerate(case["packet"]):
        _check_keys(path, f"{where}, packet {index}", packet, PACKET_KEYS)
        if ("in" in packet) == ("pcap" in packet):
            raise Mistake(f"{path}: {where}, packet {index}: needs either in = '...' or pcap = \"file\"")
        if "frames" in packet and "pcap" not in packet:
            raise Mistake(f"{path}: {where}, packet {index}: frames are those of a pcap = \"file\"")
        for key in set(packet) & {*MODES, *GROUPS}:
            _check_keys(path, f"{where}, packet {index}, {key}", packet[key], PACKET_KEYS)
    usual = _modes_of_own(path, case) if isinstance(case.get("config"), str) else MODES
    return _modes(case.get("modes", usual), path)


def _modes(names, path):
    found = [mode for name in names for mode in GROUPS.get(name, (name,))]
    unknown = [name for name in found if name not in MODES]
    if unknown:
        raise Mistake(f"{path}: no mode {unknown[0]}; there are {', '.join([*MODES, *GROUPS])}")
    return found


def _check_keys(path, where, table, known):
    unknown = sorted(set(table) - known)
    if unknown:
        raise Mistake(f"{path}: {where}: unknown key {unknown[0]}; there are {', '.join(sorted(known))}")


class Words:
    """What expressions can say: scapy's names, the names of world.py, and what happened before."""

    def __init__(self, path, received, outcomes):
        """`received[i]` is the first frame of packet i, `outcomes[i]` what became of it, as far as there are."""
        self.path = path
        self.names = {name: getattr(scapy_all, name) for name in dir(scapy_all) if name[0].isupper()}
        self.names |= {name: getattr(scapy_inet6, name) for name in dir(scapy_inet6) if name[0].isupper()}
        self.names |= {name: getattr(world, name) for name in dir(world) if name.isupper()}
        self.names |= {name: vip[0] for name, vip in world.VIPS.items()}
        self.names |= {f"B{n}": world.BACKEND_MACS[f"b{n}"] for n in (1, 2, 3)}
        self.names |= {"received": lambda index: packets.Ether(_at(received, index)),
                       "sent": lambda index, frame=0: packets.Ether(_sent(outcomes, index, frame)),
                       "backend": lambda index: _at(outcomes, index).backend}
        self.names |= {name: getattr(words, name) for name in words.FOR_CASES}

    def frames(self, expression):
        """The frames (bytes) that an expression describes: one, or a list."""
        try:
            # A case file is a program that its author runs.
            value = eval(expression, dict(self.names))  # pylint: disable=eval-used
        except Pending:
            raise
        except Exception as error:
            raise Mistake(f"{self.path}: {expression}: {type(error).__name__}: {error}") from None
        return [words.as_frame(one) for one in (value if isinstance(value, list) else [value])]


def _at(items, index):
    if index >= len(items) or items[index] is None:
        raise Pending
    return items[index]


def _sent(outcomes, index, frame):
    sent = _at(outcomes, index).sent
    if frame >= len(sent):
        raise ValueError(f"packet {index} made {len(sent)} frames: {_at(outcomes, index).line}")
    return sent[frame][1]


def capture(path, name, wanted=None):
    """(number, frame) of a capture beside a case file; `wanted` are numbers and ranges such as "4-9", without it all."""
    try:
        frames = list(enumerate(frame.data for frame in captures.read(path.parent / name)))
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: {error}") from None
    if wanted is None:
        return frames
    found = []
    for entry in wanted:
        first, _, last = str(entry).partition("-")
        if not (first.isdigit() and (last or first).isdigit() and int(first) <= int(last or first) < len(frames)):
            raise Mistake(f"{path}: frames: {entry!r}: {name} has 0 to {len(frames) - 1}; write [0, \"4-9\"]")
        found += frames[int(first):int(last or first) + 1]
    return found
