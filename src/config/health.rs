//! `health` of a VIP: health checks of its backends.

use std::time::Duration;

use serde::Deserialize;

use super::checked::{Health, TcpHealth};
use super::key_path::KeyPath;
use super::report::Report;
use crate::net::Protocol;

/// Default interval, in milliseconds. A dead backend is out after `fall` checks: 3 s, the client's
/// second SYN retransmission.
const INTERVAL_MS: u64 = 1000;
/// Default time-out, in milliseconds, bounded by the interval. A connection within one site takes
/// far less.
const TIMEOUT_MS: u64 = 1000;
/// Default `rise`: one success may be chance.
const RISE: u32 = 2;
/// Default `fall`: neither one lost SYN nor two take a backend out.
const FALL: u32 = 3;
/// Shortest interval, in milliseconds: below this, checks of many backends are a load of their own.
const MIN_INTERVAL_MS: u64 = 50;
/// Longest interval, in milliseconds: after an hour, the result of a check is out of date.
const MAX_INTERVAL_MS: u64 = 3_600_000;
/// Shortest time-out, in milliseconds: below this, a busy host looks dead.
const MIN_TIMEOUT_MS: u64 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    None,
}

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHealth {
    kind: Option<String>,
    interval_ms: Option<i64>,
    timeout_ms: Option<i64>,
    rise: Option<i64>,
    fall: Option<i64>,
    port: Option<i64>,
}

impl RawHealth {
    /// Checks the table. By default, backends of TCP VIPs are checked on the serving port. Backends
    /// of UDP VIPs are checked only if a port is given: UDP has no handshake that proves a
    /// listener.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) -> Health {
        const KINDS: &[(&str, Kind)] = &[("tcp", Kind::Tcp), ("none", Kind::None)];
        const LATER: &[&str] = &["http", "https", "grpc", "udp", "dns"];
        let kind_at = key_path.key("kind");
        let configured = self.kind.and_then(|word| report.word(&kind_at, &word, KINDS, LATER));
        let by_default = match protocol {
            Protocol::Udp | Protocol::Any if self.port.is_none() => Kind::None,
            _ => Kind::Tcp,
        };
        let interval_ms = report.integer(
            &key_path.key("interval_ms"),
            self.interval_ms,
            INTERVAL_MS,
            MIN_INTERVAL_MS..=MAX_INTERVAL_MS,
        );
        // A check ends before the next one starts, so the interval bounds the time-out.
        let timeout_ms = report.integer(
            &key_path.key("timeout_ms"),
            self.timeout_ms,
            TIMEOUT_MS.min(interval_ms),
            MIN_TIMEOUT_MS..=interval_ms,
        );
        let port_at = key_path.key("port");
        let port = self.port.map(|port| report.integer(&port_at, Some(port), 1, 1..=u16::MAX));
        if configured == Some(Kind::Tcp) && protocol != Protocol::Tcp && port.is_none() {
            let fix = "give the TCP port to connect to, or use kind = \"none\"";
            let what = match protocol {
                Protocol::Any => "missing: protocol = \"any\" says nothing about TCP ports",
                _ => "missing: a UDP VIP says nothing about TCP ports",
            };
            report.error(&port_at, what, fix);
        }
        let tcp = TcpHealth {
            interval: Duration::from_millis(interval_ms),
            timeout: Duration::from_millis(timeout_ms),
            rise: report.integer(&key_path.key("rise"), self.rise, RISE, 1..=100),
            fall: report.integer(&key_path.key("fall"), self.fall, FALL, 1..=100),
            port,
        };
        match configured.unwrap_or(by_default) {
            Kind::Tcp => Health::Tcp(tcp),
            Kind::None => Health::None,
        }
    }
}
