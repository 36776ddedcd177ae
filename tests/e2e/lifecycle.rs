//! Start, stop, sudden death, and the state that each leaves behind.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::e2e::guard::{guard, remove_guard};
use crate::e2e::kernel::banner;
use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Running, SOON, Topology, Vip, conversation, requests,
    vip, wait_for,
};

/// Identifiers of the XDP programs on the balancer's interfaces.
fn xdp_programs(lab: &Lab) -> Vec<u64> {
    let text = lab.run("lb", &["ip", "-json", "-details", "link", "show"]);
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let links = links.as_array().unwrap();
    links.iter().filter_map(|link| link["xdp"]["prog"]["id"].as_u64()).collect()
}

/// The maps of a program.
fn maps_of(program: u64) -> Vec<u64> {
    let id = program.to_string();
    let output = Command::new("bpftool").args(["-j", "prog", "show", "id", &id]).output().unwrap();
    let program: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    program["map_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// Whether the object exists in the kernel; `kind` is `prog` or `map`.
fn bpf_exists(kind: &str, id: u64) -> bool {
    let mut command = Command::new("bpftool");
    command.args([kind, "show", "id", &id.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

fn assert_nothing_left(lab: &Lab, config: &Config, programs: &[u64], maps: &[u64]) {
    assert_eq!(xdp_programs(lab), [] as [u64; 0]);
    let addresses = lab.run("lb", &["ip", "-br", "addr", "show"]);
    for vip in &config.vips {
        assert!(!addresses.contains(&vip.address()), "{}\n{addresses}", vip.address());
    }
    assert!(!Path::new(&config.socket).exists(), "the control socket is still there");
    // The kernel frees programs and maps a moment after their last use ends.
    wait_for("no program is left in the kernel", SOON, || {
        !programs.iter().any(|&id| bpf_exists("prog", id))
    });
    // The guard is all that is left, for a minute.
    for interface in lab.topology.interfaces() {
        assert!(guard(lab, interface).contains("holdfast_guard"), "{interface}");
        remove_guard(lab, interface);
    }
    wait_for("no map is left in the kernel", SOON, || {
        !maps.iter().any(|&id| bpf_exists("map", id))
    });
}

#[test]
fn sigterm_leaves_nothing_behind() {
    for topology in Topology::ALL {
        let lab = Lab::up(topology);
        let config = Config::new(&lab, 2, Vip::all());
        let holdfast = Holdfast::start(&lab, &config);
        let programs = xdp_programs(&lab);
        assert_eq!(programs.len(), topology.interfaces().len());
        let maps: Vec<u64> = programs.iter().flat_map(|&program| maps_of(program)).collect();
        requests(&lab, &config.vips[0], 0, 20).assert_none_failed("before the stop");
        holdfast.stop();
        assert_nothing_left(&lab, &config, &programs, &maps);
    }
}

/// Invariant 8: without its workers, VIP traffic is dropped. The kernel, which has the VIP's
/// address but no listener, would reset every connection.
///
/// With its state the next process finds the pin. Without it, the lookup table sends the client's
/// next packet to the same backend.
#[test]
fn after_sudden_death_connections_are_kept_for_the_next_process() {
    for (forward, family, state) in [("nat", Family::V4, "none"), ("dsr", Family::V6, "")] {
        let lab = Lab::up(Topology::Stick);
        let vip = vip(forward, family, false);
        let mut config = Config::new(&lab, 2, vec![vip.clone()]);
        if state == "none" {
            config.more = "[state]\ndirectory = \"none\"\n".to_owned();
        }
        let first = Holdfast::start(&lab, &config);
        let mut connection = conversation(&lab, &vip);
        let backend = connection.ask();
        assert!(BACKENDS.contains(&backend.as_str()), "{backend}");
        first.kill();

        let line = ["curl", "-s", "--noproxy", "*", "--connect-timeout", "1", &vip.url()];
        assert_eq!(lab.try_run("client", &line).status.code(), Some(28), "silence, not a refusal");
        assert_eq!(banner(&lab, family).trim(), "SSH-2.0-holdfast_lab");

        let second = Holdfast::start(&lab, &config);
        assert_eq!(connection.ask(), backend, "{}: the connection did not survive", vip.name);
        assert_eq!(second.status().totals.flows_by_hash, u64::from(state == "none"));
        requests(&lab, &vip, 0, 100).assert_from(&vip.name, &BACKENDS);
        let programs = xdp_programs(&lab);
        assert_eq!(programs.len(), 1, "the leftover was not replaced");
        let maps = maps_of(programs[0]);
        second.stop();
        assert_nothing_left(&lab, &config, &programs, &maps);
    }
}

/// Nothing is forwarded while a start reads and parses. aya's loader would parse the types of the whole
/// kernel, some 6 MB and 60 ms.
#[test]
fn a_start_does_not_read_the_types_of_the_kernel() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 2, vec![vip("dsr", Family::V4, false)]);
    let holdfast = Holdfast::start(&lab, &config);
    let types = std::fs::metadata("/sys/kernel/btf/vmlinux").unwrap().len();
    let io = std::fs::read_to_string(format!("/proc/{}/io", holdfast.pid())).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    let read: u64 = read.parse().unwrap();
    assert!((1..types / 2).contains(&read), "{read} bytes were read; the types have {types}");
    holdfast.stop();
}

#[test]
fn a_start_announces_the_vip_to_neighbours() {
    let lab = Lab::up(Topology::Stick);
    let vips = vec![vip("nat", Family::V4, false), vip("nat", Family::V6, false)];
    let capture = lab.state().join("announce.pcap");
    let capture = capture.to_str().unwrap();
    let mut command = lab.command("client", "tcpdump");
    command.args(["-i", "eth0", "-U", "--immediate-mode", "-w", capture]).stderr(Stdio::null());
    let tcpdump = Running::start(&mut command);
    wait_for("the capture begins", SOON, || Path::new(capture).exists());
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vips));
    let count = |filter: &str| {
        let output = Command::new("tshark").args(["-r", capture, "-Y", filter]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    wait_for("a gratuitous ARP for the VIP", SOON, || {
        count("arp.isgratuitous && arp.src.proto_ipv4 == 192.0.2.20") > 0
    });
    wait_for("an unsolicited neighbour advertisement for the VIP", SOON, || {
        count("icmpv6.type == 136 && icmpv6.nd.na.target_address == 2001:db8:100::20") > 0
    });
    tcpdump.interrupt();
    holdfast.stop();
}
