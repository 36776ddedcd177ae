//! Simulated clients: number of flows of each, and their addresses.
//!
//! The k-th busiest client opens flows in proportion to `k^-exponent` (Zipf). Some clients are
//! behind gateways: many clients, one address. 16 sources share a network (a /24, or a /56), so
//! that prefix affinity has an effect.

use crate::forwarding::VipSpec;
use crate::generator::draw::{Distribution, Draw, mix};
use crate::net::{Address, Family, FlowKey, PortRange, Protocol};

/// First port of a client; lower ports are not for clients.
const FIRST_PORT: u16 = 1024;
/// Client ports of one address.
const PORTS: u32 = 65_536 - FIRST_PORT as u32;
/// Addresses of a source, used in turn as its ports run out; then it starts over.
const ADDRESSES: u32 = 16;
/// Sources per network.
const SOURCES: u32 = 16;
/// Bits of a network number.
const NETWORK_BITS: u32 = 20;

/// Number and properties of the clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clients {
    /// Number of clients, at least 1.
    pub count: u32,
    /// Exponent of Zipf's law; 0: all clients are equally busy.
    pub exponent: f64,
    /// Share of the clients that are behind gateways, 0 to 1.
    pub gateway_share: f64,
    /// Clients per gateway on average, at least 1.
    pub per_gateway: u32,
}

impl Default for Clients {
    fn default() -> Self {
        Self { count: 100_000, exponent: 1.0, gateway_share: 0.2, per_gateway: 50 }
    }
}

/// Clients of one VIP.
#[derive(Debug)]
pub struct Population {
    /// Draws the client that opens the next flow.
    draw: Draw,
    /// Source number of each client: its own, or its gateway's.
    sources: Vec<u32>,
    /// Flows that each source has opened.
    opened: Vec<u32>,
    vip: Address,
    protocol: Protocol,
    ports: Vec<u16>,
    flows: u64,
}

impl Population {
    /// Creates the clients of `vip`, in its address family.
    pub fn new(clients: &Clients, vip: &VipSpec, seed: u64) -> Self {
        let sources = sources(clients, seed);
        let count = sources.iter().max().map_or(0, |last| *last as usize + 1);
        let kind = Distribution::Zipf { exponent: clients.exponent };
        // A range or all ports are represented by one port.
        let ports = vip.ports.ranges().iter().map(|range| match *range {
            _ if vip.protocol == Protocol::Any => 0,
            PortRange::ALL => 443,
            range => range.first,
        });
        Self {
            draw: Draw::new(kind, clients.count, 0, 1, seed),
            sources,
            opened: vec![0; count],
            vip: vip.address.address(),
            protocol: vip.protocol,
            ports: ports.collect(),
            flows: 0,
        }
    }

    /// Opens the next flow.
    pub fn open(&mut self) -> FlowKey {
        let client = self.draw.draw();
        let source = self.sources.get(client as usize).copied().unwrap_or(client);
        let number = self.opened.get_mut(source as usize).map_or(0, |opened| {
            *opened = opened.wrapping_add(1);
            *opened - 1
        });
        self.flows = self.flows.wrapping_add(1);
        let port = usize::try_from(mix(self.flows) % self.ports.len().max(1) as u64).unwrap_or(0);
        FlowKey {
            client: address(source, number / PORTS, self.vip.family()),
            vip: self.vip,
            client_port: match self.protocol {
                Protocol::Any => 0,
                _ => FIRST_PORT.saturating_add(u16::try_from(number % PORTS).unwrap_or(0)),
            },
            vip_port: self.ports.get(port).copied().unwrap_or(443),
            protocol: self.protocol,
        }
    }
}

/// Returns the source of each client; gateways have the first numbers.
fn sources(clients: &Clients, seed: u64) -> Vec<u32> {
    let behind = f64::from(clients.count) * clients.gateway_share.clamp(0.0, 1.0);
    #[expect(clippy::cast_possible_truncation, reason = "at most the number of clients")]
    #[expect(clippy::cast_sign_loss, reason = "at least 0")]
    let gateways = (behind / f64::from(clients.per_gateway.max(1))).ceil() as u32;
    let source = |client: u32| {
        let [random, which] = halves(mix(seed ^ mix(u64::from(client) + 1)));
        let is_behind = f64::from(random) < clients.gateway_share * 4_294_967_296.0;
        which.checked_rem(gateways).filter(|_| is_behind).unwrap_or(gateways + client)
    };
    (0..clients.count).map(source).collect()
}

fn halves(bits: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bits.to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

/// Returns an address of a source: 16.0.0.0/4, or 2001:db8::/32. No packet is ever sent to it.
fn address(source: u32, which: u32, family: Family) -> Address {
    // Scattered: adjacent numbers are not adjacent networks.
    let network = (source / SOURCES).wrapping_mul(0x9_e375) & ((1 << NETWORK_BITS) - 1);
    let host = source % SOURCES * ADDRESSES + which % ADDRESSES;
    if family.is_v4() {
        return Address::from_v4((0x1000_0000 | network << 8 | host).to_be_bytes());
    }
    let high = 0x2001_0db8_u128 << 96 | u128::from(network) << 72;
    Address::from_v6((high | (u128::from(host) + 1)).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::table::testing::spec;
    use hashbrown::{HashMap, HashSet};

    fn keys(clients: &Clients, count: usize) -> Vec<FlowKey> {
        let mut population = Population::new(clients, &spec(0), 5);
        (0..count).map(|_| population.open()).collect()
    }

    fn by_address(keys: &[FlowKey]) -> HashMap<Address, usize> {
        let mut counts = HashMap::new();
        keys.iter().for_each(|key| *counts.entry(key.client).or_insert(0) += 1);
        counts
    }

    #[test]
    fn no_two_flows_are_the_same() {
        let few = Clients { count: 3, ..Clients::default() };
        for clients in [few, Clients::default()] {
            let keys = keys(&clients, 200_000);
            assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
            assert!(keys.iter().all(|key| key.client_port >= FIRST_PORT && key.vip_port == 80));
        }
    }

    #[test]
    fn one_gateway_is_one_address() {
        let clients =
            Clients { count: 50, gateway_share: 1.0, per_gateway: 50, ..Clients::default() };
        assert_eq!(by_address(&keys(&clients, 10_000)).len(), 1);
        let alone = Clients { gateway_share: 0.0, ..clients };
        assert_eq!(by_address(&keys(&alone, 10_000)).len(), 50);
    }

    #[test]
    fn the_busiest_client_has_its_share() {
        let clients = Clients { count: 1000, gateway_share: 0.0, ..Clients::default() };
        let counts = by_address(&keys(&clients, 100_000));
        let most = counts.values().max().copied().unwrap_or(0);
        // 1 / (1 + 1/2 + ... + 1/1000) = 0.1336.
        assert!((13_000..13_720).contains(&most), "{most}");
    }

    #[test]
    fn addresses_of_both_families_share_networks() {
        for (family, prefix) in [(Family::V4, 8), (Family::V6, 72)] {
            let all: HashSet<_> = (0..100_000).map(|source| address(source, 0, family)).collect();
            assert_eq!(all.len(), 100_000);
            let network = |address: &Address| u128::from_be_bytes(address.octets()) >> prefix;
            let networks: HashSet<u128> = all.iter().map(network).collect();
            assert_eq!(networks.len(), 100_000 / 16);
        }
    }
}
