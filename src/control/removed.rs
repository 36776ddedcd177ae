//! What a reload has taken away, while it has flows: it takes no new ones, and those that it has are reset
//! or kept, as its VIP's `on_remove` says.
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
use crate::config;
use crate::flow::entry::ConntrackEntry;
use crate::forwarding::{FlowAction, OldListen};
use crate::net::{BackendId, FlowKey, Listen, ListenKey, VipId};

/// Until workers have the table without it, and have counted what they pinned before.
const SETTLED: Duration = Duration::from_secs(1);

/// A backend, or an address and ports of a VIP, that a reload has taken away.
#[derive(Debug)]
pub struct Removed<T> {
    /// What it is.
    pub what: T,
    /// What becomes of its flows: they are kept or reset.
    pub flow_action: FlowAction,
    /// When it was taken away.
    pub since: Instant,
    /// Flows that it had then.
    pub flows: u64,
}

/// A backend that a reload took away, and that has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// Name of its VIP.
    pub vip: String,
    /// Its name.
    pub backend: String,
    /// Flows that it had when it was taken away.
    pub flows: u64,
    /// Flows that it had still.
    pub flows_left: u64,
}

/// What a reload takes away with flows, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Name of the VIP, as it was.
    pub vip: String,
    /// Name of the backend, as it was; `None`: ports or the address of the VIP.
    pub backend: Option<String>,
    /// Flows that it has.
    pub flows: u64,
    /// What becomes of them.
    pub flow_action: FlowAction,
}

/// All that a reload takes away, or would.
#[derive(Debug, Default)]
pub struct Removals {
    /// Those whose flows are known.
    pub all: Vec<Removal>,
    /// Places whose flows are to be counted, with the VIP's name and what becomes of them.
    pub lost: Vec<(VipId, Listen, String, FlowAction)>,
    /// Backends whose flows are counted already.
    pub gone: HashSet<BackendId>,
}

impl Removals {
    /// All of them, with the flows at addresses and ports that VIPs lose counted in `tables`. Blocks: reads
    /// the tables if there is such a place.
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

/// The flows that VIPs have at these places, but for those of the backends that are `gone`. Blocks.
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
    /// Taken away now.
    pub const fn new(what: T, flow_action: FlowAction, now: Instant) -> Self {
        Self { what, flow_action, since: now, flows: 0 }
    }

    /// Whether it is to be given up: when it has no flows, and when its flows had time to be reset.
    pub fn has_ended(&self, idle: impl FnOnce() -> bool, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.since);
        (age >= SETTLED && idle()) || (self.flow_action == FlowAction::Reset && age >= RESETS)
    }
}

impl Removed<Listen> {
    /// What of it `vip` does not have again.
    pub fn without(self, vip: &config::Vip) -> impl Iterator<Item = Self> {
        let Self { what, flow_action, since, flows } = self;
        let places = identity::lost([what], vip).into_iter();
        places.map(move |what| Self { what, flow_action, since, flows })
    }

    /// In parts: flows that are reset go on where another VIP listens by now, which has their packets.
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

    /// What the forwarding table is built from.
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
