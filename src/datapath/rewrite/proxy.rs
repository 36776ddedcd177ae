//! Part of the stage rewrite: the PROXY header of a full-NAT flow, and the sequence numbers that it
//! shifts.
//!
//! [`growth`] runs before the addresses are translated, as a packet that turns out too long must be
//! left unchanged; the other steps follow the translation.

use crate::datapath::batch::{FragmentKind, Packet, TcpFlags};
use crate::datapath::context::Context;
use crate::datapath::snat::Numbers;
use crate::net::FlowKey;
use crate::stats::Drop;
use crate::wire::headers::Headers;
use crate::wire::proxy::{self, Header, ProxyError, Start};
use crate::wire::tcp;

/// Number of bytes to insert in front of the data of a client's packet.
pub(super) fn growth(packet: &Packet, numbers: &Numbers) -> u16 {
    let segment = packet.data().get(usize::from(packet.layout.transport)..).unwrap_or_default();
    let carries = matches!(packet.layout.fragment, FragmentKind::Whole | FragmentKind::First);
    if carries && numbers.shift.begins(segment) { numbers.shift.len.into() } else { 0 }
}

/// Returns the change of a quoted sequence number of the backend's side, for the client.
pub(super) fn quoted_shift(numbers: &Numbers) -> i32 {
    // Until then the quoted segment is the SYN or the one with the header, as a rule.
    if numbers.shift.acknowledged { -i32::from(numbers.shift.len) } else { 0 }
}

/// Shifts the numbers of a client's packet for its backend, after the translation of its addresses.
pub(super) fn to_backend(packet: &mut Packet, numbers: &Numbers) -> Result<(), Drop> {
    if !matches!(packet.layout.fragment, FragmentKind::Whole | FragmentKind::First) {
        return Ok(());
    }
    let at = packet.layout.ip();
    if packet.layout.flags.any(TcpFlags::SYN) {
        let Some(frame) = &mut packet.frame else { return Err(Drop::NoBackend) };
        proxy::strip_syn(frame, at).map_err(undone)?;
    }
    let data = data_len(packet).ok_or(Drop::TruncatedTcp)?;
    match with_segment(packet, |segment| numbers.shift.to_backend(segment, data))? {
        Start::Within => Ok(()),
        Start::Overlap => Err(Drop::NotTranslatable),
        Start::Header => {
            let FlowKey { client, client_port, vip, vip_port, .. } = packet.flow.key();
            let header = Header::new((client, client_port), (vip, vip_port));
            let Some(frame) = &mut packet.frame else { return Err(Drop::NoBackend) };
            proxy::insert(frame, at, &header).map_err(undone)
        }
    }
}

/// Number of data bytes of the packet's segment; the maximum for a first fragment.
fn data_len(packet: &Packet) -> Option<usize> {
    let network = packet.data().get(packet.layout.ip()..)?;
    let headers = Headers::of(network).ok()?;
    if !headers.is_whole() {
        return Some(usize::MAX);
    }
    let header = tcp::header_len(network.get(headers.transport..)?)?;
    headers.end.checked_sub(headers.transport + header)
}

/// Shifts the numbers of a backend's packet for its client, after the translation of its addresses.
pub(super) fn to_client(
    packet: &mut Packet,
    numbers: &Numbers,
    context: &Context<'_>,
) -> Result<(), Drop> {
    if !matches!(packet.layout.fragment, FragmentKind::Whole | FragmentKind::First) {
        return Ok(());
    }
    let syn = packet.layout.flags.any(TcpFlags::SYN);
    let acknowledged = with_segment(packet, |segment| {
        if syn {
            // The client's first data and the header must fit one segment.
            let _ = tcp::lower_mss_by(segment, numbers.shift.len.into());
        }
        numbers.shift.to_client(segment)
    })?;
    if syn && !numbers.shift.answered {
        // Stray SYNs have been dropped before.
        context.shared.snat_table.mark_answered(&numbers.snat_entry);
    } else if acknowledged && !numbers.shift.acknowledged {
        context.shared.snat_table.acknowledge(&numbers.snat_entry);
    }
    Ok(())
}

/// Calls `f` with the TCP segment of the packet, at its current offset.
pub(super) fn with_segment<T>(
    packet: &mut Packet,
    f: impl FnOnce(&mut [u8]) -> Option<T>,
) -> Result<T, Drop> {
    let at = packet.layout.ip();
    let data = packet.frame.as_mut().map(|frame| frame.data_mut()).unwrap_or_default();
    let network = data.get_mut(at..).unwrap_or_default();
    let transport = Headers::of(network).map_err(|_| Drop::TruncatedTcp)?.transport;
    f(network.get_mut(transport..).unwrap_or_default()).ok_or(Drop::TruncatedTcp)
}

const fn undone(error: ProxyError) -> Drop {
    match error {
        ProxyError::Malformed => Drop::NotTranslatable,
        ProxyError::NoRoom => Drop::NoHeadroom,
    }
}
