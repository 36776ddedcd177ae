//! Reload: all or nothing, and flows of what stays are not touched.

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, download, requests, vip, wait_for,
};

#[test]
fn sighup_adds_and_removes_backends_and_keeps_flows() {
    let lab = Lab::up(Topology::Stick);
    let all = vip("nat", Family::V4, false);
    let mut config = Config::new(&lab, 2, vec![all.clone()]);
    let holdfast = Holdfast::start(&lab, &config);
    let transfer = download(&lab, &all, Some("8m"));
    let kept = transfer.backend();
    let removed = BACKENDS.into_iter().find(|&name| name != kept).unwrap();
    let left: Vec<&str> = BACKENDS.into_iter().filter(|&name| name != removed).collect();

    config.vips[0].backends = left.clone();
    holdfast.write_config(&config);
    holdfast.signal("HUP");
    holdfast.wait_until("a backend is gone", |status| status.vips[0].backends.len() == 2);
    requests(&lab, &all, 0, 100).assert_from("after the removal", &left);

    config.vips = vec![all.clone(), vip("dsr", Family::V6, false)];
    holdfast.write_config(&config);
    holdfast.signal("HUP");
    holdfast.wait_until("VIP and backend are there and up", |status| {
        let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
        status.vips.len() == 2
            && backends.all(|b| {
                b.health == holdfast::control::api::HealthState::Up && b.next_hop.is_some()
            })
    });
    for vip in &config.vips {
        requests(&lab, vip, 0, 100).assert_from(&vip.name, &BACKENDS);
    }
    assert!(transfer.ends_well(), "the transfer did not survive two reloads");
    holdfast.stop();
}

#[test]
fn reload_prints_what_changed() {
    let lab = Lab::up(Topology::Stick);
    let mut config = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);
    let holdfast = Holdfast::start(&lab, &config);
    config.vips[0].backends = vec!["b1", "b2"];
    holdfast.write_config(&config);
    let printed = holdfast.ok(&["reload"]);
    assert!(printed.contains("b3"), "{printed}");
    // Nothing changed: nothing is said about any backend.
    assert!(!holdfast.ok(&["reload"]).contains("b3"));
    holdfast.stop();
}

#[test]
fn a_removed_vip_loses_its_address() {
    let lab = Lab::up(Topology::Stick);
    let vips = vec![vip("nat", Family::V4, false), vip("nat", Family::V6, false)];
    let mut config = Config::new(&lab, 1, vips);
    let holdfast = Holdfast::start(&lab, &config);
    let addresses = || lab.run("lb", &["ip", "-br", "addr", "show", "eth0"]);
    assert!(addresses().contains("192.0.2.20") && addresses().contains("2001:db8:100::20"));
    config.vips.truncate(1);
    holdfast.write_config(&config);
    holdfast.ok(&["reload"]);
    wait_for("the address is gone", SOON, || !addresses().contains("2001:db8:100::20"));
    assert!(addresses().contains("192.0.2.20"));
    holdfast.stop();
}

#[test]
fn a_bad_file_changes_nothing() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let mut config = Config::new(&lab, 1, vec![nat.clone()]);
    let holdfast = Holdfast::start(&lab, &config);

    holdfast.write_text("[workers]\ncores = [0]\ncolour = \"blue\"\n");
    let error = holdfast.refused(&["reload"]);
    for part in ["colour", "holdfast.toml", "3"] {
        assert!(error.contains(part), "{part:?} missing from {error:?}");
    }
    holdfast.signal("HUP");
    wait_for("the refusal is logged", SOON, || holdfast.log().contains("colour"));

    // A change that needs a restart is refused as well, and says so.
    config.cores = vec![0, 1];
    holdfast.write_config(&config);
    assert!(holdfast.refused(&["reload"]).contains("restart"));

    assert_eq!(holdfast.status().vips[0].backends.len(), 3);
    requests(&lab, &nat, 0, 50).assert_from("after the refusals", &BACKENDS);
    holdfast.stop();
}
