//! What the data path needs to know to forward: an immutable table, published by pointer.
//!
//! ```text
//! listen key (address, port, protocol) -> VIP -> affinity -> scheduler -> backend -> next hop
//! return key (address, port, protocol) -> NAT backend -> the VIP ports it may answer for
//! ```
//!
//! The control thread builds a [`ForwardingTable`] from [`VipSpec`]s and publishes it; workers
//! check once per batch whether a newer one is there ([`publish`]). Pure values: no I/O, no clock.

pub mod affinity;
pub mod explain;
pub mod listeners;
pub mod local;
pub mod old_listeners;
pub mod policy;
pub mod publish;
pub mod quic_lb;
pub mod scheduler;
pub mod server;
pub mod sticky;
pub mod table;
pub mod tunnel;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::net::{BackendId, Forward, Network, NextHop, PortRange, Protocol, VipId};
use crate::units::Ticks;

pub use affinity::{Affinity, ClientKey, Splits};
pub use listeners::MAX_PREFIX_LENGTHS;
pub use local::Local;
pub use old_listeners::OldListen;
pub use policy::{FlowTimeouts, Timeouts, VipPolicy};
pub use quic_lb::ServerId;
pub use scheduler::SchedulerKind;
pub use sticky::Remember;
pub use table::ForwardingTable;
pub use tunnel::{OuterDf, Tunnels};

/// Most VIPs in one configuration.
pub const MAX_VIPS: usize = 4096;
/// Most backends in one configuration, over all VIPs.
pub const MAX_BACKENDS: usize = 16_384;
/// Most VIP ports that may lead to one port of a NAT backend: each costs a new flow, and a reply, a
/// look-up in the table of every worker.
pub const MAX_RETURN_PATHS: usize = 16;

/// All of a backend's new flows ([`BackendSpec::share`]).
pub const FULL_SHARE: u16 = 1024;

/// The ports of a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Every port.
    All,
    /// These ports and ranges: at least one, without port 0; no two single ports are the same, and
    /// no two ranges meet.
    List(Vec<PortRange>),
}

impl Ports {
    /// A list of single ports.
    pub fn of(ports: &[u16]) -> Self {
        Self::List(ports.iter().copied().map(PortRange::single).collect())
    }

    /// The ports to listen on; [`PortRange::ALL`] for every port.
    pub fn ranges(&self) -> &[PortRange] {
        match self {
            Self::All => &[PortRange::ALL],
            Self::List(ports) => ports,
        }
    }

    /// The port that comes first in the list, if there is a list.
    pub fn first(&self) -> Option<u16> {
        match self {
            Self::All => None,
            Self::List(ports) => ports.first().map(|range| range.first),
        }
    }

    /// Whether a port (not 0) is one of these.
    pub fn contain(&self, port: u16) -> bool {
        self.ranges().iter().any(|range| range.contains(port))
    }
}

/// `all`, or `80, 8000-8999`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::List(ports) = self else { return f.write_str("all") };
        for (index, range) in ports.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// What an operator or a deadline has said about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Takes new flows.
    Active,
    /// Keeps its flows, takes no new ones.
    Draining,
    /// Takes nothing: the drain met its deadline, and its pins are stale.
    Out,
}

/// Why a client's packet has no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// A SYN, or a packet of another protocol: the first packet of a flow.
    Open,
    /// A TCP packet without SYN: its flow has lost its pin.
    NonSyn,
}

/// What becomes of the flows that are pinned to a backend which does not serve them any longer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowAction {
    /// Their packets go to it as before.
    #[default]
    Keep,
    /// TCP: both ends are told, by a RST. UDP has none: as [`FlowAction::Rehash`].
    Reset,
    /// The next packet of each finds another backend.
    Rehash,
}

impl FlowAction {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
            Self::Rehash => "rehash",
        }
    }
}

/// How long a flow that is reset keeps its pin, so that an end which missed its RST is told again.
pub const RESET_TIME: Ticks = Ticks(1200);

/// The key of every hash that chooses a backend: 16 bytes from the configuration.
pub type Secret = [u8; 16];

/// What the control thread knows of a VIP when it builds a table.
#[derive(Debug, Clone)]
pub struct VipSpec {
    /// Index, unique in the table.
    pub id: VipId,
    /// Addresses that clients connect to: one, or a prefix.
    pub address: Network,
    /// Ports that clients connect to; an empty list for a VIP that a reload has removed.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forward: Forward,
    /// Its options.
    pub policy: VipPolicy,
    /// Sources that are spread over several backends.
    pub splits: Splits,
    /// Whether workers tell of its new flows ([`Sample`](crate::stats::Sample)).
    pub sampled: bool,
    /// The backends; their order does not matter.
    pub backends: Vec<BackendSpec>,
    /// Addresses and ports that it had before a reload: they take no new flows.
    pub old: Vec<OldListen>,
}

impl VipSpec {
    /// The same VIP with other options.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut VipPolicy)) -> Self {
        change(&mut self.policy);
        self
    }
}

/// What the control thread knows of a backend when it builds a table.
#[derive(Debug, Clone)]
pub struct BackendSpec {
    /// Index and generation, the index unique in the table.
    pub id: BackendId,
    /// Name, unique in its VIP: for people. Schedulers hash the address ([`server`]).
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// NAT: its port; `None` keeps the port that the client connected to.
    pub port: Option<u16>,
    /// Share of new flows relative to the other backends of the VIP; 0 takes none.
    pub weight: u32,
    /// Of the new flows that are its own, how many of [`FULL_SHARE`] it takes: less than all while
    /// it starts slowly.
    pub share: u16,
    /// Whether its health check says that it answers.
    pub up: bool,
    /// In service, draining, or out.
    pub service: Service,
    /// What becomes of the flows that it has, up or down: [`FlowAction::Keep`] but for a drain that
    /// has met its deadline. With [`FlowAction::Reset`] its pins are gone after one round of the sweep
    /// and [`RESET_TIME`], but for those of which nobody speaks.
    pub flow_action: FlowAction,
    /// Where frames for it go, if route and neighbour are known.
    pub next_hop: Option<NextHop>,
    /// Longest IP packet that may leave towards it, in bytes.
    pub mtu: u16,
    /// What names it in QUIC connection ids.
    pub server_ids: Vec<ServerId>,
    /// A reload has removed it: it has the flows that `left` leaves it, and takes no other packets.
    pub removed: bool,
}
