//! Read access of the control thread to flow tables, position by position, while workers continue.

use crate::flow::entry::ConntrackEntry;
use crate::flow::table::FlowTable;

/// Table of pins that a scan reads: a flow table.
pub trait Pins: Send + Sync {
    /// Number of positions. IPv4 flows have the first half of them, IPv6 flows the second.
    fn positions(&self) -> u32;
    /// Numbers of positions of each half that ever had a flow: the first ones.
    fn ever_used(&self) -> [u32; 2];
    /// Returns the entry at a position (`0..positions`), if there is one.
    fn pin_at(&self, number: u32) -> Option<ConntrackEntry>;
}

impl Pins for FlowTable {
    fn positions(&self) -> u32 {
        Self::positions(self)
    }

    fn ever_used(&self) -> [u32; 2] {
        Self::ever_used(self)
    }

    fn pin_at(&self, number: u32) -> Option<ConntrackEntry> {
        Self::pin_at(self, number)
    }
}
