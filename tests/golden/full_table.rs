//! A full flow table: the flows that are dropped, those that go on without a pin, and pinned ones
//! that stay.

use holdfast::forwarding::sticky::{Hold, Reentry, Sticky};
use holdfast::forwarding::{FULL_SHARE, Local, Remember, SchedulerKind, Service, VipSpec};
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
