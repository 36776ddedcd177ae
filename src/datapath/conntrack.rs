//! Stage 4 of 7, conntrack: which backend holds this flow?
//!
//! Reads: the flow key, this worker's flow table, and the other workers' on a miss.
//! Writes: `target` and `backend`; time stamps and states of flows.
//! Cost: two prefetched cache lines per packet; a mid-flow miss looks once into every other table.
//!
//! ```text
//! TCP:   SYN --> embryonic --client's ACK--> established --FINs or RST--> closing
//!                                                 ^------- client's packet after a RST
//! ```
//!
//! A packet may arrive at another worker than the one that pinned its flow: replies of NAT backends
//! do as a rule, as the NIC hashes another tuple. The worker then reads the owner's table, notes
//! what it found as an *alias* in its own, and once a second tells the owner that the flow lives.

use std::sync::Arc;

use super::batch::{Batch, Miss, Packet, Target, TcpFlags, Way};
use super::classify::answered_flow;
use crate::flow::Protocol;
use crate::flow::entry::{Pin, State};
use crate::flow::table::{FlowTable, HashedKey, Slot, TableSecret};
use crate::flow::writer::{FlowWriter, Full};
use crate::forwarding::table::{Backend, Vip};
use crate::forwarding::{BackendIndex, Forward, ForwardingTable, NextHop};
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
/// An alias is a note: when it was not wanted for this long, looking again is cheaper than memory.
const ALIAS_TIMEOUT: Ticks = Ticks(1000);

/// A worker's connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    writer: FlowWriter,
    /// The flow tables of all workers, in their order.
    tables: Arc<[Arc<FlowTable>]>,
    me: u8,
    swept_at: Ticks,
    /// Entries that the sweep is behind by.
    sweep_debt: u32,
}

/// What a stage needs to look around: the forwarding table, the clock, the counters.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The forwarding table of this batch.
    pub table: &'a ForwardingTable,
    /// Now.
    pub now: Ticks,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
}

impl Conntrack {
    /// Connection tracking of worker `me`, whose table is `tables[me]`; `None` if there is no such
    /// table, or it is not empty.
    pub fn new(tables: Arc<[Arc<FlowTable>]>, me: u8, now: Ticks) -> Option<Self> {
        let writer = FlowWriter::new(Arc::clone(tables.get(usize::from(me))?))?;
        Some(Self { writer, tables, me, swept_at: now, sweep_debt: 0 })
    }

    /// The secret of the flow hashes.
    pub fn secret(&self) -> &TableSecret {
        self.writer.table().secret()
    }

    /// Asks for the memory that [`Conntrack::track`] will need, for all packets before any.
    #[inline]
    pub fn prefetch(&self, batch: &mut Batch) {
        let table = self.writer.table();
        for packet in batch.in_flight() {
            table.prefetch_bucket(&packet.flow);
        }
        for packet in batch.in_flight() {
            packet.hint = table.prefetch_entry(&packet.flow);
        }
    }

    /// Finds the pin of every packet in flight.
    #[inline]
    pub fn track(&mut self, batch: &mut Batch, context: Context<'_>) {
        for packet in batch.in_flight() {
            match packet.way {
                Way::ToBackend => packet.target = self.track_request(packet, context),
                Way::ToClient(_) => self.track_reply(packet, context),
            }
            if let Target::Backend(backend) = packet.target {
                packet.backend = Some(backend);
            }
        }
    }

    /// A packet from a client.
    #[inline]
    fn track_request(&mut self, packet: &Packet, context: Context<'_>) -> Target {
        let Some((slot, pin)) = self.find_at(&packet.flow, packet.hint) else {
            return self.request_without_pin(packet, context);
        };
        let Some((vip, backend)) = living(packet.flow.protocol(), &pin, context) else {
            return self.request_after_end(slot, &pin, packet, context);
        };
        if pin.state().has(State::ALIAS) {
            return self.track_alias(slot, &pin, packet, (vip, backend), context);
        }
        if begins_anew(packet, &pin, vip, backend) {
            self.remove(slot, &pin, context.stats);
            return Target::Wanted(Miss::Open);
        }
        self.note_request(slot, &pin, packet, vip, context.now);
        Target::Backend(backend.id.index)
    }

    /// Keeps a pin up to date with a packet of its client.
    #[inline]
    fn note_request(&mut self, slot: Slot, pin: &Pin, packet: &Packet, vip: &Vip, now: Ticks) {
        let state = request_change(packet).apply(pin.state());
        if state != pin.state() {
            self.writer.set_state(slot, pin.state(), state);
        }
        if vip.forward == Forward::Nat {
            let hop = packet.headers.came_from(packet.port);
            if !pin.comes_from(&hop) {
                // The client's packets come another way now (its router changed): replies follow.
                self.writer.set_hop(slot, &hop);
            }
        }
        self.writer.seen(slot, pin, now);
    }

    /// A client's packet for which this worker has an alias. What it stands for decides, if the
    /// packet may begin another flow.
    #[cold]
    fn track_alias(
        &mut self,
        slot: Slot,
        alias: &Pin,
        packet: &Packet,
        (vip, backend): (&Vip, &Backend),
        context: Context<'_>,
    ) -> Target {
        let news = News::of_request(packet);
        let Some(pin) = self.refresh(slot, alias, &packet.flow, &news, context) else {
            return self.request_without_pin(packet, context);
        };
        if begins_anew(packet, &pin, vip, backend) {
            self.remove(slot, alias, context.stats);
            return Target::Wanted(Miss::Open);
        }
        Target::Backend(backend.id.index)
    }

    /// A client's packet for a pin that no longer lives.
    #[cold]
    fn request_after_end(
        &mut self,
        slot: Slot,
        pin: &Pin,
        packet: &Packet,
        context: Context<'_>,
    ) -> Target {
        count_end(packet.flow.protocol(), pin, context);
        self.remove(slot, pin, context.stats);
        self.request_without_pin(packet, context)
    }

    /// A client's packet for which this worker has no pin.
    #[cold]
    fn request_without_pin(&mut self, packet: &Packet, context: Context<'_>) -> Target {
        if packet.flow.protocol() == Protocol::Udp || packet.headers.flags.opens() {
            return Target::Wanted(Miss::Open);
        }
        let found = self.find_elsewhere(&packet.flow, context, |pin| pin.vip() == packet.vip);
        let Some((slot, pin)) = found else { return Target::Wanted(Miss::Midflow) };
        context.stats.flows_found_elsewhere.add(1);
        self.add_alias(slot, &pin, &packet.flow, &News::of_request(packet), context);
        Target::Backend(pin.backend().index)
    }

    /// A packet from a NAT backend: finds the flow that it answers among those that it may answer.
    #[inline]
    fn track_reply(&mut self, packet: &mut Packet, context: Context<'_>) {
        let Way::ToClient(source) = packet.way else { return };
        let mut hashed = Some(packet.flow);
        for path in context.table.return_paths(source) {
            // Classify has hashed the first of them.
            let flow =
                hashed.take().unwrap_or_else(|| self.secret().hash(answered_flow(packet, path)));
            if let Some(pin) = self.answered(&flow, path.backend, packet, context) {
                packet.flow = flow;
                packet.vip = pin.vip();
                packet.backend = Some(path.backend);
                packet.target = Target::Client(pin.hop());
                return;
            }
        }
        packet.drop(Drop::ReturnNoFlow);
    }

    /// The pin of `flow` on `backend`, wherever it is; notes the reply in it.
    #[inline]
    fn answered(
        &mut self,
        flow: &HashedKey,
        backend: BackendIndex,
        packet: &Packet,
        context: Context<'_>,
    ) -> Option<Pin> {
        let found = self.find_at(flow, packet.hint).filter(|(_, pin)| {
            pin.backend().index == backend && living(flow.protocol(), pin, context).is_some()
        });
        match found {
            Some((slot, pin)) if !pin.state().has(State::ALIAS) => {
                // The client's port may be in use again, and pinned by another worker by now.
                if pin.state().has(State::FIN_CLIENT)
                    && let Some(newer) = self.answered_elsewhere(flow, backend, packet, context)
                    && pin.created().since(newer.created()) == Ticks(0)
                {
                    return Some(newer);
                }
                let state = reply_change(packet).apply(pin.state());
                if state != pin.state() {
                    self.writer.set_state(slot, pin.state(), state);
                }
                self.writer.seen(slot, &pin, context.now);
                Some(pin)
            }
            Some((slot, alias)) => self
                .refresh(slot, &alias, flow, &News::of_reply(packet), context)
                .or_else(|| self.answered_elsewhere(flow, backend, packet, context)),
            None => self.answered_elsewhere(flow, backend, packet, context),
        }
    }

    #[cold]
    fn answered_elsewhere(
        &mut self,
        flow: &HashedKey,
        backend: BackendIndex,
        packet: &Packet,
        context: Context<'_>,
    ) -> Option<Pin> {
        let (slot, pin) =
            self.find_elsewhere(flow, context, |pin| pin.backend().index == backend)?;
        self.add_alias(slot, &pin, flow, &News::of_reply(packet), context);
        Some(pin)
    }

    /// The pin of a flow in this worker's table.
    fn find(&self, flow: &HashedKey) -> Option<(Slot, Pin)> {
        self.find_at(flow, None)
    }

    /// As `find`, for a packet whose entry was asked for.
    #[inline]
    fn find_at(&self, flow: &HashedKey, hint: Option<Slot>) -> Option<(Slot, Pin)> {
        let slot = self.writer.table().find_at(flow, hint)?;
        self.writer.get(slot).map(|pin| (slot, pin))
    }

    /// A living pin of the flow, in another worker's table, that `wanted` takes.
    #[cold]
    fn find_elsewhere(
        &self,
        flow: &HashedKey,
        context: Context<'_>,
        wanted: impl Fn(&Pin) -> bool,
    ) -> Option<(Slot, Pin)> {
        let others = (0_u8..).zip(self.tables.iter()).filter(|(worker, _)| *worker != self.me);
        others.filter_map(|(_, table)| table.lookup(flow)).find(|(_, pin)| {
            !pin.state().has(State::ALIAS)
                && wanted(pin)
                && living(flow.protocol(), pin, context).is_some()
        })
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
        context: Context<'_>,
    ) {
        if let Some(owner) = self.tables.get(usize::from(pin.owner())) {
            tell(owner, slot, flow, pin, news, context.now);
        }
        let alias = alias_of(&news.apply(pin, context.now));
        match self.find(flow) {
            Some((own, old)) if old.state().has(State::ALIAS) => {
                self.writer.update(own, flow, &alias);
            }
            Some(_) => {}
            // Notes leave the last eighth of the table to pins.
            None => {
                let room = self.writer.len() < self.writer.table().capacity() / 8 * 7;
                if room && self.writer.insert(flow, &alias).is_ok() {
                    context.stats.flow_aliases.add(1);
                }
            }
        }
    }

    /// What an alias stands for: the owner's pin if there is news to tell, or nothing was told for
    /// a while; else the alias itself. Removes the alias, and returns `None`, when that pin is gone.
    #[inline]
    fn refresh(
        &mut self,
        slot: Slot,
        alias: &Pin,
        flow: &HashedKey,
        news: &News,
        context: Context<'_>,
    ) -> Option<Pin> {
        let recent = context.now.since(alias.last_seen()).0 < ALIAS_REFRESH.0;
        if recent && news.is_known(alias) {
            return Some(*alias);
        }
        let owner = self.tables.get(usize::from(alias.owner())).map(Arc::as_ref);
        let pin = owner
            .and_then(|owner| owner.lookup(flow))
            .filter(|(_, pin)| !pin.state().has(State::ALIAS) && pin.backend() == alias.backend());
        let (Some(owner), Some((pin_slot, pin))) = (owner, pin) else {
            self.remove(slot, alias, context.stats);
            return None;
        };
        if news.opening {
            // The caller decides whether it is this flow's at all.
            return Some(pin);
        }
        tell(owner, pin_slot, flow, &pin, news, context.now);
        let pin = news.apply(&pin, context.now);
        self.writer.update(slot, flow, &alias_of(&pin));
        Some(pin)
    }

    /// For a packet whose flow had no pin when its batch was tracked: the backend, if an earlier
    /// packet of the batch has pinned it since.
    pub fn track_again(&mut self, packet: &Packet, context: Context<'_>) -> Option<BackendIndex> {
        self.find(&packet.flow)?;
        match self.track_request(packet, context) {
            Target::Backend(backend) => Some(backend),
            _ => None,
        }
    }

    /// Whether any worker has a living pin of the flow on this backend.
    #[cold]
    pub fn is_pinned_anywhere(
        &self,
        flow: &HashedKey,
        backend: BackendIndex,
        context: Context<'_>,
    ) -> bool {
        let on_it = |pin: &Pin| pin.backend().index == backend;
        let here = self
            .find(flow)
            .filter(|(_, pin)| on_it(pin) && living(flow.protocol(), pin, context).is_some());
        here.is_some() || self.find_elsewhere(flow, context, on_it).is_some()
    }

    /// Pins the packet's flow, which has no entry, to `backend`.
    ///
    /// # Errors
    /// [`Full`]: the table has no room.
    pub fn pin(
        &mut self,
        packet: &Packet,
        backend: &Backend,
        context: Context<'_>,
    ) -> Result<(), Full> {
        let state = match packet.flow.protocol() {
            Protocol::Udp => State::default(),
            // A flow whose pin was lost proves itself with its next packet.
            Protocol::Tcp => request_change(packet).set.without(State::ESTABLISHED),
        };
        let hop = packet.headers.came_from(packet.port);
        let pin = Pin::new(packet.vip, backend.id, state, self.me, &hop, context.now);
        self.writer.insert(&packet.flow, &pin)?;
        count_pin(&pin, context.stats);
        Ok(())
    }

    /// Removes flows that are idle for too long or whose backend is gone, a bounded number per call;
    /// returns whether more is due at once.
    #[inline]
    pub fn sweep(&mut self, context: Context<'_>) -> bool {
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
            self.sweep_debt -= self.writer.sweep(count, REMOVALS_MAX, |entry| {
                let keep = living(entry.protocol(), &entry.pin, context).is_some();
                if !keep {
                    count_end(entry.protocol(), &entry.pin, context);
                    count_removal(&entry.pin, context.stats);
                }
                keep
            });
        }
        self.sweep_debt > 0
    }

    fn remove(&mut self, slot: Slot, pin: &Pin, stats: &WorkerStats) {
        self.writer.remove(slot);
        count_removal(pin, stats);
    }
}

/// The VIP and backend of a pin, unless it is stale or was idle for too long.
#[inline]
fn living<'t>(
    protocol: Protocol,
    pin: &Pin,
    context: Context<'t>,
) -> Option<(&'t Vip, &'t Backend)> {
    let backend = context.table.pinned(pin.backend())?;
    let vip = context.table.vip(pin.vip()).filter(|vip| vip.id == backend.vip)?;
    let idle = context.now.since(pin.last_seen());
    (idle.0 <= timeout(protocol, pin.state(), vip).0).then_some((vip, backend))
}

/// How long the flow may be idle.
#[inline]
fn timeout(protocol: Protocol, state: State, vip: &Vip) -> Ticks {
    match protocol {
        _ if state.has(State::ALIAS) => ALIAS_TIMEOUT,
        Protocol::Udp => vip.timeouts.udp,
        Protocol::Tcp if state == State::ESTABLISHED => vip.timeouts.established,
        Protocol::Tcp if state.is_closing(vip.forward) => vip.timeouts.closing,
        Protocol::Tcp if state.has(State::ESTABLISHED) => vip.timeouts.established,
        Protocol::Tcp => vip.timeouts.embryonic,
    }
}

/// Whether a packet with the key of a pinned flow begins another one.
///
/// A SYN does if the old flow was closing (a port used again, RFC 9293 3.6.1), or its backend does
/// not answer (the client tries again, and shall succeed). A SYN for an established flow does not:
/// anybody can forge one, and the backend answers it (RFC 5961 4). Any UDP packet does if the
/// backend does not answer: its own traffic would keep a dead pin alive.
#[inline]
fn begins_anew(packet: &Packet, pin: &Pin, vip: &Vip, backend: &Backend) -> bool {
    match packet.flow.protocol() {
        Protocol::Tcp if !packet.headers.flags.opens() => false,
        Protocol::Tcp => !backend.up || pin.state().is_closing(vip.forward),
        Protocol::Udp => !backend.up,
    }
}

/// What a packet changes in the state of its flow, whatever that was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Change {
    set: State,
    clear: State,
}

impl Change {
    #[inline]
    const fn apply(self, state: State) -> State {
        state.with(self.set).without(self.clear)
    }
}

/// What a packet from the client changes.
#[inline]
fn request_change(packet: &Packet) -> Change {
    let flags = packet.headers.flags;
    if flags.any(TcpFlags::RST) {
        return Change { set: State::RST, ..Change::default() };
    }
    if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        return Change::default();
    }
    let fin = if flags.any(TcpFlags::FIN) { State::FIN_CLIENT } else { State(0) };
    // A client that goes on after a RST never sent it: it was forged, or the backend's stray.
    Change { set: State::ESTABLISHED.with(fin), clear: State::RST }
}

/// What a packet from the backend changes.
///
/// An answer other than a RST proves that the backend has the connection: it makes a flow whose
/// pin was lost an established one.
#[inline]
fn reply_change(packet: &Packet) -> Change {
    let flags = packet.headers.flags;
    let set = if flags.any(TcpFlags::RST) {
        State::RST
    } else if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        State(0)
    } else if flags.any(TcpFlags::FIN) {
        State::ESTABLISHED.with(State::FIN_BACKEND)
    } else {
        State::ESTABLISHED
    };
    Change { set, ..Change::default() }
}

/// What a packet tells of its flow, to whoever has the pin.
#[derive(Clone, Copy)]
struct News {
    change: Change,
    /// It may begin another flow: a SYN.
    opening: bool,
    /// Where the client's packets come from, if the packet is one.
    hop: Option<NextHop>,
}

impl News {
    /// Of a packet from the client.
    #[inline]
    fn of_request(packet: &Packet) -> Self {
        Self {
            change: request_change(packet),
            opening: packet.headers.flags.opens(),
            hop: Some(packet.headers.came_from(packet.port)),
        }
    }

    /// Of a packet from the backend.
    #[inline]
    fn of_reply(packet: &Packet) -> Self {
        Self { change: reply_change(packet), opening: false, hop: None }
    }

    /// Whether an alias says all that.
    #[inline]
    fn is_known(&self, alias: &Pin) -> bool {
        !self.opening
            && self.change.apply(alias.state()) == alias.state()
            && self.hop.as_ref().is_none_or(|hop| alias.comes_from(hop))
    }

    /// The pin as it is after the packet.
    fn apply(&self, pin: &Pin, now: Ticks) -> Pin {
        let pin = pin.with_state(self.change.apply(pin.state())).with_last_seen(now);
        self.hop.map_or(pin, |hop| pin.with_hop(&hop))
    }
}

/// Tells the owner of a pin that a packet of its flow came.
fn tell(owner: &FlowTable, slot: Slot, flow: &HashedKey, pin: &Pin, news: &News, now: Ticks) {
    owner.touch(slot, pin, now);
    if let Some(hop) = &news.hop {
        owner.change_hop(slot, pin, hop);
    }
    owner.change_state(slot, flow, pin, news.change.set, news.change.clear);
}

/// The note of another worker's pin.
const fn alias_of(pin: &Pin) -> Pin {
    pin.with_state(pin.state().with(State::ALIAS))
}

/// Counts why a pin that no longer lives has ended.
#[cold]
fn count_end(protocol: Protocol, pin: &Pin, context: Context<'_>) {
    if pin.state().has(State::ALIAS) {
        return;
    }
    let stats = context.stats;
    let vip = context.table.vip(pin.vip());
    let closing = vip.is_some_and(|vip| pin.state().is_closing(vip.forward));
    match context.table.pinned(pin.backend()) {
        None => stats.flows_stale.add(1),
        Some(_) if protocol == Protocol::Tcp && closing => stats.flows_closed.add(1),
        Some(_) => stats.flows_idled_out.add(1),
    }
}

/// Keeps the gauges when a flow is pinned.
fn count_pin(pin: &Pin, stats: &WorkerStats) {
    stats.flows_active.add(1);
    for counters in flow_stats(pin, stats) {
        counters.flows_total.add(1);
        counters.flows_active.add(1);
    }
}

/// Keeps the gauges when an entry is removed.
fn count_removal(pin: &Pin, stats: &WorkerStats) {
    if pin.state().has(State::ALIAS) {
        stats.flow_aliases.sub(1);
        return;
    }
    stats.flows_active.sub(1);
    for counters in flow_stats(pin, stats) {
        counters.flows_active.sub(1);
    }
}

/// The counters of the pin's VIP and backend.
fn flow_stats<'s>(pin: &Pin, stats: &'s WorkerStats) -> impl Iterator<Item = &'s FlowStats> {
    let vip = stats.vips.get(usize::from(pin.vip().0));
    let backend = stats.backends.get(usize::from(pin.backend().index.0));
    [vip, backend].into_iter().flatten()
}
