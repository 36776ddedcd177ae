//! `affinity` of a VIP: rule that groups flows onto one backend.

use serde::Deserialize;

use super::choice::Kind;
use super::key_path::KeyPath;
use super::report::Report;
use crate::forwarding::Affinity;
use crate::net::Protocol;

/// Prefix length of the smallest IPv4 network that is routed between providers, and the most of it
/// that one office or home connection is assigned.
const V4: u8 = 24;
/// Prefix length that one site is assigned (RFC 6177).
const V6: u8 = 56;
/// Default number of port ranges, of 4096 ports each: at least the block that gateways with fixed
/// port blocks give one subscriber (RFC 7422).
const RANGES: u32 = 16;

/// The table as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAffinity {
    kind: Option<String>,
    v4: Option<i64>,
    v6: Option<i64>,
    ranges: Option<i64>,
}

impl Kind for RawAffinity {
    fn of(kind: String) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Flow,
    Client,
    ClientPrefix,
    ClientPorts,
    QuicCid,
}

impl RawAffinity {
    /// Checks the table.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        protocol: Protocol,
        report: &mut Report<'_>,
    ) -> Affinity {
        const WORDS: &[(&str, Word)] = &[
            ("flow", Word::Flow),
            ("client", Word::Client),
            ("client_prefix", Word::ClientPrefix),
            ("client_ports", Word::ClientPorts),
            ("quic_cid", Word::QuicCid),
        ];
        let word = self.kind.as_deref().and_then(|word| report.word(key_path, word, WORDS, &[]));
        // Without ports, all flows of a client to an address are already one.
        let by_default = if protocol == Protocol::Any { Word::Client } else { Word::Flow };
        let word = word.unwrap_or(by_default);
        for (key, value, wanted) in [
            ("v4", self.v4, Word::ClientPrefix),
            ("v6", self.v6, Word::ClientPrefix),
            ("ranges", self.ranges, Word::ClientPorts),
        ] {
            if value.is_some() && word != wanted {
                let kind =
                    if wanted == Word::ClientPorts { "client_ports" } else { "client_prefix" };
                let fix = format!("leave it out, or use kind = \"{kind}\"");
                report.error(&key_path.key(key), "says nothing with this kind", &fix);
            }
        }
        match word {
            Word::Flow => Affinity::Flow,
            Word::Client => Affinity::Client,
            Word::ClientPrefix => Affinity::ClientPrefix {
                v4: report.integer(&key_path.key("v4"), self.v4, V4, 1..=32),
                v6: report.integer(&key_path.key("v6"), self.v6, V6, 1..=128),
            },
            Word::ClientPorts => {
                if protocol == Protocol::Any {
                    let what = "\"client_ports\" with protocol = \"any\": there are no ports";
                    report.error(key_path, what, "use \"client\" or \"client_prefix\"");
                }
                self.ports(&key_path.key("ranges"), report)
            }
            Word::QuicCid => {
                if protocol != Protocol::Udp {
                    let fix = "use protocol = \"udp\", or another affinity";
                    let what = match protocol {
                        Protocol::Any => "\"quic_cid\" with protocol = \"any\": QUIC is UDP",
                        _ => "\"quic_cid\" on a TCP VIP: QUIC is UDP",
                    };
                    report.error(key_path, what, fix);
                }
                Affinity::QuicCid
            }
        }
    }

    fn ports(&self, key_path: &KeyPath, report: &mut Report<'_>) -> Affinity {
        let ranges = report.integer(key_path, self.ranges, RANGES, 2..=32_768);
        if !ranges.is_power_of_two() {
            let fix = format!("use a power of two, such as {}", ranges.next_power_of_two());
            report.error(key_path, format!("{ranges} is not a power of two"), &fix);
        }
        Affinity::ClientPorts { bits: u8::try_from(ranges.ilog2()).unwrap_or(15) }
    }
}
