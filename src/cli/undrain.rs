//! `holdfast undrain`: a backend takes new flows again.

use std::io::Write;

use clap::Args;

use super::{CliError, SocketArgs, Target};
use crate::control::api::{BackendStatus, HealthState, UndrainRequest};

/// The arguments.
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// The backend
    #[arg(value_name = "VIP/BACKEND")]
    pub target: Target,
    /// Where holdfast listens.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Takes a drain back, and says so.
///
/// # Errors
/// [`CliError::Client`].
pub fn undrain(args: &UndrainArgs, out: &mut impl Write) -> Result<(), CliError> {
    let Target { vip, backend } = args.target.clone();
    let request = UndrainRequest { vip, backend };
    let status: BackendStatus = args.socket.client()?.post("/v1/undrain", &request)?;
    let note = match status.health {
        HealthState::Down => "active, but its health check says that it is down",
        HealthState::Up | HealthState::Unchecked | HealthState::Unknown => {
            "active, takes new flows"
        }
    };
    Ok(writeln!(out, "{}/{}: {note}", status.vip, status.name)?)
}
