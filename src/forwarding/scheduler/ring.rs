//! Hash ring (Karger et al., "Consistent Hashing and Random Trees", STOC 1997).
//!
//! Every backend has `virtual_nodes` points per unit of weight on a circle of 2^64; a flow goes to
//! the backend of the next point. The points of a backend depend only on its address and weight:
//! the removal of a backend moves its own flows and no others, to the backends of the points that
//! follow.
//!
//! Shares are uneven: with k points, a share is off by 1/sqrt(k) of itself (standard deviation).

use super::choice::{Candidate, Note, Pool, Scheduler};
use super::lookup::{first_in, remix, weighted};
use crate::forwarding::affinity::Secret;
use crate::net::BackendIndex;

/// Number of points tried before the list of backends is used. With 3 of 4 backends out, one flow
/// in a hundred million exhausts them.
const ATTEMPTS: usize = 64;

/// Points in ascending order, 10 bytes each.
#[derive(Debug)]
pub struct Ring {
    points: Box<[u64]>,
    owners: Box<[BackendIndex]>,
    /// Backends with weight, in the order of their addresses.
    weighted: Box<[BackendIndex]>,
}

impl Ring {
    /// `candidates` are in the order of their addresses.
    ///
    /// Cost: O(p log p) for p points (the sum of the weights times `virtual_nodes`, which the
    /// configuration bounds); 16 bytes for each during the build.
    pub fn build(virtual_nodes: u32, secret: &Secret, candidates: &[Candidate]) -> Self {
        let points = |candidate: &Candidate| {
            let (seed, backend) = (candidate.server.hash(secret, 0), candidate.backend);
            let count = u64::from(candidate.weight) * u64::from(virtual_nodes);
            (0..count).map(move |number| (remix(seed, number), backend))
        };
        let mut points: Vec<_> = candidates.iter().flat_map(points).collect();
        // Stable sort: of two equal points, that of the lower address wins.
        points.sort_by_key(|(point, _)| *point);
        let (points, owners): (Vec<_>, Vec<_>) = points.into_iter().unzip();
        Self { points: points.into(), owners: owners.into(), weighted: weighted(candidates) }
    }
}

impl Scheduler for Ring {
    /// Cost: a binary search, then one step if the first backend is accepted; at most 64 steps,
    /// then one pass over the backends.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let start = self.points.partition_point(|&point| point < hash);
        let mut refused = None;
        for point in (start..self.points.len()).chain(0..start).take(ATTEMPTS) {
            let owner = *self.owners.get(point)?;
            if refused == Some(owner) {
                continue;
            }
            pool.record(Note::Point(u32::try_from(point).unwrap_or(u32::MAX)));
            if pool.accepts(owner) {
                return Some(owner);
            }
            refused = Some(owner);
        }
        first_in(&self.weighted, hash, |backend| pool.accepts(backend))
    }
}
