//! A flow table that is full: a flood replaces its own flows, established ones are not touched.
//! Backends at their limit of connections.

use crate::lab::{
    BALANCER_MACS, Config, Conversation, Family, Holdfast, Lab, Topology, conversation, download,
    requests, vip,
};

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

/// New connections go to another backend, and are refused where all are full; open ones are not
/// touched, also when a reload lowers the limit.
#[test]
fn a_backend_at_its_limit_takes_no_new_connections() {
    let lab = Lab::up(Topology::Stick);
    let mut nat = vip("nat", Family::V6, false);
    nat.backends = vec!["b1", "b2"];
    let config = Config::new(&lab, 1, vec![nat.clone()]);
    let limited = |max| {
        config.toml().replace("port = 8080", &format!("port = 8080\nmax_connections = {max}"))
    };
    let holdfast = Holdfast::start(&lab, &config);
    holdfast.write_text(&limited(3));
    let changes = holdfast.ok(&["reload"]);
    assert!(changes.contains("backend b1 of VIP nat6: max_connections none -> 3"), "{changes}");

    let mut open: Vec<(Conversation, String)> = Vec::new();
    for _ in 0..6 {
        let mut conversation = conversation(&lab, &nat);
        let backend = conversation.ask();
        open.push((conversation, backend));
    }
    let at = |open: &[(Conversation, String)], name| open.iter().filter(|(_, b)| b == name).count();
    assert_eq!((at(&open, "b1"), at(&open, "b2")), (3, 3));
    // Each of the two is asked for some of them first.
    assert_eq!(requests(&lab, &nat, 0, 40).failed, 40, "all are full");
    holdfast.wait_until("both are full", |status| {
        let backends = &status.vips[0].backends;
        backends.iter().all(|backend| backend.full && backend.max_connections == Some(3))
            && backends.iter().map(|backend| backend.over_limit).sum::<u64>() >= 40
    });
    let status = holdfast.status();
    assert!(status.answers["rejects_sent"] >= 40, "{:?}", status.answers);
    let client = format!("[{}]:4000", Family::V6.client(0));
    let why = holdfast.ok(&["explain", "--vip", "nat6", "--client", &client]);
    assert!(why.contains("has as many flows as max_connections allows"), "{why}");

    holdfast.write_text(&limited(2));
    holdfast.ok(&["reload"]);
    for (conversation, backend) in &mut open {
        assert_eq!(conversation.ask(), *backend, "an open connection");
    }
    let (gone, mut open): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, b)| b == "b1");
    drop(gone);
    holdfast.wait_until("b1 has room", |status| !status.vips[0].backends[0].full);
    requests(&lab, &nat, 0, 1).assert_from("with room", &["b1"]);
    for (conversation, backend) in &mut open {
        assert_eq!(conversation.ask(), *backend, "an open connection");
    }
    let events = holdfast.ok(&["events"]);
    assert!(events.contains("backend_full") && events.contains("backend_has_room"), "{events}");
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}
