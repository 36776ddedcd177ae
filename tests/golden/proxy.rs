//! PROXY protocol v2 in mode full_nat: exactly one header, at the start, despite loss and
//! repetition.

use std::net::IpAddr;

use etherparse::{TcpHeader, TcpOptionElement};
use holdfast::forwarding::{FlowAction, VipSpec};
use holdfast::net::Forward;
use holdfast::stats::Drop;
use proptest::prelude::*;

use super::fragments::set_sum;
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, backend_mac, nic_mac, segment, spec};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PORT: u16 = 40_000;
/// Makes the stream's numbers wrap.
const ISN: u32 = u32::MAX - 2;

fn first() -> u32 {
    ISN.wrapping_add(1)
}

fn vip(family: Family, inner: Family) -> VipSpec {
    let mut vip = spec(0, Forward::FullNat, family, 1, 1).with(|policy| policy.proxy = true);
    vip.backends[0].address = inner.backend(0);
    vip
}

fn pairs() -> impl Iterator<Item = (Family, Family)> {
    FAMILIES.into_iter().flat_map(|family| FAMILIES.map(|inner| (family, inner)))
}

/// The header by hand, from haproxy's specification.
fn header(family: Family) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match (family.client(), family.vip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            bytes.extend([0x11, 0, 12]);
            bytes.extend(client.octets());
            bytes.extend(vip.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            bytes.extend([0x21, 0, 36]);
            bytes.extend(client.octets());
            bytes.extend(vip.octets());
        }
        _ => unreachable!("one family"),
    }
    bytes.extend(PORT.to_be_bytes());
    bytes.extend(80_u16.to_be_bytes());
    bytes
}

fn len(family: Family) -> u32 {
    u32::try_from(header(family).len()).unwrap()
}

/// A segment between two ends; flags as in tcpdump.
fn from_client(family: Family, said: (u32, u32, &str), payload: &[u8]) -> Vec<u8> {
    let options = [TcpOptionElement::MaximumSegmentSize(1460)];
    let options = if said.2.contains('S') { &options[..] } else { &[] };
    let ends = ((family.client(), PORT), (family.vip(), 80));
    segment((CLIENT_MAC, nic_mac(0)), ends.0, ends.1, said, options, payload)
}

/// The backend, with its view of the client.
struct Peer {
    source: (IpAddr, u16),
    backend: (IpAddr, u16),
}

impl Peer {
    /// Sends the reply to the SYN.
    fn accepts(&self, rig: &mut Rig) {
        assert_eq!(rig.send(0, 0, &self.says((7, first(), "SA"), &[])).len(), 1);
    }

    fn says(&self, said: (u32, u32, &str), options: &[TcpOptionElement]) -> Vec<u8> {
        segment((backend_mac(0), nic_mac(0)), self.backend, self.source, said, options, b"")
    }
}

/// Header and payload of the single TCP packet that was sent, with verified checksums.
fn read(sent: &[Sent]) -> (TcpHeader, Vec<u8>) {
    let [one] = sent else { unreachable!("{sent:?}") };
    let (tcp, _, payload) = one.segment();
    (tcp, payload)
}

/// Sends a SYN with data and a TCP Fast Open cookie; returns the backend that received it.
fn open(rig: &mut Rig, family: Family) -> Peer {
    let sent = rig.send(0, 0, &from_client(family, (ISN, 0, "S"), b"early"));
    let (tcp, payload) = read(&sent);
    assert_eq!((tcp.sequence_number, payload.len()), (ISN, 0), "data of a SYN wait for the header");
    let (address, port, _) = sent[0].destination();
    Peer { source: sent[0].source(), backend: (address, port) }
}

#[test]
fn the_header_goes_first_and_numbers_are_shifted() {
    for (family, inner) in pairs() {
        for (of_client, of_backend) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut rig = Rig::new(2, 1, vec![vip(family, inner)]);
            let peer = open(&mut rig, family);
            let (first, added) = (first(), len(family));
            let mss = [TcpOptionElement::MaximumSegmentSize(1400)];
            let back = rig.send(of_backend, 0, &peer.says((7, first, "SA"), &mss));
            let (tcp, _) = read(&back);
            assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (7, first));
            let grown = if (family, inner) == (Family::V6, Family::V4) { 20 } else { 0 };
            let most = 1400 - u16::try_from(added).unwrap() - grown;
            let option = tcp.options_iterator().next().unwrap().unwrap();
            assert_eq!(option, TcpOptionElement::MaximumSegmentSize(most), "{family:?} {inner:?}");

            let forward = |rig: &mut Rig, sequence, flags: &str, payload: &[u8]| {
                let packet = from_client(family, (sequence, 8, flags), payload);
                let (tcp, payload) = read(&rig.send(of_client, 0, &packet));
                assert_eq!(tcp.acknowledgment_number, 8);
                (tcp.sequence_number, payload)
            };
            let mut with_data = header(family);
            assert_eq!(forward(&mut rig, first, "A", b""), (first, with_data.clone()), "bare ACK");
            with_data.extend(b"hello");
            assert_eq!(forward(&mut rig, first, "A", b"hello"), (first, with_data));
            let second = first.wrapping_add(5);
            let shifted = second.wrapping_add(added);
            assert_eq!(forward(&mut rig, second, "A", b"world"), (shifted, b"world".to_vec()));
            // A keep-alive before any data.
            assert_eq!(forward(&mut rig, ISN, "A", b""), (ISN, Vec::new()));

            let acknowledged = |rig: &mut Rig, number, options: &[TcpOptionElement]| {
                let packet = peer.says((8, number, "A"), options);
                let (tcp, _) = read(&rig.send(of_backend, 0, &packet));
                let sack = tcp.options_iterator().next().map(Result::unwrap);
                (tcp.acknowledgment_number, sack)
            };
            // A part of the header; all of it, with data after a gap; everything.
            assert_eq!(acknowledged(&mut rig, first.wrapping_add(9), &[]), (first, None));
            let edge = |n: u32| first.wrapping_add(n);
            let block = |a, b| TcpOptionElement::SelectiveAcknowledgement((a, b), [None; 3]);
            let theirs = [block(edge(added + 5), edge(added + 10))];
            let ours = block(edge(5), edge(10));
            assert_eq!(acknowledged(&mut rig, edge(added), &theirs), (first, Some(ours)));
            assert_eq!(acknowledged(&mut rig, edge(added + 10), &[]), (edge(10), None));
            // Repeated data is old now, and has no header any more.
            let repeated = forward(&mut rig, first, "A", b"hello");
            assert_eq!(repeated, (edge(added), b"hello".to_vec()));
            assert_eq!(forward(&mut rig, edge(10), "FA", b""), (edge(added + 10), Vec::new()));
            rig.assert_accounted();
        }
    }
}

/// The client's port is reused before the handshake is done: another connection, other numbers.
#[test]
fn another_syn_is_another_flow() {
    let family = Family::V4;
    let mut rig = Rig::new(1, 1, vec![vip(family, family)]);
    let old = open(&mut rig, family);
    let again = rig.send(0, 0, &from_client(family, (ISN, 0, "S"), b""));
    assert_eq!(again[0].source(), old.source, "the same SYN");
    let new = rig.send(0, 0, &from_client(family, (77, 0, "S"), b""));
    assert_ne!(new[0].source(), old.source);
    let (tcp, payload) = read(&rig.send(0, 0, &from_client(family, (78, 5, "A"), b"")));
    assert_eq!((tcp.sequence_number, payload), (78, header(family)));
    assert_eq!(rig.stats(0).bindings_v4.get(), 1);
    rig.assert_accounted();
}

/// The start of the stream is unknown: the backend gets the packets unchanged, and resets an
/// unknown connection.
#[test]
fn a_flow_that_lost_its_pin_gets_no_header() {
    let mut rig = Rig::new(1, 1, vec![vip(Family::V4, Family::V4)]);
    let sent = rig.send(0, 0, &from_client(Family::V4, (500, 9, "A"), b"data"));
    let (tcp, payload) = read(&sent);
    assert_eq!((tcp.sequence_number, payload), (500, b"data".to_vec()));
    let reset = rig.send(0, 0, &sent[0].reply("R"));
    assert!(read(&reset).0.rst);
    rig.assert_accounted();
}

/// Data before the start of the client's stream would take the place of the header.
#[test]
fn no_data_takes_the_place_of_the_header() {
    for (family, inner) in pairs() {
        for worker in [0, 1] {
            let mut rig = Rig::new(2, 1, vec![vip(family, inner)]);
            open(&mut rig, family).accepts(&mut rig);
            let ahead = |bytes: u32| ISN.wrapping_sub(bytes);
            let refused =
                [(ISN, "A", 2), (ISN, "FA", 100), (ahead(99), "A", 101), (ahead(1000), "A", 1400)];
            for (sequence, flags, len) in refused {
                let packet = from_client(family, (sequence, 8, flags), &vec![0; len]);
                assert_eq!(rig.send(worker, 0, &packet), [], "{family:?} {inner:?} {sequence}");
            }
            assert_eq!(rig.drops(worker, Drop::NotTranslatable), 4);
            // A keep-alive at the SYN's number, and data that is entirely old.
            for (sequence, len) in [(ISN, 0), (ISN, 1), (ahead(99), 100)] {
                let packet = from_client(family, (sequence, 8, "A"), &vec![0; len]);
                let (tcp, payload) = read(&rig.send(worker, 0, &packet));
                assert_eq!((tcp.sequence_number, payload.len()), (sequence, len));
            }
            rig.assert_accounted();
        }
    }
}

/// Data before the stream, continued in a second fragment of unknown length.
#[test]
fn no_fragment_takes_the_place_of_the_header() {
    let mut rig = Rig::new(1, 1, vec![vip(Family::V4, Family::V4)]);
    open(&mut rig, Family::V4).accepts(&mut rig);
    let mut packet = from_client(Family::V4, (ISN, 8, "A"), &[0; 4]);
    // More fragments.
    packet[20] = 0x20;
    set_sum(&mut packet);
    assert_eq!(rig.send(0, 0, &packet), []);
    assert_eq!(rig.drops(0, Drop::NotTranslatable), 1);
    // A later fragment is dropped with its first one.
    (packet[20], packet[21]) = (0, 100);
    set_sum(&mut packet);
    assert_eq!(rig.send(0, 0, &packet), []);
    assert_eq!(rig.drops(0, Drop::FragmentFirstDropped), 1);
    rig.assert_accounted();
}

/// A backend that has lost a connection takes another SYN from its client as a new one. That
/// connection does not belong to this flow: it would have no header. The next SYN starts a new
/// flow.
#[test]
fn another_connection_behind_a_flow_that_lives_is_refused() {
    let family = Family::V4;
    let added = len(family);
    // Another number; the same; and one that looks the same to the backend.
    for isn in [77, ISN, ISN.wrapping_sub(added)] {
        for of_backend in [0, 1] {
            let mut rig = Rig::new(2, 1, vec![vip(family, family)]);
            let peer = open(&mut rig, family);
            peer.accepts(&mut rig);
            rig.send(0, 0, &from_client(family, (first(), 8, "A"), b"hello"));
            let end = first().wrapping_add(5 + added);
            rig.send(of_backend, 0, &peer.says((8, end, "A"), &[]));
            rig.send(of_backend, 0, &peer.says((8, end, "R"), &[]));
            // The client goes on, as if the RST were forged; then it sends the SYN.
            rig.send(0, 0, &from_client(family, (first().wrapping_add(5), 8, "A"), b""));
            let sent = rig.send(0, 0, &from_client(family, (isn, 0, "S"), b""));
            assert_eq!(sent[0].source(), peer.source);
            let number = read(&sent).0.sequence_number.wrapping_add(1);
            let answer = peer.says((9, number, "SA"), &[]);
            assert_eq!(rig.send(of_backend, 0, &answer), [], "{isn}");
            assert_eq!(rig.drops(of_backend, Drop::ReturnNoFlow), 1);
            let again = rig.send(0, 0, &from_client(family, (isn, 0, "S"), b""));
            assert_ne!(again[0].source(), peer.source);
            let packet = from_client(family, (isn.wrapping_add(1), 10, "A"), b"hello");
            let (_, payload) = read(&rig.send(0, 0, &packet));
            assert_eq!(payload, [header(family), b"hello".to_vec()].concat());
            rig.assert_accounted();
        }
    }
}

/// A flow without a SYN never has a header: a SYN in its place starts another flow.
#[test]
fn a_syn_behind_a_flow_without_one_begins_another() {
    let family = Family::V4;
    let mut rig = Rig::new(1, 1, vec![vip(family, family)]);
    let old = rig.send(0, 0, &from_client(family, (500, 9, "A"), b""));
    rig.send(0, 0, &from_client(family, (500, 9, "A"), b""));
    let new = open(&mut rig, family);
    assert_ne!(new.source, old[0].source());
    new.accepts(&mut rig);
    let (_, payload) = read(&rig.send(0, 0, &from_client(family, (first(), 8, "A"), b"hello")));
    assert_eq!(payload, [header(family), b"hello".to_vec()].concat());
    assert_eq!(rig.stats(0).bindings_v4.get(), 1);
    rig.assert_accounted();
}

/// The backend still has a connection from this source: its packets for that connection do not
/// affect the new one (RFC 9293 3.5.1, the recovery of half-open connections).
#[test]
fn an_older_connection_of_the_backend_is_reset_by_its_own_numbers() {
    for (family, inner) in pairs() {
        for beyond in [1000, 1 << 30, 3 << 30] {
            let mut rig = Rig::new(1, 1, vec![vip(family, inner)]);
            let peer = open(&mut rig, family);
            let theirs = first().wrapping_add(beyond);
            let (tcp, _) = read(&rig.send(0, 0, &peer.says((5, theirs, "A"), &[])));
            assert_eq!(tcp.acknowledgment_number, theirs);
            let reset = from_client(family, (tcp.acknowledgment_number, 0, "R"), b"");
            assert_eq!(read(&rig.send(0, 0, &reset)).0.sequence_number, theirs);
            // The client tries again: with another source, or the same one and its numbers.
            let peer = open(&mut rig, family);
            peer.accepts(&mut rig);
            let packet = from_client(family, (first(), 8, "A"), b"hello");
            let (tcp, payload) = read(&rig.send(0, 0, &packet));
            let expected = [header(family), b"hello".to_vec()].concat();
            assert_eq!((tcp.sequence_number, payload), (first(), expected), "{family:?} {beyond}");
            rig.assert_accounted();
        }
    }
}

/// Our own RSTs carry the numbers that each end expects.
#[test]
fn both_ends_are_reset_by_their_own_numbers() {
    for (family, inner) in pairs() {
        let vip = vip(family, inner).with(|policy| policy.on_down = FlowAction::Reset);
        let mut rig = Rig::new(1, 1, vec![vip]);
        let peer = open(&mut rig, family);
        rig.send(0, 0, &peer.says((7, first(), "SA"), &[]));
        rig.send(0, 0, &from_client(family, (first(), 8, "A"), b"hello"));
        let end = first().wrapping_add(5);
        let theirs = end.wrapping_add(len(family));
        rig.send(0, 0, &peer.says((8, theirs, "A"), &[]));
        rig.change(|specs| specs[0].backends[0].up = false);
        for packet in
            [from_client(family, (end, 8, "A"), b"more"), peer.says((8, theirs, "A"), &[])]
        {
            let sent = rig.send(0, 0, &packet);
            assert_eq!(sent.len(), 2, "{family:?} {inner:?}");
            for one in sent {
                let to_client = one.destination_mac() == CLIENT_MAC;
                let (tcp, _) = read(&[one]);
                assert!(tcp.rst);
                let expected = if to_client { 8 } else { theirs };
                assert_eq!(tcp.sequence_number, expected, "{family:?} {inner:?}");
                if tcp.ack {
                    let expected = if to_client { end } else { 8 };
                    assert_eq!(tcp.acknowledgment_number, expected);
                }
            }
        }
        rig.assert_accounted();
    }
}

/// The error for a segment that would be too long with the header has the MTU that leaves room for
/// it.
#[test]
fn a_first_segment_has_room_for_the_header() {
    for (family, inner) in pairs() {
        let mut vip = vip(family, inner);
        vip.backends[0].mtu = 1000;
        let mut rig = Rig::new(1, 1, vec![vip]);
        open(&mut rig, family);
        let headers = if inner == Family::V4 { 40 } else { 60 };
        let room = 1000 - headers - header(family).len();
        let data = vec![7; room];
        let (_, payload) = read(&rig.send(0, 0, &from_client(family, (first(), 8, "A"), &data)));
        assert_eq!(payload.len(), 1000 - headers);
        let mut packet = from_client(family, (first(), 8, "A"), &vec![7; room + 1]);
        if family == Family::V4 {
            // Don't fragment; the header's checksum is not verified.
            packet[20] |= 0x40;
        }
        let sent = rig.send(0, 0, &packet);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].destination_mac(), CLIENT_MAC, "{family:?} {inner:?}: too big");
        assert_eq!(rig.stats(0).transmitted.get(), 2);
        rig.assert_accounted();
    }
}

/// Next event: a segment of the client (from, bytes) or an acknowledgment, each lost or not.
#[derive(Debug, Clone)]
enum Step {
    Segment { from: usize, bytes: usize, lost: bool },
    Acknowledge { lost: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let segment = (0..200_usize, 0..60_usize, any::<bool>())
        .prop_map(|(from, bytes, lost)| Step::Segment { from, bytes, lost });
    prop_oneof![3 => segment, 2 => any::<bool>().prop_map(|lost| Step::Acknowledge { lost })]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    /// The backend gets the header and then the client's bytes, each at its number; the client gets
    /// acknowledgments of exactly the bytes that the backend has.
    #[test]
    fn any_order_of_loss_and_repetition_gives_one_stream(
        steps in proptest::collection::vec(step(), 1..60),
        v6: bool,
        worker in 0..2_usize,
    ) {
        let family = FAMILIES[usize::from(v6)];
        let mut rig = Rig::new(2, 1, vec![vip(family, family)]);
        let peer = open(&mut rig, family);
        peer.accepts(&mut rig);
        let data: Vec<u8> = (0..=255).cycle().take(300).map(|byte: u8| byte ^ 0x5a).collect();
        let mut stream = header(family);
        stream.extend(&data);
        let mut received = vec![false; stream.len()];
        // Bytes that are acknowledged to the client.
        let mut told = 0;
        for step in steps {
            match step {
                Step::Segment { from, bytes, lost } => {
                    // A client neither sends acknowledged data nor data far ahead of it.
                    let from = told + from % (data.len() - told).max(1);
                    let part = data.get(from..).unwrap_or_default();
                    let part = &part[..bytes.min(part.len())];
                    let sequence = first().wrapping_add(u32::try_from(from).unwrap());
                    let sent = rig.send(worker, 0, &from_client(family, (sequence, 8, "A"), part));
                    let (tcp, payload) = read(&sent);
                    if lost {
                        continue;
                    }
                    let at = usize::try_from(tcp.sequence_number.wrapping_sub(first())).unwrap();
                    prop_assert_eq!(&stream[at..at + payload.len()], &payload[..]);
                    received[at..at + payload.len()].fill(true);
                }
                Step::Acknowledge { lost } => {
                    let whole = received.iter().take_while(|here| **here).count();
                    let number = first().wrapping_add(u32::try_from(whole).unwrap());
                    if lost {
                        continue;
                    }
                    let sent = rig.send(1 - worker, 0, &peer.says((8, number, "A"), &[]));
                    let (tcp, _) = read(&sent);
                    let now = tcp.acknowledgment_number.wrapping_sub(first());
                    let expected = whole.saturating_sub(header(family).len());
                    prop_assert_eq!(usize::try_from(now).unwrap(), expected);
                    told = told.max(expected);
                }
            }
        }
    }
}
