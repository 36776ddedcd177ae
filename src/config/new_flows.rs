//! `[new_flows]`: budgets of new flows.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::new_flows::{NewFlows, PrefixBudget};

/// Highest rate: more than any number of workers can pin.
const MAX: u32 = 100_000_000;
/// Default prefixes: the smallest networks that are routed on the Internet.
const V4: u8 = 24;
const V6: u8 = 48;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNewFlows {
    per_second: Option<i64>,
    per_prefix: Option<RawPrefixBudget>,
}

/// `per_prefix` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, such as { per_second = 2000 }")]
pub(super) struct RawPrefixBudget {
    v4: Option<i64>,
    v6: Option<i64>,
    per_second: Option<i64>,
}

impl RawNewFlows {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> NewFlows {
        let per_second = self
            .per_second
            .map(|rate| report.integer(&key_path.key("per_second"), Some(rate), MAX, 1..=MAX));
        let prefix_at = key_path.key("per_prefix");
        let per_prefix = self.per_prefix.and_then(|raw| raw.check(&prefix_at, report));
        NewFlows { per_second, per_prefix }
    }
}

impl RawPrefixBudget {
    fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Option<PrefixBudget> {
        let rate_at = key_path.key("per_second");
        let v4 = report.integer(&key_path.key("v4"), self.v4, V4, 1..=32);
        let v6 = report.integer(&key_path.key("v6"), self.v6, V6, 1..=64);
        if self.per_second.is_none() {
            report.missing(&rate_at, "write how many new flows a network may have per second");
        }
        let per_second = report.integer(&rate_at, Some(self.per_second?), MAX, 1..=MAX);
        Some(PrefixBudget { v4, v6, per_second })
    }
}
