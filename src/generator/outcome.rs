//! Outcome of a run or a search: the document that `--json` prints, and from which all other
//! reports are made.

use serde::Serialize;

use super::judge::Latency;
use super::settings::{Method, Settings, Size};
use super::tracker::Counts;

/// Reported percentiles, with their names.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99_9", 99.9), ("p99_99", 99.99)];

/// Distribution of a latency, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Number of packets measured.
    pub count: u64,
    /// Minimum.
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
    /// Maximum.
    pub max: f64,
    /// Points of the whole distribution for charts, as (percentile, microseconds).
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

impl Percentiles {
    /// Computes the percentiles of a histogram in ns; `None` if it is empty.
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

    /// Returns names and values in ascending order, with the mean after the minimum.
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

/// Converts nanoseconds to microseconds with two decimals.
fn micros(ns: u64) -> f64 {
    (ns as f64 / 10.0).round() / 100.0
}

/// Returns the latency at 0 %, 50 %, 75 %, 87.5 % and so on: each point halves the rest.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let halvings =
        (0..24).map(|n| 0.5_f64.powi(n)).filter(|rest| rest * latency.len() as f64 >= 1.0);
    let percentiles = halvings.map(|rest| 100.0 * (1.0 - rest)).chain([100.0]);
    percentiles.map(|p| (p, micros(latency.value_at_percentile(p)))).collect()
}

/// Packets received by a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendShare {
    /// Destination MAC.
    pub mac: String,
    /// Destination address.
    pub address: String,
    /// Packets received.
    pub packets: u64,
}

/// Counts of replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Replies {
    /// Packets sent by backends.
    pub sent: u64,
    /// Packets received by clients, duplicates included.
    pub received: u64,
    /// Packets sent and not received.
    pub lost: u64,
    /// Packets received more than once.
    pub duplicates: u64,
    /// Packets received after later ones of their flow.
    pub reordered: u64,
    /// Packets not sent, because the generator's own TX ring was full.
    pub not_sent: u64,
}

/// Counts of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Flows that began.
    pub opened: u64,
    /// TCP flows that were closed in order.
    pub closed: u64,
    /// Retransmitted SYNs.
    pub retransmissions: u64,
    /// FINs without a reply.
    pub given_up: u64,
}

/// Rates at one point in time of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the run's start.
    pub time_s: f64,
    /// Packets sent per second, over the last interval.
    pub pps_sent: f64,
    /// Packets received per second, over the last interval.
    pub pps_received: f64,
    /// Affinity violations since the run's start.
    pub affinity_violations: u64,
}

/// One trial of a search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrialRow {
    /// Requested packets per second; `None`: as many as possible.
    pub pps_offered: Option<f64>,
    /// Packets sent per second.
    pub pps_sent: f64,
    /// Packets received per second.
    pub pps_received: f64,
    /// Packets lost.
    pub lost: u64,
    /// Lost packets as a share of those sent, 0 to 1.
    pub loss_ratio: f64,
    /// Whether the loss was within the bound, and the generator kept up with the requested rate.
    pub passed: bool,
}

/// Result of a search for the highest rate without loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchResult {
    /// Largest loss ratio that counts as no loss.
    pub loss_bound: f64,
    /// Distance of the bounds at which the search ends, relative to the upper bound.
    pub resolution: f64,
    /// Highest rate that passed, in packets per second; `None` if every trial failed.
    pub best_pps: Option<f64>,
    /// Whether the generator, and not the balancer, was the limit.
    pub generator_limited: bool,
    /// The trials in their order.
    pub trials: Vec<TrialRow>,
}

/// Outcome of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// `af-xdp` or `prog-run`.
    pub method: &'static str,
    /// `udp`, `tcp` or `syn`.
    pub traffic: &'static str,
    /// Address and port of the VIP.
    pub target: String,
    /// Concurrent flows.
    pub flows: u32,
    /// Distribution of packets over flows.
    pub distribution: &'static str,
    /// Flows replaced per second.
    pub new_flows_per_s: f64,
    /// Frame size in bytes with FCS, or `imix`.
    pub size: String,
    /// Mean frame size in bytes with FCS.
    pub mean_size: f64,
    /// Number of workers.
    pub workers: u32,
    /// Requested packets per second; `None`: as many as possible.
    pub pps_offered: Option<f64>,
    /// Seconds in which packets were sent.
    pub duration_s: f64,
    /// Packets sent.
    pub sent: u64,
    /// Packets received, duplicates included.
    pub received: u64,
    /// Packets sent per second.
    pub pps_sent: f64,
    /// Packets received, per second of sending.
    pub pps_received: f64,
    /// Bits sent per second, of frames with FCS.
    pub bps_sent: f64,
    /// Bits received per second of sending, of frames with FCS.
    pub bps_received: f64,
    /// Packets sent and never received, without replies (see `replies`).
    pub lost: u64,
    /// Lost packets as a share of those sent, 0 to 1.
    pub loss_ratio: f64,
    /// Packets dropped in front of the generator, replies included, because it did not take them in
    /// time: its own fault, not the balancer's. `None`: not measured.
    pub receiver_dropped: Option<u64>,
    /// Packets received more than once; `None`: not measured.
    pub duplicates: Option<u64>,
    /// Packets received after later ones of their flow; `None`: not measured.
    pub reordered: Option<u64>,
    /// Packets that went to another backend than the earlier ones of their flow; `None`: not
    /// measured.
    pub affinity_violations: Option<u64>,
    /// Packets received by each backend.
    pub backends: Vec<BackendShare>,
    /// Latency from the intended time of sending to the arrival at the backend.
    pub latency_us: Option<Percentiles>,
    /// Latency from the intended time of sending to the arrival of the reply.
    pub round_trip_us: Option<Percentiles>,
    /// Counts of replies; `None` if backends do not reply.
    pub replies: Option<Replies>,
    /// Counts of flows; `None`: not measured.
    pub connections: Option<Connections>,
    /// Longest delay of a packet by the generator itself, in microseconds.
    pub generator_behind_us: f64,
    /// Packets that were due and not sent, as every flow waited for a handshake.
    pub withheld: u64,
    /// Values that this run cannot measure, and the reasons.
    pub not_measured: Vec<String>,
    /// Rates over the time of the run.
    pub samples: Vec<Sample>,
    /// The search, if this is one; everything above is its best trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchResult>,
}

impl Outcome {
    /// Creates an outcome with the requested values, and without results.
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

    /// Sets the packets sent in `seconds` and received. `sent` is (packets, bytes); bytes are
    /// without FCS.
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

    /// Returns whether packets were sent by the method that measures everything.
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
