//! Periodic samples of a run, for the report's curves and for progress messages.

use std::time::Duration;

use super::outcome::Sample;

/// Time between two calls of [`Sampler::look`].
pub const LOOK: Duration = Duration::from_millis(50);
/// Approximate maximum of samples per run.
const SAMPLES: u32 = 60;
/// Time between two progress messages, in seconds.
const TELL_S: f64 = 1.0;

/// Progress of a run.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Elapsed time and present rates.
    pub sample: Sample,
    /// Length of the run, in seconds.
    pub of_s: f64,
    /// Packets sent and not (yet) received.
    pub missing: u64,
}

/// Totals since the start of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Seconds since the start.
    pub time_s: f64,
    /// Packets sent; 0 where the number is known only at the end.
    pub sent: u64,
    /// Packets received.
    pub received: u64,
    /// Affinity violations.
    pub violations: u64,
}

impl Totals {
    fn since(&self, earlier: &Self) -> Sample {
        let seconds = (self.time_s - earlier.time_s).max(1e-9);
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds).round();
        Sample {
            time_s: (self.time_s * 1000.0).round() / 1000.0,
            pps_sent: rate(self.sent, earlier.sent),
            pps_received: rate(self.received, earlier.received),
            affinity_violations: self.violations,
        }
    }
}

/// Turns totals into samples.
#[derive(Debug)]
pub struct Sampler {
    /// The samples taken.
    pub samples: Vec<Sample>,
    interval_s: f64,
    of_s: f64,
    /// Totals at the last sample, and at the last progress message.
    last: Totals,
    reported: Totals,
}

impl Sampler {
    /// Creates the sampler of a run of this length.
    pub fn new(duration: Duration) -> Self {
        let of_s = duration.as_secs_f64();
        let interval_s = (of_s / f64::from(SAMPLES)).max(LOOK.as_secs_f64());
        let (last, reported) = (Totals::default(), Totals::default());
        Self { samples: Vec::new(), interval_s, of_s, last, reported }
    }

    /// Takes a sample and reports progress if they are due. To be called every [`LOOK`]; does
    /// nothing after the end of the run.
    pub fn look(&mut self, now: Totals, progress: &mut dyn FnMut(&Progress)) {
        if now.time_s > self.of_s {
            return;
        }
        if now.time_s - self.last.time_s >= self.interval_s {
            self.samples.push(now.since(&self.last));
            self.last = now;
        }
        if now.time_s - self.reported.time_s >= TELL_S {
            let missing = now.sent.saturating_sub(now.received);
            progress(&Progress { sample: now.since(&self.reported), of_s: self.of_s, missing });
            self.reported = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_interval() {
        let early = Totals { time_s: 1.0, sent: 100, received: 90, violations: 0 };
        let late = Totals { time_s: 3.0, sent: 300, received: 190, violations: 2 };
        let expected =
            Sample { time_s: 3.0, pps_sent: 100.0, pps_received: 50.0, affinity_violations: 2 };
        assert_eq!(late.since(&early), expected);
    }

    #[test]
    fn a_long_run_is_told_every_second_and_sampled_sixty_times() {
        let mut sampler = Sampler::new(Duration::from_secs(60));
        let mut reported = 0;
        for look in 1..=1300_u32 {
            let time_s = f64::from(look) * 0.05;
            let now = Totals { time_s, sent: u64::from(look), ..Totals::default() };
            sampler.look(now, &mut |_| reported += 1);
        }
        assert!((56..=60).contains(&reported), "{reported}");
        assert!((56..=60).contains(&sampler.samples.len()), "{}", sampler.samples.len());
        assert!(sampler.samples.iter().all(|sample| sample.pps_sent == 20.0));
    }
}
