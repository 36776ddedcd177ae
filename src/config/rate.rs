//! `rate` of a VIP: limits for each source.

use serde::Deserialize;

use super::key_path::KeyPath;
use super::report::Report;
use crate::net::{Protocol, SourceRate};

/// Highest limit: more packets than a NIC receives in a second.
const MAX: u32 = 1_000_000_000;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRate {
    packets: Option<i64>,
    new_flows: Option<i64>,
}

impl RawRate {
    /// Checks the table.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) -> SourceRate {
        let new_flows_at = key_path.key("new_flows");
        if self.packets.is_none() && self.new_flows.is_none() {
            report.error(
                key_path,
                "no limit",
                "write rate = { packets = 10000 }, or remove the key",
            );
        }
        if self.new_flows.is_some() && protocol != Protocol::Tcp {
            let what = "the XDP program recognises new flows of TCP only";
            report.error(&new_flows_at, what, "limit the packets");
        }
        let mut number = |key_path, raw: Option<i64>| {
            raw.map_or(0, |n| report.integer(key_path, Some(n), 1, 1..=MAX))
        };
        SourceRate {
            packets: number(&key_path.key("packets"), self.packets),
            new_flows: number(&new_flows_at, self.new_flows),
        }
    }
}
