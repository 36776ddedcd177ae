//! Search for the highest rate without loss: throughput as defined by RFC 2544, 26.1, with a stated
//! bound on the loss that counts as none.
//!
//! The first trial runs at the highest rate. If it loses packets, the interval between 0 and that
//! rate is halved until it is small enough. A trial passes if its loss is within the bound *and*
//! the generator sent at the requested rate.

use super::outcome::{Outcome, SearchResult, TrialRow};

/// Share of the requested rate that the generator must have sent for a trial to pass.
const KEPT_UP: f64 = 0.99;
/// Most trials of a search: 20 halvings of any interval fit.
const MAX_TRIALS: usize = 24;

/// Parameters of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Largest loss ratio that counts as no loss.
    pub loss_bound: f64,
    /// Distance of the bounds at which the search ends, relative to the upper bound.
    pub resolution: f64,
    /// Highest rate to try, in packets per second; `None`: begin as fast as possible.
    pub highest: Option<f64>,
}

impl Search {
    /// Runs the search. `trial` runs at a rate (`None`: as fast as possible); `done` is called
    /// before each further trial, and ends the search if it returns true. Returns the outcome of
    /// the best trial that passed (else of the last one), with the search in it; `None` if there
    /// was no trial.
    ///
    /// # Errors
    /// The first error of `trial`.
    pub fn run<E>(
        &self,
        mut trial: impl FnMut(Option<f64>) -> Result<Outcome, E>,
        mut done: impl FnMut() -> bool,
    ) -> Result<Option<Outcome>, E> {
        let mut state = Bounds::new(self);
        while !done() && !state.is_narrow() {
            let rate = state.next();
            let outcome = trial(rate)?;
            state.learn(rate, outcome);
        }
        Ok(state.result())
    }

    fn passed(&self, rate: Option<f64>, outcome: &Outcome) -> bool {
        outcome.sent > 0
            && outcome.loss_ratio <= self.loss_bound
            && rate.is_none_or(|rate| outcome.pps_sent >= rate * KEPT_UP)
    }
}

/// State of a search.
struct Bounds<'a> {
    search: &'a Search,
    /// The best rate that passed, and its outcome.
    best: Option<(f64, Outcome)>,
    /// The lowest rate that failed.
    failed: Option<f64>,
    last: Option<Outcome>,
    trials: Vec<TrialRow>,
    /// Whether the first trial passed.
    at_once: bool,
}

impl<'a> Bounds<'a> {
    fn new(search: &'a Search) -> Self {
        Self { search, best: None, failed: None, last: None, trials: Vec::new(), at_once: false }
    }

    fn low(&self) -> f64 {
        self.best.as_ref().map_or(0.0, |(rate, _)| *rate)
    }

    fn is_narrow(&self) -> bool {
        let near = |high: f64| high - self.low() <= high * self.search.resolution || high < 1.0;
        self.at_once || self.failed.is_some_and(near) || self.trials.len() >= MAX_TRIALS
    }

    /// Returns the rate of the next trial.
    fn next(&self) -> Option<f64> {
        match self.failed {
            None => self.search.highest,
            Some(high) => Some(self.low().midpoint(high)),
        }
    }

    fn learn(&mut self, rate: Option<f64>, outcome: Outcome) {
        let passed = self.search.passed(rate, &outcome);
        self.trials.push(TrialRow {
            pps_offered: rate,
            pps_sent: outcome.pps_sent,
            pps_received: outcome.pps_received,
            lost: outcome.lost,
            loss_ratio: outcome.loss_ratio,
            passed,
        });
        if passed {
            self.at_once = self.failed.is_none();
            self.best = Some((outcome.pps_sent.max(rate.unwrap_or(0.0)), outcome));
        } else {
            // A generator that could not send the rate has shown nothing about that rate.
            let reached = outcome.pps_sent.min(rate.unwrap_or(f64::INFINITY));
            self.failed = Some(reached.max(self.low()));
            self.last = Some(outcome);
        }
    }

    fn result(self) -> Option<Outcome> {
        let best_pps = self.best.as_ref().map(|(_, outcome)| outcome.pps_sent);
        let search = SearchResult {
            loss_bound: self.search.loss_bound,
            resolution: self.search.resolution,
            best_pps,
            generator_limited: self.at_once && self.search.highest.is_none(),
            trials: self.trials,
        };
        let mut outcome = self.best.map(|(_, outcome)| outcome).or(self.last)?;
        outcome.search = Some(search);
        Some(outcome)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const SEARCH: Search = Search { loss_bound: 0.0, resolution: 0.01, highest: None };
    /// Highest rate of the simulated generator.
    const GENERATOR: f64 = 4e6;

    /// Simulates a device that forwards `capacity` packets per second, drops the rest, and loses
    /// the share `floor` of all packets at any rate; one second per trial.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, positive")]
    fn device(capacity: f64, floor: f64) -> impl FnMut(Option<f64>) -> Result<Outcome, Infallible> {
        move |rate| {
            let sent = rate.unwrap_or(GENERATOR).min(GENERATOR);
            let received = (sent * (1.0 - floor)).min(capacity);
            let lost = (sent - received).ceil();
            Ok(Outcome {
                sent: 1 + sent as u64,
                pps_sent: sent,
                pps_received: received,
                lost: lost as u64,
                loss_ratio: lost / sent,
                ..Outcome::default()
            })
        }
    }

    fn search(
        search: Search,
        device: impl FnMut(Option<f64>) -> Result<Outcome, Infallible>,
    ) -> SearchResult {
        let outcome = search.run(device, || false).unwrap().unwrap();
        outcome.search.unwrap()
    }

    #[test]
    fn the_capacity_of_a_device_is_found_within_the_resolution() {
        for capacity in [1000.0, 56_789.0, 1.048e6, 3.9e6] {
            let found = search(SEARCH, device(capacity, 0.0));
            let best = found.best_pps.unwrap();
            assert!(best <= capacity && best >= capacity * 0.98, "{capacity}: {best}");
            assert!(found.trials.len() <= MAX_TRIALS && !found.generator_limited, "{found:?}");
            assert!(found.trials.iter().filter(|t| t.passed).all(|t| t.lost == 0));
        }
    }

    #[test]
    fn a_device_that_is_faster_than_the_generator_ends_the_search_at_once() {
        let found = search(SEARCH, device(1e9, 0.0));
        assert_eq!((found.best_pps, found.trials.len()), (Some(GENERATOR), 1));
        assert!(found.generator_limited);
        let bounded = Search { highest: Some(1e6), ..SEARCH };
        let found = search(bounded, device(1e9, 0.0));
        assert_eq!((found.best_pps, found.generator_limited), (Some(1e6), false));
    }

    #[test]
    fn loss_up_to_the_bound_counts_as_none() {
        let found = search(SEARCH, device(1e6, 0.001));
        assert_eq!(found.best_pps, None, "it always loses a little");
        assert!(found.trials.len() <= MAX_TRIALS);
        let tolerant = Search { loss_bound: 0.0011, ..SEARCH };
        let best = search(tolerant, device(1e6, 0.001)).best_pps.unwrap();
        assert!((0.98e6..=1.002e6).contains(&best), "{best}");
    }

    #[test]
    fn a_generator_that_does_not_keep_up_proves_nothing() {
        let bounded = Search { highest: Some(8e6), ..SEARCH };
        let best = search(bounded, device(1e9, 0.0)).best_pps.unwrap();
        assert!((GENERATOR * 0.95..=GENERATOR).contains(&best), "{best}");
    }

    #[test]
    fn a_search_can_be_stopped_and_an_error_ends_it() {
        let mut left = 3;
        let done = || {
            left -= 1;
            left < 0
        };
        let outcome = SEARCH.run(device(1000.0, 0.0), done).unwrap().unwrap();
        assert_eq!(outcome.search.unwrap().trials.len(), 3);
        assert!(SEARCH.run(device(1.0, 0.0), || true).unwrap().is_none());
        assert_eq!(SEARCH.run(|_| Err("broken"), || false), Err("broken"));
    }
}
