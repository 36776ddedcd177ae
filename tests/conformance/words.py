"""Functions for the expressions of case files: packets made from other packets."""

import world
from packets import TCP, UDP, Ether, Frame, checksum, packed
from scapy.all import Dot1AD, Dot1Q, Raw
from scapy.layers.inet6 import fragment6
from scapy.packet import Padding


def _network(frame):
    """The IPv4 or IPv6 layer of a frame."""
    layer = frame
    while isinstance(layer, (Ether, Dot1Q, Dot1AD)):
        layer = layer.payload
    return layer


def as_frame(value):
    """A scapy packet as bytes; MAC addresses that are not set are those of client and balancer."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Ether):
        value.fields.setdefault("src", world.CLIENT_MAC)
        value.fields.setdefault("dst", world.LB)
    return bytes(value)


def answer(packet, flags="SA", payload=b"", **changes):
    """The reply to a TCP or UDP frame."""
    net = _network(packet)
    out = packet.copy()
    out.src, out.dst = packet.dst, packet.src
    layer = _network(out)
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
    return Raw(Frame(as_frame(packet)).data[:size])


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
    """A QUIC long header (RFC 9000 17.2): 0 Initial, 1 0-RTT, 2 Handshake, 3 Retry; with constant bytes as payload."""
    connection = bytes.fromhex(connection)
    first = 0xC0 | kind << 4
    return bytes([first, 0, 0, 0, 1, len(connection)]) + connection + b"\x04srce" + b"\x5a" * 40


def quic_short(connection):
    """A QUIC short header (RFC 9000 17.3)."""
    return b"\x40" + bytes.fromhex(connection) + b"\x5a" * 40


def zero_sums(client, client_port, backends, port):
    """Yields, for each backend, the payload of 2 bytes with which the UDP checksum of the packet it receives is 0."""
    for backend in backends:
        pseudo = packed(client) + packed(backend) + (17).to_bytes(2, "big") + (10).to_bytes(2, "big")
        header = client_port.to_bytes(2, "big") + port.to_bytes(2, "big") + (10).to_bytes(2, "big")
        yield checksum(pseudo + header).to_bytes(2, "big")


FOR_CASES = ("answer", "quoted", "padded", "changed_bytes", "pieces", "pieces6", "quic_long", "quic_short", "zero_sums")
