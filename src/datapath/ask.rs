//! Slow path, ask: a TCP packet in mid-flow without a pin goes to the backend that has its socket.
//!
//! ```text
//! client                this box                  b1                  b2
//!   ACK ------------->  no pin; b1 or b2
//!                       - ask b1, b2 ---------->  no socket
//!                                                 - ask b2 -------->  has it: delivers
//!                       <---------------------- answer -------------
//!                       a pin to b2
//!   ACK ------------->  - as any packet --------------------------->
//! ```
//!
//! The flow may have begun at another box, or before this one has lost its pins. The backends are
//! those that the present table and earlier ones may have chosen; the program of `holdfast backend`
//! passes the packet on, and answers ([`wire::ask`](crate::wire::ask)). Only where they are several is
//! one asked: else the hash tells.
//!
//! A packet that does not fit with its list of hops goes as its first bytes only, and is not
//! delivered: the sender repeats it, to the pin that the answer has made.
//!
//! Writes: frames. Cost: some ten choices of a backend, and a keyed hash.

use std::time::SystemTime;

use super::batch::Packet;
use super::context::Context;
use super::resources::Resources;
use super::rewrite::address_frame;
use super::rewrite::tunnel::{inner, outer, wrap};
use super::select::admit;
use crate::forwarding::table::{Backend, Owners};
use crate::forwarding::{Ask as Wanted, Miss};
use crate::net::{Address, FleetKey, FlowKey, ListenKey, Protocol};
use crate::stats::Drop;
use crate::wire::ask::{self, Answer, Ask, Minute};
use crate::wire::headers::{Headers, protocol};
use crate::wire::tunnel::{Inner, Outer};

/// Bytes of a packet that is cut off: an IPv6 header and a TCP header with all options.
const CUT: u16 = 100;
const UDP_LEN: usize = 8;
const GUE_LEN: usize = 4;

/// Returns the backends to ask about a packet without a pin; `None` if the hash tells.
#[inline]
pub fn owners<'t>(packet: &Packet, miss: Miss, context: &Context<'t>) -> Option<Owners<'t>> {
    let vip = context.table.vip(packet.vip)?;
    if vip.policy.ask == Wanted::Never || miss != Miss::NonSyn {
        return None;
    }
    context.table.local().tunnels.fleet?;
    let tcp = packet.flow.protocol() == Protocol::Tcp && !vip.forward.translates();
    let owners = tcp.then(|| context.table.owners(vip, &packet.flow.key()))?;
    (owners.len() > 1).then_some(owners)
}

/// Turns the packet into an ask.
///
/// # Errors
/// The reason for which it cannot be sent; the frame is then unchanged, but for a packet that was cut.
#[cold]
pub fn ask(packet: &mut Packet, owners: &Owners<'_>, context: &Context<'_>) -> Result<(), Drop> {
    let key = packet.flow.key();
    admit(packet, &key, context)?;
    let [FleetKey(present), _] = context.table.local().tunnels.fleet.ok_or(Drop::NoBackend)?;
    let first = owners.first().ok_or(Drop::NoBackend)?;
    let hop = first.next_hop.as_ref().ok_or(Drop::NoNextHop)?;
    let Packet { frame: Some(frame), layout, flow, .. } = packet else {
        return Err(Drop::NoBackend);
    };
    packet.bytes = frame.packet_len();
    let at = layout.ip();
    let whole = inner(frame, at).ok_or(Drop::TruncatedEthernet)?;
    let outer = outer(flow.tuple, whole.dont_fragment, first, context).ok_or(Drop::NoBackend)?;
    let family = first.address.family();
    let same = owners.iter().filter(|owner| owner.address.family() == family);
    let hops = same.map(|owner| owner.address).take(ask::most_hops(family)).collect();
    let mut question = Ask { asker: outer.source, hops, is_probe: false };
    let private = ask::len(family, question.hops.len());
    let ports = context.table.local().tunnels.gue_ports(context.table.entropy().hash(flow.tuple));
    let words = u8::try_from(private / 4).unwrap_or(u8::MAX);
    let outer = Outer { gue: Some(ports), private: words, ..outer };
    let mut told = whole;
    if whole.len.saturating_add(outer.overhead()) > first.mtu || frame.is_long() {
        if frame.is_long() || whole.len < CUT {
            return Err(Drop::TooBig);
        }
        told = Inner { len: CUT, ..whole };
        question.is_probe = true;
    }
    if !wrap(frame, at, &told, &outer) {
        return Err(Drop::NoHeadroom);
    }
    let end = at + usize::from(outer.overhead());
    let data = frame.data_mut().get_mut(end - private..end).unwrap_or_default();
    if !question.write(data, &key, &FleetKey(present), minute()) {
        return Err(Drop::NoHeadroom);
    }
    packet.backend = first.id.index;
    packet.nic = hop.nic;
    address_frame(frame, layout.tag, hop, context)
}

/// Pins the flow of an answer; returns how the packet ends.
#[cold]
pub fn pinned_by(packet: &Packet, resources: &mut Resources, context: &Context<'_>) -> Drop {
    let Some((owner, flow)) = read_answer(packet, context) else { return Drop::BadAnswer };
    let flow = resources.conntrack.secret().hash(flow.into());
    match resources.conntrack.pin_to_owner(&flow, owner, context) {
        Ok(()) => Drop::AskAnswer,
        Err(reason) => reason,
    }
}

/// Reads an answer: the backend that has sent it, and the flow that it has. `None` if it is not
/// right.
fn read_answer<'t>(packet: &Packet, context: &Context<'t>) -> Option<(&'t Backend, FlowKey)> {
    let tunnels = &context.table.local().tunnels;
    let headers = Headers::of(packet.network()).ok()?;
    let payload = packet.network().get(headers.transport + UDP_LEN..headers.end)?;
    let [lengths, protocol, 0, 0] = *payload.first_chunk()? else { return None };
    let private = payload.get(GUE_LEN..)?.get(..usize::from(lengths & 31) * 4)?;
    let inner = payload.get(GUE_LEN + private.len()..)?;
    let from = source(packet.network())?;
    let answer = Answer::read(private, from.family())?;
    let flow = flow_of(inner, protocol)?;
    if lengths & 0xe0 != 0 || !answer.is_by(from, &flow, &tunnels.fleet?, minute()) {
        return None;
    }
    let key = ListenKey { address: flow.vip, port: flow.vip_port, protocol: flow.protocol };
    let vip = context.table.vip(context.table.owner(key)?)?;
    let mut backends = context.table.backends_of(vip);
    backends.find(|backend| backend.address == from).map(|owner| (owner, flow))
}

/// Source of an IP packet.
fn source(network: &[u8]) -> Option<Address> {
    match network.first()? >> 4 {
        4 => Some(Address::from_v4(*network.get(12..)?.first_chunk()?)),
        6 => Some(Address::from_v6(*network.get(8..)?.first_chunk()?)),
        _ => None,
    }
}

/// Flow of a TCP packet, of which the first bytes are there.
fn flow_of(inner: &[u8], number: u8) -> Option<FlowKey> {
    let (client, vip, ports) = match number {
        protocol::IPV4 => {
            let length = usize::from(inner.first()? & 15) * 4;
            let destination = Address::from_v4(*inner.get(16..)?.first_chunk()?);
            (source(inner)?, destination, inner.get(length..)?)
        }
        protocol::IPV6 => {
            let destination = Address::from_v6(*inner.get(24..)?.first_chunk()?);
            (source(inner)?, destination, inner.get(40..)?)
        }
        _ => return None,
    };
    let [c0, c1, v0, v1] = *ports.first_chunk()?;
    let (client_port, vip_port) = (u16::from_be_bytes([c0, c1]), u16::from_be_bytes([v0, v1]));
    Some(FlowKey { client, vip, client_port, vip_port, protocol: Protocol::Tcp })
}

/// The time of a tag.
#[expect(clippy::disallowed_methods, reason = "all hosts of a fleet have this clock in common")]
fn minute() -> Minute {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Minute(since.as_secs() / 60)
}
