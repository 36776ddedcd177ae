//! Load of a backend, relative to its weight.

use super::choice::{Candidate, Pool};
use crate::net::BackendIndex;

/// Flows per weight that a backend would have with one more flow. The present count would send the
/// first flows of a worker to light backends as readily as to heavy ones.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    flows: u64,
    weight: u32,
}

impl Load {
    /// Load in `pool` of a backend of this weight.
    #[inline]
    pub fn of(backend: BackendIndex, weight: u32, pool: &dyn Pool) -> Self {
        Self { flows: pool.active(backend).saturating_add(1), weight }
    }

    /// Compares exactly, without a division.
    #[inline]
    pub fn compare(self, other: Self) -> std::cmp::Ordering {
        let scaled = |load: Self, by: Self| u128::from(load.flows) * u128::from(by.weight);
        scaled(self, other).cmp(&scaled(other, self))
    }
}

/// Weights by backend index, for schedulers with a lookup table.
#[derive(Debug)]
pub struct Weights {
    /// Lowest index of the candidates.
    first: u16,
    /// Weights from index `first` on; 0 for indices without a candidate. At most 64 KiB.
    weights: Box<[u32]>,
    sum: u64,
}

impl Weights {
    /// Collects the weights of these candidates.
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

    /// Weight of a backend; 0 for one that is not a candidate.
    #[inline]
    pub fn get(&self, backend: BackendIndex) -> u32 {
        let at = usize::from(backend.0.wrapping_sub(self.first));
        self.weights.get(at).copied().unwrap_or(0)
    }

    /// Sum of all weights.
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// Sum of the weights of backends that `pool` accepts. Cost: linear in the backends.
    pub fn sum_of_accepted(&self, pool: &mut dyn Pool) -> u64 {
        let backends = (self.first..=u16::MAX).zip(&self.weights);
        let accepted =
            backends.filter(|&(index, &weight)| weight > 0 && pool.accepts(BackendIndex(index)));
        accepted.map(|(_, &weight)| u64::from(weight)).sum()
    }
}
