"""Runs cases: builds packets, replays and judges them. A packet can be built from frames sent for earlier ones."""

from dataclasses import dataclass

import casefile
import counters
import packets
import rules
from compare import differences, faults
from facts import Facts
from mistake import Mistake, did_you_mean
from oracle import Oracle
from replay import Replay

START_SECONDS = 1_700_000_000
STEP_SECONDS = 0.001
# Bytes of an Ethernet header; shorter frames are not dissected.
SHORTEST = 14


@dataclass
class Given:
    """One frame of a case, with the packet that expects its result."""

    packet: int
    spec: dict
    frame: bytes
    micros: int
    interface: str
    cut: bool
    # Number of the packet in its source capture.
    captured: int | None = None

    @property
    def title(self):
        of = "" if self.captured is None else f", frame {self.captured} of {self.spec['pcap']}"
        return f"packet {self.packet}{of}" + (f", cut to {len(self.frame)} bytes" if self.cut else "")


class Run:
    """A case in one mode."""

    def __init__(self, case, binary, folder):
        self.case = case
        self.specs = case.packets()
        config, neighbours = case.texts()
        self.facts = Facts(config, neighbours)
        self.replay = Replay(binary, folder, config, neighbours, list(self.facts.nics))
        self.words = None
        self._check_names()

    def _check_names(self):
        """Refuses unknown names, with which an expectation could hold by chance."""
        backends = {name for vip in self.facts.vips for name in vip.backends}
        for number, spec in self.specs.items():
            for key, known in (("never", backends), ("nic", self.facts.nics)):
                if key in spec and spec[key] not in known:
                    raise Mistake(f"packet {number}: {key}: unknown name {spec[key]}; {did_you_mean(spec[key], known)}")
        owners = [f"vips.{vip.name}" for vip in self.facts.vips] + [f"nics.{name}" for name in self.facts.nics]
        for name in self.case.counters():
            fault = counters.fault(name, owners)
            if fault:
                raise Mistake(f"counter {name}: {fault}")

    def judge(self):
        """Returns the problems, as lines; and every frame that was sent, with the packet that caused it."""
        given, outcomes, moved = self._replay()
        oracle, problems, sent = Oracle(self.facts), [], []
        for one, outcome in sorted(zip(given, outcomes), key=lambda pair: pair[1].ended):
            found = self._judge_one(oracle, one, outcome, given, outcomes)
            problems += [f"{one.title}: {line}" for line in found]
            for _, frame in outcome.sent:
                problems += [f"{one.title}: {line}" for line in faults(frame, self._received(one))]
                sent.append((one.title, frame))
        problems += self._judge_spread(given, outcomes)
        return problems + self._judge_counters(moved), sent

    def _replay(self):
        """Builds and replays packets in rounds: each round builds those that needed the outcome of the one before."""
        given, outcomes, moved, ready = [], [], {}, -1
        while True:
            given, complete = self._build(given, outcomes)
            if complete and len(given) == len(outcomes):
                return given, outcomes, moved
            if len(given) == ready:
                raise RuntimeError(f"packets behind frame {ready} cannot be built from the frames before")
            ready = len(given)
            outcomes, moved = self.replay.run([(one.micros, one.interface, one.frame) for one in given])

    def _build(self, before, outcomes):
        """Returns the frames that can be built so far, and whether these are all."""
        self.words = self._words(before, outcomes)
        given, seconds = [], 0.0
        for number, spec in self.specs.items():
            seconds = spec.get("at", seconds + STEP_SECONDS)
            try:
                frames = self._frames(spec, before, number)
            except casefile.Pending:
                return given, False
            for frame, cut, captured in frames:
                micros = int((START_SECONDS + seconds) * 1_000_000) + len(given)
                given.append(Given(number, spec, frame, micros, self._arrival(spec, frame), cut, captured))
        return given, True

    def _frames(self, spec, before, number):
        known = [(one.frame, one.cut, one.captured) for one in before if one.packet == number]
        if known:
            return known
        if "pcap" in spec:
            frames = casefile.capture(self.case.path, spec["pcap"], spec.get("frames"))
        else:
            frames = [(None, frame) for frame in self.words.frames(number, spec["in"])]
        if "cut" in spec:
            return [(frame[:length], True, captured) for captured, frame in frames for length in range(len(frame))]
        return [(frame, False, captured) for captured, frame in frames * spec.get("repeat", 1)]

    def _arrival(self, spec, frame):
        """Returns the NIC with the destination MAC of the frame; without a match the first one."""
        return spec.get("nic", self.facts.interface_of(":".join(f"{byte:02x}" for byte in frame[:6])))

    def _words(self, given, outcomes):
        received, results = {}, {}
        for one, outcome in reversed(list(zip(given, outcomes))):
            received[one.packet], results[one.packet] = one.frame, outcome
        return casefile.Words(self.case, self.specs.keys(), received, results)

    # ---- judging ----

    def _judge_one(self, oracle, one, outcome, given, outcomes):
        way, wanted = self._expected(one)
        verdict = {"out": "transmit"}.get(way, way)
        reasons = ([wanted] if isinstance(wanted, str) else wanted) if way == "drop" else [outcome.reason]
        if outcome.verdict != verdict or outcome.reason not in reasons:
            expected = f"drop, reason {' or '.join(reasons)}" if way == "drop" else verdict
            return [f"expected {expected}; got {outcome}"]
        problems = self._judge_line(one.spec, outcome, given, outcomes)
        if way in ("out", "reply"):
            problems += self._judge_sent(oracle, one, outcome, wanted)
        elif outcome.sent and way == "kernel":
            problems.append(f"{len(outcome.sent)} frames were sent for a packet that stays in the kernel")
        return problems

    def _expected(self, one):
        spec = one.spec
        if one.cut:
            rows = [row for row in spec["cut"] if row[0] <= len(one.frame)]
            wanted = rows[-1][1]
            return ("kernel", True) if wanted == "kernel" else ("drop", wanted)
        for way in ("drop", "kernel", "reply", "out"):
            if way in spec:
                return way, spec[way]
        return "out", "backend"

    def _judge_line(self, spec, outcome, given, outcomes):
        problems = [f"{key}: expected {spec[key]}, got {outcome.line.get(key)}" for key in ("flow", "vip", "backend")
                    if key in spec and outcome.line.get(key) != spec[key]]
        if "never" in spec and outcome.backend == spec["never"]:
            problems.append(f"went to {spec['never']}")
        for key in rules.REFERENCES:
            if key in spec:
                before = [earlier for one, earlier in zip(given, outcomes) if one.packet == spec[key]]
                problems += _judge_reference(f"{key} = {spec[key]}", key == "same_backend_as", before, outcome)
        return problems

    def _judge_sent(self, oracle, one, outcome, wanted):
        frame = packets.Frame(one.frame)
        if wanted == "backend":
            return oracle.judge_forward(frame, one.interface, outcome.backend, outcome.sent)
        if wanted == "client":
            key = oracle.flow_of_reply(frame)
            if key is None:
                return [f"no flow has this answer: {frame.summary()}"]
            return oracle.judge_reply(frame, key, outcome.sent)
        expected = [frame for text in (wanted if isinstance(wanted, list) else [wanted])
                    for frame in self.words.frames(one.packet, text, came=True)]
        if len(expected) != len(outcome.sent):
            return [f"{len(outcome.sent)} frames were sent, expected {len(expected)}"]
        problems = []
        for want, (_, out) in zip(expected, outcome.sent):
            problems += differences(want, out, free=one.spec.get("free", ()))
        return problems

    @staticmethod
    def _received(one):
        """Returns the IP packet of a frame; empty if there is none."""
        return (packets.Frame(one.frame).data or b"") if len(one.frame) >= SHORTEST else b""

    def _judge_spread(self, given, outcomes):
        """Counts the outer sources and ports of packets with `spread`, the least number of different ones."""
        problems = []
        for number, spec in self.specs.items():
            sent = [packets.Headers(packets.Frame(frame).data) for one, outcome in zip(given, outcomes)
                    if one.packet == number and "spread" in spec for _, frame in outcome.sent]
            values = {(headers.source_text, headers.ports and headers.ports[0]) for headers in sent}
            if len(values) < spec.get("spread", 0):
                problems.append(f"packet {number}: {len(values)} values of the outer source in {len(sent)} flows, "
                                f"expected {spec['spread']} at least: {sorted(map(str, values))}")
        return problems

    def _judge_counters(self, moved):
        return [f"counter {name}: expected {value}, is {moved.get(name, 0)}"
                for name, value in self.case.counters().items() if moved.get(name, 0) != value]


def _judge_reference(key, same, before, outcome):
    """Compares the backend of a packet with that of an earlier one, which may have several frames."""
    backends = sorted({earlier.backend or "no backend" for earlier in before})
    if len(backends) > 1:
        return [f"{key}: its frames went to {', '.join(backends)}, so there is no one backend to compare with"]
    if "no backend" in (backends[0], outcome.backend or "no backend"):
        return [f"{key}: no two backends to compare: that packet: {before[0]}; this one: {outcome}"]
    if (backends[0] == outcome.backend) != same:
        return [f"{key}: that went to {backends[0]}, this to {outcome.backend}"]
    return []
