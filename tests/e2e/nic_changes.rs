//! A NIC that changes at run time is reported in the log, as an event and in the status.

use serde_json::Value;

use crate::lab::{BALANCER_MACS, Config, Family, Holdfast, Lab, Topology, requests, vip};

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

#[test]
fn changes_of_a_nic_are_noticed() {
    let lab = Lab::up(Topology::Stick);
    // Of the two queues of the pair, one is in use at the start.
    lab.run("switch", &["ethtool", "-L", "lb-eth0", "tx", "1"]);
    lab.run("lb", &["ethtool", "-L", "eth0", "rx", "1"]);
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![nat.clone()]));
    requests(&lab, &nat, 0, 10).assert_none_failed("before the changes");
    assert_faults(&holdfast, &[]);

    lab.run("lb", &["ip", "link", "set", "eth0", "address", "02:00:00:00:09:09"]);
    assert_faults(&holdfast, &["mac_changed"]);
    lab.run("lb", &["ip", "link", "set", "eth0", "address", BALANCER_MACS[0]]);
    assert_faults(&holdfast, &[]);

    lab.run("lb", &["ethtool", "-L", "eth0", "rx", "2"]);
    assert_faults(&holdfast, &["queues_unserved"]);
    lab.run("lb", &["ethtool", "-L", "eth0", "rx", "1"]);
    assert_faults(&holdfast, &[]);

    lab.run("switch", &["ip", "link", "set", "lb-eth0", "down"]);
    assert_faults(&holdfast, &["no_carrier"]);
    lab.run("switch", &["ip", "link", "set", "lb-eth0", "up"]);
    assert_faults(&holdfast, &[]);
    assert_eq!(told(&holdfast, "nic_mended"), ["mac_changed", "queues_unserved", "no_carrier"]);

    lab.run("lb", &["ip", "link", "set", "dev", "eth0", "xdp", "off"]);
    assert_faults(&holdfast, &["program_gone"]);
    lab.run("lb", &["ip", "link", "delete", "eth0"]);
    assert_faults(&holdfast, &["gone"]);
    lab.run("lb", &["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"]);
    assert_faults(&holdfast, &["made_again"]);
    holdfast.stop();
}
