//! `lost` of a VIP: TCP packets in mid-flow without a pin.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::{Ask, SchedulerKind};
use crate::net::{Forward, Protocol};

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table, such as { ask = \"history\" }")]
pub(super) struct RawLost {
    ask: Option<String>,
}

impl RawLost {
    /// Checks the table of a VIP.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        (protocol, forward): (Protocol, Option<Forward>),
        scheduler: SchedulerKind,
        report: &mut Report<'_>,
    ) -> Ask {
        const WORDS: &[(&str, Ask)] = &[("never", Ask::Never), ("history", Ask::History)];
        let at = key_path.key("ask");
        let ask = self.ask.and_then(|word| report.word(&at, &word, WORDS, &[])).unwrap_or_default();
        if ask == Ask::Never {
            return ask;
        }
        if protocol != Protocol::Tcp {
            let what = "only TCP has sockets that a backend can look up";
            report.error(&at, what, "remove the key, or use protocol = \"tcp\"");
        } else if forward.is_some_and(Forward::translates) {
            let what = "backends do not know the client's connection under the VIP's address";
            let fix = "remove the key, or use forward = \"dsr\", \"ipip\" or \"gue\"";
            report.error(&at, what, fix);
        } else if !scheduler.is_pure_hash() {
            let what = "this scheduler's earlier choices do not follow from its earlier tables";
            let fix = "use scheduler = \"maglev\", \"rendezvous\" or \"ring\"";
            report.error(&at, what, fix);
        }
        ask
    }
}
