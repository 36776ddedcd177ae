//! Maglev lookup table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4), with weights.
//!
//! Each backend walks the table in its own order, given by `offset` and `skip`, and takes the next
//! free slot at each of its turns. Heavier backends have more turns, spread evenly, so the weights
//! hold over the whole table.
//!
//! ```text
//! slot   0  1  2  3  4  5  6         M = 7, (offset, skip): B0 (3,4), B1 (0,2), B2 (3,1)
//!        B1 B0 B1 B0 B2 B2 B0        the worked example of the paper
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::choice::{Candidate, Pool, Scheduler};
use super::lookup::LookupTable;
use crate::forwarding::affinity::Secret;
use crate::net::BackendIndex;

/// The lookup table alone.
#[derive(Debug)]
pub struct Maglev(LookupTable);

impl Maglev {
    /// Builds the table ([`table`]).
    pub fn build(size: u32, secret: &Secret, candidates: &[Candidate]) -> Self {
        Self(table(size, secret, candidates))
    }
}

impl Scheduler for Maglev {
    /// Cost: that of [`LookupTable::walk`].
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        self.0.walk(hash, pool, |pool, backend| pool.accepts(backend))
    }

    fn slots(&self) -> &[BackendIndex] {
        self.0.slots()
    }
}

/// Builds a table of `size` slots (a prime, at least 2); empty if no candidate has weight.
///
/// `candidates` are in the order of their addresses. Cost: O(size * ln size), a few milliseconds at
/// 65537; off the data path.
pub(super) fn table(size: u32, secret: &Secret, candidates: &[Candidate]) -> LookupTable {
    let walks = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0)
        .map(|candidate| Walk::of(candidate, size, secret))
        .collect();
    LookupTable::new(fill(size, walks), candidates)
}

/// Permutation of the table by which one backend takes slots.
struct Walk {
    backend: BackendIndex,
    weight: u64,
    /// Next slot of the permutation.
    position: u32,
    skip: u32,
    /// Number of turns taken.
    turns: u64,
}

impl Walk {
    fn of(candidate: &Candidate, size: u32, secret: &Secret) -> Self {
        let hash = |purpose| candidate.server.hash(secret, purpose);
        let below = |hash: u64, bound: u32| {
            u32::try_from(hash % u64::from(bound.max(1))).unwrap_or_default()
        };
        Self {
            backend: candidate.backend,
            weight: u64::from(candidate.weight),
            position: below(hash(0), size),
            skip: below(hash(1), size - 1) + 1,
            turns: 0,
        }
    }

    /// Round of the next turn: a backend of weight w takes its n-th turn in round
    /// `n * heaviest / w`, rounded up.
    const fn next_turn(&self, heaviest: u64) -> u64 {
        ((self.turns + 1) * heaviest).div_ceil(self.weight)
    }

    /// Takes the next free slot of the permutation. It reaches every slot, as the size is prime,
    /// and so finds one if any slot is free.
    fn take(&mut self, free: &mut Bits, size: u32) -> u32 {
        self.turns += 1;
        loop {
            let slot = self.position;
            // Both are below `size`, which is far below 2^31: no overflow, and no division.
            let next = slot + self.skip;
            self.position = if next >= size { next - size } else { next };
            if free.take(slot) {
                return slot;
            }
        }
    }
}

/// Bitmap of free slots: 8 KiB at M = 65537, so that the search, which tries 11 slots for each that
/// it takes, stays in the first-level cache.
struct Bits(Vec<u64>);

impl Bits {
    fn all(count: u32) -> Self {
        Self(vec![u64::MAX; count as usize / 64 + 1])
    }

    /// Clears a bit and returns whether it was set.
    fn take(&mut self, bit: u32) -> bool {
        let mask = 1 << (bit % 64);
        // A bit out of range counts as taken by the caller: every search ends.
        let Some(word) = self.0.get_mut(bit as usize / 64) else { return true };
        let there = *word & mask != 0;
        *word &= !mask;
        there
    }
}

/// Queue of turns, ordered by round and then by the number of the walk.
#[derive(Default)]
struct Turns {
    /// Turns of the round after the one in which they were added: already in order. With equal
    /// weights all turns are here.
    next: VecDeque<(u64, usize)>,
    later: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Turns {
    fn add(&mut self, now: u64, turn: (u64, usize)) {
        if turn.0 == now + 1 {
            self.next.push_back(turn);
        } else {
            self.later.push(Reverse(turn));
        }
    }

    fn pop(&mut self) -> Option<(u64, usize)> {
        match (self.next.front(), self.later.peek()) {
            (Some(next), Some(Reverse(later))) if later < next => {}
            (Some(_), _) => return self.next.pop_front(),
            (None, _) => {}
        }
        self.later.pop().map(|Reverse(turn)| turn)
    }
}

/// Lets the walks take turns until every slot is taken.
fn fill(size: u32, mut walks: Vec<Walk>) -> Box<[BackendIndex]> {
    let Some(heaviest) = walks.iter().map(|walk| walk.weight).max() else {
        return Box::default();
    };
    let mut slots = vec![BackendIndex(0); size as usize];
    let mut free = Bits::all(size);
    let mut turns = Turns::default();
    for (number, walk) in walks.iter().enumerate() {
        turns.add(0, (walk.next_turn(heaviest), number));
    }
    for _ in 0..size {
        let Some((round, number)) = turns.pop() else { break };
        let Some(walk) = walks.get_mut(number) else { break };
        let slot = walk.take(&mut free, size);
        turns.add(round, (walk.next_turn(heaviest), number));
        if let Some(slot) = slots.get_mut(slot as usize) {
            *slot = walk.backend;
        }
    }
    slots.into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::super::testing::{SECRET, TestPool, candidates, hashes};
    use super::*;

    fn walk(index: u16, position: u32, skip: u32) -> Walk {
        Walk { backend: BackendIndex(index), weight: 1, position, skip, turns: 0 }
    }

    fn counts(table: &LookupTable, backends: usize) -> Vec<usize> {
        let mut counts = vec![0; backends];
        for slot in table.slots() {
            counts[usize::from(slot.0)] += 1;
        }
        counts
    }

    /// The worked example of the paper, section 3.4.
    #[test]
    fn known_answers() {
        let b = |numbers: [u16; 7]| numbers.map(BackendIndex);
        let all = fill(7, vec![walk(0, 3, 4), walk(1, 0, 2), walk(2, 3, 1)]);
        assert_eq!(*all, b([1, 0, 1, 0, 2, 2, 0]));
        let without_b1 = fill(7, vec![walk(0, 3, 4), walk(2, 3, 1)]);
        assert_eq!(*without_b1, b([0, 0, 0, 0, 2, 2, 2]));
    }

    /// Known answers: two boxes, and two versions of holdfast, must agree.
    #[test]
    fn tables_are_the_same_in_every_version() {
        let digest = |size, count, weight: fn(u16) -> u32| {
            let mut candidates = candidates(count);
            candidates.iter_mut().for_each(|c| c.weight = weight(c.backend.0));
            let table = table(size, &SECRET, &candidates);
            table.slots().iter().fold(0_u64, |sum, slot| {
                sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(slot.0) + 1)
            })
        };
        let found = [
            digest(65537, 1000, |_| 1),
            digest(65537, 100, |index| u32::from(index) % 7),
            digest(251, 1000, |_| 3),
            digest(1009, 50, |index| if index == 0 { 1000 } else { 1 }),
        ];
        let expected = [
            17_713_171_031_367_065_017,
            10_280_857_633_901_541_309,
            2_417_446_890_589_217_690,
            1_894_874_756_850_104_350,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn equal_weights_differ_by_at_most_one_slot() {
        for count in [1, 2, 3, 10, 100, 1000] {
            let counts = counts(&table(65537, &SECRET, &candidates(count)), usize::from(count));
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(max - min <= 1, "{count} backends: {min}..={max}");
        }
    }

    #[test]
    fn weights_hold_over_the_whole_table() {
        let mut weighted = candidates(4);
        for (candidate, weight) in weighted.iter_mut().zip([2, 1, 1, 0]) {
            candidate.weight = weight;
        }
        let counts = counts(&table(65537, &SECRET, &weighted), 4);
        for (count, expected) in counts.iter().zip([32769_i64, 16384, 16384, 0]) {
            assert!((i64::try_from(*count).unwrap() - expected).abs() <= 2, "{counts:?}");
        }
    }

    /// Share of the survivors' slots that move if one of N backends is removed: mean over some
    /// removals.
    fn moved(size: u32, count: u16, removals: u16) -> f64 {
        let before = table(size, &SECRET, &candidates(count));
        let (mut moved, mut kept) = (0_u32, 0_u32);
        for removed in (0..count).step_by((count / removals).max(1).into()) {
            let mut rest = candidates(count);
            rest.retain(|candidate| candidate.backend.0 != removed);
            let after = table(size, &SECRET, &rest);
            for (old, new) in before.slots().iter().zip(after.slots()) {
                if old.0 != removed {
                    kept += 1;
                    moved += u32::from(old != new);
                }
            }
        }
        f64::from(moved) / f64::from(kept)
    }

    #[test]
    fn few_slots_of_survivors_move() {
        for (size, bound, removals) in [(65_537, 0.012, 3), (655_373, 0.004, 1)] {
            for count in [3, 10, 100, 1000] {
                let share = moved(size, count, removals);
                assert!(share <= bound, "{count} backends at {size}: {share}");
            }
        }
    }

    #[test]
    fn no_backend_with_weight_gives_an_empty_table() {
        let mut idle = candidates(2);
        idle.iter_mut().for_each(|candidate| candidate.weight = 0);
        assert!(table(251, &SECRET, &idle).slots().is_empty());
        let maglev = Maglev::build(251, &SECRET, &idle);
        assert_eq!(maglev.choose(u64::MAX, &mut TestPool::default()), None);
    }

    #[test]
    fn every_hash_falls_into_the_table() {
        let table = table(251, &SECRET, &candidates(2));
        for hash in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(table.at(table.slot(hash)).is_some());
        }
    }

    fn out(out: impl IntoIterator<Item = u16>) -> TestPool {
        TestPool { out: out.into_iter().collect(), ..TestPool::default() }
    }

    #[test]
    fn a_backend_that_is_down_moves_its_own_flows_only_and_evenly() {
        let maglev = Maglev::build(65537, &SECRET, &candidates(10));
        let mut gained = [0_u32; 10];
        for hash in hashes(20_000) {
            let old = maglev.choose(hash, &mut out([])).unwrap();
            let new = maglev.choose(hash, &mut out([3])).unwrap();
            if old.0 == 3 {
                assert_ne!(new.0, 3);
                gained[usize::from(new.0)] += 1;
            } else {
                assert_eq!(old, new, "a survivor moved");
            }
        }
        let mean = gained.iter().sum::<u32>() / 9;
        for (index, &count) in gained.iter().enumerate().filter(|(index, _)| *index != 3) {
            assert!(count.abs_diff(mean) < mean / 2, "backend {index}: {count}, mean {mean}");
        }
    }

    #[test]
    fn one_of_many_left_is_found_and_none_is_none() {
        let maglev = Maglev::build(65537, &SECRET, &candidates(100));
        let one = || out((0..100).filter(|&index| index != 42));
        assert!(
            hashes(20_000).all(|hash| maglev.choose(hash, &mut one()) == Some(BackendIndex(42)))
        );
        assert!(hashes(100).all(|hash| maglev.choose(hash, &mut out(0..100)).is_none()));
    }
}
