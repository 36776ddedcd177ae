//! Mode full_nat: backends that have no route to any client.

use std::process::Stdio;

use holdfast::control::api::HealthState;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, download, requests,
    udp_requests, vip, wait_for,
};

const BINARY: &str = env!("CARGO_BIN_EXE_holdfast");

/// Removes every route to clients from the backends.
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
            Topology::Stick | Topology::Fleet => {
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

/// Address of the VIP for uploads.
const fn upload_address(family: Family) -> &'static str {
    match family {
        Family::V4 => "192.0.2.41",
        Family::V6 => "2001:db8:100::41",
    }
}

/// A VIP with one backend; its service at `port` reports the digest of its input.
fn digests(family: Family, inner: Family, port: u16, keys: &str) -> String {
    let (address, backend) = (upload_address(family), inner.backend("b1"));
    let name = if family == Family::V4 { "up4" } else { "up6" };
    format!(
        r#"
[[vip]]
name = "{name}"
address = "{address}"
ports = [9000]
forward = "full_nat"
{keys}
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2 }}
[[vip.backend]]
name = "b1"
address = "{backend}"
port = {port}
"#
    )
}

fn digest_script() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/digest.py")
}

fn assert_uploads(lab: &Lab, family: Family, what: &str) {
    let (address, big) = (upload_address(family), lab.state().join("big"));
    let big = big.to_str().unwrap();
    let send = ["/usr/bin/python3", digest_script(), "send", address, "9000", big];
    assert_eq!(lab.run("client", &send).trim(), lab.big_sha256(), "{what}: upload");
}

/// The services behind [`digests`]: without and with PROXY headers.
fn digest_servers(lab: &Lab) -> [Running; 2] {
    [("serve", "9000"), ("serve-proxy", "9001")].map(|(mode, port)| {
        let mut command = lab.command("b1", "/usr/bin/python3");
        command.args([digest_script(), mode, port]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Running::start(&mut command);
        wait_for("the service listens", SOON, || {
            !lab.run("b1", &["ss", "-Hltn", &format!("sport = :{port}")]).is_empty()
        });
        server
    })
}

/// Drops 1 in 200 of all packets to clients and backends, until [`lose_none`].
pub fn lose_packets(lab: &Lab) {
    for host in BACKENDS.iter().chain(&["client"]) {
        lab.run(host, &["nft", "add", "table", "inet", "loss"]);
        let chain = "{ type filter hook input priority 0; }";
        lab.run(host, &["nft", "add", "chain", "inet", "loss", "input", chain]);
        let rule = "meta l4proto tcp numgen random mod 200 < 1 counter drop";
        lab.run(host, &[&["nft", "add", "rule", "inet", "loss", "input"][..], &[rule]].concat());
    }
}

/// Ends the losses; panics if there were none.
pub fn lose_none(lab: &Lab) {
    for host in BACKENDS.iter().chain(&["client"]) {
        let rules = lab.run(host, &["nft", "list", "ruleset"]);
        let none = rules.contains("counter packets 0 ");
        assert!(!none || *host != "client", "nothing was lost: {rules}");
        lab.run(host, &["nft", "delete", "table", "inet", "loss"]);
    }
}

/// Moves 24 MB up and down, requests and datagrams, through one lab.
fn serves_clients_that_backends_cannot_reach(topology: Topology, workers: usize) {
    let lab = Lab::up(topology);
    forget_clients(&lab);
    let _servers = digest_servers(&lab);
    let mut config = Config::new(&lab, workers, vips());
    for family in Family::ALL {
        config.more.push_str(&digests(family, family, 9000, ""));
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
        assert_uploads(&lab, vip.family, name);
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

/// Every pair of families, with and without PROXY headers, while packets are lost.
#[test]
fn between_families_and_with_proxy_headers_over_a_lossy_link() {
    let lab = Lab::up(Topology::TwoNic);
    forget_clients(&lab);
    let _servers = digest_servers(&lab);
    for proxy in [false, true] {
        for crossed in [false, true] {
            let keys = if proxy { "proxy = \"v2\"" } else { "" };
            let inner = |family| match (family, crossed) {
                (Family::V4, true) => Family::V6,
                (Family::V6, true) => Family::V4,
                (same, false) => same,
            };
            let vips: Vec<Vip> = Family::ALL
                .into_iter()
                .map(|family| Vip {
                    inner: inner(family),
                    keys,
                    nat_port: if proxy { 8081 } else { 8080 },
                    ..vip("full_nat", family, false)
                })
                .collect();
            let mut config = Config::new(&lab, 2, vips.clone());
            let port = if proxy { 9001 } else { 9000 };
            for family in Family::ALL {
                config.more.push_str(&digests(family, inner(family), port, keys));
            }
            let holdfast = Holdfast::start(&lab, &config);
            for vip in &vips {
                let what = format!("{} to {:?}, proxy {proxy}", vip.name, vip.inner);
                requests(&lab, vip, 0, 100).assert_from(&what, &BACKENDS);
                lose_packets(&lab);
                assert!(download(&lab, vip, None).ends_well(), "{what}: download");
                assert_uploads(&lab, vip.family, &what);
                lose_none(&lab);
                if proxy {
                    assert_client_is_known(&lab, vip, &what);
                }
            }
            let drops = holdfast.status().drops;
            for reason in ["no_source_port", "request_no_flow", "not_translatable", "bad_icmp"] {
                assert_eq!(drops[reason], 0, "{drops:#?}");
            }
            holdfast.stop();
        }
    }
}

/// The backends log the client and the VIP from the header, and our source as the peer.
pub fn assert_client_is_known(lab: &Lab, vip: &Vip, what: &str) {
    let source = match vip.inner {
        Family::V4 => "198.18.2.",
        Family::V6 => "2001:db8:2::",
    };
    let said = format!("{} {} {source}", vip.family.client(0), vip.address());
    let logs = BACKENDS.map(|backend| {
        let log = lab.state().join(backend).join("proxy.log");
        std::fs::read_to_string(log).unwrap()
    });
    let lines = logs.iter().flat_map(|log| log.lines()).filter(|line| line.starts_with(&said));
    // The requests and the download.
    assert_eq!(lines.count(), 101, "{what}: {logs:?}");
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
    // The backend's kernel has the connection with this source.
    let peers = lab.run(&backend, &["ss", "-Htn", "state", "established", "sport = :8080"]);
    assert!(peers.contains(&source.to_string()), "{source}: {peers}");
    let client = flow.client.to_string();
    let told = holdfast.ok(&["explain", "--vip", "full_nat4", "--client", &client]);
    assert!(told.contains(&format!("{source} -> ")), "{told}");
    assert!(transfer.goes_on());
    holdfast.stop();
}

/// A local address of the box may be a SNAT address if the kernel's own connections, such as health
/// checks, use other ports; `check` verifies it.
#[test]
fn an_own_address_is_a_source_where_the_kernel_has_other_ports() {
    let lab = Lab::up(Topology::TwoNic);
    let web = vip("full_nat", Family::V4, false);
    let with = |full_nat| {
        let config = Config::new(&lab, 2, vec![web.clone()]);
        Config { full_nat, ..config }
    };
    let checked = |config: &Config| {
        let path = lab.state().join("checked.toml");
        std::fs::write(&path, config.toml()).unwrap();
        lab.run("lb", &[BINARY, "check", "--config", path.to_str().unwrap()])
    };
    let shared = checked(&with("[full_nat]\nsources = [\"198.18.2.2\"]\n"));
    assert!(
        shared.contains("full_nat.sources: 198.18.2.2 is this box's own address on back"),
        "{shared}"
    );
    assert!(shared.contains("set [full_nat] ports = \"1024-32767\""), "{shared}");
    let apart = with("[full_nat]\nsources = [\"198.18.2.2\"]\nports = \"1024-32767\"\n");
    let told = checked(&apart);
    assert!(!told.contains("full_nat"), "{told}");
    // Waits until every backend's check succeeds.
    let holdfast = Holdfast::start(&lab, &apart);
    requests(&lab, &web, 0, 60).assert_from("full_nat4", &BACKENDS);
    // A connection of the box itself.
    let own = ["curl", "-s", "-f", "--noproxy", "*", "--max-time", "5", "http://198.18.2.11/id"];
    assert_eq!(lab.run("lb", &own).trim(), "b1");
    let status = holdfast.status();
    assert_eq!(status.drops["return_no_flow"], 0, "{:?}", status.drops);
    assert!(status.vips[0].backends.iter().all(|b| b.health == HealthState::Up), "{status:#?}");
    holdfast.stop();
}
