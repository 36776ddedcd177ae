//! `holdfast run`.

use super::{CliError, RunArgs};

/// Forwards until it is told to stop.
///
/// # Errors
/// [`CliError::Run`].
pub fn run(_args: &RunArgs) -> Result<(), CliError> {
    Err(CliError::Run("not built yet".into()))
}
