//! The NIC queues of a worker, for receiving and sending.

use super::batch::Packet;
use crate::net::{MAX_NICS, NicIndex};
use crate::stats::WorkerStats;
use crate::xdp::queue::XskQueue;
use crate::xdp::umem::{Frame, FramePool};

/// One NIC queue that a worker serves.
pub struct WorkerQueue {
    /// The NIC.
    pub nic: NicIndex,
    /// Socket and rings of the queue.
    pub xsk: XskQueue,
    /// Bad descriptors already counted.
    bad_descriptors: u64,
    /// Packets and bytes that were queued and are not yet counted.
    queued: (u64, u64),
    /// The TX ring was full in this batch, and was handed to the kernel.
    was_full: bool,
}

impl WorkerQueue {
    /// Creates the worker's view of a queue of `nic`.
    pub fn new(nic: NicIndex, xsk: XskQueue) -> Self {
        Self { nic, xsk, bad_descriptors: 0, queued: (0, 0), was_full: false }
    }

    /// Returns the number of bad descriptors since the last call.
    #[inline]
    pub(super) fn new_bad_descriptors(&mut self) -> u64 {
        let now = self.xsk.bad_descriptors();
        now - std::mem::replace(&mut self.bad_descriptors, now)
    }

    /// Queues the frames of `packets`; frames without room stay. A full ring is handed to the
    /// kernel and tried once more, once per batch. Returns the number queued.
    #[inline]
    fn enqueue(
        &mut self,
        packets: &mut [Packet],
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) -> u64 {
        let mut sent = self.try_enqueue(packets);
        let left = || packets.iter().any(|packet| packet.frame.is_some());
        if !self.was_full && self.xsk.is_full() && left() {
            self.was_full = true;
            self.hand_over(stats);
            self.xsk.reclaim(pool);
            sent += self.try_enqueue(packets);
        }
        sent
    }

    #[inline]
    fn try_enqueue(&mut self, packets: &mut [Packet]) -> u64 {
        let frames = packets.iter_mut().map(|packet| &mut packet.frame);
        let (sent, bytes) = self.xsk.transmit_all(frames);
        self.queued.0 += u64::from(sent);
        self.queued.1 += bytes;
        sent.into()
    }

    /// Queues one frame.
    fn enqueue_one(&mut self, frame: Frame) -> Result<(), Frame> {
        let bytes = u64::from(frame.packet_len());
        self.xsk.transmit(frame)?;
        self.queued.0 += 1;
        self.queued.1 += bytes;
        Ok(())
    }

    /// Publishes the queued frames to the kernel.
    #[inline]
    pub(super) fn flush(&mut self, stats: &WorkerStats) {
        self.hand_over(stats);
    }

    #[inline]
    fn hand_over(&mut self, stats: &WorkerStats) {
        let woken = self.xsk.flush();
        let (packets, bytes) = std::mem::take(&mut self.queued);
        if (packets > 0 || woken)
            && let Some(counters) = stats.nics.get(usize::from(self.nic.0))
        {
            counters.tx_packets.add(packets);
            counters.tx_bytes.add(bytes);
            counters.tx_wakeups.add(woken.into());
        }
    }
}

/// All NIC queues of a worker.
pub struct Queues {
    pub(super) queues: Vec<WorkerQueue>,
    /// Index into `queues` of each NIC's sending queue, by [`NicIndex`].
    sender: [Option<usize>; MAX_NICS],
}

impl Queues {
    /// Creates the set of queues. The first queue of each NIC sends for that NIC.
    pub fn new(queues: Vec<WorkerQueue>) -> Self {
        let mut sender = [None; MAX_NICS];
        for (index, queue) in queues.iter().enumerate() {
            if let Some(place) = sender.get_mut(usize::from(queue.nic.0)) {
                place.get_or_insert(index);
            }
        }
        Self { queues, sender }
    }

    /// Allows every full ring to be handed to the kernel once more.
    #[inline]
    pub fn begin_batch(&mut self) {
        for queue in &mut self.queues {
            queue.was_full = false;
        }
    }

    /// Queues the frames of packets that leave by `nic` on its TX ring; returns the number queued.
    /// Frames stay if the ring is full or this worker has no queue on that NIC.
    #[inline]
    pub fn enqueue(
        &mut self,
        nic: NicIndex,
        packets: &mut [Packet],
        pool: &mut FramePool,
        stats: &WorkerStats,
    ) -> u64 {
        self.sender(nic).map_or(0, |queue| queue.enqueue(packets, pool, stats))
    }

    /// Queues a frame that leaves by `nic`.
    ///
    /// # Errors
    /// Returns the frame if the ring is full or this worker has no queue on that NIC.
    pub fn enqueue_one(&mut self, nic: NicIndex, frame: Frame) -> Result<(), Frame> {
        match self.sender(nic) {
            Some(queue) => queue.enqueue_one(frame),
            None => Err(frame),
        }
    }

    /// Whether a packet could leave by `nic` if its ring had room.
    pub fn can_send(&mut self, nic: NicIndex, frame: &Frame) -> bool {
        self.sender(nic).is_none_or(|queue| queue.xsk.can_send(frame))
    }

    #[inline]
    fn sender(&mut self, nic: NicIndex) -> Option<&mut WorkerQueue> {
        let index = self.sender.get(usize::from(nic.0)).copied().flatten()?;
        self.queues.get_mut(index)
    }
}
