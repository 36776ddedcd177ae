//! VIPs with `syn_proxy`: two handshakes, and the numbers of one connection between them.

use std::net::IpAddr;

use etherparse::{TcpHeader, TcpOptionElement};
use holdfast::forwarding::{FlowAction, Service, VipSpec};
use holdfast::net::Forward;
use holdfast::stats::{Drop, LocalReply};

use super::icmp::{Message, icmp, router, too_big};
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, backend_mac, nic_mac, segment, spec, tagged};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PORT: u16 = 40_000;
/// Makes the stream's numbers wrap.
const ISN: u32 = u32::MAX - 2;
/// The backend's initial sequence number.
const THEIRS: u32 = 0x8000_0001;
/// The client's timestamp in its SYN, and in its ACK; the backend's.
const TIMES: [u32; 3] = [1000, 1001, u32::MAX - 5];

use TcpOptionElement::{
    MaximumSegmentSize as Mss, SelectiveAcknowledgement as Sack,
    SelectiveAcknowledgementPermitted as SackPermitted, Timestamp, WindowScale,
};

/// A mode, the families of client and backend, and whether backends get a PROXY header.
#[derive(Debug, Clone, Copy)]
struct Case {
    forward: Forward,
    family: Family,
    inner: Family,
    proxy: bool,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for family in FAMILIES {
            all.push(Self { forward: Forward::Nat, family, inner: family, proxy: false });
            for inner in FAMILIES {
                let full = |proxy| Self { forward: Forward::FullNat, family, inner, proxy };
                all.extend([false, true].map(full));
            }
        }
        all
    }

    fn vip(self, backends: u16) -> VipSpec {
        let Self { forward, family, inner, proxy } = self;
        let mut vip = spec(0, forward, family, 1, backends).with(|policy| {
            policy.syn_proxy = true;
            policy.proxy = proxy;
            policy.reject_no_backend = true;
        });
        for (index, backend) in (0..).zip(&mut vip.backends) {
            backend.address = inner.backend(index);
        }
        vip
    }
}

/// Numbers and flags of a segment.
type Said<'s> = (u32, u32, &'s str);

fn flags(tcp: &TcpHeader) -> String {
    let all = [('S', tcp.syn), ('A', tcp.ack), ('F', tcp.fin), ('R', tcp.rst)];
    all.into_iter().filter(|(_, set)| *set).map(|(letter, _)| letter).collect()
}

fn said(sent: &Sent) -> (u32, u32, String) {
    let (tcp, ..) = sent.segment();
    (tcp.sequence_number, tcp.acknowledgment_number, flags(&tcp))
}

/// A client, and what it knows of its connection.
struct Client {
    case: Case,
    port: u16,
    worker: usize,
    options: Vec<TcpOptionElement>,
}

impl Client {
    fn new(case: Case) -> Self {
        let options = vec![Mss(1460), SackPermitted, Timestamp(TIMES[0], 0), WindowScale(9)];
        Self { case, port: PORT, worker: 0, options }
    }

    fn times(&self, echo: u32) -> Vec<TcpOptionElement> {
        let uses = self.options.iter().any(|option| matches!(option, Timestamp(..)));
        if uses { vec![Timestamp(TIMES[1], echo)] } else { Vec::new() }
    }

    fn packet(&self, said: Said<'_>, options: &[TcpOptionElement], payload: &[u8]) -> Vec<u8> {
        let Case { family, .. } = self.case;
        let ends = ((family.client(), self.port), (family.vip(), 80));
        segment((CLIENT_MAC, nic_mac(0)), ends.0, ends.1, said, options, payload)
    }

    fn says(
        &self,
        rig: &mut Rig,
        said: Said<'_>,
        options: &[TcpOptionElement],
        payload: &[u8],
    ) -> Vec<Sent> {
        rig.send(self.worker, 0, &self.packet(said, options, payload))
    }

    /// Sends the SYN; returns cookie and timestamp of the answer.
    fn knocks(&self, rig: &mut Rig) -> (u32, u32) {
        let sent = self.says(rig, (ISN, 0, "S"), &self.options, b"early");
        let [answer] = &sent[..] else { unreachable!("{sent:?}") };
        assert_eq!((answer.destination_mac(), answer.source_mac()), (CLIENT_MAC, nic_mac(0)));
        let (tcp, options, payload) = answer.segment();
        let time = options.iter().find_map(|option| match option {
            Timestamp(value, echo) => {
                assert_eq!(*echo, TIMES[0]);
                Some(*value)
            }
            _ => None,
        });
        assert_eq!(flags(&tcp), "SA");
        assert_eq!((tcp.window_size, payload.len()), (0, 0), "the client must wait");
        assert_eq!(tcp.acknowledgment_number, ISN.wrapping_add(1), "data of a SYN come again");
        assert_eq!(time.is_some(), self.options.contains(&Timestamp(TIMES[0], 0)));
        assert_eq!(options.contains(&SackPermitted), self.options.contains(&SackPermitted));
        assert_eq!(options.contains(&WindowScale(7)), self.options.contains(&WindowScale(9)));
        (tcp.sequence_number, time.unwrap_or_default())
    }

    /// Proves itself; returns the SYN for the backend.
    fn proves(&self, rig: &mut Rig, (cookie, time): (u32, u32)) -> Sent {
        let numbers = (ISN.wrapping_add(1), cookie.wrapping_add(1), "A");
        let sent = self.says(rig, numbers, &self.times(time), &[]);
        let [syn] = &sent[..] else { unreachable!("{sent:?}") };
        let (tcp, options, payload) = syn.segment();
        assert_eq!(said(syn), (ISN, 0, "S".to_owned()));
        assert_eq!(payload, b"");
        for option in &self.options {
            match option {
                Timestamp(..) => assert!(options.contains(&Timestamp(TIMES[1], 0))),
                Mss(_) => {
                    let grown = self.case.family == Family::V4 && self.case.inner == Family::V6;
                    assert!(options.contains(&Mss(if grown { 1440 } else { 1460 })), "{options:?}");
                }
                option => assert!(options.contains(option), "{option:?} in {options:?}"),
            }
        }
        let scaled = self.options.contains(&WindowScale(9));
        assert_eq!(tcp.window_size, if scaled { u16::MAX } else { 500 }, "500, not scaled");
        syn.clone()
    }
}

/// A backend, from the SYN that it received.
struct Peer {
    ends: ((IpAddr, u16), (IpAddr, u16)),
    mac: [u8; 6],
    worker: usize,
}

impl Peer {
    fn of(syn: &Sent, worker: usize) -> Self {
        let (address, port, _) = syn.destination();
        Self { ends: ((address, port), syn.source()), mac: syn.destination_mac(), worker }
    }

    fn says(
        &self,
        rig: &mut Rig,
        said: Said<'_>,
        options: &[TcpOptionElement],
        payload: &[u8],
    ) -> Vec<Sent> {
        let macs = (self.mac, nic_mac(0));
        let packet = segment(macs, self.ends.0, self.ends.1, said, options, payload);
        rig.send(self.worker, 0, &packet)
    }

    /// The cookie that a client's packet acknowledges.
    fn cookie_of(packet: &[u8], family: Family) -> u32 {
        let at = if family == Family::V4 { 34 } else { 54 };
        u32::from_be_bytes(*packet[at + 8..].first_chunk().unwrap()).wrapping_sub(1)
    }

    /// Answers the SYN; returns the packets for the backend and for the client.
    fn answers(&self, rig: &mut Rig, options: &[TcpOptionElement]) -> (Sent, Sent) {
        let mut sent = self.says(rig, (THEIRS, ISN.wrapping_add(1), "SA"), options, &[]);
        assert_eq!(sent.len(), 2, "{sent:?}");
        sent.sort_by_key(|it| it.destination_mac() == CLIENT_MAC);
        let to_client = sent.pop().unwrap();
        (sent.pop().unwrap(), to_client)
    }
}

const THEIR_OPTIONS: [TcpOptionElement; 4] =
    [Mss(1400), SackPermitted, Timestamp(TIMES[2], TIMES[1]), WindowScale(5)];

/// A whole connection, in each mode, with the backend's packets at the client's worker and at
/// another one.
#[test]
fn two_handshakes_make_one_connection() {
    for case in Case::all() {
        for worker in [0, 1] {
            let mut rig = Rig::new(2, 1, vec![case.vip(3)]);
            let client = Client::new(case);
            let (cookie, time) = client.knocks(&mut rig);
            assert_eq!(rig.stats(0).flows_active.get(), 0, "a SYN costs no state");
            rig.advance(3);
            let syn = client.proves(&mut rig, (cookie, time));
            assert_eq!(rig.stats(0).flows_active.get(), 1);
            rig.advance(2);
            let backend = Peer::of(&syn, worker);
            let (ack, opens) = backend.answers(&mut rig, &THEIR_OPTIONS);
            let next = ISN.wrapping_add(1);
            let (tcp, options, header) = ack.segment();
            assert_eq!(said(&ack), (next, THEIRS.wrapping_add(1), "A".to_owned()), "{case:?}");
            assert_eq!(options, [Timestamp(TIMES[1], TIMES[2])]);
            assert_eq!(tcp.window_size, 500, "as the client wrote it");
            assert_eq!(header.is_empty(), !case.proxy);
            let (tcp, options, payload) = opens.segment();
            assert_eq!(said(&opens), (cookie.wrapping_add(1), next, "A".to_owned()));
            // 500 bytes, in steps of 128.
            assert_eq!((tcp.window_size, payload.len()), (3, 0));
            let [Timestamp(now, echo)] = options[..] else { unreachable!("{options:?}") };
            assert_eq!((now, echo), (time.wrapping_add(50), TIMES[1]), "50 ms later");

            // Data both ways; the client acknowledges part of what the backend sent out of order.
            let block = (cookie.wrapping_add(9), cookie.wrapping_add(12));
            let more = [Sack(block, [None; 3]), Timestamp(TIMES[1] + 1, now)];
            let numbers = (next, cookie.wrapping_add(1), "A");
            let sent = client.says(&mut rig, numbers, &more, b"GET");
            let (tcp, options, payload) = sent[0].segment();
            assert_eq!(tcp.acknowledgment_number, THEIRS.wrapping_add(1), "{case:?}");
            let block = (THEIRS.wrapping_add(9), THEIRS.wrapping_add(12));
            assert_eq!(options, [Sack(block, [None; 3]), Timestamp(TIMES[1] + 1, TIMES[2])]);
            assert!(payload.ends_with(b"GET"));
            assert_eq!(
                payload.len() > 3,
                case.proxy,
                "the header comes again until it is acknowledged"
            );
            assert_eq!(tcp.window_size, 500);
            let shifted = u32::try_from(payload.len()).unwrap();
            let heard = next.wrapping_add(shifted);
            let times = [Timestamp(TIMES[2].wrapping_add(7), TIMES[1] + 1)];
            let sent =
                backend.says(&mut rig, (THEIRS.wrapping_add(1), heard, "A"), &times, b"page");
            let (tcp, options, payload) = sent[0].segment();
            assert_eq!(said(&sent[0]).0, cookie.wrapping_add(1));
            assert_eq!(tcp.acknowledgment_number, next.wrapping_add(3), "{case:?}");
            assert_eq!((payload, tcp.window_size), (b"page".to_vec(), 500 * 32 / 128));
            assert_eq!(options, [Timestamp(now.wrapping_add(7), TIMES[1] + 1)]);

            // Both ends close.
            let fin = backend.says(&mut rig, (THEIRS.wrapping_add(5), heard, "FA"), &[], &[]);
            assert_eq!(said(&fin[0]).0, cookie.wrapping_add(5));
            let numbers = (next.wrapping_add(3), cookie.wrapping_add(6), "FA");
            let fin = client.says(&mut rig, numbers, &[], &[]);
            assert_eq!(said(&fin[0]).1, THEIRS.wrapping_add(6));
            rig.advance(700);
            assert_eq!(rig.stats(0).flows_active.get(), 0);
            assert_eq!(rig.stats(0).flows_closed.get(), 1);
            rig.assert_accounted();
        }
    }
}

/// Options that one end lacks.
#[test]
fn what_an_end_lacks_the_other_is_not_told() {
    let case = Case { forward: Forward::Nat, family: Family::V4, inner: Family::V4, proxy: false };
    for ours in
        [vec![], vec![Mss(1460)], vec![Mss(1460), WindowScale(9)], vec![Timestamp(TIMES[0], 0)]]
    {
        for theirs in
            [&THEIR_OPTIONS[..0], &THEIR_OPTIONS[..1], &THEIR_OPTIONS[..3], &THEIR_OPTIONS]
        {
            let mut rig = Rig::new(1, 1, vec![case.vip(1)]);
            let client = Client { options: ours.clone(), ..Client::new(case) };
            let cookie = client.knocks(&mut rig);
            let numbers = (ISN.wrapping_add(1), cookie.0.wrapping_add(1), "A");
            let syn = client.says(&mut rig, numbers, &client.times(cookie.1), &[]).remove(0);
            let backend = Peer::of(&syn, 0);
            let (ack, opens) = backend.answers(&mut rig, theirs);
            let (scales, accepts) =
                (ours.contains(&WindowScale(9)), theirs.contains(&WindowScale(5)));
            let (tcp, options, _) = ack.segment();
            let both = ours.contains(&Timestamp(TIMES[0], 0)) && theirs.contains(&THEIR_OPTIONS[2]);
            assert_eq!(options.is_empty(), !both, "{ours:?} {theirs:?}");
            assert_eq!(tcp.window_size, if scales && !accepts { u16::MAX } else { 500 });
            assert_eq!(opens.segment().0.window_size, if scales { 3 } else { 500 });
            let numbers = (ISN.wrapping_add(1), cookie.0.wrapping_add(1), "A");
            let sent = client.says(&mut rig, numbers, &[], b"GET");
            let window = sent[0].segment().0.window_size;
            assert_eq!(window, if scales && !accepts { u16::MAX } else { 500 });
            let numbers = (THEIRS.wrapping_add(1), ISN.wrapping_add(4), "A");
            let window = backend.says(&mut rig, numbers, &[], b"page")[0].segment().0.window_size;
            let expected = match (scales, accepts) {
                (true, true) => 500 * 32 / 128,
                (true, false) => 500 / 128,
                // The SYN for the backend offered no scale.
                (false, _) => 500,
            };
            assert_eq!(window, expected, "{ours:?} {theirs:?}");
        }
    }
}

/// Nothing that a forger sends reaches a backend or takes memory.
#[test]
fn without_a_proof_no_backend_sees_a_packet() {
    for case in Case::all() {
        let mut rig = Rig::new(1, 1, vec![case.vip(2)]);
        let client = Client::new(case);
        let (cookie, _) = client.knocks(&mut rig);
        let next = ISN.wrapping_add(1);
        for (numbers, answered) in [
            ((next, cookie, "A"), true),
            ((next.wrapping_add(5), cookie.wrapping_add(1), "A"), true),
            ((next, cookie ^ 0x8000, "A"), true),
            ((next, cookie.wrapping_add(1), "R"), false),
            ((next, cookie.wrapping_add(1), "RA"), false),
            ((next, cookie.wrapping_add(1), "SA"), true),
            ((next, 0, "F"), false),
        ] {
            let sent = client.says(&mut rig, numbers, &[], b"x");
            assert_eq!(sent.len(), usize::from(answered), "{numbers:?}: {sent:?}");
            if let [refusal] = &sent[..] {
                assert_eq!(refusal.destination_mac(), CLIENT_MAC);
                assert_eq!(said(refusal), (numbers.1, 0, "R".to_owned()));
            }
        }
        // From another port the cookie is worth nothing.
        let other = Client { port: PORT + 1, ..Client::new(case) };
        other.says(&mut rig, (next, cookie.wrapping_add(1), "A"), &[], &[]);
        // A damaged SYN, and a damaged proof, which is right a moment later.
        let mut damaged = client.packet((ISN, 0, "S"), &client.options, b"early");
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(rig.send(0, 0, &damaged), []);
        let proof = client.packet((next, cookie.wrapping_add(1), "A"), &client.times(0), b"early");
        let mut damaged = proof.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(rig.send(0, 0, &damaged), []);
        assert_eq!(rig.drops(0, Drop::BadTcpChecksum), 2);
        assert_eq!(rig.stats(0).flows_active.get(), 0);
        assert_eq!(rig.stats(0).transmitted.get(), 0);
        assert_eq!(rig.send(0, 0, &proof).len(), 1);
        assert_eq!(rig.stats(0).transmitted.get(), 1);
        rig.assert_accounted();
    }
}

/// An old cookie is refused, and refusals are limited.
#[test]
fn a_flood_of_acks_is_not_answered_one_by_one() {
    let case = Case { forward: Forward::Nat, family: Family::V4, inner: Family::V4, proxy: false };
    let mut rig = Rig::new(1, 1, vec![case.vip(2)]);
    let client = Client::new(case);
    let (cookie, _) = client.knocks(&mut rig);
    rig.skip(2 << 13);
    let numbers = (ISN.wrapping_add(1), cookie.wrapping_add(1), "A");
    assert_eq!(
        said(&client.says(&mut rig, numbers, &[], &[])[0]).2,
        "R",
        "nearly three minutes later"
    );
    for number in 0..2000 {
        client.says(&mut rig, (number, number, "A"), &[], &[]);
    }
    let refused = rig.stats(0).local_reply_counter(LocalReply::Rejected).get();
    assert!((2..200).contains(&refused), "{refused}");
    assert_eq!(refused + rig.drops(0, Drop::NoCookie), 2001);
    rig.assert_accounted();
}

/// The backend's answer is lost, ours to it is lost, or it comes late.
#[test]
fn lost_packets_of_the_second_handshake_come_again() {
    for case in Case::all() {
        let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
        let client = Client::new(case);
        let proof = client.knocks(&mut rig);
        let syn = client.proves(&mut rig, proof);
        // A client that sends all the same waits; at first the SYN is not repeated.
        let numbers = (ISN.wrapping_add(1), proof.0.wrapping_add(1), "A");
        assert_eq!(client.says(&mut rig, numbers, &client.times(proof.1), b"GET"), []);
        assert_eq!(rig.drops(0, Drop::SynProxyWaits), 1);
        rig.advance(30);
        let again = client.says(&mut rig, numbers, &client.times(proof.1), b"GET");
        assert_eq!(said(&again[0]), (ISN, 0, "S".to_owned()));
        // The client is silent: repetitions by the clock.
        let mut times = Vec::new();
        for tick in 31..800 {
            rig.advance(1);
            for sent in rig.collect(0, 0) {
                let of = |sent: &Sent| (sent.source(), sent.destination(), sent.segment().1);
                let (ours, theirs) = (of(&sent), of(&syn));
                assert_eq!(
                    (ours.0, ours.1.0, ours.1.1, ours.2),
                    (theirs.0, theirs.1.0, theirs.1.1, theirs.2)
                );
                assert_eq!(said(&sent), (ISN, 0, "S".to_owned()));
                times.push(tick);
            }
            if tick == 90 {
                // It is still there.
                client.says(&mut rig, numbers, &client.times(proof.1), &[]);
            }
        }
        // The time-out of an embryonic flow is 1 s here: it ends between two repetitions.
        assert_eq!(times, [100], "{case:?}");
        assert_eq!(rig.stats(0).handshakes_sent.get(), 1);
        // The pin is gone; the cookie is still right.
        let syn = client.proves(&mut rig, proof);
        let backend = Peer::of(&syn, 1);
        let (first, _) = backend.answers(&mut rig, &THEIR_OPTIONS);
        let (second, _) = backend.answers(&mut rig, &THEIR_OPTIONS);
        assert_eq!(first.segment().0, second.segment().0, "the backend has not heard our ACK");
        rig.advance(1);
        rig.assert_accounted();
    }
}

/// A backend refuses, or has an old connection.
#[test]
fn a_refusal_reaches_the_client_and_an_old_connection_is_reset() {
    for case in Case::all() {
        let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
        let client = Client::new(case);
        let proof = client.knocks(&mut rig);
        let backend = Peer::of(&client.proves(&mut rig, proof), 1);
        let next = ISN.wrapping_add(1);
        // A challenge ACK (RFC 5961 4).
        let sent = backend.says(&mut rig, (77, 99, "A"), &[], &[]);
        let [reset] = &sent[..] else { unreachable!("{sent:?}") };
        assert_eq!(reset.destination_mac(), backend_mac(0));
        assert_eq!(said(reset), (99, 0, "R".to_owned()));
        let sent = backend.says(&mut rig, (0, next, "RA"), &[], &[]);
        let [refusal] = &sent[..] else { unreachable!("{sent:?}") };
        assert_eq!(refusal.destination_mac(), CLIENT_MAC);
        assert_eq!(said(refusal), (proof.0.wrapping_add(1), next, "AR".to_owned()), "{case:?}");
        // The client tries again from the same port.
        let again = client.knocks(&mut rig);
        client.proves(&mut rig, again);
        rig.assert_accounted();
    }
}

/// A client's RST ends a handshake with the backend.
#[test]
fn a_client_that_gives_up_takes_its_backend_along() {
    let case = Case { forward: Forward::Nat, family: Family::V6, inner: Family::V6, proxy: false };
    let mut rig = Rig::new(1, 1, vec![case.vip(1)]);
    let client = Client::new(case);
    let proof = client.knocks(&mut rig);
    client.proves(&mut rig, proof);
    let sent = client.says(&mut rig, (ISN.wrapping_add(1), 0, "R"), &[], &[]);
    assert_eq!(sent[0].destination_mac(), backend_mac(0));
    assert_eq!(said(&sent[0]).0, ISN.wrapping_add(1));
    rig.advance(250);
    assert_eq!(rig.stats(0).flows_active.get(), 0);
    assert_eq!(rig.collect(0, 0), [], "no SYN is repeated");
}

/// No backend, at the SYN and between the SYN and its proof.
#[test]
fn without_a_backend_the_client_is_refused() {
    let case = Case { forward: Forward::Nat, family: Family::V4, inner: Family::V4, proxy: false };
    let mut rig = Rig::new(1, 1, vec![case.vip(1)]);
    let client = Client::new(case);
    let proof = client.knocks(&mut rig);
    rig.change(|specs| specs[0].backends[0].service = Service::Draining);
    let numbers = (ISN.wrapping_add(1), proof.0.wrapping_add(1), "A");
    let sent = client.says(&mut rig, numbers, &client.times(proof.1), &[]);
    assert_eq!(said(&sent[0]), (proof.0.wrapping_add(1), 0, "R".to_owned()));
    let sent = client.says(&mut rig, (ISN, 0, "S"), &client.options, &[]);
    assert_eq!(said(&sent[0]), (0, ISN.wrapping_add(1), "AR".to_owned()));
    assert_eq!(rig.stats(0).flows_active.get(), 0);
    rig.assert_accounted();
}

/// The port is used again while the old connection closes, with the SYN at another worker.
#[test]
fn another_connection_begins_by_its_proof_at_any_worker() {
    let case = Case { forward: Forward::Nat, family: Family::V4, inner: Family::V4, proxy: false };
    let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
    let client = Client::new(case);
    let proof = client.knocks(&mut rig);
    let backend = Peer::of(&client.proves(&mut rig, proof), 0);
    backend.answers(&mut rig, &THEIR_OPTIONS);
    let next = ISN.wrapping_add(1);
    client.says(&mut rig, (next, proof.0.wrapping_add(1), "FA"), &[], &[]);
    backend.says(&mut rig, (THEIRS.wrapping_add(1), next.wrapping_add(1), "FA"), &[], &[]);
    // A late repetition of the first proof begins nothing.
    let late = client.says(&mut rig, (next, proof.0.wrapping_add(1), "A"), &client.times(0), &[]);
    assert_eq!(said(&late[0]).1, THEIRS.wrapping_add(1), "it belongs to the old connection");
    rig.skip(50);
    let elsewhere = Client { worker: 1, ..Client::new(case) };
    let said_again = |number: u32, rig: &mut Rig| {
        let sent = elsewhere.says(rig, (number, 0, "S"), &elsewhere.options, &[]);
        let (cookie, _, flags) = said(&sent[0]);
        assert_eq!(flags, "SA");
        let numbers = (number.wrapping_add(1), cookie.wrapping_add(1), "A");
        elsewhere.says(rig, numbers, &elsewhere.times(0), &[])
    };
    let sent = said_again(7_000_000, &mut rig);
    assert_eq!(said(&sent[0]), (7_000_000, 0, "S".to_owned()));
    rig.assert_accounted();
}

/// `syn_proxy` is switched off while connections last, and on again.
#[test]
fn connections_outlive_the_option() {
    for case in Case::all() {
        let mut rig = Rig::new(1, 1, vec![case.vip(1)]);
        let client = Client::new(case);
        let (cookie, time) = client.knocks(&mut rig);
        let backend = Peer::of(&client.proves(&mut rig, (cookie, time)), 0);
        backend.answers(&mut rig, &[]);
        rig.change(|specs| specs[0].policy.syn_proxy = false);
        let next = ISN.wrapping_add(1);
        let sent = client.says(&mut rig, (next, cookie.wrapping_add(1), "A"), &[], b"GET");
        assert_eq!(said(&sent[0]).1, THEIRS.wrapping_add(1), "{case:?}");
        // A new connection is opened without a cookie, and has no splice.
        let plain = Client { port: PORT + 1, ..Client::new(case) };
        let syn = plain.says(&mut rig, (ISN, 0, "S"), &plain.options, &[]).remove(0);
        let other = Peer::of(&syn, 0);
        let sent = other.says(&mut rig, (5, next, "SA"), &THEIR_OPTIONS, &[]);
        assert_eq!(said(&sent[0]), (5, next, "SA".to_owned()));
        rig.change(|specs| specs[0].policy.syn_proxy = true);
        let sent = plain.says(&mut rig, (next, 6, "A"), &[], &[]);
        assert_eq!(said(&sent[0]).1, 6, "it goes on as it began");
        rig.assert_accounted();
    }
}

/// Clients behind a VLAN tag get their answer through it, and the pin knows the way back.
#[test]
fn tagged_clients_are_answered_with_their_tag() {
    let case = Case { forward: Forward::Nat, family: Family::V4, inner: Family::V4, proxy: false };
    let mut rig = Rig::new(1, 1, vec![case.vip(1)]);
    let client = Client::new(case);
    let syn = tagged(client.packet((ISN, 0, "S"), &client.options, &[]), Some(7));
    let answer = rig.send(0, 0, &syn).remove(0);
    assert_eq!(answer.vlan(), Some(7));
    let cookie = said(&answer).0;
    let proof = client.packet((ISN.wrapping_add(1), cookie.wrapping_add(1), "A"), &[], &[]);
    let syn = rig.send(0, 0, &tagged(proof, Some(7))).remove(0);
    assert_eq!(syn.vlan(), None, "the backend's network has none");
    let backend = Peer::of(&syn, 0);
    let (_, opens) = backend.answers(&mut rig, &[]);
    assert_eq!((opens.vlan(), opens.destination_mac()), (Some(7), CLIENT_MAC));
    rig.assert_accounted();
}

/// A connection that policy ends: each end gets a RST with the number that it expects.
#[test]
fn both_ends_of_a_terminated_connection_are_reset_with_their_own_numbers() {
    for case in Case::all() {
        for worker in [0, 1] {
            let mut rig = Rig::new(2, 1, vec![case.vip(2)]);
            let client = Client::new(case);
            let proof = client.knocks(&mut rig);
            let backend = Peer::of(&client.proves(&mut rig, proof), worker);
            backend.answers(&mut rig, &[]);
            let next = ISN.wrapping_add(1);
            // The header, if there is one, is acknowledged: its length is part of all later numbers.
            let header = match (case.proxy, case.family) {
                (false, _) => 0,
                (true, Family::V4) => 28,
                (true, Family::V6) => 52,
            };
            let heard = next.wrapping_add(header);
            backend.says(&mut rig, (THEIRS.wrapping_add(1), heard, "A"), &[], &[]);
            rig.change(|specs| {
                for backend in &mut specs[0].backends {
                    backend.flow_action = FlowAction::Reset;
                }
            });
            let numbers = (next, proof.0.wrapping_add(9), "A");
            let both = |sent: Vec<Sent>| {
                assert_eq!(sent.len(), 2, "{case:?}: {sent:?}");
                let (ours, theirs): (Vec<_>, Vec<_>) =
                    sent.into_iter().partition(|it| it.destination_mac() == CLIENT_MAC);
                (said(&ours[0]), said(&theirs[0]))
            };
            let (ours, theirs) = both(client.says(&mut rig, numbers, &[], b"x"));
            assert_eq!(ours, (proof.0.wrapping_add(9), 0, "R".to_owned()), "{case:?}");
            assert_eq!(theirs, (heard, THEIRS.wrapping_add(9), "AR".to_owned()), "{case:?}");
            let numbers = (THEIRS.wrapping_add(5), heard.wrapping_add(3), "A");
            let (ours, theirs) = both(backend.says(&mut rig, numbers, &[], b"y"));
            let expected = (proof.0.wrapping_add(5), next.wrapping_add(3), "AR".to_owned());
            assert_eq!(ours, expected, "{case:?}");
            assert_eq!(theirs, (heard.wrapping_add(3), 0, "R".to_owned()), "{case:?}");
        }
    }
}

/// An ICMP error quotes the numbers of its receiver, which ignores it otherwise.
#[test]
fn errors_quote_the_numbers_of_their_receiver() {
    for case in Case::all() {
        for worker in [0, 1] {
            let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
            let client = Client::new(case);
            let proof = client.knocks(&mut rig);
            let backend = Peer::of(&client.proves(&mut rig, proof), 0);
            backend.answers(&mut rig, &[]);
            let Case { family, inner, .. } = case;
            let number = proof.0.wrapping_add(100);
            let ends = ((family.vip(), 80), (family.client(), PORT));
            let quoted = segment(([2; 6], [2; 6]), ends.0, ends.1, (number, 1, "A"), &[], b"data");
            let error = icmp(router(family), family.vip(), too_big(family), 1400, &quoted[14..]);
            let sent = rig.send(worker, 0, &error).remove(0);
            assert_eq!(sent.destination_mac(), backend_mac(0), "{case:?}");
            let message = Message::of(&sent);
            assert_eq!(message.kind, too_big(inner));
            let ip = if inner == Family::V4 { 20 } else { 40 };
            let sequence = u32::from_be_bytes(*message.body[ip + 4..].first_chunk().unwrap());
            assert_eq!(sequence, THEIRS.wrapping_add(100), "{case:?}");
            rig.assert_accounted();
        }
    }
}

/// Opens a connection; returns its backend, with packets at `worker`, and the cookie.
fn open(rig: &mut Rig, client: &Client, worker: usize) -> (Peer, u32) {
    let proof = client.knocks(rig);
    let backend = Peer::of(&client.proves(rig, proof), worker);
    backend.answers(rig, &[]);
    (backend, proof.0)
}

/// Sends a SYN with this number, which must be met with a cookie; returns the packet that proves it.
fn greeted(rig: &mut Rig, client: &Client, number: u32) -> Vec<u8> {
    let sent = client.says(rig, (number, 0, "S"), &client.options, &[]);
    let (cookie, acknowledged, flags) = said(&sent[0]);
    assert_eq!((acknowledged, flags.as_str()), (number.wrapping_add(1), "SA"));
    let numbers = (number.wrapping_add(1), cookie.wrapping_add(1), "A");
    client.packet(numbers, &client.times(0), &[])
}

/// The old pin is at one worker, the new one at another, and the backend's packets come to the first.
#[test]
fn a_new_connection_opens_beside_an_old_pin_at_another_worker() {
    for case in Case::all() {
        let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
        let client = Client::new(case);
        let (backend, cookie) = open(&mut rig, &client, 0);
        let next = ISN.wrapping_add(1);
        client.says(&mut rig, (next, cookie.wrapping_add(1), "FA"), &[], &[]);
        backend.says(&mut rig, (THEIRS.wrapping_add(1), next.wrapping_add(1), "FA"), &[], &[]);
        rig.advance(20);
        let elsewhere = Client { worker: 1, ..Client::new(case) };
        let proof = greeted(&mut rig, &elsewhere, 7_000_000);
        let syn = rig.send(1, 0, &proof).remove(0);
        assert_eq!(said(&syn), (7_000_000, 0, "S".to_owned()), "{case:?}");
        let again = Peer::of(&syn, 0);
        let mut sent = again.says(&mut rig, (77, 7_000_001, "SA"), &[], &[]);
        assert_eq!(sent.len(), 2, "{case:?}: {sent:?}");
        sent.retain(|it| it.destination_mac() == CLIENT_MAC);
        let cookie = Peer::cookie_of(&proof, case.family);
        assert_eq!(said(&sent[0]), (cookie.wrapping_add(1), 7_000_001, "A".to_owned()));
        rig.assert_accounted();
    }
}

/// The backend has lost an established connection, and takes the client's SYN for a new one.
#[test]
fn a_backend_that_has_lost_a_connection_lets_the_client_begin_again() {
    for case in Case::all() {
        let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
        let client = Client::new(case);
        let (backend, _) = open(&mut rig, &client, 1);
        let sent = client.says(&mut rig, (5_000, 0, "S"), &client.options, &[]);
        // The SYN of an established flow goes to the backend (RFC 5961 4).
        let (number, _, flags) = said(&sent[0]);
        assert_eq!(flags, "S", "{case:?}");
        let sent = backend.says(&mut rig, (99, number.wrapping_add(1), "SA"), &[], &[]);
        assert!(sent.iter().all(|it| it.destination_mac() == backend_mac(0)), "{case:?}: {sent:?}");
        rig.advance(1);
        greeted(&mut rig, &client, 5_000);
        rig.assert_accounted();
    }
}

/// A backend that fails before it has answered: the client's next packet moves to another one.
#[test]
fn a_client_whose_backend_fails_in_the_handshake_gets_another() {
    for case in Case::all() {
        let mut rig = Rig::new(1, 1, vec![case.vip(3)]);
        let client = Client::new(case);
        let proof = client.knocks(&mut rig);
        let dead = client.proves(&mut rig, proof).destination_mac();
        rig.change(|specs| specs[0].backends[usize::from(dead[5])].up = false);
        rig.advance(30);
        // A probe of the closed window (RFC 9293 3.8.6.1).
        let sent =
            client.says(&mut rig, (ISN, proof.0.wrapping_add(1), "A"), &client.times(proof.1), &[]);
        assert_eq!(said(&sent[0]), (ISN, 0, "S".to_owned()), "{case:?}");
        assert_ne!(sent[0].destination_mac(), dead);
        let backend = Peer::of(&sent[0], 0);
        backend.answers(&mut rig, &[]);
        rig.assert_accounted();
    }
}

/// What anyone can forge takes no established connection away.
#[test]
fn forged_packets_end_no_connection() {
    for case in Case::all() {
        for (forged, up) in [(&["R", "S"][..], true), (&["S"], false), (&["S"], true)] {
            let mut rig = Rig::new(1, 1, vec![case.vip(2)]);
            let client = Client::new(case);
            let (backend, cookie) = open(&mut rig, &client, 0);
            if !up {
                let down = usize::from(backend.mac[5]);
                rig.change(|specs| specs[0].backends[down].up = false);
            }
            for flags in forged {
                client.says(&mut rig, (77, 0, flags), &[], &[]);
            }
            let numbers = (ISN.wrapping_add(1), cookie.wrapping_add(1), "A");
            let sent = client.says(&mut rig, numbers, &[], b"GET");
            assert_eq!(said(&sent[0]).1, THEIRS.wrapping_add(1), "{case:?} {forged:?} {up}");
            assert_eq!(sent[0].destination_mac(), backend.mac);
            rig.assert_accounted();
        }
    }
}

/// The client's host begins again while its first connection waits for a slow backend.
#[test]
fn a_second_proof_takes_the_place_of_one_that_waits() {
    for case in Case::all() {
        let mut rig = Rig::new(1, 1, vec![case.vip(1)]);
        let client = Client::new(case);
        let first = client.knocks(&mut rig);
        client.proves(&mut rig, first);
        rig.advance(30);
        let proof = greeted(&mut rig, &client, 9_000);
        let syn = rig.send(0, 0, &proof).remove(0);
        assert_eq!(said(&syn), (9_000, 0, "S".to_owned()), "{case:?}");
        let backend = Peer::of(&syn, 0);
        let mut sent = backend.says(&mut rig, (77, 9_001, "SA"), &[], &[]);
        sent.retain(|it| it.destination_mac() == CLIENT_MAC);
        let cookie = Peer::cookie_of(&proof, case.family);
        assert_eq!(said(&sent[0]), (cookie.wrapping_add(1), 9_001, "A".to_owned()));
        assert_eq!(rig.stats(0).flows_active.get(), 1);
        rig.assert_accounted();
    }
}

/// A SYN at another worker finds the pin of its established connection.
#[test]
fn a_syn_finds_its_established_connection_at_any_worker() {
    for case in Case::all() {
        let mut rig = Rig::new(2, 1, vec![case.vip(1)]);
        let (backend, _) = open(&mut rig, &Client::new(case), 0);
        let elsewhere = Client { worker: 1, ..Client::new(case) };
        let sent = elsewhere.says(&mut rig, (5_000, 0, "S"), &elsewhere.options, &[]);
        assert_eq!(sent[0].destination_mac(), backend.mac, "{case:?}: it answers (RFC 5961 4)");
        rig.assert_accounted();
    }
}
