//! `scheduler` of a VIP: choice of a backend for a new flow.

use serde::Deserialize;

use super::choice::Kind;
use super::hash::table_size;
use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::{Affinity, SchedulerKind};

/// Default virtual nodes per backend, as in Ketama and most of its successors: shares within 8 %
/// (standard deviation).
const VIRTUAL_NODES: u32 = 160;
/// Default `e`: the starting value that the paper's authors recommend, and common with HAProxy.
const E: f64 = 0.25;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawScheduler {
    kind: Option<String>,
    table_size: Option<i64>,
    virtual_nodes: Option<i64>,
    e: Option<f64>,
}

impl Kind for RawScheduler {
    fn of(kind: String) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Maglev,
    Rendezvous,
    Ring,
    RoundRobin,
    LeastConnections,
    PowerOfTwo,
    Bounded,
}

impl Word {
    const ALL: &[(&str, Self)] = &[
        ("maglev", Self::Maglev),
        ("rendezvous", Self::Rendezvous),
        ("ring", Self::Ring),
        ("round_robin", Self::RoundRobin),
        ("least_connections", Self::LeastConnections),
        ("power_of_two", Self::PowerOfTwo),
        ("bounded", Self::Bounded),
    ];

    fn kind(self, size: u32, virtual_nodes: u32, e: f64) -> SchedulerKind {
        match self {
            Self::Maglev => SchedulerKind::Maglev { size },
            Self::Rendezvous => SchedulerKind::Rendezvous,
            Self::Ring => SchedulerKind::Ring { virtual_nodes },
            Self::RoundRobin => SchedulerKind::RoundRobin,
            Self::LeastConnections => SchedulerKind::LeastConnections,
            Self::PowerOfTwo => SchedulerKind::PowerOfTwo { size },
            Self::Bounded => SchedulerKind::Bounded { size, e_permille: permille(e) },
        }
    }
}

/// Returns every scheduler with its default settings; `table_size` is that of `[hash]`.
pub fn schedulers(table_size: u32) -> Vec<SchedulerKind> {
    Word::ALL.iter().map(|(_, word)| word.kind(table_size, VIRTUAL_NODES, E)).collect()
}

impl RawScheduler {
    /// Checks the table; `default_size` is the table size of `[hash]`.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        default_size: u32,
        report: &mut Report<'_>,
    ) -> SchedulerKind {
        let word =
            self.kind.as_deref().and_then(|word| report.word(key_path, word, Word::ALL, &[]));
        let word = word.unwrap_or(Word::Maglev);
        self.check_keys(key_path, word, report);
        let size = table_size(&key_path.key("table_size"), self.table_size, default_size, report);
        let (at, nodes) = (key_path.key("virtual_nodes"), self.virtual_nodes);
        let virtual_nodes = report.integer(&at, nodes, VIRTUAL_NODES, 1..=100_000);
        let e = report.real(&key_path.key("e"), self.e, E, 0.01..=10.0);
        word.kind(size, virtual_nodes, e)
    }

    /// Reports keys that have no effect with this kind.
    fn check_keys(&self, key_path: &KeyPath, word: Word, report: &mut Report<'_>) {
        const TABLES: &[Word] = &[Word::Maglev, Word::PowerOfTwo, Word::Bounded];
        for (key, given, kinds) in [
            ("table_size", self.table_size.is_some(), TABLES),
            ("virtual_nodes", self.virtual_nodes.is_some(), &[Word::Ring]),
            ("e", self.e.is_some(), &[Word::Bounded]),
        ] {
            if given && !kinds.contains(&word) {
                let kinds = Word::ALL.iter().filter(|(_, word)| kinds.contains(word));
                let kinds: Vec<_> = kinds.map(|(word, _)| format!("\"{word}\"")).collect();
                let fix = format!("leave it out, or use kind = {}", kinds.join(" or "));
                report.error(&key_path.key(key), "says nothing with this kind", &fix);
            }
        }
    }
}

fn permille(e: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "10 at most")]
    let permille = (e * 1000.0).round() as u32;
    permille
}

/// Reports an affinity that no scheduler or client table of the VIP uses.
pub(super) fn check_affinity(
    key_path: &KeyPath,
    affinity: Affinity,
    scheduler: SchedulerKind,
    remembers: bool,
    report: &mut Report<'_>,
) {
    if affinity.is_of_client() && !scheduler.heeds_affinity() && !remembers {
        let (affinity, scheduler) = (affinity.as_str(), scheduler.as_str());
        let what = format!("\"{affinity}\" does nothing: scheduler \"{scheduler}\" ignores it");
        let fix = "add sticky = {}, or use a scheduler that hashes, such as \"maglev\"";
        report.error(key_path, what, fix);
    }
}
