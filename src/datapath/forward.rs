//! Stages 4 to 6 for a packet of a known flow: conntrack and rewrite.
//!
//! Cost: that of the stages. A packet that needs anything else takes the [detour](super::detour).

use super::batch::{Packet, Way};
use super::conntrack::{Conntrack, Miss, Untracked};
use super::context::Context;
use super::icmp;
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
    let client = match packet.way {
        Way::ToBackend => {
            let target = match conntrack.track(packet, context) {
                Ok(target) => target,
                Err(Untracked::Miss(miss)) => return Err(Unsent::NoPin(miss)),
                Err(untracked) => return Err(unsent(untracked, packet, context, outbox)),
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
    match client {
        Ok(client) => Ok(rewrite_to_client(packet, &client, context, macs)?),
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
