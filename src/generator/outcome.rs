//! What a run, or a search, came to: the document that `--json` prints, and all other reports are
//! made from.

use serde::Serialize;

use super::judge::Latency;
use super::settings::{Method, Settings, Size};
use super::tracker::Counts;

/// Percentiles that are told, by their names.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9), ("p99_99", 99.99)];

/// A latency, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Packets that it was measured of.
    pub count: u64,
    /// Least.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % were faster.
    pub p90: f64,
    /// 99 % were faster.
    pub p99: f64,
    /// 99.9 % were faster.
    pub p99_9: f64,
    /// 99.99 % were faster.
    pub p99_99: f64,
    /// Most.
    pub max: f64,
    /// Points of the whole curve, for charts: percentile, microseconds.
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

impl Percentiles {
    /// Of a histogram in ns; `None` if it is empty.
    pub fn of(latency: &Latency) -> Option<Self> {
        if latency.is_empty() {
            return None;
        }
        let [p50, p90, p99, p99_9, p99_99] =
            PERCENTILES.map(|(_, percentile)| micros(latency.value_at_percentile(percentile)));
        Some(Self {
            count: latency.len(),
            min: micros(latency.min()),
            mean: (latency.mean() / 10.0).round() / 100.0,
            p50,
            p90,
            p99,
            p99_9,
            p99_99,
            max: micros(latency.max()),
            curve: curve(latency),
        })
    }

    /// Names and values, from the least to the most.
    pub fn rows(&self) -> [(&'static str, f64); 8] {
        [
            ("min", self.min),
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p99", self.p99),
            ("p99.9", self.p99_9),
            ("p99.99", self.p99_99),
            ("max", self.max),
        ]
    }
}

/// Nanoseconds as microseconds with two digits.
fn micros(ns: u64) -> f64 {
    (ns as f64 / 10.0).round() / 100.0
}

/// At 0 %, 50 %, 75 %, 87.5 % and so on: each point halves the rest.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let halvings =
        (0..24).map(|n| 0.5_f64.powi(n)).filter(|rest| rest * latency.len() as f64 >= 1.0);
    let percentiles = halvings.map(|rest| 100.0 * (1.0 - rest)).chain([100.0]);
    percentiles.map(|p| (p, micros(latency.value_at_percentile(p)))).collect()
}

/// Packets of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendShare {
    /// Destination MAC.
    pub mac: String,
    /// Destination address.
    pub address: String,
    /// Packets that it got.
    pub packets: u64,
}

/// The answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Replies {
    /// Sent by backends.
    pub sent: u64,
    /// Received by clients, duplicates included.
    pub received: u64,
    /// Sent and not received.
    pub lost: u64,
    /// Received more than once.
    pub duplicates: u64,
    /// Received behind later ones of their flow.
    pub reordered: u64,
    /// Not sent, because the generator's own TX ring was full.
    pub not_sent: u64,
}

/// What happened to connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Flows that began.
    pub opened: u64,
    /// TCP flows that were closed in order.
    pub closed: u64,
    /// SYNs that were sent again.
    pub retransmissions: u64,
    /// FINs without an answer.
    pub given_up: u64,
}

/// One point in time of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the run's start.
    pub time_s: f64,
    /// Packets sent since then, per second of the last interval.
    pub pps_sent: f64,
    /// Packets received, likewise.
    pub pps_received: f64,
    /// Affinity violations since the run's start.
    pub affinity_violations: u64,
}

/// One trial of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrialRow {
    /// What was asked for, in packets per second; `None`: as many as can be.
    pub pps_offered: Option<f64>,
    /// What the generator sent.
    pub pps_sent: f64,
    /// What arrived.
    pub pps_received: f64,
    /// Packets lost.
    pub lost: u64,
    /// Of those sent.
    pub loss_ratio: f64,
    /// Whether it was at most the bound, and the generator kept up.
    pub passed: bool,
}

/// A search for the highest rate without loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchResult {
    /// Largest ratio of lost packets that counts as none.
    pub loss_bound: f64,
    /// The search ends when the bounds are as close as this, relative to the upper one.
    pub resolution: f64,
    /// The result: packets per second; `None` when every trial failed.
    pub best_pps: Option<f64>,
    /// The generator, and not the balancer, was the limit.
    pub generator_limited: bool,
    /// The trials, in their order.
    pub trials: Vec<TrialRow>,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// `af-xdp` or `prog-run`.
    pub method: &'static str,
    /// `udp`, `tcp` or `syn`.
    pub traffic: &'static str,
    /// The VIP.
    pub target: String,
    /// Flows at a time.
    pub flows: u32,
    /// How packets were spread over them.
    pub distribution: &'static str,
    /// Flows replaced per second.
    pub new_flows_per_s: f64,
    /// Frame size in bytes with FCS, or `imix`.
    pub size: String,
    /// Mean of that.
    pub mean_size: f64,
    /// Workers.
    pub workers: u32,
    /// What was asked for; `None`: as many as can be.
    pub pps_offered: Option<f64>,
    /// Seconds in which packets were sent.
    pub duration_s: f64,
    /// Packets sent.
    pub sent: u64,
    /// Packets received, duplicates included.
    pub received: u64,
    /// Sent per second.
    pub pps_sent: f64,
    /// Received per second of sending.
    pub pps_received: f64,
    /// Bits of frames with FCS sent per second.
    pub bps_sent: f64,
    /// Received, likewise.
    pub bps_received: f64,
    /// Packets that were sent and never received; answers are told in `replies`.
    pub lost: u64,
    /// Of those sent.
    pub loss_ratio: f64,
    /// Dropped in front of the generator, answers included, because it did not take them in time:
    /// its own fault, not the balancer's. `None`: not measured.
    pub receiver_dropped: Option<u64>,
    /// Received more than once; `None`: not measured.
    pub duplicates: Option<u64>,
    /// Received behind later ones of their flow.
    pub reordered: Option<u64>,
    /// Packets of a flow that went to another backend than those before.
    pub affinity_violations: Option<u64>,
    /// Who got how many packets.
    pub backends: Vec<BackendShare>,
    /// From the intended time of sending to the arrival at the backend.
    pub latency_us: Option<Percentiles>,
    /// The same until the answer's arrival.
    pub round_trip_us: Option<Percentiles>,
    /// Answers, if there were any to be.
    pub replies: Option<Replies>,
    /// What happened to flows.
    pub connections: Option<Connections>,
    /// How late the generator itself sent a packet at most, in microseconds.
    pub generator_behind_us: f64,
    /// Packets that were due and not sent, as every flow waited for a handshake.
    pub withheld: u64,
    /// What this run cannot tell, and why.
    pub not_measured: Vec<String>,
    /// How it went.
    pub samples: Vec<Sample>,
    /// The search, if it was one; everything above is its best trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchResult>,
}

impl Outcome {
    /// One that knows what was asked for, and nothing that came of it.
    pub fn new(settings: &Settings, pps_offered: Option<f64>) -> Self {
        Self {
            method: settings.method.as_str(),
            traffic: settings.traffic.as_str(),
            target: settings.target.to_string(),
            flows: settings.flows,
            distribution: settings.distribution.as_str(),
            new_flows_per_s: settings.new_flows,
            size: match settings.size {
                Size::Imix => "imix".to_owned(),
                Size::Fixed(bytes) => bytes.to_string(),
            },
            mean_size: settings.mean_size(),
            workers: settings.workers,
            pps_offered,
            not_measured: settings.not_measured(),
            ..Self::default()
        }
    }

    /// Fills in what was sent in `seconds` and what of it arrived. `bytes` are without FCS.
    pub fn set_packets(&mut self, seconds: f64, sent: (u64, u64), received: &Counts) {
        const FCS: u64 = super::layout::FCS as u64;
        let rate = |count: u64| if seconds > 0.0 { (count as f64 / seconds).round() } else { 0.0 };
        let bits = |packets: u64, bytes: u64| rate((bytes + packets * FCS) * 8);
        let (packets, bytes) = sent;
        self.duration_s = (seconds * 1e6).round() / 1e6;
        (self.sent, self.received) = (packets, received.received);
        (self.pps_sent, self.pps_received) = (rate(packets), rate(received.received));
        self.bps_sent = bits(packets, bytes);
        self.bps_received = bits(received.received, received.bytes);
        self.lost = packets.saturating_sub(received.unique());
        self.loss_ratio = if packets > 0 { self.lost as f64 / packets as f64 } else { 0.0 };
    }

    /// Packets sent by the method that measures everything.
    pub fn is_measured(&self) -> bool {
        self.method == Method::AfXdp.as_str()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::judge::latency;
    use super::super::settings::tests::request;
    use super::*;

    #[test]
    fn loss_counts_different_packets() {
        let settings = Settings::check(request()).unwrap();
        let mut outcome = Outcome::new(&settings, Some(1000.0));
        let received = Counts { received: 95, bytes: 5700, duplicates: 5, ..Counts::default() };
        outcome.set_packets(2.0, (100, 6000), &received);
        assert_eq!((outcome.lost, outcome.loss_ratio), (10, 0.1));
        assert_eq!((outcome.pps_sent, outcome.pps_received), (50.0, 48.0));
        assert_eq!(outcome.bps_sent, 50.0 * 64.0 * 8.0, "with FCS");
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut histogram = latency().unwrap();
        assert_eq!(Percentiles::of(&histogram), None);
        (1..=100_000).for_each(|n| histogram.record(n * 10).unwrap());
        let percentiles = Percentiles::of(&histogram).unwrap();
        assert!((percentiles.p50 - 500.0).abs() < 1.0, "{percentiles:?}");
        assert!((percentiles.p99_9 - 999.0).abs() < 1.0, "{percentiles:?}");
        assert_eq!((percentiles.min, percentiles.count), (0.01, 100_000));
        assert!(percentiles.curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }

    #[test]
    fn the_document_has_the_keys_that_machines_rely_on() {
        let settings = Settings::check(request()).unwrap();
        let mut outcome = Outcome::new(&settings, None);
        outcome.latency_us = Some(Percentiles::default());
        let document = serde_json::to_value(&outcome).unwrap();
        for key in ["pps_sent", "pps_received", "lost", "affinity_violations"] {
            assert!(document.get(key).is_some(), "{key}");
        }
        for key in ["min", "mean", "p50", "p90", "p99", "p99_9", "p99_99", "max"] {
            assert!(document.pointer(&format!("/latency_us/{key}")).is_some(), "{key}");
        }
    }
}
