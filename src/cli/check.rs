//! `holdfast check`: every check that is possible without starting.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::table::grouped;
use crate::config::capacity::Capacity;
use crate::config::driver::NicFacts;
use crate::config::machine::{self, Finding, Level, Machine, Memory};
use crate::config::{self, Config};
use crate::control::{control_socket, survey};
use crate::format::{bytes, counted};
use crate::xdp::nic::{Nic, NicError};

/// Arguments of `holdfast check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Check the file alone, not whether this machine can run it (for CI and editors)
    #[arg(long)]
    pub offline: bool,
}

/// Checks the file and, unless offline, the machine and its network. Warnings and notes are
/// written to `out`.
///
/// # Errors
/// Every mistake in the file; if there is none, every setting that this machine cannot run.
pub fn check(args: &CheckArgs, out: &mut impl Write) -> Result<(), CliError> {
    let config = config::load(&args.config)?;
    let file = args.config.display();
    let machine = if args.offline { Machine::default() } else { look_at_machine(&config) };
    let mut findings = machine::hints(&config);
    if !args.offline {
        findings.extend(fit(&config, &machine));
    }
    let (errors, others): (Vec<&Finding>, Vec<_>) =
        findings.iter().partition(|finding| finding.level == Level::Error);
    for other in &others {
        writeln!(out, "{}: {file}: {other}", other.level.as_str())?;
    }
    if !errors.is_empty() {
        let messages = errors.iter().map(|finding| format!("{file}: {finding}")).collect();
        return Err(CliError::Machine(messages));
    }
    let warnings = others.iter().filter(|finding| finding.level == Level::Warning).count();
    let verdict = match (args.offline, warnings) {
        (true, _) => "good (the machine was not looked at)".to_owned(),
        (false, 0) => "good".to_owned(),
        (false, n) => format!("would run, with {}", counted(n, "warning")),
    };
    Ok(writeln!(out, "{file}: {verdict}: {}", summary(&config, &machine))?)
}

/// Reads the facts of this machine, with the NICs of the configuration.
pub(super) fn look_at_machine(config: &Config) -> Machine {
    let facts = |wanted: &config::Nic| {
        let nic = Nic::open(&wanted.interface)?;
        Ok(NicFacts::new(nic.driver(), nic.mtu(), wanted))
    };
    let nics: Result<_, NicError> = config.nics.iter().map(facts).collect();
    let socket_answers = control_socket::answers(&config.control.socket);
    // A missing NIC is reported by its name later.
    Machine { nics: nics.unwrap_or_default(), socket_answers, ..Machine::read() }
}

/// Returns the settings of a configuration that do not fit this machine and its network.
pub(super) fn fit(config: &Config, machine: &Machine) -> Vec<Finding> {
    let mut findings = machine::check(config, machine);
    match survey::survey(config, &machine.nics) {
        Ok(found) => findings.extend(found),
        Err(error) => {
            let what = format!("routes and addresses were not looked at: {error}");
            findings.push(Finding::new(Level::Note, "network", what, "run as root to see them"));
        }
    }
    findings
}

/// Summary such as `2 workers, 1 NIC, 1 VIP, 2 backends; 105 MB of flow tables (IPv4 bears 69,905
/// new TCP flows a second), 27 MB of packet memory`.
fn summary(config: &Config, machine: &Machine) -> String {
    let backends: usize = config.vips.iter().map(|vip| vip.backends.len()).sum();
    let counts = [
        (config.workers.cores.len(), "worker"),
        (config.nics.len(), "NIC"),
        (config.vips.len(), "VIP"),
        (backends, "backend"),
    ];
    let words = counts.map(|(n, noun)| counted(n, noun)).join(", ");
    let Memory { flows, packets, snat_table } = Memory::of(config, machine);
    let (flows, packets) = (bytes(flows), bytes(packets));
    let sources = match snat_table {
        0 => String::new(),
        some => format!(", {} of full-NAT sources", bytes(some)),
    };
    let bears = bears(config);
    format!("{words}; {flows} of flow tables{bears}, {packets} of packet memory{sources}")
}

/// Capacity such as ` (IPv4 bears 69,905 new TCP or 69,905 new UDP flows a second; IPv6 bears
/// ...)`; empty where no VIP has pins.
fn bears(config: &Config) -> String {
    let room = config.workers.flows.saturating_mul(config.workers.cores.len());
    let capacities = Capacity::of(config.vips.iter(), u64::try_from(room).unwrap_or(u64::MAX));
    let of = |capacity: &Capacity| {
        let kinds = [(capacity.tcp_per_second, "new TCP"), (capacity.udp_per_second, "new UDP")];
        let kinds: Vec<_> = kinds
            .iter()
            .filter_map(|(rate, kind)| Some(format!("{} {kind}", grouped((*rate)?))))
            .collect();
        let family = if capacity.family.is_v4() { "IPv4" } else { "IPv6" };
        format!("{family} bears {} flows a second", kinds.join(" or "))
    };
    match capacities.iter().map(of).collect::<Vec<_>>().join("; ").as_str() {
        "" => String::new(),
        all => format!(" ({all})"),
    }
}
