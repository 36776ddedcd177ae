//! Backends that fail in every way: new flows leave them, and no other flow is touched.

use holdfast::control::api::HealthState;

use super::answers::{connect, events};
use crate::lab::{
    BACKENDS, Config, Conversation, Family, Holdfast, Lab, SOON, Topology, Vip, conversation,
    requests, udp_requests, vip, wait_for,
};

/// Open connections to a VIP: one to each backend.
fn one_each(lab: &Lab, vip: &Vip) -> Vec<(String, Conversation)> {
    let mut open: Vec<(String, Conversation)> = Vec::new();
    for _ in 0..200 {
        let mut new = conversation(lab, vip);
        let backend = new.ask();
        if open.iter().all(|(known, _)| *known != backend) {
            open.push((backend, new));
        }
        if open.len() == BACKENDS.len() {
            return open;
        }
    }
    panic!("200 connections reach {} backends only", open.len());
}

/// Drops all packets to a backend, ARP excepted.
fn blackhole(lab: &Lab, backend: &str) {
    lab.run(backend, &["nft", "add", "table", "inet", "hole"]);
    let chain = "{ type filter hook input priority 0; policy drop; }";
    lab.run(backend, &["nft", "add", "chain", "inet", "hole", "input", chain]);
}

/// A backend that refuses connections, one that swallows all packets, and one that has gone.
#[test]
fn new_flows_leave_a_backend_that_fails_and_no_other_flow_is_touched() {
    let lab = Lab::up(Topology::Stick);
    let vips = ["dsr", "nat"].map(|forward| vip(forward, Family::V4, false));
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.to_vec()));
    let mut open = vips.each_ref().map(|vip| one_each(&lab, vip));
    type Change = fn(&Lab);
    let failures: [(&str, &str, Change, Change); 3] = [
        (
            "b2",
            "no answer within",
            |lab| blackhole(lab, "b2"),
            |lab| _ = lab.run("b2", &["nft", "delete", "table", "inet", "hole"]),
        ),
        (
            "b3",
            "",
            |lab| _ = lab.run("switch", &["ip", "link", "set", "b3-eth0", "down"]),
            |lab| _ = lab.run("switch", &["ip", "link", "set", "b3-eth0", "up"]),
        ),
        // Last: its connections end with it.
        ("b1", "connection refused", |lab| lab.stop_backend("b1"), |lab| lab.start_backend("b1")),
    ];
    for (failing, reason, fail, mend) in failures {
        fail(&lab);
        let others: Vec<&str> = BACKENDS.into_iter().filter(|name| *name != failing).collect();
        for (vip, open) in vips.iter().zip(&mut open) {
            holdfast.wait_for_health(&vip.name, failing, HealthState::Down);
            let detail = holdfast.backend(&vip.name, failing).health_detail;
            assert!(detail.contains(reason) && !detail.is_empty(), "{failing}: {detail}");
            requests(&lab, vip, 0, 50).assert_from(&format!("without {failing}"), &others);
            for (backend, open) in open.iter_mut().filter(|(backend, _)| backend != failing) {
                assert_eq!(open.ask(), *backend, "while {failing} fails");
            }
        }
        mend(&lab);
        for vip in &vips {
            holdfast.wait_for_health(&vip.name, failing, HealthState::Up);
            requests(&lab, vip, 0, 100).assert_from(&format!("with {failing}"), &BACKENDS);
        }
    }
    // The failures of b2 and b3 were of the network: their connections go on.
    for (backend, open) in open.iter_mut().flatten().filter(|(backend, _)| backend != "b1") {
        assert_eq!(open.ask(), *backend, "after all failures");
    }
    holdfast.stop();
}

#[test]
fn a_backend_that_flaps_is_held_down() {
    let lab = Lab::up(Topology::Stick);
    let nat = Vip { keys: "damping = { hold_s = 3 }", ..vip("nat", Family::V4, false) };
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    let open = one_each(&lab, &nat);
    for failure in ["first", "second"] {
        lab.stop_backend("b2");
        holdfast.wait_for_health("nat4", "b2", HealthState::Down);
        let held = holdfast.backend("nat4", "b2");
        assert_eq!(held.held_down_for_s.is_some(), failure == "second", "{failure}: {held:#?}");
        lab.start_backend("b2");
        if failure == "first" {
            holdfast.wait_for_health("nat4", "b2", HealthState::Up);
        }
    }
    assert_eq!(events(&holdfast, "backend_held"), [("nat4".to_owned(), "b2".to_owned())]);
    holdfast.wait_for_health("nat4", "b2", HealthState::Up);
    let up = holdfast.backend("nat4", "b2");
    assert_eq!((up.held_down_for_s, up.flaps), (None, 1), "{up:#?}");
    assert_eq!(events(&holdfast, "backend_up").len(), 2);
    requests(&lab, &nat, 0, 100).assert_from("after the hold", &BACKENDS);
    for (backend, mut open) in open.into_iter().filter(|(backend, _)| backend != "b2") {
        assert_eq!(open.ask(), backend, "b2 flaps, and no other");
    }
    holdfast.stop();
}

/// The checks fail for a reason of their own, at all backends.
#[test]
fn a_vip_that_fails_open_serves_while_all_checks_fail() {
    let lab = Lab::up(Topology::TwoNic);
    let open = Vip { keys: "fail_open = true", ..vip("nat", Family::V4, false) };
    let closed = vip("full_nat", Family::V4, false);
    let config = Config::new(&lab, 2, vec![open.clone(), closed.clone()]);
    let holdfast = Holdfast::start(&lab, &config);
    let route = |action: &str| {
        for backend in BACKENDS {
            lab.run(backend, &["ip", "route", action, "blackhole", "198.18.2.2", "table", "100"]);
        }
    };
    let opens = || holdfast.status().vips.iter().map(|vip| vip.fail_open).collect::<Vec<_>>();
    route("add");
    wait_for("the VIP fails open", SOON, || opens() == [true, false]);
    for backend in BACKENDS {
        for vip in [&open, &closed] {
            holdfast.wait_for_health(&vip.name, backend, HealthState::Down);
        }
    }
    requests(&lab, &open, 0, 100).assert_from("all checks fail", &BACKENDS);
    assert_eq!(requests(&lab, &closed, 0, 10).failed, 10);
    assert!(holdfast.ok(&["status"]).contains("0/3 up, fail open"));
    route("del");
    wait_for("the checks decide again", SOON, || opens() == [false, false]);
    for kind in ["fail_open_begun", "fail_open_ended"] {
        assert_eq!(events(&holdfast, kind), [("nat4".to_owned(), String::new())]);
    }
    holdfast.stop();
}

/// Backends that pass their checks and do not answer clients: a VIP that is missing on a loopback
/// (dsr), and a route to the clients past the balancer (nat).
#[test]
fn a_backend_that_answers_no_client_gets_no_new_flows_until_it_may_try_again() {
    let lab = Lab::up(Topology::Stick);
    let keys = "passive = { window_s = 2 }\ndamping = { hold_s = 6 }";
    let vips = [("dsr", false), ("nat", false), ("nat", true)].map(|(forward, udp)| {
        let timeouts =
            if udp { "{ udp_first_s = 1 }" } else { "{ embryonic_s = 1, closing_s = 1 }" };
        Vip { keys, timeouts, ..vip(forward, Family::V4, udp) }
    });
    let [dsr, nat, udp] = &vips;
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.to_vec()));
    let mut open = one_each(&lab, nat);
    lab.run("b2", &["ip", "addr", "del", &format!("{}/32", dsr.address()), "dev", "lo"]);
    let rule = |action: &str| {
        lab.run("b3", &["ip", "rule", action, "from", &Family::V4.backend("b3"), "lookup", "100"]);
    };
    rule("del");
    let silent = [(dsr, "b2"), (nat, "b3"), (udp, "b3")];
    for (vip, backend) in silent {
        wait_for(&format!("{}/{backend} is out", vip.name), SOON * 3, || {
            match vip.udp {
                true => _ = udp_requests(&lab, vip, 60),
                false => _ = connect(&lab, vip),
            }
            holdfast.backend(&vip.name, backend).passive_out_for_s.is_some()
        });
        let out = holdfast.backend(&vip.name, backend);
        assert_eq!((out.health, out.share_percent), (HealthState::Up, 0), "{out:#?}");
        assert!(out.hint.starts_with("gets no new flows for now: "), "{out:#?}");
        let others: Vec<&str> = BACKENDS.into_iter().filter(|name| *name != backend).collect();
        let answers =
            if vip.udp { udp_requests(&lab, vip, 60) } else { requests(&lab, vip, 0, 60) };
        answers.assert_from(&vip.name, &others);
    }
    wait_for("unanswered datagrams are counted", SOON, || {
        holdfast.backend(&udp.name, "b3").syns_unanswered >= 10
    });
    for (backend, open) in open.iter_mut().filter(|(backend, _)| backend != "b3") {
        assert_eq!(open.ask(), *backend, "no other flow is touched");
    }
    rule("add");
    for vip in [nat, udp] {
        wait_for("it tries again", SOON * 3, || {
            holdfast.backend(&vip.name, "b3").passive_out_for_s.is_none()
        });
        let answers =
            if vip.udp { udp_requests(&lab, vip, 100) } else { requests(&lab, vip, 0, 100) };
        answers.assert_from(&vip.name, &BACKENDS);
    }
    // The flow that had no answer for a while was never moved.
    let (_, last) = open.iter_mut().find(|(backend, _)| backend == "b3").unwrap();
    assert_eq!(last.ask(), "b3");
    let mut out = events(&holdfast, "passive_out");
    out.sort();
    out.dedup();
    let mut expected = silent.map(|(vip, backend)| (vip.name.clone(), backend.to_owned()));
    expected.sort();
    assert_eq!(out, expected);
    holdfast.stop();
}
