//! `holdfast drain`: backends take no new flows, and their existing flows end.

use std::borrow::Cow;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::{SocketArgs, Target};
use super::client::Client;
use super::error::CliError;
use super::table::span;
use crate::control::api::{BackendState, BackendStatus, DrainRequest, Ordered, Status};
use crate::format::counted;
use crate::units::Ticks;

/// Time between two polls of the drains.
const POLL: Duration = Duration::from_millis(500);

/// Arguments of `holdfast drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Backends to drain, all or none
    #[arg(value_name = "VIP/BACKEND", required = true)]
    pub targets: Vec<Target>,
    /// End the remaining flows after this time, by the VIP's drain.then: 90, 90s, 30m or 1h30m
    /// [default: the VIP's drain.deadline_s; a running drain keeps its deadline]
    // Hyphens are allowed so that -1s is reported as a malformed time, not as an unknown option.
    #[arg(long, value_name = "TIME", value_parser = seconds, allow_hyphen_values = true)]
    pub deadline: Option<u64>,
    /// Wait until no flow remains; a connection counts for its closing time-out (closing_s, 30 s by
    /// default) after its end. Ctrl-C ends the waiting, not the drain
    #[arg(long)]
    pub wait: bool,
    /// Drain even if a VIP is left without a backend that takes new flows
    #[arg(long)]
    pub force: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Parses a time such as `90`, `90s`, `30m`, `2h`, `1d` or `1h30m`; returns seconds.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let malformed = || "write 90, 90s, 30m, 2h or 1h30m".to_owned();
    // A number without a unit counts seconds.
    let bare = text.ends_with(|last: char| last.is_ascii_digit());
    let text = if bare { format!("{text}s") } else { text.to_owned() };
    let mut sum = 0_u64;
    let mut smaller_than = u64::MAX;
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600)];
        let unit = units.into_iter().find_map(|(unit, n)| Some((part.strip_suffix(unit)?, n)));
        let (number, factor) = unit.filter(|(_, n)| *n < smaller_than).ok_or_else(malformed)?;
        if number.is_empty() {
            return Err(malformed());
        }
        // Only digits remain: a number that cannot be parsed is too large.
        let number = number.parse().unwrap_or(u64::MAX);
        sum = sum.saturating_add(u64::saturating_mul(number, factor));
        smaller_than = factor;
    }
    match sum {
        _ if text.is_empty() => Err(malformed()),
        0 => Err("use at least 1s, or leave the option out".to_owned()),
        sum if sum > Ticks::MAX_SPAN.as_secs() => Err("at most 30d".to_owned()),
        sum => Ok(sum),
    }
}

/// Starts the drains and, with `--wait`, waits for their end. Progress is a bar for each backend on
/// a terminal, else a line in `out` per change.
///
/// # Errors
/// [`CliError::Client`]; [`CliError::Drain`] if a drain was cancelled during the wait, or if Ctrl-C
/// ended the wait.
pub fn drain(args: &DrainArgs, terminal: bool, out: &mut impl Write) -> Result<(), CliError> {
    let client = args.socket.client()?;
    let (Target { vip, backend }, also) = super::args::names(&args.targets);
    let (deadline_s, force) = (args.deadline, args.force);
    let request = DrainRequest { vip, backend, deadline_s, also, force };
    let Ordered { backend, also } = client.post("/v1/drain", &request)?;
    let backends: Vec<BackendStatus> = std::iter::once(backend).chain(also).collect();
    for status in &backends {
        if let (None, Some(left), true) = (args.deadline, status.deadline_in_s, is_old(status)) {
            let (name, left) = (name(status), span(left));
            writeln!(
                out,
                "{name}: drains already, its deadline stays: in {left}; --deadline moves it"
            )?;
        }
        if !args.wait {
            writeln!(out, "{}", progress(status))?;
        }
    }
    if !args.wait {
        return Ok(());
    }
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&stop))?;
    let view: &mut dyn View = match terminal {
        true => &mut Bars::new(&backends)?,
        false => &mut Lines::new(out, backends.len()),
    };
    wait(&client, backends, POLL, &stop, view)
}

/// Whether the drain began before this command; a process that reports no drain counts as well.
fn is_old(status: &BackendStatus) -> bool {
    status.drain.as_ref().is_none_or(|drain| drain.for_s > 0)
}

/// Display of the progress of several drains.
pub(super) trait View {
    /// Shows the backend with this index.
    fn show(&mut self, index: usize, status: &BackendStatus) -> Result<(), CliError>;
}

/// Polls the drains every `poll` until all have completed.
pub(super) fn wait(
    client: &Client,
    mut backends: Vec<BackendStatus>,
    poll: Duration,
    stop: &AtomicBool,
    view: &mut dyn View,
) -> Result<(), CliError> {
    loop {
        for (index, status) in backends.iter().enumerate() {
            if status.state == BackendState::Active {
                let what = "takes new flows again: it was undrained meanwhile";
                return Err(CliError::Drain(format!("{} {what}", name(status))));
            }
            view.show(index, status)?;
        }
        if backends.iter().all(|status| status.state == BackendState::Drained) {
            return Ok(());
        }
        thread::sleep(poll);
        // Relaxed: the flag publishes nothing else.
        if stop.load(Ordering::Relaxed) {
            let what = "the drain goes on; `holdfast status` shows it, `holdfast undrain` ends it";
            return Err(CliError::Drain(format!("waiting was interrupted: {what}")));
        }
        look(client, &mut backends)?;
    }
}

/// Updates the backends. A reload may have renamed a backend, or given its name to another one: its
/// VIP, address and port identify it.
fn look(client: &Client, backends: &mut [BackendStatus]) -> Result<(), CliError> {
    let status: Status = client.get("/v1/status")?;
    let now: Vec<BackendStatus> = status.vips.into_iter().flat_map(|vip| vip.backends).collect();
    for backend in backends {
        let place = |b: &BackendStatus| (b.vip.clone(), b.address, b.port);
        let found = now.iter().find(|b| place(b) == place(backend));
        let found = found.ok_or_else(|| {
            let what = "is gone: the configuration was reloaded without it, or its VIP has another name \
                        (`holdfast status` shows it)";
            CliError::Drain(format!("{} {what}", name(backend)))
        })?;
        found.clone_into(backend);
    }
    Ok(())
}

/// One line whenever the flows of a backend, or its state, have changed.
pub(super) struct Lines<'o, W> {
    out: &'o mut W,
    reported: Vec<Option<(BackendState, u64)>>,
}

impl<'o, W: Write> Lines<'o, W> {
    pub(super) fn new(out: &'o mut W, backends: usize) -> Self {
        Self { out, reported: vec![None; backends] }
    }
}

impl<W: Write> View for Lines<'_, W> {
    fn show(&mut self, index: usize, status: &BackendStatus) -> Result<(), CliError> {
        let now = Some((status.state, status.traffic.flows_active));
        let Some(reported) = self.reported.get_mut(index).filter(|reported| **reported != now)
        else {
            return Ok(());
        };
        *reported = now;
        writeln!(self.out, "{}", progress(status))?;
        Ok(self.out.flush()?)
    }
}

/// A progress bar for each backend.
struct Bars(Vec<ProgressBar>);

impl Bars {
    fn new(backends: &[BackendStatus]) -> Result<Self, CliError> {
        let style = ProgressStyle::with_template("{prefix} [{bar:20}] {wide_msg}");
        let style =
            style.map_err(|error| CliError::Drain(error.to_string()))?.progress_chars("=> ");
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let longest = backends.iter().map(|status| name(status).len()).max().unwrap_or(0);
        let bar = |status: &BackendStatus| {
            let bar = all.add(ProgressBar::new(1).with_style(style.clone()));
            bar.with_prefix(Cow::from(format!("{:longest$}", name(status))))
        };
        Ok(Self(backends.iter().map(bar).collect()))
    }
}

impl View for Bars {
    fn show(&mut self, index: usize, status: &BackendStatus) -> Result<(), CliError> {
        let Some(bar) = self.0.get(index).filter(|bar| !bar.is_finished()) else { return Ok(()) };
        let left = status.traffic.flows_active;
        let at_start = status.drain.as_ref().map_or(left, |drain| drain.flows_at_start.max(left));
        bar.set_length(at_start.max(1));
        bar.set_position(at_start - left);
        let text = progress(status);
        let text = text.split_once(": ").map_or("", |(_, text)| text).to_owned();
        if status.state == BackendState::Drained {
            bar.set_position(at_start.max(1));
            bar.abandon_with_message(text);
        } else {
            bar.set_message(text);
        }
        Ok(())
    }
}

fn name(status: &BackendStatus) -> String {
    format!("{}/{}", status.vip, status.name)
}

/// Progress such as
/// `web/a: draining, 12 flows left, the oldest 3m 20s, ends in about 2m 0s, deadline in 29m 50s`.
pub(super) fn progress(status: &BackendStatus) -> String {
    let name = name(status);
    let flows = |n: u64| counted(n, "flow");
    match status.state {
        BackendState::Drained if status.flows_cut > 0 => {
            format!("{name}: drained, {} cut at the deadline", flows(status.flows_cut))
        }
        BackendState::Drained => format!("{name}: drained"),
        BackendState::Active => format!("{name}: active"),
        BackendState::Draining => {
            let mut text = format!("{name}: draining, {} left", flows(status.traffic.flows_active));
            if let Some(drain) = &status.drain {
                if let Some(oldest) = drain.oldest_flow_s {
                    text += &format!(", the oldest {}", span(oldest));
                }
                text += &drain.ends_in_s.map_or_else(String::new, |s| match s {
                    0 => ", ends soon".to_owned(),
                    s => format!(", ends in about {}", span(s)),
                });
            }
            text += &status.deadline_in_s.map_or_else(String::new, |s| match s {
                0 => ", deadline now".to_owned(),
                s => format!(", deadline in {}", span(s)),
            });
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines() {
        for (text, expected) in [
            ("0", None),
            ("0s", None),
            ("1", Some(1)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("2h", Some(7200)),
            ("30d", Some(2_592_000)),
            ("1h30m", Some(5400)),
            ("1d2h3m4s", Some(93_784)),
            ("1h30", Some(3630)),
            ("30m1h", None),
            ("1h1h", None),
            ("h30m", None),
            ("1h 30m", None),
            ("-1s", None),
            ("--wait", None),
            ("31d", None),
            ("30d1s", None),
            ("99999999999999999999h", None),
            ("-1", None),
            ("1.5h", None),
            ("m", None),
            ("", None),
        ] {
            assert_eq!(seconds(text).ok(), expected, "{text:?}");
        }
    }
}
