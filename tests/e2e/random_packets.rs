//! Random packets through veth, the XDP program and AF_XDP: what arrives at the backends is judged by the
//! oracle of the conformance pack, which is not our code.

use std::fmt::Write as _;
use std::path::Path;

use super::oracle::capture;
use crate::lab::{
    BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, succeeded,
    wait_for,
};

/// Packets for each VIP.
const COUNT: &str = "300";
const CLIENT_MAC: &str = "02:00:00:00:01:10";

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
            writeln!(
                text,
                "[[neighbour]]\naddress = \"{address}\"\nmac = \"02:00:00:00:02:1{number}\""
            )
            .unwrap();
            writeln!(text, "interface = \"{interface}\"").unwrap();
        }
    }
    text
}

fn wire(lab: &Lab, host: &str, arguments: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/wire.py");
    let output = lab.try_run(host, &[&["/usr/bin/python3", "-B", script], arguments].concat());
    succeeded(&format!("wire.py {arguments:?}"), &output)
}

/// Sends packets to one VIP and has what arrives judged.
fn judge(lab: &Lab, holdfast: &Holdfast<'_>, files: [&str; 2], vip: &Vip, seed: usize) {
    let [config, neighbours] = files;
    let path = |name: &str| lab.state().join(name).to_str().unwrap().to_owned();
    let (frames, seed) = (path(&format!("{}.pcapng", vip.name)), seed.to_string());
    let clients = format!("{},{}", vip.family.client(0), vip.family.client(19));
    let facts = ["--config", config, "--neighbours", neighbours];
    let who = ["--vip", &vip.name, "--source", CLIENT_MAC, "--destination", BALANCER_MACS[0]];
    let what = ["--clients", &clients, "--seed", &seed, "--count", COUNT, &frames];
    wire(lab, "client", &[&["make"], &facts[..], &who, &what].concat());
    let captures = BACKENDS.map(|backend| capture(lab, backend, "eth0"));
    let before: u64 = received(holdfast);
    wire(lab, "client", &["send", "eth0", &frames]);
    let count: u64 = COUNT.parse().unwrap();
    // Some stay in the kernel: the test of the mark is the judge's.
    wait_for("most packets have come through", SOON, || {
        received(holdfast) >= before + count * 9 / 10
    });
    holdfast.assert_packets_accounted_for();
    let files = captures.map(|capture| capture.end());
    let named: Vec<String> = BACKENDS
        .iter()
        .zip(&files)
        .map(|(name, file)| format!("{name}={}", file.display()))
        .collect();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    let interface = lab.topology.interfaces()[0];
    wire(
        lab,
        "client",
        &[&["judge"], &facts[..], &["--interface", interface, &frames], &named].concat(),
    );
}

fn received(holdfast: &Holdfast<'_>) -> u64 {
    holdfast.status().workers.iter().map(|worker| worker.totals.received).sum()
}

#[test]
fn what_arrives_is_what_the_oracle_says() {
    for topology in Topology::ALL {
        let lab = Lab::up(topology);
        let vips = Vip::all();
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
        let files = ["holdfast.toml", "neighbours.toml"].map(|name| lab.state().join(name));
        std::fs::write(&files[1], neighbours(topology)).unwrap();
        let files = [&files[0], &files[1]].map(|file: &std::path::PathBuf| text(file));
        for (seed, vip) in vips.iter().enumerate() {
            judge(&lab, &holdfast, [&files[0], &files[1]], vip, seed);
        }
        holdfast.stop();
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
