//! `[workers]`: the threads of the data path.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::checked::{Idle, Io, Workers};
use super::driver::{LARGE_FRAME, SMALL_FRAME};
use super::key_path::KeyPath;
use super::report::Report;

/// Default idle mode: polling has the lowest latency, and the box is dedicated.
const IDLE: Idle = Idle::Busy;
/// Default flow table size: about a million flows of each address family per worker, 50 MiB for
/// IPv4 and 82 MiB for IPv6.
const FLOWS: usize = 1_048_576;
/// Default client table size: a busy site has fewer in five minutes. At 80 bytes each, 5 MiB.
const CLIENTS: usize = 65_536;
/// Default batch: the prefetch of one batch covers the memory latency of the flow table.
const BATCH: usize = 64;
/// Default TX budget: four batches. With the kernel's own 32, a full batch takes two wake-ups.
const TX_BUDGET: u32 = 256;
/// Default TX kick: no packet waits for more.
const TX_KICK: u32 = 1;
/// Default: without it every send takes a system call, even where the driver needs none.
const NEED_WAKEUP: bool = true;
/// Default: off. Busy polling is for boxes with deferred interrupts, and costs others a system call
/// per poll.
const BUSY_POLL: u16 = 0;
/// Largest TX budget and TX kick: the size of the largest ring.
const MAX_RING: u32 = 32_768;
/// Largest busy-poll budget: four times the weight of a poll in the kernel's own loop
/// (`NAPI_POLL_WEIGHT`, 64).
const MAX_BUSY_POLL: u16 = 256;
/// Highest core number: `cpu_set_t` of sched_setaffinity(2) holds 1024.
const MAX_CORE: usize = 1023;
/// Most frames: 4,194,304 of 4096 bytes are 16 GiB per worker.
const MAX_FRAMES: u32 = 4_194_304;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWorkers {
    cores: Option<Vec<i64>>,
    idle: Option<String>,
    flows: Option<i64>,
    clients: Option<i64>,
    frames: Option<i64>,
    frame_size: Option<i64>,
    batch: Option<i64>,
    tx_budget: Option<i64>,
    tx_kick: Option<i64>,
    need_wakeup: Option<bool>,
    busy_poll: Option<i64>,
}

impl RawWorkers {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Workers {
        let frame_size_at = key_path.key("frame_size");
        let frame_size = self.frame_size.map(|bytes| frame_size(bytes, &frame_size_at, report));
        Workers {
            cores: cores(self.cores, &key_path.key("cores"), report),
            idle: idle(self.idle, &key_path.key("idle"), report),
            flows: report.integer(&key_path.key("flows"), self.flows, FLOWS, 1024..=67_108_864),
            clients: report.integer(
                &key_path.key("clients"),
                self.clients,
                CLIENTS,
                1024..=16_777_216,
            ),
            frames: self.frames.map(|n| {
                report.integer(&key_path.key("frames"), Some(n), MAX_FRAMES, 64..=MAX_FRAMES)
            }),
            frame_size,
            batch: report.integer(&key_path.key("batch"), self.batch, BATCH, 1..=64),
            io: Io {
                tx_budget: report.integer(
                    &key_path.key("tx_budget"),
                    self.tx_budget,
                    TX_BUDGET,
                    32..=MAX_RING,
                ),
                tx_kick: report.integer(
                    &key_path.key("tx_kick"),
                    self.tx_kick,
                    TX_KICK,
                    1..=MAX_RING,
                ),
                need_wakeup: self.need_wakeup.unwrap_or(NEED_WAKEUP),
                busy_poll: report.integer(
                    &key_path.key("busy_poll"),
                    self.busy_poll,
                    BUSY_POLL,
                    0..=MAX_BUSY_POLL,
                ),
            },
        }
    }
}

fn frame_size(raw: i64, key_path: &KeyPath, report: &mut Report<'_>) -> u32 {
    let size = report.integer(key_path, Some(raw), SMALL_FRAME, SMALL_FRAME..=LARGE_FRAME);
    if !size.is_power_of_two() {
        report.error(key_path, format!("{size} is no chunk size"), "use 2048 or 4096");
    }
    size
}

fn cores(raw: Option<Vec<i64>>, key_path: &KeyPath, report: &mut Report<'_>) -> Vec<usize> {
    const FIX: &str = "name one core per worker, such as cores = [2, 3]; `lscpu -e` lists them";
    let Some(raw) = raw else {
        report.missing(key_path, FIX);
        return Vec::new();
    };
    if raw.is_empty() {
        report.error(key_path, "no worker", FIX);
    }
    let mut seen = BTreeMap::new();
    for (index, core) in raw.into_iter().enumerate() {
        let at = key_path.index(index);
        let core = report.integer(&at, Some(core), usize::MAX, 0..=MAX_CORE);
        if seen.insert(core, index).is_some() && core <= MAX_CORE {
            let what = format!("core {core} is listed twice");
            report.error(
                &at,
                what,
                "list each core once: two workers on one core halve each other",
            );
        }
    }
    let mut in_order: Vec<_> = seen.into_iter().map(|(core, index)| (index, core)).collect();
    in_order.sort_unstable();
    in_order.into_iter().map(|(_, core)| core).collect()
}

fn idle(raw: Option<String>, key_path: &KeyPath, report: &mut Report<'_>) -> Idle {
    const WORDS: &[(&str, Idle)] = &[("busy", Idle::Busy), ("sleep", Idle::Sleep)];
    raw.and_then(|word| report.word(key_path, &word, WORDS, &[])).unwrap_or(IDLE)
}
