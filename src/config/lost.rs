//! `lost` of a VIP: TCP packets in mid-flow without a pin.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::policy::RECALL;
use crate::forwarding::{Ask, SchedulerKind};
use crate::net::{Forward, Protocol};
use crate::units::Ticks;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, such as { ask = \"history\" }")]
pub(super) struct RawLost {
    ask: Option<String>,
    remember_s: Option<i64>,
}

/// What a VIP does about a flow without a pin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    /// Backends that are asked.
    pub ask: Ask,
    /// Time for which earlier choices and removed backends are asked.
    pub recall: Ticks,
}

impl RawLost {
    /// Checks the table of a VIP; `remembers`: whether it remembers the backends of clients.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        (protocol, forward): (Protocol, Option<Forward>),
        (scheduler, remembers): (SchedulerKind, bool),
        report: &mut Report<'_>,
    ) -> Lost {
        const WORDS: &[(&str, Ask)] =
            &[("never", Ask::Never), ("history", Ask::History), ("all", Ask::All)];
        let at = key_path.key("ask");
        let ask = self.ask.and_then(|word| report.word(&at, &word, WORDS, &[])).unwrap_or_default();
        let recall = Ticks::MAX_SPAN.as_secs();
        let remember_at = key_path.key("remember_s");
        let seconds =
            report.integer(&remember_at, self.remember_s, RECALL.duration().as_secs(), 1..=recall);
        let lost = Lost { ask, recall: Ticks::seconds(seconds) };
        if ask == Ask::Never {
            return lost;
        }
        if protocol != Protocol::Tcp {
            let what = "only TCP has sockets that a backend can look up";
            report.error(&at, what, "remove the key, or use protocol = \"tcp\"");
        } else if forward.is_some_and(Forward::translates) {
            let what = "backends do not know the client's connection under the VIP's address";
            let fix = "remove the key, or use forward = \"dsr\", \"ipip\" or \"gue\"";
            report.error(&at, what, fix);
        } else if ask == Ask::History && !scheduler.is_pure_hash() {
            let what = "this scheduler's earlier choices do not follow from its earlier tables";
            let fix = "use ask = \"all\", or scheduler = \"maglev\", \"rendezvous\" or \"ring\"";
            report.error(&at, what, fix);
        } else if ask == Ask::History && remembers {
            let what =
                "the backend that a client had does not follow from the VIP's earlier tables";
            report.error(&at, what, "use ask = \"all\", or remove [vip.sticky]");
        }
        lost
    }
}
