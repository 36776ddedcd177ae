//! Any bytes, in every mode: packets of every kind, changed at random, in any order, at any worker.
//!
//! Invariants for every input: no panic, every packet in one counter, every frame somewhere, and no
//! packet longer than the MTU of its link.

use std::net::IpAddr;

use holdfast::forwarding::{Local, Ports, VipSpec};
use holdfast::net::{Forward, Protocol, VipId};
use proptest::prelude::*;

use super::fragments::{datagram, fragments, set_sum};
use super::icmp::{icmp, router};
use super::tunnel::tunnels;
use crate::rig::{CLIENT_MAC, Family, Rig, backend_mac, nic_mac, spec, tcp_of, with_tags};

const MODES: [Forward; 5] =
    [Forward::Dsr, Forward::Nat, Forward::FullNat, Forward::Ipip, Forward::Gue];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// MTU of both NICs; the backends' links have smaller ones.
const MTU: u16 = 1500;

/// VIPs of TCP, UDP and, if the mode supports it, all protocols; and of a mode with a PROXY header.
fn rig(forward: Forward, family: Family, inner: Family) -> Rig {
    let mut specs: Vec<VipSpec> = (0..2).map(|id| spec(id, forward, family, 2, 2)).collect();
    specs[0].policy.proxy = forward == Forward::FullNat;
    specs[1].protocol = Protocol::Udp;
    if matches!(forward, Forward::Dsr | Forward::Ipip | Forward::Gue) {
        let mut all = spec(2, forward, family, 2, 2);
        (all.protocol, all.ports) = (Protocol::Any, Ports::All);
        specs.push(all);
    }
    for spec in &mut specs {
        (spec.policy.mss, spec.policy.reject_no_backend) = (Some(536), spec.id != VipId(1));
        for (backend, index) in spec.backends.iter_mut().zip(0..) {
            backend.mtu = if index == 0 { 700 } else { MTU };
            if forward == Forward::FullNat || forward.tunnels() {
                backend.address = inner.backend(index);
            }
        }
    }
    Rig::in_box(Local { mtus: vec![MTU; 2], tunnels: tunnels(), ..Local::default() }, 2, 2, specs)
}

/// Packets of every kind from a client, with `len` bytes of data in the long ones.
fn of_client(family: Family, port: u16, len: usize) -> Vec<Vec<u8>> {
    let (client, vip) = ((family.client(), port), (family.vip(), 80));
    let mut packets: Vec<_> =
        ["S", "A", "FA", "R", "SA"].iter().map(|flags| tcp_of(client, vip, flags)).collect();
    let mut long = datagram([client, vip], [CLIENT_MAC, nic_mac(0)], len);
    packets.push(long.clone());
    packets.extend(fragments(&long, port));
    if family == Family::V4 {
        long[20..22].fill(0);
        set_sum(&mut long);
        packets.push(long);
    }
    let answer = tcp_of(vip, client, "A");
    for kind in [(1, 0), (2, 0), (3, 4), (8, 0), (11, 0), (12, 0), (128, 0)] {
        packets.push(icmp(router(family), family.vip(), kind, 600, &answer[14..]));
    }
    let mut opaque = tcp_of(client, vip, "A");
    opaque[if family == Family::V4 { 23 } else { 20 }] = 50;
    packets.push(opaque);
    packets
}

/// Possible replies to a packet that was sent to a backend.
fn of_backend(request: &[u8], len: usize) -> Vec<Vec<u8>> {
    let Ok(sliced) = etherparse::SlicedPacket::from_ethernet(request) else { return Vec::new() };
    let ends = match (sliced.net, sliced.transport) {
        (Some(net), Some(transport)) => {
            let (source, destination): (IpAddr, IpAddr) = match net {
                etherparse::NetSlice::Ipv4(ip) => {
                    (ip.header().source_addr().into(), ip.header().destination_addr().into())
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    (ip.header().source_addr().into(), ip.header().destination_addr().into())
                }
                etherparse::NetSlice::Arp(_) => return Vec::new(),
            };
            let ports = match transport {
                etherparse::TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
                etherparse::TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
                _ => return Vec::new(),
            };
            [(destination, ports.1), (source, ports.0)]
        }
        _ => return Vec::new(),
    };
    let mut packets: Vec<_> =
        ["SA", "A", "FA", "R"].iter().map(|flags| tcp_of(ends[0], ends[1], flags)).collect();
    let long = datagram(ends, [backend_mac(0), nic_mac(1)], len);
    packets.extend(fragments(&long, 9));
    packets.push(long);
    let family = if ends[0].0.is_ipv4() { Family::V4 } else { Family::V6 };
    for kind in [(2, 0), (3, 4), (11, 0)] {
        packets.push(icmp(router(family), ends[1].0, kind, 600, &request[14..]));
    }
    packets
}

/// A change of a packet.
#[derive(Debug, Clone)]
struct Change {
    which: prop::sample::Index,
    /// Bytes, by distance from the start, and their values. Most are in the headers.
    bytes: Vec<(usize, u8)>,
    cut: Option<prop::sample::Index>,
    tags: usize,
    worker: usize,
    len: usize,
    ticks: u32,
    back: bool,
}

fn change() -> impl Strategy<Value = Change> {
    let byte = (prop_oneof![0_usize..100, 12_usize..40], any::<u8>());
    let bytes = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(byte, 1..4)];
    let cut = prop::option::weighted(0.15, any::<prop::sample::Index>());
    let ticks = prop_oneof![8 => Just(0_u32), 1 => 1_u32..300];
    let len = prop_oneof![Just(130_usize), Just(1400), 0_usize..1472];
    (any::<prop::sample::Index>(), bytes, cut, 0_usize..3, 0_usize..2, len, ticks, any::<bool>())
        .prop_map(|(which, bytes, cut, tags, worker, len, ticks, back)| Change {
            which,
            bytes,
            cut,
            tags: tags.saturating_sub(1),
            worker,
            len,
            ticks,
            back,
        })
}

impl Change {
    fn apply(&self, packets: &[Vec<u8>]) -> Vec<u8> {
        let mut packet = packets[self.which.index(packets.len())].clone();
        for &(at, value) in &self.bytes {
            packet.get_mut(at..=at).unwrap_or_default().fill(value);
        }
        if let Some(cut) = self.cut {
            packet.truncate(cut.index(packet.len()));
        }
        if packet.len() >= 14 { with_tags(packet, &[(0x8100, 7)][..self.tags]) } else { packet }
    }
}

/// A mode, the family of its VIPs and that of its backends.
fn mode() -> impl Strategy<Value = (Forward, Family, Family)> {
    let family = || prop::sample::select(&FAMILIES[..]);
    (prop::sample::select(&MODES[..]), family(), family())
}

/// Sends packets, each of one of a few flows, in both directions.
fn run((forward, family, inner): (Forward, Family, Family), changes: &[Change]) {
    let mut rig = rig(forward, family, inner);
    let mut last = Vec::new();
    for (change, flow) in changes.iter().zip((0..4).cycle()) {
        let back = of_backend(&last, change.len);
        let (nic, packets) = match change.back && !back.is_empty() {
            true => (1, back),
            false => (0, of_client(family, 40_000 + flow, change.len)),
        };
        let packet = change.apply(&packets);
        let longest = packet.len().max(14 + usize::from(MTU) + 8);
        for sent in rig.send(change.worker, nic, &packet) {
            assert!(sent.bytes.len() <= longest, "{forward:?}: {}", sent.bytes.len());
            if sent.nic == 1 {
                last = sent.bytes;
            }
        }
        rig.assert_accounted();
        rig.advance(change.ticks);
        for (worker, nic) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            rig.collect(worker, nic);
        }
        rig.assert_accounted();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_packets_in_any_mode_are_accounted_for(
        mode in mode(),
        changes in prop::collection::vec(change(), 1..60),
    ) {
        run(mode, &changes);
    }
}
