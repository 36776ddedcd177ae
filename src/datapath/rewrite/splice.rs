//! Part of the stage rewrite: the numbers of a connection at a VIP with `syn_proxy`, after the
//! translation of its addresses.
//!
//! Cost: a look-up of the splice; only for such VIPs.

use super::nat::translate_quote;
use super::proxy::with_segment;
use crate::datapath::batch::{FragmentKind, HeaderLayout, Packet, TcpFlags};
use crate::datapath::context::Context;
use crate::datapath::splice::{find, shift};
use crate::forwarding::table::BackendFlags;
use crate::stats::Drop;
use crate::wire::checksum::Delta;
use crate::wire::headers::Headers;
use crate::wire::quoted::Replacement;
use crate::wire::{syn, tcp};

/// Translates the numbers of a client's packet for its backend.
#[cold]
pub(super) fn to_backend(packet: &mut Packet, context: &Context<'_>) -> Result<(), Drop> {
    let Some(found) = find(&packet.flow, context) else { return Ok(()) };
    let Some(shift) = shift(&found.splice) else {
        // Our SYN, or a RST, has nothing to translate. Nothing else goes on before the answer.
        let passes = packet.layout.flags.any(TcpFlags::SYN | TcpFlags::RST);
        return if passes { Ok(()) } else { Err(Drop::SynProxyWaits) };
    };
    match packet.layout.fragment {
        FragmentKind::Whole | FragmentKind::First => {
            with_segment(packet, |segment| shift.to_backend(segment))
        }
        FragmentKind::Later => Ok(()),
        // The backend has sent the quoted packet, with its own numbers.
        FragmentKind::Quoting => requote(packet, shift.shift.cast_signed()),
    }
}

/// Translates the numbers of a backend's packet for its client. Its SYN+ACK becomes an ACK, as the
/// client has had another one.
#[inline]
pub(super) fn to_client(packet: &mut Packet, context: &Context<'_>) -> Result<(), Drop> {
    let spliced = |flags: BackendFlags| flags.has(BackendFlags::SPLICED);
    match context.table.backend(packet.backend) {
        Some(backend) if spliced(backend.flags) => translate_to_client(packet, context),
        _ => Ok(()),
    }
}

#[cold]
fn translate_to_client(packet: &mut Packet, context: &Context<'_>) -> Result<(), Drop> {
    if !matches!(packet.layout.fragment, FragmentKind::Whole | FragmentKind::First) {
        // The quote of an ICMP error has the client's numbers, which are the same on both sides.
        return Ok(());
    }
    let Some(found) = find(&packet.flow, context) else { return Ok(()) };
    let flags = packet.layout.flags;
    match shift(&found.splice) {
        Some(shift) => with_segment(packet, |segment| {
            shift.to_client(segment)?;
            if flags.any(TcpFlags::SYN) { syn::to_ack(segment) } else { Some(()) }
        }),
        None if !flags.any(TcpFlags::RST) => Err(Drop::SynProxyWaits),
        // A RST for our SYN: the client expects the number after the cookie.
        None => with_segment(packet, |segment| {
            let next = found.splice.cookie.wrapping_add(1);
            let delta = tcp::set_sequence(segment, next, Delta::default());
            tcp::patch_checksum(segment, delta).then_some(())
        }),
    }
}

/// Adds `sequence` to the sequence number that an ICMP error quotes.
fn requote(packet: &mut Packet, sequence: i32) -> Result<(), Drop> {
    let Packet { frame: Some(frame), layout, .. } = packet else { return Err(Drop::NoBackend) };
    let data = frame.data_mut();
    // Another family may have moved the message.
    let network = data.get(layout.ip()..).unwrap_or_default();
    let transport = layout.ip() + Headers::of(network).map_err(|_| Drop::BadIcmp)?.transport;
    let transport = u16::try_from(transport).map_err(|_| Drop::BadIcmp)?;
    let layout = HeaderLayout { transport, ..*layout };
    let replacement = Replacement { source: None, destination: None, sequence };
    translate_quote(data, &layout, &replacement, Delta::default())
}
