//! Comparison of the schedulers at several numbers of backends of equal weight: cost of a build,
//! evenness, flows that move when a backend is removed, and cost of a choice. docs/SCHEDULERS.md
//! discusses the figures.
//!
//! ```sh
//! cargo bench --bench schedulers                           # a table
//! cargo bench --bench schedulers -- --json --svg FILE      # a document and a chart
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]

mod chart;
#[path = "../support/mod.rs"]
mod support;

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use holdfast::forwarding::SchedulerKind;
use holdfast::forwarding::affinity::mix;
use holdfast::forwarding::scheduler::{Built, Candidate, Pool};
use holdfast::forwarding::server::Server;
use holdfast::net::BackendIndex;
use serde::Serialize;
use support::measure::Spread;
use support::{Args, args, pin_to_core, say};

const SECRET: [u8; 16] = *b"holdfast-default";
const SCHEDULERS: [(&str, SchedulerKind); 8] = [
    ("maglev 65537", SchedulerKind::Maglev { size: 65_537 }),
    ("maglev 655373", SchedulerKind::Maglev { size: 655_373 }),
    ("rendezvous", SchedulerKind::Rendezvous),
    ("ring 160", SchedulerKind::Ring { virtual_nodes: 160 }),
    ("round_robin", SchedulerKind::RoundRobin),
    ("least_connections", SchedulerKind::LeastConnections),
    ("power_of_two", SchedulerKind::PowerOfTwo { size: 65_537 }),
    ("bounded 0.25", SchedulerKind::Bounded { size: 65_537, e_permille: 250 }),
];
const BACKENDS: [u16; 4] = [3, 10, 100, 1000];

/// Extent of the measurement.
#[derive(Clone, Copy)]
struct Plan {
    /// Builds of each table.
    builds: usize,
    /// Flows that arrive, and stay.
    flows: u64,
    /// Parts of the flows that are timed one by one.
    rounds: u64,
    /// Backends that are removed, one at a time, with all flows placed again.
    removals: u16,
}

const FULL: Plan = Plan { builds: 11, flows: 1_000_000, rounds: 20, removals: 5 };
const QUICK: Plan = Plan { builds: 3, flows: 100_000, rounds: 5, removals: 3 };
const SMOKE: Plan = Plan { builds: 1, flows: 200, rounds: 2, removals: 1 };

/// One scheduler at one number of backends.
#[derive(Debug, Serialize)]
struct Row {
    scheduler: &'static str,
    backends: u16,
    build_ms: f64,
    /// Flows of the backend with the most flows, over the mean.
    max_over_mean: f64,
    /// Slots of the backend with the most slots, over the mean; only for schedulers with a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    slots_max_over_mean: Option<f64>,
    /// Share of the remaining backends' flows that get another backend if the same flows arrive
    /// after the removal: mean over removals.
    survivors_moved_share: f64,
    ns_per_choice: f64,
}

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Args,
    /// Also draw a chart into this file
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(Options { common, svg }) = args::<Options>() else { return smoke() };
    pin_to_core(common.core)?;
    let plan = if common.quick { QUICK } else { FULL };
    let rows = measure(plan, &BACKENDS);
    if let Some(file) = svg {
        fs::write(file, chart::draw(&rows)?)?;
    }
    print(&rows, common.json)?;
    Ok(())
}

fn measure(plan: Plan, backends: &[u16]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, kind) in SCHEDULERS {
        say(&format!("  {name}"));
        rows.extend(backends.iter().map(|&count| row(plan, name, kind, count)));
    }
    rows
}

fn row(plan: Plan, scheduler: &'static str, kind: SchedulerKind, backends: u16) -> Row {
    let (built, build_ms) = timed_builds(plan, kind, backends);
    let slots = built.scheduler().slots();
    let per_slot = (!slots.is_empty()).then(|| {
        let mut counts = vec![0; usize::from(backends)];
        slots.iter().for_each(|backend| counts[usize::from(backend.0)] += 1);
        max_over_mean(&counts)
    });
    let (placed, pool, ns) = placed(plan, &built, backends);
    Row {
        scheduler,
        backends,
        build_ms,
        max_over_mean: max_over_mean(&pool.active),
        slots_max_over_mean: per_slot,
        survivors_moved_share: moved(plan, kind, backends, &placed),
        ns_per_choice: ns,
    }
}

/// Returns the candidates of a build, without the removed backend.
fn candidates(backends: u16, removed: Option<u16>) -> Vec<Candidate> {
    let candidate = |index: u16| {
        let [high, low] = index.to_be_bytes();
        let server = Server::new([10, 0, high, low].into(), 0);
        Candidate { backend: BackendIndex(index), server, weight: 1 }
    };
    (0..backends).filter(|&index| Some(index) != removed).map(candidate).collect()
}

fn timed_builds(plan: Plan, kind: SchedulerKind, backends: u16) -> (Built, f64) {
    let once = |_| {
        let candidates = candidates(backends, None);
        let start = Instant::now();
        let built = Built::build(kind, &SECRET, black_box(candidates), None);
        let took = start.elapsed().as_secs_f64() * 1e3;
        drop(black_box(built));
        took
    };
    let spread = Spread::of((0..plan.builds).map(once).collect());
    (Built::build(kind, &SECRET, candidates(backends, None), None), spread.median)
}

/// A pool of arrays with all backends in service.
struct ArrayPool {
    active: Vec<u64>,
    total: u64,
}

impl Pool for ArrayPool {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        usize::from(backend.0) < self.active.len()
    }

    fn active(&self, backend: BackendIndex) -> u64 {
        self.active[usize::from(backend.0)]
    }

    fn active_total(&self) -> u64 {
        self.total
    }

    fn turn(&self) -> u64 {
        self.total
    }
}

/// Places every flow; returns the backends, the pool, and nanoseconds per choice: the median of the
/// rounds.
fn placed(plan: Plan, built: &Built, backends: u16) -> (Vec<BackendIndex>, ArrayPool, f64) {
    let mut pool = ArrayPool { active: vec![0; backends.into()], total: 0 };
    let mut placed = Vec::with_capacity(usize::try_from(plan.flows).unwrap());
    let mut times = Vec::new();
    let per_round = plan.flows / plan.rounds;
    for round in 0..plan.rounds {
        let start = Instant::now();
        for flow in round * per_round..(round + 1) * per_round {
            let backend = built.scheduler().choose(mix(flow + 1), &mut pool).unwrap();
            pool.active[usize::from(backend.0)] += 1;
            pool.total += 1;
            placed.push(backend);
        }
        times.push(start.elapsed().as_secs_f64() * 1e9 / per_round as f64);
    }
    (placed, pool, Spread::of(times).median)
}

fn max_over_mean(counts: &[u64]) -> f64 {
    let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    *counts.iter().max().unwrap() as f64 / mean
}

fn moved(plan: Plan, kind: SchedulerKind, backends: u16, before: &[BackendIndex]) -> f64 {
    let removals = plan.removals.min(backends);
    let share = |number: u16| {
        let removed = number * (backends / removals);
        let built = Built::build(kind, &SECRET, candidates(backends, Some(removed)), None);
        let (after, ..) = placed(plan, &built, backends);
        let survivors = before.iter().zip(&after).filter(|(old, _)| old.0 != removed);
        let (moved, all) = survivors.fold((0_u64, 0_u64), |(moved, all), (old, new)| {
            (moved + u64::from(old != new), all + 1)
        });
        moved as f64 / all as f64
    };
    (0..removals).map(share).sum::<f64>() / f64::from(removals)
}

fn print(rows: &[Row], json: bool) -> Result<(), serde_json::Error> {
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?);
        return Ok(());
    }
    println!(
        "{:<20}{:>8}{:>10}{:>10}{:>10}{:>12}{:>10}",
        "", "backends", "build ms", "max/mean", "of slots", "moved %", "ns"
    );
    for row in rows {
        let slots = row.slots_max_over_mean.map_or("-".to_owned(), |value| format!("{value:.4}"));
        println!(
            "{:<20}{:>8}{:>10.3}{:>10.4}{slots:>10}{:>12.3}{:>10.1}",
            row.scheduler,
            row.backends,
            row.build_ms,
            row.max_over_mean,
            row.survivors_moved_share * 100.0,
            row.ns_per_choice,
        );
    }
    Ok(())
}

/// Under `cargo test`: all of the bench works, and the document has the rows that its readers need.
fn smoke() -> Result<(), Box<dyn Error>> {
    let rows = measure(SMOKE, &[3, 10]);
    assert_eq!(rows.len(), 2 * SCHEDULERS.len());
    for row in rows.iter().filter(|row| ["rendezvous", "ring 160"].contains(&row.scheduler)) {
        assert_eq!(row.survivors_moved_share, 0.0, "{row:?}");
    }
    let svg = chart::draw(&rows)?;
    assert!(svg.starts_with("<svg ") && SCHEDULERS.iter().all(|(name, _)| svg.contains(name)));
    print(&rows, true)?;
    println!("schedulers: {} rows, as expected", rows.len());
    Ok(())
}
