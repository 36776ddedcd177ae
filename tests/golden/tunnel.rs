//! Modes ipip and gue: packets of a real worker, byte by byte.

use std::collections::BTreeSet;
use std::net::IpAddr;

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpHeader,
    UdpHeader,
};
use holdfast::forwarding::tunnel::TunnelSources;
use holdfast::forwarding::{FlowAction, Local, OuterDf, Ports, Tunnels, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::Drop;

use super::fragments::set_sum;
use crate::rig::{
    CLIENT_MAC, Family, Rig, Sent, backend_mac, nic_mac, numbered, spec, tagged, tcp, udp,
};

const MODES: [Forward; 2] = [Forward::Ipip, Forward::Gue];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Source address of outer packets, when there is only one.
const SOURCE: [&str; 2] = ["198.18.2.2", "2001:db8:2::2"];

/// Every mode, family of VIP, family of backends.
fn combinations() -> impl Iterator<Item = (Forward, Family, Family)> {
    MODES.into_iter().flat_map(|mode| {
        FAMILIES.into_iter().flat_map(move |inner| FAMILIES.map(|outer| (mode, inner, outer)))
    })
}

fn sources(network: &str) -> Option<TunnelSources> {
    Some(TunnelSources::new(network.parse().unwrap()))
}

/// Outer sources of both families.
pub fn tunnels() -> Tunnels {
    let [v4, v6] = SOURCE;
    Tunnels { source_v4: sources(v4), source_v6: sources(v6), ..Tunnels::default() }
}

/// A VIP of one family with backends of another.
fn vip(mode: Forward, inner: Family, outer: Family, backends: u16) -> VipSpec {
    let mut vip = spec(0, mode, inner, 1, backends);
    for (index, backend) in vip.backends.iter_mut().enumerate() {
        backend.address = outer.backend(u16::try_from(index).unwrap());
    }
    vip
}

/// A worker behind a NIC with this MTU.
fn rig_with(tunnels: Tunnels, mtu: u16, vips: Vec<VipSpec>) -> Rig {
    Rig::in_box(Local { mtus: vec![mtu], tunnels, ..Local::default() }, 1, 1, vips)
}

fn rig(mode: Forward, inner: Family, outer: Family) -> Rig {
    rig_with(tunnels(), 1500, vec![vip(mode, inner, outer, 1)])
}

const fn overhead(mode: Forward, outer: Family) -> u16 {
    let ip = if matches!(outer, Family::V4) { 20 } else { 40 };
    if matches!(mode, Forward::Gue) { ip + 12 } else { ip }
}

/// Parameters of a client's TCP packet.
#[derive(Clone, Copy)]
struct Like {
    traffic_class: u8,
    hops: u8,
    dont_fragment: bool,
    /// Bytes of the whole IP packet.
    len: usize,
    client_port: u16,
}

const PLAIN: Like =
    Like { traffic_class: 0, hops: 64, dont_fragment: true, len: 100, client_port: 40_000 };

fn packet(family: Family, like: Like) -> Vec<u8> {
    let mut tcp = TcpHeader::new(like.client_port, 80, 1_000, 65_000);
    tcp.ack = true;
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, nic_mac(0));
    let (builder, ip_len) = match (family.client(), family.vip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            let mut ip =
                Ipv4Header::new(0, like.hops, IpNumber::TCP, client.octets(), vip.octets())
                    .unwrap();
            ip.dscp = (like.traffic_class >> 2).try_into().unwrap();
            ip.ecn = (like.traffic_class & 3).try_into().unwrap();
            ip.dont_fragment = like.dont_fragment;
            ip.identification = 0x4711;
            (builder.ip(etherparse::IpHeaders::Ipv4(ip, Default::default())), 20)
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            let ip = Ipv6Header {
                traffic_class: like.traffic_class,
                hop_limit: like.hops,
                source: client.octets(),
                destination: vip.octets(),
                ..Ipv6Header::default()
            };
            (builder.ip(etherparse::IpHeaders::Ipv6(ip, Default::default())), 40)
        }
        _ => unreachable!("one family"),
    };
    let payload: Vec<u8> =
        (0..like.len - ip_len - 20).map(|at| u8::try_from(at % 251).unwrap()).collect();
    builder.tcp_header(tcp).write(&mut bytes, &payload).unwrap();
    bytes
}

/// An outer packet, read by etherparse.
struct Tunnelled {
    source: IpAddr,
    destination: IpAddr,
    traffic_class: u8,
    hops: u8,
    /// IPv4.
    dont_fragment: bool,
    identification: u16,
    /// IPv6.
    flow_label: u32,
    /// UDP source port of GUE.
    gue_port: Option<u16>,
    inner: Vec<u8>,
}

/// Reads a frame without a tag; every length and checksum must be right.
fn open(mode: Forward, outer: Family, inner: Family, bytes: &[u8]) -> Tunnelled {
    let protocol = if inner == Family::V4 { 4 } else { 41 };
    let expected = if mode == Forward::Gue { 17 } else { protocol };
    let mut tunnelled = match outer {
        Family::V4 => {
            assert_eq!(bytes[12..14], [0x08, 0x00]);
            let (ip, rest) = Ipv4Header::from_slice(&bytes[14..]).unwrap();
            assert_eq!(usize::from(ip.total_len), bytes.len() - 14);
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!((ip.protocol.0, ip.options.len()), (expected, 0));
            assert!(!ip.more_fragments && ip.fragment_offset == IpFragOffset::ZERO);
            Tunnelled {
                source: ip.source.into(),
                destination: ip.destination.into(),
                traffic_class: ip.dscp.value() << 2 | ip.ecn.value(),
                hops: ip.time_to_live,
                dont_fragment: ip.dont_fragment,
                identification: ip.identification,
                flow_label: 0,
                gue_port: None,
                inner: rest.to_vec(),
            }
        }
        Family::V6 => {
            assert_eq!(bytes[12..14], [0x86, 0xdd]);
            let (ip, rest) = Ipv6Header::from_slice(&bytes[14..]).unwrap();
            assert_eq!(usize::from(ip.payload_length), bytes.len() - 54);
            assert_eq!(ip.next_header.0, expected);
            Tunnelled {
                source: ip.source.into(),
                destination: ip.destination.into(),
                traffic_class: ip.traffic_class,
                hops: ip.hop_limit,
                dont_fragment: true,
                identification: 0,
                flow_label: ip.flow_label.value(),
                gue_port: None,
                inner: rest.to_vec(),
            }
        }
    };
    if mode == Forward::Gue {
        let (udp, rest) = UdpHeader::from_slice(&tunnelled.inner).unwrap();
        assert_eq!((udp.destination_port, udp.checksum), (6080, 0));
        assert!(udp.source_port >= 0xc000);
        assert_eq!(usize::from(udp.length), tunnelled.inner.len());
        assert_eq!(rest[..4], [0, protocol, 0, 0], "GUE variant 0, no flags");
        tunnelled.gue_port = Some(udp.source_port);
        tunnelled.inner = rest[4..].to_vec();
    }
    tunnelled
}

#[test]
fn a_packet_goes_out_as_it_is_in_another_one() {
    for (mode, inner, outer) in combinations() {
        let name = format!("{mode:?} {inner:?} in {outer:?}");
        let mut rig = rig(mode, inner, outer);
        for (like, syn) in [(PLAIN, true), (Like { hops: 1, ..PLAIN }, false), (PLAIN, false)] {
            let sent_in = if syn { tcp(inner, 40_000, 80, "S") } else { packet(inner, like) };
            let sent = Sent::of(0, &sent_in, &mut rig);
            assert_eq!(sent.destination_mac(), backend_mac(0), "{name}");
            assert_eq!(sent.source_mac(), nic_mac(0), "{name}");
            let tunnelled = open(mode, outer, inner, &sent.bytes);
            assert_eq!(tunnelled.inner, sent_in[14..], "{name}: byte for byte, TTL too");
            let source: IpAddr = SOURCE[usize::from(outer == Family::V6)].parse().unwrap();
            assert_eq!(tunnelled.source, source, "{name}");
            assert_eq!(tunnelled.destination, outer.backend(0), "{name}");
            assert_eq!((tunnelled.hops, tunnelled.traffic_class), (64, 0), "{name}");
        }
        let vip = &rig.stats(0).vips[0];
        assert_eq!((vip.packets_in.get(), vip.flows_total.get()), (3, 1), "{name}");
        rig.assert_accounted();
    }
}

/// One case of each outer family, written out.
#[test]
fn known_bytes() {
    let inner = packet(Family::V4, PLAIN);
    let mut rig_v4 = rig(Forward::Ipip, Family::V4, Family::V4);
    let link = [backend_mac(0), nic_mac(0)].concat();
    let outer = [0x45, 0, 0, 120, 0, 0, 0x40, 0, 64, 4, 0xaa, 0x50, 198, 18, 2, 2, 198, 18, 2, 11];
    let expected = [&link[..], &[0x08, 0x00], &outer, &inner[14..]].concat();
    assert_eq!(Sent::of(0, &inner, &mut rig_v4).bytes, expected);
    // The flow decides the flow label.
    let mut rig_v6 = rig(Forward::Ipip, Family::V4, Family::V6);
    let sent = Sent::of(0, &inner, &mut rig_v6);
    assert_eq!(sent.bytes[14] >> 4, 6);
    assert_eq!(sent.bytes[18..22], [0, 100, 4, 64]);
    let [source, destination] =
        [SOURCE[1].parse().unwrap(), Family::V6.backend(0)].map(|address: IpAddr| match address {
            IpAddr::V6(address) => address.octets(),
            IpAddr::V4(_) => unreachable!("IPv6"),
        });
    assert_eq!(sent.bytes[22..54], [source, destination].concat());
    assert_eq!(sent.bytes[54..], inner[14..]);
}

#[test]
fn the_traffic_class_goes_outside_with_its_ecn_bits() {
    for (mode, inner, outer) in combinations() {
        let mut rig = rig(mode, inner, outer);
        for traffic_class in [0x8c, 0x8d, 0x8e, 0x8f, 0x00, 0x01, 0x02, 0x03, 0xff] {
            let packet = packet(inner, Like { traffic_class, ..PLAIN });
            let sent = Sent::of(0, &packet, &mut rig);
            let tunnelled = open(mode, outer, inner, &sent.bytes);
            assert_eq!(tunnelled.traffic_class, traffic_class, "{mode:?} {inner:?} {outer:?}");
            assert_eq!(tunnelled.inner, packet[14..]);
        }
    }
}

#[test]
fn ethernet_padding_does_not_get_into_the_tunnel() {
    for (mode, inner, outer) in combinations() {
        let mut rig = rig(mode, inner, outer);
        let shortest = if inner == Family::V4 { 40 } else { 60 };
        let packet = packet(inner, Like { len: shortest, ..PLAIN });
        for padding in [1, 6, 300] {
            let mut padded = packet.clone();
            padded.extend(vec![0xee; padding]);
            let sent = Sent::of(0, &padded, &mut rig);
            assert_eq!(open(mode, outer, inner, &sent.bytes).inner, packet[14..]);
        }
        rig.assert_accounted();
    }
}

#[test]
fn tags_stay_outside() {
    for (mode, inner, outer) in combinations() {
        for (tag, vlan) in [(None, Some(7)), (Some(0xe064), Some(7)), (Some(0xe064), None)] {
            let mut vip = vip(mode, inner, outer, 1);
            vip.backends[0].next_hop.as_mut().unwrap().vlan = vlan.map(u16::into);
            let mut rig = rig_with(tunnels(), 1500, vec![vip]);
            let packet = packet(inner, PLAIN);
            let sent = Sent::of(0, &tagged(packet.clone(), tag), &mut rig);
            assert_eq!(sent.vlan(), vlan, "{tag:?} {vlan:?}");
            let mut bytes = sent.bytes.clone();
            if vlan.is_some() {
                let priority = if tag.is_some() { 0xe0 } else { 0 };
                assert_eq!(bytes[12..16], [0x81, 0, priority, 7], "a tag keeps its priority");
                bytes.drain(12..16);
            }
            assert_eq!(open(mode, outer, inner, &bytes).inner, packet[14..]);
            rig.assert_accounted();
        }
    }
}

/// The fields that a NIC hashes are constant within a flow, also at another worker and another box,
/// and differ between flows.
#[test]
fn outer_headers_carry_the_flows_entropy() {
    for (mode, inner, outer) in combinations() {
        let [v4, v6] = ["10.9.0.0/24", "fd09::/64"].map(sources);
        let tunnels = Tunnels { source_v4: v4, source_v6: v6, ..Tunnels::default() };
        let local = Local { mtus: vec![1500], tunnels, ..Local::default() };
        let vips = vec![vip(mode, inner, outer, 1)];
        let mut rig = Rig::in_box(local.clone(), 2, 1, vips.clone());
        let mut other_box = Rig::in_box(local, 1, 1, vips);
        let mut seen = BTreeSet::new();
        for client_port in 1000..1256 {
            let look = |rig: &mut Rig, worker, len| {
                let like = Like { client_port, len, ..PLAIN };
                let sent = Sent::of(worker, &packet(inner, like), rig);
                let Tunnelled { source, flow_label, gue_port, .. } =
                    open(mode, outer, inner, &sent.bytes);
                (source, flow_label, gue_port)
            };
            let entropy = look(&mut rig, 0, 100);
            assert_eq!(entropy, look(&mut rig, 0, 1000), "whatever the packet");
            assert_eq!(entropy, look(&mut rig, 1, 100), "whichever the worker");
            assert_eq!(entropy, look(&mut other_box, 0, 100), "whichever the box");
            assert!(tunnels.is_source(entropy.0.into()));
            seen.insert(entropy);
        }
        // 256 draws of 254 sources hit about 160 of them; with ports or labels nearly all differ.
        let least = if (mode, outer) == (Forward::Ipip, Family::V4) { 130 } else { 250 };
        assert!(seen.len() > least, "{mode:?} {outer:?}: {} of 256", seen.len());
        assert!(Ipv6FlowLabel::try_from(seen.first().unwrap().1).is_ok());
    }
}

#[test]
fn dont_fragment_outside_is_a_policy() {
    for (policy, inner, dont_fragment, outside) in [
        (OuterDf::Inner, Family::V4, true, true),
        (OuterDf::Inner, Family::V4, false, false),
        (OuterDf::Inner, Family::V6, true, true),
        (OuterDf::Set, Family::V4, false, true),
        (OuterDf::Set, Family::V6, true, true),
        (OuterDf::Clear, Family::V4, true, false),
        (OuterDf::Clear, Family::V6, true, false),
    ] {
        for mode in MODES {
            let tunnels = Tunnels { outer_df: policy, ..tunnels() };
            let mut rig = rig_with(tunnels, 1500, vec![vip(mode, inner, Family::V4, 1)]);
            let packet = packet(inner, Like { dont_fragment, ..PLAIN });
            let mut identifications = Vec::new();
            for _ in 0..3 {
                let sent = Sent::of(0, &packet, &mut rig);
                let tunnelled = open(mode, Family::V4, inner, &sent.bytes);
                assert_eq!(tunnelled.dont_fragment, outside, "{policy:?} {inner:?}");
                identifications.push(tunnelled.identification);
            }
            // RFC 6864: without meaning with DF; otherwise consecutive ones differ.
            let expected = if outside { [0, 0, 0] } else { [1, 2, 3] };
            assert_eq!(identifications, expected, "{policy:?} {inner:?}");
        }
    }
}

/// The longest packet that fits, and one that is a byte longer.
#[test]
fn packets_that_do_not_fit_are_refused_or_fragmented() {
    for (mode, inner, outer) in combinations() {
        let name = format!("{mode:?} {inner:?} in {outer:?}");
        let fits = usize::from(1500 - overhead(mode, outer));
        let mut rig = rig(mode, inner, outer);
        let longest = packet(inner, Like { len: fits, ..PLAIN });
        let sent = Sent::of(0, &longest, &mut rig);
        assert_eq!(sent.bytes.len(), 14 + 1500, "{name}");
        assert_eq!(open(mode, outer, inner, &sent.bytes).inner, longest[14..], "{name}");
        let longer = Like { len: fits + 1, ..PLAIN };
        rig.send(0, 0, &packet(inner, longer));
        assert_eq!(rig.stats(0).fragments_sent.get(), 0, "{name}: DF");
        if inner == Family::V4 {
            let cut = packet(inner, Like { dont_fragment: false, ..longer });
            let sent = rig.send(0, 0, &cut);
            assert_eq!(sent.len(), 2, "{name}");
            let fragments: Vec<_> =
                sent.iter().map(|sent| open(mode, outer, inner, &sent.bytes)).collect();
            for fragment in &fragments {
                assert_eq!(fragment.source, fragments[0].source);
                assert_eq!(fragment.flow_label, fragments[0].flow_label);
                assert_eq!(fragment.gue_port, fragments[0].gue_port, "{name}: one flow");
            }
            let fragments: Vec<&[u8]> =
                fragments.iter().map(|fragment| &fragment.inner[..]).collect();
            assert_eq!(joined(&fragments), cut[34..], "{name}");
            assert_eq!(rig.stats(0).fragments_sent.get(), 1, "{name}");
        }
        rig.assert_accounted();
    }
}

/// The payload of a datagram from its fragments, in order; checks every header.
fn joined(fragments: &[&[u8]]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        let (ip, rest) = Ipv4Header::from_slice(fragment).unwrap();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(usize::from(ip.total_len), fragment.len());
        assert_eq!(usize::from(ip.fragment_offset.value()) * 8, payload.len());
        assert_eq!(ip.more_fragments, index + 1 < fragments.len());
        assert_eq!((ip.identification, ip.dont_fragment), (0x4711, false));
        payload.extend(rest);
    }
    payload
}

#[test]
fn a_small_mtu_allows_many_fragments_but_not_too_many() {
    let mut vip = vip(Forward::Ipip, Family::V4, Family::V4, 1);
    for (mtu, fragments) in [(596, 3), (320, 6), (240, 8), (228, 0), (40, 0), (10, 0)] {
        vip.backends[0].mtu = mtu;
        let mut rig = rig_with(tunnels(), 1500, vec![vip.clone()]);
        let packet = packet(Family::V4, Like { dont_fragment: false, len: 1500, ..PLAIN });
        let sent = rig.send(0, 0, &packet);
        assert_eq!(sent.len(), fragments, "MTU {mtu}");
        let inner: Vec<_> = sent
            .iter()
            .map(|sent| open(Forward::Ipip, Family::V4, Family::V4, &sent.bytes).inner)
            .collect();
        if fragments > 0 {
            let inner: Vec<&[u8]> = inner.iter().map(Vec::as_slice).collect();
            assert_eq!(joined(&inner), packet[34..], "MTU {mtu}");
            assert!(sent.iter().all(|sent| sent.bytes.len() <= 14 + usize::from(mtu)));
            let vip = &rig.stats(0).vips[0];
            assert_eq!((vip.packets_in.get(), vip.bytes_in.get()), (1, 1514), "as received");
        }
        rig.assert_accounted();
    }
}

/// Frames for fragments are bounded, and none is lost.
#[test]
fn many_packets_are_fragmented_at_once() {
    let mut rig = rig(Forward::Gue, Family::V4, Family::V4);
    let packet = packet(Family::V4, Like { dont_fragment: false, len: 1500, ..PLAIN });
    let sent = rig.send_all(0, 0, &vec![packet; 64]);
    let (fragments, refused) = (rig.stats(0).fragments_sent.get(), rig.drops(0, Drop::TooBig));
    assert_eq!(sent.len() as u64, 64 - refused + fragments);
    assert!(fragments > 50, "{fragments} fragments, {refused} refused");
    rig.assert_accounted();
}

#[test]
fn tunnels_do_not_carry_tunnels() {
    for (mode, inner, outer) in combinations() {
        let mut vip = vip(mode, inner, outer, 1);
        (vip.protocol, vip.ports) = (Protocol::Udp, Ports::List(vec![53.into(), 6080.into()]));
        let mut rig = rig_with(tunnels(), 1500, vec![vip]);
        assert_eq!(rig.send(0, 0, &udp(inner, 9, 6080, true)).len(), 0, "{mode:?}");
        assert_eq!(rig.drops(0, Drop::NestedTunnel), 1);
        let stats = rig.stats(0);
        assert_eq!((stats.flows_new.get(), stats.flows_active.get()), (0, 0), "no pin is left");
        assert_eq!(rig.send(0, 0, &udp(inner, 9, 53, true)).len(), 1);
        assert_eq!(rig.send(0, 0, &udp(inner, 0, 53, true)).len(), 1, "UDP from port 0");
        if inner == Family::V4 {
            let mut damaged = udp(inner, 7, 53, true);
            damaged[24] ^= 1;
            assert_eq!(rig.send(0, 0, &damaged), []);
            assert_eq!(rig.drops(0, Drop::BadIpv4Checksum), 1);
        }
        assert_eq!(rig.stats(0).flows_active.get(), 2);
        rig.assert_accounted();
    }
}

/// A VIP of all protocols accepts protocols other than TCP and UDP, except tunnels.
#[test]
fn any_protocol_goes_into_a_tunnel_but_a_tunnels() {
    for (mode, inner, outer) in combinations() {
        let mut vip = vip(mode, inner, outer, 1);
        (vip.protocol, vip.ports) = (Protocol::Any, Ports::All);
        let mut rig = rig_with(tunnels(), 1500, vec![vip]);
        for (protocol, nested) in [(50, false), (132, false), (4, true), (41, true), (47, true)] {
            let mut packet = packet(inner, PLAIN);
            packet[if inner == Family::V4 { 23 } else { 20 }] = protocol;
            if inner == Family::V4 {
                set_sum(&mut packet);
            }
            let sent = rig.send(0, 0, &packet);
            assert_eq!(sent.is_empty(), nested, "{mode:?} {inner:?} {protocol}");
            for sent in &sent {
                assert_eq!(open(mode, outer, inner, &sent.bytes).inner, packet[14..]);
            }
        }
        assert_eq!(rig.drops(0, Drop::NestedTunnel), 3);
        rig.assert_accounted();
    }
}

#[test]
fn a_box_without_a_source_sends_nothing() {
    for (mode, inner, outer) in combinations() {
        let mut rig = rig_with(Tunnels::default(), 1500, vec![vip(mode, inner, outer, 1)]);
        assert_eq!(rig.send(0, 0, &packet(inner, PLAIN)).len(), 0);
        assert_eq!(rig.drops(0, Drop::NoBackend), 1);
        rig.assert_accounted();
    }
}

#[test]
fn the_largest_segment_that_a_handshake_may_speak_of_is_lowered() {
    for forward in [Forward::Dsr, Forward::Nat, Forward::Ipip, Forward::Gue] {
        for (said, heard) in [(1460, 1380), (1380, 1380), (1200, 1200)] {
            let mut vip = vip(forward, Family::V4, Family::V4, 1);
            vip.policy.mss = Some(1380);
            let mut rig = rig_with(tunnels(), 1500, vec![vip]);
            let sent = Sent::of(0, &with_mss(&tcp(Family::V4, 40_000, 80, "S"), said), &mut rig);
            let inner = match forward {
                Forward::Ipip | Forward::Gue => {
                    let link = &sent.bytes[..14];
                    let inner = open(forward, Family::V4, Family::V4, &sent.bytes).inner;
                    Sent { nic: 0, bytes: [link, &inner[..]].concat() }
                }
                _ => sent,
            };
            inner.assert_checksums();
            assert_eq!(inner.bytes[54..58], [[2, 4], u16::to_be_bytes(heard)].concat());
            if forward == Forward::Nat {
                let reply = Sent::of(0, &with_mss(&inner.reply("SA"), said), &mut rig);
                reply.assert_checksums();
                assert_eq!(reply.bytes[54..58], [[2, 4], u16::to_be_bytes(heard)].concat());
            }
        }
    }
}

/// An IPv4 TCP packet with a maximum segment size option in front of its data.
fn with_mss(packet: &[u8], mss: u16) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    let (mut ip, rest) = Ipv4Header::from_slice(&packet[14..]).unwrap();
    let (mut tcp, data) = TcpHeader::from_slice(rest).unwrap();
    tcp.set_options_raw(&[2, 4, high, low]).unwrap();
    ip.total_len += 4;
    ip.header_checksum = ip.calc_header_checksum();
    tcp.checksum = tcp.calc_checksum_ipv4(&ip, data).unwrap();
    [&packet[..14], &ip.to_bytes(), &tcp.to_bytes(), data].concat()
}

/// A failed backend terminates its flow: packets to the backend go through the tunnel.
#[test]
fn resets_go_through_the_tunnel() {
    for (mode, inner, outer) in combinations() {
        for vlan in [None, Some(9)] {
            let mut vip = vip(mode, inner, outer, 1);
            vip.policy.on_down = FlowAction::Reset;
            vip.backends[0].next_hop.as_mut().unwrap().vlan = vlan.map(u16::into);
            let mut rig = rig_with(tunnels(), 1500, vec![vip]);
            let first = Sent::of(0, &tcp(inner, 40_000, 80, "S"), &mut rig);
            Sent::of(0, &tcp(inner, 40_000, 80, "A"), &mut rig);
            rig.change(|specs| specs[0].backends[0].up = false);
            let sent = rig.send(0, 0, &numbered(inner, tcp(inner, 40_000, 80, "A"), 5, 9));
            assert_eq!(sent.len(), 2, "{mode:?} {inner:?} {outer:?}");
            let [mut to_backend, mut first] = [
                sent.iter().find(|sent| sent.destination_mac() == backend_mac(0)).unwrap(),
                &first,
            ]
            .map(|sent| sent.bytes.clone());
            if vlan.is_some() {
                assert_eq!(to_backend[12..16], [0x81, 0, 0, 9]);
                to_backend.drain(12..16);
                first.drain(12..16);
            }
            let [told, began] = [to_backend, first].map(|bytes| open(mode, outer, inner, &bytes));
            assert_eq!((told.source, told.flow_label), (began.source, began.flow_label));
            assert_eq!(told.gue_port, began.gue_port, "as the flow's other packets");
            let frame = [&first_link(inner)[..], &told.inner].concat();
            let segment = Sent { nic: 0, bytes: frame };
            segment.assert_checksums();
            assert_eq!(segment.source(), (inner.client(), 40_000));
            assert_eq!(segment.destination(), (inner.vip(), 80, 64));
            assert!(segment.tcp().rst);
            assert_eq!(segment.tcp().sequence_number, 5);
            rig.assert_accounted();
        }
    }
}

fn first_link(family: Family) -> [u8; 14] {
    let mut link = [0; 14];
    link[12..].copy_from_slice(if family == Family::V4 { &[8, 0] } else { &[0x86, 0xdd] });
    link
}

mod path_mtu {
    use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4};

    use super::*;

    const ROUTER: [&str; 2] = ["198.18.9.1", "2001:db8:9::1"];

    /// A router's error about an outer packet that is too long.
    fn too_big(outer: Family, to: IpAddr, quoted: &[u8], mtu: u16) -> Vec<u8> {
        let quoted = &quoted[..quoted.len().min(if outer == Family::V4 { 548 } else { 1232 })];
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2(CLIENT_MAC, nic_mac(0));
        let router: IpAddr = ROUTER[usize::from(outer == Family::V6)].parse().unwrap();
        match (router, to) {
            (IpAddr::V4(router), IpAddr::V4(to)) => builder
                .ipv4(router.octets(), to.octets(), 64)
                .icmpv4(Icmpv4Type::DestinationUnreachable(
                    icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu },
                ))
                .write(&mut bytes, quoted),
            (IpAddr::V6(router), IpAddr::V6(to)) => builder
                .ipv6(router.octets(), to.octets(), 64)
                .icmpv6(Icmpv6Type::PacketTooBig { mtu: mtu.into() })
                .write(&mut bytes, quoted),
            _ => unreachable!("one family"),
        }
        .unwrap();
        bytes
    }

    fn source(outer: Family) -> IpAddr {
        SOURCE[usize::from(outer == Family::V6)].parse().unwrap()
    }

    #[test]
    fn a_reported_path_mtu_is_valid_for_ten_minutes() {
        for (mode, inner, outer) in combinations() {
            for tag in [None, Some(5)] {
                let name = format!("{mode:?} {inner:?} in {outer:?}, {tag:?}");
                let mut rig = rig(mode, inner, outer);
                let longest = usize::from(1500 - overhead(mode, outer));
                let like = Like { len: longest, ..PLAIN };
                let sent = Sent::of(0, &packet(inner, like), &mut rig);
                let message = too_big(outer, source(outer), &sent.bytes[14..], 1400);
                assert_eq!(rig.send(0, 0, &tagged(message, tag)).len(), 0, "{name}");
                assert_eq!(rig.drops(0, Drop::PathMtuLearnt), 1, "{name}");
                let fits = usize::from(1400 - overhead(mode, outer));
                assert!(passes(&mut rig, inner, fits), "{name}");
                assert!(!passes(&mut rig, inner, fits + 1), "{name}");
                rig.skip(60_001);
                assert!(passes(&mut rig, inner, longest), "{name}");
                rig.assert_accounted();
            }
        }
    }

    /// Returns whether a packet with DF reaches the backend unfragmented.
    fn passes(rig: &mut Rig, inner: Family, len: usize) -> bool {
        let sent = rig.send(0, 0, &packet(inner, Like { len, ..PLAIN }));
        sent.iter().any(|sent| sent.destination_mac() == backend_mac(0))
    }

    #[test]
    fn never_less_than_every_host_has_to_take() {
        for (mode, inner, outer) in combinations() {
            for mtu in [0, 68, 500, 1279] {
                let mut rig = rig(mode, inner, outer);
                let sent = Sent::of(0, &packet(inner, Like { len: 1400, ..PLAIN }), &mut rig);
                rig.send(0, 0, &too_big(outer, source(outer), &sent.bytes[14..], mtu));
                assert_eq!(rig.drops(0, Drop::PathMtuLearnt), 1);
                let least = if inner == Family::V4 { 576 } else { 1280 };
                assert!(passes(&mut rig, inner, least), "{mode:?} {inner:?} {outer:?} {mtu}");
                assert!(!passes(&mut rig, inner, 1400), "{mode:?} {inner:?} {outer:?} {mtu}");
            }
        }
    }

    /// A message must be about a packet that the balancer may have sent.
    #[test]
    fn forged_packets_teach_nothing() {
        for (mode, inner, outer) in combinations() {
            let mut rig = rig(mode, inner, outer);
            let like = Like { len: 1400, ..PLAIN };
            let sent = Sent::of(0, &packet(inner, like), &mut rig).bytes[14..].to_vec();
            let (v4, to) = (outer == Family::V4, source(outer));
            let ip_len = if v4 { 20 } else { 40 };
            let mut changed = Vec::new();
            // Another destination, another source.
            for at in if v4 { [19, 15] } else { [39, 23] } {
                let mut quoted = sent.clone();
                quoted[at] ^= 0x40;
                changed.push((too_big(outer, to, &quoted, 1300), at == ip_len - 1));
            }
            // TCP, or UDP between other ports.
            let mut quoted = sent.clone();
            quoted[if v4 { 9 } else { 6 }] = 6;
            changed.push((too_big(outer, to, &quoted, 1300), false));
            if mode == Forward::Gue {
                for at in [ip_len, ip_len + 3] {
                    let mut quoted = sent.clone();
                    quoted[at] ^= 0x80;
                    changed.push((too_big(outer, to, &quoted, 1300), false));
                }
            }
            // A quoted packet that would have fit.
            let len = u16::try_from(sent.len()).unwrap();
            changed.push((too_big(outer, to, &sent, len), true));
            // Longer than the MTU of the NIC.
            let mut quoted = sent.clone();
            let longer = if v4 { 1501u16 } else { 1501 - 40 };
            quoted[if v4 { 2..4 } else { 4..6 }].copy_from_slice(&longer.to_be_bytes());
            changed.push((too_big(outer, to, &quoted, 1300), true));
            // Corrupted in transit.
            let mut broken = too_big(outer, to, &sent, 1300);
            *broken.last_mut().unwrap() ^= 1;
            changed.push((broken, false));
            // Truncated within the quoted headers.
            changed.push((too_big(outer, to, &sent[..ip_len - 1], 1300), false));
            let mut ours = 0;
            for (number, (message, is_ours)) in changed.into_iter().enumerate() {
                rig.send(0, 0, &message);
                ours += u64::from(is_ours);
                let name = format!("{mode:?} {inner:?} {outer:?} case {number}");
                assert_eq!(rig.drops(0, Drop::TunnelError), ours, "{name}");
                assert_eq!(rig.drops(0, Drop::PathMtuLearnt), 0, "{name}");
            }
            assert!(passes(&mut rig, inner, 1400));
            rig.assert_accounted();
        }
    }

    #[test]
    fn every_truncation_of_a_message_ends_by_name() {
        for (mode, inner, outer) in combinations() {
            let mut rig = rig(mode, inner, outer);
            let sent = Sent::of(0, &packet(inner, Like { len: 1400, ..PLAIN }), &mut rig);
            let message = too_big(outer, source(outer), &sent.bytes[14..], 1300);
            for len in 14..message.len() {
                assert_eq!(rig.send(0, 0, &message[..len]).len(), 0, "{len}");
            }
            assert_eq!(rig.drops(0, Drop::PathMtuLearnt), 0);
            rig.assert_accounted();
        }
    }
}
