//! Hand-overs: another process goes on in the place of the running one, and no connection breaks.

use std::thread::sleep;
use std::time::Duration;

use holdfast::control::api::{BackendState, HealthState};

use super::restart::{EACH, assert_whole, vips};
use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Topology, conversation, requests, transfers, vip,
};

/// A second `holdfast run`, and SIGUSR2, in turn.
#[test]
fn no_connection_breaks_when_another_process_takes_over() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = vips();
    let config = Config::new(&lab, 2, vips.clone());
    let mut holdfast = Holdfast::start(&lab, &config);
    let busy = transfers(&lab, &vips, 8, EACH);
    for round in 0..4 {
        sleep(Duration::from_millis(500));
        if round % 2 == 0 {
            holdfast.replace_itself();
        } else {
            holdfast.replace(&config);
        }
    }
    assert_whole(&busy.end(), &holdfast);
    let handed_over = holdfast.log().matches("handed over to process").count();
    assert_eq!(handed_over, 4, "{}", holdfast.log());
    for vip in &vips {
        requests(&lab, vip, 0, 10).assert_none_failed(&vip.name);
    }
    holdfast.stop();
}

/// The new process is configured wrong, dies at a step, or hangs.
#[test]
fn the_running_process_goes_on_when_the_new_one_fails() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = vips();
    let config = Config::new(&lab, 2, vips.clone());
    let mut holdfast = Holdfast::start(&lab, &config);
    let busy = transfers(&lab, &vips, 8, EACH);
    holdfast.write_text("[workers]\ncores = \"all\"\n");
    holdfast.signal("USR2");
    holdfast.wait_for_log("SIGUSR2: started process", 1);
    holdfast.wait_for_log("has failed: exit status: 1; it has said why; this process goes on", 1);
    let other = Config { flows: 8192, ..Config::new(&lab, 2, vips.clone()) };
    let refused = Holdfast::start_fails(&lab, &other);
    assert!(refused.contains("[workers] flows cannot change at a hand-over"), "{refused}");
    holdfast.wait_for_log("this process goes on", 2);
    let why = "has failed: [workers] flows cannot change at a hand-over";
    let events = holdfast.ok(&["events"]);
    assert!(events.contains("hand_over_failed") && events.contains(why), "{events}");
    let mut failures = 2;
    for step in ["hello", "offer", "ready", "stopped", "hang"] {
        holdfast.fake_successor(step);
        // After "hello" the request was granted, and nothing came of it.
        failures += 1;
        holdfast.wait_for_log("this process goes on", failures);
        requests(&lab, &vips[0], 0, 5).assert_none_failed(step);
    }
    let reply = holdfast.fake_successor("version");
    assert!(reply.contains("restart holdfast instead"), "{reply}");
    // A real one, killed while it prepares itself.
    let log = holdfast.replace_in_vain(&config);
    assert!(log.contains("this process goes on"), "{log}");
    holdfast.replace(&config);
    assert_whole(&busy.end(), &holdfast);
    holdfast.stop();
}

/// As by a reload: pins stay, the drain goes on, and the results of health checks are known.
#[test]
fn a_hand_over_may_change_what_a_reload_may() {
    let lab = Lab::up(Topology::Stick);
    let mut vip = vip("nat", Family::V4, false);
    vip.backends.retain(|name| *name != "b3");
    let config = Config::new(&lab, 2, vec![vip.clone()]);
    let mut holdfast = Holdfast::start(&lab, &config);
    let mut connection = conversation(&lab, &vip);
    let drained = connection.ask();
    holdfast.ok(&["drain", &format!("{}/{drained}", vip.name), "--deadline", "30m"]);
    vip.backends = BACKENDS.to_vec();
    let config = Config::new(&lab, 2, vec![vip.clone()]);
    lab.stop_backend("b3");
    holdfast.replace(&config);
    let status = holdfast.backend(&vip.name, &drained);
    assert_eq!(
        (status.state, status.traffic.flows_active),
        (BackendState::Draining, 1),
        "{status:?}"
    );
    let left = status.drain.unwrap().deadline_in_s.unwrap();
    assert!((1700..=1800).contains(&left), "{left} s");
    assert_eq!(connection.ask(), drained, "the connection stays");
    holdfast.wait_for_health(&vip.name, "b3", HealthState::Down);
    holdfast.replace(&config);
    // Its check fails three times before it would count as down without the earlier result.
    assert_eq!(holdfast.backend(&vip.name, "b3").health, HealthState::Down);
    lab.start_backend("b3");
    holdfast.wait_for_health(&vip.name, "b3", HealthState::Up);
    let others: Vec<&str> = BACKENDS.into_iter().filter(|name| **name != *drained).collect();
    requests(&lab, &vip, 0, 30).assert_from("new connections", &others);
    drop(connection);
    holdfast.wait_for_state(&vip.name, &drained, BackendState::Drained);
    holdfast.stop();
}
