//! SYNs without a reply: counted at their backend when the pin is removed.

use holdfast::forwarding::sticky::{Hold, Reentry, Remember, Sticky};
use holdfast::forwarding::{FlowAction, VipSpec};
use holdfast::net::{Forward, Protocol};
use holdfast::units::Ticks;

use crate::rig::{Family, Rig, spec, tcp, udp};

const PORT: u16 = 40_000;
/// Longer than every time-out of the rig and a round of the sweep.
const LONG: u32 = 1500;

/// Sends the packets of one flow, the client's (`>`) to worker 0 and the backend's (`<`) to the
/// last one, waits until its pin is removed, and returns the number of unanswered SYNs.
fn counted(forward: Forward, family: Family, workers: usize, packets: &[&str]) -> u64 {
    let mut rig = Rig::new(workers, 1, vec![spec(0, forward, family, 1, 1)]);
    let mut request = None;
    for packet in packets {
        match packet.split_at(1) {
            (">", flags) => {
                let sent = rig.send(0, 0, &tcp(family, PORT, 80, flags));
                request = request.or(sent.into_iter().next());
            }
            (_, flags) => {
                let reply = request.as_ref().unwrap().reply(flags);
                rig.send(workers - 1, 0, &reply);
            }
        }
    }
    rig.advance(LONG);
    assert_eq!(rig.stats(0).flows_active.get(), 0, "{packets:?}");
    rig.assert_accounted();
    (0..workers).map(|worker| rig.stats(worker).unanswered[0].get()).sum()
}

#[test]
fn a_syn_that_nothing_answers_is_counted() {
    for family in [Family::V4, Family::V6] {
        for forward in [Forward::Dsr, Forward::Nat, Forward::FullNat] {
            for workers in [1, 2] {
                for (packets, expected) in [
                    (&[">S"][..], 1),
                    (&[">S", ">S", ">S"], 1),
                    (&[">S", ">A"], 0),
                    // The client has given up with a RST, like a scanner.
                    (&[">S", ">R"], 0),
                    // The flow lost its pin: it started earlier.
                    (&[">A"], 0),
                    (&[">S", ">A", ">FA"], 0),
                ] {
                    let found = counted(forward, family, workers, packets);
                    let name = format!("{forward:?} {family:?} {workers}: {packets:?}");
                    assert_eq!(found, expected, "{name}");
                }
            }
        }
    }
}

/// A flow without a pin that follows its client's mapping instead of the hash.
#[test]
fn a_flow_that_lost_its_pin_has_no_syn_whatever_leads_it() {
    for forward in [Forward::Dsr, Forward::Nat, Forward::FullNat] {
        let sticky = Sticky { on_drain: Hold::Release, on_down: Hold::Release };
        let remember =
            Remember { timeout: Ticks(100_000), sticky: Some(sticky), on_reentry: Reentry::Hash };
        let web =
            spec(0, forward, Family::V4, 1, 1).with(|policy| policy.remember = Some(remember));
        let mut rig = Rig::new(1, 1, vec![web]);
        for flags in ["S", "A"] {
            rig.send(0, 0, &tcp(Family::V4, PORT, 80, flags));
        }
        rig.advance(LONG);
        rig.send(0, 0, &tcp(Family::V4, PORT, 80, "A"));
        assert_eq!(rig.stats(0).flows_active.get(), 1);
        rig.advance(LONG);
        assert_eq!(rig.stats(0).flows_active.get(), 0);
        assert_eq!(rig.stats(0).unanswered[0].get(), 0, "{forward:?}");
    }
}

/// Where replies pass the balancer, a backend that replies is not blamed for absent clients: a
/// flood of SYNs from forged sources.
#[test]
fn an_answer_of_the_backend_counts_whatever_the_client_does() {
    for family in [Family::V4, Family::V6] {
        for forward in [Forward::Nat, Forward::FullNat] {
            for workers in [1, 2] {
                for packets in [
                    &[">S", "<SA"][..],
                    &[">S", "<SA", "<SA"],
                    &[">S", "<RA"],
                    &[">S", ">S", "<SA"],
                    &[">S", "<SA", ">A", "<SA", ">A", "<FA", ">FA"],
                ] {
                    let found = counted(forward, family, workers, packets);
                    assert_eq!(found, 0, "{forward:?} {family:?} {workers}: {packets:?}");
                }
            }
        }
    }
}

/// The bit of the reply is one of those that count probes. A late SYN+ACK takes no probe away,
/// whether the worker with the pin terminates the flow, or one that gets the backend's packets.
#[test]
fn a_late_answer_changes_nothing_about_a_terminated_flow() {
    for workers in [1, 2] {
        let probes = [false, true].map(|late| {
            let mut web = spec(0, Forward::Nat, Family::V4, 1, 1);
            web.policy.on_down = FlowAction::Reset;
            let mut rig = Rig::new(workers, 1, vec![web]);
            let request = rig.send(0, 0, &tcp(Family::V4, PORT, 80, "S")).remove(0);
            rig.send(workers - 1, 0, &request.reply("SA"));
            rig.send(0, 0, &tcp(Family::V4, PORT, 80, "A"));
            // The other worker looks up the flow's state again.
            rig.advance(60);
            if late {
                rig.send(workers - 1, 0, &request.reply("SA"));
            }
            rig.change(|specs| specs[0].backends[0].up = false);
            rig.send(workers - 1, 0, &request.reply("A"));
            // Three probes, four seconds apart, to both ends.
            rig.advance(1300);
            rig.stats(0).probes_sent.get()
        });
        assert_eq!(probes[0], probes[1], "{workers} workers");
        assert!(probes[0] > 0);
    }
}

/// A first datagram, and replies; the counts of unanswered and of answered flows.
#[test]
fn a_datagram_that_nothing_answers_is_counted_where_replies_are_seen() {
    for (forward, workers, replies, expected) in [
        (Forward::Dsr, 1, 0, (0, 0)),
        (Forward::Nat, 1, 0, (1, 0)),
        (Forward::Nat, 1, 1, (0, 1)),
        (Forward::Nat, 2, 3, (0, 1)),
        (Forward::FullNat, 2, 0, (1, 0)),
        (Forward::FullNat, 2, 3, (0, 1)),
    ] {
        let web = VipSpec { protocol: Protocol::Udp, ..spec(0, forward, Family::V4, 1, 1) };
        let mut rig = Rig::new(workers, 1, vec![web]);
        let request = rig.send(0, 0, &udp(Family::V4, PORT, 80, true)).remove(0);
        for _ in 0..replies {
            rig.send(workers - 1, 0, &request.udp_reply());
        }
        rig.advance(LONG);
        assert_eq!(rig.stats(0).flows_active.get(), 0);
        let sum = |of: fn(&holdfast::stats::WorkerStats) -> u64| {
            (0..workers).map(|worker| of(rig.stats(worker))).sum::<u64>()
        };
        let found = (sum(|stats| stats.unanswered[0].get()), sum(|stats| stats.answered[0].get()));
        assert_eq!(found, expected, "{forward:?}, {workers} workers, {replies} replies");
    }
}

/// The first sign of an answer counts once, and a flow that lost its pin had one earlier.
#[test]
fn answered_connections_are_counted_once() {
    for forward in [Forward::Dsr, Forward::Nat, Forward::FullNat] {
        for (packets, expected) in
            [(&["S"][..], 0), (&["S", "S"], 0), (&["S", "A", "A", "FA"], 1), (&["A", "A"], 1)]
        {
            let mut rig = Rig::new(1, 1, vec![spec(0, forward, Family::V4, 1, 1)]);
            for flags in packets {
                rig.send(0, 0, &tcp(Family::V4, PORT, 80, flags));
            }
            assert_eq!(rig.stats(0).answered[0].get(), expected, "{forward:?}: {packets:?}");
        }
    }
}
