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
use crate::stats::Drop;
use crate::wire::proxy::{Header, Shift};
use crate::wire::tcp;

/// How the two halves of a flow with a PROXY header count.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// The flow's binding.
    pub lease: Lease,
    /// The shift of its numbers.
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
        let lease = context.shared.bindings.read(id)?;
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
    let id = leases.bind(&context.shared.bindings, v4, &bound).ok_or(Drop::NoSourcePort)?;
    context.stats.bindings(v4).add(1);
    Ok(id)
}

/// Whether a packet comes from the address and port that the flow's packets are sent to.
pub fn comes_from(packet: &Packet, backend: &Backend, bound: &Bound) -> bool {
    packet.flow.tuple.reply_key() == bound.service(backend.address, backend.port)
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
        context.shared.bindings.set_way_back(id, way_back);
    }
}

/// The same by a worker that does not have the pin; false if the binding is another flow's by now.
pub fn note_elsewhere(track: &Track, packet: &Packet, context: &Context<'_>) -> bool {
    let Some(id) = track.binding() else { return true };
    let lease = context.shared.bindings.read(id);
    let same = lease.is_some_and(|lease| Tuple::from(lease.bound.flow) == packet.flow.tuple);
    if same && let Some(way_back) = packet.way_back(context.nic) {
        context.shared.bindings.set_way_back(id, way_back);
    }
    same
}

/// Whether a SYN is not the one that the flow of a pin began with: another connection's, from the same
/// port, of which the numbers would be mixed up with this one's. If the handshake was done, the backend
/// decides that (RFC 5961 4), unless nobody has seen the flow's SYN: such a flow cannot have a header.
#[cold]
pub fn begins_anew(track: &Track, packet: &Packet, context: &Context<'_>) -> bool {
    let Some(lease) = track.binding().and_then(|id| context.shared.bindings.read(id)) else {
        return false;
    };
    let isn = tcp::sequence(packet.segment());
    lease.bound.isn.is_none() || !track.state().has(State::ESTABLISHED) && lease.bound.isn != isn
}

/// Frees the source of a flow whose pin was removed, if it had one.
pub fn release(leases: &mut Leases, pin: &Pin, context: &Context<'_>) {
    let bound = pin.track.binding().filter(|_| !pin.track.state().has(State::ALIAS));
    if let Some(v4) = bound.and_then(|id| leases.release(&context.shared.bindings, id)) {
        context.stats.bindings(v4).sub(1);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    use crate::datapath::testing::*;
    use crate::flow::entry::Pin;
    use crate::net::BackendIndex;

    /// The pin of a flow that has a SNAT port.
    fn pin(packet: &Packet, id: BindingId, state: State, context: &Context<'_>) -> Pin {
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let hop = packet.came_from(context.nic);
        let pin = Pin::new(packet.vip, backend.id, state, 0, &hop, context.now);
        pin.with_binding(id)
    }

    #[test]
    fn every_port_is_given_once_and_comes_back() {
        let mut bed = Bed::new(1, &[vip(Forward::FullNat, 1)]);
        let mut leases = bed.leases(0);
        let packets: Vec<Packet> = (1..=5).map(|port| bed.request(port, "S")).collect();
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let bound = packets.iter().map(|packet| bind(&mut leases, packet, backend, &context));
        let bound: Vec<Result<BindingId, Drop>> = bound.collect();
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), SNAT_PORTS.count());
        assert_eq!(bound.last(), Some(&Err(Drop::NoSourcePort)));
        let (first, packet) = (bound[0].unwrap(), &packets[0]);
        let lease = context.shared.bindings.read(first).unwrap();
        assert_eq!((lease.bound.flow, lease.bound.isn), (packet.flow.key(), Some(1000)));
        assert_eq!(context.stats.bindings(true).get(), 4);
        // A remote entry has no port of its own.
        let own = pin(packet, first, State::default(), &context);
        let remote = Pin { track: own.track.with_state(State::ALIAS), ..own };
        release(&mut leases, &remote, &context);
        assert!(context.shared.bindings.read(first).is_some());
        release(&mut leases, &own, &context);
        assert!(context.shared.bindings.read(first).is_none());
        assert_eq!(bind(&mut leases, &packets[4], backend, &context), Ok(first));
    }

    #[test]
    fn a_way_back_is_stored_for_the_flow_that_has_the_port_only() {
        let mut bed = Bed::new(1, &[vip(Forward::FullNat, 1)]);
        let mut leases = bed.leases(0);
        let [packet, other] = [1, 2].map(|port| bed.request(port, "S"));
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let id = bind(&mut leases, &packet, backend, &context).unwrap();
        let track = pin(&packet, id, State::default(), &context).track;
        assert!(note_elsewhere(&track, &packet, &context));
        assert!(!note_elsewhere(&track, &other, &context));
    }

    #[test]
    fn replies_come_from_the_backends_own_address_and_port() {
        let mut bed = Bed::new(1, &[vip(Forward::FullNat, 2)]);
        let mut leases = bed.leases(0);
        let packet = bed.request(1, "S");
        let context = bed.context(0, 0);
        let backend_0 = context.table.backend(BackendIndex(0)).unwrap();
        let id = bind(&mut leases, &packet, backend_0, &context).unwrap();
        let (bound, (_, port)) = (
            context.shared.bindings.read(id).unwrap().bound,
            context.shared.bindings.sources().source(id).unwrap(),
        );
        for (from, expected) in
            [((backend(0), 8080), true), ((backend(0), 8081), false), ((backend(1), 8080), false)]
        {
            let reply = bed.receive(&tcp(from, (SNAT, port), "A")).unwrap();
            let pinned = bed.table.backend(BackendIndex(0)).unwrap();
            assert_eq!(comes_from(&reply, pinned, &bound), expected, "{from:?}");
        }
    }

    #[test]
    fn another_syn_begins_another_connection_behind_a_proxy_header() {
        let proxy = with(vip(Forward::FullNat, 1), |policy| policy.proxy = true);
        let mut bed = Bed::new(1, &[proxy]);
        let mut leases = bed.leases(0);
        let packet = bed.request(1, "S");
        let mut again = tcp((CLIENT, 1), (VIP, 80), "S");
        again[38..42].copy_from_slice(&7_u32.to_be_bytes());
        let again = bed.receive(&again).unwrap();
        let lost = bed.request(2, "A");
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let id = bind(&mut leases, &packet, backend, &context).unwrap();
        let [begun, established] = [State::default(), State::ESTABLISHED]
            .map(|state| pin(&packet, id, state, &context).track);
        assert!(!begins_anew(&begun, &packet, &context), "the same SYN again");
        assert!(begins_anew(&begun, &again, &context));
        assert!(!begins_anew(&established, &again, &context), "the backend decides");
        // Of a flow that has lost its pin, the SYN was not seen.
        let id = bind(&mut leases, &lost, backend, &context).unwrap();
        let unseen = pin(&lost, id, State::ESTABLISHED, &context).track;
        assert!(begins_anew(&unseen, &lost, &context));
        assert!(Numbers::of(backend, id, &context).is_none());
    }
}
