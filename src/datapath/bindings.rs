//! Part of the stage conntrack, for mode full_nat: the sources of flows, and replies to them.
//!
//! ```text
//! reply to source s --> binding of s --> its flow, backend and way back
//!                                   '--> twice a second, and when its state changes: the pin
//! ```
//!
//! Reads: bindings of all workers. Writes: this worker's bindings; of others the way back only.
//! Cost: one prefetched line for most replies, whichever worker they arrive at; else the owner's pin
//! too, which is found by the flow's key in the owner's table. Nothing is searched.

use super::batch::{Packet, TcpFlags};
use super::clients;
use super::conntrack::{Conntrack, Reply, cut, reply, tell};
use super::context::Context;
use super::life::{Change, News, is_cut, living, reply_change};
use crate::flow::bindings::{BindingId, Bound, Lease, Leases};
use crate::flow::entry::{Pin, State, Track};
use crate::flow::table::Slot;
use crate::forwarding::table::Backend;
use crate::net::{Forward, Protocol, Tuple};
use crate::stats::{Drop, WorkerStats};
use crate::units::Ticks;
use crate::wire::proxy::{Header, Shift};
use crate::wire::tcp;

/// How the two halves of a flow with a PROXY header count.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// The flow's binding.
    pub lease: Lease,
    /// What it says.
    pub shift: Shift,
}

impl Numbers {
    /// Of a flow that `backend` has by this binding; `None` if its VIP wants no header, or the client's SYN
    /// was not seen: nothing is put in front of its data then, and the backend, which does not know
    /// the flow, resets it.
    #[inline]
    pub fn of(backend: &Backend, id: BindingId, context: &Context<'_>) -> Option<Self> {
        if !backend.proxy {
            return None;
        }
        let lease = context.bindings.read(id)?;
        let Bound { flow, isn, answered, acknowledged, .. } = lease.bound;
        let len = Header::len(flow.vip.is_v4());
        Some(Self { lease, shift: Shift { isn: isn?, len, answered, acknowledged } })
    }
}

/// How often the pin is told that its flow lives. The shortest time-out is 1 s.
const TELL: Ticks = Ticks(50);

impl Conntrack {
    /// Gives a packet's flow, which is to be pinned to `backend`, a source.
    pub(super) fn bind(
        &mut self,
        packet: &Packet,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Result<BindingId, Drop> {
        let bound = Bound {
            flow: packet.flow.key(),
            backend: backend.id,
            way_back: packet.way_back(context.nic).ok_or(Drop::VlanPairsFull)?,
            isn: packet
                .shape
                .flags
                .opens()
                .then(|| tcp::numbers(packet.segment()))
                .flatten()
                .map(|(seq, _)| seq),
            answered: false,
            acknowledged: false,
        };
        let v4 = backend.address.is_v4();
        let id = self.leases.bind(v4, &bound).ok_or(Drop::NoSourcePort)?;
        context.stats.bindings(v4).add(1);
        Ok(id)
    }

    /// What is to be done with a packet for a source of ours. `None` if that is nobody's, or the packet
    /// does not come from the backend of its flow.
    pub fn track_bound<'t>(
        &mut self,
        packet: &mut Packet,
        id: BindingId,
        context: &Context<'t>,
    ) -> Option<Reply<'t>> {
        let lease = context.bindings.read(id)?;
        let backend = context.table.pinned(lease.bound.backend)?;
        if !comes_from(packet, backend, &lease.bound) {
            return None;
        }
        let client = lease.bound.way_back.next_hop();
        packet.flow = self.secret().hash(Tuple::from(lease.bound.flow));
        packet.vip = backend.vip;
        packet.backend = backend.id.index;
        if changes_nothing(packet, backend) && lease.told_within(TELL, context.now) {
            return Some(Reply::To(client));
        }
        if lease.bound.flow.client_port == 0 {
            // A client that sends from UDP port 0 wants no answer (RFC 768). Such a binding is never told.
            return None;
        }
        let stray = is_stray(packet, backend, id, context);
        let track = self.answered_bound(packet, &lease, stray, context)?;
        if stray {
            return None;
        }
        Some(reply(packet, &track, client, context))
    }

    /// Tells the pin of a binding's flow of a reply; what it says then. `None` if there is none that
    /// lives.
    fn answered_bound(
        &mut self,
        packet: &Packet,
        lease: &Lease,
        stray: bool,
        context: &Context<'_>,
    ) -> Option<Track> {
        let owner = context.bindings.owner(lease.id);
        let change = |track: &Track, backend: &Backend| match stray {
            // The backend has lost the flow's connection: another SYN may begin a new one.
            true => Change::RESET,
            false => reply_change(packet, track, backend, context.now),
        };
        let track = if owner == self.me {
            answered_here(packet, lease.id, change, context)?
        } else {
            self.answered_there(packet, lease.id, change, context)?
        };
        if is_steady(packet.flow.protocol(), track.state()) {
            context.bindings.tell(lease, context.now);
        }
        Some(track)
    }

    fn answered_there(
        &self,
        packet: &Packet,
        id: BindingId,
        change: impl Fn(&Track, &Backend) -> Change,
        context: &Context<'_>,
    ) -> Option<Track> {
        let flow = &packet.flow;
        let owner = self.tables.get(usize::from(context.bindings.owner(id)))?;
        let (slot, pin) = owner.lookup(flow).filter(|(_, pin)| is_bound(&pin.track, id))?;
        let backend = living(flow.protocol(), &pin.track, context)?;
        let cut = is_cut(|| flow.tuple, &pin.track, backend, context);
        let news = News::of_change(if cut { Change::CUT } else { change(&pin.track, backend) });
        tell(owner, slot, flow, &pin.track, &news, context.now);
        let track = news.apply(&pin, context.now).track;
        clients::seen_again(flow, backend, track.state(), context);
        Some(track)
    }
}

/// The same, by the worker that has the pin.
fn answered_here(
    packet: &Packet,
    id: BindingId,
    change: impl Fn(&Track, &Backend) -> Change,
    context: &Context<'_>,
) -> Option<Track> {
    let flow = &packet.flow;
    let hit = context.flows.find_at(flow, Slot::NOWHERE)?;
    if !is_bound(&hit.track, id) {
        return None;
    }
    let backend = living(flow.protocol(), &hit.track, context)?;
    if is_cut(|| flow.tuple, &hit.track, backend, context) {
        cut(&hit, context.now);
        return Some(hit.track);
    }
    let change = change(&hit.track, backend);
    let state = change.apply(hit.track.state());
    hit.set_state(state);
    clients::seen_again(flow, backend, state, context);
    if !change.ages {
        hit.seen(context.now);
    }
    Some(hit.track.with_state(state))
}

/// Whether this is the pin that has the binding.
fn is_bound(track: &Track, id: BindingId) -> bool {
    track.binding() == Some(id) && !track.state().has(State::ALIAS)
}

/// Whether a packet comes from the address and port that the flow's packets are sent to.
fn comes_from(packet: &Packet, backend: &Backend, bound: &Bound) -> bool {
    packet.flow.tuple.reply_key() == bound.service(backend)
}

/// Whether it is a SYN that does not answer the one that a flow with a PROXY header began with: the backend
/// has taken another SYN of the client's for a new connection, as it has none any more. In that no header
/// would come first, and the client could write one of its own.
fn is_stray(packet: &Packet, backend: &Backend, id: BindingId, context: &Context<'_>) -> bool {
    let flags = packet.shape.flags;
    if !backend.proxy || !flags.any(TcpFlags::SYN) {
        return false;
    }
    let shift = Numbers::of(backend, id, context).map(|numbers| numbers.shift);
    let answers = shift.zip(tcp::numbers(packet.segment()));
    !answers.is_some_and(|(shift, (_, number))| shift.is_answer(flags.0, number))
}

/// Whether a backend's packet changes nothing in a flow that is in its steady state.
fn changes_nothing(packet: &Packet, backend: &Backend) -> bool {
    let tcp = packet.flow.protocol() == Protocol::Tcp;
    !backend.quirks.ends_flows() && (!tcp || packet.shape.flags.goes_on())
}

fn is_steady(protocol: Protocol, state: State) -> bool {
    match protocol {
        Protocol::Tcp => state == State::ESTABLISHED,
        _ => state == State::default(),
    }
}

/// Whether the flow of a client's packet has a source of ours, or is to get one.
pub fn wanted(packet: &Packet, context: &Context<'_>) -> bool {
    context.table.vip(packet.vip).is_some_and(|vip| vip.forward == Forward::FullNat)
}

/// Keeps the way back to a flow's client, once per tick at most, by a packet of its pin.
#[inline]
pub fn note(track: &Track, packet: &Packet, context: &Context<'_>) {
    if let Some(id) = track.binding().filter(|_| track.last_seen() != context.now)
        && let Some(way_back) = packet.way_back(context.nic)
    {
        context.bindings.set_way_back(id, way_back);
    }
}

/// The same by a worker that does not have the pin; false if the binding is another flow's by now.
pub fn note_elsewhere(track: &Track, packet: &Packet, context: &Context<'_>) -> bool {
    let Some(id) = track.binding() else { return true };
    let lease = context.bindings.read(id);
    let same = lease.is_some_and(|lease| Tuple::from(lease.bound.flow) == packet.flow.tuple);
    if same && let Some(way_back) = packet.way_back(context.nic) {
        context.bindings.set_way_back(id, way_back);
    }
    same
}

/// Whether a SYN is not the one that the flow of a pin began with: another connection's, from the same
/// port, of which the numbers would be mixed up with this one's. If the handshake was done, the backend
/// decides that (RFC 5961 4), unless nobody has seen the flow's SYN: such a flow cannot have a header.
#[cold]
pub fn begins_anew(track: &Track, packet: &Packet, context: &Context<'_>) -> bool {
    let Some(lease) = track.binding().and_then(|id| context.bindings.read(id)) else {
        return false;
    };
    let isn = tcp::numbers(packet.segment()).map(|(sequence, _)| sequence);
    lease.bound.isn.is_none() || !track.state().has(State::ESTABLISHED) && lease.bound.isn != isn
}

/// Frees the source of a flow whose pin was removed, if it had one.
pub fn release(leases: &mut Leases, pin: &Pin, stats: &WorkerStats) {
    let bound = pin.track.binding().filter(|_| !pin.track.state().has(State::ALIAS));
    if let Some(v4) = bound.and_then(|id| leases.release(id)) {
        stats.bindings(v4).sub(1);
    }
}
