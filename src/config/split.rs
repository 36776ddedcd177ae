//! `split` of a VIP: whether sources that are too large for one backend are spread.

use serde::Deserialize;

use super::checked::Split;
use super::choice::Kind;
use super::key_path::KeyPath;
use super::report::Report;

/// Default `max_load`: a quarter above the share, a reserve that a backend should have in any case.
const MAX_LOAD: f64 = 1.25;
/// Default `min_rate`: new flows per second below which no source overloads a backend.
const MIN_RATE: f64 = 50.0;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawSplit {
    kind: Option<String>,
    max_load: Option<f64>,
    min_rate: Option<f64>,
}

impl Kind for RawSplit {
    fn of(kind: String) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }
}

impl RawSplit {
    /// Checks the table; `None`: no source is split.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Option<Split> {
        const WORDS: &[(&str, bool)] = &[("auto", true), ("off", false)];
        let word = self.kind.and_then(|word| report.word(key_path, &word, WORDS, &[]));
        let max_load =
            report.real(&key_path.key("max_load"), self.max_load, MAX_LOAD, 1.01..=100.0);
        let min_rate = report.real(&key_path.key("min_rate"), self.min_rate, MIN_RATE, 1.0..=1e9);
        word.unwrap_or(true).then_some(Split { max_load, min_rate })
    }
}
