//! The documents of the control API, as the server writes and the command line reads them.
//!
//! HTTP/1.1 over the Unix socket of `[control] socket`. Field names are a contract
//! (`docs/API.md`): fields are added, never renamed. Those that were added have a default, for
//! a command line is often newer than the process that it asks.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/drain` | [`DrainRequest`] | [`Ordered`] |
//! | `POST /v1/undrain` | [`UndrainRequest`] | [`Ordered`] |
//! | `GET /v1/events?since=` | | [`EventList`] |
//! | `POST /v1/reload` | | [`Reloaded`] |
//! | `GET /v1/flows?vip=&backend=&client=&limit=` | | JSON lines of [`Flow`] |
//! | `GET /v1/clients?vip=&backend=&client=&limit=` | | JSON lines of [`Client`] |
//! | `DELETE /v1/clients?vip=&backend=&client=&all=` | | [`Forgotten`] |
//! | `GET /v1/explain?vip=&client=&port=&midflow=&syn=&payload=` | | [`Explained`] |
//!
//! Every error is a 4xx or 5xx with an [`ApiError`] body.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::forwarding::explain::Step;
use crate::forwarding::{FlowAction, Service};
use crate::net::{Forward, Network, PortRange, Protocol};

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of holdfast.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The configuration file.
    pub config: String,
    /// Generation of the forwarding table that is published.
    pub generation: u64,
    /// Lines of the log that were lost, as its reader had gone or was too slow.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// Packets, all workers together.
    pub totals: Totals,
    /// Packets that went back as their own answer, by kind, all workers together; every kind is present.
    #[serde(default)]
    pub answers: BTreeMap<String, u64>,
    /// Dropped packets by reason, all workers together; every reason is present.
    pub drops: BTreeMap<String, u64>,
    /// VIPs in the configuration's order.
    pub vips: Vec<VipStatus>,
    /// Backends that a reload has taken away, while they have flows.
    #[serde(default)]
    pub removed: Vec<RemovedStatus>,
    /// The sources of full-NAT flows; `None` if there are none.
    #[serde(default)]
    pub full_nat: Option<FullNatStatus>,
    /// What the flow tables hold and bear, by family of VIPs.
    #[serde(default)]
    pub flow_tables: Vec<FlowTableStatus>,
    /// Workers in the configuration's order.
    pub workers: Vec<WorkerStatus>,
    /// NICs in the configuration's order.
    pub nics: Vec<NicStatus>,
}

/// The flow tables of all workers, of one family.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FlowTableStatus {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Flows that there is room for.
    pub capacity: u64,
    /// Flows that are pinned.
    pub used: u64,
    /// New TCP flows a second that the tables bear without end, if each is as short as can be; `None`: no
    /// such VIP.
    pub tcp_per_second: Option<u64>,
    /// The same for UDP, and for all protocols together.
    pub udp_per_second: Option<u64>,
    /// New flows a second, lately.
    pub new_per_second: u64,
    /// How much of the capacity they take, if each is as short as can be.
    pub load_percent: u64,
    /// What to do, if the tables are nearly full or going to be.
    pub hint: Option<String>,
}

/// The sources of full-NAT flows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FullNatStatus {
    /// Their addresses.
    pub sources: Vec<IpAddr>,
    /// First and last of their ports.
    pub ports: (u16, u16),
    /// Addresses and ports of IPv4, all workers together.
    pub v4: PoolStatus,
    /// The same for IPv6.
    pub v6: PoolStatus,
}

/// How much of a pool is in use.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Taken by flows.
    pub used: u64,
    /// For the next ones.
    pub free: u64,
}

/// Packet sums: `received = transmitted + handed_over + answered + dropped`, but for what is in flight.
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
    #[serde(default)]
    pub bindings_v4: u64,
    #[serde(default)]
    pub bindings_v6: u64,
    #[serde(default)]
    pub clients_full: u64,
    #[serde(default)]
    pub table_full_unpinned: u64,
    #[serde(default)]
    pub fragments_parked: u64,
    #[serde(default)]
    pub flows_reset: u64,
    #[serde(default)]
    pub resets_sent: u64,
    #[serde(default)]
    pub probes_sent: u64,
    #[serde(default)]
    pub fragments_sent: u64,
    pub icmp_errors_forwarded: u64,
    #[serde(default)]
    pub icmp_rate_limited: u64,
}

/// One VIP.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VipStatus {
    /// Name.
    pub name: String,
    /// Address, or prefix.
    pub address: Network,
    /// Ports, and ranges such as `"8000-8999"`; empty for all.
    pub ports: Vec<PortRange>,
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub forward: Forward,
    /// Whether its flows keep their backends; false: each datagram is placed by itself.
    #[serde(default = "pinned")]
    pub pin: bool,
    /// How it chooses a backend for a new flow.
    #[serde(default)]
    pub scheduler: String,
    /// Which flows belong together.
    #[serde(default)]
    pub affinity: String,
    /// The interface that has the address, if holdfast put it there.
    pub announced_on: Option<String>,
    /// Sources (an address, or the first of a network) that are too large for one backend, and so
    /// are spread over several.
    #[serde(default)]
    pub splits: Vec<SplitStatus>,
    /// Backends that are up: checked and found so, or not checked, and with a next hop.
    #[serde(default)]
    pub backends_up: usize,
    /// Those of them that take new flows: active, and with weight.
    #[serde(default)]
    pub backends_in_service: usize,
    /// Traffic of the VIP.
    pub traffic: Traffic,
    /// Backends in the configuration's order.
    pub backends: Vec<BackendStatus>,
}

/// A source whose new flows are spread by ranges of its ports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SplitStatus {
    /// The client, masked as the VIP's affinity says.
    pub source: IpAddr,
    /// Into how many parts.
    pub parts: u16,
    /// Its share of the VIP's new flows in the last two seconds, 0 to 1.
    pub share: f64,
}

/// One backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name of its VIP.
    pub vip: String,
    /// Name.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// NAT: its port, if set.
    pub port: Option<u16>,
    /// Weight.
    pub weight: u32,
    /// What its health check says.
    pub health: HealthState,
    /// Why, in words: the last failure, or empty.
    pub health_detail: String,
    /// In service, draining or drained.
    pub state: BackendState,
    /// Seconds until the drain's deadline.
    pub deadline_in_s: Option<u64>,
    /// Flows that were pinned to it when the drain met its deadline.
    pub flows_cut: u64,
    /// How its drain goes; `None`: nothing drains.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
    /// How much of its new flows it is given, in per cent: less than 100 during slow start.
    #[serde(default = "whole")]
    pub share_percent: u8,
    /// Where frames for it go; `None`: unresolved.
    pub next_hop: Option<NextHopStatus>,
    /// Why there is no next hop, in words; empty when there is one.
    #[serde(default)]
    pub next_hop_detail: String,
    /// SYNs that nothing answered: flows that ended as they began.
    #[serde(default)]
    pub syns_unanswered: u64,
    /// What may be wrong although it is up, in words; empty: nothing is known.
    #[serde(default)]
    pub hint: String,
    /// Traffic of the backend.
    pub traffic: Traffic,
}

impl BackendStatus {
    /// Whether packets can be sent to it, and its check does not fail.
    pub fn is_up(&self) -> bool {
        self.health != HealthState::Down && self.next_hop.is_some()
    }

    /// Whether it takes new flows.
    pub fn is_in_service(&self) -> bool {
        self.is_up() && self.state == BackendState::Active && self.weight > 0
    }
}

/// All of its new flows: what a process that knows no slow start gives a backend.
const fn whole() -> u8 {
    100
}

/// What a process does that knows no VIP without pins.
const fn pinned() -> bool {
    true
}

/// How a drain goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Seconds since it began.
    pub for_s: u64,
    /// Flows that were pinned then.
    pub flows_at_start: u64,
    /// Flows that are pinned now.
    pub flows_left: u64,
    /// Age of the oldest of them; `None`: not known yet.
    pub oldest_flow_s: Option<u64>,
    /// Seconds until the last flow will have ended, or is cut; an estimate, `None`: not known.
    pub ends_in_s: Option<u64>,
    /// Seconds until the deadline; `None`: there is none, or it has passed.
    pub deadline_in_s: Option<u64>,
    /// What becomes of the flows that are left at the deadline.
    pub then: FlowAction,
    /// Flows that were left when the deadline came, and do not stay.
    pub flows_cut: u64,
}

/// What a health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check is configured.
    Unchecked,
    /// No result yet; counts as up.
    Unknown,
    /// Answers.
    Up,
    /// Does not answer.
    Down,
}

/// What a backend does for its VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Takes new flows (if it is up).
    Active,
    /// Keeps its flows, takes no new ones.
    Draining,
    /// Draining, and no flow is left.
    Drained,
}

impl BackendState {
    /// From what was ordered and what is left.
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
    /// Interface of the NIC.
    pub interface: String,
    /// Destination MAC, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// VLAN, if tagged.
    pub vlan: Option<u16>,
    /// Longest IP packet that may leave towards the backend, in bytes; 0 from a process that knows none.
    #[serde(default)]
    pub mtu: u16,
    /// The outer VLAN, of two tags.
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

/// One worker.
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

/// One NIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in PortStats and the kernel's xdp_statistics")]
pub struct NicStatus {
    pub interface: String,
    pub driver: String,
    /// `"native"` or `"generic"`.
    pub xdp: String,
    /// `"zero_copy"`, `"copy"`, or `"mixed"` when queues differ.
    pub mode: String,
    /// Whether a packet may lie in several frames of memory.
    pub multi_buffer: bool,
    /// Queues that are served.
    pub queues: Vec<u32>,
    /// Why `xdp` or `mode` is less than was hoped for, in sentences.
    #[serde(default)]
    pub fallbacks: Vec<String>,
    /// What has gone wrong with it since the start, and still is.
    #[serde(default)]
    pub faults: Vec<NicFaultStatus>,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_wakeups: u64,
    pub bad_descriptors: u64,
    pub no_free_frame: u64,
    /// Packets that the XDP program gave to a worker, left to the kernel, or dropped because no
    /// socket serves their queue.
    pub steered: u64,
    pub passed: u64,
    pub no_socket: u64,
    /// Of the kernel's sockets (XDP_STATISTICS).
    pub kernel_rx_dropped: u64,
    pub kernel_rx_ring_full: u64,
    pub kernel_rx_fill_empty: u64,
    pub kernel_rx_invalid: u64,
    pub kernel_tx_invalid: u64,
}

/// What is wrong with a NIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NicFaultStatus {
    /// One of `nic_faults::NicFault`, or one that later versions know.
    pub kind: String,
    /// What is wrong, what it costs, and the cure.
    pub text: String,
}

/// `POST /v1/drain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// Seconds, at least 1, after which the flows that are left are cut; `None`: a drain that goes
    /// on keeps its deadline, and a new one has none.
    pub deadline_s: Option<u64>,
    /// More backends: all are drained, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Name>,
    /// Also if a VIP is left without a backend that takes new flows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A backend's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
}

/// What became of the backends of an order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ordered {
    /// The first one.
    #[serde(flatten)]
    pub backend: BackendStatus,
    /// The others, in the order's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<BackendStatus>,
}

/// `POST /v1/undrain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndrainRequest {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// More backends: all are taken back into service, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Name>,
}

/// `GET /v1/events`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventList {
    /// Number of the latest event; what to ask `since` next.
    pub last: u64,
    /// Events after `since` that are forgotten already.
    pub lost: u64,
    /// The others, the oldest first.
    pub events: Vec<Event>,
}

/// Something that has happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Its number, from 1 since the start of the process.
    pub seq: u64,
    /// When, in UTC (RFC 3339, with milliseconds).
    pub time: String,
    /// One of `events::Kind`, or one that later versions know.
    pub kind: String,
    /// Name of the VIP, if it is about one.
    pub vip: Option<String>,
    /// Name of the backend, if it is about one.
    pub backend: Option<String>,
    /// The NIC, if it is about one.
    #[serde(default)]
    pub nic: Option<String>,
    /// What is or was wrong with the NIC: the `kind` of [`NicFaultStatus`].
    #[serde(default)]
    pub fault: Option<String>,
    /// What was counted, by name.
    #[serde(default)]
    pub numbers: BTreeMap<String, u64>,
    /// All of it in words.
    pub text: String,
}

/// A backend that a reload has taken away, while it has flows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovedStatus {
    /// Name of the VIP, as it was.
    pub vip: String,
    /// Name of the backend, as it was.
    pub backend: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port, if it is not the client's.
    pub port: Option<u16>,
    /// Flows that are pinned to it.
    pub flows_left: u64,
    /// What becomes of them.
    pub then: FlowAction,
}

/// `POST /v1/reload`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reloaded {
    /// One sentence per difference; empty when nothing changed.
    pub changes: Vec<String>,
    /// Whether nothing was applied: it was only asked for.
    #[serde(default)]
    pub dry_run: bool,
    /// What is taken away, with its flows.
    #[serde(default)]
    pub flows: Vec<FlowsRemoved>,
}

/// The flows of what a reload takes away.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlowsRemoved {
    /// Name of the VIP, as it was.
    pub vip: String,
    /// Name of the backend, as it was; `None`: ports or the address of the VIP.
    pub backend: Option<String>,
    /// How many they are.
    pub flows: u64,
    /// What becomes of them.
    pub then: FlowAction,
}

/// `POST /v1/reload`, its body; may be left out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReloadRequest {
    /// Say what would change, and change nothing.
    pub dry_run: bool,
}

/// One line of `GET /v1/flows`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    /// Name of the VIP.
    pub vip: String,
    /// Name of the backend.
    pub backend: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it was opened to.
    pub destination: SocketAddr,
    /// Full NAT: the address and port of ours that the backend knows it by; else `None`.
    #[serde(default)]
    pub source: Option<SocketAddr>,
    /// `"embryonic"`, `"established"`, `"closing"` or `"udp"`.
    pub state: String,
    /// Milliseconds since it was pinned.
    pub age_ms: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Index of the worker that pins it.
    pub worker: usize,
}

/// One line of `GET /v1/clients`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    /// Name of the VIP; `None` when it was removed.
    pub vip: Option<String>,
    /// The client's address, or its prefix.
    pub client: IpAddr,
    /// Which part of the clients behind that address; 1 if it is not divided.
    pub part: u16,
    /// Name of the backend; `None` when it was removed, or its drain met the deadline.
    pub backend: Option<String>,
    /// Milliseconds since the client was sent there first.
    pub age_ms: u64,
    /// Milliseconds since a packet of its flows was noted last, give or take 1.3 s.
    pub idle_ms: u64,
    /// The client has shown that it is there.
    pub proven: bool,
    /// It was silent for longer than the VIP's time-out.
    pub expired: bool,
}

/// `DELETE /v1/clients`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Forgotten {
    /// How many clients were forgotten.
    pub forgotten: usize,
}

/// `GET /v1/explain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// Name of the VIP.
    pub vip: String,
    /// Who opens the flow, or has opened it.
    pub client: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Name of the backend that the packet is sent to; `None`: it is dropped.
    pub backend: Option<String>,
    /// Name of that backend's VIP: another one for a flow that began before a reload gave its port to `vip`.
    #[serde(default)]
    pub backend_vip: Option<String>,
    /// The decisions, in their order.
    pub steps: Vec<Step>,
    /// The frame as it leaves, in hex digits; empty for one that is dropped.
    pub frame: String,
}

/// Body of every error answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiError {
    /// What went wrong, where, and how to fix it; of several mistakes, one per line.
    pub error: String,
    /// The same, one entry per mistake.
    #[serde(default)]
    pub errors: Vec<String>,
}
