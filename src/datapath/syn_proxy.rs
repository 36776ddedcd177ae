//! Slow path, SYN proxy: the handshakes of VIPs with `syn_proxy`, where no backend sees a client
//! that has not proven itself.
//!
//! ```text
//! client                           this box                                backend
//!   SYN c ------------------------->  no state
//!   <---- SYN+ACK k, c+1, window 0 -  k is a cookie
//!   ACK c+1, k+1 ------------------>  the cookie is right: a pin and a splice
//!                                     - SYN c ----------------------------->
//!                                     <------------------- SYN+ACK b, c+1 --
//!   <-- ACK k+1, c+1, a window ------ - ACK c+1, b+1 ---------------------->
//!   data -------------------------->  ACK numbers + (b - k) --------------->
//!   <-------------------------------  SEQ numbers - (b - k)   <------- data
//! ```
//!
//! The closed window keeps the client from sending data before its backend is known, so that no data
//! is kept here. The packet that proves the client becomes the SYN that the client sent before, and
//! takes the path of any SYN: scheduler, SNAT port, translation, limits. The backend's SYN+ACK
//! becomes the ACK that opens the window. [`wire::splice`](crate::wire::splice) translates the
//! numbers from then on.
//!
//! Source: RFC 4987 3.6; netfilter's SYNPROXY (nf_synproxy_core.c).
//!
//! Writes: frames, the flow table, splices, the list of handshakes. Cost: for a SYN two hashes and a
//! frame of its own; then that of a new flow.

use super::batch::{FragmentKind, Packet, TcpFlags};
use super::context::Context;
use super::cookie::{self, Proof, proof};
use super::reset::answer_with;
use super::resources::Resources;
use super::rewrite::{rewrite_to_backend, rewrite_to_client};
use super::segment::{Content, Kind, Segment, proxy_shift};
use super::select::{admit, select};
use super::splice::{self, Found, TOLD};
use super::target::Target;
use crate::flow::entry::State;
use crate::flow::splices::{Answer, Offer, Splice};
use crate::forwarding::Miss;
use crate::forwarding::table::{Backend, Vip};
use crate::net::vlan::Tags;
use crate::net::{Family, HashedKey, NextHop};
use crate::stats::{Drop, LocalReply};
use crate::units::Ticks;
use crate::wire::proxy::Header;
use crate::wire::syn::{SynOptions, Timestamps, is_sum_right};
use crate::wire::tcp;
use crate::xdp::umem::FramePool;

/// Length of the headers of a segment without options, in bytes.
const HEADERS_V4: u16 = 40;
/// Length of the headers of a segment without options, in bytes.
const HEADERS_V6: u16 = 60;
/// Bytes that an IPv6 header has more than an IPv4 header.
const GROWTH: u16 = 20;
/// Least distance of two SYNs that packets of one client cause: 0.2 s.
const REPEAT: Ticks = Ticks(20);

/// Whether the packet, which has no pin, is for a VIP that proves its clients.
#[inline(always)]
pub fn guards(packet: &Packet, context: &Context<'_>) -> bool {
    context.table.vip(packet.vip).is_some_and(|vip| vip.policy.syn_proxy)
}

/// Handles a client's packet without a pin: answers a SYN, and pins the flow of a client that proves
/// itself.
///
/// # Errors
/// The reason for which the packet is dropped. A SYN is unchanged then.
#[cold]
pub fn meet(
    packet: &mut Packet,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let vip = admit(packet, &packet.flow.key(), context)?;
    if packet.layout.fragment != FragmentKind::Whole {
        return Err(Drop::NoCookie);
    }
    if packet.layout.flags.opens() {
        return greet(packet, vip, resources, context);
    }
    match proof(packet, context) {
        None => refuse_stranger(packet, resources, context),
        Some(_) if !is_sum_right(packet.network()) => Err(Drop::BadTcpChecksum),
        Some(proof) => join(packet, &proof, vip, resources, context),
    }
}

/// Whether a backend of the VIP takes new flows. Without one, no SYN is answered with a cookie.
pub(super) fn is_served(vip: &Vip, context: &Context<'_>) -> bool {
    let takes = |backend: &Backend| backend.takes_new;
    let mut backends = vip.scheduler.candidates().iter();
    backends.any(|it| context.table.backend(it.backend).is_some_and(takes))
}

/// Answers a SYN with a cookie.
fn greet(
    packet: &mut Packet,
    vip: &Vip,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    if !is_sum_right(packet.network()) {
        return Err(Drop::BadTcpChecksum);
    }
    if !is_served(vip, context) {
        return Err(Drop::NoBackend);
    }
    let (segment, key) = (packet.segment(), packet.flow.key());
    let offer = SynOptions::of(segment);
    let isn = tcp::sequence(segment).ok_or(Drop::TruncatedTcp)?;
    let secret = context.shared.flows.first().ok_or(Drop::NoVip)?.secret();
    let timestamps =
        offer.timestamps.map(|theirs| Timestamps { value: clock(context.now), echo: theirs.value });
    let content = Content {
        sequence: cookie::make(secret, &key, isn, &offer, context.now),
        acknowledgment: Some(isn.wrapping_add(1)),
        kind: Kind::Syn {
            window: 0,
            options: SynOptions {
                mss: Some(segment_size(vip, key.client.family(), context)),
                scale: offer.scale.map(|_| TOLD),
                sack: offer.sack,
                timestamps,
            },
        },
    };
    if let Some(trace) = context.trace {
        let why = "the VIP has syn_proxy: a backend is chosen when the client acknowledges it";
        trace.record("syn_proxy", "a SYN+ACK with a cookie", why);
    }
    let pool = &mut resources.pool;
    match answer_with(packet, content, LocalReply::SynCookie, context, pool) {
        true => Ok(()),
        false => Err(Drop::NoHeadroom),
    }
}

/// Longest segment of a client that reaches every backend in one packet.
fn segment_size(vip: &Vip, family: Family, context: &Context<'_>) -> u16 {
    let mtu = vip.mtu.min(context.table.local().mtu(context.nic));
    let headers = if family.is_v4() { HEADERS_V4 } else { HEADERS_V6 };
    let proxy = if vip.policy.proxy { u16::from(Header::len(family)) } else { 0 };
    let fits = mtu.saturating_sub(headers + proxy).max(1);
    vip.policy.mss.map_or(fits, |mss| mss.min(fits))
}

/// Our clock, in timestamps: milliseconds.
const fn clock(now: Ticks) -> u32 {
    now.0.wrapping_mul(10)
}

/// Refuses a packet that neither opens a connection nor belongs to a known one: the client's
/// connection is lost, or the packet is forged. The limit keeps a flood from being answered.
fn refuse_stranger(
    packet: &mut Packet,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let flags = packet.layout.flags;
    let numbers = tcp::numbers(packet.segment());
    let Some((_, sequence)) =
        numbers.filter(|_| flags.any(TcpFlags::ACK) && !flags.any(TcpFlags::RST))
    else {
        return Err(Drop::NoCookie);
    };
    let Resources { reset_limiter, pool, .. } = resources;
    let rate = context.table.local().icmp;
    let reset = Content { sequence, acknowledgment: None, kind: Kind::Reset };
    let sent = reset_limiter.take(packet.flow.key().client, rate, context.now)
        && answer_with(packet, reset, LocalReply::Rejected, context, pool);
    if sent { Ok(()) } else { Err(Drop::NoCookie) }
}

/// Opens the flow of a client that has proven itself: its packet becomes the SYN for a backend.
fn join(
    packet: &mut Packet,
    proof: &Proof,
    vip: &Vip,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let splice = splice_of(packet, proof);
    if !become_syn(packet, &splice, context, &mut resources.pool) {
        return Err(Drop::NoHeadroom);
    }
    let opened = match select(packet, Miss::Open, &mut resources.conntrack, context) {
        Ok(opened) => opened,
        Err(reason) => return refuse_proven(packet, &splice, (vip, reason), resources, context),
    };
    let flow = packet.flow;
    let sent = match splice::record(&flow, &splice, context) {
        true => rewrite_to_backend(packet, &opened.target, context),
        false => Err(Drop::TableFull),
    };
    match sent {
        Ok(()) => {
            opened.keep(&flow, context);
            resources.handshakes.begin(flow, context.now);
            Ok(())
        }
        Err(reason) => {
            opened.undo(&flow, &mut resources.conntrack, context);
            Err(reason)
        }
    }
}

/// Refuses a client that has proven itself and gets no backend: it takes the connection for open.
/// Without a refusal its next packet tries again.
fn refuse_proven(
    packet: &mut Packet,
    splice: &Splice,
    (vip, reason): (&Vip, Drop),
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let lasts = matches!(reason, Drop::NoBackend | Drop::BackendsFull | Drop::ClientIsBackend);
    let sequence = splice.cookie.wrapping_add(1);
    let reset = Content { sequence, acknowledgment: None, kind: Kind::Reset };
    let pool = &mut resources.pool;
    let refused = lasts
        && vip.policy.reject_no_backend
        && answer_with(packet, reset, LocalReply::Rejected, context, pool);
    if refused { Ok(()) } else { Err(reason) }
}

/// Returns the splice that a client's proof begins.
fn splice_of(packet: &Packet, proof: &Proof) -> Splice {
    let segment = packet.segment();
    let timestamps = Timestamps::find(segment).filter(|_| proof.timestamps);
    let Proof { isn, cookie, mss, scale, sack, .. } = *proof;
    let timestamp = timestamps.map(|timestamps| timestamps.value);
    let window = tcp::window(segment).unwrap_or_default();
    Splice { isn, cookie, offer: Offer { mss, scale, sack, timestamp, window }, answer: None }
}

/// Turns a client's packet into the SYN of its connection, as if the client had sent it to the VIP.
/// Returns false, with the packet unchanged, if that fails.
fn become_syn(
    packet: &mut Packet,
    splice: &Splice,
    context: &Context<'_>,
    pool: &mut FramePool,
) -> bool {
    let key = packet.flow.key();
    let hop = packet.came_from(context.nic);
    let segment = Segment {
        hop,
        source: (key.client, key.client_port),
        destination: (key.vip, key.vip_port),
        content: syn(splice, splice.offer.mss),
        outer: None,
    };
    let macs = packet.data().first_chunk::<12>().copied();
    if !segment.replace(packet, pool, context.macs) {
        return false;
    }
    // The pin reads the previous hop from the packet.
    let frame = packet.frame.as_mut().map(|frame| frame.data_mut()).unwrap_or_default();
    if let Some((place, macs)) = frame.first_chunk_mut::<12>().zip(macs) {
        *place = macs;
    }
    let ip = if key.client.is_v4() { 20 } else { 40 };
    packet.layout.tag = hop.vlan;
    let tags = hop.vlan.map_or(0, Tags::len);
    packet.layout.transport = u16::try_from(14 + tags + ip).unwrap_or_default();
    packet.layout.flags = TcpFlags(TcpFlags::SYN);
    true
}

/// Returns the SYN for the backend, which offers what the client did.
fn syn(splice: &Splice, mss: u16) -> Content {
    let Splice { isn, offer, .. } = *splice;
    let Offer { scale, sack, timestamp, .. } = offer;
    let timestamps = timestamp.map(|value| Timestamps { value, echo: 0 });
    let options = SynOptions { mss: Some(mss), scale, sack, timestamps };
    let kind = Kind::Syn { window: unscaled(&offer), options };
    Content { sequence: isn, acknowledgment: None, kind }
}

/// The client's window, not scaled.
fn unscaled(offer: &Offer) -> u16 {
    let window = u32::from(offer.window) << offer.scale.unwrap_or_default();
    u16::try_from(window).unwrap_or(u16::MAX)
}

/// Handles a client's packet in a flow that waits for its backend's answer: it repeats the SYN for the
/// backend, if that is due.
///
/// # Errors
/// The reason for which the packet is dropped: its client sends it again.
#[cold]
pub fn again(
    packet: &mut Packet,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let Some(Found { place, pin, splice }) = splice::find(&packet.flow, context) else {
        return Err(Drop::SynProxyWaits);
    };
    let backend = context.table.pinned(pin.flow_state.backend()).ok_or(Drop::NoBackend)?;
    (packet.vip, packet.backend) = (backend.vip, backend.id.index);
    if packet.layout.flags.opens() && guards(packet, context) {
        // The client may begin again; the cookie tells.
        let vip = admit(packet, &packet.flow.key(), context)?;
        return greet(packet, vip, resources, context);
    }
    let idle = context.now.since(pin.flow_state.last_seen());
    let whole = packet.layout.fragment == FragmentKind::Whole;
    if idle.0 < REPEAT.0 || !whole || !become_syn(packet, &splice, context, &mut resources.pool) {
        return Err(Drop::SynProxyWaits);
    }
    rewrite_to_backend(packet, &Target::of(backend, &pin.flow_state), context)?;
    if let Some(table) = context.shared.flows.get(usize::from(place.worker)) {
        table.touch(place.slot, &pin.flow_state, context.now);
    }
    Ok(())
}

/// Handles a backend's packet in a flow that waits for it, or another SYN+ACK of it later. `hop` is
/// the next hop to the client.
///
/// # Errors
/// The reason for which the packet is dropped.
#[cold]
pub fn answered(
    packet: &mut Packet,
    hop: &NextHop,
    resources: &mut Resources,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let found = splice::find(&packet.flow, context).ok_or(Drop::ReturnNoFlow)?;
    let Found { place, pin, splice } = &found;
    let backend = context.table.pinned(pin.flow_state.backend()).ok_or(Drop::ReturnNoFlow)?;
    if backend.id.index != packet.backend {
        // The flow had this backend before.
        return Err(Drop::ReturnNoFlow);
    }
    let target = Target::of(backend, &pin.flow_state);
    let (sequence, acknowledgment) = tcp::numbers(packet.segment()).ok_or(Drop::TruncatedTcp)?;
    let flags = packet.layout.flags;
    let next = splice.isn.wrapping_add(1);
    let flow = packet.flow.key();
    let answers = flags.any(TcpFlags::SYN) && flags.any(TcpFlags::ACK) && acknowledgment == next;
    let known = splice.answer.is_none_or(|answer| answer.isn == sequence);
    if !answers || !known {
        // The backend has another connection of these ports: an older one, which this ends (RFC 9293
        // 3.5.1), so that the SYN may be repeated; or one for another SYN of the client, as it has lost
        // the connection. Then the client's next SYN begins a new one.
        let kind = Kind::Reset;
        let reset = Content { sequence: acknowledgment, acknowledgment: None, kind };
        if flags.any(TcpFlags::ACK) {
            resources.backlog.push(Segment::to_backend(&flow, &target, reset, context));
        }
        if pin.flow_state.state().has(State::ESTABLISHED) {
            let conntrack = &mut resources.conntrack;
            conntrack.shake_hands(false, &packet.flow, (place, pin), backend, context);
        }
        return Err(Drop::SynProxyWaits);
    }
    let offers = SynOptions::of(packet.segment());
    let theirs = offers.timestamps.map(|timestamps| timestamps.value);
    let answer = Answer {
        isn: sequence,
        scale: offers.scale.filter(|_| splice.offer.scale.is_some()),
        clock: theirs.map_or(0, |theirs| clock(context.now).wrapping_sub(theirs)),
    };
    let answer = context.shared.splices.answer(place, splice, &answer);
    let answer = answer.filter(|answer| answer.isn == sequence).ok_or(Drop::SynProxyWaits)?;
    resources.conntrack.shake_hands(true, &packet.flow, (place, pin), backend, context);
    let window = if answer.scale.is_some() { splice.offer.window } else { unscaled(&splice.offer) };
    let timestamps =
        splice.offer.timestamp.zip(theirs).map(|(value, echo)| Timestamps { value, echo });
    // Once it is acknowledged, this is a late copy of the answer.
    let begins = !proxy_shift(&target, context).is_some_and(|shift| shift.acknowledged);
    let header = (backend.proxy && begins)
        .then(|| Header::new((flow.client, flow.client_port), (flow.vip, flow.vip_port)));
    let content = Content {
        sequence: next,
        acknowledgment: Some(sequence.wrapping_add(1)),
        kind: Kind::Ack { window, timestamps, header },
    };
    resources.backlog.push(Segment::to_backend(&flow, &target, content, context));
    rewrite_to_client(packet, hop, context)
}

/// Repeats the SYNs that are due.
#[cold]
pub fn repeat(resources: &mut Resources, context: &Context<'_>) {
    let Resources { handshakes, backlog, .. } = resources;
    handshakes.run(context.now, |flow| match waiting_syn(flow, context) {
        Some(segment) => {
            backlog.push(Some(segment));
            true
        }
        None => false,
    });
}

/// Returns the SYN for the backend of a flow that still waits for it.
fn waiting_syn(flow: &HashedKey, context: &Context<'_>) -> Option<Segment> {
    let Found { pin, splice, .. } = splice::find(flow, context)?;
    let state = pin.flow_state.state();
    let ended = [State::ESTABLISHED, State::RST, State::TERMINATED];
    if ended.iter().any(|&bits| state.has(bits)) {
        return None;
    }
    let backend = context.table.pinned(pin.flow_state.backend()).filter(|backend| backend.up)?;
    let key = flow.key();
    let grows = key.client.is_v4() && !backend.address.is_v4();
    let mss = splice.offer.mss.saturating_sub(if grows { GROWTH } else { 0 });
    let most = context.table.vip(backend.vip).and_then(|vip| vip.policy.mss);
    let content = syn(&splice, most.map_or(mss, |most| mss.min(most)));
    Segment::to_backend(&key, &Target::of(backend, &pin.flow_state), content, context)
}
