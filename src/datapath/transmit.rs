//! Stage 7 of 7, transmit: queues packets on TX rings, drops the rest, and counts each packet once.
//!
//! Writes: TX rings, the frame pool, counters.
//! Cost: one descriptor per packet; one NIC look-up per run of packets to one NIC; rings are
//! published, and the kernel woken, once per poll.

use super::batch::{Batch, Direction, Packet};
use super::queues::Queues;
use crate::net::{BackendIndex, VipId};
use crate::stats::{Drop, FlowStats, WorkerStats};
use crate::xdp::umem::FramePool;

/// Queues the packets in flight on their NICs' TX rings; drops those for which there is no room.
#[inline]
pub fn transmit(batch: &mut Batch, queues: &mut Queues, pool: &mut FramePool, stats: &WorkerStats) {
    queues.begin_batch();
    let (mut sent, mut left) = (0, 0);
    for run in batch.packets().chunk_by_mut(|a, b| a.nic == b.nic) {
        let Some(nic) = run.first().map(|packet| packet.nic) else { continue };
        let queued = queues.enqueue(nic, run, pool, stats);
        sent += queued;
        left += run.len() as u64 - queued;
    }
    let answered: u64 = batch.packets().iter().map(|packet| count(packet, stats)).sum();
    stats.transmitted.add(sent - answered);
    if left > 0 {
        for packet in batch.in_flight() {
            let can = packet.frame.as_ref().is_none_or(|frame| queues.can_send(packet.nic, frame));
            end(packet, if can { Drop::TxFull } else { Drop::TooLong }, pool, stats);
        }
    }
}

/// Drops a packet: returns its frame to the pool and counts the reason.
#[cold]
pub fn end(packet: &mut Packet, reason: Drop, pool: &mut FramePool, stats: &WorkerStats) {
    if let Some(frame) = packet.frame.take() {
        pool.push(frame);
    }
    packet.dropped = true;
    stats.drop_counter(reason).add(1);
    for counters in vip(packet.vip, stats).into_iter().chain(backend(packet.backend, stats)) {
        counters.dropped.add(1);
    }
}

/// Counts a packet for its VIP and backend if it was queued: its frame is gone, and not by a drop.
/// Returns 1 for a local reply, which is counted by kind only, and 0 otherwise.
#[inline(always)]
fn count(packet: &Packet, stats: &WorkerStats) -> u64 {
    if packet.frame.is_some() || packet.dropped {
        return 0;
    }
    if let Direction::LocalReply(answer) = packet.direction {
        stats.local_reply_counter(answer).add(1);
        return 1;
    }
    let (to_client, bytes) = (packet.direction.is_reply(), u64::from(packet.bytes));
    let counters = [backend(packet.backend, stats), vip(packet.vip, stats)];
    for counters in counters.into_iter().flatten() {
        let (packet_counter, byte_counter) = if to_client {
            (&counters.packets_out, &counters.bytes_out)
        } else {
            (&counters.packets_in, &counters.bytes_in)
        };
        packet_counter.add(1);
        byte_counter.add(bytes);
    }
    0
}

#[inline(always)]
fn vip(id: VipId, stats: &WorkerStats) -> Option<&FlowStats> {
    stats.vips.get(usize::from(id.0))
}

#[inline(always)]
fn backend(index: BackendIndex, stats: &WorkerStats) -> Option<&FlowStats> {
    stats.backends.get(usize::from(index.0))
}
