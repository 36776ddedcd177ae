//! `holdfast explain`: backend of a flow, with the reasons.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::args::{SocketArgs, name};
use super::error::CliError;
use super::table::{Columns, Look, text};
use crate::control::api::Explained;
use crate::net::Protocol;

/// Arguments of `holdfast explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The VIP
    #[arg(long, value_name = "VIP", value_parser = name)]
    pub vip: String,
    /// The client, such as 198.51.100.7:40000 or [2001:db8::7]:40000; of a VIP with protocol "any",
    /// its address
    #[arg(long, value_name = "IP:PORT", value_parser = client)]
    pub client: String,
    /// The VIP's port, if it has several: its first one by default
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Address within a VIP that is a prefix: the lowest one by default
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Explain a TCP packet in mid-flow, even if the flow has no pin
    #[arg(long)]
    pub midflow: bool,
    /// Explain a SYN, even if the flow has a pin
    #[arg(long, conflicts_with = "midflow")]
    pub syn: bool,
    /// Payload of a UDP packet, such as a QUIC header, in hex digits
    #[arg(long, value_name = "HEX", conflicts_with_all = ["midflow", "syn"])]
    pub payload: Option<String>,
    /// One JSON document
    #[arg(long)]
    pub json: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

impl ExplainArgs {
    /// Returns the request path. No part needs further quoting: `[` and `]` of addresses are
    /// escaped.
    fn path(&self) -> String {
        let client = self.client.replace('[', "%5B").replace(']', "%5D");
        let mut path = format!("/v1/explain?vip={}&client={client}", self.vip);
        if let Some(port) = self.port {
            path += &format!("&port={port}");
        }
        if let Some(address) = self.address {
            path += &format!("&address={address}");
        }
        if self.midflow {
            path += "&midflow=true";
        }
        if self.syn {
            path += "&syn=true";
        }
        if let Some(payload) = &self.payload {
            // The server refuses other characters, but they must not alter the path.
            let digits = |c: char| if c.is_ascii_hexdigit() { c } else { '-' };
            path += &format!("&payload={}", payload.chars().map(digits).collect::<String>());
        }
        path
    }
}

/// Parses an address with or without a port; returns its canonical form.
fn client(text: &str) -> Result<String, &'static str> {
    let socket = text.parse::<SocketAddr>().map(|socket| socket.to_string());
    let known = socket.or_else(|_| text.parse::<IpAddr>().map(|ip| ip.to_string()));
    known.map_err(|_| "write address:port, such as 198.51.100.7:40000 or [2001:db8::7]:40000")
}

/// Prints each step.
///
/// # Errors
/// [`CliError::Client`].
pub fn explain(args: &ExplainArgs, out: &mut impl Write) -> Result<(), CliError> {
    let client = args.socket.client()?;
    if args.json {
        let document: serde_json::Value = client.get(&args.path())?;
        return Ok(writeln!(out, "{document:#}")?);
    }
    let explained: Explained = client.get(&args.path())?;
    let Explained { vip, client, destination, protocol, backend, backend_vip, steps, .. } =
        &explained;
    let vip = backend_vip.as_ref().unwrap_or(vip);
    // With protocol "any", ports have no meaning.
    let shown = |socket: &SocketAddr| match protocol {
        Protocol::Any => socket.ip().to_string(),
        Protocol::Tcp | Protocol::Udp => socket.to_string(),
    };
    let (client, destination, protocol) = (shown(client), shown(destination), protocol.as_str());
    let end = backend.as_ref().map_or("dropped".to_owned(), |name| format!("{vip}/{name}"));
    writeln!(out, "{protocol} {client} -> {destination}: {end}\n")?;
    let mut columns = Columns::new(&["STAGE", "OUTCOME", "WHY"], Look::default());
    for step in steps {
        columns.row([text(&step.stage), text(&step.outcome), text(&step.why)]);
    }
    Ok(columns.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?)
}
