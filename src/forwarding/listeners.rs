//! VIP look-up: by address and port, by prefix, by range of ports, by protocol.
//!
//! ```text
//! (address, port, protocol)  --one hash look-up-->  nearly every packet
//!       | no match
//!       v for each length of a prefix, the longest first: one hash look-up
//! area of the prefix: the port, else a range with it, else all ports, else any protocol
//! ```

use hashbrown::{HashMap, HashSet};

use crate::net::{Address, Listen, ListenKey, Network, PortRange, Protocol, VipId, exact};

/// Maximum number of prefix lengths of VIPs of one address family: each costs a hash look-up for a
/// packet without an exact match of address and port.
pub const MAX_PREFIX_LENGTHS: usize = 16;

/// The listeners of a forwarding table.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    /// Listeners on a single address and port.
    exact: HashMap<ListenKey, VipId>,
    /// All other listeners, by prefix.
    areas: HashMap<Network, Area>,
    lens: Lens,
    /// All addresses and prefixes.
    networks: HashSet<Network>,
    all_lens: Lens,
}

/// Prefix lengths, longest first.
#[derive(Debug, Default)]
struct Lens {
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl Lens {
    fn add(&mut self, network: Network) {
        let lens = if network.is_v4() { &mut self.v4 } else { &mut self.v6 };
        if !lens.contains(&network.len()) {
            lens.push(network.len());
            lens.sort_unstable_by(|a, b| b.cmp(a));
        }
    }

    /// Prefixes that may contain an address.
    #[inline]
    fn networks(&self, address: Address) -> impl Iterator<Item = Network> {
        let lens = if address.is_v4() { &self.v4 } else { &self.v6 };
        lens.iter().map(move |&len| Network::of(address, len))
    }
}

/// Listeners on the addresses of a prefix.
#[derive(Debug, Default)]
struct Area {
    tcp: Ports,
    udp: Ports,
    any: Option<VipId>,
}

/// Listeners on the ports of one protocol.
#[derive(Debug, Default)]
struct Ports {
    /// Sorted, like the ranges; the entries of each list are disjoint.
    single: Vec<(PortRange, VipId)>,
    ranges: Vec<(PortRange, VipId)>,
    all: Option<VipId>,
}

impl Ports {
    fn add(&mut self, ports: PortRange, vip: VipId) {
        if ports == PortRange::ALL {
            self.all = Some(vip);
            return;
        }
        let list = if ports.is_single() { &mut self.single } else { &mut self.ranges };
        let at = list.partition_point(|(other, _)| other < &ports);
        list.insert(at, (ports, vip));
    }

    #[inline]
    fn find(&self, port: u16) -> Option<VipId> {
        let single = || find(&self.single, port);
        single().or_else(|| find(&self.ranges, port)).or(self.all)
    }
}

/// VIP of the range that contains the port.
#[inline]
fn find(ranges: &[(PortRange, VipId)], port: u16) -> Option<VipId> {
    let after = ranges.partition_point(|(range, _)| range.first <= port);
    let (range, vip) = ranges.get(after.checked_sub(1)?)?;
    range.contains(port).then_some(*vip)
}

impl Area {
    #[inline]
    fn find(&self, port: u16, protocol: Protocol) -> Option<VipId> {
        let by_port = match protocol {
            Protocol::Tcp => self.tcp.find(port),
            Protocol::Udp => self.udp.find(port),
            Protocol::Any => None,
        };
        by_port.or(self.any)
    }
}

impl Listeners {
    /// Adds a listener; of two with the same address, ports and protocol, the later wins (`check`
    /// refuses such a configuration).
    pub(super) fn add(&mut self, listen: Listen, vip: VipId) {
        let Listen { network, protocol, ports } = listen;
        if self.networks.insert(network) {
            self.all_lens.add(network);
        }
        if let Some(key) = exact(listen).filter(|key| key.port != 0) {
            self.exact.insert(key, vip);
            return;
        }
        self.lens.add(network);
        let area = self.areas.entry(network).or_default();
        match protocol {
            Protocol::Tcp => area.tcp.add(ports, vip),
            Protocol::Udp => area.udp.add(ports, vip),
            Protocol::Any => area.any = Some(vip),
        }
    }

    /// The VIP that listens on `key` (its port is 0 only with [`Protocol::Any`]).
    ///
    /// Cost: a hash look-up; without an exact match, another for each prefix length that has
    /// listeners ([`MAX_PREFIX_LENGTHS`]), with two binary searches for each prefix that matches.
    #[inline]
    pub(super) fn find(&self, key: ListenKey) -> Option<VipId> {
        self.exact.get(&key).copied().or_else(|| {
            let mut networks = self.lens.networks(key.address);
            networks.find_map(|network| self.areas.get(&network)?.find(key.port, key.protocol))
        })
    }

    /// Whether some VIP has the address, on any port.
    pub(super) fn have(&self, address: Address) -> bool {
        self.all_lens.networks(address).any(|network| self.networks.contains(&network))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// One row per rule: address, port, protocol, VIP.
    #[test]
    fn the_most_specific_listener_is_found() {
        use Protocol::{Any, Tcp, Udp};
        let mut listeners = Listeners::default();
        let mut add = |vip, network: &str, protocol, first, last| {
            let ports = PortRange { first, last };
            let network = network.parse().unwrap();
            listeners.add(Listen { network, protocol, ports }, VipId(vip));
        };
        add(1, "192.0.2.10", Tcp, 443, 443);
        add(2, "192.0.2.10", Tcp, 400, 499);
        add(3, "192.0.2.10", Tcp, 0, 65_535);
        add(4, "192.0.2.10", Any, 0, 65_535);
        add(5, "192.0.2.0/24", Tcp, 80, 80);
        add(6, "192.0.2.0/24", Udp, 1, 99);
        add(6, "192.0.2.0/24", Udp, 200, 299);
        add(7, "192.0.0.0/16", Udp, 0, 65_535);
        add(8, "192.0.2.0/28", Udp, 53, 53);
        add(9, "2001:db8::/96", Any, 0, 65_535);
        add(10, "2001:db8::1", Tcp, 22, 22);
        for (name, address, port, protocol, expected) in [
            ("exact", "192.0.2.10", 443, Tcp, Some(1)),
            ("first of a range", "192.0.2.10", 400, Tcp, Some(2)),
            ("last of a range", "192.0.2.10", 499, Tcp, Some(2)),
            ("before the range", "192.0.2.10", 399, Tcp, Some(3)),
            ("after the range", "192.0.2.10", 500, Tcp, Some(3)),
            ("a longer prefix, any protocol", "192.0.2.10", 53, Udp, Some(4)),
            ("no ports", "192.0.2.10", 0, Any, Some(4)),
            ("a prefix", "192.0.2.11", 80, Tcp, Some(5)),
            ("the lowest address", "192.0.2.0", 80, Tcp, Some(5)),
            ("the highest address", "192.0.2.255", 80, Tcp, Some(5)),
            ("behind the prefix", "192.0.3.0", 80, Tcp, None),
            ("another port of the prefix", "192.0.2.11", 81, Tcp, None),
            ("the longest prefix", "192.0.2.11", 53, Udp, Some(8)),
            ("the next one", "192.0.2.11", 54, Udp, Some(6)),
            ("between two ranges: the widest", "192.0.2.11", 100, Udp, Some(7)),
            ("no L3 VIP", "192.0.2.11", 0, Any, None),
            ("IPv6", "2001:db8::2", 22, Tcp, Some(9)),
            ("IPv6, exact", "2001:db8::1", 22, Tcp, Some(10)),
            ("IPv6, beside it", "2001:db8::1", 23, Tcp, Some(9)),
            ("IPv6, behind the prefix", "2001:db8::1:0:0:0", 22, Tcp, None),
        ] {
            let address = Address::from(address.parse::<IpAddr>().unwrap());
            let found = listeners.find(ListenKey { address, port, protocol });
            assert_eq!(found, expected.map(VipId), "{name}");
        }
        let have = |text: &str| listeners.have(text.parse::<IpAddr>().unwrap().into());
        assert!(have("192.0.2.10") && have("192.0.255.1") && have("2001:db8::7"));
        assert!(!have("192.1.0.0") && !have("2001:db9::"));
    }
}
