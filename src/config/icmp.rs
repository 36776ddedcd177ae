//! `[icmp]`: rate limit of the ICMP errors that workers send.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::local::IcmpRate;

/// Highest rate and burst: more than any path change needs, and little compared to forwarding.
const MAX: u32 = 1_000_000;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawIcmp {
    per_second: Option<i64>,
    burst: Option<i64>,
}

impl RawIcmp {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> IcmpRate {
        let default = IcmpRate::default();
        let mut number =
            |key, raw, default| report.integer(&key_path.key(key), raw, default, 0..=MAX);
        IcmpRate {
            per_second: number("per_second", self.per_second, default.per_second),
            burst: number("burst", self.burst, default.burst),
        }
    }
}
