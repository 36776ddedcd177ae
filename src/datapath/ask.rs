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
//! those that the present table, earlier ones and those of other boxes may have chosen, or all of the VIP
//! ([`ForwardingTable::owners`]); the program of `holdfast backend` passes the packet on, and answers
//! ([`wire::ask`](crate::wire::ask)). An ICMP error about such a flow is asked about in the same way.
//!
//! A list has room for [`most_hops`] backends. For more of them copies go to further lists; then the
//! last one of a list does not deliver the packet, as another list may have the owner.
//!
//! A packet that does not fit with its list of hops goes as its first bytes only, and is not
//! delivered: the sender repeats it, to the pin that the answer has made.
//!
//! Writes: frames, the backlog. Cost: some ten choices of a backend, and a keyed hash and a copy for
//! each list. Bound: [`MAX_LISTS`] per packet, and the box's budget of asks.
//!
//! [`ForwardingTable::owners`]: crate::forwarding::ForwardingTable::owners

use arrayvec::ArrayVec;

use super::batch::Packet;
use super::context::Context;
use super::resources::Resources;
use super::rewrite::address_frame;
use super::rewrite::tunnel::{inner, outer, wrap};
use super::select::admit;
use super::token_bucket::TokenBucket;
use crate::forwarding::Ask as Wanted;
use crate::forwarding::table::{Backend, Owners, Vip};
use crate::net::{Address, Family, FlowKey, ListenKey, NicIndex, Protocol};
use crate::stats::Drop;
use crate::units::Ticks;
use crate::wire::ask::{self, Answer, Ask, MAX_HOPS, Minute, most_hops};
use crate::wire::headers::{Headers, protocol};
use crate::wire::tunnel::{Inner, Outer};
use crate::xdp::umem::{Frame, FramePool};

/// Most lists of backends that are asked about one packet.
pub const MAX_LISTS: usize = 4;
/// Where a VIP has more backends than the lists, the time after which others are asked: a sender's
/// first repetitions come later.
const TURN: Ticks = Ticks(15);
/// Bytes of a packet that is cut off: an IPv6 header and a TCP header with all options.
const CUT: u16 = 100;
const UDP_LEN: usize = 8;
const GUE_LEN: usize = 4;

/// Backends of one family, in the order in which they are asked.
pub type Hops<'t> = ArrayVec<&'t Backend, MAX_HOPS>;

/// Lists of backends that are asked about one packet.
pub type Lists<'t> = ArrayVec<Hops<'t>, MAX_LISTS>;

/// Whether backends of the packet's VIP are asked for flows in mid-flow. Cost: one test where there is
/// no fleet.
#[inline(always)]
pub fn asks(packet: &Packet, context: &Context<'_>) -> bool {
    context.table.local().tunnels.fleet.is_some()
        && context.table.vip(packet.vip).is_some_and(|vip| vip.policy.ask != Wanted::Never)
}

/// Returns the backends to ask about a mid-flow packet without a pin; `None` if the hash tells.
#[cold]
#[inline(never)]
pub fn owners<'t>(packet: &Packet, context: &Context<'t>) -> Option<Owners<'t>> {
    let vip = context.table.vip(packet.vip)?;
    let tcp = packet.flow.protocol() == Protocol::Tcp && !vip.forward.translates();
    let owners = tcp.then(|| context.table.owners(vip, &packet.flow.key(), context.now))?;
    (owners.or_any || !owners.likely.is_empty()).then_some(owners)
}

/// Takes the budget of an ask; returns whether there is some left.
pub fn may_ask(asks: &mut TokenBucket, context: &Context<'_>) -> bool {
    let Some(rate) = context.table.local().asks else { return true };
    let may = asks.refresh(rate, rate, context.now);
    if may {
        asks.take();
    }
    may
}

/// Turns the packet into an ask, and sends copies to further lists.
///
/// # Errors
/// The reason for which it cannot be sent; the frame is then unchanged.
#[cold]
pub fn ask(
    packet: &mut Packet,
    owners: &Owners<'_>,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let vip = admit(packet, &packet.flow.key(), context)?;
    let Resources { pool, backlog, .. } = resources;
    let lists = lists(vip, owners, context);
    let whole = inner_of(packet)?;
    let is_part = lists.len() > 1;
    for hops in lists.iter().skip(1) {
        let Some(mut copy) = pool.pop() else { break };
        let nic = match copy.copy_from(packet.data()) {
            true => put(&mut copy, packet, &whole, (hops, is_part), context),
            false => Err(Drop::NoHeadroom),
        };
        match nic {
            Ok(nic) => backlog.push_ask(nic, copy, pool),
            Err(_) => pool.push(copy),
        }
    }
    send(packet, lists.first().ok_or(Drop::NoBackend)?, is_part, pool, context)?;
    context.stats.asks_sent.add(1);
    Ok(())
}

fn inner_of(packet: &Packet) -> Result<Inner, Drop> {
    let frame = packet.frame.as_ref().ok_or(Drop::NoBackend)?;
    inner(frame, packet.layout.ip()).ok_or(Drop::TruncatedEthernet)
}

/// Turns the packet into an ask of these hops.
///
/// # Errors
/// As [`ask`].
pub fn send(
    packet: &mut Packet,
    hops: &Hops<'_>,
    is_part: bool,
    pool: &mut FramePool,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let whole = inner_of(packet)?;
    let mut frame = packet.frame.take().ok_or(Drop::NoBackend)?;
    packet.bytes = frame.packet_len();
    pool.cut(&mut frame);
    let nic = put(&mut frame, packet, &whole, (hops, is_part), context);
    packet.frame = Some(frame);
    packet.nic = nic?;
    packet.backend = hops.first().map_or(packet.backend, |first| first.id.index);
    Ok(())
}

/// Returns the lists of backends to ask, the likeliest first.
pub fn lists<'t>(vip: &'t Vip, owners: &Owners<'t>, context: &Context<'t>) -> Lists<'t> {
    let others = context.table.others(vip, owners);
    let first = owners.likely.first().copied().or_else(|| others.clone().next());
    let hops = most_hops(first.map_or(Family::V4, |first| first.address.family()));
    let room = (MAX_LISTS * hops).saturating_sub(owners.likely.len()).max(1);
    let turns = others.clone().count().div_ceil(room).max(1);
    let turn = usize::try_from(context.now.0 / TURN.0).unwrap_or_default() % turns;
    let mut lists = Lists::new();
    for backend in owners.likely.iter().copied().chain(others.skip(turn * room).take(room)) {
        let family = backend.address.family();
        let fits = |hops: &Hops<'_>| {
            let same = hops.first().is_some_and(|first| first.address.family() == family);
            same && hops.len() < most_hops(family)
        };
        if lists.iter().any(fits) {
            lists
                .iter_mut()
                .find(|hops| fits(hops))
                .into_iter()
                .for_each(|hops| hops.push(backend));
        } else if lists.try_push([backend].into_iter().collect()).is_err() {
            break;
        }
    }
    lists
}

/// Turns a frame with the packet into an ask of these hops; returns the NIC that it leaves by.
fn put(
    frame: &mut Frame,
    packet: &Packet,
    whole: &Inner,
    (hops, is_part): (&Hops<'_>, bool),
    context: &Context<'_>,
) -> Result<NicIndex, Drop> {
    let Packet { layout, flow, .. } = packet;
    let tunnels = &context.table.local().tunnels;
    let [key, _] = tunnels.fleet.ok_or(Drop::NoBackend)?;
    let first = hops.first().ok_or(Drop::NoBackend)?;
    let hop = first.next_hop.as_ref().ok_or(Drop::NoNextHop)?;
    let at = layout.ip();
    let outer = outer(flow.tuple, whole.dont_fragment, first, context).ok_or(Drop::NoBackend)?;
    let private = ask::len(first.address.family(), hops.len());
    let ports = tunnels.gue_ports(context.table.entropy().hash(flow.tuple));
    let words = u8::try_from(private / 4).unwrap_or(u8::MAX);
    let outer = Outer { gue: Some(ports), private: words, ..outer };
    let is_here = at + usize::from(whole.len) <= frame.len();
    let is_cut = !is_here || whole.len.saturating_add(outer.overhead()) > first.mtu;
    if is_cut && whole.len < CUT {
        return Err(Drop::TooBig);
    }
    let carried = if is_cut { Inner { len: CUT, ..*whole } } else { *whole };
    if !wrap(frame, at, &carried, &outer) {
        return Err(Drop::NoHeadroom);
    }
    let hops = hops.iter().map(|hop| hop.address).collect();
    let question = Ask { asker: outer.source, hops, is_probe: is_cut, is_part };
    let end = at + usize::from(outer.overhead());
    let data = frame.data_mut().get_mut(end - private..end).unwrap_or_default();
    if !question.write(data, &flow.key(), &key, Minute::now()) {
        return Err(Drop::NoHeadroom);
    }
    address_frame(frame, layout.tag, hop, context)?;
    Ok(hop.nic)
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
    if lengths & 0xe0 != 0 || !answer.is_by(from, &flow, &tunnels.fleet?, Minute::now()) {
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
