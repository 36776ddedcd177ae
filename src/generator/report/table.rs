//! Table at the end of a run.

use std::fmt::Write;

use super::super::outcome::{Outcome, Percentiles, SearchResult};
use super::number::short;

/// Formats the outcome for a terminal.
pub fn table(outcome: &Outcome) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, outcome);
    out
}

fn write(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    heading(out, outcome)?;
    if let Some(search) = &outcome.search {
        trials(out, search)?;
    }
    packets(out, outcome)?;
    flows(out, outcome)?;
    if let Some(latency) = &outcome.latency_us {
        percentiles(out, "latency, us (intended sending to arrival)", latency)?;
    }
    if let Some(round_trip) = &outcome.round_trip_us {
        percentiles(out, "round trip, us", round_trip)?;
    }
    backends(out, outcome)?;
    for note in &outcome.not_measured {
        writeln!(out, "not measured: {note}")?;
    }
    Ok(())
}

fn heading(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let offered = outcome
        .pps_offered
        .map_or_else(|| "as fast as possible".to_owned(), |pps| format!("{}pps", short(pps)));
    writeln!(
        out,
        "{} to {}, {} flows ({}), {} bytes, {offered}, {} for {:.1} s",
        outcome.traffic,
        outcome.target,
        outcome.flows,
        outcome.distribution,
        outcome.size,
        outcome.method,
        outcome.duration_s,
    )
}

fn row(out: &mut String, name: &str, value: impl std::fmt::Display) -> std::fmt::Result {
    writeln!(out, "  {name:<22}{value}")
}

fn packets(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let line = |packets: u64, pps: f64, bps: f64| {
        format!("{packets:>12}  {:>9}pps  {:>9}bit/s", short(pps), short(bps))
    };
    row(out, "sent", line(outcome.sent, outcome.pps_sent, outcome.bps_sent))?;
    row(out, "received", line(outcome.received, outcome.pps_received, outcome.bps_received))?;
    row(out, "lost", format!("{:>12}  {:.5} %", outcome.lost, outcome.loss_ratio * 100.0))?;
    if let Some(dropped) = outcome.receiver_dropped.filter(|&dropped| dropped > 0) {
        let text = format!("{dropped:>12}  arrived, and the generator did not take them in time");
        row(out, "its own loss", text)?;
    }
    if let Some(duplicates) = outcome.duplicates {
        row(out, "duplicates", format!("{duplicates:>12}"))?;
    }
    if let Some(reordered) = outcome.reordered {
        row(out, "reordered", format!("{reordered:>12}"))?;
    }
    if let Some(violations) = outcome.affinity_violations {
        row(out, "affinity violations", format!("{violations:>12}"))?;
    }
    if let Some(replies) = &outcome.replies {
        let text = format!(
            "{:>12}  of {} sent; {} lost, {} duplicates, {} reordered",
            replies.received, replies.sent, replies.lost, replies.duplicates, replies.reordered
        );
        row(out, "replies", text)?;
    }
    Ok(())
}

fn flows(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    if let Some(connections) = &outcome.connections {
        let tcp = format!(
            ", {} closed, {} SYNs again, {} FINs unanswered",
            connections.closed, connections.retransmissions, connections.given_up
        );
        let tcp = if outcome.traffic == "tcp" { tcp.as_str() } else { "" };
        row(out, "flows opened", format!("{:>12}{tcp}", connections.opened))?;
    }
    if outcome.generator_behind_us >= 1000.0 {
        let text = format!(
            "{:>9.1} ms  behind its schedule at most: too high a rate, or not a core of its own",
            outcome.generator_behind_us / 1000.0
        );
        row(out, "generator", text)?;
    }
    if outcome.withheld > 0 {
        let text = format!("{:>12}  packets: all flows waited for a handshake", outcome.withheld);
        row(out, "not sent", text)?;
    }
    Ok(())
}

fn percentiles(out: &mut String, title: &str, latency: &Percentiles) -> std::fmt::Result {
    writeln!(out, "  {title}")?;
    let (names, values): (Vec<_>, Vec<_>) = latency
        .rows()
        .iter()
        .map(|(name, value)| (format!("{name:>10}"), format!("{value:>10.1}")))
        .unzip();
    writeln!(out, "  {}\n  {}", names.concat(), values.concat())
}

fn backends(out: &mut String, outcome: &Outcome) -> std::fmt::Result {
    const SHOWN: usize = 16;
    let all: u64 = outcome.backends.iter().map(|share| share.packets).sum();
    for share in outcome.backends.iter().take(SHOWN) {
        let percent = 100.0 * share.packets as f64 / all.max(1) as f64;
        let text = format!("{:>12}  {percent:.2} %  {}", share.packets, share.mac);
        row(out, &format!("at {}", share.address), text)?;
    }
    match outcome.backends.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => writeln!(out, "  and {more} more backends"),
        _ => Ok(()),
    }
}

fn trials(out: &mut String, search: &SearchResult) -> std::fmt::Result {
    writeln!(out, "  {:>12}  {:>12}  {:>12}  {:>10}", "offered pps", "sent", "received", "loss %")?;
    for trial in &search.trials {
        let offered = trial.pps_offered.map_or("max".to_owned(), |pps| format!("{pps:.0}"));
        writeln!(
            out,
            "  {offered:>12}  {:>12.0}  {:>12.0}  {:>10.5}  {}",
            trial.pps_sent,
            trial.pps_received,
            trial.loss_ratio * 100.0,
            if trial.passed { "pass" } else { "fail" }
        )?;
    }
    let bound = search.loss_bound * 100.0;
    match search.best_pps {
        Some(pps) if search.generator_limited => writeln!(
            out,
            "no rate of this generator loses more than {bound} %: at least {}pps",
            short(pps)
        ),
        Some(pps) => writeln!(out, "highest rate with at most {bound} % loss: {}pps", short(pps)),
        None => writeln!(out, "every rate lost more than {bound} %; the last trial was:"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::outcome::{BackendShare, Connections, Replies, TrialRow};
    use super::*;

    #[test]
    fn everything_that_was_measured_has_a_line() {
        let outcome = Outcome {
            traffic: "tcp",
            sent: 1000,
            lost: 10,
            loss_ratio: 0.01,
            duplicates: Some(1),
            reordered: Some(2),
            affinity_violations: Some(3),
            replies: Some(Replies { sent: 9, received: 8, lost: 1, ..Replies::default() }),
            connections: Some(Connections { opened: 7, closed: 6, ..Connections::default() }),
            latency_us: Some(Percentiles { p99: 12.3, ..Percentiles::default() }),
            round_trip_us: Some(Percentiles { p99: 45.6, ..Percentiles::default() }),
            backends: vec![BackendShare {
                mac: "02:00:00:00:00:01".to_owned(),
                address: "198.18.2.11".to_owned(),
                packets: 990,
            }],
            generator_behind_us: 5000.0,
            withheld: 4,
            not_measured: vec!["latency: why".to_owned()],
            search: Some(SearchResult {
                loss_bound: 0.0,
                resolution: 0.01,
                best_pps: Some(1.25e6),
                generator_limited: false,
                trials: vec![TrialRow {
                    pps_offered: None,
                    pps_sent: 2e6,
                    pps_received: 1.9e6,
                    lost: 5,
                    loss_ratio: 0.05,
                    passed: false,
                }],
            }),
            ..Outcome::default()
        };
        let text = table(&outcome);
        for part in [
            "1.00000 %",
            "affinity violations              3",
            "8  of 9 sent; 1 lost",
            "7, 6 closed",
            "12.3",
            "45.6",
            "at 198.18.2.11",
            "5.0 ms  behind",
            "4  packets: all flows",
            "not measured: latency: why",
            "at most 0 % loss: 1.250 Mpps",
            "5.00000  fail",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn unmeasured_values_have_no_line() {
        let text = table(&Outcome { traffic: "udp", ..Outcome::default() });
        for part in ["duplicates", "latency", "replies", "affinity", "behind"] {
            assert!(!text.contains(part), "{part:?} is in\n{text}");
        }
    }
}
