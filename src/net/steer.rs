//! Rules by which the XDP program steers packets to the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use hashbrown::HashSet;

use super::{
    AccessCheck, Address, Listen, ListenKey, ListsPresent, Network, PortRange, Protocol, exact,
};

/// Single addresses and ports of VIPs that the XDP program has room for; as many of NAT backends,
/// and parts of port ranges.
pub const MAX_STEERED: usize = 65_536;

/// The rules of the XDP program; `steer.bpf.c` describes how it applies them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SteerRules {
    /// Single addresses and ports where VIPs listen; port 0 stands for every port. At most 65,536.
    pub vips: Vec<ListenKey>,
    /// Prefixes, port ranges and all protocols where VIPs listen.
    pub networks: Vec<Listen>,
    /// Sources of NAT backends' replies; port 0 stands for every port. At most 65,536.
    pub returns: Vec<ListenKey>,
    /// Sources of NAT backends' replies with port ranges; the addresses are single ones.
    pub return_ranges: Vec<Listen>,
    /// Full-NAT sources, to which replies come: TCP and UDP, and ICMP errors.
    pub sources: Vec<(Network, PortRange)>,
    /// Tunnel sources: ICMP errors about packets that are IPIP, or UDP to [`Self::gue_port`].
    pub tunnels: Vec<Network>,
    /// Destination port of local GUE packets; 0: none are sent.
    pub gue_port: u16,
    /// Whether GUE packets to tunnel sources are for the workers: answers of backends.
    pub answers: bool,
    /// Local addresses: packets to them that match no VIP stay in the kernel. At most 4,096.
    pub locals: Vec<Address>,
    /// Deny and allow lists of all VIPs.
    pub global_lists: ListsPresent,
    /// Lists of each listener; empty as long as there are no lists at all.
    pub checks: Vec<AccessCheck>,
}

impl SteerRules {
    /// Returns the rules for packets that both `self` and `other` steer to the workers; of a port
    /// range that grows, the ports of the smaller one. A reload installs them in between, so that
    /// rules are removed before the table that served them, and added after the table that will,
    /// while packets that both steer are not interrupted.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        fn common<T: Copy + Eq + Hash>(left: &[T], right: &[T]) -> Vec<T> {
            let right: HashSet<&T> = right.iter().collect();
            left.iter().filter(|item| right.contains(item)).copied().collect()
        }
        let (vips, networks) = meet((&self.vips, &self.networks), (&other.vips, &other.networks));
        let (returns, return_ranges) =
            meet((&self.returns, &self.return_ranges), (&other.returns, &other.return_ranges));
        Self {
            vips,
            networks,
            returns,
            return_ranges,
            sources: common(&self.sources, &other.sources),
            tunnels: common(&self.tunnels, &other.tunnels),
            gue_port: if self.gue_port == other.gue_port { self.gue_port } else { 0 },
            answers: self.answers && other.answers,
            locals: common(&self.locals, &other.locals),
            // Lists apply whatever is in the maps, so those of the future rules may.
            global_lists: other.global_lists,
            checks: other.checks.clone(),
        }
    }
}

/// Single addresses and ports, and all other listeners.
type Listening<'l> = (&'l [ListenKey], &'l [Listen]);

/// Returns the listeners that are in both.
fn meet(left: Listening<'_>, right: Listening<'_>) -> (Vec<ListenKey>, Vec<Listen>) {
    let (left, right) = (ByNetwork::new(left), ByNetwork::new(right));
    let all: BTreeSet<Listen> =
        left.within(&right).into_iter().chain(right.within(&left)).collect();
    let (single, rest): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|&listen| exact(listen).is_some());
    (single.into_iter().filter_map(exact).collect(), rest)
}

/// Listeners by network and protocol.
#[derive(Default)]
struct ByNetwork {
    ports: BTreeMap<(Network, Protocol), PortSet>,
    /// Lengths of the networks.
    lens: BTreeSet<u8>,
}

/// Single ports, and ranges, in order. No two ranges of VIPs in force have a port in common.
#[derive(Default)]
struct PortSet {
    single: BTreeSet<u16>,
    ranges: BTreeMap<u16, PortRange>,
    all: bool,
}

impl PortSet {
    fn add(&mut self, ports: PortRange) {
        if ports == PortRange::ALL {
            self.all = true;
        } else if ports.is_single() {
            self.single.insert(ports.first);
        } else {
            // A part that a VIP has lost may begin where another range does.
            let longest = self.ranges.entry(ports.first).or_insert(ports);
            longest.last = longest.last.max(ports.last);
        }
    }

    fn iter(&self) -> impl Iterator<Item = PortRange> {
        let single = self.single.iter().copied().map(PortRange::single);
        single.chain(self.ranges.values().copied()).chain(self.all.then_some(PortRange::ALL))
    }

    /// Returns the ports of a range that are in the set, as ranges.
    fn meet(&self, ports: PortRange) -> Vec<PortRange> {
        if self.all {
            return vec![ports];
        }
        let single = self.single.range(ports.first..=ports.last).copied().map(PortRange::single);
        let ranges = self.ranges.range(..=ports.last).rev().map(|(_, range)| *range);
        let ranges = ranges.take_while(|range| range.last >= ports.first).map(|range| PortRange {
            first: range.first.max(ports.first),
            last: range.last.min(ports.last),
        });
        ranges.chain(single).collect()
    }
}

impl ByNetwork {
    fn new((single, rest): Listening<'_>) -> Self {
        let mut places = Self::default();
        for &ListenKey { address, port, protocol } in single {
            let ports = if port == 0 { PortRange::ALL } else { PortRange::single(port) };
            places.add(Listen { network: Network::single(address), protocol, ports });
        }
        rest.iter().for_each(|listen| places.add(*listen));
        places
    }

    fn add(&mut self, Listen { network, protocol, ports }: Listen) {
        self.lens.insert(network.len());
        self.ports.entry((network, protocol)).or_default().add(ports);
    }

    /// Returns the listeners that are also in a network of `others` that is as wide or wider.
    ///
    /// Cost: some look-ups per network of `self` and prefix length of `others`.
    fn within(&self, others: &Self) -> Vec<Listen> {
        let mut found = Vec::new();
        for (&(network, protocol), ports) in &self.ports {
            for &len in others.lens.iter().take_while(|&&len| len <= network.len()) {
                for other in [Protocol::Any, Protocol::Tcp, Protocol::Udp] {
                    let there = others.ports.get(&(Network::of(network.address(), len), other));
                    let (Some(there), Some(protocol)) = (there, narrower(protocol, other)) else {
                        continue;
                    };
                    let ports = ports.iter().flat_map(|range| there.meet(range));
                    found.extend(ports.map(|ports| Listen { network, protocol, ports }));
                }
            }
        }
        found
    }
}

/// Returns the protocol of packets that match both.
fn narrower(one: Protocol, other: Protocol) -> Option<Protocol> {
    match (one, other) {
        (Protocol::Any, protocol) | (protocol, Protocol::Any) => Some(protocol),
        _ => (one == other).then_some(one),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn rules(listening: &[(&str, Protocol, u16, u16)]) -> SteerRules {
        let mut rules = SteerRules::default();
        for &(network, protocol, first, last) in listening {
            let network = network.parse().unwrap();
            let listen = Listen { network, protocol, ports: PortRange { first, last } };
            match exact(listen) {
                Some(key) => rules.vips.push(key),
                None => rules.networks.push(listen),
            }
        }
        rules
    }

    fn texts(rules: &SteerRules) -> Vec<String> {
        let text = |network: Network, protocol, ports| format!("{network} {protocol:?} {ports}");
        let vips = rules.vips.iter().map(|key| {
            let ports = if key.port == 0 { PortRange::ALL } else { key.port.into() };
            text(Network::single(key.address), key.protocol, ports)
        });
        let networks = rules.networks.iter().map(|l| text(l.network, l.protocol, l.ports));
        let mut all: Vec<String> = vips.chain(networks).collect();
        all.sort();
        all
    }

    /// One row per way in which listeners may change; packets that both sets steer are steered
    /// throughout.
    #[test]
    fn the_intersection_keeps_all_that_both_steer() {
        use Protocol::{Any, Tcp, Udp};
        const MOST: u16 = u16::MAX;
        let (host, net, wide) = ("192.0.2.10", "192.0.2.0/24", "192.0.0.0/16");
        for (name, old, new, expected) in [
            ("the same", (net, Tcp, 80, 90), (net, Tcp, 80, 90), Some("192.0.2.0/24 Tcp 80-90")),
            (
                "a longer range",
                (host, Tcp, 80, 90),
                (host, Tcp, 70, 99),
                Some("192.0.2.10 Tcp 80-90"),
            ),
            ("a part", (host, Tcp, 80, 90), (host, Tcp, 85, 99), Some("192.0.2.10 Tcp 85-90")),
            (
                "one port in common",
                (host, Tcp, 80, 90),
                (host, Tcp, 90, 99),
                Some("192.0.2.10 Tcp 90"),
            ),
            ("none", (host, Tcp, 80, 90), (host, Tcp, 91, 99), None),
            (
                "a port, all ports",
                (host, Udp, 53, 53),
                (host, Udp, 0, MOST),
                Some("192.0.2.10 Udp 53"),
            ),
            ("a port, a range", (host, Udp, 53, 53), (host, Udp, 1, 99), Some("192.0.2.10 Udp 53")),
            (
                "all ports",
                (host, Udp, 0, MOST),
                (host, Udp, 0, MOST),
                Some("192.0.2.10 Udp 0-65535"),
            ),
            (
                "a wider prefix",
                (net, Tcp, 80, 80),
                (wide, Tcp, 80, 80),
                Some("192.0.2.0/24 Tcp 80"),
            ),
            (
                "an address, a prefix",
                (host, Tcp, 80, 80),
                (net, Tcp, 0, MOST),
                Some("192.0.2.10 Tcp 80"),
            ),
            (
                "all protocols, one",
                (net, Any, 0, MOST),
                (net, Tcp, 80, 80),
                Some("192.0.2.0/24 Tcp 80"),
            ),
            (
                "all of both",
                (host, Any, 0, MOST),
                (net, Any, 0, MOST),
                Some("192.0.2.10 Any 0-65535"),
            ),
            ("another protocol", (host, Udp, 53, 53), (host, Tcp, 53, 53), None),
            ("another prefix", ("192.0.3.0/24", Tcp, 80, 80), (net, Tcp, 80, 80), None),
        ] {
            let (old, new) = (rules(&[old]), rules(&[new]));
            let expected: Vec<&str> = expected.into_iter().collect();
            assert_eq!(texts(&old.intersection(&new)), expected, "{name}");
            assert_eq!(texts(&new.intersection(&old)), expected, "{name}, backwards");
        }
    }

    #[test]
    fn all_that_two_have_in_common_is_found() {
        let old = rules(&[
            ("192.0.2.10", Protocol::Tcp, 443, 443),
            ("192.0.2.10", Protocol::Tcp, 400, 499),
            ("192.0.2.0/24", Protocol::Tcp, 0, u16::MAX),
        ]);
        let new =
            rules(&[("192.0.2.10", Protocol::Tcp, 80, 80), ("192.0.2.10", Protocol::Tcp, 1, 450)]);
        let expected = [
            "192.0.2.10 Tcp 1-450",
            "192.0.2.10 Tcp 400-450",
            "192.0.2.10 Tcp 443",
            "192.0.2.10 Tcp 80",
        ];
        assert_eq!(texts(&old.intersection(&new)), expected);
        // A part that the first VIP has lost begins where the range of the other begins.
        let vip = |first, last| ("192.0.2.10", Protocol::Tcp, first, last);
        let old = rules(&[vip(2000, 2499), vip(1000, 1999)]);
        let new = rules(&[vip(1500, 2499), vip(1000, 1499), vip(1500, 1999)]);
        let ports: Vec<u16> =
            (1000..2500).filter(|port| gives(&old.intersection(&new), *port)).collect();
        assert_eq!(ports, (1000..2500).collect::<Vec<_>>(), "what stays is not interrupted");
    }

    /// Returns whether the packets to a port of 192.0.2.10 are steered to the workers.
    fn gives(rules: &SteerRules, port: u16) -> bool {
        let address = Address::from_v4([192, 0, 2, 10]);
        let key = ListenKey { address, port, protocol: Protocol::Tcp };
        rules.vips.contains(&key) || rules.networks.iter().any(|listen| listen.contains(key))
    }

    /// The intersection of the sources of NAT backends' replies.
    #[test]
    fn return_paths_go_on_too() {
        let address = Address::from_v4([10, 0, 0, 1]);
        let key = ListenKey { address, port: 80, protocol: Protocol::Tcp };
        let ports = PortRange { first: 1, last: 99 };
        let range = Listen { network: Network::single(address), protocol: Protocol::Tcp, ports };
        let one = SteerRules { returns: vec![key], ..SteerRules::default() };
        let many = SteerRules { return_ranges: vec![range], ..SteerRules::default() };
        assert_eq!(one.intersection(&many).returns, [key]);
        assert_eq!(many.intersection(&one).returns, [key]);
    }
}
