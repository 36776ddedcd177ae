//! `holdfast flows`: the pinned flows.

use std::io::Write;
use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;

use super::args::{SocketArgs, name};
use super::client::{Client, ClientError, document};
use super::error::CliError;
use super::table::{Columns, Look, span, text};
use crate::control::api::{Flow, Status};

/// Selection of flows or clients.
#[derive(Debug, Args)]
pub struct Filters {
    /// Only this VIP
    #[arg(long, value_name = "VIP", value_parser = name)]
    pub vip: Option<String>,
    /// Only this backend
    #[arg(long, value_name = "BACKEND", value_parser = name)]
    pub backend: Option<String>,
    /// Only clients from this address or prefix
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    pub client: Option<IpNet>,
}

/// Arguments of `holdfast flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Flows to list.
    #[command(flatten)]
    pub filters: Filters,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// JSON lines, one flow each
    #[arg(long)]
    pub json: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| "write an address or a prefix, such as 198.51.100.0/24".to_owned())
}

impl Filters {
    /// Returns the filters as parts of a query, each with a leading `&`. No part needs quoting:
    /// names and prefixes consist of unreserved characters, `/` and `:` (RFC 3986, section 3.4).
    pub(super) fn query(&self) -> String {
        let filters = [
            ("vip", self.vip.clone()),
            ("backend", self.backend.clone()),
            ("client", self.client.map(|net| net.to_string())),
        ];
        let given =
            filters.into_iter().filter_map(|(key, value)| Some(format!("&{key}={}", value?)));
        given.collect()
    }
}

/// Prints the flows.
///
/// # Errors
/// [`CliError::Client`].
pub fn flows(args: &FlowsArgs, out: &mut impl Write) -> Result<(), CliError> {
    let client = args.socket.client()?;
    let path = format!("/v1/flows?limit={}{}", args.limit, args.filters.query());
    if args.json {
        return Ok(client.lines(&path, |line| Ok(writeln!(out, "{line}")?))?);
    }
    let mut flows: Vec<Flow> = Vec::new();
    client.lines(&path, |line| {
        flows.push(document(line.as_bytes())?);
        Ok::<(), ClientError>(())
    })?;
    if flows.is_empty() {
        return Ok(writeln!(out, "no flows{}", why_none(&client, args.filters.vip.as_deref())?)?);
    }
    for line in table(&flows).lines() {
        writeln!(out, "{line}")?;
    }
    if u32::try_from(flows.len()).is_ok_and(|count| count >= args.limit) {
        writeln!(out, "these are the first {}; --limit N shows more", args.limit)?;
    }
    Ok(())
}

/// Returns the reason why a VIP can have no flows, if there is one.
fn why_none(client: &Client, vip: Option<&str>) -> Result<String, ClientError> {
    let Some(name) = vip else { return Ok(String::new()) };
    let status: Status = client.get("/v1/status")?;
    let unpinned = status.vips.iter().any(|vip| vip.name == name && !vip.pin);
    Ok(match unpinned {
        true => format!(
            ": VIP {name} has pin = false, so each datagram is placed by itself; `holdfast status` counts \
             them"
        ),
        false => String::new(),
    })
}

fn table(flows: &[Flow]) -> Columns {
    let headers = [
        "VIP",
        "BACKEND",
        "PROTOCOL",
        "CLIENT",
        "DESTINATION",
        "?SOURCE",
        "STATE",
        ">AGE",
        ">IDLE",
        ">WORKER",
    ];
    let mut columns = Columns::new(&headers, Look::default());
    for flow in flows {
        columns.row([
            text(&flow.vip),
            text(&flow.backend),
            text(flow.protocol.as_str()),
            text(flow.client),
            text(flow.destination),
            flow.source.map_or_else(|| text("-"), text),
            text(&flow.state),
            text(span(flow.age_ms / 1000)),
            text(span(flow.idle_ms / 1000)),
            text(flow.worker),
        ]);
    }
    columns
}
