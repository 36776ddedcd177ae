//! Backends, addresses and ports that a reload has removed while they have flows. They take no new
//! flows; the flows that they have are reset or kept, according to the VIP's `on_remove`.
//!
//! ```text
//!              reload                          no flows left, or after a while (reset)
//!   in force ---------> removed, with its index ------------------------------> gone: index free
//!       ^                  |
//!       +------------------+  a reload brings it back: with the flows that are left
//! ```
//!
//! Pure: the clock and the flow tables are parameters.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use tokio::time::Instant;

use super::api::FlowsRemoved;
use super::drain::RESETS;
use super::identity::{self, InForce};
use super::pins::Pins;
use super::saved::{Moment, SavedRemoval};
use crate::config;
use crate::flow::entry::ConntrackEntry;
use crate::forwarding::{FlowAction, OldListen};
use crate::net::{BackendId, FlowKey, Listen, ListenKey, VipId};

/// Time until workers use the table without the removed item, and have counted the flows that they
/// pinned before.
const SETTLED: Duration = Duration::from_secs(1);

/// A backend, or an address and ports of a VIP (a listener), that a reload has removed.
#[derive(Debug)]
pub struct Removed<T> {
    /// The removed item.
    pub what: T,
    /// Action on its flows: they are kept or reset.
    pub flow_action: FlowAction,
    /// Time of the removal.
    pub since: Instant,
    /// Flows at the time of the removal; 0 for a listener.
    pub flows: u64,
}

/// A removed backend that has been given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// Flows at the time of the removal.
    pub flows: u64,
    /// Flows left when it was given up.
    pub flows_left: u64,
}

/// A backend or listeners that a reload removes, or would remove, with the number of flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Name of the VIP before the reload.
    pub vip: String,
    /// Name of the backend before the reload; `None`: ports or the address of the VIP.
    pub backend: Option<String>,
    /// Number of flows.
    pub flows: u64,
    /// Action on these flows.
    pub flow_action: FlowAction,
}

/// All removals of a reload, or of a dry run.
#[derive(Debug, Default)]
pub struct Removals {
    /// Removals with known numbers of flows.
    pub all: Vec<Removal>,
    /// Listeners with flows to be counted, with the VIP's name and the action on the flows.
    pub lost: Vec<(VipId, Listen, String, FlowAction)>,
    /// Removed backends; their flows are counted in `all` already.
    pub gone: HashSet<BackendId>,
}

impl Removals {
    /// Returns all removals, with the flows at lost listeners counted in `tables`. Blocks: reads
    /// the tables if there are lost listeners.
    pub fn count(self, tables: &[Arc<dyn Pins>]) -> Vec<Removal> {
        let Self { mut all, lost, gone } = self;
        let places: Vec<_> = lost.iter().map(|&(vip, listen, ..)| (vip, listen)).collect();
        for (flows, (.., vip, flow_action)) in count(&places, &gone, tables).into_iter().zip(lost) {
            let known = all.iter_mut().find(|known| known.backend.is_none() && known.vip == vip);
            match known {
                Some(known) => known.flows += flows,
                None => all.push(Removal { vip, backend: None, flows, flow_action }),
            }
        }
        all
    }
}

/// Counts the flows of VIPs at these listeners, except those of the backends in `gone`. Blocks.
pub fn count(
    places: &[(VipId, Listen)],
    gone: &HashSet<BackendId>,
    tables: &[Arc<dyn Pins>],
) -> Vec<u64> {
    let mut flows = vec![0; places.len()];
    if places.is_empty() {
        return flows;
    }
    let pins = tables
        .iter()
        .flat_map(|table| (0..table.positions()).filter_map(|position| table.pin_at(position)));
    for ConntrackEntry { key, pin } in
        pins.filter(|entry| !gone.contains(&entry.pin.flow_state.backend()))
    {
        let FlowKey { vip: address, vip_port: port, protocol, .. } = key;
        let key = ListenKey { address, port, protocol };
        let here = |&(vip, listen): &(VipId, Listen)| vip == pin.vip && listen.contains(key);
        if let Some(flows) = places.iter().position(here).and_then(|at| flows.get_mut(at)) {
            *flows += 1;
        }
    }
    flows
}

impl<T> Removed<T> {
    /// Creates an item that is removed now.
    pub const fn new(what: T, flow_action: FlowAction, now: Instant) -> Self {
        Self { what, flow_action, since: now, flows: 0 }
    }

    /// Returns the removal as it is saved.
    pub fn save<S>(&self, moment: &Moment, what: impl FnOnce(&T) -> S) -> SavedRemoval<S> {
        let Self { what: item, flow_action, since, flows } = self;
        let (flow_action, since, flows) = (*flow_action, moment.ticks_at(*since), *flows);
        SavedRemoval { what: what(item), flow_action, since, flows }
    }

    /// Restores a saved removal.
    pub fn restore<S>(saved: SavedRemoval<S>, moment: &Moment, what: impl FnOnce(S) -> T) -> Self {
        let SavedRemoval { what: item, flow_action, since, flows } = saved;
        Self { what: what(item), flow_action, since: moment.instant_at(since), flows }
    }

    /// Returns whether the item is to be given up: it has no flows, and had none for the time
    /// `recall` since its removal; or its flows had time to be reset.
    pub fn has_ended(&self, recall: Duration, idle: impl FnOnce() -> bool, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        let is_idle = age >= recall.max(SETTLED) && idle();
        is_idle || (self.flow_action == FlowAction::Reset && age >= RESETS)
    }
}

impl Removed<Listen> {
    /// Returns the parts where `vip` does not listen again.
    pub fn without(self, vip: &config::Vip) -> impl Iterator<Item = Self> {
        let Self { what, flow_action, since, flows } = self;
        let places = identity::lost([what], vip).into_iter();
        places.map(move |what| Self { what, flow_action, since, flows })
    }

    /// Divides the listener: flows to be reset are kept where another VIP listens by now, which
    /// receives their packets.
    pub fn divide(self, in_force: &InForce) -> impl Iterator<Item = Self> {
        let Self { what, flow_action, since, flows } = self;
        let parts = match flow_action {
            FlowAction::Reset => in_force.divide(&[what]),
            FlowAction::Keep | FlowAction::Rehash => vec![(what, false)],
        };
        parts.into_iter().map(move |(what, is_taken)| {
            let flow_action = if is_taken { FlowAction::Keep } else { flow_action };
            Self { what, flow_action, since, flows }
        })
    }

    /// Input of the forwarding table.
    pub const fn spec(&self) -> OldListen {
        OldListen { listen: self.what, flow_action: self.flow_action }
    }
}

impl From<&Removal> for FlowsRemoved {
    fn from(removal: &Removal) -> Self {
        let Removal { vip, backend, flows, flow_action } = removal.clone();
        Self { vip, backend, flows, then: flow_action }
    }
}
