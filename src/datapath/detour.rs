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

use super::answer::answer;
use super::batch::Packet;
use super::classify::{LastVip, classify};
use super::conntrack::{Conntrack, Miss};
use super::context::Context;
use super::forward::{Unsent, forward};
use super::fragment_out::fragment;
use super::fragments::{Fate, Fragments, note};
use super::limiter::Limiter;
use super::parse::{Parsed, Piece, parse};
use super::reset::Outbox;
use super::rewrite::{Macs, rewrite_to_backend};
use super::select::select;
use super::transmit::end;
use crate::flow::table::Slot;
use crate::stats::Drop;
use crate::xdp::umem::FramePool;

/// What of a worker a detour may write to, besides the packet.
pub struct Hands<'w> {
    /// Its pins.
    pub conntrack: &'w mut Conntrack,
    /// Fragments that wait.
    pub fragments: &'w mut Fragments,
    /// Frames of its own.
    pub outbox: &'w mut Outbox,
    /// How many ICMP errors it may send.
    pub limiter: &'w mut Limiter,
    /// Free frames.
    pub pool: &'w mut FramePool,
    /// MAC addresses of all NICs.
    pub macs: &'w Macs,
}

/// Takes a packet to its end, or to where it is sent on.
#[cold]
pub fn detour(packet: &mut Packet, unsent: Unsent, hands: &mut Hands<'_>, context: &Context<'_>) {
    match unsent {
        Unsent::Dropped(reason) => settle(packet, reason, hands, context),
        Unsent::NoPin(miss) => open(packet, miss, hands, context),
        Unsent::Fragment => {
            packet.forget();
            if let Err(reason) = join(packet, hands, context) {
                end(packet, reason, hands.pool, context.stats);
            }
        }
    }
}

/// Ends the way of a packet that cannot be forwarded as it is, unless it becomes its own answer, or may
/// go in pieces.
fn settle(packet: &mut Packet, reason: Drop, hands: &mut Hands<'_>, context: &Context<'_>) {
    let Hands { outbox, limiter, pool, macs, .. } = hands;
    if let Err(reason) = answer(packet, reason, context, macs, limiter, pool)
        && let Err(reason) = fragment(packet, reason, context, macs, pool, outbox)
    {
        end(packet, reason, pool, context.stats);
    }
}

/// Opens a flow. It counts, and keeps its pin, if its first packet is sent.
fn open(packet: &mut Packet, miss: Miss, hands: &mut Hands<'_>, context: &Context<'_>) {
    let opened = match select(packet, miss, hands.conntrack, context) {
        Ok(opened) => opened,
        Err(reason) => return settle(packet, reason, hands, context),
    };
    if let Err(reason) = rewrite_to_backend(packet, &opened.target, context, hands.macs) {
        settle(packet, reason, hands, context);
    }
    if packet.goes_on() {
        opened.keep(&packet.flow, context);
    } else {
        opened.undo(&packet.flow, hands.conntrack, context);
    }
}

/// Sends a fragment the way of its flow, once that is known.
fn join(packet: &mut Packet, hands: &mut Hands<'_>, context: &Context<'_>) -> Result<(), Drop> {
    let Parsed::Fragment(piece) = parse(packet)? else { return Err(Drop::Fragment) };
    let Fate::Flow(tuple) = hands.fragments.flow_of(packet, &piece, context, hands.pool)? else {
        return Ok(());
    };
    let Hands { conntrack, macs, outbox, .. } = hands;
    let mut last = LastVip::NONE;
    classify(packet, tuple, context, conntrack.secret(), &mut last)?;
    note(&piece, context)?;
    packet.hint = Slot::NOWHERE;
    if let Err(unsent) = forward(packet, conntrack, context, macs, outbox) {
        detour(packet, unsent, hands, context);
    }
    deny_unless_sent(packet, &piece, context);
    Ok(())
}

/// The fragments of a datagram have one fate: that of the first one.
fn deny_unless_sent(packet: &Packet, piece: &Piece, context: &Context<'_>) {
    if piece.head.is_some() && !packet.goes_on() {
        context.datagrams.deny(&piece.key, piece.span.len, context.now);
    }
}
