//! `[security]`: limits that holdfast sets to itself.

use serde::Deserialize;

use super::checked::Security;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSecurity {
    seccomp: Option<bool>,
}

impl RawSecurity {
    /// Returns the checked section; every value is valid.
    pub(super) fn check(self) -> Security {
        Security { seccomp: self.seccomp.unwrap_or(true) }
    }
}
