//! Frames that no network stack sends: each is counted under the name of its fault, and traffic
//! goes on.

use crate::lab::{
    BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, Topology, Vip, requests, vip,
};

/// Frames of each kind.
const COUNT: u64 = 10;

#[test]
fn each_kind_of_bad_frame_has_its_counter() {
    let lab = Lab::up(Topology::Stick);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, Vip::all()));
    let before = holdfast.status();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/malformed.py");
    let count = COUNT.to_string();
    let sent = lab.run("client", &["/usr/bin/python3", script, "eth0", BALANCER_MACS[0], &count]);
    let mut expected = before.drops.clone();
    for kind in sent.lines() {
        *expected.get_mut(kind).unwrap_or_else(|| panic!("no counter is named {kind}")) += COUNT;
    }
    // Each is counted once, under its own name, and nothing else is dropped.
    holdfast.wait_until(&format!("the counters are {expected:#?}"), |s| s.drops == expected);
    for vip in [vip("nat", Family::V4, false), vip("dsr", Family::V6, false)] {
        requests(&lab, &vip, 0, 50).assert_from(&vip.name, &BACKENDS);
    }
    holdfast.stop();
}
