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
    let (mut transmitted, mut flushed) = (0, false);
    for (frame, packet) in batch.drain() {
        let (frame, reason) = match packet.verdict {
            Verdict::Transmit(nic) => match ports.queue(nic, frame, pool, &mut flushed, stats) {
                Ok(()) => {
                    transmitted += 1;
                    count_traffic(packet, stats);
                    continue;
                }
                Err(frame) => (frame, Drop::TxFull),
            },
            Verdict::Drop(reason) => (frame, reason),
            // Rewrite gives every packet a verdict; were one left, it would be a drop.
            Verdict::Continue => (frame, Drop::NoBackend),
        };
        pool.push(frame);
        count_drop(packet, reason, stats);
    }
    stats.transmitted.add(transmitted);
}

/// The counters of the packet's VIP and backend.
#[inline]
fn counters<'s>(packet: &Packet, stats: &'s WorkerStats) -> impl Iterator<Item = &'s FlowStats> {
    let backend = packet.backend.and_then(|index| stats.backends.get(usize::from(index.0)));
    [stats.vips.get(usize::from(packet.vip.0)), backend].into_iter().flatten()
}

#[inline]
fn count_traffic(packet: &Packet, stats: &WorkerStats) {
    let bytes = u64::from(packet.received_len);
    for counters in counters(packet, stats) {
        match packet.way {
            Way::ToBackend => {
                counters.packets_in.add(1);
                counters.bytes_in.add(bytes);
            }
            Way::ToClient(_) => {
                counters.packets_out.add(1);
                counters.bytes_out.add(bytes);
            }
        }
    }
}

#[cold]
fn count_drop(packet: &Packet, reason: Drop, stats: &WorkerStats) {
    stats.drop_counter(reason).add(1);
    for counters in counters(packet, stats) {
        counters.dropped.add(1);
    }
}
