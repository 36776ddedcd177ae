//! Packets that are damaged, or not sent in the end: they leave no state, and later fragments share
//! their fate.

use holdfast::forwarding::VipSpec;
use holdfast::net::{Forward, Protocol};
use holdfast::stats::{Drop, LocalReply};

use super::fragments::{datagram, fragments, reassembled, set_sum};
use super::icmp::{icmp, of_vip};
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, spec, tcp, udp};

const PORT: u16 = 40_000;
const MODES: [Forward; 3] = [Forward::Dsr, Forward::Nat, Forward::FullNat];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A UDP VIP with backends of family `inner`.
fn vip(forward: Forward, family: Family, inner: Family) -> VipSpec {
    let mut vip = VipSpec { protocol: Protocol::Udp, ..spec(0, forward, family, 1, 3) };
    for (backend, index) in vip.backends.iter_mut().zip(0..) {
        backend.address = inner.backend(index);
    }
    vip
}

fn request(family: Family, len: usize) -> Vec<u8> {
    let ends = [(family.client(), PORT), (family.vip(), 80)];
    datagram(ends, [CLIENT_MAC, nic_mac(0)], len)
}

/// The frame with a wrong checksum in its IPv4 header.
fn damaged(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24] ^= 0x10;
    frame
}

/// Asserts the state as without the packet: no pin, no SNAT port, no counted flow.
fn assert_nothing_left(rig: &Rig, name: &str) {
    for worker in 0..rig.workers() {
        let stats = rig.stats(worker);
        let flows = [&stats.flows_new, &stats.flows_by_hash, &stats.flows_active];
        assert_eq!(flows.map(|counter| counter.get()), [0; 3], "{name}");
        assert_eq!((stats.bindings_v4.get(), stats.bindings_v6.get()), (0, 0), "{name}");
        for counters in stats.vips.iter().chain(&stats.backends) {
            let flows = [&counters.flows_total, &counters.flows_active, &counters.flows_scheduled];
            assert_eq!(flows.map(|counter| counter.get()), [0; 3], "{name}");
        }
    }
    rig.assert_accounted();
}

// ---- first packets that are not sent ----

#[test]
fn a_first_packet_that_is_too_long_leaves_no_pin() {
    for (forward, family) in MODES.into_iter().flat_map(|mode| FAMILIES.map(|f| (mode, f))) {
        let name = format!("{forward:?} {family:?}");
        let mut narrow = vip(forward, family, family);
        narrow.backends.iter_mut().for_each(|backend| backend.mtu = 1280);
        let mut rig = Rig::new(1, 1, vec![narrow]);
        let sent = rig.send(0, 0, &request(family, 1300));
        assert_eq!(sent.len(), 1, "{name}: an error to the client");
        assert_eq!(rig.stats(0).local_reply_counter(LocalReply::TooBig).get(), 1, "{name}");
        assert_nothing_left(&rig, &name);
        // A packet that may be fragmented is sent, and leaves a pin.
        if family == Family::V4 {
            let mut cuttable = request(family, 1300);
            cuttable[20] = 0;
            set_sum(&mut cuttable);
            rig.send(0, 0, &cuttable);
            let stats = rig.stats(0);
            let flows = (stats.flows_new.get(), stats.flows_active.get());
            assert_eq!((flows, stats.fragments_sent.get()), ((1, 1), 1), "{name}");
            assert_eq!(stats.vips[0].flows_total.get(), 1, "{name}");
        }
    }
}

/// IPv6 requires a checksum, which cannot be computed from the first fragment alone.
#[test]
fn the_fragments_of_a_datagram_share_the_fate_of_the_first_one() {
    let mut whole = request(Family::V4, 150);
    whole[40..42].fill(0);
    let parts = fragments(&whole, 7);
    assert_eq!(parts.len(), 3);
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]] {
        for in_one_batch in [false, true] {
            let name = format!("{order:?} {in_one_batch}");
            let mut rig = Rig::new(2, 1, vec![vip(Forward::FullNat, Family::V4, Family::V6)]);
            let packets = order.map(|part| parts[part].clone());
            if in_one_batch {
                assert_eq!(rig.send_all(0, 0, &packets), [], "{name}");
            } else {
                for packet in &packets {
                    assert_eq!(rig.send(0, 0, packet), [], "{name}");
                }
            }
            rig.idle();
            assert_eq!(rig.collect(0, 0), [], "{name}");
            assert_eq!(rig.drops(0, Drop::NotTranslatable), 1, "{name}");
            assert_eq!(rig.drops(0, Drop::FragmentFirstDropped), 2, "{name}");
            assert_nothing_left(&rig, &name);
        }
    }
    // A fragment at another worker, and the same identification for another datagram.
    let mut rig = Rig::new(2, 1, vec![vip(Forward::FullNat, Family::V4, Family::V6)]);
    assert_eq!(rig.send(0, 0, &parts[0]), []);
    assert_eq!(rig.send(1, 0, &parts[1]), []);
    assert_eq!(rig.drops(1, Drop::FragmentFirstDropped), 1);
    let others = fragments(&request(Family::V4, 150), 7);
    let sent: Vec<Sent> = others.iter().flat_map(|part| rig.send(0, 0, part)).collect();
    assert_eq!(sent.len(), 3);
    reassembled(&sent).assert_checksums();
    rig.assert_accounted();
}

/// The reply to the client is about the first fragment; the others are dropped.
#[test]
fn fragments_behind_one_that_was_answered_are_dropped() {
    for family in FAMILIES {
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, family, family)]);
        let mut parts = fragments(&request(family, 150), 7);
        parts[0][if family == Family::V4 { 22 } else { 21 }] = 1;
        set_sum(&mut parts[0]);
        assert_eq!(rig.send_all(0, 0, &parts).len(), 1, "time exceeded");
        assert_eq!(rig.stats(0).local_reply_counter(LocalReply::TimeExceeded).get(), 1);
        assert_eq!(rig.drops(0, Drop::FragmentFirstDropped), 2);
        assert_nothing_left(&rig, &format!("{family:?}"));
    }
}

// ---- damaged headers ----

#[test]
fn a_packet_with_a_damaged_header_begins_no_flow() {
    for inner in FAMILIES {
        for forward in MODES {
            if forward != Forward::FullNat && inner == Family::V6 {
                continue;
            }
            let name = format!("{forward:?} {inner:?}");
            let mut rig = Rig::new(2, 1, vec![vip(forward, Family::V4, inner)]);
            // With a checksum, and without one that would be computed.
            for sum in [true, false] {
                assert_eq!(rig.send(0, 0, &damaged(udp(Family::V4, PORT, 80, sum))), [], "{name}");
            }
            let parts = fragments(&request(Family::V4, 150), 7);
            for part in &parts {
                assert_eq!(rig.send(0, 0, &damaged(part.clone())), [], "{name}");
            }
            assert_eq!(rig.drops(0, Drop::BadIpv4Checksum), 5, "{name}");
            assert_eq!(rig.stats(0).fragments_parked.get(), 0, "{name}");
            assert_nothing_left(&rig, &name);
        }
    }
}

/// A translated header would look right, so the packet is dropped; otherwise the checksum stays
/// wrong.
#[test]
fn no_damaged_header_is_made_to_look_right() {
    for inner in FAMILIES {
        for forward in MODES {
            let crosses = inner == Family::V6;
            if forward != Forward::FullNat && crosses {
                continue;
            }
            let name = format!("{forward:?} {inner:?}");
            let mut rig = Rig::new(1, 1, vec![vip(forward, Family::V4, inner)]);
            assert_eq!(rig.send(0, 0, &udp(Family::V4, PORT, 80, true)).len(), 1, "{name}");
            let sent = rig.send(0, 0, &damaged(udp(Family::V4, PORT, 80, true)));
            assert_eq!(sent.is_empty(), crosses, "{name}");
            assert_eq!(rig.drops(0, Drop::BadIpv4Checksum), u64::from(crosses), "{name}");
            for sent in &sent {
                let header = etherparse::Ipv4Header::from_slice(&sent.bytes[14..]).unwrap().0;
                assert_ne!(header.header_checksum, header.calc_header_checksum(), "{name}");
            }
            rig.assert_accounted();
        }
    }
    // The other direction: an IPv4 backend replies to an IPv6 client.
    let mut rig = Rig::new(1, 1, vec![vip(Forward::FullNat, Family::V6, Family::V4)]);
    let request = rig.send(0, 0, &udp(Family::V6, PORT, 80, true)).remove(0);
    assert_eq!(rig.send(0, 0, &damaged(request.udp_reply())), []);
    assert_eq!(rig.drops(0, Drop::BadIpv4Checksum), 1);
    assert_eq!(rig.send(0, 0, &request.udp_reply()).len(), 1);
}

#[test]
fn a_packet_with_a_damaged_header_gets_no_answer_and_is_not_cut() {
    let mut narrow = vip(Forward::Dsr, Family::V4, Family::V4);
    narrow.backends.iter_mut().for_each(|backend| backend.mtu = 1280);
    let mut web = spec(1, Forward::Nat, Family::V4, 1, 3);
    web.policy.reject_no_backend = true;
    let mut rig = Rig::new(1, 1, vec![narrow, web]);
    // Both flows have a pin.
    rig.send(0, 0, &udp(Family::V4, PORT, 80, true));
    rig.send(0, 0, &tcp(Family::V4, PORT, 80, "S"));
    let long = request(Family::V4, 1300);
    let mut cuttable = long.clone();
    cuttable[20] = 0;
    set_sum(&mut cuttable);
    let mut tired = tcp(Family::V4, PORT, 80, "A");
    tired[22] = 1;
    set_sum(&mut tired);
    let ping = icmp(Family::V4.client(), Family::V4.vip(), (8, 0), 1, b"ping");
    let quote = of_vip(Family::V4, Protocol::Tcp, PORT);
    let error = icmp(Family::V4.router(), Family::V4.vip(), (3, 1), 0, &quote);
    for (number, packet) in (1..).zip([long, cuttable, tired, ping, error]) {
        assert_eq!(rig.send(0, 0, &damaged(packet.clone())), [], "{number}");
        assert_eq!(rig.drops(0, Drop::BadIpv4Checksum), number);
        assert!(!rig.send(0, 0, &packet).is_empty(), "{number}: as it was sent");
    }
    rig.change(|specs| {
        specs.iter_mut().flat_map(|vip| &mut vip.backends).for_each(|b| b.up = false)
    });
    for flags in ["S", "A"] {
        assert_eq!(rig.send(0, 0, &damaged(tcp(Family::V4, PORT + 1, 80, flags))), []);
    }
    assert_eq!(rig.send(0, 0, &tcp(Family::V4, PORT + 1, 80, "S")).len(), 1, "refused by a RST");
    rig.assert_accounted();
}

#[test]
fn a_ping_with_a_wrong_checksum_gets_no_answer() {
    for family in FAMILIES {
        let request = if family == Family::V4 { (8, 0) } else { (128, 0) };
        let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Dsr, family, 1, 1)]);
        for len in [0, 1, 8, 57, 1400] {
            let ping = icmp(family.client(), family.vip(), request, 1, &vec![0x5a; len]);
            let sum = if family == Family::V4 { 36 } else { 56 };
            for at in [sum, sum + 1, ping.len() - 1] {
                let mut wrong = ping.clone();
                wrong[at] ^= 1;
                assert_eq!(rig.send(0, 0, &wrong), [], "{family:?} {len} {at}");
            }
            assert_eq!(rig.send(0, 0, &ping).len(), 1, "{family:?} {len}");
        }
        assert_eq!(rig.drops(0, Drop::BadIcmp), 5 * 3);
        assert_eq!(rig.stats(0).local_reply_counter(LocalReply::EchoReply).get(), 5);
        rig.assert_accounted();
    }
}

// ---- UDP from port 0 ----

/// RFC 768: the sender expects no reply, so it gets none. Syslog and flow exporters send this way.
#[test]
fn udp_from_port_0_is_forwarded_and_not_answered() {
    for family in FAMILIES {
        for inner in FAMILIES {
            for forward in MODES {
                if forward != Forward::FullNat && inner != family {
                    continue;
                }
                let name = format!("{forward:?} {family:?} {inner:?}");
                let mut rig = Rig::new(1, 1, vec![vip(forward, family, inner)]);
                let sent = rig.send(0, 0, &udp(family, 0, 80, true));
                assert_eq!(sent.len(), 1, "{name}");
                sent[0].assert_checksums();
                let again = rig.send(0, 0, &udp(family, 0, 80, true));
                assert_eq!(again[0].destination_mac(), sent[0].destination_mac(), "{name}");
                assert_eq!(rig.stats(0).flows_active.get(), 1, "{name}");
                let parts = {
                    let ends = [(family.client(), 0), (family.vip(), 80)];
                    fragments(&datagram(ends, [CLIENT_MAC, nic_mac(0)], 150), 7)
                };
                let fragments: Vec<Sent> = parts.iter().flat_map(|p| rig.send(0, 0, p)).collect();
                assert_eq!(fragments.len(), 3, "{name}");
                assert_eq!(fragments[0].destination_mac(), sent[0].destination_mac(), "{name}");
                if forward.translates() {
                    let reason = match forward {
                        Forward::Nat => Drop::ZeroPort,
                        _ => Drop::ReturnNoFlow,
                    };
                    for _ in 0..2 {
                        assert_eq!(rig.send(0, 0, &sent[0].udp_reply()), [], "{name}");
                    }
                    assert_eq!(rig.drops(0, reason), 2, "{name}");
                }
                rig.assert_accounted();
            }
        }
        // Port 0 is not a valid destination, and TCP has no such source.
        let all = VipSpec {
            ports: holdfast::forwarding::Ports::All,
            ..vip(Forward::Dsr, family, family)
        };
        let mut rig = Rig::new(1, 1, vec![all, spec(1, Forward::Dsr, family, 1, 3)]);
        assert_eq!(rig.send(0, 0, &udp(family, PORT, 0, true)), []);
        assert_eq!(rig.send(0, 0, &udp(family, 0, 0, true)), []);
        assert_eq!(rig.send(0, 0, &tcp(family, 0, 80, "S")), []);
        assert_eq!(rig.drops(0, Drop::ZeroPort), 3);
        let land = {
            let ends = [(family.vip(), 0), (family.vip(), 80)];
            datagram(ends, [CLIENT_MAC, nic_mac(0)], 8)
        };
        assert_eq!(rig.send(0, 0, &land), []);
        assert_eq!(rig.drops(0, Drop::OwnSource), 1, "not from the VIP itself, whatever the port");
    }
}
