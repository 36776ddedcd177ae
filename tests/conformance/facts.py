"""Configuration as the oracle sees it: read from the TOML files that holdfast gets, by independent code."""

import ipaddress
import tomllib
from dataclasses import dataclass, field

TCP, UDP, ANY = 6, 17, 0
PROTOCOLS = {"tcp": TCP, "udp": UDP, "any": ANY}
TUNNELS = ("ipip", "gue")
TRANSLATING = ("nat", "full_nat")


@dataclass
class Hop:
    """Link-layer address of a backend: MAC, interface, VLAN tags and MTU."""

    mac: str
    interface: str
    tags: list
    mtu: int
    state: str


@dataclass
class Nic:
    interface: str
    mac: str
    mtu: int


@dataclass
class Backend:
    name: str
    address: object
    port: int | None
    hop: Hop | None


@dataclass
class Vip:
    name: str
    network: object
    ports: list
    protocol: int
    forward: str
    backends: dict
    keys: dict = field(repr=False, default_factory=dict)

    def listens(self, address, protocol, port):
        if address not in self.network or self.protocol not in (ANY, protocol):
            return False
        return self.protocol == ANY or any(low <= port <= high for low, high in self.ports)


class Facts:
    """A configuration and its neighbours."""

    def __init__(self, config, neighbours):
        config, neighbours = tomllib.loads(config), tomllib.loads(neighbours)
        self.nics = {nic["interface"]: Nic(nic["interface"], nic["mac"], nic.get("mtu", 1500))
                     for nic in neighbours["nic"]}
        hops = {ipaddress.ip_address(row["address"]): self._hop(row) for row in neighbours.get("neighbour", [])}
        self.vips = [_vip(row, hops) for row in config["vip"]]
        tunnel = config.get("tunnel", {})
        self.tunnel_sources = {4: _network(tunnel.get("source_v4")), 6: _network(tunnel.get("source_v6"))}
        self.tunnel_df = tunnel.get("df", "inner")
        self.gue_port = tunnel.get("gue_port", 6080)
        full_nat = config.get("full_nat", {})
        self.pool = [_network(source) for source in full_nat.get("sources", [])]
        low, _, high = full_nat.get("ports", "1024-65535").partition("-")
        self.pool_ports = range(int(low), int(high) + 1)

    def _hop(self, row):
        tags = row.get("vlan", [])
        nic = self.nics[row["interface"]]
        return Hop(row["mac"], row["interface"], tags if isinstance(tags, list) else [tags],
                   min(row.get("mtu", nic.mtu), nic.mtu), row.get("state", "up"))

    def interface_of(self, mac):
        """Returns the NIC with this MAC, on which a captured frame arrives; without a match the first one."""
        return next((name for name, nic in self.nics.items() if nic.mac == mac), next(iter(self.nics)))

    def vip_of(self, address, protocol, port):
        """Returns the VIP of a packet: longest prefix, then exact port, range, all ports, any protocol."""
        address = ipaddress.ip_address(address)
        found = [vip for vip in self.vips if vip.listens(address, protocol, port)]
        return max(found, key=lambda vip: _precedence(vip, port), default=None)

    def vip(self, name):
        return next(vip for vip in self.vips if vip.name == name)


def _precedence(vip, port):
    spans = [high - low for low, high in vip.ports if low <= port <= high]
    return vip.network.prefixlen, vip.protocol != ANY, -min(spans, default=65536)


def _network(text):
    return ipaddress.ip_network(text, strict=False) if text else None


def _vip(row, hops):
    backends = {}
    for backend in row["backend"]:
        address = ipaddress.ip_address(backend["address"])
        backends[backend["name"]] = Backend(backend["name"], address, backend.get("port"), hops.get(address))
    protocol = PROTOCOLS[row.get("protocol", "tcp")]
    return Vip(row["name"], _network(row["address"]), _ports(row.get("ports", "all")), protocol, row["forward"],
               backends, row)


def _ports(written):
    if written == "all":
        return [(1, 65535)]
    spans = []
    for port in written if isinstance(written, list) else [written]:
        low, _, high = str(port).partition("-")
        spans.append((int(low), int(high or low)))
    return spans
