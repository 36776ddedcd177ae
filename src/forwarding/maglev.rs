//! Maglev lookup table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4), with weights.
//!
//! Each backend walks the table in an order of its own, given by `offset` and `skip`, and takes
//! the next free slot whenever it is its turn. Heavier backends have more turns, spread evenly, so
//! the weights hold over the whole table.
//!
//! ```text
//! slot   0  1  2  3  4  5  6         M = 7, (offset, skip): B0 (3,4), B1 (0,2), B2 (3,1)
//!        B1 B0 B1 B0 B2 B2 B0        the worked example of the paper
//! ```

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::{BackendIndex, Secret};

/// Who wants slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who gets the slots.
    pub backend: BackendIndex,
    /// What is hashed: stable, and the same on every box.
    pub name: String,
    /// Share of the slots relative to the others; 0 gets none.
    pub weight: u32,
}

/// Slots, each of which names a backend. Two bytes a slot: 128 KiB at M = 65537.
#[derive(Debug, PartialEq, Eq)]
pub struct LookupTable {
    slots: Box<[BackendIndex]>,
    candidates: Vec<Candidate>,
}

impl LookupTable {
    /// Builds a table of `size` slots (a prime, at least 2); empty if nobody has weight.
    ///
    /// The order of `candidates` does not matter. Cost: O(size * ln size), off the data path.
    pub fn build(size: u32, secret: &Secret, mut candidates: Vec<Candidate>) -> Self {
        candidates.sort_by(|a, b| a.name.cmp(&b.name));
        let walks: Vec<Walk> = candidates
            .iter()
            .filter(|candidate| candidate.weight > 0)
            .map(|candidate| Walk::of(candidate, size, secret))
            .collect();
        Self { slots: fill(size, walks), candidates }
    }

    /// Whether [`LookupTable::build`] with these arguments would give this table again.
    pub fn is_built_from(&self, size: u32, candidates: &[Candidate]) -> bool {
        let mut sorted = candidates.to_vec();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let expected = if sorted.iter().any(|c| c.weight > 0) { size as usize } else { 0 };
        self.slots.len() == expected && self.candidates == sorted
    }

    /// The backend of the slot that `hash` (64 well-mixed bits) falls into.
    #[inline]
    pub fn lookup(&self, hash: u64) -> Option<BackendIndex> {
        // Multiply-shift instead of modulo: uniform to within size / 2^64, and no division.
        let slot = (u128::from(hash) * self.slots.len() as u128) >> 64;
        self.slots.get(usize::try_from(slot).unwrap_or(usize::MAX)).copied()
    }

    /// All slots.
    pub fn slots(&self) -> &[BackendIndex] {
        &self.slots
    }
}

/// One backend's way through the table.
struct Walk {
    backend: BackendIndex,
    weight: u64,
    /// Next slot that it prefers.
    position: u32,
    skip: u32,
    /// Turns that it has had, times the largest weight.
    spent: u64,
}

impl Walk {
    fn of(candidate: &Candidate, size: u32, secret: &Secret) -> Self {
        let hash = |purpose: u8| {
            let mut hasher = SipHasher13::new_with_key(secret);
            hasher.write(&[purpose]);
            hasher.write(candidate.name.as_bytes());
            hasher.finish()
        };
        let below = |hash: u64, bound: u32| {
            u32::try_from(hash % u64::from(bound.max(1))).unwrap_or_default()
        };
        Self {
            backend: candidate.backend,
            weight: u64::from(candidate.weight),
            position: below(hash(0), size),
            skip: below(hash(1), size - 1) + 1,
            spent: 0,
        }
    }

    /// The slot it prefers now; moves on to the next.
    fn advance(&mut self, size: u32) -> usize {
        let slot = self.position;
        // Both are below `size`, which is far below 2^31: no overflow.
        self.position = (slot + self.skip) % size;
        slot as usize
    }
}

/// Lets the walks take turns until every slot is taken.
fn fill(size: u32, mut walks: Vec<Walk>) -> Box<[BackendIndex]> {
    let Some(heaviest) = walks.iter().map(|walk| walk.weight).max() else {
        return Box::default();
    };
    let mut slots: Vec<Option<BackendIndex>> = vec![None; size as usize];
    let mut left = size;
    let mut round = 0;
    while left > 0 {
        round += 1;
        for walk in &mut walks {
            // A backend of weight w has had its due of turns after `round * w / heaviest` of them.
            if left == 0 || round * walk.weight < walk.spent + heaviest {
                continue;
            }
            walk.spent += heaviest;
            // The walk visits every slot (size is prime), so a free one is found.
            while let Some(slot) = slots.get_mut(walk.advance(size)) {
                if slot.is_none() {
                    *slot = Some(walk.backend);
                    left -= 1;
                    break;
                }
            }
        }
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;

    const SECRET: Secret = *b"holdfast testkey";

    fn walk(index: u16, position: u32, skip: u32) -> Walk {
        Walk { backend: BackendIndex(index), weight: 1, position, skip, spent: 0 }
    }

    fn candidates(count: u16) -> Vec<Candidate> {
        (0..count)
            .map(|index| Candidate {
                backend: BackendIndex(index),
                name: format!("backend-{index}"),
                weight: 1,
            })
            .collect()
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

    #[test]
    fn equal_weights_differ_by_at_most_one_slot() {
        for count in [1, 2, 3, 10, 100, 1000] {
            let counts =
                counts(&LookupTable::build(65537, &SECRET, candidates(count)), usize::from(count));
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
        let counts = counts(&LookupTable::build(65537, &SECRET, weighted), 4);
        for (count, expected) in counts.iter().zip([32769_i64, 16384, 16384, 0]) {
            assert!((i64::try_from(*count).unwrap() - expected).abs() <= 2, "{counts:?}");
        }
    }

    #[test]
    fn the_order_of_backends_does_not_matter() {
        let mut reversed = candidates(50);
        reversed.reverse();
        let table = LookupTable::build(65537, &SECRET, candidates(50));
        assert_eq!(table, LookupTable::build(65537, &SECRET, reversed.clone()));
        assert!(table.is_built_from(65537, &reversed));
        assert!(!table.is_built_from(65537, &candidates(49)));
        assert!(!table.is_built_from(251, &candidates(50)));
    }

    /// Share of the survivors' slots that move when one of N goes, mean over some removals.
    #[test]
    fn few_slots_of_survivors_move() {
        for (size, count, bound) in
            [(65537, 3, 0.012), (65537, 10, 0.012), (65537, 100, 0.012), (655_373, 100, 0.004)]
        {
            let before = LookupTable::build(size, &SECRET, candidates(count));
            let (mut moved, mut kept) = (0_u32, 0_u32);
            for removed in (0..count).step_by(usize::from(count / 3).max(1)) {
                let mut rest = candidates(count);
                rest.remove(usize::from(removed));
                let after = LookupTable::build(size, &SECRET, rest);
                for (old, new) in before.slots().iter().zip(after.slots()) {
                    if old.0 != removed {
                        kept += 1;
                        moved += u32::from(old != new);
                    }
                }
            }
            let share = f64::from(moved) / f64::from(kept);
            assert!(share <= bound, "{count} backends at {size}: {share}");
        }
    }

    #[test]
    fn nobody_with_weight_is_an_empty_table() {
        let mut idle = candidates(2);
        idle.iter_mut().for_each(|candidate| candidate.weight = 0);
        let table = LookupTable::build(251, &SECRET, idle.clone());
        assert_eq!(table.lookup(u64::MAX), None);
        assert!(table.is_built_from(251, &idle));
    }

    #[test]
    fn every_hash_falls_into_the_table() {
        let table = LookupTable::build(251, &SECRET, candidates(2));
        for hash in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(table.lookup(hash).is_some());
        }
    }
}
