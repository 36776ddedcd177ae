//! Packets longer than 1,500 bytes: in one frame of 4096 bytes, and in several (multi-buffer).

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::oracle::capture;
use crate::lab::{
    BALANCER_MACS, Config, Family, Holdfast, Lab, Running, SOON, Topology, succeeded, vip, wait_for,
};

/// Bytes of a stream in each direction.
const STREAM: &str = "20000000";
const PORT: u16 = 9000;
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/stream.py");

/// Sets the MTU of all links of the lab.
fn set_mtu(lab: &Lab, mtu: u32) {
    for host in ["client", "lb", "b1", "b2", "b3", "switch"] {
        for line in lab.run(host, &["ip", "-o", "link", "show", "type", "veth"]).lines() {
            let name = line.split([' ', '@']).nth(1).unwrap();
            lab.run(host, &["ip", "link", "set", name, "mtu", &mtu.to_string()]);
        }
    }
}

/// VIPs with one backend each, the stream server on b1.
fn streams() -> (Vec<(String, String)>, String) {
    let (mut names, mut text) = (Vec::new(), String::new());
    for forward in ["dsr", "nat"] {
        for family in Family::ALL {
            let vip = vip(forward, family, false);
            let (name, address) = (format!("{}-stream", vip.name), vip.address());
            write!(
                text,
                r#"
[[vip]]
name = "{name}"
address = "{address}"
ports = [{PORT}]
protocol = "tcp"
forward = "{forward}"
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2, port = 80 }}
[[vip.backend]]
name = "b1"
address = "{}"
"#,
                family.backend("b1")
            )
            .unwrap();
            names.push((name, address));
        }
    }
    (names, text)
}

/// Packets in a capture that are longer than `longer` bytes and come from the balancer.
fn longer_than(longer: u32, file: &Path) -> usize {
    let [first, second] = BALANCER_MACS;
    let wanted = format!("greater {longer} and (ether src {first} or ether src {second})");
    let mut command = Command::new("tcpdump");
    succeeded("tcpdump", &command.args(["-qnr"]).arg(file).arg(wanted).output().unwrap())
        .lines()
        .count()
}

/// Forwards TCP streams and long datagrams in both directions, in both modes and families.
fn forwards(topology: Topology, mtu: u32, frame_size: &'static str, multi_buffer: bool) {
    let lab = Lab::up(topology);
    set_mtu(&lab, mtu);
    let mut server = lab.command("b1", "/usr/bin/python3");
    let _server = Running::start(server.args([SCRIPT, "serve", &PORT.to_string()]));
    wait_for("the server of streams listens", SOON, || {
        !lab.run("b1", &["ss", "-Hltn", &format!("sport = :{PORT}")]).is_empty()
    });
    let datagrams: Vec<_> = [("dsr", Family::V4), ("nat", Family::V4), ("nat", Family::V6)]
        .map(|(forward, family)| vip(forward, family, true))
        .into();
    let mut config = Config::new(&lab, 2, datagrams.clone());
    let (streams, more) = streams();
    (config.worker_keys, config.more) = (frame_size, more);
    let holdfast = Holdfast::start(&lab, &config);
    for nic in holdfast.status().nics {
        assert_eq!(nic.multi_buffer, multi_buffer, "{nic:#?}");
    }
    let captures = ["client", "b1"].map(|host| capture(&lab, host, "eth0"));
    for (name, address) in &streams {
        let output = lab.try_run(
            "client",
            &["/usr/bin/python3", SCRIPT, "ask", address, &PORT.to_string(), STREAM],
        );
        succeeded(&format!("{name}, MTU {mtu}"), &output);
    }
    for vip in &datagrams {
        let local = format!("{}:0", bracketed(&vip.family.client(0)));
        let socket = lab.udp_socket("client", local.parse().unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        let sent: Vec<u8> = (0..=255).cycle().take(mtu as usize - 100).collect();
        let to = format!("{}:7", bracketed(&vip.address()));
        socket.send_to(&sent, &to).unwrap();
        let mut back = vec![0; 65_535];
        let (len, from) = socket.recv_from(&mut back).unwrap();
        assert_eq!(from.to_string(), to, "{}", vip.name);
        assert!(back[..len].ends_with(&sent), "{}: {len} bytes came back", vip.name);
    }
    holdfast.assert_packets_accounted_for();
    let status = holdfast.status();
    for vip in &status.vips {
        assert_eq!(vip.traffic.dropped, 0, "{vip:#?}");
        assert!(!vip.name.ends_with("stream") || vip.traffic.bytes_in > 20_000_000, "{vip:#?}");
    }
    holdfast.stop();
    for capture in captures {
        let file = capture.assert_well_formed(1_000);
        let longest = mtu * 4 / 5;
        let found = longer_than(longest, &file);
        assert!(found > 1_000, "{}: {found} packets of over {longest} bytes", file.display());
    }
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

#[test]
fn jumbo_frames_on_one_nic() {
    forwards(Topology::Stick, 9000, "frame_size = 2048", true);
}

#[test]
fn jumbo_frames_between_two_nics() {
    forwards(Topology::TwoNic, 9000, "frame_size = 4096", true);
}

#[test]
fn packets_that_fit_into_a_large_frame_need_no_multi_buffer() {
    forwards(Topology::Stick, 3000, "frame_size = 4096", false);
}

/// A NIC with a small MTU gets no long packet, and the sender gets an error with the MTU.
#[test]
fn a_jumbo_frame_for_a_nic_with_a_small_mtu_is_answered() {
    let lab = Lab::up(Topology::TwoNic);
    set_mtu(&lab, 9000);
    lab.run("lb", &["ip", "link", "set", "back", "mtu", "1500"]);
    let vip = vip("nat", Family::V4, true);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![vip.clone()]));
    let multi_buffer: Vec<bool> =
        holdfast.status().nics.iter().map(|nic| nic.multi_buffer).collect();
    assert_eq!(multi_buffer, [true, false]);
    let socket = lab.udp_socket("client", "198.18.1.10:0".parse().unwrap());
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket.send_to(&[7; 8_900], format!("{}:7", vip.address())).unwrap();
    holdfast.wait_until("it is answered", |status| status.answers["icmp_too_big_sent"] == 1);
    // The client's kernel may process the error a moment later.
    let route = || lab.run("client", &["ip", "route", "get", &vip.address()]);
    assert!((0..100).any(|_| route().contains("mtu 1500")), "{}", route());
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}
