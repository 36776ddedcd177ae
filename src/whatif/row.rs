//! Results of a simulation.

use serde::Serialize;

/// Results of one scheduler of one VIP. The document of `--json` is a list of rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the scheduler.
    pub name: &'static str,
    /// Whether the configuration has this scheduler for the VIP.
    pub configured: bool,
    /// Whether the VIP's flows keep their backends; false: each datagram is scheduled on its own.
    pub pin: bool,
    /// Flows that were live when the change took effect.
    pub flows: u64,
    /// Flows among `flows` that lost their backend. Without pins: flows that move to another
    /// backend.
    pub broken_with_conntrack: u64,
    /// Share of `flows` in `broken_with_conntrack`, 0 to 1.
    pub broken_with_conntrack_share: f64,
    /// Flows among `flows` for which another backend is chosen once pins are forgotten.
    pub broken_without_conntrack: u64,
    /// Share of `flows` in `broken_without_conntrack`, 0 to 1.
    pub broken_without_conntrack_share: f64,
    /// Flows that arrived after the change.
    pub new_flows: u64,
    /// Share of `new_flows` on another backend than without the change, 0 to 1.
    pub new_flows_moved_share: f64,
    /// Share of `new_flows` that no backend takes, 0 to 1.
    pub new_flows_dropped_share: f64,
    /// Flows per weight of the fullest backend, relative to the mean, when the change took effect;
    /// 0 if no backend takes flows.
    pub max_over_mean: f64,
    /// `max_over_mean` after the new flows.
    pub max_over_mean_after: f64,
    /// Time to build the forwarding table, in milliseconds; differs from run to run.
    pub build_ms: f64,
}

impl Row {
    /// Sets the shares, from the counts and from the numbers of new flows that moved and that were
    /// dropped.
    #[must_use]
    pub(super) fn with_shares(self, moved: u64, dropped: u64) -> Self {
        Self {
            broken_with_conntrack_share: share(self.broken_with_conntrack, self.flows),
            broken_without_conntrack_share: share(self.broken_without_conntrack, self.flows),
            new_flows_moved_share: share(moved, self.new_flows),
            new_flows_dropped_share: share(dropped, self.new_flows),
            ..self
        }
    }
}

/// Returns `part` / `all`; 0 if `all` is 0.
fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}
