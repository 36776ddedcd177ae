//! Path MTU discovery, errors and echo with the kernels of clients, backends and a router.

use std::io::ErrorKind;
use std::net::IpAddr;

use holdfast::control::api::HealthState;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, download, upload, vip,
};

/// MTU of the narrow link, in bytes.
const MTU: u16 = 1400;

fn forwarded(holdfast: &Holdfast<'_>) -> u64 {
    holdfast.status().totals.icmp_errors_forwarded
}

fn answers(holdfast: &Holdfast<'_>, kind: &str) -> u64 {
    holdfast.status().answers[kind]
}

/// Asserts that a datagram to the VIP is refused, by the balancer or by a backend.
fn assert_refused(lab: &Lab, vip: &Vip) {
    let address = vip.family.client(0).parse::<IpAddr>().unwrap();
    let client = lab.udp_socket("client", (address, 0).into());
    client.connect((vip.address().as_str(), 7)).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client.send(b"anybody there?").unwrap();
    let error = client.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", vip.name);
}

fn both(forward: &'static str) -> Vec<Vip> {
    Family::ALL.map(|family| vip(forward, family, false)).into()
}

/// nat: a router behind the balancer reports to the client, which sees the VIP as the sender.
#[test]
fn an_upload_by_nat_finds_the_mtu_of_a_router_behind_the_balancer() {
    let lab = Lab::up(Topology::Stick);
    let vips = both("nat");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        lab.route_to_backends(vip.family, MTU);
        let router = "02:00:00:00:02:fe";
        holdfast.wait_until("packets to the backends go by the router", |status| {
            let vip = status.vips.iter().find(|status| status.name == vip.name).unwrap();
            let hops = vip.backends.iter().map(|backend| backend.next_hop.as_ref());
            hops.into_iter().all(|hop| hop.is_some_and(|hop| hop.mac == router))
        });
        let before = forwarded(&holdfast);
        assert!(upload(&lab, vip), "{}: upload", vip.name);
        let told = forwarded(&holdfast) - before;
        assert!(told > 0, "{}: no error reached the client", vip.name);
        lab.clear_uploads();
    }
    assert_eq!(answers(&holdfast, "icmp_too_big_sent"), 0, "the router knows, not the balancer");
    holdfast.stop();
}

/// nat and dsr: the balancer takes the MTU of the next link from the route, and reports it itself.
#[test]
fn an_upload_finds_the_mtu_of_the_balancers_own_route() {
    let lab = Lab::up(Topology::Stick);
    let mut vips = both("nat");
    vips.extend(both("dsr"));
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for family in Family::ALL {
        for backend in BACKENDS {
            let address = family.backend(backend);
            let route = ["ip", family.option(), "route", "replace", &address, "dev", "eth0"];
            lab.run("lb", &[&route[..], &["mtu", &MTU.to_string()]].concat());
        }
    }
    holdfast.wait_until("the MTU of the route is known", |status| {
        let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
        backends.all(|backend| backend.next_hop.as_ref().is_some_and(|hop| hop.mtu == MTU))
    });
    for vip in &vips {
        let before = answers(&holdfast, "icmp_too_big_sent");
        assert!(upload(&lab, vip), "{}: upload", vip.name);
        assert!(answers(&holdfast, "icmp_too_big_sent") > before, "{}", vip.name);
        lab.clear_uploads();
        // Path MTU that the client has learnt about the VIP.
        lab.forget_path_mtus("client");
    }
    assert_eq!(forwarded(&holdfast), 0);
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}

/// dsr: a router on the return path reports to the VIP, and the balancer forwards the error to the
/// backend.
#[test]
fn a_download_by_dsr_finds_the_mtu_of_a_router_on_the_way_back() {
    let lab = Lab::up(Topology::Stick);
    let vips = both("dsr");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        lab.route_to_clients(vip.family, MTU);
        let before = forwarded(&holdfast);
        assert!(download(&lab, vip, None).ends_well(), "{}: download", vip.name);
        assert!(forwarded(&holdfast) > before, "{}: no error reached the backend", vip.name);
    }
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}

#[test]
fn a_vip_that_is_not_announced_answers_ping() {
    let lab = Lab::up(Topology::Stick);
    let mut vips = both("nat");
    for vip in &mut vips {
        vip.keys = "announce = \"none\"";
    }
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vips.clone()));
    for vip in &vips {
        let (option, address) = (vip.family.option(), vip.address());
        let route = ["ip", option, "route", "replace", &address, "via", vip.family.balancer()];
        lab.run("client", &route);
        let before = answers(&holdfast, "echo_replies");
        for size in ["0", "56", "1400"] {
            let ping = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "5", "-s", size, &address];
            lab.run("client", &ping);
        }
        assert_eq!(answers(&holdfast, "echo_replies") - before, 9, "{}", vip.name);
    }
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}

#[test]
fn a_udp_client_learns_that_the_port_is_closed() {
    let lab = Lab::up(Topology::Stick);
    let nobody = |family| Vip { nat_port: 7008, ..vip("nat", family, true) };
    let vips: Vec<Vip> = Family::ALL.map(nobody).into();
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        assert_refused(&lab, vip);
    }
    assert_eq!(forwarded(&holdfast), 2);
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}

#[test]
fn without_a_backend_clients_are_refused_at_once() {
    let lab = Lab::up(Topology::Stick);
    let mut vips: Vec<Vip> = Family::ALL.map(|family| vip("nat", family, false)).into();
    vips.push(vip("dsr", Family::V4, false));
    vips.extend(Family::ALL.map(|family| vip("nat", family, true)));
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vips.clone()));
    for backend in BACKENDS {
        lab.stop_backend(backend);
    }
    holdfast.wait_until("all backends are down", |status| {
        let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
        backends.all(|backend| backend.health == HealthState::Down)
    });
    for vip in &vips {
        if vip.udp {
            assert_refused(&lab, vip);
        } else {
            let curl = ["curl", "--silent", "--noproxy", "*", "--max-time", "10"];
            let output = lab.try_run("client", &[&curl[..], &[&vip.url()]].concat());
            // curl: could not connect; 28 would be a time-out.
            assert_eq!(output.status.code(), Some(7), "{}", vip.name);
        }
    }
    assert_eq!(answers(&holdfast, "rejects_sent"), 3);
    assert_eq!(answers(&holdfast, "icmp_unreachable_sent"), 2);
    for vip in &holdfast.status().vips {
        assert_eq!((vip.backends_up, vip.backends_in_service), (0, 0), "{vip:#?}");
    }
    let table = holdfast.ok(&["status"]);
    assert_eq!(table.matches("0/3 up").count(), vips.len(), "{table}");
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}
