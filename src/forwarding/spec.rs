//! The inputs of a table build.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::affinity::Splits;
use super::old_listeners::OldListen;
use super::policy::VipPolicy;
use super::quic_lb::ServerId;
use super::service::{FlowAction, Service};
use crate::net::{BackendId, Forward, Network, NextHop, PortRange, Protocol, VipId};

/// Share of a backend that takes all of its new flows ([`BackendSpec::share`]).
pub const FULL_SHARE: u16 = 1024;

/// The ports of a VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// Every port.
    All,
    /// Single ports and ranges: at least one, without port 0, single ports distinct, ranges
    /// disjoint.
    List(Vec<PortRange>),
}

impl Ports {
    /// A list of single ports.
    pub fn of(ports: &[u16]) -> Self {
        Self::List(ports.iter().copied().map(PortRange::single).collect())
    }

    /// The ports as ranges; [`PortRange::ALL`] for every port.
    pub fn ranges(&self) -> &[PortRange] {
        match self {
            Self::All => &[PortRange::ALL],
            Self::List(ports) => ports,
        }
    }

    /// First port of the list, if there is a list.
    pub fn first(&self) -> Option<u16> {
        match self {
            Self::All => None,
            Self::List(ports) => ports.first().map(|range| range.first),
        }
    }

    /// Whether `port` (not 0) is included.
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

/// A VIP, as input to a table build.
#[derive(Debug, Clone)]
pub struct VipSpec {
    /// Index, unique in the table.
    pub id: VipId,
    /// Addresses that clients connect to: one, or a prefix.
    pub address: Network,
    /// Ports that clients connect to; an empty list for a VIP removed by a reload.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forward: Forward,
    /// Options.
    pub policy: VipPolicy,
    /// Client addresses with flows spread over several backends.
    pub splits: Splits,
    /// Whether it has `syn_proxy`, or had it, so that it may have flows with splices.
    pub spliced: bool,
    /// Whether workers report its new flows as samples ([`Sample`](crate::stats::Sample)).
    pub sampled: bool,
    /// Whether its backends, all of which are down, count as up (`fail_open`).
    pub fails_open: bool,
    /// Backends, in any order.
    pub backends: Vec<BackendSpec>,
    /// Addresses and ports that the VIP had before a reload: they take no new flows.
    pub old: Vec<OldListen>,
}

impl VipSpec {
    /// Returns this VIP with changed options.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut VipPolicy)) -> Self {
        change(&mut self.policy);
        self.spliced |= self.policy.syn_proxy;
        self
    }
}

impl BackendSpec {
    /// Whether it may take new flows: up, active, with weight, and its next hop is known.
    pub fn takes_new(&self) -> bool {
        self.up
            && !self.removed
            && self.weight > 0
            && self.service == Service::Active
            && self.next_hop.is_some()
    }
}

/// A backend, as input to a table build.
#[derive(Debug, Clone)]
pub struct BackendSpec {
    /// Index and generation, the index unique in the table.
    pub id: BackendId,
    /// Name, unique in its VIP, for display only. Schedulers hash the address
    /// ([`server`](super::server)).
    pub name: String,
    /// Address of the server.
    pub address: IpAddr,
    /// NAT: port of the server; `None` keeps the port that the client connected to.
    pub port: Option<u16>,
    /// Share of new flows relative to the other backends of the VIP; 0 takes none.
    pub weight: u32,
    /// Part of the new flows scheduled to it that it takes, in units of 1/[`FULL_SHARE`]: below
    /// [`FULL_SHARE`] during slow start.
    pub share: u16,
    /// Result of the health check.
    pub up: bool,
    /// Active, draining or out of service.
    pub service: Service,
    /// Treatment of its flows, up or down: [`FlowAction::Keep`], unless a drain has met its
    /// deadline. With [`FlowAction::Reset`] one sweep terminates the established TCP flows, and
    /// their pins are removed after [`RESET_TIME`](super::RESET_TIME); flows that are opening or
    /// closing, and silent, expire by their idle time-outs.
    pub flow_action: FlowAction,
    /// Next hop of frames to it, if route and neighbour are known.
    pub next_hop: Option<NextHop>,
    /// Maximum length of an IP packet to it, in bytes.
    pub mtu: u16,
    /// Server ids that name it in QUIC connection ids.
    pub server_ids: Vec<ServerId>,
    /// Flows above which it takes no new ones, of all workers together; `None`: no limit.
    pub max_flows: Option<u32>,
    /// Whether the program of `holdfast backend` answers there, for this VIP.
    pub can_be_asked: bool,
    /// Whether a reload has removed it: it takes only packets of flows that `flow_action` keeps.
    pub removed: bool,
}
