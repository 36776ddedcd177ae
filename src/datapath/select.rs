//! Stage 5 of 7, select: a backend for every flow without a pin, and the pin.
//!
//! Reads: `target`, the lookup table of the VIP. Writes: the flow table, `target`, `backend`.
//! Cost: nothing for a packet of a pinned flow; SipHash, a slot look-up and an insertion otherwise.

use std::net::IpAddr;

use super::batch::{Batch, Headers, Miss, Packet, Target, TcpFlags};
use super::conntrack::{Conntrack, Context};
use crate::flow::{FlowKey, Protocol};
use crate::forwarding::select::{affinity_hash, choose};
use crate::forwarding::table::{Backend, Vip};
use crate::forwarding::{BackendIndex, Forward, ListenKey};
use crate::stats::Drop;

/// Selects for every packet in flight that needs it.
#[inline]
pub fn select(batch: &mut Batch, conntrack: &mut Conntrack, context: Context<'_>) {
    for packet in batch.in_flight() {
        if let Target::Wanted(miss) = packet.target {
            match backend_for(packet, miss, conntrack, context) {
                Ok(backend) => {
                    packet.target = Target::Backend(backend);
                    packet.backend = Some(backend);
                }
                Err(reason) => packet.drop(reason),
            }
        }
    }
}

/// The backend of a flow that had no pin when its batch was tracked.
#[cold]
fn backend_for(
    packet: &Packet,
    miss: Miss,
    conntrack: &mut Conntrack,
    context: Context<'_>,
) -> Result<BackendIndex, Drop> {
    check_source(&packet.headers)?;
    // An earlier packet of this batch may have pinned the flow.
    if let Some(backend) = conntrack.track_again(packet, context) {
        return Ok(backend);
    }
    let vip = context.table.vip(packet.vip).ok_or(Drop::NoVip)?;
    let backend = choose_backend(packet, miss, vip, conntrack, context)?;
    if deserves_pin(packet) {
        conntrack.pin(packet, backend, context).map_err(|_| Drop::TableFull)?;
        match miss {
            Miss::Open => context.stats.flows_new.add(1),
            Miss::Midflow => context.stats.flows_by_hash.add(1),
        }
    }
    Ok(backend.id.index)
}

/// Whether a packet may leave a pin behind. What ends a flow that is not known here, or is no part
/// of any (an answer to a SYN that we never sent), is forwarded without.
fn deserves_pin(packet: &Packet) -> bool {
    let flags = packet.headers.flags;
    let goes_on = flags.any(TcpFlags::ACK) && !flags.any(TcpFlags::SYN | TcpFlags::RST);
    packet.flow.protocol() == Protocol::Udp || flags.opens() || goes_on
}

/// Chooses among the backends in service. For a flow whose pin was lost a draining backend is as
/// good as any: it most probably is the one that had it.
fn choose_backend<'t>(
    packet: &Packet,
    miss: Miss,
    vip: &Vip,
    conntrack: &Conntrack,
    context: Context<'t>,
) -> Result<&'t Backend, Drop> {
    let hash = affinity_hash(context.table.secret(), &packet.flow.key());
    let mut collided = false;
    let accept = |backend: &Backend| {
        let in_service = match miss {
            Miss::Open => backend.takes_new,
            Miss::Midflow => backend.takes_midflow,
        };
        let collides = in_service
            && vip.forward == Forward::Nat
            && collides(&packet.flow.key(), backend, conntrack, context);
        collided |= collides;
        in_service && !collides
    };
    choose(context.table, vip, hash, accept).ok_or(if collided {
        Drop::NatCollision
    } else {
        Drop::NoBackend
    })
}

/// Whether the backend already has a flow from this client address and port, by another VIP or
/// another port of this one: it could not tell the two apart, nor could we tell its replies.
fn collides(key: &FlowKey, backend: &Backend, conntrack: &Conntrack, context: Context<'_>) -> bool {
    let port = backend.port.unwrap_or(key.vip_port);
    let source = ListenKey { address: backend.address, port, protocol: key.protocol };
    let paths = context.table.return_paths(source);
    if paths.clone().nth(1).is_none() {
        return false;
    }
    paths.into_iter().any(|path| {
        let vip_port = path.vip_port.unwrap_or(port);
        let other = FlowKey { vip: path.vip_address, vip_port, ..*key };
        other != *key && {
            let other = conntrack.secret().hash(other);
            conntrack.is_pinned_anywhere(&other, path.backend, context)
        }
    })
}

/// Refuses sources from which nobody may send (RFC 1122 3.2.1.3, RFC 4291 2.5-2.7).
fn check_source(headers: &Headers) -> Result<(), Drop> {
    let bad = match IpAddr::from(headers.source) {
        IpAddr::V4(ip) => {
            ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_loopback()
                || ip.octets().starts_with(&[0])
        }
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_loopback() || ip.is_unspecified(),
    };
    // A group address as the source MAC (IEEE 802.3 3.2.3): replies would go to the group.
    let [first, ..] = headers.source_mac;
    if bad || first & 1 == 1 {
        return Err(Drop::BadSource);
    }
    if headers.from() == headers.to() {
        return Err(Drop::Land);
    }
    Ok(())
}
