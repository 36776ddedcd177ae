"""Random packets, from a seed, through `holdfast replay`: each is judged by the oracle, all by tshark.

Two passes: clients' packets, and, where replies come back by the balancer, those and then the backends' answers.
"""

import random
import secrets

import tshark
import world
from facts import TRANSLATING, TUNNELS, UDP, Facts
from generate import Generator
from oracle import Oracle
from packets import Frame, Headers
from replay import Outcome, Replay

FAILURES_SHOWN = 10
START = 1_700_000_000_000_000
MUTANTS = 100
# VIPs of world.py that are the targets of packets, and changes of its configuration.
VIPS = ("web4", "udp4", "web6", "udp6", "all4", "mixed4", "mixed4_udp", "mixed6", "mixed6_udp", "ranges4", "net4", "net6")
# A rate limit of ICMP errors that is never reached.
CHANGES = {"icmp": {"per_second": 1000000, "burst": 1000000}}
# Percentages of forwarded packets.
ANSWERED, FAILED = 33, 30
# Percentages of fragmented datagrams, and of the reordered ones.
DISORDERED, DOUBLED = 60, 40
WAITING = 64


def main(arguments, folder):
    """Runs one mode; prints failures with the seed that repeats them."""
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
        # In mode nat the XDP program identifies replies by their ports, which it does not read behind extension headers.
        self.extended = self.mode != "nat"
        vips = [name for name in VIPS if world.has_mode(name, self.mode)]
        built = world.changed(world.config(self.mode, 2, vips), CHANGES)
        config, neighbours = world.config_toml(built), world.neighbours_toml(world.neighbours(2, built))
        self.facts = Facts(config, neighbours)
        self.replay = Replay(arguments.binary, folder / self.mode, config, neighbours, list(self.facts.nics))
        self.generator = Generator(self.random, self.facts.vips, _client, sequenced=self.mode == "proxy", unanswered=True)
        # Fragments of datagrams with a duplicated one, which counts twice (docs/FRAGMENTS.md).
        self.doubled = set()

    def judge(self):
        """Returns the problems, the number of judged packets, and that of sent frames."""
        frames = [frame for _ in range(self.count)
                  for frame in self._on_the_way(self.generator.packets(world.CLIENT_MAC, world.LB, self._may_split))]
        given = [(START + index * 1000, "front", frame) for index, frame in enumerate(frames)]
        outcomes, _ = self.replay.run(given)
        late = list(self._late(given, outcomes))
        given += [(START + (len(given) + index) * 1000, *frame) for index, frame in enumerate(late)]
        outcomes, _ = self.replay.run(given)
        oracle, problems, frames, good = Oracle(self.facts), [], [], []
        # A fragment that arrived before the first one is judged after it.
        order = sorted(range(len(given)), key=lambda index: outcomes[index].ended)
        for index in order:
            (_, interface, frame), outcome = given[index], outcomes[index]
            found = self._judge_one(oracle, interface, frame, outcome)
            frames += [(index, out) for _, out in outcome.sent]
            if not found and outcome.verdict == "transmit":
                good.append((interface, frame, outcome))
            if found:
                problems.append(f"packet {index}: {Frame(frame).summary()}\n  {outcome}\n    " + "\n    ".join(found))
        objections = tshark.objections(self.folder / f"{self.mode}-sent.pcapng", [frame for _, frame in frames])
        problems += [f"packet {frames[at][0]}: tshark objects to what was sent: {text}" for at, text in objections.items()]
        return problems + self._mutants(oracle, good), len(given), len(frames)

    def _on_the_way(self, frames):
        """Reorders some fragments and duplicates some of them."""
        frames = list(frames)
        # Later fragments above the limit of parked ones would be dropped.
        if 1 < len(frames) <= WAITING and self._chance(DISORDERED):
            if self._chance(DOUBLED):
                later = frames[1:]
                frames.append(self.random.choice(later))
                self.doubled.update(later)
            self.random.shuffle(frames)
        return frames

    def _mutants(self, oracle, good):
        """Flips one bit in each of a hundred sent frames; the oracle must report each of them."""
        missed = []
        for interface, frame, outcome in self.random.sample(good, min(MUTANTS, len(good))):
            nic, sent = outcome.sent[0]
            length = len(sent) - len(Frame(sent).padding)
            bit = self.random.randrange(length * 8)
            flipped = bytearray(sent)
            flipped[bit // 8] ^= 1 << bit % 8
            wrong = Outcome(outcome.line, [(nic, bytes(flipped)), *outcome.sent[1:]])
            if not self._judge_one(oracle, interface, frame, wrong):
                missed.append(f"the oracle does not see bit {bit % 8} of byte {bit // 8} flipped in {sent.hex()}")
        return missed

    def _late(self, given, outcomes):
        """Yields (NIC, frame) of the replies and ICMP errors that forwarded packets cause."""
        # Behind a PROXY header the translation of a quoted number depends on the backend's
        # acknowledgments.
        failed = 0 if self.mode == "proxy" else FAILED
        for (_, _, frame), outcome in zip(given, outcomes):
            # A RST of an unknown flow leaves no pin, so that its reply has no flow.
            if outcome.verdict != "transmit" or outcome.line["flow"] == "none" or not self._chance(ANSWERED):
                continue
            received = Frame(frame).data
            if Headers(received).fragment is not None:
                continue
            if self.mode in (*TRANSLATING, "proxy"):
                yield "back", self._answer(outcome)
                if self._chance(failed) and (self.extended or not Headers(received).extensions):
                    yield "back", self._error_behind(outcome)
            if self._chance(failed):
                yield "front", self._error_before(received)

    def _may_split(self, address, port):
        """Whether datagrams to a VIP may be fragmented; the golden cases have those between the families."""
        vip = self.facts.vip_of(address, UDP, port)
        return vip is not None and all(backend.address.version == vip.network.version or vip.forward in TUNNELS
                                       for backend in vip.backends.values())

    def _chance(self, percent):
        return self.random.randrange(100) < percent

    def _answer(self, outcome):
        received = Frame(outcome.sent[0][1]).data
        return self.generator.answer(received, world.BACKEND_MACS[outcome.backend], world.LB2, self.extended)

    def _error_behind(self, outcome):
        """Returns the error of a router between balancer and backend about the forwarded packet."""
        sent = Frame(outcome.sent[0][1]).data
        to = Headers(sent).flow()[0]
        router = "10.0.9.1" if ":" not in to else "fc00::99"
        return self.generator.error(sent, world.OTHER_MAC, world.LB2, ((router, 0), (to, 0)))

    def _error_before(self, received):
        """Returns the error of a router on the client's side about the backend's reply."""
        answer = Frame(self.generator.answer(received, world.CLIENT_MAC, world.LB, True)).data
        vip = Headers(answer).flow()[0]
        router = world.ROUTER4 if ":" not in vip else world.ROUTER6
        return self.generator.error(answer, world.ROUTER_MAC, world.LB, ((router, 0), (vip, 0)))

    def _judge_one(self, oracle, interface, frame, outcome):
        came = Frame(frame)
        if interface == "back":
            return self._judge_answer(oracle, came, outcome)
        data = came.data
        if frame in self.doubled and outcome.line["reason"] in ("fragment_overlap", "fragment_no_first"):
            return []
        way = oracle.expect(data, outcome.backend or "b1")
        if way == "out":
            if outcome.line["reason"] == "request_no_flow" and oracle.may_be_forgotten(data):
                return []
            if outcome.verdict != "transmit":
                return ["it was to be forwarded"]
            return oracle.judge_forward(came, interface, outcome.backend, outcome.sent)
        if way == "kernel":
            return [] if outcome.verdict == "kernel" and not outcome.sent else ["it was to stay in the kernel"]
        return oracle.judge_error(came, way, outcome)

    def _judge_answer(self, oracle, frame, outcome):
        key = oracle.flow_of_reply(frame)
        if key is None or oracle.flows[key].renewed:
            # The flow has started again since, from another source.
            if outcome.line["reason"] in ("return_no_flow", "icmp_no_flow"):
                return []
        if key is None:
            return ["the oracle knows no flow of this answer"]
        if oracle.is_stray(key, frame.data):
            return [] if outcome.line["reason"] == "return_no_flow" else ["it was to be dropped as return_no_flow"]
        if key[1] == 0 and not Headers(frame.data).is_error():
            wanted = "zero_port" if self.mode == "nat" else "return_no_flow"
            return [] if outcome.line["reason"] == wanted else [f"no answer goes to port 0: it was to be dropped as {wanted}"]
        if Headers(frame.data).hops <= 1:
            return oracle.judge_error(frame, "expired", outcome)
        if outcome.verdict != "transmit":
            return ["it was to be forwarded to the client"]
        return oracle.judge_reply(frame, key, outcome.sent)


def _client(number, version):
    return f"192.168.{number // 250}.{number % 250 + 1}" if version == 4 else f"fc00:2::{number + 1:x}"
