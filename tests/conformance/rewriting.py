"""Changes that routers and translators make to packets, from the RFCs; on bytes, from the IP header on."""

from packets import IP, Headers, IPv6, checksum, mac, put_sum, readdressed, transport_sum, transport_sum_at

# RFC 7915 5.1: a translated packet of at most this many bytes may be fragmented on its way.
SMALL_V4 = 1260
# The smallest MTU of each family (RFC 791 3.2, RFC 8200 5), and those that links have (RFC 1191 7.1).
LEAST_V4, LEAST_V6 = 68, 1280
PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)


def framed(data, destination, source, vlans, frame):
    """An IP packet as a frame to a next hop; the tags keep the priority of those that `frame` came with."""
    out = mac(destination) + mac(source)
    kinds = [0x8100] if len(vlans) == 1 else [0x88A8, 0x8100]
    for index, vlan in enumerate(vlans):
        priority = frame.tags[index] & 0xF000 if index < len(frame.tags) else 0
        out += kinds[index].to_bytes(2, "big") + (priority | vlan).to_bytes(2, "big")
    return out + (b"\x08\x00" if data[0] >> 4 == 4 else b"\x86\xdd") + data


def fewer_hops(data):
    """Decrements the TTL or hop limit, as a router does (RFC 1812 5.3.1, RFC 8200 3)."""
    out = bytearray(data)
    out[8 if data[0] >> 4 == 4 else 7] -= 1
    return with_header_sum(out) if data[0] >> 4 == 4 else bytes(out)


def with_header_sum(data):
    """The IPv4 packet with its header checksum recomputed."""
    out, length = bytearray(data), (data[0] & 15) * 4
    out[10:12] = bytes(2)
    out[10:12] = checksum(bytes(out[:length])).to_bytes(2, "big")
    return bytes(out)


def with_icmp(data, headers, source=None, destination=None):
    """An ICMP packet with other addresses, and its ICMP checksum recomputed."""
    ends = [(address, None) if address else None for address in (source, destination)]
    out = bytearray(readdressed(data, *ends))
    at = headers.transport
    out[at + 2:at + 4] = bytes(2)
    message = bytes(out[at:])
    pseudo = b""
    if headers.version == 6:
        pseudo = bytes(out[8:40]) + len(message).to_bytes(4, "big") + (58).to_bytes(4, "big")
    out[at + 2:at + 4] = checksum(pseudo + message).to_bytes(2, "big")
    return bytes(out)


def error_to_client(data, headers, ends):
    """Translates an ICMP error from the backend's side for the client: from the VIP, about the client's own packet."""
    vip, client = ends
    at = headers.transport + 8
    quoted = readdressed(data[at:], source=client, destination=vip)
    return fewer_hops(with_icmp(data[:at] + quoted, headers, source=vip[0], destination=client[0]))


def translated(data, headers, source, destination, seen, came=None):
    """The packet in the other family (RFC 7915), from and to (address, port); free fields are those of `seen` (headers).

    `came`: how many bytes the client has sent behind its IP header, if the packet has more or fewer now.
    """
    segment = bytearray(data[headers.transport:])
    for at, (_, port) in ((0, source), (2, destination)):
        if headers.ports is not None:
            segment[at:at + 2] = port.to_bytes(2, "big")
    header = other_header(headers, source[0], destination[0], len(segment), headers.hops - 1, seen, came)
    out = bytearray(header + segment)
    # RFC 7915 4.5: over IPv6 a UDP checksum is computed where IPv4 had none.
    put_transport_sum(out)
    return bytes(out)


def other_header(headers, source, destination, length, hops, seen, came=None):
    """The IP header of the other family in front of `length` bytes (RFC 7915 4.1, 5.1)."""
    protocol = {1: 58, 58: 1}.get(headers.protocol, headers.protocol)
    data = headers.data
    if headers.version == 4:
        return bytes(IPv6(src=source, dst=destination, tc=data[1], hlim=hops, nh=protocol, fl=0, plen=length))
    traffic_class = (data[0] & 15) << 4 | data[1] >> 4
    flags = "DF" if 20 + (length if came is None else came) > SMALL_V4 else 0
    return bytes(IP(src=source, dst=destination, tos=traffic_class, ttl=hops, proto=protocol,
                    id=seen.identification, flags=flags, len=20 + length))


def error_across(data, headers, ends, quoted_ends, seen, links):
    """An ICMP error in the other family (RFC 7915 4.2, 5.2), from and to addresses; `quoted_ends` are
    those of the quoted packet.

    `links`: MTU of the link by which the error leaves, and of that by which the packet left that it is about.
    """
    at = headers.transport
    kind, code, word = data[at], data[at + 1], int.from_bytes(data[at + 4:at + 8], "big")
    if headers.version == 4:
        message = to_icmpv6(kind, code, word, int.from_bytes(data[at + 10:at + 12], "big"), links)
    else:
        message = to_icmp(kind, code, word, links)
    quote = quote_across(data[at + 8:], *quoted_ends)
    longest = 1280 - 40 - 8 if headers.version == 4 else 576 - 20 - 8
    body = bytes([*message[:2], 0, 0]) + message[2].to_bytes(4, "big") + quote[:longest]
    packet = other_header(headers, *ends, len(body), headers.hops - 1, seen) + body
    return with_icmp(packet, Headers(packet))


def to_icmpv6(kind, code, word, length, links):
    """Type, code and the word behind the checksum of an ICMP error about `length` bytes, in ICMPv6 (RFC 7915 4.2)."""
    if (kind, code) == (3, 4):
        told = max(word & 0xFFFF, LEAST_V4) if word & 0xFFFF else plateau(length)
        return 2, 0, max(min(told + 20, links[0], links[1] + 20), LEAST_V6)
    if kind == 12:
        # The tests use one pointer only, the one to the TTL.
        return 4, 0, {8: 7}[word >> 24]
    return *{(3, 1): (1, 0), (3, 3): (1, 4), (11, 0): (3, 0)}[kind, code], 0


def plateau(length):
    """The MTU plateau below `length`, for a router that reports no MTU (RFC 1191 5, 7.1)."""
    return next((mtu for mtu in PLATEAUS if mtu < length), LEAST_V4)


def to_icmp(kind, code, word, links):
    """Type, code and that word of an ICMPv6 error, in ICMP (RFC 7915 5.2). An MTU is at least 1280 (RFC 8201 4)."""
    if kind == 2:
        return 3, 4, min(max(word, LEAST_V6) - 20, links[0], links[1] - 20)
    return *{(1, 0): (3, 1), (1, 4): (3, 3), (3, 0): (11, 0), (4, 1): (3, 2)}[kind, code], 0


def quote_across(quote, source, destination):
    """The quote of an ICMP error in the other family; its end may be missing."""
    old = Headers(quote)
    whole = int.from_bytes(quote[2:4], "big") if old.version == 4 else 40 + int.from_bytes(quote[4:6], "big")
    unnumbered = Headers(quote)
    unnumbered.identification = 0
    header = other_header(old, source[0], destination[0], whole - old.transport, old.hops, unnumbered)
    out = bytearray(header + quote[old.transport:whole])
    new = Headers(bytes(out))
    at, start = transport_sum_at(new), len(header)
    changes = [(old.source + old.destination, new.source + new.destination),
               (quote[old.transport:old.transport + 4], source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big"))]
    out[start:start + 4] = changes[1][1]
    if at is not None and not (old.protocol == 17 and out[at:at + 2] == b"\0\0"):
        for before, after in changes:
            put_sum(out, at, before, after, udp=old.protocol == 17)
    return bytes(out)


def put_transport_sum(out):
    """Recomputes the TCP or UDP checksum of a whole packet (bytearray)."""
    new = Headers(bytes(out))
    at = transport_sum_at(new)
    out[at:at + 2] = transport_sum(bytes(out), new).to_bytes(2, "big")


def fragments(data, mtu):
    """The fragments of an IPv4 packet for links of `mtu` bytes (RFC 791 3.2)."""
    packet = IP(data)
    room = (mtu - packet.ihl * 4) // 8 * 8
    return [bytes(piece) for piece in packet.fragment(room)]
