//! Stage 7 of 7, transmit: every packet ends here, in one counter.
//!
//! Writes: TX rings, the frame pool, counters.
//! Cost: one descriptor per packet; counters of a VIP once for each run of its packets; rings are
//! published, and the kernel woken, once per poll.

use super::batch::{Packet, Way};
use super::conntrack::Target;
use super::worker::Ports;
use crate::forwarding::{BackendIndex, PortIndex, VipId};
use crate::stats::{Drop, FlowStats, WorkerStats};
use crate::xdp::umem::FramePool;

/// The way out for the packets of one batch.
pub struct Exit<'w> {
    ports: &'w mut Ports,
    pool: &'w mut FramePool,
    stats: &'w WorkerStats,
    transmitted: u64,
    run: Run,
}

/// Packets of one VIP, one way, that followed each other and are not counted yet.
struct Run {
    vip: VipId,
    to_client: bool,
    packets: u64,
    bytes: u64,
}

impl Run {
    const NONE: Self = Self { vip: VipId::NONE, to_client: false, packets: 0, bytes: 0 };
}

impl<'w> Exit<'w> {
    /// For a new batch.
    #[inline]
    pub fn new(ports: &'w mut Ports, pool: &'w mut FramePool, stats: &'w WorkerStats) -> Self {
        Self { ports, pool, stats, transmitted: 0, run: Run::NONE }
    }

    /// Queues a packet, of which `bytes` were received, on the TX ring of `nic`.
    #[inline(always)]
    pub fn transmit(
        &mut self,
        packet: &mut Packet,
        target: Target<'_>,
        nic: PortIndex,
        bytes: usize,
    ) {
        let Some(frame) = packet.frame.take() else { return };
        let backend = target.backend();
        match self.ports.queue(nic, frame, self.pool, self.stats) {
            Ok(()) => self.count(packet.vip, packet.way, backend, bytes as u64),
            Err(frame) => {
                packet.frame = Some(frame);
                self.drop(packet, packet.vip, Some(backend), Drop::TxFull);
            }
        }
    }

    /// Gives the frame of a packet back to the pool.
    #[cold]
    pub fn drop(
        &mut self,
        packet: &mut Packet,
        vip: VipId,
        backend: Option<BackendIndex>,
        reason: Drop,
    ) {
        if let Some(frame) = packet.frame.take() {
            self.pool.push(frame);
        }
        self.stats.drop_counter(reason).add(1);
        let backend = backend.and_then(|index| self.stats.backends.get(usize::from(index.0)));
        for counters in self.stats.vips.get(usize::from(vip.0)).into_iter().chain(backend) {
            counters.dropped.add(1);
        }
    }

    #[inline(always)]
    fn count(&mut self, vip: VipId, way: Way, backend: BackendIndex, bytes: u64) {
        let to_client = way != Way::ToBackend;
        self.transmitted += 1;
        if let Some(counters) = self.stats.backends.get(usize::from(backend.0)) {
            add(counters, to_client, 1, bytes);
        }
        if (self.run.vip, self.run.to_client) != (vip, to_client) {
            self.end_run();
            self.run = Run { vip, to_client, packets: 0, bytes: 0 };
        }
        self.run.packets += 1;
        self.run.bytes += bytes;
    }

    #[inline]
    fn end_run(&self) {
        let Run { vip, to_client, packets, bytes } = self.run;
        if let Some(counters) = self.stats.vips.get(usize::from(vip.0)) {
            add(counters, to_client, packets, bytes);
        }
    }

    /// Writes down what the batch has added to the counters.
    #[inline]
    pub fn finish(self) {
        self.end_run();
        self.stats.transmitted.add(self.transmitted);
    }
}

#[inline]
fn add(counters: &FlowStats, to_client: bool, packets: u64, bytes: u64) {
    let (packet_counter, byte_counter) = if to_client {
        (&counters.packets_out, &counters.bytes_out)
    } else {
        (&counters.packets_in, &counters.bytes_in)
    };
    packet_counter.add(packets);
    byte_counter.add(bytes);
}
