//! Slow path, fragment_out: fragments an IPv4 packet that exceeds the outgoing MTU and may be
//! fragmented (RFC 791 2.3, RFC 1812 5.2.5; RFC 7915 4 where it becomes IPv6).
//!
//! ```text
//! |IP|          payload           |   ->   |IP|payload|  |IP|payload|  |IP|..|
//!                                          each then rewritten
//! ```
//!
//! The first fragment stays in the packet's frame; the others take frames from the pool, and wait
//! in the [`TxBacklog`] until the end of the poll. In tunnels the inner packet is fragmented, so
//! that the backend's kernel reassembles it as after any router, and outer packets are never
//! fragmented. Either all fragments are sent or none.
//!
//! Reads and writes: frames. Cost: a copy of the packet. Bound: [`MOST_FRAGMENTS`] per packet.

use arrayvec::ArrayVec;

use super::batch::{Direction, FragmentKind, HeaderLayout, Packet, TcpFlags};
use super::context::Context;
use super::fragments;
use super::reset::TxBacklog;
use super::rewrite::{rewrite_to_backend, rewrite_to_client};
use super::target::Target;
use super::unpinned::{is_unpinned, return_hop};
use crate::flow::fragments::Span;
use crate::flow::table::Slot;
use crate::net::{Forward, NextHop};
use crate::stats::Drop;
use crate::wire::checksum::{self, Full};
use crate::wire::headers::FRAGMENT_LEN;
use crate::xdp::umem::{Frame, FramePool};

/// Maximum number of fragments: a frame of 4 KiB in the least inner MTU that is learnt.
const MOST_FRAGMENTS: usize = 8;
/// Unit of fragment offsets, in bytes.
const UNIT: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;
const OFFSET: u16 = 0x1fff;

/// Fragmentation plan of a packet.
struct Plan {
    /// Length of the link header in bytes.
    at: usize,
    /// Length of the IP header in bytes.
    header: usize,
    /// Length of the payload in bytes.
    payload: usize,
    /// Payload per fragment in bytes; a multiple of 8, except for the last one.
    room: usize,
    /// Number of fragments, 2..=8.
    fragments: usize,
}

/// Destination of all fragments.
enum To<'t> {
    Backend(Target<'t>),
    Client(NextHop),
}

impl<'t> To<'t> {
    /// Returns the destination of the packet; `None` if its pin or return hop is gone.
    fn of(packet: &Packet, context: &Context<'t>) -> Option<Self> {
        let pin = || context.flows.find_at(&packet.flow, Slot::NOWHERE);
        match packet.direction {
            Direction::ToBackend => {
                let backend = context.table.backend(packet.backend)?;
                let snat_port = pin().and_then(|hit| hit.flow_state.snat_port());
                Some(Self::Backend(Target { backend, snat_port }))
            }
            Direction::ToClient(_) if is_unpinned(packet.vip, context) => {
                Some(Self::Client(return_hop(packet.flow.tuple, context)?))
            }
            Direction::ToClient(_) => Some(Self::Client(pin()?.flow_state.hop())),
            // Conntrack does not hash the flow of every such packet: its pin cannot be looked up.
            Direction::ToClientOf(id) => Some(Self::Client(
                context.shared.snat_table.read(id)?.snat_flow.return_hop.next_hop(),
            )),
            Direction::Unpinned
            | Direction::UnpinnedReply(_)
            | Direction::Fragment
            | Direction::Answer
            | Direction::Related(_)
            | Direction::RelatedTo(_)
            | Direction::LocalReply(_) => None,
        }
    }

    fn rewrite(&self, packet: &mut Packet, context: &Context<'_>) -> Result<(), Drop> {
        match self {
            Self::Backend(target) => rewrite_to_backend(packet, target, context),
            Self::Client(hop) => rewrite_to_client(packet, hop, context),
        }
    }
}

/// Fragments a packet that is too big, if it may be fragmented: the first fragment is `packet`
/// itself, rewritten; the others are queued in `backlog`.
///
/// # Errors
/// `reason` if the packet is not fragmented, or the reason for which a fragment cannot be sent;
/// then none is sent.
#[cold]
pub fn fragment(
    packet: &mut Packet,
    reason: Drop,
    context: &Context<'_>,
    pool: &mut FramePool,
    backlog: &mut TxBacklog,
) -> Result<(), Drop> {
    let plan = plan(packet, context).filter(|_| reason == Drop::TooBig).ok_or(reason)?;
    let to = To::of(packet, context).ok_or(reason)?;
    if pool.len() < plan.fragments || backlog.room_for_fragments() < plan.fragments {
        return Err(reason);
    }
    let mut fragments = ArrayVec::<Packet, MOST_FRAGMENTS>::new();
    let cut = (1..plan.fragments).try_for_each(|index| {
        let frame = cut(packet.data(), &plan, index, pool).ok_or(reason)?;
        // `plan` bounds their number.
        fragments.try_push(later_fragment(packet, frame)).map_err(|_| reason)
    });
    let sent = cut.and_then(|()| {
        shorten(packet, &plan, context).ok_or(reason)?;
        fragments.iter_mut().try_for_each(|fragment| to.rewrite(fragment, context))?;
        let received = packet.bytes;
        to.rewrite(packet, context)?;
        packet.bytes = received;
        Ok(())
    });
    for Packet { frame, nic, .. } in fragments {
        match (sent, frame) {
            (Ok(()), Some(frame)) => backlog.push_fragment(nic, frame, pool),
            (_, frame) => frame.into_iter().for_each(|frame| pool.push(frame)),
        }
    }
    sent
}

/// Returns the record of a later fragment: the packet's metadata with its own frame.
const fn later_fragment(packet: &Packet, frame: Frame) -> Packet {
    let layout =
        HeaderLayout { fragment: FragmentKind::Later, flags: TcpFlags(0), ..packet.layout };
    let Packet { flow, direction, vip, backend, .. } = *packet;
    Packet { frame: Some(frame), layout, flow, direction, vip, backend, ..Packet::NONE }
}

/// Turns the packet into its own first fragment.
fn shorten(packet: &mut Packet, plan: &Plan, context: &Context<'_>) -> Option<()> {
    let frame = packet.frame.as_mut()?;
    if !frame.set_len(plan.at + plan.header + plan.room)
        || !patch(frame.data_mut(), plan, 0, plan.room)
    {
        return None;
    }
    if packet.layout.fragment == FragmentKind::Whole {
        packet.layout.fragment = FragmentKind::First;
        let (offset, rest) = (plan.room, plan.payload - plan.room);
        let offset = u16::try_from(offset).ok()?;
        let rest = Span { offset, len: u16::try_from(rest).ok()?, more: false };
        fragments::record_cut(packet, rest, context);
    }
    Some(())
}

/// Returns the plan; `None` for a packet that may not be fragmented, needs too many fragments, or
/// is longer than a frame.
fn plan(packet: &Packet, context: &Context<'_>) -> Option<Plan> {
    if packet.frame.as_ref().is_none_or(Frame::is_long) {
        return None;
    }
    let at = packet.layout.ip();
    let ip = packet.data().get(at..)?;
    let [first, _, l0, l1, _, _, f0, f1, ..] = *ip.first_chunk::<20>()?;
    let fragment = u16::from_be_bytes([f0, f1]);
    if first >> 4 != 4
        || fragment & DONT_FRAGMENT != 0
        || packet.layout.fragment == FragmentKind::Quoting
    {
        return None;
    }
    let header = usize::from(first & 0xf) * 4;
    let payload = usize::from(u16::from_be_bytes([l0, l1])).checked_sub(header)?;
    let grown = if becomes_v6(packet, context) { FRAGMENT_LEN } else { 0 };
    let room = usize::from(packet.limit).checked_sub(header + grown)? / UNIT * UNIT;
    if room == 0 {
        return None;
    }
    let plan = Plan { at, header, payload, room, fragments: payload.div_ceil(room) };
    (2..=MOST_FRAGMENTS).contains(&plan.fragments).then_some(plan)
}

/// Whether an IPv4 packet leaves as IPv6, with an additional header per fragment.
fn becomes_v6(packet: &Packet, context: &Context<'_>) -> bool {
    let backend = context.table.backend(packet.backend);
    backend
        .filter(|backend| backend.forward == Forward::FullNat)
        .is_some_and(|backend| backend.address.is_v4() != packet.flow.tuple.is_v4())
}

/// Builds fragment `index` of the packet in a new frame.
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

/// Turns the IP header of a frame into that of fragment `index`, with `len` bytes of payload.
/// Returns false if there is no such header.
fn patch(frame: &mut [u8], plan: &Plan, index: usize, len: usize) -> bool {
    let header = frame.get_mut(plan.at..plan.at + plan.header);
    header.and_then(|header| try_patch(header, plan, index, len)).is_some()
}

fn try_patch(header: &mut [u8], plan: &Plan, index: usize, len: usize) -> Option<()> {
    let (fixed, options) = header.split_first_chunk_mut::<20>()?;
    let [_, _, l0, l1, _, _, f0, f1, _, _, c0, c1, ..] = fixed;
    let fragment = u16::from_be_bytes([*f0, *f1]);
    let offset = (fragment & OFFSET).checked_add(u16::try_from(plan.room * index / UNIT).ok()?)?;
    let is_last = index + 1 == plan.fragments;
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
        // A length that does not fit ends the valid options: the rest stays as it is.
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
