//! Mapping of flow numbers to client addresses and ports.

use std::net::IpAddr;

use ipnet::IpNet;

/// First client port, above the well-known ones. Keep in step with generate.bpf.c.
pub const FIRST_PORT: u16 = 1024;
/// Client ports per address. Keep in step with generate.bpf.c.
pub const PORTS: u32 = 64_000;

/// Address space of the clients: the addresses of a prefix, each with [`PORTS`] ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// The first address; the others count up in its last four bytes.
    first: IpAddr,
    /// Last four bytes of the first address.
    tail: u32,
    /// Number of pairs of address and port.
    space: u32,
}

/// Source of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Last four bytes of the address.
    pub tail: u32,
    /// Source port.
    pub port: u16,
}

impl Clients {
    /// Takes all usable addresses of `net`: without the first (the network address) and, in IPv4,
    /// the last (broadcast), where there are more than two.
    pub fn new(net: IpNet) -> Self {
        let bits = u32::from(net.max_prefix_len() - net.prefix_len()).min(32);
        let all = 1_u64 << bits;
        let (skip, usable) = if all > 2 { (1, all - 2) } else { (0, all) };
        let first = skipped(net.network(), skip);
        let tail = match first {
            IpAddr::V4(ip) => u32::from(ip),
            IpAddr::V6(ip) => low_word(u128::from(ip)),
        };
        let usable = usable.min(u64::from(u32::MAX / PORTS));
        let usable = u32::try_from(usable).unwrap_or(u32::MAX / PORTS);
        Self { first, tail, space: usable * PORTS }
    }

    /// Returns the first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Returns the last four bytes of the first address.
    pub fn first_tail(&self) -> u32 {
        self.tail
    }

    /// Returns the number of flows that differ in address or port.
    pub fn space(&self) -> u32 {
        self.space
    }

    /// Returns the source of a flow. Numbers beyond [`space`](Self::space) wrap around.
    #[inline]
    pub fn source(&self, flow: u32) -> Source {
        let index = flow % self.space;
        let port = FIRST_PORT + (index % PORTS) as u16;
        Source { tail: self.tail.wrapping_add(index / PORTS), port }
    }
}

fn skipped(network: IpAddr, skip: u32) -> IpAddr {
    match network {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + skip).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + u128::from(skip)).into()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low word is what is asked for")]
const fn low_word(value: u128) -> u32 {
    value as u32
}

const _: () = assert!(FIRST_PORT as u32 + PORTS <= 65_536);

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_flow_of_the_space_has_a_source_of_its_own() {
        let clients = Clients::new("198.18.4.0/30".parse().unwrap());
        assert_eq!(clients.space(), 2 * PORTS);
        let sources: HashSet<_> = (0..clients.space())
            .map(|n| (clients.source(n).tail, clients.source(n).port))
            .collect();
        assert_eq!(sources.len(), clients.space() as usize);
        let tails: HashSet<_> = sources.iter().map(|(tail, _)| *tail).collect();
        let ip = |last| u32::from_be_bytes([198, 18, 4, last]);
        assert_eq!(tails, HashSet::from([ip(1), ip(2)]), "neither network nor broadcast");
        assert_eq!(clients.source(clients.space()), clients.source(0));
    }

    #[test]
    fn large_and_small_prefixes_stay_in_range() {
        for (net, space) in [
            ("198.18.0.7/32", PORTS),
            ("2001:db8::/64", u32::MAX / PORTS * PORTS),
            ("10.0.0.0/8", u32::MAX / PORTS * PORTS),
            ("2001:db8::1/128", PORTS),
        ] {
            assert_eq!(Clients::new(net.parse().unwrap()).space(), space, "{net}");
        }
        let clients = Clients::new("2001:db8:1::/64".parse().unwrap());
        assert_eq!(clients.first(), "2001:db8:1::1".parse::<IpAddr>().unwrap());
        assert_eq!(clients.source(PORTS + 3), Source { tail: 2, port: FIRST_PORT + 3 });
    }
}
