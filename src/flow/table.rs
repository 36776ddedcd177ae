//! Flow table (to be filled in): shared memory, one writer, many readers.
use crate::flow::FlowKey;
use crate::forwarding::{BackendId, VipId};
use crate::units::Ticks;

/// Where a flow is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// A SYN was seen.
    Embryonic,
    /// The client has answered the handshake.
    Established,
    /// FINs or a RST were seen.
    Closing,
    /// UDP.
    Udp,
}

/// A copy of one pinned flow.
#[derive(Debug, Clone, Copy)]
pub struct FlowRecord {
    /// The five-tuple.
    pub key: FlowKey,
    /// Its VIP.
    pub vip: VipId,
    /// The backend that it is pinned to.
    pub backend: BackendId,
    /// Where it is in its life.
    pub state: FlowState,
    /// When it was pinned.
    pub created: Ticks,
    /// When its last packet came.
    pub last_seen: Ticks,
}

/// The shared half of a worker's flow table.
#[derive(Debug)]
pub struct FlowTable {}

impl FlowTable {
    /// Number of entries.
    pub fn capacity(&self) -> u32 {
        0
    }
    /// A copy of the flow at `slot` (`0..capacity`), if one is there; aliases are left out.
    pub fn read(&self, _slot: u32) -> Option<FlowRecord> {
        None
    }
}
