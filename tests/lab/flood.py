"""flood.py KIND INTERFACE MAC ADDRESS PORT RATE SECONDS: a flood of first packets from forged sources.

KIND is syn, ack or udp; ADDRESS is IPv4; RATE is in packets per second. Each packet is the only one
of its flow: its source address (of 198.18.64.0/18) and port are pseudo-random. Prints the number of
packets. Needs Debian's python3-scapy.
"""

import random
import sys
import time

from scapy.all import IP, TCP, UDP, Ether, conf


def frames(kind, mac, address, port, seed):
    source = random.Random(seed)
    flags = {"syn": "S", "ack": "A"}.get(kind)
    while True:
        src = f"198.18.{source.randrange(64, 128)}.{source.randrange(1, 255)}"
        sport = source.randrange(1024, 65536)
        layer = UDP(sport=sport, dport=port) / b"flood" if kind == "udp" else TCP(
            sport=sport, dport=port, flags=flags, seq=source.getrandbits(32), ack=source.getrandbits(32)
        )
        yield bytes(Ether(dst=mac) / IP(src=src, dst=address) / layer)


def main(kind, interface, mac, address, port, rate, seconds):
    # scapy is slow: packets are made before the clock runs.
    source = frames(kind, mac, address, port, 1)
    packets = [next(source) for _ in range(int(rate * seconds))]
    socket = conf.L2socket(iface=interface).outs
    print("begins", flush=True)
    begin = time.monotonic()
    for number, packet in enumerate(packets):
        ahead = begin + number / rate - time.monotonic()
        if ahead > 0.001:
            time.sleep(ahead)
        socket.send(packet)
    print(len(packets), flush=True)


if __name__ == "__main__":
    kind, interface, mac, address = sys.argv[1:5]
    main(kind, interface, mac, address, int(sys.argv[5]), float(sys.argv[6]), float(sys.argv[7]))
