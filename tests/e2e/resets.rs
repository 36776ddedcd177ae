//! Terminated flows, as the kernels at both ends see them: a blocked read ends with ECONNRESET.

use holdfast::control::api::HealthState;

use super::oracle::capture;
use crate::lab::{
    Blocked, Config, Family, Holdfast, Lab, SOON, Topology, Vip, blocked, vip, wait_for,
};

/// Behaviour of the client while its flow is terminated.
const MODES: [&str; 3] = ["silent", "asked", "sending"];

/// Every mode and family, with b3 as the only backend.
fn every_mode(keys: &'static str, timeouts: &'static str) -> Vec<Vip> {
    let modes =
        [("dsr", Family::V4), ("dsr", Family::V6), ("nat", Family::V4), ("nat", Family::V6)];
    let vip = |(forward, family)| Vip {
        backends: vec!["b3"],
        keys,
        timeouts,
        ..vip(forward, family, false)
    };
    modes.map(vip).to_vec()
}

/// Connections of b3's kernel with the client; the kernel ends none of them for a minute.
fn connections(lab: &Lab, family: Family) -> usize {
    let client = match family {
        Family::V4 => family.client(0),
        Family::V6 => format!("[{}]", family.client(0)),
    };
    lab.run("b3", &["ss", "-Htn", "state", "established", "dst", &client]).lines().count()
}

/// Opens a connection in every mode to every VIP; waits until b3 has them all.
fn connect<'v>(lab: &Lab, vips: &'v [Vip], modes: &[&'v str]) -> Vec<(&'v str, &'v str, Blocked)> {
    let clients: Vec<_> = vips
        .iter()
        .flat_map(|vip| {
            modes.iter().map(|&mode| (vip.name.as_str(), mode, blocked(lab, vip, mode)))
        })
        .collect();
    // Two VIPs of each family.
    wait_for("b3 has the connections", SOON, || {
        Family::ALL.iter().all(|&family| connections(lab, family) == 2 * modes.len())
    });
    clients
}

fn assert_reset(clients: Vec<(&str, &str, Blocked)>) {
    for (name, mode, client) in clients {
        assert_eq!(client.end(), "ECONNRESET", "{name}, {mode}");
    }
}

/// Waits until b3 has no connection with the client.
fn wait_until_backend_is_told(lab: &Lab) {
    wait_for("the backend is told", SOON, || {
        Family::ALL.iter().all(|&family| connections(lab, family) == 0)
    });
}

/// A machine that dies sends no packet, not even a FIN.
#[test]
fn clients_of_a_backend_that_dies_are_reset() {
    let lab = Lab::up(Topology::Stick);
    let vips = every_mode("on_down = \"reset\"", "{ closing_s = 1 }");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    let clients = connect(&lab, &vips, &MODES);
    let port =
        |state| lab.run("switch", &["bridge", "link", "set", "dev", "b3-eth0", "state", state]);
    port("disabled");
    assert_reset(clients);
    port("forwarding");
    for vip in &vips {
        holdfast.wait_for_health(&vip.name, "b3", HealthState::Up);
    }
    let status = holdfast.status();
    assert!(status.totals.resets_sent >= 24, "{:#?}", status.totals);
    assert!(status.drops["flow_reset"] > 0);
    holdfast.stop();
}

/// The check of a backend fails although it serves: both ends are reset.
#[test]
fn both_ends_are_reset_when_the_check_of_a_living_backend_fails() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = every_mode("on_down = \"reset\"", "{ closing_s = 1 }");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    let captures = ["client", "b3"].map(|host| capture(&lab, host, "eth0"));
    let clients = connect(&lab, &vips, &MODES);
    // Replies to the balancer's own address vanish, replies to clients do not.
    for (family, own) in [("-4", "198.18.2.2"), ("-6", "2001:db8:2::2")] {
        lab.run("b3", &["ip", family, "route", "add", "blackhole", own, "table", "100"]);
    }
    assert_reset(clients);
    wait_until_backend_is_told(&lab);
    holdfast.stop();
    for capture in captures {
        capture.assert_well_formed(20);
    }
}

#[test]
fn both_ends_of_a_flow_that_idles_out_are_reset() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = every_mode("on_idle = \"reset\"", "{ established_s = 2 }");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    assert_reset(connect(&lab, &vips, &MODES[..2]));
    wait_until_backend_is_told(&lab);
    let status = holdfast.status();
    assert!(status.totals.probes_sent >= 8, "{:#?}", status.totals);
    holdfast.stop();
}
