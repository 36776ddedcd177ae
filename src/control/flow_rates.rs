//! New flows per second of each VIP, compared with the capacity of the flow tables
//! ([`Capacity`](crate::config::capacity::Capacity)).

use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::api::FlowTableStatus;
use super::counters::{flows_active, flows_total};
use super::state::{Registry, VipEntry};
use super::view::WorkerView;
use crate::config::capacity::{Capacity, shortest_flow};
use crate::net::VipId;

/// Window in which new flows are counted.
const WINDOW: Duration = Duration::from_secs(5);
/// Percentage of a table from which it counts as nearly full: an entry is removed up to 4 s after
/// its time-out.
const NEAR: u64 = 80;

/// Counts the new flows of every VIP in successive windows.
#[derive(Debug)]
pub struct FlowRates {
    begun: Instant,
    /// Total flows of each VIP at the start of the window.
    totals: HashMap<VipId, u64>,
    /// New flows per second in the last whole window.
    rates: HashMap<VipId, f64>,
}

impl Default for FlowRates {
    fn default() -> Self {
        Self { begun: Instant::now(), totals: HashMap::new(), rates: HashMap::new() }
    }
}

impl FlowRates {
    /// Ends the window if it is over.
    pub fn advance(&mut self, registry: &Registry, workers: &[WorkerView], now: Instant) {
        let elapsed = now.saturating_duration_since(self.begun);
        if elapsed < WINDOW {
            return;
        }
        let totals: HashMap<VipId, u64> =
            registry.vips().iter().map(|vip| (vip.id, flows_total(workers, vip.id))).collect();
        let rate = |(&vip, &total): (&VipId, &u64)| {
            let before = self.totals.get(&vip)?;
            Some((vip, total.saturating_sub(*before) as f64 / elapsed.as_secs_f64()))
        };
        self.rates = totals.iter().filter_map(rate).collect();
        (self.begun, self.totals) = (now, totals);
    }

    /// Returns use and capacity of the flow tables, by family.
    pub fn flow_tables(&self, registry: &Registry, workers: &[WorkerView]) -> Vec<FlowTableStatus> {
        let room = workers.iter().map(|worker| u64::from(worker.flows.capacity())).sum();
        let capacities = Capacity::of(registry.vips().iter().map(|vip| &vip.config), room);
        capacities.into_iter().map(|capacity| self.table(&capacity, registry, workers)).collect()
    }

    fn table(
        &self,
        capacity: &Capacity,
        registry: &Registry,
        workers: &[WorkerView],
    ) -> FlowTableStatus {
        let of_family = |vip: &&VipEntry| vip.config.address.family() == capacity.family;
        let vips = registry.vips().iter().filter(of_family);
        let rate = |vip: &VipEntry| self.rates.get(&vip.id).copied().unwrap_or_default();
        // Includes the flows that reloads have left.
        let used = registry.all_vips().filter(of_family).map(|vip| pinned(vip, workers)).sum();
        let new: f64 = vips.clone().map(rate).sum();
        let taken: f64 = vips.map(|vip| rate(vip) * shortest_flow(&vip.config).as_secs_f64()).sum();
        let load_percent = whole(taken * 100.0 / (capacity.flows as f64).max(1.0));
        FlowTableStatus {
            family: if capacity.family.is_v4() { "ipv4" } else { "ipv6" }.to_owned(),
            capacity: capacity.flows,
            used,
            tcp_per_second: capacity.tcp_per_second,
            udp_per_second: capacity.udp_per_second,
            new_per_second: whole(new),
            load_percent,
            hint: hint(used * 100 / capacity.flows.max(1), load_percent),
        }
    }
}

fn pinned(vip: &VipEntry, workers: &[WorkerView]) -> u64 {
    vip.all_backends().map(|backend| flows_active(workers, backend.id.index)).sum()
}

/// Returns the remedy for a table that is nearly full, or about to be.
fn hint(used_percent: u64, load_percent: u64) -> Option<String> {
    const FIX: &str = "raise [workers] flows, or lower the time-outs of its VIPs";
    if used_percent >= NEAR {
        return Some(format!("{used_percent} % of the table is in use: {FIX}"));
    }
    let near = load_percent >= NEAR;
    near.then(|| format!("new flows come at {load_percent} % of what the table bears: {FIX}"))
}

#[expect(clippy::cast_possible_truncation, reason = "a conversion from float saturates")]
#[expect(clippy::cast_sign_loss, reason = "a conversion from float saturates")]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use std::sync::Arc;

    use super::super::state::tests::{backend, vip};
    use super::*;
    use crate::flow::table::{Families, FlowTable};
    use crate::net::TableSecret;
    use crate::stats::WorkerStats;

    /// All time-outs of the VIP are one second, and there is room for 2,000 flows.
    #[tokio::test]
    async fn the_rate_of_new_flows_is_set_against_what_the_tables_bear() {
        let mut registry = Registry::default();
        registry.apply(&[vip("web", &[backend("a", 1)])], &[], Instant::now()).unwrap();
        let workers: Vec<WorkerView> = (0..2)
            .map(|core| {
                let flows = FlowTable::new(1000, TableSecret::new(1), Families::default());
                let stats = Arc::new(WorkerStats::new(1, 1, 0));
                WorkerView { core, stats, flows: Arc::new(flows.unwrap()) }
            })
            .collect();
        let mut rates = FlowRates::default();
        let begun = Instant::now();
        rates.advance(&registry, &workers, begun + WINDOW);
        let at = |windows: u32| begun + WINDOW * windows;
        for (window, (flows, used, load, hint)) in (2..).zip([
            (0, 0, 0, None),
            (1000, 0, 10, None),
            (7900, 0, 79, None),
            (8000, 0, 80, Some("new flows come at 80 % of what the table bears")),
            (0, 1600, 0, Some("80 % of the table is in use")),
        ]) {
            for worker in &workers {
                worker.stats.vips[0].flows_total.add(flows / 2);
                let gauge = &worker.stats.backends[0].flows_active;
                gauge.add(used / 2 - gauge.get());
            }
            // Nothing changes before the window is over.
            let before = rates.flow_tables(&registry, &workers)[0].new_per_second;
            rates.advance(&registry, &workers, at(window) - Duration::from_millis(1));
            assert_eq!(rates.flow_tables(&registry, &workers)[0].new_per_second, before);
            rates.advance(&registry, &workers, at(window));
            let tables = rates.flow_tables(&registry, &workers);
            assert_eq!(tables.len(), 1, "{tables:?}");
            let table = &tables[0];
            assert_eq!((table.family.as_str(), table.capacity), ("ipv4", 2000));
            assert_eq!((table.tcp_per_second, table.udp_per_second), (Some(2000), None));
            let found = (table.new_per_second, table.used, table.load_percent);
            assert_eq!(found, (flows / 5, used, load));
            let reported = table.hint.as_deref().unwrap_or_default();
            assert!(reported.starts_with(hint.unwrap_or_default()), "{reported}");
            assert_eq!(reported.is_empty(), hint.is_none());
        }
    }
}
