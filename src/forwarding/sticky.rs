//! What a VIP wants remembered of its clients, and whether a client stays with its backend.

use serde::{Deserialize, Serialize};

use crate::net::BackendId;
use crate::units::Ticks;

/// What a VIP wants of the clients table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remember {
    /// A client of which no packet came for longer is one that comes back.
    pub timeout: Ticks,
    /// Whether its new flows follow it to its backend until then.
    pub sticky: Option<Sticky>,
    /// Where the flows of a client that comes back go.
    pub on_reentry: Reentry,
}

/// A flow notes its client at its first packet in each period of so many ticks of 10 ms, as a power
/// of two: 1.28 s.
pub const PERIOD_BITS: u32 = 7;

impl Remember {
    /// Whether a client that was noted `idle` ago was silent for longer than the time-out: it may
    /// have sent until the end of that period.
    pub const fn is_over(&self, idle: Ticks) -> bool {
        idle.0 > self.timeout.0 + (1 << PERIOD_BITS)
    }

    /// Whose flows keep a client remembered that has `backend`: where clients stick, those that are
    /// there, too; elsewhere (`None`) all of its flows.
    pub fn kept_by(&self, backend: BackendId) -> Option<BackendId> {
        self.sticky.map(|_| backend)
    }
}

/// What becomes of a client whose backend takes no new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sticky {
    /// While the backend drains, or has weight 0.
    pub on_drain: Hold,
    /// While its health check fails.
    pub on_down: Hold,
}

/// Whether a client lets go of its backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Its next connection goes elsewhere, and it stays there.
    #[default]
    Release,
    /// It goes on there.
    Keep,
}

/// Where the flows of a client go that was silent for longer than the time-out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reentry {
    /// Where the scheduler sends any other.
    #[default]
    Hash,
    /// To the backend with the fewest flows for its weight.
    Freest,
}

impl Hold {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Keep => "keep",
        }
    }
}

impl Reentry {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Freest => "freest",
        }
    }
}
