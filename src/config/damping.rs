//! `damping` of a VIP: backends that go up and down repeatedly are held down, longer each time.

use std::time::Duration;

use serde::Deserialize;

use super::checked::Damping;
use super::key_path::KeyPath;
use super::report::Report;

/// Default of the first hold, in seconds: longer than a usual check takes to see a recovery, so
/// that the second failure in a row already costs clients less.
const HOLD_S: u64 = 5;
/// Default of the longest hold, in seconds: short enough to wait for, once a server is repaired.
const MAX_S: u64 = 300;
/// Default of `steady_s`, in seconds: a backend that was up for a minute fails for a new reason.
const STEADY_S: u64 = 60;
/// Longest hold, in seconds: what is out for longer is for people to bring back.
const LONGEST_S: u64 = 86_400;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawDamping {
    hold_s: Option<i64>,
    max_s: Option<i64>,
    steady_s: Option<i64>,
}

impl RawDamping {
    /// Checks the table; `None`: no backend is held down.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Option<Damping> {
        let hold = report.integer(&key_path.key("hold_s"), self.hold_s, HOLD_S, 0..=LONGEST_S);
        let longest =
            report.integer(&key_path.key("max_s"), self.max_s, MAX_S.max(hold), hold..=LONGEST_S);
        let steady =
            report.integer(&key_path.key("steady_s"), self.steady_s, STEADY_S, 1..=LONGEST_S);
        let [hold, longest, steady] = [hold, longest, steady].map(Duration::from_secs);
        (!hold.is_zero()).then_some(Damping { hold, longest, steady })
    }
}
