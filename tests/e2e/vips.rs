//! VIPs that are more than an address and a port: real traffic to prefixes, ranges, all protocols.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::e2e::kernel::banner;
use crate::lab::{BACKENDS, Config, Family, Holdfast, Lab, Topology};

/// Prefixes of the two families: an address by its host number, and the prefix as text.
fn prefix(family: Family) -> (fn(u8) -> String, &'static str) {
    match family {
        Family::V4 => (|host| format!("203.0.113.{host}"), "203.0.113.0/24"),
        Family::V6 => (|host| format!("2001:db8:200::{host:x}"), "2001:db8:200::/96"),
    }
}

/// One VIP of the lab as TOML, with all backends.
fn vip(name: &str, address: &str, forward: &str, keys: &str) -> String {
    let family = if address.contains(':') { Family::V6 } else { Family::V4 };
    let mut text = format!(
        "[[vip]]\nname = \"{name}\"\naddress = \"{address}\"\nforward = \"{forward}\"\n{keys}\n\
         drain = {{ slow_start_s = 0 }}\n\
         health = {{ interval_ms = 100, rise = 1, port = 80, kind = \"tcp\" }}\n"
    );
    for backend in BACKENDS {
        let address = family.backend(backend);
        text += &format!("[[vip.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n");
    }
    text
}

/// Name of the backend that replies.
fn ask(lab: &Lab, address: &str, port: u16) -> String {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = format!("http://{host}:{port}/id");
    let line = ["curl", "-s", "-f", "--noproxy", "*", "--max-time", "5", &url];
    lab.run("client", &line).trim().to_owned()
}

#[test]
fn every_address_of_a_prefix_is_served() {
    for topology in Topology::ALL {
        let lab = Lab::up(topology);
        let mut config = Config::new(&lab, 2, Vec::new());
        for family in Family::ALL {
            let (_, network) = prefix(family);
            let option = family.option();
            lab.run("client", &["ip", option, "route", "add", network, "via", family.balancer()]);
            for backend in BACKENDS {
                lab.run(backend, &["ip", option, "route", "add", "local", network, "dev", "lo"]);
            }
            let name = format!("wide{}", option.trim_start_matches('-'));
            config.more += &vip(&name, network, "dsr", "ports = [80, \"8000-8100\"]");
        }
        let holdfast = Holdfast::start(&lab, &config);
        for family in Family::ALL {
            let (address, network) = prefix(family);
            let mut seen = BTreeSet::new();
            for host in (1..=250).step_by(12) {
                seen.insert(ask(&lab, &address(host), 80));
                seen.insert(ask(&lab, &address(host), 8080));
            }
            let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
            assert_eq!(seen, BACKENDS, "{network}");
            // The kernel keeps the box's own address.
            assert_eq!(banner(&lab, family).trim(), "SSH-2.0-holdfast_lab");
        }
        for vip in &holdfast.status().vips {
            assert_eq!(vip.traffic.flows_total, 42, "{vip:#?}");
            assert!(vip.announced_on.is_none(), "{vip:#?}");
        }
        holdfast.assert_packets_accounted_for();
        holdfast.stop();
    }
}

#[test]
fn nat_keeps_the_port_of_a_range() {
    let lab = Lab::up(Topology::TwoNic);
    let mut config = Config::new(&lab, 2, Vec::new());
    for (name, address) in [("range4", "192.0.2.40"), ("range6", "2001:db8:100::40")] {
        config.more += &vip(name, address, "nat", "ports = \"8000-8100\"");
    }
    let holdfast = Holdfast::start(&lab, &config);
    for address in ["192.0.2.40", "2001:db8:100::40"] {
        let seen: BTreeSet<String> = (0..30).map(|_| ask(&lab, address, 8080)).collect();
        assert!(seen.iter().map(String::as_str).eq(BACKENDS), "{address}: {seen:?}");
    }
    // No VIP has port 80: the kernel of the balancer refuses it.
    let line = ["curl", "-s", "--noproxy", "*", "--max-time", "2", "http://192.0.2.40/id"];
    assert_eq!(lab.try_run("client", &line).status.code(), Some(7), "connection refused");
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}

/// Sends ESP, SCTP and UDP by raw sockets: the kernel adds only the IP header.
const SENDER: &str = "
import socket, sys
source, vip = sys.argv[1:]
for turn in range(2):
    for protocol, payload in ((50, b'\\0\\0\\0\\7\\0\\0\\0\\1data'), (132, bytes(12))):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as raw:
            raw.bind((source, 0))
            raw.sendto(payload, (vip, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((source, 0))
        udp.sendto(b'data', (vip, 4500))
";

#[test]
fn all_protocols_of_a_client_are_one_flow() {
    const CLIENTS: usize = 8;
    let lab = Lab::up(Topology::TwoNic);
    let mut config = Config::new(&lab, 2, Vec::new());
    config.more += &vip("all", "192.0.2.10", "dsr", "protocol = \"any\"");
    let holdfast = Holdfast::start(&lab, &config);
    let clients: Vec<String> =
        (0..CLIENTS).map(|host| format!("198.18.1.{}", 100 + host)).collect();
    for client in &clients {
        lab.run("client", &["ip", "addr", "add", &format!("{client}/32"), "dev", "eth0"]);
        lab.run("client", &["/usr/bin/python3", "-c", SENDER, client, "192.0.2.10"]);
    }
    let packets = u64::try_from(CLIENTS * 6).unwrap();
    holdfast.wait_until("all packets are forwarded", |status| {
        status.vips[0].traffic.packets_in == packets
    });
    let flows = holdfast.ok(&["flows", "--json"]);
    let flows: Vec<Value> = flows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut backends: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for flow in &flows {
        assert_eq!(flow["protocol"], "any", "{flow}");
        let text = |key: &str| flow[key].as_str().unwrap().to_owned();
        backends.entry(text("client")).or_default().insert(text("backend"));
    }
    assert_eq!(backends.len(), CLIENTS, "one flow of each client: {flows:#?}");
    assert!(backends.values().all(|backends| backends.len() == 1), "{backends:#?}");
    let used: BTreeSet<&String> = backends.values().flatten().collect();
    assert!(used.len() > 1, "they are spread: {backends:#?}");
    for backend in &holdfast.status().vips[0].backends {
        assert_eq!(backend.traffic.packets_in % 6, 0, "all or nothing of a client: {backend:#?}");
    }
    holdfast.stop();
}
