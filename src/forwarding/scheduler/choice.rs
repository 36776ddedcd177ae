//! The interface of a scheduler: candidates, pool and choice.

use std::fmt;

use super::super::server::Server;
use crate::net::BackendIndex;

/// Chooses a backend for a new flow.
pub trait Scheduler: fmt::Debug + Send + Sync {
    /// Returns a backend that `pool` accepts; `None` if it accepts no backend with weight.
    ///
    /// `hash` is the flow's affinity hash, 64 well-mixed bits, equal for flows that belong
    /// together.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex>;

    /// Slots of the lookup table, for schedulers that have one.
    fn slots(&self) -> &[BackendIndex] {
        &[]
    }
}

/// State of the backends, as read by a scheduler.
pub trait Pool {
    /// Whether the flow may go to `backend`: it is in service, and has no flow that this one would
    /// be confused with.
    fn accepts(&mut self, backend: BackendIndex) -> bool;

    /// Number of flows pinned to `backend`, within the caller's own count: for a worker, its own
    /// flows.
    fn active(&self, backend: BackendIndex) -> u64;

    /// Number of pinned flows of the whole VIP, counted like [`active`](Self::active).
    fn active_total(&self) -> u64;

    /// Number of flows that the scheduler has placed before this one.
    fn turn(&self) -> u64;

    /// Records a step of the choice.
    fn record(&mut self, _step: Note) {}
}

/// A step of a scheduler's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The scheduler tried this slot of its lookup table.
    Slot(u32),
    /// The scheduler tried this point of its ring, by number.
    Point(u32),
    /// The scheduler passed over this backend, which accepts the flow, because of its bound.
    Full(BackendIndex),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(slot) => write!(f, "slot {slot}"),
            Self::Point(point) => write!(f, "point {point} of the ring"),
            Self::Full(backend) => write!(f, "backend number {} is at its bound", backend.0),
        }
    }
}

/// A backend as input to a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the backend.
    pub backend: BackendIndex,
    /// Input of the hash: stable, and equal on every box.
    pub server: Server,
    /// Share relative to the other candidates; 0 gets no flows.
    pub weight: u32,
}
