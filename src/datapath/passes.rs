//! The two passes over a batch that run several stages per packet.
//!
//! ```text
//! receive | parse, classify | prefetch | conntrack, select, rewrite | transmit
//!         |<---- here ----->|          |<---------- here --------->|
//! ```
//!
//! A pass ends where the next stage needs memory that is not yet cached. Each packet prefetches
//! that memory, which arrives while the pass handles the other packets.

use super::batch::{Batch, Direction};
use super::classify::{LastVip, classify};
use super::context::Context;
use super::detour::detour;
use super::forward::forward_packet;
use super::icmp;
use super::parse::{Parsed, parse, parse_plain};
use super::resources::Resources;
use super::transmit::end;
use crate::net::HashedKey;

/// Finds the flow of each packet, or drops the packet. The flow of a fragment is found in the
/// forward pass, as its first fragment may be in this batch.
#[inline(always)]
pub fn parse_and_classify(batch: &mut Batch, resources: &mut Resources, context: &Context<'_>) {
    let Resources { conntrack, pool, .. } = resources;
    let secret = conntrack.secret();
    let mut last = LastVip::NONE;
    for packet in batch.in_flight() {
        // Called from two places, so that one copy is compiled for the plain case.
        let known = match parse_plain(packet) {
            Some(tuple) => classify(packet, tuple, context, secret, &mut last),
            None => parse(packet).and_then(|parsed| match parsed {
                Parsed::Flow(tuple) => classify(packet, tuple, context, secret, &mut last),
                Parsed::Icmp(message) => icmp::classify(packet, &message, context, secret, pool),
                Parsed::Fragment(_) => {
                    packet.direction = Direction::Fragment;
                    packet.flow = HashedKey::NONE;
                    Ok(())
                }
            }),
        };
        if let Err(reason) = known {
            packet.forget();
            end(packet, reason, pool, context.stats);
        }
    }
}

/// Forwards each packet along the pin of its flow. A packet that has no pin or cannot be sent
/// completes its [`detour`] before the next packet is handled.
#[inline(always)]
pub fn forward(batch: &mut Batch, resources: &mut Resources, context: &Context<'_>) {
    for packet in batch.in_flight() {
        let Resources { conntrack, backlog, .. } = resources;
        if let Err(unsent) = forward_packet(packet, conntrack, backlog, context) {
            detour(packet, unsent, resources, context);
        }
    }
}
