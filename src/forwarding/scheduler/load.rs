//! How loaded a backend is, relative to its weight.

use super::{Candidate, Pool};
use crate::net::BackendIndex;

/// Flows per weight that a backend would have with one more: what it has now would send the first
/// flows of a worker to light backends as readily as to heavy ones.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    flows: u64,
    weight: u32,
}

impl Load {
    /// What `pool` says of a backend of this weight.
    #[inline]
    pub fn of(backend: BackendIndex, weight: u32, pool: &dyn Pool) -> Self {
        Self { flows: pool.active(backend).saturating_add(1), weight }
    }

    /// Exact: no division.
    #[inline]
    pub fn compare(self, other: Self) -> std::cmp::Ordering {
        let scaled = |load: Self, by: Self| u128::from(load.flows) * u128::from(by.weight);
        scaled(self, other).cmp(&scaled(other, self))
    }
}

/// Weights by backend, for those who get backends from a lookup table.
#[derive(Debug)]
pub struct Weights {
    /// The lowest index among them.
    first: u16,
    /// From there on; 0 for indices of others. At most 64 KiB.
    weights: Box<[u32]>,
    sum: u64,
}

impl Weights {
    /// Of these candidates.
    pub fn of(candidates: &[Candidate]) -> Self {
        let indices = || candidates.iter().map(|candidate| candidate.backend.0);
        let (first, last) = (indices().min().unwrap_or(0), indices().max().unwrap_or(0));
        let mut weights = vec![0; usize::from(last - first) + 1];
        for candidate in candidates {
            if let Some(weight) = weights.get_mut(usize::from(candidate.backend.0 - first)) {
                *weight = candidate.weight;
            }
        }
        let sum = weights.iter().copied().map(u64::from).sum();
        Self { first, weights: weights.into(), sum }
    }

    /// The weight of one; 0 for a stranger.
    #[inline]
    pub fn get(&self, backend: BackendIndex) -> u32 {
        let at = usize::from(backend.0.wrapping_sub(self.first));
        self.weights.get(at).copied().unwrap_or(0)
    }

    /// Of all of them.
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// Of those that `pool` accepts. Cost: linear in the backends.
    pub fn sum_of_accepted(&self, pool: &mut dyn Pool) -> u64 {
        let backends = (self.first..=u16::MAX).zip(&self.weights);
        let accepted =
            backends.filter(|&(index, &weight)| weight > 0 && pool.accepts(BackendIndex(index)));
        accepted.map(|(_, &weight)| u64::from(weight)).sum()
    }
}
