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

use super::batch::{Packet, Shape};
use super::conntrack::Target;
use crate::flow::{Address, Protocol};
use crate::forwarding::table::Backend;
use crate::forwarding::{Forward, NextHop, PortIndex};
use crate::stats::Drop;
use crate::wire::ethernet;
use crate::wire::ip::{self, IpError, Side};
use crate::wire::transport;
use crate::xdp::umem::Frame;

/// MAC addresses of the NICs, by [`PortIndex`].
pub type Macs = [[u8; 6]];

/// Rewrites a packet for its target.
///
/// # Errors
/// Why it cannot be sent; it may have been changed.
#[inline(always)]
pub fn rewrite(packet: &mut Packet, target: Target<'_>, macs: &Macs) -> Result<PortIndex, Drop> {
    match target {
        Target::Backend(backend) => {
            // Of the backend, not of the listener: a reload may have given the port to another VIP.
            packet.vip = backend.vip;
            to_backend(packet, backend, macs)
        }
        Target::Client(_, hop) => to_client(packet, hop, macs),
    }
}

#[inline(always)]
fn to_backend(packet: &mut Packet, backend: &Backend, macs: &Macs) -> Result<PortIndex, Drop> {
    let hop = backend.next_hop.as_ref().ok_or(Drop::NoNextHop)?;
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    if backend.forward == Forward::Nat {
        let port = backend.port.unwrap_or(flow.key().vip_port);
        translate(frame, shape, flow.protocol(), Side::Destination, backend.address, port)?;
    }
    address_frame(frame, packet.shape.tag, hop, macs)
}

#[inline(always)]
fn to_client(packet: &mut Packet, hop: NextHop, macs: &Macs) -> Result<PortIndex, Drop> {
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    let key = flow.key();
    translate(frame, shape, key.protocol, Side::Source, key.vip, key.vip_port)?;
    address_frame(frame, packet.shape.tag, &hop, macs)
}

/// Replaces the address and port of one side.
#[inline(always)]
fn translate(
    frame: &mut Frame,
    shape: &Shape,
    protocol: Protocol,
    side: Side,
    address: Address,
    port: u16,
) -> Result<(), Drop> {
    let data = frame.data_mut();
    let v4 = address.is_v4();
    // Parse has found both headers whole; the offsets are its own.
    let network = data.get_mut(usize::from(shape.ip)..).ok_or(Drop::TruncatedEthernet)?;
    let translated = if v4 {
        ip::rewrite_v4(network, side, address)
    } else {
        ip::rewrite_v6(network, side, address)
    };
    let delta = translated.map_err(|error| match error {
        IpError::HopsExceeded => Drop::TtlExceeded,
        IpError::Truncated if v4 => Drop::TruncatedIpv4,
        IpError::Truncated => Drop::TruncatedIpv6,
    })?;
    let segment = data.get_mut(usize::from(shape.transport)..).unwrap_or_default();
    if transport::rewrite(protocol, segment, side, port, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}

#[inline(always)]
fn address_frame(
    frame: &mut Frame,
    tag: Option<u16>,
    hop: &NextHop,
    macs: &Macs,
) -> Result<PortIndex, Drop> {
    let source = macs.get(usize::from(hop.port.0)).ok_or(Drop::NoNextHop)?;
    if ethernet::readdress(frame, tag, hop.vlan, &hop.mac, source) {
        Ok(hop.port)
    } else {
        Err(Drop::NoHeadroom)
    }
}
