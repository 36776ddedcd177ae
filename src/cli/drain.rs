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

/// Time between two looks at the drain.
const POLL: Duration = Duration::from_millis(500);

/// The arguments.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The backend
    #[arg(value_name = "VIP/BACKEND")]
    pub target: Target,
    /// Cut the flows that are left after this time: 90, 90s, 30m or 2h [default: they end by
    /// themselves]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub deadline: Option<u64>,
    /// Wait until no flow is left
    #[arg(long)]
    pub wait: bool,
    /// Where holdfast listens.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// `90`, `90s`, `30m`, `2h` or `1d` in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let most = Ticks::MAX_SPAN.as_secs();
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600)];
    let unit = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    let number: u64 = number.parse().map_err(|_| "write 90, 90s, 30m or 2h".to_owned())?;
    let seconds = number.checked_mul(factor).filter(|&seconds| seconds <= most);
    seconds.ok_or_else(|| "at most 30d".to_owned())
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
    let flows = |n: u64| format!("{n} flow{}", if n == 1 { "" } else { "s" });
    match status.state {
        BackendState::Drained if status.flows_cut > 0 => {
            format!("{vip}/{name}: drained, {} cut at the deadline", flows(status.flows_cut))
        }
        BackendState::Drained => format!("{vip}/{name}: drained"),
        BackendState::Active => format!("{vip}/{name}: active"),
        BackendState::Draining => {
            let left = flows(status.traffic.flows_active);
            let deadline = status.deadline_in_s.map(|s| format!(", deadline in {}", span(s)));
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
            ("0", Some(0)),
            ("90", Some(90)),
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("2h", Some(7200)),
            ("30d", Some(2_592_000)),
            ("31d", None),
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
