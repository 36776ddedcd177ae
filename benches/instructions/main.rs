//! Instructions per packet, by stage, counted by callgrind: a figure that does not depend on the
//! load of the machine.
//!
//! Starts itself under valgrind, once for each case; only polls are counted. Every instruction is
//! attributed to a stage by the functions that were inlined around it, as addr2line (binutils)
//! reports them. A binary and not a bench, as cargo builds benches with `panic = "unwind"`,
//! whatever the profile.
//!
//! ```sh
//! alias count='cargo run --release --locked --features instructions --bin instructions --'
//! count                                 # a table
//! count --json
//! count --check                         # against the committed figures
//! count --record                        # writes new figures
//! count --only pipeline_dsr --lines 40  # the dearest source lines
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]

mod figures;
mod profile;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use clap::Parser;
use figures::{Figure, Figures, STAGES};
use holdfast::cli::{self, Cli, CliError};
use profile::{Profile, Symbols};
use serde::Serialize;
use support::bed::{Bed, Clock, ROUND};
use support::cases::{CASES, Case};
use support::measure::Subject;
use support::{report, say};

/// Flows in the table.
const FLOWS: u64 = 40_000;
/// A tick per round is as much sweeping per packet as at 10 million packets per second with two
/// million flows.
const CLOCK: Clock = Clock::EveryPolls(32);
/// With new flows, the polls of two sweeps.
const ROUNDS: usize = 25;
/// The document with the table of figures.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PERFORMANCE.md");

#[derive(Parser)]
struct Args {
    /// One JSON document on stdout instead of a table
    #[arg(long)]
    json: bool,
    /// Fail if a case exceeds its committed figure by over 2 %
    #[arg(long, conflicts_with = "json")]
    check: bool,
    /// Write the figures of all cases to the committed file and to docs/PERFORMANCE.md
    #[arg(long, conflicts_with_all = ["json", "check", "only"])]
    record: bool,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Also print this many source lines, those with the most instructions first
    #[arg(long, default_value_t = 0)]
    lines: usize,
    /// Be the program that valgrind looks at, and forward the packets of this case
    #[arg(long, hide = true)]
    workload: Option<String>,
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

fn main() -> Result<ExitCode, Box<dyn Error>> {
    keep_all_of_holdfast();
    let args = Args::parse();
    if let Some(name) = &args.workload {
        let case = CASES.into_iter().find(|case| case.name == name).ok_or("no such case")?;
        workload(case, FLOWS, ROUNDS);
        return Ok(ExitCode::SUCCESS);
    }
    let cases: Vec<Case> =
        CASES.into_iter().filter(|case| case.name.contains(&args.only)).collect();
    let document = Document { rows: count_all(&cases, args.lines)? };
    if args.record {
        record(&document)?;
    } else if args.check {
        return check(&document, args.only.is_empty());
    } else if args.json {
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        print_table(&document);
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps all code of holdfast in this program. Else the linker drops the second caller of a stage,
/// that of `holdfast explain`, and inlines the stage where the shipped binary calls it.
fn keep_all_of_holdfast() {
    std::hint::black_box(cli::execute as fn(Cli) -> Result<(), CliError>);
}

/// Compares a count with the committed figures.
fn check(document: &Document, complete: bool) -> Result<ExitCode, Box<dyn Error>> {
    let comparison = Figures::committed()?.compare(&figures(document)?, complete);
    print!("{comparison}");
    if !comparison.is_ok() {
        return Ok(ExitCode::FAILURE);
    }
    println!("no case of {} exceeds its figure by over 2 %", document.rows.len());
    Ok(ExitCode::SUCCESS)
}

/// Writes a count as the committed figures.
fn record(document: &Document) -> Result<(), Box<dyn Error>> {
    let figures = figures(document)?;
    for raised in Figures::committed().map(|before| figures.raised(&before)).unwrap_or_default() {
        println!("{raised}: raised, so the commit has to say why");
    }
    std::fs::write(figures::path(), figures.to_toml())?;
    // The document has the figures of one architecture.
    if cfg!(target_arch = "x86_64") {
        let text = std::fs::read_to_string(DOCUMENT)?;
        std::fs::write(DOCUMENT, figures.replace_table(&text)?)?;
    }
    println!("{} has the figures of {} cases", figures::path().display(), figures.case.len());
    Ok(())
}

/// Converts a count to figures.
fn figures(document: &Document) -> Result<Figures, Box<dyn Error>> {
    let case = document.rows.iter().map(|row| Figure {
        name: row.name.to_owned(),
        all: whole(row.instructions_per_packet),
        stages: row
            .stages
            .iter()
            .map(|(stage, &count)| (stage.clone(), whole(count)))
            .filter(|&(_, count)| count > 0)
            .collect(),
    });
    let version = |program: &str| -> Result<String, Box<dyn Error>> {
        let output = Command::new(program).arg("--version").output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    Ok(Figures { rustc: version("rustc")?, valgrind: version("valgrind")?, case: case.collect() })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

/// Counts cases, as many at once as there are cores.
fn count_all(cases: &[Case], lines: usize) -> Result<Vec<Row>, Box<dyn Error>> {
    let packets = ROUNDS * ROUND;
    let mut rows = Vec::new();
    for cases in cases.chunks(thread::available_parallelism()?.get()) {
        let profiles: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = cases.iter().map(|case| scope.spawn(|| count(*case))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (case, profile) in cases.iter().zip(profiles) {
            let profile = profile?;
            rows.push(row(*case, &profile, packets));
            if lines > 0 {
                print_lines(&profile, packets, lines);
            }
        }
    }
    Ok(rows)
}

/// Runs the counted workload: some rounds, after a warm-up.
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
fn count(case: Case) -> Result<Profile, String> {
    say(&format!("  {} under callgrind", case.name));
    let name = format!("holdfast-{}-{}", case.name, std::process::id());
    let out = std::env::temp_dir().join(name);
    let result = std::env::current_exe().map_err(Into::into).and_then(|program| {
        let text = callgrind(&program, case, &out)?;
        let mut profile = Profile::parse(&text)?;
        profile.resolve(Symbols::of(&program, &profile.addresses(&program))?);
        Ok(profile)
    });
    // Left over only after an error, and of no use then.
    let _ = std::fs::remove_file(&out);
    result.map_err(|error: Box<dyn Error>| error.to_string())
}

fn callgrind(program: &Path, case: Case, out: &Path) -> Result<String, Box<dyn Error>> {
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-instr=yes", "--compress-strings=no"])
        .args(["--compress-pos=no", "--collect-atstart=no", "--toggle-collect=*measured_poll*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["--workload", case.name])
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
    print!("{:<26}{:>8}", "instructions per packet", "all");
    STAGES.iter().for_each(|stage| print!("{stage:>10}"));
    println!("{:>10}", "other");
    for row in &document.rows {
        print!("{:<26}{:>8.1}", row.name, row.instructions_per_packet);
        let mut other = row.instructions_per_packet;
        for stage in STAGES {
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
