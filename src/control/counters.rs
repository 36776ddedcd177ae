//! Counters of a VIP or a backend, summed over all workers.
//!
//! Indices are reused. The counters of a reused index are relative to its [`Baseline`], so that a
//! new backend starts at zero.

use super::answering::Syns;
use super::api::Traffic;
use super::passive::Totals;
use super::view::WorkerView;
use crate::net::{BackendIndex, VipId};
use crate::stats::{Counter, FlowStats};

/// Counters of an index at the time when its present owner got it.
#[derive(Debug, Clone, Default)]
pub struct Baseline {
    traffic: Traffic,
    unanswered: u64,
    answered: u64,
    over_limit: u64,
}

/// Returns the present counters of a VIP's index as a baseline.
pub fn vip_baseline(workers: &[WorkerView], id: VipId) -> Baseline {
    Baseline { traffic: vip_traffic(workers, id), ..Baseline::default() }
}

/// Returns the present counters of a backend's index as a baseline.
pub fn backend_baseline(workers: &[WorkerView], index: BackendIndex) -> Baseline {
    Baseline {
        traffic: backend_traffic(workers, index),
        unanswered: unanswered(workers, index),
        answered: answered(workers, index),
        over_limit: refused(workers, index),
    }
}

/// Returns the SYNs to a backend since it got its index.
pub fn syns(workers: &[WorkerView], index: BackendIndex, base: &Baseline) -> Syns {
    let all = since(backend_traffic(workers, index), base).flows_total;
    let unanswered = unanswered(workers, index).saturating_sub(base.unanswered);
    Syns { all, unanswered }
}

/// Returns the flows of a backend since it got its index, and those with a sign of an answer.
pub fn answers(workers: &[WorkerView], index: BackendIndex, base: &Baseline) -> Totals {
    let flows = since(backend_traffic(workers, index), base).flows_total;
    Totals { flows, answered: answered(workers, index).saturating_sub(base.answered) }
}

/// Returns the new flows that a backend did not get because of its limit, since it got its index.
pub fn over_limit(workers: &[WorkerView], index: BackendIndex, base: &Baseline) -> u64 {
    refused(workers, index).saturating_sub(base.over_limit)
}

fn refused(workers: &[WorkerView], index: BackendIndex) -> u64 {
    let of =
        |worker: &WorkerView| worker.stats.over_limit.get(usize::from(index.0)).map(Counter::get);
    workers.iter().filter_map(of).sum()
}

fn answered(workers: &[WorkerView], index: BackendIndex) -> u64 {
    let of =
        |worker: &WorkerView| worker.stats.answered.get(usize::from(index.0)).map(Counter::get);
    workers.iter().filter_map(of).sum()
}

fn unanswered(workers: &[WorkerView], index: BackendIndex) -> u64 {
    let of =
        |worker: &WorkerView| worker.stats.unanswered.get(usize::from(index.0)).map(Counter::get);
    workers.iter().filter_map(of).sum()
}

/// Returns the flows that are pinned to a backend, over all workers.
pub fn flows_active(workers: &[WorkerView], index: BackendIndex) -> u64 {
    let of = |worker: &WorkerView| {
        worker.stats.backends.get(usize::from(index.0)).map_or(0, |stats| stats.flows_active.get())
    };
    workers.iter().map(of).sum()
}

/// Returns the flows ever pinned at a VIP's index, over all workers.
pub fn flows_total(workers: &[WorkerView], id: VipId) -> u64 {
    let of = |worker: &WorkerView| {
        worker.stats.vips.get(usize::from(id.0)).map_or(0, |stats| stats.flows_total.get())
    };
    workers.iter().map(of).sum()
}

/// Returns the flows ever pinned at a VIP's index, over all workers; without pins, the datagrams
/// scheduled.
pub fn flows_or_datagrams(workers: &[WorkerView], id: VipId, pin: bool) -> u64 {
    let stats = workers.iter().filter_map(|worker| worker.stats.vips.get(usize::from(id.0)));
    let counters = stats.map(|stats| match pin {
        true => &stats.flows_total,
        false => &stats.flows_scheduled,
    });
    counters.map(Counter::get).sum()
}

/// Returns the counters of a VIP's index, over all workers.
pub fn vip_traffic(workers: &[WorkerView], id: VipId) -> Traffic {
    sum(workers.iter().filter_map(|worker| worker.stats.vips.get(usize::from(id.0))))
}

/// Returns the counters of a backend's index, over all workers.
pub fn backend_traffic(workers: &[WorkerView], index: BackendIndex) -> Traffic {
    sum(workers.iter().filter_map(|worker| worker.stats.backends.get(usize::from(index.0))))
}

fn sum<'a>(stats: impl Iterator<Item = &'a FlowStats>) -> Traffic {
    stats.fold(Traffic::default(), |mut sum, stats| {
        sum.packets_in += stats.packets_in.get();
        sum.bytes_in += stats.bytes_in.get();
        sum.packets_out += stats.packets_out.get();
        sum.bytes_out += stats.bytes_out.get();
        sum.flows_total += stats.flows_total.get();
        sum.flows_active += stats.flows_active.get();
        sum.dropped += stats.dropped.get();
        sum
    })
}

/// Returns the counts since the baseline. `flows_active` is a gauge and stays as it is.
pub fn since(now: Traffic, Baseline { traffic: base, .. }: &Baseline) -> Traffic {
    Traffic {
        packets_in: now.packets_in.saturating_sub(base.packets_in),
        bytes_in: now.bytes_in.saturating_sub(base.bytes_in),
        packets_out: now.packets_out.saturating_sub(base.packets_out),
        bytes_out: now.bytes_out.saturating_sub(base.bytes_out),
        flows_total: now.flows_total.saturating_sub(base.flows_total),
        flows_active: now.flows_active,
        dropped: now.dropped.saturating_sub(base.dropped),
    }
}
