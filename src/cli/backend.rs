//! `holdfast backend`: the program of a real server.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::CliError;
use crate::net::FleetKey;
use crate::xdp::backend::{self, Counters, Settings};

/// Arguments of `holdfast backend`.
#[derive(Debug, Args)]
pub struct BackendArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Load the program, in the place of one that is there; it stays without a process
    Load(LoadArgs),
    /// Show what the program has done since it was loaded
    Status(OneArgs),
    /// Remove the program
    Unload(InterfaceArgs),
}

#[derive(Debug, Args)]
struct LoadArgs {
    #[command(flatten)]
    on: InterfaceArgs,
    /// Address of a VIP that this server has on its loopback; repeat for several
    #[arg(long = "vip", value_name = "ADDRESS", required = true)]
    vips: Vec<IpAddr>,
    /// File with the fleet's key, and in a second line the one before it: 32 hexadecimal digits each
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// UDP port of GUE, as in [tunnel] of the boxes
    #[arg(long, value_name = "PORT", default_value_t = 6080)]
    gue_port: u16,
}

#[derive(Debug, Args)]
struct InterfaceArgs {
    /// Interface through which the boxes' packets come
    #[arg(long)]
    interface: String,
}

#[derive(Debug, Args)]
struct OneArgs {
    #[command(flatten)]
    on: InterfaceArgs,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// Loads, shows or removes the program.
///
/// # Errors
/// [`CliError`].
pub fn backend(args: &BackendArgs, out: &mut impl Write) -> Result<(), CliError> {
    match &args.action {
        Action::Load(load) => {
            let settings = Settings {
                vips: load.vips.iter().map(|&vip| vip.into()).collect(),
                gue_port: load.gue_port,
                keys: read_keys(&load.key_file)?,
            };
            backend::load(&load.on.interface, &settings)?;
            writeln!(out, "{}: the program is attached", load.on.interface)?;
        }
        Action::Status(status) => show(&status.on.interface, status.json, out)?,
        Action::Unload(InterfaceArgs { interface }) => match backend::unload(interface)? {
            true => writeln!(out, "{interface}: the program is removed")?,
            false => writeln!(out, "{interface}: there is no program")?,
        },
    }
    Ok(())
}

/// Reads the keys of a file that others cannot read. With a single line there is no earlier key, and
/// that one stands in for it.
fn read_keys(path: &Path) -> Result<[FleetKey; 2], CliError> {
    let wrong = |what: String| CliError::Usage(format!("{}: {what}", path.display()));
    let os = |error: &std::io::Error| wrong(crate::format::reason(error));
    let mode = fs::metadata(path).map_err(|error| os(&error))?.mode();
    if mode & 0o077 != 0 {
        let what = "others can read the key, and could then divert connections: chmod 600";
        return Err(wrong(what.to_owned()));
    }
    let text = fs::read_to_string(path).map_err(|error| os(&error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys = lines.map(str::parse).collect::<Result<Vec<FleetKey>, _>>();
    match keys.map_err(|what| wrong(what.to_owned()))?[..] {
        [key] => Ok([key, key]),
        [key, earlier] => Ok([key, earlier]),
        ref keys => Err(wrong(format!("{} keys, where one or two are expected", keys.len()))),
    }
}

fn show(interface: &str, json: bool, out: &mut impl Write) -> Result<(), CliError> {
    let Some(counters) = backend::counters(interface)? else {
        let what = format!("{interface}: there is no program; `holdfast backend load` attaches it");
        return Err(CliError::Usage(what));
    };
    let Counters {
        decapsulated,
        owned,
        passed_on,
        last,
        probes_lost,
        bad_tag,
        malformed,
        refused,
        hellos,
    } = counters;
    let rows = [
        ("decapsulated", decapsulated, "tunnel packets for a VIP, delivered to the kernel"),
        ("owned", owned, "asks about a connection that is here"),
        ("passed_on", passed_on, "asks about others, sent to the next backend"),
        ("last", last, "asks that no backend knew: the kernel resets"),
        ("probes_lost", probes_lost, "asks that no backend of the list knew, and others may"),
        ("bad_tag", bad_tag, "asks with a wrong key, or a clock over a minute off"),
        ("malformed", malformed, "asks that cannot be read"),
        ("refused", refused, "tunnel packets to no VIP, left to the kernel"),
        ("hellos", hellos, "greetings of boxes, answered"),
    ];
    if json {
        let counts = rows.map(|(name, count, _)| (name.to_owned(), count.into()));
        let document = json!({
            "interface": interface,
            "counters": serde_json::Map::from_iter(counts),
        });
        return Ok(writeln!(out, "{document:#}")?);
    }
    for (name, count, what) in rows {
        writeln!(out, "{name:<12} {count:>12}  {what}")?;
    }
    Ok(())
}
