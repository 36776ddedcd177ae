//! The lab's routers: a path with a smaller MTU than the links of its users, and routers between the
//! balancer and its clients.

use super::{BACKENDS, BOXES, Family, Lab};

impl Family {
    /// The router's address.
    pub fn router(self) -> &'static str {
        match self {
            Self::V4 => "198.18.2.254",
            Self::V6 => "2001:db8:2::fe",
        }
    }

    /// Address of a box of a fleet.
    fn box_of_fleet(self, name: &str) -> String {
        let number = BOXES.iter().position(|&other| other == name).unwrap() + 2;
        match self {
            Self::V4 => format!("198.18.2.{number}"),
            Self::V6 => format!("2001:db8:2::{number}"),
        }
    }

    /// Network of the clients.
    fn clients(self) -> &'static str {
        match self {
            Self::V4 => "198.18.1.0/24",
            Self::V6 => "2001:db8:1::/64",
        }
    }
}

impl Lab {
    /// Routes the balancer's packets to backends through the router, with an MTU of `mtu` bytes.
    pub fn route_to_backends(&self, family: Family, mtu: u16) {
        let mtu = mtu.to_string();
        for backend in BACKENDS {
            let address = family.backend(backend);
            let route = ["ip", family.option(), "route", "replace", &address];
            self.run("lb", &[&route[..], &["via", family.router()]].concat());
            self.run("router", &[&route[..], &["dev", "eth0", "mtu", &mtu]].concat());
        }
    }

    /// Routes the packets of backends from VIPs to clients through the router, with an MTU of `mtu`
    /// bytes. For a lab with one segment.
    pub fn route_to_clients(&self, family: Family, mtu: u16) {
        let mtu = mtu.to_string();
        let route = ["ip", family.option(), "route", "replace", family.clients()];
        for backend in BACKENDS {
            self.run(backend, &[&route[..], &["via", family.router()]].concat());
        }
        self.run("router", &[&route[..], &["dev", "eth0", "mtu", &mtu]].concat());
    }
}

/// Networks of the clients behind routers, and the client's address there.
const FAR: [(Family, &str, &str); 2] = [
    (Family::V4, "198.18.3.0/24", "198.18.3.10"),
    (Family::V6, "2001:db8:3::/64", "2001:db8:3::10"),
];
/// Networks of the VIPs, and the balancer's address on the routers' segment.
const VIPS: [(&str, &str); 2] =
    [("192.0.2.0/24", "198.18.2.2"), ("2001:db8:100::/64", "2001:db8:2::2")];

/// Address of the router with this number on the clients' side.
fn router_address(family: Family, number: usize) -> String {
    match family {
        Family::V4 => format!("198.18.3.{}", number + 1),
        Family::V6 => format!("2001:db8:3::{:x}", number + 1),
    }
}

impl Lab {
    /// Moves the client behind routers, hosts of a lab with one segment: it uses the first one. The
    /// balancer routes to the client's network by `gateways`, those of each family.
    pub fn route_clients(&self, routers: &[&str], gateways: [&str; 2]) {
        let bridge = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"];
        let add = ["ip", "link", "add", "far", "type", "bridge"];
        self.run("switch", &[&add[..], &bridge].concat());
        self.run("switch", &["ip", "link", "set", "far", "up"]);
        self.connect_far("client");
        for (number, router) in routers.iter().enumerate() {
            self.connect_far(router);
            let forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
            self.run(router, &[&["sysctl", "-q", "-w"][..], &forward].concat());
            for ((family, network, _), (vips, balancer)) in FAR.into_iter().zip(VIPS) {
                let length = network.rsplit('/').next().unwrap();
                let address = format!("{}/{length}", router_address(family, number));
                self.run(router, &["ip", "address", "add", &address, "dev", "far"]);
                let route = ["ip", family.option(), "route", "replace", vips, "via", balancer];
                self.run(router, &route);
            }
        }
        for ((family, network, address), gateway) in FAR.into_iter().zip(gateways) {
            let length = network.rsplit('/').next().unwrap();
            let address = format!("{address}/{length}");
            self.run("client", &["ip", "address", "add", &address, "dev", "far"]);
            self.run("lb", &["ip", family.option(), "route", "add", network, "via", gateway]);
        }
        self.use_router(0);
    }

    /// Makes the client send by the router with this number.
    pub fn use_router(&self, number: usize) {
        for ((family, _, address), (vips, _)) in FAR.into_iter().zip(VIPS) {
            let gateway = router_address(family, number);
            let route = ["ip", family.option(), "route", "replace", vips, "via", &gateway];
            self.run("client", &[&route[..], &["src", address]].concat());
        }
    }

    /// Makes the router of a fleet send packets for VIPs to a box.
    pub fn route_vips_to(&self, balancer: &str) {
        for (family, (vips, _)) in Family::ALL.into_iter().zip(VIPS) {
            let gateway = family.box_of_fleet(balancer);
            self.run("router", &["ip", family.option(), "route", "replace", vips, "via", &gateway]);
        }
    }

    /// Reduces the MTU between the router of a fleet and the clients. The router sends what it says
    /// itself, ICMP errors to VIPs, to this box.
    pub fn report_path_mtu_to(&self, balancer: &str, mtu: u16) {
        let unlimited = ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"];
        self.run("router", &[&["sysctl", "-q", "-w"][..], &unlimited].concat());
        let mtu = mtu.to_string();
        for (family, (vips, _)) in Family::ALL.into_iter().zip(VIPS) {
            let (option, gateway) = (family.option(), family.box_of_fleet(balancer));
            let route = ["ip", option, "route", "add", vips, "via", &gateway, "table", "200"];
            self.run("router", &route);
            let rule = ["ip", option, "rule", "add", "iif", "lo", "to", vips, "lookup", "200"];
            self.run("router", &rule);
            // The metric of the route that the address has made.
            let metric = if family == Family::V4 { "0" } else { "256" };
            let route = ["ip", option, "route", "replace", family.clients(), "dev", "front"];
            self.run("router", &[&route[..], &["metric", metric, "mtu", &mtu]].concat());
        }
    }

    /// Connects a host to the clients' segment, as `scripts/lab` connects hosts.
    fn connect_far(&self, host: &str) {
        let port = format!("{host}-far");
        let (inside, switch) = (self.namespace(host), self.namespace("switch"));
        let add = ["ip", "link", "add", "far", "netns", &inside, "type", "veth"];
        self.run("switch", &[&add[..], &["peer", "name", &port, "netns", &switch]].concat());
        self.run(host, &["ethtool", "-K", "far", "tx", "off"]);
        self.run("switch", &["ip", "link", "set", &port, "master", "far", "up"]);
        self.run(host, &["ip", "link", "set", "far", "up"]);
    }
}
