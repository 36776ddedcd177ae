//! Stage 4 of 7, conntrack: the backend that holds a flow.
//!
//! ```text
//! steady packet: one look-up, one time stamp
//! all others:    locate the pin -> step of the state machine -> commit the changes
//! ```
//!
//! - [`locate`]: this worker's table, a remote entry in it, the tables of the other workers.
//! - [`state`]: the state machine, a pure function; [`event`]: its input.
//! - [`commit`]: a store in this worker's table, a compare-and-swap in the owner's.
//! - [`room`]: an entry for a new flow, and a SNAT port.
//! - [`sweep`]: expired pins and silent ends of terminated connections. [`snat_reply`]: replies to
//!   SNAT ports.
//!
//! Reads: the flow key, this worker's flow table, and the other workers' on a miss. Returns the
//! target. Writes: time stamps and states of flows.
//! Cost: two prefetched cache lines per packet; a mid-flow miss looks once into every other table.
//!
//! A packet may arrive at another worker than the one that pinned its flow: replies of NAT backends
//! usually do, as the NIC hashes another tuple. The worker then reads the owner's table, keeps a
//! *remote entry* in its own, and notifies the owner of the flow's packets at most twice a second.

mod commit;
mod event;
mod locate;
mod room;
mod snat_reply;
mod state;
mod sweep;
mod untracked;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arrayvec::ArrayVec;

pub(super) use event::is_expired;

pub use untracked::Untracked;

use self::commit::count_pinned;
use self::event::{FlowUpdate, alive, steady};
use self::locate::{Located, Remote, Tables};
use self::state::Verdict;
use self::sweep::Sweep;
use super::batch::{BATCH, Batch, Packet};
use super::classify::answered_flow;
use super::context::Context;
use super::new_flows::NewFlowLimiter;
use super::quic::ReplyOrigin;
use super::reset::TxBacklog;
use super::snat;
use super::target::{Target, Terminated};
use crate::flow::entry::{FlowState, Pin, Rule, State};
use crate::flow::shared::SharedTables;
use crate::flow::snat::{SnatAllocator, SnatPort, SnatTable};
use crate::flow::splices::Place;
use crate::flow::table::{FlowTable, FlowView, Hit, Slot};
use crate::flow::takeover::{count, reconcile};
use crate::flow::writer::FlowWriter;
use crate::forwarding::table::Backend;
use crate::forwarding::{FlowAction, Miss};
use crate::net::{BackendIndex, Forward, HashedKey, ListenKey, NextHop, Protocol, TableSecret};
use crate::stats::{Drop, WorkerStats};
use crate::units::Ticks;

/// A worker's connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    tables: Tables,
    new_flows: NewFlowLimiter,
    sweep: Sweep,
}

/// Counts a pin that the last user of the tables has left.
fn count_kept(pin: &Pin, snat_table: &SnatTable, stats: &WorkerStats) {
    count_pinned(pin, stats);
    if let Some(id) = pin.flow_state.snat_port() {
        snat::count_bound(id, snat_table, stats);
    }
}

impl Conntrack {
    /// Creates the connection tracking of worker `me`, with its flow table and the pins in it, which
    /// are those of an earlier process: the gauges of `stats` count them. `None` if there is no such
    /// table, or another worker writes it.
    ///
    /// Cost: that of [`reconcile`].
    pub fn new(shared: &SharedTables, me: u8, stats: &WorkerStats, now: Ticks) -> Option<Self> {
        let mut writer = FlowWriter::new(Arc::clone(shared.flows.get(usize::from(me))?))?;
        let snat_table = &shared.snat_table;
        let removed =
            reconcile(&mut writer, snat_table, me, |pin| count_kept(pin, snat_table, stats));
        stats.flows_stale.add(removed);
        let secret = match shared.taken_over {
            // The tables' secret is the earlier process's too, but its first ports must not be.
            true => TableSecret::new(RandomState::new().hash_one(me)),
            false => writer.table().secret().clone(),
        };
        let snat_allocator = SnatAllocator::new(snat_table, me, &secret);
        let tables = Tables { writer, all: Arc::clone(&shared.flows), snat_allocator, me };
        Some(Self { tables, new_flows: NewFlowLimiter::default(), sweep: Sweep::new(now) })
    }

    /// Continues the connection tracking of worker `me` where the last user of its flow table has
    /// [suspended](Self::suspend) it, which may be another process; after one that has not, as
    /// [`Conntrack::new`]. The gauges of `stats` count its entries.
    ///
    /// Cost: one look at every entry that was ever used.
    pub fn take_over(
        shared: &SharedTables,
        me: u8,
        stats: &WorkerStats,
        now: Ticks,
    ) -> Option<Self> {
        let table = shared.flows.get(usize::from(me))?;
        let Some(writer) = FlowWriter::continue_from(Arc::clone(table)) else {
            table.release_writer();
            return Self::new(shared, me, stats, now);
        };
        let snat_table = &shared.snat_table;
        let mut used = Vec::new();
        let pinned = |pin: &Pin| {
            count_kept(pin, snat_table, stats);
            used.extend(pin.flow_state.snat_port());
        };
        count(&writer, pinned, || stats.flow_aliases.add(1));
        let turn = RandomState::new().hash_one(me);
        let snat_allocator = SnatAllocator::without(snat_table, me, used, turn);
        let tables = Tables { writer, all: Arc::clone(&shared.flows), snat_allocator, me };
        Some(Self { tables, new_flows: NewFlowLimiter::default(), sweep: Sweep::new(now) })
    }

    /// Records what another user of the flow table needs to continue at once. Called between two
    /// polls.
    pub fn suspend(&self) {
        self.tables.writer.suspend();
    }

    /// Creates the connection tracking of worker `me` in tables that were made for an explanation.
    pub(super) fn of_scratch(
        tables: Arc<[Arc<FlowTable>]>,
        snat_allocator: SnatAllocator,
        me: u8,
        now: Ticks,
    ) -> Option<Self> {
        let writer = FlowWriter::new(Arc::clone(tables.get(usize::from(me))?))?;
        let tables = Tables { writer, all: tables, snat_allocator, me };
        Some(Self { tables, new_flows: NewFlowLimiter::default(), sweep: Sweep::new(now) })
    }

    /// Index of this worker.
    pub const fn worker(&self) -> u8 {
        self.tables.me
    }

    /// The secret of the flow hashes.
    pub fn secret(&self) -> &TableSecret {
        self.tables.secret()
    }

    /// Returns the target of a client's packet, by the pin of its flow.
    ///
    /// # Errors
    /// [`Untracked`] if there is no pin, or the flow is terminated.
    #[inline(always)]
    pub fn track<'t>(
        &mut self,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        if let Some(hit) = context.flows.at(&packet.flow, packet.hint)
            && let Some(backend) = steady(packet, &hit.flow_state, context)
        {
            commit::touch(&hit, packet, backend, context);
            return Ok(Target::of(backend, &hit.flow_state));
        }
        self.track_unsteady(packet, context)
    }

    /// Handles a client's packet that begins, changes or ends a flow, or was not found at once.
    #[inline(never)]
    fn track_unsteady<'t>(
        &mut self,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        let Some(hit) = context.flows.find_at(&packet.flow, packet.hint) else {
            return self.request_elsewhere(packet, context);
        };
        let Some(backend) = context.table.pinned(hit.flow_state.backend()) else {
            self.end(&hit, packet.flow.protocol(), context);
            return self.request_elsewhere(packet, context);
        };
        if hit.flow_state.state().has(State::REMOTE) {
            return self.request_by_entry(&hit, packet, backend, context);
        }
        let sequence = self.tables.sequence(&hit, packet, backend);
        let update = FlowUpdate::of_request(packet, &hit.flow_state, sequence, backend, context);
        match update.step.verdict {
            Verdict::Ended => {
                self.end(&hit, packet.flow.protocol(), context);
                return self.request_elsewhere(packet, context);
            }
            Verdict::ChooseAgain => {
                if backend.flow_action == FlowAction::Rehash {
                    commit::count_rehash(context);
                }
                self.tables.remove(hit.slot, context);
            }
            Verdict::Forward | Verdict::Reset => {
                commit::store(&hit, &packet.flow, update.step, backend, context);
                if sequence.is_some() {
                    self.tables.renumber(hit.slot, packet, &update, context);
                }
                if !update.step.state.has(State::TERMINATED) {
                    commit::set_return_hop(&hit, packet, backend, context);
                }
            }
        }
        requested(packet, &update, &hit.flow_state, backend, context)
    }

    /// Handles a client's packet for which this worker has a remote entry. The owner's pin decides
    /// if the packet may begin another flow.
    #[cold]
    fn request_by_entry<'t>(
        &mut self,
        entry: &Hit<'_>,
        packet: &Packet,
        backend: &'t Backend,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        if !snat::record_elsewhere(&entry.flow_state, packet, context) {
            self.tables.remove(entry.slot, context);
            return self.request_elsewhere(packet, context);
        }
        let judge = |flow_state: &FlowState, sequence| {
            FlowUpdate::of_request(packet, flow_state, sequence, backend, context)
        };
        let flow = &packet.flow;
        let Some((flow_state, update)) = self.tables.refresh(entry, flow, backend, judge, context)
        else {
            return self.request_elsewhere(packet, context);
        };
        if update.step.verdict == Verdict::ChooseAgain {
            self.tables.remove(entry.slot, context);
        }
        requested(packet, &update, &flow_state, backend, context)
    }

    /// Handles a client's packet for which this worker has no entry.
    #[cold]
    fn request_elsewhere<'t>(
        &mut self,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        let tcp = packet.flow.protocol() == Protocol::Tcp;
        let opens = !tcp || packet.layout.flags.opens();
        // NICs may send fragments to another worker than whole packets of their flow, so pins of
        // other workers are looked up once fragments have been seen, or if an earlier process may
        // have had other workers or queues. And a datagram may belong to a flow that was another
        // VIP's.
        let SharedTables { fragments, taken_over, .. } = context.shared;
        let moved = *taken_over || fragments.generation() != 0;
        let elsewhere = !tcp && (moved || context.table.has_lost());
        // A SYN that is retransmitted to another worker (Linux takes another hash, and so another
        // queue, after each time-out: tcp_write_timeout) chooses the same backend where the hash
        // alone does. But a backend that sees another source address takes it for another connection.
        let needs = tcp && needs_its_pin(packet, context);
        if opens && !elsewhere && !snat::wanted(packet, context) && !needs {
            return Err(Miss::Open.into());
        }
        let miss = if opens { Miss::Open } else { Miss::NonSyn };
        // As in this worker's table, a pin holds even if its address and port are another VIP's by
        // now.
        let found = self.tables.find_elsewhere(&packet.flow, context, |_| true);
        let (remote, backend) = found.ok_or(miss)?;
        let Pin { flow_state, sequence, .. } = &remote.pin;
        let update = FlowUpdate::of_request(packet, flow_state, *sequence, backend, context);
        if update.is_kept() {
            context.stats.flows_found_elsewhere.add(1);
            snat::record_elsewhere(&remote.pin.flow_state, packet, context);
            self.tables.store_remote(&remote, &packet.flow, &update, backend, context);
        }
        requested(packet, &update, &remote.pin.flow_state, backend, context)
    }

    /// Removes an entry that has ended.
    #[cold]
    fn end(&mut self, hit: &Hit<'_>, protocol: Protocol, context: &Context<'_>) {
        commit::count_end(protocol, &hit.flow_state, context);
        self.tables.remove(hit.slot, context);
    }

    /// Returns the next hop of a NAT backend's packet: finds the flow that it replies to among
    /// those that the backend may reply for.
    ///
    /// # Errors
    /// [`Untracked`] if there is none, or it is terminated.
    #[inline]
    pub fn track_reply<'t>(
        &mut self,
        packet: &mut Packet,
        source: ListenKey,
        context: &Context<'t>,
    ) -> Result<NextHop, Untracked<'t>> {
        // Classify has hashed the flow of the first path, which nearly every reply belongs to.
        if let Some(hit) = context.flows.at(&packet.flow, packet.hint)
            && let Some(backend) = steady(packet, &hit.flow_state, context)
            && backend.id.index == packet.backend
        {
            hit.touch(context.now);
            return Ok(hit.flow_state.hop());
        }
        self.track_reply_unsteady(packet, source, context)
    }

    /// Handles a backend's packet that changes or ends a flow, or was not found at once.
    #[inline(never)]
    fn track_reply_unsteady<'t>(
        &mut self,
        packet: &mut Packet,
        source: ListenKey,
        context: &Context<'t>,
    ) -> Result<NextHop, Untracked<'t>> {
        let origin = ReplyOrigin { backend: packet.backend, of_its_vip: false };
        let (flow, hint) = (packet.flow, packet.hint);
        match self.answered(&flow, hint, origin, packet, context) {
            Some(client) => client,
            None => self.track_reply_along(packet, source, context),
        }
    }

    /// Tries the other return paths, and at QUIC VIPs flows that are pinned to another backend.
    #[inline(never)]
    fn track_reply_along<'t>(
        &mut self,
        packet: &mut Packet,
        source: ListenKey,
        context: &Context<'t>,
    ) -> Result<NextHop, Untracked<'t>> {
        let key = packet.flow.key();
        packet.backend = BackendIndex(u16::MAX);
        let paths = context.table.return_paths(source);
        // One client port may have flows with several VIP ports: pins on the backend itself come
        // first.
        for (of_its_vip, first) in [(false, 1), (true, 0)] {
            for path in paths.clone().skip(first) {
                let origin = ReplyOrigin { backend: path.backend, of_its_vip };
                if !origin.exists(context) {
                    continue;
                }
                let flow = answered_flow(key.client, key.client_port, source, path);
                let flow = self.secret().hash(flow);
                let answered = self.answered(&flow, Slot::NOWHERE, origin, packet, context);
                if let Some(client) = answered {
                    packet.flow = flow;
                    packet.vip = path.vip;
                    packet.backend = path.backend;
                    return client;
                }
            }
        }
        Err(Untracked::NoFlow)
    }

    /// Returns the next hop to the client of `flow` if the backend may reply for it, whichever
    /// worker has its pin, and stores the changes of the packet there. `None` if there is no such
    /// flow.
    #[inline]
    fn answered<'t>(
        &mut self,
        flow: &HashedKey,
        hint: Slot,
        origin: ReplyOrigin,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Option<Result<NextHop, Untracked<'t>>> {
        let found = context.flows.find_at(flow, hint).and_then(|hit| {
            let pinned = alive(flow.protocol(), &hit.flow_state, context)?;
            origin.answers_for(pinned, context).then_some((hit, pinned))
        });
        let Some((hit, backend)) = found else {
            return self.answered_elsewhere(flow, origin, packet, context);
        };
        let judge =
            |flow_state: &FlowState, _| reply_update(packet, flow, flow_state, backend, context);
        if hit.flow_state.state().has(State::REMOTE) {
            return match self.tables.refresh(&hit, flow, backend, judge, context) {
                Some((flow_state, update)) => Some(replied(&update, &flow_state, backend)),
                None => self.answered_elsewhere(flow, origin, packet, context),
            };
        }
        let update = judge(&hit.flow_state, None);
        if (update.step.state.has(State::TERMINATED)
            || hit.flow_state.state().has(State::FIN_CLIENT))
            && let Some(newer) = self.answered_by_newer(hit.slot, flow, origin, packet, context)
        {
            return Some(newer);
        }
        commit::store(&hit, flow, update.step, backend, context);
        Some(replied(&update, &hit.flow_state, backend))
    }

    /// Finds a newer pin of the flow at another worker: the client's port may be in use again.
    #[cold]
    fn answered_by_newer<'t>(
        &mut self,
        slot: Slot,
        flow: &HashedKey,
        origin: ReplyOrigin,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Option<Result<NextHop, Untracked<'t>>> {
        let own = self.tables.writer.table().read(slot)?.pin;
        let found = self.find_answered(flow, origin, context)?;
        let newer = !found.0.pin.created.is_before(own.created);
        newer.then(|| self.answer_remote(flow, found, packet, context))
    }

    #[cold]
    fn answered_elsewhere<'t>(
        &mut self,
        flow: &HashedKey,
        origin: ReplyOrigin,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Option<Result<NextHop, Untracked<'t>>> {
        let found = self.find_answered(flow, origin, context)?;
        Some(self.answer_remote(flow, found, packet, context))
    }

    /// Finds the pin, at another worker, of a flow that the backend may reply for.
    fn find_answered<'t>(
        &self,
        flow: &HashedKey,
        origin: ReplyOrigin,
        context: &Context<'t>,
    ) -> Option<(Remote, &'t Backend)> {
        let answers = |pinned: &Backend| origin.answers_for(pinned, context);
        self.tables.find_elsewhere(flow, context, answers)
    }

    /// Returns the next hop to the client of another worker's flow, and notifies that worker of the
    /// packet.
    fn answer_remote<'t>(
        &mut self,
        flow: &HashedKey,
        (remote, backend): (Remote, &'t Backend),
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<NextHop, Untracked<'t>> {
        let update = reply_update(packet, flow, &remote.pin.flow_state, backend, context);
        let flow_state = self.tables.store_remote(&remote, flow, &update, backend, context);
        replied(&update, &flow_state, backend)
    }

    /// Returns the next hop of a packet to a SNAT port.
    ///
    /// # Errors
    /// [`Untracked`] if no flow has the port, the packet does not come from its backend, or the
    /// flow is terminated.
    pub fn track_snat_reply<'t>(
        &mut self,
        packet: &mut Packet,
        id: SnatPort,
        context: &Context<'t>,
    ) -> Result<NextHop, Untracked<'t>> {
        snat_reply::track(&self.tables, packet, id, context)
    }

    /// Returns the live pin of a flow, whichever worker has it, and its backend. Changes nothing,
    /// not even the flow's idle time.
    #[cold]
    pub fn peek<'t>(
        &self,
        flow: &HashedKey,
        hint: Slot,
        context: &Context<'t>,
    ) -> Option<(FlowState, &'t Backend)> {
        self.tables.peek(flow, hint, context)
    }

    /// Whether any worker has a live pin of the flow on this backend.
    #[cold]
    pub fn is_pinned_anywhere(
        &self,
        flow: &HashedKey,
        backend: BackendIndex,
        context: &Context<'_>,
    ) -> bool {
        self.tables.is_pinned_anywhere(flow, backend, context)
    }

    /// Whether the budgets of new flows permit another pin for the sender of a packet.
    #[inline]
    pub fn admits(&mut self, packet: &Packet, context: &Context<'_>) -> bool {
        self.new_flows.take(packet.flow.key().client, context)
    }

    /// Pins the packet's flow, which has no entry, to `backend`; a full-NAT flow gets a SNAT port.
    ///
    /// # Errors
    /// [`Drop::NoSourcePort`], [`Drop::TableFull`] or [`Drop::VlanPairsFull`] if there is no room
    /// for it.
    pub fn pin<'t>(
        &mut self,
        packet: &Packet,
        backend: &'t Backend,
        rule: Rule,
        context: &Context<'_>,
    ) -> Result<Target<'t>, Drop> {
        if backend.forward.translates() && packet.return_hop(context.nic).is_none() {
            return Err(Drop::VlanPairsFull);
        }
        let state = state::first(event::class(packet));
        let hop = packet.came_from(context.nic);
        let me = self.tables.me;
        let mut pin = Pin::new(packet.vip, backend.id, state, me, &hop, context.now)
            .by(rule)
            .with_sequence(event::first_sequence(packet, backend));
        if backend.forward == Forward::FullNat {
            let id = self.tables.bind(packet, backend, context)?;
            pin = pin.with_snat_port(id);
        }
        self.tables.insert(&packet.flow, &pin, context).map_err(|_| Drop::TableFull)?;
        if pin.flow_state.state().has(State::ANSWERED) {
            commit::count_answered(backend.id.index, context.stats);
        }
        Ok(Target::of(backend, &pin.flow_state))
    }

    /// Pins a flow to the backend that has its socket, unless it is pinned already.
    ///
    /// # Errors
    /// [`Drop::TableFull`]; [`Drop::NoNextHop`].
    #[cold]
    pub(super) fn pin_to_owner(
        &mut self,
        flow: &HashedKey,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Result<(), Drop> {
        let known = context.flows.find_at(flow, Slot::NOWHERE).is_some()
            || self.tables.find_elsewhere(flow, context, |_| true).is_some();
        if known {
            return Ok(());
        }
        let hop = backend.next_hop.as_ref().ok_or(Drop::NoNextHop)?;
        let (state, me) = (State::ESTABLISHED, self.tables.me);
        let pin = Pin::new(backend.vip, backend.id, state, me, hop, context.now).by(Rule::Asked);
        self.tables.insert(flow, &pin, context).map_err(|_| Drop::TableFull)
    }

    /// Records that the backend has answered the SYN that this box sent it for the flow at `place`
    /// (`syn_proxy`); or, if not `answers`, that it has lost the connection.
    #[cold]
    pub(super) fn shake_hands(
        &mut self,
        answers: bool,
        flow: &HashedKey,
        (place, pin): (&Place, &Pin),
        backend: &Backend,
        context: &Context<'_>,
    ) {
        let flow = &self.secret().hash(flow.tuple);
        let located = match place.worker == self.tables.me {
            true => context.flows.find_at(flow, place.slot).map(Located::Own),
            false => Some(Located::Remote(Remote { slot: place.slot, pin: *pin })),
        };
        if let Some(located) = located {
            let state = located.flow_state();
            let update = FlowUpdate::of_handshake(answers, flow, state, backend, context);
            self.tables.store(&located, flow, &update, backend, context);
        }
    }

    /// Removes the pin made by the first packet of a flow, which was not sent.
    pub fn unpin(&mut self, flow: &HashedKey, context: &Context<'_>) {
        self.tables.take_back(flow, context);
    }

    /// Removes expired flows and those of removed backends, and probes silent terminated flows, a
    /// bounded number per call; returns whether more is due at once.
    #[inline]
    pub fn sweep(&mut self, context: &Context<'_>, backlog: &mut TxBacklog) -> bool {
        self.sweep.run(&mut self.tables, context, backlog)
    }
}

/// Whether a SYN has to find the pin of its connection, whichever worker has it: the hash alone does
/// not choose the same backend again, or another handshake would begin.
fn needs_its_pin(packet: &Packet, context: &Context<'_>) -> bool {
    let vip = context.table.vip(packet.vip);
    vip.is_some_and(|vip| !vip.scheduler.kind().is_pure_hash() || vip.policy.syn_proxy)
}

/// Returns the changes of a backend's packet in a flow.
#[inline]
fn reply_update(
    packet: &Packet,
    flow: &HashedKey,
    flow_state: &FlowState,
    backend: &Backend,
    context: &Context<'_>,
) -> FlowUpdate {
    let event = event::reply(packet, flow_state, backend, context.now);
    FlowUpdate::of_reply(event, flow, flow_state, backend, context)
}

/// Returns the target of a client's packet in a flow with this state.
#[inline]
fn requested<'t>(
    packet: &Packet,
    update: &FlowUpdate,
    flow_state: &FlowState,
    backend: &'t Backend,
    context: &Context<'_>,
) -> Result<Target<'t>, Untracked<'t>> {
    let target = Target::of(backend, flow_state);
    match update.step.verdict {
        Verdict::Forward if update.waits => Err(Untracked::Waits),
        Verdict::Forward => Ok(target),
        Verdict::Reset => {
            Err(Untracked::Terminated(Terminated { client: packet.came_from(context.nic), target }))
        }
        Verdict::ChooseAgain | Verdict::Ended => Err(update.event.miss().into()),
    }
}

/// Returns the next hop of a backend's packet in a flow with this state.
#[inline]
fn replied<'t>(
    update: &FlowUpdate,
    flow_state: &FlowState,
    backend: &'t Backend,
) -> Result<NextHop, Untracked<'t>> {
    match update.step.verdict {
        Verdict::Reset => Err(Untracked::Terminated(Terminated {
            client: flow_state.hop(),
            target: Target::of(backend, flow_state),
        })),
        _ if update.waits => Err(Untracked::Answers(flow_state.hop())),
        _ => Ok(flow_state.hop()),
    }
}

/// Prefetches the remaining lines of the look-ups, for all packets before the first look-up.
#[inline(always)]
pub fn prefetch(batch: &mut Batch, flows: FlowView<'_>) {
    let mut elsewhere = ArrayVec::<&mut Packet, BATCH>::new();
    for packet in batch.in_flight() {
        match flows.prefetch_entry(&packet.flow) {
            Some(slot) => packet.hint = slot,
            // There is room for every packet of the batch.
            None => drop(elsewhere.try_push(packet)),
        }
    }
    for packet in elsewhere {
        packet.hint = flows.prefetch_entry_elsewhere(&packet.flow).unwrap_or(Slot::NOWHERE);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests;
