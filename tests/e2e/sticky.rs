//! Sticky clients: all workers send a client's connections to one backend, until the mapping ends.

use std::collections::BTreeSet;

use holdfast::control::api::{BackendState, Client};

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, download, requests, vip, wait_for,
};

/// A VIP that would send every connection to another backend without its last key.
macro_rules! sticky {
    ($forward:expr, $family:expr, $sticky:literal $(,)?) => {
        Vip {
            keys: concat!("scheduler = \"round_robin\"\nsticky = ", $sticky),
            ..vip($forward, $family, false)
        }
    };
}

/// The backend that replies to all of 20 new connections of a client, eight at a time.
fn home(lab: &Lab, vip: &Vip, client: usize) -> String {
    let answers = requests(lab, vip, client, 20);
    answers.assert_none_failed(&vip.name);
    assert_eq!(answers.by_backend.len(), 1, "client {client} at one backend: {answers:?}");
    answers.by_backend.into_keys().next().unwrap()
}

/// Output of `holdfast clients`.
fn clients(holdfast: &Holdfast<'_>, filters: &[&str]) -> Vec<Client> {
    let lines = holdfast.ok(&[&["clients", "--json"], filters].concat());
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_client_s_connections_go_to_one_backend_in_every_mode() {
    let lab = Lab::up(Topology::Stick);
    let mut vips = Vec::new();
    for forward in ["nat", "dsr"] {
        vips.extend(Family::ALL.map(|family| sticky!(forward, family, "{}")));
    }
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        let homes: BTreeSet<String> = (0..12).map(|client| home(&lab, vip, client)).collect();
        assert_eq!(homes.len(), BACKENDS.len(), "{}: clients spread", vip.name);
        let listed = clients(&holdfast, &["--vip", &vip.name]);
        assert_eq!(listed.len(), 12, "{listed:#?}");
        for client in listed {
            assert!(client.proven && !client.expired, "{client:?}");
            assert!(homes.contains(client.backend.as_ref().unwrap()), "{client:?}");
        }
    }
    let workers = holdfast.status().workers;
    assert!(workers.iter().all(|worker| worker.totals.flows_new > 0), "both had flows");
    holdfast.stop();
}

#[test]
fn a_new_backend_moves_no_client_and_a_drain_releases_at_once() {
    let lab = Lab::up(Topology::TwoNic);
    let mut nat = sticky!("nat", Family::V4, "{ timeout_s = 300 }");
    nat.backends = vec!["b1", "b2"];
    let mut config = Config::new(&lab, 2, vec![nat.clone()]);
    let holdfast = Holdfast::start(&lab, &config);
    let before: Vec<String> = (0..8).map(|client| home(&lab, &nat, client)).collect();

    config.vips[0].backends = BACKENDS.to_vec();
    holdfast.write_config(&config);
    holdfast.ok(&["reload"]);
    holdfast.wait_until("b3 is up", |status| {
        let health = holdfast::control::api::HealthState::Up;
        status.vips[0].backends.len() == 3
            && status.vips[0].backends.iter().all(|b| b.health == health && b.next_hop.is_some())
    });
    let after: Vec<String> = (0..8).map(|client| home(&lab, &nat, client)).collect();
    assert_eq!(after, before, "the pool grew, and no client moved");

    let transfer = download(&lab, &nat, Some("8m"));
    let drained = transfer.backend();
    assert_eq!(drained, before[0], "the download is client 0's");
    holdfast.ok(&["drain", &format!("nat4/{drained}")]);
    let moved = home(&lab, &nat, 0);
    assert_ne!(moved, drained, "its next connections went elsewhere at once");
    assert!(transfer.ends_well(), "and the one that was there stayed");
    assert_eq!(home(&lab, &nat, 0), moved, "nor did it pull the client back");
    holdfast.wait_for_state("nat4", &drained, BackendState::Drained);
    holdfast.ok(&["undrain", &format!("nat4/{drained}")]);
    assert_eq!(home(&lab, &nat, 0), moved);
    holdfast.stop();
}

#[test]
fn keep_waits_for_a_draining_and_for_a_dead_backend() {
    let lab = Lab::up(Topology::Stick);
    let nat =
        sticky!("nat", Family::V4, "{ timeout_s = 300, on_drain = \"keep\", on_down = \"keep\" }");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    let first = home(&lab, &nat, 0);
    holdfast.ok(&["drain", &format!("nat4/{first}")]);
    assert_eq!(home(&lab, &nat, 0), first);
    for client in 1..8 {
        assert_ne!(home(&lab, &nat, client), first, "clients without a home do not go there");
    }
    holdfast.ok(&["undrain", &format!("nat4/{first}")]);

    lab.stop_backend(&first);
    let down = holdfast::control::api::HealthState::Down;
    holdfast.wait_for_health("nat4", &first, down);
    assert_eq!(requests(&lab, &nat, 0, 1).failed, 1, "it waits for its own");
    assert_eq!(requests(&lab, &nat, 1, 10).failed, 0, "others are not touched");
    lab.start_backend(&first);
    holdfast.wait_for_health("nat4", &first, holdfast::control::api::HealthState::Up);
    assert_eq!(home(&lab, &nat, 0), first);
    holdfast.stop();
}

#[test]
fn a_client_is_free_when_it_idled_out_or_was_forgotten() {
    let lab = Lab::up(Topology::Stick);
    let nat = sticky!("nat", Family::V6, "{ timeout_s = 2 }");
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    for client in 0..4 {
        home(&lab, &nat, client);
    }
    let address = nat.family.client(0);
    let age = || clients(&holdfast, &["--client", &address])[0].age_ms;
    assert_eq!(holdfast.ok(&["clients", "--delete", "--client", &address]), "1 client forgotten\n");
    assert_eq!(clients(&holdfast, &["--client", &address]).len(), 0);
    assert_eq!(clients(&holdfast, &[]).len(), 3, "no other client was");
    home(&lab, &nat, 0);
    wait_for("its time is over", SOON, || clients(&holdfast, &[]).iter().all(|c| c.expired));
    let old = age();
    home(&lab, &nat, 0);
    assert!(age() < old, "the mapping is new");
    let table = holdfast.ok(&["clients", "--vip", "nat6"]);
    for word in ["VIP", "CLIENT", "BACKEND", "PROVEN", "EXPIRED", &address] {
        assert!(table.contains(word), "{word:?} is not in\n{table}");
    }

    let refused = holdfast.refused(&["clients", "--delete"]);
    assert!(refused.contains("--all"), "{refused}");
    assert_eq!(holdfast.ok(&["clients", "--delete", "--all"]), "4 clients forgotten\n");
    assert_eq!(holdfast.ok(&["clients"]), "no clients\n");
    holdfast.stop();
}
