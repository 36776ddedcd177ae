//! VIPs, ports and backends that a reload removed: their flows are reset or kept, and new ones are
//! refused.

use holdfast::forwarding::{FlowAction, OldListen, Ports, Service, VipSpec};
use holdfast::net::{Forward, Listen, Network, Protocol};
use holdfast::stats::Drop;

use super::resets::meanwhile;
use crate::rig::{CLIENT_MAC, Family, Rig, Sent, backend_mac, numbered, spec, tcp, udp};

const PORT: u16 = 40_000;
/// One round of the sweep, in ticks.
const ROUND: u32 = 400;

fn every_mode() -> impl Iterator<Item = (Forward, Family)> {
    let families = [Family::V4, Family::V6];
    let modes = [Forward::Dsr, Forward::Nat, Forward::FullNat];
    families.into_iter().flat_map(move |family| modes.map(|mode| (mode, family)))
}

/// Opens the flow of a client's port to a port of the VIP; returns the packet that reached the
/// backend.
fn open(rig: &mut Rig, family: Family, client_port: u16, port: u16) -> Sent {
    rig.send(0, 0, &tcp(family, client_port, port, "S"));
    rig.send(0, 0, &tcp(family, client_port, port, "A")).remove(0)
}

fn old(family: Family, port: u16, left: FlowAction) -> OldListen {
    let network = Network::from(family.vip());
    OldListen {
        listen: Listen { network, protocol: Protocol::Tcp, ports: port.into() },
        flow_action: left,
    }
}

/// Marks a backend as removed, like control after a reload.
fn remove(vip: &mut VipSpec, backend: usize, left: FlowAction) {
    let backend = &mut vip.backends[backend];
    (backend.removed, backend.flow_action, backend.service) = (true, left, Service::Out);
}

/// Asserts a RST to the client and one to the backend, with the numbers of the packet that caused
/// them.
fn assert_both_reset(name: &str, sent: &[Sent], (sequence, acknowledgment): (u32, u32)) {
    assert_eq!(sent.len(), 2, "{name}: {sent:?}");
    for one in sent {
        one.assert_checksums();
        assert!(one.tcp().rst, "{name}");
        let client = one.destination_mac() == CLIENT_MAC;
        let number = if client { acknowledgment } else { sequence };
        assert_eq!(one.tcp().sequence_number, number, "{name}");
    }
    assert_ne!(sent[0].destination_mac(), sent[1].destination_mac(), "{name}");
}

/// Asserts a RST that refuses the client's packet.
fn assert_refused(name: &str, sent: &[Sent]) {
    assert_eq!(sent.len(), 1, "{name}: {sent:?}");
    assert!(sent[0].tcp().rst && sent[0].destination_mac() == CLIENT_MAC, "{name}");
}

fn segment(family: Family, port: u16, numbers: (u32, u32)) -> Vec<u8> {
    numbered(family, tcp(family, PORT, port, "A"), numbers.0, numbers.1)
}

#[test]
fn flows_of_a_removed_backend_are_reset_or_go_on_and_new_ones_go_elsewhere() {
    for (forward, family) in every_mode() {
        for left in [FlowAction::Reset, FlowAction::Keep] {
            let name = format!("{forward:?} {family:?} {left:?}");
            let mut rig = Rig::new(1, 1, vec![spec(0, forward, family, 1, 3)]);
            let request = open(&mut rig, family, PORT, 80);
            let backend = usize::from(request.destination_mac()[5]);
            rig.change(|specs| remove(&mut specs[0], backend, left));
            let sent = rig.send(0, 0, &segment(family, 80, (5, 9)));
            match left {
                FlowAction::Reset => assert_both_reset(&name, &sent, (5, 9)),
                _ => {
                    assert_eq!(sent[0].destination_mac(), request.destination_mac(), "{name}");
                    if forward.translates() {
                        let reply = rig.send(0, 0, &request.reply("A"));
                        assert_eq!(reply[0].destination_mac(), CLIENT_MAC, "{name}");
                        assert_eq!(reply[0].source(), (family.vip(), 80), "{name}");
                    }
                }
            }
            for port in 41_000..41_100 {
                let new = open(&mut rig, family, port, 80);
                assert_ne!(usize::from(new.destination_mac()[5]), backend, "{name}: {port}");
            }
            rig.assert_accounted();
        }
    }
}

/// Flows of the remaining port keep their backends.
#[test]
fn flows_of_a_removed_port_are_reset_or_go_on_and_new_ones_are_refused() {
    for (forward, family) in every_mode() {
        for left in [FlowAction::Reset, FlowAction::Keep] {
            let name = format!("{forward:?} {family:?} {left:?}");
            let mut vip = spec(0, forward, family, 1, 1);
            vip.ports = Ports::of(&[80, 443]);
            vip.backends[0].port = None;
            let mut rig = Rig::new(1, 1, vec![vip]);
            open(&mut rig, family, 39_999, 443);
            let gone = open(&mut rig, family, PORT, 443);
            let stays = open(&mut rig, family, PORT, 80);
            rig.change(|specs| {
                specs[0].ports = Ports::of(&[80]);
                specs[0].old = vec![old(family, 443, left)];
            });
            let sent = rig.send(0, 0, &segment(family, 443, (5, 9)));
            match left {
                FlowAction::Reset => assert_both_reset(&name, &sent, (5, 9)),
                _ => assert_eq!(sent[0].destination_mac(), backend_mac(0), "{name}"),
            }
            if forward.translates() {
                let replies = rig.send(0, 0, &gone.reply("A"));
                assert_eq!(replies.len(), if left == FlowAction::Reset { 2 } else { 1 }, "{name}");
                let reply = rig.send(0, 0, &stays.reply("A"));
                assert!(reply.len() == 1 && !reply[0].tcp().rst, "{name}");
            }
            let sent = rig.send(0, 0, &segment(family, 80, (5, 9)));
            assert!(sent.len() == 1 && !sent[0].tcp().rst, "{name}: the port that stays");
            for flags in ["S", "A"] {
                assert_refused(&name, &rig.send(0, 0, &tcp(family, 42_000, 443, flags)));
            }
            // Silent flows are probed if they are to be reset.
            let probes = meanwhile(&mut rig, ROUND - 10);
            let ends = if forward.translates() { 2 } else { 1 };
            // The flow that was reset above is probed once more, as a RST may have been lost.
            let expected = if left == FlowAction::Reset { 2 * ends } else { 0 };
            assert_eq!(probes.len(), expected, "{name}");
            assert!(
                probes.iter().all(|probe| [probe.source().1, probe.destination().1].contains(&443))
            );
            rig.assert_accounted();
        }
    }
}

/// Case of a changed `forward`: another VIP listens on the address and port of the old one.
#[test]
fn the_flows_of_a_vip_that_was_replaced_are_reset_in_its_own_way() {
    for family in [Family::V4, Family::V6] {
        let mut new = spec(1, Forward::Dsr, family, 1, 1);
        new.ports = Ports::List(Vec::new());
        let mut rig = Rig::new(1, 1, vec![spec(0, Forward::Nat, family, 1, 1), new]);
        let request = open(&mut rig, family, PORT, 80);
        rig.change(|specs| {
            specs[1].ports = std::mem::replace(&mut specs[0].ports, Ports::List(Vec::new()));
            specs[0].old = vec![old(family, 80, FlowAction::Reset)];
            remove(&mut specs[0], 0, FlowAction::Reset);
        });
        let sent = rig.send(0, 0, &segment(family, 80, (5, 9)));
        assert_both_reset("replaced", &sent, (5, 9));
        let told = sent.iter().find(|sent| sent.destination_mac() != CLIENT_MAC).unwrap();
        assert_eq!(told.destination().1, request.destination().1, "in the old mode");
        assert_eq!(rig.send(0, 0, &request.reply("A")).len(), 2, "its backend is told, too");
        let new = open(&mut rig, family, 41_000, 80);
        assert_eq!(new.destination().0, family.vip(), "new flows in the new mode");
        rig.assert_accounted();
    }
}

/// A port that another VIP takes over: its flows stay at their servers, at whichever worker packets
/// arrive.
#[test]
fn flows_of_a_port_that_another_vip_has_now_are_found_by_every_worker() {
    for (forward, family) in every_mode() {
        let name = format!("{forward:?} {family:?}");
        let mut first = spec(0, forward, family, 1, 1);
        first.ports = Ports::of(&[80, 443]);
        let mut taker = spec(1, forward, family, 1, 2);
        taker.ports = Ports::List(Vec::new());
        taker.backends.remove(0);
        let mut rig = Rig::new(2, 1, vec![first, taker]);
        open(&mut rig, family, PORT, 443);
        rig.change(|specs| {
            specs[0].ports = Ports::of(&[80]);
            specs[0].old = vec![old(family, 443, FlowAction::Keep)];
            specs[1].ports = Ports::of(&[443]);
        });
        for worker in [1, 0, 1] {
            let sent = rig.send(worker, 0, &segment(family, 443, (5, 9)));
            assert_eq!(sent.len(), 1, "{name}: worker {worker}");
            assert_eq!(sent[0].destination_mac(), backend_mac(0), "{name}: worker {worker}");
            if forward.translates() {
                let reply = rig.send(1 - worker, 0, &sent[0].reply("A"));
                assert_eq!(reply[0].source(), (family.vip(), 443), "{name}: worker {worker}");
            }
        }
        let new = rig.send(1, 0, &tcp(family, 41_000, 443, "S"));
        assert_eq!(
            new[0].destination_mac(),
            backend_mac(1),
            "{name}: new ones are the other VIP's"
        );
        rig.assert_accounted();
    }
}

#[test]
fn a_removed_vip_refuses_new_flows_while_old_ones_go_on() {
    for family in [Family::V4, Family::V6] {
        for (protocol, forward) in [
            (Protocol::Tcp, Forward::Nat),
            (Protocol::Udp, Forward::Nat),
            (Protocol::Tcp, Forward::Dsr),
        ] {
            let name = format!("{forward:?} {protocol:?} {family:?}");
            let packet = |port, flags| match protocol {
                Protocol::Udp => udp(family, port, 80, true),
                _ => tcp(family, port, 80, flags),
            };
            let mut rig =
                Rig::new(1, 1, vec![VipSpec { protocol, ..spec(0, forward, family, 1, 1) }]);
            rig.send(0, 0, &packet(PORT, "S"));
            rig.send(0, 0, &packet(PORT, "A"));
            rig.change(|specs| {
                let left = FlowAction::Keep;
                specs[0].ports = Ports::List(Vec::new());
                let mut old = old(family, 80, left);
                old.listen.protocol = protocol;
                specs[0].old = vec![old];
                remove(&mut specs[0], 0, left);
            });
            let sent = rig.send(0, 0, &packet(PORT, "A"));
            assert_eq!(sent[0].destination_mac(), backend_mac(0), "{name}");
            let sent = rig.send(0, 0, &packet(41_000, "S"));
            assert_eq!((sent.len(), sent[0].destination_mac()), (1, CLIENT_MAC), "{name}: refused");
            assert_eq!(rig.stats(0).flows_active.get(), 1, "{name}: no pin for it");
            assert_eq!(rig.drops(0, Drop::VipRemoved), 0, "{name}: answered");
            rig.assert_accounted();
        }
    }
}

/// Replies of a VIP without pins match by their source alone, despite remains of another VIP there.
#[test]
fn a_vip_without_pins_takes_the_replies_of_the_servers_that_it_gets() {
    for family in [Family::V4, Family::V6] {
        for order in [[0, 1], [1, 0]] {
            let mut old_vip =
                VipSpec { protocol: Protocol::Udp, ..spec(0, Forward::Nat, family, 1, 1) };
            old_vip.ports = Ports::of(&[80, 53]);
            old_vip.backends[0].port = None;
            let mut new = VipSpec {
                protocol: Protocol::Udp,
                ..spec(1, Forward::Nat, family, 1, 1).with(|policy| policy.pin = false)
            };
            (new.ports, new.backends[0].port) = (Ports::List(Vec::new()), None);
            let both = [old_vip, new];
            let specs = order.iter().map(|&index| both[index].clone()).collect();
            let mut rig = Rig::new(1, 1, specs);
            rig.send(0, 0, &udp(family, PORT, 53, true));
            rig.change(|specs| {
                for spec in specs {
                    if spec.policy.pin {
                        let mut old = old(family, 53, FlowAction::Keep);
                        old.listen.protocol = Protocol::Udp;
                        (spec.ports, spec.old) = (Ports::of(&[80]), vec![old]);
                    } else {
                        spec.ports = Ports::of(&[53]);
                    }
                }
            });
            let query = rig.send(0, 0, &udp(family, 41_000, 53, true)).remove(0);
            let answer = rig.send(0, 0, &query.udp_reply());
            assert_eq!(answer.len(), 1, "{family:?} {order:?}");
            assert_eq!(answer[0].source(), (family.vip(), 53), "{family:?} {order:?}");
            let pinned = rig.send(0, 0, &udp(family, 41_000, 80, true)).remove(0);
            assert_eq!(rig.send(0, 0, &pinned.udp_reply()).len(), 1, "another port of the server");
            rig.assert_accounted();
        }
    }
}
