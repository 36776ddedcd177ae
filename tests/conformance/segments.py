"""Changes inside TCP segments: the MSS of a SYN, and the numbers of a flow with PROXY protocol v2.

PROXY protocol: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt section 2.2
"""

from packets import Headers, packed, transport_sum
from rewriting import with_header_sum

SYN, RST, ACK, URG = 2, 4, 16, 32
OPTION_END, OPTION_NOP, OPTION_MSS, OPTION_SACK, OPTION_TFO = 0, 1, 2, 5, 34
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def flags(data, headers):
    return data[headers.transport + 13]


def number(data, headers, at):
    return int.from_bytes(data[headers.transport + at:headers.transport + at + 4], "big")


def options(data, headers):
    """(kind, offset in the packet, length) of each TCP option (RFC 9293 3.2); NOPs are left out."""
    at = headers.transport + 20
    end = headers.transport + (data[headers.transport + 12] >> 4) * 4
    while at + 1 < end and data[at] != OPTION_END:
        if data[at] == OPTION_NOP:
            at += 1
            continue
        if data[at + 1] < 2 or at + data[at + 1] > end:
            return
        yield data[at], at, data[at + 1]
        at += data[at + 1]


def clamped(data, mss, headers):
    """A SYN or SYN+ACK whose MSS is at most `mss`."""
    return data if mss is None else _with_mss(data, headers, lambda old: min(old, mss))


def lowered(data, by, headers):
    """A SYN or SYN+ACK whose MSS is `by` less."""
    return _with_mss(data, headers, lambda old: max(old - by, 0))


def _with_mss(data, headers, change):
    if headers.protocol != 6 or headers.ports is None or headers.fragment or not flags(data, headers) & SYN:
        return data
    out = bytearray(data)
    for kind, at, length in options(data, headers):
        if (kind, length) == (OPTION_MSS, 4):
            out[at + 2:at + 4] = change(int.from_bytes(data[at + 2:at + 4], "big")).to_bytes(2, "big")
    return summed(out)


def proxy_header(client, vip):
    """PROXY v2, command PROXY, of (address, port) pairs of one family."""
    source, destination = packed(client[0]), packed(vip[0])
    family = 0x11 if len(source) == 4 else 0x21
    body = source + destination + client[1].to_bytes(2, "big") + vip[1].to_bytes(2, "big")
    return SIGNATURE + bytes([0x21, family]) + len(body).to_bytes(2, "big") + body


def to_proxied(data, header, flow):
    """A client's segment for a backend that receives `header` before the data."""
    first, acknowledged = flow.first, flow.acknowledged
    headers, out = Headers(data), bytearray(data)
    if flags(data, headers) & SYN:
        return summed(without_data(out, headers))
    if number(data, headers, 4) == (first + 1) % 2**32 and not acknowledged:
        if flags(data, headers) & ACK and not flags(data, headers) & RST:
            start = headers.transport + (data[headers.transport + 12] >> 4) * 4
            out[start:start] = header
            if flags(data, headers) & URG:
                urgent = int.from_bytes(data[headers.transport + 18:headers.transport + 20], "big") + len(header)
                out[headers.transport + 18:headers.transport + 20] = min(urgent, 0xFFFF).to_bytes(2, "big")
        return summed(out)
    if flags(data, headers) & RST and not flow.answered:
        # The segment belongs to an older connection.
        return summed(out)
    if acknowledged or 0 < (number(data, headers, 4) - first - 1) % 2**32 < 2**31:
        put(out, headers.transport + 4, number(data, headers, 4) + len(header))
    return summed(out)


def without_data(out, headers):
    """A SYN without payload and without TCP Fast Open, so that no data precedes the header."""
    for kind, at, length in options(bytes(out), headers):
        if kind == OPTION_TFO:
            out[at:at + length] = bytes([OPTION_NOP]) * length
    del out[headers.transport + (out[headers.transport + 12] >> 4) * 4:]
    return out


def from_proxied(data, length, flow):
    """A backend's segment for the client, which did not send the `length` bytes of the header."""
    first, acknowledged = flow.first, flow.acknowledged
    headers, out = Headers(data), bytearray(data)
    if not flow.answered:
        # The segment belongs to an older connection.
        return summed(out)
    if flags(data, headers) & ACK:
        put(out, headers.transport + 8, mapped_back(number(data, headers, 8), length, first, acknowledged))
    for kind, at, size in options(data, headers):
        if kind == OPTION_SACK:
            for edge in range(at + 2, at + size, 4):
                put(out, edge, mapped_back(int.from_bytes(data[edge:edge + 4], "big"), length, first, acknowledged))
        if kind == OPTION_MSS and flags(data, headers) & SYN:
            out[at + 2:at + 4] = (int.from_bytes(data[at + 2:at + 4], "big") - length).to_bytes(2, "big")
    return summed(out)


def mapped_back(value, length, first, acknowledged):
    """The number in the client's stream; at least its first byte, until that is acknowledged."""
    beyond = (value - length - first - 1) % 2**32
    return first + 1 + (beyond if acknowledged or beyond < 2**31 else 0)


def acknowledges(data, length, first):
    """Whether a backend's segment acknowledges all of the header."""
    headers = Headers(data)
    beyond = (number(data, headers, 8) - length - first - 1) % 2**32
    return bool(flags(data, headers) & ACK) and beyond < 2**31


def put(out, at, value):
    out[at:at + 4] = (value % 2**32).to_bytes(4, "big")


def summed(out):
    """The packet with lengths and checksums recomputed."""
    headers = Headers(bytes(out))
    if headers.version == 4:
        out[2:4] = len(out).to_bytes(2, "big")
        out = bytearray(with_header_sum(out))
    else:
        out[4:6] = (len(out) - 40).to_bytes(2, "big")
    at = headers.transport + 16
    out[at:at + 2] = transport_sum(bytes(out), Headers(bytes(out))).to_bytes(2, "big")
    return bytes(out)
