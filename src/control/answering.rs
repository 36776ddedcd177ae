//! Detection of backends that are up and yet do not answer clients: the VIP is missing on a
//! loopback, or the return path to the clients is wrong. A health check takes neither path.
//!
//! Workers count, for each backend, unanswered SYNs: pins that ended in the state in which they
//! began ([`WorkerStats::unanswered`](crate::stats::WorkerStats)). Where replies pass through
//! holdfast (`nat`, `full_nat`), a reply of the backend counts as an answer; elsewhere, the
//! client's next packet does. So a flood of SYNs from forged sources leaves as many unanswered SYNs
//! at every backend of `dsr` and tunnels, and only a comparison is meaningful: a backend is
//! suspected if its share of unanswered SYNs is far above that of the better half of the others.
//!
//! ```text
//! window      the last 5 minutes, in steps of 30 s
//! suspected   20 unanswered SYNs, which are half of its own, and 4 times the others' share
//! cleared     a quarter of its own (of 20 at least), or less than twice the others' share
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::net::{Forward, Protocol};

/// Time between two readings of the window.
const STEP: Duration = Duration::from_secs(30);
/// Steps in the window.
const STEPS: usize = 10;
/// Least number of SYNs for a verdict.
const LEAST: u64 = 20;

/// SYNs of one backend: totals since it got its index, or the number within the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Syns {
    /// SYNs that pinned a flow.
    pub all: u64,
    /// Unanswered SYNs of flows that have ended.
    pub unanswered: u64,
}

impl Syns {
    fn since(self, earlier: Self) -> Self {
        let unanswered = self.unanswered.saturating_sub(earlier.unanswered);
        // Flows end later than they begin, so the last ones of a busy period may be the only ones
        // counted.
        let all = self.all.saturating_sub(earlier.all).max(unanswered);
        Self { all, unanswered }
    }

    fn plus(self, other: Self) -> Self {
        Self { all: self.all + other.all, unanswered: self.unanswered + other.unanswered }
    }

    /// Returns whether at least `part` / `whole` of the SYNs were unanswered.
    const fn reaches(self, part: u64, whole: u64) -> bool {
        self.unanswered.saturating_mul(whole) >= self.all.saturating_mul(part)
    }

    /// Share of unanswered SYNs, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
    pub fn share(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.unanswered as f64 / self.all as f64 }
    }

    /// Returns whether the unanswered share is at least `times` that of `others`.
    pub fn exceeds(self, times: u64, others: Self) -> bool {
        let ours = u128::from(self.unanswered) * u128::from(others.all);
        ours >= u128::from(times) * u128::from(others.unanswered) * u128::from(self.all)
    }
}

/// Unanswered SYNs of one backend, and the verdict on it.
#[derive(Debug, Default)]
pub struct Answering {
    /// Totals at the ends of the steps, the oldest in front.
    readings: VecDeque<(Instant, Syns)>,
    /// SYNs within the window.
    recent: Syns,
    /// SYNs within the window for which the backend is suspected, as of the last judgement.
    suspected: Option<Syns>,
}

impl Answering {
    /// Returns the SYNs for which the backend is suspected, if it is.
    pub const fn suspected(&self) -> Option<Syns> {
        self.suspected
    }

    /// Takes a reading of the totals.
    pub fn read(&mut self, sums: Syns, now: Instant) {
        let oldest = self.readings.front().map_or(sums, |(_, oldest)| *oldest);
        self.recent = sums.since(oldest);
        let last = self.readings.back().map(|(at, _)| now.saturating_duration_since(*at));
        if last.is_none_or(|age| age >= STEP) {
            self.readings.push_back((now, sums));
            if self.readings.len() > STEPS {
                self.readings.pop_front();
            }
        }
    }

    /// Compares the backend with the others of its VIP. Returns whether the verdict changes.
    fn judge(&mut self, others: Syns) -> bool {
        let recent = self.recent;
        let enough = recent.all >= LEAST && others.all >= LEAST;
        let before = self.suspected.is_some();
        let guilty = if before {
            // Without enough traffic the verdict stays.
            !enough || recent.reaches(1, 4) && recent.exceeds(2, others)
        } else {
            enough
                && recent.unanswered >= LEAST
                && recent.reaches(1, 2)
                && recent.exceeds(4, others)
        };
        if guilty && enough {
            self.suspected = Some(recent);
        } else if !guilty {
            self.suspected = None;
        }
        guilty != before
    }
}

/// Compares the backends of a VIP that are up. Returns the positions of those with a new verdict.
pub fn judge(backends: &mut [&mut Answering]) -> Vec<usize> {
    let recent: Vec<Syns> = backends.iter().map(|backend| backend.recent).collect();
    let mut changed = Vec::new();
    for (position, backend) in backends.iter_mut().enumerate() {
        if backend.judge(better_half(&recent, position)) {
            changed.push(position);
        }
    }
    changed
}

/// Sums the SYNs of the better half of the backends that have any, except the one at `position`.
pub fn better_half(all: &[Syns], position: usize) -> Syns {
    let others = all.iter().enumerate().filter(|(other, syns)| *other != position && syns.all > 0);
    let mut others: Vec<Syns> = others.map(|(_, syns)| *syns).collect();
    others.sort_by(|a, b| {
        let share = |x: &Syns, y: &Syns| u128::from(x.unanswered) * u128::from(y.all);
        share(a, b).cmp(&share(b, a))
    });
    others.iter().take(others.len().div_ceil(2)).fold(Syns::default(), |sum, &one| sum.plus(one))
}

/// Describes the suspicion and its likely cause: `23 of 25 recent SYNs were not answered, while
/// other backends answer: is 192.0.2.10 on its loopback, and its route to the clients right?`
pub fn hint(vip: &config::Vip, Syns { all, unanswered }: Syns) -> String {
    let address = vip.address;
    let question = match vip.forward {
        Forward::Dsr => {
            format!("is {address} on its loopback, and its route to the clients right?")
        }
        Forward::Ipip | Forward::Gue => {
            format!("does it take packets out of the tunnel, and is {address} on its loopback?")
        }
        Forward::Nat => "does its route to the clients lead through this box?".to_owned(),
        Forward::FullNat => "does its route to the [full_nat] sources lead here?".to_owned(),
    };
    let what = match vip.protocol {
        Protocol::Tcp => "SYNs",
        Protocol::Udp | Protocol::Any => "first datagrams",
    };
    format!(
        "{unanswered} of {all} recent {what} were not answered, while other backends answer: {question}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(all: u64, unanswered: u64) -> Answering {
        Answering { recent: Syns { all, unanswered }, ..Answering::default() }
    }

    fn suspected(backends: &[(u64, u64)]) -> Vec<usize> {
        let mut all: Vec<_> = backends.iter().map(|&(all, none)| backend(all, none)).collect();
        judge(&mut all.iter_mut().collect::<Vec<_>>())
    }

    #[test]
    fn a_backend_is_compared_with_the_others() {
        for (name, backends, expected) in [
            ("all answer", &[(100, 0), (100, 1), (100, 2)][..], &[][..]),
            ("one does not", &[(100, 0), (100, 100), (100, 0)], &[1]),
            ("it is alone", &[(100, 100)], &[]),
            ("two of three do not", &[(100, 0), (100, 100), (100, 98)], &[1, 2]),
            ("none does", &[(100, 100), (100, 100), (100, 100)], &[]),
            ("a flood from forged sources", &[(9000, 8800), (9100, 8900), (8900, 8700)], &[]),
            ("a flood, and one that does not", &[(9000, 8800), (9100, 9100), (8900, 8700)], &[]),
            ("scanners", &[(100, 30), (100, 40), (100, 55)], &[]),
            ("too few to tell", &[(100, 0), (19, 19), (100, 0)], &[]),
            ("too few others", &[(19, 0), (100, 100)], &[]),
            ("just enough", &[(20, 0), (20, 20)], &[1]),
            ("less than half", &[(100, 0), (100, 49)], &[]),
            ("the others had no SYN", &[(0, 0), (100, 100)], &[]),
        ] {
            assert_eq!(suspected(backends), expected, "{name}");
        }
    }

    #[test]
    fn a_verdict_stays_until_there_is_a_reason() {
        let other = || backend(100, 0);
        let mut one = backend(100, 100);
        assert_eq!(judge(&mut [&mut one, &mut other()]), [0]);
        for (name, recent, changes) in [
            ("it goes on", (100, 100), false),
            ("better, not well", (100, 30), false),
            ("silence", (0, 0), false),
            ("it answers", (100, 20), true),
        ] {
            one.recent = Syns { all: recent.0, unanswered: recent.1 };
            let changed = judge(&mut [&mut one, &mut other()]);
            assert_eq!(!changed.is_empty(), changes, "{name}");
        }
        assert_eq!(one.suspected(), None);
        let mut one = backend(100, 100);
        judge(&mut [&mut one, &mut other()]);
        assert_eq!(judge(&mut [&mut one, &mut backend(100, 90)]), [0], "the others are no better");
    }

    #[test]
    fn only_the_window_counts() {
        let mut one = Answering::default();
        let begun = Instant::now();
        let mut sums = Syns { all: 1000, unanswered: 500 };
        for second in 0..3600 {
            one.read(sums, begun + Duration::from_secs(second));
            assert!(one.recent.all <= 310 && one.recent.unanswered <= 100, "{:?}", one.recent);
            sums.all += 1;
            sums.unanswered += u64::from(second < 100);
        }
        assert_eq!(one.recent.unanswered, 0);
        assert!(one.recent.all >= 270, "{:?}", one.recent);
        // Flows that end after the last one has begun.
        sums.unanswered += 400;
        one.read(sums, begun + Duration::from_secs(3600));
        assert_eq!(one.recent, Syns { all: 400, unanswered: 400 });
    }
}
