//! Simulation of a change to a VIP's backends.
//!
//! ```text
//! Config --Change--> Scenario (VIP before, after) --ForwardingTable::build--> two tables
//! Population --flow keys--> Trace (arrivals, ends) --replayed per scheduler--> World --> Row
//! ```
//!
//! The tables, the affinity hash and the schedulers are those of the data path; this module only
//! simulates the clients and keeps the pins. Clients, arrivals and ends are the same for every
//! scheduler, and the same on every machine for one seed. The simulation needs neither privileges
//! nor a network.

pub mod bound;
pub mod change;
pub mod chart;
pub mod population;
pub mod row;
mod trace;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::forwarding::{ForwardingTable, Local, SchedulerKind, Secret, VipSpec};

use change::Scenario;
use population::{Clients, Population};
use row::Row;
use trace::Trace;
use world::World;

/// Maximum number of flows, at about 40 bytes each.
pub const MAX_FLOWS: u32 = 50_000_000;
/// Maximum number of clients, by the population's address plan.
pub const MAX_CLIENTS: u32 = 10_000_000;

/// Settings of the simulation of each VIP.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Flows that are live when the change takes effect, 1 to [`MAX_FLOWS`].
    pub flows: u32,
    /// Clients that open the flows.
    pub clients: Clients,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Workers, each of which balances its own flows; at least 1.
    pub workers: u32,
    /// Key of the hashes that choose a backend.
    pub secret: Secret,
}

/// Progress of a simulation.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Name of the VIP.
    pub vip: &'a str,
    /// Number of completed schedulers.
    pub done: usize,
    /// Total number of schedulers.
    pub of: usize,
}

/// Simulates one VIP with each of `kinds`, one thread per scheduler and at most as many threads as
/// cores. Returns one row each, in the order of `kinds`.
///
/// Memory: about 40 bytes per flow. `progress` is called whenever a scheduler is completed.
pub fn simulate(
    scenario: &Scenario,
    kinds: &[SchedulerKind],
    settings: &Settings,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Vec<Row> {
    let report = |done| progress(Progress { vip: &scenario.name, done, of: kinds.len() });
    report(0);
    let trace = trace(&scenario.before, settings);
    let rows: Mutex<Vec<(usize, Row)>> = Mutex::default();
    let next = AtomicUsize::new(0);
    let work = || {
        // Relaxed: the number is all that is shared.
        while let Some((index, kind)) = take(&next, kinds) {
            let row = one(scenario, kind, &trace, settings);
            let mut rows = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            rows.push((index, row));
            report(rows.len());
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(kinds.len());
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut rows = rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    rows.sort_by_key(|(index, _)| *index);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn take(next: &AtomicUsize, kinds: &[SchedulerKind]) -> Option<(usize, SchedulerKind)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, *kinds.get(index)?))
}

/// Generates the flows of a VIP. They depend on its affinity, not on its scheduler.
fn trace(vip: &VipSpec, settings: &Settings) -> Trace {
    let table = ForwardingTable::build(
        0,
        settings.secret,
        Local::default(),
        std::slice::from_ref(vip),
        None,
    );
    let mut population = Population::new(&settings.clients, vip, settings.seed);
    let hash = || {
        let key = population.open();
        table.vip(vip.id).map_or(0, |vip| vip.affinity_hash(table.secret(), &key))
    };
    Trace::generate(settings.flows, settings.seed, hash)
}

/// Simulates one scheduler.
fn one(scenario: &Scenario, kind: SchedulerKind, trace: &Trace, settings: &Settings) -> Row {
    let before = scenario.before.clone().with(|policy| policy.scheduler = kind);
    let after =
        scenario.after.clone().with(|policy| policy.scheduler = scenario.scheduler.unwrap_or(kind));
    let build = |generation, vip, previous| {
        ForwardingTable::build(
            generation,
            settings.secret,
            Local::default(),
            std::slice::from_ref(vip),
            previous,
        )
    };
    let start = Instant::now();
    let old = build(1, &before, None);
    let built = start.elapsed();
    let new = build(2, &after, Some(&old));

    let mut kept = World::new(&old, before.id, settings.flows, settings.workers);
    trace.before().for_each(|(slot, hash)| _ = kept.open(slot, hash));
    let (mut changed, broken) = kept.reload(&new);
    let without = kept.elsewhere(&changed, trace.live());
    let broken = match (before.policy.pin, after.policy.scheduler.heeds_affinity()) {
        (true, _) => broken,
        (false, true) => without,
        // Round robin over datagrams: no flow has a backend that it could lose.
        (false, false) => 0,
    };
    if !after.policy.pin {
        changed.place_again(trace.live());
    }
    let row = Row {
        vip: scenario.name.clone(),
        pin: before.policy.pin,
        name: kind.as_str(),
        configured: kind == scenario.before.policy.scheduler,
        flows: kept.flows(),
        broken_with_conntrack: broken,
        broken_without_conntrack: without,
        max_over_mean: kept.max_over_mean(),
        build_ms: built.as_secs_f64() * 1000.0,
        ..Row::default()
    };
    let (mut moved, mut dropped) = (0, 0);
    for (slot, hash) in trace.after() {
        // Both worlds have the same flows.
        let (before, after) = (kept.open(slot, hash), changed.open(slot, hash));
        moved += u64::from(before != after);
        dropped += u64::from(after.is_none());
    }
    let new_flows = trace.after().len() as u64;
    Row { new_flows, max_over_mean_after: changed.max_over_mean(), ..row }
        .with_shares(moved, dropped)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::change::{Action, Change, scenarios};
    use super::*;
    use proptest::prelude::*;

    /// Schedulers that depend on the flow's hash only.
    const BY_HASH: [&str; 3] = ["maglev", "rendezvous", "ring"];
    /// Schedulers of [`BY_HASH`] with minimal disruption.
    const MINIMAL: [&str; 2] = ["rendezvous", "ring"];

    fn config(affinity: &str, backends: u32) -> crate::config::Config {
        let mut text = format!(
            "[workers]\ncores = [0, 1]\n[hash]\ntable_size = 4099\n[[nic]]\ninterface = \"eth1\"\n\
             [[vip]]\nname = \"web\"\naddress = \"192.0.2.10\"\nports = [80, 443]\n\
             forward = \"dsr\"\naffinity = \"{affinity}\"\n"
        );
        for n in 1..=backends {
            text += &format!("[[vip.backend]]\nname = \"b{n}\"\naddress = \"10.0.0.{n}\"\n");
        }
        crate::config::parse(&text, "test").unwrap()
    }

    fn change(action: Action) -> Change {
        Change { vip: "web".to_owned(), action }
    }

    fn settings(flows: u32) -> Settings {
        let clients = Clients { count: 5_000, ..Clients::default() };
        Settings { flows, clients, seed: 1, workers: 2, secret: [7; 16] }
    }

    fn rows(affinity: &str, backends: u32, action: Action, settings: &Settings) -> Vec<Row> {
        let scenarios = scenarios(&config(affinity, backends), &[change(action)]).unwrap();
        let kinds = crate::config::schedulers(4099);
        let rows = simulate(scenarios.first().unwrap(), &kinds, settings, &|_| {});
        assert_eq!(
            rows.iter().map(|row| row.name).collect::<Vec<_>>(),
            kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>()
        );
        rows
    }

    fn b(number: u32) -> String {
        format!("b{number}")
    }

    #[test]
    fn a_removal_breaks_the_flows_that_were_there() {
        for row in rows("flow", 5, Action::Remove(b(2)), &settings(20_000)) {
            let (name, with) = (row.name, row.broken_with_conntrack_share);
            assert_eq!(row.flows, 20_000, "{name}");
            assert!((with - 0.2).abs() < 0.05, "{name}: {with}");
            let without = row.broken_without_conntrack;
            assert!(without >= row.broken_with_conntrack, "{name}: {without}");
            if MINIMAL.contains(&name) {
                assert_eq!(without, row.broken_with_conntrack, "{name}");
            } else if BY_HASH.contains(&name) {
                assert!(row.broken_without_conntrack_share < with + 0.03, "{name}: {row:?}");
            }
        }
    }

    #[test]
    fn an_addition_moves_its_own_share() {
        for row in
            rows("flow", 9, Action::Add("new".to_owned(), [10, 0, 1, 1].into()), &settings(20_000))
        {
            assert_eq!(row.broken_with_conntrack, 0, "{}", row.name);
            if BY_HASH.contains(&row.name) {
                let shares = [row.broken_without_conntrack_share, row.new_flows_moved_share];
                assert!(shares.iter().all(|share| (share - 0.1).abs() < 0.04), "{row:?}");
            }
        }
    }

    #[test]
    fn drains_and_weights_break_nothing_that_is_tracked() {
        for action in [Action::Drain(b(1)), Action::Weight(b(1), 3), Action::Weight(b(1), 0)] {
            for row in rows("flow", 4, action.clone(), &settings(10_000)) {
                assert_eq!(row.broken_with_conntrack, 0, "{action:?}, {}", row.name);
                assert!(row.new_flows_moved_share > 0.1, "{action:?}, {row:?}");
            }
        }
    }

    #[test]
    fn no_difference_moves_nothing() {
        for row in rows("flow", 4, Action::Weight(b(1), 1), &settings(10_000)) {
            assert_eq!(
                (row.broken_with_conntrack, row.new_flows_moved_share),
                (0, 0.0),
                "{}",
                row.name
            );
            if BY_HASH.contains(&row.name) {
                assert_eq!(row.broken_without_conntrack, 0, "{}", row.name);
            }
        }
    }

    #[test]
    fn clients_behind_one_address_are_on_one_backend() {
        let clients = Clients { count: 50, gateway_share: 1.0, ..Clients::default() };
        let settings = Settings { clients, ..settings(10_000) };
        let ratio = |affinity, name| {
            let rows = rows(affinity, 10, Action::Drain(b(1)), &settings);
            rows.iter().find(|row| row.name == name).unwrap().max_over_mean
        };
        for name in BY_HASH {
            assert!((ratio("client", name) - 10.0).abs() < 1e-9, "{name}");
            assert!(ratio("flow", name) < 2.0, "{name}");
        }
    }

    /// Without pins, a change moves the flows that hash elsewhere; under round robin, no flow has a
    /// backend to lose.
    #[test]
    fn without_pins_every_datagram_is_placed_by_the_new_table() {
        let mut config = config("flow", 5);
        for vip in &mut config.vips {
            (vip.protocol, vip.policy.pin) = (crate::net::Protocol::Udp, false);
        }
        for action in [Action::Remove(b(2)), Action::Drain(b(2))] {
            let scenarios = scenarios(&config, &[change(action.clone())]).unwrap();
            let kinds = crate::config::schedulers(4099).into_iter();
            let kinds: Vec<_> = kinds.filter(|kind| !kind.counts_flows()).collect();
            let rows = simulate(scenarios.first().unwrap(), &kinds, &settings(20_000), &|_| {});
            for row in rows {
                let broken = row.broken_with_conntrack;
                assert!(!row.pin);
                if row.name == "round_robin" {
                    assert_eq!(broken, 0, "{action:?}");
                    continue;
                }
                assert_eq!(broken, row.broken_without_conntrack, "{action:?} {}", row.name);
                let share = row.broken_with_conntrack_share;
                assert!((share - 0.2).abs() < 0.05, "{action:?} {}: {share}", row.name);
                assert!(row.max_over_mean_after < 1.3, "{action:?} {row:?}: none is left behind");
            }
        }
    }

    #[test]
    fn a_seed_gives_one_result() {
        let run = |seed| {
            let settings = Settings { seed, ..settings(5_000) };
            let rows = rows("client", 5, Action::Remove(b(5)), &settings);
            rows.into_iter().map(|row| Row { build_ms: 0.0, ..row }).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn everybody_may_go() {
        for row in rows("flow", 1, Action::Remove(b(1)), &settings(1_000)) {
            let shares = [row.broken_with_conntrack_share, row.new_flows_dropped_share];
            assert_eq!((shares, row.max_over_mean_after), ([1.0, 1.0], 0.0), "{}", row.name);
        }
        for row in rows("flow", 2, Action::Drain(b(1)), &settings(1_000)) {
            assert_eq!(row.new_flows_dropped_share, 0.0, "{}", row.name);
        }
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (1..4_u32).prop_map(|n| Action::Remove(b(n))),
            (1..4_u32).prop_map(|n| Action::Drain(b(n))),
            (1..4_u32, 0..=1000_u32).prop_map(|(n, weight)| Action::Weight(b(n), weight)),
            any::<u8>().prop_map(|n| Action::Add("new".to_owned(), [10, 0, 1, n].into())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn shares_are_shares(
            action in action(),
            flows in 1..500_u32,
            seed in any::<u64>(),
            gateways in 0.0..=1.0,
            affinity in prop_oneof![Just("flow"), Just("client"), Just("client_prefix")],
        ) {
            let clients = Clients { count: 100, gateway_share: gateways, ..Clients::default() };
            let settings = Settings { clients, seed, ..settings(flows) };
            for row in rows(affinity, 3, action.clone(), &settings) {
                let shares = [
                    row.broken_with_conntrack_share,
                    row.broken_without_conntrack_share,
                    row.new_flows_moved_share,
                ];
                prop_assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{:?}", row);
                prop_assert_eq!(row.flows, u64::from(flows));
                prop_assert!(row.max_over_mean >= 1.0 && row.max_over_mean <= 3.001, "{:?}", row);
                let removes = matches!(action, Action::Remove(_));
                prop_assert!(removes || row.broken_with_conntrack == 0, "{:?}", row);
            }
        }
    }
}
