//! Slow start: a backend that returns to service gets its share of new flows in steps, so that its
//! caches and pools can fill.
//!
//! Pure: the clock is a parameter. Each step is one forwarding table; there are ten, whatever the
//! duration.

use std::time::Duration;

use tokio::time::Instant;

use crate::forwarding::FULL_SHARE;

/// Number of steps to the full share, all of equal size.
const STEPS: u16 = 10;

/// Share of new flows that a backend gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStart {
    /// Current share, 0..=[`FULL_SHARE`].
    share: u16,
    /// Start and duration of the rise; `None` at the full share.
    rise: Option<(Instant, Duration)>,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { share: FULL_SHARE, rise: None }
    }
}

impl SlowStart {
    /// Share of new flows, 0..=[`FULL_SHARE`].
    pub const fn share(&self) -> u16 {
        self.share
    }

    /// Share in per cent.
    pub fn percent(&self) -> u8 {
        let percent = u32::from(self.share) * 100 / u32::from(FULL_SHARE);
        u8::try_from(percent).unwrap_or(100)
    }

    /// Starts a rise to the full share within `over`; with a duration of 0 the full share applies
    /// at once.
    pub fn begin(&mut self, over: Duration, now: Instant) {
        *self = Self { share: FULL_SHARE, rise: (!over.is_zero()).then_some((now, over)) };
        self.advance(now);
    }

    /// Takes the step that is due. Returns true if the share changes.
    pub fn advance(&mut self, now: Instant) -> bool {
        let Some((since, over)) = self.rise else { return false };
        let passed = now.saturating_duration_since(since).as_millis();
        let steps = passed * u128::from(STEPS - 1) / over.as_millis().max(1);
        let step = u16::try_from(steps).unwrap_or(STEPS).saturating_add(1).min(STEPS);
        if step == STEPS {
            self.rise = None;
        }
        let share = FULL_SHARE / STEPS * step;
        let share = if step == STEPS { FULL_SHARE } else { share };
        std::mem::replace(&mut self.share, share) != share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_share_rises_in_ten_steps_and_stays() {
        let now = Instant::now();
        let mut start = SlowStart::default();
        assert_eq!((start.share(), start.percent()), (FULL_SHARE, 100));
        assert!(!start.advance(now), "nothing has begun");
        start.begin(SECOND * 9, now);
        let mut shares = vec![start.percent()];
        for tenth in 1..=200 {
            if start.advance(now + SECOND * tenth / 10) {
                shares.push(start.percent());
            }
        }
        assert_eq!(shares, [9, 19, 29, 39, 49, 59, 69, 79, 89, 100]);
        assert_eq!(start, SlowStart::default());
    }

    #[test]
    fn a_late_look_skips_steps_and_no_time_is_at_once() {
        let now = Instant::now();
        let mut start = SlowStart::default();
        start.begin(SECOND, now);
        assert!(start.share() < FULL_SHARE);
        assert!(start.advance(now + SECOND * 100));
        assert_eq!(start, SlowStart::default());
        start.begin(Duration::ZERO, now);
        assert_eq!(start, SlowStart::default());
    }
}
