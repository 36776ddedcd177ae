//! Configuration: parses the TOML file into the checked values that the program relies on.
//!
//! Each section has one file with its raw type, its defaults (each stated once, with the reason)
//! and its rules; `rules.rs` has the rules between sections. [`parse`] reports every mistake that
//! it can find, each with line and column; [`machine`] finds settings that do not fit the machine.
//! `config/holdfast.toml` is the reference for users, tested against this code.

mod access;
mod affinity;
mod backend;
pub mod capacity;
mod checked;
mod choice;
mod control;
mod damping;
mod drain;
pub mod driver;
mod error;
mod fleet;
mod fragments;
mod full_nat;
mod hash;
mod health;
mod icmp;
mod key_path;
mod lost;
pub mod machine;
mod neighbours;
mod new_flows;
mod nic;
mod passive;
mod pin;
mod policy;
mod quic;
mod rate;
#[cfg(test)]
mod reference;
mod report;
mod rules;
mod scheduler;
mod sections;
mod security;
mod share;
mod split;
mod state;
mod steered;
mod sticky;
mod syntax;
#[cfg(test)]
mod tests;
mod timeouts;
mod tunnel;
mod vip;
mod workers;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::format::reason;
use crate::forwarding::Tunnels;

use key_path::{KeyPath, Located, Value};
use report::Report;

pub use access::{prefix, share_lists};
pub use backend::MAX_WEIGHT;
pub use checked::{
    Announce, Backend, Config, Control, CopyMode, Damping, Drain, Fragments, FullNat, Hash, Health,
    Idle, Io, Nic, Passive, Security, Split, State, TcpHealth, Vip, Workers, XdpMode,
};
pub use control::SOCKET;
pub use error::{ConfigError, ConfigErrors};
pub use neighbours::{
    BackendFacts, BackendState, Neighbours, NicFacts, load_neighbours, parse_neighbours,
};
pub use scheduler::schedulers;

/// Largest file, in bytes. A configuration with the most VIPs and backends takes about 4 MiB.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Reads and checks a configuration file.
///
/// # Errors
/// Every mistake that can be found without inspecting the machine, or one error if the file cannot
/// be read.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let (text, file_name) = load_text(path)?;
    parse(&text, &file_name)
}

/// Reads a file; returns its text and the name that messages use for it.
fn load_text(path: &Path) -> Result<(String, String), ConfigErrors> {
    let file_name = path.display().to_string();
    match read_text(path) {
        Ok(text) => Ok((text, file_name)),
        Err((what, fix)) => {
            let (key, line) = (String::new(), String::new());
            let fix = fix.to_owned();
            let error = ConfigError { file: file_name, position: None, key, what, fix, line };
            Err(ConfigErrors(vec![error]))
        }
    }
}

/// Checks a configuration; messages use `file_name` as the name of the file.
///
/// # Errors
/// Every mistake in the text.
pub fn parse(text: &str, file_name: &str) -> Result<Config, ConfigErrors> {
    let mut report = Report::parse(text, file_name)?;
    let config = check(&mut report);
    report.finish()?;
    Ok(config)
}

/// Describes a failure to read a file, with the remedy.
fn unreadable(error: &io::Error) -> (String, &'static str) {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ("no such file".to_owned(), "check the path, or put the file there")
        }
        io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            "let holdfast's user read it; if that is root, chown it to root (docs/SECURITY.md)",
        ),
        _ => (format!("cannot be read: {}", reason(error)), "it must be a TOML file"),
    }
}

/// Refuses files other than regular ones, before they are opened: a FIFO without a writer blocks its
/// reader (`fifo(7)`), opening a device may have effects, and none of them can be read again.
fn check_kind(path: &Path) -> Result<(), (String, &'static str)> {
    let kind = fs::metadata(path).map_err(|error| unreadable(&error))?.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => return Err(("a directory".to_owned(), "name a file in it")),
        () if kind.is_fifo() => "a FIFO or pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err((format!("{what}, not a regular file"), "write the configuration to a regular file"))
}

fn read_text(path: &Path) -> Result<String, (String, &'static str)> {
    check_kind(path)?;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(&error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(("larger than 16 MiB".to_owned(), "it must be a TOML file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|&&byte| byte == b'\n').count() + 1;
        (format!("not UTF-8 in line {line}"), "save the file as UTF-8, as TOML wants it")
    })
}

/// Checks each section, then the rules between them. The result is valid only if `report` stays
/// empty.
fn check(report: &mut Report<'_>) -> Config {
    let root = KeyPath::root();
    let mut document = report.document();
    let workers: workers::RawWorkers = table(&mut document, "workers", report);
    let workers = workers.check(&root.key("workers"), report);
    let nics = nics(document.remove("nic"), report);
    let first_nic = nics.first().map(|nic| nic.value.interface.clone());
    let last_nic = nics.last().map(|nic| nic.value.interface.as_str());
    let full_nat: full_nat::RawFullNat = table(&mut document, "full_nat", report);
    let full_nat = full_nat.check(&root.key("full_nat"), last_nic, workers.cores.len(), report);
    let hash: hash::RawHash = table(&mut document, "hash", report);
    let hash = hash.check(&root.key("hash"), report);
    let defaults = vip::Defaults { nic: first_nic.as_deref(), table_size: hash.table_size };
    let vips = vips(document.remove("vip"), defaults, report);
    let fragments: fragments::RawFragments = table(&mut document, "fragments", report);
    let icmp: icmp::RawIcmp = table(&mut document, "icmp", report);
    let new_flows: new_flows::RawNewFlows = table(&mut document, "new_flows", report);
    let control: control::RawControl = table(&mut document, "control", report);
    let state: state::RawState = table(&mut document, "state", report);
    let security: security::RawSecurity = table(&mut document, "security", report);
    let tunnel: tunnel::RawTunnel = table(&mut document, "tunnel", report);
    let fleet: fleet::RawFleet = table(&mut document, "fleet", report);
    let access: access::RawAccess = table(&mut document, "access", report);
    for key in document.keys() {
        let what = "unknown section or key";
        let fix = "the sections are: [workers], [[nic]], [[vip]], [access], [full_nat], [tunnel], [fragments], \
             [icmp], [new_flows], [control], [state], [security], [hash], [fleet]";
        report.unknown(key.get_ref(), key.span().start, what, fix);
    }
    let (fleet, asks) = fleet.check(&root.key("fleet"), report);
    let config = Config {
        workers,
        nics: nics.iter().map(|nic| nic.value.clone()).collect(),
        vips: vips.iter().map(|(vip, _)| vip.value.clone()).collect(),
        fragments: fragments.check(&root.key("fragments"), report),
        full_nat,
        access: access.check(&root.key("access"), report),
        icmp: icmp.check(&root.key("icmp"), report),
        new_flows: new_flows.check(&root.key("new_flows"), report),
        control: control.check(&root.key("control"), report),
        state: state.check(&root.key("state"), report),
        security: security.check(),
        tunnels: Tunnels { fleet, ..tunnel.check(&root.key("tunnel"), report) },
        asks,
        hash,
    };
    rules::check(&sections::Sections { config: &config, nics: &nics, vips: &vips }, report);
    config
}

/// Reads the section `[name]` as its raw type; all defaults if the section is absent.
fn table<T>(document: &mut DeTable<'_>, name: &'static str, report: &mut Report<'_>) -> T
where
    T: serde::de::DeserializeOwned + Default,
{
    let key_path = KeyPath::root().key(name);
    match document.remove(name) {
        None => T::default(),
        Some(section) if matches!(section.get_ref(), DeValue::Table(_)) => {
            report.read(section, &key_path)
        }
        Some(_) => {
            report.wrong_type(&key_path, "not one table", &format!("write [{name}], once"));
            T::default()
        }
    }
}

fn nics(list: Option<Value<'_>>, report: &mut Report<'_>) -> Vec<Located<Nic>> {
    let key_path = KeyPath::root().key("nic");
    let list = report.tables(list, &key_path);
    if list.is_empty() {
        report.missing(&key_path, "add at least one [[nic]]");
    }
    let mut nics = Vec::with_capacity(list.len());
    for (index, section) in list.into_iter().enumerate() {
        let key_path = key_path.index(index);
        let raw: nic::RawNic = report.read(section, &key_path);
        let nic = raw.check(&key_path, report);
        nics.extend(nic.map(|value| Located { value, key_path }));
    }
    nics
}

fn vips(
    list: Option<Value<'_>>,
    defaults: vip::Defaults<'_>,
    report: &mut Report<'_>,
) -> Vec<(Located<Vip>, Vec<Located<Backend>>)> {
    let key_path = KeyPath::root().key("vip");
    let list = report.tables(list, &key_path);
    if list.is_empty() {
        report.missing(&key_path, "add at least one [[vip]]");
    }
    let mut vips = Vec::with_capacity(list.len());
    for (index, section) in list.into_iter().enumerate() {
        let (vip, backends) = vip::check(section, &key_path.index(index), defaults, report);
        vips.extend(vip.map(|vip| (vip, backends)));
    }
    vips
}
