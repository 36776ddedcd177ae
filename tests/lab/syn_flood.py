"""syn_flood.py INTERFACE MAC ADDRESS COUNT: sends COUNT SYNs to port 80 of ADDRESS (IPv4).

Each from a port of its own, so each is a new flow. Their TCP checksums are wrong, so no
backend answers. Needs Debian's python3-scapy.
"""

import sys

from scapy.all import IP, TCP, Ether, Raw, conf

CLIENT = "198.18.1.10"
SOURCE_PORT_AT = 14 + 20


def main(interface, mac, address, count):
    socket = conf.L2socket(iface=interface)
    frame = bytearray(bytes(Ether(dst=mac) / IP(src=CLIENT, dst=address) / TCP(dport=80, flags="S")))
    for port in range(1024, 1024 + count):
        frame[SOURCE_PORT_AT:SOURCE_PORT_AT + 2] = port.to_bytes(2, "big")
        socket.send(Raw(bytes(frame)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
