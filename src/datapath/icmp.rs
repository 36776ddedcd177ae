//! Slow path, icmp: messages to a VIP, and errors about its flows ([ICMP.md](../../docs/ICMP.md)).
//!
//! ```text
//! echo request to a VIP            -> its reply, in place
//! error to a VIP                   quotes VIP -> client:      to the flow's backend
//! error from a NAT backend's side  quotes client -> backend:  to the client, from the VIP
//! error to a full-NAT source       quotes source -> backend:  to the client, from the VIP
//! ```
//!
//! An error takes the path of the flow that it quotes, by classify and conntrack, and changes no
//! state there: anybody can send one. Its destination must be the source of the packet that it
//! quotes (RFC 5927 4.1), and its checksum must be right.
//!
//! Reads: the message, the flow tables. Cost: for these messages only; a checksum over the message,
//! and one look-up in the table of every worker.

use std::iter;

use super::batch::{Direction, FragmentKind, Packet};
use super::classify::{answered_flow, takes_all_protocols};
use super::conntrack::Conntrack;
use super::context::Context;
use super::local_reply::send_back;
use super::parse::Message;
use super::path_mtu;
use super::quic::ReplyOrigin;
use super::rewrite::{rewrite_to_backend, rewrite_to_client};
use super::select::guess;
use super::target::Target;
use super::unpinned::{return_hop, return_path};
use crate::flow::snat::{SnatEntry, SnatPort};
use crate::flow::table::Slot;
use crate::forwarding::table::ReturnPath;
use crate::net::{Address, FlowKey, ListenKey, NextHop, Protocol, TableSecret, Tuple};
use crate::stats::{Drop, LocalReply};
use crate::wire::checksum::{self, Full};
use crate::wire::headers::protocol::ICMP_V6;
use crate::wire::icmp::{self, ICMP_LEN, NoReply, kind};
use crate::wire::ip::is_header_sum_right;
use crate::wire::quoted::{self, QuoteError, Quoted};
use crate::xdp::umem::FramePool;

/// Kind of a message that is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Echo,
    Error,
}

/// Classifies an ICMP message: replies to an echo request, or finds the flow that an error is
/// about.
///
/// # Errors
/// The reason for which the message is dropped.
#[cold]
pub fn classify(
    packet: &mut Packet,
    message: &Message,
    context: &Context<'_>,
    secret: &TableSecret,
    pool: &FramePool,
) -> Result<(), Drop> {
    packet.forget();
    if !is_header_sum_right(packet.network()) {
        return Err(Drop::BadIpv4Checksum);
    }
    // A group address as the source MAC (IEEE 802.3 3.2.3): replies would go to the group.
    if packet.source_mac().first().is_some_and(|first| first & 1 == 1) {
        return Err(Drop::BadSource);
    }
    match kind_of(packet, message)? {
        Kind::Echo if !is_sum_right(parts(packet, message, pool), message) => Err(Drop::BadIcmp),
        Kind::Echo => answer_echo(packet, message, context),
        Kind::Error => relate(packet, message, context, secret),
    }
}

/// Returns the message, without padding. Fails for a message in several frames: no router sends an
/// error of that length (RFC 1812 4.3.2.3, RFC 4443 2.4 c).
fn body<'p>(packet: &'p Packet, message: &Message) -> Result<&'p [u8], Drop> {
    let start = usize::from(packet.layout.transport);
    packet.data().get(start..start + usize::from(message.len)).ok_or(Drop::BadIcmp)
}

/// Returns the parts of a message that may lie in several frames, one per frame.
fn parts<'p>(
    packet: &'p Packet,
    message: &Message,
    pool: &'p FramePool,
) -> impl Iterator<Item = &'p [u8]> + use<'p> {
    let first = packet.data().get(usize::from(packet.layout.transport)..);
    let behind = packet.frame.iter().flat_map(|frame| pool.behind(frame));
    let mut left = usize::from(message.len);
    first.into_iter().chain(behind).map(move |part| {
        let part = part.get(..left).unwrap_or(part);
        left -= part.len();
        part
    })
}

/// Returns the kind of a message. Redirects and source quench are dropped: they are not for hosts
/// behind a balancer (RFC 6633).
fn kind_of(packet: &Packet, message: &Message) -> Result<Kind, Drop> {
    let kind = packet.data().get(usize::from(packet.layout.transport));
    let kind = kind.filter(|_| usize::from(message.len) >= ICMP_LEN).ok_or(Drop::BadIcmp)?;
    match (message.source.is_v4(), *kind) {
        (true, kind::V4_ECHO_REQUEST) | (false, kind::V6_ECHO_REQUEST) => Ok(Kind::Echo),
        (true, kind::V4_UNREACHABLE | kind::V4_TIME_EXCEEDED | kind::V4_PARAMETER_PROBLEM)
        | (false, kind::V6_UNREACHABLE..=kind::V6_PARAMETER_PROBLEM) => Ok(Kind::Error),
        _ => Err(Drop::IcmpType),
    }
}

fn answer_echo(packet: &mut Packet, message: &Message, context: &Context<'_>) -> Result<(), Drop> {
    if !context.table.is_vip(message.destination) {
        return Err(Drop::NoVip);
    }
    if message.source == message.destination {
        return Err(Drop::Land);
    }
    let (ip, hop) = (packet.layout.ip(), packet.came_from(context.nic));
    let Some(frame) = &mut packet.frame else { return Err(Drop::BadIcmp) };
    let len = frame.packet_len().into();
    match icmp::echo_reply(frame.data_mut(), ip, len) {
        Ok(()) if send_back(packet, LocalReply::EchoReply, &hop, context) => Ok(()),
        Ok(()) => Err(Drop::NoHeadroom),
        Err(NoReply::BadSource) => Err(Drop::BadSource),
        Err(_) => Err(Drop::BadIcmp),
    }
}

/// Finds the flow that an error is about, and the error's direction.
fn relate(
    packet: &mut Packet,
    message: &Message,
    context: &Context<'_>,
    secret: &TableSecret,
) -> Result<(), Drop> {
    let body = body(packet, message)?;
    if !is_sum_right(iter::once(body), message) {
        return Err(Drop::BadIcmp);
    }
    let quoted = quoted::read(body).map_err(|error| match error {
        QuoteError::Truncated | QuoteError::Malformed => Drop::BadIcmp,
        QuoteError::Fragment | QuoteError::Protocol | QuoteError::Family => Drop::IcmpNoFlow,
    })?;
    if quoted.source.0 != message.destination {
        return Err(Drop::IcmpNoFlow);
    }
    if let Some(end) = path_mtu::take(body, &quoted, context) {
        return Err(end);
    }
    let flow = relate_to_backend(packet, &quoted, context);
    let flow = flow.or_else(|| relate_to_snat(packet, &quoted, context));
    let flow = flow.or_else(|| relate_to_client(packet, &quoted, context));
    packet.flow = secret.hash(flow.ok_or(Drop::IcmpNoFlow)?);
    context.flows.prefetch_bucket(&packet.flow);
    Ok(())
}

/// Relates an error that quotes a packet of a VIP: it goes to the backend that sent the packet.
fn relate_to_backend(packet: &mut Packet, quoted: &Quoted, context: &Context<'_>) -> Option<Tuple> {
    let (vip, client) = (quoted.source, quoted.destination);
    // Other protocols than TCP and UDP match only a VIP of all protocols.
    let protocol = Protocol::from_number(quoted.protocol).unwrap_or(Protocol::Any);
    let flow = Tuple::from(FlowKey {
        client: client.0,
        vip: vip.0,
        client_port: client.1,
        vip_port: vip.1,
        protocol,
    });
    if protocol != Protocol::Any && flow.has_forbidden_port() {
        return None;
    }
    packet.vip = context.table.owner(flow.listen_key())?;
    packet.direction = Direction::Related(None);
    Some(if takes_all_protocols(packet.vip, context) { flow.without_ports() } else { flow })
}

/// Relates an error that quotes a packet of a full-NAT source: it goes to the client.
fn relate_to_snat(packet: &mut Packet, quoted: &Quoted, context: &Context<'_>) -> Option<Tuple> {
    let (source, (address, port)) = (quoted.source, quoted.destination);
    let id = context.shared.snat_table.sources().find(source.0, source.1)?;
    let snat_entry = context.shared.snat_table.read(id)?;
    let backend = context.table.pinned(snat_entry.snat_flow.backend)?;
    let protocol = Protocol::from_number(quoted.protocol)?;
    if snat_entry.snat_flow.service(backend.address, backend.port)
        != (ListenKey { address, port, protocol })
    {
        return None;
    }
    (packet.vip, packet.backend) = (backend.vip, backend.id.index);
    packet.direction = Direction::RelatedTo(id);
    Some(Tuple::from(snat_entry.snat_flow.flow))
}

/// Relates an error that quotes a packet to a NAT backend: it goes to the client.
fn relate_to_client(packet: &mut Packet, quoted: &Quoted, context: &Context<'_>) -> Option<Tuple> {
    let (client, backend) = (quoted.source, quoted.destination);
    let protocol = Protocol::from_number(quoted.protocol)?;
    let source = ListenKey { address: backend.0, port: backend.1, protocol };
    let path = context.table.return_path(source)?;
    packet.vip = path.vip;
    packet.direction = Direction::Related(Some(source));
    Some(answered_flow(client.0, client.1, source, path))
}

/// Whether the checksum of a message is right (RFC 792; RFC 4443 2.3: with the pseudo header).
fn is_sum_right<'p>(parts: impl Iterator<Item = &'p [u8]>, message: &Message) -> bool {
    let sum = if message.source.is_v4() {
        Full::new()
    } else {
        let [source, destination] = [message.source, message.destination].map(Address::octets);
        // The sum does not depend on the order in which the words of both addresses are added.
        checksum::pseudo_header(&source, message.len.into(), ICMP_V6).add_16bytes(destination)
    };
    checksum::of_parts(&sum, parts) == 0
}

/// Forwards an ICMP error to the end of the flow that sent the quoted packet.
///
/// # Errors
/// The reason for which it cannot be sent.
#[cold]
pub fn forward(
    packet: &mut Packet,
    source: Option<ListenKey>,
    conntrack: &Conntrack,
    context: &Context<'_>,
) -> Result<(), Drop> {
    packet.layout.fragment = FragmentKind::Quoting;
    match source {
        None => {
            let pinned = conntrack.peek(&packet.flow, packet.hint, context);
            let target = match pinned {
                Some((flow_state, backend)) => Target::of(backend, &flow_state),
                None => Target { backend: guess(packet, conntrack, context)?, snat_port: None },
            };
            packet.direction = Direction::ToBackend;
            rewrite_to_backend(packet, &target, context)?;
        }
        Some(source) => {
            let client = to_client(packet, source, conntrack, context).ok_or(Drop::IcmpNoFlow)?;
            packet.direction = Direction::ToClient(source);
            rewrite_to_client(packet, &client, context)?;
        }
    }
    context.stats.icmp_errors_forwarded.add(1);
    Ok(())
}

/// Forwards an ICMP error about a packet from a SNAT port to the client of its flow.
///
/// # Errors
/// The reason for which it cannot be sent.
#[cold]
pub fn forward_snat_reply(
    packet: &mut Packet,
    id: SnatPort,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let snat_entry = context.shared.snat_table.read(id);
    let same = |snat_entry: &SnatEntry| Tuple::from(snat_entry.snat_flow.flow) == packet.flow.tuple;
    let snat_entry = snat_entry.filter(same).ok_or(Drop::IcmpNoFlow)?;
    packet.layout.fragment = FragmentKind::Quoting;
    packet.direction = Direction::ToClientOf(id);
    rewrite_to_client(packet, &snat_entry.snat_flow.return_hop.next_hop(), context)?;
    context.stats.icmp_errors_forwarded.add(1);
    Ok(())
}

/// Finds the flow among those with packets to the NAT backend at `source`; returns the next hop to
/// its client.
fn to_client(
    packet: &mut Packet,
    source: ListenKey,
    conntrack: &Conntrack,
    context: &Context<'_>,
) -> Option<NextHop> {
    if let Some(path) = return_path(source, context) {
        (packet.vip, packet.backend) = (path.vip, path.backend);
        return return_hop(packet.flow.tuple, context);
    }
    let key = packet.flow.key();
    // Pins on the backend itself come first, as for replies.
    for of_its_vip in [false, true] {
        for path in context.table.return_paths(source) {
            let origin = ReplyOrigin { backend: path.backend, of_its_vip };
            if !origin.exists(context) {
                continue;
            }
            let flow = answered_flow(key.client, key.client_port, source, path);
            let flow = conntrack.secret().hash(flow);
            let pinned = conntrack.peek(&flow, Slot::NOWHERE, context);
            if let Some((flow_state, _)) =
                pinned.filter(|(_, pinned)| origin.answers_for(pinned, context))
            {
                packet.flow = flow;
                let ReturnPath { vip, backend, .. } = *path;
                (packet.vip, packet.backend) = (vip, backend);
                return Some(flow_state.hop());
            }
        }
    }
    None
}
