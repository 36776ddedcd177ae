//! `holdfast deny`: denies sources while holdfast runs.

use std::io::Write;

use clap::{Args, Subcommand};

use super::args::{SocketArgs, name};
use super::client::Client;
use super::drain::seconds;
use super::error::CliError;
use super::table::{Columns, Look, count, span, text};
use crate::control::api::{DenyEntry, DenyList, DenyRequest};

/// Arguments of `holdfast deny`.
#[derive(Debug, Args)]
pub struct DenyArgs {
    #[command(subcommand)]
    pub(super) action: Action,
}

/// The actions of `holdfast deny`.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Drop the packets of a prefix to VIPs, from now on
    Add(AddArgs),
    /// Remove a prefix that was added
    Remove(TargetArgs),
    /// List the prefixes that were added, and the sizes of all lists
    List(ListArgs),
}

/// Prefix of a command.
#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// Address, or prefix such as 203.0.113.0/24
    #[arg(value_name = "PREFIX")]
    prefix: String,
    /// At this VIP only [default: at all VIPs]
    #[arg(long, value_name = "NAME", value_parser = name)]
    vip: Option<String>,
    /// The entry as one JSON document
    #[arg(long)]
    json: bool,
    /// Control socket.
    #[command(flatten)]
    socket: SocketArgs,
}

/// Arguments of `holdfast deny add`.
#[derive(Debug, Args)]
pub(super) struct AddArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// For this time: 90, 90s, 10m or 1h30m; another one replaces it [default: until it is removed]
    #[arg(long = "for", value_name = "TIME", value_parser = seconds, allow_hyphen_values = true)]
    for_s: Option<u64>,
}

/// Arguments of `holdfast deny list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Control socket.
    #[command(flatten)]
    socket: SocketArgs,
}

/// Changes or lists the prefixes that are denied at run time. A change is in force when the command
/// ends.
///
/// # Errors
/// [`CliError::Client`].
pub fn deny(args: &DenyArgs, out: &mut impl Write) -> Result<(), CliError> {
    match &args.action {
        Action::Add(AddArgs { target, for_s }) => {
            let (prefix, vip, for_s) = (target.prefix.clone(), target.vip.clone(), *for_s);
            let request = DenyRequest { prefix, vip, for_s };
            let entry = target.socket.client()?.post("/v1/deny", &request)?;
            report(&entry, "is denied", target.json, out)
        }
        Action::Remove(target) => {
            let mut query = format!("prefix={}", quoted(&target.prefix));
            if let Some(vip) = &target.vip {
                query += &format!("&vip={vip}");
            }
            let entry = target.socket.client()?.delete(&format!("/v1/deny?{query}"))?;
            report(&entry, "is no longer denied by a command", target.json, out)
        }
        Action::List(ListArgs { json, socket }) => list(&socket.client()?, *json, out),
    }
}

/// Escapes all but the characters of prefixes; the server reports a text that is none.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:/-_".contains(&byte);
    let quote =
        |byte: u8| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(quote).collect()
}

fn report(entry: &DenyEntry, what: &str, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    if json {
        let text = serde_json::to_string(entry).map_err(|error| CliError::Output(error.into()))?;
        return Ok(writeln!(out, "{text}")?);
    }
    let DenyEntry { prefix, vip, ends_in_s } = entry;
    let vip = vip.as_ref().map_or_else(String::new, |vip| format!(" at VIP {vip}"));
    let time = ends_in_s.map_or_else(String::new, |s| format!(" for {}", span(s)));
    Ok(writeln!(out, "{prefix} {what}{vip}{time}")?)
}

fn list(client: &Client, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    if json {
        let document: serde_json::Value = client.get("/v1/deny")?;
        return Ok(writeln!(out, "{document:#}")?);
    }
    let DenyList { denied, lists, pending } = client.get("/v1/deny")?;
    let look = Look { colours: false, all: false };
    let mut columns = Columns::new(&["PREFIX", "VIP", ">ENDS IN"], look);
    for DenyEntry { prefix, vip, ends_in_s } in &denied {
        let end = ends_in_s.map_or_else(|| "-".to_owned(), span);
        columns.row([text(prefix), text(vip.as_deref().unwrap_or("all")), text(end)]);
    }
    if denied.is_empty() {
        writeln!(out, "no prefix was denied at run time")?;
    } else {
        columns.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    if lists.is_empty() {
        return Ok(());
    }
    let mut columns = Columns::new(&["LIST", "VIP", ">PREFIXES"], look);
    for list in &lists {
        let vip = list.vip.as_deref().unwrap_or("all");
        let prefixes = u64::try_from(list.prefixes).unwrap_or(u64::MAX);
        columns.row([text(&list.kind), text(vip), count(prefixes)]);
    }
    writeln!(out)?;
    columns.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?;
    if pending {
        writeln!(out, "\na change of the lists is in progress")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_go_into_a_uri_as_they_are_and_other_texts_are_escaped() {
        assert_eq!(quoted("2001:db8::/32"), "2001:db8::/32");
        assert_eq!(quoted("a b&vip=x#%"), "a%20b%26vip%3Dx%23%25");
    }
}
