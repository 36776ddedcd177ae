//! Indices of configured objects: VIPs, backends, NICs.

use serde::{Deserialize, Serialize};

/// Maximum number of NICs.
pub const MAX_NICS: usize = 15;

/// Index of a VIP. Assigned by the control thread; stable across reloads while the VIP exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipId(pub u16);

impl VipId {
    /// Index of no VIP: above the highest possible index.
    pub const NONE: Self = Self(u16::MAX);
}

/// Index of a backend (of one VIP). Assigned by the control thread; stable across reloads while the
/// backend exists, and reused after that with another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendIndex(pub u16);

/// A backend and its generation, as a pin stores it. A pin of an older generation is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendId {
    /// Index of the backend.
    pub index: BackendIndex,
    /// Generation of the index; wraps after 65,536 removals of one index.
    pub generation: u16,
}

/// Index of a NIC in the configuration's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NicIndex(pub u8);
