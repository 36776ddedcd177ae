//! VIPs with `pin = false`: each datagram gets a backend on its own, and leaves no entry.

use std::collections::BTreeMap;
use std::net::IpAddr;

use holdfast::forwarding::tunnel::TunnelSources;
use holdfast::forwarding::{Affinity, FULL_SHARE, Local, SchedulerKind, Service, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::{Drop, LocalReply};

use super::fragments::{datagram, fragments, reassembled};
use super::icmp::{FAMILIES, Message, icmp, of_vip, router, too_big};
use crate::rig::{CLIENT_MAC, Family, Rig, SCHEDULERS, Sent, backend_mac, nic_mac, spec, tagged};

const MODES: [Forward; 4] = [Forward::Dsr, Forward::Nat, Forward::Ipip, Forward::Gue];
const MAGLEV: SchedulerKind = SchedulerKind::Maglev { size: 1009 };

fn vip(forward: Forward, family: Family, scheduler: SchedulerKind) -> VipSpec {
    VipSpec {
        protocol: Protocol::Udp,
        ..spec(0, forward, family, 1, 3).with(|policy| {
            policy.pin = false;
            policy.scheduler = scheduler;
        })
    }
}

/// Workers for one VIP, with source addresses for its tunnels.
fn rig(workers: usize, nics: usize, vip: VipSpec) -> Rig {
    let mut local = Local::default();
    local.tunnels.source_v4 = Some(TunnelSources::new("198.18.2.2".parse().unwrap()));
    local.tunnels.source_v6 = Some(TunnelSources::new("2001:db8:2::2".parse().unwrap()));
    Rig::in_box(local, workers, nics, vec![vip])
}

/// A query from any client, with source MAC `mac`.
fn query_of(client: (IpAddr, u16), family: Family, mac: [u8; 6]) -> Vec<u8> {
    datagram([client, (family.vip(), 80)], [mac, nic_mac(0)], 40)
}

fn query(family: Family, port: u16) -> Vec<u8> {
    query_of((family.client(), port), family, CLIENT_MAC)
}

fn every_mode() -> impl Iterator<Item = (Forward, Family)> {
    MODES.into_iter().flat_map(|mode| FAMILIES.map(|family| (mode, family)))
}

/// Asserts that no worker has a flow, or ever had one.
fn assert_no_flows(rig: &Rig, workers: usize) {
    for worker in 0..workers {
        let stats = rig.stats(worker);
        let flows = [&stats.flows_active, &stats.flows_new, &stats.flow_aliases];
        assert_eq!(flows.map(holdfast::stats::Counter::get), [0; 3]);
        assert_eq!((stats.vips[0].flows_active.get(), stats.vips[0].flows_total.get()), (0, 0));
    }
    rig.assert_accounted();
}

#[test]
fn datagrams_go_where_their_hash_goes_and_leave_no_entry() {
    let hashing =
        SCHEDULERS.into_iter().filter(|kind| kind.heeds_affinity() && !kind.counts_flows());
    for ((forward, family), scheduler) in
        every_mode().flat_map(|mode| hashing.clone().map(move |kind| (mode, kind)))
    {
        let name = format!("{forward:?} {family:?} {scheduler:?}");
        let unpinned = vip(forward, family, scheduler);
        let mut pinned = rig(1, 1, unpinned.clone().with(|policy| policy.pin = true));
        let mut rig = rig(2, 1, unpinned);
        for port in 1000..1030 {
            let expected = pinned.send(0, 0, &query(family, port)).remove(0);
            for worker in [0, 1, 0] {
                let sent = Sent::of(worker, &query(family, port), &mut rig);
                if !forward.tunnels() {
                    sent.assert_checksums();
                }
                // Outer IPv4 headers have consecutive identifications.
                assert_eq!(sent.destination_mac(), expected.destination_mac(), "{name}");
                assert_eq!(sent.bytes.len(), expected.bytes.len(), "{name}");
                if forward == Forward::Nat || forward == Forward::Dsr {
                    assert_eq!(sent, expected, "{name}");
                }
            }
        }
        assert_no_flows(&rig, 2);
        let placed = [0, 1].map(|worker| rig.stats(worker).datagrams_placed.get());
        let counted = [0, 1].map(|worker| rig.stats(worker).vips[0].packets_in.get());
        assert_eq!((placed, counted), ([60, 30], [60, 30]), "{name}");
    }
}

#[test]
fn a_drain_sends_the_next_datagram_elsewhere() {
    for (forward, family) in every_mode() {
        let mut rig = rig(1, 1, vip(forward, family, MAGLEV));
        let backends = |rig: &mut Rig| -> Vec<Option<u16>> {
            (1000..1060).map(|port| rig.backend_of(&query(family, port))).collect()
        };
        let before = backends(&mut rig);
        assert!(before.contains(&Some(1)));
        rig.change(|specs| specs[0].backends[1].service = Service::Draining);
        let drained = backends(&mut rig);
        assert!(!drained.contains(&Some(1)), "{forward:?} {family:?}");
        for (before, after) in before.iter().zip(&drained) {
            assert!(*before == Some(1) || before == after, "the others stay");
        }
        rig.change(|specs| specs[0].backends[1].service = Service::Active);
        assert_eq!(backends(&mut rig), before);
        assert_no_flows(&rig, 1);
    }
}

#[test]
fn the_datagrams_of_one_socket_take_turns() {
    for (forward, family) in every_mode() {
        let mut rig = rig(1, 1, vip(forward, family, SchedulerKind::RoundRobin));
        let mut turns = Vec::new();
        for _ in 0..30 {
            turns.push(rig.backend_of(&query(family, 1000)).unwrap());
        }
        for cycle in turns.chunks(3) {
            assert_eq!(cycle, &turns[..3], "{forward:?} {family:?}");
        }
        turns.sort_unstable();
        turns.dedup();
        assert_eq!(turns, [0, 1, 2]);
        let counted = &rig.stats(0).backends;
        assert_eq!([0, 1, 2].map(|index: usize| counted[index].packets_in.get()), [10; 3]);
        assert_no_flows(&rig, 1);
    }
}

/// With scheduling in turn, a starting backend gets a share of the datagrams, not of the clients.
#[test]
fn a_starting_backend_takes_its_share_of_one_sockets_datagrams() {
    let mut vip = vip(Forward::Dsr, Family::V4, SchedulerKind::RoundRobin);
    vip.backends[2].share = FULL_SHARE / 2;
    let mut rig = rig(1, 1, vip);
    for _ in 0..600 {
        assert_eq!(rig.send(0, 0, &query(Family::V4, 1000)).len(), 1);
    }
    let taken = rig.stats(0).backends[2].packets_in.get();
    assert!((70..130).contains(&taken), "{taken} of 600, half of a third are 100");
}

/// The return hop is that of the client's last datagram: NIC, MAC and VLAN, as with a pin.
#[test]
fn answers_come_from_the_vip_and_go_to_where_the_client_is() {
    for (family, scheduler) in FAMILIES
        .into_iter()
        .flat_map(|family| [MAGLEV, SchedulerKind::RoundRobin].map(|kind| (family, kind)))
    {
        let mut rig = rig(
            2,
            2,
            VipSpec {
                backends: spec(0, Forward::Nat, family, 2, 3).backends,
                ..vip(Forward::Nat, family, scheduler)
            },
        );
        let neighbour = family.pick("198.18.1.77", "2001:db8:1::77");
        let remote = family.pick("203.0.113.9", "2001:db8:ff::9");
        let mut served = 0;
        for (client, mac, vlan) in [
            (family.client(), CLIENT_MAC, None),
            (neighbour, [2, 0xd, 0, 0, 0, 1], Some(7)),
            (remote, [2, 0xe, 0, 0, 0, 1], None),
            // Another router now.
            (remote, [2, 0xe, 0, 0, 0, 2], Some(9)),
        ] {
            for port in [1000, 1001, 1002] {
                let request = tagged(query_of((client, port), family, mac), vlan);
                let sent = rig.send(0, 0, &request).remove(0);
                // Replies may arrive at any worker.
                for worker in [1, 0] {
                    let reply = rig.send(worker, 1, &sent.udp_reply()).remove(0);
                    reply.assert_checksums();
                    assert_eq!((reply.nic, reply.destination_mac(), reply.vlan()), (0, mac, vlan));
                    assert_eq!(reply.source(), (family.vip(), 80));
                    assert_eq!(reply.destination(), (client, port, 63));
                    served += 1;
                }
            }
        }
        let out: u64 = (0..2).map(|worker| rig.stats(worker).vips[0].packets_out.get()).sum();
        assert_eq!(out, served);
        assert_no_flows(&rig, 2);
    }
}

#[test]
fn an_answer_to_a_client_that_never_asked_is_dropped() {
    for family in FAMILIES {
        let mut rig = rig(1, 1, vip(Forward::Nat, family, MAGLEV));
        let request = Sent::of(0, &query(family, 1000), &mut rig);
        let (backend, client) = (family.backend(0), family.pick("198.18.1.99", "2001:db8:1::99"));
        let ends = [(backend, 8080), (client, 1000)];
        assert!(rig.send(0, 0, &datagram(ends, [backend_mac(0), nic_mac(0)], 40)).is_empty());
        assert_eq!(rig.drops(0, Drop::ReturnNoFlow), 1);
        assert_eq!(rig.send(0, 0, &request.udp_reply()).len(), 1);
        assert_no_flows(&rig, 1);
    }
}

/// Forged sources evict a client from the table of return hops, but never send its replies to
/// another client.
#[test]
fn a_flood_takes_replies_at_most() {
    let family = Family::V4;
    let mut rig = rig(1, 1, vip(Forward::Nat, family, MAGLEV));
    let request = Sent::of(0, &query(family, 1000), &mut rig);
    for number in 0..2000_u32 {
        let forged = IpAddr::from((0xcb00_7100 + number * 256).to_be_bytes());
        rig.send(0, 0, &query_of((forged, 53), family, [2, 0xbad, 0, 0, 0, 1].map(low)));
    }
    let sent = rig.send(0, 0, &request.udp_reply());
    assert!(sent.is_empty() || sent[0].destination_mac() == CLIENT_MAC);
    assert_eq!(sent.len() as u64 + rig.drops(0, Drop::ReturnNoFlow), 1);
    // The next datagram restores the return hop.
    let request = Sent::of(0, &query(family, 1000), &mut rig);
    assert_eq!(rig.send(0, 0, &request.udp_reply())[0].destination_mac(), CLIENT_MAC);
    assert_no_flows(&rig, 1);
}

fn low(byte: i32) -> u8 {
    u8::try_from(byte & 0xff).unwrap()
}

/// In any order, at any worker; by the hash, and in turn.
#[test]
fn all_fragments_of_a_datagram_go_to_one_backend() {
    for ((forward, family), scheduler) in every_mode()
        .flat_map(|mode| [MAGLEV, SchedulerKind::RoundRobin].map(|scheduler| (mode, scheduler)))
    {
        let name = format!("{forward:?} {family:?} {scheduler:?}");
        let mut rig = rig(2, 1, vip(forward, family, scheduler));
        let ends = [(family.client(), 1000), (family.vip(), 80)];
        let whole = datagram(ends, [CLIENT_MAC, nic_mac(0)], 300);
        let mut datagrams = BTreeMap::new();
        for id in 1..=60 {
            // Whole datagrams take turns in between.
            rig.send(0, 0, &query(family, 2000));
            let parts = fragments(&whole, id);
            let mut sent = Vec::new();
            for (worker, part) in (0..parts.len()).rev().zip(parts.iter().rev()) {
                sent.extend(rig.send((worker + usize::from(id)) % 2, 0, part));
            }
            rig.idle();
            sent.extend((0..2).flat_map(|worker| rig.collect(worker, 0)));
            assert_eq!(sent.len(), parts.len(), "{name} {id}");
            let backend = sent[0].destination_mac();
            assert!(sent.iter().all(|one| one.destination_mac() == backend), "{name} {id}");
            *datagrams.entry(backend).or_insert(0) += 1;
            if !forward.tunnels() {
                let mut sent = sent;
                sent.sort_by_key(|one| one.bytes.clone());
                reassembled(&sent).assert_checksums();
            }
        }
        match scheduler {
            SchedulerKind::RoundRobin => {
                assert!(datagrams.values().all(|count| *count > 8), "{name}: {datagrams:?}");
            }
            _ => assert_eq!(datagrams.len(), 1, "{name}"),
        }
        let placed: u64 = (0..2).map(|worker| rig.stats(worker).datagrams_placed.get()).sum();
        assert_eq!(placed, 120, "{name}: a datagram is placed once");
        assert_no_flows(&rig, 2);
    }
}

/// Fragments of a reply.
#[test]
fn an_answer_in_fragments_reaches_its_client() {
    for family in FAMILIES {
        let mut rig = rig(2, 1, vip(Forward::Nat, family, MAGLEV));
        let request = Sent::of(0, &query(family, 1000), &mut rig);
        let (backend, port, _) = request.destination();
        let macs = [request.destination_mac(), request.source_mac()];
        let whole = datagram([(backend, port), (family.client(), 1000)], macs, 300);
        let mut sent = Vec::new();
        for (worker, part) in fragments(&whole, 5).iter().enumerate() {
            sent.extend(rig.send(worker % 2, 0, part));
        }
        let whole = reassembled(&sent);
        whole.assert_checksums();
        assert_eq!(whole.source(), (family.vip(), 80));
        assert!(sent.iter().all(|one| one.destination_mac() == CLIENT_MAC));
        assert_no_flows(&rig, 2);
    }
}

/// A router's error about a reply goes to the backend that sent it, found by the hash.
#[test]
fn errors_about_answers_find_the_backend_by_the_hash() {
    for (forward, family) in every_mode() {
        let mut rig = rig(2, 1, vip(forward, family, MAGLEV));
        for port in 1000..1020 {
            let backend = Sent::of(0, &query(family, port), &mut rig).destination_mac();
            let answer = of_vip(family, Protocol::Udp, port);
            let error = icmp(router(family), family.vip(), too_big(family), 1400, &answer);
            let sent = rig.send(1, 0, &error);
            assert_eq!(sent.len(), 1, "{forward:?} {family:?}");
            assert_eq!(sent[0].destination_mac(), backend, "{forward:?} {family:?}");
        }
        assert_eq!(rig.stats(1).icmp_errors_forwarded.get(), 20);
        assert_no_flows(&rig, 2);
    }
}

/// With scheduling in turn, the backend that sent the quoted packet is unknown.
#[test]
fn errors_about_answers_of_datagrams_that_took_turns_are_dropped_by_name() {
    for (forward, family) in every_mode() {
        let mut rig = rig(1, 1, vip(forward, family, SchedulerKind::RoundRobin));
        rig.send(0, 0, &query(family, 1000));
        let answer = of_vip(family, Protocol::Udp, 1000);
        let error = icmp(router(family), family.vip(), too_big(family), 1400, &answer);
        assert!(rig.send(0, 0, &error).is_empty());
        assert_eq!(rig.drops(0, Drop::IcmpNoFlow), 1, "{forward:?} {family:?}");
        assert_no_flows(&rig, 1);
    }
}

/// An error from the backend's side about a query goes to the client, from the VIP.
#[test]
fn errors_about_queries_go_to_the_client() {
    for (family, scheduler) in FAMILIES
        .into_iter()
        .flat_map(|family| [MAGLEV, SchedulerKind::RoundRobin].map(|kind| (family, kind)))
    {
        let mut rig = rig(2, 1, vip(Forward::Nat, family, scheduler));
        let sent = Sent::of(0, &query(family, 1000), &mut rig);
        let kind = if family == Family::V4 { (3, 3) } else { (1, 4) };
        let backend = sent.destination().0;
        let error = icmp(backend, family.client(), kind, 0, &sent.bytes[14..]);
        let reported = rig.send(1, 0, &error).remove(0);
        assert_eq!(reported.destination_mac(), CLIENT_MAC);
        let message = Message::of(&reported);
        assert_eq!((message.source, message.destination), (family.vip(), family.client()));
        let mut own = query(family, 1000);
        own.drain(..14);
        // The quote is the client's own packet again, except for hops and checksum.
        let ports = if family == Family::V4 { 20..24 } else { 40..44 };
        assert_eq!(message.body[ports.clone()], own[ports]);
        let stranger = family.pick("198.18.1.99", "2001:db8:1::99");
        let ends = [(stranger, 1000), (backend, 8080)];
        let quoted = datagram(ends, [nic_mac(0), backend_mac(0)], 40);
        let error = icmp(backend, stranger, kind, 0, &quoted[14..]);
        assert!(rig.send(1, 0, &error).is_empty());
        assert_eq!(rig.drops(1, Drop::IcmpNoFlow), 1);
        assert_no_flows(&rig, 2);
    }
}

#[test]
fn without_a_backend_in_service_the_sender_is_refused_if_the_vip_says_so() {
    for (forward, family) in every_mode() {
        for reject_no_backend in [false, true] {
            let mut vip = vip(forward, family, MAGLEV)
                .with(|policy| policy.reject_no_backend = reject_no_backend);
            vip.backends.iter_mut().for_each(|backend| backend.up = false);
            let mut rig = rig(1, 1, vip);
            let sent = rig.send(0, 0, &query(family, 1000));
            let reported = rig.stats(0).local_reply_counter(LocalReply::Unreachable).get();
            let dropped = rig.drops(0, Drop::NoBackend);
            let expected = if reject_no_backend { (1, 1, 0) } else { (0, 0, 1) };
            assert_eq!((sent.len(), reported, dropped), expected, "{forward:?} {family:?}");
            assert_no_flows(&rig, 1);
        }
    }
}

/// After a reload existing pins end, and none is created.
#[test]
fn a_vip_gives_up_its_pins_by_a_reload() {
    for (forward, family) in every_mode() {
        let mut rig = rig(1, 1, vip(forward, family, MAGLEV).with(|policy| policy.pin = true));
        rig.send(0, 0, &query(family, 1000));
        assert_eq!(rig.stats(0).flows_active.get(), 1);
        rig.change(|specs| {
            specs[0].policy.pin = false;
            // As the registry does.
            specs[0].backends.iter_mut().for_each(|backend| backend.id.generation += 1);
        });
        for _ in 0..5 {
            assert_eq!(rig.send(0, 0, &query(family, 1000)).len(), 1);
            rig.advance(100);
        }
        let stats = rig.stats(0);
        assert_eq!((stats.flows_active.get(), stats.flows_stale.get()), (0, 1), "{forward:?}");
        assert_eq!((stats.flows_new.get(), stats.datagrams_placed.get()), (1, 5));
        rig.assert_accounted();
    }
}

/// Where sources are watched for clients that are too large for one backend, each datagram counts.
#[test]
fn a_watched_source_is_sampled_with_each_datagram() {
    let sampled = VipSpec {
        sampled: true,
        ..vip(Forward::Dsr, Family::V4, MAGLEV).with(|policy| policy.affinity = Affinity::Client)
    };
    let mut rig = rig(1, 1, sampled);
    for _ in 0..10 {
        rig.send(0, 0, &query(Family::V4, 1000));
    }
    let sources = rig.stats(0).samples.take().map(|sample| IpAddr::from(sample.source));
    assert_eq!(sources.collect::<Vec<_>>(), [Family::V4.client(); 10]);
    assert_eq!(rig.stats(0).vips[0].flows_scheduled.get(), 10, "the rate that they are a part of");
    assert_no_flows(&rig, 1);
}
