"""Random packets of clients and backends, from a seed.

Headers are built with struct here, as building with scapy takes longer than all the rest.
"""

import struct
from dataclasses import dataclass

from facts import TCP, UDP
from packets import Frame, Headers, checksum, mac, packed, transport_sum, transport_sum_at
from rewriting import with_header_sum, with_icmp
from segments import SYN

FLOWS = 400
MTU = 1500
# Bytes for a mark: with all options the longest packets fill the MTU.
MARKED = 32
# Percentages of packets.
OPTIONS, EXTENSIONS, TAGGED, PADDED, NO_VIP, NO_SUM, SPLIT, NO_ANSWER = 8, 12, 15, 15, 3, 10, 20, 5
FLAGS = (0x02, 0xC2, 0x10, 0x18, 0x11, 0x19, 0x14, 0x04, 0x30, 0x50, 0x90, 0x38)
HOPS = (1, 2, 3, 63, 64, 65, 127, 128, 254, 255)

# Type, code, and the four bytes behind the checksum: an MTU, a pointer or nothing.
ERRORS4 = ((3, 4, 1400), (3, 4, 1500), (3, 4, 0), (3, 3, 0), (3, 1, 0), (11, 0, 0), (12, 0, 8 << 24))
ERRORS6 = ((2, 0, 1280), (2, 0, 1500), (2, 0, 0), (1, 4, 0), (1, 0, 0), (3, 0, 0), (4, 1, 6))


@dataclass
class Flow:
    """Addresses, ports and VLAN tags of a random flow."""

    client: str
    client_port: int
    vip: str
    vip_port: int
    protocol: int
    tags: list


class Generator:
    """Packets for VIPs, from `random`; `clients` gives the address of a flow's client: (number, IP version)."""

    def __init__(self, random, vips, clients, marked=None, tagged=TAGGED, sequenced=False, unanswered=False):
        """`sequenced`: TCP numbers of a flow are consistent, with room for a PROXY header.

        `unanswered`: some UDP datagrams have source port 0.
        """
        self.unanswered = unanswered
        self.sequenced, self.initial, self.labels = sequenced, {}, {}
        self.random, self.vips, self.clients, self.marked, self.tagged = random, vips, clients, marked, tagged
        self.made = 0
        self.flows = [self._flow(number) for number in range(FLOWS)]

    def _flow(self, number):
        vip = self.random.choice(self.vips)
        # Each flow has a client of its own: two flows of one client and port can collide behind NAT.
        client = self.clients(number, vip.network.version)
        address = vip.network[self.random.randrange(min(vip.network.num_addresses, 2**32))]
        port = self.random.randint(*self.random.choice(vip.ports))
        protocol = vip.protocol or self.random.choice((6, 17))
        tags = [self._tag() for _ in range(self.random.randint(1, 2) if self._chance(self.tagged) else 0)]
        # RFC 768: a datagram with source port 0 expects no reply.
        silent = self.unanswered and protocol == UDP and self._chance(NO_ANSWER)
        return Flow(client, 0 if silent else 1 + self.random.randrange(65535), str(address), port, protocol, tags)

    def _tag(self):
        return self.random.randint(1, 4094) | self.random.randrange(8) << 13

    def _chance(self, percent):
        return self.random.randrange(100) < percent

    def packet(self, source, destination):
        """Returns a client's frame between two MACs."""
        flow = self.random.choice(self.flows)
        port = flow.vip_port
        if self._chance(NO_VIP) and flow.protocol == TCP and port == 80:
            port = 81
        ends = (flow.client, flow.client_port), (flow.vip, port)
        return self.frame(source, destination, flow.tags, ends, flow.protocol)

    def packets(self, source, destination, may_split):
        """Returns a client's frame, or the fragments of a datagram to a VIP (address, port) that `may_split` accepts."""
        frame = self.packet(source, destination)
        came = Frame(frame)
        headers = Headers(came.data)
        address, port = headers.flow()[2:4]
        whole = headers.protocol == UDP and not headers.extensions and len(came.data) - headers.transport > 64
        if not whole or not may_split(address, port) or not self._chance(SPLIT):
            return [frame]
        head = frame[:len(frame) - len(came.data) - len(came.padding)]
        room = self.random.randrange(8, (len(came.data) - headers.transport) // 2, 8)
        pieces = split_v4(came.data, headers, room) if headers.version == 4 else \
            split_v6(came.data, headers, room, self.random.randrange(2**32))
        return [head + piece for piece in pieces]

    def answer(self, packet, source, destination, extensions):
        """Returns a reply to an IP packet (bytes), with random header fields."""
        client, client_port, server, port, protocol = Headers(packet).flow()
        ends = (server, port), (client, client_port)
        numbers = (self.random.randrange(2**32), next_number(packet)) if self.sequenced and protocol == TCP else None
        return self.frame(source, destination, [], ends, protocol, extensions, numbers)

    def error(self, packet, source, destination, ends):
        """Returns an ICMP error from one of `ends` to the other that quotes the beginning of an IP packet (bytes)."""
        headers = Headers(packet)
        least = headers.transport + 8
        quote = packet[:self.random.choice((least, least + 12, self.random.randint(least, 1200), 1200))]
        kind, code, rest = self.random.choice(ERRORS4 if headers.version == 4 else ERRORS6)
        message = bytes([kind, code, 0, 0]) + struct.pack(">I", rest) + quote
        if headers.version == 4:
            data = self._ipv4_header(ends, 1, b"", message, 0) + message
        else:
            data = self._ipv6_header(ends, 58, b"", message) + message
        return mac(destination) + mac(source) + _ether_type(data) + with_icmp(data, Headers(data))

    def frame(self, source, destination, tags, ends, protocol, extensions=True, numbers=None):
        """Returns a frame; fields without an argument are random. `numbers` are SEQ and ACK."""
        segment = self._tcp(ends, numbers) if protocol == 6 else self._udp(ends)
        data = self._ipv6(ends, protocol, segment, extensions) if ":" in ends[0][0] else self._ipv4(ends, protocol, segment)
        out = mac(destination) + mac(source)
        for index, tag in enumerate(tags):
            out += struct.pack(">HH", 0x88A8 if index < len(tags) - 1 else 0x8100, tag)
        out += _ether_type(data) + data
        if self._chance(PADDED):
            out += self.random.randbytes(max(60 - len(out), 0) or self.random.randrange(8))
        return out

    def _payload(self, room):
        room -= MARKED if self.marked is not None else 0
        payload = self.random.randbytes(self.random.choice((0, 1, room - 1, room, self.random.randint(0, room))))
        if self.marked is None:
            return payload
        self.made += 1
        return mark(self.marked, self.made - 1) + payload

    def _numbers(self, ends, flags):
        number = self.random.randrange(2**32)
        if self.sequenced:
            initial = self.initial.setdefault(ends, number)
            number = initial if flags & SYN else initial + 1 + self.random.choice((0, self.random.randrange(100000)))
        return number % 2**32, self.random.randrange(2**32)

    def _tcp(self, ends, numbers):
        flags, options = self.random.choice(FLAGS), self._tcp_options()
        sequence, acknowledged = numbers or self._numbers(ends, flags)
        head = struct.pack(">HHIIBBHHH", ends[0][1], ends[1][1], sequence, acknowledged, (20 + len(options)) << 2, flags, self.random.randrange(65536),
                           0, self.random.randrange(65536) if flags & 0x20 else 0)
        return head + options + self._payload(MTU - (220 if self.sequenced else 160))

    def _tcp_options(self):
        kinds = (b"\2\4" + struct.pack(">H", self.random.randint(536, 1460)), b"\4\2", b"\3\3\7", b"\1",
                 b"\x08\x0a" + self.random.randbytes(8), b"\5\x0a" + self.random.randbytes(8))
        if self.sequenced:
            # SACK blocks would have to name sequence numbers that were sent.
            kinds = kinds[:-1]
        options = b"".join(self.random.sample(kinds, self.random.randrange(4)))
        return options + b"\1" * (-len(options) % 4)

    def _udp(self, ends):
        payload = self._payload(MTU - 120)
        return struct.pack(">HHHH", ends[0][1], ends[1][1], 8 + len(payload), 0) + payload

    def _ipv4(self, ends, protocol, segment):
        options = b"\1" * 4 * self.random.randint(1, 10) if self._chance(OPTIONS) else b""
        head = self._ipv4_header(ends, protocol, options, segment, self.random.choice((0, 0x4000)))
        unsummed = protocol == 17 and self._chance(NO_SUM)
        return head + segment if unsummed else _summed(head + segment)

    def _ipv4_header(self, ends, protocol, options, segment, flags):
        head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, self.random.randrange(256),
                           20 + len(options) + len(segment), self.random.randrange(65536), flags,
                           self.random.choice(HOPS), protocol, 0)
        head += packed(ends[0][0]) + packed(ends[1][0]) + options
        return head[:10] + checksum(head).to_bytes(2, "big") + head[12:]

    def _ipv6(self, ends, protocol, segment, extended):
        extensions, first = b"", protocol
        if extended and self._chance(EXTENSIONS):
            kinds = self.random.choice(((60,), (0,), (0, 60), (60, 60)))
            following = kinds[1:] + (protocol,)
            first = kinds[0]
            for after in following:
                words = self.random.randrange(4)
                extensions += bytes([after, words, 1, 4 + 8 * words]) + bytes(4 + 8 * words)
        return _summed(self._ipv6_header(ends, first, extensions, segment) + segment)

    def _ipv6_header(self, ends, first, extensions, segment):
        word = 6 << 28 | self.random.randrange(2**28)
        if self.marked is not None:
            # Kernels hash the label to choose a queue: one label for a flow keeps its packets in order.
            word = word & ~0xFFFFF | self.labels.setdefault(ends, word & 0xFFFFF)
        head = struct.pack(">IHBB", word, len(extensions) + len(segment), first, self.random.choice(HOPS))
        return head + packed(ends[0][0]) + packed(ends[1][0]) + extensions


def split_v4(data, headers, room):
    """Returns the fragments of an IPv4 packet, `room` bytes in each but the last (RFC 791 3.2)."""
    body = data[headers.transport:]
    for at in range(0, len(body), room):
        piece = body[at:at + room]
        word = at // 8 | (0x2000 if at + room < len(body) else 0)
        head = data[:2] + (headers.transport + len(piece)).to_bytes(2, "big") + data[4:6] + word.to_bytes(2, "big")
        yield with_header_sum(head + data[8:headers.transport] + piece)


def split_v6(data, headers, room, identification):
    """Returns the fragments of an IPv6 packet without extension headers (RFC 8200 4.5)."""
    body = data[headers.transport:]
    for at in range(0, len(body), room):
        piece = body[at:at + room]
        fragment = struct.pack(">BBHI", headers.protocol, 0, at | (at + room < len(body)), identification)
        yield data[:4] + struct.pack(">HB", 8 + len(piece), 44) + data[7:40] + fragment + piece


def next_number(packet):
    """Returns the TCP acknowledgment number of the receiver of an IP packet (bytes)."""
    headers = Headers(packet)
    start = headers.transport + (packet[headers.transport + 12] >> 4) * 4
    sequence = int.from_bytes(packet[headers.transport + 4:headers.transport + 8], "big")
    return (sequence + len(packet) - start + (packet[headers.transport + 13] & (SYN | 1) != 0)) % 2**32


def mark(run, number):
    """Returns the bytes that identify a frame on arrival, independent of its headers."""
    return b"holdfast" + struct.pack(">II", run, number)


def _ether_type(data):
    return b"\x86\xdd" if data[0] >> 4 == 6 else b"\x08\0"


def _summed(data):
    """Returns the packet with its TCP or UDP checksum."""
    headers = Headers(data)
    at = transport_sum_at(headers)
    return data[:at] + transport_sum(data, headers).to_bytes(2, "big") + data[at + 2:]
