//! `holdfast status`: state of a running holdfast.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;

use clap::Args;

use super::args::SocketArgs;
use super::error::CliError;
use super::table::{Cell, Columns, GREEN, Look, RED, YELLOW, coloured, count, grouped, span, text};
use crate::control::api::{
    BackendState, BackendStatus, DigestStatus, FlowTableStatus, FullNatStatus, HealthState,
    NextHopStatus, NicStatus, RemovedStatus, SecurityStatus, Status, Totals, VipStatus,
    WorkerStatus,
};
use crate::format::counted;
use crate::net::PortRange;
use crate::stats::{Drop, LocalReply};

/// Arguments of `holdfast status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// One JSON document with every counter
    #[arg(long)]
    pub json: bool,
    /// Show every column and row, also those without information
    #[arg(long, conflicts_with = "json")]
    pub all: bool,
    /// Control socket.
    #[command(flatten)]
    pub socket: SocketArgs,
}

/// Prints the status as tables, or as the document that the server sent.
///
/// # Errors
/// [`CliError::Client`].
pub fn status(args: &StatusArgs, colours: bool, out: &mut impl Write) -> Result<(), CliError> {
    let client = args.socket.client()?;
    if args.json {
        let document: serde_json::Value = client.get("/v1/status")?;
        return Ok(writeln!(out, "{document:#}")?);
    }
    let look = Look { colours, all: args.all };
    Ok(print(&client.get("/v1/status")?, look, out)?)
}

pub(super) fn print(status: &Status, look: Look, out: &mut impl Write) -> io::Result<()> {
    let Status { version, pid, uptime_s, config, generation, .. } = status;
    let up = span(*uptime_s);
    writeln!(out, "holdfast {version}, pid {pid}, up {up}, {config}, generation {generation}")?;
    if look.all {
        let DigestStatus { configured, in_force } = &status.digests;
        writeln!(out, "digest of the configuration {configured}, of the table {in_force}")?;
        let SecurityStatus { capabilities, seccomp } = &status.security;
        let filter = if *seccomp { "filtered" } else { "not filtered" };
        writeln!(out, "control keeps {}; system calls are {filter}", capabilities.join(", "))?;
    }
    if status.log_lines_lost > 0 {
        let lost = counted(status.log_lines_lost, "line");
        writeln!(out, "{lost} of the log lost: its reader had gone, or was too slow")?;
    }
    if status.nics.iter().any(|nic| !nic.faults.is_empty()) {
        section("NIC FAULTS", nic_faults(&status.nics, look), out)?;
    }
    section("VIPS", vips(&status.vips, look), out)?;
    section("BACKENDS", backends(&status.vips, look), out)?;
    if status.vips.iter().flat_map(|vip| &vip.backends).any(|backend| backend.drain.is_some()) {
        section("DRAINS", drains(&status.vips, look), out)?;
    }
    if !status.removed.is_empty() {
        section("REMOVED BACKENDS", removed(&status.removed, look), out)?;
    }
    if status.vips.iter().any(|vip| !vip.splits.is_empty()) {
        section("SPLIT CLIENTS", splits(&status.vips, look), out)?;
    }
    if let Some(full_nat) = &status.full_nat {
        section("FULL NAT SOURCES", full_nat_sources(full_nat, look), out)?;
    }
    section("WORKERS", workers(&status.workers, look), out)?;
    section("FLOW TABLES", flow_tables(&status.flow_tables, look), out)?;
    section("NICS", nics(&status.nics, look), out)?;
    section("NIC RINGS AND PROGRAM", nic_counters(&status.nics, look), out)?;
    section("PACKETS AND FLOWS", totals(&status.totals, look), out)?;
    if status.totals.answered > 0 {
        let meaning = |name: &str| {
            let kind = LocalReply::ALL.iter().find(|kind| kind.as_str() == name);
            kind.map_or("", |kind| kind.describe().trim())
        };
        section("ANSWERS", endings("ANSWER", &status.answers, meaning, look), out)?;
    }
    if status.totals.dropped > 0 {
        let meaning = |name: &str| {
            let reason = Drop::ALL.iter().find(|reason| reason.as_str() == name);
            reason.map_or("", |reason| reason.describe().trim())
        };
        section("DROPS", endings("REASON", &status.drops, meaning, look), out)?;
    }
    Ok(())
}

fn section(title: &str, columns: Columns, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{title}")?;
    columns.lines().iter().try_for_each(|line| writeln!(out, "  {line}"))
}

fn vips(vips: &[VipStatus], look: Look) -> Columns {
    let headers = [
        "VIP",
        "ADDRESS",
        "PORTS",
        "PROTOCOL",
        "FORWARD",
        "BACKENDS",
        "!SCHEDULER",
        "!AFFINITY",
        "!ANNOUNCED",
        ">FLOWS",
        "!>FLOWS EVER",
        ">PACKETS IN",
        "?>PACKETS OUT",
        "?>DROPPED",
        "?>DENIED",
        "?>NOT ALLOWED",
        "?>OVER RATE",
    ];
    let mut columns = Columns::new(&headers, look);
    for vip in vips {
        columns.row([
            text(&vip.name),
            text(vip.address),
            text(ports(&vip.ports)),
            text(vip.protocol.as_str()),
            text(forward(vip)),
            serving(vip),
            text(&vip.scheduler),
            text(&vip.affinity),
            text(vip.announced_on.as_deref().unwrap_or("-")),
            flows(vip, vip.traffic.flows_active),
            flows(vip, vip.traffic.flows_total),
            count(vip.traffic.packets_in),
            count(vip.traffic.packets_out),
            count(vip.traffic.dropped),
            count(vip.denied),
            count(vip.not_allowed),
            count(vip.over_rate),
        ]);
    }
    columns
}

/// Returns the forwarding mode, with a note for a VIP without pins.
fn forward(vip: &VipStatus) -> String {
    let pins = if vip.pin { "" } else { ", pin = false" };
    format!("{}{pins}", vip.forward.as_str())
}

/// Returns a cell with a number of flows; `-` for a VIP without pins.
fn flows(vip: &VipStatus, number: u64) -> Cell {
    if vip.pin { count(number) } else { text("-") }
}

/// Returns a cell with the number of backends that are up; red where none takes new flows. Counted
/// here, since an older process does not report it.
fn serving(vip: &VipStatus) -> Cell {
    let (up, all) = (vip.backends.iter().filter(|b| b.is_up()).count(), vip.backends.len());
    match vip.backends.iter().any(BackendStatus::is_in_service) {
        true if up == all => text(format!("{up}/{all} up")),
        true => coloured(format!("{up}/{all} up"), YELLOW),
        false if vip.fail_open => coloured(format!("{up}/{all} up, fail open"), RED),
        false if up > 0 => coloured(format!("{up}/{all} up, none in service"), RED),
        false => coloured(format!("{up}/{all} up"), RED),
    }
}

/// Table of sources that are too large for one backend.
fn splits(vips: &[VipStatus], look: Look) -> Columns {
    let mut columns = Columns::new(&["VIP", "SOURCE", ">PARTS", ">SHARE OF NEW FLOWS"], look);
    for vip in vips {
        for split in &vip.splits {
            columns.row([
                text(&vip.name),
                text(split.source),
                count(split.parts.into()),
                text(format!("{:.1} %", split.share * 100.0)),
            ]);
        }
    }
    columns
}

/// Formats ports as `80,443`; for many ports, the first few and the number of the others.
fn ports(ports: &[PortRange]) -> String {
    const SHOWN: usize = 6;
    if ports.is_empty() {
        return "all".to_owned();
    }
    let shown: Vec<_> = ports.iter().take(SHOWN).map(PortRange::to_string).collect();
    match ports.len().saturating_sub(SHOWN) {
        0 => shown.join(","),
        more => format!("{} and {more} more", shown.join(",")),
    }
}

fn backends(vips: &[VipStatus], look: Look) -> Columns {
    let headers = [
        "BACKEND",
        "ADDRESS",
        ">WEIGHT",
        "HEALTH",
        "STATE",
        ">FLOWS",
        ">PACKETS IN",
        "!>PACKETS OUT",
        "?>UNANSWERED",
        "?>OVER LIMIT",
        "!NEXT HOP",
        "?WHY",
    ];
    let mut columns = Columns::new(&headers, look);
    let all = vips.iter().flat_map(|vip| vip.backends.iter().map(move |backend| (vip, backend)));
    for (vip, backend) in all {
        columns.row([
            text(format!("{}/{}", backend.vip, backend.name)),
            text(address(backend)),
            count(backend.weight.into()),
            health(backend.health),
            state(backend),
            flows(vip, backend.traffic.flows_active),
            count(backend.traffic.packets_in),
            count(backend.traffic.packets_out),
            count(backend.syns_unanswered),
            count(backend.over_limit),
            next_hop(backend.next_hop.as_ref()),
            text(why(backend)),
        ]);
    }
    columns
}

/// Table of the backends that drain.
fn drains(vips: &[VipStatus], look: Look) -> Columns {
    let headers =
        ["BACKEND", ">FLOWS LEFT", ">OF", ">OLDEST", ">ENDS IN", ">DEADLINE IN", "THEN", "?>CUT"];
    let mut columns = Columns::new(&headers, look);
    let time = |s: Option<u64>, none: &str| text(s.map_or_else(|| none.to_owned(), span));
    for backend in vips.iter().flat_map(|vip| &vip.backends) {
        let Some(drain) = &backend.drain else { continue };
        let oldest = if drain.flows_left == 0 { "-" } else { "unknown" };
        columns.row([
            text(format!("{}/{}", backend.vip, backend.name)),
            count(drain.flows_left),
            count(drain.flows_at_start),
            time(drain.oldest_flow_s, oldest),
            time(drain.ends_in_s, "unknown"),
            time(drain.deadline_in_s, "-"),
            text(drain.then.as_str()),
            count(drain.flows_cut),
        ]);
    }
    columns
}

/// Table of the backends that a reload removed.
fn removed(backends: &[RemovedStatus], look: Look) -> Columns {
    let mut columns = Columns::new(&["BACKEND", "ADDRESS", ">FLOWS LEFT", "THEN"], look);
    for backend in backends {
        let address = match backend.port {
            Some(port) => SocketAddr::new(backend.address, port).to_string(),
            None => backend.address.to_string(),
        };
        columns.row([
            text(format!("{}/{}", backend.vip, backend.backend)),
            text(address),
            count(backend.flows_left),
            text(backend.then.as_str()),
        ]);
    }
    columns
}

/// Returns the known reasons why a backend takes no new flows, or serves its clients badly.
fn why(backend: &BackendStatus) -> String {
    let reasons = [&backend.health_detail, &backend.next_hop_detail, &backend.hint];
    let reasons: Vec<&str> =
        reasons.into_iter().map(String::as_str).filter(|reason| !reason.is_empty()).collect();
    reasons.join("; ")
}

fn address(backend: &BackendStatus) -> String {
    match backend.port {
        Some(port) => std::net::SocketAddr::new(backend.address, port).to_string(),
        None => backend.address.to_string(),
    }
}

fn health(health: HealthState) -> Cell {
    match health {
        HealthState::Unchecked => text("unchecked"),
        HealthState::Unknown => coloured("unknown", YELLOW),
        HealthState::Up => coloured("up", GREEN),
        HealthState::Down => coloured("down", RED),
    }
}

fn state(backend: &BackendStatus) -> Cell {
    match backend.state {
        BackendState::Active if backend.share_percent < 100 => {
            text(format!("active ({}% of its new flows)", backend.share_percent))
        }
        BackendState::Active if backend.full => coloured("active (full)", YELLOW),
        BackendState::Active => text("active"),
        BackendState::Drained if backend.flows_cut > 0 => {
            coloured(format!("drained ({} cut)", grouped(backend.flows_cut)), YELLOW)
        }
        BackendState::Drained => coloured("drained", YELLOW),
        BackendState::Draining => {
            let left = backend.deadline_in_s.map(|s| format!(" ({} left)", span(s)));
            coloured(format!("draining{}", left.unwrap_or_default()), YELLOW)
        }
    }
}

fn next_hop(hop: Option<&NextHopStatus>) -> Cell {
    let Some(hop) = hop else { return coloured("unresolved", RED) };
    let outer = hop.outer_vlan.map(|vlan| format!("{vlan}.")).unwrap_or_default();
    let vlan = hop.vlan.map(|vlan| format!(" vlan {outer}{vlan}")).unwrap_or_default();
    // An MTU other than Ethernet's is shown; 0 comes from an older process.
    let mtu = match hop.mtu {
        0 | 1500 => String::new(),
        other => format!(" mtu {other}"),
    };
    text(format!("{} on {}{vlan}{mtu}", hop.mac, hop.interface))
}

fn workers(workers: &[WorkerStatus], look: Look) -> Columns {
    let headers = [
        "WORKER",
        ">CORE",
        ">RECEIVED",
        ">TRANSMITTED",
        "?>HANDED OVER",
        "?>DROPPED",
        ">FLOWS",
        ">OF",
        "!>BATCHES",
        "!>IDLE POLLS",
        "!>SLEEPS",
    ];
    let mut columns = Columns::new(&headers, look);
    for (index, worker) in workers.iter().enumerate() {
        columns.row([
            text(index),
            text(worker.core),
            count(worker.totals.received),
            count(worker.totals.transmitted),
            count(worker.totals.handed_over),
            count(worker.totals.dropped),
            count(worker.totals.flows_active),
            count(worker.flow_capacity.into()),
            count(worker.batches),
            count(worker.idle_polls),
            count(worker.sleeps),
        ]);
    }
    columns
}

/// Table of the flow tables' usage, with the rates of new flows that they bear.
fn flow_tables(tables: &[FlowTableStatus], look: Look) -> Columns {
    let headers =
        ["FAMILY", ">FLOWS", ">OF", ">NEW/S", ">LOAD", "?>BEARS TCP/S", "?>BEARS UDP/S", "?HINT"];
    let mut columns = Columns::new(&headers, look);
    for table in tables {
        columns.row([
            text(if table.family == "ipv4" { "IPv4" } else { "IPv6" }),
            count(table.used),
            count(table.capacity),
            count(table.new_per_second),
            text(format!("{} %", table.load_percent)),
            count(table.tcp_per_second.unwrap_or_default()),
            count(table.udp_per_second.unwrap_or_default()),
            table.hint.as_ref().map_or_else(|| text(""), |hint| coloured(hint, YELLOW)),
        ]);
    }
    columns
}

/// Table of NIC faults since the start.
fn nic_faults(nics: &[NicStatus], look: Look) -> Columns {
    let mut columns = Columns::new(&["NIC", "FAULT", "WHAT TO DO"], look);
    for nic in nics {
        for fault in &nic.faults {
            let kind = fault.kind.replace('_', " ");
            columns.row([text(&nic.interface), coloured(kind, RED), text(&fault.text)]);
        }
    }
    columns
}

fn nics(nics: &[NicStatus], look: Look) -> Columns {
    let headers = [
        "NIC",
        "DRIVER",
        "XDP",
        "MODE",
        "QUEUES",
        ">RX PACKETS",
        "!>RX BYTES",
        ">TX PACKETS",
        "!>TX BYTES",
        "?WHY",
    ];
    let mut columns = Columns::new(&headers, look);
    for nic in nics {
        let queues: Vec<_> = nic.queues.iter().map(u32::to_string).collect();
        columns.row([
            text(&nic.interface),
            text(&nic.driver),
            text(&nic.xdp),
            text(nic.mode.replace('_', " ") + if nic.multi_buffer { ", multi-buffer" } else { "" }),
            text(queues.join(",")),
            count(nic.rx_packets),
            count(nic.rx_bytes),
            count(nic.tx_packets),
            count(nic.tx_bytes),
            text(nic.fallbacks.join("; ")),
        ]);
    }
    columns
}

fn nic_counters(nics: &[NicStatus], look: Look) -> Columns {
    let headers = [
        "NIC",
        ">STEERED",
        ">TO KERNEL",
        "?>NO SOCKET",
        "?>GUARDED",
        "?>DENIED",
        "?>NOT ALLOWED",
        "?>OVER RATE",
        "?>RX DROPPED",
        "?>RX RING FULL",
        "?>FILL EMPTY",
        "?>INVALID",
        "?>NO FREE FRAME",
        "!>TX WAKEUPS",
    ];
    let mut columns = Columns::new(&headers, look);
    for nic in nics {
        let invalid = [nic.kernel_rx_invalid, nic.kernel_tx_invalid, nic.bad_descriptors];
        columns.row([
            text(&nic.interface),
            count(nic.steered),
            count(nic.passed),
            count(nic.no_socket),
            count(nic.guarded),
            count(nic.denied),
            count(nic.not_allowed),
            count(nic.over_rate),
            count(nic.kernel_rx_dropped),
            count(nic.kernel_rx_ring_full),
            count(nic.kernel_rx_fill_empty),
            count(invalid.iter().fold(0, |sum: u64, n| sum.saturating_add(*n))),
            count(nic.no_free_frame),
            count(nic.tx_wakeups),
        ]);
    }
    columns
}

fn full_nat_sources(full_nat: &FullNatStatus, look: Look) -> Columns {
    let headers = ["FAMILY", ">ADDRESSES", "PORTS", ">IN USE", ">FREE"];
    let mut columns = Columns::new(&headers, look);
    let (first, last) = full_nat.ports;
    for (family, v4, pool) in [("IPv4", true, full_nat.v4), ("IPv6", false, full_nat.v6)] {
        let addresses = full_nat.sources.iter().filter(|source| source.is_ipv4() == v4).count();
        if addresses > 0 {
            let ports = format!("{first}-{last}");
            columns.row([
                text(family),
                text(addresses),
                text(ports),
                count(pool.used),
                count(pool.free),
            ]);
        }
    }
    columns
}

fn totals(totals: &Totals, look: Look) -> Columns {
    let mut columns = Columns::new(&["WHAT", ">COUNT", "MEANING"], look);
    for (what, number, meaning) in [
        ("received", totals.received, "packets taken from the NICs"),
        ("transmitted", totals.transmitted, "packets sent on"),
        ("handed over", totals.handed_over, "packets given to another worker"),
        ("answered", totals.answered, "packets sent back as their own answer"),
        ("dropped", totals.dropped, "packets dropped, each for a reason"),
        ("flows", totals.flows_active, "flows pinned now"),
        ("new", totals.flows_new, "flows that began here"),
        ("found elsewhere", totals.flows_found_elsewhere, "flows that another worker had pinned"),
        ("by hash", totals.flows_by_hash, "flows without a pin at any worker, pinned again"),
        ("by QUIC id", totals.flows_by_cid, "flows with a connection id that names their backend"),
        ("placed", totals.datagrams_placed, "datagrams that were placed without a pin"),
        ("closed", totals.flows_closed, "flows that ended by FIN or RST, and a while ago"),
        ("idled out", totals.flows_idled_out, "flows given up after silence while open"),
        ("evicted", totals.flows_evicted, "unproven flows removed from a full table"),
        ("stale", totals.flows_stale, "pins given up: backend gone, or pin = false now"),
        ("clients full", totals.clients_full, "clients that found no room to be remembered"),
        (
            "unpinned",
            totals.table_full_unpinned,
            "packets forwarded by the hash alone, as the flow table was full",
        ),
        (
            "over budget",
            totals.new_flow_limit_unpinned,
            "packets forwarded by the hash alone, as too many flows were new",
        ),
        ("reset", totals.flows_reset, "flows that were cut, and their ends told"),
        ("resets sent", totals.resets_sent, "RST segments that told them"),
        ("probes sent", totals.probes_sent, "segments that made silent ends speak"),
        (
            "handshakes sent",
            totals.handshakes_sent,
            "SYNs and ACKs of ours to backends (syn_proxy)",
        ),
        (
            "asks sent",
            totals.asks_sent,
            "packets without a pin, to backends that may have the flow",
        ),
        ("fragments sent", totals.fragments_sent, "further pieces of packets that were too long"),
        (
            "ICMP errors",
            totals.icmp_errors_forwarded,
            "ICMP errors sent on to an end of their flow",
        ),
        (
            "rate limited",
            totals.icmp_rate_limited,
            "packets that got no ICMP error, as too many did",
        ),
    ] {
        let always = ["received", "transmitted", "flows"];
        if look.all || number > 0 || always.contains(&what) {
            columns.row([text(what), count(number), text(meaning)]);
        }
    }
    columns
}

/// Table of packet outcomes. Shows only outcomes that have occurred, the most frequent first.
fn endings(
    what: &'static str,
    endings: &BTreeMap<String, u64>,
    meaning: impl Fn(&str) -> &'static str,
    look: Look,
) -> Columns {
    let mut columns = Columns::new(&[what, ">PACKETS", "MEANING"], look);
    let mut seen: Vec<_> = endings.iter().filter(|(_, count)| **count > 0).collect();
    seen.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (name, &number) in seen {
        columns.row([text(name), count(number), text(meaning(name))]);
    }
    columns
}
