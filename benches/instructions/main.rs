//! Instructions per packet, by stage, counted by callgrind: a figure that does not depend on what
//! else the machine does.
//!
//! Starts itself under valgrind, once for each case; only polls are counted. Every instruction is
//! put to a stage by the functions that were inlined around it, as addr2line (binutils) tells.
//!
//! ```sh
//! cargo bench --bench instructions                                   # a table
//! cargo bench --bench instructions -- --json
//! cargo bench --bench instructions -- --only pipeline_dsr --lines 40 # the dearest source lines
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]

mod profile;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Parser;
use profile::{Profile, Symbols};
use serde::Serialize;
use support::bed::{Bed, Clock, ROUND};
use support::cases::{CASES, Case};
use support::measure::Subject;
use support::{args, report, say};

/// Flows in the table.
const FLOWS: u64 = 40_000;
/// A tick per round is as much sweeping per packet as at 10 million packets per second with two
/// million flows.
const CLOCK: Clock = Clock::EveryPolls(32);
/// With new flows, the polls of two sweeps.
const ROUNDS: usize = 25;

#[derive(Parser)]
struct Args {
    /// One JSON document on stdout instead of a table
    #[arg(long)]
    json: bool,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Also print this many source lines, those with the most instructions first
    #[arg(long, default_value_t = 0)]
    lines: usize,
    /// Be the program that valgrind looks at, and forward the packets of this case
    #[arg(long, hide = true)]
    workload: Option<String>,
    /// cargo bench adds this
    #[arg(long, hide = true)]
    bench: bool,
}

/// The row of a case.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    instructions_per_packet: f64,
    stages: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
struct Document {
    rows: Vec<Row>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = args::<Args>() else { return smoke() };
    if let Some(name) = &args.workload {
        let case = CASES.into_iter().find(|case| case.name == name).ok_or("no such case")?;
        workload(case, FLOWS, ROUNDS);
        return Ok(());
    }
    let mut document = Document { rows: Vec::new() };
    for case in CASES.into_iter().filter(|case| case.name.contains(&args.only)) {
        say(&format!("  {} under callgrind", case.name));
        let profile = count(case)?;
        let packets = ROUNDS * ROUND;
        document.rows.push(row(case, &profile, packets));
        if args.lines > 0 {
            print_lines(&profile, packets, args.lines);
        }
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&document)?),
        false => print_table(&document),
    }
    Ok(())
}

/// What is counted: some rounds, after a warm-up.
fn workload(case: Case, flows: u64, rounds: usize) {
    let mut bed = Bed::new(case, flows, CLOCK);
    for _ in 0..rounds {
        bed.prepare();
        assert_eq!(bed.run(), ROUND);
        bed.finish(std::time::Duration::ZERO);
    }
    bed.assert_accounted();
}

/// Runs a case under callgrind.
fn count(case: Case) -> Result<Profile, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let out = std::env::temp_dir().join(format!("holdfast-instructions-{}", std::process::id()));
    let result = callgrind(&program, case, &out).and_then(|text| {
        let mut profile = Profile::parse(&text)?;
        profile.resolve(Symbols::of(&program, &profile.addresses(&program))?);
        Ok(profile)
    });
    // Left over only if there was an error, and of no more use then.
    let _ = std::fs::remove_file(&out);
    result
}

fn callgrind(program: &Path, case: Case, out: &Path) -> Result<String, Box<dyn Error>> {
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-instr=yes", "--compress-strings=no"])
        .args(["--compress-pos=no", "--collect-atstart=no", "--toggle-collect=*measured_poll*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["--bench", "--workload", case.name])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start valgrind ({error}); install Debian's valgrind"))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(format!("{} under valgrind: {}: {said}", case.name, done.status).into());
    }
    Ok(std::fs::read_to_string(out)?)
}

fn row(case: Case, profile: &Profile, packets: usize) -> Row {
    let per_packet = |instructions: u64| report::round(instructions as f64 / packets as f64);
    let stages = profile.stages("measured_poll");
    Row {
        name: case.name,
        instructions_per_packet: per_packet(profile.total()),
        stages: stages.into_iter().map(|(stage, cost)| (stage, per_packet(cost))).collect(),
    }
}

fn print_table(document: &Document) {
    let order =
        ["receive", "parse", "classify", "prefetch", "track", "select", "rewrite", "transmit"];
    print!("{:<24}{:>8}", "instructions per packet", "all");
    order.iter().for_each(|stage| print!("{stage:>10}"));
    println!("{:>10}{:>10}{:>10}", "rings", "sweep", "other");
    for row in &document.rows {
        print!("{:<24}{:>8.1}", row.name, row.instructions_per_packet);
        let known = order.into_iter().chain(["rings", "sweep"]);
        let mut other = row.instructions_per_packet;
        for stage in known {
            let cost = row.stages.get(stage).copied().unwrap_or_default();
            other -= cost;
            print!("{cost:>10.1}");
        }
        println!("{:>10.1}", other.abs());
    }
}

fn print_lines(profile: &Profile, packets: usize, count: usize) {
    for (place, cost) in profile.lines().into_iter().take(count) {
        println!("{:>8.2}  {place}", cost as f64 / packets as f64);
    }
}

/// Under `cargo test`: the workloads work, and a small profile is read as it should.
fn smoke() -> Result<(), Box<dyn Error>> {
    for case in CASES {
        workload(case, 40_000, 1);
    }
    profile::check()?;
    let mut stages = BTreeMap::new();
    stages.insert("parse".to_owned(), 2.0);
    let row = Row { name: CASES[0].name, instructions_per_packet: 2.0, stages };
    let json = serde_json::to_value(Document { rows: vec![row] })?;
    assert_eq!(json["rows"][0]["instructions_per_packet"], 2.0);
    assert_eq!(json["rows"][0]["stages"]["parse"], 2.0);
    println!("instructions: every workload runs, and profiles are read");
    Ok(())
}
