//! Shared code of the benches: packets, a worker on fake rings, the floor, rounds, and the report.

#![allow(dead_code, reason = "each bench uses a part of it")]

pub mod bed;
pub mod cases;
pub mod floor;
pub mod measure;
pub mod packets;
pub mod report;
#[path = "../../tests/rig/mod.rs"]
pub mod rig;

use clap::Parser;

/// Command line of a bench.
#[derive(Parser)]
pub struct Args {
    /// One JSON document on stdout instead of a table
    #[arg(long)]
    pub json: bool,
    /// Fewer repetitions, and no 10 million flows
    #[arg(long)]
    pub quick: bool,
    /// Core to run on; the last one if not given
    #[arg(long)]
    pub core: Option<usize>,
    /// Only rows whose name contains this
    #[arg(long, default_value = "")]
    pub only: String,
    /// cargo bench adds this
    #[arg(long, hide = true)]
    bench: bool,
}

/// Parses the command line. `None` under `cargo test`, which starts a bench without `--bench` only
/// to check that it works.
pub fn args<A: Parser>() -> Option<A> {
    std::env::args().any(|arg| arg == "--bench").then(A::parse)
}

/// Prints a progress message.
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Pins this thread to `core`, or to the last core.
pub fn pin_to_core(core: Option<usize>) -> Result<(), holdfast::xdp::cpu::CpuError> {
    use holdfast::xdp::cpu;
    match core.or(cpu::available_cores().last().copied()) {
        Some(core) => cpu::pin_to_core(core),
        None => Ok(()),
    }
}
