//! Draining one backend: no new flows from now on; old ones end, or are cut at a deadline.
//!
//! ```text
//!            begin                     flows_active = 0
//!   Active ---------> Draining ------------------------------> (drained, still Draining)
//!     ^                  | deadline: generation + 1, pins stale
//!     |      cancel      v
//!     +---------------- Out
//! ```
//!
//! Pure: the clock and the flow counts are parameters.

use std::time::Duration;

use tokio::time::Instant;

use crate::forwarding::Service;

/// What was ordered for one backend, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    service: Service,
    deadline: Option<Instant>,
    flows_cut: u64,
    /// Its end was told.
    told: bool,
}

/// What became of a drain; told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnd {
    /// The last flow ended by itself.
    Drained,
    /// The deadline has come; so many flows were left and are cut.
    Deadline {
        /// Flows that were pinned then.
        flows_cut: u64,
    },
}

impl Default for Drain {
    fn default() -> Self {
        Self { service: Service::Active, deadline: None, flows_cut: 0, told: false }
    }
}

impl Drain {
    /// What the forwarding table is to say.
    pub const fn service(&self) -> Service {
        self.service
    }

    /// Flows that were left when the deadline came.
    pub const fn flows_cut(&self) -> u64 {
        self.flows_cut
    }

    /// Whole seconds until the deadline, rounded up.
    pub fn deadline_in_s(&self, now: Instant) -> Option<u64> {
        let left = self.deadline?.saturating_duration_since(now);
        Some(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }

    /// Starts a drain, or gives one that goes on another deadline; without one, it keeps that which
    /// it has. One that has met its deadline stays out. True if the forwarding table changes.
    pub fn begin(&mut self, deadline: Option<Duration>, now: Instant) -> bool {
        if self.service == Service::Out {
            return false;
        }
        let begins = self.service == Service::Active;
        // A deadline beyond what the clock can hold is none.
        let deadline = deadline.map_or(self.deadline, |span| now.checked_add(span));
        let told = self.told && !begins;
        *self = Self { service: Service::Draining, deadline, flows_cut: 0, told };
        begins
    }

    /// Takes the backend back into service. True if it was not.
    pub fn cancel(&mut self) -> bool {
        let was = self.service;
        *self = Self::default();
        was != Service::Active
    }

    /// What has come to an end, given the flows that are pinned now. After
    /// [`DrainEnd::Deadline`] the caller ends the backend's generation.
    pub fn advance(&mut self, flows_active: u64, now: Instant) -> Option<DrainEnd> {
        if self.service != Service::Draining {
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let flows_cut = flows_active;
            *self = Self { service: Service::Out, deadline: None, flows_cut, told: true };
            return Some(DrainEnd::Deadline { flows_cut });
        }
        if flows_active == 0 && !self.told {
            self.told = true;
            return Some(DrainEnd::Drained);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_drain_without_deadline_ends_with_its_last_flow_and_says_so_once() {
        let now = Instant::now();
        let mut drain = Drain::default();
        assert_eq!(drain.advance(0, now), None, "nothing drains");
        assert!(drain.begin(None, now));
        assert_eq!(drain.service(), Service::Draining);
        assert_eq!(drain.advance(2, now + SECOND), None);
        assert_eq!(drain.advance(0, now + SECOND), Some(DrainEnd::Drained));
        assert_eq!(drain.advance(0, now + SECOND), None);
        assert_eq!(drain.service(), Service::Draining);
        assert!(drain.cancel());
        assert_eq!(drain, Drain::default());
        assert!(!drain.cancel());
    }

    #[test]
    fn a_deadline_cuts_what_is_left() {
        let now = Instant::now();
        let mut drain = Drain::default();
        drain.begin(Some(SECOND), now);
        assert_eq!(drain.deadline_in_s(now), Some(1));
        assert_eq!(drain.deadline_in_s(now + SECOND / 2), Some(1));
        assert_eq!(drain.advance(7, now + SECOND / 2), None);
        assert_eq!(drain.advance(7, now + SECOND), Some(DrainEnd::Deadline { flows_cut: 7 }));
        assert_eq!((drain.service(), drain.flows_cut()), (Service::Out, 7));
        assert_eq!(drain.deadline_in_s(now), None);
        assert!(!drain.begin(Some(SECOND), now), "out stays out");
        assert_eq!(drain.flows_cut(), 7);
        assert!(drain.cancel());
        assert_eq!(drain.flows_cut(), 0);
    }

    #[test]
    fn a_second_drain_moves_the_deadline() {
        let now = Instant::now();
        let mut drain = Drain::default();
        drain.begin(Some(SECOND), now);
        assert!(!drain.begin(Some(SECOND * 10), now), "the table does not change");
        assert_eq!(drain.advance(1, now + SECOND), None);
        drain.begin(None, now + SECOND);
        assert_eq!(drain.deadline_in_s(now + SECOND), Some(9), "an order without one keeps it");
        drain.begin(Some(Duration::MAX), now);
        assert_eq!(drain.advance(1, now + SECOND * 100), None);
        drain.cancel();
        drain.begin(None, now);
        assert_eq!(drain.deadline_in_s(now), None, "a new drain has no deadline of an old one");
    }
}
