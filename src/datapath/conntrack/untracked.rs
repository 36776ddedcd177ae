//! Part of the stage conntrack: why a packet is not forwarded along a pin.

use crate::datapath::target::Terminated;
use crate::forwarding::Miss;

/// Why a packet is not forwarded along a pin.
#[derive(Debug)]
pub enum Untracked<'t> {
    /// The client's packet has no pin.
    Miss(Miss),
    /// The backend's packet belongs to no flow that the backend has.
    NoFlow,
    /// Its flow is terminated: both ends are reset.
    Terminated(Terminated<'t>),
}

impl From<Miss> for Untracked<'_> {
    #[inline]
    fn from(miss: Miss) -> Self {
        Self::Miss(miss)
    }
}
