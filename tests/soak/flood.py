"""A flood of SYNs from forged sources, as fast as the generator sends, beside established and new connections.

Ends with the established connections that were lost, the share of honest new ones that succeeded, and the growth
of holdfast's memory.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from world import BACKENDS, HERE, Failed, Holdfast, Lab, check, finish

# Port of greeter.py.
GREETER = 9001
# VIP under attack, and another one.
ATTACKED, OTHER = ("attacked", "dsr", "192.0.2.10"), ("other", "nat", "192.0.2.20")
# Clients' addresses: one has ports for 64,512 connections to each target.
SOURCES = [f"198.18.3.{last}" for last in range(20, 32)]
# Forged sources of the generator.
FORGED = "198.18.128.0/17"
FORGED_FLOWS = 10_000_000
# Honest new connections per second, to each VIP.
HONEST_RATE = 20
# Share of honest new connections that must succeed.
LEAST_SHARE = 0.99
# Files of a process besides its connections.
OTHER_FILES = 100
# Longest time to open or to ask all established connections, in seconds.
PATIENCE_S = 300


class Reader:
    """A program in a host, with lines of JSON."""

    def __init__(self, lab, host, *command):
        self.process = lab.start(host, [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"{self.process.args} has ended: {self.process.wait(PATIENCE_S)}")
        return json.loads(line)

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def end(self):
        """Closes the program's input; returns the rest of its lines."""
        rest, _ = self.process.communicate(timeout=PATIENCE_S)
        if self.process.returncode:
            raise Failed(f"{self.process.args}: exit {self.process.returncode}")
        return [json.loads(line) for line in rest.splitlines()]


class Flood:
    """A flood, from the lab to the report."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.lab = Lab("hfflood")

    def run(self):
        self.lab.up()
        self.prepare()
        (self.lab.state / "holdfast.toml").write_text(self.toml())
        holdfast = Holdfast(self.lab, self.arguments.binary, None)
        holdfast.begin()
        holdfast.wait_up()
        say(f"opens {self.arguments.established} connections")
        holders = self.holders()
        opened = sum(holder.line()["open"] for holder in holders)
        if opened < self.arguments.established:
            raise Failed(f"only {opened} connections were opened, before the flood")
        before = self.lost(holders)
        if before:
            raise Failed(f"{before} connections were lost before the flood")
        memory = self.memory(holdfast)
        honest = self.python("client", "honest.py", HONEST_RATE, ATTACKED[2], OTHER[2])
        say(f"floods {ATTACKED[2]} for {self.arguments.seconds:g} s")
        sent = self.flood()
        status = holdfast.status()
        new = {line["address"]: line for line in honest.end()}
        grown = self.memory(holdfast) - memory
        say("asks all connections")
        lost = self.lost(holders)
        for holder in holders:
            holder.end()
        holdfast.end(signal.SIGTERM)
        return self.report(sent, status, new, grown, lost)

    def python(self, host, script, *arguments):
        return Reader(self.lab, host, "/usr/bin/python3", HERE / script, *arguments)

    def holders(self):
        """Starts the clients of the established connections: as many as their limits of open files demand."""
        processes = self.processes(1)
        targets = [f"{address}:{GREETER}" for _, _, address in (ATTACKED, OTHER)]
        counts = [len(range(index, self.arguments.established, processes)) for index in range(processes)]
        # At most one source to a process, so that they do not meet in its ports.
        return [self.python("client", "holder.py", count, SOURCES[index % len(SOURCES)], *targets)
                for index, count in enumerate(counts)]

    def processes(self, hosts):
        """Number of processes that have so many files of the established connections open, in each of HOSTS."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Twice as many as needed: the kernel does not share them out evenly.
        return -(-2 * self.arguments.established // hosts // (most - OTHER_FILES))

    @staticmethod
    def lost(holders):
        return sum(holder.ask()["lost"] for holder in holders)

    def prepare(self):
        for source in SOURCES:
            self.lab.run("client", ["ip", "address", "add", f"{source}/24", "dev", "far"])
        self.lab.run("client", ["sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=1024 65535"])
        for host in BACKENDS:
            # Forged SYNs end at the address check of the backend's kernel, which is not what is measured.
            self.lab.run(host, ["ip", "route", "add", "blackhole", FORGED])
            self.lab.run(host, ["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1",
                                "net.core.somaxconn=4096", "net.ipv4.tcp_max_syn_backlog=4096"])
            self.lab.start(host, ["/usr/bin/python3", HERE / "greeter.py", host, str(GREETER),
                                  str(self.processes(len(BACKENDS)))])

    def toml(self):
        """The default sizes of all tables."""
        parts = [f'[workers]\ncores = [0, 1]\nidle = "sleep"\n[control]\nsocket = "{self.lab.state}/control.sock"\n'
                 '[[nic]]\ninterface = "eth0"\n']
        for name, mode, address in (ATTACKED, OTHER):
            parts.append(f'[[vip]]\nname = "{name}"\naddress = "{address}"\nports = [80, {GREETER}]\n'
                         f'forward = "{mode}"\nhealth = {check("tcp")}\n')
            parts += [f'[[vip.backend]]\nname = "{backend}"\naddress = "198.18.2.1{backend[1]}"\n'
                      for backend in BACKENDS]
        return "".join(parts)

    def flood(self):
        """Returns the report of the generator."""
        mac = self.lab.run("lb", ["cat", "/sys/class/net/eth0/address"]).strip()
        command = [self.arguments.binary, "generate", "--interface", "eth0", "--target", f"{ATTACKED[2]}:80",
                   "--protocol", "syn", "--clients", FORGED, "--flows", FORGED_FLOWS, "--rate", self.arguments.rate,
                   "--seconds", self.arguments.seconds, "--next-hop", mac, "--json"]
        return json.loads(self.lab.run("router", [str(word) for word in command]))

    @staticmethod
    def memory(holdfast):
        """Resident memory of the process, in bytes."""
        text = Path(f"/proc/{holdfast.process.pid}/status").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in text.splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024

    def report(self, sent, status, new, grown, lost):
        share = {name: 1 - new[address]["failed"] / max(1, new[address]["tried"])
                 for name, _, address in (ATTACKED, OTHER)}
        tried = sum(line["tried"] for line in new.values())
        failed = sum(line["failed"] for line in new.values())
        totals = status["totals"]
        return {
            "seconds": self.arguments.seconds,
            "syns": sent["sent"],
            "syns_per_second": round(sent["sent"] / self.arguments.seconds),
            "established": self.arguments.established,
            "established_lost": lost,
            "honest_new": tried,
            "honest_new_ok_share": round(1 - failed / max(1, tried), 5),
            "by_vip": {name: round(value, 5) for name, value in share.items()},
            "flows_evicted": totals["flows_evicted"],
            "rss_growth_bytes": grown,
        }


def say(text):
    print(f"flood: {text}", file=sys.stderr, flush=True)


def table(report):
    return "\n".join([
        f"SYNs from forged sources      {report['syns']:>12}, {report['syns_per_second']} a second",
        f"established connections       {report['established']:>12}, {report['established_lost']} lost",
        f"honest new connections        {report['honest_new']:>12}, {report['honest_new_ok_share']:.2%} succeeded",
        f"growth of resident memory     {report['rss_growth_bytes']:>12} bytes",
    ])


def parse():
    parser = argparse.ArgumentParser(prog="scripts/flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of the flood (default 60)")
    parser.add_argument("--established", type=int, default=100_000, help="connections before it (default 100000)")
    parser.add_argument("--rate", default="max", help="SYNs per second, as of `holdfast generate` (default max)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--binary", type=Path, required=True, help="holdfast (default: a release build)")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or not 1 <= arguments.established <= 200_000:
        parser.error("--seconds must be positive, --established 1 to 200000")
    return arguments


def main():
    arguments = parse()
    flood = Flood(arguments)
    report = finish("flood", flood.lab, flood.run)
    print(json.dumps(report) if arguments.json else table(report))
    return 1 if report["established_lost"] or report["honest_new_ok_share"] < LEAST_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
