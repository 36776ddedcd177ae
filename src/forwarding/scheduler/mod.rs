//! Schedulers: how a VIP chooses a backend for a flow that has no pin.
//!
//! One file each. A new one implements [`Scheduler`], and gets a variant of [`SchedulerKind`] and a
//! line in [`build`]. Immutable: what changes (who is in service, how many flows each has, whose
//! turn it is) is asked of the [`Pool`], which the data path, `explain` and `whatif` each answer
//! for.

pub mod maglev;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::{BackendIndex, Secret};

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
    fn note(&mut self, _note: Note) {}
}

/// How a scheduler came to its choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// It looked into this slot of its lookup table.
    Slot(u32),
}

/// Who wants flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who.
    pub backend: BackendIndex,
    /// What is hashed: stable, and the same on every box.
    pub name: Cow<'a, str>,
    /// Share relative to the others; 0 gets none.
    pub weight: u32,
}

impl Candidate<'_> {
    fn into_owned(self) -> Candidate<'static> {
        Candidate { name: Cow::Owned(self.name.into_owned()), ..self }
    }
}

/// A scheduler and its settings, as a VIP asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerKind {
    /// Consistent hashing with an even table ([`maglev`]).
    Maglev {
        /// Slots: a prime.
        size: u32,
    },
}

/// A scheduler with what it was built from.
#[derive(Debug, Clone)]
pub struct Built {
    kind: SchedulerKind,
    candidates: Arc<[Candidate<'static>]>,
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
        mut candidates: Vec<Candidate<'_>>,
        previous: Option<&Self>,
    ) -> Self {
        candidates.sort_by(|a, b| a.name.cmp(&b.name));
        let same = |built: &&Self| built.kind == kind && *built.candidates == *candidates;
        if let Some(previous) = previous.filter(same) {
            return previous.clone();
        }
        let candidates: Arc<[_]> = candidates.into_iter().map(Candidate::into_owned).collect();
        let scheduler = build(kind, secret, &candidates);
        Self { kind, candidates, scheduler }
    }

    /// Which scheduler it is.
    pub const fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// The candidates in the order of their names, those without weight too.
    pub fn candidates(&self) -> &[Candidate<'static>] {
        &self.candidates
    }

    /// The scheduler.
    #[inline]
    pub fn scheduler(&self) -> &dyn Scheduler {
        &*self.scheduler
    }
}

/// Builds a scheduler; `candidates` are in the order of their names.
fn build(kind: SchedulerKind, secret: &Secret, candidates: &[Candidate<'_>]) -> Arc<dyn Scheduler> {
    match kind {
        SchedulerKind::Maglev { size } => Arc::new(maglev::Maglev::build(size, secret, candidates)),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What tests of schedulers share.
    use super::*;

    /// The key of all hashes in tests.
    pub const SECRET: Secret = *b"holdfast testkey";

    /// `backend-0` to `backend-(count - 1)`, in the order of their names, each of weight 1.
    pub fn candidates(count: u16) -> Vec<Candidate<'static>> {
        let mut candidates: Vec<_> = (0..count)
            .map(|index| Candidate {
                backend: BackendIndex(index),
                name: format!("backend-{index}").into(),
                weight: 1,
            })
            .collect();
        candidates.sort_by(|a, b| a.name.cmp(&b.name));
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
