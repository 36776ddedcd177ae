//! `[[vip.backend]]`: a server behind a VIP.

use serde::Deserialize;

use super::checked::Backend;
use super::key_path::KeyPath;
use super::quic::RawServerIds;
use super::report::Report;
use crate::net::Forward;

/// Equal shares.
const WEIGHT: u32 = 1;
/// Resolution for shares of a tenth of a percent.
pub const MAX_WEIGHT: u32 = 1000;

/// Highest limit: more than all flow tables hold.
const MAX_LIMIT: u32 = 1_000_000_000;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBackend {
    name: Option<String>,
    address: Option<String>,
    port: Option<i64>,
    weight: Option<i64>,
    server_id: Option<RawServerIds>,
    max_connections: Option<i64>,
}

impl RawBackend {
    /// Checks the section; `None` if it has no address for the other rules to use.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        forward: Option<Forward>,
        report: &mut Report<'_>,
    ) -> Option<Backend> {
        let name = report.name(&key_path.key("name"), self.name);
        let address = report.address(&key_path.key("address"), self.address.as_deref());
        let weight = report.integer(&key_path.key("weight"), self.weight, WEIGHT, 0..=MAX_WEIGHT);
        let port_at = key_path.key("port");
        let port = self.port.map(|port| report.integer(&port_at, Some(port), 1, 1..=u16::MAX));
        let kept = forward.filter(|forward| port.is_some() && !forward.translates());
        if let Some(forward) = kept {
            let word = forward.as_str();
            let what = format!("forward = \"{word}\" leaves the port as the client wrote it");
            report.error(
                &port_at,
                what,
                "remove the port, or use forward = \"nat\" or \"full_nat\"",
            );
        }
        let server_ids = self.server_id.map(|ids| ids.check(&key_path.key("server_id"), report));
        let limit_at = key_path.key("max_connections");
        let max_connections = self
            .max_connections
            .map(|max| report.integer(&limit_at, Some(max), MAX_LIMIT, 1..=MAX_LIMIT));
        Some(Backend {
            name: name.unwrap_or_default(),
            address: address?,
            port,
            weight,
            server_ids: server_ids.unwrap_or_default(),
            max_connections,
        })
    }
}
