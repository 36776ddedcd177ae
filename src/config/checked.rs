//! The checked values that a configuration file is turned into.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::flow::return_hops;
use crate::flow::shared::TableSizes;
use crate::flow::snat::SnatPool;
use crate::flow::table::Families;
use crate::forwarding::local::IcmpRate;
use crate::forwarding::new_flows::NewFlows;
use crate::forwarding::{FlowAction, Local, Ports, Secret, ServerId, Tunnels, VipPolicy};
use crate::net::{AccessLists, Family, Forward, Network, NicIndex, Protocol, SourceRate};
use crate::units::Ticks;

/// Thresholds above which the flows of one source are spread over several backends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Highest load of a backend, as a multiple of its share by weight; above 1.
    pub max_load: f64,
    /// New flows per second below which a source is never split.
    pub min_rate: f64,
}

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[workers]`.
    pub workers: Workers,
    /// `[[nic]]`, in the file's order; a `NicIndex` is an index into this list.
    pub nics: Vec<Nic>,
    /// `[[vip]]`, in the file's order.
    pub vips: Vec<Vip>,
    /// `[access]`: lists of all VIPs.
    pub access: AccessLists,
    /// `[fragments]`.
    pub fragments: Fragments,
    /// `[full_nat]`.
    pub full_nat: FullNat,
    /// `[tunnel]`.
    pub tunnels: Tunnels,
    /// Packets about which backends are asked, per second of all workers.
    pub asks: u32,
    /// `[icmp]`.
    pub icmp: IcmpRate,
    /// `[new_flows]`: of all workers together.
    pub new_flows: NewFlows,
    /// `[control]`.
    pub control: Control,
    /// `[state]`.
    pub state: State,
    /// `[security]`.
    pub security: Security,
    /// `[hash]`.
    pub hash: Hash,
}

impl Config {
    /// Returns the number of frames that fill the rings of one worker: for each socket a fill ring
    /// of `2 * ring` and a TX ring of `ring` entries, plus one batch being processed. `sockets`
    /// yields the NIC of each socket; a worker has one socket for each queue that it serves.
    ///
    /// The RX and completion rings add nothing: their frames come from the other two.
    pub fn frames_needed(&self, sockets: impl IntoIterator<Item = NicIndex>) -> u32 {
        let batch = u32::try_from(self.workers.batch).unwrap_or(u32::MAX);
        let rings = sockets.into_iter().filter_map(|port| self.nics.get(usize::from(port.0)));
        rings.fold(batch, |sum, nic| sum.saturating_add(nic.ring.saturating_mul(3)))
    }

    /// Returns the local addresses and limits of this box. `mtus` are the largest IP packets of
    /// each NIC in bytes, `macs` the MAC address of each NIC.
    pub fn local(&self, mtus: Vec<u16>, macs: Vec<[u8; 6]>) -> Local {
        let new_flows = self.new_flows.per_worker(self.workers.cores.len());
        let (tunnels, icmp) = (self.tunnels, self.icmp);
        let workers = u32::try_from(self.workers.cores.len()).unwrap_or(u32::MAX).max(1);
        let asks = Some(self.asks.div_ceil(workers));
        Local { mtus, macs, tunnels, icmp, new_flows, asks, replaced_hops: Vec::new() }
    }

    /// Returns the sizes of the tables that all workers share.
    pub fn table_sizes(&self) -> TableSizes {
        TableSizes {
            clients: self.workers.clients,
            datagrams: self.fragments.datagrams,
            fragment_timeout: self.fragments.timeout,
            sources: self.full_nat.numbered(),
            return_hops: return_hops::CLIENTS,
            taken_over: false,
        }
    }

    /// Returns the address families of the VIPs. Flow tables need memory for these families only.
    pub fn families(&self) -> Families {
        let any = |family| self.vips.iter().any(|vip| vip.address.family() == family);
        Families { v4: any(Family::V4), v6: any(Family::V6) }
    }

    /// Returns the address families of the VIPs with `syn_proxy`, which need memory for splices.
    pub fn spliced(&self) -> Families {
        let spliced = || self.vips.iter().filter(|vip| vip.policy.syn_proxy);
        let any = |family| spliced().any(|vip| vip.address.family() == family);
        Families { v4: any(Family::V4), v6: any(Family::V6) }
    }
}

/// `[fragments]`: handling of fragmented datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragments {
    /// Lifetime of a datagram's entry in the fragment table.
    pub timeout: Ticks,
    /// Capacity of the fragment table in datagrams, shared by all workers.
    pub datagrams: usize,
    /// Maximum number of fragments that each worker parks until their first fragment arrives.
    pub parked: usize,
}

/// `[workers]`: threads of the data path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// Cores, one worker per core, pinned to it.
    pub cores: Vec<usize>,
    /// Action of a worker when no packet is available.
    pub idle: Idle,
    /// Capacity of each worker's flow table, in flows of each address family.
    pub flows: usize,
    /// Clients whose backends are remembered, shared by all workers.
    pub clients: usize,
    /// UMEM frames of each worker; `None`: as many as its rings can hold
    /// ([`Config::frames_needed`]).
    pub frames: Option<u32>,
    /// Bytes per UMEM frame: 2048 or 4096; `None`: derived from the NICs ([`Config::frame_size`]).
    pub frame_size: Option<u32>,
    /// Packets per batch, 1..=64.
    pub batch: usize,
    /// Wake-up settings between the worker's sockets and the kernel.
    pub io: Io,
}

/// `tx_budget`, `tx_kick`, `need_wakeup` and `busy_poll` of `[workers]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    /// Packets that the kernel sends per wake-up in copy mode.
    pub tx_budget: u32,
    /// Packets in a TX ring that trigger a wake-up while a poll still adds more.
    pub tx_kick: u32,
    /// Whether the kernel signals that it needs a wake-up (`XDP_USE_NEED_WAKEUP`).
    pub need_wakeup: bool,
    /// Packets per busy poll of the NIC by the worker; 0: no busy polling.
    pub busy_poll: u16,
}

/// `idle` of `[workers]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Poll without end.
    Busy,
    /// Block in poll(2).
    Sleep,
}

/// `[[nic]]`: one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Interface name.
    pub interface: String,
    /// Zero copy, copy, or the best available.
    pub mode: CopyMode,
    /// Native XDP, generic XDP, or the best available.
    pub xdp: XdpMode,
    /// Queues to serve; `None`: all. Queue number `i` of this list is served by worker
    /// `i % workers`.
    pub queues: Option<Vec<u32>>,
    /// Entries of each RX and TX ring (a power of two); fill and completion rings hold twice that.
    pub ring: u32,
}

/// `mode` of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// Refuse to start without zero copy.
    ZeroCopy,
    /// Copy, even where zero copy is available.
    Copy,
    /// Zero copy if the driver has it, else copy; the chosen mode is reported.
    Auto,
}

/// `xdp` of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// Refuse to start without native XDP.
    Native,
    /// Generic (skb) XDP.
    Generic,
    /// Native if the driver has it, else generic; the chosen mode is reported.
    Auto,
}

/// `[[vip]]`: an address that clients connect to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vip {
    /// Unique name.
    pub name: String,
    /// Address that clients connect to, or a prefix of such addresses.
    pub address: Network,
    /// Ports that clients connect to.
    pub ports: Ports,
    /// TCP, UDP or any.
    pub protocol: Protocol,
    /// Forwarding mode towards the backends.
    pub forward: Forward,
    /// Policies for the VIP's packets and flows.
    pub policy: VipPolicy,
    /// Thresholds for splitting sources that are too large for one backend; `None`: no splitting.
    pub split: Option<Split>,
    /// Health check of its backends.
    pub health: Health,
    /// Whether packets are forwarded as if all backends were up while all of them fail their checks.
    pub fail_open: bool,
    /// Whether its address is withdrawn while no backend serves it.
    pub withdraws: bool,
    /// Hold-down of backends that go up and down; `None`: no hold.
    pub damping: Option<Damping>,
    /// Passive check of its backends; `None`: no check.
    pub passive: Option<Passive>,
    /// Drain and slow-start settings of the backends.
    pub drain: Drain,
    /// Action for the flows of a backend, port or VIP that a reload removes.
    pub on_remove: FlowAction,
    /// Interface that the address is assigned to, so that the kernel answers ARP and ND for it.
    pub announce: Announce,
    /// Lists of sources. They are not saved with the VIP: each start reads them again.
    #[serde(skip)]
    pub access: AccessLists,
    /// Limits for each source; `None`: none. Earlier versions had none.
    #[serde(default)]
    pub rate: Option<SourceRate>,
    /// Backends, in the file's order.
    pub backends: Vec<Backend>,
}

/// `announce` of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announce {
    /// On this interface (default: the first NIC).
    Interface(String),
    /// No interface: the address is announced by other means.
    None,
}

/// `health` of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No check: backends count as up.
    None,
    /// A check opens and closes a TCP connection.
    Tcp(TcpHealth),
}

/// `health = { kind = "tcp", .. }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpHealth {
    /// Time between the starts of two checks.
    pub interval: Duration,
    /// Time after which a check without a reply fails.
    pub timeout: Duration,
    /// Consecutive successes that bring a backend up.
    pub rise: u32,
    /// Consecutive failures that take a backend down.
    pub fall: u32,
    /// Port to connect to; `None`: the backend's port, else the VIP's first.
    pub port: Option<u16>,
}

/// `passive` of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Passive {
    /// Share of unanswered new flows from which on a backend gets no further ones, 0 to 1.
    pub unanswered: f64,
    /// Time over which flows are counted.
    pub window: Duration,
}

/// `damping` of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damping {
    /// Duration of the first hold, which each further flap doubles.
    pub hold: Duration,
    /// Longest hold.
    pub longest: Duration,
    /// Time in service after which a failure is no flap.
    pub steady: Duration,
}

/// `[[vip.backend]]`: one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Name, unique in its VIP.
    pub name: String,
    /// Address of the server.
    pub address: IpAddr,
    /// NAT: destination port; `None`: the port that the client connected to.
    pub port: Option<u16>,
    /// Share of new flows relative to the other backends; 0: no new flows.
    pub weight: u32,
    /// Server ids in QUIC connection ids, at most one of each length.
    pub server_ids: Vec<ServerId>,
    /// Flows above which it takes no new ones; `None`: no limit. Earlier versions had none.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

/// `[control]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Command and arguments to run when a backend is drained; empty: none.
    pub on_drained: Vec<String>,
}

/// `[state]`: the memory that outlives the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Directory in memory; `None`: pins end with the process.
    pub directory: Option<PathBuf>,
}

/// `[security]`: limits that holdfast sets to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Whether the threads of the process are limited to the system calls that they need.
    pub seccomp: bool,
}

/// `[hash]`: settings that must be equal on every box of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hash {
    /// Key of the hashes that choose a backend.
    pub secret: Secret,
    /// Size of the Maglev lookup tables, a prime.
    pub table_size: u32,
}

/// `[full_nat]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullNat {
    /// SNAT addresses; empty if no VIP uses full NAT.
    pub sources: Vec<IpAddr>,
    /// SNAT ports of each address.
    pub ports: RangeInclusive<u16>,
    /// Interface that the addresses are assigned to, so that the kernel answers ARP and ND for
    /// them.
    pub announce: Announce,
}

impl FullNat {
    /// Returns the SNAT pool of these addresses and ports.
    pub fn numbered(&self) -> SnatPool {
        SnatPool::new(self.sources.iter().copied(), &self.ports)
    }
}

/// `drain` of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Deadline of a drain, unless the command gives one; `None`: no deadline.
    pub deadline: Option<Duration>,
    /// Action for the flows that remain at the deadline.
    pub then: FlowAction,
    /// Time in which a returning backend reaches its full share of new flows; 0: immediately.
    pub slow_start: Duration,
}
