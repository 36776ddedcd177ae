"""Connections of real clients to real servers through holdfast, and random actions on everything between them.

Ends with a table of the actions, of connections that broke, and of those whose end policy does not explain: 0.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import actions as kinds
from traffic import PATIENCE_S
from world import ECHO, HERE, IDLE, Config, Failed, Holdfast, Lab, finish

# Longest pause between two actions in seconds.
PAUSE_S = 4
# A gap belongs to an action if it begins at most this long after the action's end.
AFTER_S = 1
# Packets per second that make the idle pins.
PIN_RATE = 20_000
# Actions that end or replace the process.
PROCESS = ("restart", "kill", "handover")


class Reader(threading.Thread):
    """A program in the clients' namespace; each of its lines is a JSON value."""

    def __init__(self, lab, script, *arguments):
        super().__init__(daemon=True)
        self.values = []
        self.process = lab.start("client", ["/usr/bin/python3", HERE / script, *map(str, arguments)],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.start()

    def run(self):
        for line in self.process.stdout:
            self.values.append(json.loads(line))

    def end(self):
        """Closes the program's input and waits for its end."""
        self.process.stdin.close()
        code = self.process.wait(120)
        self.join()
        if code:
            raise Failed(f"{self.process.args}: exit {code}")


class Soak:
    """A soak, from the lab to the report."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.draw = random.Random(arguments.seed)
        self.lab = Lab(f"hfsoak{arguments.seed}")
        self.done = []  # (action, begin, end)
        self.losses = []  # (VIP, backend, begin, end) that policy explains
        self.pins_lost = 0

    def run(self):
        self.lab.up()
        config = Config(self.lab)
        config.write()
        holdfast = Holdfast(self.lab, self.arguments.binary, config)
        holdfast.begin()
        holdfast.wait_up()
        self.pins(holdfast)
        addresses = [config.address(vip) for vip in config.vips()]
        traffic = Reader(self.lab, "traffic.py", self.lab.state / "big", self.arguments.transfers, self.arguments.seed,
                         *addresses)
        probe = Reader(self.lab, "probe.py", ECHO[0])
        time.sleep(6)
        self.act(holdfast, config)
        probe.end()
        traffic.end()
        self.pins_lost = self.pins(holdfast) if self.arguments.pins else 0
        holdfast.end(signal.SIGTERM)
        return self.report(traffic.values, probe.values)

    def pins(self, holdfast):
        """Sends a packet of each idle flow; returns how many had no pin."""
        if not self.arguments.pins:
            return 0
        before = self.new_flows(holdfast)
        kinds.flood(self.lab, "udp", IDLE[0], str(IDLE[1]), PIN_RATE, self.arguments.pins / PIN_RATE)
        return self.new_flows(holdfast) - before

    @staticmethod
    def new_flows(holdfast):
        vip = next(vip for vip in holdfast.status()["vips"] if vip["name"] == "idle4")
        return sum(backend["traffic"]["flows_total"] for backend in vip["backends"])

    def act(self, holdfast, config):
        actions = kinds.Actions(self.lab, holdfast, config, self.draw)
        end = time.monotonic() + self.arguments.minutes * 60
        while time.monotonic() < end:
            name = self.draw.choice(self.arguments.actions)
            begin = time.monotonic()
            self.losses += getattr(actions, name)() or []
            self.done.append((name, begin, time.monotonic()))
            holdfast.check()
            left = max(0, round(end - time.monotonic()))
            print(f"  {left:6} s left: {name}, at {begin:.1f} for {time.monotonic() - begin:.1f} s", file=sys.stderr,
                  flush=True)
            time.sleep(self.draw.uniform(0.5, PAUSE_S))

    def explained(self, ended):
        """Whether policy explains the end of a connection."""
        return any(begin <= ended["end"] and ended["begin"] <= end and backend == ended["backend"]
                   and vip in (None, ended["vip"]) for vip, backend, begin, end in self.losses)

    def report(self, ended, gaps):
        broken = [one for one in ended if one["error"]]
        unexplained = [one for one in broken if not self.explained(one)]
        counts = Counter(name for name, _, _ in self.done)
        longest = {name: 0.0 for name in counts}
        for gap in gaps:
            for name, begin, end in self.done:
                if begin <= gap["at"] + gap["ms"] / 1000 and gap["at"] <= end + AFTER_S:
                    longest[name] = max(longest[name], gap["ms"])
        for one in unexplained:
            # A time-out ends a silence that has begun before.
            since = one["end"] - (PATIENCE_S if "Timeout" in one["error"] else 0)
            action = next((name for name, begin, end in reversed(self.done) if begin <= since), "before all")
            print(f"broken: {json.dumps(one)}, after {action} at {since:.1f}", file=sys.stderr)
        return {
            "seed": self.arguments.seed,
            "minutes": self.arguments.minutes,
            "transfers": len(ended),
            "actions": sum(counts.values()),
            "broken_explained": len(broken) - len(unexplained),
            "broken_unexplained": len(unexplained),
            "restarts": counts["restart"],
            "kills": counts["kill"],
            "handovers": counts["handover"],
            "gap_ms_max": max((longest.get(name, 0.0) for name in PROCESS), default=0.0),
            "pins": self.arguments.pins,
            "pins_lost": self.pins_lost,
            "by_action": {name: {"count": counts[name], "gap_ms_max": longest[name]} for name in sorted(counts)},
        }


def table(report):
    lines = [f"{'action':<12} {'count':>6} {'longest gap':>14}"]
    for name, row in report["by_action"].items():
        lines.append(f"{name:<12} {row['count']:>6} {row['gap_ms_max']:>11} ms")
    lines.append("")
    lines.append(f"{report['transfers']} connections: {report['broken_explained']} ended as policy demands, "
                 f"{report['broken_unexplained']} broke")
    if report["pins"]:
        lines.append(f"{report['pins']} idle pins: {report['pins_lost']} lost")
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="length (default 10)")
    parser.add_argument("--seed", type=int, default=None, help="seed of all choices (default: random)")
    parser.add_argument("--transfers", type=int, default=200, help="connections at a time (default 200)")
    parser.add_argument("--pins", type=int, default=100_000, help="idle UDP flows (default 100000)")
    parser.add_argument("--actions", type=lambda text: text.split(","), default=kinds.NAMES,
                        help=f"of {','.join(kinds.NAMES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--binary", type=Path, required=True, help="holdfast (default: a release build)")
    arguments = parser.parse_args()
    for name in arguments.actions:
        if name not in kinds.NAMES:
            parser.error(f"--actions: {name} is not one of {', '.join(kinds.NAMES)}")
    if arguments.minutes <= 0 or arguments.transfers < 1 or arguments.pins < 0:
        parser.error("--minutes, --transfers and --pins must be positive")
    if arguments.seed is None:
        arguments.seed = random.randrange(1_000_000)
    return arguments


def main():
    arguments = parse()
    print(f"soak: {arguments.minutes:g} minutes, seed {arguments.seed}", file=sys.stderr, flush=True)
    soak = Soak(arguments)
    report = finish(f"soak, seed {arguments.seed}", soak.lab, soak.run)
    print(json.dumps(report) if arguments.json else table(report))
    return 1 if report["broken_unexplained"] or report["pins_lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
