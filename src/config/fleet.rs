//! `[fleet]`: what the boxes of a fleet, and the programs of their backends, have in common.

use serde::Deserialize;

use super::hash::secret;
use super::key_path::KeyPath;
use super::report::Report;
use super::sections::Sections;
use crate::forwarding::Ask;
use crate::net::FleetKey;

/// Default of `asks_per_second`: some 1,000 per backend at a VIP with ten.
const ASKS: u32 = 10_000;
/// Highest budget: more packets than a box receives in a second.
const MAX_ASKS: u32 = 100_000_000;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFleet {
    key: Option<String>,
    old_key: Option<String>,
    asks_per_second: Option<i64>,
}

impl RawFleet {
    /// Checks the section; returns the key and the one before it, and the budget of asks per second.
    pub(super) fn check(
        self,
        key_path: &KeyPath,
        report: &mut Report<'_>,
    ) -> (Option<[FleetKey; 2]>, u32) {
        let asks_at = key_path.key("asks_per_second");
        let asks = report.integer(&asks_at, self.asks_per_second, ASKS, 1..=MAX_ASKS);
        (self.keys(key_path, report), asks)
    }

    fn keys(self, key_path: &KeyPath, report: &mut Report<'_>) -> Option<[FleetKey; 2]> {
        let (key_at, old_at) = (key_path.key("key"), key_path.key("old_key"));
        if self.key.is_none() && self.old_key.is_some() {
            report.missing(&key_at, "write the present key; old_key is the one before it");
        }
        let key = FleetKey(secret(&self.key?, &key_at, report));
        let old = self.old_key.map(|old| FleetKey(secret(&old, &old_at, report)));
        Some([key, old.unwrap_or(key)])
    }
}

/// Checks that VIPs that ask have a key, and an address for the answers.
pub(super) fn rules(sections: &Sections<'_>, report: &mut Report<'_>) {
    let tunnels = &sections.config.tunnels;
    let root = KeyPath::root();
    let asking = || sections.vips.iter().filter(|(vip, _)| vip.value.policy.ask != Ask::Never);
    let Some((first, _)) = asking().next() else { return };
    for (vip, _) in asking().filter(|(vip, _)| !vip.value.address.is_single()) {
        let what = "the program of a backend knows single addresses, and this VIP has a prefix";
        let fix = "remove the key, or write a VIP for each address";
        report.error(&vip.key_path.key("lost").key("ask"), what, fix);
    }
    let name = &first.value.name;
    if tunnels.fleet.is_none() {
        let fix = format!(
            "VIP \"{name}\" asks its backends ([vip.lost]): write the key that `holdfast backend load` \
             has, too"
        );
        report.missing(&root.key("fleet").key("key"), &fix);
    }
    for (missing, key, v4) in [
        (tunnels.source_v4.is_none(), "source_v4", true),
        (tunnels.source_v6.is_none(), "source_v6", false),
    ] {
        let mut backends = asking().flat_map(|(_, backends)| backends);
        if missing && backends.any(|backend| backend.value.address.is_ipv4() == v4) {
            let fix = "a VIP asks its backends ([vip.lost]), which answer to this address: write one \
                       of this box";
            report.missing(&root.key("tunnel").key(key), fix);
        }
    }
}
