//! A NIC that changes at run time is reported in the log, as an event and in the status; holdfast
//! follows the change, or ends for its supervisor to start it again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use holdfast::control::api::HealthState;
use serde_json::Value;

use crate::e2e::guard::{Capture, guard};
use crate::lab::{
    BALANCER_MACS, Config, Family, Holdfast, Lab, SOON, Topology, conversation, requests,
    transfers, tunnel, vip, wait_for,
};

const OTHER_MAC: &str = "02:00:00:00:09:09";

/// Events of a kind about the NIC, each with its present or past fault.
fn told(holdfast: &Holdfast<'_>, kind: &str) -> Vec<String> {
    let lines = holdfast.ok(&["events", "--json"]);
    let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_kind = events.filter(|event| event["kind"] == kind && event["nic"] == "eth0");
    of_kind.map(|event| event["fault"].as_str().unwrap().to_owned()).collect()
}

/// Waits until the status has exactly these faults; then they are in events, log and table, too.
fn assert_faults(holdfast: &Holdfast<'_>, expected: &[&str]) {
    holdfast.wait_until(&format!("faults of eth0: {expected:?}"), |status| {
        let faults = status.nics[0].faults.iter().map(|fault| fault.kind.as_str());
        faults.eq(expected.iter().copied())
    });
    let (events, log, table) =
        (told(holdfast, "nic_fault"), holdfast.log(), holdfast.ok(&["status"]));
    assert_eq!(table.contains("NIC FAULTS"), !expected.is_empty(), "{table}");
    for (fault, shown) in expected.iter().zip(holdfast.status().nics[0].faults.iter()) {
        assert!(events.iter().any(|event| event == fault), "{fault}: {events:?}");
        assert!(log.contains(&format!("NIC eth0: {}", shown.text)), "{fault}: {log}");
        assert!(table.contains(&shown.text), "{fault}: {table}");
    }
}

/// Waits until a fault has come and gone.
fn assert_repaired(holdfast: &Holdfast<'_>, fault: &str) {
    wait_for(&format!("{fault} is repaired"), SOON, || {
        told(holdfast, "nic_mended").iter().any(|mended| mended == fault)
    });
    assert!(told(holdfast, "nic_fault").iter().any(|found| found == fault));
    assert_faults(holdfast, &[]);
}

/// Deletes the balancer's NIC, with its sockets, addresses and programs.
fn delete_nic(lab: &Lab) {
    lab.run("lb", &["ip", "link", "delete", "eth0"]);
}

/// Makes the NIC again, as `scripts/lab` does, but leaves it down.
fn make_nic(lab: &Lab) {
    let queues = ["numrxqueues", "2", "numtxqueues", "2"];
    let link = ["ip", "link", "add", "eth0", "address", BALANCER_MACS[0]];
    let switch = lab.namespace("switch");
    let peer = ["type", "veth", "peer", "name", "lb-eth0", "netns", &switch];
    lab.run("lb", &[&link[..], &queues, &peer, &queues].concat());
    lab.run("lb", &["ethtool", "-K", "eth0", "tx", "off", "txvlan", "off"]);
    lab.run("switch", &["ethtool", "-K", "lb-eth0", "txvlan", "off"]);
    lab.run("switch", &["ip", "link", "set", "lb-eth0", "master", "front", "up"]);
}

fn raise_nic(lab: &Lab) {
    lab.run("lb", &["ip", "link", "set", "eth0", "up"]);
    for address in ["198.18.1.2/24", "198.18.2.2/24", "2001:db8:1::2/64", "2001:db8:2::2/64"] {
        lab.run("lb", &["ip", "addr", "add", address, "dev", "eth0"]);
    }
}

#[test]
fn changes_of_a_nic_are_noticed_and_followed() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let config = Config::new(&lab, 2, vec![nat.clone()]);
    let holdfast = Holdfast::start(&lab, &config);
    let answers = |what: &str| requests(&lab, &nat, 0, 10).assert_none_failed(what);
    answers("before the changes");
    assert_faults(&holdfast, &[]);

    lab.run("lb", &["ip", "link", "set", "eth0", "address", OTHER_MAC]);
    assert_repaired(&holdfast, "mac_changed");
    answers("with another MAC");
    let neighbour = lab.run("client", &["ip", "neigh", "show", &nat.address()]);
    assert!(neighbour.contains(OTHER_MAC), "{neighbour}");

    lab.run("lb", &["ip", "link", "set", "dev", "eth0", "xdp", "off"]);
    assert_repaired(&holdfast, "program_gone");
    answers("with the program attached again");

    lab.run("lb", &["tc", "qdisc", "delete", "dev", "eth0", "clsact"]);
    assert_repaired(&holdfast, "guard_gone");
    assert!(guard(&lab, "eth0").contains("holdfast_guard"), "{}", guard(&lab, "eth0"));

    lab.run("switch", &["ip", "link", "set", "lb-eth0", "down"]);
    assert_faults(&holdfast, &["no_carrier"]);
    lab.run("switch", &["ip", "link", "set", "lb-eth0", "up"]);
    assert_repaired(&holdfast, "no_carrier");
    // Health checks and next hops take a moment to notice.
    wait_for("requests are answered again", SOON, || requests(&lab, &nat, 0, 10).failed == 0);
    for mtu in ["1400", "1500"] {
        lab.run("lb", &["ip", "link", "set", "eth0", "mtu", mtu]);
        answers("with another MTU");
    }

    delete_nic(&lab);
    assert_faults(&holdfast, &["gone"]);
    make_nic(&lab);
    assert_faults(&holdfast, &["made_again", "down"]);
    assert!(guard(&lab, "eth0").contains("holdfast_guard"), "{}", guard(&lab, "eth0"));
    raise_nic(&lab);
    let log = holdfast.ends_for_a_start();
    assert!(log.contains("NIC eth0: the interface has been removed and made again"), "{log}");
    let holdfast = Holdfast::start(&lab, &config);
    answers("with another NIC");
    holdfast.stop();
}

#[test]
fn queues_that_no_socket_serves_are_reported_or_served_by_a_start() {
    let lab = Lab::up(Topology::Stick);
    // Of the two queues of the pair, one is in use at the start.
    lab.run("switch", &["ethtool", "-L", "lb-eth0", "tx", "1"]);
    lab.run("lb", &["ethtool", "-L", "eth0", "rx", "1"]);
    let nat = vip("nat", Family::V4, false);
    let all = Config::new(&lab, 1, vec![nat.clone()]);
    let holdfast = Holdfast::start(&lab, &all);
    lab.run("lb", &["ethtool", "-L", "eth0", "rx", "2"]);
    let log = holdfast.ends_for_a_start();
    assert!(log.contains("NIC eth0: it has 2 queues"), "{log}");

    let holdfast = Holdfast::start(&lab, &all);
    assert_eq!(holdfast.status().nics[0].queues, [0, 1]);
    holdfast.stop();

    // An operator who selects queues decides about others. The kernel gives up the queues of an ended
    // process some time later (xp_release_deferred in net/xdp/xsk_buff_pool.c).
    wait_for("the queue is given up", SOON, || {
        lab.try_run("lb", &["ethtool", "-L", "eth0", "rx", "1"]).status.success()
    });
    let selected = Config { nic_keys: "queues = [0]", ..all };
    let holdfast = Holdfast::start(&lab, &selected);
    assert_faults(&holdfast, &[]);
    holdfast.stop();
}

/// Addresses of VIPs on the balancer.
fn addresses(lab: &Lab) -> usize {
    lab.run("lb", &["ip", "-br", "addr", "show"]).matches("192.0.2.20/32").count()
}

/// Another application's program is not removed: connections wait until it is gone.
#[test]
fn addresses_are_withdrawn_while_another_program_is_attached() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    let mut connection = conversation(&lab, &nat);
    let backend = connection.ask();
    let (source, object) = (lab.state().join("other.c"), lab.state().join("other.o"));
    let program = "__attribute__((section(\"xdp\"), used)) int other(void *c) { return c ? 2 : 2; }\n\
                   char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    std::fs::write(&source, program).unwrap();
    let (source, object) = (source.to_str().unwrap(), object.to_str().unwrap());
    lab.run("lb", &["clang", "-O2", "-g", "-target", "bpf", "-c", source, "-o", object]);
    let set = ["ip", "-force", "link", "set", "dev", "eth0"];
    lab.run("lb", &[&set[..], &["xdpdrv", "obj", object, "sec", "xdp"]].concat());
    assert_faults(&holdfast, &["program_replaced"]);
    wait_for("the address is withdrawn", SOON, || addresses(&lab) == 0);
    lab.run("lb", &[&set[..], &["xdpdrv", "off"]].concat());
    assert_repaired(&holdfast, "program_gone");
    wait_for("the address is announced again", SOON, || addresses(&lab) == 1);
    assert_eq!(connection.ask(), backend);
    holdfast.stop();
}

/// The program is removed, and some seconds later the MAC changes, below 120 connections of all
/// modes.
#[test]
fn no_connection_breaks_when_the_program_goes_or_the_mac_changes() {
    let lab = Lab::up(Topology::Stick);
    let mut vips = Vec::new();
    for family in Family::ALL {
        vips.extend(["nat", "dsr", "full_nat"].map(|forward| vip(forward, family, false)));
        vips.push(tunnel("ipip", family, Family::V4));
    }
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    let capture = Capture::begin(&lab, "client", "eth0");
    for (change, line) in [
        ("program removed", &["ip", "link", "set", "dev", "eth0", "xdp", "off"][..]),
        ("MAC changed", &["ip", "link", "set", "eth0", "address", OTHER_MAC]),
    ] {
        let transfers = transfers(&lab, &vips, 4, 15);
        sleep(Duration::from_millis(500));
        let begun = Instant::now();
        lab.run("lb", line);
        let ended = transfers.end();
        println!("{change}: {} ms without an answer, {:?}", ended.gap_ms, begun.elapsed());
        assert_eq!((ended.transfers, &ended.broken), (120, &Vec::new()), "{change}");
        capture.assert_no_reset(change);
    }
    assert_eq!(told(&holdfast, "nic_fault"), ["program_gone", "mac_changed"]);
    holdfast.stop();
}

/// Each MAC is announced twice, a second apart: the first one must not be announced after the second.
#[test]
fn backends_know_the_last_of_two_macs() {
    let lab = Lab::up(Topology::Stick);
    let vips = Family::ALL.map(|family| vip("dsr", family, false));
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.to_vec()));
    for mac in [OTHER_MAC, BALANCER_MACS[0]] {
        lab.run("lb", &["ip", "link", "set", "eth0", "address", mac]);
        sleep(Duration::from_millis(600));
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        for vip in &holdfast.status().vips {
            let up = vip.backends.iter().filter(|backend| backend.health == HealthState::Up);
            assert_eq!(up.count(), 3, "{:?} after the change: {vip:#?}", begun.elapsed());
        }
        sleep(Duration::from_millis(50));
    }
    holdfast.stop();
}
