"""The lab of a soak: clients behind a router, the balancer, three backends on one segment; and a holdfast in it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
BACKENDS = ["b1", "b2", "b3"]
# Limit of a start, and of each command, in seconds.
PATIENCE_S = 30
# Address and router of the clients, networks of the clients and of the VIPs; both families.
FAR = [
    ("198.18.3.10/24", "198.18.3.1", "198.18.3.0/24", "192.0.2.0/24", "198.18.2.254"),
    ("2001:db8:3::10/64", "2001:db8:3::1", "2001:db8:3::/64", "2001:db8:100::/64", "2001:db8:2::fe"),
]
VIPS = {"dsr": 10, "ipip": 11, "nat": 20, "full_nat": 30}
# UDP: the echo for the probe, and the VIP of the idle pins.
ECHO, IDLE = ("192.0.2.15", 7), ("192.0.2.16", 9)


class Failed(Exception):
    """Something that no action explains: the soak ends."""


class Lab:
    """The namespaces, made by scripts/lab."""

    def __init__(self, name):
        self.name, self.state = name, Path("/var/lib/holdfast-lab") / name

    def script(self, *arguments):
        self.checked([REPOSITORY / "scripts" / "lab", "--name", self.name, *arguments])

    @staticmethod
    def checked(command):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            line = " ".join(str(word) for word in command)
            raise Failed(f"{line}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def run(self, host, command):
        """Runs a command in a host; returns its output."""
        return self.checked(["ip", "netns", "exec", f"{self.name}-{host}", *command])

    def start(self, host, command, **options):
        """Starts a command in a host; the process is the command itself."""
        return subprocess.Popen(["ip", "netns", "exec", f"{self.name}-{host}", *command], text=True, **options)

    def up(self):
        self.script("up", "--topology", "stick", "--queues", "2", "--big-mb", "1")
        self.run("switch", ["ip", "link", "add", "far", "type", "bridge", "stp_state", "0", "forward_delay", "0",
                 "mcast_snooping", "0"])
        self.run("switch", ["ip", "link", "set", "far", "up"])
        for host in ("client", "router"):
            self.run("switch", ["ip", "link", "add", "far", "netns", f"{self.name}-{host}", "type", "veth", "peer",
                     "name", f"{host}-far", "netns", f"{self.name}-switch"])
            self.run(host, ["ethtool", "-K", "far", "tx", "off"])
            self.run("switch", ["ip", "link", "set", f"{host}-far", "master", "far", "up"])
            self.run(host, ["ip", "link", "set", "far", "up"])
        for address, router, clients, vips, segment in FAR:
            length = address.rsplit("/")[-1]
            self.run("client", ["ip", "address", "add", address, "dev", "far"])
            self.run("router", ["ip", "address", "add", f"{router}/{length}", "dev", "far"])
            self.run("client", ["ip", "route", "replace", vips, "via", router, "src", address.split("/")[0]])
            for host in ["lb", *BACKENDS]:
                self.run(host, ["ip", "route", "add", clients, "via", segment])
        # A new MAC is announced, as by a router that takes another's place.
        for host in ("router", "lb"):
            self.run(host, ["sysctl", "-q", "-w", "net.ipv4.conf.all.arp_notify=1", "net.ipv4.conf.eth0.arp_notify=1",
                     "net.ipv6.conf.all.ndisc_notify=1", "net.ipv6.conf.eth0.ndisc_notify=1"])
        for host in BACKENDS:
            self.start(host, ["/usr/bin/python3", HERE / "speaker.py", host, "9000"])

    def down(self):
        self.script("down")


class Config:
    """The configuration; actions change its values."""

    def __init__(self, lab):
        self.lab = lab
        self.without = set()  # (VIP, backend) that are not there
        self.weights = {}  # by (VIP, backend)
        self.renamed = {}  # VIP: another name

    def vips(self):
        return [f"{mode}{family}" for mode in VIPS for family in (4, 6)]

    def name(self, vip):
        return self.renamed.get(vip, vip)

    @staticmethod
    def address(vip):
        number = VIPS[vip[:-1]]
        return f"192.0.2.{number}" if vip.endswith("4") else f"2001:db8:100::{number}"

    def write(self):
        (self.lab.state / "holdfast.toml").write_text(self.toml())

    def toml(self):
        parts = [f'''[workers]
cores = [0, 1]
idle = "sleep"
flows = 262144
[control]
socket = "{self.lab.state}/control.sock"
[[nic]]
interface = "eth0"
[full_nat]
sources = ["198.18.2.48/30", "2001:db8:2::48/126"]
[tunnel]
source_v4 = "198.18.2.2"
source_v6 = "2001:db8:2::2"
''']
        for vip in self.vips():
            more = 'ports = [80, 9000]\nprotocol = "tcp"\nscheduler = "round_robin"\n'
            more += f'forward = "{vip[:-1]}"\nhealth = {check("tcp")}\n'
            parts.append(self.vip(vip, self.address(vip), more))
        more = f'ports = [{ECHO[1]}]\nprotocol = "udp"\nforward = "dsr"\nhealth = {check("tcp")}\n'
        parts.append(self.vip("echo4", ECHO[0], more))
        more = f'ports = [{IDLE[1]}]\nprotocol = "udp"\nscheduler = "round_robin"\nforward = "dsr"\n'
        more += f'timeouts = {{ udp_first_s = 86400, udp_s = 86400 }}\nhealth = {check("tcp")}\n'
        parts.append(self.vip("idle4", IDLE[0], more))
        return "".join(parts)

    def vip(self, vip, address, more):
        text = f'[[vip]]\nname = "{self.name(vip)}"\naddress = "{address}"\n{more}'
        for backend in BACKENDS:
            if (vip, backend) in self.without:
                continue
            own = f"198.18.2.1{backend[1]}" if vip.endswith("4") else f"2001:db8:2::1{backend[1]}"
            weight = self.weights.get((vip, backend), 10)
            text += f'[[vip.backend]]\nname = "{backend}"\naddress = "{own}"\nweight = {weight}\n'
        return text


def check(kind):
    return f'{{ kind = "{kind}", interval_ms = 200, timeout_ms = 200, rise = 2, fall = 3, port = 80 }}'


class Holdfast:
    """A running holdfast."""

    def __init__(self, lab, binary, config):
        self.lab, self.binary, self.config = lab, binary, config
        self.process = None
        self.log = open(lab.state / "holdfast.log", "a", encoding="utf-8")

    def begin(self):
        """Starts the process; does not wait for it."""
        self.process = self.lab.start("lb", [self.binary, "run", "--config", self.lab.state / "holdfast.toml"],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log)

    def cli(self, *arguments):
        return self.lab.run("lb", [self.binary, *arguments, "--socket", self.lab.state / "control.sock"])

    def status(self):
        return json.loads(self.cli("status", "--json"))

    def wait_up(self):
        """Waits until the process answers and every backend is up."""
        end = time.monotonic() + PATIENCE_S
        while True:
            self.check()
            try:
                backends = [backend for vip in self.status()["vips"] for backend in vip["backends"]]
                if all(backend["health"] == "up" and backend["next_hop"] for backend in backends):
                    return
                last = str([backend for backend in backends if backend["health"] != "up"])
            except Failed as failed:
                last = str(failed)
            if time.monotonic() > end:
                raise Failed(f"holdfast is not up after {PATIENCE_S} s: {last}")
            time.sleep(0.05)

    def check(self):
        """Fails if the process has ended by itself."""
        if self.process.poll() is not None:
            raise Failed(f"holdfast has ended by itself: {self.process.returncode}; {self.lab.state}/holdfast.log")

    def end(self, number):
        """Ends the process by a signal."""
        self.process.send_signal(number)
        code = wait(self.process)
        if code != (0 if number == signal.SIGTERM else -number):
            raise Failed(f"holdfast has ended with {code} after signal {number}")

    def hand_over(self):
        """Starts another process, which takes over from this one."""
        before = self.process
        self.begin()
        code = wait(before)
        if code != 0:
            raise Failed(f"holdfast has ended with {code} after a hand-over")
        self.wait_up()


def wait(process):
    """Waits for the end of a process; returns its exit code. Popen.wait with a limit looks every 50 ms only, and the
    gap of a restart would include the rest of them."""
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], PATIENCE_S)[0]:
            raise Failed(f"{process.args}: has not ended after {PATIENCE_S} s")
    finally:
        os.close(descriptor)
    return process.wait()


def finish(name, lab, run):
    """Returns what RUN returns, and removes the lab. A failure, or SIGTERM, ends this program."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run()
    except Failed as failed:
        log = lab.state / "holdfast.log"
        tail = log.read_text(encoding="utf-8").splitlines()[-20:] if log.exists() else []
        sys.exit("\n".join([f"{name}: {failed}", *tail]))
    finally:
        lab.down()
