//! An independent judge: tshark looks at every packet that the balancer sent.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::{
    BALANCER_MACS, Config, Holdfast, Lab, Running, SOON, Topology, Vip, requests, succeeded,
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

/// What tshark thinks of the packets that the balancer sent.
#[derive(Debug, Default)]
struct Verdict {
    /// Packets whose TCP or UDP checksum was computed and is right.
    good: usize,
    /// A line for each packet with a wrong checksum, or malformed.
    bad: Vec<String>,
}

fn judge(file: &Path) -> Verdict {
    let mut command = Command::new("tshark");
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    let [first, second] = BALANCER_MACS;
    let from_balancer = format!("eth.src == {first} || eth.src == {second}");
    command.arg("-r").arg(file).args(["-Y", &from_balancer, "-T", "fields"]);
    for field in
        ["ip.checksum", "tcp.checksum", "udp.checksum"].map(|name| format!("{name}.status"))
    {
        command.args(["-e", &field]);
    }
    command.args(["-e", "_ws.malformed", "-e", "frame.number", "-e", "_ws.col.Info"]);
    let output = command.output().unwrap();
    let mut verdict = Verdict::default();
    for line in succeeded("tshark", &output).lines() {
        // Checksum fields: 0 is bad, 1 is good, empty or else is not there.
        let fields: Vec<&str> = line.split('\t').collect();
        if fields[..3].contains(&"0") || !fields[3].is_empty() {
            verdict.bad.push(line.to_owned());
        } else if fields[1..3].contains(&"1") {
            verdict.good += 1;
        }
    }
    verdict
}

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
                // Full-size packets: 2 MB of them.
                let range = format!("{}/big", vip.url());
                lab.run(
                    "client",
                    &["curl", "-s", "--noproxy", "*", "-r", "0-1999999", "-o", "/dev/null", &range],
                );
            }
        }
        holdfast.stop();
        for Capture { tcpdump, file } in captures {
            tcpdump.interrupt();
            let Verdict { good, bad } = judge(&file);
            assert!(bad.is_empty(), "{}:\n{}", file.display(), bad.join("\n"));
            assert!(good > 500, "{}: the judge saw only {good} packets", file.display());
        }
    }
}
