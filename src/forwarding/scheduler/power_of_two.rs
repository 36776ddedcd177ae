//! Power of two choices (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing",
//! IEEE TPDS 12, 2001): the flow's hash selects two backends by weight, and the less loaded one
//! wins.

use super::choice::{Candidate, Pool, Scheduler};
use super::load::{Load, Weights};
use super::lookup::LookupTable;
use super::maglev;
use crate::forwarding::affinity::Secret;
use crate::net::BackendIndex;

/// A Maglev table, which yields both backends.
#[derive(Debug)]
pub struct PowerOfTwo {
    table: LookupTable,
    weights: Weights,
}

impl PowerOfTwo {
    /// Builds the table, as Maglev does.
    pub fn build(size: u32, secret: &Secret, candidates: &[Candidate]) -> Self {
        let table = maglev::table(size, secret, candidates);
        Self { table, weights: Weights::of(candidates) }
    }
}

impl Scheduler for PowerOfTwo {
    /// Cost: two slot look-ups, each with a read of a counter; beyond that, as Maglev.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let mut first = None;
        // The walk continues past the first accepted backend to a different one.
        let second = self.table.walk(hash, pool, |pool, backend| {
            if first == Some(backend) || !pool.accepts(backend) {
                return false;
            }
            let is_second = first.is_some();
            first.get_or_insert(backend);
            is_second
        });
        let first = first?;
        let load = |backend| Load::of(backend, self.weights.get(backend), pool);
        Some(match second {
            Some(second) if load(second).compare(load(first)).is_lt() => second,
            _ => first,
        })
    }

    fn slots(&self) -> &[BackendIndex] {
        self.table.slots()
    }
}
