//! Mode full_nat: the packets that a backend sees, the look-up of replies, and the life of SNAT
//! ports.

use std::collections::HashSet;
use std::net::IpAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use holdfast::forwarding::explain::{Question, Segment};
use holdfast::forwarding::{FlowAction, VipSpec};
use holdfast::net::{BackendIndex, Forward, NextHop, Protocol, VipId};
use holdfast::stats::Drop;

use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, set_sum, spec, tagged, tcp, tcp_of, udp};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// One round of the sweep, in ticks.
const ROUND: u32 = 400;

fn full_nat(family: Family, nics: usize, backends: u16) -> VipSpec {
    spec(0, Forward::FullNat, family, nics, backends)
}

/// Every pair of a client's family and a backend's family.
fn pairs() -> impl Iterator<Item = (Family, Family)> {
    FAMILIES.into_iter().flat_map(|family| FAMILIES.map(|inner| (family, inner)))
}

/// A VIP with backends of family `inner`.
fn across(family: Family, inner: Family, nics: usize, backends: u16) -> VipSpec {
    let mut vip = full_nat(family, nics, backends);
    for (backend, index) in vip.backends.iter_mut().zip(0..) {
        backend.address = inner.backend(index);
    }
    vip
}

fn client(family: Family, port: u16, flags: &str) -> Vec<u8> {
    tcp(family, port, 80, flags)
}

/// Checks the packet as the backend sees it: from our SNAT address, to its own address and port.
fn assert_to_backend(sent: &[Sent], family: Family, nic: usize) -> (IpAddr, u16) {
    assert_eq!(sent.len(), 1, "{family:?}: {sent:?}");
    let [one] = sent else { unreachable!() };
    one.assert_checksums();
    assert_eq!((one.nic, one.source_mac()), (nic, nic_mac(nic)));
    let index = u16::from(one.destination_mac()[5]);
    let (address, port, hops) = one.destination();
    assert_eq!((address, hops), (family.backend(index), 63));
    assert!(port == 8080 || port == 80, "{port}");
    assert_eq!(one.source().0, family.source());
    assert!((20_000..=21_999).contains(&one.source().1));
    one.source()
}

fn assert_to_client(sent: &[Sent], family: Family, port: u16) {
    assert_eq!(sent.len(), 1, "{family:?}: {sent:?}");
    let [one] = sent else { unreachable!() };
    one.assert_checksums();
    assert_eq!(one.source(), (family.vip(), 80));
    assert_eq!(one.destination(), (family.client(), port, 63));
    assert_eq!((one.destination_mac(), one.source_mac()), (CLIENT_MAC, nic_mac(0)));
}

/// Packets of the client and of the backend, each at either worker, in every combination.
#[test]
fn a_connection_has_one_source_and_its_replies_come_from_the_vip() {
    for (family, inner) in pairs() {
        for nics in [1, 2] {
            for (of_client, of_backend) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let mut rig = Rig::new(2, nics, vec![across(family, inner, nics, 3)]);
                let request = rig.send(0, 0, &client(family, 40_000, "S"));
                let source = assert_to_backend(&request, inner, nics - 1);
                assert_eq!(source.1 % 2, 0, "worker 0 has the even ports");
                let reply = rig.send(of_backend, nics - 1, &request[0].reply("SA"));
                assert_to_client(&reply, family, 40_000);
                for flags in ["A", "A", "FA"] {
                    let sent = rig.send(of_client, 0, &client(family, 40_000, flags));
                    assert_eq!(assert_to_backend(&sent, inner, nics - 1), source);
                    assert_eq!(sent[0].destination_mac(), request[0].destination_mac());
                    let reply = rig.send(of_backend, nics - 1, &request[0].reply(flags));
                    assert_to_client(&reply, family, 40_000);
                }
                let stats = rig.stats(0);
                assert_eq!(stats.snat_ports(inner.into()).get(), 1);
                assert_eq!((stats.flows_new.get(), stats.flows_active.get()), (1, 1));
                assert_eq!(rig.stats(1).flow_aliases.get(), u64::from(of_client == 1));
                // Both FINs were seen, at either worker: the flow closes (2 s), and its SNAT port
                // is released.
                rig.advance(200 + ROUND);
                let stats = rig.stats(0);
                assert_eq!((stats.flows_active.get(), stats.flows_closed.get()), (0, 1));
                assert_eq!((stats.bindings_v4.get(), stats.bindings_v6.get()), (0, 0));
                assert_eq!(rig.send(0, nics - 1, &request[0].reply("A")), [], "no flow any more");
                assert_eq!(rig.drops(0, Drop::ReturnNoFlow), 1);
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn datagrams_are_translated_both_ways() {
    for (family, inner) in pairs() {
        for checksum in [true, false] {
            let vip = VipSpec { protocol: Protocol::Udp, ..across(family, inner, 1, 3) };
            let mut rig = Rig::new(2, 1, vec![vip]);
            if family == Family::V6 && !checksum {
                continue;
            }
            let request = rig.send(0, 0, &udp(family, 5353, 80, checksum));
            assert_eq!(request.len(), 1);
            assert_eq!(request[0].source().0, inner.source());
            // IPv6 requires a checksum (RFC 7915 4.5).
            let absent = !checksum && inner == Family::V4;
            assert_eq!(request[0].udp_checksum() == 0, absent, "absent stays absent");
            for worker in [0, 1, 1] {
                let reply = rig.send(worker, 0, &request[0].udp_reply());
                assert_eq!(reply.len(), 1);
                reply[0].assert_checksums();
                assert_eq!(reply[0].source(), (family.vip(), 80));
                assert_eq!(reply[0].destination(), (family.client(), 5353, 63));
            }
            // Replies alone keep the flow alive: its time-out is 1 s.
            for _ in 0..5 {
                rig.advance(90);
                assert_eq!(rig.send(1, 0, &request[0].udp_reply()).len(), 1);
            }
            rig.assert_accounted();
        }
    }
}

/// A repeated SYN, or another datagram, arrives on another queue of the NIC.
#[test]
fn a_flow_that_begins_at_two_workers_has_one_source() {
    for family in FAMILIES {
        let mut dns = VipSpec { protocol: Protocol::Udp, ..full_nat(family, 1, 3) };
        dns.id = VipId(1);
        for (backend, index) in dns.backends.iter_mut().zip(10..) {
            backend.id.index = BackendIndex(index);
        }
        let mut rig = Rig::new(2, 1, vec![full_nat(family, 1, 3), dns]);
        for packet in [client(family, 40_000, "S"), udp(family, 40_000, 80, true)] {
            let sources = [0, 1, 1, 0].map(|worker| rig.send(worker, 0, &packet)[0].source());
            assert!(sources.iter().all(|source| *source == sources[0]), "{sources:?}");
        }
        let [here, there] = [0, 1].map(|worker| rig.stats(worker).snat_ports(family.into()).get());
        assert_eq!((here, there), (2, 0));
        rig.assert_accounted();
    }
}

#[test]
fn replies_from_elsewhere_than_the_flows_backend_are_dropped() {
    let family = Family::V4;
    let mut rig = Rig::new(2, 1, vec![full_nat(family, 1, 1)]);
    let request = rig.send(0, 0, &client(family, 40_000, "S"));
    let good = request[0].reply("SA");
    let mut other_address = good.clone();
    other_address[26..30].copy_from_slice(&[198, 18, 2, 99]);
    set_sum(&mut other_address);
    let mut other_port = good.clone();
    other_port[34..36].copy_from_slice(&8081_u16.to_be_bytes());
    let mut free_source = good.clone();
    free_source[36..38].copy_from_slice(&21_000_u16.to_be_bytes());
    for packet in [&other_address, &other_port, &free_source, &request[0].udp_reply()] {
        for worker in [0, 1] {
            assert_eq!(rig.send(worker, 0, packet), []);
        }
    }
    for worker in [0, 1] {
        assert_eq!(rig.drops(worker, Drop::ReturnNoFlow), 4);
    }
    let mut no_source = good.clone();
    no_source[36..38].copy_from_slice(&19_999_u16.to_be_bytes());
    assert_eq!(rig.send(0, 0, &no_source), []);
    assert_eq!(rig.drops(0, Drop::NoVip), 1);
    assert_to_client(&rig.send(1, 0, &good), family, 40_000);
    rig.assert_accounted();
}

/// A forged packet: the reply to it would come back to the balancer.
#[test]
fn a_snat_address_is_not_a_client() {
    for family in FAMILIES {
        let mut rig = Rig::new(1, 1, vec![full_nat(family, 1, 3)]);
        for port in [20_000, 1_000] {
            let packet = tcp_of((family.source(), port), (family.vip(), 80), "S");
            assert_eq!(rig.send(0, 0, &packet), []);
        }
        assert_eq!(rig.drops(0, Drop::OwnSource), 2);
        rig.assert_accounted();
    }
}

/// Packets that never start or continue a connection have no SNAT port, and take none.
#[test]
fn packets_of_no_flow_are_dropped_or_reset_by_a_backend() {
    let mut rig = Rig::new(1, 1, vec![full_nat(Family::V4, 1, 3)]);
    for flags in ["R", "RA", "SA", "F"] {
        assert_eq!(rig.send(0, 0, &client(Family::V4, 40_000, flags)), [], "{flags}");
    }
    assert_eq!(rig.drops(0, Drop::RequestNoFlow), 4);
    assert_eq!(rig.stats(0).bindings_v4.get(), 0);
    // A connection that lost its pin: the backend does not know the new source, and replies with a
    // RST.
    let sent = rig.send(0, 0, &client(Family::V4, 40_000, "A"));
    assert_to_backend(&sent, Family::V4, 0);
    assert_eq!(rig.stats(0).flows_by_hash.get(), 1);
    let reset = rig.send(0, 0, &sent[0].reply("R"));
    assert_to_client(&reset, Family::V4, 40_000);
    assert!(reset[0].tcp().rst);
    rig.advance(200 + ROUND);
    assert_eq!(rig.stats(0).bindings_v4.get(), 0);
    rig.assert_accounted();
}

#[test]
fn sources_run_out_by_name_and_are_used_again_in_the_order_in_which_they_were_left() {
    for family in FAMILIES {
        // Two workers: worker 0 has five ports.
        let mut rig = Rig::with_ports(2, 1, 4096, 20_000..=20_009, vec![full_nat(family, 1, 3)]);
        let open = |rig: &mut Rig, port| rig.send(0, 0, &client(family, port, "S"));
        let established = |rig: &mut Rig, port| {
            let syn = open(rig, port).remove(0);
            rig.send(0, 0, &syn.reply("SA"));
            rig.send(0, 0, &client(family, port, "A"));
            syn.source().1
        };
        let first: Vec<u16> = (1..=5).map(|port| established(&mut rig, port)).collect();
        assert_eq!(first.iter().collect::<HashSet<_>>().len(), 5);
        assert_eq!(open(&mut rig, 6), []);
        assert_eq!(rig.drops(0, Drop::NoSourcePort), 1);
        assert_eq!(rig.stats(0).snat_ports(family.into()).get(), 5);
        // Existing flows go on.
        assert_eq!(rig.send(0, 0, &client(family, 1, "A")).len(), 1);
        // The third ends, then the first; the others go on.
        for port in [3, 1] {
            rig.send(0, 0, &client(family, port, "R"));
            rig.advance(200 + ROUND);
            for port in [2, 4, 5] {
                rig.send(0, 0, &client(family, port, "A"));
            }
        }
        let again = [11, 12].map(|port| established(&mut rig, port));
        assert_eq!(again, [first[2], first[0]], "that of the third has rested longer");
        rig.assert_accounted();
    }
}

/// A reused client port is a new flow, with a source that the backend has not seen lately.
#[test]
fn a_new_connection_from_the_same_port_gets_a_new_source() {
    let mut rig = Rig::new(1, 1, vec![full_nat(Family::V4, 1, 3)]);
    let old = rig.send(0, 0, &client(Family::V4, 40_000, "S"));
    rig.send(0, 0, &client(Family::V4, 40_000, "FA"));
    rig.send(0, 0, &old[0].reply("FA"));
    let new = rig.send(0, 0, &client(Family::V4, 40_000, "S"));
    assert_ne!(old[0].source(), new[0].source());
    assert_eq!(rig.send(0, 0, &old[0].reply("A")), [], "the old source is free");
    assert_to_client(&rig.send(0, 0, &new[0].reply("SA")), Family::V4, 40_000);
    assert_eq!(rig.stats(0).bindings_v4.get(), 1);
    // A repeated SYN is the same flow.
    let again = rig.send(0, 0, &client(Family::V4, 40_000, "S"));
    assert_eq!(again[0].source(), new[0].source());
    rig.assert_accounted();
}

#[test]
fn a_flow_that_moves_to_another_backend_gets_a_new_source() {
    for family in FAMILIES {
        let vip = full_nat(family, 1, 3).with(|policy| policy.on_down = FlowAction::Rehash);
        let mut rig = Rig::new(2, 1, vec![vip]);
        let old = rig.send(0, 0, &client(family, 40_000, "S"));
        rig.send(1, 0, &client(family, 40_000, "A"));
        let index = usize::from(old[0].destination_mac()[5]);
        rig.change(|specs| specs[0].backends[index].up = false);
        let new = rig.send(0, 0, &client(family, 40_000, "A"));
        assert_ne!(old[0].destination_mac(), new[0].destination_mac());
        assert_ne!(old[0].source(), new[0].source());
        assert_eq!(rig.stats(0).snat_ports(family.into()).get(), 1);
        assert_eq!(rig.send(0, 0, &old[0].reply("A")), []);
        assert_to_client(&rig.send(1, 0, &new[0].reply("A")), family, 40_000);
        rig.assert_accounted();
    }
}

#[test]
fn a_backend_that_leaves_gives_its_sources_back() {
    let mut rig = Rig::new(2, 1, vec![full_nat(Family::V4, 1, 3)]);
    let requests: Vec<Sent> =
        (1..=100).flat_map(|port| rig.send(0, 0, &client(Family::V4, port, "S"))).collect();
    for request in &requests {
        rig.send(1, 0, &request.reply("SA"));
    }
    rig.change(|specs| specs[0].backends.iter_mut().for_each(|b| b.id.generation += 1));
    assert_eq!(rig.send(1, 0, &requests[0].reply("A")), [], "stale at once");
    // A packet finds its pin stale; the sweep finds the others.
    rig.send(0, 0, &client(Family::V4, 1, "S"));
    rig.advance(ROUND);
    assert_eq!((rig.stats(0).bindings_v4.get(), rig.stats(0).flows_active.get()), (0, 0));
    assert_eq!(rig.stats(0).flows_stale.get(), 100);
    rig.assert_accounted();
}

/// The client's router changes, also at the other worker; each side keeps its own VLAN.
#[test]
fn replies_follow_the_client() {
    for (client_vlan, backend_vlan) in [(None, None), (Some(100), None), (None, Some(200))] {
        for worker in [0, 1] {
            let mut vip = full_nat(Family::V4, 1, 1);
            let hop = vip.backends[0].next_hop.unwrap();
            vip.backends[0].next_hop = Some(NextHop { vlan: backend_vlan.map(Into::into), ..hop });
            let mut rig = Rig::new(2, 1, vec![vip]);
            let packet = |flags| tagged(client(Family::V4, 40_000, flags), client_vlan);
            let request = rig.send(0, 0, &packet("S"));
            assert_eq!(request[0].vlan(), backend_vlan);
            let reply = rig.send(1, 0, &request[0].reply("SA"));
            assert_eq!(reply[0].vlan(), client_vlan);
            rig.advance(1);
            let mut moved = packet("A");
            moved[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
            rig.send(worker, 0, &moved);
            for worker in [0, 1] {
                let reply = rig.send(worker, 0, &request[0].reply("A"));
                assert_eq!(reply[0].destination_mac(), [2, 9, 9, 9, 9, 9]);
            }
            rig.assert_accounted();
        }
    }
}

/// Replies alone keep a connection alive, at either worker.
#[test]
fn replies_keep_a_flow_alive() {
    for worker in [0, 1] {
        let mut rig = Rig::new(2, 1, vec![full_nat(Family::V4, 1, 3)]);
        let request = rig.send(0, 0, &client(Family::V4, 40_000, "S"));
        rig.send(0, 0, &client(Family::V4, 40_000, "A"));
        // The established time-out is 10 s: 18 s in sum.
        for _ in 0..20 {
            rig.advance(90);
            assert_to_client(&rig.send(worker, 0, &request[0].reply("A")), Family::V4, 40_000);
        }
        assert_eq!(rig.stats(0).flows_active.get(), 1);
        rig.advance(1000 + ROUND);
        assert_eq!(rig.stats(0).flows_idled_out.get(), 1);
        assert_eq!(rig.send(worker, 0, &request[0].reply("A")), []);
        rig.assert_accounted();
    }
}

/// Two flows that nat could not distinguish at one backend: same client address and port, two VIP
/// ports.
#[test]
fn one_client_port_may_have_flows_with_several_vip_ports() {
    let mut vip = full_nat(Family::V4, 1, 1);
    vip.ports = holdfast::forwarding::Ports::of(&[80, 81]);
    let mut rig = Rig::new(1, 1, vec![vip]);
    let sent = [80, 81].map(|port| rig.send(0, 0, &tcp(Family::V4, 40_000, port, "S")).remove(0));
    assert_ne!(sent[0].source(), sent[1].source());
    for (one, port) in sent.iter().zip([80, 81]) {
        let reply = rig.send(0, 0, &one.reply("SA"));
        assert_eq!(reply[0].source(), (Family::V4.vip(), port));
    }
    rig.assert_accounted();
}

#[test]
fn explain_says_the_source_and_takes_none() {
    let mut rig = Rig::new(2, 1, vec![full_nat(Family::V4, 1, 3)]);
    let question = Question {
        protocol: Protocol::Tcp,
        client: (Family::V4.client(), 40_000).into(),
        destination: (Family::V4.vip(), 80).into(),
        payload: Vec::new(),
        packet: Segment::Likely,
    };
    let rewrite = |rig: &Rig| {
        let told = rig.explainer().explain(&question, &rig.table(), rig.now()).unwrap();
        let step = told.steps.iter().find(|step| step.stage == "rewrite").unwrap();
        (step.outcome.clone(), step.why.clone())
    };
    let (outcome, why) = rewrite(&rig);
    assert!(outcome.starts_with("198.18.9.1, ports 20000-21999 -> 198.18.2."), "{outcome}");
    assert!(why.contains("from a free source"), "{why}");
    assert_eq!(rig.stats(0).bindings_v4.get(), 0);
    let sent = rig.send(0, 0, &tagged(client(Family::V4, 40_000, "S"), Some(7)));
    let (address, port) = sent[0].source();
    let (outcome, why) = rewrite(&rig);
    assert!(outcome.starts_with(&format!("{address}:{port} -> 198.18.2.")), "{outcome}");
    assert!(why.contains("the source of this flow"), "{why}");
    // The return hop is unchanged.
    assert_eq!(rig.send(1, 0, &sent[0].reply("SA"))[0].vlan(), Some(7));
    rig.assert_accounted();
}

/// An ICMP error from `router` to `to` that quotes the packet in `frame`, which has no VLAN tag.
fn icmp_error(frame: &Sent, router: IpAddr, to: IpAddr, kind: (u8, u8), mtu: u16) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let quote = &frame.bytes[14..];
    let mut packet = Vec::new();
    let builder = PacketBuilder::ethernet2(frame.destination_mac(), frame.source_mac());
    match (router, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => builder
            .ipv4(a.octets(), b.octets(), 64)
            .icmpv4_raw(kind.0, kind.1, [0, 0, high, low])
            .write(&mut packet, quote),
        (IpAddr::V6(a), IpAddr::V6(b)) => builder
            .ipv6(a.octets(), b.octets(), 64)
            .icmpv6_raw(kind.0, kind.1, [0, 0, high, low])
            .write(&mut packet, quote),
        _ => unreachable!("one family"),
    }
    .unwrap();
    packet
}

const fn too_big(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (3, 4),
        Family::V6 => (2, 0),
    }
}

/// Fields of an ICMP error: source, destination, kind, MTU, and the quoted packet.
fn read_error(bytes: &[u8]) -> (IpAddr, IpAddr, (u8, u8), u16, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let (source, destination): (IpAddr, IpAddr) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (header.source.into(), header.destination.into())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        other => unreachable!("{other:?}"),
    };
    let message = match packet.transport.unwrap() {
        TransportSlice::Icmpv4(icmp) => {
            let header = icmp.header();
            assert_eq!(icmp.checksum(), header.icmp_type.calc_checksum(icmp.payload()));
            icmp.slice().to_vec()
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (source, destination) else { unreachable!() };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()));
            icmp.slice().to_vec()
        }
        other => unreachable!("{other:?}"),
    };
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    (source, destination, (message[0], message[1]), mtu, message[8..].to_vec())
}

/// Source and destination of the quoted packet, address and port each.
fn read_quote(quote: &[u8]) -> [(IpAddr, u16); 2] {
    let packet = SlicedPacket::from_ip(quote).unwrap();
    let (source, destination): (IpAddr, IpAddr) = match packet.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        other => unreachable!("{other:?}"),
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { unreachable!("no TCP") };
    [(source, tcp.source_port()), (destination, tcp.destination_port())]
}

/// A router on either side reports that a packet is too big, at either worker.
#[test]
fn icmp_errors_follow_the_flow_with_their_quotes_translated() {
    for (family, inner) in pairs() {
        for worker in [0, 1] {
            let mut rig = Rig::new(2, 2, vec![across(family, inner, 2, 3)]);
            let request = rig.send(0, 0, &client(family, 40_000, "S")).remove(0);
            let reply = rig.send(0, 1, &request.reply("SA")).remove(0);
            let (source, index) = (request.source(), u16::from(request.destination_mac()[5]));
            let backend = (inner.backend(index), 8080);
            let (vip, end) = ((family.vip(), 80), (family.client(), 40_000));
            // The MTU changes by the difference in header length (RFC 7915 4.2, 5.2).
            let moved = |from: Family, to: Family, mtu: u16| match (from, to) {
                (Family::V4, Family::V6) => mtu + 20,
                (Family::V6, Family::V4) => mtu - 20,
                _ => mtu,
            };
            let router = inner.router();
            let error = icmp_error(&request, router, source.0, too_big(inner), 1400);
            let sent = rig.send(worker, 1, &error);
            assert_eq!(sent.len(), 1, "{family:?} {inner:?}");
            assert_eq!((sent[0].nic, sent[0].destination_mac()), (0, CLIENT_MAC));
            let (from, to, kind, mtu, quote) = read_error(&sent[0].bytes);
            assert_eq!((from, to, kind), (vip.0, end.0, too_big(family)));
            assert_eq!(mtu, moved(inner, family, 1400));
            assert_eq!(read_quote(&quote), [end, vip]);

            let error = icmp_error(&reply, family.router(), vip.0, too_big(family), 1400);
            let sent = rig.send(worker, 0, &error);
            assert_eq!(sent.len(), 1, "{family:?} {inner:?}");
            assert_eq!((sent[0].nic, sent[0].destination_mac()), (1, request.destination_mac()));
            let (from, to, kind, mtu, quote) = read_error(&sent[0].bytes);
            assert_eq!((from, to, kind), (source.0, backend.0, too_big(inner)));
            assert_eq!(mtu, moved(family, inner, 1400));
            assert_eq!(read_quote(&quote), [backend, source]);
            assert_eq!(rig.stats(worker).icmp_errors_forwarded.get(), 2);
            rig.assert_accounted();
        }
    }
}

/// A packet that exceeds the MTU of the other side's link, converted to the sender's family.
#[test]
fn too_long_packets_are_answered_with_what_would_pass() {
    for (family, inner) in pairs() {
        let mut vip = across(family, inner, 1, 1);
        vip.backends[0].mtu = 1400;
        let mut rig = Rig::new(1, 1, vec![vip]);
        rig.send(0, 0, &client(family, 40_000, "S"));
        let passes = match (family, inner) {
            (Family::V4, Family::V6) => 1380,
            (Family::V6, Family::V4) => 1420,
            _ => 1400,
        };
        let sized = |len: usize| {
            let bare = client(family, 40_000, "A").len();
            let mut packet = client(family, 40_000, "A");
            packet.resize(14 + len, 0);
            let total = u16::try_from(if family == Family::V4 { len } else { len - 40 }).unwrap();
            let at = if family == Family::V4 { 16 } else { 18 };
            packet[at..at + 2].copy_from_slice(&total.to_be_bytes());
            if family == Family::V4 {
                // Don't fragment, with a new header checksum.
                packet[20] = 0x40;
                packet[24..26].fill(0);
                let sum = packet[14..34].chunks(2).fold(0_u32, |sum, word| {
                    sum + u32::from(u16::from_be_bytes([word[0], word[1]]))
                });
                let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
                packet[24..26].copy_from_slice(&(!folded).to_be_bytes());
            }
            assert!(packet.len() > bare);
            packet
        };
        let sent = rig.send(0, 0, &sized(passes));
        assert_eq!(sent[0].bytes.len(), 14 + 1400, "{family:?} {inner:?}");
        let sent = rig.send(0, 0, &sized(passes + 1));
        assert_eq!(sent.len(), 1, "{family:?} {inner:?}");
        let (from, to, kind, mtu, _) = read_error(&sent[0].bytes);
        assert_eq!((from, to, kind), (family.vip(), family.client(), too_big(family)));
        assert_eq!(usize::from(mtu), passes);
        rig.assert_accounted();
    }
}
