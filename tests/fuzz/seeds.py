"""Packs the packets of the conformance pack as seeds of the fuzz target `wire`.

  scripts/conformance --keep FOLDER && /usr/bin/python3 tests/fuzz/seeds.py FOLDER tests/fuzz/seeds/wire.tar.gz

Each case becomes one input, in the format of wire.rs, for the mode of its configuration.
"""

import gzip
import io
import struct
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "conformance"))
import captures  # noqa: E402  pylint: disable=import-error,wrong-import-position

MODES = ("dsr", "nat", "full_nat", "proxy", "ipip", "gue")
INTERFACES = {"front": 0, "back": 1}
# Exponents of ten, of the milliseconds before a packet.
LONGEST = 5


def main(folder, out):
    inputs = {seed(case) for case in sorted(Path(folder).iterdir()) if (case / "in.pcapng").exists()}
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


if __name__ == "__main__":
    main(*sys.argv[1:])
