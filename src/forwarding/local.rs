//! What is this box's own, whatever the VIP.

use super::Tunnels;
use crate::net::NicIndex;

/// Longest IP packet that there is, in bytes: of a NIC whose limit is not known.
pub const UNLIMITED: u16 = u16::MAX;

/// What belongs to this box and not to a VIP. Other boxes of a fleet have other values, and still
/// choose the same backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// Longest IP packet that each NIC sends, in bytes, by [`NicIndex`].
    pub mtus: Vec<u16>,
    /// Where tunnels begin.
    pub tunnels: Tunnels,
    /// MAC address of each NIC: a backend that has one of them is this box.
    pub macs: Vec<[u8; 6]>,
    /// How many ICMP errors each worker sends.
    pub icmp: IcmpRate,
}

/// A limit on ICMP errors that a worker makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpRate {
    /// In the long run; 0: none.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl Default for IcmpRate {
    /// As Linux has them: `icmp_msgs_per_sec` and `icmp_msgs_burst`.
    fn default() -> Self {
        Self { per_second: 1000, burst: 50 }
    }
}

impl Local {
    /// Longest IP packet that leaves by `nic`, in bytes.
    #[inline]
    pub fn mtu(&self, nic: NicIndex) -> u16 {
        self.mtus.get(usize::from(nic.0)).copied().unwrap_or(UNLIMITED)
    }
}
