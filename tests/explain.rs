//! `explain` predicts the workers' decisions: each flow is explained first, then sent.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
#![allow(dead_code, reason = "the rig has more than these tests need")]

use std::net::SocketAddr;

use holdfast::forwarding::explain::{Explanation, Question, Segment};
use holdfast::forwarding::tunnel::TunnelSources;
use holdfast::forwarding::{
    Affinity, Ask, Local, SchedulerKind, Service, Splits, Tunnels, VipSpec,
};
use holdfast::net::{FleetKey, Forward, Protocol};

mod rig;

use rig::{Family, Rig, spec, tcp, tcp_of, udp};

const CASES: [(Forward, Family); 4] = [
    (Forward::Dsr, Family::V4),
    (Forward::Dsr, Family::V6),
    (Forward::Nat, Family::V4),
    (Forward::Nat, Family::V6),
];

fn question(family: Family, client_port: u16) -> Question {
    Question {
        client: SocketAddr::new(family.client(), client_port),
        destination: SocketAddr::new(family.vip(), 80),
        protocol: Protocol::Tcp,
        packet: Segment::Likely,
        payload: Vec::new(),
    }
}

fn ask(rig: &Rig, question: &Question) -> Explanation {
    rig.explainer().explain(question, &rig.table(), rig.now()).unwrap()
}

fn said(answer: &Explanation, stage: &str, text: &str) -> bool {
    let all = |step: &&holdfast::forwarding::explain::Step| {
        step.stage == stage && format!("{} {}", step.outcome, step.why).contains(text)
    };
    answer.steps.iter().any(|step| all(&step))
}

#[test]
fn the_explained_packet_is_sent() {
    for (forward, family) in CASES {
        let mut rig = Rig::new(2, 1, vec![spec(0, forward, family, 1, 5)]);
        for port in 1000..1200 {
            let new = ask(&rig, &question(family, port));
            assert!(said(&new, "conntrack", "no pin"), "{:?}", new.steps);
            assert!(said(&new, "scheduler", "slot"), "{:?}", new.steps);
            let sent = rig.send(0, 0, &tcp(family, port, 80, "S")).remove(0);
            assert_eq!(new.frame[..6], sent.bytes[..6], "the backend's MAC");
            assert_eq!(new.backend.unwrap().0, u16::from(sent.bytes[5]));
            // Addresses and ports, where NAT changes them.
            let addresses = if family == Family::V4 { 26..38 } else { 22..58 };
            assert_eq!(new.frame[addresses.clone()], sent.bytes[addresses]);
            let pinned = ask(&rig, &question(family, port));
            assert!(said(&pinned, "conntrack", "by rule scheduler"), "{:?}", pinned.steps);
            assert!(!said(&pinned, "scheduler", ""), "nothing is chosen: {:?}", pinned.steps);
            assert_eq!(pinned.backend, new.backend);
        }
        rig.assert_accounted();
    }
}

#[test]
fn asking_changes_nothing() {
    for (forward, family) in CASES {
        let mut rig = Rig::new(2, 1, vec![spec(0, forward, family, 1, 5)]);
        rig.send(0, 0, &tcp(family, 1000, 80, "S"));
        let counted = |rig: &Rig| {
            let stats = rig.stats(0);
            (stats.received.get(), stats.flows_new.get(), stats.flows_active.get())
        };
        let before = counted(&rig);
        for port in [1000, 1001, 1002] {
            for packet in [Segment::Likely, Segment::Syn, Segment::Midflow] {
                ask(&rig, &Question { packet, ..question(family, port) });
            }
        }
        assert_eq!(counted(&rig), before);
        // The embryonic flow of port 1000 ends 1 s after its SYN: nothing has refreshed it.
        rig.advance(99);
        ask(&rig, &question(family, 1000));
        rig.advance(2);
        let ended = ask(&rig, &question(family, 1000));
        assert!(
            said(&ended, "conntrack", "idle for too long")
                || said(&ended, "conntrack", "no worker")
        );
    }
}

#[test]
fn reasons_are_reported() {
    let family = Family::V4;
    let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, family, 1, 2)]);
    let first = ask(&rig, &question(family, 1000)).backend.unwrap();
    let chosen = usize::from(first.0);
    for (text, change) in [
        (
            "its health check fails",
            (|b| b.up = false) as fn(&mut holdfast::forwarding::BackendSpec),
        ),
        ("draining", |b| b.service = Service::Draining),
        ("deadline", |b| b.service = Service::Out),
        ("next hop is not known", |b| b.next_hop = None),
        ("starts slowly", |b| b.share = 1),
        ("leaves them unanswered", |b| b.share = 0),
    ] {
        let whole = rig.specs();
        rig.change(|specs| change(&mut specs[0].backends[chosen]));
        let answer = ask(&rig, &question(family, 1000));
        assert!(said(&answer, "scheduler", text), "{text}: {:?}", answer.steps);
        assert_ne!(answer.backend, Some(first), "{text}");
        rig.change(|specs| specs.clone_from_slice(&whole));
    }
    rig.send(0, 0, &tcp(family, 2000, 80, "S"));
    rig.change(|specs| specs[0].backends.iter_mut().for_each(|b| b.service = Service::Draining));
    let pinned = ask(&rig, &question(family, 2000));
    assert!(said(&pinned, "conntrack", "no new flows go there: draining"), "{:?}", pinned.steps);
    rig.change(|specs| specs[0].backends.iter_mut().for_each(|b| b.up = false));
    let answer = ask(&rig, &question(family, 1000));
    assert_eq!((answer.backend, answer.frame.len()), (None, 0));
    assert!(said(&answer, "drop", "no_backend"));
    let words = answer.steps.iter().flat_map(|step| [&step.outcome, &step.why]);
    words.for_each(|words| assert_eq!(words, words.trim()));
}

#[test]
fn affinity_and_splits_are_reported() {
    let family = Family::V4;
    let mut vip = spec(0, Forward::Dsr, family, 1, 5);
    vip.policy.affinity = Affinity::Client;
    let mut rig = Rig::new(1, 1, vec![vip]);
    let whole = ask(&rig, &question(family, 1000));
    assert!(said(&whole, "affinity", "all flows of"), "{:?}", whole.steps);
    let gateway = family.client().into();
    rig.change(|specs| specs[0].splits = Splits::new(vec![(gateway, 4)]));
    let mut backends = std::collections::BTreeSet::new();
    for port in (1000..60_000).step_by(1000) {
        let answer = ask(&rig, &question(family, port));
        assert!(said(&answer, "affinity", "is split"), "{:?}", answer.steps);
        let sent = rig.backend_of(&tcp_of((family.client(), port), (family.vip(), 80), "S"));
        assert_eq!(answer.backend.map(|backend| backend.0), sent);
        backends.insert(sent);
    }
    assert!(backends.len() > 2, "{backends:?}");
}

/// A NAT backend behind two ports of a VIP can have a client's port only once: `explain` looks up
/// the rival's pin as a worker does.
#[test]
fn a_rival_flow_is_seen() {
    let family = Family::V4;
    let mut vip = spec(0, Forward::Nat, family, 1, 2);
    vip.ports = holdfast::forwarding::Ports::of(&[80, 443]);
    let mut rig = Rig::new(2, 1, vec![vip]);
    for port in 1000..1050 {
        rig.send(1, 0, &tcp(family, port, 443, "S"));
        let answer = ask(&rig, &question(family, port));
        let sent = rig.backend_of(&tcp(family, port, 80, "S"));
        assert_eq!(answer.backend.map(|backend| backend.0), sent);
        let other = ask(
            &rig,
            &Question { destination: SocketAddr::new(family.vip(), 443), ..question(family, port) },
        );
        assert_ne!(other.backend, answer.backend, "two flows, two backends");
    }
}

/// The explained outer addresses of a tunnel are those of the packet that is sent.
#[test]
fn a_tunnel_is_reported_with_its_outer_addresses() {
    let [v4, v6] = ["198.18.2.64/26", "2001:db8:2:1::/64"];
    let sources = |network: &str| Some(TunnelSources::new(network.parse().unwrap()));
    let tunnels = Tunnels { source_v4: sources(v4), source_v6: sources(v6), ..Tunnels::default() };
    for forward in [Forward::Ipip, Forward::Gue] {
        for family in [Family::V4, Family::V6] {
            let local = Local { mtus: vec![1500], tunnels, ..Local::default() };
            let mut rig = Rig::in_box(local, 1, 1, vec![spec(0, forward, family, 1, 1)]);
            let answer = ask(&rig, &question(family, 1000));
            let sent = rig.send(0, 0, &tcp(family, 1000, 80, "S")).remove(0);
            // Addresses, flow label, and the first four bytes after the header: with gue, the
            // ports.
            let parts = if family == Family::V4 { [26..34, 34..36] } else { [14..18, 22..56] };
            for part in parts {
                assert_eq!(answer.frame[part.clone()], sent.bytes[part]);
            }
            let fits = match (forward, family) {
                (Forward::Ipip, Family::V4) => "up to 1480 bytes",
                (Forward::Ipip, Family::V6) => "up to 1460 bytes",
                (_, Family::V4) => "up to 1468 bytes",
                (_, Family::V6) => "up to 1448 bytes",
            };
            assert!(said(&answer, "tunnel", fits), "{:?}", answer.steps);
            let backend = family.backend(0).to_string();
            assert!(said(&answer, "tunnel", &format!("-> {backend}")), "{:?}", answer.steps);
        }
    }
}

/// Backends that would be asked for a flow without a pin, and the packet that asks them.
#[test]
fn backends_that_are_asked_are_reported() {
    let [v4, v6] = ["198.18.2.64/26", "2001:db8:2:1::/64"];
    let sources = |network: &str| Some(TunnelSources::new(network.parse().unwrap()));
    let fleet = Some([FleetKey([1; 16]); 2]);
    let tunnels =
        Tunnels { source_v4: sources(v4), source_v6: sources(v6), fleet, ..Tunnels::default() };
    for forward in [Forward::Dsr, Forward::Ipip, Forward::Gue] {
        for family in [Family::V4, Family::V6] {
            let local = Local { mtus: vec![1500], tunnels, ..Local::default() };
            let vip = spec(0, forward, family, 1, 4).with(|policy| policy.ask = Ask::History);
            let mut rig = Rig::in_box(local, 1, 1, vec![vip]);
            let midflow = Question { packet: Segment::Midflow, ..question(family, 1000) };
            let answer = ask(&rig, &midflow);
            let sent = rig.send(0, 0, &tcp(family, 1000, 80, "A")).remove(0);
            // All but what differs between two packets: the IPv4 identification and its checksum, and
            // from the ports of the made-up packet on its numbers; the tag, if the minute has ended.
            let hops = if family == Family::V4 { 42..82 } else { 62..150 };
            assert_eq!(answer.frame[hops.clone()], sent.bytes[hops], "{forward:?}");
            assert!(said(&answer, "ask", ", then b"), "{:?}", answer.steps);
            assert!(said(&answer, "ask", "past is not known"), "{:?}", answer.steps);
            assert_eq!(answer.backend.unwrap().0, u16::from(sent.bytes[5]));
            assert!(!said(&answer, "rewrite", ""), "{:?}", answer.steps);
            // A SYN begins a flow.
            let syn = ask(&rig, &Question { packet: Segment::Syn, ..question(family, 1000) });
            assert!(!said(&syn, "ask", ""), "{:?}", syn.steps);
        }
    }
}

/// Without pins: the backend of the next datagram, by its hash or in turn.
#[test]
fn datagrams_without_pins_are_explained_as_they_are_sent() {
    for (forward, family) in CASES {
        for scheduler in [SchedulerKind::Maglev { size: 1009 }, SchedulerKind::RoundRobin] {
            let vip = VipSpec {
                protocol: Protocol::Udp,
                ..spec(0, forward, family, 1, 5).with(|policy| {
                    policy.pin = false;
                    policy.scheduler = scheduler;
                })
            };
            let mut rig = Rig::new(2, 1, vec![vip]);
            for port in [1000, 1000, 1001, 1000] {
                let question = Question { protocol: Protocol::Udp, ..question(family, port) };
                let answer = ask(&rig, &question);
                assert!(said(&answer, "conntrack", "pin = false"), "{:?}", answer.steps);
                assert!(said(&answer, "packet", "placed by itself"), "{:?}", answer.steps);
                assert!(!said(&answer, "conntrack", "no worker has"), "{:?}", answer.steps);
                let sent = rig.send(0, 0, &udp(family, port, 80, true)).remove(0);
                assert_eq!(answer.frame[..6], sent.bytes[..6], "the backend's MAC");
            }
            assert_eq!(rig.stats(0).datagrams_placed.get(), 4, "asking places nothing");
            rig.assert_accounted();
        }
    }
}

/// A server that is a client of its own VIP gets another backend, or a drop and a RST without one.
#[test]
fn a_server_that_is_its_own_client_is_recognised() {
    for family in [Family::V4, Family::V6] {
        let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, family, 1, 3)]);
        let mut refused = 0;
        for port in 1000..1030 {
            let client = SocketAddr::new(family.backend(1), port);
            let answer = ask(&rig, &Question { client, ..question(family, port) });
            refused += usize::from(said(&answer, "scheduler", "is the client itself"));
            assert!(said(&answer, "client", "the client is b1"), "{:?}", answer.steps);
            assert_ne!(answer.backend.unwrap().0, 1);
        }
        assert!(refused > 0, "the hash of some ports leads there");
        assert!(!said(&ask(&rig, &question(family, 1000)), "client", ""));
        rig.change(|specs| {
            specs[0].policy.reject_no_backend = true;
            [0, 2].iter().for_each(|&index: &usize| specs[0].backends[index].up = false);
        });
        let client = SocketAddr::new(family.backend(1), 1000);
        let answer = ask(&rig, &Question { client, ..question(family, 1000) });
        assert!(said(&answer, "drop", "client_is_backend"), "{:?}", answer.steps);
        assert!(said(&answer, "answer", "a RST"), "{:?}", answer.steps);
    }
}

#[test]
fn behind_cookies_the_choice_is_explained_that_a_proof_leads_to() {
    for family in [Family::V4, Family::V6] {
        let vip = spec(0, Forward::Nat, family, 1, 5).with(|policy| policy.syn_proxy = true);
        let mut rig = Rig::new(1, 1, vec![vip]);
        let answer = ask(&rig, &question(family, 1000));
        assert!(said(&answer, "syn_proxy", "cookie"), "{:?}", answer.steps);
        let syn = rig.send(0, 0, &tcp(family, 1000, 80, "S")).remove(0);
        let next = syn.tcp().sequence_number.wrapping_add(1);
        let mut proof = etherparse::TcpHeader::new(1000, 80, 1001, 65_000);
        (proof.ack, proof.acknowledgment_number) = (true, next);
        let builder =
            rig::ip_builder((rig::CLIENT_MAC, rig::nic_mac(0)), family.client(), family.vip());
        let mut bytes = Vec::new();
        builder.tcp_header(proof).write(&mut bytes, &[]).unwrap();
        let sent = rig.send(0, 0, &bytes).remove(0);
        assert_eq!(answer.backend.unwrap().0, u16::from(sent.destination_mac()[5]));
        // Without a SYN there is nothing to prove.
        let packet = Segment::Midflow;
        let lost = ask(&rig, &Question { packet, ..question(family, 1001) });
        assert!(said(&lost, "drop", "no_cookie"), "{:?}", lost.steps);
        assert_eq!(lost.backend, None);
        // No cookie is sent that leads nowhere.
        let mut vip = spec(0, Forward::Nat, family, 1, 2).with(|policy| policy.syn_proxy = true);
        vip.backends.iter_mut().for_each(|backend| backend.up = false);
        let refused = ask(&Rig::new(1, 1, vec![vip]), &question(family, 1000));
        assert!(said(&refused, "drop", "no_backend"), "{:?}", refused.steps);
        assert!(!said(&refused, "syn_proxy", ""), "{:?}", refused.steps);
    }
}

#[test]
fn a_backend_that_is_down_is_not_called_in_service_because_its_vip_fails_open() {
    for (fails_open, why) in [(false, "in service"), (true, "down, as all are")] {
        let mut vip = spec(0, Forward::Nat, Family::V4, 1, 2);
        vip.fails_open = fails_open;
        let answer = ask(&Rig::new(1, 1, vec![vip]), &question(Family::V4, 1000));
        assert!(said(&answer, "scheduler", why), "{:?}", answer.steps);
    }
}
