//! Forwarding modes: how packets reach a backend.

use serde::{Deserialize, Serialize};

/// Forwarding mode of a VIP's packets to its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// Direct server return: only the destination MAC is rewritten; the backend has the VIP's
    /// address on its loopback and replies to the client directly.
    Dsr,
    /// Destination address and port are rewritten; replies come back through holdfast.
    Nat,
    /// [`Forward::Nat`], and the source becomes a local address and port: replies come back
    /// whatever the routes of the backend, and the families of VIP and backend may differ.
    FullNat,
    /// The packet is encapsulated in IP (RFC 2003, RFC 2473, RFC 4213); the backend replies to the
    /// client directly.
    Ipip,
    /// The packet is encapsulated in UDP: generic UDP encapsulation, variant 0.
    Gue,
}

impl Forward {
    /// Returns the name used in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Nat => "nat",
            Self::FullNat => "full_nat",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
        }
    }

    /// Returns whether addresses and ports are rewritten, so that the backend replies through
    /// holdfast.
    #[inline(always)]
    pub const fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Returns whether packets are encapsulated.
    #[inline(always)]
    pub const fn tunnels(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }
}
