//! The lab's router: a path with a smaller MTU than the links of its users.

use super::{BACKENDS, Family, Lab};

impl Family {
    /// The router's address.
    pub fn router(self) -> &'static str {
        match self {
            Self::V4 => "198.18.2.254",
            Self::V6 => "2001:db8:2::fe",
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
