//! The whole pipeline without a NIC: a worker on fake rings, from receive to transmit, compared
//! with the floor of the same run. docs/PERFORMANCE.md describes the method.
//!
//! ```sh
//! cargo bench --bench pipeline                    # a table
//! cargo bench --bench pipeline -- --json --quick
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]

mod support;

use std::error::Error;

use support::bed::{Bed, Clock};
use support::cases::{CASES, Case, Traffic};
use support::floor::Floor;
use support::measure::{Plan, interleave};
use support::report::{Document, Row};
use support::{Args, args, pin_to_core, say};

const FULL: Plan = Plan { repetitions: 21, rounds: 40 };
const QUICK: Plan = Plan { repetitions: 7, rounds: 20 };
const SMOKE: Plan = Plan { repetitions: 2, rounds: 2 };

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = args::<Args>() else { return smoke() };
    pin_to_core(args.core)?;
    let (plan, flows) = match args.quick {
        true => (QUICK, &[1, 100_000, 1_000_000][..]),
        false => (FULL, &[1, 100_000, 1_000_000, 10_000_000][..]),
    };
    measure(plan, flows, &args.only).print(args.json)?;
    Ok(())
}

/// Measures all cases with `only` in their name.
fn measure(plan: Plan, flows: &[u64], only: &str) -> Document {
    let mut document = Document::default();
    for &flows in flows {
        let cases: Vec<Case> = CASES
            .into_iter()
            .filter(|case| case.name.contains(only) && fits(case, flows))
            .collect();
        if cases.is_empty() {
            continue;
        }
        for case in cases {
            say(&format!("  {} with {flows} flows", case.name));
            document.rows.push(row(plan, case, flows));
        }
    }
    document.rows.sort_by_key(|row| CASES.iter().position(|case| case.name == row.name));
    document
}

/// Returns whether a case is measured with so many flows. New flows need a table that they do not
/// fill; a very large one takes too long to reach steady state. Rare traffic has few flows.
fn fits(case: &Case, flows: u64) -> bool {
    match case.traffic {
        Traffic::Open => (40_000..=1_000_000).contains(&flows),
        Traffic::Fragment | Traffic::Error | Traffic::Echo => flows <= 100_000,
        _ => true,
    }
}

fn row(plan: Plan, case: Case, flows: u64) -> Row {
    let mut bed = Bed::new(case, flows, Clock::Timed);
    let mut floor = Floor::new(flows, usize::try_from(flows).unwrap().max(8), bed.memory());
    let samples = interleave(plan, &mut [&mut bed, &mut floor]);
    bed.assert_accounted();
    Row::new(case.name, flows, samples.ns(0)).with_floor(samples.ns(1), samples.ratio(0, 1))
}

/// Under `cargo test`: every case works, and the document has the keys that its readers need.
fn smoke() -> Result<(), Box<dyn Error>> {
    let document = measure(SMOKE, &[1, 40_000], "");
    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&document)?)?;
    let rows = json["rows"].as_array().ok_or("no rows")?;
    for case in CASES {
        let row = rows.iter().find(|row| row["name"] == case.name && row["flows"] == 40_000);
        let row = row.ok_or_else(|| format!("no row {}", case.name))?;
        for key in ["ns_per_packet", "ns_min", "ns_max", "floor_ns", "ratio_to_floor"] {
            assert!(row[key].as_f64().is_some_and(|number| number > 0.0), "{}: {key}", case.name);
        }
    }
    println!("pipeline: {} rows, as expected", rows.len());
    Ok(())
}
