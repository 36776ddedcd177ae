//! An independent judge: tshark looks at every packet that the balancer sent.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::{
    BALANCER_MACS, Config, Holdfast, Lab, Running, SOON, Topology, Vip, download, requests,
    udp_requests, wait_for,
};

/// A capture of what arrives at a host.
struct Capture {
    tcpdump: Running,
    file: PathBuf,
}

fn capture(lab: &Lab, host: &str, interface: &str) -> Capture {
    let file = lab.state().join(format!("{host}.pcap"));
    let mut command = lab.command(host, "tcpdump");
    // -B: a buffer (KiB) for all of it, so that the judge misses nothing.
    command.args(["-i", interface, "-B", "65536", "-w"]).arg(&file).stderr(Stdio::null());
    let tcpdump = Running::start(&mut command);
    wait_for("the capture begins", SOON, || Path::new(&file).exists());
    Capture { tcpdump, file }
}

/// How many packets that the balancer sent fit the filter.
fn count(file: &Path, filter: &str) -> usize {
    let mut command = Command::new("tshark");
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    let [first, second] = BALANCER_MACS;
    let from_balancer = format!("(eth.src == {first} || eth.src == {second}) && ({filter})");
    command.arg("-r").arg(file).args(["-Y", &from_balancer, "-T", "fields", "-e", "frame.number"]);
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().count()
}

// Values of tshark's checksum fields: 0 is bad, 1 is good.
const BAD: &str = "ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0";
const GOOD: &str = "tcp.checksum.status == 1 || udp.checksum.status == 1";

#[test]
fn every_packet_that_is_sent_is_well_formed() {
    for topology in Topology::ALL {
        let lab = Lab::up(topology);
        let vips = Vip::all();
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
        let captures: Vec<Capture> =
            ["client", "b1", "b2", "b3"].map(|host| capture(&lab, host, "eth0")).into();
        for vip in &vips {
            if vip.udp {
                udp_requests(&lab, vip, 60).assert_none_failed(&vip.name);
            } else {
                requests(&lab, vip, 0, 60).assert_none_failed(&vip.name);
                assert!(download(&lab, vip, Some("20m")).ends_well(), "{}", vip.name);
            }
        }
        holdfast.stop();
        for Capture { tcpdump, file } in captures {
            tcpdump.interrupt();
            let name = file.display();
            assert_eq!(count(&file, BAD), 0, "{name}: bad checksums");
            assert_eq!(count(&file, "_ws.malformed"), 0, "{name}: malformed");
            let good = count(&file, GOOD);
            assert!(good > 500, "{name}: the judge saw only {good} packets of the balancer");
        }
    }
}
