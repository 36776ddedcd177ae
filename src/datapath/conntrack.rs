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
use crate::flow::table::{Entry, FlowTable, FlowWriter, Full, HashedKey, Slot, State, TableSecret};
use crate::forwarding::table::{Backend, Vip};
use crate::forwarding::{BackendIndex, Forward, ForwardingTable};
use crate::stats::{Drop, FlowStats, WorkerStats};
use crate::units::Ticks;

/// Time in which the sweep goes once around the table: how late an idle flow may be removed.
const SWEEP: Ticks = Ticks(400);
/// Most entries that one poll looks at: bounds the pause (about 2 us).
const SWEEP_MAX: u32 = 512;
/// How often an alias tells the owner that its flow lives. The shortest time-out is 1 s.
const ALIAS_REFRESH: Ticks = Ticks(50);

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
        let Some((slot, entry)) = self.find_at(&packet.flow, packet.hint) else {
            return self.request_without_pin(packet, context);
        };
        let Some((vip, backend)) = living(&entry, context) else {
            count_end(&entry, context);
            self.remove(slot, &entry, context.stats);
            return self.request_without_pin(packet, context);
        };
        // What an alias stands for decides, if the packet may begin another flow.
        let pin = if entry.state.has(State::ALIAS) {
            match self.refresh(slot, &entry, &packet.flow, request_news(packet), context) {
                Some(pin) => pin,
                None => return self.request_without_pin(packet, context),
            }
        } else {
            entry
        };
        if begins_anew(packet, &pin, vip, backend) {
            self.remove(slot, &entry, context.stats);
            return Target::Wanted(Miss::Open);
        }
        if entry.state.has(State::ALIAS) {
            return Target::Backend(entry.backend.index);
        }
        self.note_request(slot, &entry, packet, vip, context.now);
        Target::Backend(entry.backend.index)
    }

    /// Keeps a pin's entry up to date with a packet of its client.
    #[inline]
    fn note_request(&mut self, slot: Slot, entry: &Entry, packet: &Packet, vip: &Vip, now: Ticks) {
        let state = request_state(packet, entry.state);
        let hop = packet.headers.came_from(packet.port);
        if vip.forward == Forward::Nat && hop != entry.hop {
            // The client's packets come another way now (its router changed): replies follow.
            self.writer.update(slot, &Entry { hop, state, last_seen: now, ..*entry });
            return;
        }
        if state != entry.state {
            self.writer.set_state(slot, entry.state, state);
        }
        self.writer.seen(slot, entry, now);
    }

    /// A client's packet for which this worker has no pin.
    #[cold]
    fn request_without_pin(&mut self, packet: &Packet, context: Context<'_>) -> Target {
        if packet.flow.protocol() == Protocol::Udp || packet.headers.flags.opens() {
            return Target::Wanted(Miss::Open);
        }
        let found = self.find_elsewhere(&packet.flow, context, |entry| entry.vip == packet.vip);
        let Some((slot, pin)) = found else { return Target::Wanted(Miss::Midflow) };
        context.stats.flows_found_elsewhere.add(1);
        self.add_alias(slot, &pin, &packet.flow, request_news(packet), context);
        Target::Backend(pin.backend.index)
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
                packet.vip = pin.vip;
                packet.backend = Some(path.backend);
                packet.target = Target::Client(pin.hop);
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
    ) -> Option<Entry> {
        let news = reply_news(packet);
        if let Some((slot, entry)) = self.find_at(flow, packet.hint)
            && entry.backend.index == backend
            && living(&entry, context).is_some()
        {
            if entry.state.has(State::ALIAS) {
                if let Some(pin) = self.refresh(slot, &entry, flow, news, context) {
                    return Some(pin);
                }
            } else {
                if !entry.state.has(news.bits()) {
                    self.writer.set_state(slot, entry.state, entry.state.with(news.bits()));
                }
                self.writer.seen(slot, &entry, context.now);
                return Some(entry);
            }
        }
        let (slot, pin) =
            self.find_elsewhere(flow, context, |entry| entry.backend.index == backend)?;
        self.add_alias(slot, &pin, flow, news, context);
        Some(pin)
    }

    /// The entry of a flow in this worker's table.
    #[inline]
    fn find(&self, flow: &HashedKey) -> Option<(Slot, Entry)> {
        let slot = self.writer.table().find(flow)?;
        self.writer.get(slot).map(|entry| (slot, entry))
    }

    /// As `find`, for a packet whose entry was asked for.
    #[inline(always)]
    fn find_at(&self, flow: &HashedKey, hint: Option<Slot>) -> Option<(Slot, Entry)> {
        let slot = self.writer.table().find_at(flow, hint)?;
        self.writer.get(slot).map(|entry| (slot, entry))
    }

    /// A living pin of the flow, in another worker's table, that `wanted` takes.
    #[cold]
    fn find_elsewhere(
        &self,
        flow: &HashedKey,
        context: Context<'_>,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Option<(Slot, Entry)> {
        let others = (0_u8..).zip(self.tables.iter()).filter(|(worker, _)| *worker != self.me);
        others.filter_map(|(_, table)| table.lookup(flow)).find(|(_, entry)| {
            !entry.state.has(State::ALIAS) && wanted(entry) && living(entry, context).is_some()
        })
    }

    /// Notes that another worker has `pin` at `slot`, and tells it of the packet. If there is no
    /// room for a note, the next packet looks again.
    fn add_alias(
        &mut self,
        slot: Slot,
        pin: &Entry,
        flow: &HashedKey,
        news: News,
        context: Context<'_>,
    ) {
        if let Some(owner) = self.tables.get(usize::from(pin.owner)) {
            tell(owner, slot, pin, news.bits(), context.now);
        }
        if let Some((own, entry)) = self.find(flow) {
            self.remove(own, &entry, context.stats);
        }
        let alias = Entry { state: State::ALIAS, last_seen: context.now, ..*pin };
        if self.writer.insert(flow, &alias).is_ok() {
            context.stats.flow_aliases.add(1);
        }
    }

    /// What an alias stands for: the owner's pin if there is news to tell, or nothing was told for
    /// a while, or the flow may begin anew; else the alias itself. Removes the alias, and returns
    /// `None`, when that pin is gone.
    #[inline]
    fn refresh(
        &mut self,
        slot: Slot,
        alias: &Entry,
        flow: &HashedKey,
        news: News,
        context: Context<'_>,
    ) -> Option<Entry> {
        let recent = context.now.since(alias.last_seen).0 < ALIAS_REFRESH.0;
        if recent && matches!(news, News::Alive(_)) {
            return Some(*alias);
        }
        let owner = self.tables.get(usize::from(alias.owner)).map(Arc::as_ref);
        let pin = owner
            .and_then(|owner| owner.lookup(flow))
            .filter(|(_, pin)| !pin.state.has(State::ALIAS) && pin.backend == alias.backend);
        let (Some(owner), Some((pin_slot, pin))) = (owner, pin) else {
            self.remove(slot, alias, context.stats);
            return None;
        };
        if news != News::Opening {
            tell(owner, pin_slot, &pin, news.bits(), context.now);
        }
        self.writer.update(slot, &Entry { state: State::ALIAS, last_seen: context.now, ..pin });
        Some(pin)
    }

    /// The backend that the flow is pinned to in this worker's table.
    #[inline]
    pub fn pinned(&self, flow: &HashedKey) -> Option<BackendIndex> {
        self.find(flow).map(|(_, entry)| entry.backend.index)
    }

    /// Whether any worker has a living pin of the flow on this backend.
    #[cold]
    pub fn is_pinned_anywhere(
        &self,
        flow: &HashedKey,
        backend: BackendIndex,
        context: Context<'_>,
    ) -> bool {
        let here = |(_, entry): &(Slot, Entry)| {
            entry.backend.index == backend && living(entry, context).is_some()
        };
        self.find(flow).filter(here).is_some()
            || self.find_elsewhere(flow, context, |entry| entry.backend.index == backend).is_some()
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
            Protocol::Tcp => request_state(packet, State::default()).without(State::ESTABLISHED),
        };
        let entry = Entry {
            key: packet.flow.key(),
            vip: packet.vip,
            backend: backend.id,
            state,
            owner: self.me,
            hop: packet.headers.came_from(packet.port),
            created: context.now,
            last_seen: context.now,
            stamp: 0,
        };
        self.writer.insert(&packet.flow, &entry)?;
        count_pin(&entry, context.stats);
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
            self.sweep_debt -= count;
            self.writer.sweep(count, |entry| {
                let keep = living(entry, context).is_some();
                if !keep {
                    count_end(entry, context);
                    count_removal(entry, context.stats);
                }
                keep
            });
        }
        self.sweep_debt > 0
    }

    fn remove(&mut self, slot: Slot, entry: &Entry, stats: &WorkerStats) {
        self.writer.remove(slot);
        count_removal(entry, stats);
    }
}

/// The VIP and backend of an entry, unless it is stale or was idle for too long.
#[inline]
fn living<'t>(entry: &Entry, context: Context<'t>) -> Option<(&'t Vip, &'t Backend)> {
    let backend = context.table.pinned(entry.backend)?;
    let vip = context.table.vip(entry.vip).filter(|vip| vip.id == backend.vip)?;
    let idle = context.now.since(entry.last_seen);
    (idle.0 <= timeout(entry, vip).0).then_some((vip, backend))
}

/// How long the flow may be idle.
#[inline]
fn timeout(entry: &Entry, vip: &Vip) -> Ticks {
    match (entry.key.protocol, entry.state) {
        (Protocol::Udp, _) => vip.timeouts.udp,
        // The state is the owner's to know; it outlives no pin, as it is refreshed from it.
        (Protocol::Tcp, state) if state.has(State::ALIAS) => vip.timeouts.established,
        (Protocol::Tcp, state) if state.is_closing(vip.forward) => vip.timeouts.closing,
        (Protocol::Tcp, state) if state.has(State::ESTABLISHED) => vip.timeouts.established,
        (Protocol::Tcp, _) => vip.timeouts.embryonic,
    }
}

/// Whether a packet with the key of a pinned flow begins another one.
///
/// A SYN does if the old flow was closing (a port used again, RFC 9293 3.6.1), or its backend does
/// not answer (the client tries again, and shall succeed). A SYN for an established flow does not:
/// anybody can forge one, and the backend answers it (RFC 5961 4). Any UDP packet does if the
/// backend does not answer: its own traffic would keep a dead pin alive.
#[inline]
fn begins_anew(packet: &Packet, entry: &Entry, vip: &Vip, backend: &Backend) -> bool {
    match entry.key.protocol {
        Protocol::Tcp if !packet.headers.flags.opens() => false,
        Protocol::Tcp => !backend.up || entry.state.is_closing(vip.forward),
        Protocol::Udp => !backend.up,
    }
}

/// The state after a packet from the client.
#[inline]
fn request_state(packet: &Packet, state: State) -> State {
    let flags = packet.headers.flags;
    if flags.any(TcpFlags::RST) {
        return state.with(State::RST);
    }
    if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        return state;
    }
    // A client that goes on after a RST never sent it: it was forged, or the backend's stray.
    let state = state.with(State::ESTABLISHED).without(State::RST);
    if flags.any(TcpFlags::FIN) { state.with(State::FIN_CLIENT) } else { state }
}

/// What a packet tells of its flow, to whoever has the pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// That it lives, and what its state has at least.
    Alive(State),
    /// That it may be another one: a SYN.
    Opening,
    /// That it is ending.
    Ending(State),
}

impl News {
    const fn bits(self) -> State {
        match self {
            Self::Opening => State(0),
            Self::Alive(bits) | Self::Ending(bits) => bits,
        }
    }
}

/// What a packet from the client tells.
#[inline]
fn request_news(packet: &Packet) -> News {
    let flags = packet.headers.flags;
    if flags.any(TcpFlags::RST) {
        News::Ending(State::RST)
    } else if flags.any(TcpFlags::FIN) {
        News::Ending(State::FIN_CLIENT)
    } else if flags.opens() {
        News::Opening
    } else {
        News::Alive(request_state(packet, State(0)))
    }
}

/// What a packet from the backend tells.
#[inline]
fn reply_news(packet: &Packet) -> News {
    let flags = packet.headers.flags;
    if flags.any(TcpFlags::RST) {
        News::Ending(State::RST)
    } else if flags.any(TcpFlags::FIN) {
        News::Ending(State::FIN_BACKEND)
    } else {
        News::Alive(State(0))
    }
}

/// Tells the owner of a pin that a packet of its flow came.
fn tell(owner: &FlowTable, slot: Slot, pin: &Entry, news: State, now: Ticks) {
    owner.touch(slot, pin, now);
    if !pin.state.has(news) {
        owner.add_state(slot, pin, news);
    }
}

/// Counts why a pin that no longer lives has ended.
#[cold]
fn count_end(entry: &Entry, context: Context<'_>) {
    if entry.state.has(State::ALIAS) {
        return;
    }
    match context.table.pinned(entry.backend) {
        Some(_) => context.stats.flows_idled_out.add(1),
        None => context.stats.flows_stale.add(1),
    }
}

/// Keeps the gauges when a flow is pinned.
fn count_pin(entry: &Entry, stats: &WorkerStats) {
    stats.flows_active.add(1);
    for counters in flow_stats(entry, stats) {
        counters.flows_total.add(1);
        counters.flows_active.add(1);
    }
}

/// Keeps the gauges when an entry is removed.
fn count_removal(entry: &Entry, stats: &WorkerStats) {
    if entry.state.has(State::ALIAS) {
        stats.flow_aliases.sub(1);
        return;
    }
    stats.flows_active.sub(1);
    for counters in flow_stats(entry, stats) {
        counters.flows_active.sub(1);
    }
}

/// The counters of the entry's VIP and backend.
fn flow_stats<'s>(entry: &Entry, stats: &'s WorkerStats) -> impl Iterator<Item = &'s FlowStats> {
    let vip = stats.vips.get(usize::from(entry.vip.0));
    let backend = stats.backends.get(usize::from(entry.backend.index.0));
    [vip, backend].into_iter().flatten()
}
