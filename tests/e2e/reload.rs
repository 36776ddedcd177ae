//! Reload: all or nothing, and flows of unchanged VIPs and backends are not touched.

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, blocked, conversation, download,
    requests, vip, wait_for,
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
    // Without a change the output names no backend.
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

    // A change that needs a restart is refused as well, with that reason.
    config.cores = vec![0, 1];
    holdfast.write_config(&config);
    assert!(holdfast.refused(&["reload"]).contains("restart"));

    assert_eq!(holdfast.status().vips[0].backends.len(), 3);
    requests(&lab, &nat, 0, 50).assert_from("after the refusals", &BACKENDS);
    holdfast.stop();
}

/// Renames VIPs and backends, some of which exchange names, in the configuration's text.
fn renamed(text: &str) -> String {
    let names = [("b1", "t1"), ("b2", "b1"), ("b3", "web-3"), ("t1", "b2"), ("nat4", "nat-four")];
    names.iter().fold(text.to_owned(), |text, (old, new)| {
        text.replace(&format!("name = \"{old}\""), &format!("name = \"{new}\""))
    })
}

#[test]
fn names_break_no_connection() {
    let lab = Lab::up(Topology::Stick);
    let modes = [("dsr", Family::V4), ("nat", Family::V4), ("nat", Family::V6)];
    let mut vips: Vec<_> = modes.map(|(mode, family)| vip(mode, family, false)).to_vec();
    vips.push(vip("full_nat", Family::V4, false));
    let config = Config::new(&lab, 2, vips.clone());
    let holdfast = Holdfast::start(&lab, &config);
    let mut conversations: Vec<_> =
        vips.iter().flat_map(|vip| (0..6).map(|_| conversation(&lab, vip))).collect();
    let before: Vec<String> = conversations.iter_mut().map(|one| one.ask()).collect();
    assert!(before.iter().all(|backend| BACKENDS.contains(&backend.as_str())), "{before:?}");
    holdfast.write_text(&renamed(&config.toml()));
    let told = holdfast.ok(&["reload", "--dry-run"]);
    assert!(told.contains("dry run") && !told.contains("flows that"), "{told}");
    let told = holdfast.ok(&["reload"]);
    assert!(told.contains("VIP nat4 renamed nat-four"), "{told}");
    assert!(told.contains("backend b1 of VIP dsr4 renamed b2"), "{told}");
    let after: Vec<String> = conversations.iter_mut().map(|one| one.ask()).collect();
    assert_eq!(before, after, "all go on, at their servers");
    assert_eq!(holdfast.status().totals.resets_sent, 0);
    assert!(holdfast.ok(&["events"]).contains("is named web-3 now"));
    holdfast.stop();
}

/// A part of a range of ports goes to another VIP: its connections stay at their backends, longer
/// than the time of a reset flow, and new ones belong to the other VIP. At each of two workers;
/// replies may arrive at the other one.
#[test]
fn connections_of_ports_that_another_vip_takes_over_go_on() {
    let lab = Lab::up(Topology::TwoNic);
    let nat = crate::lab::Vip { backends: vec!["b1", "b2"], ..vip("nat", Family::V4, false) };
    let taker = crate::lab::Vip {
        name: "taker".to_owned(),
        backends: vec!["b3"],
        ..vip("nat", Family::V4, false)
    };
    let with_ports = |vips: Vec<crate::lab::Vip>, ports: &str| {
        Config::new(&lab, 2, vips).toml().replacen("ports = [80]", ports, 1)
    };
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    holdfast.write_text(&with_ports(vec![nat.clone()], "ports = [\"75-84\"]"));
    holdfast.ok(&["reload"]);
    let mut conversations: Vec<_> = (0..12).map(|_| conversation(&lab, &nat)).collect();
    let before: Vec<String> = conversations.iter_mut().map(|one| one.ask()).collect();
    let divided = with_ports(vec![nat, taker.clone()], "ports = [\"75-79\", \"81-84\"]");
    holdfast.write_text(&divided);
    let told = holdfast.ok(&["reload"]);
    assert!(!told.contains("flows that are reset"), "{told}");
    holdfast.wait_for_health("taker", "b3", holdfast::control::api::HealthState::Up);
    requests(&lab, &taker, 0, 20).assert_from("new connections", &["b3"]);
    // Their backends still belong to the first VIP.
    let flow = holdfast.ok(&["flows", "--vip", "nat4", "--json"]);
    let flow: serde_json::Value = serde_json::from_str(flow.lines().next().unwrap()).unwrap();
    let (client, backend) = (flow["client"].as_str().unwrap(), flow["backend"].as_str().unwrap());
    let told = holdfast.ok(&["explain", "--vip", "taker", "--client", client]);
    assert!(told.contains(&format!(": nat4/{backend}")), "{told}");
    assert!(told.contains("a flow of VIP nat4"), "{told}");
    // A flow that is reset has 18 s.
    for _ in 0..20 {
        let after: Vec<String> = conversations.iter_mut().map(|one| one.ask()).collect();
        assert_eq!(before, after, "all go on, at their servers");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    assert_eq!(holdfast.status().totals.resets_sent, 0);
    holdfast.stop();
}

/// TCP connections of b3 with hosts other than the balancer.
fn served_by_b3(lab: &Lab) -> usize {
    let own = Family::ALL.map(|family| match family {
        Family::V4 => " 198.18.2.2:",
        Family::V6 => " [2001:db8:2::2]:",
    });
    let lines = lab.run("b3", &["ss", "-Htn", "state", "established"]);
    lines.lines().filter(|line| !own.iter().any(|own| line.contains(own))).count()
}

/// A reload that takes their backend away resets both kernels, in every state of a connection.
#[test]
fn both_ends_learn_that_a_reload_took_their_backend_away() {
    let lab = Lab::up(Topology::TwoNic);
    let modes =
        [("dsr", Family::V4), ("nat", Family::V4), ("nat", Family::V6), ("full_nat", Family::V4)];
    let only_b3 =
        |(mode, family)| crate::lab::Vip { backends: vec!["b3"], ..vip(mode, family, false) };
    let vips = modes.map(only_b3).to_vec();
    // Keeps the full-NAT sources in the configuration.
    let other = crate::lab::Vip { backends: vec!["b1"], ..vip("full_nat", Family::V6, false) };
    let all = Config::new(&lab, 2, [vips.clone(), vec![other.clone()]].concat());
    let holdfast = Holdfast::start(&lab, &all);
    let with = |change: fn(&mut crate::lab::Vip)| {
        let mut config = all.clone();
        config.vips.iter_mut().take(modes.len()).for_each(change);
        config.toml()
    };
    let text = all.toml();
    let rows = [
        ("backend", with(|vip| vip.backends = vec!["b1"])),
        (
            "backend's port, and the VIP's",
            with(|vip| vip.nat_port = 80).replace("ports = [80]", "ports = [81]"),
        ),
        ("forward", {
            let text = text.replace("forward = \"nat\"", "forward = \"tmp\"");
            let text = text.replace("forward = \"full_nat\"", "forward = \"nat\"");
            text.replace("\"dsr\"", "\"nat\"").replace("\"tmp\"", "\"full_nat\"")
        }),
        ("VIP", Config { vips: vec![other], ..all.clone() }.toml()),
    ];
    for (name, changed) in rows {
        let clients: Vec<_> = vips
            .iter()
            .flat_map(|vip| ["silent", "sending"].map(|mode| (mode, blocked(&lab, vip, mode))))
            .collect();
        wait_for("b3 has the connections", SOON, || served_by_b3(&lab) == clients.len());
        holdfast.write_text(&changed);
        let told = holdfast.ok(&["reload"]);
        assert!(told.contains("flows that are reset"), "{name}: {told}");
        for (mode, client) in clients {
            assert_eq!(client.end(), "ECONNRESET", "{name}: {mode}");
        }
        wait_for("b3 is told", SOON, || served_by_b3(&lab) == 0);
        holdfast.write_config(&all);
        holdfast.ok(&["reload"]);
        for vip in &vips {
            holdfast.wait_for_health(&vip.name, "b3", holdfast::control::api::HealthState::Up);
            requests(&lab, vip, 0, 20).assert_from(name, &["b3"]);
        }
    }
    holdfast.stop();
}

/// A download goes on when a reload takes away its backend, and then its VIP.
#[test]
fn flows_of_what_is_removed_go_on_if_the_vip_says_keep() {
    let lab = Lab::up(Topology::Stick);
    let nat = crate::lab::Vip { keys: "on_remove = \"keep\"", ..vip("nat", Family::V4, false) };
    let mut config = Config::new(&lab, 1, vec![nat.clone(), vip("dsr", Family::V4, false)]);
    let holdfast = Holdfast::start(&lab, &config);
    let mut transfer = download(&lab, &nat, Some("4m"));
    let backend = transfer.backend();
    config.vips[0].backends.retain(|&name| name != backend);
    holdfast.write_config(&config);
    let told = holdfast.ok(&["reload"]);
    assert!(told.contains("flows that go on until they end: 1"), "{told}");
    let left: Vec<&str> = BACKENDS.into_iter().filter(|&name| name != backend).collect();
    requests(&lab, &nat, 0, 50).assert_from("removed", &left);
    assert_eq!(holdfast.status().removed.len(), 1);
    config.vips.remove(0);
    holdfast.write_config(&config);
    holdfast.ok(&["reload"]);
    let line = ["curl", "-s", "--noproxy", "*", "--connect-timeout", "1", &nat.url()];
    assert_eq!(lab.try_run("client", &line).status.code(), Some(7), "refused at once");
    assert!(transfer.goes_on());
    assert!(transfer.ends_well(), "the transfer did not survive");
    let addresses = || lab.run("lb", &["ip", "-br", "addr", "show", "eth0"]);
    wait_for("the address goes after the last flow", SOON, || !addresses().contains("192.0.2.20"));
    assert!(holdfast.status().removed.is_empty());
    holdfast.stop();
}
