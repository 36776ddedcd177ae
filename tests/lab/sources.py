"""sources.py INTERFACE MAC SOURCE VIP: sends a frame of each kind from SOURCE to VIP behind MAC.

Prints the names of the kinds, one per line. Needs Debian's python3-scapy.
"""

import sys

from scapy.all import ICMP, IP, TCP, UDP, Dot1Q, Dot1AD, Ether, IPv6, Raw, conf
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6ExtHdrFragment


def kinds(mac, source, vip):
    eth = Ether(dst=mac)
    v6 = ":" in vip
    ip = IPv6(src=source, dst=vip) if v6 else IP(src=source, dst=vip)
    back = IPv6(src=vip, dst="2001:db8:1::99") if v6 else IP(src=vip, dst="198.18.1.99")
    udp = UDP(sport=4000, dport=7) / Raw(b"x")
    yield "udp", eth / ip / udp
    yield "tcp", eth / ip / TCP(sport=4000, dport=80, flags="S")
    yield "vlan", eth / Dot1Q(vlan=100) / ip / udp
    yield "qinq", eth / Dot1AD(vlan=200) / Dot1Q(vlan=100) / ip / udp
    if v6:
        later = IPv6ExtHdrFragment(offset=100, m=0, id=7, nh=17)
        yield "later_fragment", eth / ip / later / Raw(bytes(16))
        yield "echo", eth / ip / ICMPv6EchoRequest()
        yield "icmp_error", eth / ip / ICMPv6DestUnreach() / back / UDP(sport=7, dport=4000)
    else:
        fragment = IP(src=source, dst=vip, frag=100, id=7, proto=17)
        yield "later_fragment", eth / fragment / Raw(bytes(16))
        yield "echo", eth / ip / ICMP(type=8)
        yield "icmp_error", eth / ip / ICMP(type=3, code=1) / back / UDP(sport=7, dport=4000)


def main(interface, mac, source, vip):
    socket = conf.L2socket(iface=interface)
    for name, frame in kinds(mac, source, vip):
        socket.send(bytes(frame))
        print(name)


main(*sys.argv[1:])
