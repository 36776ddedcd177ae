"""Two frames field by field, for people; and what is wrong with one frame by itself."""

from packets import IP, TCP, UDP, Ether, IPv6
from scapy.layers.inet import ICMP, ICMPerror, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import IPerror6, _ICMPv6


def differences(expected, actual, came_with_padding=b"", free=()):
    """Lines that say how `actual` (bytes) is not `expected`; none if it is.

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
QUOTES = (IPerror, IPerror6, ICMPerror, TCPerror, UDPerror)


def faults(frame, received=b""):
    """Lengths and checksums in `frame` that are not what scapy computes; none if `received` had such too."""
    wrong = _faults(Ether(frame))
    if wrong and received and _wrong_in(received):
        return []
    return wrong


def _wrong_in(packet):
    return bool(_faults((IP if packet[0] >> 4 == 4 else IPv6)(packet)))


def _faults(packet):
    stripped = packet.copy()
    layer = stripped
    while layer:
        if isinstance(layer, QUOTES) or _is_fragment(layer):
            return []
        layer.raw_packet_cache = None
        names = next((names for kind, names in COMPUTED.items() if type(layer) is kind), ())
        if isinstance(layer, _ICMPv6):
            names = ("cksum",)
        if type(layer) is UDP and layer.chksum == 0 and (layer.underlayer.version == 4 or layer.dport == 6080):
            names = ("len",)
        for name in names:
            layer.delfieldval(name)
        layer = layer.payload
    computed = bytes(stripped)
    if computed == bytes(packet):
        return []
    again = fields(type(packet)(computed))
    return [f"{key}: scapy computes {again.get(key)}, sent {value}" for key, value in fields(packet).items()
            if again.get(key) != value]


def _is_fragment(layer):
    return isinstance(layer, IP) and (layer.frag or layer.flags.MF)
