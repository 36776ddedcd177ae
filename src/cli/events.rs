//! `holdfast events`: recent events.

use std::io::Write;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::args::SocketArgs;
use super::client::Client;
use super::error::CliError;
use crate::control::api::{Event, EventList};
use crate::format::counted;

/// Time between two polls.
const POLL: Duration = Duration::from_millis(500);

/// Arguments of `holdfast events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Continue with new events, until Ctrl-C
    #[arg(long)]
    pub follow: bool,
    /// JSON lines, one event each
    #[arg(long)]
    pub json: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Prints the stored events and, with `--follow`, new ones.
///
/// # Errors
/// [`CliError::Client`], also when holdfast ends while its events are followed.
pub fn events(args: &EventsArgs, out: &mut impl Write) -> Result<(), CliError> {
    let client = args.socket.client()?;
    let mut last = 0;
    loop {
        last = print(&client, last, args.json, out)?;
        if !args.follow {
            return match last {
                0 if !args.json => Ok(writeln!(out, "no events")?),
                _ => Ok(()),
            };
        }
        thread::sleep(POLL);
    }
}

/// Prints the events after `since`; returns the number of the last one.
pub(super) fn print(
    client: &Client,
    since: u64,
    json: bool,
    out: &mut impl Write,
) -> Result<u64, CliError> {
    let list: EventList = client.get(&format!("/v1/events?since={since}"))?;
    if list.last < since {
        // The process was restarted, and counts from 1.
        return print(client, 0, json, out);
    }
    if list.lost > 0 && !json {
        writeln!(out, "{} before these are forgotten", counted(list.lost, "event"))?;
    }
    for event in &list.events {
        writeln!(out, "{}", line(event, json)?)?;
    }
    out.flush()?;
    Ok(list.last)
}

fn line(event: &Event, json: bool) -> Result<String, CliError> {
    if json {
        return serde_json::to_string(event).map_err(|error| CliError::Output(error.into()));
    }
    Ok(format!("{}  {:<14}  {}", event.time, event.kind, event.text))
}
