//! Worker-owned state that stages write, besides the packets of a batch.

use super::conntrack::Conntrack;
use super::fragments::Fragments;
use super::handshakes::Handshakes;
use super::limiter::Limiter;
use super::reset::TxBacklog;
use super::token_bucket::TokenBucket;
use crate::xdp::umem::FramePool;

/// Connection tracking, parked fragments, locally generated packets, rate limits, handshakes, free
/// frames.
pub struct Resources {
    /// Connection tracking: the writing half of the worker's flow table.
    pub conntrack: Conntrack,
    /// Fragments that wait for their first fragment.
    pub fragments: Fragments,
    /// Locally generated packets, queued until the end of the poll.
    pub backlog: TxBacklog,
    /// Rate limit of ICMP errors.
    pub limiter: Limiter,
    /// Rate limit of refusals at VIPs with `syn_proxy`.
    pub reset_limiter: Limiter,
    /// Budget of asks.
    pub asks: TokenBucket,
    /// Handshakes with backends that are not complete.
    pub handshakes: Handshakes,
    /// Free frames.
    pub pool: FramePool,
}
