//! `[fragments]`: handling of fragmented datagrams.

use serde::Deserialize;

use super::checked::Fragments;
use super::key_path::KeyPath;
use super::report::Report;
use crate::units::{TICK_MS, Ticks};

/// Default time-out, in seconds: that of Linux (net.ipv4.ipfrag_time).
const TIMEOUT_S: u32 = 30;
/// Longest time-out, in seconds: the longest that the RFCs name (RFC 8200 4.5).
const MAX_TIMEOUT_S: u32 = 60;
/// Default table size: enough for the 64 KiB datagrams that are under way at 10 Gbit/s for half a
/// second. At 64 bytes each, 1 MiB.
const DATAGRAMS: usize = 16_384;
/// Default bound of parked fragments: five 64 KiB datagrams whose first fragments arrive last.
const PARKED: usize = 256;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFragments {
    timeout_s: Option<i64>,
    datagrams: Option<i64>,
    parked: Option<i64>,
}

impl RawFragments {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Fragments {
        let seconds = report.integer(
            &key_path.key("timeout_s"),
            self.timeout_s,
            TIMEOUT_S,
            1..=MAX_TIMEOUT_S,
        );
        // 60 s are 6000 ticks.
        let ticks = u64::from(seconds) * 1000 / TICK_MS;
        Fragments {
            timeout: Ticks(u32::try_from(ticks).unwrap_or(u32::MAX)),
            datagrams: report.integer(
                &key_path.key("datagrams"),
                self.datagrams,
                DATAGRAMS,
                64..=1_048_576,
            ),
            parked: report.integer(&key_path.key("parked"), self.parked, PARKED, 0..=65_536),
        }
    }
}
