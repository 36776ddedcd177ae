//! `holdfast run`: forwards packets.

use std::io::stderr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use super::args::RunArgs;
use super::error::CliError;
use super::{check, colours};
use crate::config::machine::{self, Level};
use crate::control::Signals;
use crate::log::{LAST_WORDS, Log};
use crate::{config, daemon};

/// Forwards until a signal stops the process. Logs go to the standard error stream; `RUST_LOG`
/// (default `info`) sets their level.
///
/// # Errors
/// Every mistake in the file; else every setting that this machine cannot run; else
/// [`CliError::Run`].
pub fn run(args: &RunArgs) -> Result<(), CliError> {
    // Comes first: until the handler is installed, SIGHUP ends the process.
    let signals = Signals::catch().map_err(|error| CliError::Run(Box::new(error)))?;
    let config = config::load(&args.config)?;
    let machine = check::look_at_machine(&config);
    let findings = check::fit(&config, &machine);
    let file = args.config.display();
    let fatal: Vec<String> = findings
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .map(|finding| format!("{file}: {finding}"))
        .collect();
    if !fatal.is_empty() {
        return Err(CliError::Machine(fatal));
    }
    allow_open_files(machine::open_files(&config, &machine));
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = Log::to_stderr()?;
    log.take_panics();
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone());
    events.with_ansi(colours(&stderr())).with_target(false).init();
    let result = daemon::run(config, &args.config, signals);
    log.flush(LAST_WORDS);
    result.map_err(|error| CliError::Run(Box::new(error)))
}

/// Raises the soft limit of open files, which protects programs that use select(2), to `needed`.
fn allow_open_files(needed: u64) {
    let limits = getrlimit(Resource::Nofile);
    if limits.current.is_some_and(|soft| soft < needed) {
        // Up to the hard limit, which was checked, the kernel permits it.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(needed), ..limits });
    }
}
