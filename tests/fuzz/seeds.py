"""Packs the packets of the conformance pack as seeds of the fuzz target `wire`.

  scripts/conformance --keep FOLDER && /usr/bin/python3 tests/fuzz/seeds.py FOLDER tests/fuzz/seeds/wire.tar.gz

Each case becomes one input, in the format of wire.rs, for the mode of its configuration.
"""

import gzip
import io
import ipaddress
import struct
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "conformance"))
import captures  # noqa: E402  pylint: disable=import-error,wrong-import-position

MODES = ("dsr", "nat", "full_nat", "proxy", "ipip", "gue", "syn_proxy")
# Clients and VIPs of worlds/syn_proxy.toml: nat, full_nat, full_nat to the other family with PROXY headers.
CONNECTIONS = (
    ("10.1.2.1", "10.200.1.1"), ("10.1.2.1", "10.200.1.2"), ("10.1.2.1", "10.200.1.3"),
    ("fc00:2::1", "fc00:1::1"), ("fc00:2::1", "fc00:1::3"),
)
# Set checksums right; a reply to what was sent last, which goes on with its connection.
REPAIR, REPLY, GOES_ON = 2, 32, 64
INTERFACES = {"front": 0, "back": 1}
# Exponents of ten, of the milliseconds before a packet.
LONGEST = 5


def main(folder, out):
    inputs = {seed(case) for case in sorted(Path(folder).iterdir()) if (case / "in.pcapng").exists()}
    inputs |= {connection(*ends) for ends in CONNECTIONS}
    with open(out, "wb") as file, gzip.GzipFile("", "wb", 9, file, 0) as packed, \
            tarfile.open(fileobj=packed, mode="w") as tar:
        for number, data in enumerate(sorted(inputs)):
            member = tarfile.TarInfo(f"{number:03}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    print(f"{len(inputs)} inputs")


def seed(case):
    """The input of a case."""
    config = (case / "config.toml").read_text()
    mode = next(mode for mode in MODES if f'forward = "{mode}"' in config)
    if mode == "full_nat" and "proxy = " in config:
        mode = "proxy"
    data, before = bytes([MODES.index(mode)]), None
    for frame in captures.read(case / "in.pcapng"):
        gap = round(1000 * (frame.seconds - before)) if before is not None else 0
        exponent = next((n for n in range(1, LONGEST) if gap < 10 ** n * 5), LONGEST) if gap > 4 else 0
        op = INTERFACES.get(frame.interface, 0) | exponent << 2
        data += struct.pack("<BH", op, len(frame.data)) + frame.data
        before = frame.seconds
    return data


def connection(client, vip):
    """A TCP connection at a VIP with cookies: SYN, ACK, the backend's answer, data both ways."""
    options = bytes.fromhex("020405b40402080a000003e800000000 01030307".replace(" ", ""))
    segment = struct.pack(">HHIIBBHHH", 40000, 80, 1000, 0, (20 + len(options)) << 2, 2, 64240, 0, 0) + options
    source, destination = (ipaddress.ip_address(end).packed for end in (client, vip))
    if len(source) == 4:
        network = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + source + destination
    else:
        network = struct.pack(">IHBB", 6 << 28, len(segment), 6, 64) + source + destination
    kind = b"\x08\x00" if len(source) == 4 else b"\x86\xdd"
    frame = bytes.fromhex("020000000001020000000c01") + kind + network + segment
    data = bytes([MODES.index("syn_proxy")]) + struct.pack("<BH", REPAIR, len(frame)) + frame
    return data + struct.pack("<BH", REPAIR | REPLY | GOES_ON, 0) * 8


if __name__ == "__main__":
    main(*sys.argv[1:])
