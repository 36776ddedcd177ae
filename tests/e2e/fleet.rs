//! Fleet: connections go on when the route moves to a box that has no pin of them, in every mode that
//! can ask backends, with real kernels and the program of `holdfast backend`.

use std::collections::BTreeSet;

use holdfast::control::api::HealthState;

use crate::lab::{Fleet, Lab, Opened, Topology, fleet_vips};

const ASK: &str = "lost = { ask = \"history\" }";
const NEVER: &str = "lost = { ask = \"never\" }";
/// Downloads, talkers and silent connections to each VIP.
const EACH: [usize; 3] = [5, 2, 1];
/// Connections that are opened later.
const LATE: [usize; 3] = [2, 1, 0];

/// Opens connections, whose servers must be all of these.
fn open(fleet: &mut Fleet<'_>, each: [usize; 3], servers: &[&str]) -> Vec<Opened> {
    let opened = fleet.sessions.open(&fleet.vips, each);
    let seen: BTreeSet<&str> = opened.iter().map(|Opened(_, server, _)| server.as_str()).collect();
    assert_eq!(seen, servers.iter().copied().collect(), "{opened:?}");
    opened
}

/// Weight 4 for the first backend of each VIP.
fn heavier(text: String) -> String {
    text.replace("name = \"b1\"\n", "name = \"b1\"\nweight = 4\n")
}

/// A backend is added, weights change, one is drained, also for connections that begin meanwhile.
#[test]
fn connections_go_on_at_another_box_whatever_has_changed_since_they_began() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK));
    let first = open(&mut fleet, EACH, &["b1", "b2", "b3"]).len() as u64;
    fleet.assert_progress("at the first box");

    fleet.set_backends(&["b1", "b2", "b3", "b4"]);
    fleet.flip_to(1);
    fleet.assert_progress("a backend was added");
    // A flow is asked about until its answer has come, not for each of its packets.
    let (answers, received) =
        (fleet.drops(1, "ask_answer"), fleet.boxes[1].status().totals.received);
    assert!((1..=3 * first).contains(&answers), "{answers} of {first} flows");
    fleet.assert_progress("a backend was added, later");
    assert_eq!(fleet.drops(1, "ask_answer"), answers, "pinned");
    assert!(fleet.boxes[1].status().totals.received > received + 10 * first);
    assert!(fleet.programs("passed_on") > 0 && fleet.programs("owned") > 0);

    open(&mut fleet, LATE, &["b1", "b2", "b3", "b4"]);
    fleet.edit = heavier;
    fleet.reload();
    fleet.flip_to(0);
    fleet.assert_progress("weights were changed");

    fleet.drain("drain", "b2");
    open(&mut fleet, LATE, &["b1", "b3", "b4"]);
    fleet.flip_to(1);
    fleet.assert_progress("a backend drains, at both boxes");
    open(&mut fleet, LATE, &["b1", "b3", "b4"]);
    fleet.drain("undrain", "b2");
    fleet.flip_to(0);
    fleet.assert_progress("no backend drains");
    fleet.end();
}

/// The second box cannot check a backend, to which the first one sends.
#[test]
fn connections_go_on_at_a_box_with_another_view_of_health() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK));
    let drop = "table inet lab {\n chain output {\n  type filter hook output priority 0\n  \
                tcp dport 80 ip daddr 198.18.2.12 drop\n  tcp dport 80 ip6 daddr 2001:db8:2::12 drop\n \
                }\n}\n";
    let file = lab.state().join("health.nft");
    std::fs::write(&file, drop).unwrap();
    lab.run("lb2", &["nft", "-f", file.to_str().unwrap()]);
    for vip in &fleet.vips {
        fleet.boxes[1].wait_for_health(&vip.name, "b2", HealthState::Down);
    }
    open(&mut fleet, EACH, &["b1", "b2", "b3"]);
    fleet.flip_to(1);
    fleet.assert_progress("at the box that believes a backend down");
    open(&mut fleet, LATE, &["b1", "b3"]);
    fleet.flip_to(0);
    fleet.assert_progress("at the box that knows better");
    fleet.end();
}

/// What the other tests would see if nothing were asked.
#[test]
fn connections_break_at_another_box_that_does_not_ask() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(NEVER));
    open(&mut fleet, EACH, &["b1", "b2", "b3"]);
    fleet.set_backends(&["b1", "b2", "b3", "b4"]);
    fleet.assert_progress("pins tell");
    fleet.flip_to(1);
    let broken = fleet.sessions.progress();
    assert!(!broken.is_empty(), "the hash does not tell");
    assert!(broken.iter().all(|why| why.contains("ConnectionResetError")), "{broken:#?}");
    assert_eq!(fleet.drops(0, "ask_answer") + fleet.drops(1, "ask_answer"), 0);
}

/// Choices that follow from nothing that another box knows.
#[test]
fn connections_of_schedulers_without_a_hash_go_on_at_another_box() {
    for keys in [
        concat!("lost = { ask = \"all\" }\n", "scheduler = \"round_robin\""),
        concat!("lost = { ask = \"all\" }\n", "scheduler = \"round_robin\"\nsticky = {}"),
    ] {
        let lab = Lab::up(Topology::Fleet);
        let mut fleet = Fleet::start(&lab, fleet_vips(keys));
        let opened = fleet.sessions.open(&fleet.vips, EACH);
        let first = opened.len() as u64;
        fleet.flip_to(1);
        fleet.assert_progress(keys);
        let answers = fleet.drops(1, "ask_answer");
        assert!((1..=3 * first).contains(&answers), "{answers} of {first} flows");
        fleet.set_backends(&["b1", "b2", "b3", "b4"]);
        fleet.sessions.open(&fleet.vips, LATE);
        fleet.flip_to(0);
        fleet.assert_progress(keys);
        fleet.end();
    }
}
