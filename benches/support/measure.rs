//! Rounds in turns, so that a disturbance of the machine slows all subjects down alike.

use std::time::{Duration, Instant};

/// A subject that can be timed, in rounds.
pub trait Subject {
    /// Prepares a round; not timed.
    fn prepare(&mut self);
    /// Runs a round; returns the number of packets.
    fn run(&mut self) -> usize;
    /// Finishes a round; not timed.
    fn finish(&mut self, took: Duration);
}

/// Extent of the measurement.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Repetitions; the median of these is reported.
    pub repetitions: usize,
    /// Rounds of each subject per repetition.
    pub rounds: usize,
}

/// A round that took this many times the median of its repetition was interrupted: another process
/// had the core. It does not count. (A sweep makes a round at most twice as long.)
const INTERRUPTED: f64 = 4.0;

/// Nanoseconds per packet, for each subject and repetition.
pub struct Samples(Vec<Vec<f64>>);

/// Median, lowest, highest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Computes the spread of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] }
    }
}

impl Samples {
    /// Returns nanoseconds per packet of one subject.
    pub fn ns(&self, subject: usize) -> Spread {
        Spread::of(self.0[subject].clone())
    }

    /// Returns the ratio of one subject to another, repetition by repetition.
    pub fn ratio(&self, subject: usize, base: usize) -> Spread {
        Spread::of(self.0[subject].iter().zip(&self.0[base]).map(|(a, b)| a / b).collect())
    }
}

/// Times `subjects` in turns: one round of each, again and again.
pub fn interleave(plan: Plan, subjects: &mut [&mut dyn Subject]) -> Samples {
    // One round of each that does not count: caches, branch predictors, the clock of the core.
    for subject in &mut *subjects {
        round(*subject);
    }
    let mut samples = vec![Vec::new(); subjects.len()];
    for _ in 0..plan.repetitions {
        let mut rounds = vec![Vec::new(); subjects.len()];
        for _ in 0..plan.rounds {
            for (subject, rounds) in subjects.iter_mut().zip(&mut rounds) {
                rounds.push(round(*subject));
            }
        }
        for (samples, rounds) in samples.iter_mut().zip(rounds) {
            samples.push(mean_of_uninterrupted(&rounds));
        }
    }
    Samples(samples)
}

/// Returns nanoseconds per packet of one round.
pub fn round(subject: &mut dyn Subject) -> f64 {
    subject.prepare();
    let start = Instant::now();
    let packets = subject.run();
    let took = start.elapsed();
    subject.finish(took);
    took.as_secs_f64() * 1e9 / packets as f64
}

/// Returns the mean of rounds, without those that were interrupted.
pub fn mean_of_uninterrupted(rounds: &[f64]) -> f64 {
    let limit = Spread::of(rounds.to_vec()).median * INTERRUPTED;
    let kept = rounds.iter().filter(|&&ns| ns <= limit);
    kept.clone().sum::<f64>() / kept.count() as f64
}
