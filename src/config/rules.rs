//! Rules between sections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::checked::{Backend, Config, Vip};
use super::key_path::{KeyPath, Located};
use super::report::Report;
use super::sections::Sections;
use super::{FullNat, access, fleet, pin, share, steered, tunnel};
use crate::format::counted;
use crate::forwarding::{
    MAX_BACKENDS, MAX_PREFIX_LENGTHS, MAX_RETURN_PATHS, MAX_VIPS, Ports, SchedulerKind,
};
use crate::net::{Forward, MAX_NICS, Network, NicIndex, PortRange, Protocol};

/// Minimum entries of a lookup table per backend: with fewer, shares are off by a tenth or more.
const MIN_ENTRIES_PER_BACKEND: usize = 10;
/// Maximum entries of all lookup tables together: at 2 bytes each, 1 GiB.
const MAX_TABLE_ENTRIES: u64 = 1 << 29;
/// Maximum points of a VIP's ring: at 10 bytes each, 40 MiB.
const MAX_RING_POINTS: u64 = 1 << 22;

/// Reports every broken rule. Cost: linear in VIPs and backends, times a map look-up.
pub(super) fn check(sections: &Sections<'_>, report: &mut Report<'_>) {
    limits(sections.config, report);
    table_sizes(sections, report);
    ring_points(sections, report);
    nics(sections, report);
    frames(sections.config, report);
    vip_names(sections, report);
    listeners(sections, report);
    let owners = Owners::of(sections);
    for (vip, backends) in sections.vips {
        backend_names(backends, report);
        backend_targets(vip, backends, report);
        for backend in backends {
            backend_address(vip, backend, &owners, report);
            backend_port(vip, backend, report);
            backend_limit(sections.config, vip, backend, report);
        }
    }
    return_paths(sections, report);
    pin::return_paths(sections, report);
    full_nat(sections, &owners, report);
    tunnel::rules(sections, report);
    fleet::rules(sections, report);
    share::rules(sections, report);
    steered::rules(sections, report);
    access::rules(sections, report);
}

/// Checks that each worker has a part of a backend's limit, and that flows are counted.
fn backend_limit(
    config: &Config,
    vip: &Located<Vip>,
    backend: &Located<Backend>,
    report: &mut Report<'_>,
) {
    let Some(max) = backend.value.max_connections else { return };
    let key_path = backend.key_path.key("max_connections");
    let workers = config.workers.cores.len();
    if !vip.value.policy.pin {
        let what = "with pin = false no flows are counted";
        report.error(&key_path, what, "remove the key, or pin = false of the VIP");
    } else if usize::try_from(max).is_ok_and(|max| max < workers) {
        let what = format!("{max} for {}, which share it", counted(workers, "worker"));
        report.error(&key_path, what, &format!("use {workers} or more"));
    }
}

fn limits(config: &Config, report: &mut Report<'_>) {
    let backends: usize = config.vips.iter().map(|vip| vip.backends.len()).sum();
    let vips_at = KeyPath::root().key("vip");
    for (key_path, count, most, noun) in [
        (KeyPath::root().key("nic"), config.nics.len(), MAX_NICS, "NICs"),
        (vips_at.clone(), config.vips.len(), MAX_VIPS, "VIPs"),
        (vips_at, backends, MAX_BACKENDS, "backends, over all VIPs"),
    ] {
        if count > most {
            report.error(
                &key_path,
                format!("{count} {noun}"),
                &format!("at most {most} are possible"),
            );
        }
    }
}

/// Checks that every table is large enough for its backends, and that the total is within bounds.
fn table_sizes(sections: &Sections<'_>, report: &mut Report<'_>) {
    let common = sections.config.hash.table_size;
    let common_at = KeyPath::root().key("hash").key("table_size");
    let (mut entries, mut most) = (0, 0);
    for (Located { value: vip, key_path }, _) in sections.vips {
        let Some(size) = vip.policy.scheduler.table_size() else { continue };
        entries += u64::from(size);
        if size == common {
            most = most.max(vip.backends.len());
        } else {
            let key_path = key_path.key("scheduler").key("table_size");
            large_enough(&key_path, size, vip.backends.len(), report);
        }
    }
    large_enough(&common_at, common, most, report);
    if entries > MAX_TABLE_ENTRIES {
        let what = format!("{entries} entries in the lookup tables of all VIPs");
        let fix = format!("use a smaller prime: {MAX_TABLE_ENTRIES} are possible");
        report.error(&common_at, what, &fix);
    }
}

fn large_enough(key_path: &KeyPath, size: u32, backends: usize, report: &mut Report<'_>) {
    let wanted = backends.saturating_mul(MIN_ENTRIES_PER_BACKEND);
    if usize::try_from(size).is_ok_and(|size| size < wanted) {
        let backends = counted(backends, "backend");
        let what = format!("{size} entries are too few for a VIP with {backends}");
        report.error(key_path, what, &format!("use a prime of at least {wanted}"));
    }
}

fn ring_points(sections: &Sections<'_>, report: &mut Report<'_>) {
    for (Located { value: vip, key_path }, _) in sections.vips {
        let SchedulerKind::Ring { virtual_nodes } = vip.policy.scheduler else { continue };
        let weights = vip.backends.iter().map(|backend| u64::from(backend.weight)).sum::<u64>();
        let points = weights.saturating_mul(virtual_nodes.into());
        if points > MAX_RING_POINTS {
            let what = format!(
                "{virtual_nodes} for each of {weights} units of weight make {points} points"
            );
            let fix = match MAX_RING_POINTS / weights.max(1) {
                0 => "use smaller weights".to_owned(),
                most => format!("use {most} at most, or smaller weights"),
            };
            report.error(&key_path.key("scheduler").key("virtual_nodes"), what, &fix);
        }
    }
}

fn nics(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    let workers = sections.config.workers.cores.len();
    for Located { value: nic, key_path } in sections.nics {
        if let Some(first) = seen.insert(&nic.interface, key_path) {
            let what = format!("\"{}\" again, as in line {}", nic.interface, report.line(first));
            report.error(&key_path.key("interface"), what, "write one [[nic]] per interface");
        }
        let too_few = |queues: &&Vec<u32>| (1..workers).contains(&queues.len());
        if let Some(queues) = nic.queues.as_ref().filter(too_few) {
            let what =
                format!("{} for {}", counted(queues.len(), "queue"), counted(workers, "worker"));
            let fix = "list a queue for each worker, or name fewer cores in [workers]";
            report.error(&key_path.key("queues"), what, fix);
        }
    }
}

/// Checks that `frames` fills the rings of the worker that serves the most queues. Where `queues`
/// is absent, one queue per worker is the minimum.
fn frames(config: &Config, report: &mut Report<'_>) {
    let Some(frames) = config.workers.frames else { return };
    let workers = config.workers.cores.len().max(1);
    let needed = config.frames_needed(config.nics.iter().enumerate().flat_map(|(port, nic)| {
        let queues = nic.queues.as_ref().map_or(1, |queues| queues.len().div_ceil(workers));
        u8::try_from(port)
            .into_iter()
            .flat_map(move |port| (0..queues).map(move |_| NicIndex(port)))
    }));
    if frames < needed {
        let what = format!("{frames} frames are too few for the rings of a worker");
        let fix = format!("use at least {needed}, or smaller rings, or leave the key out");
        report.error(&KeyPath::root().key("workers").key("frames"), what, &fix);
    }
}

fn vip_names(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    let named = sections.vips.iter().filter(|(vip, _)| !vip.value.name.is_empty());
    for (Located { value: vip, key_path }, _) in named {
        if let Some(first) = seen.insert(&vip.name, key_path) {
            let what = format!("\"{}\" again, as in line {}", vip.name, report.line(first));
            report.error(&key_path.key("name"), what, "give every VIP a name of its own");
        }
    }
}

/// Listeners on the ports of one network and protocol. No two of one kind overlap.
#[derive(Default)]
struct Claims<'s> {
    /// Port ranges, then single ports, each keyed by the last port.
    ranges: [BTreeMap<u16, (PortRange, &'s Located<Vip>)>; 2],
    all: Option<&'s Located<Vip>>,
}

impl<'s> Claims<'s> {
    /// Records a listener. If it overlaps one of the same kind, returns the shared ports and the
    /// other VIP.
    fn add(
        &mut self,
        ports: PortRange,
        vip: &'s Located<Vip>,
    ) -> Option<(PortRange, &'s Located<Vip>)> {
        if ports == PortRange::ALL {
            return self.all.replace(vip).map(|other| (ports, other));
        }
        let [ranges, singles] = &mut self.ranges;
        let kind = if ports.is_single() { singles } else { ranges };
        let other = kind.range(ports.first..).next().map(|(_, other)| *other);
        if let Some((other, whose)) = other.filter(|(other, _)| other.meets(ports)) {
            let shared =
                PortRange { first: ports.first.max(other.first), last: ports.last.min(other.last) };
            return Some((shared, whose));
        }
        kind.insert(ports.last, (ports, vip));
        None
    }
}

/// Checks that no packet matches two VIPs of equal specificity.
fn listeners(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut claims: BTreeMap<(Network, Protocol), Claims<'_>> = BTreeMap::new();
    for (located, _) in sections.vips {
        let vip = &located.value;
        let claims = claims.entry((vip.address, vip.protocol)).or_default();
        let met = vip.ports.ranges().iter().filter_map(|&ports| claims.add(ports, located));
        let met: Vec<_> = met.collect();
        if let Some((shared, other)) = met.first() {
            overlap(located, *shared, other, report);
        }
    }
    prefix_lengths(sections, report);
}

fn overlap(vip: &Located<Vip>, shared: PortRange, other: &Located<Vip>, report: &mut Report<'_>) {
    let (line, name) = (report.line(&other.key_path), &other.value.name);
    let Vip { address, protocol, .. } = &vip.value;
    let (shared, key) = match (protocol, shared) {
        (Protocol::Any, _) => ("all protocols".to_owned(), "address"),
        (_, PortRange::ALL) => ("all ports".to_owned(), "ports"),
        (_, shared) if shared.is_single() => (format!("port {shared}"), "ports"),
        (_, shared) => (format!("ports {shared}"), "ports"),
    };
    let mut what =
        format!("VIP \"{name}\" of line {line} already listens on {shared} of {address}");
    if *protocol != Protocol::Any {
        what = format!("{what}, {}", protocol.as_str());
    }
    let fix = "use other ports or another address, or put the backends into one VIP";
    report.error(&vip.key_path.key(key), what, fix);
}

/// Bounds the number of prefix lengths: each costs packets a look-up.
fn prefix_lengths(sections: &Sections<'_>, report: &mut Report<'_>) {
    for v4 in [true, false] {
        let networks = sections.vips.iter().map(|(vip, _)| vip.value.address);
        let lens: BTreeSet<u8> =
            networks.filter(|network| network.is_v4() == v4).map(Network::len).collect();
        if lens.len() > MAX_PREFIX_LENGTHS {
            let family = if v4 { "IPv4" } else { "IPv6" };
            let what = format!("prefixes of {} lengths among {family} VIPs", lens.len());
            let fix = format!("use {MAX_PREFIX_LENGTHS} at most: each costs packets a look-up");
            report.error(&KeyPath::root().key("vip"), what, &fix);
        }
    }
}

/// Index of the VIPs by their addresses.
struct Owners<'s> {
    names: BTreeMap<Network, &'s str>,
    lens: BTreeSet<u8>,
}

impl<'s> Owners<'s> {
    fn of(sections: &Sections<'s>) -> Self {
        let vips = sections.vips.iter();
        let names: BTreeMap<_, _> =
            vips.map(|(vip, _)| (vip.value.address, vip.value.name.as_str())).collect();
        let lens = names.keys().map(|network| network.len()).collect();
        Self { names, lens }
    }

    /// Returns a description of the VIP that has an address, by itself or in its prefix.
    fn describe(&self, address: IpAddr) -> Option<String> {
        let mut networks = self.lens.iter().rev().map(|&len| Network::of(address.into(), len));
        let (network, name) =
            networks.find_map(|network| Some((network, self.names.get(&network)?)))?;
        Some(match network.is_single() {
            true => format!("{address} is the address of VIP \"{name}\""),
            false => format!("{address} is in {network} of VIP \"{name}\""),
        })
    }
}

fn backend_names(backends: &[Located<Backend>], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for Located { value: backend, key_path } in backends.iter().filter(|b| !b.value.name.is_empty())
    {
        if let Some(first) = seen.insert(&backend.name, key_path) {
            let what = format!("\"{}\" again, as in line {}", backend.name, report.line(first));
            report.error(
                &key_path.key("name"),
                what,
                "give every backend of a VIP a name of its own",
            );
        }
    }
}

/// Reports two backends of a VIP that are one server: they would share its load unnoticed, and a
/// drain of one would not drain the server.
fn backend_targets(vip: &Located<Vip>, backends: &[Located<Backend>], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for Located { value: backend, key_path } in backends {
        let port = backend.port.or(match &vip.value.ports {
            Ports::List(ports) => match ports.as_slice() {
                [only] if only.is_single() => Some(only.first),
                _ => None,
            },
            Ports::All => None,
        });
        if let Some(first) = seen.insert((backend.address, port), (&backend.name, key_path)) {
            let (name, line) = (first.0, report.line(first.1));
            let what = format!("the same server as backend \"{name}\" of line {line}");
            report.error(
                &key_path.key("address"),
                what,
                "keep one of them, with the sum of the weights",
            );
        }
    }
}

fn backend_address(
    vip: &Located<Vip>,
    backend: &Located<Backend>,
    owners: &Owners<'_>,
    report: &mut Report<'_>,
) {
    let address = backend.value.address;
    let at = backend.key_path.key("address");
    let forward = vip.value.forward;
    let crosses = forward.tunnels() || forward == Forward::FullNat;
    if address.is_ipv4() != vip.value.address.is_v4() && !crosses {
        let (ours, theirs) = if address.is_ipv4() { (4, 6) } else { (6, 4) };
        let what = format!(
            "{address} is IPv{ours}, but VIP \"{}\" is IPv{theirs} ({})",
            vip.value.name, vip.value.address
        );
        let fix = format!(
            "use an IPv{theirs} address, or forward = \"ipip\" or \"gue\", which carry IPv{theirs} in \
             IPv{ours}, or \"full_nat\", which translates"
        );
        report.error(&at, what, &fix);
    }
    if let Some(what) = owners.describe(address) {
        let what = format!("{what}: packets would come back here");
        report.error(&at, what, "use the server's own address");
    }
}

/// Checks that every full-NAT backend has SNAT addresses of its family, and that no SNAT address is
/// in use.
fn full_nat(sections: &Sections<'_>, owners: &Owners<'_>, report: &mut Report<'_>) {
    let FullNat { sources, .. } = &sections.config.full_nat;
    let key_path = KeyPath::root().key("full_nat").key("sources");
    let ours: BTreeSet<&IpAddr> = sources.iter().collect();
    // A prefix of SNAT addresses may lie within a VIP's prefix as a whole: that is one mistake.
    let mut taken = sources.iter().filter_map(|&source| owners.describe(source));
    if let Some(first) = taken.next() {
        let what = match taken.count() {
            0 => first,
            more => format!("{first}, and {more} more of them are in use"),
        };
        report.error(&key_path, what, "use addresses that are not in use");
    }
    for (vip, backends) in sections.vips {
        for backend in backends {
            let Backend { name, address, .. } = &backend.value;
            if ours.contains(address) {
                let what = format!("{address} is the address of backend \"{name}\"");
                report.error(&key_path, what, "use addresses that are not in use");
            }
        }
        if vip.value.forward != Forward::FullNat {
            continue;
        }
        let lacks = |backend: &&Located<Backend>| {
            !sources.iter().any(|source| source.is_ipv4() == backend.value.address.is_ipv4())
        };
        if let Some(Located { value: backend, .. }) = backends.iter().find(lacks) {
            let (version, example) = match backend.address {
                IpAddr::V4(_) => (4, "10.0.0.48/28"),
                IpAddr::V6(_) => (6, "fd00::40/124"),
            };
            let what = format!(
                "no IPv{version} source for backend \"{}\" ({})",
                backend.name, backend.address
            );
            let fix = format!(
                "write sources = [\"{example}\"] or the like in [full_nat]: addresses that are \
                 this box's alone, and that backends can reach"
            );
            report.error(&vip.key_path.key("forward"), what, &fix);
        }
    }
}

/// Rejects one backend port for all ports of a VIP: replies from it do not identify which of 65,535
/// ports the client had connected to.
fn backend_port(vip: &Located<Vip>, backend: &Located<Backend>, report: &mut Report<'_>) {
    let nat = vip.value.forward == Forward::Nat;
    if nat && vip.value.ports == Ports::All && backend.value.port.is_some() {
        let what = "one backend port for all ports of the VIP: replies could not be told apart";
        let fix = "remove the port (each is then kept), or list the VIP's ports";
        report.error(&backend.key_path.key("port"), what, fix);
    }
}

/// Bounds the return paths: every VIP port that shares a backend's port is one more flow that a
/// reply may belong to, and costs a look-up.
fn return_paths(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut paths = Paths::default();
    let nat = sections.vips.iter().filter(|(vip, _)| vip.value.forward == Forward::Nat);
    for (vip, backends) in nat {
        let Ports::List(ports) = &vip.value.ports else { continue };
        for backend in backends {
            for &range in ports {
                paths.add(backend, range, vip.value.protocol, report);
            }
        }
    }
}

/// VIP ports per backend port, and port ranges per backend.
#[derive(Default)]
struct Paths {
    ports: BTreeMap<(IpAddr, u16, Protocol), usize>,
    ranges: BTreeMap<(IpAddr, Protocol), usize>,
}

impl Paths {
    fn add(
        &mut self,
        backend: &Located<Backend>,
        range: PortRange,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) {
        let Backend { address, port, .. } = backend.value;
        let (count, more, what) = match port {
            None if !range.is_single() => {
                let what = format!(
                    "more than {MAX_RETURN_PATHS} ranges of VIP ports lead to {address}: its \
                     replies could belong to any of them"
                );
                (self.ranges.entry((address, protocol)).or_default(), 1, what)
            }
            _ => {
                let port = port.unwrap_or(range.first);
                let what = format!(
                    "more than {MAX_RETURN_PATHS} VIP ports lead to {address} port {port}: its \
                     replies could belong to any of them"
                );
                (self.ports.entry((address, port, protocol)).or_default(), range.count(), what)
            }
        };
        let before = *count;
        *count += more;
        if before <= MAX_RETURN_PATHS && *count > MAX_RETURN_PATHS {
            let fix = "give some of them backend ports of their own, or remove the backend's port \
                       (each is then kept)";
            report.error(&backend.key_path, what, fix);
        }
    }
}
