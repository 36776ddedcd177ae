//! The rows of the pipeline: traffic and forwarding mode.

use holdfast::net::Forward;

use super::rig::Family;

/// Kind of traffic of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Packets of clients, in pinned and established flows.
    Hit,
    /// As [`Traffic::Hit`], with a VLAN tag, which is removed before the backend.
    Tagged,
    /// Later fragments of pinned flows.
    Fragment,
    /// ICMP errors about pinned flows, for their backends.
    Error,
    /// Echo requests.
    Echo,
    /// Packets of NAT backends, in pinned flows.
    Reply,
    /// As [`Traffic::Hit`], in connections at a VIP with `syn_proxy`.
    Spliced,
    /// As [`Traffic::Reply`], in connections at a VIP with `syn_proxy`.
    SplicedReply,
    /// SYNs for a VIP with `syn_proxy`.
    Cookie,
    /// SYNs, each of a new flow.
    Open,
    /// Packets of clients, each of a new flow, but not a SYN.
    Lost,
    /// Packets of NAT backends, each the first of its flow at this worker; another worker has the
    /// pin.
    FirstReply,
}

impl Traffic {
    /// Whether the connections of the case consist of two handshakes.
    pub const fn is_spliced(self) -> bool {
        matches!(self, Self::Spliced | Self::SplicedReply)
    }
}

/// One case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub forward: Forward,
    pub family: Family,
    pub traffic: Traffic,
}

const fn case(name: &'static str, forward: Forward, family: Family, traffic: Traffic) -> Case {
    Case { name, forward, family, traffic }
}

/// All cases. Names are those of the JSON document.
pub const CASES: [Case; 23] = [
    case("pipeline_dsr", Forward::Dsr, Family::V4, Traffic::Hit),
    case("pipeline_nat", Forward::Nat, Family::V4, Traffic::Hit),
    case("pipeline_nat_reply", Forward::Nat, Family::V4, Traffic::Reply),
    case("pipeline_new_flow", Forward::Dsr, Family::V4, Traffic::Open),
    case("pipeline_dsr_v6", Forward::Dsr, Family::V6, Traffic::Hit),
    case("pipeline_nat_v6", Forward::Nat, Family::V6, Traffic::Hit),
    case("pipeline_nat_reply_v6", Forward::Nat, Family::V6, Traffic::Reply),
    case("pipeline_new_flow_nat", Forward::Nat, Family::V4, Traffic::Open),
    case("pipeline_new_flow_v6", Forward::Dsr, Family::V6, Traffic::Open),
    case("pipeline_new_flow_full_nat", Forward::FullNat, Family::V4, Traffic::Open),
    case("pipeline_full_nat", Forward::FullNat, Family::V4, Traffic::Hit),
    case("pipeline_full_nat_reply", Forward::FullNat, Family::V4, Traffic::Reply),
    case("pipeline_ipip", Forward::Ipip, Family::V4, Traffic::Hit),
    case("pipeline_gue", Forward::Gue, Family::V4, Traffic::Hit),
    case("pipeline_ipip_v6", Forward::Ipip, Family::V6, Traffic::Hit),
    case("pipeline_gue_v6", Forward::Gue, Family::V6, Traffic::Hit),
    case("pipeline_dsr_vlan", Forward::Dsr, Family::V4, Traffic::Tagged),
    case("pipeline_dsr_fragment", Forward::Dsr, Family::V4, Traffic::Fragment),
    case("pipeline_nat_error", Forward::Nat, Family::V4, Traffic::Error),
    case("pipeline_echo", Forward::Dsr, Family::V4, Traffic::Echo),
    case("pipeline_syn_proxy", Forward::Nat, Family::V4, Traffic::Spliced),
    case("pipeline_syn_proxy_reply", Forward::Nat, Family::V4, Traffic::SplicedReply),
    case("pipeline_syn_cookie", Forward::Nat, Family::V4, Traffic::Cookie),
];
