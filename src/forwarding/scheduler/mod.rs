//! Schedulers: how a VIP chooses a backend for a flow that has no pin.
//!
//! One file each. A new one implements [`Scheduler`], and gets a variant of [`SchedulerKind`] and a
//! line in [`build`]. Immutable: what changes (who is in service, how many flows each has, whose
//! turn it is) is asked of the [`Pool`], which the data path, `explain` and `whatif` each answer
//! for.
//!
//! All that they do follows from the configuration and from what the pool says: no clock, no random
//! numbers. docs/SCHEDULERS.md says when to use which.

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
    /// A backend that `pool` accepts; `None` if it accepts none of those that have weight.
    ///
    /// `hash` is the flow's affinity hash, 64 well-mixed bits, equal for flows that belong together.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex>;

    /// The slots of the lookup table, for those that have one.
    fn slots(&self) -> &[BackendIndex] {
        &[]
    }
}

/// What a scheduler may ask about its backends.
pub trait Pool {
    /// Whether the flow may go there: it is in service, and has no flow that it would take this one
    /// for.
    fn accepts(&mut self, backend: BackendIndex) -> bool;

    /// Flows that are pinned to it, of those that whoever asks keeps: a worker's own.
    fn active(&self, backend: BackendIndex) -> u64;

    /// The same of the whole VIP.
    fn active_total(&self) -> u64;

    /// How many flows the scheduler has placed before this one.
    fn turn(&self) -> u64;

    /// Told how the choice goes on.
    fn record(&mut self, _step: Note) {}
}

/// How a scheduler came to its choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// It looked into this slot of its lookup table.
    Slot(u32),
    /// It looked at this point of its ring, by number.
    Point(u32),
    /// It passed over this backend, which would have taken the flow, because of its bound.
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

/// Who wants flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub backend: BackendIndex,
    /// What is hashed: stable, and the same on every box.
    pub server: Server,
    /// Share relative to the others; 0 gets none.
    pub weight: u32,
}

/// Slots of a table by default: the prime of the Maglev paper (NSDI 2016, section 3.4), for shares
/// within 1% with 600 backends.
pub const TABLE_SIZE: u32 = 65_537;

/// A scheduler and its settings, as a VIP asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerKind {
    /// Consistent hashing with an even table ([`maglev`]).
    Maglev {
        /// Slots: a prime.
        size: u32,
    },
    /// Consistent hashing by draws of every backend ([`rendezvous`]).
    Rendezvous,
    /// Consistent hashing with a ring ([`ring`]).
    Ring {
        /// Points per unit of weight, at least 1.
        virtual_nodes: u32,
    },
    /// In turns ([`round_robin`]).
    RoundRobin,
    /// The least loaded ([`least_connections`]).
    LeastConnections,
    /// The less loaded of two that the hash gives ([`power_of_two`]).
    PowerOfTwo {
        /// Slots: a prime.
        size: u32,
    },
    /// Maglev with a bound for the load of each backend ([`bounded`]).
    Bounded {
        /// Slots: a prime.
        size: u32,
        /// By how much a backend may be above its share, in thousandths of it; at least 1.
        e_permille: u32,
    },
}

impl Default for SchedulerKind {
    fn default() -> Self {
        Self::Maglev { size: TABLE_SIZE }
    }
}

impl SchedulerKind {
    /// As the configuration calls it.
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

    /// Slots of its lookup table, where the configuration says how many.
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

    /// Whether the hash alone chooses, among the backends that are in service: every packet of a flow
    /// then gets the same one, without a pin, for as long as those stay the same.
    pub const fn is_pure_hash(self) -> bool {
        matches!(self, Self::Maglev { .. } | Self::Rendezvous | Self::Ring { .. })
    }

    /// Whether it looks at how many flows each backend has.
    pub const fn counts_flows(self) -> bool {
        matches!(self, Self::LeastConnections | Self::PowerOfTwo { .. } | Self::Bounded { .. })
    }

    /// Whether flows of one hash go to one backend, at least while it is not too loaded.
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

/// A scheduler with what it was built from.
#[derive(Debug, Clone)]
pub struct Built {
    kind: SchedulerKind,
    candidates: Arc<[Candidate]>,
    scheduler: Arc<dyn Scheduler>,
}

impl Built {
    /// Builds the scheduler of these candidates, in whatever order they come; takes over `previous`
    /// (of the same secret) if it was built from the same.
    ///
    /// Cost: that of the scheduler; off the data path.
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

    /// Which scheduler it is.
    pub const fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// The candidates in the order of their addresses, those without weight too.
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
    //! What tests of schedulers share.
    use super::*;

    /// The key of all hashes in tests.
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

    /// Well-mixed hashes, always the same.
    pub fn hashes(count: u64) -> impl Iterator<Item = u64> {
        (1..=count).map(crate::forwarding::affinity::mix)
    }

    /// A pool with the given flows per backend, by index, some of which are out of service.
    #[derive(Debug, Default)]
    pub struct TestPool {
        /// Flows per backend.
        pub active: Vec<u64>,
        /// Who accepts nothing.
        pub out: Vec<u16>,
        /// Flows that were placed before.
        pub turn: u64,
    }

    impl TestPool {
        /// Places a flow, and counts it.
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
