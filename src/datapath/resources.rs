//! Worker-owned state that stages write, besides the packets of a batch.

use super::conntrack::Conntrack;
use super::fragments::Fragments;
use super::limiter::Limiter;
use super::reset::TxBacklog;
use crate::xdp::umem::FramePool;

/// Connection tracking, parked fragments, packets of our own, the limit of ICMP errors, free frames.
pub struct Resources {
    /// Connection tracking: the writing half of the worker's flow table.
    pub conntrack: Conntrack,
    /// Fragments that wait for their first one.
    pub fragments: Fragments,
    /// Packets of our own that wait for the end of the batch.
    pub backlog: TxBacklog,
    /// Rate limit of ICMP errors.
    pub limiter: Limiter,
    /// Free frames.
    pub pool: FramePool,
}
