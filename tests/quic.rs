//! Golden packets with QUIC connection ids: a real worker on fake rings. No root.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
#![allow(dead_code, reason = "the rig has more than these tests need")]

mod rig;

use std::net::IpAddr;

use holdfast::forwarding::quic_lb::{Codec, Config};
use holdfast::forwarding::{Affinity, Ports, ServerId, Service, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::stats::Drop;
use proptest::prelude::*;
use rig::{CLIENT_MAC, Family, Rig, Sent, ip_builder, nic_mac, spec};

const BACKENDS: u16 = 8;
const PORT: u16 = 80;
/// One rotation each: unencrypted, one block, and four passes.
const CONFIGS: [Config; 3] = [
    Config { rotation: 0, server_id_bytes: 3, nonce_bytes: 4, key: None },
    Config { rotation: 3, server_id_bytes: 8, nonce_bytes: 8, key: Some([0x8f; 16]) },
    Config { rotation: 6, server_id_bytes: 10, nonce_bytes: 5, key: Some([0x91; 16]) },
];

/// First byte, and version of a long header.
#[derive(Debug, Clone, Copy)]
struct Kind(u8, Option<u32>);

const INITIAL: Kind = Kind(0xc0, Some(1));
const ZERO_RTT: Kind = Kind(0xd0, Some(1));
const HANDSHAKE: Kind = Kind(0xe0, Some(1));
const RETRY: Kind = Kind(0xf0, Some(1));
const SHORT: Kind = Kind(0x40, None);
const HANDSHAKE_V2: Kind = Kind(0xf0, Some(0x6b33_43cf));
const INITIAL_V2: Kind = Kind(0xd0, Some(0x6b33_43cf));
const UNKNOWN_VERSION: Kind = Kind(0xe0, Some(0xff00_0020));

fn server_id(index: u16, len: u8) -> ServerId {
    ServerId::new(&vec![u8::try_from(index).unwrap() + 0x40; usize::from(len)]).unwrap()
}

/// A connection id that names backend `index`.
fn naming(config: &Config, index: u16) -> Vec<u8> {
    let nonce = vec![0xa5; usize::from(config.nonce_bytes)];
    let server = server_id(index, config.server_id_bytes);
    Codec::new(config).unwrap().encode(server, &nonce).unwrap().to_vec()
}

/// A UDP VIP with affinity by connection ids of all `CONFIGS`.
fn quic_spec(forward: Forward, family: Family) -> VipSpec {
    let mut spec = VipSpec {
        protocol: Protocol::Udp,
        ..spec(0, forward, family, 1, BACKENDS).with(|policy| {
            policy.affinity = Affinity::QuicCid;
            policy.quic = CONFIGS.into();
        })
    };
    for (index, backend) in (0..).zip(&mut spec.backends) {
        backend.server_ids =
            CONFIGS.map(|config| server_id(index, config.server_id_bytes)).to_vec();
    }
    spec
}

fn rig(forward: Forward) -> Rig {
    Rig::new(1, 1, vec![quic_spec(forward, Family::V4)])
}

fn datagram(
    (source_mac, destination_mac): ([u8; 6], [u8; 6]),
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = ip_builder((source_mac, destination_mac), source.0, destination.0);
    builder.udp(source.1, destination.1).write(&mut bytes, payload).unwrap();
    bytes
}

fn from_client(family: Family, client_port: u16, payload: &[u8]) -> Vec<u8> {
    let macs = (CLIENT_MAC, nic_mac(0));
    datagram(macs, (family.client(), client_port), (family.vip(), PORT), payload)
}

fn payload(kind: Kind, id: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind.0];
    if let Some(version) = kind.1 {
        bytes.extend(version.to_be_bytes());
        bytes.push(u8::try_from(id.len()).unwrap());
    }
    bytes.extend(id);
    bytes.extend([0x33; 24]);
    bytes
}

fn quic(client_port: u16, kind: Kind, id: &[u8]) -> Vec<u8> {
    from_client(Family::V4, client_port, &payload(kind, id))
}

/// The backend's reply to the datagram that it received.
fn reply(sent: &Sent) -> Vec<u8> {
    let (address, port, _) = sent.destination();
    datagram((sent.destination_mac(), nic_mac(0)), (address, port), sent.source(), b"answer")
}

/// The backend that a packet is sent to.
fn index(sent: &Sent) -> u16 {
    u16::from(sent.destination_mac()[5])
}

#[test]
fn handshake_retry_and_short_headers_go_where_their_id_says_whatever_the_client_is() {
    for forward in [Forward::Dsr, Forward::Nat] {
        for family in [Family::V4, Family::V6] {
            let mut rig = Rig::new(1, 1, vec![quic_spec(forward, family)]);
            let mut port = 1000;
            for config in &CONFIGS {
                for kind in [HANDSHAKE, RETRY, HANDSHAKE_V2, SHORT] {
                    for backend in 0..BACKENDS {
                        port += 1;
                        let packet =
                            from_client(family, port, &payload(kind, &naming(config, backend)));
                        let sent = Sent::of(0, &packet, &mut rig);
                        assert_eq!(index(&sent), backend, "{forward:?} {family:?} {kind:?}");
                        sent.assert_checksums();
                    }
                }
            }
            let flows = u64::from(port - 1000);
            let stats = rig.stats(0);
            assert_eq!((stats.flows_by_cid.get(), stats.flows_new.get()), (flows, 0));
            rig.assert_accounted();
        }
    }
}

/// With `nat` a server gets no packet from its own address, whatever id its packets carry.
#[test]
fn an_id_does_not_lead_a_server_to_itself() {
    for family in [Family::V4, Family::V6] {
        let mut rig = Rig::new(1, 1, vec![quic_spec(Forward::Nat, family)]);
        let client = (family.backend(1), 1000);
        let id = payload(SHORT, &naming(&CONFIGS[0], 1));
        let packet = datagram((CLIENT_MAC, nic_mac(0)), client, (family.vip(), PORT), &id);
        for _ in 0..2 {
            assert_ne!(index(&Sent::of(0, &packet, &mut rig)), 1, "{family:?}");
        }
        assert_eq!(rig.stats(0).flows_by_cid.get(), 0, "{family:?}");
        rig.assert_accounted();
    }
}

#[test]
fn initial_and_zero_rtt_go_by_hash_and_an_id_without_a_backend_by_pin_or_hash() {
    let mut rig = rig(Forward::Nat);
    let plain = rig.backend_of(&from_client(Family::V4, 5000, b"anything")).unwrap();
    let by_hash: Vec<_> = (6000..6040)
        .map(|port| rig.backend_of(&from_client(Family::V4, port, b"anything")).unwrap())
        .collect();
    let elsewhere = naming(&CONFIGS[0], (plain + 1) % BACKENDS);
    let mut unroutable = elsewhere.clone();
    unroutable[0] |= 0xe0;
    let mut other_rotation = elsewhere.clone();
    other_rotation[0] |= 1 << 5;
    let unknown = [7, 1, 2, 3, 4, 5, 6, 7];
    // A new worker: it has no pins.
    let mut fresh = Rig::new(1, 1, vec![quic_spec(Forward::Nat, Family::V4)]);
    for (name, kind, id) in [
        ("Initial", INITIAL, &elsewhere[..]),
        ("0-RTT", ZERO_RTT, &elsewhere),
        ("Initial of version 2", INITIAL_V2, &elsewhere),
        ("of an unknown version", UNKNOWN_VERSION, &elsewhere),
        ("reserved rotation", SHORT, &unroutable),
        ("rotation without configuration", SHORT, &other_rotation),
        ("unknown server id", SHORT, &unknown),
        ("too short", HANDSHAKE, &elsewhere[..7]),
        ("empty", HANDSHAKE, &[]),
    ] {
        let packet = quic(5000, kind, id);
        assert_eq!(rig.backend_of(&packet), Some(plain), "{name}: by the pin");
        for (port, expected) in (6000..).zip(&by_hash) {
            let packet = quic(port, kind, id);
            assert_eq!(fresh.backend_of(&packet), Some(*expected), "{name}: by the hash");
        }
        fresh.advance(500);
    }
    assert_eq!(rig.stats(0).flows_by_cid.get() + fresh.stats(0).flows_by_cid.get(), 0);
}

#[test]
fn an_id_wins_over_a_pin_which_then_follows_it() {
    let mut rig = rig(Forward::Nat);
    let first = rig.backend_of(&quic(5000, INITIAL, &naming(&CONFIGS[0], 0))).unwrap();
    for round in 1..=BACKENDS {
        let named = (first + round) % BACKENDS;
        for config in &CONFIGS {
            assert_eq!(rig.backend_of(&quic(5000, SHORT, &naming(config, named))), Some(named));
            // A packet that names no backend now follows the new pin.
            assert_eq!(rig.backend_of(&from_client(Family::V4, 5000, b"?")), Some(named));
        }
    }
    let stats = rig.stats(0);
    assert_eq!((stats.flows_new.get(), stats.flows_by_cid.get()), (1, u64::from(BACKENDS)));
    assert_eq!(stats.flows_active.get(), 1, "the pin was moved, not doubled");
    rig.assert_accounted();
}

#[test]
fn a_named_backend_must_be_alive_but_may_be_draining() {
    let id = |index| naming(&CONFIGS[1], index);
    let mut rig = rig(Forward::Nat);
    let pinned = rig.backend_of(&quic(5000, INITIAL, &id(0))).unwrap();
    let named = (pinned + 1) % BACKENDS;
    let name = |rig: &mut Rig| rig.backend_of(&quic(5000, SHORT, &id(named))).unwrap();
    rig.change(|specs| specs[0].backends[usize::from(named)].up = false);
    assert_eq!(name(&mut rig), pinned, "down: by the pin");
    rig.change(|specs| specs[0].backends[usize::from(named)].up = true);
    rig.change(|specs| specs[0].backends[usize::from(named)].service = Service::Out);
    assert_eq!(name(&mut rig), pinned, "out: by the pin");
    rig.change(|specs| specs[0].backends[usize::from(named)].service = Service::Draining);
    assert_eq!(name(&mut rig), named, "draining: its connection is there");
    rig.change(|specs| specs[0].backends[usize::from(named)].up = false);
    let last = name(&mut rig);
    assert_ne!(last, named, "down, with the pin on it: by hash");
    assert_eq!(rig.drops(0, Drop::NoBackend), 0);
    rig.assert_accounted();
}

/// A client's socket may have connections with several backends: replies of each must pass.
#[test]
fn replies_pass_from_every_backend_that_a_client_port_has_connections_with() {
    for workers in [1, 2] {
        let mut rig = Rig::new(workers, 1, vec![quic_spec(Forward::Nat, Family::V4)]);
        let sent: Vec<Sent> = (0..BACKENDS)
            .map(|backend| {
                let packet = quic(5000, SHORT, &naming(&CONFIGS[2], backend));
                Sent::of(0, &packet, &mut rig)
            })
            .collect();
        for sent in &sent {
            for worker in 0..workers {
                let answer = Sent::of(worker, &reply(sent), &mut rig);
                assert_eq!(answer.source(), (Family::V4.vip(), PORT), "worker {worker}");
                assert_eq!(answer.destination_mac(), CLIENT_MAC);
                answer.assert_checksums();
            }
        }
        rig.assert_accounted();
    }
    // A VIP without affinity by connection ids accepts replies of the pinned backend only.
    let mut plain = quic_spec(Forward::Nat, Family::V4);
    plain.policy.affinity = Affinity::Flow;
    let mut rig = Rig::new(1, 1, vec![plain]);
    let sent = Sent::of(0, &quic(5000, SHORT, &naming(&CONFIGS[0], 0)), &mut rig);
    assert_eq!(rig.send(0, 0, &reply(&sent)).len(), 1);
    let other = (index(&sent) + 1) % BACKENDS;
    let stray = datagram(
        (sent.destination_mac(), nic_mac(0)),
        (Family::V4.backend(other), 8080),
        sent.source(),
        b"stray",
    );
    assert_eq!(rig.send(0, 0, &stray).len(), 0);
    assert_eq!(rig.drops(0, Drop::ReturnNoFlow), 1);
}

/// A client port that has flows with two ports of the VIP, or with two VIPs: each backend's replies
/// belong to the flow that is pinned to it, whatever id the other flow carries.
#[test]
fn a_second_flow_of_a_client_port_does_not_take_the_replies_of_the_first() {
    let to = |port: u16, payload: &[u8]| {
        let macs = (CLIENT_MAC, nic_mac(0));
        datagram(macs, (Family::V4.client(), 5000), (Family::V4.vip(), port), payload)
    };
    for (first, second) in [(80, 81), (81, 80)] {
        for worker in [0, 1] {
            for named in 0..BACKENDS {
                let mut vip = quic_spec(Forward::Nat, Family::V4);
                vip.ports = Ports::of(&[80, 81]);
                let mut rig = Rig::new(2, 1, vec![vip]);
                let sent = Sent::of(0, &to(first, &payload(INITIAL, b"anything")), &mut rig);
                // Any host can forge this packet with the client's address.
                let forged = payload(SHORT, &naming(&CONFIGS[0], named));
                assert_eq!(rig.send(0, 0, &to(second, &forged)).len(), 1);
                let answer = Sent::of(worker, &reply(&sent), &mut rig);
                assert_eq!(answer.source(), (Family::V4.vip(), first), "{worker} {named}");
                rig.assert_accounted();
            }
        }
    }
}

/// A worker that knows the flow only by another worker's pin follows the id, too.
#[test]
fn an_id_wins_over_another_workers_pin() {
    let mut rig = Rig::new(2, 1, vec![quic_spec(Forward::Nat, Family::V4)]);
    let first = Sent::of(0, &quic(5000, SHORT, &naming(&CONFIGS[0], 1)), &mut rig);
    assert_eq!(rig.send(1, 0, &reply(&first)).len(), 1);
    assert_eq!(rig.stats(1).flow_aliases.get(), 1);
    let moved = Sent::of(1, &quic(5000, SHORT, &naming(&CONFIGS[0], 2)), &mut rig);
    assert_eq!(index(&moved), 2);
    assert_eq!((rig.stats(1).flow_aliases.get(), rig.stats(1).flows_active.get()), (0, 1));
    for sent in [first, moved] {
        for worker in [0, 1] {
            assert_eq!(rig.send(worker, 0, &reply(&sent)).len(), 1, "worker {worker}");
        }
    }
    rig.assert_accounted();
}

#[test]
fn rotations_come_and_go_by_reload_without_moving_pinned_flows() {
    let mut rig = rig(Forward::Dsr);
    rig.change(|specs| specs[0].policy.quic = Box::new([CONFIGS[0]]));
    let old = naming(&CONFIGS[0], 5);
    let new = naming(&CONFIGS[1], 5);
    assert_eq!(rig.backend_of(&quic(5000, SHORT, &old)), Some(5));
    rig.change(|specs| specs[0].policy.quic = Box::new([CONFIGS[0], CONFIGS[1]]));
    assert_eq!(rig.backend_of(&quic(5001, SHORT, &old)), Some(5), "the old one still counts");
    assert_eq!(rig.backend_of(&quic(5002, SHORT, &new)), Some(5), "and the new one");
    rig.change(|specs| specs[0].policy.quic = Box::new([CONFIGS[1]]));
    assert_eq!(rig.backend_of(&quic(5000, SHORT, &old)), Some(5), "by the pin");
    assert_eq!(rig.backend_of(&quic(5003, SHORT, &new)), Some(5));
    assert_eq!((rig.stats(0).flows_by_cid.get(), rig.stats(0).flows_new.get()), (4, 0));
}

#[test]
fn bytes_behind_the_datagram_are_no_part_of_the_id() {
    let id = naming(&CONFIGS[0], 3);
    let mut rig = rig(Forward::Dsr);
    let plain = rig.backend_of(&from_client(Family::V4, 5000, b"?")).unwrap();
    let named = (plain + 1) % BACKENDS;
    let mut packet = from_client(Family::V4, 5000, &[0x40]);
    packet.extend(naming(&CONFIGS[0], named));
    packet.resize(packet.len().max(60), 0);
    assert_eq!(rig.backend_of(&packet), Some(plain), "Ethernet padding");
    let whole = [&[0x40], &id[..]].concat();
    for length in 0..whole.len() {
        let packet = from_client(Family::V4, 7000, &whole[..length]);
        assert_ne!(rig.backend_of(&packet), None, "cut to {length}");
    }
    assert_eq!(rig.stats(0).flows_by_cid.get(), 0);
    rig.assert_accounted();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_payload_is_forwarded(
        payloads in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..48), 1..60),
    ) {
        let mut rig = rig(Forward::Nat);
        let packets: Vec<_> =
            (2000..).zip(&payloads).map(|(port, payload)| from_client(Family::V4, port, payload)).collect();
        prop_assert_eq!(rig.send_all(0, 0, &packets).len(), packets.len());
        rig.assert_accounted();
    }
}
