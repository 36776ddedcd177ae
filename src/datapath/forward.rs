//! The stages conntrack and rewrite for one packet: flow look-up and header rewrite.
//!
//! A packet that cannot be forwarded along a pin takes a [`detour`](super::detour), which calls
//! [`forward_packet`] again for a fragment.

use super::ask::{asks, owners};
use super::batch::{Direction, Packet};
use super::conntrack::{Conntrack, Untracked};
use super::context::Context;
use super::reset::TxBacklog;
use super::rewrite::{rewrite_to_backend, rewrite_to_client};
use super::{icmp, unpinned};
use crate::forwarding::Miss;
use crate::net::NextHop;
use crate::stats::Drop;

/// Reason for which a packet is not forwarded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The packet cannot be forwarded.
    Dropped(Drop),
    /// The flow has no pin.
    NoPin(Miss),
    /// The packet is a fragment of a flow not yet known.
    Fragment,
    /// The packet is the answer of a backend that was asked for a flow.
    Answer,
    /// The client's packet belongs to a flow that waits for its backend's answer (`syn_proxy`).
    Waits,
    /// The backend's packet belongs to such a flow, of a client behind this next hop.
    Answers(NextHop),
}

impl From<Drop> for Unsent {
    #[inline]
    fn from(reason: Drop) -> Self {
        Self::Dropped(reason)
    }
}

/// Looks up the pin of a packet's flow and rewrites the packet.
///
/// # Errors
/// [`Unsent`]: the packet takes a [`detour`](super::detour).
#[inline(always)]
pub fn forward_packet(
    packet: &mut Packet,
    conntrack: &mut Conntrack,
    backlog: &mut TxBacklog,
    context: &Context<'_>,
) -> Result<(), Unsent> {
    let client = match packet.direction {
        Direction::ToBackend => {
            let target = match conntrack.track(packet, context) {
                Ok(target) => target,
                Err(Untracked::Miss(miss)) => return Err(Unsent::NoPin(miss)),
                Err(untracked) => return Err(unsent(untracked, packet, context, backlog)),
            };
            return Ok(rewrite_to_backend(packet, &target, context)?);
        }
        Direction::ToClient(source) => conntrack.track_reply(packet, source, context),
        Direction::ToClientOf(snat_port) => conntrack.track_snat_reply(packet, snat_port, context),
        Direction::Unpinned => {
            let target = unpinned::place(packet, conntrack, context)?;
            return Ok(rewrite_to_backend(packet, &target, context)?);
        }
        Direction::UnpinnedReply(source) => {
            let client = unpinned::answer(packet, source, context)?;
            return Ok(rewrite_to_client(packet, &client, context)?);
        }
        Direction::Related(None)
            if asks(packet, context) && is_asked_about(packet, conntrack, context) =>
        {
            return Err(Unsent::NoPin(Miss::NonSyn));
        }
        Direction::Related(source) => {
            return Ok(icmp::forward(packet, source, conntrack, context)?);
        }
        Direction::RelatedTo(snat_port) => {
            return Ok(icmp::forward_snat_reply(packet, snat_port, context)?);
        }
        Direction::Fragment => return Err(Unsent::Fragment),
        Direction::Answer => return Err(Unsent::Answer),
        Direction::LocalReply(_) => return Ok(()),
    };
    match client {
        Ok(client) => Ok(rewrite_to_client(packet, &client, context)?),
        Err(untracked) => Err(unsent(untracked, packet, context, backlog)),
    }
}

/// Whether backends are to be asked for the flow that an ICMP error to a VIP is about.
#[cold]
fn is_asked_about(packet: &Packet, conntrack: &Conntrack, context: &Context<'_>) -> bool {
    owners(packet, context).is_some()
        && conntrack.peek(&packet.flow, packet.hint, context).is_none()
}

/// Returns the reason for the detour. Resets both ends of a terminated flow.
#[cold]
fn unsent(
    untracked: Untracked<'_>,
    packet: &mut Packet,
    context: &Context<'_>,
    backlog: &mut TxBacklog,
) -> Unsent {
    match untracked {
        Untracked::Miss(miss) => Unsent::NoPin(miss),
        Untracked::NoFlow => Drop::ReturnNoFlow.into(),
        Untracked::Waits => Unsent::Waits,
        Untracked::Answers(hop) => Unsent::Answers(hop),
        Untracked::Terminated(cut) => backlog.answer(packet, &cut, context).into(),
    }
}
