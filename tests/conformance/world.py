"""Setting of the golden cases (docs/CONFORMANCE.md): names, addresses, and the configuration of each mode.

A case names its VIPs and changes single keys; all other keys are set here.
"""

import copy

from mistake import Mistake, did_you_mean

# MAC addresses, as names for the packets of cases.
LB, LB2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
CLIENT_MAC, ROUTER_MAC, OTHER_MAC = "02:00:00:00:0c:01", "02:00:00:00:0c:fe", "02:00:00:00:0c:99"
BACKEND_MACS = {f"b{n}": f"02:00:00:00:0b:{n:02x}" for n in (1, 2, 3)}

CLIENT4, CLIENT6 = "192.168.1.1", "fc00:2::1"
ROUTER4, ROUTER6 = "192.168.100.1", "fc00:100::1"
BACKENDS4 = {f"b{n}": f"10.0.0.{n}" for n in (1, 2, 3)}
BACKENDS6 = {f"b{n}": f"fc00::{n}" for n in (1, 2, 3)}

# Bytes of a packet that an ICMP error quotes: 98 bytes of frame in all; RFC 4443 3.1, the smallest MTU.
QUOTE4, QUOTE6 = 56, 1232

# Modes in which client and backend may have different families.
MIXED = ["full_nat", "proxy", "ipip", "gue"]

# name: address, protocol, ports, family of the backends, modes (None: all)
VIPS = {
    "web4": ("10.200.1.1", "tcp", [80], 4, None),
    "udp4": ("10.200.1.1", "udp", [80], 4, None),
    "web6": ("fc00:1::1", "tcp", [80], 6, None),
    "udp6": ("fc00:1::1", "udp", [80], 6, None),
    "all4": ("10.200.1.2", "tcp", "all", 4, None),
    "mixed4": ("10.200.1.3", "tcp", [80], 6, MIXED),
    "mixed4_udp": ("10.200.1.3", "udp", [80], 6, MIXED),
    "mixed6": ("fc00:1::3", "tcp", [80], 4, MIXED),
    "mixed6_udp": ("fc00:1::3", "udp", [80], 4, MIXED),
    "quic4": ("10.200.1.5", "udp", [443], 4, None),
    "ranges4": ("10.200.1.6", "tcp", [443, "8000-8999"], 4, None),
    "any4": ("10.200.1.7", "any", None, 4, ["dsr", "ipip", "gue"]),
    "any6": ("fc00:1::7", "any", None, 6, ["dsr", "ipip", "gue"]),
    "net4": ("10.201.1.0/24", "tcp", [80], 4, ["dsr", "full_nat", "ipip", "gue"]),
    "net6": ("fc00:5::/96", "tcp", [80], 6, ["dsr", "full_nat", "ipip", "gue"]),
}
USUAL = ["web4", "udp4", "web6", "udp6"]
# QUIC-LB draft, unencrypted: first octet, server id of 3 bytes, nonce of 4.
SERVER_IDS = {"b1": "c46051", "b2": "c46052", "b3": "c46053"}


def usual(mode):
    """Default VIPs of a case; PROXY protocol is for TCP only."""
    return [name for name in USUAL if has_mode(name, mode)]


def has_mode(name, mode):
    """Whether the VIP of this name can have this mode."""
    protocol, modes = VIPS[name][1], VIPS[name][4]
    return (modes is None or mode in modes) and (mode != "proxy" or protocol == "tcp")


def config(mode, nics, vips):
    """The configuration of `mode` as nested dictionaries, with the VIPs of these names by their name."""
    built = {
        "workers": {"cores": [0], "idle": "sleep", "flows": 4096},
        # A small table is built quickly; the choice of a backend is not judged.
        "hash": {"table_size": 1009},
        "nic": [{"interface": name} for name in ("front", "back")[:nics]],
        "vip": {name: _vip(mode, name) for name in vips},
    }
    if mode in ("full_nat", "proxy"):
        built["full_nat"] = {"sources": ["10.0.0.48/31", "fc00::50"], "ports": "20000-29999", "announce": "none"}
    if mode in ("ipip", "gue"):
        built["tunnel"] = {"source_v4": "10.0.64.0/24", "source_v6": "fc00:64::/64"}
    return built


def _vip(mode, name):
    address, protocol, ports, family, modes = VIPS[name]
    if not has_mode(name, mode):
        raise Mistake(f"VIP {name} has no mode {mode}; it has {', '.join(modes or ['all but proxy'])}")
    addresses = BACKENDS4 if family == 4 else BACKENDS6
    vip = {"address": address, "protocol": protocol, "forward": "full_nat" if mode == "proxy" else mode}
    if ports is not None:
        vip["ports"] = ports
    # VIP and backend have different ports where the mode translates them.
    translated = mode in ("nat", "full_nat", "proxy") and isinstance(ports, list) and name != "ranges4"
    vip["health"] = {"kind": "none"}
    vip["backend"] = {backend: {"address": addresses[backend]} | ({"port": 8080} if translated else {})
                      for backend in addresses}
    if mode == "proxy":
        vip["proxy"] = "v2"
    if name == "quic4":
        vip |= {"affinity": "quic_cid", "quic": [{"rotation": 0, "server_id_bytes": 3, "nonce_bytes": 4}]}
        for backend, row in vip["backend"].items():
            row["server_id"] = SERVER_IDS[backend]
    return vip


def neighbours(nics, config):
    """The NICs and where the backends of `config` are, as nested dictionaries; neighbours by name: b1, b1v6, ..."""
    used = {backend["address"] for vip in config["vip"].values() for backend in vip["backend"].values()}
    back = ("front", "back")[nics - 1]
    rows = {}
    for name, mac in BACKEND_MACS.items():
        rows[name] = {"address": BACKENDS4[name], "mac": mac, "interface": back}
        rows[name + "v6"] = {"address": BACKENDS6[name], "mac": mac, "interface": back}
    rows = {name: row for name, row in rows.items() if row["address"] in used}
    nic = {"front": {"interface": "front", "mac": LB}, "back": {"interface": "back", "mac": LB2}}
    return {"nic": {name: nic[name] for name in ("front", "back")[:nics]}, "neighbour": rows}


def changed(tree, changes):
    """A copy of `tree` with `changes` merged in; an empty table removes a key."""
    tree = copy.deepcopy(tree)
    for key, value in changes.items():
        if value == {}:
            if key not in tree:
                raise Mistake(f"{key} = {{}}: nothing to take away; {did_you_mean(key, tree)}")
            del tree[key]
        elif isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key] = changed(tree[key], value)
        else:
            tree[key] = value
    return tree


def config_toml(built):
    """The configuration as holdfast reads it."""
    text = "".join(_section(f"[{name}]", built[name]) for name in built if name not in ("nic", "vip"))
    text += "".join(_section("[[nic]]", nic) for nic in built["nic"])
    for name, vip in built["vip"].items():
        inner = {key: value for key, value in vip.items() if key != "backend"}
        text += _section("[[vip]]", {"name": name} | inner)
        for backend, row in vip["backend"].items():
            text += _section("[[vip.backend]]", {"name": backend} | row)
    return text


def neighbours_toml(built):
    """The neighbours file as `holdfast replay` reads it."""
    rows = [("[[nic]]", row) for row in built["nic"].values()]
    rows += [("[[neighbour]]", row) for row in built["neighbour"].values()]
    return "".join(_section(*row) for row in rows)


def _section(head, table):
    return head + "\n" + "".join(f"{key} = {_value(value)}\n" for key, value in table.items()) + "\n"


def _value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
