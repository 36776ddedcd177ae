//! The lab's router: a way that carries shorter packets than the links of those who use it.

use super::{BACKENDS, Family, Lab};

impl Family {
    /// The router's address.
    pub fn router(self) -> &'static str {
        match self {
            Self::V4 => "198.18.2.254",
            Self::V6 => "2001:db8:2::fe",
        }
    }

    /// Where clients are.
    fn clients(self) -> &'static str {
        match self {
            Self::V4 => "198.18.1.0/24",
            Self::V6 => "2001:db8:1::/64",
        }
    }
}

impl Lab {
    /// Lets the balancer's packets to backends go by the router, which has `mtu` bytes for them.
    pub fn route_to_backends(&self, family: Family, mtu: u16) {
        let mtu = mtu.to_string();
        for backend in BACKENDS {
            let address = family.backend(backend);
            let route = ["ip", family.option(), "route", "replace", &address];
            self.run("lb", &[&route[..], &["via", family.router()]].concat());
            self.run("router", &[&route[..], &["dev", "eth0", "mtu", &mtu]].concat());
        }
    }

    /// Lets what backends send to clients from their VIPs go by the router, which has `mtu` bytes for it.
    /// For a lab with one segment.
    pub fn route_to_clients(&self, family: Family, mtu: u16) {
        let mtu = mtu.to_string();
        let route = ["ip", family.option(), "route", "replace", family.clients()];
        for backend in BACKENDS {
            self.run(backend, &[&route[..], &["via", family.router()]].concat());
        }
        self.run("router", &[&route[..], &["dev", "eth0", "mtu", &mtu]].concat());
    }
}
