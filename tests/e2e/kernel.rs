//! Packets that are not for a VIP stay with the kernel of the same NIC.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::lab::{
    BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, requests,
    vip, wait_for,
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
            // Only the balancer's kernel replies to a new ARP or ND request for the VIP.
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

/// docs/REPLAY.md, "Where to capture": XDP takes the packets of a VIP before a packet socket sees
/// them, in both modes, and packets that an AF_XDP socket sends pass no packet socket either.
#[test]
fn a_capture_on_the_box_has_no_packet_of_a_vip() {
    for keys in ["xdp = \"native\"", "xdp = \"generic\"\nmode = \"copy\""] {
        let lab = Lab::up(Topology::Stick);
        let nat = vip("nat", Family::V4, false);
        let config = Config { nic_keys: keys, ..Config::new(&lab, 2, vec![nat.clone()]) };
        let holdfast = Holdfast::start(&lab, &config);
        let captures = [("lb", "eth0"), ("switch", "lb-eth0")].map(|(host, interface)| {
            let file = lab.state().join(format!("{host}-now.pcap"));
            let mut command = lab.command(host, "tcpdump");
            command.args(["-i", interface, "-U", "--immediate-mode", "-w"]).arg(&file);
            let running = Running::start(command.stderr(Stdio::null()));
            wait_for("the capture begins", SOON, || file.exists());
            (running, file)
        });
        let [(_box, on_box), (_switch, at_switch)] = &captures;
        let count = |file: &Path, filter: &[&str]| {
            // The last packet of a growing file may be incomplete.
            let mut command = Command::new("tcpdump");
            let output = command.arg("-nr").arg(file).args(filter).output().unwrap();
            String::from_utf8_lossy(&output.stdout).lines().count()
        };
        let of_vip = ["tcp", "and", "host", "192.0.2.20"];
        requests(&lab, &nat, 0, 50).assert_none_failed(keys);
        wait_for("the switch sees packets of the VIP", SOON, || count(at_switch, &of_vip) > 100);
        // The box has captured later packets, so it would have captured earlier ones.
        ping(&lab, Family::V4.balancer());
        wait_for("the box sees its own packets", SOON, || count(on_box, &["icmp"]) > 0);
        assert_eq!(count(on_box, &of_vip), 0, "{keys}: the box sees packets of the VIP");
        holdfast.stop();
    }
}

/// Traffic that the balancer's kernel routes passes the NIC unchanged, and is not treated as
/// replies.
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
