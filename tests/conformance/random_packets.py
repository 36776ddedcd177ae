"""Random but seeded packets through `holdfast replay`: each is judged by the oracle, all by tshark.

Two passes: clients' packets, and, where replies come back by the balancer, those and then the backends' answers.
Headers are built with struct here, as building with scapy takes longer than all the rest.
"""

import random
import secrets
import struct
from dataclasses import dataclass

import packets
import tshark
import world
from facts import TCP, TRANSLATING, Facts
from oracle import Oracle
from packets import Ether, Headers, checksum, mac, packed, transport_sum, transport_sum_at
from replay import Outcome, Replay

FAILURES_SHOWN = 10
START = 1_700_000_000_000_000
FLOWS = 400
MUTANTS = 100
MTU = 1500
# In a hundred packets.
OPTIONS, EXTENSIONS, TAGGED, PADDED, NO_VIP, NO_SUM = 8, 12, 15, 15, 3, 10
FLAGS = (0x02, 0xC2, 0x10, 0x18, 0x11, 0x19, 0x14, 0x04, 0x30, 0x50, 0x90, 0x38)
HOPS = (1, 2, 3, 63, 64, 65, 127, 128, 254, 255)


@dataclass
class Flow:
    """Where a random flow goes."""

    client: str
    client_port: int
    vip: str
    vip_port: int
    protocol: int
    tags: list


def main(arguments, folder):
    """Runs one mode; prints failures with the seed that shows them again."""
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    again = f"conformance.py random --mode {arguments.mode} --seed {seed} --count {arguments.count}"
    problems, judged, sent = Session(arguments, folder, seed).judge()
    for line in problems[:FAILURES_SHOWN]:
        print(line)
    if problems:
        print(f"{len(problems)} packets are not as they must be; again: {again} --binary {arguments.binary}")
        return 1
    print(f"{arguments.mode}: {judged} packets as they must be, {sent} frames sent; seed {seed}")
    return 0


class Session:
    """One mode, one seed."""

    def __init__(self, arguments, folder, seed):
        self.random = random.Random(f"{arguments.mode} {seed}")
        self.mode, self.count, self.folder = arguments.mode, arguments.count, folder
        vips = [name for name, vip in world.VIPS.items()
                if name in VIPS and (vip[4] is None or arguments.mode in vip[4])]
        built = world.changed(world.config(self.mode, 2, vips), CHANGES)
        config, neighbours = world.config_toml(built), world.neighbours_toml(world.neighbours(2, built))
        self.facts = Facts(config, neighbours)
        self.replay = Replay(arguments.binary, folder / self.mode, config, neighbours, list(self.facts.nics))
        self.flows = [self._flow(number, vips) for number in range(FLOWS)]

    def judge(self):
        """Lines about the packets that are wrong, how many packets were judged and frames sent."""
        given = [(START + index * 1000, "front", self.packet()) for index in range(self.count)]
        outcomes, _ = self.replay.run(given)
        if self.mode in TRANSLATING:
            answers = [answer for outcome in outcomes for answer in self.answers(outcome)]
            given += [(START + (self.count + index) * 1000, "back", frame) for index, frame in enumerate(answers)]
            outcomes, _ = self.replay.run(given)
        oracle, problems, frames, good = Oracle(self.facts), [], [], []
        for index, ((_, interface, frame), outcome) in enumerate(zip(given, outcomes)):
            found = self._judge_one(oracle, interface, frame, outcome)
            frames += [(index, out) for _, out in outcome.sent]
            if not found and outcome.verdict == "transmit":
                good.append((interface, frame, outcome))
            if found:
                problems.append(f"packet {index}: {Ether(frame).summary()}\n  {outcome.line}\n    " + "\n    ".join(found))
        objections = tshark.objections(self.folder / f"{self.mode}-sent.pcapng", [frame for _, frame in frames])
        problems += [f"packet {frames[at][0]}: tshark objects to what was sent: {text}" for at, text in objections.items()]
        return problems + self._mutants(oracle, good), len(given), len(frames)

    def _mutants(self, oracle, good):
        """Flips one bit of a hundred of the frames that were sent: an oracle that misses one judges nothing."""
        missed = []
        for interface, frame, outcome in self.random.sample(good, min(MUTANTS, len(good))):
            nic, sent = outcome.sent[0]
            length = len(sent) - len(packets.padding(Ether(sent)))
            bit = self.random.randrange(length * 8)
            flipped = bytearray(sent)
            flipped[bit // 8] ^= 1 << bit % 8
            wrong = Outcome(outcome.line, [(nic, bytes(flipped)), *outcome.sent[1:]])
            if not self._judge_one(oracle, interface, frame, wrong):
                missed.append(f"the oracle does not see bit {bit % 8} of byte {bit // 8} flipped in {sent.hex()}")
        return missed

    def _judge_one(self, oracle, interface, frame, outcome):
        scapy_frame = Ether(frame)
        if interface == "back":
            return self._judge_answer(oracle, scapy_frame, outcome)
        data = packets.without_padding(packets.network(scapy_frame))
        way = oracle.expect(data, outcome.backend or "b1")
        if way == "out":
            if outcome.verdict != "transmit":
                return ["it was to be forwarded"]
            return oracle.judge_forward(scapy_frame, interface, outcome.backend, outcome.sent)
        if way == "kernel":
            return [] if outcome.verdict == "kernel" and not outcome.sent else ["it was to stay in the kernel"]
        return oracle.judge_error(scapy_frame, way, outcome)

    def _judge_answer(self, oracle, frame, outcome):
        key = oracle.flow_of_reply(frame)
        if key is None:
            return ["the oracle knows no flow of this answer"]
        if packets.Headers(packets.without_padding(packets.network(frame))).hops <= 1:
            return oracle.judge_error(frame, "expired", outcome)
        if outcome.verdict != "transmit":
            return ["it was to be forwarded to the client"]
        return oracle.judge_reply(frame, key, outcome.sent)

    # ---- packets ----

    def _flow(self, number, vips):
        name = self.random.choice(vips)
        address, protocol, ports, _, _ = world.VIPS[name]
        v6 = ":" in address
        # Each flow has a client of its own: two flows of one client and port can collide behind NAT.
        client = f"fc00:2::{number + 1:x}" if v6 else f"192.168.{number // 250}.{number % 250 + 1}"
        port = self.random.choice(ports) if isinstance(ports, list) else self.random.randint(1, 65535)
        number_of = {"tcp": 6, "udp": 17}[protocol]
        tags = [self._tag() for _ in range(self._chance(TAGGED))]
        return Flow(client, self.random.randint(1, 65535), self._within(address), port, number_of, tags)

    def _within(self, address):
        if "/" not in address:
            return address
        network = packets.ipaddress.ip_network(address)
        return str(network[self.random.randrange(min(network.num_addresses, 2**32))])

    def _tag(self):
        return self.random.randint(1, 4094) | self.random.randrange(8) << 13

    def _chance(self, percent):
        return self.random.randrange(100) < percent

    def packet(self):
        """A client's frame."""
        flow = self.random.choice(self.flows)
        port = flow.vip_port
        if self._chance(NO_VIP) and flow.protocol == TCP and port == 80:
            port = 81
        ends = (flow.client, flow.client_port), (flow.vip, port)
        return self.frame(world.CLIENT_MAC, world.LB, flow.tags, ends, flow.protocol)

    def answers(self, outcome):
        """What a backend answers to a third of what it gets."""
        # A RST of an unknown flow leaves no pin: nobody would know its answer.
        if outcome.verdict != "transmit" or outcome.line["flow"] == "none" or not self._chance(33):
            return
        frame = outcome.sent[0][1]
        headers = Headers(packets.without_padding(packets.network(Ether(frame))))
        source, source_port, destination, port, protocol = headers.flow()
        ends = (destination, port), (source, source_port)
        # The XDP program knows answers by their ports, and does not look for them behind extension headers.
        yield self.frame(world.BACKEND_MACS[outcome.backend], world.LB2, [], ends, protocol, extensions=False)

    def frame(self, source, destination, tags, ends, protocol, extensions=True):
        """A frame with everything random that is not named."""
        segment = self._tcp(ends) if protocol == 6 else self._udp(ends)
        data = self._ipv6(ends, protocol, segment, extensions) if ":" in ends[0][0] else self._ipv4(ends, protocol, segment)
        out = mac(destination) + mac(source)
        for tag in tags:
            out += struct.pack(">HH", 0x8100, tag)
        out += (b"\x86\xdd" if data[0] >> 4 == 6 else b"\x08\0") + data
        if self._chance(PADDED):
            out += self.random.randbytes(max(60 - len(out), 0) or self.random.randrange(8))
        return out

    def _payload(self, room):
        return self.random.randbytes(self.random.choice((0, 1, room - 1, room, self.random.randint(0, room))))

    def _tcp(self, ends):
        flags, options = self.random.choice(FLAGS), self._tcp_options()
        head = struct.pack(">HHIIBBHHH", ends[0][1], ends[1][1], self.random.randrange(2**32),
                           self.random.randrange(2**32), (20 + len(options)) << 2, flags, self.random.randrange(65536),
                           0, self.random.randrange(65536) if flags & 0x20 else 0)
        return head + options + self._payload(MTU - 160)

    def _tcp_options(self):
        kinds = (b"\2\4" + struct.pack(">H", self.random.randint(536, 1460)), b"\4\2", b"\3\3\7", b"\1",
                 b"\x08\x0a" + self.random.randbytes(8), b"\5\x0a" + self.random.randbytes(8))
        options = b"".join(self.random.sample(kinds, self.random.randrange(4)))
        return options + b"\1" * (-len(options) % 4)

    def _udp(self, ends):
        payload = self._payload(MTU - 120)
        return struct.pack(">HHHH", ends[0][1], ends[1][1], 8 + len(payload), 0) + payload

    def _ipv4(self, ends, protocol, segment):
        options = b"\1" * 4 * self.random.randint(1, 10) if self._chance(OPTIONS) else b""
        flags = self.random.choice((0, 0x4000))
        head = struct.pack(">BBHHHBBH", 0x45 + len(options) // 4, self.random.randrange(256),
                           20 + len(options) + len(segment), self.random.randrange(65536), flags,
                           self.random.choice(HOPS), protocol, 0)
        head += packed(ends[0][0]) + packed(ends[1][0]) + options
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        unsummed = protocol == 17 and self._chance(NO_SUM)
        return head + segment if unsummed else _summed(head + segment)

    def _ipv6(self, ends, protocol, segment, extended):
        extensions, first = b"", protocol
        if extended and self._chance(EXTENSIONS):
            kinds = self.random.choice(((60,), (0,), (0, 60), (60, 60)))
            following = kinds[1:] + (protocol,)
            first = kinds[0]
            for after in following:
                words = self.random.randrange(4)
                extensions += bytes([after, words, 1, 4 + 8 * words]) + bytes(4 + 8 * words)
        word = 6 << 28 | self.random.randrange(2**28)
        head = struct.pack(">IHBB", word, len(extensions) + len(segment), first, self.random.choice(HOPS))
        return _summed(head + packed(ends[0][0]) + packed(ends[1][0]) + extensions + segment)


def _summed(data):
    """The packet with its TCP or UDP checksum."""
    headers = Headers(data)
    at = transport_sum_at(headers)
    return data[:at] + transport_sum(data, headers).to_bytes(2, "big") + data[at + 2:]


# The VIPs of world.py that packets are sent to, and what is changed in its configuration.
VIPS = {"web4", "udp4", "web6", "udp6", "all4"}
CHANGES = {}
