//! The `holdfast` binary: the only place that prints errors and sets the exit code.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use holdfast::cli::{self, Cli};
use holdfast::log::{LAST_WORDS, Log};

/// Exit codes: 0: success; 1: failure; 2: invalid command line (clap exits with it); 3: `whatif
/// --fail-if`.
fn main() -> ExitCode {
    let Err(error) = cli::execute(Cli::parse()) else { return ExitCode::SUCCESS };
    if error.is_closed_pipe() {
        // The reader has closed the pipe early, as in `holdfast flows | head`.
        return ExitCode::SUCCESS;
    }
    let label = if cli::colours(&io::stderr()) { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    // If the log cannot be opened, only the exit code remains.
    if let Ok(log) = Log::to_stderr() {
        error.messages().iter().for_each(|message| log.line(format!("{label} {message}\n")));
        log.flush(LAST_WORDS);
    }
    ExitCode::from(error.exit_code())
}
