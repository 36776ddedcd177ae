//! Slow path, detour: packets that are not simply forwarded along a pin.
//!
//! ```text
//! no pin     select, pin, rewrite; the pin is removed again if the packet is not sent
//! fragment   finds its flow by the first fragment, then takes the path of any packet.
//!            If a first fragment is not sent, the later ones are dropped
//! syn_proxy  the client proves itself, the backend answers
//! dropped    local reply, or fragmentation, or drop
//! ```
//!
//! A packet is handled to its end before the next one of its batch, which then sees the result.
//! Cost: none for packets of pinned flows.

use super::ask::{ask, asks, may_ask, owners, pinned_by as answered_ask};
use super::batch::{Direction, Packet};
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
use super::syn_proxy::{again, answered, guards, meet};
use super::transmit::end;
use crate::flow::table::Slot;
use crate::forwarding::Miss;
use crate::net::BackendIndex;
use crate::stats::Drop;

/// Handles a packet until it is sent, parked or dropped.
#[cold]
pub fn detour(
    packet: &mut Packet,
    unsent: Unsent,
    resources: &mut Resources,
    context: &Context<'_>,
) {
    match unsent {
        Unsent::Answer => {
            let reason = answered_ask(packet, resources, context);
            end(packet, reason, &mut resources.pool, context.stats);
        }
        Unsent::Dropped(reason) => settle(packet, reason, resources, context),
        Unsent::NoPin(_) if guards(packet, context) => {
            finish(meet(packet, resources, context), packet, resources, context);
        }
        Unsent::NoPin(miss) => {
            let asks = miss == Miss::NonSyn && asks(packet, context);
            if !asks || !asked(packet, resources, context) {
                open(packet, miss, resources, context);
            }
        }
        Unsent::Waits => finish(again(packet, resources, context), packet, resources, context),
        Unsent::Answers(hop) => {
            finish(answered(packet, &hop, resources, context), packet, resources, context);
        }
        Unsent::Fragment => {
            packet.forget();
            if let Err(reason) = join(packet, resources, context) {
                end(packet, reason, &mut resources.pool, context.stats);
            }
        }
    }
}

/// Asks backends for the flow of a packet in mid-flow; returns false if the hash tells.
#[inline(never)]
fn asked(packet: &mut Packet, resources: &mut Resources, context: &Context<'_>) -> bool {
    let is_related = matches!(packet.direction, Direction::Related(_));
    let Some(owners) = owners(packet, context) else { return false };
    if may_ask(&mut resources.asks, context) {
        finish(ask(packet, &owners, resources, context), packet, resources, context);
    } else if !owners.is_sure || is_related {
        // The sender repeats it: a guess could break the connection.
        settle(packet, Drop::AskLimited, resources, context);
    } else {
        return false;
    }
    true
}

/// Settles a packet of a handshake that failed.
fn finish(
    done: Result<(), Drop>,
    packet: &mut Packet,
    resources: &mut Resources,
    context: &Context<'_>,
) {
    if let Err(reason) = done {
        settle(packet, reason, resources, context);
    }
}

/// Drops a packet that cannot be forwarded as it is, unless it becomes a local reply or may be
/// fragmented.
fn settle(packet: &mut Packet, reason: Drop, resources: &mut Resources, context: &Context<'_>) {
    let Resources { backlog, limiter, pool, .. } = resources;
    if let Err(reason) = local_reply(packet, reason, context, limiter, pool)
        && let Err(reason) = fragment(packet, reason, context, pool, backlog)
    {
        end(packet, reason, pool, context.stats);
    }
}

/// Opens a flow. The flow is counted, and keeps its pin, if its first packet is sent.
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

/// Forwards a fragment along its flow, once that is known.
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
        // Classify sets the backend of the first return path only.
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

/// Denies the rest of the datagram if its first fragment is not sent.
fn deny_unless_sent(packet: &Packet, fragment: &FragmentInfo, context: &Context<'_>) {
    if fragment.head.is_some() && !packet.goes_on() {
        context.shared.fragments.deny(&fragment.key, fragment.span.len, context.now);
    }
}
