"""tshark's opinion of frames: malformed packets and bad checksums."""

import subprocess

import captures

FIELDS = ("frame.number", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status", "icmp.checksum.status",
          "icmpv6.checksum.status", "_ws.malformed", "_ws.expert.severity", "tcp.checksum", "tcp.checksum_calculated",
          "_ws.col.Info")
BAD = "0"
# PI_ERROR of epan/proto.h: what tshark is sure to be wrong.
ERROR = 0x00800000
# Ports that tshark would read as protocols whose payload our packets have not.
NO_PAYLOAD = ("http", "dns", "tls", "quic", "mdns", "data")


def objections(path, frames):
    """{index: what tshark objects to} of frames (bytes), which are written to `path`."""
    captures.write(path, [(index, "-", frame) for index, frame in enumerate(frames)])
    command = ["tshark", "-n", "-r", str(path), "-T", "fields"]
    for protocol in ("ip", "tcp", "udp"):
        command += ["-o", f"{protocol}.check_checksum:TRUE"]
    # What the payload means is nobody's business here.
    command += ["-o", "tcp.analyze_sequence_numbers:FALSE", "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]
    for protocol in NO_PAYLOAD[:-1]:
        command += ["--disable-protocol", protocol]
    for name in FIELDS:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        number, *sums, malformed, severities, tcp_sum, tcp_computed, info = line.split("\t")
        # Every tunnelled packet has several headers of a kind: fields are lists.
        bad = [name for name, status in zip(FIELDS[1:], sums) if BAD in status.split(",")]
        # 0xffff and 0 are the same number in one's complement (RFC 1071).
        if (tcp_sum, tcp_computed) == ("0xffff", "0x0000"):
            bad = [name for name in bad if not name.startswith("tcp")]
        if malformed:
            bad.append("malformed")
        if any(int(severity) >= ERROR for severity in severities.split(",") if severity) and not bad:
            bad.append("expert error")
        if bad:
            found[int(number) - 1] = f"{', '.join(bad)}: {info}"
    return found
