//! What is not for a VIP stays with the kernel of the same NIC.

use crate::lab::{BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, Topology, Vip, requests};

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
