"""Runs `holdfast replay` on a capture; reads the decision on each packet and the frames sent for it."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import captures

SECONDS_AT_MOST = 120
# Longest part of an error message of holdfast, in characters.
MESSAGE = 1000


@dataclass
class Outcome:
    """Outcome of one packet: its JSON line, (interface, bytes) of each frame that was sent for it, and the position of
    its line in the output."""

    line: dict
    sent: list
    ended: int = 0

    @property
    def verdict(self):
        return self.line["verdict"]

    @property
    def backend(self):
        return self.line.get("backend")

    @property
    def reason(self):
        return self.line.get("reason")

    def __str__(self):
        """Verdict, reason and backend, for messages about failures."""
        parts = [self.verdict, self.reason and f"reason {self.reason}", self.backend and f"backend {self.backend}"]
        return ", ".join(part for part in parts if part)


class Replay:
    """One configuration, as files in a folder."""

    def __init__(self, binary, folder, config, neighbours, interfaces):
        self.binary, self.folder, self.interfaces = binary, Path(folder), interfaces
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.toml").write_text(config)
        (self.folder / "neighbours.toml").write_text(neighbours)

    def run(self, frames):
        """Replays (microseconds, interface, bytes); returns an Outcome for each, and the sums of the counters."""
        given, out = self.folder / "in.pcapng", self.folder / "out.pcapng"
        captures.write(given, frames, self.interfaces)
        command = [self.binary, "replay", "--config", self.folder / "config.toml", "--neighbours",
                   self.folder / "neighbours.toml", "--json", "--out", out, given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_AT_MOST, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"holdfast replay: exit {done.returncode}: {done.stderr[:MESSAGE]}")
        outcomes = [Outcome(json.loads(line), [], ended) for ended, line in enumerate(done.stdout.splitlines())]
        # A parked fragment has its line in the place of its release.
        outcomes.sort(key=lambda outcome: outcome.line["index"])
        if [outcome.line["index"] for outcome in outcomes] != list(range(len(frames))):
            raise RuntimeError(f"{len(frames)} packets in, {len(outcomes)} lines out: every packet must have one")
        silent = [outcome for outcome in outcomes if outcome.verdict in ("drop", "reply") and not outcome.reason]
        if silent:
            raise RuntimeError(f"frame {silent[0].line['index']}: a verdict without a reason: {silent[0]}")
        for frame in captures.read(out):
            # The other interfaces carry packets that were not sent.
            if frame.interface in self.interfaces:
                _cause(outcomes, frame).sent.append((frame.interface, frame.data))
        return outcomes, _sums(outcomes)


def _cause(outcomes, frame):
    """Returns the packet that a frame was sent for; the comment begins with its index."""
    index = frame.comment.partition(" ")[0].removeprefix("index=")
    if not index.isdigit():
        raise RuntimeError(f"a frame that no packet has caused was sent: {frame.comment}")
    return outcomes[int(index)]


def _sums(outcomes):
    sums = {}
    for outcome in outcomes:
        for name, value in outcome.line.get("counters", {}).items():
            sums[name] = sums.get(name, 0) + value
    return sums
