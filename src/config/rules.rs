//! Rules between sections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::place::Place;
use super::report::Report;
use super::vip::Placed;
use super::{Backend, Config, FullNat, Nic, Vip, tunnel};
use crate::flow::Protocol;
use crate::forwarding::{
    Forward, MAX_BACKENDS, MAX_NICS, MAX_RETURN_PATHS, MAX_VIPS, PortIndex, Ports, SchedulerKind,
};
use crate::words::counted;

/// Entries of a lookup table per backend, at least: with fewer, shares are off by a tenth or more.
const MIN_ENTRIES_PER_BACKEND: usize = 10;
/// Entries of all lookup tables together: at 2 bytes each, 1 GiB.
const MAX_TABLE_ENTRIES: u64 = 1 << 29;
/// Points of a VIP's ring: at 10 bytes each, 40 MiB.
const MAX_RING_POINTS: u64 = 1 << 22;

/// What the sections are, with their places, while the rules between them are checked.
pub(super) struct Sections<'s> {
    /// The configuration as it would be handed out.
    pub(super) config: &'s Config,
    /// `[[nic]]`.
    pub(super) nics: &'s [Placed<Nic>],
    /// `[[vip]]`, each with its backends.
    pub(super) vips: &'s [(Placed<Vip>, Vec<Placed<Backend>>)],
}

/// Notes every rule that is broken. Cost: linear in VIPs and backends, times a map look-up.
pub(super) fn check(sections: &Sections<'_>, report: &mut Report<'_>) {
    limits(sections.config, report);
    table_sizes(sections, report);
    ring_points(sections, report);
    nics(sections, report);
    frames(sections.config, report);
    vip_names(sections, report);
    listeners(sections, report);
    let owners = vip_addresses(sections);
    for (vip, backends) in sections.vips {
        backend_names(backends, report);
        backend_targets(vip, backends, report);
        for backend in backends {
            backend_address(vip, backend, &owners, report);
            backend_port(vip, backend, report);
        }
    }
    return_paths(sections, report);
    full_nat(sections, &owners, report);
    tunnel::rules(sections, report);
}

fn limits(config: &Config, report: &mut Report<'_>) {
    let backends: usize = config.vips.iter().map(|vip| vip.backends.len()).sum();
    let vips_at = Place::root().key("vip");
    for (place, count, most, noun) in [
        (Place::root().key("nic"), config.nics.len(), MAX_NICS, "NICs"),
        (vips_at.clone(), config.vips.len(), MAX_VIPS, "VIPs"),
        (vips_at, backends, MAX_BACKENDS, "backends, over all VIPs"),
    ] {
        if count > most {
            report.error(
                &place,
                format!("{count} {noun}"),
                &format!("at most {most} are possible"),
            );
        }
    }
}

/// Every table is large enough for its backends; all together are not too large.
fn table_sizes(sections: &Sections<'_>, report: &mut Report<'_>) {
    let common = sections.config.hash.table_size;
    let common_at = Place::root().key("hash").key("table_size");
    let (mut entries, mut most) = (0, 0);
    for (Placed { value: vip, place }, _) in sections.vips {
        let Some(size) = vip.scheduler.table_size() else { continue };
        entries += u64::from(size);
        if size == common {
            most = most.max(vip.backends.len());
        } else {
            let place = place.key("scheduler").key("table_size");
            large_enough(&place, size, vip.backends.len(), report);
        }
    }
    large_enough(&common_at, common, most, report);
    if entries > MAX_TABLE_ENTRIES {
        let what = format!("{entries} entries in the lookup tables of all VIPs");
        let fix = format!("use a smaller prime: {MAX_TABLE_ENTRIES} are possible");
        report.error(&common_at, what, &fix);
    }
}

fn large_enough(place: &Place, size: u32, backends: usize, report: &mut Report<'_>) {
    let wanted = backends.saturating_mul(MIN_ENTRIES_PER_BACKEND);
    if usize::try_from(size).is_ok_and(|size| size < wanted) {
        let backends = counted(backends, "backend");
        let what = format!("{size} entries are too few for a VIP with {backends}");
        report.error(place, what, &format!("use a prime of at least {wanted}"));
    }
}

fn ring_points(sections: &Sections<'_>, report: &mut Report<'_>) {
    for (Placed { value: vip, place }, _) in sections.vips {
        let SchedulerKind::Ring { virtual_nodes } = vip.scheduler else { continue };
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
            report.error(&place.key("scheduler").key("virtual_nodes"), what, &fix);
        }
    }
}

fn nics(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    let workers = sections.config.workers.cores.len();
    for Placed { value: nic, place } in sections.nics {
        if let Some(first) = seen.insert(&nic.interface, place) {
            let what = format!("\"{}\" again, as in line {}", nic.interface, report.line(first));
            report.error(&place.key("interface"), what, "write one [[nic]] per interface");
        }
        let too_few = |queues: &&Vec<u32>| (1..workers).contains(&queues.len());
        if let Some(queues) = nic.queues.as_ref().filter(too_few) {
            let what =
                format!("{} for {}", counted(queues.len(), "queue"), counted(workers, "worker"));
            let fix = "list a queue for each worker, or name fewer cores in [workers]";
            report.error(&place.key("queues"), what, fix);
        }
    }
}

/// `frames` must fill the rings of the worker that serves the most queues. Where `queues` is not
/// given, one queue per worker is the least that can be.
fn frames(config: &Config, report: &mut Report<'_>) {
    let Some(frames) = config.workers.frames else { return };
    let workers = config.workers.cores.len().max(1);
    let needed = config.frames_needed(config.nics.iter().enumerate().flat_map(|(port, nic)| {
        let queues = nic.queues.as_ref().map_or(1, |queues| queues.len().div_ceil(workers));
        u8::try_from(port)
            .into_iter()
            .flat_map(move |port| (0..queues).map(move |_| PortIndex(port)))
    }));
    if frames < needed {
        let what = format!("{frames} frames are too few for the rings of a worker");
        let fix = format!("use at least {needed}, or smaller rings, or leave the key out");
        report.error(&Place::root().key("workers").key("frames"), what, &fix);
    }
}

fn vip_names(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    let named = sections.vips.iter().filter(|(vip, _)| !vip.value.name.is_empty());
    for (Placed { value: vip, place }, _) in named {
        if let Some(first) = seen.insert(&vip.name, place) {
            let what = format!("\"{}\" again, as in line {}", vip.name, report.line(first));
            report.error(&place.key("name"), what, "give every VIP a name of its own");
        }
    }
}

/// No packet may be for two VIPs.
fn listeners(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut seen: BTreeMap<(IpAddr, Protocol), BTreeMap<u16, &Placed<Vip>>> = BTreeMap::new();
    for (placed, _) in sections.vips {
        let vip = &placed.value;
        let ports = seen.entry((vip.address, vip.protocol)).or_default();
        let other = match &vip.ports {
            Ports::All => ports.first_key_value().map(|(_, &other)| other),
            Ports::List(list) => list.iter().chain([&0]).find_map(|port| ports.get(port).copied()),
        };
        if let Some(other) = other {
            overlap(placed, other, report);
        }
        for &port in vip.ports.listen() {
            ports.entry(port).or_insert(placed);
        }
    }
}

fn overlap(vip: &Placed<Vip>, other: &Placed<Vip>, report: &mut Report<'_>) {
    let (line, name) = (report.line(&other.place), &other.value.name);
    let what = format!(
        "VIP \"{name}\" of line {line} already listens on {} of {}, {}",
        shared(&vip.value.ports, &other.value.ports),
        vip.value.address,
        vip.value.protocol.as_str(),
    );
    let fix = "use other ports or another address, or put the backends into one VIP";
    report.error(&vip.place.key("ports"), what, fix);
}

fn shared(ports: &Ports, others: &Ports) -> String {
    match (ports, others) {
        (Ports::List(ports), Ports::List(others)) => {
            let port = ports.iter().find(|port| others.contains(port));
            format!("port {}", port.copied().unwrap_or_default())
        }
        (Ports::All, Ports::List(_)) => "some ports".to_owned(),
        (_, Ports::All) => "all ports".to_owned(),
    }
}

/// Which VIP has an address.
fn vip_addresses<'s>(sections: &Sections<'s>) -> BTreeMap<IpAddr, &'s str> {
    sections.vips.iter().map(|(vip, _)| (vip.value.address, vip.value.name.as_str())).collect()
}

fn backend_names(backends: &[Placed<Backend>], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for Placed { value: backend, place } in backends.iter().filter(|b| !b.value.name.is_empty()) {
        if let Some(first) = seen.insert(&backend.name, place) {
            let what = format!("\"{}\" again, as in line {}", backend.name, report.line(first));
            report.error(&place.key("name"), what, "give every backend of a VIP a name of its own");
        }
    }
}

/// Two backends of a VIP that are one server would share its load unseen, and one's drain would
/// not drain it.
fn backend_targets(vip: &Placed<Vip>, backends: &[Placed<Backend>], report: &mut Report<'_>) {
    let mut seen = BTreeMap::new();
    for Placed { value: backend, place } in backends {
        let port = backend.port.or(match &vip.value.ports {
            Ports::List(ports) => ports.first().copied().filter(|_| ports.len() == 1),
            Ports::All => None,
        });
        if let Some(first) = seen.insert((backend.address, port), (&backend.name, place)) {
            let (name, line) = (first.0, report.line(first.1));
            let what = format!("the same server as backend \"{name}\" of line {line}");
            report.error(
                &place.key("address"),
                what,
                "keep one of them, with the sum of the weights",
            );
        }
    }
}

fn backend_address(
    vip: &Placed<Vip>,
    backend: &Placed<Backend>,
    owners: &BTreeMap<IpAddr, &str>,
    report: &mut Report<'_>,
) {
    let address = backend.value.address;
    let at = backend.place.key("address");
    let forward = vip.value.forward;
    let crosses = forward.tunnels() || forward == Forward::FullNat;
    if address.is_ipv4() != vip.value.address.is_ipv4() && !crosses {
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
    if let Some(name) = owners.get(&address) {
        let what =
            format!("{address} is the address of VIP \"{name}\": packets would come back here");
        report.error(&at, what, "use the server's own address");
    }
}

/// Every full-NAT backend has sources of its family, and no source is somebody's already.
fn full_nat(sections: &Sections<'_>, owners: &BTreeMap<IpAddr, &str>, report: &mut Report<'_>) {
    let FullNat { sources, .. } = &sections.config.full_nat;
    let place = Place::root().key("full_nat").key("sources");
    let ours: BTreeSet<&IpAddr> = sources.iter().collect();
    for (name, address) in owners.iter().map(|(address, name)| (name, address)) {
        if ours.contains(address) {
            let what = format!("{address} is the address of VIP \"{name}\"");
            report.error(&place, what, "use addresses that nobody else has");
        }
    }
    for (vip, backends) in sections.vips {
        for backend in backends {
            let Backend { name, address, .. } = &backend.value;
            if ours.contains(address) {
                let what = format!("{address} is the address of backend \"{name}\"");
                report.error(&place, what, "use addresses that nobody else has");
            }
        }
        if vip.value.forward != Forward::FullNat {
            continue;
        }
        let lacks = |backend: &&Placed<Backend>| {
            !sources.iter().any(|source| source.is_ipv4() == backend.value.address.is_ipv4())
        };
        if let Some(Placed { value: backend, .. }) = backends.iter().find(lacks) {
            let (version, example) = match backend.address {
                IpAddr::V4(_) => (4, "10.0.0.48/28"),
                IpAddr::V6(_) => (6, "fd00::40/124"),
            };
            let what = format!(
                "no IPv{version} source for backend \"{}\" ({})",
                backend.name, backend.address
            );
            let fix = format!(
                "write sources = [\"{example}\"] or the like in [full_nat]: addresses of this box \
                 that backends can reach"
            );
            report.error(&vip.place.key("forward"), what, &fix);
        }
    }
}

/// Replies from one port cannot tell which of 65,535 ports the client had connected to.
fn backend_port(vip: &Placed<Vip>, backend: &Placed<Backend>, report: &mut Report<'_>) {
    let nat = vip.value.forward == Forward::Nat;
    if nat && vip.value.ports == Ports::All && backend.value.port.is_some() {
        let what = "one backend port for all ports of the VIP: replies could not be told apart";
        let fix = "remove the port (each is then kept), or list the VIP's ports";
        report.error(&backend.place.key("port"), what, fix);
    }
}

/// Every VIP port that shares a backend's port is one more flow that a reply may belong to, and
/// costs a look-up.
fn return_paths(sections: &Sections<'_>, report: &mut Report<'_>) {
    let mut counts: BTreeMap<(IpAddr, u16, Protocol), usize> = BTreeMap::new();
    let nat = sections.vips.iter().filter(|(vip, _)| vip.value.forward == Forward::Nat);
    for (vip, backends) in nat {
        let Ports::List(ports) = &vip.value.ports else { continue };
        for backend in backends {
            for port in ports {
                let Backend { address, port: own, .. } = &backend.value;
                let key = (*address, own.unwrap_or(*port), vip.value.protocol);
                let count = counts.entry(key).or_default();
                *count += 1;
                if *count == MAX_RETURN_PATHS + 1 {
                    let what = format!(
                        "more than {MAX_RETURN_PATHS} VIP ports lead to {} port {}: its replies \
                         could belong to any of them",
                        key.0, key.1
                    );
                    let fix = "give some of them backend ports of their own";
                    report.error(&backend.place, what, fix);
                }
            }
        }
    }
}
