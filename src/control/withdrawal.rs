//! Withdrawal of a VIP's address while no backend serves it, so that routes lead to another box.
//!
//! ```text
//! served --no backend serves--> withdrawn --a backend serves, no hold--> served
//! ```
//!
//! A VIP that is withdrawn again soon after its return stays withdrawn for a while, and for longer
//! each time ([`Damping`]): health that flaps must not flap routes (RFC 2439).
//!
//! Pure: the clock is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use super::damping::Damping;
use crate::config;

/// Hold after a second withdrawal within a minute: 5 s, doubled each time, 5 minutes at most.
const RULE: config::Damping = config::Damping {
    hold: Duration::from_secs(5),
    longest: Duration::from_secs(300),
    steady: Duration::from_secs(60),
};

/// Whether a VIP's address is withdrawn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Withdrawal {
    is_withdrawn: bool,
    damping: Damping,
}

impl Withdrawal {
    /// Records whether a backend serves the VIP; returns whether this withdraws it, or ends that.
    pub fn observe(&mut self, is_served: bool, now: Instant) -> bool {
        self.damping.release(false, now);
        let may_return = is_served && !self.damping.is_held();
        let changes = if self.is_withdrawn { may_return } else { !is_served };
        if changes {
            self.is_withdrawn = !self.is_withdrawn;
            if self.is_withdrawn {
                self.damping.fall(Some(RULE), now);
            } else {
                self.damping.rise(now);
            }
        }
        changes
    }

    /// Whether the address is withdrawn.
    pub const fn is_withdrawn(&self) -> bool {
        self.is_withdrawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_is_withdrawn_at_once_and_returns_later_each_time() {
        let start = Instant::now();
        let mut withdrawal = Withdrawal::default();
        let mut seconds = 0;
        let mut at = |seconds: u64, served, withdrawal: &mut Withdrawal| {
            withdrawal.observe(served, start + Duration::from_secs(seconds));
            withdrawal.is_withdrawn()
        };
        assert!(!at(seconds, true, &mut withdrawal));
        for hold in [0, 5, 10, 20, 40, 80, 160, 300, 300] {
            seconds += 1;
            assert!(at(seconds, false, &mut withdrawal), "at once");
            if hold > 0 {
                assert!(at(seconds + hold - 1, true, &mut withdrawal), "held for {hold} s");
            }
            seconds += hold;
            assert!(!at(seconds, true, &mut withdrawal), "back after {hold} s");
        }
        // A long time in service forgets.
        seconds += 60 * 20;
        assert!(at(seconds, false, &mut withdrawal));
        assert!(!at(seconds, true, &mut withdrawal));
    }
}
