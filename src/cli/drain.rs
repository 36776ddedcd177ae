//! `holdfast drain`: a backend takes no new flows, and its old ones end.

use std::io::Write;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::table::span;
use super::{CliError, SocketArgs, Target};
use crate::control::api::{BackendState, BackendStatus, DrainRequest, Status};
use crate::units::Ticks;
use crate::words::counted;

/// Time between two looks at the drain.
const POLL: Duration = Duration::from_millis(500);

/// The arguments.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The backend
    #[arg(value_name = "VIP/BACKEND")]
    pub target: Target,
    /// Cut the flows that are left after this time: 90, 90s, 30m or 1h30m [default: they end by
    /// themselves; a drain that goes on keeps its deadline]
    // With a hyphen, so that -1s is told what a time is, not what an option is.
    #[arg(long, value_name = "TIME", value_parser = seconds, allow_hyphen_values = true)]
    pub deadline: Option<u64>,
    /// Wait until no flow is left; a connection counts for its closing time-out (closing_s, 30 s by
    /// default) after its end. Ctrl-C ends the waiting, not the drain
    #[arg(long)]
    pub wait: bool,
    /// Where holdfast listens.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// `90`, `90s`, `30m`, `2h`, `1d` or several of them, such as `1h30m`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
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
        // Only digits are left: what cannot be parsed is too large.
        let number = number.parse().unwrap_or(u64::MAX);
        sum = sum.saturating_add(u64::saturating_mul(number, factor));
        smaller_than = factor;
    }
    match sum {
        _ if text.is_empty() => Err(malformed()),
        0 => Err("use at least 1s; without --deadline, flows end by themselves".to_owned()),
        sum if sum > Ticks::MAX_SPAN.as_secs() => Err("at most 30d".to_owned()),
        sum => Ok(sum),
    }
}

/// Orders the drain and, if asked to, waits for its end. Progress goes to `out`: one line that is
/// written over on a terminal, else one line per change.
///
/// # Errors
/// [`CliError::Client`]; [`CliError::Drain`] if somebody ended the drain while it was waited for.
pub fn drain(args: &DrainArgs, terminal: bool, out: &mut impl Write) -> Result<(), CliError> {
    let client = args.socket.client()?;
    let Target { vip, backend } = args.target.clone();
    let request = DrainRequest { vip, backend, deadline_s: args.deadline };
    let status: BackendStatus = client.post("/v1/drain", &request)?;
    if let (None, Some(left)) = (args.deadline, status.deadline_in_s) {
        let (target, left) = (&args.target, span(left));
        let name = format!("{}/{}", target.vip, target.backend);
        writeln!(
            out,
            "{name}: drains already, its deadline stays: in {left}; --deadline moves it"
        )?;
    }
    if !args.wait {
        return Ok(writeln!(out, "{}", progress(&status))?);
    }
    wait(&client, &args.target, status, terminal, POLL, out)
}

/// Looks at the drain every `poll` until it has come to its end.
pub(super) fn wait(
    client: &Client,
    target: &Target,
    mut status: BackendStatus,
    terminal: bool,
    poll: Duration,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let mut told = String::new();
    loop {
        if status.state == BackendState::Active {
            let what = "takes new flows again: somebody has undrained it";
            return Err(CliError::Drain(format!("{}/{} {what}", target.vip, target.backend)));
        }
        tell(&progress(&status), &mut told, terminal, out)?;
        if status.state == BackendState::Drained {
            // The line that was written over is complete now.
            return Ok(out.write_all(if terminal { b"\n" } else { b"" })?);
        }
        thread::sleep(poll);
        status = look(client, target)?;
    }
}

fn look(client: &Client, target: &Target) -> Result<BackendStatus, CliError> {
    let status: Status = client.get("/v1/status")?;
    let mut backends = status.vips.into_iter().flat_map(|vip| vip.backends);
    let found = backends.find(|b| b.vip == target.vip && b.name == target.backend);
    found.ok_or_else(|| {
        let what = "is gone: the configuration was reloaded without it";
        CliError::Drain(format!("{}/{} {what}", target.vip, target.backend))
    })
}

fn tell(
    line: &str,
    told: &mut String,
    terminal: bool,
    out: &mut impl Write,
) -> Result<(), CliError> {
    if line == told {
        return Ok(());
    }
    if terminal {
        // Back to the first column, and clear what the longer line before has left.
        write!(out, "\r{line}\x1b[K")?;
    } else {
        writeln!(out, "{line}")?;
    }
    line.clone_into(told);
    Ok(out.flush()?)
}

/// `web/a: draining, 12 flows left, deadline in 29m 50s`.
fn progress(status: &BackendStatus) -> String {
    let (vip, name) = (&status.vip, &status.name);
    let flows = |n: u64| counted(n, "flow");
    match status.state {
        BackendState::Drained if status.flows_cut > 0 => {
            format!("{vip}/{name}: drained, {} cut at the deadline", flows(status.flows_cut))
        }
        BackendState::Drained => format!("{vip}/{name}: drained"),
        BackendState::Active => format!("{vip}/{name}: active"),
        BackendState::Draining => {
            let left = flows(status.traffic.flows_active);
            let deadline = status.deadline_in_s.map(|s| match s {
                0 => ", deadline now".to_owned(),
                s => format!(", deadline in {}", span(s)),
            });
            format!("{vip}/{name}: draining, {left} left{}", deadline.unwrap_or_default())
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
