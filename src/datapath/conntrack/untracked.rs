//! Part of the stage conntrack: reasons for which a packet is not forwarded along a pin.

use crate::datapath::target::Terminated;
use crate::forwarding::Miss;
use crate::net::NextHop;

/// Reason for which a packet is not forwarded along a pin.
#[derive(Debug)]
pub enum Untracked<'t> {
    /// The client's packet has no pin.
    Miss(Miss),
    /// The backend's packet belongs to no flow of that backend.
    NoFlow,
    /// The client's packet belongs to a flow that waits for its backend's answer.
    Waits,
    /// The backend's packet belongs to such a flow; the next hop to its client.
    Answers(NextHop),
    /// The flow is terminated: both ends are reset.
    Terminated(Terminated<'t>),
}

impl From<Miss> for Untracked<'_> {
    #[inline]
    fn from(miss: Miss) -> Self {
        Self::Miss(miss)
    }
}
