//! The next hop of a frame.

use serde::{Deserialize, Serialize};

use super::NicIndex;
use super::vlan::Tags;

/// Next hop of a frame on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// The NIC that sends the frame.
    pub nic: NicIndex,
    /// Destination MAC.
    pub mac: [u8; 6],
    /// VLAN tags, without priorities; `None`: untagged.
    pub vlan: Option<Tags>,
}
