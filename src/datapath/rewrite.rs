//! Stage 6 of 7, rewrite: the headers that the packet leaves with.
//!
//! ```text
//! dsr  to the backend  MAC
//! nat  to the backend  MAC, destination address and port, TTL, checksums
//! nat  to the client   MAC, source address and port, TTL, checksums
//! full_nat  either way MAC, both addresses and ports, TTL, checksums; or another IP header
//! ```
//!
//! Reads: the target. Writes: the frame; gives the NIC that it leaves by.
//! Cost: one or two header lines that parse has already read; checksums are patched (RFC 1624).

mod full_nat;
mod nat;

use super::batch::{Packet, Shape, Way};
use super::conntrack::Target;
use super::context::Context;
use crate::forwarding::{Forward, NextHop};
use crate::stats::Drop;
use crate::wire::ethernet;
use crate::wire::headers::Headers;
use crate::wire::ip::Side;
use crate::xdp::umem::Frame;
use full_nat::Ends;

/// MAC addresses of the NICs, by [`PortIndex`](crate::forwarding::PortIndex).
pub type Macs = [[u8; 6]];

/// Rewrites a client's packet for its backend.
///
/// # Errors
/// Why it cannot be sent. If that may be answered ([`answer`](super::answer)), the packet is unchanged.
#[inline(always)]
pub fn rewrite_to_backend(
    packet: &mut Packet,
    target: &Target<'_>,
    context: &Context<'_>,
    macs: &Macs,
) -> Result<(), Drop> {
    let Target { backend, binding } = *target;
    // Of the backend, not of the listener: a reload may have given the port to another VIP.
    packet.vip = backend.vip;
    packet.backend = backend.id.index;
    let hop = backend.next_hop.as_ref().ok_or(Drop::NoNextHop)?;
    if backend.forward == Forward::FullNat {
        let source = binding.and_then(|id| context.bindings.sources().source(id));
        let source = source.ok_or(Drop::RequestNoFlow)?;
        let port = backend.port.unwrap_or(packet.flow.key().vip_port);
        let ends = Ends { source, destination: (backend.address, port), mtu: backend.mtu };
        return rewrite_both(packet, &ends, hop, macs);
    }
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    if !fits(frame, shape, backend.mtu) {
        packet.limit = backend.mtu;
        return Err(Drop::TooBig);
    }
    match backend.forward {
        Forward::Dsr => {}
        Forward::Nat => {
            let port = backend.port.unwrap_or(flow.key().vip_port);
            nat::translate(frame, shape, flow, Side::Destination, backend.address, port)?;
        }
        // The configuration refuses the others in this version.
        Forward::FullNat | Forward::Ipip | Forward::Gue => return Err(Drop::NoBackend),
    }
    packet.nic = hop.port;
    address_frame(frame, shape.tag, hop, macs)
}

/// Rewrites a backend's packet for the client that is at `hop`.
///
/// # Errors
/// As [`rewrite_to_backend`].
#[inline]
pub fn rewrite_to_client(
    packet: &mut Packet,
    hop: &NextHop,
    context: &Context<'_>,
    macs: &Macs,
) -> Result<(), Drop> {
    let mtu = context.table.this_box().mtu(hop.port);
    let key = packet.flow.key();
    if let Way::ToClientOf(_) = packet.way {
        let (source, destination) = ((key.vip, key.vip_port), (key.client, key.client_port));
        return rewrite_both(packet, &Ends { source, destination, mtu }, hop, macs);
    }
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    if !fits(frame, shape, mtu) {
        packet.limit = mtu;
        return Err(Drop::TooBig);
    }
    nat::translate(frame, shape, flow, Side::Source, key.vip, key.vip_port)?;
    packet.nic = hop.port;
    address_frame(frame, shape.tag, hop, macs)
}

/// Rewrites a packet of a full-NAT flow.
#[inline]
fn rewrite_both(packet: &mut Packet, ends: &Ends, hop: &NextHop, macs: &Macs) -> Result<(), Drop> {
    let same_family = !full_nat::changes_family(packet, ends);
    let Some(frame) = &mut packet.frame else { return Err(Drop::NoBackend) };
    packet.bytes = frame.packet_len();
    // In the other family it has another length.
    if same_family && !fits(frame, &packet.shape, ends.mtu) {
        packet.limit = ends.mtu;
        return Err(Drop::TooBig);
    }
    full_nat::translate(packet, ends)?;
    let Some(frame) = &mut packet.frame else { return Err(Drop::NoBackend) };
    packet.nic = hop.port;
    address_frame(frame, packet.shape.tag, hop, macs)
}

/// Whether the packet may leave as it is by a link that carries `mtu` bytes.
#[inline(always)]
pub(super) fn fits(frame: &mut Frame, shape: &Shape, mtu: u16) -> bool {
    usize::from(frame.packet_len()) <= shape.ip() + usize::from(mtu) || trim(frame, shape, mtu)
}

/// Cuts off what follows the IP packet, if that alone is short enough: what the sender's link added
/// (an Ethernet trailer) is no part of it.
#[cold]
fn trim(frame: &mut Frame, shape: &Shape, mtu: u16) -> bool {
    if frame.is_long() {
        return false;
    }
    let packet = frame.data().get(shape.ip()..).unwrap_or_default();
    let end = Headers::of(packet).map_or(usize::MAX, |headers| headers.end);
    end <= usize::from(mtu) && frame.set_len(shape.ip() + end)
}

#[inline(always)]
pub(super) fn address_frame(
    frame: &mut Frame,
    tag: Option<u16>,
    hop: &NextHop,
    macs: &Macs,
) -> Result<(), Drop> {
    let source = macs.get(usize::from(hop.port.0)).ok_or(Drop::NoNextHop)?;
    if ethernet::readdress(frame, tag, hop.vlan, &hop.mac, source) {
        Ok(())
    } else {
        Err(Drop::NoHeadroom)
    }
}
