"""Small tools on packets: scapy set up for judging, checksums, headers by offset. Written from the RFCs."""

import ipaddress
import logging

import world

logging.getLogger("scapy").setLevel(logging.ERROR)
# pylint: disable=wrong-import-position
from scapy.all import IP, TCP, UDP, Dot1AD, Dot1Q, Ether, IPv6, Raw  # noqa: E402
from scapy.layers.inet6 import fragment6  # noqa: E402
from scapy.packet import Padding  # noqa: E402

# Payload stays bytes: what scapy reads as DNS and writes again need not be the same bytes.
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


def network(frame):
    """The IPv4 or IPv6 layer of a frame; None if it has none."""
    layer = frame
    while isinstance(layer, (Ether, Dot1Q, Dot1AD)):
        layer = layer.payload
    return layer if isinstance(layer, (IP, IPv6)) else None


def tags(frame):
    """The VLAN tags of a frame, outermost first."""
    found, layer = [], frame.payload
    while isinstance(layer, (Dot1Q, Dot1AD)):
        found.append(layer)
        layer = layer.payload
    return found


def padding(frame):
    """Bytes behind the IP packet."""
    return bytes(frame[Padding]) if Padding in frame else b""


def without_padding(net):
    """The bytes of an IP packet."""
    data = bytes(net)
    trailing = len(bytes(net[Padding])) if Padding in net else 0
    return data[:len(data) - trailing]


class Headers:
    """Where the headers of an IP packet (bytes) are. Attributes that it has not are None."""

    def __init__(self, data):
        self.data = data
        self.version = data[0] >> 4
        self.ports = self.fragment = None
        self.extensions = []
        self._read_v4() if self.version == 4 else self._read_v6()
        if self.protocol in (6, 17) and not (self.fragment and self.fragment[0]) and len(data) >= self.transport + 4:
            self.ports = tuple(int.from_bytes(data[self.transport + at:self.transport + at + 2], "big")
                               for at in (0, 2))

    def _read_v4(self):
        data = self.data
        self.transport, self.protocol = (data[0] & 15) * 4, data[9]
        self.source, self.destination, self.hops = data[12:16], data[16:20], data[8]
        word = int.from_bytes(data[6:8], "big")
        self.dont_fragment = bool(word & 0x4000)
        if word & 0x3FFF:
            self.fragment = (word & 0x1FFF) * 8, bool(word & 0x2000), int.from_bytes(data[4:6], "big")

    def _read_v6(self):
        data = self.data
        self.source, self.destination, self.hops = data[8:24], data[24:40], data[7]
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

    def flow(self):
        """Source, source port, destination, destination port, protocol."""
        source_port, destination_port = self.ports or (0, 0)
        return (str(ipaddress.ip_address(self.source)), source_port,
                str(ipaddress.ip_address(self.destination)), destination_port, self.protocol)

    def is_error(self):
        """Whether it is an ICMP error, which quotes another packet."""
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
    """The IP packet (or what an ICMP error quotes of one) with other (address, port) pairs, checksums patched.

    A port that is None stays; a UDP checksum of 0 stays. Works on packets whose end is missing.
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


# ---- words for the expressions of case files ----

def as_frame(value):
    """A scapy packet as bytes: MAC addresses that it does not name are those of client and balancer."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Ether):
        value.fields.setdefault("src", world.CLIENT_MAC)
        value.fields.setdefault("dst", world.LB)
    return bytes(value)


def answer(packet, flags="SA", payload=b"", **changes):
    """What the receiver of a TCP or UDP frame answers."""
    net = network(packet)
    out = packet.copy()
    out.src, out.dst = packet.dst, packet.src
    layer = network(out)
    layer.remove_payload()
    layer.src, layer.dst = net.dst, net.src
    if layer.version == 4:
        layer.fields |= {"ttl": 64, "options": [], "ihl": None, "len": None, "chksum": None, "id": 1, "flags": 2}
    else:
        layer.fields |= {"hlim": 64, "plen": None, "nh": 6 if TCP in packet else 17, "fl": 0}
    layer.raw_packet_cache = None
    if TCP in packet:
        length = len(bytes(packet[TCP].payload)) if Padding not in packet else 0
        taken = length + bool(packet[TCP].flags & "SF")
        values = {"flags": flags, "seq": packet[TCP].ack or 5000, "ack": packet[TCP].seq + taken, "window": 65000}
        upper = TCP(sport=packet[TCP].dport, dport=packet[TCP].sport, **(values | changes))
    else:
        upper = UDP(sport=packet[UDP].dport, dport=packet[UDP].sport, **changes)
    return out / upper / payload


def quoted(packet, size=28):
    """The first `size` bytes of the IP packet in a frame, as ICMP errors quote it."""
    return Raw(without_padding(network(packet))[:size])


def padded(packet, size=60, byte=b"\0"):
    """The frame with Ethernet padding up to `size` bytes."""
    data = as_frame(packet)
    return data + byte * (size - len(data))


def changed_bytes(packet, at, value):
    """The frame with other bytes from offset `at` on; checksums stay as they were."""
    data = as_frame(packet)
    return data[:at] + value + data[at + len(value):]


def pieces(packet, size):
    """The IPv4 fragments of a frame, of `size` payload bytes each."""
    return packet.fragment(size)


def pieces6(packet, size):
    """The IPv6 fragments (RFC 8200 4.5) of a frame that has an IPv6ExtHdrFragment, of `size` payload bytes each."""
    return fragment6(packet, size + 48 + 14)


def quic_long(kind, connection):
    """A QUIC long header (RFC 9000 17.2): 0 Initial, 1 0-RTT, 2 Handshake, 3 Retry; and bytes like encrypted ones."""
    connection = bytes.fromhex(connection)
    first = 0xC0 | kind << 4
    return bytes([first, 0, 0, 0, 1, len(connection)]) + connection + b"\x04srce" + b"\x5a" * 40


def quic_short(connection):
    """A QUIC short header (RFC 9000 17.3)."""
    return b"\x40" + bytes.fromhex(connection) + b"\x5a" * 40


def zero_sums(client, client_port, backends, port):
    """A payload of 2 bytes for each backend that makes the UDP checksum of what it gets compute to 0."""
    for backend in backends:
        pseudo = packed(client) + packed(backend) + (17).to_bytes(2, "big") + (10).to_bytes(2, "big")
        header = client_port.to_bytes(2, "big") + port.to_bytes(2, "big") + (10).to_bytes(2, "big")
        yield checksum(pseudo + header).to_bytes(2, "big")


FOR_CASES = ("answer", "quoted", "padded", "changed_bytes", "pieces", "pieces6", "quic_long", "quic_short", "zero_sums")
