//! `[state]`: the memory that outlives the process.

use std::path::PathBuf;

use serde::Deserialize;

use super::checked::State;
use super::key_path::KeyPath;
use super::report::Report;

/// Default directory. A tmpfs on every Linux with glibc (shm_open(3)), emptied at boot, and unlike
/// /run large enough for flow tables (half of the memory).
const DIRECTORY: &str = "/dev/shm/holdfast";

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawState {
    directory: Option<String>,
}

impl RawState {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> State {
        let directory = self.directory.unwrap_or_else(|| DIRECTORY.to_owned());
        if directory == "none" {
            return State { directory: None };
        }
        if !directory.starts_with('/') || directory.contains('\0') {
            let what = format!("\"{directory}\" is not an absolute path");
            let fix = format!("use a directory in memory such as \"{DIRECTORY}\", or \"none\"");
            report.error(&key_path.key("directory"), what, &fix);
        }
        State { directory: Some(PathBuf::from(directory)) }
    }
}
