"""malformed.py INTERFACE MAC COUNT: sends COUNT frames of each bad kind to the VIPs behind MAC.

Each kind is named after the drop counter in which it must end; prints the names, one per line.
Needs Debian's python3-scapy.
"""

import sys

from scapy.all import IP, TCP, UDP, Dot1AD, Ether, IPv6, Raw, conf
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment

VIP4, VIP6 = "192.0.2.20", "2001:db8:100::20"
CLIENT4, CLIENT6 = "198.18.1.10", "2001:db8:1::10"


def kinds(mac):
    """Rows of (name of the counter, frame). The lengths and checksums that are not named are right."""
    eth = Ether(dst=mac)
    ip4 = eth / IP(src=CLIENT4, dst=VIP4)
    ip6 = eth / IPv6(src=CLIENT6, dst=VIP6)
    syn = TCP(sport=4000, dport=80, flags="S")
    udp = UDP(sport=4000, dport=7)
    tcp4, tcp6 = bytes(ip4 / syn), bytes(ip6 / syn)

    yield "truncated_ipv4", bytes(eth / IP(src=CLIENT4, dst=VIP4, ihl=15, proto=6, len=60))
    yield "bad_ipv4_header", with_bytes(tcp4, 14, b"\x55")  # version 5
    yield "bad_ipv4_length", with_bytes(tcp4, 16, (1000).to_bytes(2, "big"))
    yield "truncated_ipv6", with_bytes(tcp6, 14, b"\x50")  # version 5
    yield "bad_ipv6_length", with_bytes(tcp6, 18, (1000).to_bytes(2, "big"))
    yield "ipv6_extension", bytes(ip6 / IPv6ExtHdrDestOpt(len=30) / syn)
    yield "fragment", bytes(eth / IP(src=CLIENT4, dst=VIP4, flags="MF") / syn / Raw(bytes(8)))
    yield "tiny_fragment", bytes(eth / IP(src=CLIENT4, dst=VIP4, flags="MF", proto=6) / Raw(bytes(8)))
    yield "fragment", bytes(ip6 / IPv6ExtHdrFragment(offset=0, m=1) / syn)
    yield "truncated_tcp", bytes(eth / IP(src=CLIENT4, dst=VIP4, proto=6) / Raw(bytes(syn)[:12]))
    yield "bad_tcp_offset", bytes(ip4 / TCP(sport=4000, dport=80, flags="S", dataofs=4))
    yield "bad_tcp_offset", bytes(ip6 / TCP(sport=4000, dport=80, flags="S", dataofs=15))
    yield "bad_tcp_flags", bytes(ip4 / TCP(sport=4000, dport=80, flags=""))
    yield "bad_tcp_flags", bytes(ip6 / TCP(sport=4000, dport=80, flags="SF"))
    yield "truncated_udp", bytes(eth / IP(src=CLIENT4, dst=VIP4, proto=17) / Raw(bytes(udp)[:6]))
    yield "bad_udp_length", bytes(ip4 / UDP(sport=4000, dport=7, len=7) / Raw(b"x"))
    yield "bad_udp_length", bytes(ip6 / UDP(sport=4000, dport=7, len=100) / Raw(b"x"))
    yield "zero_port", bytes(ip4 / TCP(sport=0, dport=80, flags="S"))
    yield "land", bytes(eth / IP(src=VIP4, dst=VIP4) / TCP(sport=80, dport=80, flags="S"))
    yield "bad_source", bytes(eth / IP(src="127.0.0.1", dst=VIP4) / syn)
    yield "bad_source", bytes(eth / IPv6(src="ff02::1", dst=VIP6) / syn)
    yield "nested_vlan", bytes(eth / Dot1AD(vlan=5) / Dot1AD(vlan=6) / IP(src=CLIENT4, dst=VIP4) / syn)
    # The address decides about fragments.
    yield "no_vip", bytes(ip6 / IPv6ExtHdrFragment(offset=0, m=1) / TCP(sport=4000, dport=81, flags="S") / Raw(bytes(4)))
    # A reply of a backend without a request.
    yield "return_no_flow", bytes(eth / IP(src="198.18.2.11", dst="198.18.1.99")
                                  / TCP(sport=8080, dport=4000, flags="SA"))


def with_bytes(frame, offset, value):
    return frame[:offset] + value + frame[offset + len(value):]


def main(interface, mac, count):
    socket = conf.L2socket(iface=interface)
    for name, frame in kinds(mac):
        for _ in range(count):
            socket.send(Raw(frame))
        print(name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
