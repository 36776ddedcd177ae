//! Mode full_nat: backends that know no way to any client.

use std::process::Stdio;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, download, requests,
    udp_requests, vip, wait_for,
};

/// Takes every route to clients from the backends.
fn forget_clients(lab: &Lab) {
    for backend in BACKENDS {
        for family in Family::ALL {
            let option = family.option();
            lab.run(backend, &["ip", option, "rule", "del", "lookup", "100"]);
        }
        match lab.topology {
            Topology::TwoNic => {
                lab.run(backend, &["ip", "link", "set", "direct", "down"]);
            }
            Topology::Stick => {
                lab.run(backend, &["ip", "-4", "route", "del", "198.18.1.0/24"]);
                lab.run(backend, &["ip", "-6", "route", "del", "2001:db8:1::/64"]);
            }
        }
        for client in Family::ALL.map(|family| family.client(0)) {
            let route = lab.try_run(backend, &["ip", "route", "get", &client]);
            assert!(!route.status.success(), "{backend} knows a way to {client}");
        }
    }
}

fn vips() -> Vec<Vip> {
    Family::ALL
        .into_iter()
        .flat_map(|family| [false, true].map(|udp| vip("full_nat", family, udp)))
        .collect()
}

/// A VIP of one backend whose service says what arrived there.
fn digests(family: Family, inner: Family) -> String {
    let (name, address) = match family {
        Family::V4 => ("up4", "192.0.2.31"),
        Family::V6 => ("up6", "2001:db8:100::31"),
    };
    let backend = inner.backend("b1");
    format!(
        r#"
[[vip]]
name = "{name}"
address = "{address}"
ports = [9000]
forward = "full_nat"
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2 }}
[[vip.backend]]
name = "b1"
address = "{backend}"
"#
    )
}

fn assert_uploads(lab: &Lab, family: Family) {
    let address = match family {
        Family::V4 => "192.0.2.31",
        Family::V6 => "2001:db8:100::31",
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/digest.py");
    let big = lab.state().join("big");
    let send = ["/usr/bin/python3", script, "send", address, "9000", big.to_str().unwrap()];
    assert_eq!(lab.run("client", &send).trim(), lab.big_sha256(), "{family:?}: upload");
}

/// The service behind [`digests`].
fn digest_server(lab: &Lab) -> Running {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/digest.py");
    let mut command = lab.command("b1", "/usr/bin/python3");
    command.args([script, "serve", "9000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Running::start(&mut command);
    wait_for("the service listens", SOON, || {
        !lab.run("b1", &["ss", "-Hltn", "sport = :9000"]).is_empty()
    });
    server
}

/// 24 MB up and down, requests and datagrams, through one lab.
fn serves_clients_that_backends_cannot_reach(topology: Topology, workers: usize) {
    let lab = Lab::up(topology);
    forget_clients(&lab);
    let _server = digest_server(&lab);
    let mut config = Config::new(&lab, workers, vips());
    for family in Family::ALL {
        config.more.push_str(&digests(family, family));
    }
    let holdfast = Holdfast::start(&lab, &config);
    for vip in vips() {
        let name = &vip.name;
        if vip.udp {
            udp_requests(&lab, &vip, 200).assert_from(name, &BACKENDS);
            continue;
        }
        requests(&lab, &vip, 0, 200).assert_from(name, &BACKENDS);
        assert!(download(&lab, &vip, None).ends_well(), "{name}: download");
        assert_uploads(&lab, vip.family);
    }
    let status = holdfast.status();
    for reason in ["no_source_port", "request_no_flow", "return_no_flow"] {
        assert_eq!(status.drops[reason], 0, "{:#?}", status.drops);
    }
    let full_nat = status.full_nat.as_ref().unwrap();
    assert_eq!(full_nat.sources.len(), 8);
    assert!(full_nat.v4.used > 0 && full_nat.v6.used > 0, "datagrams have theirs still");
    assert_eq!(full_nat.v4.used + full_nat.v4.free, 4 * 64_512);
    assert!(holdfast.ok(&["status"]).contains("FULL NAT SOURCES"));
    holdfast.stop();
    let left = lab.run("lb", &["ip", "address"]);
    assert!(!left.contains("198.18.2.48") && !left.contains("2001:db8:2::48"), "{left}");
}

#[test]
fn on_a_stick() {
    serves_clients_that_backends_cannot_reach(Topology::Stick, 2);
}

#[test]
fn between_two_nics() {
    serves_clients_that_backends_cannot_reach(Topology::TwoNic, 2);
}

#[test]
fn flows_and_explain_say_the_source() {
    let lab = Lab::up(Topology::TwoNic);
    forget_clients(&lab);
    let web = vip("full_nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![web.clone()]));
    let mut transfer = download(&lab, &web, Some("8m"));
    let backend = transfer.backend();
    let text = holdfast.ok(&["flows", "--vip", "full_nat4", "--backend", &backend, "--json"]);
    let flow: holdfast::control::api::Flow = serde_json::from_str(text.trim()).unwrap();
    let source = flow.source.unwrap();
    assert!(source.ip().to_string().starts_with("198.18.2."), "{source}");
    // The backend's kernel knows the connection by it.
    let peers = lab.run(&backend, &["ss", "-Htn", "state", "established", "sport = :8080"]);
    assert!(peers.contains(&source.to_string()), "{source}: {peers}");
    let client = flow.client.to_string();
    let told = holdfast.ok(&["explain", "--vip", "full_nat4", "--client", &client]);
    assert!(told.contains(&format!("{source} -> ")), "{told}");
    assert!(transfer.goes_on());
    holdfast.stop();
}
