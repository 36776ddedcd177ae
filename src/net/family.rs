//! Address families.

use super::Address;

/// The family of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns true for IPv4.
    #[inline]
    pub const fn is_v4(self) -> bool {
        matches!(self, Self::V4)
    }
}

impl Address {
    /// Returns the family of the address: IPv4 if it is IPv4-mapped.
    #[inline]
    pub const fn family(self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }
}
