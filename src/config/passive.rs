//! `passive` of a VIP: backends that leave clients without a reply get no new flows for a while.

use std::time::Duration;

use serde::Deserialize;

use super::checked::Passive;
use super::key_path::KeyPath;
use super::report::Report;
use crate::net::{Forward, Protocol};

/// Default share: most flows get no reply, which no lossy network explains.
const UNANSWERED: f64 = 0.5;
/// Default window, in seconds: a few round trips of patience, and quicker than most clients.
const WINDOW_S: u64 = 5;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, such as { unanswered = 0.5 }")]
pub(super) struct RawPassive {
    unanswered: Option<f64>,
    window_s: Option<i64>,
}

impl RawPassive {
    /// Checks the table of a VIP.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        (protocol, forward): (Protocol, Option<Forward>),
        pin: bool,
        report: &mut Report<'_>,
    ) -> Passive {
        let share_at = key_path.key("unanswered");
        let unanswered = report.real(&share_at, self.unanswered, UNANSWERED, 0.05..=1.0);
        let window = report.integer(&key_path.key("window_s"), self.window_s, WINDOW_S, 2..=300);
        let replies_seen = forward.is_none_or(Forward::translates);
        if protocol != Protocol::Tcp && !replies_seen {
            let what = format!(
                "replies of protocol = \"{}\" are seen with \"nat\" and \"full_nat\" only",
                protocol.as_str()
            );
            report.error(key_path, what, "remove the key, or use one of these modes");
        } else if !pin {
            let what = "flows are counted by their pins, and pin = false leaves none";
            report.error(key_path, what, "remove the key, or use pin = true");
        }
        Passive { unanswered, window: Duration::from_secs(window) }
    }
}
