//! Return hops of clients behind routers, sampled from the flow tables.
//!
//! The kernel does not see the packets of VIPs, so it does not know which routers they come
//! through. Pins do: each has the MAC, NIC and VLAN of its client's last packet. Some pins are read
//! ten times a second: all of them, as long as there are few. A router that carries a noticeable part
//! of the flows is among any few hundred, and every other one is found within one round of the tables:
//! 0.7 s with 100,000 pins, 6 s with a million.
//!
//! Clients in a network of this box are left out: they are no routers, and a packet of their own
//! corrects their return hop. So are modes without replies through this box (DSR, tunnels), and
//! VIPs without pins, whose replies follow their requests within a round trip.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::netlink::{InterfaceAddress, full_prefix};
use super::pins::Pins;
use crate::flow::entry::ConntrackEntry;
use crate::flow::shared::SharedTables;
use crate::net::{Family, NextHop, VipId};

/// Pins that are read at a time, of all tables together: 0.45 ms, so half a percent of the control
/// thread's time.
const STEP: u64 = 16_384;
/// Pins of each table and family that are read at a time, at least.
const CHUNK: u32 = 256;
/// Most steps in a round of a table: at ten a second, 205 s.
const ROUND: u32 = 2048;
/// Time for which a return hop counts as used after a pin with it was read last: longer than two
/// rounds.
const KEPT: Duration = Duration::from_secs(600);
/// Maximum number of return hops; further ones are ignored.
const MOST: usize = 64;

/// A return hop, and one of the clients behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHop {
    /// Return hop, as pins have it.
    pub hop: NextHop,
    /// Address of a client.
    pub client: IpAddr,
}

impl ClientHop {
    /// Family of the clients.
    pub const fn family(&self) -> Family {
        if self.client.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// Sampler of return hops.
pub struct ClientHops {
    tables: Vec<Arc<dyn Pins>>,
    shared: Arc<SharedTables>,
    /// Position of the last pin that was read, in each family's half of each table.
    cursors: Vec<[u32; 2]>,
    /// Return hops in use, with the time at which a pin with them was read last.
    found: Vec<(ClientHop, Instant)>,
    in_use: watch::Sender<Arc<Vec<ClientHop>>>,
}

impl ClientHops {
    /// Creates a sampler of these tables, and the list of what it finds.
    pub fn new(
        tables: Vec<Arc<dyn Pins>>,
        shared: Arc<SharedTables>,
    ) -> (Self, watch::Receiver<Arc<Vec<ClientHop>>>) {
        let (in_use, receiver) = watch::channel(Arc::default());
        let cursors = vec![[0; 2]; tables.len()];
        (Self { tables, shared, cursors, found: Vec::new(), in_use }, receiver)
    }

    /// Reads the next pins, and publishes the list if it has changed. `has_replies`: whether
    /// replies of a VIP pass this box; `addresses`: those of this box.
    pub fn advance(
        &mut self,
        has_replies: impl Fn(VipId) -> bool,
        addresses: &[InterfaceAddress],
        now: Instant,
    ) {
        let networks = networks(addresses);
        let before = self.found.len();
        self.found.retain(|(_, last)| now.saturating_duration_since(*last) < KEPT);
        let mut changed = self.found.len() != before;
        for ConntrackEntry { key, pin } in self.sample() {
            if !has_replies(pin.vip) {
                continue;
            }
            let hop = self.shared.snat_table.return_hop(&pin.flow_state);
            changed |= self.record(ClientHop { hop, client: key.client.into() }, &networks, now);
        }
        if changed {
            let hops = self.found.iter().map(|(hop, _)| *hop);
            self.in_use.send_replace(Arc::new(hops.collect()));
        }
    }

    fn sample(&mut self) -> Vec<ConntrackEntry> {
        let used: Vec<[u32; 2]> = self.tables.iter().map(|table| table.ever_used()).collect();
        let total = used.iter().flatten().map(|&used| u64::from(used)).sum::<u64>().max(1);
        let share = |used: u32| u32::try_from(STEP * u64::from(used) / total).unwrap_or(u32::MAX);
        let mut pins = Vec::new();
        for ((table, cursors), used) in self.tables.iter().zip(&mut self.cursors).zip(used) {
            let starts = [0, table.positions() / 2];
            for ((used, cursor), start) in used.into_iter().zip(cursors).zip(starts) {
                for _ in 0..used.min(CHUNK.max(share(used)).max(used / ROUND)) {
                    *cursor = if *cursor + 1 < used { *cursor + 1 } else { 0 };
                    pins.extend(table.pin_at(start + *cursor));
                }
            }
        }
        pins
    }

    /// Records a return hop in use; returns whether it is a new one.
    fn record(&mut self, seen: ClientHop, networks: &[IpNet], now: Instant) -> bool {
        let same = |hop: &ClientHop| hop.hop == seen.hop && hop.family() == seen.family();
        if let Some((_, last)) = self.found.iter_mut().find(|(hop, _)| same(hop)) {
            *last = now;
            return false;
        }
        let direct = networks.iter().any(|network| network.contains(&seen.client));
        let new = !direct && self.found.len() < MOST;
        if new {
            self.found.push((seen, now));
        }
        new
    }
}

/// Networks of this box's interfaces.
fn networks(addresses: &[InterfaceAddress]) -> Vec<IpNet> {
    let wide = addresses.iter().filter(|found| found.prefix_len < full_prefix(found.address));
    wide.filter_map(|found| IpNet::new(found.address, found.prefix_len).ok()).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use hashbrown::HashMap;

    use super::*;
    use crate::flow::entry::{Pin, State};
    use crate::flow::shared::TableSizes;
    use crate::net::{BackendId, BackendIndex, FlowKey, NicIndex, Protocol, TableSecret};
    use crate::units::Ticks;

    const HALF: u32 = 1_000_000;

    /// Pins by position.
    struct FakeTable(HashMap<u32, ConntrackEntry>);

    impl Pins for FakeTable {
        fn positions(&self) -> u32 {
            2 * HALF
        }

        fn ever_used(&self) -> [u32; 2] {
            let used = |half| self.0.keys().filter(move |&&at| (at >= HALF) == half).max();
            [used(false).map_or(0, |at| at + 1), used(true).map_or(0, |at| at + 1 - HALF)]
        }

        fn pin_at(&self, number: u32) -> Option<ConntrackEntry> {
            self.0.get(&number).copied()
        }
    }

    fn hop(last: u8) -> NextHop {
        NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, last], vlan: None }
    }

    fn entry(client: &str, vip: u16, last: u8) -> ConntrackEntry {
        let client: IpAddr = client.parse().unwrap();
        let key = FlowKey {
            client: client.into(),
            vip: client.into(),
            client_port: 1,
            vip_port: 80,
            protocol: Protocol::Tcp,
        };
        let backend = BackendId { index: BackendIndex(0), generation: 0 };
        let pin = Pin::new(VipId(vip), backend, State::ESTABLISHED, 0, &hop(last), Ticks(0));
        ConntrackEntry { key, pin }
    }

    fn sampler(
        pins: &[(u32, ConntrackEntry)],
    ) -> (ClientHops, watch::Receiver<Arc<Vec<ClientHop>>>) {
        let secret = TableSecret::new(1);
        let shared = SharedTables::new(Vec::new().into(), &secret, TableSizes::default());
        let table = Arc::new(FakeTable(pins.iter().copied().collect()));
        ClientHops::new(vec![table], shared.unwrap())
    }

    #[test]
    fn hops_of_clients_behind_routers_are_found() {
        let own = |text: &str, prefix_len| {
            let address = text.parse().unwrap();
            InterfaceAddress { ifindex: 1, address, prefix_len, ours: false }
        };
        let addresses = [own("198.51.100.1", 24), own("203.0.113.1", 32)];
        let pins = [
            (0, entry("203.0.113.9", 0, 1)),
            (1, entry("203.0.113.10", 0, 1)),
            (2, entry("198.51.100.9", 0, 2)),
            (3, entry("203.0.113.9", 1, 3)),
            (4, entry("203.0.113.1", 0, 4)),
            (HALF, entry("2001:db8::9", 0, 1)),
        ];
        let (mut hops, found) = sampler(&pins);
        let now = Instant::now();
        hops.advance(|vip| vip == VipId(0), &addresses, now);
        let mut known: Vec<_> =
            found.borrow().iter().map(|used| (used.family().is_v4(), used.hop)).collect();
        known.sort_by_key(|(v4, hop)| (*v4, hop.mac));
        // Neither the direct client's hop nor that of a VIP without replies.
        assert_eq!(known, [(false, hop(1)), (true, hop(1)), (true, hop(4))]);
        // They are forgotten when no pin has them any longer.
        let empty: Arc<dyn Pins> = Arc::new(FakeTable(HashMap::new()));
        hops.tables = vec![empty];
        hops.advance(|_| true, &addresses, now + KEPT - Duration::from_millis(1));
        assert_eq!(found.borrow().len(), 3);
        hops.advance(|_| true, &addresses, now + KEPT);
        assert!(found.borrow().is_empty());
    }

    #[test]
    fn a_round_reads_every_pin_and_the_list_is_bounded() {
        let pins: Vec<_> = (0..100_000_u32)
            .step_by(1_000)
            .zip(0..)
            .map(|(at, last)| (at, entry("203.0.113.9", 0, last)))
            .collect();
        let (mut hops, found) = sampler(&pins);
        let round = 100_000 / STEP + 1;
        for _ in 0..round {
            hops.advance(|_| true, &[], Instant::now());
        }
        assert_eq!(found.borrow().len(), MOST);
    }
}
