//! `GET /v1/status`: the registry and the workers' counters as one document.
//!
//! Sums over workers ([`counters`](super::counters)) are computed at each request; nothing is kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::answering::hint;
use super::api::{
    BackendState, BackendStatus, DigestStatus, DrainStatus, FullNatStatus, HealthState,
    NextHopStatus, NicFaultStatus, NicStatus, PoolStatus, RemovedStatus, SecurityStatus,
    SplitStatus, Status, Totals, VipStatus, WorkerStatus,
};
use super::counters::{backend_traffic, flows_active, over_limit, since, syns, vip_traffic};
use super::flow_rates::FlowRates;
use super::nic_faults::NicFault;
use super::split::{Shown, Splitter};
use super::state::{BackendEntry, Registry, VipEntry};
use super::view::{
    AccessDrops, AttachedView, NicView, SocketStatistics, SteerCounters, WorkerView,
};
use crate::config::FullNat;
use crate::format::counted;
use crate::forwarding::digest::Digests;
use crate::forwarding::{Ask, FlowAction, Ports};
use crate::net::{Family, NextHop, VipId};
use crate::privileges::Kept;
use crate::stats::{NicStats, WorkerStats};

/// Inputs of a status, besides the process itself.
pub struct Sources<'a> {
    /// VIPs and backends.
    pub registry: &'a Registry,
    /// Settings of full NAT.
    pub full_nat: &'a FullNat,
    /// Workers.
    pub workers: &'a [WorkerView],
    /// NICs.
    pub nics: &'a [NicView],
    /// Attachment of the XDP program to each NIC, in the same order.
    pub attached: &'a [AttachedView],
    /// Faults of each NIC, in the same order; empty before the first check.
    pub nic_faults: &'a [Vec<NicFault>],
    /// Counters of each NIC, in the same order: the XDP program's and the sockets'.
    pub nic_counters: Vec<(SteerCounters, SocketStatistics)>,
    /// Splits of large sources.
    pub splitter: &'a Splitter,
    /// Rates of new flows.
    pub flow_rates: &'a FlowRates,
    /// Packets of each VIP that the lists have dropped.
    pub access_drops: &'a HashMap<VipId, AccessDrops>,
    /// Returns the interface that has a VIP's address, if holdfast put it there.
    pub announced_on: &'a dyn Fn(&VipEntry) -> Option<String>,
}

/// Properties of the process in a status.
pub struct Process {
    /// Time at which control started.
    pub started: Instant,
    /// Path of the configuration file.
    pub config: String,
    /// Generation of the published table.
    pub generation: u64,
    /// Digests of the published table.
    pub digests: Digests,
    /// Privileges of the control thread.
    pub privileges: Kept,
}

/// Builds the whole document.
pub fn status(process: &Process, sources: &Sources<'_>) -> Status {
    let now = Instant::now();
    let workers: Vec<WorkerStatus> = sources.workers.iter().map(worker_status).collect();
    let totals = workers.iter().fold(Totals::default(), |sum, worker| plus(sum, &worker.totals));
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: now.saturating_duration_since(process.started).as_secs(),
        config: process.config.clone(),
        generation: process.generation,
        digests: DigestStatus {
            configured: format!("{:016x}", process.digests.configured),
            in_force: format!("{:016x}", process.digests.in_force),
        },
        log_lines_lost: crate::log::lines_lost(),
        security: SecurityStatus {
            capabilities: process.privileges.capabilities.clone(),
            seccomp: process.privileges.seccomp,
        },
        full_nat: full_nat_status(sources.full_nat, &totals),
        totals,
        answers: all_answers(sources.workers),
        drops: all_drops(&workers),
        vips: sources.registry.vips().iter().map(|vip| vip_status(vip, sources, now)).collect(),
        flow_tables: sources.flow_rates.flow_tables(sources.registry, sources.workers),
        removed: removed(sources),
        workers,
        nics: nic_statuses(sources),
    }
}

fn removed(sources: &Sources<'_>) -> Vec<RemovedStatus> {
    let all = sources.registry.all_vips().flat_map(|vip| {
        vip.removed.iter().map(|removed| {
            let backend = &removed.what;
            RemovedStatus {
                vip: vip.config.name.clone(),
                backend: backend.config.name.clone(),
                address: backend.config.address,
                port: backend.config.port,
                flows_left: flows_active(sources.workers, backend.id.index),
                then: removed.flow_action,
            }
        })
    });
    all.filter(|removed| removed.flows_left > 0).collect()
}

fn full_nat_status(config: &FullNat, totals: &Totals) -> Option<FullNatStatus> {
    let FullNat { sources, ports, .. } = config;
    let pool = |family: Family, used| {
        let is_of = |source: &&IpAddr| source.is_ipv4() == family.is_v4();
        let addresses = sources.iter().filter(is_of).count();
        // At most 256 addresses.
        let all = u64::try_from(addresses * ports.len()).unwrap_or(u64::MAX);
        PoolStatus { used, free: all.saturating_sub(used) }
    };
    (!sources.is_empty()).then(|| FullNatStatus {
        sources: sources.clone(),
        ports: (*ports.start(), *ports.end()),
        v4: pool(Family::V4, totals.bindings_v4),
        v6: pool(Family::V6, totals.bindings_v6),
    })
}

fn vip_status(vip: &VipEntry, sources: &Sources<'_>, now: Instant) -> VipStatus {
    let backend =
        |entry: &BackendEntry| backend_status(vip, entry, sources.workers, sources.nics, now);
    let backends: Vec<BackendStatus> = vip.backends.iter().map(backend).collect();
    let drops = sources.access_drops.get(&vip.id).copied().unwrap_or_default();
    VipStatus {
        name: vip.config.name.clone(),
        address: vip.config.address,
        ports: match &vip.config.ports {
            Ports::All => Vec::new(),
            Ports::List(ports) => ports.clone(),
        },
        protocol: vip.config.protocol,
        forward: vip.config.forward,
        pin: vip.config.policy.pin,
        scheduler: vip.config.policy.scheduler.to_string(),
        affinity: vip.config.policy.affinity.to_string(),
        announced_on: (sources.announced_on)(vip),
        splits: sources.splitter.shown(vip.id).into_iter().map(split_status).collect(),
        fail_open: vip.fails_open,
        denied: drops.denied,
        not_allowed: drops.not_allowed,
        over_rate: drops.over_rate,
        backends_up: backends.iter().filter(|backend| backend.is_up()).count(),
        backends_in_service: backends.iter().filter(|backend| backend.is_in_service()).count(),
        traffic: since(vip_traffic(sources.workers, vip.id), &vip.base),
        backends,
    }
}

fn split_status(Shown { source, parts, share }: Shown) -> SplitStatus {
    SplitStatus { source: source.into(), parts, share }
}

/// Builds the status of one backend.
pub fn backend_status(
    vip: &VipEntry,
    entry: &BackendEntry,
    workers: &[WorkerView],
    nics: &[NicView],
    now: Instant,
) -> BackendStatus {
    let traffic = since(backend_traffic(workers, entry.id.index), &entry.base);
    BackendStatus {
        vip: vip.config.name.clone(),
        name: entry.config.name.clone(),
        address: entry.config.address,
        port: entry.config.port,
        weight: entry.config.weight,
        health: match entry.check {
            None => HealthState::Unchecked,
            Some(_) if entry.damping.is_held() => HealthState::Down,
            Some(_) => entry.health.state(),
        },
        health_detail: health_detail(entry, now),
        held_down_for_s: entry.damping.held_for(now).map(whole_seconds),
        flaps: entry.damping.flaps(),
        state: BackendState::of(entry.drain.service(), traffic.flows_active),
        deadline_in_s: entry.drain.deadline_in_s(now),
        flows_cut: entry.drain.flows_cut(),
        drain: drain_status(vip, entry, traffic.flows_active, now),
        max_connections: entry.config.max_connections,
        full: entry.limit.is_full(),
        over_limit: over_limit(workers, entry.id.index, &entry.base),
        share_percent: if entry.passive.is_out() { 0 } else { entry.slow_start.percent() },
        passive_out_for_s: entry.passive.out_for(now).map(whole_seconds),
        next_hop: entry.next_hop.map(|hop| next_hop_status(hop, entry.mtu, nics)),
        next_hop_detail: entry.next_hop_detail.clone(),
        syns_unanswered: syns(workers, entry.id.index, &entry.base).unanswered,
        ask: (vip.config.policy.ask != Ask::Never).then(|| entry.program.reply().as_str().into()),
        hint: hints(vip, entry),
        traffic,
    }
}

/// Describes the last failure of a backend's check, and its hold.
fn health_detail(entry: &BackendEntry, now: Instant) -> String {
    let Some(rest) = entry.damping.held_for(now) else { return entry.health_detail.clone() };
    let flaps = counted(entry.damping.flaps(), "flap");
    let held = format!("held down for {} s more ({flaps})", whole_seconds(rest));
    match entry.health_detail.as_str() {
        "" => held,
        failure => format!("{failure}; {held}"),
    }
}

/// Rounds up to whole seconds.
fn whole_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

/// Describes the suspicion that a backend does not answer clients, or why it cannot be asked for
/// connections; empty without either.
fn hints(vip: &VipEntry, entry: &BackendEntry) -> String {
    if entry.passive.is_out() {
        let why = hint(&vip.config, entry.passive.reason());
        return format!("gets no new flows for now: {why}");
    }
    if let Some(syns) = entry.answering.suspected() {
        return hint(&vip.config, syns);
    }
    let asks = vip.config.policy.ask != Ask::Never;
    if asks { entry.program.reply().hint().to_owned() } else { String::new() }
}

/// Builds the status of a drain; `None` if the backend does not drain.
fn drain_status(
    vip: &VipEntry,
    entry: &BackendEntry,
    flows_left: u64,
    now: Instant,
) -> Option<DrainStatus> {
    let (begun, flows_at_start) = entry.drain.begun()?;
    let forecast = entry.forecast.filter(|_| flows_left > 0);
    let then = vip.config.drain.then;
    let deadline_in_s = entry.drain.deadline_in_s(now);
    let ends = forecast.and_then(|forecast| forecast.ends);
    let by_itself = ends.map(|ends| ends.saturating_duration_since(now).as_secs());
    let by_deadline = deadline_in_s.filter(|_| then != FlowAction::Keep);
    let ends_in_s = match (by_itself, by_deadline) {
        _ if flows_left == 0 => Some(0),
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Some(DrainStatus {
        for_s: now.saturating_duration_since(begun).as_secs(),
        flows_at_start,
        flows_left,
        oldest_flow_s: forecast.map(|forecast| forecast.oldest.as_secs()),
        ends_in_s,
        deadline_in_s,
        then,
        flows_cut: entry.drain.flows_cut(),
    })
}

/// Builds the status of a next hop.
pub fn next_hop_status(hop: NextHop, mtu: u16, nics: &[NicView]) -> NextHopStatus {
    let nic = nics.get(usize::from(hop.nic.0));
    let [a, b, c, d, e, f] = hop.mac;
    NextHopStatus {
        interface: nic.map_or_else(String::new, |nic| nic.interface.clone()),
        mac: format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        vlan: hop.vlan.map(|tags| tags.inner),
        outer_vlan: hop.vlan.and_then(|tags| tags.outer.value()),
        mtu,
    }
}

fn worker_status(worker: &WorkerView) -> WorkerStatus {
    let stats = &worker.stats;
    WorkerStatus {
        core: worker.core,
        flow_capacity: worker.flows.capacity(),
        flow_aliases: stats.flow_aliases.get(),
        totals: totals(stats),
        drops: stats.drops().map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
        batches: stats.batches.get(),
        idle_polls: stats.idle_polls.get(),
        sleeps: stats.sleeps.get(),
    }
}

fn totals(stats: &WorkerStats) -> Totals {
    Totals {
        received: stats.received.get(),
        transmitted: stats.transmitted.get(),
        handed_over: stats.handed_over.get(),
        answered: stats.local_replies().map(|(_, count)| count).sum(),
        dropped: stats.drops().map(|(_, count)| count).sum(),
        flows_active: stats.flows_active.get(),
        flows_new: stats.flows_new.get(),
        flows_found_elsewhere: stats.flows_found_elsewhere.get(),
        flows_by_hash: stats.flows_by_hash.get(),
        flows_by_cid: stats.flows_by_cid.get(),
        datagrams_placed: stats.datagrams_placed.get(),
        flows_closed: stats.flows_closed.get(),
        flows_idled_out: stats.flows_idled_out.get(),
        flows_stale: stats.flows_stale.get(),
        flows_evicted: stats.flows_evicted.get(),
        bindings_v4: stats.bindings_v4.get(),
        bindings_v6: stats.bindings_v6.get(),
        clients_full: stats.clients_full.get(),
        table_full_unpinned: stats.table_full_unpinned.get(),
        new_flow_limit_unpinned: stats.new_flow_limit_unpinned.get(),
        fragments_parked: stats.fragments_parked.get(),
        flows_reset: stats.flows_reset.get(),
        resets_sent: stats.resets_sent.get(),
        probes_sent: stats.probes_sent.get(),
        handshakes_sent: stats.handshakes_sent.get(),
        fragments_sent: stats.fragments_sent.get(),
        asks_sent: stats.asks_sent.get(),
        icmp_errors_forwarded: stats.icmp_errors_forwarded.get(),
        icmp_rate_limited: stats.icmp_rate_limited.get(),
    }
}

fn plus(a: Totals, b: &Totals) -> Totals {
    Totals {
        received: a.received + b.received,
        transmitted: a.transmitted + b.transmitted,
        handed_over: a.handed_over + b.handed_over,
        answered: a.answered + b.answered,
        dropped: a.dropped + b.dropped,
        flows_active: a.flows_active + b.flows_active,
        flows_new: a.flows_new + b.flows_new,
        flows_found_elsewhere: a.flows_found_elsewhere + b.flows_found_elsewhere,
        flows_by_hash: a.flows_by_hash + b.flows_by_hash,
        flows_by_cid: a.flows_by_cid + b.flows_by_cid,
        datagrams_placed: a.datagrams_placed + b.datagrams_placed,
        flows_closed: a.flows_closed + b.flows_closed,
        flows_idled_out: a.flows_idled_out + b.flows_idled_out,
        flows_stale: a.flows_stale + b.flows_stale,
        flows_evicted: a.flows_evicted + b.flows_evicted,
        bindings_v4: a.bindings_v4 + b.bindings_v4,
        bindings_v6: a.bindings_v6 + b.bindings_v6,
        clients_full: a.clients_full + b.clients_full,
        table_full_unpinned: a.table_full_unpinned + b.table_full_unpinned,
        new_flow_limit_unpinned: a.new_flow_limit_unpinned + b.new_flow_limit_unpinned,
        fragments_parked: a.fragments_parked + b.fragments_parked,
        flows_reset: a.flows_reset + b.flows_reset,
        resets_sent: a.resets_sent + b.resets_sent,
        probes_sent: a.probes_sent + b.probes_sent,
        handshakes_sent: a.handshakes_sent + b.handshakes_sent,
        fragments_sent: a.fragments_sent + b.fragments_sent,
        asks_sent: a.asks_sent + b.asks_sent,
        icmp_errors_forwarded: a.icmp_errors_forwarded + b.icmp_errors_forwarded,
        icmp_rate_limited: a.icmp_rate_limited + b.icmp_rate_limited,
    }
}

/// Sums the local replies of all workers; every kind is present, also without workers.
fn all_answers(workers: &[WorkerView]) -> BTreeMap<String, u64> {
    let kinds = crate::stats::LocalReply::ALL.iter();
    kinds
        .map(|&kind| {
            let sum =
                workers.iter().map(|worker| worker.stats.local_reply_counter(kind).get()).sum();
            (kind.as_str().to_owned(), sum)
        })
        .collect()
}

/// Sums the drops of all workers; every reason is present, also without workers.
fn all_drops(workers: &[WorkerStatus]) -> BTreeMap<String, u64> {
    let names = crate::stats::Drop::ALL.iter().map(|reason| reason.as_str());
    names
        .map(|name| {
            let sum = workers.iter().filter_map(|worker| worker.drops.get(name)).sum();
            (name.to_owned(), sum)
        })
        .collect()
}

fn nic_statuses(sources: &Sources<'_>) -> Vec<NicStatus> {
    let details = sources.attached.iter().zip(&sources.nic_counters);
    let nics = sources.nics.iter().zip(details).enumerate();
    nics.map(|(index, (nic, (attached, counters)))| {
        let stats: Vec<&NicStats> =
            sources.workers.iter().filter_map(|worker| worker.stats.nics.get(index)).collect();
        let faults = sources.nic_faults.get(index).map_or(&[][..], Vec::as_slice);
        nic_status(nic, attached, faults, &stats, counters)
    })
    .collect()
}

fn nic_status(
    nic: &NicView,
    attached: &AttachedView,
    faults: &[NicFault],
    stats: &[&NicStats],
    (steer, socket): &(SteerCounters, SocketStatistics),
) -> NicStatus {
    let sum = |of: fn(&NicStats) -> u64| stats.iter().map(|stats| of(stats)).sum();
    NicStatus {
        interface: nic.interface.clone(),
        driver: nic.driver.clone(),
        xdp: attached.xdp.clone(),
        mode: nic.mode.clone(),
        multi_buffer: nic.multi_buffer,
        queues: nic.queues.clone(),
        fallbacks: attached.fallbacks.iter().chain(&nic.fallbacks).cloned().collect(),
        faults: faults.iter().map(|fault| nic_fault_status(nic, fault)).collect(),
        rx_packets: sum(|port| port.rx_packets.get()),
        rx_bytes: sum(|port| port.rx_bytes.get()),
        tx_packets: sum(|port| port.tx_packets.get()),
        tx_bytes: sum(|port| port.tx_bytes.get()),
        tx_wakeups: sum(|port| port.tx_wakeups.get()),
        bad_descriptors: sum(|port| port.bad_descriptors.get()),
        no_free_frame: sum(|port| port.no_free_frame.get()),
        steered: steer.steered,
        passed: steer.passed,
        no_socket: steer.no_socket,
        guarded: steer.guarded,
        denied: steer.dropped.denied,
        not_allowed: steer.dropped.not_allowed,
        over_rate: steer.dropped.over_rate,
        kernel_rx_dropped: socket.rx_dropped,
        kernel_rx_ring_full: socket.rx_ring_full,
        kernel_rx_fill_empty: socket.rx_fill_empty,
        kernel_rx_invalid: socket.rx_invalid,
        kernel_tx_invalid: socket.tx_invalid,
    }
}

fn nic_fault_status(nic: &NicView, fault: &NicFault) -> NicFaultStatus {
    NicFaultStatus { kind: fault.as_str().to_owned(), text: fault.text(nic) }
}
