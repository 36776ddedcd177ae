//! A side door, detour: what packets need that are not simply forwarded along a pin.
//!
//! ```text
//! no pin     select, pin, rewrite. What is not sent then leaves no pin
//! fragment   its flow, by its first one; then the way of any packet, on its own.
//!            A first one that is not sent takes the later ones with it
//! dropped    its own answer, or in pieces, or the end
//! ```
//!
//! Here a packet is dealt with to its end before the next one of its batch, so that this one finds
//! what became of it. Cost: not for packets of pinned flows.

use super::batch::Packet;
use super::classify::{LastVip, classify};
use super::context::Context;
use super::forward::{Unsent, forward_packet};
use super::fragment_out::fragment;
use super::fragments::{Fate, record};
use super::local_reply::local_reply;
use super::parse::{FragmentInfo, Parsed, parse};
use super::resources::Resources;
use super::rewrite::rewrite_to_backend;
use super::select::select;
use super::transmit::end;
use crate::flow::table::Slot;
use crate::forwarding::Miss;
use crate::net::BackendIndex;
use crate::stats::Drop;

/// Takes a packet to its end, or to where it is sent on.
#[cold]
pub fn detour(
    packet: &mut Packet,
    unsent: Unsent,
    resources: &mut Resources,
    context: &Context<'_>,
) {
    match unsent {
        Unsent::Dropped(reason) => settle(packet, reason, resources, context),
        Unsent::NoPin(miss) => open(packet, miss, resources, context),
        Unsent::Fragment => {
            packet.forget();
            if let Err(reason) = join(packet, resources, context) {
                end(packet, reason, &mut resources.pool, context.stats);
            }
        }
    }
}

/// Ends the way of a packet that cannot be forwarded as it is, unless it becomes its own answer, or may
/// go in pieces.
fn settle(packet: &mut Packet, reason: Drop, resources: &mut Resources, context: &Context<'_>) {
    let Resources { backlog, limiter, pool, .. } = resources;
    if let Err(reason) = local_reply(packet, reason, context, limiter, pool)
        && let Err(reason) = fragment(packet, reason, context, pool, backlog)
    {
        end(packet, reason, pool, context.stats);
    }
}

/// Opens a flow. It counts, and keeps its pin, if its first packet is sent.
fn open(packet: &mut Packet, miss: Miss, resources: &mut Resources, context: &Context<'_>) {
    let opened = match select(packet, miss, &mut resources.conntrack, context) {
        Ok(opened) => opened,
        Err(reason) => return settle(packet, reason, resources, context),
    };
    if let Err(reason) = rewrite_to_backend(packet, &opened.target, context) {
        settle(packet, reason, resources, context);
    }
    if packet.goes_on() {
        opened.keep(&packet.flow, context);
    } else {
        opened.undo(&packet.flow, &mut resources.conntrack, context);
    }
}

/// Sends a fragment the way of its flow, once that is known.
fn join(packet: &mut Packet, resources: &mut Resources, context: &Context<'_>) -> Result<(), Drop> {
    let Parsed::Fragment(fragment) = parse(packet)? else { return Err(Drop::Fragment) };
    let Fate::Flow(tuple) =
        resources.fragments.flow_of(packet, &fragment, context, &mut resources.pool)?
    else {
        return Ok(());
    };
    let Resources { conntrack, backlog, .. } = resources;
    let mut last = LastVip::NONE;
    classify(packet, tuple, context, conntrack.secret(), &mut last)?;
    if let Err(reason) = record(&fragment, context) {
        // Classify has named the backend of the first return path only.
        packet.backend = BackendIndex(u16::MAX);
        return Err(reason);
    }
    packet.hint = context.flows.prefetch_entry(&packet.flow).unwrap_or(Slot::NOWHERE);
    if let Err(unsent) = forward_packet(packet, conntrack, backlog, context) {
        detour(packet, unsent, resources, context);
    }
    deny_unless_sent(packet, &fragment, context);
    Ok(())
}

/// The fragments of a datagram have one fate: that of the first one.
fn deny_unless_sent(packet: &Packet, fragment: &FragmentInfo, context: &Context<'_>) {
    if fragment.head.is_some() && !packet.goes_on() {
        context.shared.fragments.deny(&fragment.key, fragment.span.len, context.now);
    }
}
