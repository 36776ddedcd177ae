//! Options of a VIP: one value, created by the configuration, carried whole into the forwarding
//! table.
//!
//! A new option is a field here with its default. The configuration reads it, a reload reports its
//! changes, and the data path reads it from [`Vip::policy`](super::table::Vip::policy).

use serde::{Deserialize, Serialize};

use super::service::FlowAction;
use super::{Affinity, Remember, SchedulerKind, quic_lb};
use crate::net::Protocol;
use crate::units::Ticks;

/// Options of a VIP for its packets and flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VipPolicy {
    /// Whether flows keep their backends. False (UDP only): each datagram is scheduled by itself.
    pub pin: bool,
    /// Scheduler for new flows.
    pub scheduler: SchedulerKind,
    /// Grouping of flows.
    pub affinity: Affinity,
    /// Idle time-outs of flows.
    pub timeouts: Timeouts,
    /// Client-table settings; `None`: clients are not recorded.
    pub remember: Option<Remember>,
    /// Treatment of the flows of a backend that is down. UDP flows are never kept: their own
    /// packets would keep a dead pin alive.
    pub on_down: FlowAction,
    /// TCP: whether both ends of an idle flow receive a RST when it expires.
    pub reset_idle: bool,
    /// Whether a new flow that finds no backend in service is rejected: by a RST (TCP) or port
    /// unreachable (UDP).
    pub reject_no_backend: bool,
    /// Full NAT and TCP: whether backends receive the client's address by the PROXY protocol.
    pub proxy: bool,
    /// NAT and full NAT, TCP: whether clients prove themselves to this box, by a SYN cookie, before a
    /// backend sees them.
    pub syn_proxy: bool,
    /// TCP, where replies do not pass this box: which backends are asked about a flow without a pin.
    pub ask: Ask,
    /// Time for which backends are asked that an earlier table may have chosen, or that were removed.
    pub recall: Ticks,
    /// Guaranteed share of each worker's flow table and SNAT ports, in parts per million; `None`: a
    /// part of the [common one](super::share).
    pub table_share: Option<u32>,
    /// TCP: maximum segment size in bytes of data; the MSS option of both ends is lowered to it.
    pub mss: Option<u16>,
    /// QUIC-LB configurations, by rotation, for [`Affinity::QuicCid`]; empty: connection ids are
    /// not decoded.
    pub quic: Box<[quic_lb::Config]>,
}

impl Default for VipPolicy {
    fn default() -> Self {
        Self {
            // Most protocols over UDP also keep state on the server.
            pin: true,
            scheduler: SchedulerKind::default(),
            affinity: Affinity::Flow,
            timeouts: Timeouts::default(),
            remember: None,
            // A check may fail for a reason that does not concern the flows.
            on_down: FlowAction::Keep,
            reset_idle: false,
            // Like a host without the service: a client without a reply would wait, and has no
            // other host to try.
            reject_no_backend: true,
            proxy: false,
            syn_proxy: false,
            ask: Ask::default(),
            recall: RECALL,
            table_share: None,
            mss: None,
            quic: Box::default(),
        }
    }
}

/// Default of [`VipPolicy::recall`]: an hour.
pub const RECALL: Ticks = Ticks(360_000);

/// Backends that are asked whether they have a flow without a pin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// No backend: the hash decides.
    #[default]
    Never,
    /// Those that the present table and earlier ones may have chosen, one after the other.
    History,
    /// All of the VIP.
    All,
}

impl Ask {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::History => "history",
            Self::All => "all",
        }
    }
}

/// Idle time-outs of a VIP's flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// TCP, after a SYN and before the client has answered the handshake.
    pub embryonic: Ticks,
    /// TCP, established.
    pub established: Ticks,
    /// TCP, after both FINs (or the client's, where replies bypass this box), or after a RST.
    pub closing: Ticks,
    /// UDP, and VIPs for all protocols, after the first packet and until the flow continues.
    pub udp_first: Ticks,
    /// UDP, and VIPs for all protocols, once the flow has continued.
    pub udp: Ticks,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // Longer than the gaps between the first five SYN retransmissions of Linux (1 to 16 s).
            // A pin that ends earlier costs nothing, as no data has flowed; a longer one lets a SYN
            // flood hold more entries.
            embryonic: Ticks::seconds(30),
            // 2 hours 4 minutes (RFC 5382, REQ-5): a host that sends keep-alives every 2 hours, the
            // default of RFC 9293 (3.8.4) and of Linux, never loses its pin.
            established: Ticks::seconds(7440),
            // Every packet restarts it, so it has to outlast the gaps between the last
            // retransmissions, of which Linux makes seven in 25 s; a drain ends this long after its
            // last connection. If a pin ends too early, the hash still finds the backend. IPVS also
            // uses 30 s for its LAST_ACK.
            closing: Ticks::seconds(30),
            // As nf_conntrack (`nf_conntrack_udp_timeout`): longer than a resolver waits before it
            // retries a query (resolv.conf(5): 5 s), and a table of a million flows bears 35,000
            // such queries a second. RFC 4787 (REQ-5) has 2 minutes for a NAT, where a late sender
            // has lost its flow; here the hash remains.
            udp_first: Ticks::seconds(30),
            // RFC 4787, REQ-5: no less than 2 minutes, 5 recommended.
            udp: Ticks::seconds(300),
        }
    }
}

impl Timeouts {
    /// Time-outs of flows of one protocol.
    pub const fn of(&self, protocol: Protocol) -> FlowTimeouts {
        let Self { embryonic, established, closing, udp_first, udp } = *self;
        match protocol {
            Protocol::Tcp => FlowTimeouts { begun: embryonic, established, closing },
            Protocol::Udp | Protocol::Any => {
                FlowTimeouts { begun: udp_first, established: udp, closing: udp }
            }
        }
    }
}

/// Idle time-outs of flows of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// After the first packet: TCP until the client has answered the handshake, else until the flow
    /// continues.
    pub begun: Ticks,
    /// After that: an established connection, or a flow that continued.
    pub established: Ticks,
    /// TCP: closing. Other protocols: like `established`.
    pub closing: Ticks,
}
