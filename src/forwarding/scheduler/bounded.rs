//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, SODA 2018) on a Maglev
//! table: no backend gets a flow that would put it above 1 + e of its share of all flows.
//!
//! A flow whose backend is full goes where it would go if that backend were out of service.

use super::choice::{Candidate, Note, Pool, Scheduler};
use super::load::Weights;
use super::lookup::LookupTable;
use super::maglev;
use crate::forwarding::affinity::Secret;
use crate::net::BackendIndex;

/// A Maglev table and the weights that bound the loads.
#[derive(Debug)]
pub struct Bounded {
    table: LookupTable,
    weights: Weights,
    /// 1 + e, in thousandths.
    factor: u32,
}

impl Bounded {
    /// Builds the table, as Maglev does. `e_permille` is e in thousandths.
    pub fn build(size: u32, e_permille: u32, secret: &Secret, candidates: &[Candidate]) -> Self {
        Self {
            table: maglev::table(size, secret, candidates),
            weights: Weights::of(candidates),
            factor: e_permille.saturating_add(1000),
        }
    }

    /// Walks to a backend that is not full, with bounds for a weight total of `sum`.
    fn walk(&self, hash: u64, sum: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let flows = u128::from(pool.active_total().saturating_add(1)) * u128::from(self.factor);
        let sum = u128::from(sum) * 1000;
        self.table.walk(hash, pool, |pool, backend| {
            // active < ceil(limit), without a division.
            let limit = flows * u128::from(self.weights.get(backend));
            let full = u128::from(pool.active(backend)) * sum >= limit;
            let accepted = pool.accepts(backend);
            if accepted && full {
                pool.record(Note::Full(backend));
            }
            accepted && !full
        })
    }

    /// Walks with bounds for the backends in service only. If all are in service,
    /// [`walk`](Self::walk) has found one below its bound, because the bounds sum to more than the
    /// flows.
    #[cold]
    fn walk_accepted(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let sum = self.weights.sum_of_accepted(pool);
        self.walk(hash, sum, pool)
            // The total may lag behind the counts of the backends.
            .or_else(|| self.table.walk(hash, pool, |pool, backend| pool.accepts(backend)))
    }
}

impl Scheduler for Bounded {
    /// Cost: that of Maglev, plus a read of a counter for each slot; linear in the backends if all
    /// backends in service are full because others are out.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let chosen = self.walk(hash, self.weights.sum(), pool);
        chosen.or_else(|| self.walk_accepted(hash, pool))
    }

    fn slots(&self) -> &[BackendIndex] {
        self.table.slots()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{SECRET, TestPool, candidates, hashes, with_weights};
    use super::*;

    /// ceil((1 + e) * flows * weight / sum).
    fn bound(e_permille: u64, flows: u64, weight: u32, sum: u32) -> u64 {
        ((1000 + e_permille) * flows * u64::from(weight)).div_ceil(1000 * u64::from(sum))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Arrivals and departures: a backend in service that gets a flow is within its bound.
        #[test]
        fn no_flow_puts_a_backend_above_its_bound(
            weights in proptest::collection::vec(0_u32..20, 2..12),
            e_permille in 10_u32..1000,
            out in proptest::option::of(0_u16..12),
            ends in proptest::collection::vec(proptest::bool::weighted(0.4), 400),
        ) {
            let scheduler = Bounded::build(251, e_permille, &SECRET, &with_weights(&weights));
            let out: Vec<u16> = out.into_iter().collect();
            let shares = (0..).zip(&weights).filter(|(index, _)| !out.contains(index));
            let sum: u32 = shares.map(|(_, weight)| *weight).sum();
            let mut pool = TestPool { active: vec![0; weights.len()], out, ..TestPool::default() };
            let mut flows = Vec::new();
            for (hash, ends) in hashes(400).zip(ends) {
                let Some(chosen) = pool.place(&scheduler, hash) else {
                    prop_assert_eq!(sum, 0);
                    continue;
                };
                let index = usize::from(chosen.0);
                let weight = weights.get(index).copied().unwrap_or(0);
                let most = bound(e_permille.into(), pool.active_total(), weight, sum);
                prop_assert!(pool.active(chosen) <= most, "{} of {most}", pool.active(chosen));
                flows.push(index);
                if ends {
                    let gone = flows.swap_remove(usize::try_from(hash >> 33).unwrap_or(0) % flows.len());
                    pool.active.get_mut(gone).into_iter().for_each(|active| *active -= 1);
                }
            }
        }
    }

    #[test]
    fn a_flow_goes_where_maglev_sends_it_until_that_is_full() {
        let maglev = maglev::Maglev::build(65_537, &SECRET, &candidates(10));
        let bounded = Bounded::build(65_537, 250, &SECRET, &candidates(10));
        let mut pool = TestPool { active: vec![100; 10], ..TestPool::default() };
        for hash in hashes(1_000) {
            assert_eq!(bounded.choose(hash, &mut pool), maglev.choose(hash, &mut pool));
        }
        // 1029 flows: the bound for the next is 1.25 * 1030 / 10, rounded up.
        if let Some(active) = pool.active.get_mut(3) {
            *active = 129;
        }
        let mut without = TestPool { out: vec![3], ..TestPool::default() };
        for hash in hashes(1_000) {
            assert_eq!(bounded.choose(hash, &mut pool), maglev.choose(hash, &mut without));
        }
    }
}
