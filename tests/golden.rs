//! Golden packets: a real worker on fake rings, packets in, packets and counters out. No root.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]

mod golden {
    mod answers;
    mod ask;
    mod fragment_out;
    mod fragments;
    mod full_nat;
    mod full_table;
    mod hostile;
    mod icmp;
    mod own_backend;
    mod proxy;
    mod removed;
    mod resets;
    mod return_hops;
    mod states;
    mod syn_proxy;
    mod tunnel;
    mod unanswered;
    mod unpinned;
    mod unsent;
    mod vips;
}
mod rig;

use holdfast::forwarding::{Ports, Service};
use holdfast::net::vlan::{Outer, Tags};
use holdfast::net::{Forward, NextHop, Protocol};
use holdfast::stats::{Drop, span_class};
use holdfast::units::Ticks;
use rig::{CLIENT_MAC, Family, Rig, nic_mac, spec, tcp, udp};

const SYN: &str = "S";
const ACK: &str = "A";
const FIN: &str = "FA";
const RST: &str = "R";

/// A whole TCP connection in every mode and family, with one NIC and two, one worker and two.
#[test]
fn a_connection_keeps_its_backend_and_its_packets_are_right() {
    for forward in [Forward::Dsr, Forward::Nat] {
        for family in [Family::V4, Family::V6] {
            for nics in [1, 2] {
                let mut rig = Rig::new(1, nics, vec![spec(0, forward, family, nics, 3)]);
                let mut backends = Vec::new();
                for flags in [SYN, ACK, ACK, FIN] {
                    let sent = rig.send(0, 0, &tcp(family, 40_000, 80, flags));
                    assert_eq!(sent.len(), 1, "{forward:?} {family:?}");
                    assert_eq!(sent[0].nic, nics - 1, "out of the backends' NIC");
                    sent[0].assert_checksums();
                    assert_eq!(sent[0].source_mac(), nic_mac(nics - 1));
                    backends.push(sent[0].destination_mac());
                    let (address, port, ttl) = sent[0].destination();
                    match forward {
                        Forward::Dsr => assert_eq!((address, port, ttl), (family.vip(), 80, 64)),
                        Forward::Nat => {
                            let index = u16::from(sent[0].destination_mac()[5]);
                            assert_eq!((address, port, ttl), (family.backend(index), 8080, 63));
                        }
                        other => unreachable!("{other:?}"),
                    }
                    assert_eq!(sent[0].source(), (family.client(), 40_000));
                }
                backends.dedup();
                assert_eq!(backends.len(), 1, "one backend for all packets");
                let vip = &rig.stats(0).vips[0];
                assert_eq!((vip.packets_in.get(), vip.flows_total.get()), (4, 1));
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn replies_of_nat_backends_come_from_the_vip_and_go_back_to_where_the_client_is() {
    for family in [Family::V4, Family::V6] {
        for nics in [1, 2] {
            let mut rig = Rig::new(1, nics, vec![spec(0, Forward::Nat, family, nics, 3)]);
            for protocol_flags in [SYN, ACK] {
                let request = rig.send(0, 0, &tcp(family, 40_000, 80, protocol_flags));
                let reply = rig.send(0, nics - 1, &request[0].reply("SA"));
                assert_eq!(reply.len(), 1);
                reply[0].assert_checksums();
                assert_eq!(reply[0].nic, 0);
                assert_eq!(reply[0].source(), (family.vip(), 80));
                let (address, port, ttl) = reply[0].destination();
                assert_eq!((address, port, ttl), (family.client(), 40_000, 63));
                assert_eq!(reply[0].destination_mac(), CLIENT_MAC);
                assert_eq!(reply[0].source_mac(), nic_mac(0));
            }
            assert_eq!(rig.stats(0).vips[0].packets_out.get(), 2);
            rig.assert_accounted();
        }
    }
}

#[test]
fn replies_that_arrive_at_another_worker_are_right_and_keep_the_flow_alive() {
    let mut rig = Rig::new(2, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let request = rig.send(0, 0, &tcp(Family::V4, 40_000, 80, SYN));
    for second in 0..10 {
        let reply = rig.send(1, 0, &request[0].reply("A"));
        assert_eq!(reply[0].source(), (Family::V4.vip(), 80), "second {second}");
        assert_eq!(reply[0].destination_mac(), CLIENT_MAC);
        // Far longer in sum than the embryonic time-out of the pin (1 s in this rig).
        rig.advance(90);
    }
    assert_eq!(rig.stats(1).flow_aliases.get(), 1);
    let request = rig.send(0, 0, &tcp(Family::V4, 40_000, 80, ACK));
    assert_eq!(request.len(), 1);
    assert_eq!(rig.stats(0).flows_new.get(), 1, "the pin lived on");
    assert_eq!(rig.stats(0).flows_by_hash.get(), 0);
    rig.assert_accounted();
}

/// Both FINs in both orders, with and without a last ACK, each at either worker.
#[test]
fn ends_seen_by_two_workers_close_the_flow() {
    for client_first in [true, false] {
        for last_ack in [true, false] {
            let mut rig = Rig::new(2, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
            let client = |flags| tcp(Family::V4, 40_000, 80, flags);
            let request = rig.send(0, 0, &client(SYN));
            rig.send(1, 0, &request[0].reply("SA"));
            rig.send(0, 0, &client(ACK));
            for from_client in [client_first, !client_first] {
                match from_client {
                    true => rig.send(0, 0, &client(FIN)),
                    false => rig.send(1, 0, &request[0].reply("FA")),
                };
            }
            if last_ack {
                rig.send(0, 0, &client(ACK));
                rig.send(1, 0, &request[0].reply("A"));
            }
            // Longer than the closing time-out (2 s), shorter than the established one (10 s).
            rig.advance(700);
            let stats = rig.stats(0);
            let name = format!("client first: {client_first}, last ACK: {last_ack}");
            assert_eq!(stats.flows_active.get(), 0, "{name}");
            assert_eq!((stats.flows_closed.get(), stats.flows_idled_out.get()), (1, 0), "{name}");
        }
    }
}

/// The port is reused at another worker while the old pin is still closing.
#[test]
fn replies_close_the_newer_of_two_pins() {
    let mut rig = Rig::new(2, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let client = |flags| tcp(Family::V4, 40_000, 80, flags);
    let old = rig.send(0, 0, &client(SYN));
    rig.send(0, 0, &client(FIN));
    rig.send(0, 0, &old[0].reply("FA"));
    rig.advance(10);
    let new = rig.send(1, 0, &client(SYN));
    assert_eq!(new[0].destination_mac(), old[0].destination_mac(), "the hash is the same");
    rig.send(1, 0, &client(ACK));
    rig.send(1, 0, &client(FIN));
    rig.send(0, 0, &new[0].reply("FA"));
    rig.advance(700);
    assert_eq!((rig.stats(0).flows_active.get(), rig.stats(1).flows_active.get()), (0, 0));
}

#[test]
fn a_flow_that_moves_to_another_worker_keeps_its_backend() {
    for forward in [Forward::Dsr, Forward::Nat] {
        let mut rig = Rig::new(2, 1, vec![spec(0, forward, Family::V4, 1, 8)]);
        for client_port in 1000..1100 {
            let first = rig.send(0, 0, &tcp(Family::V4, client_port, 80, SYN));
            rig.change(|specs| specs[0].backends[3].weight = 50);
            let moved = rig.send(1, 0, &tcp(Family::V4, client_port, 80, ACK));
            assert_eq!(first[0].destination_mac(), moved[0].destination_mac());
        }
        assert_eq!(rig.stats(1).flows_found_elsewhere.get(), 100);
        assert_eq!(rig.stats(1).flows_by_hash.get(), 0);
        rig.assert_accounted();
    }
}

#[test]
fn remote_entries_expire_soon_after_their_flows_and_leave_room_for_pins() {
    let mut rig = Rig::with_flows(2, 1, 128, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    for port in 1000..1120 {
        let request = rig.send(0, 0, &tcp(Family::V4, port, 80, SYN));
        assert_eq!(rig.send(1, 0, &request[0].reply("SA")).len(), 1);
    }
    let aliases = rig.stats(1).flow_aliases.get();
    assert!(
        (84..=96).contains(&aliases),
        "{aliases}: the VIPs' shares, a quarter, are left to pins"
    );
    assert_eq!(rig.send(1, 0, &tcp(Family::V4, 5000, 80, SYN)).len(), 1);
    rig.advance(1500);
    assert_eq!((rig.stats(0).flows_active.get(), rig.stats(1).flow_aliases.get()), (0, 0));
    rig.assert_accounted();
}

#[test]
fn a_remote_entry_notifies_the_owner_at_once() {
    let mut rig = Rig::new(2, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let request = rig.send(0, 0, &tcp(Family::V4, 5000, 80, SYN));
    // The remote entry is new when the client's ACK, from another router, reaches it.
    rig.send(1, 0, &request[0].reply("SA"));
    let mut ack = tcp(Family::V4, 5000, 80, ACK);
    ack[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    rig.send(1, 0, &ack);
    rig.advance(900);
    assert_eq!(rig.stats(0).flows_active.get(), 1, "established, not embryonic");
    let reply = rig.send(0, 0, &request[0].reply("A"));
    assert_eq!(reply[0].destination_mac(), [2, 9, 9, 9, 9, 9]);
    // A forged RST at one worker, packets of the live client at the other.
    rig.send(0, 0, &tcp(Family::V4, 5000, 80, RST));
    rig.send(1, 0, &ack);
    rig.advance(900);
    assert_eq!(rig.stats(0).flows_active.get(), 1, "not closing");
    rig.assert_accounted();
}

#[test]
fn a_lost_pin_is_established_again_by_the_backends_answer() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let request = rig.send(0, 0, &tcp(Family::V4, 5000, 80, ACK));
    assert_eq!(rig.stats(0).flows_by_hash.get(), 1);
    rig.send(0, 0, &request[0].reply("A"));
    rig.advance(900);
    assert_eq!(rig.send(0, 0, &request[0].reply("A")).len(), 1, "beyond the embryonic time-out");
}

#[test]
fn packets_that_end_or_have_no_flow_leave_no_pin() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Dsr, Family::V4, 1, 3)]);
    for flags in [RST, "SA", "F"] {
        assert_eq!(rig.send(0, 0, &tcp(Family::V4, 5000, 80, flags)).len(), 1, "{flags}");
        assert_eq!(active(&rig), 0, "{flags}");
    }
}

#[test]
fn the_whole_of_a_connection_in_one_batch_is_noted() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Dsr, Family::V4, 1, 3)]);
    let packets = [SYN, ACK, FIN].map(|flags| tcp(Family::V4, 5000, 80, flags));
    assert_eq!(rig.send_all(0, 0, &packets).len(), 3);
    rig.advance(700);
    assert_eq!((active(&rig), rig.stats(0).flows_closed.get()), (0, 1));
    let lived = rig.stats(0).lifetimes[0].counts();
    let class = lived.iter().position(|&flows| flows == 1).unwrap();
    assert!(class > 0 && class <= span_class(Ticks(700)), "{lived:?}");
}

/// A reload gives port 80 of an all-ports VIP to another VIP with another mode.
#[test]
fn pinned_flows_keep_the_mode_of_their_own_vip() {
    let mut all = spec(0, Forward::Dsr, Family::V4, 1, 3);
    all.ports = Ports::All;
    let mut web = spec(1, Forward::Nat, Family::V4, 1, 3);
    web.ports = Ports::of(&[443]);
    let mut rig = Rig::new(1, 1, vec![all, web]);
    let before = rig.send(0, 0, &tcp(Family::V4, 5000, 80, SYN));
    rig.change(|specs| specs[1].ports = Ports::of(&[80]));
    let after = rig.send(0, 0, &tcp(Family::V4, 5000, 80, ACK));
    assert_eq!(after[0].destination(), before[0].destination(), "still dsr");
    assert_eq!(rig.stats(0).vips[0].packets_in.get(), 2);
    let new = rig.send(0, 0, &tcp(Family::V4, 5001, 80, SYN));
    assert_eq!(new[0].destination().1, 8080, "new flows are the new VIP's");
}

/// Two pins of one five-tuple, on two backends: a late reply of the old connection must not end the
/// new pin if it arrives at the worker that owns the new pin.
#[test]
fn a_late_reply_of_an_old_connection_leaves_the_new_one_alone() {
    let mut rig = Rig::new(2, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let old = rig.send(0, 0, &tcp(Family::V4, 5000, 80, SYN));
    let old_backend = usize::from(old[0].destination_mac()[5]);
    rig.change(|specs| specs[0].backends[old_backend].service = Service::Draining);
    let new = rig.send(1, 0, &tcp(Family::V4, 5000, 80, SYN));
    assert_ne!(new[0].destination_mac(), old[0].destination_mac());
    for _ in 0..2 {
        assert_eq!(rig.send(1, 0, &old[0].reply("A")).len(), 1, "late, but translated");
        let next = rig.send(1, 0, &tcp(Family::V4, 5000, 80, ACK));
        assert_eq!(next[0].destination_mac(), new[0].destination_mac());
        assert_eq!(rig.send(0, 0, &new[0].reply("A"))[0].source(), (Family::V4.vip(), 80));
    }
    assert_eq!(rig.stats(1).flows_active.get(), 1);
    rig.assert_accounted();
}

#[test]
fn a_flow_that_moves_to_another_worker_is_established_there_and_ends_there() {
    let mut rig = Rig::new(2, 1, vec![spec(0, Forward::Dsr, Family::V4, 1, 3)]);
    rig.send(0, 0, &tcp(Family::V4, 5000, 80, SYN));
    let before = rig.send(1, 0, &tcp(Family::V4, 5000, 80, ACK))[0].destination_mac();
    // Beyond the embryonic time-out.
    rig.advance(500);
    assert_eq!(rig.stats(0).flows_active.get(), 1, "the owner knows that it is established");
    rig.change(|specs| specs[0].backends[usize::from(before[5])].service = Service::Draining);
    let again = rig.send(1, 0, &tcp(Family::V4, 5000, 80, SYN));
    assert_eq!(again[0].destination_mac(), before, "a SYN for an established flow changes nothing");
    rig.send(1, 0, &tcp(Family::V4, 5000, 80, FIN));
    let reused = rig.send(1, 0, &tcp(Family::V4, 5000, 80, SYN));
    assert_ne!(reused[0].destination_mac(), before, "the port is used again: a new flow");
    assert_eq!(rig.stats(1).flows_new.get(), 1);
    rig.advance(700);
    assert_eq!((rig.stats(0).flows_active.get(), rig.stats(1).flow_aliases.get()), (0, 0));
    rig.assert_accounted();
}

#[test]
fn draining_moves_new_flows_at_once_and_old_ones_never() {
    for forward in [Forward::Dsr, Forward::Nat] {
        let mut rig = Rig::new(1, 1, vec![spec(0, forward, Family::V4, 1, 3)]);
        let before: Vec<_> =
            (1000..1300).map(|port| rig.backend_of(&tcp(Family::V4, port, 80, SYN))).collect();
        assert!(before.contains(&Some(1)), "a client is on backend 1");
        rig.change(|specs| specs[0].backends[1].service = Service::Draining);
        for (port, backend) in (1000..).zip(&before) {
            assert_eq!(rig.backend_of(&tcp(Family::V4, port, 80, ACK)), *backend);
        }
        for port in 2000..2300 {
            assert_ne!(rig.backend_of(&tcp(Family::V4, port, 80, SYN)), Some(1), "a new flow");
        }
        rig.assert_accounted();
    }
}

#[test]
fn a_deadline_rehashes_remaining_flows_and_the_new_backend_resets_them() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let port = (1000..).find(|&port| rig.backend_of(&tcp(Family::V4, port, 80, SYN)) == Some(1));
    let port = port.unwrap();
    rig.change(|specs| {
        specs[0].backends[1].service = Service::Out;
        specs[0].backends[1].id.generation += 1;
    });
    let after = rig.backend_of(&tcp(Family::V4, port, 80, ACK));
    assert!(matches!(after, Some(0 | 2)), "another backend: its RST ends the connection");
    assert_eq!(rig.stats(0).flows_stale.get(), 1);
    let ended = rig.stats(0).lifetimes[0].counts();
    assert_eq!(ended.iter().sum::<u64>(), 0, "it did not end by itself");
    rig.assert_accounted();
}

#[test]
fn a_backend_that_is_down_gets_no_new_flow_and_connection_attempts_move_on() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let on_1: Vec<u16> = (1000..1300)
        .filter(|&port| rig.backend_of(&tcp(Family::V4, port, 80, SYN)) == Some(1))
        .collect();
    let (established, attempts) = on_1.split_at(on_1.len() / 2);
    for &port in established {
        rig.backend_of(&tcp(Family::V4, port, 80, ACK));
    }
    rig.change(|specs| specs[0].backends[1].up = false);
    for &port in attempts {
        let moved = rig.backend_of(&tcp(Family::V4, port, 80, SYN));
        assert!(matches!(moved, Some(0 | 2)), "a repeated SYN finds a living backend");
    }
    for &port in established {
        assert_eq!(rig.backend_of(&tcp(Family::V4, port, 80, ACK)), Some(1), "TCP pins stay");
    }
    rig.assert_accounted();
}

#[test]
fn udp_flows_leave_a_backend_that_is_down_although_they_keep_sending() {
    let mut web = spec(0, Forward::Nat, Family::V4, 1, 3);
    web.protocol = Protocol::Udp;
    let mut rig = Rig::new(1, 1, vec![web]);
    let before: Vec<_> =
        (1000..1200).map(|port| rig.backend_of(&udp(Family::V4, port, 80, true))).collect();
    rig.change(|specs| specs[0].backends[1].up = false);
    for (port, before) in (1000..).zip(before) {
        let after = rig.backend_of(&udp(Family::V4, port, 80, true));
        match before {
            Some(1) => assert!(matches!(after, Some(0 | 2))),
            other => assert_eq!(after, other),
        }
    }
    rig.assert_accounted();
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut dns = spec(0, Forward::Nat, Family::V4, 1, 3);
    dns.protocol = Protocol::Udp;
    let mut rig = Rig::new(1, 1, vec![dns]);
    let sent = rig.send(0, 0, &udp(Family::V4, 1000, 80, false));
    assert_eq!(sent[0].udp_checksum(), 0);
    let sent = rig.send(0, 0, &udp(Family::V4, 1000, 80, true));
    sent[0].assert_checksums();
    rig.assert_accounted();
}

#[test]
fn two_packets_of_a_new_flow_in_one_batch_make_one_flow() {
    let mut dns = spec(0, Forward::Nat, Family::V4, 1, 3);
    dns.protocol = Protocol::Udp;
    let mut rig = Rig::new(1, 1, vec![dns]);
    let packet = udp(Family::V4, 1000, 80, true);
    let sent = rig.send_all(0, 0, &[packet.clone(), packet.clone(), packet]);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|packet| packet.destination_mac() == sent[0].destination_mac()));
    assert_eq!(rig.stats(0).flows_new.get(), 1);
    rig.assert_accounted();
}

#[test]
fn idle_flows_end_and_a_reused_port_is_a_new_flow() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    for (name, packets, timeout) in [
        ("embryonic", &[SYN][..], 100),
        ("established", &[SYN, ACK], 1000),
        ("RST", &[SYN, ACK, RST], 200),
        ("forged RST", &[SYN, ACK, RST, ACK], 1000),
    ] {
        assert_eq!(active(&rig), 0, "{name}");
        for flags in packets {
            rig.send(0, 0, &tcp(Family::V4, 5000, 80, flags));
        }
        rig.advance(timeout - 1);
        rig.idle();
        assert_eq!(active(&rig), 1, "{name}: too early");
        // One sweep around the table takes at most 4 s.
        rig.advance(402);
        rig.idle();
        assert_eq!(active(&rig), 0, "{name}: too late");
    }
    rig.send(0, 0, &tcp(Family::V4, 6000, 80, SYN));
    rig.send(0, 0, &tcp(Family::V4, 6000, 80, RST));
    rig.send(0, 0, &tcp(Family::V4, 6000, 80, SYN));
    assert_eq!(rig.stats(0).vips[0].flows_total.get(), 6, "a SYN after a RST starts a new flow");
    rig.assert_accounted();
}

fn active(rig: &Rig) -> u64 {
    rig.stats(0).flows_active.get()
}

#[test]
fn a_full_table_drops_new_flows_and_never_harms_established_ones() {
    let mut rig = Rig::with_flows(1, 1, 64, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let mut before = Vec::new();
    for port in 1000..1100 {
        let backend = rig.backend_of(&tcp(Family::V4, port, 80, SYN));
        if backend.is_some() {
            assert_eq!(rig.backend_of(&tcp(Family::V4, port, 80, ACK)), backend);
        }
        before.push(backend);
    }
    assert_eq!(before.iter().flatten().count(), 64);
    assert_eq!(rig.drops(0, Drop::TableFull), 36);
    for (port, backend) in (1000..).zip(&before).take(64) {
        assert_eq!(rig.backend_of(&tcp(Family::V4, port, 80, ACK)), *backend);
    }
    rig.assert_accounted();
}

#[test]
fn one_backend_port_behind_two_vip_ports_never_mixes_up_two_flows() {
    let mut web = spec(0, Forward::Nat, Family::V4, 1, 3);
    web.ports = Ports::of(&[80, 443]);
    for workers in [1, 2] {
        let mut rig = Rig::new(workers, 1, vec![web.clone()]);
        for port in 1000..1200 {
            let http = rig.send(0, 0, &tcp(Family::V4, port, 80, SYN));
            let https = rig.send(workers - 1, 0, &tcp(Family::V4, port, 443, SYN));
            assert_ne!(http[0].destination(), https[0].destination());
            for (request, vip_port) in [(&http[0], 80), (&https[0], 443)] {
                let reply = rig.send(0, 0, &request.reply("SA"));
                assert_eq!(reply[0].source(), (Family::V4.vip(), vip_port));
            }
        }
        rig.assert_accounted();
    }
    let mut one = web;
    one.backends.truncate(1);
    let mut rig = Rig::new(1, 1, vec![one]);
    assert!(rig.backend_of(&tcp(Family::V4, 7, 80, SYN)).is_some());
    assert!(rig.backend_of(&tcp(Family::V4, 7, 443, SYN)).is_none());
    assert_eq!(rig.drops(0, Drop::NatCollision), 1);
}

#[test]
fn a_client_with_a_new_router_gets_its_replies_by_that_one() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3)]);
    let request = rig.send(0, 0, &tcp(Family::V4, 40_000, 80, SYN));
    let mut again = tcp(Family::V4, 40_000, 80, ACK);
    again[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    rig.send(0, 0, &again);
    let reply = rig.send(0, 0, &request[0].reply("A"));
    assert_eq!(reply[0].destination_mac(), [2, 9, 9, 9, 9, 9]);
}

/// Name, tags of the received packet, tags of the next hop, tags of the sent packet; each tag as
/// TPID and value.
type TagRow<'r> = (&'r str, &'r [(u16, u16)], Option<Tags>, &'r [(u16, u16)]);

#[test]
fn vlan_tags_follow_the_next_hop() {
    const C: u16 = 0x8100;
    const S: u16 = 0x88a8;
    let one = |vlan: u16| Some(Tags::from(vlan));
    let two = |outer, inner| Some(Tags::two(outer, inner));
    let twice_c = Some(Tags { inner: 200, outer: Outer::Customer(100) });
    // Tags of the client's packet; of the backend's next hop; of the packet that goes there.
    let rows: &[TagRow<'_>] = &[
        ("untagged to untagged", &[], None, &[]),
        ("kept", &[(C, 100)], one(100), &[(C, 100)]),
        ("changed, the priority stays", &[(C, 0xa00a)], one(20), &[(C, 0xa014)]),
        ("added", &[], one(200), &[(C, 200)]),
        ("removed", &[(C, 100)], None, &[]),
        ("only a priority", &[(C, 0xe000)], None, &[]),
        ("QinQ kept", &[(S, 100), (C, 200)], two(100, 200), &[(S, 100), (C, 200)]),
        ("QinQ of 8100 kept", &[(C, 100), (C, 200)], twice_c, &[(C, 100), (C, 200)]),
        ("QinQ to one", &[(S, 0x6064), (C, 0xa0c8)], one(300), &[(C, 0xa12c)]),
        ("QinQ removed", &[(S, 100), (C, 200)], None, &[]),
        ("QinQ added", &[], two(7, 8), &[(S, 7), (C, 8)]),
        ("one to QinQ", &[(C, 0x2064)], two(7, 8), &[(S, 0x2007), (C, 0x2008)]),
        ("QinQ changed", &[(S, 0x6001), (C, 0xa002)], two(3, 4), &[(S, 0x6003), (C, 0xa004)]),
    ];
    for &(name, tags, hop, expected) in rows {
        for (family, forward) in [Family::V4, Family::V6]
            .into_iter()
            .flat_map(|family| [(family, Forward::Dsr), (family, Forward::Nat)])
        {
            let mut web = spec(0, forward, family, 1, 3);
            for backend in &mut web.backends {
                backend.next_hop = backend.next_hop.map(|next| NextHop { vlan: hop, ..next });
            }
            let mut rig = Rig::new(1, 1, vec![web]);
            for flags in [SYN, ACK] {
                let sent = rig.send(0, 0, &rig::with_tags(tcp(family, 1000, 80, flags), tags));
                assert_eq!(sent[0].tags(), expected, "{name} {forward:?}");
                sent[0].assert_checksums();
                if forward == Forward::Nat {
                    let reply = rig.send(0, 0, &sent[0].reply("SA"));
                    assert_eq!(vlans(&reply[0].tags()), vlans(tags), "{name}, back");
                    reply[0].assert_checksums();
                }
            }
            rig.assert_accounted();
        }
    }
}

/// Tags without priorities; a priority tag counts as no tag.
fn vlans(tags: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let vlans = tags.iter().map(|&(tpid, value)| (tpid, value & 0xfff));
    vlans.filter(|&(_, vlan)| vlan != 0).collect()
}

#[test]
fn more_tags_than_two_are_refused_by_name() {
    for tags in [
        &[(0x8100, 1), (0x8100, 2), (0x8100, 3)][..],
        &[(0x88a8, 1), (0x8100, 2), (0x8100, 3)],
        &[(0x88a8, 1), (0x88a8, 2), (0x8100, 3)],
        &[(0x8100, 1), (0x88a8, 2)],
        &[(0x88a8, 1)],
    ] {
        let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 1)]);
        let packet = rig::with_tags(tcp(Family::V4, 1000, 80, SYN), tags);
        assert!(rig.send(0, 0, &packet).is_empty(), "{tags:?}");
        assert_eq!(rig.drops(0, Drop::NestedVlan), 1, "{tags:?}");
        rig.assert_accounted();
    }
}

/// Packets that neither a VIP nor a backend accepts, each with its drop reason.
#[test]
fn every_other_drop_has_its_name() {
    let one_backend = |change: fn(&mut holdfast::forwarding::BackendSpec)| {
        let mut web = spec(0, Forward::Nat, Family::V4, 1, 1);
        change(&mut web.backends[0]);
        Rig::new(1, 1, vec![web])
    };
    let syn = tcp(Family::V4, 1000, 80, SYN);
    let with = |range: std::ops::Range<usize>, bytes: &[u8]| {
        let mut packet = syn.clone();
        packet[range].copy_from_slice(bytes);
        rig::set_sum(&mut packet);
        packet
    };
    for (reason, change, packet) in [
        (
            Drop::NoBackend,
            (|b| b.up = false) as fn(&mut holdfast::forwarding::BackendSpec),
            syn.clone(),
        ),
        (Drop::NoBackend, |b| b.weight = 0, syn.clone()),
        (Drop::NoBackend, |b| b.next_hop = None, syn.clone()),
        (Drop::NoVip, |_| {}, tcp(Family::V4, 1000, 81, SYN)),
        (Drop::BadSource, |_| {}, with(26..30, &[224, 0, 0, 1])),
        (Drop::BadSource, |_| {}, with(26..30, &[255; 4])),
        (Drop::BadSource, |_| {}, with(26..30, &[127, 0, 0, 1])),
        (Drop::BadSource, |_| {}, with(26..30, &[0; 4])),
        (Drop::Fragment, |_| {}, with(20..22, &[0x20, 0])),
        (Drop::TruncatedTcp, |_| {}, with(16..18, &[0, 39])),
        (Drop::TruncatedEthernet, |_| {}, vec![2; 14]),
    ] {
        let mut rig = one_backend(change);
        // An IPv4 EtherType with nothing after it is a truncated IPv4 header.
        let (packet, reason) =
            if packet.len() == 14 { (packet[..13].to_vec(), reason) } else { (packet, reason) };
        assert_eq!(rig.send(0, 0, &packet).len(), 0, "{reason:?}");
        assert_eq!(rig.drops(0, reason), 1, "{reason:?}");
        rig.assert_accounted();
    }
    let mut rig = one_backend(|_| {});
    let mut land = tcp(Family::V4, 80, 80, SYN);
    land[26..30].copy_from_slice(&[192, 0, 2, 10]);
    rig::set_sum(&mut land);
    rig.send(0, 0, &land);
    assert_eq!(rig.drops(0, Drop::Land), 1);
    let request = rig::Sent::of(0, &tcp(Family::V4, 1000, 80, SYN), &mut one_backend(|_| {}));
    rig.send(0, 0, &request.reply("SA"));
    assert_eq!(rig.drops(0, Drop::ReturnNoFlow), 1, "an answer to nothing");
}

#[test]
fn a_next_hop_that_goes_away_is_a_named_drop_for_pinned_flows() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Dsr, Family::V4, 1, 1)]);
    rig.send(0, 0, &tcp(Family::V4, 1000, 80, SYN));
    rig.change(|specs| specs[0].backends[0].next_hop = None);
    assert!(rig.send(0, 0, &tcp(Family::V4, 1000, 80, ACK)).is_empty());
    assert_eq!(rig.drops(0, Drop::NoNextHop), 1);
    rig.assert_accounted();
}

#[test]
fn a_stuck_nic_drops_by_name_and_loses_no_frame() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Dsr, Family::V4, 1, 3)]);
    let packets: Vec<_> = (1000..1500).map(|port| tcp(Family::V4, port, 80, SYN)).collect();
    let delivered = rig.deliver_without_collecting(0, 0, &packets);
    assert!(delivered > 300, "{delivered}");
    assert!(rig.drops(0, Drop::TxFull) > 0);
    rig.assert_accounted();
    assert_eq!(rig.collect(0, 0).len() as u64, rig.stats(0).transmitted.get());
    rig.idle();
    assert_eq!(rig.send(0, 0, &tcp(Family::V4, 9, 80, SYN)).len(), 1, "it goes on");
    rig.assert_accounted();
}

/// Every truncation of every kind of packet, and random bytes: counted, no panic, no frame lost.
#[test]
fn malformed_frames_are_counted_and_lose_no_frame() {
    let mut dns = spec(1, Forward::Nat, Family::V6, 1, 3);
    dns.protocol = Protocol::Udp;
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, Family::V4, 1, 3), dns]);
    let mut sent = 0;
    for packet in [
        tcp(Family::V4, 1000, 80, SYN),
        udp(Family::V6, 1000, 80, true),
        rig::tagged(tcp(Family::V4, 1000, 80, ACK), Some(100)),
    ] {
        for len in 0..packet.len() {
            rig.send(0, 0, &packet[..len]);
            sent += 1;
        }
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut mangled = packet.clone();
            let [a, b, c, d, ..] = random.to_le_bytes();
            let len = mangled.len();
            mangled[usize::from(a) % len] = c;
            mangled[usize::from(b) % len] ^= d;
            rig.send(0, 0, &mangled);
            sent += 1;
        }
    }
    assert_eq!(rig.stats(0).received.get(), sent);
    rig.assert_accounted();
}
