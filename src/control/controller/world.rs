//! State shared by the parts of the control loop.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use tokio::sync::watch;
use tracing::debug;

use super::saving::Saving;
use crate::config::Config;
use crate::control::counters;
use crate::control::events::{Journal, Kind, NewEvent};
use crate::control::neighbour::Snapshot;
use crate::control::pins::Pins;
use crate::control::state::Registry;
use crate::control::view::{NicView, WorkerView};
use crate::flow::shared::SharedTables;
use crate::forwarding::digest::Digests;
use crate::forwarding::publish::Publisher;
use crate::forwarding::{ForwardingTable, Local};
use crate::net::BackendIndex;
use crate::privileges::Kept;

/// State that more than one part of the control loop reads or changes.
pub(super) struct World {
    /// Configuration in force.
    pub(super) config: Config,
    /// VIPs and backends.
    pub(super) registry: Registry,
    /// Workers, in the configuration's order.
    pub(super) workers: Vec<WorkerView>,
    /// Tables that the workers share.
    pub(super) shared: Arc<SharedTables>,
    /// NICs, in the configuration's order.
    pub(super) nics: Vec<NicView>,
    /// Latest snapshot of the resolver.
    pub(super) network: Arc<Snapshot>,
    /// Addresses with next hops for the resolver to look up.
    pub(super) targets: watch::Sender<HashSet<IpAddr>>,
    /// Publisher of forwarding tables.
    pub(super) publisher: Publisher,
    /// Digests of the published table.
    pub(super) digests: Digests,
    /// Whether the forwarding table is out of date.
    pub(super) dirty: bool,
    /// Whether the announced addresses are out of date.
    pub(super) readdress: bool,
    /// Interfaces of the NICs that have no XDP program of ours: no address is announced there.
    pub(super) without_program: Vec<String>,
    /// Whether a NIC has another MAC, which is not announced yet.
    pub(super) macs_changed: bool,
    /// Events for operators.
    pub(super) journal: Journal,
    /// Saver of the registry for a later process.
    pub(super) saving: Saving,
    /// Privileges of the control thread.
    pub(super) privileges: Kept,
}

impl World {
    /// Builds a table from the current state, and publishes it. The registry is saved before: no
    /// pin refers to an index that a later process does not know.
    pub(super) fn publish(&mut self) {
        self.follow_fail_open();
        self.saving.save(&self.registry);
        let current = self.publisher.current();
        let specs = self.registry.patient_specs();
        let generation = current.generation() + 1;
        let secret = self.config.hash.secret;
        let table =
            ForwardingTable::build(generation, secret, self.local(), &specs, Some(&current))
                .recalling(Some(&current), self.saving.now());
        drop(current);
        self.digests = Digests::of(&secret, &specs);
        self.publisher.publish(table);
        self.dirty = false;
        debug!("forwarding table {generation} published");
    }

    /// Begins and ends `fail_open` where the last backend went down, or the first came up.
    fn follow_fail_open(&mut self) {
        for vip in self.registry.vips_mut() {
            let must = vip.must_fail_open();
            if vip.fails_open == must {
                continue;
            }
            vip.fails_open = must;
            let name = &vip.config.name;
            let (kind, text) = if must {
                let text = "no backend is up: packets are forwarded as if all were (fail_open)";
                (Kind::FailOpenBegun, format!("VIP {name}: {text}"))
            } else {
                (
                    Kind::FailOpenEnded,
                    format!("VIP {name}: checks decide again which backends serve"),
                )
            };
            self.journal.record(NewEvent::of_vip(kind, name), text);
        }
    }

    /// Saves the registry, if it has changed.
    pub(super) fn save(&mut self) {
        self.saving.save(&self.registry);
    }

    fn local(&self) -> Local {
        // Before the first snapshot, the MTUs of the start are used.
        let mut mtus = self.network.nic_mtus.clone();
        if mtus.is_empty() {
            mtus = self.nics.iter().map(|nic| nic.mtu).collect();
        }
        let macs = self.nics.iter().map(|nic| nic.mac).collect();
        let replaced_hops = self.network.replaced.iter().map(|replaced| replaced.hop).collect();
        Local { replaced_hops, ..self.config.local(mtus, macs) }
    }

    /// Marks table, next hops and addresses as changed after removed backends or listeners were
    /// given up.
    pub(super) fn let_go(&mut self) {
        self.targets.send_replace(self.registry.targets());
        (self.dirty, self.readdress) = (true, true);
    }

    /// Number of flows that are pinned to a backend now.
    pub(super) fn flows_active(&self, backend: BackendIndex) -> u64 {
        counters::flows_active(&self.workers, backend)
    }

    /// Flow tables of the workers.
    pub(super) fn tables(&self) -> Vec<Arc<dyn Pins>> {
        let tables = self.workers.iter().map(|worker| Arc::clone(&worker.flows) as Arc<dyn Pins>);
        tables.collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(super) mod tests {
    use super::*;
    use crate::config::Vip;
    use crate::control::reload::tests::config;
    use crate::flow::shared::TableSizes;
    use crate::flow::table::{Families, FlowTable};
    use crate::net::TableSecret;
    use crate::stats::WorkerStats;
    use tokio::time::Instant;

    /// Returns a world with these VIPs, one worker and no NIC, and its first table published.
    pub fn world(vips: Vec<Vip>) -> World {
        let secret = TableSecret::new(1);
        let flows = FlowTable::new(8, secret.clone(), Families::default()).unwrap();
        let shared = SharedTables::new(Arc::from([]), &secret, TableSizes::default()).unwrap();
        let stats = Arc::new(WorkerStats::new(8, 8, 0));
        let workers = vec![WorkerView { core: 0, stats, flows: Arc::new(flows) }];
        let mut registry = Registry::default();
        registry.apply(&vips, &workers, Instant::now()).unwrap();
        let first = ForwardingTable::build(0, [0; 16], Local::default(), &[], None);
        let mut world = World {
            config: config(vips),
            targets: watch::channel(registry.targets()).0,
            registry,
            workers,
            shared,
            nics: Vec::new(),
            network: Arc::default(),
            publisher: Publisher::new(first).0,
            digests: Digests::default(),
            dirty: true,
            readdress: false,
            without_program: Vec::new(),
            macs_changed: false,
            journal: Journal::default(),
            saving: Saving::off(),
            privileges: Kept::default(),
        };
        world.publish();
        world
    }

    /// Returns the kinds of all events.
    pub fn reported(world: &World) -> Vec<String> {
        world.journal.since(0).events.into_iter().map(|event| event.kind).collect()
    }
}
