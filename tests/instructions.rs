//! The gate on instructions per packet: its comparison, and that the committed figures match
//! docs/PERFORMANCE.md and the existing cases. `scripts/test` runs the count.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

#[path = "../benches/support/cases.rs"]
#[allow(dead_code, reason = "only the names are of interest here")]
mod cases;
#[path = "../benches/instructions/figures.rs"]
#[allow(dead_code, reason = "the bench writes figures")]
mod figures;
#[path = "../benches/instructions/profile.rs"]
#[allow(dead_code, reason = "has tests of its own")]
mod profile;
#[allow(dead_code, reason = "the cases name a family")]
mod rig;

use figures::{Figure, Figures};

/// Name and count of a stage.
type Stage<'a> = (&'a str, u64);

fn figures(cases: &[(&str, u64, &[Stage<'_>])]) -> Figures {
    let case = cases.iter().map(|&(name, all, stages)| Figure {
        name: name.to_owned(),
        all,
        stages: stages.iter().map(|&(stage, count)| (stage.to_owned(), count)).collect(),
    });
    let (rustc, valgrind) = ("rustc 1".to_owned(), "valgrind 1".to_owned());
    Figures { rustc, valgrind, case: case.collect() }
}

#[test]
fn a_case_may_exceed_its_figure_by_two_per_cent() {
    let committed = figures(&[("pipeline_dsr", 600, &[])]);
    for (counted, is_ok) in [(1, true), (600, true), (612, true), (613, false), (6000, false)] {
        let comparison = committed.compare(&figures(&[("pipeline_dsr", counted, &[])]), true);
        assert_eq!(comparison.is_ok(), is_ok, "{counted}: {comparison}");
        let is_lower = counted < 588;
        assert_eq!(!comparison.lower.is_empty(), is_lower, "{counted}: {comparison}");
    }
}

#[test]
fn a_failure_names_case_stage_and_both_figures() {
    let committed = figures(&[
        ("pipeline_dsr", 600, &[("parse", 70), ("classify", 50), ("rings", 480)]),
        ("pipeline_nat", 800, &[("rewrite", 800)]),
    ]);
    let mut counted = figures(&[
        ("pipeline_dsr", 630, &[("parse", 72), ("classify", 75), ("rings", 475), ("sweep", 8)]),
        ("pipeline_nat", 801, &[("rewrite", 801)]),
    ]);
    counted.rustc = "rustc 2".to_owned();
    let text = committed.compare(&counted, true).to_string();
    let expected = "\
pipeline_dsr: 630 instructions per packet, committed 600 (+5.0 %)
    stage classify: 75, committed 50 (+25)
    stage sweep: 8, committed 0 (+8)
    stage parse: 72, committed 70 (+2)
recorded with rustc 1, counted with rustc 2: that alone can change the count
make it cheaper; or, if it is worth its price, write the new figures with
    scripts/bench --record
and say why in the commit
";
    assert_eq!(text, expected);
}

#[test]
fn a_case_without_a_figure_and_a_figure_without_a_case_are_failures() {
    let committed = figures(&[("pipeline_dsr", 600, &[]), ("pipeline_gone", 600, &[])]);
    let counted = figures(&[("pipeline_dsr", 600, &[]), ("pipeline_new", 600, &[])]);
    let failures = committed.compare(&counted, true).failures;
    assert_eq!(failures.len(), 2, "{failures:?}");
    assert!(failures.iter().any(|text| text.starts_with("pipeline_new: no committed figure")));
    assert!(failures.iter().any(|text| text.starts_with("pipeline_gone: a figure without a case")));
    let only = figures(&[("pipeline_dsr", 600, &[])]);
    assert!(committed.compare(&only, false).is_ok(), "only some cases were counted");
}

#[test]
fn raised_figures_are_listed_when_they_are_recorded() {
    let before = figures(&[("a", 600, &[]), ("b", 600, &[]), ("c", 600, &[])]);
    let now = figures(&[("a", 599, &[]), ("b", 600, &[]), ("c", 606, &[]), ("d", 9, &[])]);
    assert_eq!(now.raised(&before), ["c: 606 instructions per packet, committed 600 (+1.0 %)"]);
}

#[test]
fn recorded_figures_can_be_read() {
    let figures = figures(&[("a", 600, &[("parse", 70), ("a_new_stage", 5)]), ("b", 1, &[])]);
    assert_eq!(toml::from_str::<Figures>(&figures.to_toml()).unwrap(), figures);
    let document = "before\n\n| instructions per packet | all |\n|---|---|\n| old |\n\nafter\n";
    let replaced = figures.replace_table(document).unwrap();
    assert_eq!(replaced, format!("before\n\n{}\nafter\n", figures.table()));
    assert!(figures.table().contains("| `a` | **600** | 0 | 70 | 0 "), "{}", figures.table());
    assert!(figures.table().contains(" 0 | 5 |\n"), "{}", figures.table());
    assert_eq!(figures.replace_table(&replaced).unwrap(), replaced);
}

/// Every case has a figure on the architecture that docs/PERFORMANCE.md documents.
#[test]
fn each_case_has_a_committed_figure_and_the_document_has_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/x86_64.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let committed: Figures = toml::from_str(&text).unwrap();
    assert_eq!(committed.to_toml(), text, "{path} is as scripts/bench --record writes it");
    let names: Vec<&str> = committed.case.iter().map(|figure| figure.name.as_str()).collect();
    assert_eq!(names, cases::CASES.map(|case| case.name));
    for figure in &committed.case {
        // Each number is rounded on its own.
        let sum: u64 = figure.stages.values().sum();
        assert!(sum.abs_diff(figure.all) < 10, "{}: the stages are the whole", figure.name);
    }
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PERFORMANCE.md");
    let document = std::fs::read_to_string(document).unwrap();
    assert!(
        document.contains(&committed.table()),
        "docs/PERFORMANCE.md has other figures than {path}; scripts/bench --record writes both: should be\n{}",
        committed.table()
    );
}
