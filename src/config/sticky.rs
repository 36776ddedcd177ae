//! `sticky` of a VIP: whether clients keep their backends, and for how long.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::sticky::{Hold, Reentry, Remember, Sticky};
use crate::net::Protocol;
use crate::units::Ticks;

/// Default time-out, in seconds: five minutes, as in the persistence of IPVS; longer than a
/// reader's pause between two pages.
const TIMEOUT_S: u64 = 300;
/// Longest time-out, in seconds: the longest span of the data path's clock.
const MAX_S: u64 = Ticks::MAX_SPAN.as_secs();

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, such as { timeout_s = 300 }")]
pub(super) struct RawSticky {
    timeout_s: Option<i64>,
    on_drain: Option<String>,
    on_down: Option<String>,
}

impl RawSticky {
    /// Checks the table.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) -> (Ticks, Sticky) {
        let timeout =
            report.integer(&key_path.key("timeout_s"), self.timeout_s, TIMEOUT_S, 1..=MAX_S);
        let on_down = hold(self.on_down, &key_path.key("on_down"), report);
        if on_down == Hold::Keep && protocol != Protocol::Tcp {
            let what = "\"keep\" on a VIP that is not TCP: its clients would go on sending to a backend that is out";
            report.error(&key_path.key("on_down"), what, "use \"release\"");
        }
        let on_drain = hold(self.on_drain, &key_path.key("on_drain"), report);
        (Ticks::seconds(timeout), Sticky { on_drain, on_down })
    }
}

fn hold(raw: Option<String>, key_path: &KeyPath, report: &mut Report<'_>) -> Hold {
    const WORDS: &[(&str, Hold)] = &[("release", Hold::Release), ("keep", Hold::Keep)];
    raw.and_then(|word| report.word(key_path, &word, WORDS, &[])).unwrap_or_default()
}

/// Reads `on_reentry` of a VIP.
pub(super) fn on_reentry(
    raw: Option<String>,
    key_path: &KeyPath,
    report: &mut Report<'_>,
) -> Reentry {
    const WORDS: &[(&str, Reentry)] = &[("hash", Reentry::Hash), ("freest", Reentry::Freest)];
    raw.and_then(|word| report.word(key_path, &word, WORDS, &[])).unwrap_or_default()
}

/// Returns the client settings of a VIP. Without `sticky`, a client entry lasts for the idle
/// time-out of the client's flows.
pub(super) fn remember(
    sticky: Option<(Ticks, Sticky)>,
    on_reentry: Reentry,
    idle: Ticks,
) -> Option<Remember> {
    let wanted = sticky.is_some() || on_reentry == Reentry::Freest;
    wanted.then(|| Remember {
        timeout: sticky.map_or(idle, |(timeout, _)| timeout),
        sticky: sticky.map(|(_, sticky)| sticky),
        on_reentry,
    })
}
