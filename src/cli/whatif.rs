//! `holdfast whatif`: effects of a change to the backends, by simulation.

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::Serialize;

use super::args::{Target, name};
use super::error::CliError;
use super::table::{Columns, Look, RED, coloured, grouped, text};
use crate::config::{self, Config};
use crate::format::percent;
use crate::forwarding::SchedulerKind;
use crate::whatif::bound::{Bound, share_or_number};
use crate::whatif::change::{self, Action, Change, Scenario, named, scenarios};
use crate::whatif::population::Clients;
use crate::whatif::row::Row;
use crate::whatif::{MAX_CLIENTS, MAX_FLOWS, Progress, Settings, chart, simulate};

/// Arguments of `holdfast whatif`.
#[derive(Debug, Args)]
pub struct WhatifArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// 'remove VIP/BACKEND', 'add VIP/NAME=ADDRESS', 'drain VIP/BACKEND', 'weight VIP/BACKEND=N' or
    /// 'scheduler VIP=NAME'; repeat the option for several changes, which take effect in one reload
    #[arg(long = "change", value_name = "CHANGE", required = true, num_args = 1..=2)]
    #[arg(value_parser = words)]
    changes: Vec<Words>,
    /// Flows of each VIP that are live when the change takes effect
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    flows: u32,
    /// Clients that open the flows
    #[arg(long, value_name = "M", default_value_t = Clients::default().count,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLIENTS)))]
    clients: u32,
    /// Seed of all random numbers: equal seeds give equal results on every machine
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Zipf exponent of the clients: the k-th busiest opens flows in proportion to 1/k^Z
    #[arg(long, value_name = "Z", default_value_t = Clients::default().exponent, value_parser = zipf)]
    zipf: f64,
    /// Share of the clients that are behind gateways (NAT)
    #[arg(long, value_name = "SHARE", default_value = "20%", value_parser = share)]
    gateway_share: f64,
    /// Clients per gateway, which has one address
    #[arg(long, value_name = "N", default_value_t = Clients::default().per_gateway,
          value_parser = clap::value_parser!(u32).range(1..))]
    gateway_clients: u32,
    /// all, configured, or names separated by commas
    #[arg(long, value_name = "WHICH")]
    schedulers: Option<Which>,
    /// Write a chart to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Exit with 3 if a figure exceeds this bound, as in broken>0.1%; may be repeated
    #[arg(long, value_name = "EXPR")]
    fail_if: Vec<Bound>,
}

/// `--schedulers`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    All,
    Configured,
    Named(Vec<String>),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "all" => Self::All,
            "configured" => Self::Configured,
            _ => Self::Named(text.split(',').map(|name| name.trim().to_owned()).collect()),
        })
    }
}

/// Argument of `--change`: a change as one argument, or one of its two words.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Words {
    All(Change),
    One(String),
}

fn words(text: &str) -> Result<Words, String> {
    let is_one = !text.is_empty() && !text.contains(char::is_whitespace);
    if is_one { Ok(Words::One(text.to_owned())) } else { change(text).map(Words::All) }
}

/// Combines the words into changes.
fn changes(words: &[Words]) -> Result<Vec<Change>, String> {
    let mut words = words.iter();
    let mut changes = Vec::new();
    while let Some(first) = words.next() {
        changes.push(match first {
            Words::All(change) => change.clone(),
            Words::One(verb) => {
                let what = match words.next() {
                    Some(Words::One(what)) => what,
                    Some(Words::All(_)) | None => "",
                };
                change(&format!("{verb} {what}"))
                    .map_err(|fix| format!("--change {verb}: {fix}"))?
            }
        });
    }
    Ok(changes)
}

/// Parses a change.
fn change(text: &str) -> Result<Change, String> {
    const FIX: &str = "write 'remove VIP/BACKEND', 'add VIP/NAME=ADDRESS', 'drain VIP/BACKEND', \
                       'weight VIP/BACKEND=N' or 'scheduler VIP=NAME'";
    let (verb, what) = text.trim().split_once(char::is_whitespace).ok_or(FIX)?;
    let (what, value) = match what.trim().split_once('=') {
        Some((what, value)) => (what.trim(), Some(value.trim())),
        None => (what.trim(), None),
    };
    let make = |action: fn(String) -> Action| {
        let Target { vip, backend } = what.parse()?;
        Ok(Change { vip, action: action(backend) })
    };
    match (verb, value) {
        ("remove", None) => make(Action::Remove),
        ("drain", None) => make(Action::Drain),
        ("add", Some(address)) => {
            let Target { vip, backend } = what.parse()?;
            let address = address.parse();
            let address = address.map_err(|_| "write an address, as in 'add web/c=10.0.0.13'")?;
            Ok(Change { vip, action: Action::Add(backend, address) })
        }
        ("weight", Some(weight)) => {
            let Target { vip, backend } = what.parse()?;
            let weight = weight.parse();
            let weight = weight.map_err(|_| "write a whole number, as in 'weight web/a=2'")?;
            Ok(Change { vip, action: Action::Weight(backend, weight) })
        }
        ("scheduler", Some(scheduler)) => {
            Ok(Change { vip: name(what)?, action: Action::Scheduler(scheduler.to_owned()) })
        }
        _ => Err(FIX.to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = share_or_number(text).filter(|share| *share <= 1.0);
    share.ok_or_else(|| "write a share from 0 to 100%, such as 20%".to_owned())
}

fn zipf(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok().filter(|z| (0.0..=3.0).contains(z));
    exponent.ok_or_else(|| "write an exponent from 0 (all are equal) to 3".to_owned())
}

/// Document of `--json`.
#[derive(Serialize)]
struct Document<'a> {
    schedulers: &'a [Row],
}

/// Simulates, reports and judges. Progress goes to the standard error stream if it is a terminal.
///
/// # Errors
/// The configuration's mistakes; a change or scheduler that is not possible; an output that cannot
/// be written; [`CliError::Bound`].
pub fn whatif(args: &WhatifArgs, colours: bool, out: &mut impl Write) -> Result<(), CliError> {
    let changes = changes(&args.changes).map_err(CliError::Usage)?;
    let config = config::load(&args.config)?;
    let refused = |why: String| CliError::Whatif(format!("{}: {why}", args.config.display()));
    let scenarios = scenarios(&config, &changes).map_err(|e| refused(e.to_string()))?;
    let settings = args.settings(&config);
    let mut rows = Vec::new();
    for scenario in &scenarios {
        let kinds = kinds(args.schedulers.as_ref(), scenario, config.hash.table_size)
            .map_err(|why| refused(format!("--schedulers: {why}")))?;
        rows.extend(simulate(scenario, &kinds, &settings, &show_progress));
    }
    if args.json {
        let document = serde_json::to_string(&Document { schedulers: &rows });
        writeln!(out, "{}", document.map_err(|error| CliError::Whatif(error.to_string()))?)?;
    } else {
        for scenario in &scenarios {
            args.report(scenario, &changes, &rows, &config, colours, out)?;
        }
    }
    if let Some(path) = &args.svg {
        fs::write(path, chart::charts(&rows)).map_err(|error| {
            let reason = crate::format::reason(&error);
            CliError::Whatif(format!(
                "cannot write {}: {reason}; name another file",
                path.display()
            ))
        })?;
    }
    args.judge(&rows)
}

/// Returns the schedulers to simulate for a VIP: the requested ones, with the configured one's
/// settings kept.
fn kinds(
    which: Option<&Which>,
    scenario: &Scenario,
    table_size: u32,
) -> Result<Vec<SchedulerKind>, String> {
    let (configured, pin) = (scenario.before.policy.scheduler, scenario.before.policy.pin);
    let all: Vec<_> = match which {
        Some(Which::Configured) => return Ok(vec![configured]),
        Some(Which::Named(names)) => {
            let mut seen = BTreeSet::new();
            let names = names.iter().filter(|name| seen.insert(name.as_str()));
            let possible = |kind| change::possible(kind, pin, &scenario.name).map(|()| kind);
            names
                .map(|name| named(name, table_size).and_then(possible))
                .collect::<Result<_, _>>()?
        }
        Some(Which::All) | None => {
            let all = config::schedulers(table_size).into_iter();
            all.filter(|kind| pin || !kind.counts_flows()).collect()
        }
    };
    let own = |kind: SchedulerKind| kind.as_str() == configured.as_str();
    Ok(all.into_iter().map(|kind| if own(kind) { configured } else { kind }).collect())
}

impl WhatifArgs {
    fn settings(&self, config: &Config) -> Settings {
        Settings {
            flows: self.flows,
            clients: Clients {
                count: self.clients,
                exponent: self.zipf,
                gateway_share: self.gateway_share,
                per_gateway: self.gateway_clients,
            },
            seed: self.seed,
            workers: u32::try_from(config.workers.cores.len()).unwrap_or(1),
            secret: config.hash.secret,
        }
    }

    /// Prints the scenario, the table, and the verdict on the configured scheduler.
    fn report(
        &self,
        scenario: &Scenario,
        changes: &[Change],
        rows: &[Row],
        config: &Config,
        colours: bool,
        out: &mut impl Write,
    ) -> Result<(), CliError> {
        let affinity = config.vips.iter().find(|vip| vip.name == scenario.name);
        let affinity = affinity.map_or("", |vip| vip.policy.affinity.as_str());
        let (flows, clients) = (grouped(self.flows.into()), grouped(self.clients.into()));
        let (behind, seed) = (percent(self.gateway_share), self.seed);
        writeln!(
            out,
            "VIP {}: {flows} flows of {clients} clients, {behind} of them behind gateways; \
             affinity {affinity}; seed {seed}",
            scenario.name
        )?;
        let rows: Vec<&Row> = rows.iter().filter(|row| row.vip == scenario.name).collect();
        table(&rows, colours).iter().try_for_each(|line| writeln!(out, "{line}"))?;
        let row = rows.iter().find(|row| row.configured).or(rows.first());
        let changes = changes.iter().filter(|change| change.vip == scenario.name);
        let changes: Vec<String> = changes.map(ToString::to_string).collect();
        row.map_or(Ok(()), |row| writeln!(out, "{}", verdict(&changes, row)))?;
        Ok(())
    }

    /// Checks all bounds: against the configured schedulers, or against all that were simulated if
    /// `--schedulers` is given.
    fn judge(&self, rows: &[Row]) -> Result<(), CliError> {
        let judged = rows.iter().filter(|row| row.configured || self.schedulers.is_some());
        let over = judged.flat_map(|row| self.fail_if.iter().filter_map(|bound| bound.judge(row)));
        let over: Vec<String> = over.collect();
        if over.is_empty() { Ok(()) } else { Err(CliError::Bound(over)) }
    }
}

fn table(rows: &[&Row], colours: bool) -> Vec<String> {
    let headers = [
        "SCHEDULER",
        ">BROKEN",
        ">WITHOUT CONNTRACK",
        ">NEW FLOWS MOVED",
        ">MAX/MEAN",
        ">AFTER",
        ">BUILD MS",
    ];
    let mut columns = Columns::new(&headers, Look { colours, all: true });
    for row in rows {
        let broken = percent(row.broken_with_conntrack_share);
        columns.row([
            text(format!("{}{}", row.name, if row.configured { " *" } else { "" })),
            if row.broken_with_conntrack == 0 { text(broken) } else { coloured(broken, RED) },
            text(percent(row.broken_without_conntrack_share)),
            text(percent(row.new_flows_moved_share)),
            text(format!("{:.2}", row.max_over_mean)),
            text(format!("{:.2}", row.max_over_mean_after)),
            text(format!("{:.2}", row.build_ms)),
        ]);
    }
    columns.lines()
}

/// Verdict such as `remove web/a: 33.3 % of the flows were on it and break; without connection
/// tracking 34.1 % would. 34.0 % of the new flows go elsewhere (maglev)`.
fn verdict(changes: &[String], row: &Row) -> String {
    let share = percent(row.broken_with_conntrack_share);
    let (new_share, end) = match row.new_flows_dropped_share {
        0.0 => (row.new_flows_moved_share, "go elsewhere"),
        dropped => (dropped, "find NO BACKEND: they are refused or dropped"),
    };
    let new = format!("{} of the new flows {end} ({})", percent(new_share), row.name);
    let changes_made = changes.join(", ");
    if !row.pin {
        let moved = match row.broken_with_conntrack {
            0 => "no flow loses a backend".to_owned(),
            _ => format!("the datagrams of {share} of the flows go elsewhere"),
        };
        return format!("{changes_made}: {moved}, as there are no pins. {new}");
    }
    let broken = match (row.broken_with_conntrack, changes) {
        (0, _) => "no flow breaks".to_owned(),
        (_, [_]) => format!("{share} of the flows were on it and break"),
        _ => format!("{share} of the flows were on what is removed and break"),
    };
    let without = percent(row.broken_without_conntrack_share);
    format!("{changes_made}: {broken}; without connection tracking {without} would. {new}")
}

/// Shows progress in one line that is overwritten, on a terminal only.
fn show_progress(progress: Progress<'_>) {
    let mut stderr = stderr();
    if !stderr.is_terminal() {
        return;
    }
    let Progress { vip, done, of } = progress;
    let end = if done == of { "\r\x1b[K" } else { "" };
    // The simulation continues even if the progress cannot be printed.
    let _ = write!(stderr, "\r\x1b[KVIP {vip}: {done} of {of} schedulers simulated{end}");
    let _ = stderr.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_there_and_back() {
        for text in [
            "remove web/a",
            "drain web/a",
            "add web/c=10.0.0.13",
            "add web/c=2001:db8::13",
            "weight web/a=0",
            "scheduler web=ring",
        ] {
            assert_eq!(change(text).map(|change| change.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(change(" weight  web/a = 2 "), change("weight web/a=2"));
        for text in [
            "",
            "remove",
            "remove web",
            "remove web/a=1",
            "drop web/a",
            "add web/c",
            "add web/c=here",
            "weight web/a=-1",
            "weight web/a=1.5",
            "scheduler web",
            "scheduler web/a=ring",
            "drain web/a b",
        ] {
            assert!(change(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_change_may_be_one_argument_or_two() {
        let all = |texts: &[&str]| {
            changes(&texts.iter().map(|text| words(text)).collect::<Result<Vec<_>, _>>()?)
        };
        let whole = all(&["remove web/a", "drain web/b"]);
        assert!(whole.is_ok());
        assert_eq!(all(&["remove", "web/a", "drain", "web/b"]), whole);
        assert_eq!(all(&["remove web/a", "drain", "web/b"]), whole);
        for text in [&["remove"][..], &["web/a"], &["remove", "drain web/a"], &["remove", ""]] {
            assert!(all(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_verdict_is_a_sentence() {
        let row = Row {
            name: "maglev",
            pin: true,
            flows: 3,
            broken_with_conntrack: 1,
            broken_with_conntrack_share: 1.0 / 3.0,
            broken_without_conntrack_share: 0.341,
            new_flows_moved_share: 0.34,
            ..Row::default()
        };
        let reported = |changes: &[&str], row: &Row| {
            verdict(&changes.iter().map(ToString::to_string).collect::<Vec<_>>(), row)
        };
        assert_eq!(
            reported(&["remove web/a"], &row),
            "remove web/a: 33.3 % of the flows were on it and break; without connection tracking \
             34.1 % would. 34.0 % of the new flows go elsewhere (maglev)"
        );
        let start = "drain web/b, remove web/a: 33.3 % of the flows were on what is removed and ";
        assert!(reported(&["drain web/b", "remove web/a"], &row).starts_with(start));
        let last = Row { new_flows_dropped_share: 1.0, ..row.clone() };
        let end = " 100.0 % of the new flows find NO BACKEND: they are refused or dropped (maglev)";
        assert!(reported(&["remove web/a"], &last).ends_with(end));
        let drained = Row { broken_with_conntrack: 0, ..row };
        let start = "drain web/a: no flow breaks; without connection tracking 34.1 % would. ";
        assert!(reported(&["drain web/a"], &drained).starts_with(start));
        let unpinned = Row { pin: false, broken_with_conntrack: 1, ..drained.clone() };
        assert_eq!(
            reported(&["drain web/a"], &unpinned),
            "drain web/a: the datagrams of 33.3 % of the flows go elsewhere, as there are no pins. \
             34.0 % of the new flows go elsewhere (maglev)"
        );
        let turns = Row { broken_with_conntrack: 0, ..unpinned };
        let start = "drain web/a: no flow loses a backend, as there are no pins. ";
        assert!(reported(&["drain web/a"], &turns).starts_with(start));
    }
}
