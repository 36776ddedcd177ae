//! `holdfast check`: everything that can be found without starting.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::config::machine::{self, Finding, Machine};
use crate::config::{self, Config};

/// The arguments.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Check the file alone, not whether this machine can run it (for CI and editors)
    #[arg(long)]
    pub offline: bool,
}

/// Checks the file and, unless offline, the machine.
///
/// # Errors
/// Every mistake in the file; if there is none, everything of it that this machine cannot run.
pub fn check(args: &CheckArgs, out: &mut impl Write) -> Result<(), CliError> {
    let config = config::load(&args.config)?;
    let file = args.config.display();
    let findings =
        if args.offline { Vec::new() } else { machine::check(&config, &Machine::read(&config)) };
    let (fatal, notes): (Vec<&Finding>, Vec<_>) = findings.iter().partition(|f| f.fatal);
    for note in notes {
        writeln!(out, "note: {note}")?;
    }
    if !fatal.is_empty() {
        let messages = fatal.iter().map(|finding| format!("{file}: {finding}")).collect();
        return Err(CliError::Machine(messages));
    }
    let scope = if args.offline { "good (the machine was not looked at)" } else { "good" };
    Ok(writeln!(out, "{file}: {scope}: {}", summary(&config))?)
}

fn summary(config: &Config) -> String {
    let backends = config.vips.iter().map(|vip| vip.backends.len()).sum();
    let counts = [
        (config.workers.cores.len(), "worker"),
        (config.nics.len(), "NIC"),
        (config.vips.len(), "VIP"),
        (backends, "backend"),
    ];
    let words = counts.map(|(n, noun)| format!("{n} {noun}{}", if n == 1 { "" } else { "s" }));
    words.join(", ")
}
