//! A side door, icmp: messages to a VIP.
//!
//! Echo requests are answered in place.

use super::answer::send_back;
use super::batch::Packet;
use super::conntrack::Conntrack;
use super::context::Context;
use super::parse::Message;
use super::rewrite::Macs;
use crate::flow::tuple::TableSecret;
use crate::forwarding::ListenKey;
use crate::stats::{Answer, Drop};
use crate::wire::icmp::{self, Unanswered};

/// Finds out what becomes of an ICMP message.
///
/// # Errors
/// Why it is dropped.
#[cold]
pub fn classify(
    packet: &mut Packet,
    message: &Message,
    context: &Context<'_>,
    _secret: &TableSecret,
    macs: &Macs,
) -> Result<(), Drop> {
    if !context.table.is_vip(message.destination) {
        return Err(Drop::NoVip);
    }
    packet.forget();
    let (ip, hop) = (packet.shape.ip(), packet.came_from(context.nic));
    let Some(frame) = &mut packet.frame else { return Err(Drop::BadIcmp) };
    match icmp::echo_reply(frame.data_mut(), ip) {
        Ok(()) if send_back(packet, Answer::EchoReply, &hop, context, macs) => Ok(()),
        Err(Unanswered::BadSource) => Err(Drop::BadSource),
        Err(Unanswered::NotEcho | Unanswered::IcmpError) => Err(Drop::IcmpType),
        _ => Err(Drop::BadIcmp),
    }
}

/// Sends an ICMP error to the end of its flow that sent what it quotes.
///
/// # Errors
/// Why it cannot be sent.
#[cold]
pub fn forward(
    _packet: &mut Packet,
    _source: Option<ListenKey>,
    _conntrack: &mut Conntrack,
    _context: &Context<'_>,
    _macs: &Macs,
) -> Result<(), Drop> {
    Err(Drop::IcmpNoFlow)
}
