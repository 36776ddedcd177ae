//! ICMP messages to a VIP, and messages about its flows.

use std::net::IpAddr;

use etherparse::{IpHeaders, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use holdfast::forwarding::VipSpec;
use holdfast::net::{Forward, Protocol};
use holdfast::stats::{Drop, LocalReply};

use crate::rig::{CLIENT_MAC, Family, Rig, Sent, nic_mac, set_sum, spec, tagged, tcp, tcp_of, udp};

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub const MODES: [Forward; 2] = [Forward::Dsr, Forward::Nat];
const PORT: u16 = 40_000;
const MTU: u32 = 1400;

/// A VIP of one mode, family and protocol, with three backends.
pub fn vip(forward: Forward, family: Family, protocol: Protocol) -> VipSpec {
    VipSpec { protocol, ..spec(0, forward, family, 1, 3) }
}

/// A router between client and balancer.
pub fn router(family: Family) -> IpAddr {
    family.pick("203.0.113.1", "2001:db8:9::1")
}

/// Types that are forwarded, with a code.
fn errors(family: Family) -> &'static [(u8, u8)] {
    match family {
        Family::V4 => &[(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (11, 1), (12, 0)],
        Family::V6 => &[(1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0)],
    }
}

/// "Fragmentation needed", "packet too big".
pub fn too_big(family: Family) -> (u8, u8) {
    if family == Family::V4 { (3, 4) } else { (2, 0) }
}

/// An ICMP message.
pub fn icmp(
    source: IpAddr,
    destination: IpAddr,
    (kind, code): (u8, u8),
    rest: u32,
    body: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, nic_mac(0));
    let rest = rest.to_be_bytes();
    match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let builder = builder.ipv4(a.octets(), b.octets(), 64).icmpv4_raw(kind, code, rest);
            builder.write(&mut packet, body).unwrap();
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let builder = builder.ipv6(a.octets(), b.octets(), 64).icmpv6_raw(kind, code, rest);
            builder.write(&mut packet, body).unwrap();
        }
        _ => unreachable!("one family"),
    }
    packet
}

/// A packet of the flow from the VIP to the client, from the IP header on.
pub fn of_vip(family: Family, protocol: Protocol, client_port: u16) -> Vec<u8> {
    let (vip, client) = ((family.vip(), 80), (family.client(), client_port));
    if protocol == Protocol::Tcp {
        return tcp_of(vip, client, "A")[14..].to_vec();
    }
    let mut packet = Vec::new();
    let builder = match (vip.0, client.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("one family"),
    };
    builder.udp(80, client_port).write(&mut packet, b"answer").unwrap();
    packet
}

/// The first packet of a flow.
fn opening(family: Family, protocol: Protocol, client_port: u16) -> Vec<u8> {
    match protocol {
        Protocol::Tcp => tcp(family, client_port, 80, "S"),
        _ => udp(family, client_port, 80, true),
    }
}

/// An ICMP message as it was sent, with its checksums verified by etherparse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hops: u8,
    /// Type and code.
    pub kind: (u8, u8),
    /// The second four bytes.
    pub rest: u32,
    pub body: Vec<u8>,
    /// Bytes of the IP packet.
    pub len: usize,
}

impl Message {
    pub fn of(sent: &Sent) -> Self {
        let sliced = SlicedPacket::from_ethernet(&sent.bytes).unwrap();
        let link = if sent.vlan().is_some() { 18 } else { 14 };
        let len = sent.bytes.len() - link;
        match (sliced.net.unwrap(), sliced.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let (type_u8, code_u8) = (icmp.type_u8(), icmp.code_u8());
                let bytes5to8 = icmp.bytes5to8();
                let raw = etherparse::Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
                assert_eq!(icmp.checksum(), raw.calc_checksum(icmp.payload()));
                Self {
                    source: header.source.into(),
                    destination: header.destination.into(),
                    hops: header.time_to_live,
                    kind: (type_u8, code_u8),
                    rest: u32::from_be_bytes(bytes5to8),
                    body: icmp.payload().to_vec(),
                    len,
                }
            }
            (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                let header = ip.header();
                assert!(icmp.is_checksum_valid(header.source(), header.destination()));
                Self {
                    source: header.source_addr().into(),
                    destination: header.destination_addr().into(),
                    hops: header.hop_limit(),
                    kind: (icmp.type_u8(), icmp.code_u8()),
                    rest: u32::from_be_bytes(icmp.bytes5to8()),
                    body: icmp.payload().to_vec(),
                    len,
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// The quoted packet, which must be complete and correct.
    fn quoted(&self) -> Sent {
        let ethertype: [u8; 2] = if self.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        let quoted = Sent { nic: 0, bytes: [&[2; 12], &ethertype[..], &self.body].concat() };
        quoted.assert_checksums();
        quoted
    }
}

/// Opens a flow at worker 0; returns the packet that its backend received.
fn open(rig: &mut Rig, family: Family, protocol: Protocol) -> Sent {
    rig.send(0, 0, &opening(family, protocol, PORT)).remove(0)
}

fn forwarded(rig: &Rig, worker: usize) -> u64 {
    rig.stats(worker).icmp_errors_forwarded.get()
}

/// Checks the error, and the end of the quoted flow that is `end` in the backend's view.
fn assert_for_backend(
    sent: &Sent,
    request: &Sent,
    kind: (u8, u8),
    forward: Forward,
    family: Family,
) {
    assert_eq!(sent.destination_mac(), request.destination_mac());
    let message = Message::of(sent);
    let (address, port, _) = request.destination();
    let hops = if forward == Forward::Dsr { 64 } else { 63 };
    assert_eq!((message.source, message.destination), (router(family), address));
    assert_eq!((message.kind, message.rest, message.hops), (kind, MTU, hops));
    let quoted = message.quoted();
    assert_eq!(quoted.source(), (address, port));
    assert_eq!(quoted.destination(), (family.client(), PORT, 64));
}

#[test]
fn errors_about_what_a_vip_sent_reach_the_backend_of_the_flow() {
    for forward in MODES {
        for family in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let mut rig = Rig::new(2, 1, vec![vip(forward, family, protocol)]);
                let request = open(&mut rig, family, protocol);
                // The NIC hashes the error differently from the flow: any worker may get it.
                for worker in [0, 1] {
                    for &kind in errors(family) {
                        let quote = of_vip(family, protocol, PORT);
                        let error = icmp(router(family), family.vip(), kind, MTU, &quote);
                        let sent = rig.send(worker, 0, &error).remove(0);
                        assert_for_backend(&sent, &request, kind, forward, family);
                    }
                }
                let count = errors(family).len() as u64;
                assert_eq!((forwarded(&rig, 0), forwarded(&rig, 1)), (count, count));
                let stats = rig.stats(1);
                assert_eq!((stats.flows_active.get(), stats.flow_aliases.get()), (0, 0));
                assert_eq!(rig.stats(0).flows_active.get(), 1);
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn an_error_about_a_flow_without_a_pin_goes_where_its_packets_would() {
    for forward in MODES {
        for family in FAMILIES {
            for port in 40_000..40_032 {
                let mut rig = Rig::new(2, 1, vec![vip(forward, family, Protocol::Tcp)]);
                let quote = of_vip(family, Protocol::Tcp, port);
                let error = icmp(router(family), family.vip(), too_big(family), MTU, &quote);
                let by_hash = rig.send(1, 0, &error).remove(0);
                let stats = rig.stats(1);
                assert_eq!(stats.flows_active.get() + stats.flows_by_hash.get(), 0, "no pin");
                let packet = rig.send(0, 0, &tcp(family, port, 80, "A")).remove(0);
                assert_eq!(by_hash.destination_mac(), packet.destination_mac(), "{port}");
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn errors_about_what_a_nat_backend_was_sent_reach_the_client() {
    for family in FAMILIES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // Clients behind the first NIC, backends behind the second.
            let web = VipSpec { protocol, ..spec(0, Forward::Nat, family, 2, 3) };
            let mut rig = Rig::new(2, 2, vec![web]);
            let request = open(&mut rig, family, protocol);
            for worker in [0, 1] {
                for &kind in errors(family) {
                    let quote = &request.bytes[14..];
                    let error = icmp(router(family), family.client(), kind, MTU, quote);
                    let sent = rig.send(worker, 1, &error).remove(0);
                    assert_eq!((sent.nic, sent.destination_mac()), (0, CLIENT_MAC));
                    assert_eq!(sent.source_mac(), nic_mac(0));
                    let message = Message::of(&sent);
                    assert_eq!(
                        (message.source, message.destination),
                        (family.vip(), family.client())
                    );
                    assert_eq!((message.kind, message.rest, message.hops), (kind, MTU, 63));
                    let quoted = message.quoted();
                    assert_eq!(quoted.source(), (family.client(), PORT));
                    assert_eq!(quoted.destination(), (family.vip(), 80, 63));
                }
            }
            assert_eq!(forwarded(&rig, 0) + forwarded(&rig, 1), 2 * errors(family).len() as u64);
            assert_eq!(rig.stats(1).flow_aliases.get(), 0);
            rig.assert_accounted();
        }
    }
}

/// A backend's own "port unreachable" gets no special treatment.
#[test]
fn errors_about_unknown_flows_are_dropped() {
    for family in FAMILIES {
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, family, Protocol::Tcp)]);
        let request = open(&mut rig, family, Protocol::Tcp);
        let quote = &request.bytes[14..];
        let other = family.pick("198.18.7.7", "2001:db8:7::7");
        let vip_quote = of_vip(family, Protocol::Tcp, PORT);
        let mut no_port = vip_quote.clone();
        let ip = if family == Family::V4 { 20 } else { 40 };
        no_port[ip + 1] = 81;
        let mut other_port = quote.to_vec();
        other_port[ip] ^= 1;
        for (name, destination, quote) in [
            ("not to the sender of the quote", other, quote),
            ("to the VIP, quoting its client", family.vip(), quote),
            ("to the client, quoting the VIP", family.client(), vip_quote.as_slice()),
            ("a port that is no VIP's", family.vip(), no_port.as_slice()),
            ("a client's port without a flow", family.client(), other_port.as_slice()),
        ] {
            let before = rig.drops(0, Drop::IcmpNoFlow);
            let error = icmp(router(family), destination, too_big(family), MTU, quote);
            assert!(rig.send(0, 0, &error).is_empty(), "{name}");
            assert_eq!(rig.drops(0, Drop::IcmpNoFlow), before + 1, "{name}");
        }
        rig.assert_accounted();
    }
}

#[test]
fn quotes_may_be_cut_at_every_byte() {
    for forward in MODES {
        for family in FAMILIES {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let mut rig = Rig::new(1, 1, vec![vip(forward, family, protocol)]);
                let request = open(&mut rig, family, protocol);
                let whole = of_vip(family, protocol, PORT);
                let ip = if family == Family::V4 { 20 } else { 40 };
                for len in 0..=whole.len() {
                    let quote = &whole[..len];
                    let error = icmp(router(family), family.vip(), too_big(family), MTU, quote);
                    // Bytes after the packet in its frame are not part of it.
                    let sent = rig.send(0, 0, &[&error[..], &[0xee; 7]].concat());
                    if len < ip + 8 {
                        assert!(sent.is_empty(), "{len} bytes");
                        continue;
                    }
                    assert_eq!(sent[0].destination_mac(), request.destination_mac());
                    let mut sent = sent[0].clone();
                    assert!(sent.bytes.ends_with(&[0xee; 7]));
                    sent.bytes.truncate(error.len());
                    let body = Message::of(&sent).body;
                    let (quoted, ..) = IpHeaders::from_slice_lax(&body).unwrap();
                    let (address, port, _) = request.destination();
                    let source = match &quoted {
                        IpHeaders::Ipv4(ip, _) => {
                            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                            ip.source.into()
                        }
                        IpHeaders::Ipv6(ip, _) => IpAddr::from(ip.source),
                    };
                    let quoted_port = u16::from_be_bytes([body[ip], body[ip + 1]]);
                    assert_eq!((source, quoted_port), (address, port), "{len} bytes");
                }
                let cut = u64::try_from(ip + 8).unwrap();
                assert_eq!(rig.drops(0, Drop::BadIcmp), cut);
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn a_message_that_is_wrong_is_a_named_drop() {
    for family in FAMILIES {
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, family, Protocol::Tcp)]);
        open(&mut rig, family, Protocol::Tcp);
        let quote = of_vip(family, Protocol::Tcp, PORT);
        let message = |kind, quote: &[u8]| icmp(router(family), family.vip(), kind, MTU, quote);
        let good = message(too_big(family), &quote);
        let at = if family == Family::V4 { 34 } else { 54 };
        let edit = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            packet
        };
        let quoted = at + 8;
        let quoted_protocol = if family == Family::V4 { 9 } else { 6 };
        let other_protocol = {
            let mut quote = quote.clone();
            quote[quoted_protocol] = 47;
            message(too_big(family), &quote)
        };
        let malformed = {
            let mut quote = quote.clone();
            quote[0] = 0x75;
            message(too_big(family), &quote)
        };
        let (quench, redirect, timestamp, unknown) = match family {
            Family::V4 => ((4, 0), (5, 1), (13, 0), (42, 0)),
            Family::V6 => ((0, 0), (137, 0), (135, 0), (100, 0)),
        };
        let group = edit(6, 3);
        for (name, packet, reason) in [
            ("a wrong checksum", edit(at + 3, good[at + 3] ^ 1), Drop::BadIcmp),
            ("a changed quote", edit(quoted + 4, good[quoted + 4] ^ 1), Drop::BadIcmp),
            ("no packet in it", malformed, Drop::BadIcmp),
            ("nothing in it", message(too_big(family), &[]), Drop::BadIcmp),
            ("GRE in it", other_protocol, Drop::IcmpNoFlow),
            ("source quench", message(quench, &quote), Drop::IcmpType),
            ("a redirect", message(redirect, &quote), Drop::IcmpType),
            ("a timestamp", message(timestamp, &[0; 12]), Drop::IcmpType),
            ("an unknown type", message(unknown, &quote), Drop::IcmpType),
            ("a group's MAC", group, Drop::BadSource),
        ] {
            let before = rig.drops(0, reason);
            assert!(rig.send(0, 0, &packet).is_empty(), "{family:?}, {name}");
            assert_eq!(rig.drops(0, reason), before + 1, "{family:?}, {name}");
        }
        assert_eq!(forwarded(&rig, 0), 0);
        rig.assert_accounted();
    }
}

/// A message with a length shorter than its header.
#[test]
fn a_message_without_its_header_is_bad() {
    let mut rig = Rig::new(1, 1, vec![vip(Forward::Dsr, Family::V4, Protocol::Tcp)]);
    for len in 0..8 {
        let mut packet = icmp(router(Family::V4), Family::V4.vip(), (8, 0), 1, &[]);
        packet[17] = 20 + len;
        set_sum(&mut packet);
        assert!(rig.send(0, 0, &packet).is_empty());
        assert_eq!(rig.drops(0, Drop::BadIcmp), u64::from(len) + 1);
    }
    rig.assert_accounted();
}

#[test]
fn errors_do_not_keep_a_flow_alive() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, Family::V4, protocol)]);
        let request = open(&mut rig, Family::V4, protocol);
        let quote = of_vip(Family::V4, protocol, PORT);
        let kind = too_big(Family::V4);
        let to_backend = icmp(router(Family::V4), Family::V4.vip(), kind, MTU, &quote);
        let to_client =
            icmp(router(Family::V4), Family::V4.client(), kind, MTU, &request.bytes[14..]);
        // Both time-outs are 100 ticks, and the sweep takes 400 at most.
        for _ in 0..9 {
            rig.advance(10);
            assert_eq!(rig.send_all(0, 0, &[&to_backend, &to_client]).len(), 2);
        }
        rig.advance(11);
        assert_eq!(rig.send(0, 0, &to_client).len(), 0, "the flow is no more");
        rig.advance(400);
        let stats = rig.stats(0);
        assert_eq!((stats.flows_active.get(), stats.flows_idled_out.get()), (0, 1));
        rig.assert_accounted();
    }
}

#[test]
fn echo_requests_to_a_vip_are_answered() {
    for family in FAMILIES {
        let (request, reply) = if family == Family::V4 { (8, 0) } else { (128, 129) };
        for vlan in [None, Some(7)] {
            let mut rig = Rig::new(1, 2, vec![spec(0, Forward::Dsr, family, 2, 1)]);
            for len in [0, 1, 8, 56, 57, 1400] {
                let body: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
                let packet = icmp(family.client(), family.vip(), (request, 0), 0x0007_0009, &body);
                let sent = rig.send(0, 0, &tagged(packet, vlan));
                assert_eq!((sent.len(), sent[0].nic, sent[0].vlan()), (1, 0, vlan));
                assert_eq!(sent[0].destination_mac(), CLIENT_MAC);
                assert_eq!(sent[0].source_mac(), nic_mac(0));
                let expected = Message {
                    source: family.vip(),
                    destination: family.client(),
                    hops: 64,
                    kind: (reply, 0),
                    rest: 0x0007_0009,
                    len: body.len() + if family == Family::V4 { 28 } else { 48 },
                    body,
                };
                assert_eq!(Message::of(&sent[0]), expected);
            }
            assert_eq!(rig.stats(0).local_reply_counter(LocalReply::EchoReply).get(), 6);
            assert_eq!(rig.stats(0).transmitted.get(), 0);
            rig.assert_accounted();
        }
    }
}

#[test]
fn other_echo_requests_are_not() {
    for family in FAMILIES {
        let request = if family == Family::V4 { (8, 0) } else { (128, 0) };
        let mut rig = Rig::new(1, 1, vec![vip(Forward::Nat, family, Protocol::Tcp)]);
        let ping = |from, to| icmp(from, to, request, 1, b"payload");
        let other = family.pick("192.0.2.99", "2001:db8:100::99");
        let loopback = family.pick("127.0.0.1", "::1");
        let mut group = ping(family.client(), family.vip());
        group[6] |= 1;
        let mut odd_code = ping(family.client(), family.vip());
        odd_code[if family == Family::V4 { 35 } else { 55 }] = 1;
        for (packet, reason) in [
            (ping(family.client(), other), Drop::NoVip),
            (ping(family.vip(), family.vip()), Drop::Land),
            (ping(loopback, family.vip()), Drop::BadSource),
            (group, Drop::BadSource),
            (odd_code, Drop::BadIcmp),
        ] {
            let before = rig.drops(0, reason);
            assert!(rig.send(0, 0, &packet).is_empty(), "{reason:?}");
            assert_eq!(rig.drops(0, reason), before + 1, "{reason:?}");
        }
        rig.assert_accounted();
    }
}
