//! Estimate of the time until all flows of a backend have ended, from the ages of flows.
//!
//! The lifetimes of ended flows of the VIP and the ages of its present flows give the share of
//! flows that reach an age (the Kaplan-Meier estimate, on classes of ages, with the present flows
//! as withdrawn). For each flow that is left, this gives the probability that it is still there
//! after a time `T`, given its present age. The drain ends at the smallest `T` at which the
//! expected number of flows is less than a half.
//!
//! Beyond the longest observed lifetime, flows are assumed to go on ending at the rate of the two
//! octaves before. A flow of more than twice that age is of an unknown kind, and there is no
//! estimate.
//!
//! Pure: counts in, a time span out.

use crate::stats::{SPANS, span_class, span_start};
use crate::units::Ticks;

/// Expected number of flows below which a drain counts as ended.
const ENDED: f64 = 0.5;
/// Number of the uppermost classes from which later ends are extrapolated: two octaves.
const TAIL: usize = 4;
/// Greatest age of a flow for which there is an estimate, in multiples of the longest observed
/// lifetime.
const KNOWN: f64 = 2.0;
/// Longest estimate, in ticks: 248 days. Longer ones count as unknown.
const LONGEST: u64 = 1 << 31;

/// Ages of flows, by class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ages {
    flows: [u64; SPANS],
    /// Sum of the ages in each class, in ticks, for its mean.
    sums: [u64; SPANS],
    oldest: Ticks,
}

impl Default for Ages {
    fn default() -> Self {
        Self { flows: [0; SPANS], sums: [0; SPANS], oldest: Ticks::default() }
    }
}

impl Ages {
    /// Adds a flow.
    pub fn add(&mut self, age: Ticks) {
        let class = span_class(age);
        if let (Some(flows), Some(sum)) = (self.flows.get_mut(class), self.sums.get_mut(class)) {
            *flows += 1;
            *sum += u64::from(age.0);
        }
        self.oldest = if age.0 > self.oldest.0 { age } else { self.oldest };
    }

    /// Returns the age of the oldest flow, if there is any.
    pub fn oldest(&self) -> Option<Ticks> {
        (self.flows.iter().sum::<u64>() > 0).then_some(self.oldest)
    }

    /// Returns the number of flows and their mean age in ticks, for each class that is not empty.
    fn groups(&self) -> impl Iterator<Item = (f64, f64)> {
        let classes = self.flows.iter().zip(&self.sums).filter(|(flows, _)| **flows > 0);
        classes.map(|(&flows, &sum)| (flows as f64, sum as f64 / flows as f64))
    }
}

/// Estimates the time until the flows in `left` have ended; `None` if it is not known. `completed`
/// has the lifetimes of flows that have ended, `present` the ages of all flows of the VIP, those in
/// `left` included.
pub fn ends_in(completed: &[u64; SPANS], present: &Ages, left: &Ages) -> Option<Ticks> {
    if left.oldest().is_none() {
        return Some(Ticks(0));
    }
    let survival = Survival::new(completed, &present.flows)?;
    if f64::from(left.oldest.0) > KNOWN * survival.known {
        return None;
    }
    let ended = |span: u64| expected(&survival, left, span as f64).map(|flows| flows < ENDED);
    let (mut low, mut high) = (0, 1);
    while !ended(high)? {
        (low, high) = (high, high * 2);
        if high > LONGEST {
            return None;
        }
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if ended(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    u32::try_from(high).ok().map(Ticks)
}

/// Returns the expected number of flows `span` ticks later; `None` if some of them should have
/// ended already.
fn expected(survival: &Survival, left: &Ages, span: f64) -> Option<f64> {
    left.groups().try_fold(0.0, |sum, (flows, age)| {
        let reached = survival.at(age);
        (reached > 0.0).then(|| sum + flows * survival.at(age + span) / reached)
    })
}

/// Survival function: the share of flows that reach an age.
struct Survival {
    /// Shares at the start of each class, and at the end of the last one.
    shares: [f64; SPANS + 1],
    /// Share at the age `known`.
    end: f64,
    /// Longest observed lifetime, rounded up to its class, in ticks.
    known: f64,
    /// Share of the flows beyond `known` that ends per tick.
    rate: f64,
}

impl Survival {
    /// Computes the survival function; `None` if no flow has ended yet.
    fn new(completed: &[u64; SPANS], present: &[u64; SPANS]) -> Option<Self> {
        let last = completed.iter().rposition(|&flows| flows > 0)?;
        let mut shares = [1.0; SPANS + 1];
        let mut reach = completed.iter().chain(present).sum::<u64>() as f64;
        let mut share = 1.0;
        let (mut tail_ends, mut tail_time) = (0.0, 0.0);
        for (class, (&ends, &there)) in completed.iter().zip(present).enumerate().take(last + 1) {
            let (ends, there) = (ends as f64, there as f64);
            let at_risk = reach - there / 2.0;
            if at_risk > 0.0 {
                share *= 1.0 - (ends / at_risk).min(1.0);
            }
            if class + TAIL > last {
                let width = (span_start(class + 1) - span_start(class)) as f64;
                tail_ends += ends;
                tail_time += width * (reach - (ends + there) / 2.0);
            }
            reach -= ends + there;
            if let Some(later) = shares.get_mut(class + 1) {
                *later = share;
            }
        }
        let known = span_start(last + 1) as f64;
        Some(Self { shares, end: share, known, rate: tail_ends / tail_time })
    }

    /// Returns the share that reaches an age in ticks. Within a class, ends are spread evenly.
    fn at(&self, age: f64) -> f64 {
        if age >= self.known {
            return self.end * (-self.rate * (age - self.known)).exp();
        }
        let class = class_of(age);
        let ends = (self.shares.get(class), self.shares.get(class + 1));
        let (Some(&from), Some(&to)) = ends else { return 0.0 };
        let (start, end) = (span_start(class) as f64, span_start(class + 1) as f64);
        from + (to - from) * (age - start) / (end - start)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a conversion from float saturates")]
fn class_of(age: f64) -> usize {
    span_class(Ticks(age as u32))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    /// Numbers in 0..1, identical in every run (splitmix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }
    }

    fn ticks(seconds: f64) -> Ticks {
        Ticks::span(std::time::Duration::from_secs_f64(seconds))
    }

    fn lives(seconds: impl IntoIterator<Item = f64>) -> [u64; SPANS] {
        let mut lives = [0; SPANS];
        for life in seconds {
            *lives.get_mut(span_class(ticks(life))).unwrap() += 1;
        }
        lives
    }

    fn ages(seconds: impl IntoIterator<Item = f64>) -> Ages {
        let mut ages = Ages::default();
        seconds.into_iter().for_each(|age| ages.add(ticks(age)));
        ages
    }

    fn seconds(span: Option<Ticks>) -> f64 {
        span.unwrap().as_ms() as f64 / 1000.0
    }

    /// Exponential lifetimes are memoryless: half a flow of `n` is left after mean * ln(2n).
    #[test]
    fn exponential_lives_are_foretold_within_a_factor_of_one_and_a_half() {
        let mut random = Random(1);
        for mean in [2.0, 60.0, 3600.0] {
            for flows in [1, 10, 1000] {
                let mut draw = || -mean * random.next().max(1e-9).ln();
                let completed = lives((0..20_000).map(|_| draw()));
                let left = ages((0..flows).map(|_| draw()));
                let expected = mean * (2.0 * f64::from(flows)).ln();
                let reported = seconds(ends_in(&completed, &left, &left));
                let factor = (reported / expected).max(expected / reported);
                assert!(factor < 1.5, "mean {mean}, {flows} flows: {reported} s for {expected} s");
            }
        }
    }

    /// The youngest flow ends last: when it reaches the common lifetime.
    #[test]
    fn fixed_lives_are_foretold_within_a_factor_of_one_and_a_half() {
        for life in [5.0, 100.0, 1000.0, 86_000.0] {
            let completed = lives(std::iter::repeat_n(life, 5000));
            for youngest in [0.01, 0.3, 0.6] {
                let step = (1.0 - youngest) / 100.0;
                let left = ages((0..100).map(|i| life * (youngest + step * f64::from(i))));
                let expected = life * (1.0 - youngest);
                let reported = seconds(ends_in(&completed, &left, &left));
                // A class is up to half as wide as the ages in it.
                let most = life * 1.5 - life * youngest;
                assert!(
                    reported > expected / 1.5 && reported < most * 1.1,
                    "{life}, {youngest}: {reported} s"
                );
            }
        }
    }

    #[test]
    fn an_unknown_end_has_no_estimate() {
        let one = ages([10.0]);
        assert_eq!(ends_in(&lives([]), &one, &one), None, "no flow has ended yet");
        let short = lives(std::iter::repeat_n(1.0, 1000));
        let old = ages([600.0]);
        assert_eq!(ends_in(&short, &old, &old), None, "of another kind than those seen");
        let none = Ages::default();
        assert_eq!(ends_in(&short, &old, &none), Some(Ticks(0)), "nothing is left");
        assert_eq!((none.oldest(), old.oldest()), (None, Some(ticks(600.0))));
    }

    /// Long-lived flows of other backends lengthen the estimate.
    #[test]
    fn flows_that_go_on_count() {
        let completed = lives(std::iter::repeat_n(10.0, 100));
        let left = ages([5.0]);
        let alone = ends_in(&completed, &left, &left).unwrap();
        let mut others = ages(std::iter::repeat_n(15.0, 1000));
        others.add(ticks(5.0));
        let reported = ends_in(&completed, &others, &left).unwrap();
        assert!(reported.0 > alone.0 * 5, "{reported:?}, alone {alone:?}");
    }
}
