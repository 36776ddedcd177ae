//! What is not for a VIP stays with the kernel of the same NIC.

use std::process::Command;

use crate::e2e::oracle::capture;
use crate::lab::{
    BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, Topology, Vip, requests, succeeded, vip,
};

/// One connection to the SSH-like server of the balancer's own address.
pub fn banner(lab: &Lab, family: Family) -> String {
    let script = format!("exec 3<>/dev/tcp/{}/22 && head -n1 <&3", family.balancer());
    lab.run("client", &["timeout", "5", "bash", "-c", &script])
}

fn ping(lab: &Lab, address: &str) {
    lab.run("client", &["ping", "-q", "-c", "3", "-i", "0.1", "-W", "1", address]);
}

#[test]
fn own_addresses_ping_and_neighbour_discovery_work() {
    for topology in Topology::ALL {
        let lab = Lab::up(topology);
        let vips = Vip::all();
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
        for vip in vips.iter().filter(|vip| !vip.udp) {
            let (family, address) = (vip.family, vip.address());
            assert_eq!(banner(&lab, family).trim(), "SSH-2.0-holdfast_lab");
            ping(&lab, family.balancer());
            ping(&lab, &address);
            // Asked anew, the kernel of the balancer answers for the VIP, and nobody else.
            lab.run("client", &["ip", "neigh", "flush", "dev", "eth0"]);
            requests(&lab, vip, 0, 30).assert_from(&vip.name, &BACKENDS);
            let neighbour = lab
                .run("client", &["ip", family.option(), "neigh", "show", &address, "dev", "eth0"]);
            assert!(neighbour.contains(BALANCER_MACS[0]), "{address}: {neighbour}");
        }
        assert!(holdfast.status().nics.iter().all(|nic| nic.passed > 0));
        holdfast.stop();
    }
}

/// docs/REPLAY.md, "Where to capture": XDP takes the packets of a VIP before a packet socket sees them, in both
/// modes, and what an AF_XDP socket sends passes none either.
#[test]
fn a_capture_on_the_box_has_no_packet_of_a_vip() {
    for keys in ["xdp = \"native\"", "xdp = \"generic\"\nmode = \"copy\""] {
        let lab = Lab::up(Topology::Stick);
        let nat = vip("nat", Family::V4, false);
        let config = Config { nic_keys: keys, ..Config::new(&lab, 2, vec![nat.clone()]) };
        let holdfast = Holdfast::start(&lab, &config);
        let places = [("lb", "eth0"), ("switch", "lb-eth0")];
        let captures = places.map(|(host, interface)| capture(&lab, host, interface));
        requests(&lab, &nat, 0, 50).assert_none_failed(keys);
        let packets = captures.map(|capture| {
            let mut command = Command::new("tcpdump");
            command.args(["-nr"]).arg(capture.end()).args(["tcp", "and", "host", "192.0.2.20"]);
            succeeded("tcpdump", &command.output().unwrap()).lines().count()
        });
        assert_eq!(packets[0], 0, "{keys}: the box sees packets of the VIP");
        assert!(packets[1] > 100, "{keys}: the switch sees {}", packets[1]);
        holdfast.stop();
    }
}

/// Traffic that the balancer's kernel routes passes the NIC unseen, and is not taken for replies.
#[test]
fn the_kernel_still_routes() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = Vip::all();
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips));
    for url in ["http://198.18.2.11/id", "http://[2001:db8:2::12]/id"] {
        let line = ["curl", "-s", "--noproxy", "*", "--max-time", "5", "-w", "%{http_code}", url];
        let answer = lab.run("client", &line);
        assert!(answer.ends_with("200"), "{url}: {answer}");
    }
    holdfast.stop();
}
