//! Rendezvous hashing (Thaler, Ravishankar 1998) with weights (Schindelhauer, Schomaker 2005).
//!
//! Every backend draws u in (0, 1) from the flow's hash and its own address, and the backend with
//! the least `-ln(u)/weight` wins. A draw is independent of all other backends: the removal of a
//! backend moves its own flows and no others, whatever the weights. This also holds when the
//! configuration removes it, which a lookup table cannot guarantee.
//!
//! Integers only: boxes agree regardless of processor and mathematical library.

use super::choice::{Candidate, Pool, Scheduler};
use crate::forwarding::affinity::{Secret, mix};
use crate::net::BackendIndex;

/// A backend with its hash seed.
#[derive(Debug)]
struct Drawer {
    backend: BackendIndex,
    weight: u32,
    seed: u64,
}

/// Backends with weight, 16 bytes each.
#[derive(Debug)]
pub struct Rendezvous(Box<[Drawer]>);

impl Rendezvous {
    /// Cost: one SipHash per candidate.
    pub fn build(secret: &Secret, candidates: &[Candidate]) -> Self {
        let drawer = |candidate: &Candidate| {
            let Candidate { backend, server, weight } = *candidate;
            Drawer { backend, weight, seed: server.hash(secret, 0) }
        };
        Self(candidates.iter().filter(|candidate| candidate.weight > 0).map(drawer).collect())
    }
}

impl Scheduler for Rendezvous {
    /// Cost: linear in the backends; `pool` is only queried for backends that beat all before them,
    /// ln(n) on average.
    fn choose(&self, hash: u64, pool: &mut dyn Pool) -> Option<BackendIndex> {
        let mut best: Option<(u64, &Drawer)> = None;
        for drawer in &self.0 {
            let drawn = minus_log2(mix(hash ^ drawer.seed));
            // drawn / weight < other / its weight, without a division.
            let better = best.is_none_or(|(other, of)| {
                u128::from(drawn) * u128::from(of.weight)
                    < u128::from(other) * u128::from(drawer.weight)
            });
            if better && pool.accepts(drawer.backend) {
                best = Some((drawn, drawer));
            }
        }
        best.map(|(_, drawer)| drawer.backend)
    }
}

/// Fraction bits of a logarithm.
const FRACTION: u32 = 48;
/// Table steps per octave, as a power of two. With 2^10 steps a logarithm is wrong by at most
/// 2^-24, and the few draws near 1 that win among many backends by 2^-14 of themselves: far below
/// the accuracy of a share.
const STEP_BITS: u32 = 10;
const STEPS: usize = 1 << STEP_BITS;

/// log2(1 + i / STEPS) in units of 2^-FRACTION.
static LOG2: [u64; STEPS + 1] = log2_table();

/// `-log2(drawn / 2^64)` in units of 2^-48: interpolated between table entries, and so monotonic;
/// at most 64 << 48.
#[inline]
fn minus_log2(drawn: u64) -> u64 {
    let drawn = drawn | 1;
    let zeros = drawn.leading_zeros();
    // The bits after the leading one: the mantissa less 1, in units of 2^-64.
    let fraction = (drawn << zeros) << 1;
    let step = (fraction >> (64 - STEP_BITS)) as usize;
    let (low, high) = match LOG2.get(step..step + 2) {
        Some(&[low, high]) => (low, high),
        _ => (0, 0),
    };
    let rest = (fraction << STEP_BITS) >> (64 - FRACTION);
    // Both factors are below 2^48: their product needs the wide type.
    let between = (u128::from(high - low) * u128::from(rest)) >> FRACTION;
    let log2 = low + u64::try_from(between).unwrap_or(0);
    (u64::from(zeros + 1) << FRACTION) - log2
}

/// Computes the table bit by bit: a mantissa is squared; if the square is 2 or more, the next bit
/// is 1 and the square is halved (Knuth, vol. 1, 1.2.2, exercise 25).
#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "evaluated at compile time; a mantissa is below 2^63"
)]
const fn log2_table() -> [u64; STEPS + 1] {
    let mut table = [0; STEPS + 1];
    let mut index = 0;
    while index < STEPS {
        // In units of 2^-62.
        let mut mantissa = (1 << 62) | ((index as u64) << (62 - STEP_BITS));
        let mut log2 = 0;
        let mut bit = 0;
        while bit < FRACTION {
            let square = (mantissa as u128 * mantissa as u128) >> 62;
            let two_or_more = square >> 63 != 0;
            mantissa = if two_or_more { (square >> 1) as u64 } else { square as u64 };
            log2 = log2 << 1 | two_or_more as u64;
            bit += 1;
        }
        table[index] = log2;
        index += 1;
    }
    table[STEPS] = 1 << FRACTION;
    table
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::testing::{SECRET, TestPool, candidates, hashes};
    use super::*;

    #[test]
    fn the_logarithm_is_one() {
        let log2 = |drawn: u64| minus_log2(drawn) as f64 / f64::from(FRACTION).exp2();
        for drawn in hashes(10_000).chain([1, 2, 3, u64::MAX, u64::MAX / 2, 1 << 63]) {
            let expected = -((drawn | 1) as f64 / 64_f64.exp2()).log2();
            assert!((log2(drawn) - expected).abs() < 2e-7, "{drawn}: {}, {expected}", log2(drawn));
        }
        assert_eq!(minus_log2(0), 64 << FRACTION);
        assert_eq!(minus_log2(1 << 63), (1 << FRACTION) - (LOG2[1] >> (63 - STEP_BITS)));
    }

    /// Known answers: two boxes, and two versions of holdfast, must agree.
    #[test]
    fn choices_are_the_same_in_every_version() {
        let mut weighted = candidates(100);
        weighted.iter_mut().for_each(|c| c.weight = u32::from(c.backend.0) % 7);
        let rendezvous = Rendezvous::build(&SECRET, &weighted);
        let sum = hashes(1000).fold(0_u64, |sum, hash| {
            let chosen = rendezvous.choose(hash, &mut TestPool::default()).unwrap();
            sum.wrapping_mul(31).wrapping_add(chosen.0.into())
        });
        assert_eq!(sum, 12_600_130_540_349_523_995);
        let table = LOG2.iter().fold(0_u64, |sum, log2| sum.wrapping_mul(31).wrapping_add(*log2));
        assert_eq!(table, 12_015_790_926_741_644_253);
    }
}
