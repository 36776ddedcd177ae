//! The committed figures: instructions per packet of each case and of its stages, in one file per
//! processor architecture (`x86_64.toml`), and the comparison of a count with them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::path::PathBuf;

use serde::Deserialize;

/// Per cent by which a case may exceed its figure. Counts of one binary differ by at most 0.3 %
/// (docs/PERFORMANCE.md).
const TOLERANCE: f64 = 2.0;
/// Stages with a column of their own in tables, in the order in which a packet passes them.
pub const STAGES: [&str; 10] = [
    "receive", "parse", "classify", "prefetch", "track", "select", "rewrite", "transmit", "rings",
    "sweep",
];
/// First cell of the table in docs/PERFORMANCE.md.
const TABLE: &str = "| instructions per packet |";
const HEAD: &str = "\
# Instructions per packet of each case, counted in the release build. scripts/test fails when a case
# exceeds its figure by over 2 %. A figure is raised only by a commit that says why.
#
#   scripts/bench --check     compares
#   scripts/bench --record    writes this file and the table in docs/PERFORMANCE.md
";

/// Figures of all cases, and the tools that they were counted with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub rustc: String,
    pub valgrind: String,
    pub case: Vec<Figure>,
}

/// Instructions per packet of one case, and of its stages.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub name: String,
    pub all: u64,
    pub stages: BTreeMap<String, u64>,
}

/// Returns the path of this architecture's file.
pub fn path() -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/");
    PathBuf::from(format!("{folder}{}.toml", std::env::consts::ARCH))
}

impl Figures {
    /// Reads the committed figures of this architecture.
    pub fn committed() -> Result<Self, Box<dyn Error>> {
        let path = path();
        let text = std::fs::read_to_string(&path).map_err(|error| {
            format!("{}: {error}; scripts/bench --record writes it", path.display())
        })?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// Returns the text of the file.
    pub fn to_toml(&self) -> String {
        let Self { rustc, valgrind, case } = self;
        let mut text = format!("{HEAD}\nrustc = {rustc:?}\nvalgrind = {valgrind:?}\n");
        for Figure { name, all, stages } in case {
            let stages: Vec<_> =
                stages.iter().map(|(stage, count)| format!("{stage} = {count}")).collect();
            let stages = stages.join(", ");
            // Writing to a String does not fail.
            let _ =
                write!(text, "\n[[case]]\nname = {name:?}\nall = {all}\nstages = {{ {stages} }}\n");
        }
        text
    }

    /// Returns the table of docs/PERFORMANCE.md.
    pub fn table(&self) -> String {
        let mut text = format!("{TABLE} all | {} | other |\n", STAGES.join(" | "));
        text += &"|---".repeat(STAGES.len() + 3);
        text += "|\n";
        for figure in &self.case {
            let _ = write!(text, "| `{}` | **{}** |", figure.name, figure.all);
            for stage in STAGES {
                let _ = write!(text, " {} |", figure.stage(stage));
            }
            let others = figure.stages.iter().filter(|(stage, _)| !STAGES.contains(&&***stage));
            let _ = writeln!(text, " {} |", others.map(|(_, count)| count).sum::<u64>());
        }
        text
    }

    /// Returns `document` with its table replaced by this one.
    pub fn replace_table(&self, document: &str) -> Result<String, Box<dyn Error>> {
        let (before, rest) = document.split_once(TABLE).ok_or("no table to replace")?;
        let end = rest.find("\n\n").ok_or("the table has no end")? + 1;
        Ok(format!("{before}{}{}", self.table(), rest.get(end..).unwrap_or_default()))
    }

    /// Compares a count with these figures. Cases that were not counted are compared only if
    /// `complete`.
    pub fn compare(&self, counted: &Self, complete: bool) -> Comparison {
        let mut comparison = Comparison::default();
        let find = |figures: &Self, name: &str| {
            figures.case.iter().find(|figure| figure.name == name).cloned()
        };
        for figure in &counted.case {
            match find(self, &figure.name) {
                None => comparison.failures.push(format!(
                    "{}: no committed figure; record it: scripts/bench --record",
                    figure.name
                )),
                Some(committed) if figure.exceeds(&committed) => {
                    comparison.failures.push(figure.excess(&committed));
                }
                Some(committed) if committed.exceeds(figure) => {
                    comparison.lower.push(figure.against(&committed));
                }
                Some(_) => {}
            }
        }
        for Figure { name, .. } in self.case.iter().filter(|_| complete) {
            if find(counted, name).is_none() {
                comparison.failures.push(format!("{name}: a figure without a case"));
            }
        }
        let tools = [(&self.rustc, &counted.rustc), (&self.valgrind, &counted.valgrind)];
        let other = tools.into_iter().filter(|(committed, counted)| committed != counted);
        comparison.tools = other
            .map(|(committed, counted)| {
                format!("recorded with {committed}, counted with {counted}")
            })
            .collect();
        comparison
    }

    /// Returns the cases with a higher figure here than in `before`, with both figures.
    pub fn raised(&self, before: &Self) -> Vec<String> {
        let pairs = self.case.iter().filter_map(|figure| {
            let old = before.case.iter().find(|old| old.name == figure.name)?;
            (figure.all > old.all).then(|| figure.against(old))
        });
        pairs.collect()
    }
}

impl Figure {
    fn stage(&self, name: &str) -> u64 {
        self.stages.get(name).copied().unwrap_or_default()
    }

    fn exceeds(&self, committed: &Self) -> bool {
        self.all as f64 > committed.all as f64 * (1.0 + TOLERANCE / 100.0)
    }

    /// Describes both figures.
    fn against(&self, committed: &Self) -> String {
        let (is, was) = (self.all as f64, committed.all as f64);
        let change = (is - was) / was * 100.0;
        format!(
            "{}: {} instructions per packet, committed {} ({change:+.1} %)",
            self.name, self.all, committed.all
        )
    }

    /// Describes both figures, and those of the stages that grew, the largest growth first.
    fn excess(&self, committed: &Self) -> String {
        let mut text = self.against(committed);
        let mut grown: Vec<_> = self
            .stages
            .iter()
            .filter_map(|(stage, &is)| {
                let was = committed.stage(stage);
                is.checked_sub(was).filter(|&by| by > 0).map(|by| (by, stage, is, was))
            })
            .collect();
        grown.sort_by_key(|&(by, stage, ..)| (std::cmp::Reverse(by), stage));
        for (by, stage, is, was) in grown {
            let _ = write!(text, "\n    stage {stage}: {is}, committed {was} (+{by})");
        }
        text
    }
}

/// Result of a comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Cases that exceed their figure, or have none.
    pub failures: Vec<String>,
    /// Cases with a figure that should be lowered.
    pub lower: Vec<String>,
    /// Tools that differ from those of the figures.
    pub tools: Vec<String>,
}

impl Comparison {
    /// Returns whether no case exceeds its figure.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(f, "{failure}")?;
        }
        if !self.is_ok() {
            for tools in &self.tools {
                writeln!(f, "{tools}: that alone can change the count")?;
            }
            writeln!(
                f,
                "make it cheaper; or, if it is worth its price, write the new figures with\n    \
                 scripts/bench --record\n\
                 and say why in the commit"
            )?;
        }
        for lower in &self.lower {
            writeln!(
                f,
                "{lower}: lower the figure with scripts/bench --record, so that it stays low"
            )?;
        }
        Ok(())
    }
}
