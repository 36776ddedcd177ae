"""Rules of a case file: its keys, their types, and the packets that a packet may refer to. See docs/CONFORMANCE.md.

A case that breaks a rule is refused before anything runs: it could pass without showing anything.
"""

import world
from mistake import did_you_mean

MODES = ("dsr", "nat", "full_nat", "proxy", "ipip", "gue")
GROUPS = {"tunnels": ("ipip", "gue"), "translating": ("nat", "full_nat", "proxy"), "full": ("full_nat", "proxy")}
SELECTORS = (*MODES, *GROUPS)
# Expected results, of which a packet has at most one; "cut" gives one for each length.
RESULTS = ("out", "drop", "kernel", "reply", "cut")
REFERENCES = ("same_backend_as", "other_backend_than")

FILE_KEYS = {"row": (str,), "what": (str,), "case": (list,)}
# Keys that a mode may change: in a case, and in a packet.
CASE_CHANGES = {"vips": (list,), "nics": (int,), "config": (dict,), "neighbours": (dict,), "counters": (dict,)}
PACKET_CHANGES = {
    "in": (str,), "pcap": (str,), "frames": (list,), "repeat": (int,), "at": (int, float), "nic": (str,), "cut": (list,),
    "out": (str, list), "drop": (str, list), "kernel": (bool,), "reply": (str, list), "free": (list,), "flow": (str,),
    "vip": (str,), "backend": (str,), "never": (str,), "spread": (int,), **{key: (int,) for key in REFERENCES}}
BY_MODE = {"modes": (list,), **{key: (dict,) for key in SELECTORS}}
CASE_KEYS = {"name": (str,), "why": (str,), "packet": (list,), **CASE_CHANGES, "config": (dict, str),
             "neighbours": (dict, str), **BY_MODE}
PACKET_KEYS = {**PACKET_CHANGES, **BY_MODE}
TYPES = {str: "a string", list: "an array", dict: "a table", int: "an integer", float: "a number", bool: "true or false"}


def file_faults(table):
    """Faults of a file, without those of its cases."""
    yield from _key_faults(table, FILE_KEYS)
    if not table.get("case") or not _are_tables(table["case"]):
        yield "no [[case]]; a file has one at least"


def shape_faults(case):
    """Unknown keys, wrong types, unknown modes and VIPs, as (packet, text): with these nothing else can be checked."""
    for key in ("name", "packet"):
        if not case.get(key):
            yield None, f"no {'[[case.packet]]' if key == 'packet' else key}; a case has a name and packets at least"
    yield from ((None, text) for text in _table_faults(case, CASE_KEYS, CASE_CHANGES))
    for table in [case] + [case[key] for key in SELECTORS if isinstance(case.get(key), dict)]:
        vips = table.get("vips")
        for name in vips if isinstance(vips, list) else []:
            if name not in world.VIPS:
                yield None, f"unknown VIP {name}; {did_you_mean(name, world.VIPS)}"
        if isinstance(table.get("nics"), int) and table["nics"] not in (1, 2):
            yield None, f"nics = {table['nics']}: 1 or 2"
    packets = case.get("packet") if isinstance(case.get("packet"), list) else []
    if not _are_tables(packets):
        yield None, "packet is to be an array of tables: [[case.packet]]"
        return
    for number, packet in enumerate(packets):
        yield from ((number, text) for text in _table_faults(packet, PACKET_KEYS, PACKET_CHANGES))


def case_faults(case, modes_of_config):
    """Faults of a case of the right shape, as (packet, text); the packet is None if the case itself is wrong.

    `modes_of_config` are the modes that the case has without `modes`.
    """
    modes = modes_of(case, modes_of_config)
    by_mode = {mode: packets_of(case["packet"], mode) for mode in modes}
    for mode, packets in by_mode.items():
        if not packets:
            yield None, f"no packet in mode {mode}"
    yield from ((None, f"{text}, but the case is not run in that mode") for text in _dead_changes(case, modes))
    for number in range(len(case["packet"])):
        yield from ((number, text) for text in _packet_faults(number, case["packet"], by_mode))


def modes_of(table, usual=MODES):
    """The modes of a case or a packet."""
    return list(dict.fromkeys(_expanded(table["modes"]))) if "modes" in table else list(usual)


def packets_of(packets, mode):
    """{number in the case: packet} of those that a mode has, each as it is in this mode."""
    return {number: for_mode(packet, mode) for number, packet in enumerate(packets) if mode in modes_of(packet)}


def for_mode(table, mode):
    """A case or a packet with the changes that it has for a mode; a changed result replaces another one."""
    merged = {key: value for key, value in table.items() if key not in SELECTORS}
    for key in [group for group, modes in GROUPS.items() if mode in modes] + [mode]:
        if key in table:
            if any(result in table[key] for result in RESULTS):
                merged = {name: value for name, value in merged.items() if name not in RESULTS}
            merged |= table[key]
    return merged


def reference_fault(target, number, packets, count, may_be_own=False):
    """Why packet `number` cannot refer to packet `target`; None if it can.

    `packets` are the numbers of those that the mode has, `count` is how many the case has in all.
    """
    if not 0 <= target < count:
        return f"there is no packet {target}; the case has 0 to {count - 1}"
    if target == number and not may_be_own:
        return "the packet itself; a reference names an earlier packet"
    if target > number:
        return "a later packet; a reference names an earlier packet"
    if target not in packets:
        return f"the mode does not have packet {target}; see its modes = [...]"
    return None


def _table_faults(table, known, changes):
    yield from _key_faults(table, known)
    if isinstance(table.get("modes"), list):
        for mode in table["modes"]:
            if mode not in SELECTORS:
                yield f"unknown mode {mode}; {did_you_mean(mode, SELECTORS)}"
        if not table["modes"]:
            yield "modes = []: it would never run"
    for selector in SELECTORS:
        if isinstance(table.get(selector), dict):
            yield from (f"{selector}: {text}" for text in _key_faults(table[selector], changes))


def _key_faults(table, known):
    for key, value in table.items():
        if key not in known:
            yield f"unknown key {key}; {did_you_mean(key, known)}"
        elif type(value) not in known[key]:
            yield f"{key} is to be {' or '.join(TYPES[kind] for kind in known[key])}"


def _are_tables(value):
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _expanded(names):
    return [mode for name in names for mode in GROUPS.get(name, (name,))]


def _dead_changes(table, modes):
    """Changes for a mode, or a group of modes, that a case or a packet does not have."""
    for selector in sorted(set(table) & {*SELECTORS}):
        if not set(modes) & set(_expanded([selector])):
            yield f"{selector} = {{...}}"


def _packet_faults(number, packets, by_mode):
    """Faults of a packet in all modes; those that it has in some modes only name them."""
    modes = [mode for mode in by_mode if number in by_mode[mode]]
    if not modes:
        yield f"in none of the case's modes ({', '.join(by_mode)})"
        return
    yield from (f"{text}, but the packet is not in that mode" for text in _dead_changes(packets[number], modes))
    faults = {}
    for mode in modes:
        for text in _faults_in_mode(number, by_mode[mode], len(packets)):
            faults.setdefault(text, []).append(mode)
    yield from (text if where == modes else f"in mode {', '.join(where)}: {text}" for text, where in faults.items())


def _faults_in_mode(number, packets, count):
    packet = packets[number]
    if ("in" in packet) == ("pcap" in packet):
        yield "needs either in = '...' or pcap = \"file\""
    if "frames" in packet and "pcap" not in packet:
        yield "frames are those of a pcap = \"file\""
    results = [key for key in RESULTS if key in packet]
    if len(results) > 1:
        yield f"{' and '.join(results)}: a packet has one result"
    if packet.get("kernel") is False:
        yield "kernel = false expects nothing; leave it out"
    if packet.get("repeat", 1) < 1:
        yield "repeat is to be 1 or more"
    if "cut" in packet:
        yield from _cut_faults(packet["cut"])
    for key in REFERENCES:
        if key in packet:
            fault = reference_fault(packet[key], number, packets, count)
            if fault:
                yield f"{key} = {packet[key]}: {fault}"


def _cut_faults(rows):
    lengths = [row[0] for row in rows if isinstance(row, list) and [type(value) for value in row] == [int, str]]
    if len(lengths) != len(rows) or lengths[:1] != [0] or lengths != sorted(set(lengths)):
        yield "cut is to be [[0, \"kernel\"], [LENGTH, \"REASON\"], ...], with rising lengths"
