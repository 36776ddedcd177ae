//! Flow tables as the control thread reads them: position by position, while workers go on.

use crate::flow::entry::ConntrackEntry;
use crate::flow::table::FlowTable;

/// What a scan reads: a flow table.
pub trait Pins: Send + Sync {
    /// Number of positions.
    fn positions(&self) -> u32;
    /// The pin at a position (`0..positions`), if one is there.
    fn pin_at(&self, number: u32) -> Option<ConntrackEntry>;
}

impl Pins for FlowTable {
    fn positions(&self) -> u32 {
        Self::positions(self)
    }

    fn pin_at(&self, number: u32) -> Option<ConntrackEntry> {
        Self::pin_at(self, number)
    }
}
