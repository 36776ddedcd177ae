//! Schedulers: the choice of a backend for a flow that has no pin.
//!
//! One file each. A new scheduler implements [`Scheduler`], and gets a variant of [`SchedulerKind`]
//! and a line in [`build`]. Schedulers are immutable: state that changes (backends in service, flow
//! counts, turns) is read through the [`Pool`], which the data path, `explain` and `whatif` each
//! implement.
//!
//! A choice depends only on the configuration and on the pool: no clock, no random numbers.
//! docs/SCHEDULERS.md describes which scheduler suits which purpose.

pub mod bounded;
pub mod least_connections;
mod load;
pub mod lookup;
pub mod maglev;
pub mod power_of_two;
pub mod rendezvous;
pub mod ring;
pub mod round_robin;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use super::Secret;
use super::server::Server;
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

/// Default number of slots of a table: the prime of the Maglev paper (NSDI 2016, section 3.4), for
/// shares within 1% with 600 backends.
pub const TABLE_SIZE: u32 = 65_537;

/// A scheduler with its settings, as configured for a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerKind {
    /// Consistent hashing with an evenly filled table ([`maglev`]).
    Maglev {
        /// Number of slots: a prime.
        size: u32,
    },
    /// Consistent hashing by a draw of every backend ([`rendezvous`]).
    Rendezvous,
    /// Consistent hashing with a ring ([`ring`]).
    Ring {
        /// Points per unit of weight, at least 1.
        virtual_nodes: u32,
    },
    /// Smooth weighted round robin ([`round_robin`]).
    RoundRobin,
    /// The least loaded backend ([`least_connections`]).
    LeastConnections,
    /// The less loaded of two backends that the hash selects ([`power_of_two`]).
    PowerOfTwo {
        /// Number of slots: a prime.
        size: u32,
    },
    /// Maglev with bounded loads ([`bounded`]).
    Bounded {
        /// Number of slots: a prime.
        size: u32,
        /// Permitted excess of a backend over its share, in thousandths of the share; at least 1.
        e_permille: u32,
    },
}

impl Default for SchedulerKind {
    fn default() -> Self {
        Self::Maglev { size: TABLE_SIZE }
    }
}

impl SchedulerKind {
    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Maglev { .. } => "maglev",
            Self::Rendezvous => "rendezvous",
            Self::Ring { .. } => "ring",
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
            Self::PowerOfTwo { .. } => "power_of_two",
            Self::Bounded { .. } => "bounded",
        }
    }

    /// Number of slots of the lookup table, where it is configurable.
    pub const fn table_size(self) -> Option<u32> {
        match self {
            Self::Maglev { size } | Self::PowerOfTwo { size } | Self::Bounded { size, .. } => {
                Some(size)
            }
            Self::Rendezvous | Self::Ring { .. } | Self::RoundRobin | Self::LeastConnections => {
                None
            }
        }
    }

    /// Whether the hash alone chooses among the backends in service: without a pin, every packet of
    /// a flow gets the same backend while that set is unchanged.
    pub const fn is_pure_hash(self) -> bool {
        matches!(self, Self::Maglev { .. } | Self::Rendezvous | Self::Ring { .. })
    }

    /// Whether the choice depends on the number of flows of each backend.
    pub const fn counts_flows(self) -> bool {
        matches!(self, Self::LeastConnections | Self::PowerOfTwo { .. } | Self::Bounded { .. })
    }

    /// Whether flows with one hash go to one backend, at least while its load permits.
    pub const fn heeds_affinity(self) -> bool {
        !matches!(self, Self::RoundRobin | Self::LeastConnections)
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.as_str();
        match *self {
            Self::Rendezvous | Self::RoundRobin | Self::LeastConnections => f.write_str(word),
            Self::Maglev { size } | Self::PowerOfTwo { size } => {
                write!(f, "{word} (table_size {size})")
            }
            Self::Ring { virtual_nodes } => write!(f, "{word} (virtual_nodes {virtual_nodes})"),
            Self::Bounded { size, e_permille } => {
                let e = f64::from(e_permille) / 1000.0;
                write!(f, "{word} (e {e}, table_size {size})")
            }
        }
    }
}

/// A scheduler together with its build inputs.
#[derive(Debug, Clone)]
pub struct Built {
    kind: SchedulerKind,
    candidates: Arc<[Candidate]>,
    scheduler: Arc<dyn Scheduler>,
}

impl Built {
    /// Builds the scheduler of these candidates, in any order; reuses `previous` (of the same
    /// secret) if it was built from the same inputs.
    ///
    /// Cost: that of the scheduler's build; off the data path.
    pub fn build(
        kind: SchedulerKind,
        secret: &Secret,
        mut candidates: Vec<Candidate>,
        previous: Option<&Self>,
    ) -> Self {
        candidates.sort_by_key(|candidate| candidate.server);
        let same = |built: &&Self| built.kind == kind && *built.candidates == *candidates;
        if let Some(previous) = previous.filter(same) {
            return previous.clone();
        }
        let candidates: Arc<[_]> = candidates.into();
        let scheduler = build(kind, secret, &candidates);
        Self { kind, candidates, scheduler }
    }

    /// Kind and settings of the scheduler.
    pub const fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// Candidates in the order of their addresses, including those without weight.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The scheduler.
    #[inline]
    pub fn scheduler(&self) -> &dyn Scheduler {
        &*self.scheduler
    }
}

/// Builds a scheduler; `candidates` are in the order of their addresses.
fn build(kind: SchedulerKind, secret: &Secret, candidates: &[Candidate]) -> Arc<dyn Scheduler> {
    match kind {
        SchedulerKind::Maglev { size } => Arc::new(maglev::Maglev::build(size, secret, candidates)),
        SchedulerKind::Rendezvous => Arc::new(rendezvous::Rendezvous::build(secret, candidates)),
        SchedulerKind::Ring { virtual_nodes } => {
            Arc::new(ring::Ring::build(virtual_nodes, secret, candidates))
        }
        SchedulerKind::RoundRobin => Arc::new(round_robin::RoundRobin::build(candidates)),
        SchedulerKind::LeastConnections => {
            Arc::new(least_connections::LeastConnections::build(candidates))
        }
        SchedulerKind::PowerOfTwo { size } => {
            Arc::new(power_of_two::PowerOfTwo::build(size, secret, candidates))
        }
        SchedulerKind::Bounded { size, e_permille } => {
            Arc::new(bounded::Bounded::build(size, e_permille, secret, candidates))
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Helpers for scheduler tests.
    use super::*;

    /// Key of all hashes in tests.
    pub const SECRET: Secret = *b"holdfast testkey";

    /// Servers 10.0.x.y, numbered in the order of their addresses, each of weight 1.
    pub fn candidates(count: u16) -> Vec<Candidate> {
        let candidate = |index: u16| {
            let [high, low] = index.to_be_bytes();
            let server = Server::new([10, 0, high, low].into(), 0);
            Candidate { backend: BackendIndex(index), server, weight: 1 }
        };
        (0..count).map(candidate).collect()
    }

    /// [`candidates`] with these weights.
    pub fn with_weights(weights: &[u32]) -> Vec<Candidate> {
        let mut candidates = candidates(u16::try_from(weights.len()).unwrap_or(u16::MAX));
        for candidate in &mut candidates {
            let weight = weights.get(usize::from(candidate.backend.0));
            candidate.weight = weight.copied().unwrap_or(0);
        }
        candidates
    }

    /// Well-mixed hashes, the same in every run.
    pub fn hashes(count: u64) -> impl Iterator<Item = u64> {
        (1..=count).map(crate::forwarding::affinity::mix)
    }

    /// A pool with given flow counts per backend and a set of backends out of service.
    #[derive(Debug, Default)]
    pub struct TestPool {
        /// Flow count per backend, by index.
        pub active: Vec<u64>,
        /// Indices of backends that accept nothing.
        pub out: Vec<u16>,
        /// Number of flows placed before.
        pub turn: u64,
    }

    impl TestPool {
        /// Places a flow and counts it.
        pub fn place(&mut self, scheduler: &dyn Scheduler, hash: u64) -> Option<BackendIndex> {
            let chosen = scheduler.choose(hash, self)?;
            self.turn += 1;
            let active = self.active.get_mut(usize::from(chosen.0));
            active.into_iter().for_each(|active| *active += 1);
            Some(chosen)
        }
    }

    impl Pool for TestPool {
        fn accepts(&mut self, backend: BackendIndex) -> bool {
            !self.out.contains(&backend.0)
        }

        fn active(&self, backend: BackendIndex) -> u64 {
            self.active.get(usize::from(backend.0)).copied().unwrap_or_default()
        }

        fn active_total(&self) -> u64 {
            self.active.iter().sum()
        }

        fn turn(&self) -> u64 {
            self.turn
        }
    }
}
