//! State machine of a flow: next state and verdict for an event. A pure function: no packet, no
//! table, no clock.
//!
//! ```text
//! TCP:   SYN --> embryonic --handshake--> established --FINs or RST--> closing
//!        a packet in the middle --> embryonic   ^------- client's packet after a RST
//!                                                 ^------- dsr, tunnels: client's data after its
//!                                                          FIN, or its packet in the second half
//!                                                          of the closing time-out
//!        any of these --policy--> terminated: no packet passes, both ends are reset
//!
//! other: packet --> first --client's packet 20 ms later, backend's 2 s later--> continuing flow
//! ```
//!
//! Anyone can forge a SYN and an ACK. A flow is proven by the client's ACK to a SYN-ACK that was
//! seen, or by another packet of the backend. In modes where replies are not seen, sequence numbers
//! must do ([`Proof`]):
//!
//! ```text
//! SYN --> embryonic --ACK that fits it--> established, unproven --goes on--> established
//! packet in the middle --> embryonic --three more, one after the other--> established
//! ```
//!
//! An unproven flow has all the time-outs of its state. A full table may give it up.
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
        /// The sequence number of a client's packet, where replies are not seen.
        proof: Proof,
    },
    /// TCP: FIN with ACK.
    Fin {
        /// As in [`Class::Ack`].
        proof: Proof,
    },
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

/// Sequence number of a client's segment as a proof that the flow exists, for a flow that has not
/// proven itself. Anyone can forge a series of numbers, but not at the price of one packet per flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It does not follow the earlier numbers.
    Misfit,
    /// It follows them, but comes too early for a step.
    Early,
    /// One step.
    Step,
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
    /// Returns the step of a packet that may belong to a handshake which is not complete: then the
    /// time-out runs from the last SYN for the backend.
    #[inline]
    pub const fn of_handshake(self, belongs: bool) -> Self {
        let goes_on = matches!(self.verdict, Verdict::Forward);
        Self { touch: self.touch && !(belongs && goes_on), ..self }
    }

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
        Class::Syn => (begun_again(state, policy), true),
        Class::SynAck | Class::NoAck => (state, true),
        Class::Fin { proof } => (acknowledged(state, proof, policy).with(State::FIN_CLIENT), true),
        Class::Ack { resumes, proof } => {
            let next = acknowledged(state, proof, policy);
            match next.has(State::FIN_CLIENT) && !policy.forward.translates() {
                true if resumes => (next.without(State::FIN_CLIENT), true),
                true => (next, false),
                false => (next, prolongs(state, proof, policy)),
            }
        }
        Class::Datagram { continues } => after_request_datagram(state, continues),
    };
    Step { state, verdict: Verdict::Forward, touch }
}

/// Returns the state after a SYN, which begins a flow that was picked up in the middle.
#[inline]
const fn begun_again(state: State, policy: Policy) -> State {
    let picked_up = state.has(State::UNPROVEN) || !policy.forward.translates();
    if picked_up && !state.has(State::ESTABLISHED) {
        state.without(State::PICKED_UP)
    } else {
        state
    }
}

/// Returns the state after an ACK of the client. If the client goes on after a RST, it never sent
/// that: the RST was forged, or a stray one of the backend.
#[inline]
const fn acknowledged(state: State, proof: Proof, policy: Policy) -> State {
    let state = state.without(State::RST);
    let (established, step) = (state.has(State::ESTABLISHED), matches!(proof, Proof::Step));
    let handshake = State::ESTABLISHED.with(State::UNPROVEN);
    match (state.has(State::ANSWERED), state.has(State::UNPROVEN)) {
        _ if established && (policy.forward.translates() || !step) => {
            state.without(State::ANSWERED)
        }
        _ if established => state.without(State::PICKED_UP),
        // The backend resets the client of an ACK that does not fit its SYN-ACK.
        (true, false) if policy.forward.translates() => {
            state.without(State::ANSWERED).with(State::ESTABLISHED)
        }
        (false, false) if policy.forward.translates() => state.with(handshake),
        // A flow that was picked up in the middle waits for its backend's packet.
        _ if policy.forward.translates() || !step => state,
        (false, false) => state.with(handshake),
        // The first, second and third step of a flow that was picked up in the middle.
        (true, true) => state.without(State::ANSWERED),
        (false, true) => state.without(State::UNPROVEN).with(State::ANSWERED),
        (true, false) => state.without(State::ANSWERED).with(State::ESTABLISHED),
    }
}

/// Whether an ACK of the client restarts the time-out. The steps of a proof have a distance: those
/// that come too early do not count.
#[inline]
const fn prolongs(state: State, proof: Proof, policy: Policy) -> bool {
    match proof {
        _ if policy.forward.translates() || !state.is_doubted() => true,
        Proof::Misfit => state.has(State::ESTABLISHED),
        Proof::Early => false,
        Proof::Step => true,
    }
}

/// Returns the step for a packet of the backend.
///
/// A reply other than a RST proves that the backend has the connection: it makes a flow that had
/// lost its pin an established one.
#[inline]
const fn after_reply(state: State, class: Class) -> Step {
    let proven = state.with(State::ESTABLISHED).without(State::UNPROVEN);
    let (state, touch) = match class {
        Class::Rst => (state.with(State::RST), true),
        Class::Syn | Class::NoAck => (state, true),
        Class::SynAck => (state.with(State::ANSWERED).without(State::UNPROVEN), true),
        Class::Ack { .. } => (proven, true),
        Class::Fin { .. } => (proven.with(State::FIN_BACKEND), true),
        Class::Datagram { continues } => after_reply_datagram(state, continues),
    };
    Step { state, verdict: Verdict::Forward, touch }
}

/// Returns the next state after a client's datagram, and whether the time-out restarts.
#[inline]
const fn after_request_datagram(state: State, continues: bool) -> (State, bool) {
    match (state.has(State::FIRST), continues) {
        (true, false) => (state, false),
        (true, true) => (state.without(State::FIRST.with(State::ANSWERED)), true),
        (false, _) => (state.without(State::UNPROVEN), true),
    }
}

/// Returns the next state after a backend's datagram, and whether the time-out restarts. A backend
/// that goes on does not prove that its client exists.
#[inline]
const fn after_reply_datagram(state: State, continues: bool) -> (State, bool) {
    match (state.has(State::FIRST), continues) {
        (true, false) => (state.with(State::ANSWERED), false),
        (true, true) => {
            let continuing = state.without(State::FIRST.with(State::ANSWERED));
            (continuing.with(State::UNPROVEN), true)
        }
        (false, _) => (state, true),
    }
}

/// Returns the state of a flow that begins with a packet of the client.
#[inline]
pub(super) const fn first(class: Class) -> State {
    match class {
        Class::Datagram { .. } => State::FIRST,
        Class::Syn => State(0),
        Class::Rst => State::RST.with(State::PICKED_UP),
        Class::Fin { .. } => State::FIN_CLIENT.with(State::PICKED_UP),
        Class::Ack { .. } | Class::SynAck | Class::NoAck => State::PICKED_UP,
    }
}

#[cfg(test)]
mod tests;
