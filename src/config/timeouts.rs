//! `timeouts` of a VIP: idle times after which a flow's pin expires.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::Timeouts;
use crate::units::Ticks;

/// Longest time-out, in seconds: the longest span of the data path's clock.
const MAX_S: u64 = Ticks::MAX_SPAN.as_secs();

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTimeouts {
    embryonic_s: Option<i64>,
    established_s: Option<i64>,
    closing_s: Option<i64>,
    udp_first_s: Option<i64>,
    udp_s: Option<i64>,
}

impl RawTimeouts {
    /// Whether the idle time-out of UDP flows is set.
    pub(super) const fn names_udp(&self) -> bool {
        self.udp_s.is_some()
    }

    /// Checks the table.
    pub(super) fn check(&self, key_path: &KeyPath, report: &mut Report<'_>) -> Timeouts {
        let default = Timeouts::default();
        let mut span = |key, value, default: Ticks| {
            let default = default.duration().as_secs();
            Ticks::seconds(report.integer(&key_path.key(key), value, default, 1..=MAX_S))
        };
        let udp = span("udp_s", self.udp_s, default.udp);
        let timeouts = Timeouts {
            embryonic: span("embryonic_s", self.embryonic_s, default.embryonic),
            established: span("established_s", self.established_s, default.established),
            closing: span("closing_s", self.closing_s, default.closing),
            udp_first: span("udp_first_s", self.udp_first_s, Ticks(default.udp_first.0.min(udp.0))),
            udp,
        };
        let [first, on] = [timeouts.udp_first, udp].map(|span| span.duration().as_secs());
        if first > on {
            let what = format!("{first} s is longer than udp_s, {on} s");
            let fix = "a flow of one packet is not worth more than one that goes on: lower it, or \
                       raise udp_s";
            report.error(&key_path.key("udp_first_s"), what, fix);
        }
        timeouts
    }
}
