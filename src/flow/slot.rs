//! Number of an entry in a flow table.

/// Flag bit of the slots of IPv6 entries.
pub(super) const V6_FLAG: u32 = 1 << 31;

/// An entry of a flow table: its number and its address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

impl Slot {
    /// A slot that names no entry.
    pub const NOWHERE: Self = Self(!V6_FLAG);

    /// Returns the slot of entry `number` in the family with this flag: 0, or [`V6_FLAG`].
    #[inline]
    pub(super) const fn new(flag: u32, number: u32) -> Self {
        Self(number | flag)
    }

    /// Returns the entry's number in its family.
    #[inline]
    pub(super) const fn number(self) -> u32 {
        self.0 & !V6_FLAG
    }

    #[inline]
    pub(super) const fn is_v6(self) -> bool {
        self.0 & V6_FLAG != 0
    }
}
