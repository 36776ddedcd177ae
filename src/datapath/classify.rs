//! Stage 3 of 7, classify: which flow is this, and which way does the packet go?
//!
//! Reads: `headers`, the VIPs and return paths of the forwarding table.
//! Writes: `vip`, `way` and the hashed flow key, or drops what is for no VIP.
//! Cost: one hash look-up for the VIP (two when it listens on all ports), one hash of the flow key.

use super::batch::{Batch, Packet, Way};
use crate::flow::FlowKey;
use crate::flow::table::TableSecret;
use crate::forwarding::table::ReturnPath;
use crate::forwarding::{ForwardingTable, ListenKey, VipId};
use crate::stats::Drop;

/// Classifies every packet in flight.
#[inline]
pub fn classify(batch: &mut Batch, table: &ForwardingTable, secret: &TableSecret) {
    // Most packets of a batch are for the same VIP: the last answer is worth keeping.
    let mut last = None;
    for packet in batch.in_flight() {
        match client_flow(packet, table, &mut last) {
            Some(key) => packet.flow = secret.hash(key),
            None => packet.drop(Drop::NoVip),
        }
    }
}

/// The flow from its client's side. A VIP as the destination comes first: a NAT backend may be a
/// client of another VIP.
#[inline]
fn client_flow(
    packet: &mut Packet,
    table: &ForwardingTable,
    last: &mut Option<(ListenKey, VipId)>,
) -> Option<FlowKey> {
    let to = packet.headers.to();
    let known = last.filter(|(key, _)| *key == to).map(|(_, vip)| vip);
    if let Some(vip) = known.or_else(|| table.listener(to)) {
        *last = Some((to, vip));
        packet.vip = vip;
        return Some(packet.headers.client_flow());
    }
    let path = table.return_paths(packet.headers.from()).next()?;
    packet.vip = path.vip;
    packet.way = Way::ToClient(packet.headers.from());
    Some(answered_flow(packet, path))
}

/// The flow that a packet from a NAT backend answers, if it answers for this VIP port.
#[inline]
pub fn answered_flow(packet: &Packet, path: &ReturnPath) -> FlowKey {
    FlowKey {
        client: packet.headers.destination,
        vip: path.vip_address,
        client_port: packet.headers.destination_port,
        vip_port: path.vip_port.unwrap_or(packet.headers.source_port),
        protocol: packet.headers.protocol,
    }
}
