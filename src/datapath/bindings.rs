//! Part of the stage conntrack, for mode full_nat: the sources of flows.
//!
//! Reads: SNAT ports of all workers. Writes: this worker's; of others the way back only. Cost: a line of the
//! table of SNAT ports.

use super::batch::{Packet, TcpFlags};
use super::context::Context;
use crate::flow::bindings::{BindingId, Bound, Lease, Leases};
use crate::flow::entry::{Pin, State, Track};
use crate::forwarding::table::Backend;
use crate::net::{Forward, Tuple};
use crate::stats::{Drop, WorkerStats};
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

/// Gives a packet's flow, which is to be pinned to `backend`, a source.
///
/// # Errors
/// [`Drop::NoSourcePort`], [`Drop::VlanPairsFull`].
pub fn bind(
    leases: &mut Leases,
    packet: &Packet,
    backend: &Backend,
    context: &Context<'_>,
) -> Result<BindingId, Drop> {
    let opens = packet.shape.flags.opens();
    let bound = Bound {
        flow: packet.flow.key(),
        backend: backend.id,
        way_back: packet.way_back(context.nic).ok_or(Drop::VlanPairsFull)?,
        isn: opens.then(|| tcp::sequence(packet.segment())).flatten(),
        answered: false,
        acknowledged: false,
    };
    let v4 = backend.address.is_v4();
    let id = leases.bind(v4, &bound).ok_or(Drop::NoSourcePort)?;
    context.stats.bindings(v4).add(1);
    Ok(id)
}

/// Whether a packet comes from the address and port that the flow's packets are sent to.
pub fn comes_from(packet: &Packet, backend: &Backend, bound: &Bound) -> bool {
    packet.flow.tuple.reply_key() == bound.service(backend)
}

/// Whether it is a SYN that does not answer the one that a flow with a PROXY header began with: the backend
/// has taken another SYN of the client's for a new connection, as it has none any more. In that no header
/// would come first, and the client could write one of its own.
pub fn is_stray(packet: &Packet, backend: &Backend, id: BindingId, context: &Context<'_>) -> bool {
    let flags = packet.shape.flags;
    if !backend.proxy || !flags.any(TcpFlags::SYN) {
        return false;
    }
    let shift = Numbers::of(backend, id, context).map(|numbers| numbers.shift);
    let answers = shift.zip(tcp::numbers(packet.segment()));
    !answers.is_some_and(|(shift, (_, number))| shift.is_answer(flags.0, number))
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
    let isn = tcp::sequence(packet.segment());
    lease.bound.isn.is_none() || !track.state().has(State::ESTABLISHED) && lease.bound.isn != isn
}

/// Frees the source of a flow whose pin was removed, if it had one.
pub fn release(leases: &mut Leases, pin: &Pin, stats: &WorkerStats) {
    let bound = pin.track.binding().filter(|_| !pin.track.state().has(State::ALIAS));
    if let Some(v4) = bound.and_then(|id| leases.release(id)) {
        stats.bindings(v4).sub(1);
    }
}
