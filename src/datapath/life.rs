//! Part of the stage conntrack: where a flow is in its life, and what a packet changes in that.
//!
//! ```text
//! TCP:   SYN --> embryonic --client's ACK--> established --FINs or RST--> closing
//!                                                 ^------- client's packet after a RST
//!                                                 ^------- dsr, tunnels: client's data after its FIN,
//!                                                          or its packet in the second half of closing
//!        any of these --policy--> cut: no packet passes, both ends are told (`reset`)
//!
//! other: packet --> first --client's packet 20 ms later, backend's 2 s later--> flow that goes on
//! ```
//!
//! Two states age: their time-out runs from the packet that began them, and packets that do not end
//! them leave it alone. So one time stamp tells how long ago that packet was:
//!
//! - closing by a FIN that may be no end. Where replies are not seen, the client's FIN is all that there is
//!   of one, and it may be forged, or half of an end: the client goes on receiving, for hours perhaps, of
//!   which only its ACKs are seen. An ordinary end is over within some round trips; repeated FINs start
//!   it again.
//! - first, of a question that is answered, which is all that most flows of DNS are.
//!
//! Reads: the packet's flags, the flow's state and times, its backend. Changes nothing.

use super::batch::{Packet, Part, TcpFlags};
use super::bindings::begins_anew;
use super::clients::is_due;
use super::context::Context;
use super::quic::named;
use crate::flow::entry::{Pin, State, Track};
use crate::forwarding::table::{Backend, Quirks};
use crate::forwarding::{FlowsLeft, RESET_TIME};
use crate::net::{HashedKey, NextHop, Protocol, Tuple};
use crate::units::Ticks;

/// An alias is a note: when it was not wanted for this long, looking again is cheaper than memory.
const ALIAS_TIMEOUT: Ticks = Ticks(1000);

/// Datagrams of a client that come no later than this after its first one belong to that: resolvers send
/// the questions for A and AAAA together, from one port (glibc does: resolv.conf(5), single-request-reopen).
const TOGETHER: Ticks = Ticks(1);

/// A backend that still sends so long after the client's first datagram does more than answer it. As in
/// nf_conntrack (`nf_conntrack_udp_packet` in nf_conntrack_proto_udp.c), for DNS there too. Half of the time that is
/// left to such a flow, at most.
const ANSWERED_WITHIN: Ticks = Ticks(200);

/// Why a client's packet has no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Its flow begins: a SYN, or a UDP packet.
    Open,
    /// A TCP packet in the middle of a flow whose pin was lost.
    Midflow,
}

/// The backend of a packet that changes nothing but the time of its flow: one of an established TCP
/// connection, or UDP. Nearly all are.
#[inline(always)]
pub(super) fn steady<'t>(
    packet: &Packet,
    track: &Track,
    context: &Context<'t>,
) -> Option<&'t Backend> {
    let backend = context.table.pinned(track.backend())?;
    if !backend.quirks.none() && (!backend.quirks.only_remembers() || is_due(track, context)) {
        return None;
    }
    let timeout = match packet.flow.protocol() {
        Protocol::Tcp if track.state() == State::ESTABLISHED && packet.shape.flags.goes_on() => {
            backend.timeouts.established
        }
        Protocol::Udp | Protocol::Any if track.state() == State::default() => {
            backend.timeouts.established
        }
        _ => return None,
    };
    (context.now.since(track.last_seen()).0 <= timeout.0).then_some(backend)
}

/// The backend of a pin, unless it is stale or was idle for too long.
#[inline]
pub(super) fn living<'t>(
    protocol: Protocol,
    track: &Track,
    context: &Context<'t>,
) -> Option<&'t Backend> {
    let backend = context.table.pinned(track.backend())?;
    is_living(protocol, track, backend, context.now).then_some(backend)
}

/// Whether a pin on `backend` has not been idle for too long.
#[inline]
pub(super) fn is_living(protocol: Protocol, track: &Track, backend: &Backend, now: Ticks) -> bool {
    now.since(track.last_seen()).0 <= timeout(protocol, track.state(), backend).0
}

/// How long the flow may be idle.
#[inline]
pub(super) fn timeout(protocol: Protocol, state: State, backend: &Backend) -> Ticks {
    match protocol {
        _ if state.has(State::ALIAS) => ALIAS_TIMEOUT,
        Protocol::Udp | Protocol::Any if state.has(State::FIRST) => backend.timeouts.begun,
        Protocol::Udp | Protocol::Any => backend.timeouts.established,
        Protocol::Tcp if state == State::ESTABLISHED => backend.timeouts.established,
        Protocol::Tcp if state.has(State::CUT) => RESET_TIME,
        Protocol::Tcp if state.is_closing(backend.forward) => backend.timeouts.closing,
        Protocol::Tcp if state.has(State::ESTABLISHED) => backend.timeouts.established,
        Protocol::Tcp => backend.timeouts.begun,
    }
}

/// Whether a packet with the key of a pinned flow leaves the pin: why it then has none.
///
/// A SYN does if the old flow was closing (a port used again, RFC 9293 3.6.1), or its backend does
/// not answer, or it is cut (the client tries again, and shall succeed). A SYN for an established flow
/// does not: anybody can forge one, and the backend answers it (RFC 5961 4). A UDP packet does whose
/// connection id names another backend. Any other packet does if that is the policy for what its
/// backend has left.
#[inline]
pub(super) fn leaves(
    packet: &Packet,
    track: &Track,
    backend: &Backend,
    context: &Context<'_>,
) -> Option<Miss> {
    let (protocol, state) = (packet.flow.protocol(), track.state());
    let opens = protocol != Protocol::Tcp || packet.shape.flags.opens();
    let miss = if opens { Miss::Open } else { Miss::Midflow };
    let elsewhere = || named(packet, context).is_some_and(|named| named.id != backend.id);
    let leaves = match protocol {
        _ if backend.left == FlowsLeft::Rehash => true,
        Protocol::Tcp => {
            let over = || !backend.up || state.is_closing(backend.forward);
            let anew = || backend.proxy && begins_anew(track, packet, context);
            opens && (over() || anew() || is_cut(|| packet.flow.tuple, track, backend, context))
        }
        Protocol::Udp => backend.quirks.has(Quirks::QUIC) && elsewhere(),
        Protocol::Any => false,
    };
    leaves.then_some(miss)
}

/// Whether the flow is cut: for good, or by what is to become of its backend's flows, or of those for its
/// VIP's address and port.
#[inline]
pub(super) fn is_cut(
    tuple: impl FnOnce() -> Tuple,
    track: &Track,
    backend: &Backend,
    context: &Context<'_>,
) -> bool {
    if !track.state().has(State::CUT) && !backend.quirks.ends_flows() {
        return false;
    }
    is_cut_off(tuple(), track, backend, context)
}

#[cold]
fn is_cut_off(tuple: Tuple, track: &Track, backend: &Backend, context: &Context<'_>) -> bool {
    let old = || context.table.old_listener(|| tuple.listen_key());
    let cut = track.state().has(State::CUT)
        || backend.left == FlowsLeft::Reset
        || backend.quirks.has(Quirks::OLD_PORTS)
            && old().is_some_and(|(_, left)| left == FlowsLeft::Reset);
    cut && tuple.protocol() == Protocol::Tcp
}

/// The backend of a flow that is no longer living, if its ends are to be told that it idled out.
#[cold]
pub(super) fn idled_out_loudly<'t>(
    protocol: Protocol,
    track: &Track,
    context: &Context<'t>,
) -> Option<&'t Backend> {
    let backend = context.table.pinned(track.backend())?;
    let open = is_open(protocol, track, backend) && !track.state().has(State::CUT);
    (backend.reset_idle && open).then_some(backend)
}

/// Whether this is the pin of an established TCP connection: one whose ends are waiting for each other.
#[inline]
pub(super) fn is_open(protocol: Protocol, track: &Track, backend: &Backend) -> bool {
    let state = track.state();
    protocol == Protocol::Tcp
        && state.has(State::ESTABLISHED)
        && !state.has(State::ALIAS)
        && !state.is_closing(backend.forward)
}

/// Whether this is the pin of a SYN that nothing answered: no packet of its backend was seen, nor of its
/// client since.
#[cold]
pub(super) fn is_unanswered(pin: &Pin, context: &Context<'_>) -> bool {
    let tcp = context.table.vip(pin.vip).is_some_and(|vip| vip.protocol == Protocol::Tcp);
    tcp && pin.track.state() == State::default()
}

/// What a packet changes in the state of its flow, whatever that was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) set: State,
    pub(super) clear: State,
    /// The flow's time-out goes on: the packet does not start it again.
    pub(super) ages: bool,
}

impl Change {
    /// None.
    const NONE: Self = Self { set: State(0), clear: State(0), ages: false };
    /// The flow is cut.
    pub(super) const CUT: Self = Self { set: State::CUT, clear: State::ANSWERED, ..Self::NONE };
    /// As by a RST.
    pub(super) const RESET: Self = Self { set: State::RST, ..Self::NONE };

    #[inline]
    pub(super) const fn apply(self, state: State) -> State {
        state.with(self.set).without(self.clear)
    }
}

/// The state of a flow that begins with this packet.
#[inline]
pub(super) fn first_state(packet: &Packet) -> State {
    match packet.flow.protocol() {
        Protocol::Udp | Protocol::Any => State::FIRST,
        Protocol::Tcp if packet.shape.flags.opens() => State::default(),
        // A flow that has lost its pin proves itself with its next packet. Its SYN was answered long ago.
        Protocol::Tcp => {
            let set = segment_change(packet.shape.flags).set;
            set.without(State::ESTABLISHED).with(State::ANSWERED)
        }
    }
}

/// What a packet from the client changes in a flow that was in a state since a time.
#[inline]
pub(super) fn request_change(
    packet: &Packet,
    track: &Track,
    backend: &Backend,
    now: Ticks,
) -> Change {
    if packet.flow.protocol() != Protocol::Tcp {
        // Of a datagram that comes in fragments, only the first one counts.
        let whole = packet.shape.part != Part::Later;
        return datagram_change(track, whole && now.since(track.last_seen()).0 > TOGETHER.0);
    }
    let change = segment_change(packet.shape.flags);
    let doubted = packet.shape.flags.goes_on()
        && track.state().has(State::FIN_CLIENT)
        && !backend.forward.translates();
    if !doubted {
        return change;
    }
    let late = now.since(track.last_seen()).0 > backend.timeouts.closing.0 / 2;
    if late || has_data(packet) {
        return Change { clear: change.clear.with(State::FIN_CLIENT), ..change };
    }
    Change { ages: true, ..change }
}

/// What a client's segment changes, by its flags alone.
#[inline]
fn segment_change(flags: TcpFlags) -> Change {
    if flags.any(TcpFlags::RST) {
        return Change::RESET;
    }
    if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        return Change::NONE;
    }
    let fin = if flags.any(TcpFlags::FIN) { State::FIN_CLIENT } else { State(0) };
    // A client that goes on after a RST never sent it: it was forged, or the backend's stray.
    Change {
        set: State::ESTABLISHED.with(fin),
        clear: State::RST.with(State::ANSWERED),
        ages: false,
    }
}

/// Whether a TCP segment carries data, by the lengths that its headers say: short frames are padded.
fn has_data(packet: &Packet) -> bool {
    let (ip, tcp) = (packet.shape.ip(), usize::from(packet.shape.transport));
    let data = packet.data();
    let at = if packet.flow.tuple.is_v4() { ip + 2 } else { ip + 4 };
    let length = data.get(at..).and_then(|rest| rest.first_chunk::<2>());
    let (Some(&length), Some(offset)) = (length, data.get(tcp + 12)) else { return false };
    // IPv6 counts what is behind its header (RFC 8200 3).
    let fixed = if packet.flow.tuple.is_v4() { 0 } else { 40 };
    let end = ip + fixed + usize::from(u16::from_be_bytes(length));
    end > tcp + usize::from(offset >> 4) * 4
}

/// What a datagram changes: whether it shows that its flow goes on.
#[inline]
fn datagram_change(track: &Track, goes_on: bool) -> Change {
    if track.state().has(State::FIRST) && !goes_on {
        return Change { ages: true, ..Change::NONE };
    }
    Change { clear: State::FIRST, ..Change::NONE }
}

/// What a packet from the backend changes in a flow that was in a state since a time.
///
/// An answer other than a RST proves that the backend has the connection: it makes a flow whose
/// pin was lost an established one.
#[inline]
pub(super) fn reply_change(
    packet: &Packet,
    track: &Track,
    backend: &Backend,
    now: Ticks,
) -> Change {
    let flags = packet.shape.flags;
    let set = if flags.any(TcpFlags::RST) {
        State::RST
    } else if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        if packet.flow.protocol() != Protocol::Tcp {
            let within = ANSWERED_WITHIN.0.min(backend.timeouts.begun.0 / 2);
            return datagram_change(track, now.since(track.last_seen()).0 > within);
        }
        if flags.any(TcpFlags::ACK) { State::ANSWERED } else { State(0) }
    } else if flags.any(TcpFlags::FIN) {
        State::ESTABLISHED.with(State::FIN_BACKEND)
    } else {
        State::ESTABLISHED
    };
    Change { set, ..Change::NONE }
}

/// What a packet tells of its flow, to whoever has the pin.
#[derive(Clone, Copy)]
pub(super) struct News {
    pub(super) change: Change,
    /// It may begin another flow: a SYN.
    pub(super) opening: bool,
    /// Where the client's packets come from, if the packet is one.
    pub(super) hop: Option<NextHop>,
}

impl News {
    /// Of a packet from the client, whose flow this is.
    #[inline]
    pub(super) fn of_request(
        packet: &Packet,
        track: &Track,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Self {
        let Context { nic, now, .. } = *context;
        let cut = is_cut(|| packet.flow.tuple, track, backend, context);
        Self {
            change: if cut { Change::CUT } else { request_change(packet, track, backend, now) },
            opening: packet.shape.flags.opens(),
            // Of a bound flow the binding has it. One that cannot be stored is not told.
            hop: (track.binding().is_none() && packet.way_back(nic).is_some())
                .then(|| packet.came_from(nic)),
        }
    }

    /// Of a packet from the backend, whose flow this is.
    #[inline]
    pub(super) fn of_reply(
        packet: &Packet,
        flow: &HashedKey,
        track: &Track,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Self {
        let cut = is_cut(|| flow.tuple, track, backend, context);
        Self::of_change(if cut {
            Change::CUT
        } else {
            reply_change(packet, track, backend, context.now)
        })
    }

    /// Of a backend's packet that changes this.
    #[inline]
    pub(super) const fn of_change(change: Change) -> Self {
        Self { change, opening: false, hop: None }
    }

    /// Whether an alias says all that.
    #[inline]
    pub(super) fn is_known(&self, alias: &Track) -> bool {
        !self.opening
            && self.change.apply(alias.state()) == alias.state()
            && self.hop.as_ref().is_none_or(|hop| alias.comes_from(hop))
    }

    /// The pin as it is after the packet.
    pub(super) fn apply(&self, pin: &Pin, now: Ticks) -> Pin {
        let seen = if self.change.ages { pin.track.last_seen() } else { now };
        let track = pin.track.with_state(self.change.apply(pin.track.state())).with_last_seen(seen);
        Pin { track: self.hop.map_or(track, |hop| track.with_hop(&hop)), ..*pin }
    }
}

/// The note of another worker's pin, made at `now`.
pub(super) const fn alias_of(pin: &Pin, now: Ticks) -> Pin {
    let state = pin.track.state().with(State::ALIAS);
    Pin { track: pin.track.with_state(state).with_last_seen(now), ..*pin }
}
