//! The stages conntrack and rewrite for one packet: from its flow to the headers that it leaves with.
//!
//! A packet that cannot be forwarded along a pin takes a [`detour`](super::detour), which calls
//! [`forward_packet`] again for a fragment.

use super::batch::{Packet, Way};
use super::conntrack::{Conntrack, Miss, Untracked};
use super::context::Context;
use super::icmp;
use super::reset::Outbox;
use super::rewrite::{rewrite_to_backend, rewrite_to_client};
use super::unpinned;
use crate::stats::Drop;

/// Why a packet is not forwarded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// It cannot be forwarded.
    Dropped(Drop),
    /// Its flow has no pin.
    NoPin(Miss),
    /// It is a fragment, of a flow that is not known yet.
    Fragment,
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
/// [`Unsent`]: it takes a [`detour`](super::detour).
#[inline(always)]
pub fn forward_packet(
    packet: &mut Packet,
    conntrack: &mut Conntrack,
    outbox: &mut Outbox,
    context: &Context<'_>,
) -> Result<(), Unsent> {
    let client = match packet.way {
        Way::ToBackend => {
            let target = match conntrack.track(packet, context) {
                Ok(target) => target,
                Err(Untracked::Miss(miss)) => return Err(Unsent::NoPin(miss)),
                Err(untracked) => return Err(unsent(untracked, packet, context, outbox)),
            };
            return Ok(rewrite_to_backend(packet, &target, context)?);
        }
        Way::ToClient(source) => conntrack.track_reply(packet, source, context),
        Way::ToClientOf(binding) => conntrack.track_bound(packet, binding, context),
        Way::Unpinned => {
            let target = unpinned::place(packet, conntrack, context)?;
            return Ok(rewrite_to_backend(packet, &target, context)?);
        }
        Way::UnpinnedReply(source) => {
            let client = unpinned::answer(packet, source, context)?;
            return Ok(rewrite_to_client(packet, &client, context)?);
        }
        Way::Related(source) => {
            return Ok(icmp::forward(packet, source, conntrack, context)?);
        }
        Way::RelatedTo(binding) => {
            return Ok(icmp::forward_bound(packet, binding, context)?);
        }
        Way::Fragment => return Err(Unsent::Fragment),
        Way::Back(_) => return Ok(()),
    };
    match client {
        Ok(client) => Ok(rewrite_to_client(packet, &client, context)?),
        Err(untracked) => Err(unsent(untracked, packet, context, outbox)),
    }
}

/// Detour of a packet that is not forwarded along a pin. Both ends of a terminated flow are reset.
#[cold]
fn unsent(
    untracked: Untracked<'_>,
    packet: &mut Packet,
    context: &Context<'_>,
    outbox: &mut Outbox,
) -> Unsent {
    match untracked {
        Untracked::Miss(miss) => Unsent::NoPin(miss),
        Untracked::NoFlow => Drop::ReturnNoFlow.into(),
        Untracked::Cut(cut) => outbox.answer(packet, &cut, context).into(),
    }
}
