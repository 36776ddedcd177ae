//! The NIC queues of a worker: where its packets come from and go to.

use super::batch::Packet;
use crate::net::{MAX_NICS, NicIndex};
use crate::stats::WorkerStats;
use crate::xdp::queue::XskQueue;
use crate::xdp::umem::{Frame, FramePool};

/// One NIC queue that a worker serves.
pub struct WorkerPort {
    /// The NIC.
    pub nic: NicIndex,
    /// Its socket and rings.
    pub port: XskQueue,
    /// Bad descriptors that were counted.
    bad_descriptors: u64,
    /// Packets and bytes that were queued, and are not counted yet.
    queued: (u64, u64),
    /// The TX ring was full, and has been given to the kernel, in this batch.
    was_full: bool,
}

impl WorkerPort {
    /// A queue of `nic`.
    pub fn new(nic: NicIndex, port: XskQueue) -> Self {
        Self { nic, port, bad_descriptors: 0, queued: (0, 0), was_full: false }
    }

    /// Bad descriptors since the last call.
    #[inline]
    pub(super) fn new_bad_descriptors(&mut self) -> u64 {
        let now = self.port.bad_descriptors();
        now - std::mem::replace(&mut self.bad_descriptors, now)
    }

    /// Queues the frames of these packets; those that find no room stay. A full ring is given to the
    /// kernel and tried once more, once per batch. Returns how many were queued.
    #[inline]
    fn queue(&mut self, packets: &mut [Packet], pool: &mut FramePool, stats: &WorkerStats) -> u64 {
        let mut sent = self.try_queue(packets);
        let left = || packets.iter().any(|packet| packet.frame.is_some());
        if !self.was_full && self.port.is_full() && left() {
            self.was_full = true;
            self.hand_over(stats);
            self.port.reclaim(pool);
            sent += self.try_queue(packets);
        }
        sent
    }

    #[inline]
    fn try_queue(&mut self, packets: &mut [Packet]) -> u64 {
        let frames = packets.iter_mut().map(|packet| &mut packet.frame);
        let (sent, bytes) = self.port.transmit_all(frames);
        self.queued.0 += u64::from(sent);
        self.queued.1 += bytes;
        sent.into()
    }

    /// Queues one frame.
    fn queue_one(&mut self, frame: Frame) -> Result<(), Frame> {
        let bytes = u64::from(frame.packet_len());
        self.port.transmit(frame)?;
        self.queued.0 += 1;
        self.queued.1 += bytes;
        Ok(())
    }

    /// Hands what was queued to the kernel.
    #[inline]
    pub(super) fn flush(&mut self, stats: &WorkerStats) {
        self.hand_over(stats);
    }

    #[inline]
    fn hand_over(&mut self, stats: &WorkerStats) {
        let woken = self.port.flush();
        let (packets, bytes) = std::mem::take(&mut self.queued);
        if (packets > 0 || woken)
            && let Some(counters) = stats.ports.get(usize::from(self.nic.0))
        {
            counters.tx_packets.add(packets);
            counters.tx_bytes.add(bytes);
            counters.tx_wakeups.add(woken.into());
        }
    }
}

/// All NIC queues of a worker.
pub struct Ports {
    pub(super) ports: Vec<WorkerPort>,
    /// For each NIC, which of `ports` sends.
    sender: [Option<usize>; MAX_NICS],
}

impl Ports {
    /// The first queue of each NIC becomes its sender.
    pub fn new(ports: Vec<WorkerPort>) -> Self {
        let mut sender = [None; MAX_NICS];
        for (index, port) in ports.iter().enumerate() {
            if let Some(place) = sender.get_mut(usize::from(port.nic.0)) {
                place.get_or_insert(index);
            }
        }
        Self { ports, sender }
    }

    /// Every full ring may be given to the kernel once more.
    #[inline]
    pub fn begin_batch(&mut self) {
        for port in &mut self.ports {
            port.was_full = false;
        }
    }

    /// Queues the frames of packets that leave by `nic` on its TX ring; returns how many. Those that
    /// find the ring full, or no queue of this worker on that NIC, stay.
    #[inline]
    pub fn queue(
        &mut self,
        nic: NicIndex,
        packets: &mut [Packet],
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) -> u64 {
        self.sender(nic).map_or(0, |port| port.queue(packets, pool, stats))
    }

    /// Queues a frame that leaves by `nic`.
    ///
    /// # Errors
    /// The frame comes back when the ring is full, or no queue of this worker is on that NIC.
    pub fn queue_one(&mut self, nic: NicIndex, frame: Frame) -> Result<(), Frame> {
        match self.sender(nic) {
            Some(port) => port.queue_one(frame),
            None => Err(frame),
        }
    }

    /// Whether a packet could leave by `nic` if its ring had room.
    pub fn can_send(&mut self, nic: NicIndex, frame: &Frame) -> bool {
        self.sender(nic).is_none_or(|port| port.port.can_send(frame))
    }

    #[inline]
    fn sender(&mut self, nic: NicIndex) -> Option<&mut WorkerPort> {
        let index = self.sender.get(usize::from(nic.0)).copied().flatten()?;
        self.ports.get_mut(index)
    }
}
