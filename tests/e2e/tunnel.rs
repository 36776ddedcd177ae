//! Modes ipip and gue: backends that decapsulate, each family in each.

use std::process::Stdio;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, download, requests,
    tunnel, wait_for,
};

const DIGEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/digest.py");
const UPLOADS: &str = "9000";

fn all(forward: &'static str) -> Vec<Vip> {
    let families = |family| Family::ALL.map(move |outer| tunnel(forward, family, outer));
    Family::ALL.into_iter().flat_map(families).collect()
}

/// On every backend a service that says what arrived.
fn digest_servers(lab: &Lab) -> Vec<Running> {
    BACKENDS
        .map(|backend| {
            let mut server = lab.command(backend, "/usr/bin/python3");
            server.args([DIGEST, "serve", UPLOADS]).stdout(Stdio::null()).stderr(Stdio::null());
            let server = Running::start(&mut server);
            wait_for("the server listens", SOON, || {
                !lab.run(backend, &["ss", "-H", "-ltn", "sport = :9000"]).is_empty()
            });
            server
        })
        .into()
}

/// Sends the big file (24 MB) to the VIP.
fn assert_uploads(lab: &Lab, vip: &Vip) {
    let big = lab.state().join("big");
    let line = ["/usr/bin/python3", DIGEST, "send", &vip.address(), UPLOADS, big.to_str().unwrap()];
    assert_eq!(lab.run("client", &line).trim(), lab.big_sha256(), "{}: upload", vip.name);
}

/// Requests and transfers both ways. Clients send packets that do not fit into the tunnel until they are
/// told so.
fn carries_everything(topology: Topology, forward: &'static str) {
    let lab = Lab::up(topology);
    let _servers = digest_servers(&lab);
    let vips = all(forward);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        requests(&lab, vip, 0, 60).assert_from(&vip.name, &BACKENDS);
        assert!(download(&lab, vip, None).ends_well(), "{}: download", vip.name);
        assert_uploads(&lab, vip);
    }
    let status = holdfast.status();
    assert!(status.answers["icmp_too_big_sent"] >= 2, "{:#?}", status.answers);
    assert_eq!(status.drops["too_big"], 0, "{:#?}", status.drops);
    holdfast.stop();
}

#[test]
fn ipip_on_a_stick() {
    carries_everything(Topology::Stick, "ipip");
}

#[test]
fn ipip_between_two_nics() {
    carries_everything(Topology::TwoNic, "ipip");
}

#[test]
fn gue_on_a_stick() {
    carries_everything(Topology::Stick, "gue");
}

#[test]
fn gue_between_two_nics() {
    carries_everything(Topology::TwoNic, "gue");
}

/// Moves `b1` behind a router, `b2`, by a link that carries 1,400 bytes.
fn move_behind_a_narrow_link(lab: &Lab) {
    let far = lab.namespace("b1");
    lab.run("b2", &["ip", "link", "add", "narrow", "type", "veth", "peer", "far", "netns", &far]);
    for (host, link, number) in [("b2", "narrow", "1"), ("b1", "far", "11")] {
        lab.run(host, &["ethtool", "-K", link, "tx", "off"]);
        lab.run(host, &["ip", "link", "set", link, "mtu", "1400", "up"]);
        lab.run(host, &["ip", "addr", "add", &format!("198.18.9.{number}/24"), "dev", link]);
        let v6 = format!("2001:db8:9::{number}/64");
        lab.run(host, &["ip", "addr", "add", &v6, "dev", link, "nodad"]);
    }
    lab.run("b2", &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
    lab.run("b2", &["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"]);
    lab.run("lb", &["ip", "route", "add", "198.18.9.0/24", "via", "198.18.2.12"]);
    lab.run("lb", &["ip", "route", "add", "2001:db8:9::/64", "via", "2001:db8:2::12"]);
}

/// Nobody knows of the link but the router in front of it: it tells the balancer, and that tells the client.
#[test]
fn a_narrow_link_behind_the_balancer() {
    let lab = Lab::up(Topology::TwoNic);
    let _servers = digest_servers(&lab);
    move_behind_a_narrow_link(&lab);
    for forward in ["ipip", "gue"] {
        for vip in all(forward) {
            let address = vip.inner.backend("b1");
            let far = address.replace("198.18.2.", "198.18.9.").replace(":2::", ":9::");
            let mut config = Config::new(&lab, 2, Vec::new());
            config.more = Config::new(&lab, 2, vec![Vip { backends: vec!["b1"], ..vip.clone() }])
                .sections()
                .replace(&address, &far);
            let holdfast = Holdfast::start(&lab, &config);
            assert_uploads(&lab, &vip);
            let status = holdfast.status();
            let name = &vip.name;
            assert!(status.drops["path_mtu_learnt"] >= 1, "{name}: {:#?}", status.drops);
            assert!(status.answers["icmp_too_big_sent"] >= 2, "{name}: {:#?}", status.answers);
            assert_eq!(status.drops["tunnel_error"], 0, "{name}");
            holdfast.stop();
            // What clients have learnt would spare the next one the messages.
            lab.run("client", &["ip", "-4", "route", "flush", "cache"]);
            lab.run("client", &["ip", "-6", "route", "flush", "cache"]);
        }
    }
}

/// Datagrams that may be fragmented are cut before they get into the tunnel, and joined by the backend.
#[test]
fn datagrams_that_do_not_fit() {
    const ECHO: &str = r#"
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT
client.settimeout(5)
client.connect((sys.argv[1], 7))
for length in range(1400, 1473):
    data = bytes(at % 251 for at in range(length))
    client.send(data)
    assert client.recv(65535).endswith(b" " + data), length
"#;
    let lab = Lab::up(Topology::Stick);
    for forward in ["ipip", "gue"] {
        for outer in Family::ALL {
            let vip = Vip { udp: true, ..tunnel(forward, Family::V4, outer) };
            let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![vip.clone()]));
            lab.run("client", &["/usr/bin/python3", "-c", ECHO, &vip.address()]);
            let status = holdfast.status();
            assert!(status.totals.fragments_sent >= 20, "{}: {:#?}", vip.name, status.totals);
            holdfast.stop();
        }
    }
}
