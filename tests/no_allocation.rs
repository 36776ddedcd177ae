//! A worker does not allocate (architecture invariant 3): a counting allocator verifies it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
#![allow(dead_code, reason = "the rig has more than this test needs")]

use holdfast::forwarding::publish::{Publisher, prepare_thread};
use holdfast::forwarding::quic_lb::{Codec, Config};
use holdfast::forwarding::sticky::{Hold, Reentry, Sticky};
use holdfast::forwarding::{Affinity, FlowAction, ForwardingTable, Local, Remember, ServerId};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::LocalReply;
use holdfast::units::Ticks;

#[path = "support/allocator.rs"]
mod allocator;
mod rig;

use allocator::calls_of;

/// Delivers a packet to a worker; returns the packets that it sends, and adds the calls of the
/// allocator to `total`.
fn send(rig: &mut rig::Rig, worker: usize, packet: &[u8], total: &mut u64) -> Vec<rig::Sent> {
    rig.deliver(worker, 0, packet);
    *total += calls_of(|| rig.poll(worker)).0;
    rig.collect(worker, 0)
}

#[test]
fn polling_never_allocates_or_frees() {
    let sticky = Some(Sticky { on_drain: Hold::Release, on_down: Hold::Release });
    let remember = Remember { timeout: Ticks(1), sticky, on_reentry: Reentry::Freest };
    for (forward, remember) in
        [(Forward::Dsr, None), (Forward::Nat, None), (Forward::Nat, Some(remember))]
    {
        let spec = rig::spec(0, forward, rig::Family::V4, 1, 3);
        let mut rig = rig::Rig::new(2, 1, vec![spec.with(|policy| policy.remember = remember)]);
        let packets: Vec<Vec<u8>> = (1000..1100)
            .flat_map(|port| {
                ["S", "A", "FA", "R"].map(|flags| rig::tcp(rig::Family::V4, port, 80, flags))
            })
            .collect();
        let mut calls = 0;
        for (round, packet) in packets.iter().enumerate() {
            let worker = round % 2;
            let sent = send(&mut rig, worker, packet, &mut calls);
            if forward == Forward::Nat {
                send(&mut rig, 1 - worker, &sent[0].reply("A"), &mut calls);
            }
        }
        // A first fragment, a later one that is parked, and one that arrives before its first
        // fragment.
        let whole = rig::tcp(rig::Family::V4, 1000, 80, "A");
        let part = |word: [u8; 2], id: u8| {
            let mut part = whole.clone();
            part.truncate(34 + 24);
            part[16..18].copy_from_slice(&[0, 44]);
            (part[19], part[20], part[21]) = (id, word[0], word[1]);
            rig::set_sum(&mut part);
            part
        };
        for (worker, part) in [(0, part([0x20, 0], 1)), (1, part([0, 3], 1)), (1, part([0, 3], 2))]
        {
            rig.deliver(worker, 0, &part);
            calls += calls_of(|| (0..2).for_each(|_| rig.poll(worker))).0;
        }
        assert_eq!(rig.stats(1).fragments_parked.get(), 1, "{forward:?}");
        (0..2).for_each(|worker| drop(rig.collect(worker, 0)));
        assert_eq!(calls, 0, "{forward:?}");
        // The publisher frees old tables, not the worker that drops the last use of one.
        rig.change(|specs| specs[0].backends[0].up = false);
        rig.deliver(0, 0, &packets[0]);
        let (calls, ()) = calls_of(|| rig.poll(0));
        assert_eq!(calls, 0, "{forward:?}: a new table");
        assert!(allocator::total() > 0, "the allocator counts");
    }
}

/// Datagrams without pins, their replies, and their fragments.
#[test]
fn placing_datagrams_never_allocates_or_frees() {
    let schedulers = rig::SCHEDULERS.into_iter().filter(|kind| !kind.counts_flows());
    for (forward, scheduler) in
        schedulers.flat_map(|kind| [Forward::Dsr, Forward::Nat].map(|forward| (forward, kind)))
    {
        let mut vip = rig::spec(0, forward, rig::Family::V4, 1, 3);
        (vip.protocol, vip.policy.pin, vip.policy.scheduler) = (Protocol::Udp, false, scheduler);
        let mut rig = rig::Rig::new(2, 1, vec![vip]);
        let mut calls = 0;
        let mut send =
            |rig: &mut rig::Rig, worker, packet: &[u8]| send(rig, worker, packet, &mut calls);
        for port in 1000..1100 {
            let packet = rig::udp(rig::Family::V4, port, 80, true);
            let sent = send(&mut rig, 0, &packet).remove(0);
            if forward == Forward::Nat {
                assert_eq!(send(&mut rig, 1, &sent.udp_reply()).len(), 1);
            }
            // The UDP header alone: 8 bytes of the datagram, and more fragments.
            let mut first = packet.clone();
            first.truncate(42);
            (first[17], first[20]) = (28, 0x20);
            first[18..20].copy_from_slice(&port.to_be_bytes());
            rig::set_sum(&mut first);
            assert_eq!(send(&mut rig, 0, &first).len(), 1);
        }
        assert_eq!(calls, 0, "{forward:?} {scheduler}");
        assert_eq!(rig.stats(0).datagrams_placed.get(), 200);
    }
}

/// SNAT ports are allocated, looked up and released; headers are rewritten, and a PROXY header is
/// prepended.
#[test]
fn full_nat_never_allocates_or_frees() {
    let families = [rig::Family::V4, rig::Family::V6];
    for (family, inner) in families.into_iter().flat_map(|one| families.map(|two| (one, two))) {
        for proxy in [false, true] {
            let mut vip = rig::spec(0, Forward::FullNat, family, 1, 1);
            vip.backends[0].address = inner.backend(0);
            let mut rig = rig::Rig::new(2, 1, vec![vip.with(|policy| policy.proxy = proxy)]);
            let mut calls = 0;
            let mut send =
                |rig: &mut rig::Rig, worker, packet: &[u8]| send(rig, worker, packet, &mut calls);
            for port in 1000..1100 {
                let asked = send(&mut rig, 0, &rig::tcp(family, port, 80, "S")).remove(0);
                let answer = rig::numbered(inner, asked.reply("SA"), 1, 1001);
                send(&mut rig, 1, &answer);
                for (worker, flags) in [(0, "A"), (1, "A"), (0, "FA")] {
                    let packet = rig::numbered(family, rig::tcp(family, port, 80, flags), 1001, 2);
                    send(&mut rig, worker, &packet);
                    send(&mut rig, 1 - worker, &asked.reply(flags));
                }
            }
            // Longer than the closing time-out and a round of the sweep.
            for _ in 0..8 {
                calls += calls_of(|| rig.advance(100)).0;
            }
            assert_eq!(calls, 0, "{family:?} {inner:?}, proxy: {proxy}");
            let snat_table = rig.stats(0).snat_ports(inner.into());
            assert_eq!((rig.stats(0).flows_new.get(), snat_table.get()), (100, 0));
        }
    }
}

/// Connection ids are read in every packet; each of these moves its flow to another backend.
#[test]
fn following_connection_ids_never_allocates() {
    let config = Config { rotation: 0, server_id_bytes: 10, nonce_bytes: 5, key: Some([7; 16]) };
    let mut spec = rig::spec(0, Forward::Nat, rig::Family::V4, 1, 3);
    spec.protocol = Protocol::Udp;
    spec.policy.affinity = Affinity::QuicCid;
    spec.policy.quic = Box::new([config]);
    let server_ids = [[1; 10], [2; 10], [3; 10]].map(|bytes| ServerId::new(&bytes).unwrap());
    for (backend, id) in spec.backends.iter_mut().zip(server_ids) {
        backend.server_ids = vec![id];
    }
    let codec = Codec::new(&config).unwrap();
    let mut rig = rig::Rig::new(1, 1, vec![spec]);
    for round in 0..100 {
        let id = codec.encode(server_ids[round % 3], &[9; 5]).unwrap();
        let payload = [&[0x40], &id[..], &[1; 20]].concat();
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ethernet2(rig::CLIENT_MAC, rig::nic_mac(0))
            .ipv4([198, 18, 1, 10], [192, 0, 2, 10], 64)
            .udp(5000, 80)
            .write(&mut packet, &payload)
            .unwrap();
        rig.deliver(0, 0, &packet);
        let (calls, ()) = calls_of(|| rig.poll(0));
        assert_eq!(calls, 0, "round {round}");
        assert_eq!(usize::from(rig.collect(0, 0)[0].destination_mac()[5]), round % 3);
    }
    assert_eq!(rig.stats(0).flows_by_cid.get(), 100);
}

/// Resets of terminated flows do not allocate; a sweep probes the silent ones.
#[test]
fn resetting_never_allocates_or_frees() {
    for forward in [Forward::Dsr, Forward::Nat] {
        for family in [rig::Family::V4, rig::Family::V6] {
            let mut vip = rig::spec(0, forward, family, 1, 3);
            vip.policy.on_down = FlowAction::Reset;
            let mut rig = rig::Rig::new(1, 1, vec![vip]);
            for port in 1000..1100 {
                for flags in ["S", "A"] {
                    rig.send(0, 0, &rig::tcp(family, port, 80, flags));
                }
            }
            rig.change(|specs| specs[0].backends.iter_mut().for_each(|b| b.up = false));
            let packets: Vec<_> =
                (1000..1050).map(|port| rig::tcp(family, port, 80, "A")).collect();
            let mut calls = 0;
            for packet in &packets {
                rig.deliver(0, 0, packet);
                calls += calls_of(|| rig.advance(10)).0;
                rig.collect(0, 0);
            }
            assert_eq!(calls, 0, "{forward:?} {family:?}");
            assert!(rig.stats(0).resets_sent.get() >= 100);
            assert!(rig.stats(0).probes_sent.get() >= 100);
        }
    }
}

/// Local replies do not allocate: ICMP errors, RSTs and echo replies.
#[test]
fn answering_never_allocates_or_frees() {
    for family in [rig::Family::V4, rig::Family::V6] {
        let mut vip = rig::spec(0, Forward::Nat, family, 1, 1);
        vip.policy.reject_no_backend = true;
        vip.backends[0].mtu = 30;
        let mut rig = rig::Rig::new(1, 1, vec![vip]);
        // At first too long for the backend; then there is no backend.
        for (port, answer) in [(1000, LocalReply::TooBig), (1001, LocalReply::Rejected)] {
            let mut packet = rig::tcp(family, port, 80, "S");
            if family == rig::Family::V4 {
                packet[20] |= 0x40;
            }
            rig.deliver(0, 0, &packet);
            let (calls, ()) = calls_of(|| rig.poll(0));
            assert_eq!(calls, 0, "{answer:?}");
            assert_eq!(rig.stats(0).local_reply_counter(answer).get(), 1);
            rig.collect(0, 0);
            rig.change(|specs| specs[0].backends[0].up = false);
            rig.idle();
        }
    }
}

/// Choosing a backend does not allocate, with one backend out of service.
#[test]
fn no_scheduler_allocates() {
    for scheduler in rig::SCHEDULERS {
        let mut vip = rig::spec(0, Forward::Dsr, rig::Family::V4, 1, 20);
        vip.policy.scheduler = scheduler;
        vip.backends[3].up = false;
        let mut rig = rig::Rig::new(1, 1, vec![vip]);
        rig.send(0, 0, &rig::tcp(rig::Family::V4, 999, 80, "S"));
        let before = allocator::total();
        let mut total = 0;
        for port in 1000..1200 {
            let packet = rig::tcp(rig::Family::V4, port, 80, "S");
            assert_eq!(send(&mut rig, 0, &packet, &mut total).len(), 1, "{scheduler}");
        }
        assert_eq!(total, 0, "{scheduler}");
        assert!(allocator::total() > before, "the allocator counts");
    }
}

/// In a thread that has never loaded a table: arc-swap allocates there once, unless the thread is
/// prepared. The publisher frees old tables.
#[test]
fn a_prepared_thread_takes_up_tables_without_allocating() {
    let table =
        |generation| ForwardingTable::build(generation, [7; 16], Local::default(), &[], None);
    let (mut publisher, mut tables) = Publisher::new(table(1));
    publisher.publish(table(2));
    let worker = std::thread::spawn(move || {
        prepare_thread();
        calls_of(|| tables.current().generation())
    });
    assert_eq!(worker.join().ok(), Some((0, 2)));
    assert_eq!(publisher.retained(), 1, "it was not the worker that freed the first table");
}
