//! Properties of the local box, independent of VIPs.

use super::Tunnels;
use super::new_flows::NewFlows;
use crate::net::{Family, NextHop, NicIndex};

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
    /// Budgets of new flows, per worker.
    pub new_flows: NewFlows,
    /// Packets about which backends are asked, per second and worker; `None`: no bound.
    pub asks: Option<u32>,
    /// Return hops that no longer lead to their clients; mostly none.
    pub replaced_hops: Vec<ReplacedHop>,
}

/// A next hop that takes the place of a return hop: the client-side router has another MAC, or does
/// not reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplacedHop {
    /// Family of the clients.
    pub family: Family,
    /// Return hop, as pins have it.
    pub old: NextHop,
    /// Next hop to use instead.
    pub new: NextHop,
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

    /// Next hop to a client of this family, from which packets came by `hop`.
    #[inline]
    pub fn return_hop<'h>(&'h self, hop: &'h NextHop, family: Family) -> &'h NextHop {
        if self.replaced_hops.is_empty() { hop } else { self.replacement(hop, family) }
    }

    #[cold]
    fn replacement<'h>(&'h self, hop: &'h NextHop, family: Family) -> &'h NextHop {
        let mut replaced = self.replaced_hops.iter();
        let found = replaced.find(|replaced| replaced.old == *hop && replaced.family == family);
        found.map_or(hop, |replaced| &replaced.new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_hop_is_replaced_for_its_family_only() {
        let hop = |last| NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, last], vlan: None };
        let mut local = Local::default();
        assert_eq!(local.return_hop(&hop(1), Family::V4), &hop(1));
        let replaced = |family, new| ReplacedHop { family, old: hop(1), new: hop(new) };
        local.replaced_hops = vec![replaced(Family::V4, 2), replaced(Family::V6, 3)];
        for (old, family, new) in
            [(1, Family::V4, 2), (1, Family::V6, 3), (2, Family::V4, 2), (4, Family::V6, 4)]
        {
            assert_eq!(local.return_hop(&hop(old), family), &hop(new));
        }
    }
}
