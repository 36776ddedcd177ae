//! Packets in mid-flow without a pin, whose backends are asked for the flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use holdfast::forwarding::{Ask, Local, Service, Tunnels, VipSpec};
use holdfast::net::{FleetKey, Forward, Protocol};
use holdfast::stats::Drop;
use holdfast::units::Ticks;

use super::fragments::set_sum;
use super::icmp::{icmp, of_vip, router, too_big};
use super::tunnel::tunnels;
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, segment, spec, tcp};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const MODES: [Forward; 3] = [Forward::Dsr, Forward::Ipip, Forward::Gue];
const KEY: FleetKey = FleetKey([9; 16]);
const BACKENDS: u16 = 4;

/// Time for which earlier tables count.
const RECALL: Ticks = Ticks(100);

/// A box that has just started, and whose VIP has `backends`.
fn new_rig(ask: Ask, forward: Forward, (inner, outer): (Family, Family), backends: u16) -> Rig {
    let mut vip: VipSpec = spec(0, forward, inner, 1, backends);
    (vip.policy.ask, vip.policy.recall) = (ask, RECALL);
    for (index, backend) in (0..).zip(&mut vip.backends) {
        backend.address = outer.backend(index);
    }
    let tunnels = Tunnels { fleet: Some([KEY, KEY]), ..tunnels() };
    let local = Local { mtus: vec![1500], tunnels, ..Local::default() };
    Rig::in_box(local, 1, 1, vec![vip])
}

/// A box that knows the past of its VIP.
fn rig(forward: Forward, inner: Family, outer: Family) -> Rig {
    let mut rig = new_rig(Ask::History, forward, (inner, outer), BACKENDS);
    rig.skip(RECALL.0);
    rig
}

/// An ask as it is on the wire: the hops, whether it is cut, and the inner packet.
struct Asked {
    hops: Vec<IpAddr>,
    is_cut: bool,
    is_part: bool,
    inner: Vec<u8>,
}

/// Reads an ask; `None` for any other packet.
fn asked(sent: &Sent) -> Option<Asked> {
    let packet = SlicedPacket::from_ethernet(&sent.bytes).unwrap();
    let TransportSlice::Udp(udp) = packet.transport? else { return None };
    if udp.destination_port() != 6080 || !udp.payload().get(4..).is_some_and(is_ask) {
        return None;
    }
    let [lengths, _, 0, 0] = *udp.payload().first_chunk().unwrap() else { unreachable!("GUE") };
    let (private, inner) = udp.payload()[4..].split_at(usize::from(lengths) * 4);
    let (first, v6) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (IpAddr::from(header.destination), false)
        }
        NetSlice::Ipv6(ip) => (IpAddr::from(ip.header().destination_addr()), true),
        other => unreachable!("{other:?}"),
    };
    let [_, _, _, _, next, count, family, flags] = *private.first_chunk().unwrap();
    assert_eq!((next, family), (1, if v6 { 6 } else { 4 }));
    let address = |bytes: &[u8]| match v6 {
        true => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
        false => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
    };
    let each = if v6 { 16 } else { 4 };
    let list = &private[8..private.len() - 8];
    let hops: Vec<_> = list.chunks(each).skip(1).map(address).collect();
    assert_eq!((hops.len(), hops[0]), (usize::from(count), first), "the first hop has the packet");
    let (is_cut, is_part) = (flags & 1 != 0, flags & 2 != 0);
    Some(Asked { hops, is_cut, is_part, inner: inner.to_vec() })
}

fn is_ask(private: &[u8]) -> bool {
    private.starts_with(b"hfA1")
}

/// An answer as the program of a backend makes it (xdp/backend.bpf.c): the ask with another magic and
/// tag, from the owner to the box.
fn answer(sent: &Sent, owner: IpAddr, key: FleetKey) -> Vec<u8> {
    let (ip, v6) = if sent.bytes[12..14] == [0x86, 0xdd] { (40, true) } else { (20, false) };
    let mut bytes = sent.bytes.clone();
    bytes[..6].copy_from_slice(&nic_mac(0));
    bytes[6..12].copy_from_slice(&CLIENT_MAC);
    let mapped = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (from, each) = if v6 { (14 + 8, 16) } else { (14 + 12, 4) };
    let boxed = bytes[from..from + each].to_vec();
    bytes[from..from + each].copy_from_slice(&mapped(owner)[16 - each..]);
    bytes[from + each..from + 2 * each].copy_from_slice(&boxed);
    let private = 14 + ip + 8 + 4;
    let len = usize::from(bytes[private - 4]) * 4;
    let inner = bytes[private + len..].to_vec();
    bytes[private..private + 4].copy_from_slice(b"hfO1");
    let mut hasher = siphasher::sip::SipHasher24::new_with_key(&key.0);
    let mut head = bytes[private..private + 8].to_vec();
    head[4] = 0;
    let minute = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 60;
    let address = |bytes: &[u8]| match bytes.len() {
        4 => mapped(<[u8; 4]>::try_from(bytes).unwrap().into()),
        _ => <[u8; 16]>::try_from(bytes).unwrap(),
    };
    let (ends, ports) = match inner[0] >> 4 {
        4 => ([address(&inner[12..16]), address(&inner[16..20])], &inner[20..24]),
        _ => ([address(&inner[8..24]), address(&inner[24..40])], &inner[40..44]),
    };
    let signed = [&head, &minute.to_le_bytes()[..], &address(&boxed), &ends[0], &ends[1], ports];
    let signed = [signed.concat(), vec![0; 4], mapped(owner).to_vec()].concat();
    std::hash::Hasher::write(&mut hasher, &signed);
    let tag = std::hash::Hasher::finish(&hasher).to_le_bytes();
    bytes[private + len - 8..private + len].copy_from_slice(&tag);
    set_sum(&mut bytes);
    bytes
}

/// Who answers has the flow from then on; others are not believed.
#[test]
fn the_backend_that_answers_gets_the_pin() {
    for forward in MODES {
        for family in FAMILIES {
            let mut rig = rig(forward, family, family);
            rig.change(|vips| vips[0].backends[0].service = Service::Draining);
            let mut pinned = 0;
            for port in 1000..1100 {
                let packet = tcp(family, port, 80, "A");
                let sent = rig.send(0, 0, &packet).remove(0);
                let Some(Asked { hops, .. }) = asked(&sent) else { continue };
                let stranger = family.backend(9);
                for (owner, key) in [(hops[1], FleetKey([8; 16])), (stranger, KEY)] {
                    let before = rig.drops(0, Drop::BadAnswer);
                    assert_eq!(rig.send(0, 0, &answer(&sent, owner, key)), []);
                    assert_eq!(rig.drops(0, Drop::BadAnswer), before + 1);
                }
                assert!(asked(&rig.send(0, 0, &packet)[0]).is_some(), "still asked");
                assert_eq!(rig.send(0, 0, &answer(&sent, hops[1], KEY)), []);
                assert_eq!(rig.drops(0, Drop::AskAnswer), pinned + 1);
                pinned += 1;
                let later = rig.send(0, 0, &packet).remove(0);
                assert!(asked(&later).is_none());
                let owner = (0..BACKENDS).find(|&index| family.backend(index) == hops[1]);
                assert_eq!(later.destination_mac(), crate::rig::backend_mac(owner.unwrap()));
            }
            assert!(pinned > 10);
        }
    }
}

/// The backend that the hash chooses is the first to be asked, and after a change of the pool the
/// one at which a flow began is among the others.
#[test]
fn the_backend_at_which_a_flow_began_is_asked() {
    for forward in MODES {
        for (inner, outer) in FAMILIES.into_iter().flat_map(|a| FAMILIES.map(|b| (a, b))) {
            if forward == Forward::Dsr && inner != outer {
                continue;
            }
            let mut rig = rig(forward, inner, outer);
            let mut places = BTreeMap::new();
            let place = |hop: &IpAddr| {
                let index = (0..BACKENDS).find(|&index| outer.backend(index) == *hop);
                crate::rig::backend_mac(index.unwrap())
            };
            // Another box with the same pool: it has no pins.
            let mut other = self::rig(forward, inner, outer);
            for port in 1000..1200 {
                // A SYN is a new flow, whatever there is to ask.
                let sent = rig.send(0, 0, &tcp(inner, port, 80, "S")).remove(0);
                assert!(asked(&sent).is_none());
                places.insert(port, sent.destination_mac());
                let sent = other.send(0, 0, &tcp(inner, port, 80, "A")).remove(0);
                let Asked { hops, .. } = asked(&sent).unwrap();
                assert_eq!((place(&hops[0]), hops.len()), (places[&port], 3));
            }
            let drains = |vips: &mut [VipSpec]| vips[0].backends[0].service = Service::Draining;
            other.change(drains);
            for (port, began) in &places {
                let packet = tcp(inner, *port, 80, "A");
                let sent = other.send(0, 0, &packet).remove(0);
                let Asked { hops, is_cut, is_part, inner: carried } = asked(&sent).unwrap();
                assert!(!is_cut && !is_part && packet[14..].starts_with(&carried), "{forward:?}");
                assert_eq!(carried.len(), packet.len() - 14);
                let at = hops.iter().position(|hop| place(hop) == *began).unwrap();
                // At the second place, if it is the one that drains.
                assert_eq!(at, usize::from(*began == crate::rig::backend_mac(0)), "{hops:?}");
            }
        }
    }
}

#[test]
fn a_packet_that_does_not_fit_goes_as_its_first_bytes() {
    for family in FAMILIES {
        let mut rig = rig(Forward::Ipip, family, family);
        rig.change(|vips| vips[0].backends[0].service = Service::Draining);
        // The longest packet that fits into the tunnel.
        let data = if family == Family::V4 { 1440 } else { 1400 };
        for port in 1000..1100 {
            let ends = ((family.client(), port), (family.vip(), 80));
            let macs = (CLIENT_MAC, nic_mac(0));
            let packet = segment(macs, ends.0, ends.1, (5, 6, "A"), &[], &vec![7; data]);
            let sent = rig.send(0, 0, &packet).remove(0);
            let Asked { is_cut, inner, .. } = asked(&sent).unwrap();
            assert!(is_cut && inner.len() == 100, "{}", inner.len());
            assert_eq!(inner, packet[14..114]);
        }
    }
}

/// A box that has just started does not know where flows began: any backend may have one.
#[test]
fn a_box_without_a_past_asks_all_backends() {
    for (ask, knows) in [(Ask::History, false), (Ask::All, false), (Ask::All, true)] {
        for forward in MODES {
            for family in FAMILIES {
                let mut rig = new_rig(ask, forward, (family, family), BACKENDS);
                rig.skip(if knows { RECALL.0 } else { RECALL.0 - 1 });
                let sent = rig.send(0, 0, &tcp(family, 1000, 80, "A"));
                assert_eq!(sent.len(), 1);
                let Asked { mut hops, is_part, .. } = asked(&sent[0]).unwrap();
                hops.sort_unstable();
                let all: Vec<_> = (0..BACKENDS).map(|index| family.backend(index)).collect();
                assert_eq!((hops, is_part), (all, false));
                assert_eq!(rig.stats(0).asks_sent.get(), 1);
                rig.assert_accounted();
            }
        }
    }
}

/// With more backends than one list has room for, copies go to further lists, and to other backends
/// when the packet is repeated.
#[test]
fn many_backends_are_asked_by_copies_and_repetitions() {
    for (family, per_list, backends) in [(Family::V4, 16, 40), (Family::V6, 5, 40)] {
        let mut rig = new_rig(Ask::All, Forward::Ipip, (family, family), backends);
        let packet = tcp(family, 1000, 80, "A");
        let (mut seen, mut sent_all) = (BTreeSet::new(), 0);
        for _ in 0..8 {
            let sent = rig.send(0, 0, &packet);
            assert!(sent.len() <= 4, "{}", sent.len());
            let mut now = BTreeSet::new();
            for sent in &sent {
                let Asked { hops, is_part, inner, is_cut } = asked(sent).unwrap();
                assert!(is_part && !is_cut && hops.len() <= per_list);
                assert!(hops.iter().all(|hop| now.insert(*hop)), "each once");
                assert_eq!(inner, packet[14..14 + inner.len()]);
            }
            sent_all += sent.len() as u64;
            assert_eq!(rig.stats(0).asks_sent.get(), sent_all);
            seen.extend(now);
            rig.skip(20);
        }
        assert_eq!(seen.len(), usize::from(backends), "{family:?}");
        rig.assert_accounted();
    }
}

/// Beyond the budget packets are dropped, as a guess could break their connections; they go by the
/// hash where all tables have chosen the same backend.
#[test]
fn asks_have_a_budget() {
    let mut rig = rig(Forward::Dsr, Family::V4, Family::V4);
    rig.change_box(|local| local.asks = Some(5));
    let sent = (1000..1020).flat_map(|port| rig.send(0, 0, &tcp(Family::V4, port, 80, "A")));
    let asks = sent.collect::<Vec<_>>().iter().filter(|sent| asked(sent).is_some()).count();
    assert_eq!((asks, rig.stats(0).flows_by_hash.get()), (5, 15));
    let mut rig = new_rig(Ask::All, Forward::Dsr, (Family::V4, Family::V4), BACKENDS);
    rig.change_box(|local| local.asks = Some(5));
    let count = |rig: &mut Rig| {
        let sent = (1000..1020).flat_map(|port| rig.send(0, 0, &tcp(Family::V4, port, 80, "A")));
        sent.collect::<Vec<_>>().iter().filter(|sent| asked(sent).is_some()).count()
    };
    assert_eq!((count(&mut rig), rig.drops(0, Drop::AskLimited)), (5, 15));
    rig.skip(100);
    assert_eq!((count(&mut rig), rig.drops(0, Drop::AskLimited)), (5, 30));
    rig.assert_accounted();
}

/// An ICMP error goes to the backend that has the flow which it is about; it makes no pin.
#[test]
fn backends_are_asked_about_icmp_errors() {
    for forward in MODES {
        for family in FAMILIES {
            let mut rig = new_rig(Ask::All, forward, (family, family), BACKENDS);
            let quote = of_vip(family, Protocol::Tcp, 1000);
            let error = icmp(router(family), family.vip(), too_big(family), 1400, &quote);
            let sent = rig.send(0, 0, &error).remove(0);
            let Asked { hops, inner, .. } = asked(&sent).unwrap();
            assert_eq!((hops.len(), &inner[..]), (4, &error[14..]));
            // With a pin it goes there.
            let pinned = rig.send(0, 0, &tcp(family, 1000, 80, "S")).remove(0);
            let sent = rig.send(0, 0, &error).remove(0);
            assert!(asked(&sent).is_none());
            assert_eq!(sent.destination_mac(), pinned.destination_mac());
            assert_eq!(rig.stats(0).flows_active.get(), 1);
            rig.assert_accounted();
        }
    }
}

#[test]
fn a_backend_without_the_program_is_not_asked() {
    for family in FAMILIES {
        let mut rig = new_rig(Ask::All, Forward::Gue, (family, family), BACKENDS);
        rig.change(|vips| vips[0].backends[1].can_be_asked = false);
        let sent = rig.send(0, 0, &tcp(family, 1000, 80, "A")).remove(0);
        let Asked { hops, .. } = asked(&sent).unwrap();
        assert_eq!((hops.len(), hops.contains(&family.backend(1))), (3, false));
        rig.change(|vips| vips[0].backends.iter_mut().for_each(|one| one.can_be_asked = false));
        let sent = rig.send(0, 0, &tcp(family, 1001, 80, "A")).remove(0);
        assert!(asked(&sent).is_none(), "the hash");
        assert_eq!(rig.stats(0).flows_by_hash.get(), 1);
    }
}
