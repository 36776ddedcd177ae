//! Every mode and family, TCP and UDP, with one worker and with two, on one NIC and between two.

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Topology, Vip, download, requests, udp_requests, vip,
};

/// Forwards through every kind of VIP, in one lab and one process.
fn forwards_everything(topology: Topology, workers: usize) {
    let lab = Lab::up(topology);
    let vips = Vip::all();
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, workers, vips.clone()));
    for vip in vips {
        let name = &vip.name;
        if vip.udp {
            udp_requests(&lab, &vip, 200).assert_from(name, &BACKENDS);
        } else {
            requests(&lab, &vip, 0, 200).assert_from(name, &BACKENDS);
            assert!(download(&lab, &vip, None).ends_well(), "{name}: download");
        }
    }
    let status = holdfast.status();
    assert_eq!(status.workers.len(), workers);
    for worker in &status.workers {
        assert!(worker.totals.received > 0, "a worker had nothing to do: {worker:#?}");
    }
    for vip in &status.vips {
        let traffic = &vip.traffic;
        assert_eq!(
            traffic.flows_total,
            if vip.ports == [7.into()] { 200 } else { 201 },
            "{vip:#?}"
        );
        assert_eq!(traffic.dropped, 0, "{vip:#?}");
    }
    holdfast.stop();
}

#[test]
fn on_a_stick_with_one_worker() {
    forwards_everything(Topology::Stick, 1);
}

#[test]
fn on_a_stick_with_two_workers() {
    forwards_everything(Topology::Stick, 2);
}

#[test]
fn between_two_nics_with_one_worker() {
    forwards_everything(Topology::TwoNic, 1);
}

#[test]
fn between_two_nics_with_two_workers() {
    forwards_everything(Topology::TwoNic, 2);
}

#[test]
fn with_generic_xdp_where_that_is_asked_for() {
    let lab = Lab::up(Topology::Stick);
    let vips = vec![vip("nat", Family::V4, false), vip("dsr", Family::V6, false)];
    let mut config = Config::new(&lab, 2, vips.clone());
    config.nic_keys = "xdp = \"generic\"\nmode = \"copy\"";
    let holdfast = Holdfast::start(&lab, &config);
    for vip in &vips {
        requests(&lab, vip, 0, 100).assert_from(&vip.name, &BACKENDS);
        assert!(download(&lab, vip, None).ends_well(), "{}: download", vip.name);
    }
    let nic = &holdfast.status().nics[0];
    assert_eq!((nic.xdp.as_str(), nic.mode.as_str()), ("generic", "copy"));
    holdfast.stop();
}

/// Replies of NAT arrive at the worker that the NIC picks by a hash of their own addresses and
/// ports, which differ from those of the client's packets.
#[test]
fn replies_at_the_other_worker_find_their_flow() {
    let lab = Lab::up(Topology::TwoNic);
    for family in Family::ALL {
        let mut nat = vip("nat", family, false);
        // The flows still exist when the requests are over.
        nat.timeouts = "{ closing_s = 60 }";
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
        for client in 0..20 {
            requests(&lab, &nat, client, 20).assert_none_failed(&nat.name);
        }
        let status = holdfast.status();
        assert_eq!(status.totals.flows_new, 400);
        assert_eq!(status.totals.flows_by_hash, 0);
        assert_eq!(status.drops["return_no_flow"], 0);
        // Of 400 flows, about half have their replies at the other worker. Fewer than a tenth would
        // mean that the lab does not exercise this case.
        let elsewhere: u64 = status.workers.iter().map(|worker| worker.flow_aliases).sum();
        assert!(elsewhere > 40, "{elsewhere} of 400 flows had replies at the other worker");
        holdfast.stop();
    }
}

/// A client has the same backend at every worker.
#[test]
fn flows_lists_the_pins_that_there_are() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    let mut transfer = download(&lab, &nat, Some("8m"));
    let backend = transfer.backend();
    let text = holdfast.ok(&["flows", "--vip", "nat4", "--backend", &backend, "--json"]);
    let flows: Vec<holdfast::control::api::Flow> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(flows.len(), 1, "{flows:#?}");
    assert_eq!(flows[0].state, "established");
    assert_eq!(flows[0].client.ip().to_string(), Family::V4.client(0));
    assert_eq!(flows[0].destination.to_string(), "192.0.2.20:80");
    let none = holdfast.ok(&["flows", "--client", "203.0.113.0/24", "--json"]);
    assert_eq!(none.trim(), "");
    assert!(holdfast.ok(&["flows"]).contains("198.18.1.10"));
    assert!(transfer.goes_on());
    holdfast.stop();
}
