//! Draining one backend: no new flows from now on; old ones end, or a deadline comes.
//!
//! ```text
//!            begin                     flows_active = 0
//!   Active ---------> Draining ------------------------------> (drained, still Draining)
//!     ^                  | deadline
//!     |                  |   keep:   goes on
//!     |                  |   rehash: Out, generation + 1, pins stale
//!     |                  |   reset:  both ends of each flow are told; when they are gone, or after
//!     |      cancel      v           a while, as rehash
//!     +---------------- Out
//! ```
//!
//! Pure: the clock and the flow counts are parameters.

use std::time::Duration;

use tokio::time::Instant;

use crate::forwarding::{FlowAction, RESET_TIME, Service};

/// How long resets may take, at most: one round of the flow tables' sweep, and the time in which an
/// end that missed its RST is told again, with some to spare.
pub const RESETS: Duration = Duration::from_millis(RESET_TIME.as_ms() + 6_000);

/// What was ordered for one backend, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    service: Service,
    /// When it began, and the flows that were pinned then.
    begun: Option<(Instant, u64)>,
    deadline: Option<Instant>,
    /// Its flows are being reset, until then.
    resets_until: Option<Instant>,
    flows_cut: u64,
    /// Its end was told.
    told: bool,
}

/// A step of a drain; each is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The last flow ended by itself.
    Drained,
    /// The deadline has come; so many flows stay.
    Kept {
        /// Flows that are pinned.
        flows_left: u64,
    },
    /// The deadline has come; so many flows are to be reset.
    Resets {
        /// Flows that are pinned.
        flows_left: u64,
    },
    /// The backend is out; pins that are left are to be stale.
    Cut {
        /// Flows that were pinned when the deadline came.
        flows_cut: u64,
        /// Whether its end was told before: no flow was left.
        told: bool,
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
            told: false,
        }
    }
}

impl Drain {
    /// What the forwarding table is to say.
    pub const fn service(&self) -> Service {
        self.service
    }

    /// What the forwarding table is to say of its flows.
    pub const fn flows_left(&self) -> FlowAction {
        if self.resets_until.is_some() { FlowAction::Reset } else { FlowAction::Keep }
    }

    /// Flows that were left when the deadline came, and do not stay.
    pub const fn flows_cut(&self) -> u64 {
        self.flows_cut
    }

    /// When it began, and the flows that were pinned then; `None` if nothing drains.
    pub const fn begun(&self) -> Option<(Instant, u64)> {
        self.begun
    }

    /// Whole seconds until the deadline, rounded up.
    pub fn deadline_in_s(&self, now: Instant) -> Option<u64> {
        let left = self.deadline?.saturating_duration_since(now);
        Some(left.as_secs() + u64::from(left.subsec_nanos() > 0))
    }

    /// Starts a drain of a backend that has `flows` now, or gives one that goes on another deadline;
    /// without one, it keeps that which it has. One that has met its deadline stays as it is, unless
    /// its flows stayed. True if the forwarding table changes.
    pub fn begin(&mut self, deadline: Option<Duration>, flows: u64, now: Instant) -> bool {
        if self.service == Service::Out || self.resets_until.is_some() {
            return false;
        }
        let begins = self.service == Service::Active;
        // A deadline beyond what the clock can hold is none.
        let deadline = deadline.map_or(self.deadline, |span| now.checked_add(span));
        *self = Self {
            service: Service::Draining,
            begun: self.begun.or(Some((now, flows))),
            deadline,
            ..*self
        };
        begins
    }

    /// Takes the backend back into service. True if it was not.
    pub fn cancel(&mut self) -> bool {
        let was = self.service;
        *self = Self::default();
        was != Service::Active
    }

    /// What has come to an end, given the flows that are pinned now. After [`Step::Cut`] the caller
    /// ends the backend's generation; after [`Step::Resets`], too, the forwarding table changes.
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
        if flows_active > 0 || self.told {
            return None;
        }
        self.told = true;
        Some(Step::Drained)
    }

    fn cut(&mut self) -> Step {
        let step = Step::Cut { flows_cut: self.flows_cut, told: self.told };
        *self = Self { service: Service::Out, resets_until: None, told: true, ..*self };
        step
    }
}

/// What is known of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Age of the oldest flow.
    pub oldest: Duration,
    /// When the last flow will have ended; `None`: not known.
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
        let cut = Step::Cut { flows_cut: 7, told: false };
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
    fn keep_tells_the_deadline_and_goes_on() {
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
        let cut = Step::Cut { flows_cut: 3, told: false };
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
        let nothing = Step::Cut { flows_cut: 0, told: true };
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
