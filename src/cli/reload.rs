//! `holdfast reload`: reads the configuration file again.

use std::io::Write;

use clap::Args;

use super::args::SocketArgs;
use super::error::CliError;
use crate::control::api::{FlowsRemoved, ReloadRequest, Reloaded};
use crate::control::reload::fate;

/// Arguments of `holdfast reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Only print the changes, and the number of flows they would terminate
    #[arg(long)]
    pub dry_run: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Requests a reload, and prints the changes or, with `--dry-run`, those it would make.
///
/// # Errors
/// [`CliError::Client`]; the configuration is then unchanged.
pub fn reload(args: &ReloadArgs, out: &mut impl Write) -> Result<(), CliError> {
    let request = ReloadRequest { dry_run: args.dry_run };
    let reloaded: Reloaded = args.socket.client()?.post("/v1/reload", &request)?;
    if reloaded.changes.is_empty() {
        writeln!(out, "nothing changed")?;
    }
    for change in reloaded.changes {
        writeln!(out, "{change}")?;
    }
    for FlowsRemoved { vip, backend, flows, then } in reloaded.flows {
        if flows > 0 {
            let what = match backend {
                Some(backend) => format!("backend {backend} of VIP {vip}"),
                None => format!("addresses and ports that VIP {vip} loses"),
            };
            writeln!(out, "{what}: flows that {}: {flows}", fate(then))?;
        }
    }
    if reloaded.lists_pending {
        writeln!(out, "deny and allow lists are still being changed: see `holdfast deny list`")?;
    }
    if args.dry_run {
        writeln!(out, "dry run: nothing was applied")?;
    }
    Ok(())
}
