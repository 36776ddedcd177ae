//! State machine of a flow: next state and verdict for an event. A pure function: no packet, no
//! table, no clock.
//!
//! ```text
//! TCP:   SYN --> embryonic --client's ACK--> established --FINs or RST--> closing
//!                                                 ^------- client's packet after a RST
//!                                                 ^------- dsr, tunnels: client's data after its
//!                                                          FIN, or its packet in the second half
//!                                                          of the closing time-out
//!        any of these --policy--> terminated: no packet passes, both ends are reset
//!
//! other: packet --> first --client's packet 20 ms later, backend's 2 s later--> continuing flow
//! ```
//!
//! In two states the time-out runs from the packet that began the state, and packets that do not
//! end the state leave it alone ([`Step::touch`]). One time stamp then gives the time since that
//! packet:
//!
//! - Closing after a FIN of the client, in modes where replies are not seen. That FIN may be
//!   forged, or close only one direction: the client may go on receiving for hours, and only its
//!   ACKs are seen. An ordinary close takes a few round trips; a retransmitted FIN restarts the
//!   time-out.
//! - First: the state of a request that is answered, which is all that most DNS flows are.

use crate::flow::entry::State;
use crate::forwarding::Miss;
use crate::net::{Forward, Protocol};

/// Class of a packet, as far as the state of its flow depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// TCP: SYN without ACK.
    Syn,
    /// TCP: SYN with ACK.
    SynAck,
    /// TCP: ACK without SYN, FIN and RST.
    Ack {
        /// The client's FIN came before, and this packet carries data, or comes in the second half
        /// of the closing time-out.
        resumes: bool,
    },
    /// TCP: FIN with ACK.
    Fin,
    /// TCP: RST.
    Rst,
    /// TCP: none of these flags, or no flags at all (later fragments).
    NoAck,
    /// Any other protocol.
    Datagram {
        /// The packet is too late to belong to the first datagram of its flow, or to its reply.
        continues: bool,
    },
}

/// Event of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A packet of the client.
    Request(Class),
    /// A packet of the backend.
    Reply(Class),
    /// A visit of the sweep.
    Sweep(Protocol),
}

/// Policy for the flows of a backend, as far as the next state depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    /// Forwarding mode, which decides whether the backend's packets, and so both FINs, are seen.
    pub forward: Forward,
    /// The backend's health check succeeds.
    pub up: bool,
    /// The flows of the backend move to another backend.
    pub rehash: bool,
    /// The TCP flows of the backend, or of the VIP's address and port, are terminated.
    pub terminate: bool,
    /// Both ends of an established connection are reset when it expires.
    pub reset_idle: bool,
    /// The SYN opens another connection; its sequence numbers must not be confused with this one's.
    pub new_connection: bool,
    /// The connection id of the datagram names another backend.
    pub names_other: bool,
}

/// Verdict on the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Forward to the other end; the sweep keeps the pin.
    Forward,
    /// Reset both ends; the sweep probes them.
    Reset,
    /// Give up the pin, and choose a backend for the packet.
    ChooseAgain,
    /// The pin has expired.
    Ended,
}

/// Result of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// New state of the flow.
    pub state: State,
    /// Verdict on the packet.
    pub verdict: Verdict,
    /// The idle time-out restarts.
    pub touch: bool,
}

impl Event {
    /// Returns the kind of miss of a client's packet that gives up its pin.
    #[inline]
    pub const fn miss(self) -> Miss {
        match self {
            Self::Request(Class::Syn | Class::Datagram { .. }) => Miss::Open,
            _ => Miss::NonSyn,
        }
    }

    #[inline]
    const fn is_tcp(self) -> bool {
        match self {
            Self::Request(class) | Self::Reply(class) => !matches!(class, Class::Datagram { .. }),
            Self::Sweep(protocol) => matches!(protocol, Protocol::Tcp),
        }
    }
}

impl Step {
    /// Leaves the flow unchanged.
    #[inline]
    const fn unchanged(state: State, verdict: Verdict) -> Self {
        Self { state, verdict, touch: false }
    }
}

/// Returns the next state and the verdict for `event`, in a flow in `state`, which may have
/// `expired`.
#[inline]
pub(super) const fn step(state: State, expired: bool, event: Event, policy: Policy) -> Step {
    let request = matches!(event, Event::Request(_));
    if expired {
        let resets =
            policy.reset_idle && !state.has(State::TERMINATED) && is_open(state, event, policy);
        let opens = matches!(event, Event::Request(Class::Syn) | Event::Reply(_));
        return if resets && !opens {
            terminate(state, event, policy)
        } else {
            Step::unchanged(state, Verdict::Ended)
        };
    }
    if request && must_rehash(state, event, policy) {
        return Step::unchanged(state, Verdict::ChooseAgain);
    }
    if is_terminated(state, event, policy) {
        return terminate(state, event, policy);
    }
    match event {
        Event::Request(class) => after_request(state, class, policy),
        Event::Reply(class) => after_reply(state, class),
        Event::Sweep(_) => Step::unchanged(state, Verdict::Forward),
    }
}

/// Whether a client's packet gives up the pin.
///
/// A SYN does if the old flow was closing (a reused port, RFC 9293 3.6.1), or its backend is down,
/// or it is terminated (the client tries again, and must succeed). A SYN for an established flow
/// does not: anyone can forge one, and the backend replies to it (RFC 5961 4). A datagram does if
/// its connection id names another backend. Any other packet does if that is the policy for its
/// backend.
#[inline]
const fn must_rehash(state: State, event: Event, policy: Policy) -> bool {
    match event {
        _ if policy.rehash => true,
        Event::Request(Class::Syn) => {
            let over = !policy.up || policy.new_connection || is_closing(state, policy);
            over || is_terminated(state, event, policy)
        }
        Event::Request(Class::Datagram { .. }) => policy.names_other,
        _ => false,
    }
}

/// Whether the flow is terminated: already, or by policy.
#[inline]
const fn is_terminated(state: State, event: Event, policy: Policy) -> bool {
    event.is_tcp() && (state.has(State::TERMINATED) || policy.terminate)
}

/// Whether this is the pin of an established TCP connection, with both ends waiting for each other.
#[inline]
const fn is_open(state: State, event: Event, policy: Policy) -> bool {
    event.is_tcp()
        && state.has(State::ESTABLISHED)
        && !state.has(State::REMOTE)
        && !is_closing(state, policy)
}

#[inline]
const fn is_closing(state: State, policy: Policy) -> bool {
    state.is_closing(policy.forward)
}

/// Terminates a flow for good. A RST is forwarded: it resets the other end. The sweep acts only on
/// connections with waiting ends.
#[inline]
const fn terminate(state: State, event: Event, policy: Policy) -> Step {
    let verdict = match event {
        Event::Sweep(_) if !is_open(state, event, policy) => {
            return Step::unchanged(state, Verdict::Forward);
        }
        Event::Request(Class::Rst) | Event::Reply(Class::Rst) => Verdict::Forward,
        _ => Verdict::Reset,
    };
    // From now on the pin lives for a fixed time, whatever packets come.
    Step { state: state.cut(), verdict, touch: !state.has(State::TERMINATED) }
}

/// Returns the step for a packet of the client.
#[inline]
const fn after_request(state: State, class: Class, policy: Policy) -> Step {
    let (state, touch) = match class {
        Class::Rst => (state.with(State::RST), true),
        Class::Syn | Class::SynAck | Class::NoAck => (state, true),
        Class::Fin => (acknowledged(state).with(State::FIN_CLIENT), true),
        Class::Ack { resumes } => {
            let state = acknowledged(state);
            match state.has(State::FIN_CLIENT) && !policy.forward.translates() {
                true if resumes => (state.without(State::FIN_CLIENT), true),
                doubted => (state, !doubted),
            }
        }
        Class::Datagram { continues } => after_datagram(state, continues),
    };
    Step { state, verdict: Verdict::Forward, touch }
}

/// Returns the state after the client completed the handshake. If the client goes on after a RST,
/// it never sent that: the RST was forged, or a stray one of the backend.
#[inline]
const fn acknowledged(state: State) -> State {
    state.with(State::ESTABLISHED).without(State::RST.with(State::ANSWERED))
}

/// Returns the step for a packet of the backend.
///
/// A reply other than a RST proves that the backend has the connection: it makes a flow that had
/// lost its pin an established one.
#[inline]
const fn after_reply(state: State, class: Class) -> Step {
    let (state, touch) = match class {
        Class::Rst => (state.with(State::RST), true),
        Class::Syn | Class::NoAck => (state, true),
        Class::SynAck => (state.with(State::ANSWERED), true),
        Class::Ack { .. } => (state.with(State::ESTABLISHED), true),
        Class::Fin => (state.with(State::ESTABLISHED.with(State::FIN_BACKEND)), true),
        Class::Datagram { continues } => match after_datagram(state, continues) {
            (state, touch) if state.has(State::FIRST) => (state.with(State::ANSWERED), touch),
            continuing => continuing,
        },
    };
    Step { state, verdict: Verdict::Forward, touch }
}

/// Returns the next state after a datagram, and whether the time-out restarts.
#[inline]
const fn after_datagram(state: State, continues: bool) -> (State, bool) {
    match (state.has(State::FIRST), continues) {
        (true, false) => (state, false),
        (true, true) => (state.without(State::FIRST.with(State::ANSWERED)), true),
        (false, _) => (state, true),
    }
}

/// Returns the state of a flow that begins with a packet of the client.
#[inline]
pub(super) const fn first(class: Class) -> State {
    match class {
        Class::Datagram { .. } => State::FIRST,
        Class::Syn => State(0),
        // A flow that has lost its pin is established by its next packet. Its SYN was answered long
        // ago.
        Class::Rst => State::RST.with(State::ANSWERED),
        Class::Fin => State::FIN_CLIENT.with(State::ANSWERED),
        Class::Ack { .. } | Class::SynAck | Class::NoAck => State::ANSWERED,
    }
}

#[cfg(test)]
mod tests;
