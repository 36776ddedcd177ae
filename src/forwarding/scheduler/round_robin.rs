//! Smooth weighted round robin: backends take turns, independent of the flow.
//!
//! The turns of one cycle are computed in advance. Over any number of turns each backend is less
//! than one turn ahead of or behind its due (Tijdeman, "The chairman assignment problem", Discrete
//! Mathematics 32, 1980). nginx's method approximates this and decides in linear time at every
//! turn.
//!
//! ```text
//! weights a 5, b 1, c 1:  a a a b a c a
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::choice::{Candidate, Pool, Scheduler};
use super::lookup::{LookupTable, remix};
use crate::net::BackendIndex;

/// Maximum number of turns of a cycle. 16384 backends with weights up to 1000, the configuration's
/// limits, need fewer; with heavier backends the cycle ends early, and shares are wrong by up to
/// one turn of it.
const MAX_TURNS: u64 = 1 << 24;

/// One cycle, two bytes a turn.
#[derive(Debug)]
pub struct RoundRobin(LookupTable);

impl RoundRobin {
    /// `candidates` are in the order of their addresses.
    ///
    /// Cost: O(s log n) for n backends with weights that sum to s after division by their greatest
    /// common divisor.
    pub fn build(candidates: &[Candidate]) -> Self {
        Self(LookupTable::new(cycle(candidates, MAX_TURNS), candidates))
    }
}

impl Scheduler for RoundRobin {
    /// Ignores the flow. The turn of a refused backend goes to a pseudo-random backend by weight:
    /// the next in turn would get twice its share.
    ///
    /// Cost: one division and one slot look-up; after a refusal as Maglev.
    fn choose(&self, _hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let turn = pool.turn();
        let slot = turn.checked_rem(self.0.slots().len() as u64)?;
        let slot = u32::try_from(slot).unwrap_or(0);
        self.0.walk_from(slot, remix(turn, 0), pool, |pool, backend| pool.accepts(backend))
    }

    fn slots(&self) -> &[BackendIndex] {
        self.0.slots()
    }
}

/// A backend that takes turns.
struct Taker {
    backend: BackendIndex,
    weight: u128,
    /// Number of turns taken.
    had: u128,
}

impl Taker {
    /// Window of the next turn: it starts when the due equals the number of turns taken, and ends
    /// when the due is one more.
    const fn window(&self, sum: u128) -> (u128, u128) {
        (self.had * sum / self.weight, ((self.had + 1) * sum).div_ceil(self.weight))
    }
}

/// Computes the turns of one cycle: earliest deadline first among the backends with an open window.
/// This meets every deadline: all turns have the same length, and one turn is due at a time in
/// total. Of two with the same deadline, the one that has waited longer goes first.
fn cycle(candidates: &[Candidate], most: u64) -> Box<[BackendIndex]> {
    let weights = || candidates.iter().map(|c| u64::from(c.weight)).filter(|&weight| weight > 0);
    let divisor = weights().fold(0, gcd).max(1);
    let sum = weights().sum::<u64>() / divisor;
    let taker = |candidate: &Candidate| Taker {
        backend: candidate.backend,
        weight: u128::from(u64::from(candidate.weight) / divisor),
        had: 0,
    };
    let mut takers: Vec<_> = candidates.iter().filter(|c| c.weight > 0).map(taker).collect();
    let mut waiting: BinaryHeap<_> = (0..takers.len()).map(|number| Reverse((0, number))).collect();
    let mut ready = BinaryHeap::new();
    let mut turns = Vec::new();
    for now in 0..sum.min(most) {
        while let Some(&Reverse((from, number))) = waiting.peek()
            && from <= u128::from(now)
        {
            waiting.pop();
            let until = takers.get(number).map(|taker| taker.window(sum.into()).1);
            ready.push(Reverse((until, from, number)));
        }
        let Some(Reverse((.., number))) = ready.pop() else { break };
        let Some(taker) = takers.get_mut(number) else { break };
        turns.push(taker.backend);
        taker.had += 1;
        waiting.push(Reverse((taker.window(sum.into()).0, number)));
    }
    turns.into()
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{TestPool, candidates, with_weights};
    use super::*;

    #[test]
    fn known_cycles() {
        for (weights, expected) in [
            (&[5, 1, 1][..], &[0, 0, 0, 1, 0, 2, 0][..]),
            (&[3, 3, 3], &[0, 1, 2]),
            (&[200, 100], &[0, 1, 0]),
            (&[0, 7], &[1]),
            (&[0], &[]),
            (&[], &[]),
        ] {
            let turns: Vec<_> = cycle(&with_weights(weights), 100).iter().map(|b| b.0).collect();
            assert_eq!(turns, expected, "{weights:?}");
        }
    }

    #[test]
    fn heavier_ones_than_a_configuration_can_have_end_the_cycle() {
        let turns = cycle(&with_weights(&[u32::MAX, u32::MAX - 1]), 100);
        let first = turns.iter().filter(|turn| turn.0 == 0).count();
        assert_eq!((turns.len(), first), (100, 50));
    }

    #[test]
    fn a_turn_of_one_that_is_refused_goes_to_all_others() {
        let round_robin = RoundRobin::build(&candidates(10));
        let mut counts = [0_u32; 10];
        for turn in 0..90_000 {
            let mut pool = TestPool { out: vec![3], turn, ..TestPool::default() };
            counts[usize::from(round_robin.choose(0, &mut pool).unwrap().0)] += 1;
        }
        assert_eq!(counts[3], 0);
        for count in counts.into_iter().filter(|&count| count > 0) {
            assert!((9_800..10_200).contains(&count), "{counts:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_backend_is_a_whole_turn_before_or_behind(
            weights in proptest::collection::vec(0_u32..50, 1..12)
        ) {
            let sum: u32 = weights.iter().sum();
            let mut had = vec![0_u32; weights.len()];
            for (turn, backend) in (1..).zip(&cycle(&with_weights(&weights), MAX_TURNS)) {
                had[usize::from(backend.0)] += 1;
                for (had, weight) in had.iter().zip(&weights) {
                    let due = f64::from(turn) * f64::from(*weight) / f64::from(sum);
                    prop_assert!((f64::from(*had) - due).abs() < 1.0, "{had}, due {due}");
                }
            }
        }
    }
}
