//! Slow path, local reply: replies with an ICMP error or RST to a packet that cannot be forwarded.
//!
//! ```text
//! too_big        fragmentation needed / packet too big, with the length that would pass
//! ttl_exceeded   time exceeded
//! no_backend, client_is_backend
//!                with on_no_backend = "reject": RST (TCP, a SYN), port unreachable (UDP)
//! vip_removed    RST (TCP), port unreachable (UDP)
//! ```
//!
//! The reply is built in the packet's own frame and goes back to the packet's previous hop; its
//! source is the VIP, or the full-NAT source that the packet was sent to. A packet that must not be
//! replied to (RFC 1122 3.2.2, RFC 4443 2.4 e), or exceeds the rate limit, is dropped for its
//! original reason.
//!
//! Writes: the frame, the limiter. Cost: only for packets that are not forwarded.

use super::batch::{Direction, Packet};
use super::context::Context;
use super::limiter::Limiter;
use super::reset;
use super::rewrite::address_frame;
use crate::net::{NextHop, Protocol};
use crate::stats::{Drop, LocalReply};
use crate::wire::icmp::{self, ErrorKind};
use crate::wire::ip::is_header_sum_right;
use crate::xdp::umem::FramePool;

/// Turns a packet that cannot be forwarded, and is unchanged since it was received, into a local
/// reply.
///
/// # Errors
/// `reason` if no reply is sent; [`Drop::BadIpv4Checksum`] for any reason if the header is damaged.
#[cold]
pub fn local_reply(
    packet: &mut Packet,
    reason: Drop,
    context: &Context<'_>,
    limiter: &mut Limiter,
    pool: &mut FramePool,
) -> Result<(), Drop> {
    // The source of a damaged header may be wrong (RFC 1812 5.2.2).
    if !is_header_sum_right(packet.network()) {
        return Err(Drop::BadIpv4Checksum);
    }
    let mut send = |packet: &mut Packet, kind| send_error(packet, kind, context, limiter, pool);
    let sent = match reason {
        Drop::TooBig => {
            let kind = ErrorKind::TooBig { mtu: packet.limit };
            must_not_be_fragmented(packet) && send(packet, kind)
        }
        Drop::TtlExceeded => send(packet, ErrorKind::TimeExceeded),
        Drop::NoBackend | Drop::BackendsFull | Drop::ClientIsBackend
            if !reject_no_backend(packet, context) =>
        {
            false
        }
        Drop::NoBackend | Drop::BackendsFull | Drop::ClientIsBackend | Drop::VipRemoved => {
            match packet.flow.protocol() {
                Protocol::Tcp => reset::refuse(packet, context, pool),
                Protocol::Udp => send(packet, ErrorKind::PortUnreachable),
                // Protocols other than TCP and UDP have no known ports.
                Protocol::Any => false,
            }
        }
        _ => false,
    };
    if sent { Ok(()) } else { Err(reason) }
}

/// Whether the packet's VIP rejects packets for which it has no backend. Only a packet that opens a
/// flow is rejected: a connection that lost its pin (a restart, another box) goes on when its
/// backend is back.
pub(super) fn reject_no_backend(packet: &Packet, context: &Context<'_>) -> bool {
    let opens = packet.flow.protocol() != Protocol::Tcp || packet.layout.flags.opens();
    let vip =
        context.table.vip(packet.vip).filter(|_| packet.direction == Direction::ToBackend && opens);
    vip.is_some_and(|vip| vip.policy.reject_no_backend)
}

/// Whether no router may fragment the packet: IPv4 with DF, and IPv6.
fn must_not_be_fragmented(packet: &Packet) -> bool {
    let header = packet.data().get(packet.layout.ip()..).and_then(<[u8]>::first_chunk::<8>);
    !matches!(header, Some([version, _, _, _, _, _, flags, _]) if version >> 4 == 4 && flags & 0x40 == 0)
}

/// Turns the packet into an ICMP error about itself, if one may be sent and the limit allows it.
fn send_error(
    packet: &mut Packet,
    kind: ErrorKind,
    context: &Context<'_>,
    limiter: &mut Limiter,
    pool: &mut FramePool,
) -> bool {
    let key = packet.flow.key();
    let (ip, hop) = (packet.layout.ip(), packet.came_from(context.nic));
    let Some(frame) = &mut packet.frame else { return false };
    // A group address is no sender's address (IEEE 802.3 3.2.3).
    if hop.mac.first().is_some_and(|first| first & 1 == 1)
        || icmp::may_reply(frame.data(), ip).is_err()
    {
        return false;
    }
    // The limit counts for the error's destination: for a reply, that is the backend.
    let backend = context.table.backend(packet.backend).filter(|_| packet.direction.is_reply());
    let to = backend.map_or(key.client, |backend| backend.address);
    if !limiter.take(to, context.table.local().icmp, context.now) {
        context.stats.icmp_rate_limited.add(1);
        return false;
    }
    let reply = match kind {
        ErrorKind::TooBig { .. } => LocalReply::TooBig,
        ErrorKind::TimeExceeded => LocalReply::TimeExceeded,
        ErrorKind::PortUnreachable => LocalReply::Unreachable,
    };
    // An error quotes no more than the first frame.
    pool.cut(frame);
    // A full-NAT backend knows the flow by its SNAT address.
    let ours = match packet.direction {
        Direction::ToClientOf(id) => {
            context.shared.snat_table.sources().source(id).map(|(address, _)| address)
        }
        _ => None,
    };
    let sent = icmp::error(frame, ip, ours.unwrap_or(key.vip), kind).is_ok()
        && send_back(packet, reply, &hop, context);
    if let Some(trace) = context.trace.filter(|_| sent) {
        trace.record_slot(packet.vip, packet.backend);
    }
    sent
}

/// Sends the frame, now a local reply, back to the packet's previous hop `hop`.
pub(super) fn send_back(
    packet: &mut Packet,
    reply: LocalReply,
    hop: &NextHop,
    context: &Context<'_>,
) -> bool {
    let Some(frame) = &mut packet.frame else { return false };
    packet.nic = context.nic;
    packet.direction = Direction::LocalReply(reply);
    address_frame(frame, packet.layout.tag, hop, context).is_ok()
}
