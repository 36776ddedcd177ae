//! Sources that are too large for one backend: their counts per window, and their splits.

use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::world::World;
use crate::control::counters;
use crate::control::events::{Journal, Kind, NewEvent};
use crate::control::split::Splitter;
use crate::control::state::{Registry, VipEntry};
use crate::forwarding::Splits;
use crate::net::VipId;

/// Time for which the new flows of a source are counted before a verdict.
const WINDOW: Duration = Duration::from_secs(2);

/// Splits of the sources of all VIPs.
pub(super) struct Splitting {
    splitter: Splitter,
    /// Start of the current window.
    begun: Instant,
    /// Number of flows of each VIP at that time.
    flows: HashMap<VipId, u64>,
}

impl Splitting {
    pub(super) fn new(now: Instant) -> Self {
        Self { splitter: Splitter::default(), begun: now, flows: HashMap::new() }
    }

    /// Counts and splits of sources.
    pub(super) fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// Takes the workers' samples, and decides at the end of a window which sources are split.
    pub(super) fn advance(&mut self, world: &mut World, now: Instant) {
        let World { registry, workers, publisher, journal, dirty, .. } = world;
        let samples = workers.iter().flat_map(|worker| worker.stats.samples.take());
        samples.for_each(|sample| self.splitter.observe(sample));
        let elapsed = now.saturating_duration_since(self.begun);
        if elapsed < WINDOW {
            return;
        }
        let table = publisher.current();
        let before = std::mem::take(&mut self.flows);
        self.begun = now;
        for vip in registry.vips_mut() {
            let Some(settings) = vip.split().copied() else { continue };
            let total = counters::flows_or_datagrams(workers, vip.id, vip.config.policy.pin);
            let before = before.get(&vip.id).copied().unwrap_or(total);
            self.flows.insert(vip.id, total);
            #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
            let rate = total.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            let Some(known) = table.vip(vip.id) else { continue };
            if let Some(splits) = self.splitter.judge(known, &table, &settings, rate) {
                notify(journal, &vip.config.name, &vip.splits, &splits);
                vip.splits = splits;
                *dirty = true;
            }
        }
        let counted = &self.flows;
        self.splitter.retain(|vip| counted.contains_key(&vip));
    }

    /// Removes the VIPs that lost their splits in a reload, so that these do not come back from
    /// here.
    pub(super) fn retain(&mut self, registry: &Registry) {
        let split = |vip: &VipEntry| vip.splits != Splits::default();
        let vips = registry.vips();
        self.splitter.retain(|id| vips.iter().any(|vip| vip.id == id && split(vip)));
    }
}

/// Reports the sources that are split from now on, and those that no longer are.
fn notify(journal: &mut Journal, vip: &str, old: &Splits, new: &Splits) {
    for (source, bits) in new.iter().filter(|(source, bits)| old.bits(*source) != *bits) {
        let parts = 1_u32 << bits;
        let text = format!("VIP {vip}: new flows of {source} are spread as {parts} parts by port");
        journal.record(NewEvent::of_vip(Kind::Split, vip).with("parts", parts.into()), text);
    }
    for (source, _) in old.iter().filter(|(source, _)| new.bits(*source) == 0) {
        let text = format!("VIP {vip}: {source} is one client again");
        journal.record(NewEvent::of_vip(Kind::Unsplit, vip), text);
    }
}
