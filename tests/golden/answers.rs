//! Packets that cannot be forwarded, and the replies to their senders.

use std::net::IpAddr;

use holdfast::forwarding::local::IcmpRate;
use holdfast::net::{Forward, Protocol};
use holdfast::stats::{Drop, LocalReply};

use super::icmp::{FAMILIES, MODES, Message, icmp, of_vip, router, too_big, vip};
use crate::rig::{
    CLIENT_MAC, Family, Rig, nic_mac, numbered, set_sum, spec, tagged, tcp, tcp_of, udp,
};

const PORT: u16 = 40_000;

/// A TCP packet from the client that must not be fragmented, `len` bytes long from the IP header
/// on.
fn long(family: Family, len: usize) -> Vec<u8> {
    lengthened(family, tcp(family, PORT, 80, "A"), len)
}

/// A packet with its length extended. Its TCP checksum becomes wrong; no stage verifies it.
fn lengthened(family: Family, mut packet: Vec<u8>, len: usize) -> Vec<u8> {
    packet.resize(14 + len, 0x5a);
    let word = |len: usize| u16::try_from(len).unwrap().to_be_bytes();
    if family == Family::V4 {
        packet[16..18].copy_from_slice(&word(len));
        packet[20] |= 0x40;
        packet[24..26].fill(0);
        let sum = etherparse::Ipv4HeaderSlice::from_slice(&packet[14..]).unwrap().to_header();
        packet[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
    } else {
        packet[18..20].copy_from_slice(&word(len - 40));
    }
    packet
}

/// Checks the quoted bytes, and the length limit of the error.
fn assert_quotes(message: &Message, family: Family, packet: &[u8]) {
    let packet = &packet[14..];
    assert!(packet.starts_with(&message.body), "the packet as it came");
    match family {
        // 98 bytes with the Ethernet header.
        Family::V4 => assert_eq!(message.len, 20 + 8 + packet.len().min(56)),
        Family::V6 => assert_eq!(message.len, (40 + 8 + packet.len()).min(1280)),
    }
}

fn answered(rig: &Rig, answer: LocalReply) -> u64 {
    rig.stats(0).local_reply_counter(answer).get()
}

#[test]
fn a_packet_too_long_for_the_backends_link_reports_the_mtu_to_the_client() {
    for forward in MODES {
        for family in FAMILIES {
            for vlan in [None, Some(9)] {
                let mut web = spec(0, forward, family, 2, 1);
                web.backends[0].mtu = 1400;
                let mut rig = Rig::new(1, 2, vec![web]);
                rig.send(0, 0, &tagged(tcp(family, PORT, 80, "S"), vlan));
                let fits = tagged(long(family, 1400), vlan);
                assert_eq!(rig.send(0, 0, &fits)[0].nic, 1);
                let packet = long(family, 1401);
                let sent = rig.send(0, 0, &tagged(packet.clone(), vlan)).remove(0);
                assert_eq!((sent.nic, sent.vlan()), (0, vlan));
                assert_eq!((sent.destination_mac(), sent.source_mac()), (CLIENT_MAC, nic_mac(0)));
                let message = Message::of(&sent);
                assert_eq!((message.source, message.destination), (family.vip(), family.client()));
                assert_eq!((message.kind, message.rest), (too_big(family), 1400));
                assert_quotes(&message, family, &packet);
                // In several frames, of which the first suffices.
                let packet = long(family, 5000);
                let message = Message::of(&rig.send(0, 0, &tagged(packet.clone(), vlan))[0]);
                assert_quotes(&message, family, &packet);
                assert_eq!(answered(&rig, LocalReply::TooBig), 2);
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn a_packet_too_long_for_the_clients_link_reports_the_mtu_to_the_backend() {
    for family in FAMILIES {
        let mut rig = Rig::new(1, 2, vec![spec(0, Forward::Nat, family, 2, 1)]);
        rig.change_box(|local| local.mtus = vec![1300, 9000]);
        let request = rig.send(0, 0, &tcp(family, PORT, 80, "S")).remove(0);
        let reply = request.reply("A");
        let fits = rig.send(0, 1, &lengthened(family, reply.clone(), 1300)).remove(0);
        assert_eq!(fits.nic, 0);
        let packet = lengthened(family, reply, 1301);
        let sent = rig.send(0, 1, &packet).remove(0);
        assert_eq!((sent.nic, sent.destination_mac()), (1, request.destination_mac()));
        let message = Message::of(&sent);
        assert_eq!((message.source, message.destination), (family.vip(), family.backend(0)));
        assert_eq!((message.kind, message.rest), (too_big(family), 1300));
        assert_quotes(&message, family, &packet);
        rig.assert_accounted();
    }
}

/// IPv6 hosts may ignore an MTU below 1280 (RFC 8200 5).
#[test]
fn no_mtu_below_1280_is_reported_to_an_ipv6_host() {
    let mut web = spec(0, Forward::Dsr, Family::V6, 1, 1);
    web.backends[0].mtu = 1000;
    let mut rig = Rig::new(1, 1, vec![web]);
    let sent = rig.send(0, 0, &long(Family::V6, 1200)).remove(0);
    assert_eq!(Message::of(&sent).rest, 1280);
}

#[test]
fn padding_after_a_packet_is_removed_before_its_length_is_checked() {
    for family in FAMILIES {
        let mut web = spec(0, Forward::Dsr, family, 1, 1);
        web.backends[0].mtu = 1400;
        let mut rig = Rig::new(1, 1, vec![web]);
        let mut packet = long(family, 1390);
        packet.extend_from_slice(&[0xee; 20]);
        assert_eq!(rig.send(0, 0, &packet)[0].bytes.len(), 14 + 1390);
        rig.assert_accounted();
    }
}

/// A packet with an expired TTL starts no flow: it leaves no pin, and takes no SNAT port.
#[test]
fn hops_that_run_out_are_reported_by_the_translator() {
    let all = FAMILIES.into_iter().flat_map(|family| [(family, "S"), (family, "A")]);
    for ((family, flags), forward) in
        all.flat_map(|what| [Forward::Nat, Forward::FullNat].map(|forward| (what, forward)))
    {
        let mut rig = Rig::new(1, 1, vec![vip(forward, family, Protocol::Tcp)]);
        let whole = tcp(family, PORT, 80, flags);
        let mut packet = whole.clone();
        packet[if family == Family::V4 { 22 } else { 21 }] = 1;
        set_sum(&mut packet);
        let expired = |rig: &mut Rig| {
            let sent = rig.send(0, 0, &packet).remove(0);
            let message = Message::of(&sent);
            let kind = if family == Family::V4 { (11, 0) } else { (3, 0) };
            assert_eq!((message.source, message.destination), (family.vip(), family.client()));
            assert_eq!((message.kind, message.rest, message.hops), (kind, 0, 64));
            assert_quotes(&message, family, &packet);
            assert_eq!(rig.drops(0, Drop::TtlExceeded), 0);
            rig.assert_accounted();
        };
        expired(&mut rig);
        assert_eq!(rig.stats(0).flows_active.get(), 0, "{forward:?}, {family:?}, {flags}");
        assert_eq!(rig.stats(0).snat_ports(family.into()).get(), 0);
        rig.send(0, 0, &whole);
        assert_eq!(rig.stats(0).flows_active.get(), 1);
        expired(&mut rig);
        assert_eq!(rig.stats(0).flows_active.get(), 1);
        assert_eq!(answered(&rig, LocalReply::TimeExceeded), 2);
    }
}

/// RFC 1122 3.2.2, RFC 4443 2.4 (e).
#[test]
fn some_packets_get_no_answer() {
    let mut web = spec(0, Forward::Nat, Family::V4, 1, 1);
    web.backends[0].mtu = 1400;
    let mut rig = Rig::new(1, 1, vec![web]);
    rig.send(0, 0, &tcp(Family::V4, PORT, 80, "S"));
    let edit = |at: usize, byte: u8| {
        let mut packet = long(Family::V4, 1500);
        packet[at] = byte;
        packet
    };
    let mut quote = of_vip(Family::V4, Protocol::Tcp, PORT);
    quote.resize(1480, 0);
    let error = icmp(router(Family::V4), Family::V4.vip(), (3, 4), 1000, &quote);
    for (name, packet) in [
        ("an ICMP error", error),
        ("to a group's MAC", edit(0, 3)),
        ("from a group's MAC", edit(6, 3)),
    ] {
        let before = rig.drops(0, Drop::TooBig);
        assert!(rig.send(0, 0, &packet).is_empty(), "{name}");
        assert_eq!(rig.drops(0, Drop::TooBig), before + 1, "{name}");
    }
    assert_eq!(rig.stats(0).icmp_rate_limited.get(), 0, "none of them took a token");
    rig.assert_accounted();
}

#[test]
fn errors_are_limited_by_time_and_by_network() {
    let mut web = spec(0, Forward::Dsr, Family::V4, 1, 1);
    web.backends[0].mtu = 1400;
    let mut rig = Rig::new(1, 1, vec![web]);
    rig.change_box(|local| local.icmp = IcmpRate { per_second: 800, burst: 16 });
    let from = |network: u8, host: u8| {
        let client = (IpAddr::from([198, 18, network, host]), PORT);
        lengthened(Family::V4, tcp_of(client, (Family::V4.vip(), 80), "A"), 1500)
    };
    let send = |rig: &mut Rig, network: u8| {
        (0..10).map(|host| rig.send(0, 0, &from(network, host)).len()).sum::<usize>()
    };
    assert_eq!(send(&mut rig, 1), 2, "an eighth of the burst for one network");
    assert_eq!(rig.stats(0).icmp_rate_limited.get(), 8);
    assert_eq!(rig.drops(0, Drop::TooBig), 8);
    rig.advance(1);
    assert_eq!(send(&mut rig, 1), 1, "100 a second for one network");
    let all: usize = (2..=255).map(|network| send(&mut rig, network)).sum();
    // 16 less the last one: the burst of the first ones has been refilled.
    assert_eq!(all, 15, "the burst for all");
    rig.advance(1);
    let all: usize = (0..=255).map(|network| send(&mut rig, network)).sum();
    assert_eq!(all, 8, "800 a second for all");
    rig.assert_accounted();
}

fn rejecting(family: Family, protocol: Protocol, reject_no_backend: bool) -> Rig {
    let mut web = vip(Forward::Nat, family, protocol)
        .with(|policy| policy.reject_no_backend = reject_no_backend);
    web.backends.iter_mut().for_each(|backend| backend.up = false);
    Rig::new(1, 1, vec![web])
}

#[test]
fn without_a_backend_a_tcp_client_is_refused_if_the_vip_says_so() {
    for family in FAMILIES {
        for vlan in [None, Some(5)] {
            let mut rig = rejecting(family, Protocol::Tcp, true);
            let packet = numbered(family, tcp(family, PORT, 80, "S"), 1000, 77);
            let sent = rig.send(0, 0, &tagged(packet, vlan)).remove(0);
            sent.assert_checksums();
            let tcp = sent.tcp();
            assert!(tcp.rst && tcp.ack && !tcp.syn && !tcp.fin);
            // The packet carries 13 bytes.
            assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (0, 1000 + 13 + 1));
            assert_eq!(sent.source(), (family.vip(), 80));
            assert_eq!(sent.destination(), (family.client(), PORT, 64));
            assert_eq!((sent.destination_mac(), sent.vlan()), (CLIENT_MAC, vlan));
            assert_eq!(answered(&rig, LocalReply::Rejected), 1);
            rig.assert_accounted();
        }
    }
}

/// A connection without a pin may go on when its backend is back, and no RST replies to a RST.
#[test]
fn without_a_backend_no_connection_is_reset() {
    for family in FAMILIES {
        for flags in ["A", "FA", "SA", "R", "RA"] {
            let mut rig = rejecting(family, Protocol::Tcp, true);
            assert!(rig.send(0, 0, &tcp(family, PORT, 80, flags)).is_empty(), "{flags}");
            assert_eq!(rig.drops(0, Drop::NoBackend), 1, "{flags}");
            rig.assert_accounted();
        }
    }
}

/// A reply to a refused packet is no longer than the packet, so no flood grows by it.
#[test]
fn a_refusal_is_no_longer_than_what_it_answers() {
    for family in FAMILIES {
        let mut rig = rejecting(family, Protocol::Tcp, true);
        let packet = tcp(family, PORT, 80, "S");
        let sent = rig.send(0, 0, &packet);
        assert_eq!(sent.len(), 1);
        assert!(sent[0].bytes.len() <= packet.len().max(60), "{}", sent[0].bytes.len());
    }
}

#[test]
fn without_a_backend_a_udp_client_gets_port_unreachable_if_the_vip_says_so() {
    for family in FAMILIES {
        let mut rig = rejecting(family, Protocol::Udp, true);
        let packet = udp(family, PORT, 80, true);
        let message = Message::of(&rig.send(0, 0, &packet)[0]);
        let kind = if family == Family::V4 { (3, 3) } else { (1, 4) };
        assert_eq!((message.source, message.destination), (family.vip(), family.client()));
        assert_eq!((message.kind, message.rest), (kind, 0));
        assert_quotes(&message, family, &packet);
        assert_eq!(answered(&rig, LocalReply::Unreachable), 1);
        rig.assert_accounted();
    }
}

#[test]
fn without_a_backend_nothing_is_sent_if_the_vip_says_so() {
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut rig = rejecting(family, protocol, false);
            let packet = match protocol {
                Protocol::Tcp => tcp(family, PORT, 80, "S"),
                _ => udp(family, PORT, 80, true),
            };
            assert!(rig.send(0, 0, &packet).is_empty());
            assert_eq!(rig.drops(0, Drop::NoBackend), 1);
            rig.assert_accounted();
        }
    }
}

/// Every truncation, and random bytes with a right checksum, which pass the first checks: counted,
/// no panic, no frame lost.
#[test]
fn malformed_messages_are_counted_and_lose_no_frame() {
    for family in FAMILIES {
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, family, Protocol::Tcp)]);
        let request = rig.send(0, 0, &tcp(family, PORT, 80, "S")).remove(0);
        let quote = of_vip(family, Protocol::Tcp, PORT);
        let echo = if family == Family::V4 { (8, 0) } else { (128, 0) };
        let (mut random, mut sent) = (0x9e37_79b9_7f4a_7c15_u64, 1);
        for (destination, kind, body) in [
            (family.vip(), too_big(family), quote.as_slice()),
            (family.client(), too_big(family), &request.bytes[14..]),
            (family.vip(), echo, quote.as_slice()),
        ] {
            let packet = icmp(router(family), destination, kind, 1400, body);
            for len in 0..packet.len() {
                rig.send(0, 0, &packet[..len]);
            }
            for _ in 0..5_000 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let mut body = body.to_vec();
                let [a, b, c, d, e, f, ..] = random.to_le_bytes();
                let len = body.len();
                body[usize::from(a) % len] = b;
                body[usize::from(c) % len] ^= d;
                body.truncate(len - usize::from(e) % 16 * usize::from(f & 1));
                rig.send(0, 0, &icmp(router(family), destination, kind, 1400, &body));
            }
            sent += packet.len() as u64 + 5_000;
        }
        assert_eq!(rig.stats(0).received.get(), sent);
        assert!(rig.stats(0).icmp_errors_forwarded.get() > 1_000, "some get through");
        rig.assert_accounted();
    }
}
