//! Stage 7 of 7, transmit: every packet of the batch ends here, in one counter.
//!
//! Reads: `verdict`. Writes: TX rings, the frame pool, counters.
//! Cost: one descriptor per packet; rings are published, and the kernel woken, once per poll.

use super::batch::{Batch, Packet, Verdict, Way};
use super::worker::Ports;
use crate::stats::{Drop, FlowStats, WorkerStats};
use crate::xdp::umem::FramePool;

/// Queues packets on their NICs, and gives the frames of dropped ones back to the pool.
#[inline]
pub fn transmit(batch: &mut Batch, ports: &mut Ports, pool: &mut FramePool, stats: &WorkerStats) {
    for packet in batch.drain() {
        match packet.verdict {
            Verdict::Transmit(nic) => {
                let summary = Summary::of(&packet);
                match ports.queue(nic, packet.frame, pool, stats) {
                    Ok(()) => count_transmitted(&summary, stats),
                    Err(frame) => {
                        pool.push(frame);
                        count_dropped(&summary, Drop::TxFull, stats);
                    }
                }
            }
            Verdict::Drop(reason) => {
                let summary = Summary::of(&packet);
                pool.push(packet.frame);
                count_dropped(&summary, reason, stats);
            }
            // Rewrite gives every packet a verdict; were one left, it would be a drop.
            Verdict::Continue => {
                let summary = Summary::of(&packet);
                pool.push(packet.frame);
                count_dropped(&summary, Drop::NoBackend, stats);
            }
        }
    }
}

/// What the counters need to know of a packet whose frame has gone.
struct Summary {
    vip: usize,
    backend: Option<usize>,
    way: Way,
    bytes: u64,
}

impl Summary {
    #[inline]
    fn of(packet: &Packet) -> Self {
        Self {
            vip: usize::from(packet.vip.0),
            backend: packet.backend.map(|backend| usize::from(backend.0)),
            way: packet.way,
            bytes: u64::from(packet.received_len),
        }
    }

    #[inline]
    fn counters<'s>(&self, stats: &'s WorkerStats) -> impl Iterator<Item = &'s FlowStats> {
        let backend = self.backend.and_then(|backend| stats.backends.get(backend));
        [stats.vips.get(self.vip), backend].into_iter().flatten()
    }
}

#[inline]
fn count_transmitted(summary: &Summary, stats: &WorkerStats) {
    stats.transmitted.add(1);
    for counters in summary.counters(stats) {
        match summary.way {
            Way::ToBackend => {
                counters.packets_in.add(1);
                counters.bytes_in.add(summary.bytes);
            }
            Way::ToClient(_) => {
                counters.packets_out.add(1);
                counters.bytes_out.add(summary.bytes);
            }
        }
    }
}

#[cold]
fn count_dropped(summary: &Summary, reason: Drop, stats: &WorkerStats) {
    stats.drop_counter(reason).add(1);
    for counters in summary.counters(stats) {
        counters.dropped.add(1);
    }
}
