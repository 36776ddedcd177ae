"""Anycast with two sites of two boxes; scripts/anycast describes it."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
SESSIONS = REPOSITORY / "tests" / "lab" / "sessions.py"
KEY = "07" * 16
PORT = 8090
BOXES = ["lb", "lb2", "lb3", "lb4"]
SITES = [BOXES[:2], BOXES[2:]]
BACKENDS = ["b1", "b2", "b3", "b4"]
# Mode, address of the VIP, family of the backends.
VIPS = [
    ("dsr", "192.0.2.10", 4),
    ("dsr", "2001:db8:100::10", 6),
    ("ipip", "192.0.2.11", 4),
    ("ipip", "2001:db8:100::12", 4),
    ("gue", "192.0.2.14", 6),
    ("gue", "2001:db8:100::13", 6),
]
NETWORKS = {"-4": "192.0.2.0/24", "-6": "2001:db8:100::/64"}
PATIENCE_S = 20
NEAR, FAR, LEFT = 10, 20, 100

BGP = """
protocol bgp {name} {{
    local {own} as {own_as}; neighbor {peer} as {peer_as}; direct; bfd on;
    hold time 9; connect delay time 1; error wait time 1, 2;
    ipv4 {{ {v4} }};
    ipv6 {{ {v6} }};
}}
"""
BASE = """
router id {own};
log stderr all;
protocol device {{}}
protocol bfd {{ interface "eth0" {{ interval 100 ms; multiplier 3; }}; }}
"""


class Failed(Exception):
    """Something went wrong that is no result."""


def address(host, family):
    last = BOXES.index(host) + 2 if host in BOXES else 10 + int(host[1:])
    return f"198.18.2.{last}" if family == 4 else f"2001:db8:2::{last}"


class Lab:
    def __init__(self, name, binary):
        self.name, self.binary = name, binary
        self.state = Path("/var/lib/holdfast-lab") / name
        self.processes = {}

    def checked(self, command):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{' '.join(map(str, command))}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def script(self, *arguments):
        self.checked([REPOSITORY / "scripts" / "lab", "--name", self.name, *arguments])

    def run(self, host, command):
        return self.checked(["ip", "netns", "exec", f"{self.name}-{host}", *command])

    def start(self, host, kind, command, **options):
        with open(self.state / f"{host}-{kind}.log", "a") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log} | options
            self.processes[host, kind] = subprocess.Popen(["ip", "netns", "exec", f"{self.name}-{host}", *command],
                                                          text=True, stderr=log, **options)
        return self.processes[host, kind]

    def kill(self, host, kind):
        process = self.processes.pop((host, kind))
        process.kill()
        process.wait()


def wait_until(what, done):
    end = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > end:
            raise Failed(f"after {PATIENCE_S} s still not: {what}")
        time.sleep(0.05)


class Script:
    """sessions.py, which answers lines."""

    def __init__(self, lab, host, *arguments):
        line = ["/usr/bin/python3", SESSIONS, *arguments, str(PORT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = lab.start(host, "sessions", line, **pipes)

    def line(self):
        return self.process.stdout.readline().strip()

    def reply(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())


class Fleet:
    def __init__(self, lab, options):
        self.lab, self.options = lab, options
        self.pool, self.weights = ["b1", "b2", "b3"], {}
        self.med = {box: NEAR if box in SITES[0] else FAR for box in BOXES}
        # Counted by processes that have been killed since.
        self.counted = {"hash": 0, "ask": 0}

    # ---- configurations ----

    def config(self, box):
        cores = sorted(os.sched_getaffinity(0))[:2]
        text = f"""
[workers]
cores = {cores}
idle = "sleep"
[control]
socket = "{self.socket(box)}"
[[nic]]
interface = "eth0"
[fleet]
key = "{KEY}"
[tunnel]
source_v4 = "{address(box, 4)}"
source_v6 = "{address(box, 6)}"
"""
        for mode, vip, family in VIPS:
            text += f"""
[[vip]]
name = "{mode}-{4 if '.' in vip else 6}"
address = "{vip}"
announce = "none"
ports = [{PORT}]
protocol = "tcp"
forward = "{mode}"
scheduler = "{self.options.scheduler}"
lost = {{ ask = "{self.options.ask}" }}
drain = {{ slow_start_s = 0 }}
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2, port = 80 }}
"""
            for backend in self.pool:
                text += f'[[vip.backend]]\nname = "{backend}"\naddress = "{address(backend, family)}"\n'
                text += f"weight = {self.weights.get(backend, 1)}\n"
        return text

    def socket(self, box):
        return self.lab.state / f"{box}.sock"

    def bird(self, host, *words):
        return self.lab.run(host, ["birdc", "-s", self.lab.state / f"{host}.bird", *words])

    def router_conf(self):
        text = BASE.format(own="198.18.2.254")
        for name, family, network in [("k4", "ipv4", NETWORKS["-4"]), ("k6", "ipv6", NETWORKS["-6"])]:
            export = f"export where net ~ [ {network}+ ];"
            text += f"protocol kernel {name} {{ merge paths yes limit 8; {family} {{ import none; {export} }}; }}\n"
        take = "import all; export none;"
        for box in BOXES:
            peer = {"name": box, "peer": address(box, 4), "peer_as": 65001, "v4": take, "v6": take}
            text += BGP.format(own="198.18.2.254", own_as=64512, **peer)
        return text

    def box_conf(self, box):
        own = address(box, 4)
        text = BASE.format(own=own)
        text += f"protocol static v4 {{ ipv4; route {NETWORKS['-4']} blackhole; }}\n"
        text += f"protocol static v6 {{ ipv6; route {NETWORKS['-6']} blackhole; }}\n"
        med = self.med[box]
        text += "filter to_router { " + ("reject;" if med == LEFT else f"bgp_med = {med}; accept;") + " }\n"
        give = "import none; export filter to_router;"
        peer = {"name": "up", "peer": "198.18.2.254", "peer_as": 64512, "v4": give}
        return text + BGP.format(own=own, own_as=65001, **peer, v6=f"{give} next hop address {address(box, 6)};")

    # ---- start and stop ----

    def start_bird(self, host, conf):
        path = self.lab.state / f"{host}.conf"
        path.write_text(conf)
        self.lab.start(host, "bird", ["bird", "-f", "-c", path, "-s", self.lab.state / f"{host}.bird"])

    def start_box(self, box):
        path = self.lab.state / f"{box}.toml"
        path.write_text(self.config(box))
        self.lab.start(box, "holdfast", [self.lab.binary, "run", "--config", path])
        wait_until(f"{box} is ready", lambda: self.is_ready(box))
        self.start_bird(box, self.box_conf(box))

    def up(self):
        self.lab.script("up", "--topology", "fleet", "--boxes", "4", "--big-mb", "1", "--clients", "1")
        key = self.lab.state / "fleet.key"
        key.touch(0o600)
        key.write_text(KEY)
        vips = [word for _, vip, _ in VIPS for word in ("--vip", vip)]
        self.servers = []
        for backend in BACKENDS:
            self.lab.run(backend, [self.lab.binary, "backend", "load", "--interface", "eth0", "--key-file", key, *vips])
            self.servers.append(Script(self.lab, backend, "serve", backend))
            self.servers[-1].line()
        policies = ["net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1"]
        self.lab.run("router", ["sysctl", "-q", "-w", *policies])
        for option, network in NETWORKS.items():
            self.lab.run("router", ["ip", option, "route", "del", network])
        self.start_bird("router", self.router_conf())
        for box in BOXES:
            self.start_box(box)
        wait_until("the router sends to the first site", lambda: self.routed_to(SITES[0]))

    def status(self, box):
        return json.loads(self.lab.run(box, [self.lab.binary, "status", "--json", "--socket", self.socket(box)]))

    def is_ready(self, box):
        try:
            backends = [backend for vip in self.status(box)["vips"] for backend in vip["backends"]]
        except Failed:
            if self.lab.processes[box, "holdfast"].poll() is not None:
                raise Failed((self.lab.state / f"{box}-holdfast.log").read_text()) from None
            return False
        asked = self.options.ask == "never" or all(one.get("ask") in (None, "ready") for one in backends)
        return asked and all(one["health"] == "up" and one["next_hop"] for one in backends)

    def routed_to(self, boxes):
        """Whether the router sends to exactly these boxes, in both families."""
        for option, network in NETWORKS.items():
            text = self.lab.run("router", ["ip", option, "route", "show", network])
            family = 4 if option == "-4" else 6
            words = text.split()
            seen = {words[at + 1] for at, word in enumerate(words) if word == "via"}
            if seen != {address(box, family) for box in boxes}:
                return False
        return True

    # ---- events ----

    def announce(self, med):
        """Changes what boxes announce, and waits until the router has the routes."""
        self.med |= med
        for box in med:
            (self.lab.state / f"{box}.conf").write_text(self.box_conf(box))
            self.bird(box, "configure")
        best = min(self.med.values())
        wait_until(f"routes of {self.med}", lambda: self.routed_to([b for b in BOXES if self.med[b] == best]))

    def flip(self):
        near = SITES[0] if self.med["lb"] != NEAR else SITES[1]
        self.announce({box: NEAR if box in near else FAR for box in BOXES})

    def reload(self):
        for box in BOXES:
            (self.lab.state / f"{box}.toml").write_text(self.config(box))
            self.lab.run(box, [self.lab.binary, "reload", "--socket", self.socket(box)])
        for box in BOXES:
            wait_until(f"{box} is ready", lambda box=box: self.is_ready(box))

    def drain(self, command, backend):
        targets = [f"{vip['name']}/{backend}" for vip in self.status("lb")["vips"]]
        for box in BOXES:
            self.lab.run(box, [self.lab.binary, command, *targets, "--socket", self.socket(box)])

    def block_checks(self, boxes, backend):
        """Keeps boxes from checking a backend, and waits until they believe it down."""
        for box in boxes:
            rules = self.lab.state / "health.nft"
            rules.write_text(
                "table inet lab { chain output { type filter hook output priority 0; "
                f"tcp dport 80 ip daddr {address(backend, 4)} drop; "
                f"tcp dport 80 ip6 daddr {address(backend, 6)} drop; }}; }}"
            )
            self.lab.run(box, ["nft", "-f", rules])
            wait_until(f"{box} believes {backend} down", lambda box=box: self.is_down(box, backend))

    def restore_checks(self, boxes):
        for box in boxes:
            self.lab.run(box, ["nft", "delete", "table", "inet", "lab"])
            wait_until(f"{box} is ready", lambda box=box: self.is_ready(box))

    def is_down(self, box, backend):
        backends = [one for vip in self.status(box)["vips"] for one in vip["backends"]]
        return all(one["health"] == "down" for one in backends if one["name"] == backend)

    def count(self, box):
        status = self.status(box)
        self.counted["hash"] += status["totals"]["flows_by_hash"]
        self.counted["ask"] += status["drops"]["ask_answer"]

    def kill_box(self, box):
        """A box vanishes: its link, and at once its processes."""
        self.count(box)
        self.lab.run("switch", ["ip", "link", "set", f"{box}-eth0", "down"])
        self.lab.kill(box, "holdfast")
        self.lab.kill(box, "bird")
        rest = [other for other in BOXES if other != box and self.med[other] == self.med[box]]
        wait_until(f"{box} is no longer routed to", lambda: self.routed_to(rest))

    def start_again(self, box):
        self.lab.run("switch", ["ip", "link", "set", f"{box}-eth0", "up"])
        self.start_box(box)
        best = [other for other in BOXES if self.med[other] == self.med[box]]
        wait_until(f"{box} is routed to", lambda: self.routed_to(best))


class Run:
    def __init__(self, fleet, say):
        self.fleet, self.say = fleet, say
        self.client = Script(fleet.lab, "client", "hold")
        self.flips = self.kills = self.opened = 0
        self.known = set()
        self.broken = dict.fromkeys(("ipip", "gue", "dsr"), 0)

    def open(self, *each):
        pairs = [f"{'198.18.1.10' if '.' in vip else '2001:db8:1::10'},{vip}" for _, vip, _ in VIPS]
        counts = [str(count * self.fleet.options.each) for count in each]
        self.opened += len(self.client.reply(" ".join(["open", *counts, *pairs])))

    def record(self, event, broken):
        new = [line for line in broken if line.split(": ")[0] not in self.known]
        self.known |= {line.split(": ")[0] for line in new}
        for line in new:
            self.broken[next(mode for mode, vip, _ in VIPS if vip == line.split()[3])] += 1
        self.say(f"{event:<44} {len(new):>4} of {self.opened} connections broke")
        for line in new[:3]:
            self.say(f"    {line}")

    def event(self, what, act):
        act()
        self.record(what, self.client.reply("progress"))

    def flip(self):
        self.event(f"flip {self.flips + 1}", self.fleet.flip)
        self.flips += 1

    def change(self, what, pool=None, weights=None):
        def act():
            self.fleet.pool = pool or self.fleet.pool
            self.fleet.weights = weights or {}
            self.fleet.reload()

        self.event(what, act)

    def all(self):
        fleet, everything = self.fleet, ["b1", "b2", "b3", "b4"]
        self.open(6, 3, 1)
        self.event("nothing happens", lambda: None)
        changes = [
            lambda: self.change("b4 is added", pool=everything),
            lambda: self.change("b1 has four times its weight", weights={"b1": 4}),
            lambda: self.event("b2 drains at all boxes", lambda: fleet.drain("drain", "b2")),
            lambda: self.event("b2 drains no longer", lambda: fleet.drain("undrain", "b2")),
        ]
        for number in range(fleet.options.flips):
            if number < len(changes):
                changes[number]()
                self.flip()
                self.open(1, 1, 0)
            else:
                self.flip()
        near, far = ([box for box in BOXES if fleet.med[box] == med] for med in (NEAR, FAR))
        self.event("the other site believes b3 down", lambda: fleet.block_checks(far, "b3"))
        self.flip()
        self.open(1, 1, 0)
        self.flip()
        self.event("both sites believe b3 up", lambda: fleet.restore_checks(far))
        self.event("a box of the site leaves", lambda: fleet.announce({near[1]: LEFT}))
        self.event("it comes back", lambda: fleet.announce({near[1]: NEAR}))
        self.event("a box of the site dies", lambda: fleet.kill_box(near[0]))
        self.kills += 1
        self.event("it comes back", lambda: fleet.start_again(near[0]))
        self.record("the end", self.client.reply("end"))
        for box in BOXES:
            fleet.count(box)

    def document(self):
        return {
            "flips": self.flips,
            "box_kills": self.kills,
            "connections": self.opened,
            "saved_by": self.fleet.counted | {"ticket": 0, "record": 0},
            # Not in this lab: nat and full_nat do not survive a change of the site.
            "broken": self.broken | {"nat": None, "full_nat": None},
        }


def main():
    parser = argparse.ArgumentParser(prog="scripts/anycast")
    parser.add_argument("--flips", type=int, default=10)
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("--ask", default="history")
    parser.add_argument("--scheduler", default="maglev")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--binary", type=Path, required=True)
    options = parser.parse_args()
    # The lab is removed in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lab = Lab(f"hfany{os.getpid()}", options.binary.resolve())
    fleet = Fleet(lab, options)
    try:
        fleet.up()
        run = Run(fleet, lambda text: print(text, file=sys.stderr, flush=True))
        run.all()
        document = run.document()
    finally:
        for process in lab.processes.values():
            process.kill()
            process.wait()
        lab.script("down")
    if options.json:
        print(json.dumps(document))
    else:
        print(f"{document['connections']} connections, broken: {document['broken']}; saved by {document['saved_by']}")
    return 1 if sum(run.broken.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"anycast: error: {failure}")
