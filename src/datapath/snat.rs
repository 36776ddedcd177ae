//! Part of the stage conntrack, for mode full_nat: the SNAT ports of flows.
//!
//! Reads: SNAT entries of all workers. Writes: this worker's entries; only the return hop of
//! others. Cost: one line of the SNAT table.

use super::batch::{Packet, TcpFlags};
use super::context::Context;
use crate::flow::entry::{FlowState, Pin, State};
use crate::flow::snat::{SnatAllocator, SnatEntry, SnatFlow, SnatPort, SnatTable};
use crate::forwarding::table::Backend;
use crate::net::{Forward, Tuple};
use crate::stats::{Drop, WorkerStats};
use crate::wire::proxy::{Header, Shift};
use crate::wire::tcp;

/// Sequence number translation of a flow with a PROXY header.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// The flow's SNAT entry.
    pub snat_entry: SnatEntry,
    /// Shift of its sequence numbers.
    pub shift: Shift,
}

impl Numbers {
    /// Returns the translation of the flow that has SNAT port `id` towards `backend`. `None` if the
    /// VIP adds no header, or the client's SYN was not seen: no header is then inserted, and the
    /// backend, which does not know the flow, resets it.
    #[inline]
    pub fn of(backend: &Backend, id: SnatPort, context: &Context<'_>) -> Option<Self> {
        if !backend.proxy {
            return None;
        }
        let snat_entry = context.shared.snat_table.read(id)?;
        let SnatFlow { flow, isn, answered, acknowledged, .. } = snat_entry.snat_flow;
        let len = Header::len(flow.vip.family());
        Some(Self { snat_entry, shift: Shift { isn: isn?, len, answered, acknowledged } })
    }
}

/// Allocates a SNAT port for a packet's flow, which is to be pinned to `backend`.
pub fn bind(
    snat_allocator: &mut SnatAllocator,
    packet: &Packet,
    backend: &Backend,
    context: &Context<'_>,
) -> Result<SnatPort, Drop> {
    let opens = packet.layout.flags.opens();
    let snat_flow = SnatFlow {
        flow: packet.flow.key(),
        backend: backend.id,
        return_hop: packet.return_hop(context.nic).ok_or(Drop::VlanPairsFull)?,
        isn: opens.then(|| tcp::sequence(packet.segment())).flatten(),
        answered: false,
        acknowledged: false,
    };
    let family = backend.address.family();
    let id = snat_allocator
        .bind(&context.shared.snat_table, family, &snat_flow)
        .ok_or(Drop::NoSourcePort)?;
    context.stats.snat_ports(family).add(1);
    Ok(id)
}

/// Counts the SNAT port of a pin that was taken over.
pub fn count_bound(id: SnatPort, snat_table: &SnatTable, stats: &WorkerStats) {
    if let Some((address, _)) = snat_table.sources().source(id) {
        stats.snat_ports(address.family()).add(1);
    }
}

/// Whether a packet comes from the address and port that the flow's packets are sent to.
pub fn comes_from(packet: &Packet, backend: &Backend, snat_flow: &SnatFlow) -> bool {
    packet.flow.tuple.comes_from(snat_flow.service(backend.address, backend.port))
}

/// Whether a packet is a SYN that does not acknowledge the first SYN of a flow with a PROXY header.
/// The backend has then taken another SYN of the client for a new connection, as it has lost its
/// own; no header would come first in it, and the client could forge one.
pub fn is_stray(packet: &Packet, backend: &Backend, id: SnatPort, context: &Context<'_>) -> bool {
    let flags = packet.layout.flags;
    if !backend.proxy || !flags.any(TcpFlags::SYN) {
        return false;
    }
    let shift = Numbers::of(backend, id, context).map(|numbers| numbers.shift);
    let answers = shift.zip(tcp::numbers(packet.segment()));
    !answers.is_some_and(|(shift, (_, number))| shift.is_answer(flags.0, number))
}

/// Whether the flow of a client's packet uses or needs a SNAT port.
pub fn wanted(packet: &Packet, context: &Context<'_>) -> bool {
    context.table.vip(packet.vip).is_some_and(|vip| vip.forward == Forward::FullNat)
}

/// Updates the return hop to a flow's client from a packet, at most once per tick. Called by the
/// worker that has the pin.
#[inline]
pub fn record(flow_state: &FlowState, packet: &Packet, context: &Context<'_>) {
    if let Some(id) = flow_state.snat_port().filter(|_| flow_state.last_seen() != context.now)
        && let Some(return_hop) = packet.return_hop(context.nic)
    {
        context.shared.snat_table.set_return_hop(id, return_hop);
    }
}

/// Updates the return hop on a worker that does not have the pin. Returns false if the SNAT port
/// belongs to another flow by now.
pub fn record_elsewhere(flow_state: &FlowState, packet: &Packet, context: &Context<'_>) -> bool {
    let Some(id) = flow_state.snat_port() else { return true };
    let snat_entry = context.shared.snat_table.read(id);
    let same = snat_entry
        .is_some_and(|snat_entry| Tuple::from(snat_entry.snat_flow.flow) == packet.flow.tuple);
    if same && let Some(return_hop) = packet.return_hop(context.nic) {
        context.shared.snat_table.set_return_hop(id, return_hop);
    }
    same
}

/// Whether a SYN differs from the first SYN of a pinned flow: it opens another connection from the
/// same port, and the sequence numbers of the two would be confused. After the handshake the
/// backend decides (RFC 5961 4), unless the flow's SYN was never seen: such a flow cannot have a
/// header.
#[cold]
pub fn reopens(flow_state: &FlowState, packet: &Packet, context: &Context<'_>) -> bool {
    let Some(snat_entry) = flow_state.snat_port().and_then(|id| context.shared.snat_table.read(id))
    else {
        return false;
    };
    let isn = tcp::sequence(packet.segment());
    snat_entry.snat_flow.isn.is_none()
        || !flow_state.state().has(State::ESTABLISHED) && snat_entry.snat_flow.isn != isn
}

/// Frees the SNAT port, if it has one, of a removed pin's flow.
pub fn release(snat_allocator: &mut SnatAllocator, pin: &Pin, context: &Context<'_>) {
    let snat_port =
        pin.flow_state.snat_port().filter(|_| !pin.flow_state.state().has(State::REMOTE));
    if let Some(family) =
        snat_port.and_then(|id| snat_allocator.release(&context.shared.snat_table, id))
    {
        context.stats.snat_ports(family).sub(1);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    use crate::datapath::testing::*;
    use crate::flow::entry::Pin;
    use crate::net::{BackendIndex, Family};

    /// The pin of a flow that has a SNAT port.
    fn pin(packet: &Packet, id: SnatPort, state: State, context: &Context<'_>) -> Pin {
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let hop = packet.came_from(context.nic);
        let pin = Pin::new(packet.vip, backend.id, state, 0, &hop, context.now);
        pin.with_snat_port(id)
    }

    #[test]
    fn every_port_is_given_once_and_comes_back() {
        let mut bed = Bed::new(1, &[vip(Forward::FullNat, 1)]);
        let mut snat_allocator = bed.snat_allocator(0);
        let packets: Vec<Packet> = (1..=5).map(|port| bed.request(port, "S")).collect();
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let given =
            packets.iter().map(|packet| bind(&mut snat_allocator, packet, backend, &context));
        let given: Vec<Result<SnatPort, Drop>> = given.collect();
        assert_eq!(given.iter().filter(|port| port.is_ok()).count(), SNAT_PORTS.count());
        assert_eq!(given.last(), Some(&Err(Drop::NoSourcePort)));
        let (first, packet) = (given[0].unwrap(), &packets[0]);
        let snat_entry = context.shared.snat_table.read(first).unwrap();
        assert_eq!(
            (snat_entry.snat_flow.flow, snat_entry.snat_flow.isn),
            (packet.flow.key(), Some(1000))
        );
        assert_eq!(context.stats.snat_ports(Family::V4).get(), 4);
        // A remote entry has no port of its own.
        let own = pin(packet, first, State::default(), &context);
        let remote = Pin { flow_state: own.flow_state.with_state(State::REMOTE), ..own };
        release(&mut snat_allocator, &remote, &context);
        assert!(context.shared.snat_table.read(first).is_some());
        release(&mut snat_allocator, &own, &context);
        assert!(context.shared.snat_table.read(first).is_none());
        assert_eq!(bind(&mut snat_allocator, &packets[4], backend, &context), Ok(first));
    }

    #[test]
    fn a_return_hop_is_stored_for_the_flow_that_has_the_port_only() {
        let mut bed = Bed::new(1, &[vip(Forward::FullNat, 1)]);
        let mut snat_allocator = bed.snat_allocator(0);
        let [packet, other] = [1, 2].map(|port| bed.request(port, "S"));
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let id = bind(&mut snat_allocator, &packet, backend, &context).unwrap();
        let flow_state = pin(&packet, id, State::default(), &context).flow_state;
        assert!(record_elsewhere(&flow_state, &packet, &context));
        assert!(!record_elsewhere(&flow_state, &other, &context));
    }

    #[test]
    fn replies_come_from_the_backends_own_address_and_port() {
        let mut bed = Bed::new(1, &[vip(Forward::FullNat, 2)]);
        let mut snat_allocator = bed.snat_allocator(0);
        let packet = bed.request(1, "S");
        let context = bed.context(0, 0);
        let backend_0 = context.table.backend(BackendIndex(0)).unwrap();
        let id = bind(&mut snat_allocator, &packet, backend_0, &context).unwrap();
        let (snat_flow, (_, port)) = (
            context.shared.snat_table.read(id).unwrap().snat_flow,
            context.shared.snat_table.sources().source(id).unwrap(),
        );
        for (from, expected) in
            [((backend(0), 8080), true), ((backend(0), 8081), false), ((backend(1), 8080), false)]
        {
            let reply = bed.receive(&tcp(from, (SNAT, port), "A")).unwrap();
            let pinned = bed.table.backend(BackendIndex(0)).unwrap();
            assert_eq!(comes_from(&reply, pinned, &snat_flow), expected, "{from:?}");
        }
    }

    #[test]
    fn another_syn_begins_another_connection_behind_a_proxy_header() {
        let proxy = with(vip(Forward::FullNat, 1), |policy| policy.proxy = true);
        let mut bed = Bed::new(1, &[proxy]);
        let mut snat_allocator = bed.snat_allocator(0);
        let packet = bed.request(1, "S");
        let mut again = tcp((CLIENT, 1), (VIP, 80), "S");
        again[38..42].copy_from_slice(&7_u32.to_be_bytes());
        let again = bed.receive(&again).unwrap();
        let lost = bed.request(2, "A");
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let id = bind(&mut snat_allocator, &packet, backend, &context).unwrap();
        let [begun, established] = [State::default(), State::ESTABLISHED]
            .map(|state| pin(&packet, id, state, &context).flow_state);
        assert!(!reopens(&begun, &packet, &context), "the same SYN again");
        assert!(reopens(&begun, &again, &context));
        assert!(!reopens(&established, &again, &context), "the backend decides");
        // The SYN of a flow that has lost its pin was not seen.
        let id = bind(&mut snat_allocator, &lost, backend, &context).unwrap();
        let unseen = pin(&lost, id, State::ESTABLISHED, &context).flow_state;
        assert!(reopens(&unseen, &lost, &context));
        assert!(Numbers::of(backend, id, &context).is_none());
    }
}
