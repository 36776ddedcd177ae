//! Stage 1 of 7, receive: moves packets from one RX ring into the batch.
//!
//! Reads: the RX ring. Writes: the batch, `received` counters; prefetches the headers.
//! Cost: one acquire load and one release store per batch.

use super::batch::Batch;
use super::context::Context;
use super::fragments::Fragments;
use super::queues::WorkerQueue;
use crate::xdp::cpu;

/// Moves up to `max` packets from the port's RX ring into `batch`, which has no frames left. Parked
/// fragments that were received earlier on the same NIC, and can go on, are first.
#[inline]
pub fn receive(
    batch: &mut Batch,
    queue: &mut WorkerQueue,
    fragments: &mut Fragments,
    context: &Context<'_>,
    max: usize,
) {
    let stats = context.stats;
    let (mut bytes, mut back) = (0, 0);
    batch.fill(|places| {
        back = fragments.rejoin(&mut places.by_ref().take(max), context);
        // Bounded by the number of free records: frames beyond that would be lost.
        back + queue.xsk.receive((max - back).min(places.len()), |frame| {
            bytes += u64::from(frame.packet_len());
            cpu::prefetch(frame.data());
            if let Some(packet) = places.next() {
                packet.frame = Some(frame);
                packet.dropped = false;
            }
        })
    });
    let count = (batch.len() - back) as u64;
    if count > 0 {
        stats.received.add(count);
        if let Some(counters) = stats.nics.get(usize::from(queue.nic.0)) {
            counters.rx_packets.add(count);
            counters.rx_bytes.add(bytes);
        }
    }
}
