//! SVG charts: packets per second over time, latency by percentile, and the trials of a search.

use plotters::prelude::*;

use super::super::outcome::{Outcome, Percentiles, SearchResult};
use super::number::short;
use crate::plot::{BLUE, Chart, ORANGE, VERMILION, axes, legend, stack, svg};

const SENT: RGBColor = BLUE;
const RECEIVED: RGBColor = ORANGE;
const FAILED: RGBColor = VERMILION;

/// A titled SVG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Title of the chart.
    pub title: &'static str,
    /// The `<svg>` element.
    pub svg: String,
}

/// Draws every chart for which there are data.
pub fn charts(outcome: &Outcome) -> Vec<Drawn> {
    let charts = [
        ("Trials: offered rate and loss", outcome.search.as_ref().and_then(search)),
        ("Packets per second over time", rates(outcome)),
        ("Latency by percentile", latency(outcome)),
    ];
    charts.into_iter().filter_map(|(title, svg)| Some(Drawn { title, svg: svg? })).collect()
}

/// Draws all charts in one SVG, one below the other.
pub fn combined(outcome: &Outcome) -> String {
    stack(charts(outcome).iter().map(|chart| chart.svg.as_str()))
}

fn rates(outcome: &Outcome) -> Option<String> {
    let samples = &outcome.samples;
    let end = samples.last()?.time_s;
    if samples.len() < 2 {
        return None;
    }
    let sent = samples.iter().map(|sample| (sample.time_s, sample.pps_sent));
    let received = samples.iter().map(|sample| (sample.time_s, sample.pps_received));
    let top = sent.clone().chain(received.clone()).fold(0.0, |top: f64, (_, pps)| top.max(pps));
    let has_sent = outcome.is_measured();
    svg(|area| {
        let mut chart = axes(area, (0.0, end), top).ok()?;
        let pps = |value: &f64| short(*value);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("seconds").y_desc("packets per second").y_label_formatter(&pps);
        mesh.draw().ok()?;
        if has_sent {
            line(&mut chart, sent, SENT, "sent")?;
        }
        line(&mut chart, received, RECEIVED, "received")?;
        legend(&mut chart)
    })
}

fn latency(outcome: &Outcome) -> Option<String> {
    let curves = [
        ("latency", SENT, outcome.latency_us.as_ref()),
        ("round trip", RECEIVED, outcome.round_trip_us.as_ref()),
    ];
    let points = |latency: &Percentiles| -> Vec<(f64, f64)> {
        latency.curve.iter().map(|&(percentile, us)| (nines(percentile), us)).collect()
    };
    let curves: Vec<_> = curves
        .into_iter()
        .filter_map(|(name, colour, latency)| Some((name, colour, points(latency?))))
        .filter(|(_, _, points)| points.len() >= 2)
        .collect();
    let all = || curves.iter().flat_map(|(_, _, points)| points);
    let top = all().fold(0.0, |top: f64, (_, us)| top.max(*us));
    let end = all().fold(0.0, |end: f64, (x, _)| end.max(*x));
    if curves.is_empty() {
        return None;
    }
    svg(|area| {
        let mut chart = axes(area, (0.0, end), top).ok()?;
        let percentile = |nines: &f64| format!("{} %", percent(*nines));
        let us = |value: &f64| format!("{value:.0}");
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("percentile").y_desc("microseconds").x_labels(8);
        mesh.x_label_formatter(&percentile).y_label_formatter(&us).draw().ok()?;
        for (name, colour, points) in curves {
            line(&mut chart, points.into_iter(), colour, name)?;
        }
        legend(&mut chart)
    })
}

/// Returns the number of nines of a percentile: 0 for 0 %, 1 for 90 %, 2 for 99 %; 6 for 100 %.
fn nines(percentile: f64) -> f64 {
    (-(1.0 - percentile / 100.0).log10()).clamp(0.0, 6.0)
}

/// Formats the percentile of a number of nines. The inverse of [`nines`].
fn percent(nines: f64) -> String {
    let percent = 100.0 * (1.0 - 10.0_f64.powf(-nines));
    let digits = if nines > 4.0 {
        4
    } else if nines > 2.0 {
        2
    } else {
        0
    };
    format!("{percent:.digits$}")
}

fn search(search: &SearchResult) -> Option<String> {
    let point = |trial: &super::super::outcome::TrialRow| {
        (trial.pps_offered.unwrap_or(trial.pps_sent), trial.loss_ratio * 100.0, trial.passed)
    };
    let points: Vec<_> = search.trials.iter().map(point).collect();
    let end = points.iter().fold(1.0, |end: f64, (pps, _, _)| end.max(*pps));
    let top = points.iter().fold(0.1, |top: f64, (_, loss, _)| top.max(*loss));
    if points.is_empty() {
        return None;
    }
    svg(|area| {
        let mut chart = axes(area, (0.0, end * 1.05), top).ok()?;
        let pps = |value: &f64| short(*value);
        let loss = |value: &f64| format!("{value:.2}");
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("packets per second").y_desc("loss, %");
        mesh.x_label_formatter(&pps).y_label_formatter(&loss).draw().ok()?;
        for (passed, colour, name) in [(true, SENT, "passed"), (false, FAILED, "failed")] {
            let dots = points
                .iter()
                .filter(|(_, _, p)| *p == passed)
                .map(|&(x, y, _)| Circle::new((x, y), 4, colour.filled()));
            let series = chart.draw_series(dots).ok()?;
            series.label(name).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        legend(&mut chart)
    })
}

fn line(
    chart: &mut Chart<'_, '_>,
    points: impl Iterator<Item = (f64, f64)>,
    colour: RGBColor,
    name: &str,
) -> Option<()> {
    let series = LineSeries::new(points, colour.stroke_width(2));
    let series = chart.draw_series(series).ok()?;
    series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    Some(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::outcome::{Sample, TrialRow};
    use super::*;

    pub fn outcome() -> Outcome {
        let sample = |n: u32| Sample {
            time_s: f64::from(n),
            pps_sent: 1e6,
            pps_received: 9e5,
            affinity_violations: 0,
        };
        let curve = vec![(0.0, 5.0), (50.0, 8.0), (99.0, 20.0), (100.0, 90.0)];
        let trial = TrialRow {
            pps_offered: Some(1e6),
            pps_sent: 1e6,
            pps_received: 9e5,
            lost: 1,
            loss_ratio: 0.1,
            passed: false,
        };
        Outcome {
            method: "af-xdp",
            samples: (0..5).map(sample).collect(),
            latency_us: Some(Percentiles { curve, ..Percentiles::default() }),
            search: Some(SearchResult {
                loss_bound: 0.0,
                resolution: 0.01,
                best_pps: None,
                generator_limited: false,
                trials: vec![trial, TrialRow { passed: true, loss_ratio: 0.0, ..trial }],
            }),
            ..Outcome::default()
        }
    }

    #[test]
    fn there_is_a_chart_for_whatever_there_are_data_for() {
        let drawn = charts(&outcome());
        assert_eq!(drawn.len(), 3);
        for chart in &drawn {
            assert!(chart.svg.starts_with("<svg ") && chart.svg.trim_end().ends_with("</svg>"));
        }
        let words: Vec<&str> = drawn.iter().map(|chart| chart.title).collect();
        assert!(
            words.starts_with(&["Trials: offered rate and loss", "Packets per second over time"])
        );
        assert_eq!(charts(&Outcome::default()), []);
    }

    #[test]
    fn one_picture_holds_them_all() {
        let svg = combined(&outcome());
        assert_eq!(svg.matches("<svg ").count(), 4);
        assert_eq!(svg.matches("</svg>").count(), 4);
        assert!(svg.contains("y=\"300\"") && svg.contains("y=\"600\""));
    }

    #[test]
    fn percentiles_are_spread_by_their_nines() {
        for (percentile, expected) in [(0.0, 0.0), (90.0, 1.0), (99.9, 3.0), (100.0, 6.0)] {
            assert!((nines(percentile) - expected).abs() < 1e-6, "{percentile}");
        }
        assert_eq!([0.0, 1.0, 3.0].map(percent), ["0", "90", "99.90"]);
    }
}
