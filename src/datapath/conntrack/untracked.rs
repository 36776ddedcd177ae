//! Part of the stage conntrack: reasons for which a packet is not forwarded along a pin.

use crate::datapath::target::Terminated;
use crate::forwarding::Miss;

/// Reason for which a packet is not forwarded along a pin.
#[derive(Debug)]
pub enum Untracked<'t> {
    /// The client's packet has no pin.
    Miss(Miss),
    /// The backend's packet belongs to no flow of that backend.
    NoFlow,
    /// The flow is terminated: both ends are reset.
    Terminated(Terminated<'t>),
}

impl From<Miss> for Untracked<'_> {
    #[inline]
    fn from(miss: Miss) -> Self {
        Self::Miss(miss)
    }
}
