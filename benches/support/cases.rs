//! The rows of the pipeline: which packets, forwarded how.

use holdfast::net::Forward;

use super::rig::Family;

/// What the packets of a case are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// From clients, of flows that are pinned and established.
    Hit,
    /// The same with a VLAN tag, which backends are not sent.
    Tagged,
    /// Later fragments, of flows that are pinned.
    Fragment,
    /// ICMP errors about flows that are pinned, for their backends.
    Error,
    /// Echo requests.
    Echo,
    /// From NAT backends, of flows that are pinned.
    Reply,
    /// SYNs, each of a flow that was never seen.
    Open,
    /// From clients, each of a flow that was never seen and is said to be in its middle.
    Lost,
    /// From NAT backends, each the first that this worker sees of a flow that another one pinned.
    FirstReply,
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
pub const CASES: [Case; 20] = [
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
];
