//! `drain` of a VIP: how long a drain may take, what becomes of the flows that are left then, and how
//! a backend comes back.

use std::time::Duration;

use serde::Deserialize;

use super::key_path::KeyPath;
use super::policy;
use super::report::Report;
use crate::forwarding::FlowAction;
use crate::net::Protocol;
use crate::units::Ticks;

/// Enough for connection pools and caches of a server to fill, short enough for a rolling update.
const SLOW_START_S: u64 = 10;
/// Above an hour it is another weight that is wanted.
const MAX_SLOW_START_S: u64 = 3600;
/// The clock of the data path cannot tell longer spans.
const MAX_DEADLINE_S: u64 = Ticks::MAX_SPAN.as_secs();

/// `drain` of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// How long a drain takes at most, unless the command says so; `None`: no end.
    pub deadline: Option<Duration>,
    /// What becomes of the flows that are left then.
    pub then: FlowAction,
    /// Time in which a backend that comes back reaches its full share of new flows; 0: at once.
    pub slow_start: Duration,
}

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDrain {
    deadline_s: Option<i64>,
    then: Option<String>,
    slow_start_s: Option<i64>,
}

impl RawDrain {
    /// The table as the program relies on it.
    pub(super) fn check(
        self,
        place: &KeyPath,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) -> Drain {
        let deadline_at = place.key("deadline_s");
        let deadline =
            self.deadline_s.map(|s| report.integer(&deadline_at, Some(s), 1, 1..=MAX_DEADLINE_S));
        let slow_start = report.integer(
            &place.key("slow_start_s"),
            self.slow_start_s,
            SLOW_START_S,
            0..=MAX_SLOW_START_S,
        );
        Drain {
            deadline: deadline.map(Duration::from_secs),
            then: policy::ending(self.then.as_deref(), &place.key("then"), protocol, report),
            slow_start: Duration::from_secs(slow_start),
        }
    }
}
