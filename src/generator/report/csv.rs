//! CSV (RFC 4180, with bare line feeds): the trials of a search, or a run over time.

use std::fmt::Write;

use super::super::outcome::Outcome;

/// Formats the trials of a search, one row each, or else the samples of a run.
pub fn csv(outcome: &Outcome) -> String {
    match &outcome.search {
        Some(search) => rows(
            "pps_offered,pps_sent,pps_received,lost,loss_ratio,passed",
            search.trials.iter().map(|trial| {
                let offered = trial.pps_offered.map_or(String::new(), |pps| pps.to_string());
                let (sent, received) = (trial.pps_sent, trial.pps_received);
                let (lost, ratio, passed) = (trial.lost, trial.loss_ratio, trial.passed);
                format!("{offered},{sent},{received},{lost},{ratio},{passed}")
            }),
        ),
        None => rows(
            "time_s,pps_sent,pps_received,affinity_violations",
            outcome.samples.iter().map(|sample| {
                let (time, sent, received) = (sample.time_s, sample.pps_sent, sample.pps_received);
                format!("{time},{sent},{received},{}", sample.affinity_violations)
            }),
        ),
    }
}

fn rows(header: &str, rows: impl Iterator<Item = String>) -> String {
    let mut out = format!("{header}\n");
    for row in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{row}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::outcome::{Sample, SearchResult, TrialRow};
    use super::*;

    #[test]
    fn a_run_is_told_over_time_and_a_search_by_trials() {
        let sample =
            Sample { time_s: 0.5, pps_sent: 10.0, pps_received: 9.0, affinity_violations: 0 };
        let mut outcome = Outcome { samples: vec![sample], ..Outcome::default() };
        let expected = "time_s,pps_sent,pps_received,affinity_violations\n0.5,10,9,0\n";
        assert_eq!(csv(&outcome), expected);
        let trial = TrialRow {
            pps_offered: None,
            pps_sent: 10.0,
            pps_received: 9.5,
            lost: 1,
            loss_ratio: 0.05,
            passed: false,
        };
        outcome.search = Some(SearchResult {
            loss_bound: 0.0,
            resolution: 0.01,
            best_pps: None,
            generator_limited: false,
            trials: vec![trial, TrialRow { pps_offered: Some(5.0), ..trial }],
        });
        let text = csv(&outcome);
        assert!(text.ends_with("passed\n,10,9.5,1,0.05,false\n5,10,9.5,1,0.05,false\n"), "{text}");
    }
}
