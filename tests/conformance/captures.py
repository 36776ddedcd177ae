"""Writer of pcapng, reader of pcap and pcapng. Without scapy, which is slow for thousands of frames.

pcap:   https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html
pcapng: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-02.html
"""

import struct
from dataclasses import dataclass

ETHERNET = 1


@dataclass
class Captured:
    """One frame of a capture. `seconds` count from the epoch; `interface` and `comment` are set if the file has them."""

    data: bytes
    seconds: float
    interface: str | None = None
    comment: str = ""


def write(path, frames, interfaces=("-",)):
    """Writes (microseconds since the epoch, interface, frame) as pcapng; `interfaces` lists their names."""
    with open(path, "wb") as file:
        file.write(_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
        for name in interfaces:
            file.write(_block(1, struct.pack("<HHI", ETHERNET, 0, 262144) + _option(2, name.encode()) + bytes(4)))
        for micros, interface, frame in frames:
            head = struct.pack("<IIIII", interfaces.index(interface), micros >> 32, micros & 0xFFFFFFFF, len(frame),
                               len(frame))
            file.write(_block(6, head + _aligned(frame)))


def _block(kind, body):
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _option(code, value):
    return struct.pack("<HH", code, len(value)) + _aligned(value)


def _aligned(data):
    return data + bytes(-len(data) % 4)


def read(path):
    """Returns every frame of a pcap or pcapng file."""
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] == b"\x0a\x0d\x0d\x0a":
        return list(_read_pcapng(path, data))
    return list(_read_pcap(path, data))


def _read_pcap(path, data):
    orders = {b"\xd4\xc3\xb2\xa1": ("<", 1e6), b"\xa1\xb2\xc3\xd4": (">", 1e6),
              b"\x4d\x3c\xb2\xa1": ("<", 1e9), b"\xa1\xb2\x3c\x4d": (">", 1e9)}
    if data[:4] not in orders:
        raise ValueError(f"{path}: neither pcap nor pcapng; tcpdump -w and wireshark write both")
    order, unit = orders[data[:4]]
    (link,) = struct.unpack(order + "I", data[20:24])
    if link & 0xFFFF != ETHERNET:
        raise ValueError(f"{path}: link type {link & 0xFFFF}, not Ethernet: capture on one interface, not on \"any\"")
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, length, _ = struct.unpack(order + "IIII", data[at:at + 16])
        yield Captured(data[at + 16:at + 16 + length], seconds + fraction / unit)
        at += 16 + length


def _read_pcapng(path, data):
    order, at, interfaces = "<", 0, []
    while at + 12 <= len(data):
        if data[at:at + 4] == b"\x0a\x0d\x0d\x0a":
            order = "<" if data[at + 8:at + 12] == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
        kind, length = struct.unpack(order + "II", data[at:at + 8])
        if length < 12:
            raise ValueError(f"{path}: a block of {length} bytes at {at}")
        body = data[at + 8:at + length - 4]
        if kind == 1:
            interfaces.append(_interface(path, order, body))
        elif kind == 6:
            yield _packet(order, body, interfaces)
        at += length


def _interface(path, order, body):
    (link,) = struct.unpack(order + "H", body[:2])
    if link != ETHERNET:
        raise ValueError(f"{path}: an interface of link type {link}, not Ethernet")
    options = _options(order, body[8:])
    resolution = options.get(9, b"\x06")[0]
    unit = 2.0 ** (resolution & 0x7F) if resolution & 0x80 else 10.0 ** resolution
    return options.get(2, b"").decode() or None, unit


def _packet(order, body, interfaces):
    index, high, low, length, _ = struct.unpack(order + "IIIII", body[:20])
    name, unit = interfaces[index]
    options = _options(order, body[20 + (length + 3) // 4 * 4:])
    comment = options.get(1, b"").decode()
    return Captured(body[20:20 + length], (high << 32 | low) / unit, name, comment)


def _options(order, data):
    found, at = {}, 0
    while at + 4 <= len(data):
        code, length = struct.unpack(order + "HH", data[at:at + 4])
        if code == 0:
            break
        found.setdefault(code, data[at + 4:at + 4 + length])
        at += 4 + (length + 3) // 4 * 4
    return found
