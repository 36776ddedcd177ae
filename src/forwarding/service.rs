//! Service states, and the treatment of flows that they lead to.

use serde::{Deserialize, Serialize};

use crate::units::Ticks;

/// Service state of a backend, set by an operator or by a drain deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Takes new flows.
    Active,
    /// Keeps its flows, takes no new ones.
    Draining,
    /// Takes no packets: the drain met its deadline, and its pins are stale.
    Out,
}

/// Kind of a client's packet without a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// The packet opens a flow: a SYN, or a packet of a protocol without connections.
    Open,
    /// A TCP packet without SYN: its flow has lost its pin.
    NonSyn,
}

/// Treatment of flows pinned to a backend that no longer serves them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowAction {
    /// Their packets still go to the backend.
    #[default]
    Keep,
    /// TCP: both ends receive a RST. UDP: like [`FlowAction::Rehash`].
    Reset,
    /// The next packet of each flow chooses another backend.
    Rehash,
}

impl FlowAction {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
            Self::Rehash => "rehash",
        }
    }
}

/// Time that a reset flow keeps its pin, so that an end that missed its RST receives another one:
/// 12 s.
pub const RESET_TIME: Ticks = Ticks(1200);
