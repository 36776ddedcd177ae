//! `[[nic]]`: one network interface.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::checked::{CopyMode, Nic, XdpMode};
use super::key_path::KeyPath;
use super::report::Report;

/// Default copy mode: starts everywhere with the best that the driver has, and reports the choice.
const MODE: CopyMode = CopyMode::Auto;
/// Default XDP mode, for the reason of [`MODE`].
const XDP: XdpMode = XdpMode::Auto;
/// Default ring size: 32 batches, the packets that arrive at 10 Mpps while a worker is off the core
/// for 200 us.
const RING: u32 = 2048;
/// Highest queue number: no driver of today has more than 1024 queues.
const MAX_QUEUE: u32 = 1023;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNic {
    interface: Option<String>,
    mode: Option<String>,
    xdp: Option<String>,
    queues: Option<Vec<i64>>,
    ring: Option<i64>,
}

impl RawNic {
    /// Checks the section; `None` if it has no interface name.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Option<Nic> {
        const MODES: &[(&str, CopyMode)] = &[
            ("zero_copy", CopyMode::ZeroCopy),
            ("copy", CopyMode::Copy),
            ("auto", CopyMode::Auto),
        ];
        const XDPS: &[(&str, XdpMode)] =
            &[("native", XdpMode::Native), ("generic", XdpMode::Generic), ("auto", XdpMode::Auto)];
        let mode = self.mode.and_then(|word| report.word(&key_path.key("mode"), &word, MODES, &[]));
        let xdp = self.xdp.and_then(|word| report.word(&key_path.key("xdp"), &word, XDPS, &[]));
        let ring = ring(self.ring, &key_path.key("ring"), report);
        let queues = self.queues.map(|list| queues(&list, &key_path.key("queues"), report));
        if mode == Some(CopyMode::ZeroCopy) && xdp == Some(XdpMode::Generic) {
            let fix = "use xdp = \"native\" or mode = \"copy\"";
            report.error(&key_path.key("mode"), "generic XDP has no zero copy", fix);
        }
        let interface_at = key_path.key("interface");
        let Some(interface) = self.interface else {
            report.missing(&interface_at, "name one, such as interface = \"eth1\"; see `ip link`");
            return None;
        };
        report.interface(&interface_at, &interface);
        Some(Nic { interface, mode: mode.unwrap_or(MODE), xdp: xdp.unwrap_or(XDP), queues, ring })
    }
}

fn ring(raw: Option<i64>, key_path: &KeyPath, report: &mut Report<'_>) -> u32 {
    let ring = report.integer(key_path, raw, RING, 64..=32_768);
    if !ring.is_power_of_two() {
        let fix = format!("use {} or {}", ring.next_power_of_two() / 2, ring.next_power_of_two());
        report.error(key_path, format!("{ring} is not a power of two"), &fix);
    }
    ring
}

fn queues(raw: &[i64], key_path: &KeyPath, report: &mut Report<'_>) -> Vec<u32> {
    if raw.is_empty() {
        report.error(key_path, "no queue", "list queue numbers, or leave the key out to serve all");
    }
    let mut seen = BTreeSet::new();
    let mut queues = Vec::with_capacity(raw.len());
    for (index, &queue) in raw.iter().enumerate() {
        let at = key_path.index(index);
        let number = report.integer(&at, Some(queue), u32::MAX, 0..=MAX_QUEUE);
        if !seen.insert(queue) && number <= MAX_QUEUE {
            report.error(&at, format!("queue {queue} is listed twice"), "list each queue once");
        }
        queues.push(number);
    }
    queues
}
