//! Stages 4 to 6 for a packet of a known flow: conntrack and rewrite.
//!
//! Cost: that of the stages. A packet that needs anything else takes the [detour](super::detour).

use super::batch::{Packet, Way};
use super::conntrack::{Conntrack, Reply, Untracked};
use super::context::Context;
use super::icmp;
use super::life::Miss;
use super::reset::Outbox;
use super::rewrite::{Macs, rewrite_to_backend, rewrite_to_client};
use super::unpinned;
use crate::stats::Drop;

/// Why a packet is not on its way yet.
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

/// From the flow to the headers that the packet leaves with.
///
/// # Errors
/// [`Unsent`]: the packet takes the [detour](super::detour).
#[inline(always)]
pub fn forward(
    packet: &mut Packet,
    conntrack: &mut Conntrack,
    context: &Context<'_>,
    macs: &Macs,
    outbox: &mut Outbox,
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
            return Ok(rewrite_to_backend(packet, &target, context, macs)?);
        }
        Way::ToClient(source) => conntrack.track_reply(packet, source, context),
        Way::ToClientOf(binding) => conntrack.track_bound(packet, binding, context),
        Way::Unpinned => {
            let target = unpinned::place(packet, conntrack, context)?;
            return Ok(rewrite_to_backend(packet, &target, context, macs)?);
        }
        Way::UnpinnedReply(source) => {
            let client = unpinned::answer(packet, source, context)?;
            return Ok(rewrite_to_client(packet, &client, context, macs)?);
        }
        Way::Related(source) => {
            return Ok(icmp::forward(packet, source, conntrack, context, macs)?);
        }
        Way::RelatedTo(binding) => {
            return Ok(icmp::forward_bound(packet, binding, context, macs)?);
        }
        Way::Fragment => return Err(Unsent::Fragment),
        Way::Back(_) => return Ok(()),
    };
    match reply {
        Some(Reply::To(hop)) => Ok(rewrite_to_client(packet, &hop, context, macs)?),
        Some(Reply::Cut(cut)) => Err(outbox.answer(packet, &cut, context).into()),
        None => Err(Drop::ReturnNoFlow.into()),
    }
}
