//! Token bucket of a rate limit: a long-term rate, and a burst.

use crate::units::Ticks;

/// Cost of one token in bucket units, equal to the ticks per second: a bucket regains as many units
/// per tick as its rate has tokens per second.
const COST: u64 = 100;

/// A token bucket, stored as the units in use: a bucket that was never used is full.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenBucket {
    used: u64,
    at: Ticks,
}

impl TokenBucket {
    /// Adds the tokens of the time since the last call; returns whether a token is available.
    pub fn refresh(&mut self, per_second: u32, burst: u32, now: Ticks) -> bool {
        let grown = u64::from(now.since(self.at).0) * u64::from(per_second);
        self.used = self.used.saturating_sub(grown);
        self.at = now;
        self.used + COST <= u64::from(burst) * COST
    }

    /// Takes a token.
    pub const fn take(&mut self) {
        self.used += COST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_is_full_after_any_long_time() {
        for days in [1, 200, 300, 400] {
            let (mut bucket, now) = (TokenBucket::default(), Ticks(77));
            while bucket.refresh(10, 50, now) {
                bucket.take();
            }
            let later = now.after(Ticks(days * 24 * 3600 * 100));
            assert!(bucket.refresh(10, 50, later), "after {days} days");
        }
    }
}
