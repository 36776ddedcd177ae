//! Tunnel parameters of the local box: outer source addresses and per-flow entropy.
//!
//! A backend's NIC spreads tunnel packets over its queues by their outer headers alone. Therefore
//! some outer field varies with the flow and is constant within it: the host bits of the outer
//! source, where that is a prefix; with GUE the UDP source port; over IPv6 the flow label. All are
//! taken from one hash, keyed by the configuration, so that a flow looks alike whichever box of a
//! fleet sends it.

use siphasher::sip::SipHasher13;

use super::affinity::Secret;
use crate::net::{
    ADDRESS_BITS, Address, FleetKey, ListenKey, Network, Protocol, SteerRules, TableSecret, Tuple,
};

/// UDP port of GUE (IANA).
pub const GUE_PORT: u16 = 6080;
/// First GUE source port: dynamic ports, on which no service listens (RFC 6335 6).
pub const GUE_SOURCE_PORTS: u16 = 0xc000;

/// Settings shared by all tunnels of the local box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnels {
    /// Sources of outer IPv4 packets.
    pub source_v4: Option<TunnelSources>,
    /// Sources of outer IPv6 packets.
    pub source_v6: Option<TunnelSources>,
    /// UDP destination port of GUE.
    pub gue_port: u16,
    /// The "don't fragment" bit of outer IPv4 packets.
    pub outer_df: OuterDf,
    /// The fleet's key, and the one before it; `None`: no backend is asked.
    pub fleet: Option<[FleetKey; 2]>,
}

impl Default for Tunnels {
    fn default() -> Self {
        let outer_df = OuterDf::default();
        Self { source_v4: None, source_v6: None, gue_port: GUE_PORT, outer_df, fleet: None }
    }
}

impl Tunnels {
    /// Outer source addresses for `destination`.
    #[inline]
    pub const fn sources(&self, destination: Address) -> Option<TunnelSources> {
        if destination.is_v4() { self.source_v4 } else { self.source_v6 }
    }

    /// UDP source and destination port of a GUE packet, for a flow hash.
    #[inline]
    pub const fn gue_ports(&self, hash: u64) -> (u16, u16) {
        let [.., p0, p1] = hash.to_be_bytes();
        (GUE_SOURCE_PORTS | u16::from_be_bytes([p0, p1]), self.gue_port)
    }

    /// Extends the rules of the XDP program: ICMP errors about tunnel packets of the local box are
    /// steered to the workers.
    #[must_use]
    pub fn steered(&self, rules: SteerRules) -> SteerRules {
        let sources = [self.source_v4, self.source_v6].into_iter().flatten();
        let tunnels = sources.map(|sources| sources.network).collect();
        let answers = self.fleet.is_some();
        SteerRules { tunnels, gue_port: self.gue_port, answers, ..rules }
    }

    /// Whether the outer source addresses overlap `network`.
    pub fn meet(&self, network: Network) -> bool {
        self.sources(network.address()).is_some_and(|sources| {
            sources.network.covers(network) || network.covers(sources.network)
        })
    }

    /// Whether packets to `key` are answers of backends that were asked.
    pub fn is_answered_at(&self, key: ListenKey) -> bool {
        let to_gue = key.protocol == Protocol::Udp && key.port == self.gue_port;
        to_gue && self.fleet.is_some() && self.is_source(key.address)
    }

    /// Whether `address` is an outer source address.
    pub fn is_source(&self, address: Address) -> bool {
        self.sources(address).is_some_and(|sources| sources.network.contains(address))
    }
}

/// The "don't fragment" bit of outer IPv4 packets. Routers never fragment IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OuterDf {
    /// Copied from the inner packet; set for inner IPv6 (RFC 2003 3.1, RFC 4213 3.2.2).
    #[default]
    Inner,
    /// Always set.
    Set,
    /// Never set: a router with a smaller MTU fragments the outer packet, and the backend
    /// reassembles it.
    Clear,
}

impl OuterDf {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inner => "inner",
            Self::Set => "set",
            Self::Clear => "clear",
        }
    }
}

/// Outer source addresses of one family: the hosts of a prefix, without its first and last address
/// where it has more than two (reserved: RFC 1812 4.2.2.11, RFC 4291 2.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelSources {
    network: Network,
    /// Number of the first host.
    first: u32,
    /// Number of hosts.
    count: u32,
}

impl TunnelSources {
    /// The hosts of a network. If it has more than 32 host bits, the low 32 are used.
    pub fn new(network: Network) -> Self {
        let hosts = 1_u64 << ADDRESS_BITS.saturating_sub(network.len()).min(32);
        let (first, count) = if hosts > 2 { (1, hosts - 2) } else { (0, hosts) };
        Self { network, first, count: u32::try_from(count).unwrap_or(u32::MAX) }
    }

    /// Source address for a flow hash.
    #[inline]
    pub const fn of(&self, hash: u64) -> Address {
        // The high half, scaled: no division, and all hosts equally likely.
        let host = self.first as u64 + (((hash >> 32) * self.count as u64) >> 32);
        let [high, low] = self.network.address().words();
        Address { high, low: low + host }
    }

    /// All addresses of the prefix.
    pub const fn network(&self) -> Network {
        self.network
    }
}

/// Flow hash for outer headers.
#[derive(Debug)]
pub struct Entropy(TableSecret);

impl Entropy {
    /// Derives the key from the configuration's secret, which the hashes do not reveal.
    pub fn new(secret: &Secret) -> Self {
        Self(TableSecret::new(SipHasher13::new_with_key(secret).hash(b"tunnel entropy")))
    }

    /// Hashes a flow. Cost: some nanoseconds.
    #[inline]
    pub fn hash(&self, flow: Tuple) -> u64 {
        self.0.hash(flow).value()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<std::net::IpAddr>().map(Address::from).unwrap_or_default()
    }

    #[test]
    fn every_host_of_a_prefix_is_a_source_but_the_first_and_the_last() {
        for (network, first, last) in [
            ("10.0.0.77", "10.0.0.77", "10.0.0.77"),
            ("10.0.0.76/31", "10.0.0.76", "10.0.0.77"),
            ("10.0.0.76/30", "10.0.0.77", "10.0.0.78"),
            ("10.0.0.64/26", "10.0.0.65", "10.0.0.126"),
            ("10.7.0.0/16", "10.7.0.1", "10.7.255.254"),
            ("fd00::7", "fd00::7", "fd00::7"),
            ("fd00::4/126", "fd00::5", "fd00::6"),
            ("fd00::/96", "fd00::1", "fd00::ffff:fffe"),
            ("fd00::/64", "fd00::1", "fd00::ffff:fffe"),
        ] {
            let sources = TunnelSources::new(network.parse().unwrap());
            assert_eq!(sources.of(0), address(first), "{network}");
            assert_eq!(sources.of(u64::MAX), address(last), "{network}");
            assert_eq!(sources.network().to_string(), network);
        }
    }

    #[test]
    fn hashes_tell_flows_and_secrets_apart() {
        let (one, other) = (Entropy::new(&[1; 16]), Entropy::new(&[2; 16]));
        let flow = Tuple::V4([1, 2]);
        assert_eq!(one.hash(flow), Entropy::new(&[1; 16]).hash(flow));
        assert_ne!(one.hash(flow), other.hash(flow));
        assert_ne!(one.hash(flow), one.hash(Tuple::V4([1, 3])));
    }
}
