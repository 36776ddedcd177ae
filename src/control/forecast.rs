//! Progress of drains, read from the flow tables on a blocking thread while any backend drains.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use hashbrown::HashMap;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::drain::Forecast;
use super::estimate::{Ages, ends_in};
use super::pins::Pins;
use super::state::Registry;
use super::view::{Clock, WorkerView};
use crate::forwarding::Service;
use crate::net::{BackendId, VipId};
use crate::stats::SPANS;
use crate::units::Ticks;

/// Least time between two scans. It grows with their duration, so that scans take no more than a
/// tenth of a core.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_PER_LOOK: u32 = 9;

/// Ages of the flows of draining backends, and of their VIPs.
#[derive(Debug, Default)]
struct Look {
    vips: HashMap<VipId, Ages>,
    backends: HashMap<BackendId, Ages>,
}

/// Scans the flow tables repeatedly, while any backend drains.
pub struct Forecaster {
    tables: Vec<Arc<dyn Pins>>,
    clock: Clock,
    looking: Option<(Instant, JoinHandle<Look>)>,
    next: Instant,
}

impl Forecaster {
    /// Creates a forecaster for these flow tables and their clock.
    pub fn new(tables: Vec<Arc<dyn Pins>>, clock: Clock) -> Self {
        Self { tables, clock, looking: None, next: Instant::now() }
    }

    /// Takes the result of a finished scan, or begins another one when it is due. Never waits.
    pub fn advance(&mut self, registry: &mut Registry, workers: &[WorkerView], now: Instant) {
        match self.looking.take() {
            Some((begun, mut task)) => match (&mut task).now_or_never() {
                None => self.looking = Some((begun, task)),
                Some(found) => {
                    let took = now.saturating_duration_since(begun);
                    self.next = now + PAUSE.max(took * PAUSE_PER_LOOK);
                    // A scan cancelled by the end of the runtime has found nothing.
                    record(registry, workers, &found.unwrap_or_default(), now);
                }
            },
            None if self.next <= now => self.begin(registry, now),
            None => {}
        }
    }

    fn begin(&mut self, registry: &Registry, now: Instant) {
        let drains = registry.backends().filter(|(_, b)| b.drain.service() == Service::Draining);
        let mut look = Look::default();
        for (vip, backend) in drains {
            look.vips.insert(vip.id, Ages::default());
            look.backends.insert(backend.id, Ages::default());
        }
        if look.backends.is_empty() {
            return;
        }
        let (tables, clock) = (self.tables.clone(), Arc::clone(&self.clock));
        let task = tokio::task::spawn_blocking(move || see(look, &tables, &clock));
        self.looking = Some((now, task));
    }
}

/// Reads every entry of every table that was ever used.
fn see(mut look: Look, tables: &[Arc<dyn Pins>], clock: &Clock) -> Look {
    let now = clock();
    for table in tables {
        for entry in (0..table.positions()).filter_map(|position| table.pin_at(position)) {
            let age = now.since(entry.pin.created);
            if let Some(ages) = look.vips.get_mut(&entry.pin.vip) {
                ages.add(age);
            }
            if let Some(ages) = look.backends.get_mut(&entry.pin.flow_state.backend()) {
                ages.add(age);
            }
        }
    }
    look
}

fn record(registry: &mut Registry, workers: &[WorkerView], found: &Look, now: Instant) {
    let mut reported = Vec::new();
    for vip in registry.vips() {
        let Some(present) = found.vips.get(&vip.id) else { continue };
        let lives = completed(workers, vip.id);
        for backend in &vip.backends {
            let Some(left) = found.backends.get(&backend.id) else { continue };
            let forecast = left.oldest().map(|oldest| Forecast {
                oldest: span(oldest),
                ends: ends_in(&lives, present, left).map(|ticks| now + span(ticks)),
            });
            reported.push((backend.id.index, forecast));
        }
    }
    for (index, forecast) in reported {
        if let Some((_, backend)) = registry.at_mut(index) {
            backend.forecast = forecast;
        }
    }
}

/// Returns the lifetimes of a VIP's ended flows by class, over all workers. (A VIP's index is
/// reused after all others, so lifetimes left by an earlier VIP of the index are not subtracted.)
fn completed(workers: &[WorkerView], vip: VipId) -> [u64; SPANS] {
    let all = workers.iter().filter_map(|worker| worker.stats.lifetimes.get(usize::from(vip.0)));
    all.fold([0; SPANS], |mut sum, lifetimes| {
        sum.iter_mut().zip(lifetimes.counts()).for_each(|(sum, count)| *sum += count);
        sum
    })
}

fn span(ticks: Ticks) -> Duration {
    Duration::from_millis(ticks.as_ms())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::flows::tests::FakeTable;
    use super::super::state::tests::{backend, vip};
    use super::*;
    use crate::flow::table::{Families, FlowTable};
    use crate::net::TableSecret;
    use crate::stats::WorkerStats;

    /// Flows 100 ticks old; the ended ones lasted for some 900.
    #[tokio::test]
    async fn a_look_tells_of_draining_backends_only() {
        let mut registry = Registry::default();
        registry
            .apply(
                &[vip("web", &[backend("a", 1), backend("b", 2)])],
                &[],
                tokio::time::Instant::now(),
            )
            .unwrap();
        registry.find_mut("web", "a").unwrap().drain.begin(None, 50, Instant::now());
        let flows = Arc::new(FlowTable::new(8, TableSecret::new(1), Families::default()).unwrap());
        let stats = Arc::new(WorkerStats::new(1, 2, 0));
        stats.lifetimes.first().unwrap().add(Ticks(900));
        let workers = [WorkerView { core: 0, stats, flows }];
        let clock: Clock = Arc::new(|| Ticks(200));
        let mut forecaster = Forecaster::new(vec![Arc::new(FakeTable(100))], clock);
        let now = Instant::now();
        while registry.find("web", "a").unwrap().1.forecast.is_none() {
            forecaster.advance(&mut registry, &workers, now);
            tokio::task::yield_now().await;
        }
        let forecast = registry.find("web", "a").unwrap().1.forecast.unwrap();
        assert_eq!(forecast.oldest, Duration::from_secs(1));
        assert!(forecast.ends.is_some_and(|ends| ends > now), "{forecast:?}");
        assert_eq!(registry.find("web", "b").unwrap().1.forecast, None);
    }
}
