//! Draining: no new flow from the next packet on; old flows end normally or at the deadline.

use std::process::Stdio;

use holdfast::control::api::BackendState;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, download, requests, vip,
    wait_for,
};

fn others(backend: &str) -> Vec<&'static str> {
    BACKENDS.into_iter().filter(|&other| other != backend).collect()
}

fn every_mode() -> Vec<Vip> {
    let modes =
        [("dsr", Family::V4), ("dsr", Family::V6), ("nat", Family::V4), ("nat", Family::V6)];
    modes.into_iter().map(|(forward, family)| vip(forward, family, false)).collect()
}

#[test]
fn a_transfer_outlives_the_drain_of_its_backend() {
    let lab = Lab::up(Topology::Stick);
    let vips = every_mode();
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        let name = vip.name.as_str();
        let mut transfer = download(&lab, vip, Some("8m"));
        let backend = transfer.backend();
        let target = format!("{name}/{backend}");
        holdfast.ok(&["drain", &target]);
        let status = holdfast.backend(name, &backend);
        assert_eq!(status.state, BackendState::Draining, "{status:#?}");
        assert_eq!(status.traffic.flows_active, 1, "{status:#?}");

        requests(&lab, vip, 0, 100).assert_from(name, &others(&backend));
        assert_eq!(holdfast.backend(name, &backend).traffic.flows_total, 1, "{name}");
        assert!(transfer.goes_on(), "{name}: ended before new connections were tried");
        assert!(transfer.ends_well(), "{name}: the transfer broke");

        holdfast.wait_for_state(name, &backend, BackendState::Drained);
        assert_eq!(holdfast.backend(name, &backend).flows_cut, 0);
        holdfast.ok(&["undrain", &target]);
        assert_eq!(holdfast.backend(name, &backend).state, BackendState::Active);
        requests(&lab, vip, 0, 100).assert_from(name, &BACKENDS);
    }
    holdfast.stop();
}

#[test]
fn drain_wait_returns_when_the_last_flow_has_ended() {
    let lab = Lab::up(Topology::TwoNic);
    let nat = vip("nat", Family::V4, false);
    let config = Config::new(&lab, 2, vec![nat.clone()]);
    let holdfast = Holdfast::start(&lab, &config);
    let mut transfer = download(&lab, &nat, Some("8m"));
    let target = format!("nat4/{}", transfer.backend());
    let mut command = lab.command("lb", env!("CARGO_BIN_EXE_holdfast"));
    command.args(["drain", &target, "--wait", "--socket", &config.socket]).stdout(Stdio::null());
    let mut waiting = Running::start(&mut command);
    while transfer.goes_on() {
        // A flow stays for a while after its last packet, so there is no race here.
        assert!(waiting.0.try_wait().unwrap().is_none(), "--wait did not wait for the transfer");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(transfer.ends_well());
    let mut ended = None;
    wait_for("drain --wait returns", SOON, || {
        ended = waiting.0.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success());
    holdfast.stop();
}

#[test]
fn the_deadline_breaks_remaining_flows() {
    let lab = Lab::up(Topology::Stick);
    for family in Family::ALL {
        let mut nat = vip("nat", family, false);
        nat.drain = "{ then = \"rehash\" }";
        let name = nat.name.as_str();
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
        let transfer = download(&lab, &nat, Some("2m"));
        let backend = transfer.backend();
        holdfast.ok(&["drain", &format!("{name}/{backend}"), "--deadline", "1s", "--wait"]);
        let status = holdfast.backend(name, &backend);
        assert_eq!(status.state, BackendState::Drained, "{status:#?}");
        assert_eq!(status.flows_cut, 1, "{status:#?}");
        assert!(!transfer.ends_well(), "the transfer went on after the deadline");
        requests(&lab, &nat, 0, 50).assert_from(name, &others(&backend));
        holdfast.stop();
    }
}

#[test]
fn draining_the_last_backend_wants_force_refuses_new_flows_and_keeps_old_ones() {
    let lab = Lab::up(Topology::Stick);
    let mut nat = vip("nat", Family::V4, false);
    nat.backends = vec!["b2"];
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    let transfer = download(&lab, &nat, Some("8m"));
    assert_eq!(transfer.backend(), "b2");
    let error = holdfast.refused(&["drain", "nat4/b2"]);
    assert!(error.contains("without a backend that takes new flows; add --force"), "{error}");
    assert_eq!(holdfast.backend("nat4", "b2").state, BackendState::Active);
    holdfast.ok(&["drain", "nat4/b2", "--force"]);
    let line = ["curl", "-s", "--noproxy", "*", "--connect-timeout", "10", &nat.url()];
    // curl: could not connect; 28 would be a time-out.
    assert_eq!(lab.try_run("client", &line).status.code(), Some(7), "no new flow is possible");
    assert_eq!(holdfast.status().answers["rejects_sent"], 1);
    assert!(transfer.ends_well());
    holdfast.stop();
}

#[test]
fn a_drain_of_nothing_is_an_error_that_says_what_there_is() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat]));
    for (target, parts) in [("nope/b1", ["nope", "nat4"]), ("nat4/b9", ["b9", "b1"])] {
        let error = holdfast.refused(&["drain", target]);
        for part in parts {
            assert!(error.contains(part), "{part:?} missing from {error:?}");
        }
    }
    holdfast.stop();
}

#[test]
fn keep_lets_flows_go_on_after_the_deadline() {
    let lab = Lab::up(Topology::Stick);
    let mut nat = vip("nat", Family::V4, false);
    nat.drain = "{ then = \"keep\", deadline_s = 1 }";
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    let transfer = download(&lab, &nat, Some("8m"));
    let backend = transfer.backend();
    let target = format!("nat4/{backend}");
    // The command ends with the last flow, not with the deadline.
    let printed = holdfast.ok(&["drain", &target, "--wait"]);
    assert!(printed.ends_with(&format!("{target}: drained\n")), "{printed}");
    assert!(transfer.ends_well(), "the deadline has cut it");
    let events = holdfast.ok(&["events"]);
    assert!(events.contains("deadline, 1 flow left: kept"), "{events}");
    holdfast.stop();
}

#[test]
fn reset_notifies_both_ends_at_the_deadline_and_wait_exits_well() {
    let lab = Lab::up(Topology::Stick);
    // The default policy of TCP.
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    let transfer = download(&lab, &nat, Some("2m"));
    let backend = transfer.backend();
    let target = format!("nat4/{backend}");
    let printed = holdfast.ok(&["drain", &target, "--deadline", "1s", "--wait"]);
    assert!(printed.ends_with("drained, 1 flow cut at the deadline\n"), "{printed}");
    assert!(!transfer.ends_well(), "the transfer went on after the deadline");
    for part in ["deadline, 1 flow left: reset", "is drained: 1 flow cut"] {
        wait_for(part, SOON, || holdfast.ok(&["events"]).contains(part));
    }
    holdfast.stop();
}

#[test]
fn several_drain_together_and_each_runs_the_hook() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let mut config = Config::new(&lab, 1, vec![nat.clone()]);
    let told = lab.state().join("told");
    let script = format!(
        "echo $HOLDFAST_EVENT $HOLDFAST_VIP/$HOLDFAST_BACKEND $HOLDFAST_FLOWS_CUT >>{told}; \
         ls -l /proc/self/fd >>{told}; grep Cpus_allowed_list /proc/self/status >>{told}",
        told = told.display()
    );
    config.control_keys = format!("on_drained = [\"/bin/sh\", \"-c\", {script:?}]");
    let holdfast = Holdfast::start(&lab, &config);
    requests(&lab, &nat, 0, 50).assert_none_failed("before");
    let error = holdfast.refused(&["drain", "nat4/b1", "nat4/b9"]);
    assert!(error.contains("b9"), "{error}");
    assert_eq!(holdfast.backend("nat4", "b1").state, BackendState::Active, "all or nothing");
    holdfast.refused(&["drain", "nat4/b1", "nat4/b2", "nat4/b3"]);

    let printed = holdfast.ok(&["drain", "nat4/b1", "nat4/b3", "--wait"]);
    for name in ["nat4/b1", "nat4/b3"] {
        assert!(printed.contains(&format!("{name}: drained\n")), "{printed}");
    }
    requests(&lab, &nat, 0, 30).assert_from("the others drain", &["b2"]);
    let mut text = String::new();
    wait_for("both hooks have run", SOON, || {
        text = std::fs::read_to_string(&told).unwrap_or_default();
        text.matches("Cpus_allowed_list").count() == 2
    });
    for name in ["drained nat4/b1 0\n", "drained nat4/b3 0\n"] {
        assert!(text.contains(name), "{text}");
    }
    let ours = ["bpf", "xdp", "XDP", "memfd", "socket"];
    assert!(!ours.iter().any(|word| text.contains(word)), "it has inherited:\n{text}");
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = allowed.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap();
    assert_eq!(text.matches(allowed).count(), 2, "pinned as a worker is:\n{text}");

    holdfast.ok(&["undrain", "nat4/b1", "nat4/b3"]);
    requests(&lab, &nat, 0, 100).assert_from("undrained", &BACKENDS);
    let kinds: Vec<String> = holdfast
        .ok(&["events", "--json"])
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].to_string())
        .collect();
    let drains = kinds.iter().filter(|kind| kind.contains("drain")).count();
    assert_eq!(drains, 6, "{kinds:?}");
    holdfast.stop();
}

#[test]
fn a_returning_backend_gets_a_growing_share() {
    let lab = Lab::up(Topology::Stick);
    let mut nat = vip("nat", Family::V4, false);
    nat.drain = "{ slow_start_s = 3600 }";
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    holdfast.ok(&["drain", "nat4/b1"]);
    let printed = holdfast.ok(&["undrain", "nat4/b1"]);
    assert!(printed.contains("more of them by and by"), "{printed}");
    assert_eq!(holdfast.backend("nat4", "b1").share_percent, 9);
    let answers = requests(&lab, &nat, 0, 600);
    answers.assert_none_failed("slow start");
    // A tenth of its third: 20 of 600 are expected, and 200 without slow start.
    let share = answers.by_backend.get("b1").copied().unwrap_or(0);
    assert!(share < 60, "{answers:?}");
    holdfast.stop();
}

#[test]
fn a_drain_reports_its_progress() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    requests(&lab, &nat, 0, 30).assert_none_failed("lives to learn from");
    let mut transfer = download(&lab, &nat, Some("2m"));
    let backend = transfer.backend();
    holdfast.ok(&["drain", &format!("nat4/{backend}")]);
    let mut drain = None;
    wait_for("the oldest flow is known", SOON, || {
        drain = holdfast.backend("nat4", &backend).drain;
        drain.as_ref().is_some_and(|drain| drain.oldest_flow_s.is_some())
    });
    let drain = drain.unwrap();
    assert!(transfer.goes_on() && drain.flows_left >= 1, "{drain:?}");
    assert!(drain.flows_at_start >= drain.flows_left, "{drain:?}");
    let table = holdfast.ok(&["status"]);
    assert!(table.contains("\nDRAINS\n"), "{table}");
    holdfast.stop();
}
