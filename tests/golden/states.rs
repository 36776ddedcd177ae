//! States of flows over time: the effect of a client's FIN where replies are not seen, and the
//! lifetime of a flow of one datagram. A pin is detected by taking the weight of its backend away:
//! then only pinned flows go there.

use std::net::IpAddr;

use etherparse::IpNumber;
use holdfast::forwarding::{Affinity, Local, Ports, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::units::Ticks;

use super::fragments::{datagram, fragments};
use super::tunnel::tunnels;
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, ip_builder, nic_mac, spec, tcp, udp};

const PORT: u16 = 40_000;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Modes in which replies are not seen.
const ONE_WAY: [Forward; 3] = [Forward::Dsr, Forward::Ipip, Forward::Gue];

fn rig(workers: usize, vip: VipSpec) -> Rig {
    let local = Local { mtus: vec![1500], tunnels: tunnels(), ..Local::default() };
    Rig::in_box(local, workers, 1, vec![vip])
}

/// The segment without its data; the frame is padded, as Ethernet's shortest ones are.
fn empty(family: Family, mut segment: Vec<u8>) -> Vec<u8> {
    match family {
        Family::V4 => segment[16..18].copy_from_slice(&40_u16.to_be_bytes()),
        Family::V6 => segment[18..20].copy_from_slice(&20_u16.to_be_bytes()),
    }
    let len = if family == Family::V4 { 54 } else { 74 };
    segment[len..].fill(0);
    if family == Family::V4 {
        let header = etherparse::Ipv4Header::from_slice(&segment[14..]).unwrap().0;
        segment[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
    segment
}

/// Packet of the client: `D` is data, `A` an ACK without data, others are flags as in tcpdump.
fn client(family: Family, what: &str) -> Vec<u8> {
    match what {
        "D" => tcp(family, PORT, 80, "A"),
        flags => empty(family, tcp(family, PORT, 80, flags)),
    }
}

/// Returns whether the flow is still pinned to `backend` when `last` is sent.
fn is_pinned(rig: &mut Rig, backend: [u8; 6], last: &[u8]) -> bool {
    rig.change(|specs| specs[0].backends[usize::from(backend[5])].weight = 0);
    let sent = rig.send(0, 0, last);
    assert_eq!(sent.len(), 1);
    sent[0].destination_mac() == backend
}

/// Lets time pass at every worker.
fn wait(rig: &mut Rig, ticks: u32) {
    rig.skip(ticks);
    rig.idle();
}

/// Name; the client's packets after the handshake, each with the delay since the previous one; the
/// silence after them; whether the flow still has its pin then. Ticks of 10 ms: the closing
/// time-out is 2 s, the established one 10 s.
type FinRow<'r> = (&'r str, &'r [(u32, &'r str)], u32, bool);

const FIN_ROWS: &[FinRow<'_>] = &[
    ("an ordinary end", &[(5, "D"), (5, "FA"), (10, "A")], 250, false),
    ("the server ended first", &[(5, "D"), (5, "A"), (0, "FA")], 250, false),
    ("answers from TIME-WAIT", &[(5, "FA"), (10, "A"), (20, "A"), (40, "A")], 190, false),
    ("a repeated FIN begins the end again", &[(5, "FA"), (150, "FA"), (150, "FA")], 190, true),
    ("data after a forged FIN", &[(5, "FA"), (10, "D")], 900, true),
    ("data at once", &[(5, "FA"), (0, "D")], 900, true),
    ("data, and ACKs after it", &[(5, "FA"), (10, "D"), (10, "A")], 900, true),
    ("a FIN after all", &[(5, "FA"), (10, "D"), (10, "FA"), (10, "A")], 250, false),
    ("forged FINs between data", &[(5, "FA"), (10, "D"), (10, "FA"), (10, "D")], 900, true),
    ("half-closed: ACKs go on", &[(5, "FA"), (60, "A"), (60, "A")], 900, true),
    ("half-closed: a silence", &[(5, "FA"), (190, "A")], 900, true),
    (
        "half-closed: silence after silence",
        &[(5, "FA"), (150, "A"), (900, "A"), (900, "A"), (900, "A")],
        900,
        true,
    ),
    ("half-closed: and then reset", &[(5, "FA"), (150, "A"), (900, "R")], 250, false),
    ("a forged RST", &[(5, "R"), (10, "A")], 900, true),
    ("a forged FIN and a forged RST", &[(5, "FA"), (5, "R"), (10, "D")], 900, true),
];

#[test]
fn a_fin_of_the_client_is_believed_until_the_client_goes_on() {
    for forward in ONE_WAY {
        for family in FAMILIES {
            // The rest of the flow at the worker that has the pin, and at another one.
            for worker in [0, 1] {
                for &(name, steps, silence, kept) in FIN_ROWS {
                    let name = format!("{name}: {forward:?} {family:?}, worker {worker}");
                    let mut rig = rig(2, spec(0, forward, family, 1, 3));
                    let first = rig.send(0, 0, &client(family, "S"))[0].destination_mac();
                    rig.send(0, 0, &client(family, "A"));
                    for &(after, what) in steps {
                        wait(&mut rig, after);
                        let sent = rig.send(worker, 0, &client(family, what));
                        assert_eq!(sent.len(), 1, "{name}");
                        assert_eq!(sent[0].destination_mac(), first, "{name}");
                    }
                    wait(&mut rig, silence);
                    assert_eq!(is_pinned(&mut rig, first, &client(family, "D")), kept, "{name}");
                    rig.assert_accounted();
                }
            }
        }
    }
}

/// Where both directions are seen, one FIN only half closes the flow, for its whole life.
#[test]
fn half_closed_connections_of_nat_keep_the_established_time_out() {
    for forward in [Forward::Nat, Forward::FullNat] {
        for family in FAMILIES {
            for flags in [&["FA"][..], &["FA", "A"]] {
                let mut rig = rig(1, spec(0, forward, family, 1, 3));
                let first = rig.send(0, 0, &client(family, "S")).remove(0);
                rig.send(0, 0, &first.reply("SA"));
                for flags in flags {
                    rig.send(0, 0, &client(family, flags));
                    wait(&mut rig, 900);
                }
                let sent = rig.send(0, 0, &first.reply("A"));
                assert_eq!(sent.len(), 1, "{forward:?} {family:?} {flags:?}");
                rig.assert_accounted();
            }
        }
    }
}

#[test]
fn a_port_that_is_used_again_after_a_fin_is_a_new_flow() {
    for forward in ONE_WAY {
        for (steps, flows) in [(&["FA"][..], 2), (&["FA", "A"], 2), (&["FA", "D"], 1)] {
            let mut rig = rig(1, spec(0, forward, Family::V4, 1, 3));
            for what in ["S", "A"].iter().chain(steps).chain(&["S"]) {
                rig.send(0, 0, &client(Family::V4, what));
            }
            assert_eq!(rig.stats(0).flows_new.get(), flows, "{forward:?} {steps:?}");
            rig.assert_accounted();
        }
    }
}

/// Senders: the client (`C`), or its backend (`B`, which replies at the other worker).
type DatagramRow<'r> = (&'r str, &'r [(u32, char)], u32, bool);

/// The first time-out is 3 s here, the later one 10 s.
const DATAGRAM_ROWS: &[DatagramRow<'_>] = &[
    ("a question without an answer", &[(0, 'C')], 350, false),
    ("kept for its answer", &[(0, 'C')], 290, true),
    ("two questions at once", &[(0, 'C'), (0, 'C'), (1, 'C')], 350, false),
    ("asked again", &[(0, 'C'), (50, 'C')], 900, true),
    ("asked again late", &[(0, 'C'), (290, 'C')], 900, true),
    ("a conversation", &[(0, 'C'), (2, 'C'), (2, 'C')], 900, true),
];

const ANSWERED_ROWS: &[DatagramRow<'_>] = &[
    ("an answer", &[(0, 'C'), (5, 'B')], 350, false),
    ("two answers", &[(0, 'C'), (1, 'C'), (5, 'B'), (5, 'B')], 350, false),
    ("more than an answer", &[(0, 'C'), (5, 'B'), (210, 'B')], 900, true),
    ("answers for long", &[(0, 'C'), (5, 'B'), (210, 'B'), (900, 'B'), (900, 'B')], 900, true),
    ("a question after the answer", &[(0, 'C'), (5, 'B'), (5, 'C')], 900, true),
];

/// A VIP that keeps flows of one datagram for 3 s, others for 10 s.
fn datagrams(forward: Forward, family: Family) -> VipSpec {
    let mut vip = VipSpec { protocol: Protocol::Udp, ..spec(0, forward, family, 1, 3) };
    (vip.policy.timeouts.udp_first, vip.policy.timeouts.udp) = (Ticks(300), Ticks(1000));
    vip
}

fn assert_datagrams(forward: Forward, family: Family, answered_at: usize, row: &DatagramRow<'_>) {
    let &(name, steps, silence, kept) = row;
    let name = format!("{name}: {forward:?} {family:?}, answers at worker {answered_at}");
    let question = udp(family, PORT, 80, true);
    let mut rig = rig(2, datagrams(forward, family));
    let mut first: Option<Sent> = None;
    for &(after, who) in steps {
        wait(&mut rig, after);
        let sent = match who {
            'C' => rig.send(0, 0, &question),
            _ => rig.send(answered_at, 0, &first.as_ref().unwrap().udp_reply()),
        };
        assert_eq!(sent.len(), 1, "{name}");
        first.get_or_insert(sent[0].clone());
    }
    wait(&mut rig, silence);
    let first = first.unwrap().destination_mac();
    assert_eq!(is_pinned(&mut rig, first, &question), kept, "{name}");
    rig.assert_accounted();
}

#[test]
fn a_flow_of_one_datagram_is_kept_for_a_short_time_until_it_goes_on() {
    for family in FAMILIES {
        for row in DATAGRAM_ROWS {
            for forward in ONE_WAY.into_iter().chain([Forward::Nat, Forward::FullNat]) {
                assert_datagrams(forward, family, 0, row);
            }
        }
        for row in ANSWERED_ROWS {
            for answered_at in [0, 1] {
                for forward in [Forward::Nat, Forward::FullNat] {
                    assert_datagrams(forward, family, answered_at, row);
                }
            }
        }
    }
}

/// All fragments of a datagram count as one datagram.
#[test]
fn a_datagram_in_fragments_is_one_datagram() {
    for family in FAMILIES {
        let ends = [(family.client(), PORT), (family.vip(), 80)];
        let mut rig = rig(1, datagrams(Forward::Dsr, family));
        let whole = datagram(ends, [CLIENT_MAC, nic_mac(0)], 200);
        let parts = fragments(&whole, 7);
        let first = rig.send(0, 0, &parts[0])[0].destination_mac();
        for part in &parts[1..] {
            wait(&mut rig, 10);
            assert_eq!(rig.send(0, 0, part)[0].destination_mac(), first);
        }
        wait(&mut rig, 280);
        assert!(!is_pinned(&mut rig, first, &udp(family, PORT, 80, true)), "{family:?}");
        rig.assert_accounted();
    }
}

fn esp(client: IpAddr, vip: IpAddr) -> Vec<u8> {
    let builder = ip_builder((CLIENT_MAC, nic_mac(0)), client, vip);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, IpNumber::ENCAPSULATING_SECURITY_PAYLOAD, &[0; 40]).unwrap();
    bytes
}

/// All protocols of a client are one flow, with the states of datagrams for every protocol.
#[test]
fn flows_of_all_protocols_have_the_states_of_datagrams() {
    for family in FAMILIES {
        let packets = [
            esp(family.client(), family.vip()),
            tcp(family, PORT, 22, "S"),
            tcp(family, PORT, 22, "FA"),
            tcp(family, PORT, 22, "R"),
            udp(family, PORT, 500, true),
        ];
        for packet in &packets {
            for (again, kept) in [(false, false), (true, true)] {
                let mut all = datagrams(Forward::Dsr, family);
                (all.protocol, all.ports) = (Protocol::Any, Ports::All);
                all.policy.affinity = Affinity::Client;
                let mut rig = rig(1, all);
                let first = rig.send(0, 0, packet)[0].destination_mac();
                if again {
                    wait(&mut rig, 50);
                    rig.send(0, 0, packet);
                }
                wait(&mut rig, 350);
                assert_eq!(is_pinned(&mut rig, first, packet), kept, "{family:?} {packet:02x?}");
                rig.assert_accounted();
            }
        }
    }
}
