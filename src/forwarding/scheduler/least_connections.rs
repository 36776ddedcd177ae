//! Least connections: the backend that would have the fewest flows per weight.
//!
//! A worker knows only its own flows. The NIC gives every worker a random sample of the flows, so
//! workers that each balance their own flows balance all flows.

use super::choice::{Candidate, Pool, Scheduler};
use super::load::Load;
use super::lookup::remix;
use crate::net::BackendIndex;

/// Backends with weight, in the order of their addresses.
#[derive(Debug)]
pub struct LeastConnections(Box<[(BackendIndex, u32)]>);

impl LeastConnections {
    /// `candidates` are in the order of their addresses.
    pub fn build(candidates: &[Candidate]) -> Self {
        let weighted = candidates.iter().filter(|candidate| candidate.weight > 0);
        Self(weighted.map(|candidate| (candidate.backend, candidate.weight)).collect())
    }
}

impl Scheduler for LeastConnections {
    /// Among equally loaded backends the flow's hash chooses.
    ///
    /// Cost: linear in the backends, each with a read of its counter; with hundreds of them
    /// [`power_of_two`](super::power_of_two) is nearly as even for the price of two.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let mut best: Option<(BackendIndex, Load, u64)> = None;
        for (number, &(backend, weight)) in (0..).zip(&self.0) {
            let (load, lot) = (Load::of(backend, weight, pool), remix(hash, number));
            let better = best.is_none_or(|(_, other, its_lot)| {
                load.compare(other).then(lot.cmp(&its_lot)).is_lt()
            });
            if better && pool.accepts(backend) {
                best = Some((backend, load, lot));
            }
        }
        best.map(|(backend, ..)| backend)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{TestPool, candidates, hashes};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn arrivals_keep_equal_backends_within_one_flow(count in 1_u16..40, flows in 1_u64..300) {
            let scheduler = LeastConnections::build(&candidates(count));
            let mut pool = TestPool { active: vec![0; count.into()], ..TestPool::default() };
            for hash in hashes(flows) {
                pool.place(&scheduler, hash);
                let (most, least) = (pool.active.iter().max(), pool.active.iter().min());
                prop_assert!(most.copied() <= least.map(|least| least + 1));
            }
        }
    }

    #[test]
    fn ties_are_spread_by_the_hash() {
        let scheduler = LeastConnections::build(&candidates(4));
        let mut seen = [0; 4];
        for hash in hashes(4_000) {
            let chosen = scheduler.choose(hash, &mut TestPool::default());
            if let Some(count) = chosen.and_then(|chosen| seen.get_mut(usize::from(chosen.0))) {
                *count += 1;
            }
        }
        assert!(seen.iter().all(|count| (900..1_100).contains(count)), "{seen:?}");
    }
}
