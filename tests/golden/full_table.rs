//! A full flow table: the flows that are dropped, those that go on without a pin, and pinned ones
//! that stay.

use holdfast::forwarding::new_flows::{NewFlows, PrefixBudget};
use holdfast::forwarding::sticky::{Hold, Reentry, Sticky};
use holdfast::forwarding::{FULL_SHARE, Local, Ports, Remember, SchedulerKind, Service, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::Drop;
use holdfast::units::Ticks;

use super::tunnel::tunnels;
use crate::rig::{Family, Rig, SCHEDULERS, spec, tcp, udp};

const ONE_WAY: [Forward; 3] = [Forward::Dsr, Forward::Ipip, Forward::Gue];
/// Ports of flows that fill the smallest table.
const PINNED: std::ops::Range<u16> = 1000..1064;
const LATER: std::ops::Range<u16> = 2000..2200;

/// A worker with a table that is full of established flows of the VIP.
fn full(vip: VipSpec) -> Rig {
    let udp_vip = vip.protocol == Protocol::Udp;
    let mut rig = full_of_first_packets(vip);
    // After a burst of first datagrams, within the time-out.
    rig.advance(60);
    for port in PINNED {
        let packet = if udp_vip { udp(Family::V4, port, 80, true) } else { segment(port, "A") };
        assert_eq!(rig.send(0, 0, &packet).len(), 1);
    }
    rig
}

/// A worker with a table that is full of flows of which the first packet was seen.
fn full_of_first_packets(vip: VipSpec) -> Rig {
    let local = Local { mtus: vec![1500], tunnels: tunnels(), ..Local::default() };
    let udp_vip = vip.protocol == Protocol::Udp;
    let mut rig = Rig::in_box_with_flows(local, u32::from(PINNED.end - PINNED.start), vec![vip]);
    for port in PINNED {
        let packet = if udp_vip { udp(Family::V4, port, 80, true) } else { segment(port, "S") };
        assert_eq!(rig.send(0, 0, &packet).len(), 1, "there is room for all of these");
    }
    assert_eq!(rig.stats(0).flows_active.get(), u64::from(PINNED.end - PINNED.start));
    rig
}

fn segment(port: u16, flags: &str) -> Vec<u8> {
    tcp(Family::V4, port, 80, flags)
}

fn drops(rig: &Rig) -> u64 {
    rig.drops(0, Drop::TableFull)
}

/// By the hash every packet of a flow gets the same backend.
#[test]
fn a_full_table_stops_no_flow_that_the_hash_alone_places() {
    for forward in ONE_WAY {
        for scheduler in SCHEDULERS {
            let mut rig = full(
                spec(0, forward, Family::V4, 1, 5).with(|policy| policy.scheduler = scheduler),
            );
            let placed: Vec<_> = LATER.map(|port| rig.backend_of(&segment(port, "S"))).collect();
            let name = format!("{forward:?} {scheduler:?}");
            let flows = u64::from(LATER.end - LATER.start);
            let by_hash = matches!(
                scheduler,
                SchedulerKind::Maglev { .. }
                    | SchedulerKind::Rendezvous
                    | SchedulerKind::Ring { .. }
            );
            if by_hash {
                assert!(placed.iter().all(Option::is_some), "{name}");
                for flags in ["A", "A", "FA", "R"] {
                    for (port, &backend) in LATER.zip(&placed) {
                        assert_eq!(
                            rig.backend_of(&segment(port, flags)),
                            backend,
                            "{name} {flags}"
                        );
                    }
                }
                assert_eq!(drops(&rig), 0, "{name}");
                // A RST leaves no pin in any case.
                assert_eq!(rig.stats(0).table_full_unpinned.get(), flows * 4, "{name}");
            } else {
                assert!(placed.iter().all(Option::is_none), "{name}");
                assert_eq!((drops(&rig), rig.stats(0).table_full_unpinned.get()), (flows, 0));
            }
            assert_eq!(rig.stats(0).flows_active.get(), 64, "{name}");
            rig.assert_accounted();
        }
    }
}

#[test]
fn datagrams_without_room_go_by_the_hash_too() {
    for forward in ONE_WAY {
        let mut rig =
            full(VipSpec { protocol: Protocol::Udp, ..spec(0, forward, Family::V4, 1, 5) });
        for port in LATER {
            let packet = udp(Family::V4, port, 80, true);
            let first = rig.backend_of(&packet);
            assert!(first.is_some(), "{forward:?}");
            assert_eq!(rig.backend_of(&packet), first, "{forward:?}");
        }
        assert_eq!(drops(&rig), 0);
        rig.assert_accounted();
    }
}

/// A flood of first packets takes the place of its own flows: an honest client completes its
/// handshake in between, and keeps its pin.
#[test]
fn first_packets_make_room_for_others_and_established_flows_stay() {
    for forward in [Forward::Nat, Forward::FullNat, ONE_WAY[0], ONE_WAY[1], ONE_WAY[2]] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let udp_vip = protocol == Protocol::Udp;
            let name = format!("{forward:?} {protocol:?}");
            let vip = VipSpec { protocol, ..spec(0, forward, Family::V4, 1, 5) };
            let mut rig = full_of_first_packets(vip);
            let packet = |port, flags: &str| match udp_vip {
                true => udp(Family::V4, port, 80, true),
                false => segment(port, flags),
            };
            let mut honest = Vec::new();
            for port in LATER {
                let first = rig.backend_of(&packet(port, "S"));
                assert!(first.is_some(), "{name}: {port} found no room");
                // Some clients come back after its first packet, among those of the flood.
                if port % 40 == 0 {
                    rig.advance(60);
                    assert_eq!(rig.backend_of(&packet(port, "A")), first, "{name}");
                    honest.push((port, first));
                }
            }
            let stats = rig.stats(0);
            assert!(stats.flows_evicted.get() >= 100, "{name}: {}", stats.flows_evicted.get());
            assert_eq!((drops(&rig), stats.table_full_unpinned.get()), (0, 0), "{name}");
            let pinned = |rig: &Rig| rig.stats(0).flows_by_hash.get();
            let before = pinned(&rig);
            for (port, backend) in honest {
                assert_eq!(rig.backend_of(&packet(port, "A")), backend, "{name}: {port}");
            }
            assert_eq!(pinned(&rig), before, "{name}: an established flow had lost its pin");
            rig.assert_accounted();
        }
    }
}

/// Replies need the entry, and so does the mapping of a sticky client.
#[test]
fn where_the_hash_is_not_all_new_flows_are_dropped() {
    let sticky = Some(Sticky { on_drain: Hold::Release, on_down: Hold::Release });
    let remember = Some(Remember { timeout: Ticks(500), sticky, on_reentry: Reentry::Hash });
    for (name, vip) in [
        ("nat", spec(0, Forward::Nat, Family::V4, 1, 5)),
        ("full_nat", spec(0, Forward::FullNat, Family::V4, 1, 5)),
        (
            "sticky",
            spec(0, Forward::Dsr, Family::V4, 1, 5).with(|policy| policy.remember = remember),
        ),
    ] {
        let mut rig = full(vip);
        for port in LATER {
            assert_eq!(rig.backend_of(&segment(port, "S")), None, "{name}");
        }
        assert_eq!(drops(&rig), u64::from(LATER.end - LATER.start), "{name}");
        assert_eq!(rig.stats(0).table_full_unpinned.get(), 0, "{name}");
        for port in PINNED {
            assert!(rig.backend_of(&segment(port, "A")).is_some(), "{name}: pinned");
        }
        rig.assert_accounted();
    }
}

/// A packet without a pin does not show whether its flow is new: the SYN goes to the backend of the
/// rest.
#[test]
fn a_connection_without_a_pin_is_not_torn_apart_by_a_drain_or_a_slow_start() {
    for forward in ONE_WAY {
        for drains in [true, false] {
            let mut vip = spec(0, forward, Family::V4, 1, 3);
            match drains {
                true => vip.backends[1].service = Service::Draining,
                false => vip.backends[1].share = FULL_SHARE / 4,
            }
            let mut rig = full(vip);
            let (mut to_1, mut refused) = (0, 0);
            for port in LATER {
                let Some(backend) = rig.backend_of(&segment(port, "S")) else {
                    refused += 1;
                    continue;
                };
                to_1 += u32::from(backend == 1);
                for flags in ["A", "A", "FA"] {
                    assert_eq!(rig.backend_of(&segment(port, flags)), Some(backend), "{forward:?}");
                }
            }
            assert_eq!(drops(&rig), refused);
            // The backend's own share is a third of the flows.
            if drains {
                assert_eq!(to_1, 0, "a draining backend gets no new flow");
                assert!(refused > 30, "{refused}");
            } else {
                assert_eq!(refused, 0);
                assert!(to_1 > 30, "{to_1}");
            }
            rig.assert_accounted();
        }
    }
}

/// A VIP like another one, on a port of its own.
fn beside(forward: Forward) -> Vec<VipSpec> {
    let other = VipSpec { ports: Ports::of(&[81]), ..spec(1, forward, Family::V4, 1, 5) };
    vec![spec(0, forward, Family::V4, 1, 5), other]
}

/// Opens a flow to a port of the VIP, and completes its handshake; returns whether its SYN was sent.
fn open(rig: &mut Rig, from: u16, port: u16, handshake: bool) -> bool {
    let sent = rig.send(0, 0, &tcp(Family::V4, from, port, "S"));
    let Some(syn) = sent.first() else { return false };
    if handshake {
        if syn.destination().1 == 8080 {
            rig.send(0, 0, &syn.reply("SA"));
        }
        rig.send(0, 0, &tcp(Family::V4, from, port, "A"));
    }
    true
}

fn active(rig: &Rig, vip: usize) -> u64 {
    rig.stats(0).vips[vip].flows_active.get()
}

/// Whether the flood is answered or not. Of 64 entries, an eighth is the share of each VIP.
#[test]
fn a_flood_of_one_vip_takes_no_share_of_another() {
    for forward in [Forward::Nat, Forward::FullNat, Forward::Dsr] {
        for handshake in [false, true] {
            let name = format!("{forward:?}, with a handshake: {handshake}");
            let mut rig = Rig::in_box_with_flows(Local::default(), 64, beside(forward));
            for port in LATER {
                open(&mut rig, port, 80, handshake);
            }
            assert_eq!((active(&rig, 0), active(&rig, 1)), (56, 0), "{name}");
            for number in 0..8 {
                assert!(open(&mut rig, 3000 + number, 81, false), "{name}: {number}");
                open(&mut rig, 4000 + number, 80, handshake);
            }
            // Unproven flows over the share give way, and the free entries stay free.
            let left = if handshake { 56 } else { 48 };
            assert_eq!((active(&rig, 0), active(&rig, 1)), (left, 8), "{name}");
            for port in LATER {
                open(&mut rig, port + 1000, 80, handshake);
            }
            assert_eq!(active(&rig, 1), 8, "{name}: they stay");
            rig.assert_accounted();
        }
    }
}

/// A VIP over its share gives way to no other: its established flows stay.
#[test]
fn a_vip_may_use_what_the_shares_of_the_others_leave() {
    let mut vips = beside(Forward::Nat);
    vips[1].policy.table_share = Some(500_000);
    let mut rig = Rig::in_box_with_flows(Local::default(), 64, vips);
    for port in LATER {
        open(&mut rig, port, 80, true);
    }
    // A half is set for the other VIP, and the common quarter is this one's.
    assert_eq!(active(&rig, 0), 32);
    for port in LATER {
        open(&mut rig, port + 1000, 81, true);
    }
    assert_eq!((active(&rig, 0), active(&rig, 1)), (32, 32));
    rig.assert_accounted();
}

fn full_nat(ports: u16, vips: Vec<VipSpec>) -> Rig {
    Rig::with_ports(1, 1, 4096, 20_000..=19_999 + ports, vips)
}

/// A flood takes the SNAT ports of its own flows; established ones keep theirs.
#[test]
fn unproven_flows_give_up_their_snat_ports() {
    let mut rig = full_nat(16, vec![spec(0, Forward::FullNat, Family::V4, 1, 5)]);
    let none = |rig: &Rig| rig.drops(0, Drop::NoSourcePort);
    for port in 1000..1004 {
        assert!(open(&mut rig, port, 80, true));
    }
    for port in LATER {
        assert!(open(&mut rig, port, 80, false), "{port} finds no SNAT port");
    }
    assert_eq!((none(&rig), active(&rig, 0)), (0, 16));
    assert_eq!(rig.stats(0).flows_evicted.get(), u64::from(LATER.end - LATER.start) - 12);
    for port in 1000..1004 {
        assert!(rig.backend_of(&segment(port, "A")).is_some());
    }
    assert_eq!(rig.stats(0).flows_by_hash.get(), 0, "established flows keep their pins");
    // Once all are established, there is none to give up.
    for port in 5000..5012 {
        assert!(open(&mut rig, port, 80, true));
    }
    assert!(!open(&mut rig, 5012, 80, false));
    assert_eq!(none(&rig), 1);
    rig.assert_accounted();
}

#[test]
fn a_flood_of_one_vip_leaves_the_snat_ports_of_another() {
    for handshake in [false, true] {
        let mut rig = full_nat(16, beside(Forward::FullNat));
        for port in LATER {
            open(&mut rig, port, 80, handshake);
        }
        assert_eq!(active(&rig, 0), 14, "{handshake}");
        for port in [3000, 3001] {
            assert!(open(&mut rig, port, 81, false), "{handshake}");
        }
        for port in LATER {
            open(&mut rig, port + 1000, 80, handshake);
        }
        let left = if handshake { 14 } else { 12 };
        assert_eq!((active(&rig, 0), active(&rig, 1)), (left, 2), "{handshake}");
        rig.assert_accounted();
    }
}

/// Beyond a budget, new flows go by the hash where that is possible; pinned flows do not count.
#[test]
fn new_flows_over_their_budget_get_no_pin() {
    let ten_of_all = NewFlows { per_second: Some(10), per_prefix: None };
    let prefix = PrefixBudget { v4: 24, v6: 48, per_second: 10 };
    let ten_of_each = NewFlows { per_second: None, per_prefix: Some(prefix) };
    for budget in [ten_of_all, ten_of_each] {
        for forward in [Forward::Dsr, Forward::Ipip, Forward::Nat, Forward::FullNat] {
            let name = format!("{forward:?} {budget:?}");
            let local = Local {
                mtus: vec![1500],
                tunnels: tunnels(),
                new_flows: budget,
                ..Local::default()
            };
            let mut rig = Rig::in_box(local, 1, 1, vec![spec(0, forward, Family::V4, 1, 5)]);
            let placed: Vec<_> = LATER.map(|port| rig.backend_of(&segment(port, "S"))).collect();
            let over = u64::from(LATER.end - LATER.start) - 10;
            assert_eq!(active(&rig, 0), 10, "{name}");
            let (dropped, unpinned) = match forward.translates() {
                true => (over, 0),
                false => (0, over),
            };
            assert_eq!(rig.drops(0, Drop::NewFlowLimit), dropped, "{name}");
            assert_eq!(rig.stats(0).new_flow_limit_unpinned.get(), unpinned, "{name}");
            for (port, &backend) in LATER.zip(&placed) {
                assert_eq!(rig.backend_of(&segment(port, "A")), backend, "{name}: {port}");
            }
            assert_eq!(active(&rig, 0), 10, "{name}: no time has passed");
            rig.advance(50);
            for port in LATER {
                rig.backend_of(&segment(port + 1000, "S"));
            }
            assert_eq!(active(&rig, 0), 15, "{name}: half a second later");
            rig.assert_accounted();
        }
    }
}
