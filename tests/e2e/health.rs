//! Health checks: a backend that fails its check gets no new flows, and keeps those that it has.

use holdfast::control::api::HealthState;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, download, requests, vip, wait_for,
};

#[test]
fn a_dead_backend_gets_nothing_new_until_it_is_back() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = [vip("dsr", Family::V6, false), vip("nat", Family::V4, false)];
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.to_vec()));
    lab.stop_backend("b2");
    for vip in &vips {
        let name = vip.name.as_str();
        holdfast.wait_for_health(name, "b2", HealthState::Down);
        assert_ne!(holdfast.backend(name, "b2").health_detail, "");
        requests(&lab, vip, 0, 100).assert_from(name, &["b1", "b3"]);
    }
    lab.start_backend("b2");
    for vip in &vips {
        let name = vip.name.as_str();
        holdfast.wait_for_health(name, "b2", HealthState::Up);
        requests(&lab, vip, 0, 100).assert_from(name, &BACKENDS);
    }
    holdfast.stop();
}

/// A check that fails for a reason of its own does not harm the backend's flows.
#[test]
fn a_transfer_outlives_a_failing_check() {
    let lab = Lab::up(Topology::TwoNic);
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    let mut transfer = download(&lab, &nat, Some("8m"));
    let backend = transfer.backend();
    // Replies to the balancer's own address vanish, replies to clients do not.
    let hole = ["ip", "route", "add", "blackhole", "198.18.2.2", "table", "100"];
    lab.run(&backend, &hole);
    holdfast.wait_for_health("nat4", &backend, HealthState::Down);
    let answers = requests(&lab, &nat, 0, 50);
    answers.assert_none_failed("nat4");
    assert!(!answers.by_backend.contains_key(&backend), "{answers:?}");
    assert!(transfer.goes_on());
    lab.run(&backend, &["ip", "route", "del", "blackhole", "198.18.2.2", "table", "100"]);
    holdfast.wait_for_health("nat4", &backend, HealthState::Up);
    assert!(transfer.ends_well(), "the transfer broke");
    holdfast.stop();
}

/// A host that is gone does not refuse connections: it is silent, and its neighbour entry fails in
/// the end.
#[test]
fn a_backend_without_a_cable_is_down_and_comes_back() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V6, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    lab.run("switch", &["ip", "link", "set", "b3-eth0", "down"]);
    holdfast.wait_for_health("nat6", "b3", HealthState::Down);
    requests(&lab, &nat, 0, 50).assert_from("nat6", &["b1", "b2"]);
    lab.run("switch", &["ip", "link", "set", "b3-eth0", "up"]);
    // Without its carrier the backend lost the kernel settings that depend on one.
    lab.run(
        "b3",
        &[
            "ip",
            "-6",
            "route",
            "replace",
            "default",
            "via",
            "2001:db8:2::2",
            "dev",
            "eth0",
            "table",
            "100",
        ],
    );
    lab.run("b3", &["ip", "-6", "route", "replace", "2001:db8:1::/64", "dev", "eth0"]);
    holdfast.wait_for_health("nat6", "b3", HealthState::Up);
    requests(&lab, &nat, 0, 100).assert_from("nat6", &BACKENDS);
    holdfast.stop();
}

/// The address of a VIP with `withdraw = "unserved"` is there while a backend serves it, and one that
/// shares its address keeps it.
#[test]
fn a_vip_that_no_backend_serves_is_withdrawn() {
    let lab = Lab::up(Topology::Stick);
    let withdraws = "withdraw = \"unserved\"";
    let nat = Vip { keys: withdraws, ..vip("nat", Family::V4, false) };
    let other = Vip { keys: withdraws, backends: vec!["b3"], ..vip("nat", Family::V6, false) };
    let vips = vec![nat.clone(), other.clone()];
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vips));
    let is_there = |address: &str| {
        lab.run("lb", &["ip", "-br", "addr", "show"]).contains(&format!("{address}/"))
    };
    let (v4, v6) = ("192.0.2.20", "2001:db8:100::20");
    assert!(is_there(v4) && is_there(v6));
    lab.stop_backend("b1");
    lab.stop_backend("b2");
    holdfast.wait_for_health("nat4", "b1", HealthState::Down);
    holdfast.wait_for_health("nat4", "b2", HealthState::Down);
    assert!(is_there(v4), "one is left");
    lab.stop_backend("b3");
    wait_for("both are withdrawn", SOON, || !is_there(v4) && !is_there(v6));
    lab.start_backend("b2");
    wait_for("one is announced again", SOON, || is_there(v4));
    assert!(!is_there(v6));
    requests(&lab, &nat, 0, 20).assert_from("nat4", &["b2"]);
    // A reload that ends it brings the address back, whatever the backends do.
    holdfast.write_config(&Config::new(&lab, 1, vec![nat.clone(), Vip { keys: "", ..other }]));
    holdfast.ok(&["reload"]);
    wait_for("the other one is announced again", SOON, || is_there(v6));
    holdfast.stop();
}
