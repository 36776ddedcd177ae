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
mod choice;
mod kind;
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

use std::sync::Arc;

use super::affinity::Secret;

pub use choice::{Candidate, Note, Pool, Scheduler};
pub use kind::{SchedulerKind, TABLE_SIZE};

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

    /// Whether both make the same choices.
    pub fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind && self.candidates == other.candidates
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
    use crate::forwarding::server::Server;
    use crate::net::BackendIndex;

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
