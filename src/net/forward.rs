//! How packets reach a backend.

use serde::{Deserialize, Serialize};

/// How packets reach a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// Direct server return: only the destination MAC is rewritten; the backend has the VIP's
    /// address on its loopback and answers the client itself.
    Dsr,
    /// Destination address and port are rewritten; replies come back through holdfast.
    Nat,
    /// The same, and the source becomes an address and port of this box: replies come back whatever
    /// the routes of the backend, and the families of VIP and backend may differ.
    FullNat,
    /// The packet is put into another IP packet, to the backend (RFC 2003, RFC 2473, RFC 4213); the
    /// backend answers the client itself.
    Ipip,
    /// The same in UDP: generic UDP encapsulation, variant 0.
    Gue,
}

impl Forward {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Nat => "nat",
            Self::FullNat => "full_nat",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }

    /// Whether addresses and ports are rewritten, so that the backend answers through holdfast.
    #[inline(always)]
    pub const fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Whether packets are put into others.
    #[inline(always)]
    pub const fn tunnels(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }
}
