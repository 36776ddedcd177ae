//! Draining: no new flow from the next packet on; old flows end by themselves or at the deadline.

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
fn the_deadline_cuts_what_is_left() {
    let lab = Lab::up(Topology::Stick);
    for family in Family::ALL {
        let nat = vip("nat", family, false);
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
fn draining_the_last_backend_refuses_new_flows_and_keeps_old_ones() {
    let lab = Lab::up(Topology::Stick);
    let mut nat = vip("nat", Family::V4, false);
    nat.backends = vec!["b2"];
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    let transfer = download(&lab, &nat, Some("8m"));
    assert_eq!(transfer.backend(), "b2");
    holdfast.ok(&["drain", "nat4/b2"]);
    let line = ["curl", "-s", "--noproxy", "*", "--connect-timeout", "1", &nat.url()];
    assert_eq!(lab.try_run("client", &line).status.code(), Some(28), "no new flow is possible");
    assert!(holdfast.status().drops["no_backend"] > 0);
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
