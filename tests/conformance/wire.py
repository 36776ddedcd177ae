"""Random packets through the lab: sent by a raw socket, captured at the backends, judged by the oracle.

  wire.py make  --config F --neighbours N --seed S --count C --source MAC --destination MAC --client A4 --client A6 OUT
  wire.py send  INTERFACE FRAMES
  wire.py judge --config F --neighbours N --interface I FRAMES NAME=CAPTURE...

`make` writes frames that carry a mark in their payload, by which `judge` finds each of them in the captures
(NAME is a backend's). See tests/e2e/random_packets.rs.
"""

import argparse
import ipaddress
import random
import re
import socket
import sys
import time
from pathlib import Path

import captures
import tshark
from facts import Facts
from generate import Generator, mark
from oracle import Oracle
from packets import Frame, Headers
from tshark import GUE_PORT

# The queues of a veth and of a worker hold more frames than are sent between two pauses.
BURST, PAUSE_S = 8, 0.004
SHOWN = 10
CLIENTS = 20


def main():
    """Runs one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, sending, judging = (commands.add_parser(name) for name in ("make", "send", "judge"))
    for command in (making, judging):
        command.add_argument("--config", type=Path, required=True)
        command.add_argument("--neighbours", type=Path, required=True)
    for name in ("--source", "--destination"):
        making.add_argument(name, required=True)
    making.add_argument("--client", action="append", required=True, type=ipaddress.ip_address, help="the first of each family")
    for name in ("--seed", "--count"):
        making.add_argument(name, type=int, required=True)
    making.add_argument("frames", type=Path)
    sending.add_argument("interface")
    sending.add_argument("frames", type=Path)
    judging.add_argument("--interface", required=True, help="where the frames came in")
    judging.add_argument("frames", type=Path)
    judging.add_argument("captures", nargs="+")
    arguments = parser.parse_args()
    return {"make": make, "send": send, "judge": judge}[arguments.command](arguments)


def facts_of(arguments):
    return Facts(arguments.config.read_text(), arguments.neighbours.read_text())


def make(arguments):
    """Writes frames of CLIENTS clients for all VIPs of the configuration."""
    first = {address.version: address for address in arguments.client}
    # Flows of one client differ by their ports. The lab's switch does not forward VLAN tags.
    generator = Generator(random.Random(arguments.seed), facts_of(arguments).vips,
                          lambda number, version: str(first[version] + number % CLIENTS),
                          marked=arguments.seed, tagged=0)
    frames = [generator.packet(arguments.source, arguments.destination) for _ in range(arguments.count)]
    captures.write(arguments.frames, [(index, "-", frame) for index, frame in enumerate(frames)])
    return 0


def send(arguments):
    """Sends the frames unchanged."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((arguments.interface, 0))
        for index, frame in enumerate(captures.read(arguments.frames)):
            if index % BURST == 0:
                time.sleep(PAUSE_S)
            raw.send(frame.data)
    return 0


def judge(arguments):
    """Checks that each frame arrived once, as the oracle says, or not at all if it is not forwarded."""
    facts, sent = facts_of(arguments), captures.read(arguments.frames)
    macs = {nic.mac for nic in facts.nics.values()}
    arrived = {}
    for text in arguments.captures:
        name, _, path = text.partition("=")
        for frame in captures.read(path):
            found = re.search(MARKS, frame.data, re.DOTALL)
            if found and Frame(frame.data).src in macs and not _is_error(frame.data):
                arrived.setdefault(found.group(), []).append((name, frame.data))
    oracle, problems, judged = Oracle(facts), [], []
    for frame in sent:
        found = arrived.get(re.search(MARKS, frame.data, re.DOTALL).group(), [])
        problems += [f"{Frame(frame.data).summary()}: {line}"
                     for line in _judge(oracle, arguments.interface, frame.data, found)]
        judged += [data for _, data in found]
    objections = tshark.objections(arguments.frames.with_suffix(".judged.pcapng"), judged)
    problems += [f"tshark: {text}" for text in objections.values()]
    print("\n".join(problems[:SHOWN]))
    print(f"{len(sent)} frames sent, {len(judged)} arrived, {len(problems)} problems")
    return 1 if problems or not judged else 0


MARKS = re.escape(mark(0, 0)[:-8]) + b"." * 8


def _is_error(frame):
    """Whether the packet is an ICMP error about a backend's reply: the client's kernel does not know the flows."""
    headers = Headers(Frame(frame).data)
    while headers.protocol in (4, 41) or (headers.protocol == 17 and headers.ports[1] == GUE_PORT):
        headers = Headers(headers.data[headers.transport + (12 if headers.protocol == 17 else 0):])
    return headers.is_error()


def _judge(oracle, interface, frame, found):
    came = Frame(frame)
    names = {name for name, _ in found}
    way = oracle.expect(came.data, next(iter(names), None) or oracle.any_backend(came.data))
    if way != "out":
        oracle.note(came.data)
        return [f"it arrived at {names}, but: {way}"] if found else []
    if not names and oracle.may_be_forgotten(came.data):
        return []
    if len(names) != 1:
        return [f"it arrived at {names or 'no backend'}"]
    return oracle.judge_forward(came, interface, names.pop(), [(None, out) for _, out in found])


if __name__ == "__main__":
    sys.exit(main())
