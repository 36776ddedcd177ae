//! `holdfast reload`: the configuration file is read again.

use std::io::Write;

use super::{CliError, SocketArgs};
use crate::control::api::Reloaded;

/// Has the file read again, and prints what changed.
///
/// # Errors
/// [`CliError::Client`]; nothing has changed then.
pub fn reload(args: &SocketArgs, out: &mut impl Write) -> Result<(), CliError> {
    let reloaded: Reloaded = args.client()?.order("/v1/reload")?;
    if reloaded.changes.is_empty() {
        writeln!(out, "nothing changed")?;
    }
    for change in reloaded.changes {
        writeln!(out, "{change}")?;
    }
    Ok(())
}
