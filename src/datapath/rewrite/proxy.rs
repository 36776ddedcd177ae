//! Part of the stage rewrite: the PROXY header of a full-NAT flow, and the numbers that it shifts.
//!
//! Before the addresses are translated it is found out what the packet needs, as a packet that turns out
//! too long must be left as it was; after that it is done.

use crate::datapath::batch::{FragmentKind, Packet, TcpFlags};
use crate::datapath::context::Context;
use crate::datapath::snat::Numbers;
use crate::net::FlowKey;
use crate::stats::Drop;
use crate::wire::headers::Headers;
use crate::wire::proxy::{self, Header, ProxyError, Start};
use crate::wire::tcp;

/// Bytes that are put in front of the data of a client's packet.
pub(super) fn growth(packet: &Packet, numbers: &Numbers) -> u16 {
    let segment = packet.data().get(usize::from(packet.layout.transport)..).unwrap_or_default();
    let carries = matches!(packet.layout.fragment, FragmentKind::Whole | FragmentKind::First);
    if carries && numbers.shift.begins(segment) { numbers.shift.len.into() } else { 0 }
}

/// What the quoted sequence number of the backend's side changes by for the client.
pub(super) fn quoted_shift(numbers: &Numbers) -> i32 {
    // Before that, the number is of the SYN or of the segment with the header, as a rule.
    if numbers.shift.acknowledged { -i32::from(numbers.shift.len) } else { 0 }
}

/// Shifts a client's packet, whose addresses are translated, for its backend.
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

/// Bytes of data of the packet's segment; of a first fragment as many as there may be.
fn data_len(packet: &Packet) -> Option<usize> {
    let network = packet.data().get(packet.layout.ip()..)?;
    let headers = Headers::of(network).ok()?;
    if !headers.is_whole() {
        return Some(usize::MAX);
    }
    let header = tcp::header_len(network.get(headers.transport..)?)?;
    headers.end.checked_sub(headers.transport + header)
}

/// Shifts a backend's packet, whose addresses are translated, for its client.
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
            // So that the client's first data and the header fit together.
            let _ = tcp::lower_mss_by(segment, numbers.shift.len.into());
        }
        numbers.shift.to_client(segment)
    })?;
    if syn && !numbers.shift.answered {
        // Another SYN does not come here.
        context.shared.snat_table.answer(&numbers.snat_entry);
    } else if acknowledged && !numbers.shift.acknowledged {
        context.shared.snat_table.acknowledge(&numbers.snat_entry);
    }
    Ok(())
}

/// The TCP segment of the packet, wherever it is by now.
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
