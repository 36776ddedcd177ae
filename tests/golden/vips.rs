//! VIPs that are more than an address and a port: prefixes, ranges of ports, all protocols.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder};
use holdfast::forwarding::tunnel::TunnelSources;
use holdfast::forwarding::{Affinity, Local, Ports, Tunnels, VipSpec};
use holdfast::net::{Forward, PortRange, Protocol};
use holdfast::stats::Drop;

use super::super::rig::{CLIENT_MAC, Family, Rig, nic_mac, spec, tcp_of};
use super::fragments::{datagram, fragments};
use super::icmp::{icmp, router, too_big};

const ESP: IpNumber = IpNumber::ENCAPSULATING_SECURITY_PAYLOAD;
const SCTP: IpNumber = IpNumber::SCTP;
const GRE: IpNumber = IpNumber::GRE;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A DSR VIP with these addresses and ports; the VIP's number identifies its backends.
fn vip(id: u16, address: &str, protocol: Protocol, ports: Ports) -> VipSpec {
    let family = if address.contains(':') { Family::V6 } else { Family::V4 };
    let address = address.parse().unwrap();
    VipSpec { address, protocol, ports, ..spec(id, Forward::Dsr, family, 1, 3) }
}

fn range(first: u16, last: u16) -> Ports {
    Ports::List(vec![PortRange { first, last }])
}

/// A packet of any protocol.
fn packet(client: IpAddr, vip: IpAddr, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, nic_mac(0));
    let builder = match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => ethernet.ipv4(client.octets(), vip.octets(), 64),
        (IpAddr::V6(client), IpAddr::V6(vip)) => ethernet.ipv6(client.octets(), vip.octets(), 64),
        _ => unreachable!("of two families"),
    };
    let mut bytes = Vec::new();
    builder.write(&mut bytes, protocol, payload).unwrap();
    bytes
}

fn udp_of(client: (IpAddr, u16), vip: (IpAddr, u16)) -> Vec<u8> {
    let mut datagram = Vec::new();
    for field in [client.1, vip.1, 8, 0] {
        datagram.extend(field.to_be_bytes());
    }
    packet(client.0, vip.0, IpNumber::UDP, &datagram)
}

/// One row per rule: the destination of a packet, and its VIP.
#[test]
fn the_most_specific_vip_takes_the_packet() {
    let specs = vec![
        vip(
            0,
            "192.0.2.0/24",
            Protocol::Tcp,
            Ports::List(vec![80.into(), PortRange { first: 8000, last: 8999 }]),
        ),
        vip(1, "192.0.2.10", Protocol::Tcp, Ports::of(&[443])),
        vip(2, "192.0.0.0/16", Protocol::Tcp, Ports::All),
        vip(3, "2001:db8:100::/96", Protocol::Tcp, range(1000, 1999)),
    ];
    let mut rig = Rig::new(1, 1, specs);
    let mut expected = [0; 4];
    let client = |vip: IpAddr| match vip {
        IpAddr::V4(_) => Family::V4.client(),
        IpAddr::V6(_) => Family::V6.client(),
    };
    for (name, address, port, whose) in [
        ("a port of a prefix", "192.0.2.77", 80, Some(0)),
        ("the lowest address", "192.0.2.0", 80, Some(0)),
        ("the highest address", "192.0.2.255", 80, Some(0)),
        ("behind the prefix: a wider one", "192.0.3.0", 80, Some(2)),
        ("the first port of a range", "192.0.2.77", 8000, Some(0)),
        ("the last port of a range", "192.0.2.77", 8999, Some(0)),
        ("before the range: a wider prefix", "192.0.2.77", 7999, Some(2)),
        ("behind the range: a wider prefix", "192.0.2.77", 9000, Some(2)),
        ("the address by itself", "192.0.2.10", 443, Some(1)),
        ("its prefix", "192.0.2.10", 80, Some(0)),
        ("neither", "192.0.2.10", 22, Some(2)),
        ("behind the widest prefix", "192.1.0.0", 80, None),
        ("IPv6, the first port", "2001:db8:100::1:2", 1000, Some(3)),
        ("IPv6, the last port", "2001:db8:100::ffff:ffff", 1999, Some(3)),
        ("IPv6, behind the range", "2001:db8:100::1:2", 2000, None),
        ("IPv6, behind the prefix", "2001:db8:100::1:0:0", 1000, None),
    ] {
        let address = ip(address);
        let sent = rig.send(0, 0, &tcp_of((client(address), 40_000), (address, port), "S"));
        if let Some(whose) = whose {
            let packets: &mut u64 = &mut expected[whose];
            *packets += 1;
            assert_eq!(sent.len(), 1, "{name}");
            let (to, to_port, _) = sent[0].destination();
            assert_eq!((to, to_port), (address, port), "{name}");
        } else {
            assert!(sent.is_empty(), "{name}");
        }
        for (vip, packets) in rig.stats(0).vips.iter().zip(expected) {
            assert_eq!(vip.packets_in.get(), packets, "{name}");
        }
    }
    assert_eq!(rig.drops(0, Drop::NoVip), 3);
    rig.assert_accounted();
}

/// All addresses of a prefix are one VIP: the flow, with its address, chooses the backend.
#[test]
fn a_flow_to_an_address_of_a_prefix_keeps_its_backend() {
    let mut rig = Rig::new(2, 1, vec![vip(0, "192.0.2.0/24", Protocol::Tcp, Ports::All)]);
    let client = Family::V4.client();
    let mut backends = std::collections::BTreeSet::new();
    for last in 0..=255u8 {
        let to = (IpAddr::from([192, 0, 2, last]), 443);
        let first = rig.send(0, 0, &tcp_of((client, 40_000), to, "S"));
        let next = rig.send(1, 0, &tcp_of((client, 40_000), to, "A"));
        assert_eq!(first[0].destination_mac(), next[0].destination_mac(), "{last}");
        backends.insert(first[0].destination_mac());
    }
    assert_eq!(backends.len(), 3, "spread");
    assert_eq!(rig.stats(0).flows_new.get(), 256);
    rig.assert_accounted();
}

/// The destination port is unchanged, so one entry covers the range, and replies have the right
/// port.
#[test]
fn nat_translates_a_range_of_ports_there_and_back() {
    for family in [Family::V4, Family::V6] {
        let mut range = VipSpec { ports: range(8000, 8999), ..spec(0, Forward::Nat, family, 1, 3) };
        range.backends.iter_mut().for_each(|backend| backend.port = None);
        let mut rig = Rig::new(1, 1, vec![range]);
        for port in [8000, 8500, 8999] {
            let client = (family.client(), 40_000);
            let request = rig.send(0, 0, &tcp_of(client, (family.vip(), port), "S"));
            assert_eq!(request[0].destination().1, port);
            request[0].assert_checksums();
            let reply = rig.send(0, 0, &request[0].reply("SA"));
            reply[0].assert_checksums();
            assert_eq!(reply[0].source(), (family.vip(), port));
        }
        for port in [7999, 9000] {
            let client = (family.client(), 40_000);
            assert!(rig.send(0, 0, &tcp_of(client, (family.vip(), port), "S")).is_empty());
        }
        assert_eq!(rig.drops(0, Drop::NoVip), 2);
        rig.assert_accounted();
    }
}

/// All packets from one client to an L3 VIP are one flow with one backend, for every protocol,
/// order and worker.
#[test]
fn all_protocols_of_a_client_go_to_one_backend() {
    for family in [Family::V4, Family::V6] {
        let (client, to) = (family.client(), family.vip());
        let kinds = [
            packet(client, to, ESP, &[0, 0, 0, 7, 0, 0, 0, 1, 9, 9]),
            packet(client, to, SCTP, &[0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]),
            packet(client, to, GRE, &[0, 0, 8, 0]),
            tcp_of((client, 40_000), (to, 22), "S"),
            udp_of((client, 500), (to, 4500)),
        ];
        for (first, earliest) in kinds.iter().enumerate() {
            for first_worker in 0..2 {
                let mut all = spec(0, Forward::Dsr, family, 1, 8);
                (all.protocol, all.ports) = (Protocol::Any, Ports::All);
                all.policy.affinity = Affinity::Client;
                let mut rig = Rig::new(2, 1, vec![all]);
                let backend = rig.send(first_worker, 0, earliest)[0].destination_mac();
                for worker in 0..2 {
                    for (second, packet) in kinds.iter().enumerate() {
                        let sent = rig.send(worker, 0, packet);
                        assert_eq!(sent.len(), 1, "{family:?}: {first}, {second} at {worker}");
                        assert_eq!(sent[0].destination_mac(), backend, "{first}, {second}");
                        assert_eq!(sent[0].bytes[12..], packet[12..], "nothing else is changed");
                    }
                }
                let pins = |worker| rig.stats(worker).flows_active.get();
                assert_eq!((pins(0), pins(1)), (1, 1), "one flow, known to both workers");
                // Far longer than the UDP time-out of the rig.
                rig.advance(1000);
                assert_eq!(rig.stats(0).flows_active.get(), 0);
                rig.assert_accounted();
            }
        }
    }
}

/// The address `number` after that of the client.
fn numbered(client: IpAddr, number: u8) -> IpAddr {
    match client {
        IpAddr::V4(ip) => (u32::from(ip) + u32::from(number)).to_be_bytes().into(),
        IpAddr::V6(ip) => (u128::from(ip) + u128::from(number)).to_be_bytes().into(),
    }
}

/// A router's error about a packet that is too long.
fn too_big_about(family: Family, to: IpAddr, packet: &[u8]) -> Vec<u8> {
    icmp(router(family), to, too_big(family), 1400, &packet[14..])
}

/// An error about a backend's packet of any protocol finds the one flow: without it, no IPsec
/// tunnel would learn its path MTU.
#[test]
fn errors_go_to_the_backend_that_has_all_protocols_of_the_client() {
    for family in [Family::V4, Family::V6] {
        let (client, vip) = (family.client(), family.vip());
        for pinned in [true, false] {
            for last in 1..9 {
                let mut all = spec(0, Forward::Dsr, family, 1, 8);
                (all.protocol, all.ports) = (Protocol::Any, Ports::All);
                all.policy.affinity = Affinity::Client;
                let mut rig = Rig::new(2, 1, vec![all]);
                let client = numbered(client, last);
                let answers = [
                    packet(vip, client, ESP, &[0, 0, 0, 7, 0, 0, 0, 1, 9, 9]),
                    packet(vip, client, SCTP, &[0, 80, 0x9c, 0x40, 0, 0, 0, 0, 0, 0, 0, 0]),
                    tcp_of((vip, 22), (client, 40_000), "A"),
                    udp_of((vip, 4500), (client, 500)),
                ];
                let opening = packet(client, vip, ESP, &[0, 0, 0, 7, 0, 0, 0, 1]);
                let backend = rig.send(0, 0, &opening)[0].destination_mac();
                if !pinned {
                    rig.advance(1000);
                }
                for answer in &answers {
                    let error = too_big_about(family, vip, answer);
                    let sent = rig.send(1, 0, &error);
                    assert_eq!(sent.len(), 1, "{family:?} {pinned}");
                    assert_eq!(sent[0].destination_mac(), backend, "{family:?} {pinned}");
                }
                // An error about our reply to an echo request matches no flow.
                let kind = if family == Family::V4 { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
                let echo = packet(vip, client, kind, &[0; 8]);
                let error = too_big_about(family, vip, &echo);
                assert!(rig.send(1, 0, &error).is_empty());
                assert_eq!(rig.drops(1, Drop::IcmpNoFlow), 1);
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn a_tcp_vip_takes_its_ports_of_an_address_that_has_all_protocols() {
    let mut all = vip(0, "192.0.2.10", Protocol::Any, Ports::All);
    all.policy.affinity = Affinity::Client;
    let mut rig = Rig::new(1, 1, vec![all, vip(1, "192.0.2.10", Protocol::Tcp, Ports::of(&[80]))]);
    let (client, to) = (Family::V4.client(), Family::V4.vip());
    for port in [80, 81, 80] {
        assert_eq!(rig.send(0, 0, &tcp_of((client, 40_000), (to, port), "S")).len(), 1);
    }
    assert_eq!(rig.send(0, 0, &packet(client, to, ESP, &[0; 8])).len(), 1);
    let packets = |vip: usize| rig.stats(0).vips[vip].packets_in.get();
    assert_eq!((packets(0), packets(1)), (2, 2));
    assert_eq!(rig.stats(0).flows_active.get(), 2);
    rig.assert_accounted();
}

/// Without an L3 VIP, packets without ports match no VIP and have a drop reason.
#[test]
fn other_protocols_are_for_vips_of_all_protocols_only() {
    let mut rig = Rig::new(1, 1, vec![vip(0, "192.0.2.10", Protocol::Tcp, Ports::All)]);
    let (client, to) = (Family::V4.client(), Family::V4.vip());
    for protocol in [ESP, SCTP, GRE, IpNumber(255)] {
        assert!(rig.send(0, 0, &packet(client, to, protocol, &[0; 12])).is_empty());
    }
    assert_eq!(rig.drops(0, Drop::UnsupportedProtocol), 4);
    rig.assert_accounted();
}

/// Fragments of protocols without ports match on their own, in any order.
#[test]
fn fragments_without_ports_go_with_their_flow() {
    let mut all = vip(0, "192.0.2.10", Protocol::Any, Ports::All);
    all.policy.affinity = Affinity::Client;
    let mut rig = Rig::new(1, 1, vec![all]);
    let whole = packet(Family::V4.client(), Family::V4.vip(), ESP, &[0; 16]);
    let backend = rig.send(0, 0, &whole)[0].destination_mac();
    for field in [2u16, 0x2000 | 1, 0x2000] {
        let mut fragment = whole.clone();
        fragment.splice(20..22, field.to_be_bytes());
        let sent = rig.send(0, 0, &fragment);
        assert_eq!(sent[0].destination_mac(), backend, "{field:04x}");
    }
    assert_eq!(rig.stats(0).flows_new.get(), 1);
    rig.assert_accounted();
}

/// The first fragment of TCP and UDP has ports, which do not matter here; ESP has none.
#[test]
fn all_fragments_to_an_l3_vip_go_where_its_client_goes() {
    for (mode, family) in [Forward::Dsr, Forward::Ipip, Forward::Gue]
        .into_iter()
        .flat_map(|mode| [Family::V4, Family::V6].map(|family| (mode, family)))
    {
        let mut all = spec(0, mode, family, 1, 8);
        (all.protocol, all.ports) = (Protocol::Any, Ports::All);
        let mut local = Local::default();
        local.tunnels.source_v4 = Some(TunnelSources::new("198.18.2.2".parse().unwrap()));
        local.tunnels.source_v6 = Some(TunnelSources::new("2001:db8:2::2".parse().unwrap()));
        let mut rig = Rig::in_box(local, 2, 1, vec![all]);
        for host in 1..20_u8 {
            let client = family.pick(&format!("198.18.1.{host}"), &format!("2001:db8:1::{host:x}"));
            let to = family.vip();
            let esp = packet(client, to, ESP, &[0; 200]);
            let backend = rig.send(0, 0, &esp)[0].destination_mac();
            let mut segment = tcp_of((client, 40_000), (to, 22), "A");
            segment.truncate(if family == Family::V4 { 54 } else { 74 });
            segment.extend([0; 100]);
            let udp = datagram([(client, 500), (to, 4500)], [CLIENT_MAC, nic_mac(0)], 150);
            for (id, whole) in [(1, &segment), (2, &udp), (3, &esp)] {
                let parts = fragments(whole, id);
                let mut sent = Vec::new();
                // The last one first.
                for (worker, part) in (0..parts.len()).rev().zip(parts.iter().rev()) {
                    sent.extend(rig.send(worker % 2, 0, part));
                }
                rig.idle();
                sent.extend((0..2).flat_map(|worker| rig.collect(worker, 0)));
                let name = format!("{mode:?} {family:?} {id} {host}");
                assert_eq!(sent.len(), parts.len(), "{name}");
                assert!(sent.iter().all(|one| one.destination_mac() == backend), "{name}");
            }
        }
        let new: u64 = (0..2).map(|worker| rig.stats(worker).flows_new.get()).sum();
        assert_eq!(new, 19, "{mode:?} {family:?}: one flow per client");
        rig.assert_accounted();
    }
}

/// A reply would come back to the balancer, and cause another reply.
#[test]
fn packets_from_our_own_addresses_are_dropped_by_name() {
    let specs = vec![
        vip(0, "192.0.2.10", Protocol::Tcp, Ports::of(&[80])),
        vip(1, "198.51.100.0/24", Protocol::Udp, Ports::All),
    ];
    let source_v4 = Some(TunnelSources::new("10.9.0.64/26".parse().unwrap()));
    let tunnels = Tunnels { source_v4, ..Tunnels::default() };
    let mut rig = Rig::in_box(Local { tunnels, ..Local::default() }, 1, 1, specs);
    for (source, port, name) in [
        (ip("198.51.100.9"), 40_000, "a VIP's prefix"),
        (ip("192.0.2.10"), 40_000, "a VIP"),
        (ip("10.9.0.100"), 40_000, "a tunnel's source"),
        (Family::V4.source(), 20_000, "a full-NAT source"),
    ] {
        let sent = rig.send(0, 0, &tcp_of((source, port), (ip("192.0.2.10"), 80), "S"));
        assert!(sent.is_empty(), "{name}");
    }
    assert_eq!(rig.drops(0, Drop::OwnSource), 4);
    assert_eq!(rig.stats(0).flows_active.get(), 0, "no pin");
    rig.assert_accounted();
}

#[test]
fn a_backend_that_turns_out_to_be_this_box_gets_nothing() {
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Dsr, Family::V4, 1, 1)]);
    let send = |rig: &mut Rig, flags| {
        let client = (Family::V4.client(), 40_000);
        rig.send(0, 0, &tcp_of(client, (Family::V4.vip(), 80), flags)).len()
    };
    assert_eq!(send(&mut rig, "S"), 1);
    rig.change(|specs| specs[0].backends[0].next_hop.as_mut().unwrap().mac = nic_mac(0));
    assert_eq!(send(&mut rig, "A"), 0, "pinned");
    assert_eq!(rig.drops(0, Drop::Loop), 1);
    rig.advance(2000);
    assert_eq!(send(&mut rig, "S"), 0, "new");
    assert_eq!(rig.drops(0, Drop::NoBackend), 1);
    rig.assert_accounted();
}
