//! The registry as it outlives the process: the indices to which pins refer, and the drains in
//! progress.
//!
//! A restart is a reload whose old configuration is the saved one: VIPs and backends keep their
//! indices by identity, and removed ones are treated by `on_remove`. Points in time are
//! [`Ticks`] of the data path's clock, which goes on while no process runs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::routers::KnownRouter;
use crate::config;
use crate::forwarding::{FlowAction, Service};
use crate::net::{Listen, Network};
use crate::units::Ticks;

/// The registry of an earlier process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedRegistry {
    /// VIPs in force.
    pub vips: Vec<SavedVip>,
    /// Removed VIPs that may have flows.
    pub removed: Vec<SavedVip>,
    /// Indices of VIPs.
    pub vip_indices: SavedIndices,
    /// Indices of backends.
    pub backend_indices: SavedIndices,
    /// Routers that clients' packets came through.
    #[serde(default)]
    pub routers: Vec<KnownRouter>,
    /// Prefixes that were denied at run time. Earlier versions had none.
    #[serde(default)]
    pub denied: Vec<SavedDenied>,
}

impl SavedRegistry {
    /// Whether flows may have splices, which versions without `syn_proxy` do not know.
    pub fn is_spliced(&self) -> bool {
        self.vips.iter().chain(&self.removed).any(|vip| vip.spliced)
    }
}

/// A prefix that was denied at run time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedDenied {
    /// Index of the VIP; `None`: all VIPs.
    pub vip: Option<u16>,
    /// The prefix.
    pub prefix: Network,
    /// End of its time.
    pub until: Option<Ticks>,
}

/// A VIP of the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedVip {
    /// Index.
    pub id: u16,
    /// Configuration, without its backends.
    pub config: config::Vip,
    /// Backends, in the configuration's order.
    pub backends: Vec<SavedBackend>,
    /// Removed backends that may have flows.
    pub removed: Vec<SavedRemoval<SavedBackend>>,
    /// Previous listeners that may have flows.
    pub old: Vec<SavedRemoval<Listen>>,
    /// Whether a reload has removed the VIP.
    pub is_removed: bool,
    /// Whether flows may have splices. Earlier versions had none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spliced: bool,
}

/// A backend of the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedBackend {
    /// Index.
    pub index: u16,
    /// Generation.
    pub generation: u16,
    /// Configuration.
    pub config: config::Backend,
    /// Drain.
    pub drain: SavedDrain,
    /// Result of health checks; saved for a hand-over only, as it would be old at another start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<SavedHealth>,
}

/// Result of the health checks of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHealth {
    /// Whether it is up.
    pub up: bool,
    /// Reason of the last failure.
    pub detail: String,
}

/// A removed item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedRemoval<T> {
    /// The removed item.
    pub what: T,
    /// Action on its flows.
    pub flow_action: FlowAction,
    /// Time of the removal.
    pub since: Ticks,
    /// Flows at the time of the removal.
    pub flows: u64,
}

/// A drain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SavedDrain {
    /// Service state.
    pub service: Service,
    /// Start of the drain, and the number of flows pinned then.
    pub begun: Option<(Ticks, u64)>,
    /// Deadline.
    pub deadline: Option<Ticks>,
    /// End of the time for resets.
    pub resets_until: Option<Ticks>,
    /// Flows left at the deadline and not kept.
    pub flows_cut: u64,
    /// Whether the end of the drain was reported.
    pub reported: bool,
}

/// Indices with their generations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedIndices {
    /// Generations of the indices that were ever used.
    pub generations: Vec<u16>,
    /// Freed indices, the one that has been free for the longest time first.
    pub free: Vec<u16>,
}

/// A point in time on both clocks: translates between them.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The time on the control thread's clock.
    pub instant: Instant,
    /// The time on the data path's clock.
    pub ticks: Ticks,
}

impl Moment {
    /// Translates to the data path's clock.
    pub fn ticks_at(&self, at: Instant) -> Ticks {
        let ticks = |span: Duration| Ticks::at_ms(span.as_millis().try_into().unwrap_or(u64::MAX));
        match at.checked_duration_since(self.instant) {
            Some(ahead) => self.ticks.after(ticks(ahead)),
            None => Ticks(self.ticks.0.wrapping_sub(ticks(self.instant - at).0)),
        }
    }

    /// Translates from the data path's clock. A point before the start of the control thread's
    /// clock becomes its present.
    pub fn instant_at(&self, at: Ticks) -> Instant {
        if self.ticks.is_before(at) {
            return self.instant + at.since(self.ticks).duration();
        }
        let ago = self.ticks.since(at).duration();
        self.instant.checked_sub(ago).unwrap_or(self.instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_come_back_within_a_tick() {
        let instant = Instant::now() + Duration::from_secs(100_000);
        // The clock of ticks wraps between the points.
        let moment = Moment { instant, ticks: Ticks(5) };
        let second = Duration::from_secs(1);
        for (at, ticks) in [
            (instant, Ticks(5)),
            (instant + second, Ticks(105)),
            (instant - second, Ticks(u32::MAX - 94)),
            (instant + second * 86_400 * 30, Ticks(259_200_005)),
        ] {
            assert_eq!((moment.ticks_at(at), moment.instant_at(ticks)), (ticks, at));
        }
        let later = Moment { instant: instant + second * 7, ticks: Ticks(705) };
        assert_eq!(later.instant_at(moment.ticks_at(instant)), instant, "another process");
    }
}
