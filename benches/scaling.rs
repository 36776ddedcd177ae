//! Cost of further workers, up to sixteen, for the first. docs/SCALING.md discusses the figures.
//!
//! ```sh
//! cargo bench --bench scaling
//! cargo bench --bench scaling -- --json --quick
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]

mod support;

use std::error::Error;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use holdfast::stats::WorkerStats;
use holdfast::xdp::cpu;
use support::bed::{Bed, Clock, Shared};
use support::cases::{CASES, Case, Traffic};
use support::measure::{Spread, Subject, interleave, mean_of_uninterrupted, round};
use support::report::{Figure, Figures};
use support::{Args, args, pin_to_core, say};

const BACKENDS: u16 = 100;

/// Extent of the measurement.
#[derive(Clone, Copy)]
struct Plan {
    /// Repetitions; the median of these is reported.
    repetitions: usize,
    /// Duration of a slice with two real workers.
    slice: Duration,
    /// Rounds of the simulation, in each repetition.
    rounds: usize,
    /// Flows of each worker: real, and simulated.
    real_flows: u64,
    simulated_flows: u64,
}

const FULL: Plan = Plan {
    repetitions: 21,
    slice: Duration::from_millis(200),
    rounds: 12,
    real_flows: 1_000_000,
    simulated_flows: 24_576,
};
const QUICK: Plan = Plan { repetitions: 7, slice: Duration::from_millis(100), ..FULL };
const SMOKE: Plan = Plan {
    repetitions: 1,
    slice: Duration::from_millis(1),
    rounds: 2,
    real_flows: 4096,
    simulated_flows: 4096,
};

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = args::<Args>() else { return smoke() };
    measure(if args.quick { QUICK } else { FULL }, &[1, 2, 4, 8, 16]).print(args.json)?;
    Ok(())
}

fn measure(plan: Plan, counts: &[u8]) -> Figures {
    let case = CASES.into_iter().find(|case| case.name == "pipeline_nat").unwrap();
    let mut figures = Figures::default();
    say("  two workers on two cores");
    figures.rows.extend(two_workers(plan, case));
    say("  up to sixteen workers, one of them real");
    // A thread of its own, so that it is pinned alone.
    let simulated = || {
        pin_to_core(None).unwrap();
        simulate(plan, case, counts)
    };
    figures.rows.extend(thread::scope(|scope| scope.spawn(simulated).join().unwrap()));
    figures
}

/// Workers that run at the same time.
#[derive(Clone, Copy, PartialEq)]
enum Together {
    /// The first worker alone.
    Alone,
    /// Two workers of one process.
    Sharing,
    /// Two workers that share only the machine.
    Separate,
}

/// Measures nanoseconds per packet of the first worker: alone; together with another one of the
/// same process; together with one that shares nothing. The difference of the last two is the cost
/// of sharing.
fn two_workers(plan: Plan, case: Case) -> Vec<Figure> {
    const ORDER: [Together; 3] = [Together::Alone, Together::Sharing, Together::Separate];
    let cores = cpu::available_cores();
    let (first, last) = (*cores.first().unwrap(), *cores.last().unwrap());
    let (_publisher, shared) = Shared::new(case, 2, BACKENDS, plan.real_flows);
    let barrier = Barrier::new(2);
    let work = |core: usize, index: u8| {
        cpu::pin_to_core(core).unwrap();
        let mut sharing = Bed::worker(&shared, index, plan.real_flows, Clock::Timed);
        let mut alone = Bed::new(case, plan.real_flows, Clock::Timed);
        let slices = (0..plan.repetitions).map(|_| {
            ORDER.map(|together| {
                barrier.wait();
                match together {
                    Together::Alone if index > 0 => 0.0,
                    Together::Separate => slice(plan, &mut alone),
                    _ => slice(plan, &mut sharing),
                }
            })
        });
        let slices: Vec<[f64; 3]> = slices.collect();
        sharing.assert_accounted();
        alone.assert_accounted();
        slices
    };
    let slices = thread::scope(|scope| {
        scope.spawn(|| work(first, 1));
        scope.spawn(|| work(last, 0)).join().unwrap()
    });
    let spread = |of: &dyn Fn(&[f64; 3]) -> f64| Spread::of(slices.iter().map(of).collect());
    vec![
        Figure::new("worker_alone", 1, "ns", spread(&|ns| ns[0])),
        Figure::new("worker_beside_sharing", 2, "ns", spread(&|ns| ns[1])),
        Figure::new("worker_beside_separate", 2, "ns", spread(&|ns| ns[2])),
        Figure::new("sharing_to_separate", 2, "ratio", spread(&|ns| ns[1] / ns[2])),
        Figure::new("sharing_to_alone", 2, "ratio", spread(&|ns| ns[1] / ns[0])),
    ]
}

fn slice(plan: Plan, bed: &mut Bed) -> f64 {
    let (start, mut rounds) = (Instant::now(), Vec::new());
    while start.elapsed() < plan.slice {
        rounds.push(round(bed));
    }
    mean_of_uninterrupted(&rounds)
}

/// The workers of one process, of which the first is measured.
struct Process {
    workers: Vec<Bed>,
}

impl Process {
    /// Every worker has flows of its own, in a table that has room for eight times as many.
    fn new(plan: Plan, case: Case, workers: u8) -> Self {
        let flows = plan.simulated_flows;
        let (_, shared) = Shared::new(case, usize::from(workers), BACKENDS, 8 * flows);
        let bed = |index| Bed::worker(&shared, index, flows, Clock::Timed);
        Self { workers: (0..workers).map(bed).collect() }
    }

    fn first(&mut self) -> &mut Bed {
        &mut self.workers[0]
    }

    fn count(&self) -> u64 {
        self.workers.len() as u64
    }

    fn all_turn_to(processes: &mut [Self], traffic: Traffic) {
        for process in processes {
            process.first().turn_to(traffic);
        }
    }

    /// Sends the replies of the last worker's flows to the first worker from now on.
    fn answer_for_last(&mut self) {
        if let [first, .., last] = self.workers.as_mut_slice() {
            first.answer_for(last);
        }
    }
}

/// Measures nanoseconds per packet of one worker, in processes of different sizes.
fn simulate(plan: Plan, case: Case, counts: &[u8]) -> Vec<Figure> {
    let mut processes: Vec<Process> =
        counts.iter().map(|&workers| Process::new(plan, case, workers)).collect();
    let mut figures = in_turns(plan, &mut processes, "hit");
    processes.iter_mut().for_each(Process::answer_for_last);
    Process::all_turn_to(&mut processes, Traffic::FirstReply);
    figures.extend(first_replies(plan, &mut processes));
    Process::all_turn_to(&mut processes, Traffic::Reply);
    // Until every flow has its remote entry.
    for process in &mut processes {
        (0..100).for_each(|_| _ = round(process.first()));
    }
    figures.extend(in_turns(plan, &mut processes, "reply_elsewhere"));
    Process::all_turn_to(&mut processes, Traffic::Lost);
    figures.extend(in_turns(plan, &mut processes, "midflow_without_pin"));
    for process in &mut processes {
        process.first().assert_accounted();
    }
    figures.extend(counts.iter().map(|&workers| survey(plan, workers)));
    figures
}

fn in_turns(plan: Plan, processes: &mut [Process], name: &'static str) -> Vec<Figure> {
    let counts: Vec<u64> = processes.iter().map(Process::count).collect();
    let plan = support::measure::Plan { repetitions: plan.repetitions, rounds: plan.rounds };
    let mut subjects: Vec<&mut dyn Subject> =
        processes.iter_mut().map(|process| process.first() as &mut dyn Subject).collect();
    let samples = interleave(plan, &mut subjects);
    let figure = |(place, count)| Figure::new(name, count, "ns", samples.ns(place));
    counts.into_iter().enumerate().map(figure).collect()
}

/// Measures the first packet of each flow that arrives at the wrong worker; then all remote entries
/// are removed.
fn first_replies(plan: Plan, processes: &mut [Process]) -> Vec<Figure> {
    let mut samples = vec![Vec::new(); processes.len()];
    for _ in 0..plan.repetitions {
        for (process, samples) in processes.iter_mut().zip(&mut samples) {
            let rounds: Vec<f64> = (0..plan.rounds).map(|_| round(process.first())).collect();
            samples.push(mean_of_uninterrupted(&rounds));
            process.first().forget_remotes();
        }
    }
    let figure = |(process, samples): (&Process, _)| {
        Figure::new("first_reply_elsewhere", process.count(), "ns", Spread::of(samples))
    };
    processes.iter().zip(samples).map(figure).collect()
}

/// Measures the reads of the control thread for `status`: one line per backend and worker.
fn survey(plan: Plan, workers: u8) -> Figure {
    let stats: Vec<WorkerStats> = (0..workers).map(|_| WorkerStats::new(1, 1000, 1)).collect();
    let once = |_| {
        let start = Instant::now();
        for backend in 0..1000 {
            let sum: u64 = stats.iter().map(|stats| stats.backends[backend].packets_in.get()).sum();
            black_box(sum);
        }
        start.elapsed().as_secs_f64() * 1e6
    };
    let times = Spread::of((0..plan.repetitions).map(once).collect());
    Figure::new("survey_of_1000_backends", u64::from(workers), "us", times)
}

/// Under `cargo test`: all of the bench works, and the document has the rows that its readers need.
fn smoke() -> Result<(), Box<dyn Error>> {
    let document = serde_json::to_value(measure(SMOKE, &[1, 3]))?;
    let rows = document["rows"].as_array().ok_or("no rows")?;
    for (name, of) in [
        ("sharing_to_separate", 2),
        ("hit", 1),
        ("hit", 3),
        ("reply_elsewhere", 3),
        ("first_reply_elsewhere", 3),
        ("midflow_without_pin", 3),
    ] {
        let row = rows.iter().find(|row| row["name"] == name && row["of"] == of).ok_or(name)?;
        assert!(row["value"].as_f64().is_some_and(|value| value > 0.0), "{name}");
    }
    println!("scaling: {} rows, as expected", rows.len());
    Ok(())
}
