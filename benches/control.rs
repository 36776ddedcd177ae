//! Cost of the control thread for the workers: a forwarding table is built, published, taken up and
//! freed; health flaps; memory. docs/PERFORMANCE.md states the goals.
//!
//! ```sh
//! cargo bench --bench control
//! cargo bench --bench control -- --json --quick
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]
#![allow(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use holdfast::forwarding::publish::{Publisher, prepare_thread};
use holdfast::forwarding::{ForwardingTable, Local, SchedulerKind, VipSpec};
use holdfast::net::{Forward, VipId};
use holdfast::xdp::cpu;
use support::bed::{Bed, Clock, Shared};
use support::cases::{CASES, Case};
use support::measure::{Spread, Subject, mean_of_uninterrupted, round};
use support::report::{Figure, Figures};
use support::rig::{Family, spec};
use support::{Args, args, say};

/// Backends of the one VIP.
const BACKENDS: u16 = 1000;
const FLOWS: u64 = 100_000;
const TABLE_SIZE: u32 = 65_537;
const SECRET: [u8; 16] = [7; 16];
/// Duration of a slice, with one health flap or none: ten a second.
const SLICE: Duration = Duration::from_millis(100);

/// Extent of the measurement.
#[derive(Clone, Copy)]
struct Plan {
    builds: usize,
    publications: usize,
    /// Pairs of slices, with flaps and without.
    slices: usize,
    slice: Duration,
}

const FULL: Plan = Plan { builds: 51, publications: 2000, slices: 300, slice: SLICE };
const QUICK: Plan = Plan { builds: 11, publications: 500, slices: 50, slice: SLICE };
const SMOKE: Plan = Plan { builds: 2, publications: 3, slices: 2, slice: Duration::from_millis(1) };

/// The system's allocator; keeps the sum of bytes that each thread has allocated and not freed.
struct Counting;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: usize, sign: i64) {
    // A thread that ends frees memory after its counter is gone; that is not counted.
    let _ = LIVE.try_with(|live| live.set(live.get() + sign * i64::try_from(bytes).unwrap_or(0)));
}

// SAFETY: every call is passed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = args::<Args>() else { return smoke() };
    let cores = cpu::available_cores();
    let worker = args.core.or(cores.last().copied());
    let control = cores.into_iter().find(|&core| Some(core) != worker);
    let plan = if args.quick { QUICK } else { FULL };
    measure(plan, Cores { worker, control }).print(args.json)?;
    Ok(())
}

/// Cores of the two threads; `None`: any.
#[derive(Clone, Copy, Default)]
struct Cores {
    worker: Option<usize>,
    control: Option<usize>,
}

fn pin(core: Option<usize>) {
    if let Some(core) = core {
        cpu::pin_to_core(core).unwrap();
    }
}

fn measure(plan: Plan, cores: Cores) -> Figures {
    let mut figures = Figures::default();
    say("  building");
    figures.rows.extend(builds(plan));
    say("  memory");
    figures.rows.extend(memory());
    say("  publishing");
    let case = CASES.into_iter().find(|case| case.name == "pipeline_nat").unwrap();
    figures.rows.extend(with_control(case, cores, |bed, orders| publications(plan, bed, orders)));
    say("  flapping");
    figures.rows.extend(with_control(case, cores, |bed, orders| vec![flaps(plan, bed, orders)]));
    figures
}

/// Returns the specification of one VIP with `backends` backends.
fn vip(forward: Forward, backends: u16) -> VipSpec {
    spec(0, forward, Family::V4, 1, backends)
        .with(|policy| policy.scheduler = SchedulerKind::Maglev { size: TABLE_SIZE })
}

fn build(specs: &[VipSpec], previous: Option<&ForwardingTable>) -> ForwardingTable {
    ForwardingTable::build(1, SECRET, Local::default(), black_box(specs), previous)
}

/// Measures milliseconds per build of a table.
fn builds(plan: Plan) -> Vec<Figure> {
    let time = |specs: &[VipSpec], previous: Option<&ForwardingTable>| {
        let once = |_| {
            let start = Instant::now();
            let table = build(specs, previous);
            let took = start.elapsed();
            drop(black_box(table));
            took.as_secs_f64() * 1e3
        };
        Spread::of((0..plan.builds).map(once).collect())
    };
    let mut vip = vip(Forward::Nat, BACKENDS);
    let figure = |name, spread| Figure::new(name, u64::from(BACKENDS), "ms", spread).below(10.0);
    let first = build(std::slice::from_ref(&vip), None);
    let full = time(std::slice::from_ref(&vip), None);
    vip.backends[500].up = false;
    let health = time(std::slice::from_ref(&vip), Some(&first));
    vip.backends[500].weight = 2;
    let weight = time(std::slice::from_ref(&vip), Some(&first));
    vip.backends[500].weight = 1000;
    let uneven = time(std::slice::from_ref(&vip), Some(&first));
    vec![
        figure("build_full", full),
        figure("build_health_change", health),
        figure("build_weight_change", weight),
        figure("build_weight_1000_to_1", uneven),
    ]
}

/// Measures bytes of a published table: per VIP (with one backend), and per further backend.
fn memory() -> Vec<Figure> {
    let bytes = |specs: &[VipSpec]| {
        let before = LIVE.get();
        let table = build(specs, None);
        let bytes = LIVE.get() - before;
        drop(table);
        bytes as f64
    };
    let vips = |count: u16| {
        let numbered = |id| VipSpec { id: VipId(id), ..vip(Forward::Dsr, 0) };
        (0..count).map(numbered).collect::<Vec<_>>()
    };
    let exactly =
        |name, bytes| Figure::new(name, u64::from(BACKENDS), "bytes", Spread::of(vec![bytes]));
    let per_backend = |forward| {
        let (none, all) = (vip(forward, 1), vip(forward, BACKENDS));
        (bytes(&[all]) - bytes(&[none])) / f64::from(BACKENDS - 1)
    };
    vec![
        exactly("memory_per_vip", (bytes(&vips(257)) - bytes(&vips(1))) / 256.0),
        exactly("memory_lookup_table", bytes(&[vip(Forward::Dsr, 1)]) - bytes(&vips(1))),
        exactly("memory_per_backend_dsr", per_backend(Forward::Dsr)),
        exactly("memory_per_backend_nat", per_backend(Forward::Nat)),
    ]
}

/// The next order to the control thread.
#[derive(Default)]
struct Orders(CachePadded<AtomicU8>);

impl Orders {
    const NOTHING: u8 = 0;
    const BUILD: u8 = 1;
    const BUILD_AND_PUBLISH: u8 = 2;
    const FLAP: u8 = 3;
    const REST: u8 = 4;
    const END: u8 = 5;

    fn give(&self, order: u8) {
        self.0.store(order, Ordering::Release);
    }

    /// Gives an order, and waits until it is carried out.
    fn carry_out(&self, order: u8) {
        self.give(order);
        while self.0.load(Ordering::Acquire) == order {
            spin_loop();
        }
    }

    /// Marks an order as carried out, followed by `next`, unless another one has been given since.
    fn done(&self, order: u8, next: u8) {
        let _ = self.0.compare_exchange(order, next, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Runs a worker on one core, and a control thread that obeys its orders on the other.
fn with_control<T: Send>(
    case: Case,
    cores: Cores,
    work: impl FnOnce(&mut Bed, &Orders) -> T + Send,
) -> T {
    let (publisher, shared) = Shared::new(case, 1, BACKENDS, FLOWS);
    let orders = Orders::default();
    let worker = |shared: Shared| {
        pin(cores.worker);
        prepare_thread();
        let mut bed = Bed::worker(&shared, 0, FLOWS, Clock::Timed);
        let result = work(&mut bed, &orders);
        bed.assert_accounted();
        orders.give(Orders::END);
        result
    };
    let for_worker = shared.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(cores.control);
            obey(&orders, publisher, shared);
        });
        scope.spawn(|| worker(for_worker)).join().unwrap()
    })
}

/// Runs the control thread. Each table that it builds changes the health of one backend.
fn obey(orders: &Orders, mut publisher: Publisher, mut shared: Shared) {
    let mut flaps = 0;
    let mut build = |publisher: &Publisher| {
        flaps += 1;
        shared.with_health(flaps / 2 % usize::from(BACKENDS), flaps % 2 == 0, &publisher.current())
    };
    loop {
        match orders.0.load(Ordering::Acquire) {
            Orders::BUILD => {
                drop(black_box(build(&publisher)));
                orders.done(Orders::BUILD, Orders::NOTHING);
            }
            Orders::BUILD_AND_PUBLISH => {
                let table = build(&publisher);
                publisher.publish(table);
                orders.done(Orders::BUILD_AND_PUBLISH, Orders::NOTHING);
            }
            Orders::FLAP => {
                let table = build(&publisher);
                publisher.publish(table);
                orders.done(Orders::FLAP, Orders::REST);
            }
            // Asleep: a core that spins may slow the other one down.
            Orders::REST => thread::sleep(Duration::from_millis(1)),
            Orders::END => return,
            _ => spin_loop(),
        }
    }
}

/// Microseconds of the polls of one round: the first, the longest, and all.
struct Polls {
    first: f64,
    longest: f64,
    all: f64,
}

fn timed_round(bed: &mut Bed) -> Polls {
    bed.prepare();
    let mut polls = Polls { first: 0.0, longest: 0.0, all: 0.0 };
    let live = LIVE.get();
    let took = bed.timed_polls(|number, took| {
        let us = took.as_secs_f64() * 1e6;
        if number == 0 {
            polls.first = us;
        }
        polls.longest = polls.longest.max(us);
        polls.all += us;
    });
    assert_eq!(LIVE.get(), live, "a worker neither allocates nor frees");
    bed.finish(took);
    polls
}

/// Measures the cost of a new table for a worker: rounds that take one up in their first poll, and
/// rounds after one that was built and discarded.
fn publications(plan: Plan, bed: &mut Bed, orders: &Orders) -> Vec<Figure> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..plan.publications {
        orders.carry_out(Orders::BUILD);
        without.push(timed_round(bed));
        orders.carry_out(Orders::BUILD_AND_PUBLISH);
        with.push(timed_round(bed));
    }
    let figure = |name, of: fn(&Polls) -> f64, polls: &[Polls]| {
        let spread = Spread::of(polls.iter().map(of).collect());
        Figure::new(name, u64::from(BACKENDS), "us", spread)
    };
    let worst = |name, of: fn(&Polls) -> f64, polls: &[Polls]| {
        let mut values: Vec<f64> = polls.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let kept = values.split_off(values.len() - values.len().div_ceil(100));
        Figure::new(name, u64::from(BACKENDS), "us", Spread::of(vec![kept[0]]))
    };
    let pairs = with.iter().zip(&without);
    let extra = |of: fn(&Polls) -> f64| {
        Spread::of(pairs.clone().map(|(with, without)| of(with) - of(without)).collect())
    };
    let (first, all) = (extra(|polls| polls.first), extra(|polls| polls.all));
    vec![
        figure("poll_first_undisturbed", |polls| polls.first, &without),
        figure("poll_first_new_table", |polls| polls.first, &with),
        worst("poll_longest_p99_undisturbed", |polls| polls.longest, &without),
        worst("poll_longest_p99_new_table", |polls| polls.longest, &with),
        Figure::new("publish_extra_first_poll", u64::from(BACKENDS), "us", first).below(50.0),
        Figure::new("publish_extra_round", u64::from(BACKENDS), "us", all).below(50.0),
    ]
}

/// Measures the cost of ten health flaps a second, in percent: slices of 100 ms with a flap and
/// without, in turns.
fn flaps(plan: Plan, bed: &mut Bed, orders: &Orders) -> Figure {
    let mut slice = |order| {
        orders.give(order);
        let (start, mut rounds) = (Instant::now(), Vec::new());
        while start.elapsed() < plan.slice {
            rounds.push(round(bed));
        }
        mean_of_uninterrupted(&rounds)
    };
    let cost = |_| {
        let without = slice(Orders::REST);
        let with = slice(Orders::FLAP);
        (with / without - 1.0) * 100.0
    };
    let costs = Spread::of((0..plan.slices).map(cost).collect());
    Figure::new("flaps_10_per_second", u64::from(BACKENDS), "percent", costs).below(1.0)
}

/// Under `cargo test`: all of the bench works, and the document has the rows that its readers need.
fn smoke() -> Result<(), Box<dyn Error>> {
    let document = serde_json::to_value(measure(SMOKE, Cores::default()))?;
    let rows = document["rows"].as_array().ok_or("no rows")?;
    for name in
        ["build_full", "build_health_change", "publish_extra_first_poll", "flaps_10_per_second"]
    {
        let row = rows.iter().find(|row| row["name"] == name).ok_or(name)?;
        assert!(row["value"].is_number() && row["goal"].is_number(), "{name}");
    }
    println!("control: {} rows, as expected", rows.len());
    Ok(())
}
