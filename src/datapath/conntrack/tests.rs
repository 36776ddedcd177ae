use std::collections::HashSet;

use super::*;
use crate::datapath::batch::{Direction, FragmentKind, TcpFlags};
use crate::datapath::testing::*;
use crate::flow::snat::SnatTable;
use crate::forwarding::{SchedulerKind, VipSpec};
use crate::net::Family;

const ESTABLISHED: State = State::ESTABLISHED;

/// Pins the flow of a SYN from `port` to backend 0.
fn open(bed: &mut Bed, conntrack: &mut Conntrack, port: u16, now: u32) -> Packet {
    let packet = bed.request(port, "S");
    let context = bed.context(conntrack.worker(), now);
    let backend = context.table.backend(BackendIndex(0)).unwrap();
    conntrack.pin(&packet, backend, Rule::Scheduler, &context).unwrap();
    packet
}

/// Pins the flow of a SYN with NAT, and sends the backend's SYN-ACK and the client's ACK.
fn establish(bed: &mut Bed, conntrack: &mut Conntrack, port: u16, now: u32) -> Packet {
    open(bed, conntrack, port, now);
    let mut reply = bed.reply(0, port, "SA");
    let Direction::ToClient(source) = reply.direction else {
        unreachable!("{:?}", reply.direction)
    };
    let context = bed.context(conntrack.worker(), now);
    conntrack.track_reply(&mut reply, source, &context).unwrap();
    let packet = bed.request(port, "A");
    conntrack.track(&packet, &bed.context(conntrack.worker(), now)).unwrap();
    packet
}

/// A segment of the client with this sequence number.
fn numbered(bed: &mut Bed, port: u16, flags: &str, sequence: u32) -> Packet {
    let mut bytes = tcp((CLIENT, port), (VIP, 80), flags);
    bytes[38..42].copy_from_slice(&sequence.to_be_bytes());
    bed.receive(&bytes).unwrap()
}

/// Time, flags and sequence number of a client's segment.
type Segment<'s> = (u32, &'s str, u32);

/// Sends the client's segments to a VIP whose replies are not seen; the first one pins the flow.
fn one_way<'s>(
    bed: &mut Bed,
    conntrack: &mut Conntrack,
    port: u16,
    segments: impl IntoIterator<Item = &'s Segment<'s>>,
) -> Option<FlowState> {
    let mut last = None;
    for &(now, flags, sequence) in segments {
        let packet = numbered(bed, port, flags, sequence);
        let context = bed.context(conntrack.worker(), now);
        if conntrack.track(&packet, &context).is_err() {
            let backend = context.table.backend(BackendIndex(0)).unwrap();
            conntrack.pin(&packet, backend, Rule::Scheduler, &context).unwrap();
        }
        last = bed.track(conntrack.worker(), &packet);
    }
    last
}

/// Returns the outcome of a look-up as one word.
fn outcome<T>(tracked: Result<T, Untracked<'_>>) -> &'static str {
    match tracked {
        Ok(_) => "forward",
        Err(Untracked::Miss(Miss::Open)) => "open",
        Err(Untracked::Miss(Miss::NonSyn)) => "midflow",
        Err(Untracked::NoFlow) => "no flow",
        Err(Untracked::Waits) => "waits",
        Err(Untracked::Answers(_)) => "answers",
        Err(Untracked::Terminated(_)) => "reset",
    }
}

fn left(left: FlowAction) -> VipSpec {
    let mut spec = vip(Forward::Nat, 2);
    spec.backends.iter_mut().for_each(|backend| backend.flow_action = left);
    spec
}

fn sweep(conntrack: &mut Conntrack, context: &Context<'_>) {
    let mut backlog = TxBacklog::default();
    while conntrack.sweep(context, &mut backlog) {}
}

/// After a restart the NIC may send a flow to another worker, so that a datagram without a pin here
/// looks for one there; without a restart that costs each new flow a look-up for nothing.
#[test]
fn datagrams_of_an_earlier_process_find_their_pin_at_another_worker() {
    let spec = VipSpec { protocol: Protocol::Udp, ..vip(Forward::Dsr, 2) };
    for (taken_over, expected) in [(false, "open"), (true, "forward")] {
        let mut bed = Bed::after(taken_over, 2, std::slice::from_ref(&spec));
        let packet = bed.receive(&udp((CLIENT, 7), (VIP, 80))).unwrap();
        let mut then = bed.conntrack(1);
        let context = bed.context(1, 0);
        let backend = context.table.backend(BackendIndex(1)).unwrap();
        then.pin(&packet, backend, Rule::Scheduler, &context).unwrap();
        let mut now = bed.conntrack(0);
        assert_eq!(outcome(now.track(&packet, &bed.context(0, 10))), expected, "{taken_over}");
    }
}

/// A SYN that is sent again may come to another worker. Where the choice depends on more than the
/// hash, it would get another backend there.
#[test]
fn a_syn_that_is_sent_again_to_another_worker_keeps_its_backend() {
    for forward in [Forward::Dsr, Forward::Nat, Forward::FullNat] {
        for (scheduler, expected) in [
            (SchedulerKind::Maglev { size: 1009 }, "open"),
            (SchedulerKind::RoundRobin, "forward"),
            (SchedulerKind::LeastConnections, "forward"),
        ] {
            let mut bed =
                Bed::new(2, &[with(vip(forward, 2), |policy| policy.scheduler = scheduler)]);
            let mut first = bed.conntrack(0);
            let syn = open(&mut bed, &mut first, 1, 0);
            let mut second = bed.conntrack(1);
            let context = bed.context(1, 100);
            let again = second.track(&syn, &context);
            // A SNAT port is the flow's own, whatever chooses.
            let expected = if forward == Forward::FullNat { "forward" } else { expected };
            assert_eq!(outcome(again), expected, "{forward:?} {scheduler:?}");
        }
    }
}

#[test]
fn a_packet_without_a_pin_misses() {
    let mut bed = Bed::new(2, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    for (flags, expected) in [("S", "open"), ("A", "midflow"), ("R", "midflow"), ("FA", "midflow")]
    {
        let packet = bed.request(1, flags);
        assert_eq!(outcome(conntrack.track(&packet, &bed.context(0, 0))), expected, "{flags}");
    }
}

#[test]
fn a_request_and_a_reply_of_a_pinned_flow_go_to_its_ends_and_keep_it_alive() {
    let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let packet = establish(&mut bed, &mut conntrack, 1, 0);
    assert_eq!(bed.track(0, &packet).unwrap().state(), ESTABLISHED);
    for now in [900, 1800, 2700] {
        let context = bed.context(0, now);
        let target = conntrack.track(&packet, &context).unwrap();
        assert_eq!(target.backend.id.index, BackendIndex(0));
        assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(now));
        let mut reply = bed.reply(0, 1, "A");
        let Direction::ToClient(source) = reply.direction else {
            unreachable!("{:?}", reply.direction)
        };
        let client = conntrack.track_reply(&mut reply, source, &bed.context(0, now + 1)).unwrap();
        assert_eq!(client.mac, packet.source_mac());
        assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(now + 1));
    }
    // A reply of the other backend belongs to no flow.
    let mut reply = bed.reply(1, 1, "A");
    let Direction::ToClient(source) = reply.direction else {
        unreachable!("{:?}", reply.direction)
    };
    assert_eq!(
        outcome(conntrack.track_reply(&mut reply, source, &bed.context(0, 2701))),
        "no flow"
    );
}

/// Where replies are not seen. Time-outs: embryonic 1 s, established 10 s. `u32::MAX` is the number
/// before 0.
#[test]
fn a_flow_is_proven_by_numbers_that_fit_and_go_on() {
    const UNPROVEN: State = ESTABLISHED.with(State::UNPROVEN);
    let syn = (0, "S", u32::MAX);
    let rows: &[(&str, &[Segment<'_>], State)] = &[
        ("two forged ACKs", &[(0, "A", 7), (1, "A", 7)], State::PICKED_UP),
        ("as many as one likes, at once", &[(0, "A", 7); 9], State::PICKED_UP),
        (
            "any numbers, over some time",
            &[(0, "A", 7), (30, "A", 1 << 31), (60, "A", 3), (90, "A", u32::MAX)],
            State::PICKED_UP,
        ),
        ("three in a row", &[(0, "A", 7), (20, "A", 7), (40, "A", 9)], State::ANSWERED),
        ("four", &[(0, "A", 7), (20, "A", 7), (40, "A", 9), (60, "A", 1 << 30)], ESTABLISHED),
        ("slow ones", &[(0, "A", 7), (90, "A", 7), (180, "A", 7), (270, "A", 7)], ESTABLISHED),
        ("keep-alives", &[(0, "A", 7), (30, "A", 6), (60, "A", 6), (90, "A", 6)], ESTABLISHED),
        ("a SYN and a forged ACK", &[syn, (1, "A", 7 << 20)], State(0)),
        ("a SYN and an ACK before it", &[syn, (1, "A", u32::MAX - 1)], State(0)),
        ("a handshake", &[syn, (0, "A", 0)], UNPROVEN),
        ("its first data", &[syn, (0, "A", 0), (0, "A", 0)], UNPROVEN),
        ("an ACK of the response", &[syn, (0, "A", 0), (0, "A", 0), (0, "A", 99)], ESTABLISHED),
        ("a client that only receives", &[syn, (0, "A", 0), (20, "A", 0)], ESTABLISHED),
        ("another SYN", &[syn, (1, "S", 50), (1, "A", 51)], UNPROVEN),
        ("a SYN after a forged ACK", &[(0, "A", 7), (1, "S", 1 << 30)], State(0)),
        (
            "a connection from the same port",
            &[
                syn,
                (0, "A", 0),
                (500, "S", 1 << 31),
                (501, "A", 1 + (1 << 31)),
                (501, "A", (1 << 31) + 9),
            ],
            ESTABLISHED,
        ),
        (
            "one of which the SYN was not seen",
            &[syn, (0, "A", 0), (500, "A", 1 << 31), (501, "A", (1 << 31) + 9)],
            ESTABLISHED,
        ),
    ];
    let mut bed = Bed::new(1, &[vip(Forward::Dsr, 2)]);
    let mut conntrack = bed.conntrack(0);
    for (port, (name, segments, expected)) in (1..).zip(rows) {
        let state = one_way(&mut bed, &mut conntrack, port, *segments).unwrap().state();
        assert_eq!(state, *expected, "{name}");
    }
}

#[test]
fn forged_acks_do_not_hold_a_slot_and_idle_connections_keep_their_pin() {
    let mut bed = Bed::new(1, &[vip(Forward::Dsr, 2)]);
    let mut conntrack = bed.conntrack(0);
    one_way(&mut bed, &mut conntrack, 1, &[(0, "A", 7), (1, "A", 7)]);
    one_way(&mut bed, &mut conntrack, 2, &[(0, "S", 7), (1, "A", 7 << 20), (1, "A", 7 << 20)]);
    let handshake = [(0, "S", 7), (1, "A", 8)];
    one_way(&mut bed, &mut conntrack, 3, &handshake);
    one_way(&mut bed, &mut conntrack, 4, handshake.iter().chain(&[(2, "A", 8), (3, "A", 90)]));
    // Rounds of the sweep.
    for (now, left) in [(502, 2), (950, 2), (1402, 0)] {
        sweep(&mut conntrack, &bed.context(0, now));
        assert_eq!(bed.stats[0].flows_active.get(), left, "{now}");
    }
}

/// At a full table, silent connections that only have had a handshake make room; those that went on
/// never do.
#[test]
fn a_full_table_gives_up_connections_of_a_mere_handshake_after_a_silence() {
    for (proven, silence, evicted) in [(false, 90, 0), (false, 110, 9), (true, 900, 0)] {
        let mut bed = Bed::new(1, &[vip(Forward::Dsr, 2)]);
        let mut conntrack = bed.conntrack(0);
        let goes_on = [(1, "A", 9)];
        for port in 1..=64 {
            let handshake = [(0, "S", 7), (0, "A", 8)];
            let segments = handshake.iter().chain(goes_on.iter().filter(|_| proven));
            one_way(&mut bed, &mut conntrack, port, segments);
        }
        for port in 101..110 {
            let packet = numbered(&mut bed, port, "S", 7);
            let context = bed.context(0, silence);
            let backend = context.table.backend(BackendIndex(0)).unwrap();
            let pinned = conntrack.pin(&packet, backend, Rule::Scheduler, &context);
            assert_eq!(pinned.is_ok(), evicted > 0, "{silence}");
        }
        assert_eq!(bed.stats[0].flows_evicted.get(), evicted, "{proven} {silence}");
    }
}

/// Connections that both ends have closed make room after a while (the closing time-out is 2 s), one
/// that the client has half closed does not.
#[test]
fn a_full_table_gives_up_connections_that_are_over() {
    let closed = State::FIN_CLIENT.with(State::FIN_BACKEND);
    for (forward, fins, silence, expected) in [
        (Forward::Nat, closed, 40, false),
        (Forward::Nat, closed, 60, true),
        (Forward::Nat, State::FIN_CLIENT, 900, false),
        (Forward::Dsr, State::FIN_CLIENT, 190, false),
    ] {
        let mut bed = Bed::new(1, &[vip(forward, 2)]);
        let mut conntrack = bed.conntrack(0);
        for port in 1..=65 {
            let packet = bed.request(port, "S");
            let context = bed.context(0, if port == 65 { silence } else { 0 });
            let backend = context.table.backend(BackendIndex(0)).unwrap();
            let pinned = conntrack.pin(&packet, backend, Rule::Scheduler, &context);
            assert_eq!(pinned.is_ok(), port < 65 || expected, "{forward:?} {fins:?} {silence}");
            if let Some(hit) = context.flows.find_at(&packet.flow, Slot::NOWHERE) {
                hit.set_state(ESTABLISHED.with(fins));
            }
        }
    }
}

/// A reload may terminate as many flows as there are entries.
#[test]
fn a_full_table_gives_up_terminated_flows_but_no_established_ones() {
    for (terminated, evicted) in [(false, 0), (true, 1)] {
        let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
        let mut conntrack = bed.conntrack(0);
        for port in 1..=64 {
            establish(&mut bed, &mut conntrack, port, 0);
        }
        if terminated {
            bed.publish(&[left(FlowAction::Reset)]);
            // Probes leave room for others now and then.
            for _ in 0..4 {
                conntrack.sweep(&bed.context(0, 400), &mut TxBacklog::default());
            }
        }
        let packet = bed.request(100, "S");
        let context = bed.context(0, 400);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        let pinned = conntrack.pin(&packet, backend, Rule::Scheduler, &context);
        assert_eq!(pinned.is_ok(), terminated);
        assert_eq!(bed.stats[0].flows_evicted.get(), evicted);
    }
}

/// With NAT the backend's packet decides.
#[test]
fn a_flow_with_nat_is_proven_by_its_backend() {
    let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let unproven = ESTABLISHED.with(State::UNPROVEN);
    for (port, first, packets, expected) in [
        (1, "S", &["A", "A"][..], unproven),
        (2, "S", &["<SA", "A"], ESTABLISHED),
        (3, "S", &["A", "<A"], ESTABLISHED),
        (4, "S", &["A", "<R"], unproven.with(State::RST)),
        (5, "A", &["A", "A", "A"], State::PICKED_UP),
        (6, "A", &["<R", "A"], State::PICKED_UP),
        (7, "A", &["<A"], ESTABLISHED.with(State::ANSWERED)),
        (8, "A", &["S", "<SA", "A"], ESTABLISHED),
    ] {
        let packet = bed.request(port, first);
        let context = bed.context(0, 0);
        let backend = context.table.backend(BackendIndex(0)).unwrap();
        conntrack.pin(&packet, backend, Rule::Scheduler, &context).unwrap();
        for flags in packets {
            if let Some(flags) = flags.strip_prefix('<') {
                let mut reply = bed.reply(0, port, flags);
                let Direction::ToClient(source) = reply.direction else {
                    unreachable!("{:?}", reply.direction)
                };
                conntrack.track_reply(&mut reply, source, &bed.context(0, 0)).unwrap();
            } else {
                let packet = bed.request(port, flags);
                conntrack.track(&packet, &bed.context(0, 0)).unwrap();
            }
        }
        assert_eq!(bed.track(0, &packet).unwrap().state(), expected, "{first} {packets:?}");
    }
}

#[test]
fn an_expired_flow_is_removed_and_counted() {
    let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let packet = establish(&mut bed, &mut conntrack, 1, 0);
    establish(&mut bed, &mut conntrack, 2, 0);
    assert_eq!(outcome(conntrack.track(&packet, &bed.context(0, 1000))), "forward");
    assert_eq!(outcome(conntrack.track(&packet, &bed.context(0, 2001))), "midflow");
    assert!(bed.track(0, &packet).is_none());
    sweep(&mut conntrack, &bed.context(0, 2001));
    let stats = &bed.stats[0];
    assert_eq!((stats.flows_idled_out.get(), stats.flows_active.get()), (2, 0));
}

#[test]
fn a_policy_resets_both_ends_until_a_syn_opens_another_flow() {
    let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let packet = establish(&mut bed, &mut conntrack, 1, 0);
    bed.publish(&[left(FlowAction::Reset)]);
    assert_eq!(outcome(conntrack.track(&packet, &bed.context(0, 10))), "reset");
    let flow_state = bed.track(0, &packet).unwrap();
    assert!(flow_state.state().has(State::TERMINATED) && flow_state.last_seen() == Ticks(10));
    // Terminated for good, and no packet keeps it alive. A RST is forwarded to the backend.
    bed.publish(&[vip(Forward::Nat, 2)]);
    let mut reply = bed.reply(0, 1, "A");
    let Direction::ToClient(source) = reply.direction else {
        unreachable!("{:?}", reply.direction)
    };
    let context = bed.context(0, 20);
    assert_eq!(outcome(conntrack.track_reply(&mut reply, source, &context)), "reset");
    assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(10));
    for (flags, expected) in [("R", "forward"), ("A", "reset"), ("S", "open"), ("A", "midflow")] {
        let packet = bed.request(1, flags);
        assert_eq!(outcome(conntrack.track(&packet, &bed.context(0, 30))), expected, "{flags}");
    }
}

#[test]
fn flows_of_a_backend_that_rehashes_leave_it() {
    let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let packet = establish(&mut bed, &mut conntrack, 1, 0);
    bed.publish(&[left(FlowAction::Rehash)]);
    assert_eq!(outcome(conntrack.track(&packet, &bed.context(0, 10))), "midflow");
    assert_eq!((bed.stats[0].flows_stale.get(), bed.track(0, &packet)), (1, None));
}

#[test]
fn another_worker_keeps_a_remote_entry_and_notifies_the_owner_of_changes() {
    let mut bed = Bed::new(2, &[vip(Forward::Nat, 2)]);
    let [mut owner, mut other] = [0, 1].map(|worker| bed.conntrack(worker));
    let packet = establish(&mut bed, &mut owner, 1, 0);
    let mut reply = |bed: &mut Bed, flags: &str, now: u32| {
        let mut reply = bed.reply(0, 1, flags);
        let Direction::ToClient(source) = reply.direction else {
            unreachable!("{:?}", reply.direction)
        };
        outcome(other.track_reply(&mut reply, source, &bed.context(1, now)))
    };
    assert_eq!(reply(&mut bed, "A", 10), "forward");
    let entry = bed.track(1, &packet).unwrap();
    assert_eq!((entry.state(), entry.owner()), (ESTABLISHED.with(State::REMOTE), 0));
    assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(10));
    // The owner is notified after half a second, not of every packet; of a change of state at once.
    assert_eq!(reply(&mut bed, "A", 59), "forward");
    assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(10));
    assert_eq!(reply(&mut bed, "A", 60), "forward");
    assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(60));
    assert_eq!(reply(&mut bed, "FA", 61), "forward");
    assert_eq!(bed.track(0, &packet).unwrap().state(), ESTABLISHED.with(State::FIN_BACKEND));
    let stats = &bed.stats[1];
    assert_eq!((stats.flow_aliases.get(), stats.flows_active.get()), (1, 0));
    // A pin that is gone takes the remote entry with it.
    owner.unpin(&packet.flow, &bed.context(0, 62));
    assert_eq!(reply(&mut bed, "A", 200), "no flow");
    assert!(bed.track(1, &packet).is_none());
}

#[test]
fn the_sweep_probes_a_terminated_connection_a_few_times_and_then_removes_it() {
    let mut bed = Bed::new(1, &[vip(Forward::Nat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let packet = establish(&mut bed, &mut conntrack, 1, 0);
    bed.publish(&[left(FlowAction::Reset)]);
    let mut probes = Vec::new();
    for now in (10..2000).step_by(10) {
        sweep(&mut conntrack, &bed.context(0, now));
        probes.extend(bed.track(0, &packet).map(|flow_state| flow_state.state().probes()));
    }
    probes.dedup();
    assert_eq!(probes, [1, 2, 3]);
    assert_eq!((bed.stats[0].flows_reset.get(), bed.track(0, &packet)), (1, None));
}

#[test]
fn a_flow_that_is_taken_back_leaves_no_trace() {
    let mut bed = Bed::new(1, &[vip(Forward::FullNat, 2)]);
    let mut conntrack = bed.conntrack(0);
    let packet = open(&mut bed, &mut conntrack, 1, 0);
    assert_eq!(
        (bed.stats[0].flows_active.get(), bed.stats[0].snat_ports(Family::V4).get()),
        (1, 1)
    );
    conntrack.unpin(&packet.flow, &bed.context(0, 0));
    assert_eq!(
        (bed.stats[0].flows_active.get(), bed.stats[0].snat_ports(Family::V4).get()),
        (0, 0)
    );
    assert!(bed.track(0, &packet).is_none());
}

/// Backends may remember the ports of an earlier process. The first ports are random then, and the
/// same in every process otherwise: a replay repeats its SNAT ports.
#[test]
fn the_first_snat_ports_after_a_restart_are_others() {
    for (taken_over, different) in [(false, 1..2), (true, 2..5)] {
        let first = |_| {
            let mut bed = Bed::after(taken_over, 1, &[vip(Forward::FullNat, 2)]);
            let mut conntrack = bed.conntrack(0);
            let packet = open(&mut bed, &mut conntrack, 1, 0);
            bed.track(0, &packet).unwrap().snat_port()
        };
        let ports: HashSet<_> = (0..30).map(first).collect();
        assert!(different.contains(&ports.len()), "{taken_over}: {ports:?}");
    }
}

/// A reply to a full-NAT flow may arrive at any worker.
#[test]
fn a_reply_to_a_snat_port_reaches_the_client_and_the_owner() {
    let mut bed = Bed::new(2, &[vip(Forward::FullNat, 2)]);
    let [mut owner, mut other] = [0, 1].map(|worker| bed.conntrack(worker));
    let packet = open(&mut bed, &mut owner, 1, 0);
    let id = bed.track(0, &packet).unwrap().snat_port().unwrap();
    let (_, port) = SnatTable::sources(&bed.shared.snat_table).source(id).unwrap();
    let reply = |bed: &mut Bed, from: u8| {
        bed.receive(&tcp((backend(from), 8080), (SNAT, port), "A")).unwrap()
    };
    let mut stranger = reply(&mut bed, 1);
    assert_eq!(outcome(other.track_snat_reply(&mut stranger, id, &bed.context(1, 10))), "no flow");
    let mut answer = reply(&mut bed, 0);
    let client = other.track_snat_reply(&mut answer, id, &bed.context(1, 10)).unwrap();
    assert_eq!(client.mac, packet.source_mac());
    assert_eq!((answer.flow.key(), answer.vip), (packet.flow.key(), packet.vip));
    let flow_state = bed.track(0, &packet).unwrap();
    assert_eq!((flow_state.state(), flow_state.last_seen()), (ESTABLISHED, Ticks(10)));
    // The owner is notified again after half a second, by a later fragment like by a whole packet.
    for (now, seen, later) in
        [(40, 10, false), (61, 61, false), (80, 61, true), (120, 120, true), (130, 120, false)]
    {
        let mut answer = reply(&mut bed, 0);
        if later {
            (answer.layout.fragment, answer.layout.flags) = (FragmentKind::Later, TcpFlags(0));
        }
        assert_eq!(
            outcome(owner.track_snat_reply(&mut answer, id, &bed.context(0, now))),
            "forward"
        );
        assert_eq!(bed.track(0, &packet).unwrap().last_seen(), Ticks(seen), "{now}");
    }
    owner.unpin(&packet.flow, &bed.context(0, 190));
    let mut late = reply(&mut bed, 0);
    assert_eq!(outcome(other.track_snat_reply(&mut late, id, &bed.context(1, 190))), "no flow");
}
