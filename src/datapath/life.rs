//! Part of the stage conntrack: where a flow is in its life, and what a packet changes in that.
//!
//! ```text
//! TCP:   SYN --> embryonic --client's ACK--> established --FINs or RST--> closing
//!                                                 ^------- client's packet after a RST
//!        any of these --policy--> cut: no packet passes, both ends are told (`reset`)
//! ```
//!
//! Reads: the packet's flags, the flow's state and times, its backend. Changes nothing.

use super::batch::{Packet, TcpFlags};
use super::bindings::begins_anew;
use super::clients::is_due;
use super::context::Context;
use super::quic::named;
use crate::flow::Protocol;
use crate::flow::entry::{Pin, State, Track};
use crate::flow::tuple::{HashedKey, Tuple};
use crate::forwarding::table::{Backend, Quirks};
use crate::forwarding::{FlowsLeft, NextHop, RESET_TIME};
use crate::units::Ticks;

/// An alias is a note: when it was not wanted for this long, looking again is cheaper than memory.
const ALIAS_TIMEOUT: Ticks = Ticks(1000);

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
        Protocol::Udp | Protocol::Any if track.state() == State::default() => backend.timeouts.udp,
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
        Protocol::Udp | Protocol::Any => backend.timeouts.udp,
        Protocol::Tcp if state == State::ESTABLISHED => backend.timeouts.established,
        Protocol::Tcp if state.has(State::CUT) => RESET_TIME,
        Protocol::Tcp if state.is_closing(backend.forward) => backend.timeouts.closing,
        Protocol::Tcp if state.has(State::ESTABLISHED) => backend.timeouts.established,
        Protocol::Tcp => backend.timeouts.embryonic,
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
    let old = || context.table.old_listener(tuple.listen_key());
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

/// What a packet changes in the state of its flow, whatever that was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) set: State,
    pub(super) clear: State,
}

impl Change {
    /// The flow is cut.
    pub(super) const CUT: Self = Self { set: State::CUT, clear: State(0) };
    /// As by a RST.
    pub(super) const RESET: Self = Self { set: State::RST, clear: State(0) };

    #[inline]
    pub(super) const fn apply(self, state: State) -> State {
        state.with(self.set).without(self.clear)
    }
}

/// What a packet from the client changes.
#[inline]
pub(super) fn request_change(packet: &Packet) -> Change {
    let flags = packet.shape.flags;
    if flags.any(TcpFlags::RST) {
        return Change::RESET;
    }
    if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        return Change::default();
    }
    let fin = if flags.any(TcpFlags::FIN) { State::FIN_CLIENT } else { State(0) };
    // A client that goes on after a RST never sent it: it was forged, or the backend's stray.
    Change { set: State::ESTABLISHED.with(fin), clear: State::RST }
}

/// What a packet from the backend changes.
///
/// An answer other than a RST proves that the backend has the connection: it makes a flow whose
/// pin was lost an established one.
#[inline]
pub(super) fn reply_change(packet: &Packet) -> Change {
    let flags = packet.shape.flags;
    let set = if flags.any(TcpFlags::RST) {
        State::RST
    } else if !flags.any(TcpFlags::ACK) || flags.any(TcpFlags::SYN) {
        State(0)
    } else if flags.any(TcpFlags::FIN) {
        State::ESTABLISHED.with(State::FIN_BACKEND)
    } else {
        State::ESTABLISHED
    };
    Change { set, ..Change::default() }
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
        let nic = context.nic;
        let cut = is_cut(|| packet.flow.tuple, track, backend, context);
        Self {
            change: if cut { Change::CUT } else { request_change(packet) },
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
        Self::of_change(if cut { Change::CUT } else { reply_change(packet) })
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
        let track = pin.track.with_state(self.change.apply(pin.track.state())).with_last_seen(now);
        Pin { track: self.hop.map_or(track, |hop| track.with_hop(&hop)), ..*pin }
    }
}

/// The note of another worker's pin.
pub(super) const fn alias_of(pin: &Pin) -> Pin {
    Pin { track: pin.track.with_state(pin.track.state().with(State::ALIAS)), ..*pin }
}
