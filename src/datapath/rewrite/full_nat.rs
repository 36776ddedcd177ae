//! Part of the stage rewrite: addresses and ports of both sides, for mode full_nat; the whole IP
//! header where the families of client and backend differ (RFC 7915).

use super::fragment::{new_number, renumber};
use super::length::fits;
use super::nat::{translate_quote, unsent};
use super::proxy;
use crate::datapath::batch::{FragmentKind, HeaderLayout, Packet, TcpFlags};
use crate::datapath::context::Context;
use crate::datapath::snat::Numbers;
use crate::flow::snat::SnatPort;
use crate::forwarding::table::Backend;
use crate::net::FlowKey;
use crate::stats::Drop;
use crate::wire::quoted::{End, Replacement};
use crate::wire::siit::{self, Quote, SiitError};
use crate::wire::{ip, tcp, transport};
use crate::xdp::umem::Frame;

/// Bytes that an IPv6 header has more than an IPv4 header.
const GROWTH: u16 = 20;

/// New source and destination of a packet.
#[derive(Clone, Copy)]
struct Ends {
    source: End,
    destination: End,
    /// Longest IP packet that may be sent, in bytes.
    mtu: u16,
    /// Added to the TCP sequence number that an ICMP error quotes.
    sequence: i32,
}

/// Rewrites a client's packet for its backend.
#[inline]
pub(super) fn to_backend(
    packet: &mut Packet,
    backend: &Backend,
    id: SnatPort,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let source = context.shared.snat_table.sources().source(id).ok_or(Drop::RequestNoFlow)?;
    let port = backend.port.unwrap_or(packet.flow.key().vip_port);
    let numbers = Numbers::of(backend, id, context);
    let growth = numbers.as_ref().map_or(0, |numbers| proxy::growth(packet, numbers));
    let (destination, mtu) = ((backend.address, port), backend.mtu.saturating_sub(growth));
    translate(packet, &Ends { source, destination, mtu, sequence: 0 }, context)?;
    match &numbers {
        Some(numbers) => proxy::to_backend(packet, numbers),
        None => Ok(()),
    }
}

/// Rewrites a backend's packet for its client, over a link of `mtu` bytes.
#[inline]
pub(super) fn to_client(
    packet: &mut Packet,
    id: SnatPort,
    mtu: u16,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let FlowKey { client, client_port, vip, vip_port, .. } = packet.flow.key();
    let (source, destination) = ((vip, vip_port), (client, client_port));
    let backend = context.table.backend(packet.backend);
    let numbers = backend.and_then(|backend| Numbers::of(backend, id, context));
    let sequence = numbers.as_ref().map_or(0, proxy::quoted_shift);
    translate(packet, &Ends { source, destination, mtu, sequence }, context)?;
    match &numbers {
        Some(numbers) => proxy::to_client(packet, numbers, context),
        None => Ok(()),
    }
}

/// Whether the packet is translated to the other family.
#[inline]
fn changes_family(packet: &Packet, ends: &Ends) -> bool {
    let first = packet.data().get(packet.layout.ip()).copied().unwrap_or_default();
    (first >> 4 == 4) != ends.source.0.is_v4()
}

/// Replaces the addresses and ports of both sides.
#[inline]
fn translate(packet: &mut Packet, ends: &Ends, context: &Context<'_>) -> Result<(), Drop> {
    let Some(frame) = &packet.frame else { return Err(Drop::NoBackend) };
    packet.bytes = frame.packet_len();
    let crosses = changes_family(packet, ends);
    let number = new_number(frame, &packet.layout, context);
    if crosses {
        translate_family(packet, ends, context)?;
    } else {
        translate_ends(packet, ends)?;
    }
    if let Some(frame) = &mut packet.frame {
        renumber(frame, &packet.layout, number);
    }
    // An ICMP error has no flags.
    if packet.layout.flags.any(TcpFlags::SYN) && packet.layout.fragment != FragmentKind::Quoting {
        lower_mss(packet, crosses && !ends.source.0.is_v4(), context);
    }
    Ok(())
}

/// Replaces the addresses and ports of both sides within one family.
#[inline]
fn translate_ends(packet: &mut Packet, ends: &Ends) -> Result<(), Drop> {
    let Packet { frame: Some(frame), flow, layout, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    if !fits(frame, layout, ends.mtu) {
        packet.limit = ends.mtu;
        return Err(Drop::TooBig);
    }
    let data = frame.data_mut();
    let (source, destination) = (ends.source, ends.destination);
    let family = source.0.family();
    // Parse has checked both headers; the offsets are its own.
    let network = data.get_mut(layout.ip()..).ok_or(Drop::TruncatedEthernet)?;
    let translated = if family.is_v4() {
        ip::readdress_v4(network, source.0, destination.0)
    } else {
        ip::readdress_v6(network, source.0, destination.0)
    };
    let delta = translated.map_err(|error| unsent(error, family))?;
    if layout.fragment == FragmentKind::Quoting {
        // The end that receives an ICMP error sent the quoted packet.
        let (source, destination) = (Some(destination), Some(source));
        let replacement = Replacement { source, destination, sequence: ends.sequence };
        return translate_quote(data, layout, &replacement, delta);
    }
    if layout.fragment == FragmentKind::Later {
        // Ports and checksum are in the first fragment; all fragments need the same change of
        // addresses.
        return Ok(());
    }
    let segment = data.get_mut(usize::from(layout.transport)..).unwrap_or_default();
    let ports = (source.1, destination.1);
    if transport::readdress(flow.protocol(), segment, ports, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}

/// Translates the packet from one family to the other. Leaves the packet unchanged if that fails.
#[cold]
fn translate_family(packet: &mut Packet, ends: &Ends, context: &Context<'_>) -> Result<(), Drop> {
    let beyond = mtu_beyond(packet, context);
    let Packet { frame: Some(frame), layout, limit, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    let Ends { source, destination, mtu, sequence } = *ends;
    let quoting = layout.fragment == FragmentKind::Quoting;
    let quoted = Quote { source: destination, destination: source, sequence, mtu: beyond };
    let target = siit::Target {
        source,
        destination,
        quoted: quoting.then_some(quoted),
        identification: identification(frame, layout),
        mtu,
    };
    siit::translate(frame, layout.ip(), &target).map_err(|error| match error {
        SiitError::TooBig { mtu } => {
            *limit = mtu;
            Drop::TooBig
        }
        SiitError::BadHeaderChecksum => Drop::BadIpv4Checksum,
        SiitError::HopsExceeded => Drop::TtlExceeded,
        SiitError::NoRoom => Drop::NoHeadroom,
        SiitError::Message => Drop::IcmpType,
        SiitError::Malformed | SiitError::BadChecksum if quoting => Drop::BadIcmp,
        _ => Drop::NotTranslatable,
    })
}

/// Longest IP packet in bytes that may be sent back to where the packet came from.
fn mtu_beyond(packet: &Packet, context: &Context<'_>) -> u16 {
    let backend = context.table.backend(packet.backend).filter(|_| packet.direction.is_reply());
    backend.map_or_else(|| context.table.local().mtu(context.nic), |backend| backend.mtu)
}

/// Lowers the maximum segment size of a SYN, if the VIP limits it; and if the header has `grown`,
/// so that a segment that fits the IPv4 end's link fits the other end's link, too.
#[cold]
fn lower_mss(packet: &mut Packet, grown: bool, context: &Context<'_>) {
    let most = context.table.vip(packet.vip).and_then(|vip| vip.policy.mss);
    // A SYN is whole: nothing fails here.
    let _ = proxy::with_segment(packet, |segment| {
        if grown {
            tcp::lower_mss_by(segment, GROWTH);
        }
        most.map(|most| tcp::lower_mss(segment, most))
    });
}

/// Returns an IPv4 identification for a packet that has none: the low half of TCP's sequence number
/// or UDP's checksum, which differ between most packets of a flow. It matters only if a router
/// fragments the packet.
fn identification(frame: &Frame, layout: &HeaderLayout) -> u16 {
    let segment = frame.data().get(usize::from(layout.transport)..);
    let numbers = segment.and_then(|segment| segment.get(4..8));
    let sum = numbers.and_then(|bytes| bytes.last_chunk::<2>());
    sum.map_or(0, |bytes| u16::from_be_bytes(*bytes))
}
