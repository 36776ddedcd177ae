//! Fragmented datagrams: in any order, at any worker, in both directions and families.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use holdfast::forwarding::{Ports, SchedulerKind, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::Drop;

pub use crate::rig::set_sum;
use crate::rig::{CLIENT_MAC, Family, PARKED, Rig, Sent, ip_builder, nic_mac, spec, tcp_of, udp};

const PORT: u16 = 40_000;
/// Bytes of data in every fragment but the last.
const PART: usize = 64;
/// Time-out of a datagram, in ticks.
const PATIENCE: u32 = 200;

fn every_mode() -> impl Iterator<Item = (Forward, Family)> {
    let families = [Family::V4, Family::V6];
    let modes = [Forward::Dsr, Forward::Nat, Forward::FullNat];
    families.into_iter().flat_map(move |family| modes.map(|mode| (mode, family)))
}

/// A UDP VIP whose scheduler sends two flows in a row to two backends.
fn vip(forward: Forward, family: Family) -> VipSpec {
    VipSpec {
        protocol: Protocol::Udp,
        ports: Ports::List(vec![80.into()]),
        ..spec(0, forward, family, 1, 3).with(|policy| policy.scheduler = SchedulerKind::RoundRobin)
    }
}

fn ip_len(bytes: &[u8]) -> usize {
    if bytes[14] >> 4 == 4 { 20 } else { 40 }
}

/// A UDP datagram behind an Ethernet header.
pub fn datagram(ends: [(IpAddr, u16); 2], macs: [[u8; 6]; 2], len: usize) -> Vec<u8> {
    let data: Vec<u8> = (0_u8..=255).cycle().take(len).collect();
    let builder = ip_builder((macs[0], macs[1]), ends[0].0, ends[1].0);
    let mut bytes = Vec::new();
    builder.udp(ends[0].1, ends[1].1).write(&mut bytes, &data).unwrap();
    bytes
}

fn request(family: Family, port: u16, len: usize) -> Vec<u8> {
    let ends = [(family.client(), port), (family.vip(), 80)];
    datagram(ends, [CLIENT_MAC, nic_mac(0)], len)
}

/// One fragment: `len` bytes of the packet's from `offset` on.
fn fragment(whole: &[u8], id: u16, offset: usize, len: usize, more: bool) -> Vec<u8> {
    let ip = 14 + ip_len(whole);
    let part = &whole[ip + offset..][..len];
    let mut head = whole[..ip].to_vec();
    let word = u16::try_from(offset).unwrap();
    if ip == 34 {
        head[16..18].copy_from_slice(&u16::try_from(20 + len).unwrap().to_be_bytes());
        head[18..20].copy_from_slice(&id.to_be_bytes());
        head[20..22].copy_from_slice(&(word >> 3 | u16::from(more) << 13).to_be_bytes());
        set_sum(&mut head);
    } else {
        head[18..20].copy_from_slice(&u16::try_from(8 + len).unwrap().to_be_bytes());
        let next = std::mem::replace(&mut head[20], 44);
        let [o0, o1] = (word | u16::from(more)).to_be_bytes();
        let [i0, i1] = id.to_be_bytes();
        head.extend_from_slice(&[next, 0, o0, o1, 0, 1, i0, i1]);
    }
    [&head, part].concat()
}

/// The packet in fragments of `PART` bytes.
pub fn fragments(whole: &[u8], id: u16) -> Vec<Vec<u8>> {
    let len = whole.len() - 14 - ip_len(whole);
    let parts = (0..len).step_by(PART);
    parts.map(|at| fragment(whole, id, at, PART.min(len - at), at + PART < len)).collect()
}

/// Reassembles the sent fragments, in any order.
pub fn reassembled(sent: &[Sent]) -> Sent {
    let mut parts = BTreeMap::new();
    let mut head = Vec::new();
    for one in sent {
        let bytes = &one.bytes;
        let ip = 14 + ip_len(bytes);
        head = bytes[..ip].to_vec();
        let (offset, data) = if ip == 34 {
            let header = etherparse::Ipv4Header::from_slice(&bytes[14..]).unwrap().0;
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (header.fragment_offset.value() << 3, &bytes[ip..])
        } else {
            head[20] = bytes[54];
            (u16::from_be_bytes([bytes[56], bytes[57]]) & 0xfff8, &bytes[ip + 8..])
        };
        assert_eq!(parts.insert(offset, data), None, "one of each");
    }
    let data = parts.into_values().collect::<Vec<_>>().concat();
    if head.len() == 34 {
        head[16..18].copy_from_slice(&u16::try_from(20 + data.len()).unwrap().to_be_bytes());
        head[18..22].fill(0);
        set_sum(&mut head);
    } else {
        head[18..20].copy_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    }
    Sent { nic: sent[0].nic, bytes: [head, data].concat() }
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Every order of three fragments, and every way to spread them over two workers.
fn arrivals() -> impl Iterator<Item = [(usize, usize); 3]> {
    ORDERS.into_iter().flat_map(|order| {
        (0..8).map(move |workers| order.map(|fragment| (fragment, workers >> fragment & 1)))
    })
}

/// Packets that the rig sends for fragments in this order, including those of polls in between.
fn arrive(rig: &mut Rig, parts: &[Vec<u8>], arrival: [(usize, usize); 3]) -> Vec<Sent> {
    let mut sent = Vec::new();
    for (fragment, worker) in arrival {
        sent.extend(rig.send(worker, 0, &parts[fragment]));
    }
    rig.idle();
    sent.extend((0..2).flat_map(|worker| rig.collect(worker, 0)));
    sent
}

fn backends(sent: &[Sent]) -> BTreeSet<[u8; 6]> {
    sent.iter().map(Sent::destination_mac).collect()
}

#[test]
fn requests_in_every_order_at_every_worker_go_to_one_backend() {
    for (forward, family) in every_mode() {
        let mut rig = Rig::new(2, 1, vec![vip(forward, family)]);
        for (number, arrival) in (0_u16..).zip(arrivals()) {
            let name = format!("{forward:?} {family:?} {arrival:?}");
            let whole = request(family, PORT + number, 2 * PART + 5);
            let sent = arrive(&mut rig, &fragments(&whole, number), arrival);
            assert_eq!((sent.len(), backends(&sent).len()), (3, 1), "{name}");
            let together = reassembled(&sent);
            together.assert_checksums();
            match forward {
                Forward::FullNat => assert_eq!(together.source().0, family.source(), "{name}"),
                _ => assert_eq!(together.source(), (family.client(), PORT + number), "{name}"),
            }
            let backend = u16::from(together.destination_mac()[5]);
            let expected = match forward {
                Forward::Dsr => (family.vip(), 80, 64),
                _ => (family.backend(backend), 8080, 63),
            };
            assert_eq!(together.destination(), expected, "{name}");
            rig.assert_accounted();
        }
        let packets: u64 = (0..2).map(|worker| rig.stats(worker).vips[0].packets_in.get()).sum();
        assert_eq!(packets, 3 * 48);
    }
}

#[test]
fn replies_in_every_order_at_every_worker_come_from_the_vip() {
    for (forward, family) in every_mode().filter(|(mode, _)| mode.translates()) {
        let mut rig = Rig::new(2, 1, vec![vip(forward, family)]);
        for (number, arrival) in (0_u16..).zip(arrivals()) {
            let sent = rig.send(usize::from(number % 2), 0, &udp(family, PORT + number, 80, true));
            let (address, port, _) = sent[0].destination();
            let macs = [sent[0].destination_mac(), nic_mac(0)];
            let ends = [(address, port), sent[0].source()];
            let whole = datagram(ends, macs, 2 * PART + 5);
            let sent = arrive(&mut rig, &fragments(&whole, number), arrival);
            assert_eq!(sent.len(), 3, "{forward:?} {family:?} {arrival:?}");
            let together = reassembled(&sent);
            together.assert_checksums();
            assert_eq!(together.source(), (family.vip(), 80));
            assert_eq!(together.destination(), (family.client(), PORT + number, 63));
            assert_eq!(backends(&sent), BTreeSet::from([CLIENT_MAC]));
            rig.assert_accounted();
        }
    }
}

/// Two clients choose one identification for datagrams in transit at the same time.
#[test]
fn datagrams_from_one_full_nat_source_are_distinguished() {
    let families = [Family::V4, Family::V6];
    for (family, inner) in families.into_iter().flat_map(|one| families.map(|two| (one, two))) {
        let one_backend = spec(0, Forward::FullNat, family, 1, 1);
        let mut vip = VipSpec { protocol: Protocol::Udp, ..one_backend };
        vip.backends[0].address = inner.backend(0);
        let mut rig = Rig::new(2, 1, vec![vip]);
        let other = match family.client() {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + 1).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + 1).to_be_bytes()),
        };
        let of = |client| {
            let ends = [(client, PORT), (family.vip(), 80)];
            fragments(&datagram(ends, [CLIENT_MAC, nic_mac(0)], 2 * PART + 5), 7)
        };
        let (ours, theirs) = (of(family.client()), of(other));
        let mut sent = BTreeMap::<u32, Vec<Sent>>::new();
        for (worker, part) in ours.iter().zip(&theirs).flat_map(|(a, b)| [(0, a), (1, b)]) {
            for one in rig.send(worker, 0, part) {
                let at = if inner == Family::V4 { 16 } else { 58 };
                let id: [u8; 4] = *one.bytes[at..].first_chunk().unwrap();
                let id =
                    u32::from_be_bytes(id) & if inner == Family::V4 { 0xffff } else { u32::MAX };
                sent.entry(id).or_default().push(one);
            }
        }
        assert_eq!(sent.len(), 2, "{family:?} {inner:?}");
        for sent in sent.values() {
            assert_eq!(sent.len(), 3);
            reassembled(sent).assert_checksums();
        }
        rig.assert_accounted();
    }
}

#[test]
fn whole_packets_and_fragments_of_a_flow_go_to_one_backend_whichever_worker_has_them() {
    for (forward, family) in every_mode() {
        let mut rig = Rig::new(2, 1, vec![vip(forward, family)]);
        // Once there are fragments, workers look up each other's flows.
        arrive(&mut rig, &fragments(&request(family, 1, 150), 1), [(0, 0), (1, 0), (2, 0)]);
        for number in 0..20 {
            let small = udp(family, PORT + number, 80, true);
            let large = fragments(&request(family, PORT + number, 2 * PART + 5), number);
            let small_first = number % 2 == 0;
            let mut sent = Vec::new();
            if small_first {
                sent.extend(rig.send(0, 0, &small));
            }
            sent.extend(arrive(&mut rig, &large, [(2, 1), (0, 1), (1, 1)]));
            if !small_first {
                sent.extend(rig.send(0, 0, &small));
            }
            assert_eq!((sent.len(), backends(&sent).len()), (4, 1), "{forward:?} {family:?}");
        }
        rig.assert_accounted();
    }
}

#[test]
fn segments_in_fragments_follow_their_connection() {
    for (forward, family) in every_mode() {
        let mut rig = Rig::new(2, 1, vec![spec(0, forward, family, 1, 3)]);
        let segment = |flags| tcp_of((family.client(), PORT), (family.vip(), 80), flags);
        let opened = rig.send(0, 0, &segment("S"));
        rig.send(0, 0, &segment("A"));
        let whole = segment("A");
        let len = whole.len() - 14 - ip_len(&whole);
        let parts = [fragment(&whole, 7, 0, 24, true), fragment(&whole, 7, 24, len - 24, false)];
        let mut sent = rig.send(1, 0, &parts[1]);
        sent.extend(rig.send(1, 0, &parts[0]));
        rig.idle();
        sent.extend(rig.collect(1, 0));
        assert_eq!(backends(&sent), backends(&opened), "{forward:?} {family:?}");
        reassembled(&sent).assert_checksums();
        rig.assert_accounted();
    }
}

#[test]
fn attacks_on_the_reassembly_are_dropped_by_name() {
    for family in [Family::V4, Family::V6] {
        let whole = request(family, PORT, 3 * PART);
        let longer = request(family, PORT, 5 * PART);
        let other = request(family, PORT + 1, 3 * PART);
        let segment = tcp_of((family.client(), PORT), (family.vip(), 80), "S");
        let first = fragment(&whole, 7, 0, PART, true);
        let last = fragment(&whole, 7, 2 * PART, PART + 8, false);
        for (name, before, packet, reason) in [
            ("8 bytes of TCP", vec![], fragment(&segment, 7, 0, 8, true), Drop::TinyFragment),
            ("16 bytes of TCP", vec![], fragment(&segment, 7, 0, 16, true), Drop::TinyFragment),
            (
                "over the transport header",
                vec![first.clone()],
                fragment(&whole, 7, 8, PART, true),
                Drop::FragmentOverlap,
            ),
            (
                "other ports",
                vec![first.clone()],
                fragment(&other, 7, 0, PART, true),
                Drop::FragmentOverlap,
            ),
            (
                "behind the end",
                vec![first.clone(), last.clone()],
                fragment(&longer, 7, 3 * PART, PART, true),
                Drop::FragmentOverlap,
            ),
            ("no multiple of 8", vec![], fragment(&whole, 7, 0, 63, true), Drop::Fragment),
            ("empty", vec![first.clone()], fragment(&whole, 7, PART, 0, false), Drop::Fragment),
        ] {
            let mut specs = vec![vip(Forward::Nat, family)];
            if packet[if family == Family::V4 { 23 } else { 54 }] == 6 {
                specs = vec![spec(0, Forward::Nat, family, 1, 3)];
            }
            let mut rig = Rig::new(1, 1, specs);
            for packet in &before {
                assert_eq!(rig.send(0, 0, packet).len(), 1, "{name}");
            }
            assert_eq!(rig.send(0, 0, &packet).len(), 0, "{name}");
            assert_eq!(rig.drops(0, reason), 1, "{name}");
            rig.assert_accounted();
        }
    }
}

#[test]
fn a_fragment_without_a_first_one_waits_and_is_dropped() {
    let mut rig = Rig::new(2, 1, vec![vip(Forward::Dsr, Family::V4)]);
    let parts = fragments(&request(Family::V4, PORT, 2 * PART + 5), 7);
    assert_eq!(rig.send(0, 0, &parts[1]).len(), 0);
    assert_eq!(rig.stats(0).fragments_parked.get(), 1);
    rig.assert_accounted();
    rig.advance(PATIENCE);
    assert_eq!(rig.stats(0).fragments_parked.get(), 1);
    rig.advance(1);
    let gone = (rig.stats(0).fragments_parked.get(), rig.drops(0, Drop::FragmentNoFirst));
    assert_eq!(gone, (0, 1));
    // No other fragment is forwarded, except the first one.
    assert_eq!(rig.send(1, 0, &parts[0]).len(), 1);
    rig.assert_accounted();
}

#[test]
fn a_datagram_ends_with_its_time_and_its_number_may_be_used_again() {
    let mut rig = Rig::new(1, 1, vec![vip(Forward::Dsr, Family::V6)]);
    let parts = fragments(&request(Family::V6, PORT, 2 * PART + 5), 7);
    assert_eq!(rig.send(0, 0, &parts[0]).len(), 1);
    rig.advance(3001);
    assert_eq!(rig.send(0, 0, &parts[1]).len(), 0, "too late");
    rig.advance(PATIENCE + 1);
    let others = fragments(&request(Family::V6, PORT + 1, 2 * PART + 5), 7);
    let sent: Vec<Sent> = others.iter().flat_map(|part| rig.send(0, 0, part)).collect();
    assert_eq!(sent.len(), 3, "all of another datagram");
    let ports = fragments(&request(Family::V6, PORT + 2, 2 * PART + 5), 7);
    let sent: Vec<Sent> = ports.iter().flat_map(|part| rig.send(0, 0, part)).collect();
    assert_eq!(sent.len(), 3, "the one before was complete");
}

/// Random later fragments, and first ones without later ones, many times the limits of parked
/// fragments and known datagrams.
#[test]
fn a_flood_takes_no_more_than_its_room_and_nothing_from_others() {
    for family in [Family::V4, Family::V6] {
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, family)]);
        let steady: Vec<Vec<u8>> = (0..20).map(|n| udp(family, 1000 + n, 80, true)).collect();
        let before: Vec<_> = steady.iter().map(|packet| rig.send(0, 0, packet)).collect();
        let whole = request(family, PORT, 3 * PART);
        let large = fragments(&request(family, 999, 2 * PART + 5), 1);
        for round in 0..50_u16 {
            for number in 0..100_u16 {
                let id = round * 100 + number + 1000;
                let more = !number.is_multiple_of(3);
                let offset = if number.is_multiple_of(2) { PART } else { 0 };
                rig.send(0, 0, &fragment(&whole, id, offset, PART, more || offset == 0));
                assert!(rig.stats(0).fragments_parked.get() <= PARKED as u64);
            }
            rig.assert_accounted();
            let sent: Vec<Sent> = large.iter().flat_map(|part| rig.send(0, 0, part)).collect();
            assert_eq!((sent.len(), backends(&sent).len()), (3, 1), "round {round}");
        }
        assert!(rig.drops(0, Drop::FragmentNoRoom) > 1000);
        for (packet, before) in steady.iter().zip(before) {
            assert_eq!(rig.send(0, 0, packet), before);
        }
        rig.advance(PATIENCE + 1);
        assert_eq!(rig.stats(0).fragments_parked.get(), 0);
        rig.assert_accounted();
    }
}

#[test]
fn one_datagram_does_not_take_all_room() {
    let mut rig = Rig::new(1, 1, vec![vip(Forward::Dsr, Family::V4)]);
    let whole = request(Family::V4, PORT, 8 * 80);
    for at in 1..=80 {
        rig.send(0, 0, &fragment(&whole, 7, at * 8, 8, true));
    }
    assert_eq!(rig.stats(0).fragments_parked.get(), 64);
    assert_eq!(rig.drops(0, Drop::FragmentNoRoom), 16);
    rig.assert_accounted();
}
