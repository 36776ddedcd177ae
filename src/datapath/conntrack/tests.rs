use std::collections::HashSet;

use super::*;
use crate::datapath::batch::{Direction, FragmentKind, TcpFlags};
use crate::datapath::testing::*;
use crate::flow::snat::SnatTable;
use crate::forwarding::VipSpec;
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

/// Pins the flow of a SYN and sends the client's ACK.
fn establish(bed: &mut Bed, conntrack: &mut Conntrack, port: u16, now: u32) -> Packet {
    open(bed, conntrack, port, now);
    let packet = bed.request(port, "A");
    conntrack.track(&packet, &bed.context(conntrack.worker(), now)).unwrap();
    packet
}

/// Returns the outcome of a look-up as one word.
fn outcome<T>(tracked: Result<T, Untracked<'_>>) -> &'static str {
    match tracked {
        Ok(_) => "forward",
        Err(Untracked::Miss(Miss::Open)) => "open",
        Err(Untracked::Miss(Miss::NonSyn)) => "midflow",
        Err(Untracked::NoFlow) => "no flow",
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
