//! Documents of the control API, as the server writes and the command line reads them.
//!
//! HTTP/1.1 over the Unix socket of `[control] socket`. Field names are a contract (`docs/API.md`):
//! fields are added, never renamed. Added fields have a default, since a command line is often
//! newer than the process it talks to.
//!
//! | request | body | reply |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/drain` | [`DrainRequest`] | [`Ordered`] |
//! | `POST /v1/undrain` | [`UndrainRequest`] | [`Ordered`] |
//! | `GET /v1/events?since=` | | [`EventList`] |
//! | `POST /v1/reload` | [`ReloadRequest`], or none | [`Reloaded`] |
//! | `GET /v1/flows?vip=&backend=&client=&limit=` | | JSON lines of [`Flow`] |
//! | `GET /v1/clients?vip=&backend=&client=&limit=` | | JSON lines of [`Client`] |
//! | `DELETE /v1/clients?vip=&backend=&client=&all=` | | [`Forgotten`] |
//! | `GET /v1/deny` | | [`DenyList`] |
//! | `POST /v1/deny` | [`DenyRequest`] | [`DenyEntry`] |
//! | `DELETE /v1/deny?prefix=&vip=` | | [`DenyEntry`] |
//! | `GET /v1/explain?vip=&client=&port=&midflow=&syn=&payload=` | | [`Explained`] |
//!
//! Every error is a 4xx or 5xx with an [`ApiError`] body.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::forwarding::explain::Step;
use crate::forwarding::{FlowAction, Service};
use crate::net::{Forward, Network, PortRange, Protocol};

/// Privileges of the process, after the start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SecurityStatus {
    /// Names of the control thread's capabilities, sorted; workers have none.
    pub capabilities: Vec<String>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

/// Reply to `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of holdfast.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Path of the configuration file.
    pub config: String,
    /// Generation of the published forwarding table.
    pub generation: u64,
    /// What the choice of a backend depends on.
    #[serde(default)]
    pub digests: DigestStatus,
    /// Log lines lost because the reader had gone or was too slow.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// Privileges of the process.
    #[serde(default)]
    pub security: SecurityStatus,
    /// Packet sums over all workers.
    pub totals: Totals,
    /// Packets turned into a local reply, by kind, summed over all workers; every kind is present.
    #[serde(default)]
    pub answers: BTreeMap<String, u64>,
    /// Dropped packets by reason, summed over all workers; every reason is present.
    pub drops: BTreeMap<String, u64>,
    /// VIPs in configuration order.
    pub vips: Vec<VipStatus>,
    /// Backends that a reload has removed and that still have flows.
    #[serde(default)]
    pub removed: Vec<RemovedStatus>,
    /// SNAT pool of full NAT; `None` if it has no source addresses.
    #[serde(default)]
    pub full_nat: Option<FullNatStatus>,
    /// Use and capacity of the flow tables, by family of VIPs.
    #[serde(default)]
    pub flow_tables: Vec<FlowTableStatus>,
    /// Workers in configuration order.
    pub workers: Vec<WorkerStatus>,
    /// NICs in configuration order.
    pub nics: Vec<NicStatus>,
}

/// Digests of what the choice of a backend depends on, 16 hexadecimal digits each: boxes with the same
/// ones choose alike.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DigestStatus {
    /// Of the configuration.
    pub configured: String,
    /// Of the backends that take new flows, too, of their shares, and of split sources.
    pub in_force: String,
}

/// Flow tables of all workers, for one address family.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FlowTableStatus {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Largest number of flows.
    pub capacity: u64,
    /// Pinned flows.
    pub used: u64,
    /// New TCP flows per second that the tables sustain, if each flow is as short as possible;
    /// `None`: no such VIP.
    pub tcp_per_second: Option<u64>,
    /// New flows per second of UDP and all-protocol VIPs that the tables sustain; `None`: no such
    /// VIP.
    pub udp_per_second: Option<u64>,
    /// New flows per second in the last window of 5 s.
    pub new_per_second: u64,
    /// Percentage of the capacity that the new flows take, if each is as short as possible.
    pub load_percent: u64,
    /// Remedy, if the tables are nearly full or about to be.
    pub hint: Option<String>,
}

/// SNAT pool of full NAT.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FullNatStatus {
    /// Source addresses.
    pub sources: Vec<IpAddr>,
    /// First and last source port.
    pub ports: (u16, u16),
    /// Use of the IPv4 pool, summed over all workers.
    pub v4: PoolStatus,
    /// Use of the IPv6 pool, summed over all workers.
    pub v6: PoolStatus,
}

/// Use of a SNAT pool, in pairs of address and port.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Pairs held by flows.
    pub used: u64,
    /// Free pairs.
    pub free: u64,
}

/// Packet sums: `received = transmitted + handed_over + answered + dropped`, except for packets in
/// flight.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in WorkerStats")]
pub struct Totals {
    pub received: u64,
    pub transmitted: u64,
    pub handed_over: u64,
    #[serde(default)]
    pub answered: u64,
    pub dropped: u64,
    pub flows_active: u64,
    pub flows_new: u64,
    pub flows_found_elsewhere: u64,
    pub flows_by_hash: u64,
    #[serde(default)]
    pub flows_by_cid: u64,
    #[serde(default)]
    pub datagrams_placed: u64,
    #[serde(default)]
    pub flows_closed: u64,
    pub flows_idled_out: u64,
    pub flows_stale: u64,
    /// Pins of unproven flows removed because a new flow found the table full.
    pub flows_evicted: u64,
    #[serde(default)]
    pub bindings_v4: u64,
    #[serde(default)]
    pub bindings_v6: u64,
    #[serde(default)]
    pub clients_full: u64,
    #[serde(default)]
    pub table_full_unpinned: u64,
    #[serde(default)]
    pub new_flow_limit_unpinned: u64,
    #[serde(default)]
    pub fragments_parked: u64,
    #[serde(default)]
    pub flows_reset: u64,
    #[serde(default)]
    pub resets_sent: u64,
    #[serde(default)]
    pub probes_sent: u64,
    /// SYNs and ACKs sent to backends of VIPs with `syn_proxy`, besides those that packets of clients
    /// became.
    #[serde(default)]
    pub handshakes_sent: u64,
    #[serde(default)]
    pub fragments_sent: u64,
    /// Packets in mid-flow without a pin, sent to backends that may have their flow.
    #[serde(default)]
    pub asks_sent: u64,
    pub icmp_errors_forwarded: u64,
    #[serde(default)]
    pub icmp_rate_limited: u64,
}

/// Status of a VIP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VipStatus {
    /// Name of the VIP.
    pub name: String,
    /// Address or prefix.
    pub address: Network,
    /// Ports, and ranges such as `"8000-8999"`; empty for all.
    pub ports: Vec<PortRange>,
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub forward: Forward,
    /// Whether flows keep their backends; false: each datagram is scheduled by itself.
    #[serde(default = "pinned")]
    pub pin: bool,
    /// Scheduler that chooses the backend of a new flow.
    #[serde(default)]
    pub scheduler: String,
    /// Affinity: the flows that are scheduled together.
    #[serde(default)]
    pub affinity: String,
    /// Interface to which holdfast added the address, if it did.
    pub announced_on: Option<String>,
    /// Sources (an address, or the first one of a network) that are too large for one backend and
    /// so are spread over several.
    #[serde(default)]
    pub splits: Vec<SplitStatus>,
    /// Whether packets are forwarded as if all backends were up, since none is (`fail_open`).
    #[serde(default)]
    pub fail_open: bool,
    /// Packets dropped because a deny list has their source.
    #[serde(default)]
    pub denied: u64,
    /// Packets dropped because an allow list lacks their source.
    #[serde(default)]
    pub not_allowed: u64,
    /// Packets dropped because their source has sent more than its rate.
    #[serde(default)]
    pub over_rate: u64,
    /// Number of backends that are up: next hop resolved, and health check not failing.
    #[serde(default)]
    pub backends_up: usize,
    /// Number of backends that are up and take new flows: active, with non-zero weight.
    #[serde(default)]
    pub backends_in_service: usize,
    /// Traffic of the VIP.
    pub traffic: Traffic,
    /// Backends in configuration order.
    pub backends: Vec<BackendStatus>,
}

/// A source whose new flows are spread by ranges of client ports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SplitStatus {
    /// Client address, masked by the VIP's affinity prefix.
    pub source: IpAddr,
    /// Number of parts.
    pub parts: u16,
    /// Share of the VIP's new flows in the last two seconds, 0 to 1.
    pub share: f64,
}

/// Status of a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub name: String,
    /// Address of the backend.
    pub address: IpAddr,
    /// NAT: port of the backend, if set.
    pub port: Option<u16>,
    /// Weight.
    pub weight: u32,
    /// Result of the health check.
    pub health: HealthState,
    /// Reason for the health state, in words: the last failure, or empty.
    pub health_detail: String,
    /// Seconds for which flap damping will hold the backend down; `None`: it does not.
    #[serde(default)]
    pub held_down_for_s: Option<u64>,
    /// Flaps that are not forgotten: they determine the next hold.
    #[serde(default)]
    pub flaps: u32,
    /// State: in service, draining or drained.
    pub state: BackendState,
    /// Seconds until the drain's deadline; `None`: there is none.
    pub deadline_in_s: Option<u64>,
    /// Flows left at the drain's deadline and not kept.
    pub flows_cut: u64,
    /// Progress of the drain; `None`: the backend does not drain.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
    /// Flows above which it takes no new ones; `None`: no limit.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Whether it is, or was a moment ago, at this limit.
    #[serde(default)]
    pub full: bool,
    /// New flows that it did not get because of the limit.
    #[serde(default)]
    pub over_limit: u64,
    /// Share of its new flows that the backend gets, in per cent: less than 100 during slow start.
    #[serde(default = "whole")]
    pub share_percent: u8,
    /// Seconds for which the passive check keeps new flows from the backend; `None`: it does not.
    #[serde(default)]
    pub passive_out_for_s: Option<u64>,
    /// Next hop of frames to the backend; `None`: unresolved.
    pub next_hop: Option<NextHopStatus>,
    /// Reason for the missing next hop, in words; empty if it is resolved.
    #[serde(default)]
    pub next_hop_detail: String,
    /// Unanswered SYNs: flows that ended in the state in which they began.
    #[serde(default)]
    pub syns_unanswered: u64,
    /// Whether it can be asked for connections: `ready`, or why not; `None`: its VIP does not ask.
    #[serde(default)]
    pub ask: Option<String>,
    /// Possible fault of a backend that is up, in words; empty: none is known.
    #[serde(default)]
    pub hint: String,
    /// Traffic of the backend.
    pub traffic: Traffic,
}

impl BackendStatus {
    /// Returns whether the next hop is resolved and the health check does not fail.
    pub fn is_up(&self) -> bool {
        self.health != HealthState::Down && self.next_hop.is_some()
    }

    /// Returns whether the backend takes new flows.
    pub fn is_in_service(&self) -> bool {
        let takes_flows = self.weight > 0 && self.share_percent > 0;
        self.is_up() && self.state == BackendState::Active && takes_flows
    }
}

/// Default share of new flows, in per cent, for replies of processes without slow start.
const fn whole() -> u8 {
    100
}

/// Default of `pin`, for replies of processes without unpinned VIPs.
const fn pinned() -> bool {
    true
}

/// Progress of a drain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Seconds since the drain began.
    pub for_s: u64,
    /// Flows that were pinned when the drain began.
    pub flows_at_start: u64,
    /// Flows that are still pinned.
    pub flows_left: u64,
    /// Age of the oldest pinned flow, in seconds; `None`: not known yet.
    pub oldest_flow_s: Option<u64>,
    /// Estimated seconds until the last flow has ended or is terminated; `None`: not known.
    pub ends_in_s: Option<u64>,
    /// Seconds until the deadline; `None`: there is none, or it has passed.
    pub deadline_in_s: Option<u64>,
    /// Action for the flows left at the deadline.
    pub then: FlowAction,
    /// Flows left at the deadline and not kept.
    pub flows_cut: u64,
}

/// Result of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check is configured.
    Unchecked,
    /// No result yet; counts as up.
    Unknown,
    /// The check passes.
    Up,
    /// The check fails.
    Down,
}

/// Service state of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Takes new flows (if it is up).
    Active,
    /// Keeps its flows, takes no new ones.
    Draining,
    /// Draining, and no flows are left.
    Drained,
}

impl BackendState {
    /// Returns the state for the ordered service and the number of pinned flows.
    pub const fn of(service: Service, flows_active: u64) -> Self {
        match service {
            Service::Active => Self::Active,
            Service::Draining if flows_active > 0 => Self::Draining,
            Service::Draining | Service::Out => Self::Drained,
        }
    }
}

/// A resolved next hop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NextHopStatus {
    /// Interface name of the NIC.
    pub interface: String,
    /// Destination MAC, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// VLAN id, if tagged.
    pub vlan: Option<u16>,
    /// Longest IP packet that can be sent to the backend, in bytes; 0 from a process that does not
    /// report it.
    #[serde(default)]
    pub mtu: u16,
    /// Outer VLAN id, if double-tagged (QinQ).
    pub outer_vlan: Option<u16>,
}

/// Counters of a VIP or backend.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in FlowStats")]
pub struct Traffic {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
    pub flows_total: u64,
    pub flows_active: u64,
    pub dropped: u64,
}

/// Status of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in WorkerStats")]
pub struct WorkerStatus {
    pub core: usize,
    pub flow_capacity: u32,
    pub flow_aliases: u64,
    pub totals: Totals,
    pub drops: BTreeMap<String, u64>,
    pub batches: u64,
    pub idle_polls: u64,
    pub sleeps: u64,
}

/// Status of a NIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in PortStats and the kernel's xdp_statistics")]
pub struct NicStatus {
    pub interface: String,
    pub driver: String,
    /// `"native"` or `"generic"`.
    pub xdp: String,
    /// `"zero_copy"`, `"copy"`, or `"mixed"` when queues differ.
    pub mode: String,
    /// Whether a packet may span several frames of memory.
    pub multi_buffer: bool,
    /// Queues served by workers.
    pub queues: Vec<u32>,
    /// Reasons for which `xdp` or `mode` is not the best one, in sentences.
    #[serde(default)]
    pub fallbacks: Vec<String>,
    /// Faults that have occurred since the start and persist.
    #[serde(default)]
    pub faults: Vec<NicFaultStatus>,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_wakeups: u64,
    pub bad_descriptors: u64,
    pub no_free_frame: u64,
    /// Packets that the XDP program redirected to a worker (`steered`), left to the kernel
    /// (`passed`), or dropped because no socket serves their queue (`no_socket`); and packets that
    /// missed it, and were dropped by the guard (`guarded`).
    pub steered: u64,
    pub passed: u64,
    pub no_socket: u64,
    #[serde(default)]
    pub guarded: u64,
    /// Packets for a VIP that the XDP program dropped: a deny list has their source (`denied`), or an
    /// allow list lacks it (`not_allowed`), or it has sent more than its rate (`over_rate`).
    #[serde(default)]
    pub denied: u64,
    #[serde(default)]
    pub not_allowed: u64,
    #[serde(default)]
    pub over_rate: u64,
    /// Counters of the kernel's sockets (XDP_STATISTICS).
    pub kernel_rx_dropped: u64,
    pub kernel_rx_ring_full: u64,
    pub kernel_rx_fill_empty: u64,
    pub kernel_rx_invalid: u64,
    pub kernel_tx_invalid: u64,
}

/// A fault of a NIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NicFaultStatus {
    /// Name of a `nic_faults::NicFault`; later versions may add others.
    pub kind: String,
    /// Description of the fault, its cost and its cure.
    pub text: String,
}

/// Body of `POST /v1/drain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// Seconds, at least 1, until the flows that are left are terminated; `None`: a drain in
    /// progress keeps its deadline, and a new one has none.
    pub deadline_s: Option<u64>,
    /// Further backends: all are drained, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Name>,
    /// Whether to drain even if a VIP is left without a backend that takes new flows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Name of a backend and its VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
}

/// Result of a drain or undrain order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ordered {
    /// The first backend of the order.
    #[serde(flatten)]
    pub backend: BackendStatus,
    /// Further backends, in the order of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<BackendStatus>,
}

/// Body of `POST /v1/undrain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndrainRequest {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// Further backends: all are put back into service, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Name>,
}

/// Body of `POST /v1/deny`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyRequest {
    /// Address or prefix to deny.
    pub prefix: String,
    /// Name of the VIP; `None`: all VIPs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<String>,
    /// Seconds until the end; `None`: until it is removed. Replaces the end of a prefix that is
    /// denied already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u64>,
}

/// A prefix that is, or was, denied at run time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DenyEntry {
    /// Address or prefix.
    pub prefix: Network,
    /// Name of the VIP; `None`: all VIPs.
    pub vip: Option<String>,
    /// Seconds until the end; `None`: it is denied until it is removed.
    pub ends_in_s: Option<u64>,
}

/// Reply to `GET /v1/deny`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DenyList {
    /// Prefixes that were denied at run time, those of all VIPs first.
    pub denied: Vec<DenyEntry>,
    /// Sizes of all lists, with those of the configuration.
    pub lists: Vec<ListSize>,
    /// Whether a change is not in force yet.
    pub pending: bool,
}

/// Size of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListSize {
    /// Name of the VIP; `None`: all VIPs.
    pub vip: Option<String>,
    /// `deny` or `allow`.
    pub kind: String,
    /// Number of prefixes.
    pub prefixes: usize,
}

/// Reply to `GET /v1/events`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventList {
    /// Sequence number of the latest event; the next value of `since`.
    pub last: u64,
    /// Number of events after `since` that are no longer kept.
    pub lost: u64,
    /// Events after `since` that are kept, the oldest first.
    pub events: Vec<Event>,
}

/// An event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Sequence number, from 1 at the start of the process.
    pub seq: u64,
    /// Time in UTC (RFC 3339, with milliseconds).
    pub time: String,
    /// Name of an `events::Kind`; later versions may add others.
    pub kind: String,
    /// Name of the VIP, if the event concerns one.
    pub vip: Option<String>,
    /// Name of the backend, if the event concerns one.
    pub backend: Option<String>,
    /// Interface name of the NIC, if the event concerns one.
    #[serde(default)]
    pub nic: Option<String>,
    /// Fault that began or ended on the NIC: the `kind` of [`NicFaultStatus`].
    #[serde(default)]
    pub fault: Option<String>,
    /// Counts that belong to the event, by name.
    #[serde(default)]
    pub numbers: BTreeMap<String, u64>,
    /// The whole event in words.
    pub text: String,
}

/// A backend that a reload has removed and that still has flows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// Name of the VIP at the time of removal.
    pub vip: String,
    /// Name of the backend at the time of removal.
    pub backend: String,
    /// Address of the backend.
    pub address: IpAddr,
    /// Port of the backend, if it differs from the client's destination port.
    pub port: Option<u16>,
    /// Flows that are still pinned to it.
    pub flows_left: u64,
    /// Action for these flows.
    pub then: FlowAction,
}

/// Reply to `POST /v1/reload`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloaded {
    /// Differences between the configurations, one sentence each; empty if nothing changed.
    pub changes: Vec<String>,
    /// Whether this was a dry run, which applies nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Flows of removed VIPs, backends, addresses and ports.
    #[serde(default)]
    pub flows: Vec<FlowsRemoved>,
    /// Whether deny or allow lists are still being changed.
    #[serde(default)]
    pub lists_pending: bool,
}

/// The flows of a VIP, backend, address or port that a reload removes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowsRemoved {
    /// Name of the VIP before the reload.
    pub vip: String,
    /// Name of the backend before the reload; `None`: ports or the address of the VIP.
    pub backend: Option<String>,
    /// Number of flows.
    pub flows: u64,
    /// Action for these flows.
    pub then: FlowAction,
}

/// Optional body of `POST /v1/reload`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadRequest {
    /// Report the changes without applying them.
    pub dry_run: bool,
}

/// One line of `GET /v1/flows`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// Protocol of the VIP.
    pub protocol: Protocol,
    /// Address and port of the client.
    pub client: SocketAddr,
    /// Destination address and port of the client's packets.
    pub destination: SocketAddr,
    /// Full NAT: SNAT address and port; `None` in other modes.
    #[serde(default)]
    pub source: Option<SocketAddr>,
    /// `"embryonic"`, `"established"`, `"closing"`, `"cut"`, `"udp"`, `"udp_first"`, `"any"` or
    /// `"any_first"`.
    pub state: String,
    /// Milliseconds since the flow was pinned.
    pub age_ms: u64,
    /// Milliseconds since the last packet.
    pub idle_ms: u64,
    /// Index of the worker that holds the pin.
    pub worker: usize,
}

/// One line of `GET /v1/clients`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    /// Name of the VIP; `None` if it was removed.
    pub vip: Option<String>,
    /// Address or prefix of the client.
    pub client: IpAddr,
    /// Number of the part of a divided source; 1 if the source is not divided.
    pub part: u16,
    /// Name of the backend; `None` if it was removed, or its drain met the deadline.
    pub backend: Option<String>,
    /// Milliseconds since the client was assigned to the backend.
    pub age_ms: u64,
    /// Milliseconds since a packet of the client was recorded last, with an error of up to 1.3 s.
    pub idle_ms: u64,
    /// Whether the client has proven its address by a handshake.
    pub proven: bool,
    /// Whether the client was silent for longer than the VIP's time-out.
    pub expired: bool,
}

/// Reply to `DELETE /v1/clients`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forgotten {
    /// Number of forgotten clients.
    pub forgotten: usize,
}

/// Reply to `GET /v1/explain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// Name of the VIP.
    pub vip: String,
    /// Address and port of the client.
    pub client: SocketAddr,
    /// Destination address and port of the packet.
    pub destination: SocketAddr,
    /// Protocol of the VIP.
    pub protocol: Protocol,
    /// Name of the backend to which the packet is sent; `None`: the packet is dropped.
    pub backend: Option<String>,
    /// Name of that backend's VIP. It differs from `vip` for a flow that began before a reload gave
    /// its port to `vip`.
    #[serde(default)]
    pub backend_vip: Option<String>,
    /// Decisions in the order in which they are made.
    pub steps: Vec<Step>,
    /// The transmitted frame in hex digits; empty if the packet is dropped.
    pub frame: String,
}

/// Body of every error reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiError {
    /// Mistake, its location and its remedy; several mistakes are separated by line breaks.
    pub error: String,
    /// The mistakes, one entry each.
    #[serde(default)]
    pub errors: Vec<String>,
}
