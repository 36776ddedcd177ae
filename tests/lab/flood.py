"""flood.py KIND INTERFACE MAC ADDRESS PORT RATE SECONDS: a flood of first packets from forged sources.

KIND is syn, ack, udp or handshake; ADDRESS is IPv4; RATE is in packets per second. Each packet is the
only one of its flow: its source address (of 198.18.64.0/18) and port are pseudo-random. With handshake
an ACK with the next sequence number follows each SYN. Prints "begins" and, at the end, the number of
packets. Needs Debian's python3-scapy.
"""

import random
import socket
import struct
import sys
import time

from scapy.all import IP, TCP, UDP, Ether

IP_AT = 14
SOURCE_AT = IP_AT + 12
PORT_AT = IP_AT + 20


def template(kind, mac, address, port):
    flags = {"syn": "S", "ack": "A"}.get(kind)
    # An ACK of a handshake has the next number: scapy's default is 0.
    number = 1 if kind == "ack" else 0
    tcp = TCP(dport=port, flags=flags, seq=number, ack=7)
    layer = UDP(dport=port) / b"flood" if kind == "udp" else tcp
    return bytes(Ether(dst=mac) / IP(src="0.0.0.0", dst=address) / layer)


def add(word, more):
    """The ones' complement sum of a checksum's field and more bytes (RFC 1624)."""
    total = (~word & 0xFFFF) + sum(struct.unpack(f"!{len(more) // 2}H", more))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frames(kind, mac, address, port, count):
    """scapy makes one frame; the others differ in source, port and checksums."""
    base = bytearray(template(kind, mac, address, port))
    sums = (IP_AT + 10, IP_AT + 20 + (6 if kind == "udp" else 16))
    base[PORT_AT : PORT_AT + 2] = b"\0\0"
    first = struct.unpack_from("!H", template(kind, mac, address, port), PORT_AT)[0]
    ip_sum, sum_ = (struct.unpack_from("!H", base, at)[0] for at in sums)
    # The template's own source port is taken out of the checksum.
    sum_ = add(sum_, struct.pack("!H", ~first & 0xFFFF))
    draw = random.Random(1)
    for _ in range(count):
        source = bytes((198, 18, draw.randrange(64, 128), draw.randrange(1, 255)))
        sport = struct.pack("!H", draw.randrange(1024, 65536))
        base[SOURCE_AT : SOURCE_AT + 4] = source
        base[PORT_AT : PORT_AT + 2] = sport
        struct.pack_into("!H", base, sums[0], add(ip_sum, source))
        struct.pack_into("!H", base, sums[1], add(sum_, source + sport))
        yield bytes(base)


def handshakes(mac, address, port, count):
    """The same sources twice: they are pseudo-random, and so the same in both series."""
    series = [frames(kind, mac, address, port, count // 2) for kind in ("syn", "ack")]
    return [frame for pair in zip(*series) for frame in pair]


def main(kind, interface, mac, address, port, rate, seconds):
    count = int(rate * seconds)
    if kind == "handshake":
        packets = handshakes(mac, address, port, count)
    else:
        packets = list(frames(kind, mac, address, port, count))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((interface, 0))
        print("begins", flush=True)
        begin = time.monotonic()
        for number, packet in enumerate(packets):
            ahead = begin + number / rate - time.monotonic()
            if ahead > 0.001:
                time.sleep(ahead)
            out.send(packet)
    print(len(packets), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), float(sys.argv[6]), float(sys.argv[7]))
