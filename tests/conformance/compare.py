"""Comparison of two frames field by field, and faults of a single frame."""

from packets import IP, TCP, UDP, Ether, IPv6
from scapy.layers.inet import ICMP, ICMPerror, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import IPerror6, IPv6ExtHdrFragment, _ICMPv6


def differences(expected, actual, came_with_padding=b"", free=()):
    """Lists the fields in which `actual` (bytes) differs from `expected`; empty if they are equal.

    Ethernet padding may stay as it came, be cut, or be zeros. `free` are fields that may have any value:
    "IP.id", or "IP[1].ttl" for the second IP header.
    """
    trailing = actual[len(expected):]
    if actual[:len(expected)] == expected and (trailing == came_with_padding[:len(trailing)] or not any(trailing)):
        return []
    wanted, seen = fields(Ether(expected)), fields(Ether(actual))
    lines = []
    for key in dict.fromkeys([*wanted, *seen]):
        if key in free or wanted.get(key) == seen.get(key) or key.startswith("Padding"):
            continue
        lines.append(f"{key}: expected {wanted.get(key, 'no such field')}, sent {seen.get(key, 'no such field')}")
    if lines or free:
        return lines
    at = next((i for i, pair in enumerate(zip(expected, actual)) if pair[0] != pair[1]), min(len(expected), len(actual)))
    return [f"{len(expected)} bytes were expected, {len(actual)} sent; the first that differs is {at}"]


def fields(packet):
    """Every field of every layer, as text: {"IP.ttl": "64", ...}; the second of a kind is "IP[1].ttl"."""
    found, seen = {}, {}
    layer = packet
    while layer:
        name = type(layer).__name__
        count = seen[name] = seen.get(name, 0) + 1
        prefix = name if count == 1 else f"{name}[{count - 1}]"
        for description in layer.fields_desc:
            value = layer.getfieldval(description.name)
            shown = value.hex() if isinstance(value, bytes) else layer.sprintf(f"%{description.name}%") \
                if not isinstance(value, (list, int)) else str(value)
            found[f"{prefix}.{description.name}"] = shown
        layer = layer.payload
    return found


# Fields that scapy computes when they are absent.
COMPUTED = {IP: ("chksum", "len", "ihl"), IPv6: ("plen",), TCP: ("chksum", "dataofs"), UDP: ("chksum", "len"),
            ICMP: ("chksum",)}
GUE_PORT = 6080
QUOTES = (IPerror, IPerror6, ICMPerror, TCPerror, UDPerror)


def faults(frame, received=b""):
    """Lists lengths and checksums in `frame` that scapy computes otherwise; empty if `received` has such faults too."""
    wrong = _faults(Ether, frame)
    if wrong and received and _faults(IP if received[0] >> 4 == 4 else IPv6, received):
        return []
    return wrong


def _faults(kind, data):
    stripped = kind(data)
    layer = stripped
    while layer:
        if isinstance(layer, QUOTES) or _is_fragment(layer):
            return []
        layer.raw_packet_cache = None
        for name in _computed(layer):
            layer.delfieldval(name)
        layer = layer.payload
    computed = bytes(stripped)
    if computed == data:
        return []
    again = fields(kind(computed))
    return [f"{key}: scapy computes {again.get(key)}, sent {value}" for key, value in fields(kind(data)).items()
            if again.get(key) != value]


def _computed(layer):
    """Returns the names of the fields that scapy computes."""
    if type(layer) is UDP and layer.chksum == 0 and (layer.underlayer.version == 4 or layer.dport == GUE_PORT):
        return ("len",)
    return ("cksum",) if isinstance(layer, _ICMPv6) else COMPUTED.get(type(layer), ())


def _is_fragment(layer):
    return isinstance(layer, IPv6ExtHdrFragment) or (isinstance(layer, IP) and (layer.frag or layer.flags.MF))
