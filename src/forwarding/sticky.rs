//! Stickiness of clients: which state a VIP keeps of its clients, and when a client leaves its
//! backend.

use serde::{Deserialize, Serialize};

use crate::net::BackendId;
use crate::units::Ticks;

/// Client-table settings of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remember {
    /// Idle time after which a client that sends again counts as returning.
    pub timeout: Ticks,
    /// Whether, until then, new flows of the client follow it to its backend.
    pub sticky: Option<Sticky>,
    /// Choice of the backend for the flows of a returning client.
    pub on_reentry: Reentry,
}

/// A flow touches its client record at its first packet in each period; the period in ticks of 10
/// ms as a power of two: 1.28 s.
pub const PERIOD_BITS: u32 = 7;

impl Remember {
    /// Whether a client last touched `idle` ago has been silent for longer than the time-out. It
    /// may have sent until the end of that period.
    pub const fn is_over(&self, idle: Ticks) -> bool {
        idle.0 > self.timeout.0 + (1 << PERIOD_BITS)
    }

    /// Backend to which a flow must belong to keep the record of a client of `backend` alive:
    /// `backend` where clients are sticky; `None`, any backend, elsewhere.
    pub fn kept_by(&self, backend: BackendId) -> Option<BackendId> {
        self.sticky.map(|_| backend)
    }
}

/// Behaviour of a client when its backend takes no new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sticky {
    /// While the backend drains, or has weight 0.
    pub on_drain: Hold,
    /// While its health check fails.
    pub on_down: Hold,
}

/// Whether a client leaves its backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// Its next connection goes to another backend, and the client stays there.
    #[default]
    Release,
    /// New flows of the client still go to the backend.
    Keep,
}

/// Choice of the backend for a client that was silent for longer than the time-out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reentry {
    /// By the scheduler, as for any flow.
    #[default]
    Hash,
    /// The backend with the fewest flows for its weight.
    Freest,
}

impl Hold {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Keep => "keep",
        }
    }
}

impl Reentry {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Freest => "freest",
        }
    }
}
