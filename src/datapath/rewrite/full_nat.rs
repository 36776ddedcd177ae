//! Part of the stage rewrite: addresses and ports of both sides, for mode full_nat; the whole IP header
//! where the families of client and backend differ (RFC 7915).

use super::nat::{translate_quote, unsent};
use crate::datapath::batch::{Packet, Part, Shape, TcpFlags};
use crate::flow::Protocol;
use crate::stats::Drop;
use crate::wire::quoted::{End, Replacement};
use crate::wire::siit::{self, Quote, SiitError};
use crate::wire::{ip, tcp, transport};
use crate::xdp::umem::Frame;

/// Bytes that an IPv6 header has more than one of IPv4.
const GROWTH: u16 = 20;

/// What a packet is to say.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub source: End,
    pub destination: End,
    /// Longest IP packet that may be sent, in bytes.
    pub mtu: u16,
}

/// Whether the packet becomes one of the other family.
#[inline]
pub(super) fn changes_family(packet: &Packet, ends: &Ends) -> bool {
    let first = packet.data().get(packet.shape.ip()).copied().unwrap_or_default();
    (first >> 4 == 4) != ends.source.0.is_v4()
}

/// Replaces the addresses and ports of both sides.
#[inline]
pub(super) fn translate(packet: &mut Packet, ends: &Ends) -> Result<(), Drop> {
    if changes_family(packet, ends) {
        return translate_family(packet, ends);
    }
    let Packet { frame: Some(frame), flow, shape, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    let data = frame.data_mut();
    let (source, destination) = (ends.source, ends.destination);
    let v4 = source.0.is_v4();
    // Parse has found both headers whole; the offsets are its own.
    let network = data.get_mut(shape.ip()..).ok_or(Drop::TruncatedEthernet)?;
    let translated = if v4 {
        ip::readdress_v4(network, source.0, destination.0)
    } else {
        ip::readdress_v6(network, source.0, destination.0)
    };
    let delta = translated.map_err(|error| unsent(error, v4))?;
    if shape.part == Part::Quoting {
        // What goes to an end was sent by it.
        let (source, destination) = (Some(destination), Some(source));
        let replacement = Replacement { source, destination, ..Replacement::default() };
        return translate_quote(data, shape, &replacement, delta);
    }
    let segment = data.get_mut(usize::from(shape.transport)..).unwrap_or_default();
    let ports = (source.1, destination.1);
    if transport::readdress(flow.protocol(), segment, ports, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}

/// The same, from one family to the other. Leaves the packet as it was if that fails.
#[cold]
fn translate_family(packet: &mut Packet, ends: &Ends) -> Result<(), Drop> {
    let Packet { frame: Some(frame), flow, shape, limit, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    let Ends { source, destination, mtu } = *ends;
    let quoting = shape.part == Part::Quoting;
    let quoted = Quote { source: destination, destination: source, sequence: 0 };
    let target = siit::Target {
        source,
        destination,
        quoted: quoting.then_some(quoted),
        identification: identification(frame, shape),
        mtu,
    };
    siit::translate(frame, shape.ip(), &target).map_err(|error| match error {
        SiitError::TooBig { mtu } => {
            *limit = mtu;
            Drop::TooBig
        }
        SiitError::HopsExceeded => Drop::TtlExceeded,
        SiitError::NoRoom => Drop::NoHeadroom,
        SiitError::Message => Drop::IcmpType,
        SiitError::Malformed | SiitError::BadChecksum if quoting => Drop::BadIcmp,
        _ => Drop::NotTranslatable,
    })?;
    let opens = flow.protocol() == Protocol::Tcp && shape.flags.any(TcpFlags::SYN) && !quoting;
    if opens && !source.0.is_v4() {
        // What fits the IPv4 end's link is to fit in front of us, too, with the longer header.
        let transport = shape.ip() + 40;
        let segment = frame.data_mut().get_mut(transport..).unwrap_or_default();
        let _ = tcp::lower_mss_by(segment, GROWTH);
    }
    Ok(())
}

/// An IPv4 identification for a packet that has none: what differs between most packets of a flow, a
/// part of TCP's sequence number or UDP's checksum. It is wanted only if somebody fragments the packet.
fn identification(frame: &Frame, shape: &Shape) -> u16 {
    let segment = frame.data().get(usize::from(shape.transport)..);
    let numbers = segment.and_then(|segment| segment.get(4..8));
    let sum = numbers.and_then(|bytes| bytes.last_chunk::<2>());
    sum.map_or(0, |bytes| u16::from_be_bytes(*bytes))
}
