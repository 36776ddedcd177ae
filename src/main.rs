//! The `holdfast` binary: the only place that prints errors and sets the exit code.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use holdfast::cli::{self, Cli};
use holdfast::log::{LAST_WORDS, Log};

/// 0: done; 1: failed; 2: the command line is wrong (clap exits with it); 3: `whatif --fail-if`.
fn main() -> ExitCode {
    let Err(error) = cli::execute(Cli::parse()) else { return ExitCode::SUCCESS };
    if error.is_closed_pipe() {
        // Whoever reads has seen enough, as in `holdfast flows | head`.
        return ExitCode::SUCCESS;
    }
    let label = if cli::colours(&io::stderr()) { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    // Where not even errors can be printed, only the exit code is left.
    if let Ok(log) = Log::to_stderr() {
        error.messages().iter().for_each(|message| log.line(format!("{label} {message}\n")));
        log.flush(LAST_WORDS);
    }
    ExitCode::from(error.exit_code())
}
