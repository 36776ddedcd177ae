//! Earlier states of a VIP's selection: where a flow began that has no pin here.
//!
//! A flow that began at another box, or at this one before its pin was lost, is at the backend that
//! the table of that time has chosen. A change of the pool, of weights, of drains or of health makes
//! another table. The last [`STATES`] different ones of each VIP are kept, and name the backends that
//! may have the flow.
//!
//! Cost: a state shares its scheduler with the table that it is from; a choice for each state, and
//! for flows without a pin only.

use std::sync::Arc;

use super::Splits;
use super::scheduler::{Built, Pool};
use crate::net::{BackendId, BackendIndex};

/// Maximum number of earlier states of a VIP.
pub const STATES: usize = 8;

/// What a table's choice depends on, but for loads and turns.
#[derive(Debug, Clone)]
pub struct State {
    scheduler: Built,
    splits: Splits,
    /// Backends that took new flows, in the order of their indices.
    took: Arc<[Taker]>,
}

/// A backend that took new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taker {
    /// The backend.
    pub id: BackendId,
    /// Whether it took only a share of them, which grew (slow start).
    pub partly: bool,
}

impl State {
    /// Creates a state; `took` in any order.
    pub fn new(scheduler: Built, splits: Splits, mut took: Vec<Taker>) -> Self {
        took.sort_unstable_by_key(|taker| taker.id.index.0);
        Self { scheduler, splits, took: took.into() }
    }

    /// Whether both choose the same backends.
    fn is_like(&self, other: &Self) -> bool {
        self.took == other.took
            && self.splits == other.splits
            && self.scheduler.is_like(&other.scheduler)
    }

    /// Returns the backends that it may have chosen for a flow: one, or two while one of them took a
    /// share.
    pub fn chosen(&self, hash: u64) -> impl Iterator<Item = BackendId> {
        let first = self.choose(hash, true);
        let partly = first.is_some_and(|taker| taker.partly);
        let other = if partly { self.choose(hash, false) } else { None };
        first.into_iter().chain(other).map(|taker| taker.id)
    }

    fn choose(&self, hash: u64, partly: bool) -> Option<Taker> {
        let mut pool = Took { took: &self.took, partly };
        let index = self.scheduler.scheduler().choose(hash, &mut pool)?;
        pool.find(index)
    }
}

/// The backends of a state, as a scheduler sees them.
struct Took<'s> {
    took: &'s [Taker],
    /// Whether those count that took a share.
    partly: bool,
}

impl Took<'_> {
    fn find(&self, backend: BackendIndex) -> Option<Taker> {
        let at = self.took.binary_search_by_key(&backend.0, |taker| taker.id.index.0);
        self.took.get(at.ok()?).copied()
    }
}

impl Pool for Took<'_> {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        self.find(backend).is_some_and(|taker| self.partly || !taker.partly)
    }

    fn active(&self, _backend: BackendIndex) -> u64 {
        0
    }

    fn active_total(&self) -> u64 {
        0
    }

    fn turn(&self) -> u64 {
        0
    }
}

/// The earlier states of a VIP, the newest first.
#[derive(Debug, Clone, Default)]
pub struct History(Vec<State>);

impl History {
    /// Returns the history of the table after one with this history and state.
    #[must_use]
    pub fn after(&self, past: &State, present: &State) -> Self {
        if past.is_like(present) {
            return self.clone();
        }
        let older = self.0.iter().filter(|state| !state.is_like(past) && !state.is_like(present));
        Self([past].into_iter().chain(older).take(STATES).cloned().collect())
    }

    /// Returns the backends that the states may have chosen for a flow, the newest first, with
    /// repetitions. `hash`: the flow's affinity hash with these splits.
    pub fn chosen(&self, hash: impl Fn(&Splits) -> u64) -> impl Iterator<Item = BackendId> {
        self.0.iter().flat_map(move |state| state.chosen(hash(&state.splits)))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::super::scheduler::SchedulerKind;
    use super::super::scheduler::testing::{SECRET, TestPool, candidates, hashes, with_weights};
    use super::*;

    const MAGLEV: SchedulerKind = SchedulerKind::Maglev { size: 251 };

    fn taker(index: u16) -> Taker {
        let id = BackendId { index: BackendIndex(index), generation: 0 };
        Taker { id, partly: false }
    }

    fn state(backends: u16, out: &[u16]) -> State {
        let scheduler = Built::build(MAGLEV, &SECRET, candidates(backends), None);
        let took = (0..backends).filter(|index| !out.contains(index)).map(taker).collect();
        State::new(scheduler, Splits::default(), took)
    }

    fn indices(history: &History, hash: u64) -> Vec<u16> {
        history.chosen(|_| hash).map(|id| id.index.0).collect()
    }

    #[test]
    fn a_flow_is_where_the_table_of_its_beginning_has_put_it() {
        let states = [state(3, &[]), state(4, &[]), state(4, &[1]), state(3, &[])];
        let mut history = History::default();
        for pair in states.windows(2) {
            history = history.after(&pair[0], &pair[1]);
        }
        for hash in hashes(200) {
            let of = |state: &State, out: &[u16]| {
                let mut pool = TestPool { out: out.to_vec(), ..TestPool::default() };
                state.scheduler.scheduler().choose(hash, &mut pool).unwrap().0
            };
            // The present state is the first one again, which is left out.
            let expected = [of(&states[2], &[1]), of(&states[1], &[])];
            assert_eq!(indices(&history, hash), expected);
        }
    }

    #[test]
    fn a_backend_in_slow_start_may_have_a_flow_or_not() {
        let mut took: Vec<Taker> = (0..3).map(taker).collect();
        took[2].partly = true;
        let scheduler = Built::build(MAGLEV, &SECRET, candidates(3), None);
        let history = History::default()
            .after(&State::new(scheduler, Splits::default(), took), &state(3, &[]));
        let (mut both, mut one) = (0, 0);
        for hash in hashes(200) {
            match indices(&history, hash)[..] {
                [2, 0 | 1] => both += 1,
                [0 | 1] => one += 1,
                ref other => unreachable!("{other:?}"),
            }
        }
        assert!(both > 30 && one > 60, "{both} {one}");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_has_no_state_twice() {
        let weights = |last| with_weights(&[1, 1, last]);
        let state = |last| {
            let scheduler = Built::build(MAGLEV, &SECRET, weights(last), None);
            State::new(scheduler, Splits::default(), (0..3).map(taker).collect())
        };
        let mut history = History::default();
        for last in 1..20 {
            history = history.after(&state(last), &state(last + 1));
            history = history.after(&state(last + 1), &state(last + 1));
        }
        assert_eq!(history.0.len(), STATES);
        for _ in 0..5 {
            history = history.after(&state(1), &state(2));
            history = history.after(&state(2), &state(1));
        }
        assert_eq!(history.0.iter().filter(|past| past.is_like(&state(2))).count(), 1);
        assert!(history.0.iter().all(|past| !past.is_like(&state(1))));
    }
}
