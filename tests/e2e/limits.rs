//! A flow table that is full: a flood replaces its own flows, established ones are not touched.

use crate::lab::{BALANCER_MACS, Config, Family, Holdfast, Lab, Topology, download, requests, vip};

#[test]
fn a_full_flow_table_harms_no_established_flow() {
    let lab = Lab::up(Topology::Stick);
    let mut nat = vip("nat", Family::V4, false);
    // The entries of the flood expire soon.
    nat.timeouts = "{ embryonic_s = 2, closing_s = 2 }";
    let config = Config { flows: 1024, ..Config::new(&lab, 1, vec![nat.clone()]) };
    let holdfast = Holdfast::start(&lab, &config);
    let mut transfer = download(&lab, &nat, Some("3m"));
    transfer.backend();

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/syn_flood.py");
    let (mac, address) = (BALANCER_MACS[0], nat.address());
    lab.run("client", &["/usr/bin/python3", script, "eth0", mac, &address, "3000"]);
    let status = holdfast.status();
    assert!(status.totals.flows_evicted > 1000, "{:?}", status.totals);
    assert_eq!(status.drops["table_full"], 0, "{:?}", status.drops);
    assert!(status.totals.flows_active <= 1024, "{}", status.totals.flows_active);

    assert!(transfer.goes_on(), "the transfer ended before the flood did");
    assert!(transfer.ends_well(), "the flood broke an established flow");
    holdfast.wait_until("the flood's flows have idled out", |s| s.totals.flows_active < 100);
    requests(&lab, &nat, 0, 50).assert_none_failed("after the flood");
    holdfast.stop();
}
