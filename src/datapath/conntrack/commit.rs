//! Part of the stage conntrack, commit: stores the changes of a packet, with a plain store in this
//! worker's table, by compare-and-swap in the owner's. Removes and counts pins.
//!
//! Writes: entries, remote entries, SNAT ports, the clients table.

use super::event::{FlowUpdate, next_sequence};
use super::locate::{Located, Remote, Tables};
use super::state::{Step, Verdict};
use crate::datapath::batch::Packet;
use crate::datapath::clients::{self, is_due};
use crate::datapath::context::Context;
use crate::datapath::snat;
use crate::flow::entry::{FlowState, Pin, State};
use crate::flow::table::{Hit, Slot};
use crate::forwarding::table::{Backend, BackendFlags};
use crate::net::{BackendIndex, Forward, HashedKey, Protocol};
use crate::stats::{FlowStats, WorkerStats};
use crate::units::Ticks;

/// Least interval between a remote entry's notifications of the owner: 0.5 s. The shortest time-out
/// is 1 s.
const REMOTE_REFRESH: Ticks = Ticks(50);

/// Updates a pin from a client's packet that changes nothing but time stamp and return hop.
#[inline(always)]
pub(super) fn touch(hit: &Hit<'_>, packet: &Packet, backend: &Backend, context: &Context<'_>) {
    set_return_hop(hit, packet, backend, context);
    hit.touch(context.now);
}

/// Stores the previous hop of a client's packet, if replies go there.
#[inline(always)]
pub(super) fn set_return_hop(
    hit: &Hit<'_>,
    packet: &Packet,
    backend: &Backend,
    context: &Context<'_>,
) {
    // The client's router may have changed: replies follow.
    match backend.forward {
        Forward::Nat => {
            if let Some(return_hop) = packet.return_hop(context.nic) {
                hit.set_return_hop(return_hop);
            }
        }
        Forward::FullNat => snat::record(&hit.flow_state, packet, context),
        Forward::Dsr | Forward::Ipip | Forward::Gue => {}
    }
}

/// Stores a step in this worker's table.
#[inline]
pub(super) fn store(
    hit: &Hit<'_>,
    flow: &HashedKey,
    step: Step,
    backend: &Backend,
    context: &Context<'_>,
) {
    hit.set_state(step.state);
    count_answer(flow, hit.flow_state.state(), step.state, backend, context);
    record_client(flow, &hit.flow_state, step, backend, context);
    if step.touch {
        hit.touch(context.now);
    }
}

/// Counts the first sign that a backend has answered a new flow: a TCP flow leaves the state that
/// its SYN began, or a datagram gets a reply.
#[inline]
fn count_answer(
    flow: &HashedKey,
    before: State,
    after: State,
    backend: &Backend,
    context: &Context<'_>,
) {
    let first = match flow.protocol() {
        Protocol::Tcp => before == State::default() && after != before,
        Protocol::Udp | Protocol::Any => before == State::FIRST && after.has(State::ANSWERED),
    };
    if first && !after.has(State::TERMINATED) {
        count_answered(backend.id.index, context.stats);
    }
}

/// Counts a flow that its backend has answered.
#[cold]
pub(super) fn count_answered(backend: BackendIndex, stats: &WorkerStats) {
    let counter = stats.answered.get(usize::from(backend.0));
    counter.into_iter().for_each(|counter| counter.add(1));
}

/// Records the client of a flow at a change of its state and at its first packet in a period.
#[inline]
fn record_client(
    flow: &HashedKey,
    flow_state: &FlowState,
    step: Step,
    backend: &Backend,
    context: &Context<'_>,
) {
    let before = flow_state.state();
    if backend.flags.has(BackendFlags::REMEMBERS)
        && !step.state.has(State::TERMINATED)
        && (step.state != before || is_due(flow_state, context))
    {
        clients::record(flow, backend, (before, step.state), context);
    }
}

impl Tables {
    /// Stores the changes of a packet in the table that has the pin; returns the pin's new
    /// contents.
    pub fn store(
        &self,
        located: &Located<'_>,
        flow: &HashedKey,
        update: &FlowUpdate,
        backend: &Backend,
        context: &Context<'_>,
    ) -> FlowState {
        match located {
            Located::Own(hit) => {
                store(hit, flow, update.step, backend, context);
                hit.flow_state.with_state(update.step.state)
            }
            Located::Remote(remote) => {
                self.notify(remote, flow, update, backend, context).flow_state
            }
        }
    }

    /// Stores the changes of a packet in the owner's table; returns the changed pin. A packet does
    /// not prolong the life of a terminated flow.
    fn notify(
        &self,
        remote: &Remote,
        flow: &HashedKey,
        update: &FlowUpdate,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Pin {
        let Remote { slot, pin } = remote;
        let (before, after) = (pin.flow_state.state(), update.step.state);
        if let Some(owner) =
            self.of(pin.flow_state.owner()).filter(|_| !before.has(State::TERMINATED))
        {
            if update.step.touch {
                owner.touch(*slot, &pin.flow_state, context.now);
            }
            if let Some(hop) = &update.hop {
                owner.change_hop(*slot, &pin.flow_state, hop);
            }
            let (set, clear) = (after.without(before), before.without(after));
            owner.change_state(*slot, flow, &pin.flow_state, set, clear);
            count_answer(flow, before, after, backend, context);
        }
        record_client(flow, &pin.flow_state, update.step, backend, context);
        update.apply(pin, context.now)
    }

    /// Stores the changes of a packet in the owner's table, and keeps a remote entry here. Without
    /// room for it, or if this worker has a pin of the flow as well (to another backend, since),
    /// the next packet is looked up again.
    pub fn store_remote(
        &mut self,
        remote: &Remote,
        flow: &HashedKey,
        update: &FlowUpdate,
        backend: &Backend,
        context: &Context<'_>,
    ) -> FlowState {
        let pin = self.notify(remote, flow, update, backend, context);
        let entry = remote_entry(&pin, context.now);
        match context.flows.find_at(flow, Slot::NOWHERE) {
            Some(old) if old.flow_state.state().has(State::REMOTE) => {
                self.writer.update(old.slot, flow, &entry);
            }
            Some(_) => {}
            None => {
                if self.has_remote_room(flow, pin.vip, context)
                    && self.writer.insert(flow, &entry).is_ok()
                {
                    context.stats.flow_aliases.add(1);
                }
            }
        }
        pin.flow_state
    }

    /// Follows a remote entry to the owner's pin, stores the changes of a packet there, and updates
    /// the entry. A fresh entry suffices if the packet changes nothing. Removes the entry, and
    /// returns `None`, if the pin is gone or may belong to another flow by now. `judge` computes
    /// the changes of the packet from the contents of a pin.
    pub fn refresh(
        &mut self,
        entry: &Hit<'_>,
        flow: &HashedKey,
        backend: &Backend,
        judge: impl Fn(&FlowState, Option<u32>) -> FlowUpdate,
        context: &Context<'_>,
    ) -> Option<(FlowState, FlowUpdate)> {
        let flow_state = &entry.flow_state;
        let known = judge(flow_state, None);
        // After a termination the ports may be in use again, by a flow that is not terminated.
        if !flow_state.state().has(State::TERMINATED) && known.step.verdict != Verdict::Ended {
            let fresh = context.now.since(flow_state.last_seen()).0 < REMOTE_REFRESH.0;
            if fresh && known.is_known(flow_state) {
                return Some((*flow_state, known));
            }
            if let Some(remote) = self.owned(flow, flow_state) {
                let update = judge(&remote.pin.flow_state, remote.pin.sequence);
                if update.is_kept() {
                    let flow_state = self.store_remote(&remote, flow, &update, backend, context);
                    return Some((flow_state, update));
                }
                if update.step.verdict == Verdict::ChooseAgain {
                    return Some((remote.pin.flow_state, update));
                }
            }
        }
        self.remove(entry.slot, context);
        None
    }

    /// Returns the sequence number that a client's packet is compared with; `None` if its flow needs
    /// no proof.
    #[inline]
    pub fn sequence(&self, hit: &Hit<'_>, packet: &Packet, backend: &Backend) -> Option<u32> {
        let tcp = packet.flow.protocol() == Protocol::Tcp;
        let needed = tcp && !backend.forward.translates() && hit.flow_state.state().is_doubted();
        if needed { self.writer.sequence(hit.slot) } else { None }
    }

    /// Stores the sequence number that a flow keeps after a client's packet, if it changes. A flow
    /// that has proven itself keeps none, and counts as pinned now.
    #[cold]
    pub fn renumber(
        &self,
        slot: Slot,
        packet: &Packet,
        update: &FlowUpdate,
        context: &Context<'_>,
    ) {
        let before = self.writer.sequence(slot);
        let after = next_sequence(packet, update.step.state, update.event, before);
        if after != before {
            self.writer.set_sequence(slot, after, context.now);
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, slot: Slot, context: &Context<'_>) {
        if let Some(pin) = self.writer.remove(slot) {
            snat::release(&mut self.snat_allocator, &pin, context);
            count_removal(&pin, context);
        }
    }

    /// Removes a pin without a trace in the statistics of ended flows.
    pub fn take_back(&mut self, flow: &HashedKey, context: &Context<'_>) {
        let hit = context.flows.find_at(flow, Slot::NOWHERE);
        if let Some(pin) = hit.and_then(|hit| self.writer.remove(hit.slot)) {
            snat::release(&mut self.snat_allocator, &pin, context);
            count_gone(&pin, context.stats);
        }
    }
}

/// Returns the remote entry for another worker's pin, made at `now`.
const fn remote_entry(pin: &Pin, now: Ticks) -> Pin {
    let state = pin.flow_state.state().with(State::REMOTE);
    Pin { flow_state: pin.flow_state.with_state(state).with_last_seen(now), ..*pin }
}

/// Counts the reason for which a pin has ended.
#[cold]
pub(super) fn count_end(protocol: Protocol, flow_state: &FlowState, context: &Context<'_>) {
    let (stats, state) = (context.stats, flow_state.state());
    if state.has(State::REMOTE) {
        return;
    }
    match context.table.pinned(flow_state.backend()) {
        _ if state.has(State::TERMINATED) => stats.flows_reset.add(1),
        None => stats.flows_stale.add(1),
        Some(backend) if protocol == Protocol::Tcp && state.is_closing(backend.forward) => {
            stats.flows_closed.add(1);
        }
        Some(_) => stats.flows_idled_out.add(1),
    }
}

/// Counts a pin that is given up by the policy for its backend, and traces it.
#[cold]
pub(super) fn count_rehash(context: &Context<'_>) {
    context.stats.flows_stale.add(1);
    if let Some(trace) = context.trace {
        trace.record("conntrack", "the pin is given up", "its backend does not serve: rehash");
    }
}

/// Updates the gauges after the removal of an entry, and records the lifetime of its flow, unless
/// its backend was removed.
pub(super) fn count_removal(pin: &Pin, context: &Context<'_>) {
    let stats = context.stats;
    if pin.flow_state.state().has(State::REMOTE) {
        stats.flow_aliases.sub(1);
        return;
    }
    count_gone(pin, stats);
    let ended = context.table.pinned(pin.flow_state.backend()).is_some();
    if ended && is_unanswered(pin, context) {
        let counter = stats.unanswered.get(usize::from(pin.flow_state.backend().index.0));
        counter.into_iter().for_each(|counter| counter.add(1));
    }
    if let Some(lifetimes) = stats.lifetimes.get(usize::from(pin.vip.0)).filter(|_| ended) {
        lifetimes.add(context.now.since(pin.created));
    }
}

/// Whether this is the pin of a SYN without a reply (no packet of its backend was seen, nor another
/// one of its client), or of a datagram without one, where replies are seen.
#[cold]
fn is_unanswered(pin: &Pin, context: &Context<'_>) -> bool {
    let Some(vip) = context.table.vip(pin.vip) else { return false };
    match vip.protocol {
        Protocol::Tcp => pin.flow_state.state() == State::default(),
        Protocol::Udp | Protocol::Any => {
            vip.forward.translates() && pin.flow_state.state() == State::FIRST
        }
    }
}

/// Updates the gauges for a new pin.
pub(super) fn count_pinned(pin: &Pin, stats: &WorkerStats) {
    stats.flows_active.add(1);
    for counters in flow_stats(pin, stats) {
        counters.flows_active.add(1);
    }
}

/// Updates the gauges after the removal of a pin.
pub(super) fn count_gone(pin: &Pin, stats: &WorkerStats) {
    stats.flows_active.sub(1);
    for counters in flow_stats(pin, stats) {
        counters.flows_active.sub(1);
    }
}

/// Returns the counters of the pin's VIP and backend.
fn flow_stats<'s>(pin: &Pin, stats: &'s WorkerStats) -> impl Iterator<Item = &'s FlowStats> {
    let vip = stats.vips.get(usize::from(pin.vip.0));
    let backend = stats.backends.get(usize::from(pin.flow_state.backend().index.0));
    [vip, backend].into_iter().flatten()
}
