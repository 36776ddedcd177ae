//! What came of a simulation.

use serde::Serialize;

/// One scheduler of one VIP. The document of `--json` is a list of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// The VIP.
    pub vip: String,
    /// The scheduler.
    pub name: &'static str,
    /// Whether the configuration has this scheduler for the VIP.
    pub configured: bool,
    /// Whether the VIP's flows keep their backends; false: each datagram is placed by itself.
    pub pin: bool,
    /// Flows that were live when the change came.
    pub flows: u64,
    /// Of these, flows whose backend is gone. Without pins: those that go elsewhere from then on.
    pub broken_with_conntrack: u64,
    /// The same, of 1.
    pub broken_with_conntrack_share: f64,
    /// Of the flows, those for which another backend is chosen once pins are forgotten.
    pub broken_without_conntrack: u64,
    /// The same, of 1.
    pub broken_without_conntrack_share: f64,
    /// Flows that came after the change.
    pub new_flows: u64,
    /// Of these, those that went elsewhere than without the change, of 1.
    pub new_flows_moved_share: f64,
    /// Of the new flows, those that no backend takes, of 1.
    pub new_flows_dropped_share: f64,
    /// Flows per weight, of the fullest backend in the mean's, when the change came; 0 if nobody
    /// takes flows.
    pub max_over_mean: f64,
    /// The same after the new flows.
    pub max_over_mean_after: f64,
    /// Time that it took to build the forwarding table, ms; differs from run to run.
    pub build_ms: f64,
}

impl Row {
    /// With the shares that follow from the counts, and from the numbers of new flows that moved and
    /// that were dropped.
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

/// `part` of `all`; 0 of nothing.
fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}
