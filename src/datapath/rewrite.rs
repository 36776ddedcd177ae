//! Stage 6 of 7, rewrite: the headers that the packet leaves with.
//!
//! ```text
//! dsr  to the backend  MAC
//! nat  to the backend  MAC, destination address and port, TTL, checksums
//! nat  to the client   MAC, source address and port, TTL, checksums
//! ```
//!
//! Reads: the target. Writes: the frame; gives the NIC that it leaves by.
//! Cost: one or two header lines that parse has already read; checksums are patched (RFC 1624).

mod nat;

use super::batch::Packet;
use super::context::Context;
use crate::forwarding::table::Backend;
use crate::forwarding::{Forward, NextHop};
use crate::stats::Drop;
use crate::wire::ethernet;
use crate::wire::ip::Side;
use crate::xdp::umem::Frame;

/// MAC addresses of the NICs, by [`PortIndex`](crate::forwarding::PortIndex).
pub type Macs = [[u8; 6]];

/// Rewrites a client's packet for its backend.
///
/// # Errors
/// Why it cannot be sent; it may have been changed.
#[inline(always)]
pub fn rewrite_to_backend(
    packet: &mut Packet,
    backend: &Backend,
    _context: &Context<'_>,
    macs: &Macs,
) -> Result<(), Drop> {
    // Of the backend, not of the listener: a reload may have given the port to another VIP.
    packet.vip = backend.vip;
    packet.backend = backend.id.index;
    let hop = backend.next_hop.as_ref().ok_or_else(|| no_hop(backend))?;
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    match backend.forward {
        Forward::Dsr => {}
        Forward::Nat => {
            let port = backend.port.unwrap_or(flow.key().vip_port);
            nat::translate(frame, shape, flow, Side::Destination, backend.address, port)?;
        }
        // The configuration refuses them in this version.
        Forward::FullNat | Forward::Ipip | Forward::Gue => return Err(Drop::NoBackend),
    }
    packet.nic = hop.port;
    address_frame(frame, shape.tag, hop, macs)
}

/// Why a backend has no next hop.
#[cold]
fn no_hop(backend: &Backend) -> Drop {
    if backend.loops { Drop::Loop } else { Drop::NoNextHop }
}

/// Rewrites a NAT backend's packet for the client that is at `hop`.
///
/// # Errors
/// As [`rewrite_to_backend`].
#[inline]
pub fn rewrite_to_client(
    packet: &mut Packet,
    hop: &NextHop,
    _context: &Context<'_>,
    macs: &Macs,
) -> Result<(), Drop> {
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    let key = flow.key();
    nat::translate(frame, shape, flow, Side::Source, key.vip, key.vip_port)?;
    packet.nic = hop.port;
    address_frame(frame, shape.tag, hop, macs)
}

#[inline(always)]
fn address_frame(
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
