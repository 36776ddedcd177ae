"""Helpers for packets, written from the RFCs: scapy without payload dissection, checksums, headers by offset."""

import ipaddress
import logging

logging.getLogger("scapy").setLevel(logging.ERROR)
# pylint: disable=wrong-import-position
from scapy.all import IP, TCP, UDP, Ether, IPv6  # noqa: E402

# Payload stays bytes: scapy may dissect it as DNS and build other bytes.
TCP.payload_guess = []
UDP.payload_guess = []

EXTENSIONS = {0: "hop-by-hop", 43: "routing", 44: "fragment", 60: "destination"}
ICMP4_ERRORS, ICMP6_ERRORS = (3, 4, 5, 11, 12), range(1, 5)


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def ones_sum(data, start=0):
    """The sum of 16-bit words in one's complement (RFC 1071): modulo 65535, as 65536 is 1 there."""
    if len(data) % 2:
        data += b"\0"
    total = start + int.from_bytes(data, "big")
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data):
    """The internet checksum of `data` (RFC 1071)."""
    return 0xFFFF - ones_sum(data)


def patched(old_sum, old, new):
    """`old_sum` after bytes that it covers have changed from `old` to `new` (RFC 1624, eqn. 3)."""
    inverted = bytes(0xFF - byte for byte in old + (b"" if len(old) % 2 == 0 else b"\0"))
    return 0xFFFF - ones_sum(new, ones_sum(inverted, 0xFFFF - old_sum))


def packed(address):
    return ipaddress.ip_address(address).packed


class Frame:
    """A frame: addresses, VLAN tags, the IP packet without padding, padding. `data` is None where there is no IP."""

    def __init__(self, raw):
        self.raw = raw
        self.dst, self.src = (raw[at:at + 6].hex(":") for at in (0, 6))
        # Priority, drop eligible indicator and VLAN as one number, outermost first.
        self.tags, at = [], 12
        while raw[at:at + 2] in (b"\x81\0", b"\x88\xa8"):
            self.tags.append(int.from_bytes(raw[at + 2:at + 4], "big"))
            at += 4
        net = raw[at + 2:]
        self.data, self.padding = None, b""
        if raw[at:at + 2] == b"\x08\0" and len(net) >= 20:
            self.data = net[:int.from_bytes(net[2:4], "big")]
        elif raw[at:at + 2] == b"\x86\xdd" and len(net) >= 40:
            self.data = net[:40 + int.from_bytes(net[4:6], "big")]
        if self.data is not None:
            self.padding = net[len(self.data):]

    def summary(self):
        return Ether(self.raw).summary()


class Headers:
    """Header offsets and fields of an IP packet (bytes). Absent ones are None."""

    def __init__(self, data):
        self.data = data
        self.version = data[0] >> 4
        self.ports = self.fragment = None
        self.identification = self.flow_label = 0
        self.extensions = []
        self._read_v4() if self.version == 4 else self._read_v6()
        if self.protocol in (6, 17) and not (self.fragment and self.fragment[0]) and len(data) >= self.transport + 4:
            self.ports = tuple(int.from_bytes(data[self.transport + at:self.transport + at + 2], "big")
                               for at in (0, 2))

    def _read_v4(self):
        data = self.data
        self.transport, self.protocol = (data[0] & 15) * 4, data[9]
        self.source, self.destination, self.hops = data[12:16], data[16:20], data[8]
        self.identification = int.from_bytes(data[4:6], "big")
        word = int.from_bytes(data[6:8], "big")
        self.dont_fragment = bool(word & 0x4000)
        if word & 0x3FFF:
            self.fragment = (word & 0x1FFF) * 8, bool(word & 0x2000), int.from_bytes(data[4:6], "big")

    def _read_v6(self):
        data = self.data
        self.source, self.destination, self.hops = data[8:24], data[24:40], data[7]
        self.flow_label = int.from_bytes(data[1:4], "big") & 0xFFFFF
        self.dont_fragment = True
        at, self.protocol = 40, data[6]
        while self.protocol in EXTENSIONS and at + 8 <= len(data):
            self.extensions.append(self.protocol)
            length = 8 if self.protocol == 44 else 8 + 8 * data[at + 1]
            if self.protocol == 44:
                word = int.from_bytes(data[at + 2:at + 4], "big")
                self.fragment = word & 0xFFF8, bool(word & 1), int.from_bytes(data[at + 4:at + 8], "big")
            self.protocol, at = data[at], at + length
        self.transport = at

    @property
    def source_text(self):
        return str(ipaddress.ip_address(self.source))

    def flow(self):
        """Source, source port, destination, destination port, protocol."""
        source_port, destination_port = self.ports or (0, 0)
        return (str(ipaddress.ip_address(self.source)), source_port,
                str(ipaddress.ip_address(self.destination)), destination_port, self.protocol)

    def is_error(self):
        """Whether the packet is an ICMP error, which quotes another packet."""
        kind = self.data[self.transport] if len(self.data) > self.transport else 0
        return (self.protocol == 1 and kind in ICMP4_ERRORS) or (self.protocol == 58 and kind in ICMP6_ERRORS)


def transport_sum_at(headers):
    """Offset of the TCP or UDP checksum in the packet; None if it has none there."""
    at = {6: 16, 17: 6}.get(headers.protocol)
    if at is None or headers.ports is None or len(headers.data) < headers.transport + at + 2:
        return None
    return headers.transport + at


def transport_sum(data, headers):
    """The TCP or UDP checksum that the packet should carry, from all of its bytes (RFC 9293 3.1, RFC 768)."""
    at = transport_sum_at(headers)
    segment = data[headers.transport:at] + bytes(2) + data[at + 2:]
    pseudo = data[12:20] if headers.version == 4 else data[8:40]
    pseudo += len(segment).to_bytes(4, "big") + headers.protocol.to_bytes(4, "big")
    total = checksum(pseudo + segment)
    return 0xFFFF if total == 0 and headers.protocol == 17 else total


def readdressed(data, source=None, destination=None):
    """The IP packet, or the quote of one, with other (address, port) pairs, checksums patched.

    A port that is None stays; a UDP checksum of 0 stays. Truncated packets are accepted.
    """
    headers, out = Headers(data), bytearray(data)
    first = 12 if headers.version == 4 else 8
    size = 4 if headers.version == 4 else 16
    changes = []
    for index, end in ((0, source), (1, destination)):
        if end is None:
            continue
        address, port = end
        changes.append((first + index * size, packed(address)))
        if port is not None and headers.ports is not None:
            changes.append((headers.transport + index * 2, port.to_bytes(2, "big")))
    at_sum = transport_sum_at(headers)
    for at, new in changes:
        old = bytes(out[at:at + len(new)])
        out[at:at + len(new)] = new
        if at_sum is not None and not (headers.protocol == 17 and data[at_sum:at_sum + 2] == b"\0\0"):
            put_sum(out, at_sum, old, new, udp=headers.protocol == 17)
        if headers.version == 4 and at < 20:
            put_sum(out, 10, old, new)
    return bytes(out)


def put_sum(out, at, old, new, udp=False):
    """Patches the checksum at `at` of a bytearray."""
    total = patched(int.from_bytes(out[at:at + 2], "big"), old, new)
    out[at:at + 2] = (0xFFFF if udp and total == 0 else total).to_bytes(2, "big")
