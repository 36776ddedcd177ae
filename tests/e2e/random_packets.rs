//! Random packets through veth, the XDP program and AF_XDP. The oracle of the conformance pack,
//! which is independent code, judges the packets that arrive at the backends.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::oracle::capture;
use crate::lab::{
    BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, succeeded, tunnel,
    wait_for,
};

/// Silence after which no packet is in transit.
const SETTLED: Duration = Duration::from_secs(2);
/// Packets in each topology, for all VIPs together.
const COUNT: u64 = 2000;
const CLIENT_MAC: &str = "02:00:00:00:01:10";

/// All modes whose sources do not depend on the order of packets, also between the families.
fn vips() -> Vec<Vip> {
    let mut vips = Vip::all();
    vips.retain(|vip| vip.forward != "full_nat");
    for forward in ["ipip", "gue"] {
        for family in Family::ALL {
            vips.extend(Family::ALL.map(|outer| tunnel(forward, family, outer)));
        }
    }
    for vip in &mut vips {
        // Servers reset flows of unknown content: these flows must stay known until the end.
        vip.timeouts = "{ closing_s = 60, udp_s = 60 }";
    }
    vips
}

/// The lab's next hops, as a neighbours file.
fn neighbours(topology: Topology) -> String {
    let interfaces = topology.interfaces();
    let mut text = String::new();
    for (interface, mac) in interfaces.iter().zip(BALANCER_MACS) {
        writeln!(text, "[[nic]]\ninterface = \"{interface}\"\nmac = \"{mac}\"").unwrap();
    }
    let interface = interfaces.last().unwrap();
    for family in Family::ALL {
        for backend in BACKENDS {
            let (address, number) = (family.backend(backend), backend.trim_start_matches('b'));
            writeln!(text, "[[neighbour]]\naddress = \"{address}\"\ninterface = \"{interface}\"")
                .unwrap();
            writeln!(text, "mac = \"02:00:00:00:02:1{number}\"").unwrap();
        }
    }
    text
}

fn wire(lab: &Lab, arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/wire.py");
    let line = [&["/usr/bin/python3", "-B", script], arguments].concat();
    succeeded(&format!("wire.py {arguments:?}"), &lab.try_run("client", &line));
}

fn received(holdfast: &Holdfast<'_>) -> u64 {
    holdfast.status().workers.iter().map(|worker| worker.totals.received).sum()
}

#[test]
fn packets_arrive_as_the_oracle_computes_them() {
    for (topology, seed) in Topology::ALL.into_iter().zip(["1", "2"]) {
        let lab = Lab::up(topology);
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips()));
        let path = |name: &str| lab.state().join(name).to_str().unwrap().to_owned();
        let (config, near, frames) =
            (path("holdfast.toml"), path("neighbours.toml"), path("frames.pcapng"));
        std::fs::write(&near, neighbours(topology)).unwrap();
        let facts = ["--config", &config, "--neighbours", &near];
        let who = ["--source", CLIENT_MAC, "--destination", BALANCER_MACS[0]];
        let [v4, v6] = Family::ALL.map(|family| family.client(0));
        let (clients, count) = (["--client", &v4, "--client", &v6], COUNT.to_string());
        let what = ["--seed", seed, "--count", &count, &frames];
        wire(&lab, &[&["make"], &facts[..], &who, &clients, &what].concat());

        let captures = BACKENDS.map(|backend| capture(&lab, backend, "eth0"));
        wire(&lab, &["send", "eth0", &frames]);
        // All but those for ports without a VIP; then the captures have to catch up.
        let (mut last, mut since) = (0, Instant::now());
        wait_for("the packets have come", 2 * SOON, || {
            let now = received(&holdfast);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            now >= COUNT * 9 / 10 && since.elapsed() >= SETTLED
        });
        holdfast.assert_packets_accounted_for();
        let files = captures.map(|capture| capture.end().to_str().unwrap().to_owned());
        let named: Vec<String> =
            BACKENDS.iter().zip(files).map(|(name, file)| format!("{name}={file}")).collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        let from = ["--interface", topology.interfaces()[0], &frames];
        wire(&lab, &[&["judge"], &facts[..], &from, &named].concat());
        holdfast.stop();
    }
}
