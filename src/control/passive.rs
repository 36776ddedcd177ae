//! Passive checks: a backend that leaves new flows of clients without an answer gets no further ones
//! for a while (`passive` of a VIP).
//!
//! Workers count, for each backend, new flows and those with a sign of an answer: TCP as for
//! [`answering`](super::answering), UDP by the backend's reply where it passes through holdfast. The
//! flows of the last second may still be answered, so the window ends a second ago:
//!
//! ```text
//!            window            1 s
//!   |------- new flows -------|-----|now
//!   |----------- answers -----------|
//! ```
//!
//! Answers to flows of that last second count for the window, too: the share is a lower bound.
//!
//! A flood from forged sources is answered by no client of `dsr` and tunnels, whichever backend gets
//! it. So a share alone proves nothing: it must be far above that of the better half of the others.
//!
//! The backend keeps its flows. It returns after a hold, by slow start: no check of its own could
//! prove that clients are answered. Each relapse doubles the hold, as for flaps
//! ([`damping`](super::damping)).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::answering::{Syns, better_half};
use super::damping::Damping;
use crate::config;
use crate::net::Forward;

/// Time that the last flows of a window have for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Least number of new flows of a backend, and of the others, for a verdict.
const LEAST: u64 = 10;
/// Least ratio of the unanswered share to that of the others.
const TIMES: u64 = 4;
/// Steadiness of a backend of a VIP without flap damping.
const STEADY: Duration = Duration::from_secs(60);

/// Totals of a backend since it got its index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// New flows.
    pub flows: u64,
    /// Flows with a sign of an answer.
    pub answered: u64,
}

/// Passive check of one backend.
#[derive(Debug, Default)]
pub struct Passive {
    /// Totals at the ends of seconds, the oldest in front.
    readings: VecDeque<(Instant, Totals)>,
    hold: Damping,
    /// Flows for which the backend was taken out.
    reason: Syns,
}

impl Passive {
    /// Takes a reading of the totals.
    pub fn read(&mut self, totals: Totals, window: Duration, now: Instant) {
        let begin = now.checked_sub(window + PATIENCE);
        self.readings.push_back((now, totals));
        // The first reading is the last one before the window.
        while self.readings.get(1).is_some_and(|(at, _)| begin.is_some_and(|begin| *at <= begin)) {
            self.readings.pop_front();
        }
    }

    /// New flows of the window, and those among them without an answer so far.
    fn recent(&self) -> Syns {
        let (Some((_, first)), Some((now, last))) = (self.readings.front(), self.readings.back())
        else {
            return Syns::default();
        };
        let is_over = |at: &Instant| now.saturating_duration_since(*at) >= PATIENCE;
        let settled = self.readings.iter().rev().find(|(at, _)| is_over(at));
        let settled = settled.map_or(first, |(_, totals)| totals);
        let all = settled.flows.saturating_sub(first.flows);
        let answered = last.answered.saturating_sub(first.answered);
        Syns { all, unanswered: all.saturating_sub(answered) }
    }

    /// Whether the backend gets no new flows.
    pub const fn is_out(&self) -> bool {
        self.hold.is_held()
    }

    /// Rest of the time without new flows.
    pub fn out_for(&self, now: Instant) -> Option<Duration> {
        self.hold.held_for(now)
    }

    /// Flows for which the backend was taken out.
    pub const fn reason(&self) -> Syns {
        self.reason
    }

    /// Takes the backend out. Returns the time for which it is.
    fn take_out(&mut self, vip: &config::Vip, rule: config::Passive, now: Instant) -> Duration {
        self.reason = self.recent();
        let least = rule.window * 2;
        let flat = config::Damping { hold: least, longest: least, steady: STEADY };
        let damping = vip.damping.map_or(flat, |damping| config::Damping {
            hold: damping.hold.max(least),
            longest: damping.longest.max(least),
            ..damping
        });
        self.hold.begin(damping, now)
    }

    /// Returns the backend to service if its time has come, or `early`. Returns whether it returns.
    pub fn release(&mut self, early: bool, now: Instant) -> bool {
        let back = self.hold.release(early, now);
        if back {
            self.hold.rise(now);
            // What happened before is no reason to take it out again.
            self.readings.clear();
        }
        back
    }
}

/// Takes out the backends among `serving`, those of a VIP that serve, that leave their flows
/// unanswered. Returns their positions, each with its time.
///
/// One always stays. Where answers are inferred from clients, half of them stay: a flood from one
/// forged source may fall to one backend after the other.
pub fn judge(
    vip: &config::Vip,
    rule: config::Passive,
    serving: &mut [&mut Passive],
    now: Instant,
) -> Vec<(usize, Duration)> {
    let mut may_go = match vip.forward {
        Forward::Nat | Forward::FullNat => serving.len().saturating_sub(1),
        Forward::Dsr | Forward::Ipip | Forward::Gue => serving.len() / 2,
    };
    may_go = may_go.saturating_sub(serving.iter().filter(|backend| backend.is_out()).count());
    let recent: Vec<Syns> = serving
        .iter()
        .map(|backend| if backend.is_out() { Syns::default() } else { backend.recent() })
        .collect();
    let guilty = |position: usize, syns: &Syns| {
        let others = better_half(&recent, position);
        syns.all >= LEAST
            && others.all >= LEAST
            && syns.share() >= rule.unanswered
            && syns.exceeds(TIMES, others)
    };
    let suspects = recent.iter().enumerate().filter(|&(position, syns)| guilty(position, syns));
    let mut suspects: Vec<usize> = suspects.map(|(position, _)| position).collect();
    // The worst ones first.
    suspects.sort_by(|&a, &b| {
        let share = |at: usize| recent.get(at).map_or(0.0, |syns| syns.share());
        share(b).total_cmp(&share(a))
    });
    suspects.truncate(may_go);
    let out = suspects.into_iter().filter_map(|position| {
        let backend = serving.get_mut(position)?;
        Some((position, backend.take_out(vip, rule, now)))
    });
    out.collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::state::tests::vip;
    use super::*;

    const RULE: config::Passive =
        config::Passive { unanswered: 0.5, window: Duration::from_secs(5) };
    const SECOND: Duration = Duration::from_secs(1);

    /// A backend with this many new flows and answers in each of ten seconds.
    fn backend(flows: u64, answered: u64, begun: Instant) -> Passive {
        let mut backend = Passive::default();
        for second in 0..10 {
            let totals = Totals { flows: flows * second, answered: answered * second };
            backend.read(totals, RULE.window, begun + SECOND * u32::try_from(second).unwrap());
        }
        backend
    }

    /// Positions of those that are taken out, of backends with these flows and answers a second.
    fn out(forward: Forward, backends: &[(u64, u64)]) -> Vec<usize> {
        let (begun, vip) = (Instant::now(), config::Vip { forward, ..vip("web", &[]) });
        let mut all: Vec<_> = backends.iter().map(|&(a, b)| backend(a, b, begun)).collect();
        let mut all: Vec<_> = all.iter_mut().collect();
        let mut out: Vec<_> =
            judge(&vip, RULE, &mut all, begun + SECOND * 9).into_iter().map(|(at, _)| at).collect();
        out.sort_unstable();
        out
    }

    #[test]
    fn a_backend_that_leaves_flows_unanswered_is_taken_out_by_comparison() {
        for (name, backends, expected) in [
            ("all answer", &[(10, 10), (10, 10), (10, 9)][..], &[][..]),
            ("one does not", &[(10, 10), (10, 0), (10, 10)], &[1]),
            ("six of ten flows", &[(10, 10), (10, 4), (10, 10)], &[1]),
            ("five of ten, less some that may be answered", &[(10, 10), (10, 5), (10, 10)], &[]),
            ("it is alone", &[(10, 0)], &[]),
            ("none answers", &[(10, 0), (10, 0), (10, 0)], &[]),
            ("a flood from forged sources", &[(900, 10), (910, 9), (890, 11)], &[]),
            ("a flood, and one that is silent", &[(900, 10), (910, 0), (890, 11)], &[]),
            ("too few flows", &[(10, 10), (1, 0), (10, 10)], &[]),
            ("too few flows of the others", &[(10, 0), (1, 1)], &[]),
            ("more answers than flows", &[(10, 20), (10, 30)], &[]),
        ] {
            assert_eq!(out(Forward::Nat, backends), expected, "{name}");
        }
    }

    #[test]
    fn some_always_stay() {
        let silent = [(10, 0), (10, 10), (10, 0), (10, 0)];
        assert_eq!(out(Forward::Nat, &silent), [] as [usize; 0], "the better half is silent, too");
        let silent = [(10, 0), (10, 10), (10, 10), (10, 0), (10, 1)];
        assert_eq!(out(Forward::Nat, &silent), [0, 3, 4]);
        assert_eq!(out(Forward::Dsr, &silent), [0, 3], "the worst ones, half at most");
    }

    /// The last flows have a second for their answers.
    #[test]
    fn a_slow_answer_is_an_answer() {
        let (mut one, begun) = (Passive::default(), Instant::now());
        for second in 0..20_u32 {
            let flows = u64::from(second) * 10;
            one.read(
                Totals { flows, answered: flows.saturating_sub(10) },
                RULE.window,
                begun + SECOND * second,
            );
            assert_eq!(one.recent().unanswered, 0, "after {second} s");
        }
        assert_eq!(one.recent().all, 50, "those of the window");
        assert_eq!(one.readings.len(), 7);
    }

    #[test]
    fn each_relapse_doubles_the_time_and_a_return_begins_a_new_window() {
        let damping = config::Damping { hold: SECOND * 20, longest: SECOND * 50, steady: SECOND };
        for (damping, expected) in [(None, [10, 10, 10]), (Some(damping), [20, 40, 50])] {
            let vip = config::Vip { damping, ..vip("web", &[]) };
            let mut now = Instant::now();
            let mut bad = backend(10, 0, now);
            let times = expected.map(|_| {
                let time = bad.take_out(&vip, RULE, now);
                assert!(bad.is_out() && !bad.release(false, now));
                now += time;
                assert!(bad.release(false, now) && !bad.is_out());
                assert_eq!(bad.recent(), Syns::default());
                time.as_secs()
            });
            assert_eq!(times, expected);
        }
    }
}
