//! Stage 4 of 7, conntrack: which backend holds this flow?
//!
//! Reads: the flow key, this worker's flow table, and the other workers' on a miss.
//! Gives the target. Writes: time stamps and states of flows.
//! Cost: two prefetched cache lines per packet; a mid-flow miss looks once into every other table.
//!
//! Where a flow is in its life, and what a packet changes in that, is in [`life`](super::life).
//!
//! A packet may arrive at another worker than the one that pinned its flow: replies of NAT backends
//! do as a rule, as the NIC hashes another tuple. The worker then reads the owner's table, notes
//! what it found as an *alias* in its own, and twice a second tells the owner that the flow lives.

mod state;

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::batch::{BATCH, Batch, Packet, TcpFlags};
use super::bindings;
use super::classify::answered_flow;
use super::clients::{self, is_due};
use super::context::Context;
use super::life::{
    Miss, News, alias_of, first_state, idled_out_loudly, is_cut, is_open, is_unanswered, leaves,
    living, reply_change, request_change, steady,
};
use super::quic::Answerer;
use super::reset::Outbox;
use super::target::{Cut, Target};
use crate::flow::bindings::Leases;
use crate::flow::entry::{Pin, Rule, State, Track};
use crate::flow::table::{FlowTable, FlowView, Hit, Slot};
use crate::flow::writer::{FlowWriter, Full, Verdict};
use crate::forwarding::table::{Backend, Quirks};
use crate::forwarding::{FlowsLeft, RESET_TIME};
use crate::net::{
    BackendIndex, Forward, HashedKey, ListenKey, NextHop, Protocol, TableSecret, Tuple,
};
use crate::stats::{Drop, FlowStats, WorkerStats};
use crate::units::Ticks;

/// Time in which the sweep goes once around the table: how late an idle flow may be removed.
const SWEEP: Ticks = Ticks(400);
/// Most entries that one poll looks at, and most that it removes: each bounds the pause to about
/// 10 us (a removal costs as much as eight looks).
const SWEEP_MAX: u32 = 512;
const REMOVALS_MAX: u32 = 64;
/// How often an alias tells the owner that its flow lives. The shortest time-out is 1 s.
const ALIAS_REFRESH: Ticks = Ticks(50);
/// Between two probes of a silent flow that is cut: they are spread over [`RESET_TIME`].
const PROBE_GAP: u32 = RESET_TIME.0 / State::MAX_PROBES as u32;

/// Why a client's packet goes to no backend by a pin.
#[derive(Debug)]
pub enum Untracked<'t> {
    /// It has none.
    Miss(Miss),
    /// Its flow is cut.
    Cut(Cut<'t>),
}

impl From<Miss> for Untracked<'_> {
    fn from(miss: Miss) -> Self {
        Self::Miss(miss)
    }
}

/// What is to be done with the packet of a NAT backend.
#[derive(Debug)]
pub enum Reply<'t> {
    /// It goes to the client, which is there.
    To(NextHop),
    /// Its flow is cut.
    Cut(Cut<'t>),
}

/// A worker's connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    pub(super) writer: FlowWriter,
    /// The flow tables of all workers, in their order.
    pub(super) tables: Arc<[Arc<FlowTable>]>,
    /// The full-NAT sources that are this worker's to give.
    pub(super) leases: Leases,
    pub(super) me: u8,
    swept_at: Ticks,
    /// Entries that the sweep is behind by.
    sweep_debt: u32,
}

impl Conntrack {
    /// Connection tracking of worker `me`, whose table is `tables[me]`, and which has `leases`; `None`
    /// if there is no such table, another worker writes it, or it has flows already: they would be of
    /// another process's backends.
    pub fn new(tables: Arc<[Arc<FlowTable>]>, leases: Leases, me: u8, now: Ticks) -> Option<Self> {
        Self::adopt(tables, leases, me, now).filter(|conntrack| conntrack.writer.is_empty())
    }

    /// The same with the flows that the table has, which must be of this process's backends.
    pub(super) fn adopt(
        tables: Arc<[Arc<FlowTable>]>,
        leases: Leases,
        me: u8,
        now: Ticks,
    ) -> Option<Self> {
        let writer = FlowWriter::new(Arc::clone(tables.get(usize::from(me))?))?;
        Some(Self { writer, tables, leases, me, swept_at: now, sweep_debt: 0 })
    }

    /// Whose it is.
    pub const fn worker(&self) -> u8 {
        self.me
    }

    /// The secret of the flow hashes.
    pub fn secret(&self) -> &TableSecret {
        self.writer.table().secret()
    }

    /// Where a client's packet is to go, by the pin of its flow.
    ///
    /// # Errors
    /// [`Untracked`] when there is no pin, or the flow is cut.
    #[inline(always)]
    pub fn track<'t>(
        &mut self,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        if let Some(hit) = context.flows.at(&packet.flow, packet.hint)
            && let Some(backend) = steady(packet, &hit.track, context)
        {
            note(&hit, packet, backend, context);
            return Ok(Target::of(backend, &hit.track));
        }
        self.track_unsteady(packet, context)
    }

    /// A packet from a client that begins, changes or ends something, or was not found at once.
    #[inline(never)]
    fn track_unsteady<'t>(
        &mut self,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        let Some(hit) = context.flows.find_at(&packet.flow, packet.hint) else {
            return self.request_without_pin(packet, context);
        };
        let Some(backend) = living(packet.flow.protocol(), &hit.track, context) else {
            return self.request_after_end(&hit, packet, context);
        };
        if hit.track.state().has(State::ALIAS) {
            return self.track_alias(&hit, packet, backend, context);
        }
        if let Some(miss) = leaves(packet, &hit.track, backend, context) {
            if backend.left == FlowsLeft::Rehash {
                count_rehash(context);
            }
            self.remove(hit.slot, context);
            return Err(miss.into());
        }
        if is_cut(|| packet.flow.tuple, &hit.track, backend, context) {
            cut(&hit, context.now);
            return pass_reset(packet, &hit.track, backend, context);
        }
        let before = hit.track.state();
        let change = request_change(packet, &hit.track, backend, context.now);
        let state = change.apply(before);
        hit.set_state(state);
        if backend.quirks.has(Quirks::REMEMBERS) {
            clients::seen(&packet.flow, backend, (before, state), context);
        }
        note_way_back(&hit, packet, backend, context);
        if !change.ages {
            hit.seen(context.now);
        }
        Ok(Target::of(backend, &hit.track))
    }

    /// A client's packet for which this worker has an alias. What it stands for decides, if the
    /// packet may begin another flow.
    #[cold]
    fn track_alias<'t>(
        &mut self,
        alias: &Hit<'_>,
        packet: &Packet,
        backend: &'t Backend,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        if !bindings::note_elsewhere(&alias.track, packet, context) {
            self.remove(alias.slot, context);
            return self.request_without_pin(packet, context);
        }
        let news = |track: &Track| News::of_request(packet, track, backend, context);
        let Some(track) = self.refresh(alias, &packet.flow, news, context) else {
            return self.request_without_pin(packet, context);
        };
        if let Some(miss) = leaves(packet, &track, backend, context) {
            self.remove(alias.slot, context);
            return Err(miss.into());
        }
        if is_cut(|| packet.flow.tuple, &track, backend, context) {
            return pass_reset(packet, &track, backend, context);
        }
        Ok(Target::of(backend, &track))
    }

    /// A client's packet for a pin that no longer lives.
    #[cold]
    fn request_after_end<'t>(
        &mut self,
        hit: &Hit<'_>,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        let protocol = packet.flow.protocol();
        if let Some(backend) = idled_out_loudly(protocol, &hit.track, context)
            && !packet.shape.flags.opens()
        {
            cut(hit, context.now);
            return pass_reset(packet, &hit.track, backend, context);
        }
        count_end(protocol, &hit.track, context);
        self.remove(hit.slot, context);
        self.request_without_pin(packet, context)
    }

    /// A client's packet for which this worker has no pin.
    #[cold]
    fn request_without_pin<'t>(
        &mut self,
        packet: &Packet,
        context: &Context<'t>,
    ) -> Result<Target<'t>, Untracked<'t>> {
        let tcp = packet.flow.protocol() == Protocol::Tcp;
        let opens = !tcp || packet.shape.flags.opens();
        // NICs send fragments to another worker than whole packets of their flow, so both kinds look
        // for each other once fragments are about.
        let fragments = !tcp && context.datagrams.generation() != 0;
        // A SYN that is repeated, at another worker now, chooses the same backend by itself; but a backend
        // that sees another source takes it for another connection.
        if opens && !fragments && !bindings::wanted(packet, context) {
            return Err(Miss::Open.into());
        }
        let miss = if opens { Miss::Open } else { Miss::Midflow };
        // As in the own table, a pin holds although its address and port are another VIP's by now.
        let (slot, pin, backend) =
            self.find_elsewhere(&packet.flow, context, |_| true).ok_or(miss)?;
        if let Some(miss) = leaves(packet, &pin.track, backend, context) {
            return Err(miss.into());
        }
        context.stats.flows_found_elsewhere.add(1);
        bindings::note_elsewhere(&pin.track, packet, context);
        let news = News::of_request(packet, &pin.track, backend, context);
        self.add_alias(slot, &pin, &packet.flow, &news, context);
        if is_cut(|| packet.flow.tuple, &pin.track, backend, context) {
            return pass_reset(packet, &pin.track, backend, context);
        }
        Ok(Target::of(backend, &pin.track))
    }

    /// What is to be done with a NAT backend's packet: finds the flow that it answers among those that
    /// it may answer. `None` if there is none.
    #[inline]
    pub fn track_reply<'t>(
        &mut self,
        packet: &mut Packet,
        source: ListenKey,
        context: &Context<'t>,
    ) -> Option<Reply<'t>> {
        // Classify has found the first path and hashed its flow, which nearly every reply belongs to.
        let answerer = Answerer { backend: packet.backend, of_its_vip: false };
        let (flow, hint) = (packet.flow, packet.hint);
        match self.answered(&flow, hint, answerer, packet, context) {
            Some(track) => Some(reply(packet, &track, track.hop(), context)),
            None => self.track_reply_along(packet, source, context),
        }
    }

    /// The same along the other paths, and for backends whose connection ids name flows that are pinned to
    /// others.
    #[inline(never)]
    fn track_reply_along<'t>(
        &mut self,
        packet: &mut Packet,
        source: ListenKey,
        context: &Context<'t>,
    ) -> Option<Reply<'t>> {
        let key = packet.flow.key();
        packet.backend = BackendIndex(u16::MAX);
        let paths = context.table.return_paths(source);
        // One client port may have flows with several VIP ports: pins on the very backend come first.
        for (of_its_vip, first) in [(false, 1), (true, 0)] {
            for path in paths.clone().skip(first) {
                let answerer = Answerer { backend: path.backend, of_its_vip };
                if !answerer.exists(context) {
                    continue;
                }
                let flow = answered_flow(key.client, key.client_port, source, path);
                let flow = self.secret().hash(flow);
                if let Some(track) = self.answered(&flow, Slot::NOWHERE, answerer, packet, context)
                {
                    packet.flow = flow;
                    packet.vip = path.vip;
                    packet.backend = path.backend;
                    return Some(reply(packet, &track, track.hop(), context));
                }
            }
        }
        None
    }

    /// What is known of `flow`, if the backend may answer for it, by whatever worker has its pin; notes the
    /// reply there.
    #[inline]
    fn answered(
        &mut self,
        flow: &HashedKey,
        hint: Slot,
        answerer: Answerer,
        packet: &Packet,
        context: &Context<'_>,
    ) -> Option<Track> {
        let found = context.flows.find_at(flow, hint).and_then(|hit| {
            let pinned = living(flow.protocol(), &hit.track, context)?;
            answerer.answers_for(pinned, context).then_some((hit, pinned))
        });
        let Some((hit, living)) = found else {
            return Some(self.answered_elsewhere(flow, answerer, packet, context)?.track);
        };
        if hit.track.state().has(State::ALIAS) {
            let news = |track: &Track| News::of_reply(packet, flow, track, living, context);
            return match self.refresh(&hit, flow, news, context) {
                Some(track) => Some(track),
                None => Some(self.answered_elsewhere(flow, answerer, packet, context)?.track),
            };
        }
        let is_cut = is_cut(|| flow.tuple, &hit.track, living, context);
        if (is_cut || hit.track.state().has(State::FIN_CLIENT))
            && let Some(newer) = self.answered_by_newer(hit.slot, flow, answerer, packet, context)
        {
            return Some(newer);
        }
        if is_cut {
            cut(&hit, context.now);
        } else {
            let change = reply_change(packet, &hit.track, living, context.now);
            let state = change.apply(hit.track.state());
            hit.set_state(state);
            if is_due(&hit.track, context) {
                clients::seen_again(flow, living, state, context);
            }
            if !change.ages {
                hit.seen(context.now);
            }
        }
        Some(hit.track)
    }

    /// The client's port may be in use again, and pinned by another worker by now.
    #[cold]
    fn answered_by_newer(
        &mut self,
        slot: Slot,
        flow: &HashedKey,
        answerer: Answerer,
        packet: &Packet,
        context: &Context<'_>,
    ) -> Option<Track> {
        let own = self.writer.table().read(slot)?.pin;
        let newer = self.answered_elsewhere(flow, answerer, packet, context)?;
        (own.created.since(newer.created) == Ticks(0)).then_some(newer.track)
    }

    #[cold]
    fn answered_elsewhere(
        &mut self,
        flow: &HashedKey,
        answerer: Answerer,
        packet: &Packet,
        context: &Context<'_>,
    ) -> Option<Pin> {
        let on_it = |pin: &Pin| {
            let pinned = context.table.pinned(pin.track.backend());
            pinned.is_some_and(|pinned| answerer.answers_for(pinned, context))
        };
        let (slot, pin, backend) = self.find_elsewhere(flow, context, on_it)?;
        let news = News::of_reply(packet, flow, &pin.track, backend, context);
        self.add_alias(slot, &pin, flow, &news, context);
        Some(pin)
    }

    /// A living pin of the flow, in another worker's table, that `wanted` takes, and its backend.
    #[cold]
    fn find_elsewhere<'t>(
        &self,
        flow: &HashedKey,
        context: &Context<'t>,
        wanted: impl Fn(&Pin) -> bool,
    ) -> Option<(Slot, Pin, &'t Backend)> {
        let others = (0_u8..).zip(self.tables.iter()).filter(|(worker, _)| *worker != self.me);
        let mut found =
            others.filter_map(|(_, table)| table.lookup(flow)).filter_map(|(slot, pin)| {
                if pin.track.state().has(State::ALIAS) || !wanted(&pin) {
                    return None;
                }
                let backend = living(flow.protocol(), &pin.track, context)?;
                Some((slot, pin, backend))
            });
        let first = found.next()?;
        if !first.1.track.state().has(State::CUT) {
            return Some(first);
        }
        // The ports may be in use again since, at yet another worker.
        Some(found.find(|(_, pin, _)| !pin.track.state().has(State::CUT)).unwrap_or(first))
    }

    /// Notes that another worker has `pin` at `slot`, and tells it of the packet. If there is no
    /// room for a note, or the flow is pinned here as well (to another backend, since), the next
    /// packet looks again.
    fn add_alias(
        &mut self,
        slot: Slot,
        pin: &Pin,
        flow: &HashedKey,
        news: &News,
        context: &Context<'_>,
    ) {
        if let Some(owner) = self.tables.get(usize::from(pin.track.owner())) {
            tell(owner, slot, flow, &pin.track, news, context.now);
        }
        let alias = alias_of(&news.apply(pin, context.now), context.now);
        match context.flows.find_at(flow, Slot::NOWHERE) {
            Some(old) if old.track.state().has(State::ALIAS) => {
                self.writer.update(old.slot, flow, &alias);
            }
            Some(_) => {}
            // Notes leave the last eighth of the table to pins.
            None => {
                let room = self.writer.used(flow) < self.writer.table().capacity() / 8 * 7;
                if room && self.writer.insert(flow, &alias).is_ok() {
                    context.stats.flow_aliases.add(1);
                }
            }
        }
    }

    /// What an alias stands for: the owner's pin if there is news to tell, or nothing was told for
    /// a while; else the alias itself. Removes the alias, and returns `None`, when that pin is gone or
    /// may be another one's by now. `news_to` says what is new to who knows so much: what the owner knows
    /// decides.
    #[inline]
    fn refresh(
        &mut self,
        hit: &Hit<'_>,
        flow: &HashedKey,
        news_to: impl Fn(&Track) -> News,
        context: &Context<'_>,
    ) -> Option<Track> {
        let alias = &hit.track;
        if alias.state().has(State::CUT) {
            // The ports may be in use again since, by a flow that nobody has cut.
            self.remove(hit.slot, context);
            return None;
        }
        let recent = context.now.since(alias.last_seen()).0 < ALIAS_REFRESH.0;
        if recent && news_to(alias).is_known(alias) {
            return Some(*alias);
        }
        let owner = self.tables.get(usize::from(alias.owner())).map(Arc::as_ref);
        let pin = owner.and_then(|owner| owner.lookup(flow)).filter(|(_, pin)| {
            !pin.track.state().has(State::ALIAS) && pin.track.backend() == alias.backend()
        });
        let (Some(owner), Some((pin_slot, pin))) = (owner, pin) else {
            self.remove(hit.slot, context);
            return None;
        };
        let news = news_to(&pin.track);
        if news.opening {
            // The caller decides whether it is this flow's at all.
            return Some(pin.track);
        }
        tell(owner, pin_slot, flow, &pin.track, &news, context.now);
        let pin = news.apply(&pin, context.now);
        if let Some(backend) = context.table.pinned(alias.backend()) {
            clients::seen_again(flow, backend, pin.track.state(), context);
        }
        self.writer.update(hit.slot, flow, &alias_of(&pin, context.now));
        Some(pin.track)
    }

    /// The living pin of a flow, whoever has it, and its backend. Changes nothing, also not how long it
    /// lives.
    #[cold]
    pub fn peek<'t>(
        &self,
        flow: &HashedKey,
        hint: Slot,
        context: &Context<'t>,
    ) -> Option<(Track, &'t Backend)> {
        let here = context.flows.find_at(flow, hint).map(|hit| hit.track);
        let here = here.and_then(|track| Some((track, living(flow.protocol(), &track, context)?)));
        here.or_else(|| {
            let (_, pin, backend) = self.find_elsewhere(flow, context, |_| true)?;
            Some((pin.track, backend))
        })
    }

    /// Whether any worker has a living pin of the flow on this backend.
    #[cold]
    pub fn is_pinned_anywhere(
        &self,
        flow: &HashedKey,
        backend: BackendIndex,
        context: &Context<'_>,
    ) -> bool {
        let here = context.flows.find_at(flow, Slot::NOWHERE).filter(|hit| {
            hit.track.backend().index == backend
                && living(flow.protocol(), &hit.track, context).is_some()
        });
        let on_it = |pin: &Pin| pin.track.backend().index == backend;
        here.is_some() || self.find_elsewhere(flow, context, on_it).is_some()
    }

    /// Pins the packet's flow, which has no entry, to `backend`; a full-NAT flow gets its source.
    ///
    /// # Errors
    /// Why there is no room for it: [`Drop::NoSourcePort`], [`Drop::TableFull`],
    /// [`Drop::VlanPairsFull`].
    pub fn pin<'t>(
        &mut self,
        packet: &Packet,
        backend: &'t Backend,
        rule: Rule,
        context: &Context<'_>,
    ) -> Result<Target<'t>, Drop> {
        let state = first_state(packet);
        if backend.forward.translates() && packet.way_back(context.nic).is_none() {
            return Err(Drop::VlanPairsFull);
        }
        let hop = packet.came_from(context.nic);
        let mut pin = Pin::new(packet.vip, backend.id, state, self.me, &hop, context.now).by(rule);
        if backend.forward == Forward::FullNat {
            pin = pin.with_binding(self.bind(packet, backend, context)?);
        }
        if let Err(Full) = self.writer.insert(&packet.flow, &pin) {
            bindings::release(&mut self.leases, &pin, context.stats);
            return Err(Drop::TableFull);
        }
        count_pin(&pin, context.stats);
        Ok(Target::of(backend, &pin.track))
    }

    /// Takes back the pin that the first packet of a flow has made, as that is not sent.
    pub fn unpin(&mut self, flow: &HashedKey, context: &Context<'_>) {
        let hit = context.flows.find_at(flow, Slot::NOWHERE);
        if let Some(pin) = hit.and_then(|hit| self.writer.remove(hit.slot)) {
            bindings::release(&mut self.leases, &pin, context.stats);
            count_gone(&pin, context.stats);
        }
    }

    /// Removes flows that are idle for too long or whose backend is gone, and probes silent ones that
    /// are to be cut, a bounded number per call; returns whether more is due at once.
    #[inline]
    pub fn sweep(&mut self, context: &Context<'_>, outbox: &mut Outbox) -> bool {
        let elapsed = context.now.since(self.swept_at).0;
        if elapsed > 0 {
            self.swept_at = context.now;
            let span = self.writer.span();
            let due = u64::from(span) * u64::from(elapsed) / u64::from(SWEEP.0) + 1;
            // Never more than once around: a worker that slept for long has not missed more.
            let debt = due.saturating_add(u64::from(self.sweep_debt)).min(u64::from(span));
            self.sweep_debt = u32::try_from(debt).unwrap_or(span);
        }
        let count = self.sweep_debt.min(SWEEP_MAX);
        if count > 0 {
            let leases = &mut self.leases;
            let shown = self.writer.sweep(
                count,
                REMOVALS_MAX,
                |protocol, hit, tuple| sweep_one(protocol, hit, tuple, context, outbox),
                |protocol, pin| {
                    count_end(protocol, &pin.track, context);
                    bindings::release(leases, pin, context.stats);
                    count_removal(pin, context);
                },
            );
            self.sweep_debt -= shown;
        }
        self.sweep_debt > 0
    }

    fn remove(&mut self, slot: Slot, context: &Context<'_>) {
        if let Some(pin) = self.writer.remove(slot) {
            bindings::release(&mut self.leases, &pin, context.stats);
            count_removal(&pin, context);
        }
    }
}

/// Asks for the other lines of the look-ups, for all packets before any is looked up.
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

/// Keeps a pin up to date with a packet of its client.
#[inline(always)]
fn note(hit: &Hit<'_>, packet: &Packet, backend: &Backend, context: &Context<'_>) {
    note_way_back(hit, packet, backend, context);
    hit.seen(context.now);
}

/// Notes where a client's packet came from, if replies go there.
#[inline(always)]
fn note_way_back(hit: &Hit<'_>, packet: &Packet, backend: &Backend, context: &Context<'_>) {
    // The client's packets may come another way now (its router changed): replies follow.
    match backend.forward {
        Forward::Nat => {
            if let Some(way_back) = packet.way_back(context.nic) {
                hit.set_way_back(way_back);
            }
        }
        Forward::FullNat => bindings::note(&hit.track, packet, context),
        Forward::Dsr | Forward::Ipip | Forward::Gue => {}
    }
}

/// Cuts a flow for good. From now on its pin lives for [`RESET_TIME`], whatever comes.
#[cold]
pub(super) fn cut(hit: &Hit<'_>, now: Ticks) {
    if !hit.track.state().has(State::CUT) {
        hit.set_state(hit.track.state().cut());
        hit.seen(now);
    }
}

/// What becomes of a client's packet of a flow that is cut: a RST may tell the backend, all others are
/// answered.
#[cold]
fn pass_reset<'t>(
    packet: &Packet,
    track: &Track,
    backend: &'t Backend,
    context: &Context<'_>,
) -> Result<Target<'t>, Untracked<'t>> {
    let target = Target::of(backend, track);
    if packet.shape.flags.any(TcpFlags::RST) {
        return Ok(target);
    }
    Err(Untracked::Cut(Cut { client: packet.came_from(context.nic), target }))
}

/// What becomes of a NAT backend's packet, whose flow this is.
#[inline]
pub(super) fn reply<'t>(
    packet: &Packet,
    track: &Track,
    client: NextHop,
    context: &Context<'t>,
) -> Reply<'t> {
    match context.table.backend(packet.backend) {
        Some(backend)
            if is_cut(|| packet.flow.tuple, track, backend, context)
                && !packet.shape.flags.any(TcpFlags::RST) =>
        {
            Reply::Cut(Cut { client, target: Target::of(backend, track) })
        }
        _ => Reply::To(client),
    }
}

/// What the sweep does with one entry.
#[inline]
fn sweep_one(
    protocol: Protocol,
    hit: &Hit<'_>,
    tuple: &dyn Fn() -> Tuple,
    context: &Context<'_>,
    outbox: &mut Outbox,
) -> Verdict {
    match living(protocol, &hit.track, context) {
        Some(backend) if !is_cut(tuple, &hit.track, backend, context) => Verdict::Keep,
        Some(backend) => sweep_cut(protocol, hit, backend, tuple, context, outbox),
        None => match idled_out_loudly(protocol, &hit.track, context) {
            Some(backend) => sweep_cut(protocol, hit, backend, tuple, context, outbox),
            None => Verdict::Remove,
        },
    }
}

/// Cuts a flow that is to be cut, and probes its ends, if it is time. It may be that they said nothing
/// since, or that what they were told was lost.
#[cold]
fn sweep_cut(
    protocol: Protocol,
    hit: &Hit<'_>,
    backend: &Backend,
    tuple: &dyn Fn() -> Tuple,
    context: &Context<'_>,
    outbox: &mut Outbox,
) -> Verdict {
    let state = hit.track.state();
    let age = if state.has(State::CUT) { context.now.since(hit.track.last_seen()).0 } else { 0 };
    let state = state.cut();
    let due = state.probes() < State::MAX_PROBES && age >= u32::from(state.probes()) * PROBE_GAP;
    if !due || !is_open(protocol, &hit.track, backend) {
        return Verdict::Keep;
    }
    if !outbox.has_room() {
        return Verdict::Later;
    }
    if !hit.track.state().has(State::CUT) {
        hit.seen(context.now);
    }
    // In one step: a change is reckoned from the state that was read.
    hit.set_state(state.with_probe());
    let client = context.bindings.way_back(&hit.track);
    let target = Target::of(backend, &hit.track);
    outbox.probe(&tuple().key(), &Cut { client, target }, context);
    Verdict::Keep
}

/// Tells the owner of a pin that a packet of its flow came. One that is cut lives no longer for that.
pub(super) fn tell(
    owner: &FlowTable,
    slot: Slot,
    flow: &HashedKey,
    track: &Track,
    news: &News,
    now: Ticks,
) {
    if track.state().has(State::CUT) {
        return;
    }
    if !news.change.ages {
        owner.touch(slot, track, now);
    }
    if let Some(hop) = &news.hop {
        owner.change_hop(slot, track, hop);
    }
    owner.change_state(slot, flow, track, news.change.set, news.change.clear);
}

/// Counts why a pin that no longer lives has ended.
#[cold]
fn count_end(protocol: Protocol, track: &Track, context: &Context<'_>) {
    let (stats, state) = (context.stats, track.state());
    if state.has(State::ALIAS) {
        return;
    }
    match context.table.pinned(track.backend()) {
        _ if state.has(State::CUT) => stats.flows_reset.add(1),
        None => stats.flows_stale.add(1),
        Some(backend) if protocol == Protocol::Tcp && state.is_closing(backend.forward) => {
            stats.flows_closed.add(1);
        }
        Some(_) => stats.flows_idled_out.add(1),
    }
}

/// Counts, and tells, that a pin is given up by the policy for what its backend has left.
#[cold]
fn count_rehash(context: &Context<'_>) {
    context.stats.flows_stale.add(1);
    if let Some(trace) = context.trace {
        trace.tell("conntrack", "the pin is given up", "its backend does not serve: rehash");
    }
}

/// Keeps the gauges when a flow is pinned.
fn count_pin(pin: &Pin, stats: &WorkerStats) {
    stats.flows_active.add(1);
    for counters in flow_stats(pin, stats) {
        counters.flows_active.add(1);
    }
}

/// Keeps the gauges when an entry is removed, and notes how long a flow lasted that was not cut.
fn count_removal(pin: &Pin, context: &Context<'_>) {
    let stats = context.stats;
    if pin.track.state().has(State::ALIAS) {
        stats.flow_aliases.sub(1);
        return;
    }
    count_gone(pin, stats);
    let ended = context.table.pinned(pin.track.backend()).is_some();
    if ended && is_unanswered(pin, context) {
        let counter = stats.unanswered.get(usize::from(pin.track.backend().index.0));
        counter.into_iter().for_each(|counter| counter.add(1));
    }
    if let Some(lifetimes) = stats.lifetimes.get(usize::from(pin.vip.0)).filter(|_| ended) {
        lifetimes.add(context.now.since(pin.created));
    }
}

/// Keeps the gauges when a pin is removed.
fn count_gone(pin: &Pin, stats: &WorkerStats) {
    stats.flows_active.sub(1);
    for counters in flow_stats(pin, stats) {
        counters.flows_active.sub(1);
    }
}

/// The counters of the pin's VIP and backend.
fn flow_stats<'s>(pin: &Pin, stats: &'s WorkerStats) -> impl Iterator<Item = &'s FlowStats> {
    let vip = stats.vips.get(usize::from(pin.vip.0));
    let backend = stats.backends.get(usize::from(pin.track.backend().index.0));
    [vip, backend].into_iter().flatten()
}
