"""What a soak does to holdfast, the machine, the network and the backends, while connections are open.

Each action returns the losses that policy explains: (VIP, backend, begin, end) of an interval in which connections
to that backend may end, and new ones (backend None) may be refused; VIP None stands for all. Most explain none.
"""

import signal
import time

from world import BACKENDS, HERE, Failed

# Length of a flood in seconds, and its packets per second.
FLOOD_S, FLOOD_RATE = 3, 2000
MACS = {"router": ["02:00:00:00:02:fe", "02:00:00:00:03:fe"], "lb": ["02:00:00:00:01:02", "02:00:00:00:03:02"]}
# A dead backend gets new connections until its check has failed three times; seconds.
DETECTED_S = 2


class Actions:
    """The actions, by name; `draw` is the seeded source of their choices."""

    def __init__(self, lab, holdfast, config, draw):
        self.lab, self.holdfast, self.config, self.draw = lab, holdfast, config, draw
        self.macs = {"router": 0, "lb": 0}

    def restart(self):
        self.holdfast.end(signal.SIGTERM)
        self.holdfast.begin()
        self.holdfast.wait_up()

    def kill(self):
        self.holdfast.end(signal.SIGKILL)
        self.holdfast.begin()
        self.holdfast.wait_up()

    def handover(self):
        self.holdfast.hand_over()

    def drain(self):
        vip, backend = self.draw.choice(self.config.vips()), self.draw.choice(BACKENDS)
        if (vip, backend) in self.config.without:
            return
        name = f"{self.config.name(vip)}/{backend}"
        self.holdfast.cli("drain", name)
        time.sleep(self.draw.uniform(0.5, 3))
        self.holdfast.cli("undrain", name)

    def reload(self):
        """Gives a backend of each VIP another weight."""
        for vip in self.config.vips():
            self.config.weights[vip, self.draw.choice(BACKENDS)] = self.draw.randrange(1, 20)
        self._reload()

    def rename(self):
        vip = self.draw.choice(self.config.vips())
        self.config.renamed[vip] = f"{vip}-{self.draw.randrange(1000)}"
        self._reload()

    def remove(self):
        """Removes a backend of a VIP, which resets its connections (`on_remove`), or adds it again."""
        vip, backend = self.draw.choice(self.config.vips()), "b3"
        begin = time.monotonic()
        if (vip, backend) in self.config.without:
            self.config.without.remove((vip, backend))
        else:
            self.config.without.add((vip, backend))
        self._reload()
        return [(self.config.address(vip), backend, begin, time.monotonic() + DETECTED_S)]

    def _reload(self):
        self.config.write()
        self.holdfast.cli("reload")
        self.holdfast.wait_up()

    def backend(self):
        """Stops the servers of a backend at once, and starts them again."""
        backend, begin = self.draw.choice(BACKENDS), time.monotonic()
        self.lab.script("backend", backend, "stop")
        time.sleep(self.draw.uniform(1, 3))
        self.lab.script("backend", backend, "start")
        self.holdfast.wait_up()
        return [(None, backend, begin, time.monotonic()), (None, None, begin, begin + DETECTED_S)]

    def link(self):
        """Takes the carrier of the balancer's link away for 0.3 s. Where that takes long, checks of all backends
        fail, and new connections are refused."""
        begin = time.monotonic()
        self.lab.run("switch", ["ip", "link", "set", "lb-eth0", "down"])
        time.sleep(0.3)
        self.lab.run("switch", ["ip", "link", "set", "lb-eth0", "up"])
        return [(None, None, begin, time.monotonic() + DETECTED_S)]

    def neighbours(self):
        self.lab.run("lb", ["ip", "neigh", "flush", "all"])

    def router(self):
        self._mac("router")

    def mac(self):
        self._mac("lb")

    def _mac(self, host):
        self.macs[host] = 1 - self.macs[host]
        self.lab.run(host, ["ip", "link", "set", "eth0", "address", MACS[host][self.macs[host]]])

    def program(self):
        """Removes the XDP program."""
        self.lab.run("lb", ["ip", "link", "set", "dev", "eth0", "xdp", "off"])
        time.sleep(1)
        if "xdp" not in self.lab.run("lb", ["ip", "link", "show", "dev", "eth0"]):
            raise Failed("a second after the XDP program was removed there is none")

    def flood(self):
        kind = self.draw.choice(["syn", "ack", "udp"])
        vip = "echo4" if kind == "udp" else self.draw.choice([name for name in self.config.vips() if name[-1] == "4"])
        address, port = ("192.0.2.15", "7") if kind == "udp" else (self.config.address(vip), "80")
        flood(self.lab, kind, address, port, FLOOD_RATE, FLOOD_S)


def flood(lab, kind, address, port, rate, seconds):
    """Sends packets of forged sources from the clients' segment of the balancer."""
    mac = lab.run("lb", ["cat", "/sys/class/net/eth0/address"]).strip()
    script = HERE.parent / "lab" / "flood.py"
    return lab.run("router", ["/usr/bin/python3", script, kind, "eth0", mac, address, port, str(rate), str(seconds)])


NAMES = ["restart", "kill", "handover", "drain", "reload", "rename", "remove", "backend", "link", "neighbours",
         "router", "mac", "program", "flood"]
