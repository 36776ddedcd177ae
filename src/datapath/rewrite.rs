//! Stage 6 of 7, rewrite: the headers of the outgoing packet.
//!
//! ```text
//! dsr  to the backend  MAC
//! nat  to the backend  MAC, destination address and port, TTL, checksums
//! nat  to the client   MAC, source address and port, TTL, checksums
//! full_nat, both ways  MAC, both addresses and ports, TTL, checksums;
//!                      or another IP header, a PROXY header
//! ipip, gue            outer headers and MAC; the packet itself stays as it is
//! ```
//!
//! VIPs with `syn_proxy` also translate numbers of TCP (`splice`).
//!
//! With the VIP's `mss` option, the maximum segment size of SYNs is lowered.
//!
//! Reads: the target. Writes: the frame, and the packet's outgoing NIC.
//! Cost: one or two header lines that parse has already read; checksums are patched (RFC 1624).

mod fragment;
mod full_nat;
mod length;
mod nat;
mod proxy;
mod splice;
pub(super) mod tunnel;

use self::length::fits;
use super::batch::{Direction, HeaderLayout, Packet, TcpFlags};
use super::context::Context;
use super::target::Target;
use crate::forwarding::table::{Backend, BackendFlags};
use crate::net::vlan::Tags;
use crate::net::{Family, Forward, NextHop, VipId};
use crate::stats::Drop;
use crate::wire::ip::Side;
use crate::wire::{ethernet, tcp};
use crate::xdp::umem::Frame;

/// Rewrites a client's packet for its backend.
///
/// # Errors
/// The reason for which it cannot be sent. If a [`local_reply`](super::local_reply) is possible,
/// the packet is unchanged.
#[inline(always)]
pub fn rewrite_to_backend(
    packet: &mut Packet,
    target: &Target<'_>,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let Target { backend, snat_port } = *target;
    // The backend's VIP, not the listener's: a reload may have given the port to another VIP.
    packet.vip = backend.vip;
    packet.backend = backend.id.index;
    let hop = backend.next_hop.as_ref().ok_or_else(|| no_hop(backend))?;
    if backend.forward == Forward::FullNat {
        full_nat::to_backend(packet, backend, snat_port.ok_or(Drop::RequestNoFlow)?, context)?;
        if backend.flags.has(BackendFlags::SPLICED) {
            splice::to_backend(packet, context)?;
        }
        return address_packet(packet, hop, context);
    }
    let Packet { frame: Some(frame), flow, layout, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    let mtu = mtu_towards(backend, flow.tuple.family(), context);
    if !fits(frame, layout, mtu) {
        packet.limit = mtu;
        return Err(Drop::TooBig);
    }
    if layout.flags.any(TcpFlags::SYN) {
        lower_mss(frame, layout, packet.vip, context);
    }
    match backend.forward {
        Forward::Dsr => {}
        Forward::Nat => {
            let port = backend.port.unwrap_or(flow.key().vip_port);
            nat::translate(frame, layout, flow, Side::Destination, backend.address, port)?;
            if backend.flags.has(BackendFlags::SPLICED) {
                splice::to_backend(packet, context)?;
                return address_packet(packet, hop, context);
            }
        }
        // Handled above.
        Forward::FullNat => return Err(Drop::NoBackend),
        Forward::Ipip | Forward::Gue => {
            tunnel::encapsulate(frame, layout, flow.tuple, backend, context)?;
        }
    }
    packet.nic = hop.nic;
    address_frame(frame, layout.tag, hop, context)
}

/// Longest IP packet in bytes of a client, IPv4 or IPv6, that reaches `backend` unfragmented.
#[inline]
pub fn mtu_towards(backend: &Backend, family: Family, context: &Context<'_>) -> u16 {
    if backend.forward.tunnels() { tunnel::limit(family, backend, context) } else { backend.mtu }
}

/// Returns the drop reason for a backend without a next hop.
#[cold]
fn no_hop(backend: &Backend) -> Drop {
    if backend.loops { Drop::Loop } else { Drop::NoNextHop }
}

/// Rewrites a backend's packet for the client behind `hop`, or behind the next hop that replaces it.
#[inline]
pub fn rewrite_to_client(
    packet: &mut Packet,
    hop: &NextHop,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let local = context.table.local();
    let hop = local.return_hop(hop, packet.flow.tuple.family());
    let mtu = local.mtu(hop.nic);
    if let Direction::ToClientOf(id) = packet.direction {
        full_nat::to_client(packet, id, mtu, context)?;
        if context.table.is_spliced() {
            splice::to_client(packet, context)?;
        }
        return address_packet(packet, hop, context);
    }
    let Packet { frame: Some(frame), flow, layout, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    if !fits(frame, layout, mtu) {
        packet.limit = mtu;
        return Err(Drop::TooBig);
    }
    if layout.flags.any(TcpFlags::SYN) {
        lower_mss(frame, layout, packet.vip, context);
    }
    let number = fragment::new_number(frame, layout, context);
    let key = flow.key();
    nat::translate(frame, layout, flow, Side::Source, key.vip, key.vip_port)?;
    fragment::renumber(frame, layout, number);
    if context.table.is_spliced() {
        splice::to_client(packet, context)?;
        return address_packet(packet, hop, context);
    }
    packet.nic = hop.nic;
    address_frame(frame, layout.tag, hop, context)
}

/// Lowers the maximum segment size of a SYN, if the VIP limits it.
#[cold]
fn lower_mss(frame: &mut Frame, layout: &HeaderLayout, vip: VipId, context: &Context<'_>) {
    let most = context.table.vip(vip).and_then(|vip| vip.policy.mss);
    let segment = frame.data_mut().get_mut(usize::from(layout.transport)..);
    if let Some((most, segment)) = most.zip(segment) {
        tcp::lower_mss(segment, most);
    }
}

fn address_packet(packet: &mut Packet, hop: &NextHop, context: &Context<'_>) -> Result<(), Drop> {
    let Some(frame) = &mut packet.frame else { return Err(Drop::NoBackend) };
    packet.nic = hop.nic;
    address_frame(frame, packet.layout.tag, hop, context)
}

#[inline(always)]
pub(super) fn address_frame(
    frame: &mut Frame,
    tag: Option<Tags>,
    hop: &NextHop,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let source = context.macs.get(usize::from(hop.nic.0)).ok_or(Drop::NoNextHop)?;
    if ethernet::readdress(frame, tag, hop.vlan, &hop.mac, source) {
        Ok(())
    } else {
        Err(Drop::NoHeadroom)
    }
}
