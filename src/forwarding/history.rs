//! Earlier states of a VIP's selection: where a flow began that has no pin here.
//!
//! A flow that began at another box, or at this one before its pin was lost, is at the backend that
//! the table of that time has chosen. A change of the pool, of weights, of drains or of health makes
//! another table. The last [`STATES`] different ones of each VIP are kept, and name the backends that
//! may have the flow, for as long as the VIP's `remember_s` says. A VIP of which a table does not know
//! the past as far back as that, after a start or after more changes than are kept, may have the flow
//! at any of its backends.
//!
//! Cost: a state shares its scheduler with the table that it is from; a choice for each state, and
//! for flows without a pin only.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::Splits;
use super::scheduler::{Built, Pool};
use crate::net::{BackendId, BackendIndex};
use crate::units::Ticks;

/// Maximum number of earlier states of a VIP.
pub const STATES: usize = 8;
/// Number of choices of a state if those before were out: two backends may be down, or drain, at
/// another box only.
pub const SUCCESSORS: usize = 3;

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

    /// Returns the backends that it would choose for a flow one after the other, each if those before
    /// it were out: another box may have seen them so.
    pub fn successors(&self, hash: u64) -> ArrayVec<BackendId, SUCCESSORS> {
        let mut chosen = ArrayVec::new();
        while !chosen.is_full()
            && let Some(next) = self.choose_without(hash, true, &chosen)
        {
            chosen.push(next.id);
        }
        chosen
    }

    fn choose(&self, hash: u64, partly: bool) -> Option<Taker> {
        self.choose_without(hash, partly, &[])
    }

    fn choose_without(&self, hash: u64, partly: bool, out: &[BackendId]) -> Option<Taker> {
        let mut pool = Took { took: &self.took, partly, out };
        let index = self.scheduler.scheduler().choose(hash, &mut pool)?;
        pool.find(index)
    }
}

/// The backends of a state, as a scheduler sees them.
struct Took<'s> {
    took: &'s [Taker],
    /// Whether those count that took a share.
    partly: bool,
    /// Those that do not count.
    out: &'s [BackendId],
}

impl Took<'_> {
    fn find(&self, backend: BackendIndex) -> Option<Taker> {
        let at = self.took.binary_search_by_key(&backend.0, |taker| taker.id.index.0);
        self.took.get(at.ok()?).copied()
    }
}

impl Pool for Took<'_> {
    fn accepts(&mut self, backend: BackendIndex) -> bool {
        let is_in = |taker: Taker| (self.partly || !taker.partly) && !self.out.contains(&taker.id);
        self.find(backend).is_some_and(is_in)
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

/// A state that has ended.
#[derive(Debug, Clone)]
struct Past {
    state: State,
    until: Ticks,
}

/// The earlier states of a VIP.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The newest first.
    past: Vec<Past>,
    /// Time since which it knows all states; `None`: it knows none but the present one.
    since: Option<Ticks>,
}

impl History {
    /// Returns the history of a VIP that is new, or whose past is not known, at `now`.
    pub const fn begun(now: Ticks) -> Self {
        Self { past: Vec::new(), since: Some(now) }
    }

    /// Returns the history after `before` became `present`, at `now`.
    #[must_use]
    pub fn after(&self, before: &State, present: &State, now: Ticks) -> Self {
        if before.is_like(present) {
            return self.clone();
        }
        let is_other = |past: &&Past| !past.state.is_like(before) && !past.state.is_like(present);
        let newest = Past { state: before.clone(), until: now };
        let older = self.past.iter().filter(is_other).cloned();
        let mut past: Vec<Past> = [newest].into_iter().chain(older).collect();
        let lost = past.get(STATES).map(|past| past.until);
        past.truncate(STATES);
        Self { past, since: lost.or(self.since) }
    }

    /// Whether it knows all states of the `span` before `now`.
    pub fn reaches(&self, span: Ticks, now: Ticks) -> bool {
        self.since.is_some_and(|since| now.since(since).0 >= span.0)
    }

    /// Returns the backends that states of the `span` before `now` may have chosen for a flow, the
    /// newest first, with repetitions. `hash`: the flow's affinity hash with these splits.
    pub fn chosen(
        &self,
        hash: impl Fn(&Splits) -> u64,
        span: Ticks,
        now: Ticks,
    ) -> impl Iterator<Item = BackendId> {
        let recent = self.past.iter().filter(move |past| now.since(past.until).0 <= span.0);
        recent.flat_map(move |Past { state, .. }| state.chosen(hash(&state.splits)))
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

    const HOUR: Ticks = Ticks(360_000);

    fn indices(history: &History, hash: u64) -> Vec<u16> {
        history.chosen(|_| hash, HOUR, Ticks(0)).map(|id| id.index.0).collect()
    }

    #[test]
    fn a_flow_is_where_the_table_of_its_beginning_has_put_it() {
        let states = [state(3, &[]), state(4, &[]), state(4, &[1]), state(3, &[])];
        let mut history = History::default();
        for pair in states.windows(2) {
            history = history.after(&pair[0], &pair[1], Ticks(0));
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
        let partly = State::new(scheduler, Splits::default(), took);
        let history = History::default().after(&partly, &state(3, &[]), Ticks(0));
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

    fn weighted(last: u32) -> State {
        let scheduler = Built::build(MAGLEV, &SECRET, with_weights(&[1, 1, last]), None);
        State::new(scheduler, Splits::default(), (0..3).map(taker).collect())
    }

    #[test]
    fn what_is_remembered_is_bounded_and_has_no_state_twice() {
        let mut history = History::default();
        for last in 1..20 {
            history = history.after(&weighted(last), &weighted(last + 1), Ticks(0));
            history = history.after(&weighted(last + 1), &weighted(last + 1), Ticks(0));
        }
        assert_eq!(history.past.len(), STATES);
        for _ in 0..5 {
            history = history.after(&weighted(1), &weighted(2), Ticks(0));
            history = history.after(&weighted(2), &weighted(1), Ticks(0));
        }
        let like =
            |last| history.past.iter().filter(|past| past.state.is_like(&weighted(last))).count();
        assert_eq!((like(1), like(2)), (0, 1));
    }

    #[test]
    fn a_state_counts_until_its_time_is_over_and_the_past_is_known_from_the_start_on() {
        let (start, second) = (Ticks(u32::MAX - 50), Ticks(100));
        let history = History::begun(start).after(&weighted(1), &weighted(2), start);
        let count = |now| history.chosen(|_| 7, second, now).count();
        assert_eq!((count(start.after(second)), count(start.after(Ticks(101)))), (1, 0));
        let reaches = |history: &History, ticks| history.reaches(second, start.after(Ticks(ticks)));
        assert!(!reaches(&history, 99) && reaches(&history, 100));
        assert!(!reaches(&History::default(), 100_000), "nothing is known of the past");
    }

    #[test]
    fn the_past_is_known_back_to_the_last_state_that_was_forgotten() {
        let mut history = History::begun(Ticks(0));
        for change in 1..=u32::try_from(STATES).unwrap() + 3 {
            let (before, after) = (weighted(change), weighted(change + 1));
            history = history.after(&before, &after, Ticks(change * 100));
        }
        // The states of before 100, 200 and 300 are forgotten.
        assert!(history.reaches(Ticks(700), Ticks(1000)));
        assert!(!history.reaches(Ticks(701), Ticks(1000)));
    }
}
