//! A side door, fragment_out: an IPv4 packet that is too long for the way to its backend, and may be cut
//! in pieces, goes in pieces (RFC 791 2.3, RFC 1812 5.2.5).
//!
//! ```text
//! |IP|          payload           |   ->   |IP|payload|  |IP|payload|  |IP|..|    each then rewritten
//! ```
//!
//! The first piece stays in the packet's frame; the others take frames from the pool, and wait in the
//! [`Outbox`] until the batch has been sent. In tunnels the inner packet is cut, so that the backend's
//! kernel joins it as if a router had done it, and no outer packet is ever in pieces.
//!
//! Reads and writes: frames. Cost: a copy of the packet. Bound: [`PIECES`] per packet.

use super::batch::{Packet, Part, Shape, Way};
use super::conntrack::Target;
use super::context::Context;
use super::reset::Outbox;
use super::rewrite::{Macs, rewrite_to_backend};
use crate::flow::table::Slot;
use crate::stats::Drop;
use crate::wire::checksum::{self, Full};
use crate::xdp::umem::{Frame, FramePool};

/// Most pieces: a frame of 4 KiB in the least inner MTU that is learnt.
const PIECES: usize = 8;
/// Offsets of fragments count in units of so many bytes.
const UNIT: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;
const OFFSET: u16 = 0x1fff;

/// How a packet is cut.
struct Plan {
    /// Bytes of the link header.
    at: usize,
    /// Bytes of the IP header.
    header: usize,
    /// Bytes of the payload.
    payload: usize,
    /// Bytes of payload per piece.
    room: usize,
    /// How many pieces.
    pieces: usize,
}

/// Sends a packet on that cannot be forwarded as it is too big, if it may be cut in pieces: the first one
/// is `packet` itself, rewritten, the others are in `outbox`.
///
/// # Errors
/// The reason itself, or why a piece cannot be sent.
#[cold]
pub fn fragment(
    packet: &mut Packet,
    reason: Drop,
    context: &Context<'_>,
    macs: &Macs,
    pool: &mut FramePool,
    outbox: &mut Outbox,
) -> Result<(), Drop> {
    // Where addresses are translated, a piece without ports would need those of its datagram.
    let backend = context.table.backend(packet.backend);
    let backend = backend.filter(|backend| !backend.forward.translates()).ok_or(reason)?;
    let plan = plan(packet).filter(|_| reason == Drop::TooBig).ok_or(reason)?;
    let pin = context.flows.find_at(&packet.flow, Slot::NOWHERE);
    let target = Target { backend, binding: pin.and_then(|hit| hit.track.binding()) };
    if pool.len() < plan.pieces || outbox.room_for_pieces() < plan.pieces {
        return Err(reason);
    }
    let mut sent = Ok(());
    for index in 1..plan.pieces {
        let Some(frame) = cut(packet.data(), &plan, index, pool) else { return Err(reason) };
        let shape = Shape { part: Part::Later, ..packet.shape };
        let mut piece = Packet { frame: Some(frame), shape, flow: packet.flow, ..Packet::NONE };
        let rewritten = rewrite_to_backend(&mut piece, &target, context, macs);
        match piece.frame.take() {
            Some(frame) if rewritten.is_ok() => outbox.push_piece(piece.nic, frame, pool),
            frame => frame.into_iter().for_each(|frame| pool.push(frame)),
        }
        sent = sent.and(rewritten);
    }
    sent?;
    let received = packet.bytes;
    let frame = packet.frame.as_mut().ok_or(reason)?;
    if !frame.set_len(plan.at + plan.header + plan.room)
        || !patch(frame.data_mut(), &plan, 0, plan.room)
    {
        return Err(reason);
    }
    if packet.shape.part == Part::Whole {
        packet.shape.part = Part::First;
    }
    rewrite_to_backend(packet, &target, context, macs)?;
    packet.bytes = received;
    Ok(())
}

/// `None` for a packet that may not be cut, would be in too many pieces, or is longer than a frame.
fn plan(packet: &Packet) -> Option<Plan> {
    if packet.way != Way::ToBackend || packet.frame.as_ref().is_none_or(Frame::is_long) {
        return None;
    }
    let at = packet.shape.ip();
    let ip = packet.data().get(at..)?;
    let [first, _, l0, l1, _, _, f0, f1, ..] = *ip.first_chunk::<20>()?;
    let fragment = u16::from_be_bytes([f0, f1]);
    if first >> 4 != 4 || fragment & DONT_FRAGMENT != 0 || packet.shape.part == Part::Quoting {
        return None;
    }
    let header = usize::from(first & 0xf) * 4;
    let payload = usize::from(u16::from_be_bytes([l0, l1])).checked_sub(header)?;
    let room = usize::from(packet.limit).checked_sub(header)? / UNIT * UNIT;
    if room == 0 {
        return None;
    }
    let plan = Plan { at, header, payload, room, pieces: payload.div_ceil(room) };
    (2..=PIECES).contains(&plan.pieces).then_some(plan)
}

/// A later piece of the packet, in a frame of its own.
fn cut(packet: &[u8], plan: &Plan, index: usize, pool: &mut FramePool) -> Option<Frame> {
    let start = plan.at + plan.header;
    let from = plan.room * index;
    let len = plan.room.min(plan.payload - from);
    let (headers, payload) = (packet.get(..start)?, packet.get(start + from..start + from + len)?);
    let mut frame = pool.pop()?;
    let copied = frame.copy_from(headers) && frame.set_len(start + len);
    let data = frame.data_mut();
    let place = data.get_mut(start..).filter(|place| place.len() == len);
    if let (true, Some(place)) = (copied, place) {
        place.copy_from_slice(payload);
        if patch(data, plan, index, len) {
            return Some(frame);
        }
    }
    pool.push(frame);
    None
}

/// Makes the IP header of a frame that of piece `index`, which has `len` bytes of payload. False if there
/// is no such header.
fn patch(frame: &mut [u8], plan: &Plan, index: usize, len: usize) -> bool {
    let header = frame.get_mut(plan.at..plan.at + plan.header);
    header.and_then(|header| try_patch(header, plan, index, len)).is_some()
}

fn try_patch(header: &mut [u8], plan: &Plan, index: usize, len: usize) -> Option<()> {
    let (fixed, options) = header.split_first_chunk_mut::<20>()?;
    let [_, _, l0, l1, _, _, f0, f1, _, _, c0, c1, ..] = fixed;
    let fragment = u16::from_be_bytes([*f0, *f1]);
    let offset = (fragment & OFFSET).checked_add(u16::try_from(plan.room * index / UNIT).ok()?)?;
    let is_last = index + 1 == plan.pieces;
    let more = if is_last { fragment & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
    [*f0, *f1] = (more | offset & OFFSET).to_be_bytes();
    [*l0, *l1] = u16::try_from(plan.header + len).ok()?.to_be_bytes();
    [*c0, *c1] = [0, 0];
    if index > 0 {
        blank_options(options);
    }
    let sum = checksum::of(&Full::new().add_slice(header));
    header.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    (offset <= OFFSET).then_some(())
}

/// Overwrites the options that only the first fragment has with "no operation" (RFC 791 3.1).
fn blank_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    while let [kind, rest @ ..] = options {
        let len = match (*kind, rest.first()) {
            (END, _) => return,
            (NO_OPERATION, _) => 1,
            (_, Some(&len)) => usize::from(len),
            (_, None) => return,
        };
        // A length that does not fit is nobody's option: the rest stays as it is.
        let Some((option, behind)) = options.split_at_mut_checked(len).filter(|_| len > 0) else {
            return;
        };
        if option.first().is_some_and(|kind| kind & COPIED == 0) {
            option.fill(NO_OPERATION);
        }
        options = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_first_fragment_only_are_blanked() {
        for (options, expected) in [
            // Record route goes, loose source route stays.
            (&[7, 3, 4, 131, 3, 4, 0, 0][..], &[1, 1, 1, 131, 3, 4, 0, 0][..]),
            (&[1, 148, 4, 0, 0, 68, 2, 0], &[1, 148, 4, 0, 0, 1, 1, 0]),
            (&[68, 9, 0, 0], &[68, 9, 0, 0]),
            (&[68, 0, 7, 3], &[68, 0, 7, 3]),
            (&[1, 1, 1, 68], &[1, 1, 1, 68]),
            (&[], &[]),
        ] {
            let mut bytes = options.to_vec();
            blank_options(&mut bytes);
            assert_eq!(bytes, expected, "{options:?}");
        }
    }
}
