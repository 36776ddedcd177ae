//! Lookup table: slots that each name a backend, and the walk past refused backends.

use super::choice::{Candidate, Note, Pool};
use crate::forwarding::affinity::mix;
use crate::net::BackendIndex;

/// Number of slots tried before the list of backends is used.
///
/// With half of the backends out, one flow in 256 exhausts them.
const ATTEMPTS: u64 = 8;

/// Slots, and the backends that fill them. Two bytes a slot: 128 KiB for 65537 slots.
///
/// The table holds every backend with weight, in service or not. A slot whose backend is out of
/// service is passed over, and the flow's hash is mixed again, a bounded number of times: the flows
/// of that backend spread over all others, *no other flow moves*, and a health flap rebuilds
/// nothing. (A rebuilt Maglev table moves 0.2-0.6 % of the survivors' slots.)
#[derive(Debug, PartialEq, Eq)]
pub struct LookupTable {
    slots: Box<[BackendIndex]>,
    /// Backends with weight, in the order of their addresses.
    weighted: Box<[BackendIndex]>,
}

impl LookupTable {
    /// Creates a table of these slots, which name `candidates`.
    pub fn new(slots: Box<[BackendIndex]>, candidates: &[Candidate]) -> Self {
        Self { slots, weighted: weighted(candidates) }
    }

    /// The slot that `hash` (64 well-mixed bits) maps to; 0 for an empty table.
    #[inline]
    pub fn slot(&self, hash: u64) -> u32 {
        // Multiply-shift instead of modulo: uniform to within size / 2^64, and no division.
        let slot = (u128::from(hash) * self.slots.len() as u128) >> 64;
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    /// The backend of a slot.
    #[inline]
    pub fn at(&self, slot: u32) -> Option<BackendIndex> {
        self.slots.get(slot as usize).copied()
    }

    /// All slots.
    pub fn slots(&self) -> &[BackendIndex] {
        &self.slots
    }

    /// The first backend that `takes` accepts, starting at the slot of `hash`.
    ///
    /// Cost: one slot look-up if the first backend is accepted; at most 8, then one pass over the
    /// backends.
    #[inline]
    pub fn walk(
        &self,
        hash: u64,
        pool: &mut dyn Pool,
        takes: impl FnMut(&mut dyn Pool, BackendIndex) -> bool,
    ) -> Option<BackendIndex> {
        self.walk_from(self.slot(hash), hash, pool, takes)
    }

    /// [`walk`](Self::walk) from a given first slot.
    #[inline]
    pub fn walk_from(
        &self,
        first: u32,
        hash: u64,
        pool: &mut dyn Pool,
        mut takes: impl FnMut(&mut dyn Pool, BackendIndex) -> bool,
    ) -> Option<BackendIndex> {
        for attempt in 0..ATTEMPTS {
            let slot = if attempt == 0 { first } else { self.slot(remix(hash, attempt)) };
            pool.record(Note::Slot(slot));
            let backend = self.at(slot)?;
            if takes(pool, backend) {
                return Some(backend);
            }
        }
        first_in(&self.weighted, hash, |backend| takes(pool, backend))
    }
}

/// Backends with weight, in the order of `candidates`.
pub fn weighted(candidates: &[Candidate]) -> Box<[BackendIndex]> {
    let weighted = candidates.iter().filter(|candidate| candidate.weight > 0);
    weighted.map(|candidate| candidate.backend).collect()
}

/// The first backend in `list` that `takes` accepts, from an index that `hash` selects.
#[cold]
pub fn first_in(
    list: &[BackendIndex],
    hash: u64,
    mut takes: impl FnMut(BackendIndex) -> bool,
) -> Option<BackendIndex> {
    let start = usize::try_from(hash.checked_rem(list.len() as u64)?).ok()?;
    let (head, tail) = list.split_at_checked(start)?;
    tail.iter().chain(head).copied().find(|&backend| takes(backend))
}

/// Derives an unrelated hash for every number: the n-th output of splitmix64 from state `hash`.
#[inline]
pub const fn remix(hash: u64, number: u64) -> u64 {
    mix(hash.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}
