//! Part of the stage conntrack: events and policies, the input of the state machine.
//!
//! Reads: the packet's flags and lengths, the flow's state and times, its backend. Changes nothing.

use super::state::{Class, Event, Policy, Proof, Step, Verdict, step};
use crate::datapath::batch::{FragmentKind, Packet, TcpFlags};
use crate::datapath::clients::is_due;
use crate::datapath::context::Context;
use crate::datapath::cookie;
use crate::datapath::quic::named;
use crate::datapath::snat::reopens;
use crate::datapath::splice;
use crate::flow::entry::{FlowState, Pin, State};
use crate::forwarding::table::{Backend, BackendFlags};
use crate::forwarding::{FlowAction, RESET_TIME};
use crate::net::{HashedKey, NextHop, Protocol, Tuple};
use crate::units::Ticks;
use crate::wire::tcp;

/// Idle time after which a remote entry is removed: a new look-up is cheaper than the memory.
const REMOTE_TIMEOUT: Ticks = Ticks(1000);

/// Time within which a client's datagrams belong to its first one: resolvers send the questions for
/// A and AAAA together, from one port (glibc does: resolv.conf(5), single-request-reopen).
const TOGETHER: Ticks = Ticks(1);

/// Time after the client's first datagram from which a backend's packet is more than a reply to it.
/// As in nf_conntrack (`nf_conntrack_udp_packet` in nf_conntrack_proto_udp.c), for DNS there too.
/// At most half of the first time-out.
const ANSWERED_WITHIN: Ticks = Ticks(200);

/// Most that a client can send before the server's first ACK: the window in a SYN is not scaled (RFC
/// 7323 2.2). A random number fits once in 65,000 times.
const FIRST_WINDOW: u32 = 1 << 16;

/// Largest distance of sequence numbers within a window, and so in a short time (RFC 7323 2.3).
const LARGEST_WINDOW: u32 = 1 << 30;

/// Distance of two steps of a proof that have the same sequence number: 0.2 s, more than a burst and
/// a round trip within a region.
const STEP: Ticks = Ticks(20);

/// Returns the backend of a packet that changes only the time stamp of its flow: one of an
/// established TCP connection, or UDP. Nearly all packets are steady.
#[inline(always)]
pub(super) fn steady<'t>(
    packet: &Packet,
    flow_state: &FlowState,
    context: &Context<'t>,
) -> Option<&'t Backend> {
    let backend = context.table.pinned(flow_state.backend())?;
    if !backend.flags.none() && (!backend.flags.only_remembers() || is_due(flow_state, context)) {
        return None;
    }
    let timeout = match packet.flow.protocol() {
        Protocol::Tcp
            if flow_state.state() == State::ESTABLISHED && packet.layout.flags.goes_on() =>
        {
            backend.timeouts.established
        }
        Protocol::Udp | Protocol::Any if flow_state.state() == State::default() => {
            backend.timeouts.established
        }
        _ => return None,
    };
    (context.now.since(flow_state.last_seen()).0 <= timeout.0).then_some(backend)
}

/// Returns the backend of a pin, unless its generation has ended or the pin has expired.
#[inline]
pub(super) fn alive<'t>(
    protocol: Protocol,
    flow_state: &FlowState,
    context: &Context<'t>,
) -> Option<&'t Backend> {
    let backend = context.table.pinned(flow_state.backend())?;
    (!is_expired(protocol, flow_state, backend, context.now)).then_some(backend)
}

/// Whether a pin on `backend` was idle for longer than its time-out.
#[inline]
pub(in crate::datapath) fn is_expired(
    protocol: Protocol,
    flow_state: &FlowState,
    backend: &Backend,
    now: Ticks,
) -> bool {
    now.since(flow_state.last_seen()).0 > timeout(protocol, flow_state.state(), backend).0
}

/// Returns the idle time-out of a flow.
#[inline]
fn timeout(protocol: Protocol, state: State, backend: &Backend) -> Ticks {
    match protocol {
        _ if state.has(State::REMOTE) => REMOTE_TIMEOUT,
        Protocol::Udp | Protocol::Any if state.has(State::FIRST) => backend.timeouts.begun,
        Protocol::Udp | Protocol::Any => backend.timeouts.established,
        Protocol::Tcp if state == State::ESTABLISHED => backend.timeouts.established,
        Protocol::Tcp if state.has(State::TERMINATED) => RESET_TIME,
        Protocol::Tcp if state.is_closing(backend.forward) => backend.timeouts.closing,
        Protocol::Tcp if state.has(State::ESTABLISHED) => backend.timeouts.established,
        Protocol::Tcp => backend.timeouts.begun,
    }
}

/// Returns the class of a packet by its flags alone.
#[inline]
pub(super) fn class(packet: &Packet) -> Class {
    let flags = packet.layout.flags;
    if packet.flow.protocol() != Protocol::Tcp {
        return Class::Datagram { continues: false };
    }
    match (flags.any(TcpFlags::SYN), flags.any(TcpFlags::ACK)) {
        _ if flags.any(TcpFlags::RST) => Class::Rst,
        (true, false) => Class::Syn,
        (true, true) => Class::SynAck,
        (false, false) => Class::NoAck,
        (false, true) if flags.any(TcpFlags::FIN) => Class::Fin { proof: Proof::Misfit },
        (false, true) => Class::Ack { resumes: false, proof: Proof::Misfit },
    }
}

/// Returns the event of a client's packet, in a flow on `backend`; `sequence` is that of its pin.
#[inline]
pub(super) fn request(
    packet: &Packet,
    flow_state: &FlowState,
    sequence: Option<u32>,
    backend: &Backend,
    now: Ticks,
) -> Event {
    let idle = now.since(flow_state.last_seen()).0;
    let proof = || match flow_state.state().is_doubted() && !backend.forward.translates() {
        true => proof(packet, flow_state.state(), sequence, Ticks(idle)),
        false => Proof::Misfit,
    };
    Event::Request(match class(packet) {
        Class::Ack { .. } => {
            let doubted =
                flow_state.state().has(State::FIN_CLIENT) && !backend.forward.translates();
            let late = || idle > backend.timeouts.closing.0 / 2;
            Class::Ack { resumes: doubted && (late() || has_data(packet)), proof: proof() }
        }
        Class::Fin { .. } => Class::Fin { proof: proof() },
        Class::Datagram { .. } => {
            // Of a fragmented datagram, only the first fragment counts.
            let whole = packet.layout.fragment != FragmentKind::Later;
            Class::Datagram { continues: whole && idle > TOGETHER.0 }
        }
        class => class,
    })
}

/// Returns the event of a backend's packet, in a flow on `backend`.
#[inline]
pub(super) fn reply(
    packet: &Packet,
    flow_state: &FlowState,
    backend: &Backend,
    now: Ticks,
) -> Event {
    Event::Reply(match class(packet) {
        Class::Datagram { .. } => {
            let within = ANSWERED_WITHIN.0.min(backend.timeouts.begun.0 / 2);
            Class::Datagram { continues: now.since(flow_state.last_seen()).0 > within }
        }
        class => class,
    })
}

/// Judges a client's segment, in a flow that has not proven itself and whose replies are not seen.
///
/// A flow without a number was pinned by an earlier version, which did not keep any.
fn proof(packet: &Packet, state: State, sequence: Option<u32>, idle: Ticks) -> Proof {
    let Some(first) = sequence else { return Proof::Step };
    let Some(number) = tcp::sequence(packet.segment()) else { return Proof::Misfit };
    let ahead = number.wrapping_sub(first);
    let late = idle.0 >= STEP.0;
    let (ahead, window, step) = match state.has(State::ESTABLISHED) {
        // The client's first byte is acknowledged, or some time has passed.
        true => (ahead, LARGEST_WINDOW, late || ahead > 1),
        // A keep-alive has the number before the next one (RFC 9293 3.8.4).
        false if is_picked_up(state) => (ahead.wrapping_add(1), LARGEST_WINDOW, late),
        // The ACK after the SYN.
        false => (ahead, FIRST_WINDOW, true),
    };
    match ahead <= window {
        false => Proof::Misfit,
        true if step => Proof::Step,
        true => Proof::Early,
    }
}

/// Whether the flow was picked up in the middle, and has not proven itself.
const fn is_picked_up(state: State) -> bool {
    !state.has(State::ESTABLISHED) && (state.has(State::ANSWERED) || state.has(State::UNPROVEN))
}

/// Returns the sequence number that a flow keeps from its first packet.
pub(super) fn first_sequence(packet: &Packet, backend: &Backend) -> Option<u32> {
    let needed = packet.flow.protocol() == Protocol::Tcp && !backend.forward.translates();
    needed.then(|| tcp::sequence(packet.segment())).flatten()
}

/// Returns the sequence number to keep after a client's packet in a flow that had `sequence`. A new
/// SYN begins a new series, and so does a misfit in an established flow, which may have been opened
/// again.
#[cold]
pub(super) fn next_sequence(
    packet: &Packet,
    state: State,
    event: Event,
    sequence: Option<u32>,
) -> Option<u32> {
    let begins = match event {
        Event::Request(Class::Syn) => true,
        Event::Request(Class::Ack { proof: Proof::Misfit, .. }) => state.has(State::ESTABLISHED),
        _ => false,
    };
    let kept = if begins { tcp::sequence(packet.segment()) } else { sequence };
    kept.filter(|_| state.is_doubted())
}

/// Whether a TCP segment carries data, by the lengths in its headers: short frames are padded.
fn has_data(packet: &Packet) -> bool {
    let (v4, network) = (packet.flow.tuple.is_v4(), packet.network());
    let at = if v4 { 2 } else { 4 };
    let length = network.get(at..).and_then(|rest| rest.first_chunk::<2>());
    let Some((length, offset)) = length.zip(tcp::data_offset(packet.segment())) else {
        return false;
    };
    // The IPv6 length counts the bytes after its header (RFC 8200 3).
    let fixed = if v4 { 0 } else { 40 };
    let end = packet.layout.ip() + fixed + usize::from(u16::from_be_bytes(*length));
    end > usize::from(packet.layout.transport) + offset
}

/// Returns the policy for a flow on `backend`, apart from the packet.
#[inline]
pub(super) fn policy(
    tuple: impl FnOnce() -> Tuple,
    backend: &Backend,
    context: &Context<'_>,
) -> Policy {
    Policy {
        forward: backend.forward,
        up: backend.up,
        rehash: backend.flow_action == FlowAction::Rehash,
        terminate: backend.flags.ends_flows() && terminates(tuple(), backend, context),
        reset_idle: backend.reset_idle,
        new_connection: false,
        names_other: false,
    }
}

/// Whether the flows of this backend, or of this VIP address and port, are terminated.
#[cold]
fn terminates(tuple: Tuple, backend: &Backend, context: &Context<'_>) -> bool {
    let old = || context.table.old_listener(|| tuple.listen_key());
    backend.flow_action == FlowAction::Reset
        || backend.flags.has(BackendFlags::OLD_PORTS)
            && old().is_some_and(|(_, left)| left == FlowAction::Reset)
}

/// Returns the policy for a client's packet.
#[inline]
fn request_policy(
    packet: &Packet,
    flow_state: &FlowState,
    backend: &Backend,
    context: &Context<'_>,
) -> Policy {
    let opens = backend.proxy && packet.layout.flags.opens();
    let by_id = backend.flags.has(BackendFlags::QUIC) && packet.flow.protocol() == Protocol::Udp;
    let named = by_id.then(|| named(packet, context)).flatten();
    Policy {
        new_connection: opens && reopens(flow_state, packet, context),
        names_other: named.is_some_and(|named| named.id != backend.id),
        ..policy(|| packet.flow.tuple, backend, context)
    }
}

/// What a client's packet means at a VIP with `syn_proxy`.
struct Guarded {
    event: Event,
    /// The packet is part of the handshake with the backend, or of another one with the client.
    waits: bool,
    /// The packet proves a connection that takes the place of this one.
    renews: bool,
}

/// Returns what a client's packet means at a VIP with `syn_proxy`: until the backend has answered,
/// only a RST changes anything. A connection that is over, or waits, or has a backend that is down,
/// makes way for one that its client has proven, and for no SYN, which anyone can forge.
#[cold]
fn guarded_request(
    event: Event,
    packet: &Packet,
    flow_state: &FlowState,
    backend: &Backend,
    context: &Context<'_>,
) -> Guarded {
    let as_it_is = Guarded { event, waits: false, renews: false };
    let Event::Request(class) = event else { return as_it_is };
    let state = flow_state.state();
    if class == Class::Rst || state.has(State::TERMINATED) {
        return as_it_is;
    }
    let waits = splice::waits(&packet.flow, state, backend, context);
    let makes_way = waits || !backend.up || state.is_closing(backend.forward);
    let handshake = Guarded { event: Event::Request(Class::NoAck), waits: true, renews: false };
    if class == Class::Syn {
        let guarded = context.table.vip(backend.vip).is_some_and(|vip| vip.policy.syn_proxy);
        return if waits || makes_way && guarded { handshake } else { as_it_is };
    }
    // Such a backend will not answer, or has refused.
    let is_lost = waits && (!backend.up || state.has(State::RST));
    if makes_way && proves_another(packet, is_lost, context) {
        return Guarded { event: Event::Request(Class::Syn), waits: false, renews: true };
    }
    if waits { handshake } else { as_it_is }
}

/// Whether the packet proves a connection that is not that of its flow; or, where the flow's backend
/// will not answer (`same`), that one.
fn proves_another(packet: &Packet, same: bool, context: &Context<'_>) -> bool {
    let Some(proof) = cookie::proof(packet, context) else { return false };
    let known = splice::find(&packet.flow, context).map(|found| found.splice);
    same || known.is_none_or(|splice| (splice.isn, splice.cookie) != (proof.isn, proof.cookie))
}

/// Returns the event of a backend's packet at a VIP with `syn_proxy`, and whether it belongs to the
/// handshake: until its end every packet, and later each SYN+ACK that is repeated.
#[cold]
fn guarded_reply(
    event: Event,
    flow: &HashedKey,
    flow_state: &FlowState,
    backend: &Backend,
    context: &Context<'_>,
) -> (Event, bool) {
    let state = flow_state.state();
    let belongs = match event {
        Event::Reply(Class::Syn | Class::SynAck) if state.has(State::ESTABLISHED) => {
            !state.has(State::TERMINATED) && splice::is_spliced(flow, backend, context)
        }
        Event::Reply(Class::Rst) => false,
        _ => splice::waits(flow, state, backend, context),
    };
    (if belongs { Event::Reply(Class::NoAck) } else { event }, belongs)
}

/// Changes of a packet in its flow, in whichever worker's table the pin is.
#[derive(Clone, Copy)]
pub(super) struct FlowUpdate {
    /// The event of the packet.
    pub event: Event,
    /// The step of the state machine.
    pub step: Step,
    /// Previous hop of a client's packet.
    pub hop: Option<NextHop>,
    /// The packet is part of the handshake with the backend (`syn_proxy`).
    pub waits: bool,
}

impl FlowUpdate {
    /// Returns the changes of a client's packet in a flow that is pinned to `backend`; `sequence` is
    /// that of its pin.
    #[inline]
    pub fn of_request(
        packet: &Packet,
        flow_state: &FlowState,
        sequence: Option<u32>,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Self {
        let Context { nic, now, .. } = *context;
        let event = request(packet, flow_state, sequence, backend, now);
        let Guarded { event, waits, renews } = match backend.flags.has(BackendFlags::SPLICED) {
            true => guarded_request(event, packet, flow_state, backend, context),
            false => Guarded { event, waits: false, renews: false },
        };
        let expired = is_expired(packet.flow.protocol(), flow_state, backend, now);
        let mut policy = request_policy(packet, flow_state, backend, context);
        policy.new_connection |= renews;
        Self {
            event,
            step: step(flow_state.state(), expired, event, policy).of_handshake(waits),
            // With a SNAT port, its entry has the hop. A hop that cannot be stored is left out.
            hop: (flow_state.snat_port().is_none() && packet.return_hop(nic).is_some())
                .then(|| packet.came_from(nic)),
            waits,
        }
    }

    /// Returns the changes of a backend's packet in its flow.
    #[inline]
    pub fn of_reply(
        event: Event,
        flow: &HashedKey,
        flow_state: &FlowState,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Self {
        let (event, waits) = match backend.flags.has(BackendFlags::SPLICED) {
            true => guarded_reply(event, flow, flow_state, backend, context),
            false => (event, false),
        };
        let expired = is_expired(flow.protocol(), flow_state, backend, context.now);
        let policy = policy(|| flow.tuple, backend, context);
        let step = step(flow_state.state(), expired, event, policy).of_handshake(waits);
        Self { event, step, hop: None, waits }
    }

    /// Returns the changes by the end of the handshake with the backend: it has answered, or (not
    /// `answers`) has lost the connection.
    pub fn of_handshake(
        answers: bool,
        flow: &HashedKey,
        flow_state: &FlowState,
        backend: &Backend,
        context: &Context<'_>,
    ) -> Self {
        let event = Event::Reply(match answers {
            true => Class::Ack { resumes: false, proof: Proof::Misfit },
            false => Class::Rst,
        });
        let policy = policy(|| flow.tuple, backend, context);
        let step = step(flow_state.state(), false, event, policy);
        Self { event, step, hop: None, waits: false }
    }

    /// Whether the packet keeps its pin, so that the changes are stored.
    #[inline]
    pub const fn is_kept(&self) -> bool {
        matches!(self.step.verdict, Verdict::Forward | Verdict::Reset)
    }

    /// Whether a remote entry needs no update. The owner's pin decides whether a SYN opens another
    /// flow.
    #[inline]
    pub fn is_known(&self, flow_state: &FlowState) -> bool {
        self.event != Event::Request(Class::Syn)
            && self.step.state == flow_state.state()
            && self.hop.as_ref().is_none_or(|hop| flow_state.comes_from(hop))
    }

    /// Returns the pin after the packet.
    pub fn apply(&self, pin: &Pin, now: Ticks) -> Pin {
        let seen = if self.step.touch { now } else { pin.flow_state.last_seen() };
        let flow_state = pin.flow_state.with_state(self.step.state).with_last_seen(seen);
        Pin { flow_state: self.hop.map_or(flow_state, |hop| flow_state.with_hop(&hop)), ..*pin }
    }
}
