//! Checks a configuration against the machine that is to run it, without starting.
//!
//! [`Machine`] holds the facts, [`Machine::read`] reads them from the kernel's files, and [`check`]
//! compares. The comparison is pure, so that tests can construct machines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fmt, fs, io};

use rustix::process::{Resource, getrlimit};

use super::checked::{Announce, Config, Health, Nic, Vip};
use super::driver::{self, Misfit, NicFacts};
use crate::flow::snat::BYTES_PER_BINDING;
use crate::flow::splices::BYTES_PER_SPLICE;
use crate::format::{bytes, counted};
use crate::forwarding::Ask;
use crate::net::NicIndex;
use crate::privileges::{NEEDED, Needed};

/// Severity of a [`Finding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// `run` would fail.
    Error,
    /// `run` would start, but something in the file would not work.
    Warning,
    /// The setting is probably intended.
    Note,
}

impl Level {
    /// Returns the level as printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A mismatch between configuration and machine, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Severity.
    pub level: Level,
    /// Subject: a key of the configuration, or the machine.
    pub key: String,
    /// The mismatch.
    pub what: String,
    /// Remedy.
    pub fix: String,
}

impl Finding {
    /// Creates a finding.
    pub fn new(level: Level, key: &str, what: String, fix: impl Into<String>) -> Self {
        Self { level, key: key.to_owned(), what, fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.what, self.fix)
    }
}

/// Input of [`check`]. `None`: the kernel did not report the fact, and no finding depends on it.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Cores that are online.
    pub cores_online: Option<BTreeSet<usize>>,
    /// Cores in this process's affinity mask.
    pub cores_allowed: Option<BTreeSet<usize>>,
    /// Interfaces of this network namespace, with their number of RX queues.
    pub interfaces: Option<BTreeMap<String, Option<u32>>>,
    /// Effective capabilities, as in `CapEff` of `/proc/self/status`.
    pub capabilities: Option<u64>,
    /// Whether the kernel supports AF_XDP.
    pub af_xdp: Option<bool>,
    /// Whether a running holdfast replies on the control socket.
    pub socket_answers: bool,
    /// Bytes available to processes without swapping (`MemAvailable` of /proc/meminfo).
    pub memory_available: Option<u64>,
    /// Whether shared memory can use huge pages, from the pool or transparent ones.
    pub huge_pages: Option<bool>,
    /// Largest number of open files of this process, its hard limit.
    pub open_files: Option<u64>,
    /// Bytes of memory that this process may lock, its hard limit; `None` also without a limit.
    pub lockable: Option<u64>,
    /// NICs in the configuration's order; empty if any of them could not be inspected.
    pub nics: Vec<NicFacts>,
}

/// Descriptors for connections of the control API.
pub const API_FILES: usize = 80;
/// Descriptors for health checks: most that run at a time.
pub const CHECK_FILES: usize = 512;
/// Descriptors for hellos to backends: most that wait for an answer at a time.
pub const HELLO_FILES: usize = 32;
/// Descriptors of the process itself: standard streams, event loops, netlink, locks, hooks, and some
/// in reserve.
const OWN_FILES: usize = 64;
/// Descriptors of a NIC: its XDP program and maps, and sockets for its settings.
const NIC_FILES: usize = 24;
/// Descriptors of a queue: the socket, and copies for its statistics and for a later process.
const QUEUE_FILES: usize = 3;
/// Descriptors of a worker: its memory, and those of an event loop.
const WORKER_FILES: usize = 8;

/// Bytes per IPv4 flow in a flow table, rounded up ([`crate::flow::table`]).
const FLOW_BYTES_V4: u64 = 50;
const FLOW_BYTES_V6: u64 = 82;
/// CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, which Linux 5.8 split off from it.
const CAP_SYS_ADMIN: u8 = 21;

impl Machine {
    /// Reads the facts of this machine, except those of its NICs and of the control socket, which
    /// the caller adds. Needs no privileges.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cores_online: read_list("/sys/devices/system/cpu/online"),
            cores_allowed: status_value(&status, "Cpus_allowed_list").and_then(parse_list),
            interfaces: interfaces(),
            capabilities: status_value(&status, "CapEff")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok()),
            af_xdp: af_xdp(),
            socket_answers: false,
            memory_available: meminfo("MemAvailable").and_then(|kb| kb.checked_mul(1024)),
            huge_pages: huge_pages(),
            open_files: getrlimit(Resource::Nofile).maximum,
            lockable: getrlimit(Resource::Memlock).maximum,
            nics: Vec::new(),
        }
    }

    /// Returns the number of queues of a NIC that are served: those of the configuration, else all
    /// of the NIC's; if both are unknown, one per worker, the minimum.
    fn served_queues(&self, nic: &Nic, workers: usize) -> usize {
        let there = self.interfaces.as_ref().and_then(|all| *all.get(&nic.interface)?);
        let there = there.and_then(|queues| usize::try_from(queues).ok());
        nic.queues.as_ref().map(Vec::len).or(there).unwrap_or(workers)
    }
}

/// Returns the value of `key` in `/proc/self/status`.
fn status_value<'s>(status: &'s str, key: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn read_list(path: &str) -> Option<BTreeSet<usize>> {
    parse_list(fs::read_to_string(path).ok()?.trim())
}

/// Parses the kernel's list format: `0-3,8`.
fn parse_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut numbers = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

/// Interface names from /proc/net/dev, which shows our network namespace even if /sys does not.
fn interfaces() -> Option<BTreeMap<String, Option<u32>>> {
    let text = fs::read_to_string("/proc/self/net/dev").ok()?;
    let names = text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    Some(names.map(|name| (name.to_owned(), rx_queues(name).ok())).collect())
}

fn rx_queues(interface: &str) -> io::Result<u32> {
    let mut count = 0;
    for entry in fs::read_dir(Path::new("/sys/class/net").join(interface).join("queues"))? {
        count += u32::from(entry?.file_name().to_string_lossy().starts_with("rx-"));
    }
    Ok(count)
}

/// Whether the kernel registered the protocol `XDP` (net/xdp/xsk.c, `xsk_proto`).
fn af_xdp() -> Option<bool> {
    let text = fs::read_to_string("/proc/self/net/protocols").ok()?;
    Some(text.lines().any(|line| line.split_whitespace().next() == Some("XDP")))
}

/// Returns a value of /proc/meminfo, in kB or pages.
fn meminfo(key: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}

/// Whether shared memory can use huge pages. The active value of `shmem_enabled` is in brackets
/// (Documentation/admin-guide/mm/transhuge.rst).
fn huge_pages() -> Option<bool> {
    if meminfo("HugePages_Total").is_some_and(|pages| pages > 0) {
        return Some(true);
    }
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").ok()?;
    Some(!text.contains("[never]") && !text.contains("[deny]"))
}

/// Memory of a configuration in bytes, all workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Flow tables, with the splices of VIPs with `syn_proxy`.
    pub flows: u64,
    /// Packet memory (UMEM).
    pub packets: u64,
    /// SNAT table; 0 without SNAT addresses.
    pub snat_table: u64,
}

impl Memory {
    /// Returns the memory that `config` needs on `machine`.
    pub fn of(config: &Config, machine: &Machine) -> Self {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let workers = config.workers.cores.len();
        let (each, workers_count) = (&config.workers, count(workers));
        let families = config.families();
        let of = |wanted, bytes| if wanted { bytes } else { 0 };
        let spliced = config.spliced();
        let splice_bytes = count(BYTES_PER_SPLICE);
        let flow_bytes = of(families.v4, FLOW_BYTES_V4)
            + of(families.v6, FLOW_BYTES_V6)
            + of(spliced.v4, splice_bytes)
            + of(spliced.v6, splice_bytes);
        let frames = each.frames.map_or_else(
            || {
                let rings = config.nics.iter().map(|nic| {
                    let queues = count(machine.served_queues(nic, workers));
                    queues.saturating_mul(u64::from(nic.ring) * 3)
                });
                let more = count(each.batch.saturating_add(config.fragments.parked));
                rings.fold(workers_count.saturating_mul(more), u64::saturating_add)
            },
            |frames| workers_count.saturating_mul(frames.into()),
        );
        Self {
            flows: workers_count.saturating_mul(count(each.flows)).saturating_mul(flow_bytes),
            packets: frames.saturating_mul(config.frame_size(&machine.nics).into()),
            snat_table: count(config.full_nat.numbered().len())
                .saturating_mul(count(BYTES_PER_BINDING)),
        }
    }
}

/// Returns notes about settings that are valid, but may be unintended; independent of the machine.
pub fn hints(config: &Config) -> Vec<Finding> {
    let idle = |vip: &&Vip| vip.backends.iter().all(|backend| backend.weight == 0);
    let unweighted = config.vips.iter().filter(idle).map(|vip| {
        let what = format!("VIP {}: every backend has weight 0: it takes no new flows", vip.name);
        Finding::new(Level::Note, "vip.backend.weight", what, "give one of them a weight")
    });
    let routed = config.vips.iter().filter(|vip| !vip.address.is_single()).map(|vip| {
        let what = format!(
            "VIP {}: {} is a prefix: no box answers ARP or ND for it",
            vip.name, vip.address
        );
        Finding::new(Level::Note, "vip.address", what, "route it to this box")
    });
    unweighted.chain(routed).collect()
}

/// Returns every mismatch.
pub fn check(config: &Config, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    privileges(config, machine, &mut findings);
    cores(config, machine, &mut findings);
    for (port, nic) in config.nics.iter().enumerate() {
        interface(config, port, nic, machine, &mut findings);
    }
    drivers(config, machine, &mut findings);
    announcements(config, machine, &mut findings);
    if machine.socket_answers {
        let what = format!("a holdfast runs and answers at {}", config.control.socket.display());
        let fix = "apply this file with `holdfast reload`, or stop it before you run another";
        findings.push(Finding::new(Level::Note, "control.socket", what, fix));
    }
    memory(config, machine, &mut findings);
    descriptors(config, machine, &mut findings);
    if machine.huge_pages == Some(false) {
        let what = "flow tables get small pages: look-ups among many flows take longer";
        let fix = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, or reserve a \
                   pool (vm.nr_hugepages), before the start";
        findings.push(Finding::new(Level::Note, "workers.flows", what.to_owned(), fix));
    }
    findings
}

fn memory(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    let Memory { flows, packets, snat_table } = Memory::of(config, machine);
    let needed = flows.saturating_add(packets).saturating_add(snat_table);
    // A running holdfast holds such memory already, and releases it before this one starts.
    let Some(available) = machine.memory_available.filter(|_| !machine.socket_answers) else {
        return;
    };
    if needed > available {
        let (sources, fewer) = match snat_table {
            0 => (String::new(), ""),
            some => (format!(", full-NAT sources {}", bytes(some)), ", fewer [full_nat] sources"),
        };
        let what = format!(
            "flow tables take {}, packet memory {}{sources}, and {} are available",
            bytes(flows),
            bytes(packets),
            bytes(available)
        );
        let fix = format!("lower [workers] flows, use smaller rings{fewer}, or fewer workers");
        findings.push(fatal("workers.flows", what, fix));
    }
}

/// Returns the number of files that `config` needs to have open at a time, at most.
pub fn open_files(config: &Config, machine: &Machine) -> u64 {
    let workers = config.workers.cores.len();
    let queues = config.nics.iter().map(|nic| machine.served_queues(nic, workers)).sum::<usize>();
    let checked = config.vips.iter().filter(|vip| vip.health != Health::None);
    let checks = checked.map(|vip| vip.backends.len()).sum::<usize>().min(CHECK_FILES);
    let asks = config.vips.iter().any(|vip| vip.policy.ask != Ask::Never);
    let files = OWN_FILES
        + API_FILES
        + checks
        + if asks { HELLO_FILES } else { 0 }
        + config.nics.len() * NIC_FILES
        + queues * QUEUE_FILES
        + workers * WORKER_FILES;
    u64::try_from(files).unwrap_or(u64::MAX)
}

fn descriptors(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    let needed = open_files(config, machine);
    if let Some(limit) = machine.open_files.filter(|&limit| limit < needed) {
        let what = format!("holdfast may have {needed} files open, and the limit is {limit}");
        let fix =
            format!("write LimitNOFILE={needed} into the service, or call ulimit -n {needed}");
        findings.push(fatal("limits", what, fix));
    }
}

fn fatal(key: &str, what: String, fix: impl Into<String>) -> Finding {
    Finding::new(Level::Error, key, what, fix)
}

fn privileges(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    let effective = machine.capabilities.unwrap_or(u64::MAX);
    let has = |number: u8| effective & (1 << number) != 0;
    for Needed { number, name, purpose } in NEEDED {
        let locks = name == "CAP_IPC_LOCK";
        let is_there = has(number) || (matches!(number, 38 | 39) && has(CAP_SYS_ADMIN));
        if !locks && !is_there {
            let what = format!("{name} is missing: it is needed to {purpose}");
            let fix = format!(
                "run as root, or add it (systemd: AmbientCapabilities={name}); --offline checks \
                 the file alone"
            );
            findings.push(fatal("privileges", what, fix));
        }
        let packets = Memory::of(config, machine).packets;
        if locks && !has(number) && machine.lockable.is_some_and(|limit| limit < packets) {
            let limit = bytes(machine.lockable.unwrap_or_default());
            let packets = bytes(packets);
            let what = format!(
                "{name} is missing, and RLIMIT_MEMLOCK is {limit}: packet memory of {packets} \
                 is locked"
            );
            let fix = format!(
                "write LimitMEMLOCK=infinity into the service, or add the capability (systemd: \
                 AmbientCapabilities={name})"
            );
            findings.push(fatal("privileges", what, fix));
        }
    }
    if machine.af_xdp == Some(false) {
        let what = "this kernel has no AF_XDP".to_owned();
        let fix = "boot a kernel of 6.1 or newer with CONFIG_XDP_SOCKETS=y, such as Debian's";
        findings.push(fatal("kernel", what, fix));
    }
}

fn cores(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    for core in &config.workers.cores {
        let lacks = |set: &Option<BTreeSet<usize>>| set.as_ref().is_some_and(|s| !s.contains(core));
        if lacks(&machine.cores_online) {
            let online = machine.cores_online.iter().flatten().copied();
            let what = format!("core {core} is not there or offline");
            findings.push(fatal("workers.cores", what, format!("use some of {}", list(online))));
        } else if lacks(&machine.cores_allowed) {
            let allowed = machine.cores_allowed.iter().flatten().copied();
            let what = format!("this process may not run on core {core}");
            let fix =
                format!("use some of {}, or widen its cpuset (taskset, cgroup)", list(allowed));
            findings.push(fatal("workers.cores", what, fix));
        }
    }
}

fn list(items: impl IntoIterator<Item: ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn interface(
    config: &Config,
    port: usize,
    nic: &Nic,
    machine: &Machine,
    findings: &mut Vec<Finding>,
) {
    let name = &nic.interface;
    let Some(interfaces) = &machine.interfaces else { return };
    let Some(queues) = interfaces.get(name) else {
        let fix = format!("there are: {}", list(interfaces.keys()));
        findings.push(fatal("nic.interface", format!("there is no interface {name}"), fix));
        return;
    };
    let Some(queues) = *queues else { return };
    let workers = u32::try_from(config.workers.cores.len()).unwrap_or(u32::MAX);
    if queues < workers && nic.queues.is_none() {
        let what = format!(
            "too few queues: {name} has {queues}, and there are {}",
            counted(workers, "worker")
        );
        let fix =
            format!("`ethtool -L {name} combined {workers}`, or name fewer cores in [workers]");
        findings.push(fatal("nic.interface", what, fix));
    }
    for queue in nic.queues.iter().flatten().filter(|&&queue| queue >= queues) {
        let what =
            format!("{name} has no queue {queue}: its queues are 0 to {}", queues.max(1) - 1);
        let fix = format!("`ethtool -L {name} combined {}`, or list others", queue + 1);
        findings.push(fatal("nic.queues", what, fix));
    }
    frames(config, port, queues, machine, findings);
}

/// Checks `frames` against the rings of a worker, whose number depends on the machine when `queues`
/// is left out.
fn frames(
    config: &Config,
    port: usize,
    queues: u32,
    machine: &Machine,
    findings: &mut Vec<Finding>,
) {
    // Once, for the last NIC, when all are known to exist.
    let (Some(frames), true) = (config.workers.frames, port + 1 == config.nics.len()) else {
        return;
    };
    let workers = config.workers.cores.len().max(1);
    let served = |nic: &Nic| {
        let there = machine.interfaces.as_ref().and_then(|all| *all.get(&nic.interface)?);
        let there = usize::try_from(there.unwrap_or(queues)).unwrap_or(usize::MAX);
        nic.queues.as_ref().map_or(there, Vec::len).div_ceil(workers)
    };
    let needed = config.frames_needed(
        config
            .nics
            .iter()
            .zip(0u8..)
            .flat_map(|(nic, port)| std::iter::repeat_n(NicIndex(port), served(nic))),
    );
    if frames < needed {
        let what = format!("{frames} frames are too few for the queues that a worker serves");
        let fix = format!("use at least {needed}, or smaller rings, or leave the key out");
        findings.push(fatal("workers.frames", what, fix));
    }
}

/// Reports interfaces that receive nothing, and zero copy that would truncate packets.
fn drivers(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    let frame_size = config.frame_size(&machine.nics);
    for (nic, facts) in config.nics.iter().zip(&machine.nics) {
        let mut add = |level, key, Misfit { what, fix }| {
            findings.push(Finding::new(level, key, what, fix));
        };
        if let Err(misfit) = driver::receives(nic, &facts.driver) {
            add(Level::Error, "nic.interface", misfit);
            continue;
        }
        if let Some(misfit) = driver::upper(nic, &facts.driver) {
            add(Level::Warning, "nic.interface", misfit);
        }
        if let (_, Some(reason)) = driver::attach_mode(nic, &facts.driver) {
            let fix = "set xdp = \"generic\" if that is meant".to_owned();
            let what = format!("{}: {reason}", nic.interface);
            add(Level::Note, "nic.xdp", Misfit { what, fix });
        }
        match driver::binding(nic, facts, frame_size) {
            Err(misfit) => add(Level::Error, "nic.mode", misfit),
            Ok(driver::Binding { lost: Some(misfit), .. }) => {
                add(Level::Warning, "workers.frame_size", misfit);
            }
            Ok(_) => {}
        }
    }
}

fn announcements(config: &Config, machine: &Machine, findings: &mut Vec<Finding>) {
    let Some(interfaces) = &machine.interfaces else { return };
    let mut reported: BTreeSet<&str> =
        config.nics.iter().map(|nic| nic.interface.as_str()).collect();
    for vip in &config.vips {
        let Announce::Interface(name) = &vip.announce else { continue };
        if !interfaces.contains_key(name) && reported.insert(name) {
            let what = format!("VIP {}: there is no interface {name}", vip.name);
            let fix = format!("there are: {}; or use announce = \"none\"", list(interfaces.keys()));
            findings.push(fatal("vip.announce", what, fix));
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        workers = { cores = [0, 1], frames = 6208 }
        nic = [{ interface = "eth1" }]
        vip = [{ name = "v", address = "192.0.2.1", ports = [80], forward = "nat",
                 announce = "lo", backend = [{ name = "a", address = "10.0.0.1" }] }]
    "#;

    /// A machine that fits [`TEXT`].
    fn machine() -> Machine {
        let interfaces = [("lo", 1), ("eth0", 1), ("eth1", 2)];
        Machine {
            cores_online: Some((0..4).collect()),
            cores_allowed: Some((0..3).collect()),
            interfaces: Some(interfaces.map(|(name, n)| (name.to_owned(), Some(n))).into()),
            capabilities: Some(u64::MAX),
            af_xdp: Some(true),
            socket_answers: false,
            memory_available: Some(200_000_000),
            huge_pages: Some(true),
            open_files: Some(1_048_576),
            lockable: Some(8 << 20),
            nics: Vec::new(),
        }
    }

    fn findings(from: &str, to: &str, machine: &Machine) -> Vec<String> {
        let text = TEXT.replacen(from, to, 1);
        let config = crate::config::parse(&text, "f").map_err(|errors| errors.to_string()).unwrap();
        check(&config, machine).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn configurations_that_do_not_fit_the_machine() {
        for (name, from, to, expected) in [
            ("fits", "", "", ""),
            (
                "no such core",
                "[0, 1]",
                "[0, 9]",
                "workers.cores: core 9 is not there or offline; use some of 0, 1, 2, 3",
            ),
            (
                "core not allowed",
                "[0, 1]",
                "[0, 3]",
                "workers.cores: this process may not run on core 3; use some of 0, 1, 2, or widen \
                 its cpuset (taskset, cgroup)",
            ),
            (
                "no such NIC",
                "eth1",
                "eth7",
                "nic.interface: there is no interface eth7; there are: eth0, eth1, lo",
            ),
            (
                "too few queues",
                "[0, 1]",
                "[0, 1, 2]",
                "nic.interface: too few queues: eth1 has 2, and there are 3 workers; \
                 `ethtool -L eth1 combined 3`, or name fewer cores in [workers]",
            ),
            (
                "no such queue",
                "\"eth1\"",
                "\"eth1\", queues = [0, 2]",
                "nic.queues: eth1 has no queue 2: its queues are 0 to 1; \
                 `ethtool -L eth1 combined 3`, or list others",
            ),
            (
                "frames for two queues of one worker",
                "[0, 1]",
                "[0]",
                "workers.frames: 6208 frames are too few for the queues that a worker serves; use \
                 at least 12352, or smaller rings, or leave the key out",
            ),
            (
                "announced nowhere",
                "\"lo\"",
                "\"dummy0\"",
                "vip.announce: VIP v: there is no interface dummy0; there are: eth0, eth1, lo; or \
                 use announce = \"none\"",
            ),
            (
                "more memory than there is",
                "frames = 6208",
                "flows = 2097152",
                "workers.flows: flow tables take 210 MB, packet memory 27 MB, and 200 MB are \
                 available; lower [workers] flows, use smaller rings, or fewer workers",
            ),
        ] {
            let expected: Vec<_> = [expected].into_iter().filter(|e| !e.is_empty()).collect();
            assert_eq!(findings(from, to, &machine()), expected, "{name}");
        }
    }

    #[test]
    fn machines_that_run_nothing() {
        let without = |number: u32| Some(!(1u64 << number));
        for (name, machine, expected) in [
            (
                "an ordinary user",
                Machine { capabilities: Some(0), ..machine() },
                &[
                    "CAP_NET_ADMIN is missing",
                    "CAP_NET_RAW is missing",
                    "CAP_PERFMON is missing: it is needed to load the XDP program; run as root, or \
                     add it (systemd: AmbientCapabilities=CAP_PERFMON)",
                    "CAP_BPF is missing",
                    "CAP_IPC_LOCK is missing, and RLIMIT_MEMLOCK is 9 MB: packet memory of 26 MB \
                     is locked; write LimitMEMLOCK=infinity",
                ][..],
            ),
            (
                "memory that may be locked",
                Machine { capabilities: without(14), lockable: Some(26 << 20), ..machine() },
                &[],
            ),
            (
                "no limit of locked memory",
                Machine { capabilities: without(14), lockable: None, ..machine() },
                &[],
            ),
            ("CAP_SYS_ADMIN for CAP_BPF", Machine { capabilities: without(39), ..machine() }, &[]),
            ("and for CAP_PERFMON", Machine { capabilities: without(38), ..machine() }, &[]),
            (
                "no AF_XDP",
                Machine { af_xdp: Some(false), ..machine() },
                &["kernel: this kernel has no AF_XDP; boot a kernel of 6.1 or newer"],
            ),
            (
                "few open files",
                Machine { open_files: Some(100), ..machine() },
                &[
                    "limits: holdfast may have 191 files open, and the limit is 100; write LimitNOFILE=191",
                ],
            ),
            ("nothing is known", Machine::default(), &[]),
        ] {
            let found = findings("", "", &machine);
            assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
            for (found, part) in found.iter().zip(expected) {
                assert!(found.contains(part), "{name}: {found}");
            }
        }
    }

    #[test]
    fn drivers_that_lose_packets_are_told_with_the_cure() {
        let small = "[0, 1], frame_size = 2048";
        for (name, driver, cores, nic, expected) in [
            ("zero copy", "igb", "[0, 1]", "\"eth1\"", None),
            (
                "frames that cut off",
                "igb",
                small,
                "\"eth1\"",
                Some("warning workers.frame_size: eth1: driver igb"),
            ),
            (
                "insisting on them",
                "igb",
                small,
                "\"eth1\", mode = \"zero_copy\"",
                Some("error nic.mode: eth1: driver igb"),
            ),
            ("a VRF", "vrf", "[0, 1]", "\"eth1\"", Some("error nic.interface: eth1 is a VRF")),
            (
                "a bond",
                "bonding",
                "[0, 1]",
                "\"eth1\"",
                Some("note nic.xdp: eth1: native XDP on a bond"),
            ),
            (
                "a native bond",
                "bonding",
                "[0, 1]",
                "\"eth1\", xdp = \"native\"",
                Some("error nic.interface: eth1 is a bond"),
            ),
            (
                "a macvlan",
                "macvlan",
                "[0, 1]",
                "\"eth1\"",
                Some("warning nic.interface: eth1 is a macvlan"),
            ),
        ] {
            let text = TEXT.replacen(", frames = 6208", "", 1).replacen("[0, 1]", cores, 1);
            let text = text.replacen("\"eth1\"", nic, 1);
            let config = crate::config::parse(&text, "f").map_err(|e| e.to_string()).unwrap();
            let nics = vec![NicFacts::new(driver, 1500, config.nics.first().unwrap())];
            let machine = Machine { nics, memory_available: None, ..machine() };
            let found = check(&config, &machine);
            let found: Vec<_> = found.iter().map(|f| format!("{} {f}", f.level.as_str())).collect();
            match expected {
                Some(start) => {
                    assert!(found.iter().any(|found| found.starts_with(start)), "{name}: {found:?}")
                }
                None => assert_eq!(found, [""; 0], "{name}"),
            }
        }
    }

    #[test]
    fn one_that_runs_already_is_no_error() {
        let config = crate::config::parse(TEXT, "f").unwrap();
        let found = check(&config, &Machine { socket_answers: true, ..machine() });
        assert_eq!(found.iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Note]);
    }

    #[test]
    fn a_vip_that_takes_nothing_is_noted() {
        let text = TEXT.replace("address = \"10.0.0.1\"", "address = \"10.0.0.1\", weight = 0");
        let reported = |text: &str| {
            let hints = hints(&crate::config::parse(text, "f").unwrap());
            hints.iter().map(Finding::to_string).collect::<Vec<_>>()
        };
        let expected = "vip.backend.weight: VIP v: every backend has weight 0: it takes no new \
                        flows; give one of them a weight";
        assert_eq!(reported(&text), [expected]);
        assert_eq!(reported(TEXT), [""; 0]);
    }

    #[test]
    fn small_pages_are_noted() {
        let small = Machine { huge_pages: Some(false), ..machine() };
        let small = Machine { memory_available: None, ..small };
        let found = findings("", "", &small).join("; ");
        assert!(found.contains("small pages") && found.contains("shmem_enabled"), "{found}");
    }

    #[test]
    fn memory_is_that_of_all_workers() {
        let config = crate::config::parse(TEXT, "f").unwrap();
        let flows = 2 * 1_048_576 * 50;
        let expected = Memory { flows, packets: 2 * 6208 * 2048, snat_table: 0 };
        assert_eq!(Memory::of(&config, &machine()), expected);
        let text = TEXT.replace("frames = 6208", "frame_size = 4096");
        let config = crate::config::parse(&text, "f").unwrap();
        let expected = Memory { flows, packets: 2 * (6208 + 256) * 4096, snat_table: 0 };
        assert_eq!(Memory::of(&config, &machine()), expected, "a queue of each worker");
        assert_eq!(
            Memory::of(&config, &Machine::default()),
            expected,
            "where the machine is not known"
        );
        let mut more = machine();
        more.interfaces = Some([("eth1".to_owned(), Some(4))].into());
        let expected =
            Memory { flows, packets: (2 * (64 + 256) + 4 * 3 * 2048) * 4096, snat_table: 0 };
        assert_eq!(Memory::of(&config, &more), expected);
    }

    #[test]
    fn the_kernels_lists() {
        for (text, expected) in
            [("0", Some(vec![0])), ("0-2,5", Some(vec![0, 1, 2, 5])), ("", None), ("a-b", None)]
        {
            assert_eq!(parse_list(text), expected.map(BTreeSet::from_iter), "{text:?}");
        }
    }

    #[test]
    fn this_machine_answers() {
        let machine = Machine::read();
        assert!(machine.cores_allowed.is_some_and(|cores| !cores.is_empty()));
        assert!(machine.interfaces.is_some_and(|all| all.contains_key("lo")));
        assert!(machine.capabilities.is_some() && machine.af_xdp.is_some());
        assert!(machine.memory_available.is_some_and(|bytes| bytes > 0));
    }
}
