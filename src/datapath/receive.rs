//! Stage 1 of 7, receive: packets from one RX ring into the batch.
//!
//! Reads: the RX ring. Writes: the batch, `received` counters; asks for the header lines.
//! Cost: one acquire load and one release store per batch.

use super::batch::Batch;
use super::worker::WorkerPort;
use crate::stats::WorkerStats;
use crate::xdp::cpu;

/// Moves up to `max` packets from the port's RX ring into `batch`, of which all is gone.
#[inline]
pub fn receive(batch: &mut Batch, port: &mut WorkerPort, max: usize, stats: &WorkerStats) {
    batch.clear();
    let mut bytes = 0;
    let count = port.port.receive(max, |frame| {
        bytes += frame.len() as u64;
        cpu::prefetch(frame.data());
        // The port gives at most `max` frames, and `max <= BATCH`: there is room for each.
        let _ = batch.push(frame);
    });
    if count > 0 {
        stats.received.add(count as u64);
        if let Some(counters) = stats.ports.get(usize::from(port.nic.0)) {
            counters.rx_packets.add(count as u64);
            counters.rx_bytes.add(bytes);
        }
    }
}
