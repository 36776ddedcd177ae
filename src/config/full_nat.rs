//! `[full_nat]`: SNAT addresses and ports of this box, which full-NAT backends see as source.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::Deserialize;

use super::checked::{Announce, FullNat};
use super::key_path::KeyPath;
use super::report::Report;
use super::vip;
use crate::flow::snat::MAX_SOURCES;

/// Default SNAT ports. Lower ports belong to services, and backends may treat them differently.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFullNat {
    sources: Option<Vec<String>>,
    ports: Option<String>,
    announce: Option<String>,
}

impl Default for FullNat {
    fn default() -> Self {
        Self { sources: Vec::new(), ports: PORTS, announce: Announce::None }
    }
}

impl RawFullNat {
    /// Checks the section. `last_nic` is the default interface for the addresses: backends are
    /// usually behind it.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        last_nic: Option<&str>,
        workers: usize,
        report: &mut Report<'_>,
    ) -> FullNat {
        let ports_at = key_path.key("ports");
        let ports = self.ports.map_or(PORTS, |text| ports(&text, &ports_at, report));
        if ports.len() < workers {
            let what = format!("{} for {workers} workers", counted(ports.len()));
            report.error(&ports_at, what, "give each worker one at least");
        }
        FullNat {
            sources: sources(&self.sources.unwrap_or_default(), &key_path.key("sources"), report),
            ports,
            announce: vip::announce(self.announce, &key_path.key("announce"), last_nic, report),
        }
    }
}

fn counted(ports: usize) -> String {
    crate::format::counted(ports, "port")
}

/// Expands a list of addresses and prefixes into its addresses.
fn sources(list: &[String], key_path: &KeyPath, report: &mut Report<'_>) -> Vec<IpAddr> {
    let mut seen = BTreeMap::new();
    for (index, text) in list.iter().enumerate() {
        let at = key_path.index(index);
        let Some(prefix) = prefix(text, &at, report) else { continue };
        let bits = prefix.max_prefix_len() - prefix.prefix_len();
        if u32::from(bits) > MAX_SOURCES.ilog2() {
            let what = format!("{text} is more than {MAX_SOURCES} addresses");
            let fix = format!("use a longer prefix: {MAX_SOURCES} addresses are possible");
            report.error(&at, what, &fix);
            continue;
        }
        for address in addresses(prefix) {
            if seen.insert(address, index).is_some() {
                let what = format!("{address} is listed twice");
                report.error(&at, what, "list each address once");
                break;
            }
        }
    }
    if seen.len() > MAX_SOURCES {
        let what = format!("{} addresses", seen.len());
        report.error(key_path, what, &format!("at most {MAX_SOURCES} are possible"));
    }
    seen.into_keys().collect()
}

fn prefix(text: &str, key_path: &KeyPath, report: &mut Report<'_>) -> Option<IpNet> {
    let Some((_, _)) = text.split_once('/') else {
        return report.address(key_path, Some(text)).map(IpNet::from);
    };
    let Ok(prefix) = text.parse::<IpNet>() else {
        let fix = "write an address or a prefix, such as \"10.0.0.48/28\"";
        report.error(key_path, format!("\"{text}\" is no prefix"), fix);
        return None;
    };
    if prefix != prefix.trunc() {
        let what = format!("{text} has bits set behind the prefix");
        report.error(key_path, what, &format!("write {}, or one address", prefix.trunc()));
        return None;
    }
    // A reserved block begins or ends a prefix of this length, or contains all of it.
    report.address(key_path, Some(&prefix.network().to_string()))?;
    report.address(key_path, Some(&prefix.broadcast().to_string()))?;
    Some(prefix)
}

/// Yields all addresses of a prefix, including the first and the last.
fn addresses(prefix: IpNet) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
    (0..1_u32 << bits.min(16)).map(move |number| match prefix.network() {
        IpAddr::V4(first) => (u32::from(first) | number).to_be_bytes().into(),
        IpAddr::V6(first) => (u128::from(first) | u128::from(number)).to_be_bytes().into(),
    })
}

fn ports(text: &str, key_path: &KeyPath, report: &mut Report<'_>) -> RangeInclusive<u16> {
    let ends =
        text.split_once('-').map(|(first, last)| (first.trim().parse(), last.trim().parse()));
    match ends {
        Some((Ok(first), Ok(last))) if 0 < first && first <= last => first..=last,
        _ => {
            let fix = "write a range within 1-65535, such as \"1024-65535\"";
            report.error(key_path, format!("\"{text}\" is no range of ports"), fix);
            PORTS
        }
    }
}
