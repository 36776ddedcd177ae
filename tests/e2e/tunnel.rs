//! Modes ipip and gue: backends that decapsulate, for every pair of inner and outer family.

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Topology, Vip, download, requests, tunnel, upload,
};

fn all(forward: &'static str) -> Vec<Vip> {
    let families = |family| Family::ALL.map(move |outer| tunnel(forward, family, outer));
    Family::ALL.into_iter().flat_map(families).collect()
}

/// Uploads the big file, 24 MB, to the VIP.
fn assert_uploads(lab: &Lab, vip: &Vip) {
    assert!(upload(lab, vip), "{}: upload", vip.name);
    lab.clear_uploads();
}

/// Requests and transfers in both directions. Clients send packets that exceed the tunnel's MTU
/// until an ICMP error reports it.
fn carries_everything(topology: Topology, forward: &'static str) {
    let lab = Lab::up(topology);
    let vips = all(forward);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        requests(&lab, vip, 0, 60).assert_from(&vip.name, &BACKENDS);
        assert!(download(&lab, vip, None).ends_well(), "{}: download", vip.name);
        assert_uploads(&lab, vip);
    }
    let status = holdfast.status();
    assert!(status.answers["icmp_too_big_sent"] >= 2, "{:#?}", status.answers);
    // A whole window may be too long: ICMP errors for it are limited by [icmp].
    assert_eq!(status.drops["too_big"], status.totals.icmp_rate_limited, "{:#?}", status.drops);
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

/// Only the router in front of the link of 1,400 bytes knows its MTU: the router reports it to the
/// balancer, which reports it to the client.
#[test]
fn a_narrow_link_behind_the_balancer() {
    let lab = Lab::up(Topology::TwoNic);
    for family in Family::ALL {
        lab.route_to_backends(family, 1400);
    }
    for forward in ["ipip", "gue"] {
        for vip in all(forward) {
            let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![vip.clone()]));
            assert_uploads(&lab, &vip);
            let status = holdfast.status();
            let name = &vip.name;
            assert!(status.drops["path_mtu_learnt"] >= 1, "{name}: {:#?}", status.drops);
            assert!(status.answers["icmp_too_big_sent"] >= 2, "{name}: {:#?}", status.answers);
            assert_eq!(status.drops["tunnel_error"], 0, "{name}");
            holdfast.stop();
        }
    }
}

/// Datagrams that may be fragmented are fragmented before encapsulation, and reassembled by the
/// backend.
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
