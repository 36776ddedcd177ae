//! The command line: one file per subcommand.
//!
//! A command writes its output to the writer that it is given and returns errors; `main` prints the
//! errors and sets the exit code. Commands use [`client`] to reach a running holdfast.

pub mod check;
pub mod client;
pub mod clients;
pub mod drain;
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
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigErrors, SOCKET};
use crate::control::api::Name;
use client::{Client, ClientError};

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
    /// Simulate a change: broken flows, moved flows and imbalance, per scheduler
    Whatif(Box<whatif::WhatifArgs>),
}

/// The arguments of `holdfast run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Control socket of a running holdfast.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// Control socket of the running holdfast
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
}

impl SocketArgs {
    fn client(&self) -> Result<Client, ClientError> {
        Client::new(&self.socket)
    }
}

/// A backend as named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((vip, backend)) => Ok(Self { vip: name(vip)?, backend: name(backend)? }),
            None => Err("name the backend as VIP/BACKEND, such as web/a".to_owned()),
        }
    }
}

/// Returns the first backend, and the others as the API names them.
fn names(targets: &[Target]) -> (Target, Vec<Name>) {
    let mut targets = targets.iter().cloned();
    // The command line has at least one target.
    let first =
        targets.next().unwrap_or_else(|| Target { vip: String::new(), backend: String::new() });
    (first, targets.map(|Target { vip, backend }| Name { vip, backend }).collect())
}

/// Checks the name of a VIP or backend: the characters that the configuration allows, which need no
/// quoting in a URI.
fn name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(format!("\"{text}\" is not a name; `holdfast status` lists them"));
    }
    Ok(text.to_owned())
}

/// Reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    /// The configuration does not fit this machine; one message per finding.
    #[error("{}", .0.join("\n"))]
    Machine(Vec<String>),
    /// The running holdfast could not be reached, or refused.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// A drain did not complete while the command waited for it.
    #[error("{0}")]
    Drain(String),
    /// The arguments are incomplete or contradictory.
    #[error("{0}")]
    Usage(String),
    /// The output could not be written.
    #[error("cannot write the output: {}", crate::format::reason(.0))]
    Output(#[from] io::Error),
    /// Traffic could not be generated.
    #[error("{0}")]
    Generate(String),
    /// A capture could not be replayed completely.
    #[error("{0}")]
    Replay(String),
    /// A change could not be simulated.
    #[error("{0}")]
    Whatif(String),
    /// A simulated change exceeds a bound; one message per finding.
    #[error("{}", .0.join("\n"))]
    Bound(Vec<String>),
    /// `run` could not start or had to stop.
    #[error("{0}")]
    Run(Box<dyn std::error::Error + Send + Sync>),
}

impl CliError {
    /// Returns one message per mistake.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Config(errors) => errors.messages(),
            Self::Machine(findings) | Self::Bound(findings) => findings.clone(),
            Self::Client(ClientError::Refused(mistakes)) => mistakes.clone(),
            other => vec![other.to_string()],
        }
    }

    /// Returns the exit code: 3 if a simulated change exceeds a bound, else 1.
    pub const fn exit_code(&self) -> u8 {
        if matches!(self, Self::Bound(_)) { 3 } else { 1 }
    }

    /// Whether the reader of the output closed it.
    pub fn is_closed_pipe(&self) -> bool {
        let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        match self {
            Self::Output(error) | Self::Client(ClientError::Output(error)) => closed(error),
            _ => false,
        }
    }
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
        Command::Reload(args) => reload::reload(&args, &mut out)?,
        Command::Events(args) => events::events(&args, &mut out)?,
        Command::Flows(args) => whole(&mut out, |out| flows::flows(&args, out))?,
        Command::Clients(args) => whole(&mut out, |out| clients::clients(&args, out))?,
        Command::Explain(args) => explain::explain(&args, &mut out)?,
        Command::Replay(args) => replay::replay(&args, colours, &mut out)?,
        Command::Generate(args) => generate::generate(&args, &mut out)?,
        Command::Whatif(args) => whatif::whatif(&args, colours, &mut out)?,
    }
    Ok(out.flush()?)
}
