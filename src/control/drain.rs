//! State machine of a drain: a backend gets no new flows; its old ones end, or a deadline comes.
//!
//! ```text
//!            begin                     flows_active = 0
//!   Active ---------> Draining ------------------------------> (drained, still Draining)
//!     ^                  | deadline
//!     |                  |   keep:   goes on
//!     |                  |   rehash: Out, generation + 1, pins stale
//!     |                  |   reset:  both ends of each flow get a RST; when the flows are gone, or
//!     |      cancel      v           after `RESETS`, as rehash
//!     +---------------- Out
//! ```
//!
//! Pure: the clock and the flow counts are parameters.

use std::time::Duration;

use tokio::time::Instant;

use super::saved::{Moment, SavedDrain};
use crate::forwarding::{FlowAction, RESET_TIME, Service};

/// Longest duration of the resets at a deadline: one round of the flow tables' sweep, and the time
/// in which an endpoint that missed its RST gets another, with a margin.
pub const RESETS: Duration = Duration::from_millis(RESET_TIME.as_ms() + 6_000);

/// Drain state of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    service: Service,
    /// Start of the drain, and the number of flows pinned then.
    begun: Option<(Instant, u64)>,
    deadline: Option<Instant>,
    /// End of the time for resets; set while the flows are being reset.
    resets_until: Option<Instant>,
    flows_cut: u64,
    /// Whether the end of the drain was reported.
    reported: bool,
}

/// A step of a drain. Each is reported once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The last flow ended by itself.
    Drained,
    /// The deadline has come; the flows stay.
    Kept {
        /// Number of pinned flows.
        flows_left: u64,
    },
    /// The deadline has come; the flows are to be reset.
    Resets {
        /// Number of pinned flows.
        flows_left: u64,
    },
    /// The backend is out; the pins that are left become stale.
    Cut {
        /// Number of flows pinned at the deadline.
        flows_cut: u64,
        /// Whether the end was reported before, since no flow was left.
        reported: bool,
    },
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            service: Service::Active,
            begun: None,
            deadline: None,
            resets_until: None,
            flows_cut: 0,
            reported: false,
        }
    }
}

impl Drain {
    /// Returns the service state for the forwarding table.
    pub const fn service(&self) -> Service {
        self.service
    }

    /// Returns the action on the pinned flows for the forwarding table.
    pub const fn flows_left(&self) -> FlowAction {
        if self.resets_until.is_some() { FlowAction::Reset } else { FlowAction::Keep }
    }

    /// Returns the number of flows left at the deadline and not kept.
    pub const fn flows_cut(&self) -> u64 {
        self.flows_cut
    }

    /// Returns the start of the drain and the number of flows pinned then; `None` if the backend
    /// does not drain.
    pub const fn begun(&self) -> Option<(Instant, u64)> {
        self.begun
    }

    /// Returns the seconds until the deadline, rounded up.
    pub fn deadline_in_s(&self, now: Instant) -> Option<u64> {
        let left = self.deadline?.saturating_duration_since(now);
        Some(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }

    /// Starts a drain of a backend that has `flows` pinned flows, or sets another deadline for a
    /// drain in progress. Without a `deadline`, a drain in progress keeps its own. A drain that has
    /// met its deadline does not change, unless its flows were kept. Returns whether the forwarding
    /// table changes.
    pub fn begin(&mut self, deadline: Option<Duration>, flows: u64, now: Instant) -> bool {
        if self.service == Service::Out || self.resets_until.is_some() {
            return false;
        }
        let begins = self.service == Service::Active;
        // A deadline beyond the range of the clock counts as none.
        let deadline = deadline.map_or(self.deadline, |span| now.checked_add(span));
        *self = Self {
            service: Service::Draining,
            begun: self.begun.or(Some((now, flows))),
            deadline,
            ..*self
        };
        begins
    }

    /// Returns the drain as it is saved.
    pub fn save(&self, moment: &Moment) -> SavedDrain {
        let Self { service, begun, deadline, resets_until, flows_cut, reported } = *self;
        SavedDrain {
            service,
            begun: begun.map(|(at, flows)| (moment.ticks_at(at), flows)),
            deadline: deadline.map(|at| moment.ticks_at(at)),
            resets_until: resets_until.map(|at| moment.ticks_at(at)),
            flows_cut,
            reported,
        }
    }

    /// Restores a saved drain: it goes on, with its deadline.
    pub fn restore(saved: SavedDrain, moment: &Moment) -> Self {
        let SavedDrain { service, begun, deadline, resets_until, flows_cut, reported } = saved;
        Self {
            service,
            begun: begun.map(|(at, flows)| (moment.instant_at(at), flows)),
            deadline: deadline.map(|at| moment.instant_at(at)),
            resets_until: resets_until.map(|at| moment.instant_at(at)),
            flows_cut,
            reported,
        }
    }

    /// Puts the backend back into service. Returns whether it was out of service.
    pub fn cancel(&mut self) -> bool {
        let was = self.service;
        *self = Self::default();
        was != Service::Active
    }

    /// Advances the drain, given the number of pinned flows, and returns the step taken. After
    /// [`Step::Cut`] the caller ends the backend's generation; after [`Step::Resets`], too, the
    /// forwarding table changes.
    pub fn advance(&mut self, flows_active: u64, then: FlowAction, now: Instant) -> Option<Step> {
        if self.service != Service::Draining {
            return None;
        }
        if let Some(until) = self.resets_until {
            return (flows_active == 0 || until <= now).then(|| self.cut());
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            return self.meet_deadline(flows_active, then, now);
        }
        self.drained(flows_active)
    }

    fn meet_deadline(&mut self, flows_left: u64, then: FlowAction, now: Instant) -> Option<Step> {
        match then {
            FlowAction::Keep if flows_left > 0 => return Some(Step::Kept { flows_left }),
            FlowAction::Keep => return self.drained(flows_left),
            FlowAction::Reset if flows_left > 0 => {
                (self.flows_cut, self.resets_until) = (flows_left, Some(now + RESETS));
                return Some(Step::Resets { flows_left });
            }
            FlowAction::Reset | FlowAction::Rehash => {}
        }
        self.flows_cut = flows_left;
        Some(self.cut())
    }

    fn drained(&mut self, flows_active: u64) -> Option<Step> {
        if flows_active > 0 || self.reported {
            return None;
        }
        self.reported = true;
        Some(Step::Drained)
    }

    fn cut(&mut self) -> Step {
        let step = Step::Cut { flows_cut: self.flows_cut, reported: self.reported };
        *self = Self { service: Service::Out, resets_until: None, reported: true, ..*self };
        step
    }
}

/// Estimated end of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Age of the oldest flow.
    pub oldest: Duration,
    /// Time at which the last flow will have ended; `None`: not known.
    pub ends: Option<Instant>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const REHASH: FlowAction = FlowAction::Rehash;

    #[test]
    fn a_drain_without_deadline_ends_with_its_last_flow_and_says_so_once() {
        let now = Instant::now();
        let mut drain = Drain::default();
        assert_eq!(drain.advance(0, REHASH, now), None, "nothing drains");
        assert!(drain.begin(None, 2, now));
        assert_eq!((drain.service(), drain.begun()), (Service::Draining, Some((now, 2))));
        assert_eq!(drain.advance(2, REHASH, now + SECOND), None);
        assert_eq!(drain.advance(0, REHASH, now + SECOND), Some(Step::Drained));
        assert_eq!(drain.advance(0, REHASH, now + SECOND), None);
        assert_eq!(drain.service(), Service::Draining);
        assert!(drain.cancel());
        assert_eq!(drain, Drain::default());
        assert!(!drain.cancel());
    }

    #[test]
    fn rehash_cuts_what_is_left_at_the_deadline() {
        let now = Instant::now();
        let mut drain = Drain::default();
        drain.begin(Some(SECOND), 9, now);
        assert_eq!(drain.deadline_in_s(now), Some(1));
        assert_eq!(drain.deadline_in_s(now + SECOND / 2), Some(1));
        assert_eq!(drain.advance(7, REHASH, now + SECOND / 2), None);
        let cut = Step::Cut { flows_cut: 7, reported: false };
        assert_eq!(drain.advance(7, REHASH, now + SECOND), Some(cut));
        assert_eq!((drain.service(), drain.flows_cut()), (Service::Out, 7));
        assert_eq!(drain.flows_left(), FlowAction::Keep, "its generation has ended");
        assert_eq!(drain.deadline_in_s(now), None);
        assert!(!drain.begin(Some(SECOND), 0, now), "out stays out");
        assert_eq!(drain.flows_cut(), 7);
        assert!(drain.cancel());
        assert_eq!(drain.flows_cut(), 0);
    }

    #[test]
    fn keep_reports_the_deadline_and_goes_on() {
        let now = Instant::now();
        let mut drain = Drain::default();
        drain.begin(Some(SECOND), 3, now);
        let then = FlowAction::Keep;
        let kept = Step::Kept { flows_left: 3 };
        assert_eq!(drain.advance(3, then, now + SECOND), Some(kept));
        assert_eq!(drain.advance(3, then, now + SECOND * 2), None, "told once");
        assert_eq!((drain.service(), drain.deadline_in_s(now)), (Service::Draining, None));
        assert!(!drain.begin(Some(SECOND), 3, now + SECOND * 2), "another deadline is possible");
        assert_eq!(drain.advance(0, then, now + SECOND * 3), Some(Step::Drained));
        assert_eq!(drain.flows_cut(), 0);
    }

    #[test]
    fn reset_takes_its_time_and_ends_with_the_flows_or_without_them() {
        let now = Instant::now();
        let (end, then) = (now + SECOND, FlowAction::Reset);
        let resets = Step::Resets { flows_left: 3 };
        let cut = Step::Cut { flows_cut: 3, reported: false };
        for (flows, at) in [(0, end), (1, end + RESETS)] {
            let mut drain = Drain::default();
            drain.begin(Some(SECOND), 3, now);
            assert_eq!(drain.advance(3, then, end), Some(resets));
            assert_eq!((drain.service(), drain.flows_left()), (Service::Draining, then));
            assert!(!drain.begin(Some(SECOND), 3, end), "there is no way back but undrain");
            assert_eq!(drain.advance(1, then, end), None);
            assert_eq!(drain.advance(flows, then, at), Some(cut));
            assert_eq!((drain.service(), drain.flows_cut()), (Service::Out, 3));
        }
        let mut drain = Drain::default();
        drain.begin(Some(SECOND), 3, now);
        assert_eq!(drain.advance(0, then, now), Some(Step::Drained));
        let nothing = Step::Cut { flows_cut: 0, reported: true };
        assert_eq!(drain.advance(0, then, end), Some(nothing), "nothing to reset, nothing to tell");
    }

    #[test]
    fn a_second_drain_moves_the_deadline() {
        let now = Instant::now();
        let mut drain = Drain::default();
        drain.begin(Some(SECOND), 5, now);
        assert!(!drain.begin(Some(SECOND * 10), 4, now), "the table does not change");
        assert_eq!(drain.begun(), Some((now, 5)));
        assert_eq!(drain.advance(1, REHASH, now + SECOND), None);
        drain.begin(None, 1, now + SECOND);
        assert_eq!(drain.deadline_in_s(now + SECOND), Some(9), "an order without one keeps it");
        drain.begin(Some(Duration::MAX), 1, now);
        assert_eq!(drain.advance(1, REHASH, now + SECOND * 100), None);
        drain.cancel();
        drain.begin(None, 0, now);
        assert_eq!(drain.deadline_in_s(now), None, "a new drain has no deadline of an old one");
    }
}
