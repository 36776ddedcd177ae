//! The stages conntrack and rewrite for one packet: from its flow to the headers that it leaves with.
//!
//! A packet that cannot be forwarded along a pin takes a [`detour`](super::detour), which calls
//! [`forward_packet`] again for a fragment.

use super::batch::{Packet, Way};
use super::conntrack::{Conntrack, Reply, Untracked};
use super::context::Context;
use super::icmp;
use super::life::Miss;
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
    let reply = match packet.way {
        Way::ToBackend => {
            let target = match conntrack.track(packet, context) {
                Ok(target) => target,
                Err(Untracked::Miss(miss)) => return Err(Unsent::NoPin(miss)),
                Err(Untracked::Cut(cut)) => {
                    return Err(outbox.answer(packet, &cut, context).into());
                }
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
        Way::Related(source) => return Ok(icmp::forward(packet, source, conntrack, context)?),
        Way::RelatedTo(binding) => return Ok(icmp::forward_bound(packet, binding, context)?),
        Way::Fragment => return Err(Unsent::Fragment),
        Way::Back(_) => return Ok(()),
    };
    match reply {
        Some(Reply::To(hop)) => Ok(rewrite_to_client(packet, &hop, context)?),
        Some(Reply::Cut(cut)) => Err(outbox.answer(packet, &cut, context).into()),
        None => Err(Drop::ReturnNoFlow.into()),
    }
}
