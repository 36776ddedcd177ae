//! Flap damping: a backend that goes down soon after it came up stays down for a while, although
//! its check succeeds, and for longer each time.
//!
//! The idea is that of RFC 2439, which suppresses unstable routes: what fails often will fail again,
//! and each return costs the clients that it attracts. RFC 2439 adds up penalties that decay; here a
//! count of flaps doubles the hold, so that an operator can predict it:
//!
//! ```text
//! fall after `steady` in service, or the first one    no hold
//! n-th flap (a fall sooner than that)                 hold * 2^(n-1), `longest` at most
//! each `steady` in service                            one flap less
//! a fall during a hold                                a flap, too: the hold begins again
//! ```
//!
//! Pure: the clock is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;

/// Most flaps that are counted: `hold` doubled that often exceeds any `longest`.
const MAX_FLAPS: u32 = 20;

/// Flaps of a backend, and its hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Damping {
    /// Flaps that are not forgotten.
    flaps: u32,
    /// Time of the last return to service.
    up_since: Option<Instant>,
    /// End of the hold.
    held_until: Option<Instant>,
}

impl Damping {
    /// Records that the backend went down. Returns the hold that begins, if any.
    pub fn fall(&mut self, rule: Option<config::Damping>, now: Instant) -> Option<Duration> {
        let rule = rule?;
        let is_flap = self.is_held() || self.served(now).is_some_and(|time| time < rule.steady);
        if !is_flap {
            self.forgive(rule, now);
            return None;
        }
        Some(self.begin(rule, now))
    }

    /// Begins a hold, however long the backend was in service. Returns its duration.
    pub fn begin(&mut self, rule: config::Damping, now: Instant) -> Duration {
        self.forgive(rule, now);
        self.flaps = self.flaps.saturating_add(1).min(MAX_FLAPS);
        let hold = rule.hold.saturating_mul(1 << (self.flaps - 1)).min(rule.longest);
        self.held_until = Some(now + hold);
        hold
    }

    /// Time in service; `None` before the first return.
    fn served(&self, now: Instant) -> Option<Duration> {
        self.up_since.map(|since| now.saturating_duration_since(since))
    }

    /// Forgets one flap for each `steady` in service.
    fn forgive(&mut self, rule: config::Damping, now: Instant) {
        if self.is_held() {
            return;
        }
        let steady = rule.steady.as_secs().max(1);
        let forgiven = self.served(now).map_or(u64::MAX, |served| served.as_secs() / steady);
        self.flaps = self.flaps.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
    }

    /// Records that the backend is in service again, which ends a hold.
    pub fn rise(&mut self, now: Instant) {
        *self = Self { up_since: Some(now), held_until: None, ..*self };
    }

    /// Returns whether the backend is held down.
    pub const fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    /// Returns the rest of the hold.
    pub fn held_for(&self, now: Instant) -> Option<Duration> {
        self.held_until.map(|end| end.saturating_duration_since(now))
    }

    /// Number of flaps that are not forgotten.
    pub const fn flaps(&self) -> u32 {
        self.flaps
    }

    /// Ends the hold if its time has come, or `early`. Returns whether it ends.
    pub fn release(&mut self, early: bool, now: Instant) -> bool {
        let ends = self.held_until.is_some_and(|end| early || now >= end);
        if ends {
            self.held_until = None;
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: config::Damping = config::Damping {
        hold: Duration::from_secs(5),
        longest: Duration::from_secs(300),
        steady: Duration::from_secs(60),
    };

    /// Lets a backend be up for so many seconds before each fall; returns the holds in seconds.
    fn holds(up_for: &[u64]) -> Vec<u64> {
        let (mut damping, mut now) = (Damping::default(), Instant::now());
        let mut fall = |&up_s: &u64| {
            now += Duration::from_secs(up_s);
            let hold = damping.fall(Some(RULE), now);
            now += hold.unwrap_or_default();
            assert_eq!(damping.release(false, now), hold.is_some());
            damping.rise(now);
            hold.map_or(0, |hold| hold.as_secs())
        };
        up_for.iter().map(&mut fall).collect()
    }

    #[test]
    fn each_flap_doubles_the_hold_up_to_the_longest_one() {
        for (name, up_for, expected) in [
            ("a single failure", &[1000][..], &[0][..]),
            ("the first failure, soon after the start", &[1], &[0]),
            ("failures far apart", &[9, 60, 60, 999], &[0, 0, 0, 0]),
            ("flaps", &[9, 1, 1, 1, 1, 1, 1, 1, 1], &[0, 5, 10, 20, 40, 80, 160, 300, 300]),
            ("a minute in service forgives one", &[9, 1, 1, 60, 1], &[0, 5, 10, 0, 10]),
            ("two minutes forgive two", &[9, 1, 1, 120, 1], &[0, 5, 10, 0, 5]),
            ("hours forgive all", &[9, 1, 1, 1, 9999, 1], &[0, 5, 10, 20, 0, 5]),
        ] {
            assert_eq!(holds(up_for), expected, "{name}");
        }
    }

    #[test]
    fn a_fall_during_a_hold_begins_it_again() {
        let (mut damping, now) = (Damping::default(), Instant::now());
        damping.rise(now);
        let second = Duration::from_secs(1);
        assert_eq!(damping.fall(Some(RULE), now + second), Some(RULE.hold));
        assert_eq!(damping.fall(Some(RULE), now + second * 2), Some(RULE.hold * 2));
        assert_eq!((damping.flaps(), damping.held_for(now + second * 3)), (2, Some(second * 9)));
        assert!(!damping.release(false, now + second * 11));
        assert!(damping.release(false, now + second * 12) && !damping.is_held());
    }

    #[test]
    fn without_a_rule_nothing_is_held() {
        let (mut damping, now) = (Damping::default(), Instant::now());
        for _ in 0..9 {
            assert_eq!(damping.fall(None, now), None);
            damping.rise(now);
        }
        assert!(!damping.is_held());
    }

    #[test]
    fn no_number_of_flaps_overflows() {
        let longest = Duration::from_secs(86_400);
        let rule = config::Damping { longest, hold: longest, steady: longest };
        let (mut damping, now) = (Damping::default(), Instant::now());
        damping.rise(now);
        for _ in 0..100 {
            assert_eq!(damping.fall(Some(rule), now), Some(longest));
        }
    }
}
