//! Stage 3 of 7, classify: which flow is this, and which way does the packet go?
//!
//! Reads: the five-tuple, the VIPs and return paths of the forwarding table.
//! Writes: `vip`, `way` and the hashed flow key, or drops what is for no VIP. Asks for the first line of
//! the flow's look-up, unless the VIP has no pins.
//! Cost: one comparison for another packet to the last VIP; else one hash look-up for the VIP (a few
//! when it listens on more than single ports, see [`ForwardingTable::listener`]), and one for what is
//! to our own sources; one hash of the flow key.
//!
//! [`ForwardingTable::listener`]: crate::forwarding::ForwardingTable::listener

use super::batch::{Packet, Way};
use super::context::Context;
use crate::forwarding::table::ReturnPath;
use crate::net::{
    Address, BackendIndex, FlowKey, HashedKey, ListenKey, Protocol, TableSecret, Tuple, VipId,
};
use crate::stats::Drop;

/// The last VIP that was found. Most packets of a batch are for the same one.
#[derive(Debug)]
pub struct LastVip {
    destination: Tuple,
    vip: VipId,
}

impl LastVip {
    /// None: what no packet has for a destination.
    pub const NONE: Self = Self { destination: HashedKey::NONE.tuple, vip: VipId::NONE };
}

/// Classifies a packet with this five-tuple. A VIP as the destination comes first: a NAT backend may
/// be a client of another VIP.
///
/// # Errors
/// [`Drop::NoVip`]; [`Drop::UnsupportedProtocol`] if the packet has no ports that are known of.
#[inline(always)]
pub fn classify(
    packet: &mut Packet,
    tuple: Tuple,
    context: &Context<'_>,
    secret: &TableSecret,
    last: &mut LastVip,
) -> Result<(), Drop> {
    let mut flow = tuple;
    if tuple.goes_to(&last.destination) {
        packet.vip = last.vip;
    } else {
        let Some(vip) = context.table.listener(tuple.listen_key()) else {
            return classify_reply(packet, tuple, context, secret);
        };
        packet.vip = vip;
        match context.table.vip(vip) {
            Some(vip) if vip.protocol == Protocol::Any => flow = tuple.without_ports(),
            Some(vip) if !vip.policy.pin => {
                set_unpinned(packet, tuple, Way::Unpinned);
                return Ok(());
            }
            _ => *last = LastVip { destination: tuple.destination(), vip },
        }
    }
    packet.way = Way::ToBackend;
    packet.backend = BackendIndex(u16::MAX);
    packet.flow = secret.hash(flow);
    context.flows.prefetch_bucket(&packet.flow);
    Ok(())
}

/// Classifies a packet of a flow that has no pin to look for.
fn set_unpinned(packet: &mut Packet, flow: Tuple, way: Way) {
    packet.way = way;
    packet.backend = BackendIndex(u16::MAX);
    packet.flow = HashedKey::unhashed(flow);
}

/// Whether the flows of a VIP are all packets of a client to an address.
#[inline]
pub fn takes_all_protocols(vip: VipId, context: &Context<'_>) -> bool {
    context.table.vip(vip).is_some_and(|vip| vip.protocol == Protocol::Any)
}

/// What is for no VIP may be for a full-NAT source, or come from a NAT backend.
#[inline(never)]
fn classify_reply(
    packet: &mut Packet,
    tuple: Tuple,
    context: &Context<'_>,
    secret: &TableSecret,
) -> Result<(), Drop> {
    let ListenKey { address, port, protocol } = tuple.listen_key();
    if protocol == Protocol::Any {
        return classify_old(packet, tuple, context, secret).ok_or(Drop::UnsupportedProtocol);
    }
    if let Some(id) = context.shared.bindings.sources().find(address, port) {
        // Whose it is, conntrack asks when it has been fetched.
        context.shared.bindings.prefetch(id);
        packet.forget();
        packet.way = Way::ToClientOf(id);
        packet.flow = HashedKey::unhashed(tuple);
        return Ok(());
    }
    let source = tuple.reply_key();
    let Some(path) = context.table.return_path(source) else {
        return classify_old(packet, tuple, context, secret).ok_or(Drop::NoVip);
    };
    packet.vip = path.vip;
    let FlowKey { vip: client, vip_port: client_port, .. } = tuple.key();
    let flow = answered_flow(client, client_port, source, path);
    if !path.pinned {
        set_unpinned(packet, flow, Way::UnpinnedReply(source));
        return Ok(());
    }
    packet.way = Way::ToClient(source);
    packet.backend = path.backend;
    packet.flow = secret.hash(flow);
    context.flows.prefetch_bucket(&packet.flow);
    Ok(())
}

/// What comes for an address and port that a VIP had before a reload, and where flows are left.
#[cold]
fn classify_old(
    packet: &mut Packet,
    tuple: Tuple,
    context: &Context<'_>,
    secret: &TableSecret,
) -> Option<()> {
    let (vip, _) = context.table.old_listener(|| tuple.listen_key())?;
    packet.vip = vip;
    packet.way = Way::ToBackend;
    packet.backend = BackendIndex(u16::MAX);
    let all = takes_all_protocols(vip, context);
    packet.flow = secret.hash(if all { tuple.without_ports() } else { tuple });
    context.flows.prefetch_bucket(&packet.flow);
    Some(())
}

/// The flow that a packet from `source`, a NAT backend's, to a client answers, if it answers for this
/// VIP port.
#[inline]
pub fn answered_flow(
    client: Address,
    client_port: u16,
    source: ListenKey,
    path: &ReturnPath,
) -> Tuple {
    Tuple::from(FlowKey {
        client,
        vip: path.vip_address,
        client_port,
        vip_port: path.vip_port.unwrap_or(source.port),
        protocol: source.protocol,
    })
}
