//! `scheduler` of a VIP: how it chooses a backend for a new flow.

use serde::Deserialize;

use super::choice::Kind;
use super::place::Place;
use super::report::Report;
use crate::forwarding::SchedulerKind;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawScheduler {
    kind: Option<String>,
}

impl Kind for RawScheduler {
    fn of(kind: String) -> Self {
        Self { kind: Some(kind) }
    }
}

#[derive(Clone, Copy)]
enum Word {
    Maglev,
}

impl RawScheduler {
    /// The table as the program relies on it; `table_size` is that of `[hash]`.
    pub(super) fn check(
        self,
        place: &Place,
        table_size: u32,
        report: &mut Report<'_>,
    ) -> SchedulerKind {
        const WORDS: &[(&str, Word)] = &[("maglev", Word::Maglev)];
        let word = self.kind.and_then(|word| report.word(place, &word, WORDS, &[]));
        match word.unwrap_or(Word::Maglev) {
            Word::Maglev => SchedulerKind::Maglev { size: table_size },
        }
    }
}
