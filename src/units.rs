//! The coarse clock of the data path.

use serde::{Deserialize, Serialize};

use std::time::Duration;

/// Length of one [`Ticks`] step, in milliseconds.
pub const TICK_MS: u64 = 10;

/// A point in time or a span on the monotonic clock, in steps of [`TICK_MS`].
///
/// 32 bits wrap after 497 days, so points are compared only through [`Ticks::since`], and where
/// either may be the later one through [`Ticks::is_before`]. Both are correct for spans far above
/// [`Ticks::MAX_SPAN`], the longest time-out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticks(pub u32);

impl Ticks {
    /// The longest span that the configuration accepts: 30 days.
    pub const MAX_SPAN: Duration = Duration::from_secs(30 * 24 * 3600);
    /// How far a newer clock of another thread may lie ahead: one hour, for a thread that stood
    /// still. Short, as a point of a whole wrap ago looks like one that lies ahead.
    const MAX_AHEAD: u32 = 3600 * 100;

    /// Returns a span, rounded up to whole ticks and capped at [`Ticks::MAX_SPAN`].
    pub fn span(duration: Duration) -> Self {
        let ms = duration.min(Self::MAX_SPAN).as_millis();
        Self(u32::try_from(ms.div_ceil(u128::from(TICK_MS))).unwrap_or(u32::MAX))
    }

    /// Returns a span of whole seconds, capped at [`Ticks::MAX_SPAN`].
    pub fn seconds(seconds: u64) -> Self {
        Self::span(Duration::from_secs(seconds))
    }

    /// Returns the point `ms` milliseconds after the clock's origin.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a point wraps by design")]
    pub const fn at_ms(ms: u64) -> Self {
        Self((ms / TICK_MS) as u32)
    }

    /// Returns the ticks from `earlier` to `self`, up to 497 days less an hour; 0 when `earlier` is
    /// later by up to an hour (another thread's newer clock). What was recorded 300 days ago, in a
    /// table that is never swept, is old.
    #[inline]
    pub const fn since(self, earlier: Self) -> Self {
        let span = self.0.wrapping_sub(earlier.0);
        Self(if span > u32::MAX - Self::MAX_AHEAD { 0 } else { span })
    }

    /// Returns whether `self` is earlier than `other`, for points up to 248 days apart.
    #[inline]
    pub const fn is_before(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) > u32::MAX / 2
    }

    /// Returns the point `span` after `self`.
    #[inline]
    #[must_use]
    pub const fn after(self, span: Self) -> Self {
        Self(self.0.wrapping_add(span.0))
    }

    /// Returns a span in milliseconds.
    pub const fn as_ms(self) -> u64 {
        self.0 as u64 * TICK_MS
    }

    /// Returns a span as a [`Duration`].
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.as_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = 24 * 3600 * 100;

    #[test]
    fn spans_survive_the_wrap_and_never_run_backwards() {
        for (name, now, earlier, expected) in [
            ("plain", 100, 40, 60),
            ("across the wrap", 5, u32::MAX - 4, 10),
            ("earlier lies ahead", 40, 41, 0),
            ("earlier lies an hour ahead", 7, 360_007, 0),
            ("same", 7, 7, 0),
            ("300 days", 300 * DAY, 0, 300 * DAY),
            ("496 days", 496 * DAY, 0, 496 * DAY),
        ] {
            assert_eq!(Ticks(now).since(Ticks(earlier)), Ticks(expected), "{name}");
        }
    }

    #[test]
    fn of_two_points_one_is_before_the_other() {
        for (one, other) in [(40, 41), (u32::MAX - 4, 5), (0, 200 * DAY), (u32::MAX, 100 * DAY)] {
            assert!(Ticks(one).is_before(Ticks(other)), "{one} {other}");
            assert!(!Ticks(other).is_before(Ticks(one)), "{other} {one}");
        }
        assert!(!Ticks(7).is_before(Ticks(7)));
    }

    #[test]
    fn spans_round_up_and_are_bounded() {
        assert_eq!(Ticks::span(Duration::from_millis(1)), Ticks(1));
        assert_eq!(Ticks::span(Duration::from_secs(1)), Ticks(100));
        assert_eq!(Ticks::span(Duration::MAX), Ticks::span(Ticks::MAX_SPAN));
    }
}
