//! Stage 6 of 7, rewrite: the headers that the packet leaves with.
//!
//! ```text
//! dsr  to the backend  MAC
//! nat  to the backend  MAC, destination address and port, TTL, checksums
//! nat  to the client   MAC, source address and port, TTL, checksums
//! ```
//!
//! Reads: `target`. Writes: the frame, and the NIC that it leaves by.
//! Cost: one or two header lines that parse has already read; checksums are patched (RFC 1624).

use super::batch::{Batch, Packet, Target, Verdict};
use super::conntrack::Context;
use crate::flow::Address;
use crate::forwarding::{BackendIndex, Forward, NextHop};
use crate::stats::Drop;
use crate::wire::ethernet;
use crate::wire::ip::{self, IpError, Side};
use crate::wire::transport;
use crate::xdp::umem::Frame;

/// MAC addresses of the NICs, by [`PortIndex`](crate::forwarding::PortIndex).
pub type Macs = [[u8; 6]];

/// Rewrites every packet in flight.
#[inline]
pub fn rewrite(batch: &mut Batch, context: Context<'_>, macs: &Macs) {
    for (packet, frame) in batch.in_flight_with_frames() {
        let result = match packet.target {
            Target::Backend(backend) => to_backend(packet, frame, backend, context, macs),
            Target::Client(hop) => to_client(packet, frame, hop, macs),
            Target::Unknown | Target::Wanted(_) => Err(Drop::NoBackend),
        };
        packet.verdict = match result {
            Ok(hop) => Verdict::Transmit(hop.port),
            Err(reason) => Verdict::Drop(reason),
        };
    }
}

#[inline]
fn to_backend(
    packet: &mut Packet,
    frame: &mut Frame,
    index: BackendIndex,
    context: Context<'_>,
    macs: &Macs,
) -> Result<NextHop, Drop> {
    let backend = context.table.backend(index).ok_or(Drop::NoBackend)?;
    let hop = backend.next_hop.ok_or(Drop::NoNextHop)?;
    // Of the backend, not of the listener: a reload may have given the port to another VIP.
    let vip = context.table.vip(backend.vip).ok_or(Drop::NoVip)?;
    packet.vip = vip.id;
    if vip.forward == Forward::Nat {
        let port = backend.port.unwrap_or(packet.headers.destination_port);
        translate(packet, frame, Side::Destination, backend.address, port)?;
    }
    address_frame(packet, frame, hop, macs)
}

#[inline]
fn to_client(
    packet: &Packet,
    frame: &mut Frame,
    hop: NextHop,
    macs: &Macs,
) -> Result<NextHop, Drop> {
    let key = packet.flow.key();
    translate(packet, frame, Side::Source, key.vip, key.vip_port)?;
    address_frame(packet, frame, hop, macs)
}

/// Replaces the address and port of one side.
#[inline]
fn translate(
    packet: &Packet,
    frame: &mut Frame,
    side: Side,
    address: Address,
    port: u16,
) -> Result<(), Drop> {
    let headers = &packet.headers;
    let data = frame.data_mut();
    // Parse has found both headers whole; the offsets are its own.
    let network = data.get_mut(usize::from(headers.ip)..).ok_or(Drop::TruncatedEthernet)?;
    let delta = if headers.source.is_v4() {
        ip::rewrite_v4(network, side, address)
    } else {
        ip::rewrite_v6(network, side, address)
    };
    let delta = delta.map_err(|error| match error {
        IpError::HopsExceeded => Drop::TtlExceeded,
        IpError::Truncated if headers.source.is_v4() => Drop::TruncatedIpv4,
        IpError::Truncated => Drop::TruncatedIpv6,
    })?;
    let segment = data.get_mut(usize::from(headers.transport)..).unwrap_or_default();
    if transport::rewrite(headers.protocol, segment, side, port, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}

#[inline]
fn address_frame(
    packet: &Packet,
    frame: &mut Frame,
    hop: NextHop,
    macs: &Macs,
) -> Result<NextHop, Drop> {
    let source = macs.get(usize::from(hop.port.0)).copied().ok_or(Drop::NoNextHop)?;
    let tag = packet.headers.tag;
    if ethernet::readdress(frame, tag, hop.vlan, hop.mac, source) {
        Ok(hop)
    } else {
        Err(Drop::NoHeadroom)
    }
}
