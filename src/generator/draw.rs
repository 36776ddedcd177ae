//! Choice of the flow that sends next: uniform, Zipf, or in turn.

/// Distribution of packets over flows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// All flows with equal probability.
    Uniform,
    /// The k-th flow with a probability proportional to `k^-exponent`: few elephants, many mice.
    Zipf {
        /// The exponent; 1 is the classic.
        exponent: f64,
    },
    /// One flow after the other.
    Sequential,
}

impl Distribution {
    /// Returns the name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf { .. } => "zipf",
            Self::Sequential => "sequential",
        }
    }
}

/// A small fast pseudo-random number generator: xorshift64* (Vigna 2016). Not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Seeds the generator. Each seed, 0 included, gives a different sequence.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed).max(1))
    }

    /// Returns the next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `bound`, from the upper 32 random bits.
    #[inline]
    fn below(bits: u64, bound: u32) -> u32 {
        (((bits >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// A bijection that scatters its argument: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
#[inline]
pub const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// One column of an alias table: gives itself with the probability `keep / 2^32`, else `alias`.
#[derive(Debug, Clone, Copy)]
struct Column {
    keep: u32,
    alias: u32,
}

/// Draws the flows of one worker. Cost of a draw: a random number and, for Zipf, one table line.
#[derive(Debug)]
pub struct Draw {
    random: Random,
    flows: u32,
    next: u32,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Uniform,
    Sequential,
    /// Walker's alias table, built by Vose's method (1991): O(1) per draw, whatever the exponent.
    Zipf(Box<[Column]>),
}

impl Draw {
    /// Creates the draw of a worker that has every `step`-th flow from `first` on, `flows` in all
    /// (at least 1): its `i`-th flow has the rank `first + i * step` among all flows.
    pub fn new(distribution: Distribution, flows: u32, first: u32, step: u32, seed: u64) -> Self {
        let kind = match distribution {
            Distribution::Uniform => Kind::Uniform,
            Distribution::Sequential => Kind::Sequential,
            Distribution::Zipf { exponent } => {
                let rank = |i: u32| f64::from(first) + f64::from(i) * f64::from(step) + 1.0;
                // For exponent 1 the power is exact, and so the draws are identical on every
                // machine.
                let weight = |i: u32| rank(i).powf(exponent).recip();
                Kind::Zipf(alias_table((0..flows).map(weight).collect()))
            }
        };
        Self { random: Random::new(seed ^ u64::from(first) << 32), flows, next: 0, kind }
    }

    /// Returns the next flow, below the number of flows.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 random bits are meant")]
    pub fn draw(&mut self) -> u32 {
        match &self.kind {
            Kind::Uniform => Random::below(self.random.bits(), self.flows),
            Kind::Sequential => {
                let flow = self.next;
                self.next = if flow + 1 < self.flows { flow + 1 } else { 0 };
                flow
            }
            Kind::Zipf(table) => {
                let bits = self.random.bits();
                let index = Random::below(bits, self.flows);
                match table.get(index as usize) {
                    Some(column) if bits as u32 >= column.keep => column.alias,
                    _ => index,
                }
            }
        }
    }
}

/// Builds an alias table. Each column holds 1/n of the probability: that of a light item, topped up
/// by a heavy one.
fn alias_table(mut weights: Vec<f64>) -> Box<[Column]> {
    let total: f64 = weights.iter().sum();
    let scale = weights.len() as f64 / total;
    weights.iter_mut().for_each(|weight| *weight *= scale);
    let full = Column { keep: u32::MAX, alias: 0 };
    let mut table = vec![full; weights.len()];
    for (index, column) in (0..).zip(&mut table) {
        column.alias = index;
    }
    let heavy_at = |index: u32, weights: &[f64]| weights.get(index as usize).copied() >= Some(1.0);
    let (mut heavy, mut light): (Vec<u32>, Vec<u32>) =
        (0..).take(weights.len()).partition(|&index| heavy_at(index, &weights));
    while let (Some(&donor), Some(item)) = (heavy.last(), light.pop()) {
        let kept = weights.get(item as usize).copied().unwrap_or(1.0);
        if let Some(column) = table.get_mut(item as usize) {
            *column = Column { keep: fraction(kept), alias: donor };
        }
        if let Some(left) = weights.get_mut(donor as usize) {
            *left -= 1.0 - kept;
            if *left < 1.0 {
                heavy.pop();
                light.push(donor);
            }
        }
    }
    table.into()
}

/// Converts a probability to a fraction of 2^32.
#[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
#[expect(clippy::cast_sign_loss, reason = "a float cast saturates")]
fn fraction(probability: f64) -> u32 {
    (probability * 4_294_967_296.0) as u32
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn histogram(mut draw: Draw, flows: usize, draws: u32) -> Vec<f64> {
        let mut counts = vec![0_u32; flows];
        (0..draws).for_each(|_| counts[draw.draw() as usize] += 1);
        counts.iter().map(|&count| f64::from(count) / f64::from(draws)).collect()
    }

    #[test]
    fn uniform_draws_are_uniform() {
        let shares = histogram(Draw::new(Distribution::Uniform, 10, 0, 1, 7), 10, 1_000_000);
        assert!(shares.iter().all(|share| (share - 0.1).abs() < 0.002), "{shares:?}");
    }

    #[test]
    fn zipf_draws_follow_the_law_for_any_exponent() {
        for exponent in [0.5, 1.0, 1.3, 2.0] {
            let draw = Draw::new(Distribution::Zipf { exponent }, 1000, 0, 1, 7);
            let shares = histogram(draw, 1000, 2_000_000);
            let total: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for rank in [1_u16, 2, 3, 10, 100] {
                let expected = f64::from(rank).powf(-exponent) / total;
                let share = shares[usize::from(rank) - 1];
                let error = (share - expected).abs() / expected.max(0.002);
                assert!(error < 0.05, "exponent {exponent}, rank {rank}: {share} {expected}");
            }
        }
    }

    #[test]
    fn workers_share_the_ranks() {
        let zipf = Distribution::Zipf { exponent: 1.0 };
        let first = histogram(Draw::new(zipf, 2, 0, 2, 1), 2, 1_000_000);
        // Ranks 1 and 3.
        assert!((first[0] - 0.75).abs() < 0.005, "{first:?}");
        let second = histogram(Draw::new(zipf, 2, 1, 2, 1), 2, 1_000_000);
        // Ranks 2 and 4.
        assert!((second[0] - 2.0 / 3.0).abs() < 0.005, "{second:?}");
    }

    #[test]
    fn in_turn_wraps() {
        let mut draw = Draw::new(Distribution::Sequential, 3, 0, 1, 7);
        let drawn: Vec<u32> = (0..7).map(|_| draw.draw()).collect();
        assert_eq!(drawn, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn one_flow_is_always_drawn() {
        for kind in
            [Distribution::Uniform, Distribution::Zipf { exponent: 1.0 }, Distribution::Sequential]
        {
            let mut draw = Draw::new(kind, 1, 0, 1, 3);
            assert!((0..1000).all(|_| draw.draw() == 0), "{kind:?}");
        }
    }
}
