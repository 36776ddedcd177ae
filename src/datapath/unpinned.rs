//! Stages 4 and 5 for a VIP with `pin = false`: a backend for each datagram, without a flow entry.
//!
//! ```text
//! datagram of a client -> affinity hash or turn -> scheduler -> backend    nat: records return hop
//! datagram of a nat backend -> its source names VIP and port -> the client's return hop
//! ```
//!
//! Fragments of one datagram go to one backend: by the flow's hash, or, with a scheduler that takes
//! turns, by a turn derived from the datagram's identification.
//!
//! Reads: the flow key, the VIP's affinity and scheduler. Writes: with `nat` the table of return
//! hops.
//! Cost: SipHash and a slot look-up per datagram; with `nat` one line of the table of return hops
//! in each direction.

use super::batch::{Direction, FragmentKind, Packet};
use super::conntrack::Conntrack;
use super::context::Context;
use super::fragments;
use super::select::{admit, choose, offer_sample};
use super::target::Target;
use crate::forwarding::Miss;
use crate::forwarding::table::ReturnPath;
use crate::net::{Forward, ListenKey, NextHop, Tuple, VipId};
use crate::stats::Drop;

/// Whether the VIP has no pins.
#[inline]
pub fn is_unpinned(vip: VipId, context: &Context<'_>) -> bool {
    context.table.vip(vip).is_some_and(|vip| !vip.policy.pin)
}

/// Chooses the target of a client's datagram.
///
/// # Errors
/// The reason for which it is dropped.
#[inline(never)]
pub fn place<'t>(
    packet: &mut Packet,
    conntrack: &Conntrack,
    context: &Context<'t>,
) -> Result<Target<'t>, Drop> {
    packet.direction = Direction::ToBackend;
    tell(context);
    let key = packet.flow.key();
    let vip = admit(packet, &key, context)?;
    let (backend, _) = choose(&key, Miss::Open, vip, None, datagram(packet), conntrack, context)?;
    if vip.forward == Forward::Nat {
        let hop = packet.return_hop(context.nic).ok_or(Drop::VlanPairsFull)?;
        context.shared.return_hops.record(key.client, hop);
    }
    if packet.layout.fragment != FragmentKind::Later {
        let stats = context.stats;
        stats.datagrams_placed.add(1);
        let vip_stats = stats.vips.get(usize::from(vip.id.0));
        let backend_stats = stats.backends.get(usize::from(backend.id.index.0));
        let counters = vip_stats.into_iter().chain(backend_stats);
        counters.for_each(|counters| counters.flows_scheduled.add(1));
        offer_sample(|| key, vip, context);
    }
    Ok(Target { backend, snat_port: None })
}

/// Returns the next hop to the client of a NAT backend's datagram.
///
/// # Errors
/// [`Drop::ReturnNoFlow`] if no datagram of that client is recorded.
pub fn answer(
    packet: &mut Packet,
    source: ListenKey,
    context: &Context<'_>,
) -> Result<NextHop, Drop> {
    tell(context);
    packet.direction = Direction::ToClient(source);
    let path = return_path(source, context).ok_or(Drop::ReturnNoFlow)?;
    (packet.vip, packet.backend) = (path.vip, path.backend);
    return_hop(packet.flow.tuple, context).ok_or(Drop::ReturnNoFlow)
}

/// Returns the return path of the VIP without pins that replies from `source`. No other VIP in
/// force replies from there.
#[inline]
pub fn return_path<'t>(source: ListenKey, context: &Context<'t>) -> Option<&'t ReturnPath> {
    context.table.return_path(source).filter(|path| !path.pinned)
}

/// Returns the previous hop of the last datagram of a flow's client.
#[inline]
pub fn return_hop(flow: Tuple, context: &Context<'_>) -> Option<NextHop> {
    Some(context.shared.return_hops.find(flow.key().client)?.next_hop())
}

/// Returns the identification of a fragment's datagram.
fn datagram(packet: &Packet) -> Option<u32> {
    match packet.layout.fragment {
        FragmentKind::Whole | FragmentKind::Quoting => None,
        FragmentKind::First | FragmentKind::Later => fragments::identification(packet),
    }
}

fn tell(context: &Context<'_>) {
    if let Some(trace) = context.trace {
        trace.record_miss();
        trace.record("conntrack", "no pin", "pin = false: each datagram is placed by itself");
    }
}
