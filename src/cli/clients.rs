//! `holdfast clients`: lists clients with their backends, or forgets them.

use std::io::Write;

use clap::Args;

use super::args::SocketArgs;
use super::client::{ClientError, document};
use super::error::CliError;
use super::flows::Filters;
use super::table::{Columns, Look, span, text};
use crate::control::api::{Client, Forgotten};
use crate::format::counted;

/// Arguments of `holdfast clients`.
#[derive(Debug, Args)]
pub struct ClientsArgs {
    /// Clients to list or to forget.
    #[command(flatten)]
    pub filters: Filters,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "delete")]
    pub limit: u32,
    /// JSON lines, one client each; with --delete, one document
    #[arg(long)]
    pub json: bool,
    /// Forget these clients: the VIP's scheduler chooses a backend for their next connections.
    /// Needs --vip, --backend, --client or --all
    #[arg(long)]
    pub delete: bool,
    /// With --delete: all clients
    #[arg(long, requires = "delete", conflicts_with_all = ["vip", "backend", "client"])]
    pub all: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Lists or forgets clients.
///
/// # Errors
/// [`CliError::Client`]; [`CliError::Usage`] when `--delete` has no filter and no `--all`.
pub fn clients(args: &ClientsArgs, out: &mut impl Write) -> Result<(), CliError> {
    if args.delete {
        return forget(args, out);
    }
    let client = args.socket.client()?;
    let path = format!("/v1/clients?limit={}{}", args.limit, args.filters.query());
    if args.json {
        return Ok(client.lines(&path, |line| Ok(writeln!(out, "{line}")?))?);
    }
    let mut clients: Vec<Client> = Vec::new();
    client.lines(&path, |line| {
        clients.push(document(line.as_bytes())?);
        Ok::<(), ClientError>(())
    })?;
    if clients.is_empty() {
        return Ok(writeln!(out, "no clients")?);
    }
    for line in table(&clients).lines() {
        writeln!(out, "{line}")?;
    }
    if u32::try_from(clients.len()).is_ok_and(|count| count >= args.limit) {
        writeln!(out, "these are the first {}; --limit N shows more", args.limit)?;
    }
    Ok(())
}

fn forget(args: &ClientsArgs, out: &mut impl Write) -> Result<(), CliError> {
    let query = args.filters.query();
    let query = match query.strip_prefix('&') {
        Some(query) => query,
        None if args.all => "all=true",
        None => {
            let error = "which clients? Name them with --vip, --backend or --client, or all of them with --all";
            return Err(CliError::Usage(error.to_owned()));
        }
    };
    let answer: Forgotten = args.socket.client()?.delete(&format!("/v1/clients?{query}"))?;
    if args.json {
        return Ok(writeln!(out, "{{\"forgotten\":{}}}", answer.forgotten)?);
    }
    Ok(writeln!(out, "{} forgotten", counted(answer.forgotten, "client"))?)
}

fn table(clients: &[Client]) -> Columns {
    let headers = ["VIP", "CLIENT", "?>PART", "BACKEND", ">AGE", ">IDLE", "PROVEN", "?EXPIRED"];
    let mut columns = Columns::new(&headers, Look::default());
    let gone = |name: &Option<String>| text(name.as_deref().unwrap_or("(gone)"));
    for client in clients {
        columns.row([
            gone(&client.vip),
            text(client.client),
            text(if client.part == 1 { "-".to_owned() } else { client.part.to_string() }),
            gone(&client.backend),
            text(span(client.age_ms / 1000)),
            text(span(client.idle_ms / 1000)),
            text(if client.proven { "yes" } else { "no" }),
            text(if client.expired { "yes" } else { "-" }),
        ]);
    }
    columns
}
