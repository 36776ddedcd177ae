//! Stage 5 of 7, select: a backend for every flow without a pin, and the pin.
//!
//! Reads: the flow key, the lookup table of the VIP. Writes: the flow table.
//! Cost: nothing for a packet of a pinned flow; SipHash, a slot look-up and an insertion otherwise.

use std::net::IpAddr;

use super::batch::{Packet, TcpFlags};
use super::conntrack::{Conntrack, Context, Miss};
use super::quic::named;
use crate::flow::{FlowKey, Protocol};
use crate::forwarding::select::{affinity_hash, choose};
use crate::forwarding::table::{Backend, Vip};
use crate::forwarding::{Forward, ListenKey};
use crate::stats::Drop;

/// The backend of a packet whose flow has no pin, which it leaves behind.
///
/// # Errors
/// Why there is none.
#[cold]
pub fn select<'t>(
    packet: &Packet,
    miss: Miss,
    conntrack: &mut Conntrack,
    context: &Context<'t>,
) -> Result<&'t Backend, Drop> {
    let key = packet.flow.key();
    check_source(&key, packet.source_mac())?;
    let vip = context.table.vip(packet.vip).ok_or(Drop::NoVip)?;
    // Where the connection is counts for more than a collision: elsewhere nobody knows it.
    let named = named(packet, context);
    let backend = named.map_or_else(|| choose_backend(&key, miss, vip, conntrack, context), Ok)?;
    if deserves_pin(packet) {
        conntrack.pin(packet, backend, context).map_err(|_| Drop::TableFull)?;
        match miss {
            _ if named.is_some() => context.stats.flows_by_cid.add(1),
            Miss::Midflow => context.stats.flows_by_hash.add(1),
            Miss::Open => context.stats.flows_new.add(1),
        }
    }
    Ok(backend)
}

/// Whether a packet may leave a pin behind. What ends a flow that is not known here, or is no part
/// of any (an answer to a SYN that we never sent), is forwarded without.
fn deserves_pin(packet: &Packet) -> bool {
    let flags = packet.shape.flags;
    let goes_on = flags.any(TcpFlags::ACK) && !flags.any(TcpFlags::SYN | TcpFlags::RST);
    packet.flow.protocol() == Protocol::Udp || flags.opens() || goes_on
}

/// Chooses among the backends in service. For a flow whose pin was lost a draining backend is as
/// good as any: it most probably is the one that had it.
fn choose_backend<'t>(
    key: &FlowKey,
    miss: Miss,
    vip: &Vip,
    conntrack: &Conntrack,
    context: &Context<'t>,
) -> Result<&'t Backend, Drop> {
    let hash = affinity_hash(context.table.secret(), key);
    let mut collided = false;
    let accept = |backend: &Backend| {
        let in_service = match miss {
            Miss::Midflow => backend.takes_midflow,
            Miss::Open => backend.takes_new,
        };
        let collides =
            in_service && vip.forward == Forward::Nat && collides(key, backend, conntrack, context);
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
fn collides(
    key: &FlowKey,
    backend: &Backend,
    conntrack: &Conntrack,
    context: &Context<'_>,
) -> bool {
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
            let other = conntrack.secret().hash(other.into());
            conntrack.is_pinned_anywhere(&other, path.backend, context)
        }
    })
}

/// Refuses sources from which nobody may send (RFC 1122 3.2.1.3, RFC 4291 2.5-2.7).
fn check_source(key: &FlowKey, source_mac: [u8; 6]) -> Result<(), Drop> {
    let bad = match IpAddr::from(key.client) {
        IpAddr::V4(ip) => {
            ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_loopback()
                || ip.octets().starts_with(&[0])
        }
        IpAddr::V6(ip) => ip.is_multicast() || ip.is_loopback() || ip.is_unspecified(),
    };
    // A group address as the source MAC (IEEE 802.3 3.2.3): replies would go to the group.
    let [first, ..] = source_mac;
    if bad || first & 1 == 1 {
        return Err(Drop::BadSource);
    }
    if (key.client, key.client_port) == (key.vip, key.vip_port) {
        return Err(Drop::Land);
    }
    Ok(())
}
