//! IPv4 packets that exceed the MTU of their next link and may be fragmented: every mode, both
//! directions.

use std::collections::BTreeSet;
use std::net::IpAddr;

use holdfast::forwarding::VipSpec;
use holdfast::net::{Forward, Protocol};
use holdfast::stats::LocalReply;

use super::fragments::{datagram, reassembled, set_sum};
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, spec, tcp};

const PORT: u16 = 40_000;
/// Bytes of data in a datagram.
const LEN: usize = 1400;
/// MTU of the narrow link.
const MTU: u16 = 600;

/// Modes that rewrite addresses and modes that do not, with the family of their backends.
const MODES: [(Forward, Family); 4] = [
    (Forward::Dsr, Family::V4),
    (Forward::Nat, Family::V4),
    (Forward::FullNat, Family::V4),
    (Forward::FullNat, Family::V6),
];

/// An IPv4 UDP VIP.
fn vip(forward: Forward, inner: Family, backends: u16) -> VipSpec {
    let mut vip = spec(0, forward, Family::V4, 1, backends);
    vip.protocol = Protocol::Udp;
    for (backend, index) in vip.backends.iter_mut().zip(0..) {
        backend.address = inner.backend(index);
    }
    vip
}

/// A datagram that may be fragmented, with identification `id`.
fn cuttable(ends: [(IpAddr, u16); 2], macs: [[u8; 6]; 2], id: u16) -> Vec<u8> {
    let mut bytes = datagram(ends, macs, LEN);
    bytes[18..20].copy_from_slice(&id.to_be_bytes());
    bytes[20..22].fill(0);
    set_sum(&mut bytes);
    bytes
}

fn request(client: IpAddr, id: u16) -> Vec<u8> {
    let ends = [(client, PORT), (Family::V4.vip(), 80)];
    cuttable(ends, [CLIENT_MAC, nic_mac(0)], id)
}

/// The identification that all fragments have.
fn number(sent: &[Sent]) -> u32 {
    let numbers: BTreeSet<u32> = sent
        .iter()
        .map(|sent| match sent.bytes[14] >> 4 {
            4 => u16::from_be_bytes([sent.bytes[18], sent.bytes[19]]).into(),
            _ => u32::from_be_bytes(*sent.bytes[58..].first_chunk().unwrap()),
        })
        .collect();
    assert_eq!(numbers.len(), 1, "one number: {numbers:?}");
    numbers.into_iter().next().unwrap()
}

/// Asserts that no fragment exceeds the MTU, and that together they are one datagram; returns it.
fn assert_pieces(sent: &[Sent], name: &str) -> Sent {
    assert_eq!(sent.len(), 3, "{name}");
    assert!(sent.iter().all(|sent| sent.bytes.len() <= 14 + usize::from(MTU)), "{name}");
    let macs: BTreeSet<_> = sent.iter().map(Sent::destination_mac).collect();
    assert_eq!(macs.len(), 1, "{name}: one receiver");
    number(sent);
    let whole = reassembled(sent);
    whole.assert_checksums();
    let data: Vec<u8> = (0_u8..=255).cycle().take(LEN).collect();
    assert!(whole.bytes.ends_with(&data), "{name}");
    whole
}

#[test]
fn requests_without_df_are_fragmented() {
    for (forward, inner) in MODES {
        let name = format!("{forward:?} {inner:?}");
        let mut web = vip(forward, inner, 3);
        web.backends.iter_mut().for_each(|backend| backend.mtu = MTU);
        let mut rig = Rig::new(1, 1, vec![web]);
        for round in 1..=5 {
            let sent = rig.send(0, 0, &request(Family::V4.client(), 7));
            let whole = assert_pieces(&sent, &name);
            let backend = u16::from(whole.destination_mac()[5]);
            let (address, port, hops) = whole.destination();
            match forward {
                Forward::Dsr => assert_eq!((address, port, hops), (Family::V4.vip(), 80, 64)),
                _ => assert_eq!((address, port, hops), (inner.backend(backend), 8080, 63)),
            }
            match forward {
                Forward::FullNat => assert_eq!(whole.source().0, inner.source(), "{name}"),
                _ => assert_eq!(whole.source(), (Family::V4.client(), PORT), "{name}"),
            }
            let (stats, vip) = (rig.stats(0), &rig.stats(0).vips[0]);
            assert_eq!((vip.packets_in.get(), stats.fragments_sent.get()), (round, 2 * round));
            rig.assert_accounted();
        }
        assert_eq!(rig.stats(0).flows_new.get(), 1, "{name}: one flow");
    }
}

#[test]
fn replies_without_df_are_fragmented() {
    for (forward, inner) in MODES.into_iter().filter(|(mode, _)| mode.translates()) {
        if inner == Family::V6 {
            // No router fragments an IPv6 packet.
            continue;
        }
        for worker in [0, 1] {
            let name = format!("{forward:?} at {worker}");
            let mut rig = Rig::new(2, 1, vec![vip(forward, inner, 3)]);
            let sent = rig.send(0, 0, &request(Family::V4.client(), 7)).remove(0);
            rig.change_box(|local| local.mtus = vec![MTU]);
            let (address, port, _) = sent.destination();
            let ends = [(address, port), sent.source()];
            let reply = cuttable(ends, [sent.destination_mac(), nic_mac(0)], 7);
            let sent = rig.send(worker, 0, &reply);
            let whole = assert_pieces(&sent, &name);
            assert_eq!(whole.source(), (Family::V4.vip(), 80), "{name}");
            assert_eq!(whole.destination(), (Family::V4.client(), PORT, 63), "{name}");
            assert_eq!(whole.destination_mac(), CLIENT_MAC);
            assert_eq!(rig.stats(worker).vips[0].packets_out.get(), 1, "{name}");
            rig.assert_accounted();
        }
    }
}

/// Two clients have chosen one identification, and share one SNAT address.
#[test]
fn fragments_from_one_full_nat_source_are_distinguished() {
    for inner in [Family::V4, Family::V6] {
        let mut web = vip(Forward::FullNat, inner, 1);
        web.backends[0].mtu = MTU;
        let mut rig = Rig::new(1, 1, vec![web]);
        let clients = ["198.18.1.10", "198.18.1.11", "198.18.1.12"];
        let numbers: BTreeSet<u32> = clients
            .iter()
            .map(|client| number(&rig.send(0, 0, &request(client.parse().unwrap(), 7))))
            .collect();
        assert_eq!(numbers.len(), clients.len(), "{inner:?}: {numbers:?}");
        rig.assert_accounted();
    }
}

/// The ICMP error is for packets with DF; the same packet without DF goes through.
#[test]
fn dont_fragment_is_answered_and_other_packets_are_fragmented() {
    for (forward, inner) in MODES {
        let mut web = vip(forward, inner, 1);
        web.backends[0].mtu = MTU;
        let mut rig = Rig::new(1, 1, vec![web]);
        let mut packet = request(Family::V4.client(), 7);
        packet[20] = 0x40;
        set_sum(&mut packet);
        assert_eq!(rig.send(0, 0, &packet).len(), 1);
        assert_eq!(rig.stats(0).local_reply_counter(LocalReply::TooBig).get(), 1, "{forward:?}");
        assert_eq!(rig.stats(0).fragments_sent.get(), 0);
        rig.assert_accounted();
    }
}

/// The bytes after the TCP header of a SYN are data, even if they look like options.
#[test]
fn later_fragments_of_a_syn_have_no_options() {
    for forward in [Forward::Dsr, Forward::Nat] {
        let mut web = spec(0, forward, Family::V4, 1, 1);
        (web.policy.mss, web.backends[0].mtu) = (Some(536), MTU);
        let mut rig = Rig::new(1, 1, vec![web]);
        let mut packet = tcp(Family::V4, PORT, 80, "S");
        packet.truncate(54);
        // In the second fragment these look like a TCP header of 24 bytes with an option.
        let data: Vec<u8> = [[0x60; 20].as_slice(), &[2, 4, 0x05, 0xb4]].concat();
        packet.extend(data.iter().cycle().take(1200));
        packet[16..18].copy_from_slice(&1240_u16.to_be_bytes());
        packet[20..22].fill(0);
        set_sum(&mut packet);
        for at in 0..24 {
            let mut packet = packet.clone();
            packet[54..].rotate_left(at);
            let sent = rig.send(0, 0, &packet);
            assert_eq!(sent.len(), 3, "{forward:?}");
            assert_eq!(reassembled(&sent).bytes[54..], packet[54..], "{forward:?} {at}");
        }
        rig.assert_accounted();
    }
}

/// All fragments of a packet are sent, or none.
#[test]
fn a_packet_with_an_unsendable_fragment_is_dropped_whole() {
    let mut web = vip(Forward::Nat, Family::V4, 1);
    web.backends[0].mtu = MTU;
    let mut rig = Rig::new(1, 1, vec![web]);
    let mut packet = request(Family::V4.client(), 7);
    packet[22] = 1;
    set_sum(&mut packet);
    assert_eq!(rig.send(0, 0, &packet).len(), 1, "an error to the sender");
    assert_eq!(rig.stats(0).transmitted.get(), 0);
    assert_eq!(rig.stats(0).fragments_sent.get(), 0);
    rig.assert_accounted();
}
