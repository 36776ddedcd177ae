//! The next hop of a frame.

use super::NicIndex;
use super::vlan::Tags;

/// Where a frame goes next on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The NIC it leaves by.
    pub nic: NicIndex,
    /// Destination MAC.
    pub mac: [u8; 6],
    /// In which VLAN, or in which one inside of another; the tags have no priorities. Else untagged.
    pub vlan: Option<Tags>,
}
