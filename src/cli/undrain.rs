//! `holdfast undrain`: backends take new flows again.

use std::io::Write;

use clap::Args;

use super::args::{SocketArgs, Target};
use super::error::CliError;
use crate::control::api::{BackendStatus, HealthState, Ordered, UndrainRequest};

/// Arguments of `holdfast undrain`.
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// Backends to take back into service, all or none
    #[arg(value_name = "VIP/BACKEND", required = true)]
    pub targets: Vec<Target>,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Cancels drains, and prints the state of each backend.
///
/// # Errors
/// [`CliError::Client`].
pub fn undrain(args: &UndrainArgs, out: &mut impl Write) -> Result<(), CliError> {
    let (Target { vip, backend }, also) = super::args::names(&args.targets);
    let request = UndrainRequest { vip, backend, also };
    let ordered: Ordered = args.socket.client()?.post("/v1/undrain", &request)?;
    for status in std::iter::once(&ordered.backend).chain(&ordered.also) {
        writeln!(out, "{}/{}: {}", status.vip, status.name, note(status))?;
    }
    Ok(())
}

fn note(status: &BackendStatus) -> &'static str {
    match status.health {
        HealthState::Down => "active, but its health check says that it is down",
        _ if status.weight == 0 => "active, but its weight is 0: it takes no new flows",
        _ if status.share_percent < 100 => "active, takes new flows, more of them by and by",
        HealthState::Up | HealthState::Unchecked | HealthState::Unknown => {
            "active, takes new flows"
        }
    }
}
