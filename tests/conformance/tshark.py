"""Faults that tshark finds in frames: malformed packets and bad checksums."""

import functools
import subprocess

import captures
from compare import GUE_PORT
from packets import Frame, Headers

FIELDS = ("frame.number", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status",
          "icmpv6.checksum.status", "_ws.malformed", "_ws.expert.severity", "tcp.checksum", "tcp.checksum_calculated",
          "icmp.type", "icmpv6.type", "_ws.col.Info")
BAD = "0"
# PI_ERROR of epan/proto.h: certain errors.
ERROR = 0x00800000
# Protocols that holdfast writes, and that stay enabled.
HEADERS = {"eth", "vlan", "ieee8021ad", "ip", "ipv6", "icmp", "icmpv6", "tcp", "udp", "data"}
# Tables by which tshark chooses a dissector for a payload: by port, and by heuristics.
PAYLOAD_TABLES = ("tcp.port", "udp.port", "tcp", "udp", "tcp.payload", "udp.payload")


@functools.cache
def payload_protocols():
    """Returns every protocol that tshark might detect in the payload, which is random bytes."""
    lines = []
    for listing in ("decodes", "heuristic-decodes"):
        done = subprocess.run(["tshark", "-G", listing], capture_output=True, text=True, check=True)
        lines += [line.split("\t") for line in done.stdout.splitlines()]
    # decodes: table, selector, protocol; heuristic-decodes: table, protocol, enabled.
    return sorted({row[1] if row[2] in "TF" else row[2] for row in lines if row[0] in PAYLOAD_TABLES} - HEADERS)


def objections(path, frames):
    """Returns {index: fault} of frames (bytes), which are written to `path`."""
    shown = [(index, form) for index, frame in enumerate(frames) for form in (frame, *_inside(frame))]
    captures.write(path, [(at, "-", frame) for at, (_, frame) in enumerate(shown)])
    command = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    for protocol in ("ip", "tcp", "udp"):
        command += ["-o", f"{protocol}.check_checksum:TRUE"]
    # GUE over IPv6 has no UDP checksum (RFC 6935); the oracle judges those of other packets.
    command += ["-o", "udp.ignore_ipv6_zero_checksum:TRUE"]
    # Payload and state of connections are not examined.
    command += ["-o", "tcp.analyze_sequence_numbers:FALSE", "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]
    for protocol in payload_protocols():
        command += ["--disable-protocol", protocol]
    for name in FIELDS:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        number, *sums, malformed, severities, tcp_sum, tcp_computed, icmp, icmpv6, info = line.split("\t")
        # Tunnelled packets have several headers of one kind: fields are lists.
        bad = [name for name, status in zip(FIELDS[1:], sums) if BAD in status.split(",")]
        # 0xffff and 0 are the same number in one's complement (RFC 1071).
        if (tcp_sum, tcp_computed) == ("0xffff", "0x0000"):
            bad = [name for name in bad if not name.startswith("tcp")]
        # The quote of an ICMP error is truncated, but its checksum covers the whole packet.
        if icmp or icmpv6:
            bad = [name for name in bad if not name.startswith(("tcp", "udp"))]
        if malformed:
            bad.append("malformed")
        if any(int(severity) >= ERROR for severity in severities.split(",") if severity) and not (icmp or icmpv6):
            bad.append("expert error")
        if bad:
            found[shown[int(number) - 1][0]] = f"{', '.join(bad)}: {info}"
    return found


def _inside(frame):
    """Yields the packet inside GUE as a frame of its own: tshark 4.0 has no dissector for GUE."""
    outer = Headers(Frame(frame).data) if Frame(frame).data else None
    if outer is None or outer.protocol != 17 or outer.ports is None or outer.ports[1] != GUE_PORT:
        return
    inner = outer.data[outer.transport + 12:]
    if inner:
        yield frame[:12] + (b"\x08\0" if inner[0] >> 4 == 4 else b"\x86\xdd") + inner
