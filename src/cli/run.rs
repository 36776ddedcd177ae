//! `holdfast run`: forwards packets.

use std::io::stderr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

use super::args::RunArgs;
use super::error::CliError;
use super::{check, colours};
use crate::config::machine::{self, Level, Memory};
use crate::control::Signals;
use crate::log::{LAST_WORDS, Log};
use crate::{config, daemon, privileges};

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
    let programs = daemon::Programs::load(&config);
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
    raise(Resource::Nofile, machine::open_files(&config, &machine));
    raise(Resource::Memlock, Memory::of(&config, &machine).packets);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let seccomp = config.security.seccomp;
    // A kernel that refuses has the start fail, when the main thread confines itself.
    let log = Log::to_stderr_by(move || _ = privileges::confine_log(seccomp))?;
    log.take_panics();
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone());
    events.with_ansi(colours(&stderr())).with_target(false).init();
    let result = daemon::run(config, &args.config, signals, programs);
    log.flush(LAST_WORDS);
    result.map_err(|error| CliError::Run(Box::new(error)))
}

/// Raises a soft limit to `needed`; that of open files protects programs that use select(2).
fn raise(resource: Resource, needed: u64) {
    let limits = getrlimit(resource);
    if limits.current.is_some_and(|soft| soft < needed) {
        // Up to the hard limit, which was checked, the kernel permits it.
        let _ = setrlimit(resource, Rlimit { current: Some(needed), ..limits });
    }
}
