//! An independent judge: tshark examines every packet that the balancer sent.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::{
    BALANCER_MACS, Config, Holdfast, Lab, Running, SOON, Topology, Vip, requests, succeeded,
    udp_requests, wait_for,
};

/// A capture of packets that arrive at a host.
pub struct Capture {
    tcpdump: Running,
    file: PathBuf,
}

impl Capture {
    /// Ends the capture; returns its file.
    pub fn end(self) -> PathBuf {
        let Self { tcpdump, file } = self;
        tcpdump.interrupt();
        file
    }

    /// Ends the capture and returns its file; panics unless it has more than `least` packets of the
    /// balancer, all well-formed.
    pub fn assert_well_formed(self, least: usize) -> PathBuf {
        let file = self.end();
        let Verdict { good, bad } = judge(&file);
        assert!(bad.is_empty(), "{}:\n{}", file.display(), bad.join("\n"));
        assert!(good > least, "{}: the judge saw only {good} packets", file.display());
        file
    }
}

/// Starts a capture.
pub fn capture(lab: &Lab, host: &str, interface: &str) -> Capture {
    let file = lab.state().join(format!("{host}.pcap"));
    let mut command = lab.command(host, "tcpdump");
    // -B: a buffer (KiB) for all packets, so that the capture loses none.
    command.args(["-i", interface, "-B", "65536", "-w"]).arg(&file).stderr(Stdio::null());
    let tcpdump = Running::start(&mut command);
    wait_for("the capture begins", SOON, || Path::new(&file).exists());
    Capture { tcpdump, file }
}

/// Verdict of tshark on the packets that the balancer sent.
#[derive(Debug, Default)]
struct Verdict {
    /// Packets with a computed and right TCP or UDP checksum.
    good: usize,
    /// A line for each packet with a wrong checksum, or malformed.
    bad: Vec<String>,
}

// Values of the status fields; empty or another value where there is no checksum.
const BAD: &str = "0";
const GOOD: &str = "1";
const FIELDS: [&str; 8] = [
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "_ws.malformed",
    "tcp.checksum",
    "tcp.checksum_calculated",
    "frame.number",
    "_ws.col.Info",
];

/// Protocols that holdfast reads and writes.
const HEADERS: [&str; 8] = ["eth", "ip", "ipv6", "icmp", "icmpv6", "tcp", "udp", "data"];
/// Tables by which tshark chooses a dissector for a payload: by port, and by heuristics.
const PAYLOAD_TABLES: [&str; 6] =
    ["tcp.port", "udp.port", "tcp", "udp", "tcp.payload", "udp.payload"];

/// Every protocol that tshark might see in a payload. Random bytes, or a client's port, would make
/// it take a stream for a protocol's, and call packets malformed that are not.
fn payload_protocols() -> BTreeSet<String> {
    let mut protocols = BTreeSet::new();
    // Rows of `decodes` are table, selector, protocol; of `heuristic-decodes` table, protocol,
    // enabled.
    for (listing, column) in [("decodes", 2), ("heuristic-decodes", 1)] {
        let output = Command::new("tshark").args(["-G", listing]).output().unwrap();
        for line in succeeded("tshark", &output).lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            if PAYLOAD_TABLES.contains(&fields[0]) && !HEADERS.contains(&fields[column]) {
                protocols.insert(fields[column].to_owned());
            }
        }
    }
    assert!(protocols.contains("http"), "tshark -G lists {} protocols", protocols.len());
    protocols
}

fn judge(file: &Path) -> Verdict {
    let mut command = Command::new("tshark");
    for protocol in payload_protocols() {
        command.args(["--disable-protocol", &protocol]);
    }
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    let [first, second] = BALANCER_MACS;
    let from_balancer = format!("eth.src == {first} || eth.src == {second}");
    command.arg("-r").arg(file).args(["-Y", &from_balancer, "-T", "fields"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let mut verdict = Verdict::default();
    for line in succeeded("tshark", &output).lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [ip, tcp, udp, malformed, checksum, calculated, ..] = fields[..] else {
            panic!("{line}")
        };
        // Linux writes a TCP checksum of 0 as 0xffff, which is the same number in one's complement
        // (RFC 1071); tshark warns of it.
        let tcp = if (checksum, calculated) == ("0xffff", "0x0000") { GOOD } else { tcp };
        if [ip, tcp, udp].contains(&BAD) || !malformed.is_empty() {
            verdict.bad.push(line.to_owned());
        } else if [tcp, udp].contains(&GOOD) {
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
        for capture in captures {
            capture.assert_well_formed(500);
        }
    }
}
