//! The command line: one file per subcommand.
//!
//! A command writes its output to the writer that it is given and returns errors; `main` prints the
//! errors and sets the exit code. Commands use [`client`] to reach a running holdfast.

mod args;
pub mod backend;
pub mod check;
pub mod client;
pub mod clients;
pub mod deny;
pub mod drain;
mod error;
pub mod events;
pub mod explain;
pub mod flows;
pub mod generate;
pub mod reload;
pub mod replay;
pub mod run;
pub mod status;
mod table;
#[cfg(test)]
mod tests;
pub mod undrain;
pub mod whatif;

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::{Parser, Subcommand};

use args::RunArgs;

pub use error::CliError;

/// The arguments of `holdfast`.
#[derive(Debug, Parser)]
#[command(
    version,
    about = "Layer-4 load balancer on AF_XDP that never breaks a connection",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Forward packets until SIGTERM; SIGHUP reloads the configuration
    Run(RunArgs),
    /// Check a configuration file, and that this machine can run it
    Check(check::CheckArgs),
    /// Show VIPs, backends, workers, NICs and dropped packets
    Status(status::StatusArgs),
    /// Stop new flows to backends and let existing flows end
    Drain(drain::DrainArgs),
    /// Resume new flows to drained or draining backends
    Undrain(undrain::UndrainArgs),
    /// Deny sources access to VIPs while holdfast runs
    Deny(deny::DenyArgs),
    /// Read the configuration file again, all or nothing, and print the changes
    Reload(reload::ReloadArgs),
    /// Show recent events: drains, backends up and down, reloads
    Events(events::EventsArgs),
    /// List pinned flows
    Flows(flows::FlowsArgs),
    /// List clients with their backends, or forget them
    Clients(clients::ClientsArgs),
    /// Show the backend of a flow, with the reason for each step
    Explain(explain::ExplainArgs),
    /// Replay a capture through the worker's code and show each packet's fate, with the reason
    Replay(replay::ReplayArgs),
    /// Generate traffic for a load balancer and judge its forwarding
    Generate(Box<generate::GenerateArgs>),
    /// Load the program of a real server: decapsulation, and lost connections (fleet)
    Backend(backend::BackendArgs),
    /// Simulate a change: broken flows, moved flows and imbalance, per scheduler
    Whatif(Box<whatif::WhatifArgs>),
}

/// Whether to write colours to `stream`: only to a terminal, and not under NO_COLOR
/// (<https://no-color.org>).
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Buffers the output of `command`: stdout is otherwise written line by line, and some replies have
/// 100,000 lines.
fn whole<W: Write>(
    out: W,
    command: impl FnOnce(&mut BufWriter<W>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut out = BufWriter::new(out);
    command(&mut out)?;
    Ok(out.flush()?)
}

/// Executes a command line.
///
/// # Errors
/// The error of the command.
pub fn execute(cli: Cli) -> Result<(), CliError> {
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let colours = colours(&stdout);
    let mut out = stdout.lock();
    match cli.command {
        // `run` handles its output itself, and runs for a long time.
        Command::Run(args) => {
            drop(out);
            return run::run(&args);
        }
        Command::Check(args) => check::check(&args, &mut out)?,
        Command::Status(args) => whole(&mut out, |out| status::status(&args, colours, out))?,
        Command::Drain(args) => drain::drain(&args, terminal, &mut out)?,
        Command::Undrain(args) => undrain::undrain(&args, &mut out)?,
        Command::Deny(args) => deny::deny(&args, &mut out)?,
        Command::Reload(args) => reload::reload(&args, &mut out)?,
        Command::Events(args) => events::events(&args, &mut out)?,
        Command::Flows(args) => whole(&mut out, |out| flows::flows(&args, out))?,
        Command::Clients(args) => whole(&mut out, |out| clients::clients(&args, out))?,
        Command::Explain(args) => explain::explain(&args, &mut out)?,
        Command::Replay(args) => replay::replay(&args, colours, &mut out)?,
        Command::Generate(args) => generate::generate(&args, &mut out)?,
        Command::Backend(args) => backend::backend(&args, &mut out)?,
        Command::Whatif(args) => whatif::whatif(&args, colours, &mut out)?,
    }
    Ok(out.flush()?)
}
