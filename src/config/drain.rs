//! `drain` of a VIP: deadline of a drain, action for the flows that remain then, and slow start of
//! a backend that returns.

use std::time::Duration;

use serde::Deserialize;

use super::checked::Drain;
use super::key_path::KeyPath;
use super::policy;
use super::report::Report;
use crate::net::Protocol;
use crate::units::Ticks;

/// Default slow start, in seconds: enough for connection pools and caches of a server to fill,
/// short enough for a rolling update.
const SLOW_START_S: u64 = 10;
/// Longest slow start, in seconds. For more than an hour, a different weight is the right setting.
const MAX_SLOW_START_S: u64 = 3600;
/// Longest deadline, in seconds: the longest span of the data path's clock.
const MAX_DEADLINE_S: u64 = Ticks::MAX_SPAN.as_secs();

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDrain {
    deadline_s: Option<i64>,
    then: Option<String>,
    slow_start_s: Option<i64>,
}

impl RawDrain {
    /// Checks the table.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) -> Drain {
        let deadline_at = key_path.key("deadline_s");
        let deadline =
            self.deadline_s.map(|s| report.integer(&deadline_at, Some(s), 1, 1..=MAX_DEADLINE_S));
        let slow_start = report.integer(
            &key_path.key("slow_start_s"),
            self.slow_start_s,
            SLOW_START_S,
            0..=MAX_SLOW_START_S,
        );
        Drain {
            deadline: deadline.map(Duration::from_secs),
            then: policy::ending(self.then.as_deref(), &key_path.key("then"), protocol, report),
            slow_start: Duration::from_secs(slow_start),
        }
    }
}
