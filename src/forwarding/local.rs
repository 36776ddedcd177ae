//! Properties of the local box, independent of VIPs.

use super::Tunnels;
use crate::net::NicIndex;

/// Maximum length of an IP packet, in bytes, for a NIC without a known limit.
pub const UNLIMITED: u16 = u16::MAX;

/// Properties of the local box. Boxes of a fleet differ in them and still choose the same backends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// Maximum length of an IP packet that each NIC sends, in bytes, by [`NicIndex`].
    pub mtus: Vec<u16>,
    /// Tunnel sources and settings.
    pub tunnels: Tunnels,
    /// MAC address of each NIC: a backend whose next hop has one of them is the local box.
    pub macs: Vec<[u8; 6]>,
    /// Rate limit of ICMP errors, per worker.
    pub icmp: IcmpRate,
}

/// Rate limit of ICMP errors sent by one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpRate {
    /// Sustained rate, in errors per second; 0: none.
    pub per_second: u32,
    /// Burst size, in errors.
    pub burst: u32,
}

impl Default for IcmpRate {
    /// The defaults of Linux: `icmp_msgs_per_sec` and `icmp_msgs_burst`.
    fn default() -> Self {
        Self { per_second: 1000, burst: 50 }
    }
}

impl Local {
    /// Maximum length of an IP packet that leaves through `nic`, in bytes.
    #[inline]
    pub fn mtu(&self, nic: NicIndex) -> u16 {
        self.mtus.get(usize::from(nic.0)).copied().unwrap_or(UNLIMITED)
    }
}
