//! Terminated flows: the packets to both ends, their numbers, and how often they are sent.

use std::net::IpAddr;

use holdfast::forwarding::{FlowAction, RESET_TIME, Service, VipSpec};
use holdfast::net::{Forward, NextHop, Protocol};
use holdfast::stats::Drop;

use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, numbered, spec, tagged, tcp, udp};

const PORT: u16 = 40_000;
/// One round of the sweep, and the time between two probes, in ticks.
const ROUND: u32 = 400;
/// Long enough for the first probe, too short for the second.
const FIRST_PROBE: u32 = ROUND - 10;

fn every_mode() -> impl Iterator<Item = (Forward, Family)> {
    let families = [Family::V4, Family::V6];
    let modes = [Forward::Dsr, Forward::Nat, Forward::FullNat];
    families.into_iter().flat_map(move |family| modes.map(|mode| (mode, family)))
}

/// One backend, and the policy "reset" for everything.
fn resetting(forward: Forward, family: Family, nics: usize) -> VipSpec {
    spec(0, forward, family, nics, 1).with(|policy| {
        policy.on_down = FlowAction::Reset;
        policy.reset_idle = true;
    })
}

fn client(family: Family, flags: &str) -> Vec<u8> {
    tcp(family, PORT, 80, flags)
}

/// A segment of the client with these numbers.
fn segment(family: Family, sequence: u32, acknowledgment: u32) -> Vec<u8> {
    numbered(family, client(family, "A"), sequence, acknowledgment)
}

/// Opens the flow; returns the packet that reached the backend.
fn open(rig: &mut Rig, family: Family) -> Sent {
    rig.send(0, 0, &client(family, "S"));
    rig.send(0, 0, &client(family, "A")).remove(0)
}

fn down(rig: &mut Rig) {
    rig.change(|specs| specs[0].backends[0].up = false);
}

/// Flags as in tcpdump, and numbers.
fn says(sent: &Sent) -> (String, u32, u32) {
    let tcp = sent.tcp();
    let flags = [(tcp.syn, 'S'), (tcp.fin, 'F'), (tcp.rst, 'R'), (tcp.ack, 'A')];
    let flags = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    (flags, tcp.sequence_number, tcp.acknowledgment_number)
}

/// Address and port of the backend, as packets to it have them.
fn backend_end(forward: Forward, family: Family) -> (IpAddr, u16) {
    match forward {
        Forward::Dsr => (family.vip(), 80),
        Forward::Nat | Forward::FullNat => (family.backend(0), 8080),
        other => unreachable!("{other:?}"),
    }
}

/// Checks addresses, checksums, flags and numbers of a packet to the client and one to the backend.
fn assert_resets(
    sent: &[Sent],
    (forward, family): (Forward, Family),
    to_client: (&str, u32, u32),
    to_backend: (&str, u32, u32),
) {
    let name = format!("{forward:?} {family:?}");
    assert_eq!(sent.len(), 2, "{name}: {sent:?}");
    for one in sent {
        one.assert_checksums();
        assert!(one.bytes.len() >= 60, "{name}: shorter than Ethernet allows");
        assert_eq!(one.source_mac(), nic_mac(one.nic), "{name}");
        let to_the_client = one.destination_mac() == CLIENT_MAC;
        let (address, port, hops) = one.destination();
        assert_eq!(hops, 64, "{name}");
        if to_the_client {
            assert_eq!((one.nic, address, port), (0, family.client(), PORT), "{name}");
            assert_eq!(one.source(), (family.vip(), 80), "{name}");
        } else {
            assert_eq!((address, port), backend_end(forward, family), "{name}");
            match forward {
                Forward::FullNat => assert_eq!(one.source().0, family.source(), "{name}"),
                _ => assert_eq!(one.source(), (family.client(), PORT), "{name}"),
            }
        }
        let (flags, sequence, acknowledgment) = if to_the_client { to_client } else { to_backend };
        assert_eq!(says(one), (flags.to_owned(), sequence, acknowledgment), "{name}");
    }
    assert_ne!(sent[0].destination_mac(), sent[1].destination_mac(), "{name}: one for each end");
}

#[test]
fn a_packet_to_a_backend_that_is_down_resets_both_ends() {
    for (forward, family) in every_mode() {
        for nics in [1, 2] {
            let mut rig = Rig::new(1, nics, vec![resetting(forward, family, nics)]);
            open(&mut rig, family);
            down(&mut rig);
            for round in 1..=3 {
                let sent = rig.send(0, 0, &segment(family, 5_000 + round, 9_000 + round));
                let (sequence, acknowledgment) = (5_000 + round, 9_000 + round);
                let to_backend = ("RA", sequence, acknowledgment);
                assert_resets(&sent, (forward, family), ("R", acknowledgment, 0), to_backend);
            }
            assert_eq!(rig.drops(0, Drop::FlowReset), 3);
            let stats = rig.stats(0);
            assert_eq!((stats.resets_sent.get(), stats.probes_sent.get()), (6, 0));
            assert_eq!(stats.vips[0].dropped.get(), 3);
            assert_eq!(stats.backends[0].dropped.get(), 3);
            assert_eq!(stats.nics.iter().map(|port| port.tx_packets.get()).sum::<u64>(), 8);
            rig.assert_accounted();
        }
    }
}

/// The health check reports the backend as down, but the backend still sends.
#[test]
fn a_packet_of_a_nat_backend_resets_both_ends_at_whichever_worker_it_arrives() {
    for (forward, family) in every_mode().filter(|(forward, _)| forward.translates()) {
        for worker in [0, 1] {
            for known in [false, true] {
                let mode = (forward, family);
                let mut rig = Rig::new(2, 1, vec![resetting(forward, family, 1)]);
                let request = open(&mut rig, family);
                if known {
                    assert_eq!(rig.send(worker, 0, &request.reply("A")).len(), 1);
                }
                down(&mut rig);
                let reply = numbered(family, request.reply("A"), 700, 300);
                let sent = rig.send(worker, 0, &reply);
                assert_resets(&sent, mode, ("RA", 700, 300), ("R", 300, 0));
                // The worker that has the pin has the update now.
                rig.change(|specs| specs[0].backends[0].up = true);
                let sent = rig.send(0, 0, &segment(family, 301, 701));
                assert_resets(&sent, mode, ("R", 701, 0), ("RA", 301, 701));
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn a_packet_of_a_client_at_another_worker_resets_both_ends() {
    for (forward, family) in every_mode() {
        for known in [false, true] {
            let mut rig = Rig::new(2, 1, vec![resetting(forward, family, 1)]);
            open(&mut rig, family);
            if known {
                assert_eq!(rig.send(1, 0, &client(family, "A")).len(), 1);
            }
            down(&mut rig);
            for worker in [1, 0, 1] {
                let sent = rig.send(worker, 0, &segment(family, 5, 9));
                assert_resets(&sent, (forward, family), ("R", 9, 0), ("RA", 5, 9));
            }
            rig.assert_accounted();
        }
    }
}

#[test]
fn resets_take_the_vlan_of_each_side() {
    for family in [Family::V4, Family::V6] {
        for (client_vlan, backend_vlan) in
            [(None, Some(200)), (Some(100), None), (Some(1), Some(2))]
        {
            let mut vip = resetting(Forward::Nat, family, 1);
            let hop = vip.backends[0].next_hop.unwrap();
            vip.backends[0].next_hop = Some(NextHop { vlan: backend_vlan.map(Into::into), ..hop });
            let mut rig = Rig::new(1, 1, vec![vip]);
            rig.send(0, 0, &tagged(client(family, "S"), client_vlan));
            rig.send(0, 0, &tagged(client(family, "A"), client_vlan));
            down(&mut rig);
            let sent = rig.send(0, 0, &tagged(segment(family, 5, 9), client_vlan));
            assert_resets(&sent, (Forward::Nat, family), ("R", 9, 0), ("RA", 5, 9));
            for one in &sent {
                let to_client = one.destination_mac() == CLIENT_MAC;
                assert_eq!(one.vlan(), if to_client { client_vlan } else { backend_vlan });
            }
            rig.assert_accounted();
        }
    }
}

/// RFC 9293 3.10.7.1: no RST for a RST. It is passed on, as it may reset the other end.
#[test]
fn a_reset_is_passed_on_and_never_answered() {
    for (forward, family) in every_mode() {
        let mut rig = Rig::new(1, 1, vec![resetting(forward, family, 1)]);
        let request = open(&mut rig, family);
        down(&mut rig);
        for flags in ["R", "RA"] {
            let sent = rig.send(0, 0, &numbered(family, client(family, flags), 5, 9));
            assert_eq!(sent.len(), 1, "{forward:?}");
            assert_eq!(sent[0].destination_mac(), request.destination_mac());
            if forward.translates() {
                let sent = rig.send(0, 0, &request.reply(flags));
                assert_eq!(sent.len(), 1);
                assert_eq!(sent[0].destination_mac(), CLIENT_MAC);
            }
        }
        assert_eq!(rig.stats(0).resets_sent.get(), 0);
        // A packet without ACK belongs to no connection (a FIN alone).
        assert_eq!(rig.send(0, 0, &client(family, "F")), []);
        assert_eq!(rig.drops(0, Drop::FlowReset), 1);
        rig.assert_accounted();
    }
}

/// A new SYN gets a backend in service, and starts another flow.
#[test]
fn a_client_that_tries_again_is_served() {
    for (forward, family) in every_mode() {
        let vip = spec(0, forward, family, 1, 3).with(|policy| policy.on_down = FlowAction::Reset);
        let mut rig = Rig::new(1, 1, vec![vip]);
        let first = open(&mut rig, family).destination_mac();
        rig.change(|specs| specs[0].backends[usize::from(first[5])].up = false);
        assert_eq!(rig.send(0, 0, &client(family, "A")).len(), 2);
        let mut backends = ["S", "A", "A"].map(|flags| {
            let sent = rig.send(0, 0, &client(family, flags));
            assert_eq!((sent.len(), sent[0].tcp().rst), (1, false));
            sent[0].destination_mac()
        });
        backends.sort_unstable();
        assert!(backends.iter().all(|backend| *backend != first && *backend == backends[0]));
        rig.assert_accounted();
    }
}

/// The packets that a worker sends while ticks go by.
pub fn meanwhile(rig: &mut Rig, ticks: u32) -> Vec<Sent> {
    let mut sent = Vec::new();
    for _ in 0..ticks {
        rig.advance(1);
        sent.extend(rig.collect(0, 0));
    }
    sent
}

/// Silent ends are probed a few times, and then the pin is removed.
#[test]
fn silent_ends_are_probed_and_their_answer_is_answered() {
    for (forward, family) in every_mode() {
        let mut rig = Rig::new(1, 1, vec![resetting(forward, family, 1)]);
        open(&mut rig, family);
        down(&mut rig);
        let mut probes = meanwhile(&mut rig, FIRST_PROBE);
        let ends = if forward.translates() { 2 } else { 1 };
        assert_eq!(probes.len(), ends, "{forward:?} {family:?}");
        for probe in &probes {
            probe.assert_checksums();
            let (flags, sequence, acknowledgment) = says(probe);
            assert_eq!((flags.as_str(), sequence), ("A", !acknowledgment));
            let header = if family == Family::V4 { 54 } else { 74 };
            assert!(probe.bytes[header..].iter().all(|&byte| byte == 0), "padding at most");
        }
        let sent = rig.send(0, 0, &segment(family, 5, 9));
        assert_resets(&sent, (forward, family), ("R", 9, 0), ("RA", 5, 9));

        probes.extend(meanwhile(&mut rig, RESET_TIME.0 + ROUND));
        assert_eq!(probes.len(), 3 * ends, "three for each end");
        let mut numbers: Vec<u32> = probes.iter().map(|probe| says(probe).1).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 3, "with numbers of their own");
        let stats = rig.stats(0);
        assert_eq!((stats.flows_active.get(), stats.flows_reset.get()), (0, 1));
        assert_eq!(stats.probes_sent.get(), 3 * ends as u64);
        assert_eq!(meanwhile(&mut rig, 2 * ROUND), [], "no further probes");
        rig.assert_accounted();
    }
}

/// Packets do not keep a terminated flow alive.
#[test]
fn a_terminated_flow_expires_despite_further_packets() {
    let mut rig = Rig::new(2, 1, vec![resetting(Forward::Nat, Family::V4, 1)]);
    let request = open(&mut rig, Family::V4);
    rig.send(1, 0, &request.reply("A"));
    down(&mut rig);
    for _ in 0..(RESET_TIME.0 + 2 * ROUND) / 50 {
        rig.send(0, 0, &client(Family::V4, "A"));
        rig.send(1, 0, &request.reply("A"));
        rig.advance(50);
        rig.collect(0, 0);
        rig.collect(1, 0);
    }
    assert_eq!(rig.stats(0).flows_active.get(), 0);
    assert_eq!(rig.stats(0).flows_reset.get(), 1);
    rig.assert_accounted();
}

#[test]
fn a_flow_that_idles_out_is_terminated_if_the_policy_says_so() {
    for (forward, family) in every_mode() {
        for reset_idle in [false, true] {
            let vip = spec(0, forward, family, 1, 1).with(|policy| policy.reset_idle = reset_idle);
            let mut rig = Rig::new(1, 1, vec![vip]);
            open(&mut rig, family);
            // The established time-out is 10 s.
            assert_eq!(meanwhile(&mut rig, 1000), []);
            let probes = meanwhile(&mut rig, FIRST_PROBE);
            let ends = if forward.translates() { 2 } else { 1 };
            assert_eq!(probes.len(), if reset_idle { ends } else { 0 });
            let sent = rig.send(0, 0, &segment(family, 5, 9));
            if reset_idle {
                assert_resets(&sent, (forward, family), ("R", 9, 0), ("RA", 5, 9));
            } else {
                assert_eq!(says(&sent[0]).0, "A", "pinned again by the hash");
                assert_eq!(rig.stats(0).flows_idled_out.get(), 1);
            }
            rig.assert_accounted();
        }
    }
}

/// A client that sends just after its time-out, before the sweep has seen the entry.
#[test]
fn a_packet_after_the_time_out_finds_a_terminated_flow() {
    let mut rig = Rig::new(1, 1, vec![resetting(Forward::Nat, Family::V4, 1)]);
    for port in 0..200 {
        rig.send(0, 0, &tcp(Family::V4, 1_000 + port, 80, "S"));
    }
    open(&mut rig, Family::V4);
    for port in 0..200 {
        rig.send(0, 0, &tcp(Family::V4, 1_000 + port, 80, "A"));
    }
    rig.advance(1001);
    rig.collect(0, 0);
    let mode = (Forward::Nat, Family::V4);
    let sent = rig.send(0, 0, &segment(Family::V4, 5, 9));
    let sent: Vec<Sent> = sent.into_iter().filter(|sent| sent.tcp().rst).collect();
    assert_resets(&sent, mode, ("R", 9, 0), ("RA", 5, 9));
    rig.assert_accounted();
}

/// A flow without two ends that wait for each other is not probed: it ends by its short time-outs.
#[test]
fn half_open_and_closing_flows_are_not_probed() {
    for flags in [&["S"][..], &["S", "A", "FA"], &["S", "A", "R"]] {
        let mut rig = Rig::new(1, 1, vec![resetting(Forward::Dsr, Family::V4, 1)]);
        for flags in flags {
            rig.send(0, 0, &client(Family::V4, flags));
        }
        down(&mut rig);
        assert_eq!(meanwhile(&mut rig, 2 * ROUND), [], "{flags:?}");
        assert_eq!(rig.stats(0).flows_active.get(), 0);
        assert_eq!(rig.stats(0).flows_reset.get(), 0);
        rig.assert_accounted();
    }
}

#[test]
fn a_drain_at_its_deadline_keeps_resets_or_rehashes() {
    for (forward, family) in every_mode() {
        for left in [FlowAction::Keep, FlowAction::Reset, FlowAction::Rehash] {
            let mut rig = Rig::new(1, 1, vec![spec(0, forward, family, 1, 3)]);
            let first = open(&mut rig, family).destination_mac();
            rig.change(|specs| {
                let backend = &mut specs[0].backends[usize::from(first[5])];
                (backend.service, backend.flow_action) = (Service::Out, left);
            });
            let sent = rig.send(0, 0, &segment(family, 5, 9));
            match left {
                FlowAction::Keep => assert_eq!(sent[0].destination_mac(), first),
                FlowAction::Reset => {
                    assert_eq!(sent.iter().filter(|sent| sent.tcp().rst).count(), 2)
                }
                FlowAction::Rehash => assert_ne!(sent[0].destination_mac(), first),
            }
            assert_eq!(rig.stats(0).flows_stale.get(), u64::from(left == FlowAction::Rehash));
            rig.assert_accounted();
        }
    }
}

#[test]
fn flows_of_a_backend_that_is_down_find_another_one_if_the_policy_says_so() {
    for (forward, family) in every_mode() {
        for known in [false, true] {
            let vip =
                spec(0, forward, family, 1, 3).with(|policy| policy.on_down = FlowAction::Rehash);
            let mut rig = Rig::new(2, 1, vec![vip]);
            let first = open(&mut rig, family).destination_mac();
            if known {
                rig.send(1, 0, &client(family, "A"));
            }
            rig.change(|specs| specs[0].backends[usize::from(first[5])].up = false);
            for worker in [1, 0] {
                let sent = rig.send(worker, 0, &client(family, "A"));
                assert_eq!(sent.len(), 1);
                assert_ne!(sent[0].destination_mac(), first, "worker {worker}");
            }
            assert_eq!(rig.stats(0).resets_sent.get() + rig.stats(1).resets_sent.get(), 0);
            rig.assert_accounted();
        }
    }
}

/// Forged packets cannot terminate a flow: only the time-out or the control thread can.
#[test]
fn forged_packets_terminate_no_flow() {
    for (forward, family) in every_mode() {
        let mut rig = Rig::new(1, 1, vec![resetting(forward, family, 1)]);
        let request = open(&mut rig, family);
        for flags in ["S", "A", "FA", "R", "RA", "F", "SA"] {
            for numbers in [0, 1, u32::MAX] {
                let forged = numbered(family, client(family, flags), numbers, !numbers);
                assert_eq!(rig.send(0, 0, &forged).len(), 1, "{flags}");
                if forward == Forward::Nat {
                    let forged = numbered(family, request.reply(flags), numbers, !numbers);
                    assert_eq!(rig.send(0, 0, &forged).len(), 1, "{flags}");
                }
            }
        }
        let sent = rig.send(0, 0, &client(family, "A"));
        assert_eq!(sent[0].destination_mac(), request.destination_mac());
        let stats = rig.stats(0);
        assert_eq!((stats.resets_sent.get(), stats.probes_sent.get()), (0, 0));
        assert_eq!(rig.drops(0, Drop::FlowReset), 0);
        rig.assert_accounted();
    }
}

/// One balancer is the other's backend, and both terminate the flow: the exchange ends soon.
#[test]
fn two_balancers_do_not_reset_each_other_without_end() {
    for family in [Family::V4, Family::V6] {
        let front = resetting(Forward::Nat, family, 1);
        let mut back = resetting(Forward::Nat, family, 1);
        back.address = family.backend(0).into();
        back.ports = holdfast::forwarding::Ports::of(&[8080]);
        back.backends[0].address = family.backend(7);
        let (mut front, mut back) = (Rig::new(1, 1, vec![front]), Rig::new(1, 1, vec![back]));
        for flags in ["S", "A"] {
            let sent = front.send(0, 0, &client(family, flags));
            assert_eq!(back.send(0, 0, &sent[0].bytes).len(), 1);
        }
        for rig in [&mut front, &mut back] {
            down(rig);
        }
        let mut exchanged = 0;
        // Next packets for each.
        let (mut to_front, mut to_back) = (vec![segment(family, 5, 9)], Vec::new());
        for _ in 0..RESET_TIME.0 + 2 * ROUND {
            for _ in 0..20 {
                let mut from_front = front.send_all(0, 0, &to_front);
                let mut from_back = back.send_all(0, 0, &to_back);
                exchanged += to_front.len() + to_back.len();
                from_front.retain(|sent| sent.destination().0 == family.backend(0));
                from_back.retain(|sent| sent.source().0 == family.backend(0));
                to_back = from_front.into_iter().map(|sent| sent.bytes).collect();
                to_front = from_back.into_iter().map(|sent| sent.bytes).collect();
            }
            assert_eq!((to_front.len(), to_back.len()), (0, 0), "they go on and on");
            front.advance(1);
            back.advance(1);
            to_back = front.collect(0, 0).into_iter().map(|sent| sent.bytes).collect();
            to_front = back.collect(0, 0).into_iter().map(|sent| sent.bytes).collect();
            let relevant = |packets: &mut Vec<Vec<u8>>, nic: usize| {
                packets.retain(|bytes| {
                    let sent = Sent { nic, bytes: bytes.clone() };
                    sent.destination().0 == family.backend(0)
                        || sent.source().0 == family.backend(0)
                });
            };
            relevant(&mut to_back, 0);
            relevant(&mut to_front, 0);
        }
        assert!(exchanged < 40, "{exchanged} packets");
        front.assert_accounted();
        back.assert_accounted();
    }
}

/// Many silent flows at once: probes are bounded by the TX backlog, the TX ring and the frames, and
/// every flow gets one.
#[test]
fn many_flows_are_probed_one_backlog_after_the_other() {
    const FLOWS: u16 = 2_000;
    let mut rig = Rig::with_flows(1, 1, 8192, vec![resetting(Forward::Dsr, Family::V4, 1)]);
    for port in 0..FLOWS {
        for flags in ["S", "A"] {
            rig.send(0, 0, &tcp(Family::V4, 10_000 + port, 80, flags));
        }
    }
    down(&mut rig);
    let mut probed = vec![0; usize::from(FLOWS)];
    let mut most = 0;
    for _ in 0..2 * ROUND {
        rig.advance(1);
        let sent = rig.collect(0, 0);
        most = most.max(sent.len());
        for probe in sent {
            probed[usize::from(probe.destination().1 - 10_000)] += 1;
        }
    }
    assert!(most <= holdfast::datapath::reset::BACKLOG, "{most} in one poll");
    assert!(probed.iter().all(|&times| times == 1 || times == 2), "{probed:?}");
    assert_eq!(rig.stats(0).probes_sent.get(), probed.iter().sum::<u64>());
    rig.assert_accounted();
}

/// A stuck NIC: no frame is lost, and unsent packets are not counted as sent.
#[test]
fn resets_that_find_no_room_are_let_go() {
    let mut rig = Rig::new(1, 1, vec![resetting(Forward::Nat, Family::V4, 1)]);
    open(&mut rig, Family::V4);
    down(&mut rig);
    let packets = vec![segment(Family::V4, 5, 9); 1_000];
    let delivered = rig.deliver_without_collecting(0, 0, &packets);
    assert_eq!(rig.drops(0, Drop::FlowReset), delivered as u64);
    rig.assert_accounted();
    let collected = rig.collect(0, 0).len();
    assert_eq!(rig.stats(0).resets_sent.get(), collected as u64);
    assert!(collected < delivered * 2, "the ring was full");
}

/// Remains of a terminated flow, at any worker, do not affect the next flow with its ports.
#[test]
fn a_flow_after_a_terminated_one_is_served_at_every_worker() {
    for (client_at, backend_at) in [(0, 1), (0, 2), (1, 0), (1, 2)] {
        for (family, pause) in [(Family::V4, 1), (Family::V4, 100), (Family::V6, 1)] {
            let name = format!("{client_at} {backend_at} {family:?} {pause}");
            let mut rig = Rig::new(3, 1, vec![resetting(Forward::Nat, family, 1)]);
            let request = open(&mut rig, family);
            rig.send(backend_at, 0, &request.reply("A"));
            down(&mut rig);
            assert_eq!(rig.send(backend_at, 0, &request.reply("A")).len(), 2, "{name}: cut");
            rig.change(|specs| specs[0].backends[0].up = true);
            for flags in ["S", "A", "A"] {
                rig.advance(pause);
                // Probes of the old flow.
                rig.idle();
                (0..3).for_each(|worker| drop(rig.collect(worker, 0)));
                let request = Sent::of(client_at, &client(family, flags), &mut rig);
                let reply = request.reply(if flags == "S" { "SA" } else { "A" });
                let answer = rig.send(backend_at, 0, &reply);
                assert_eq!(answer.len(), 1, "{name} {flags}");
                assert_eq!(answer[0].destination_mac(), CLIENT_MAC, "{name} {flags}");
                assert!(!answer[0].tcp().rst && !request.tcp().rst, "{name} {flags}");
            }
            rig.assert_accounted();
        }
    }
}

/// A UDP flow's own packets would keep its pin, and so the black hole, alive.
#[test]
fn udp_flows_leave_a_backend_without_a_next_hop() {
    for forward in [Forward::Dsr, Forward::Nat] {
        for family in [Family::V4, Family::V6] {
            let vip = VipSpec { protocol: Protocol::Udp, ..spec(0, forward, family, 1, 3) };
            let mut rig = Rig::new(1, 1, vec![vip]);
            let packet = udp(family, PORT, 80, true);
            let first = rig.backend_of(&packet).unwrap();
            rig.change(|specs| specs[0].backends[usize::from(first)].next_hop = None);
            let next = rig.backend_of(&packet).unwrap();
            assert_ne!(next, first);
            assert_eq!(rig.backend_of(&packet), Some(next), "and stay");
            assert_eq!((rig.stats(0).flows_stale.get(), rig.stats(0).flows_active.get()), (1, 1));
            rig.assert_accounted();
        }
    }
}
