//! A queue of a NIC: one AF_XDP socket (or a fake NIC) with its four rings, on one (NIC, queue).
//!
//! ```text
//!            pool --refill--> fill ring ----> kernel ----> RX ring --receive--> frame
//!            pool <-reclaim-- completion <--- kernel <---- TX ring <-transmit-- frame
//! ```
//!
//! A worker calls, once per poll: `reclaim`, `receive`, `transmit_all`, `refill`, then `flush`.
//! Nothing here allocates, blocks or panics; the only system calls wake a kernel that requests it.
//! Each descriptor from a ring is checked against the ledger of the [UMEM](super::umem): a
//! descriptor that names no frame of this queue is counted and ignored.

mod long;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::nic::Nic;
use super::ring::Descriptor;
use super::socket::{Io, Monitor, Rings, Socket, SocketError, SocketStatistics};
use super::umem::chain::{Growing, MAX_FRAMES};
use super::umem::{Frame, FramePool, Holder, Memory, Umem};
use crate::net::MAX_NICS;

/// Number of free fill slots that justifies an index update: the worker's batch size.
const REFILL_BATCH: u32 = 64;

/// Length of the shortest packet that can be sent, in bytes: an Ethernet header. The kernel would
/// drop a shorter packet without returning its frame.
const SHORTEST: usize = 14;

/// Longest sleep while packets wait in a TX ring, in milliseconds: the kernel sends the rest of a
/// ring only on another wake-up.
const TRANSMIT_WAIT_MS: u32 = 1;

/// The four rings of one (NIC, queue), and the frames that are in them. Aligned to its own cache
/// lines, as it changes with every packet.
#[repr(align(128))]
pub struct XskQueue {
    memory: &'static Memory,
    rings: Rings,
    /// `None` for a fake NIC.
    socket: Option<Socket>,
    /// Ledger values of this queue.
    receive: Holder,
    transmit: Holder,
    /// Number of frames in the fill ring, the RX ring, in `growing`, or with the NIC for reception.
    receiving: u32,
    /// Number of frames in the TX ring, the completion ring, or with the NIC for transmission.
    transmitting: u32,
    /// Number of frames pushed to the TX ring and not yet published.
    queued: u32,
    /// A packet of several frames whose last frame the kernel has not delivered yet.
    growing: Growing,
    /// Settings of multi-buffer and wake-ups; `tx_kick` is at most the size of the TX ring.
    io: Io,
    bad_descriptors: u64,
}

impl XskQueue {
    /// Opens an AF_XDP socket on `queue` of `nic`, with RX and TX rings of `ring` slots (a power of
    /// two), and fill and completion rings of twice as many.
    ///
    /// Blocks for up to 3 s while another socket holds the queue.
    ///
    /// # Errors
    /// [`SocketError`]: each names the NIC, the queue, the reason and the remedy.
    pub fn open(
        umem: &Umem,
        nic: &Nic,
        queue: u32,
        ring: u32,
        io: Io,
    ) -> Result<Self, SocketError> {
        let (socket, rings) = Socket::open(umem, nic, queue, ring, io)?;
        Self::new(umem.memory(), rings, Some(socket), io)
            .ok_or_else(|| SocketError::TooManyQueues { interface: nic.name().to_owned(), queue })
    }

    /// Wraps the socket of another process on `queue` of `nic`, which that process has opened with
    /// these settings and this memory. [`resume`](Self::resume) takes over the contents of its rings.
    ///
    /// # Errors
    /// [`SocketError`] if the file is no AF_XDP socket, or has smaller rings.
    pub fn adopt(
        umem: &Umem,
        nic: &Nic,
        queue: u32,
        ring: u32,
        io: Io,
        socket: OwnedFd,
    ) -> Result<Self, SocketError> {
        let (socket, rings) = Socket::adopt(nic, queue, ring, io, socket)?;
        Self::new(umem.memory(), rings, Some(socket), io)
            .ok_or_else(|| SocketError::TooManyQueues { interface: nic.name().to_owned(), queue })
    }

    /// Records what the next user of the rings cannot see in them. Called between two polls.
    pub fn suspend(&self) {
        self.memory.set_inside_packet(self.receive, self.growing.is_open());
    }

    /// Continues where the last user of the rings has [stopped](Self::suspend), which may be another
    /// process.
    ///
    /// Cost: one look at each byte of the ledger.
    pub fn resume(&mut self) {
        let Rings { rx, tx, fill, completion } = &mut self.rings;
        rx.resync();
        tx.resync();
        fill.resync();
        completion.resync();
        [self.receiving, self.transmitting] = self.memory.held_by([self.receive, self.transmit]);
        self.queued = 0;
        self.growing = match self.memory.is_inside_packet(self.receive) {
            true => Growing::without_beginning(),
            false => Growing::default(),
        };
    }

    /// Creates a queue over `rings`; `None` after 127 queues of this UMEM.
    pub(super) fn new(
        memory: &'static Memory,
        rings: Rings,
        socket: Option<Socket>,
        io: Io,
    ) -> Option<Self> {
        let (receive, transmit) = memory.new_holders()?;
        let io = Io { tx_kick: io.tx_kick.min(rings.tx.size()), ..io };
        Some(Self {
            memory,
            rings,
            socket,
            receive,
            transmit,
            receiving: 0,
            transmitting: 0,
            queued: 0,
            growing: Growing::default(),
            io,
            bad_descriptors: 0,
        })
    }

    /// Takes up to `max` received frames and passes each packet to `each`; returns the number of
    /// packets, at most `max`. A later call passes on a packet whose last frame is missing.
    ///
    /// Cost: one index read and one index write per call, one ledger byte per frame.
    #[inline]
    pub fn receive(&mut self, max: usize, mut each: impl FnMut(Frame)) -> usize {
        let (memory, holder, growing) = (self.memory, self.receive, &mut self.growing);
        let (mut packets, mut received, mut bad) = (0, 0, 0);
        self.rings.rx.take(u32::try_from(max).unwrap_or(u32::MAX), |descriptor| {
            let frame = memory.take(descriptor.address, descriptor.len, holder);
            bad += u64::from(frame.is_none());
            let more = descriptor.options & libc::XDP_PKT_CONTD != 0;
            let (packet, frames) = if more || growing.is_open() {
                growing.add(memory, frame, more)
            } else {
                (frame, 1)
            };
            if let Some(packet) = packet {
                packets += 1;
                received += frames;
                each(packet);
            }
        });
        self.receiving = self.receiving.wrapping_sub(received);
        self.bad_descriptors += bad;
        packets
    }

    /// Queues a packet for [`flush`](Self::flush).
    ///
    /// # Errors
    /// Returns the frame if the TX ring is full, or if the packet is shorter than an Ethernet
    /// header, has more frames than [can be sent](Self::can_send), or belongs to another UMEM.
    #[inline]
    pub fn transmit(&mut self, frame: Frame) -> Result<(), Frame> {
        if frame.len() < SHORTEST {
            return Err(frame);
        }
        if frame.is_long() {
            return self.transmit_long(frame);
        }
        #[expect(clippy::cast_possible_truncation, reason = "a frame is at most 4096 bytes")]
        let len = frame.len() as u32;
        let (memory, holder) = (self.memory, self.transmit);
        self.rings.tx.push_made(frame, |frame| {
            let address = memory.give(frame, holder)?;
            Ok(Descriptor { address, len, options: 0 })
        })?;
        self.transmitting += 1;
        self.queued += 1;
        Ok(())
    }

    /// Queues all frames in order, as [`transmit`](Self::transmit) does; a frame that does not fit
    /// or that `transmit` would refuse stays in `frames`. Returns the number of queued packets and
    /// bytes.
    ///
    /// Cost: one look-up of the free slots for all frames; one ledger byte and one slot per packet.
    #[inline]
    pub fn transmit_all<'f>(
        &mut self,
        mut frames: impl ExactSizeIterator<Item = &'f mut Option<Frame>>,
    ) -> (u32, u64) {
        let (mut packets, mut bytes) = (0, 0);
        loop {
            let (queued, long) = self.transmit_short(&mut frames, &mut bytes);
            packets += queued;
            let Some((place, frame)) = long else { return (packets, bytes) };
            let len = frame.packet_len();
            match self.transmit_long(frame) {
                Ok(()) => {
                    packets += 1;
                    bytes += u64::from(len);
                }
                Err(frame) => {
                    *place = Some(frame);
                    // Later packets must not overtake it.
                    if self.is_full() {
                        return (packets, bytes);
                    }
                }
            }
        }
    }

    /// Queues packets of one frame while slots are free; returns their number, and the next packet
    /// of several frames with its slot in `frames`.
    #[inline(always)]
    fn transmit_short<'f>(
        &mut self,
        frames: &mut impl ExactSizeIterator<Item = &'f mut Option<Frame>>,
        bytes: &mut u64,
    ) -> (u32, Option<(&'f mut Option<Frame>, Frame)>) {
        let (memory, holder) = (self.memory, self.transmit);
        let most = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        let mut long = None;
        let queued = self.rings.tx.push_up_to(most, || {
            for place in frames.by_ref() {
                let Some(frame) = place.take() else { continue };
                if frame.is_long() {
                    long = Some((place, frame));
                    return None;
                }
                #[expect(clippy::cast_possible_truncation, reason = "at most 4096 bytes")]
                let len = frame.len() as u32;
                if frame.len() < SHORTEST {
                    *place = Some(frame);
                    continue;
                }
                match memory.give(frame, holder) {
                    Ok(address) => {
                        *bytes += u64::from(len);
                        return Some(Descriptor { address, len, options: 0 });
                    }
                    Err(foreign) => *place = Some(foreign),
                }
            }
            None
        });
        self.transmitting += queued;
        self.queued += queued;
        (queued, long)
    }

    /// Whether the TX ring may lack room for a packet, judged by the longest that this queue sends.
    #[inline]
    pub fn is_full(&mut self) -> bool {
        let most = self.most_frames();
        self.rings.tx.free(most) < most
    }

    /// Publishes all queued packets, and wakes the kernel if it sleeps while packets wait in the TX
    /// ring; returns whether it made a system call.
    ///
    /// Must be called in every poll, also in one that sent nothing: in copy mode a wake-up sends a
    /// bounded number of packets, and only the next wake-up sends the rest. For the same reason
    /// fewer than `tx_kick` packets wait only as long as each call finds new ones.
    #[inline]
    pub fn flush(&mut self) -> bool {
        let queued = std::mem::take(&mut self.queued);
        if queued > 0 {
            self.rings.tx.publish();
        }
        if self.transmitting == 0 {
            return false;
        }
        let pending = self.rings.tx.pending();
        if pending == 0 || (queued > 0 && pending < self.io.tx_kick) {
            return false;
        }
        match &self.socket {
            Some(socket) if !self.io.need_wakeup || self.rings.tx.needs_wakeup() => {
                socket.wake_transmit();
                true
            }
            _ => false,
        }
    }

    /// Moves sent frames back to `pool`; returns their number.
    #[inline]
    pub fn reclaim(&mut self, pool: &mut FramePool) -> usize {
        if self.transmitting == 0 || !pool.is_of(self.memory) {
            return 0;
        }
        let (holder, mut bad) = (self.transmit, 0);
        let taken = self.rings.completion.take(u32::MAX, |address| {
            bad += u32::from(!pool.take_back(address, holder));
        });
        let reclaimed = taken - bad;
        self.transmitting = self.transmitting.wrapping_sub(reclaimed);
        self.bad_descriptors += u64::from(bad);
        reclaimed as usize
    }

    /// Gives free frames to the kernel for reception; returns their number. Waits for a batch's
    /// worth of free slots, so that the index does not move with every packet. Wakes the kernel if
    /// it ran out of frames and requests a wake-up, or if the worker runs the NIC's poll function
    /// (`busy_poll`).
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool) -> usize {
        let batch = REFILL_BATCH.min(self.rings.fill.size() / 2);
        let free = self.rings.fill.free(batch);
        let mut given = 0;
        if free >= batch {
            given = self.fill(pool, free);
        }
        if let Some(socket) = &self.socket
            && (self.io.busy_poll > 0 || self.rings.fill.needs_wakeup())
        {
            socket.wake_receive();
        }
        given as usize
    }

    /// Gives up to `most` frames to the fill ring, which has room for them; none from a pool of
    /// another UMEM.
    fn fill(&mut self, pool: &mut FramePool, most: u32) -> u32 {
        if !pool.is_of(self.memory) {
            return 0;
        }
        let holder = self.receive;
        let given = self.rings.fill.push_up_to(most, || pool.lend(holder));
        self.receiving += given;
        if given > 0 {
            self.rings.fill.publish();
        }
        given
    }

    /// Whether [`receive`](Self::receive) would find a frame.
    #[inline]
    pub fn is_readable(&self) -> bool {
        !self.rings.rx.is_empty()
    }

    /// Number of frames that were transmitted and not reclaimed.
    #[inline]
    pub fn outstanding(&self) -> u32 {
        self.transmitting
    }

    /// Number of frames with the kernel: in one of the four rings, or with the NIC.
    #[inline]
    pub fn with_kernel(&self) -> u32 {
        self.receiving + self.transmitting
    }

    /// Number of descriptors that named no frame of this queue; each was ignored.
    #[inline]
    pub fn bad_descriptors(&self) -> u64 {
        self.bad_descriptors
    }

    /// Returns the kernel's counters of the socket; zeros for a fake NIC.
    ///
    /// # Errors
    /// The error of getsockopt(2); none is expected.
    pub fn statistics(&self) -> io::Result<SocketStatistics> {
        self.socket.as_ref().map_or(Ok(SocketStatistics::default()), Socket::statistics)
    }

    /// Returns a view of the socket for another thread; `None` for a fake NIC.
    ///
    /// # Errors
    /// The error of dup(2): too many open files.
    pub fn monitor(&self) -> io::Result<Option<Monitor>> {
        self.socket.as_ref().map(Socket::monitor).transpose()
    }

    /// Returns the socket for another process; `None` for a fake NIC.
    ///
    /// # Errors
    /// The error of dup(2): too many open files.
    pub fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        self.fd().map(|socket| socket.try_clone_to_owned()).transpose()
    }

    /// Whether the NIC accesses packet memory directly, without a copy.
    pub fn zero_copy(&self) -> bool {
        self.socket.as_ref().is_some_and(Socket::zero_copy)
    }

    /// Whether packets may have several frames.
    pub fn multi_buffer(&self) -> bool {
        self.io.multi_buffer
    }

    /// Whether this queue belongs to a fake NIC.
    pub fn is_fake(&self) -> bool {
        self.socket.is_none()
    }

    /// Returns the socket, for the XDP program's map; `None` for a fake NIC.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(Socket::fd)
    }
}

/// Sleeps until one of `queues` is readable or `timeout_ms` have passed, for a worker that does not
/// busy-poll. Returns at once if a queue is readable already.
///
/// Sleeps at most 1 ms while packets wait in a TX ring, so that the caller flushes again. At most
/// [`MAX_NICS`] queues are watched. A fake NIC does not wake the caller; `waker` does, once it is
/// readable.
pub fn wait<'a>(
    queues: impl IntoIterator<Item = &'a XskQueue>,
    waker: Option<BorrowedFd<'_>>,
    timeout_ms: u32,
) {
    let mut watched = ArrayVec::<PollFd<'_>, { MAX_NICS + 1 }>::new();
    let mut timeout_ms = timeout_ms;
    watched.extend(waker.map(|waker| PollFd::from_borrowed_fd(waker, PollFlags::IN)));
    for queue in queues {
        if queue.is_readable() {
            return;
        }
        if queue.rings.tx.pending() > 0 {
            timeout_ms = timeout_ms.min(TRANSMIT_WAIT_MS);
        }
        if let Some(socket) = queue.fd() {
            // A queue beyond the bound is not watched, only polled after the time-out.
            let _ = watched.try_push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
    }
    let (tv_sec, ms) = (i64::from(timeout_ms / 1000), i64::from(timeout_ms % 1000));
    // A signal ends the wait early, which is harmless.
    let _ = poll(&mut watched, Some(&Timespec { tv_sec, tv_nsec: ms * 1_000_000 }));
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::xdp::fake::FakeNic;

    const FRAMES: u32 = 64;
    const RING: u32 = 8;

    /// A queue, its NIC and its pool; the test itself owns the `held` frames.
    struct Rig {
        queue: XskQueue,
        nic: FakeNic,
        pool: FramePool,
        held: Vec<Frame>,
    }

    impl Rig {
        fn new() -> Self {
            let (umem, pool) = Umem::create(FRAMES, 2048).unwrap();
            let (queue, nic) = FakeNic::new(&umem, RING).unwrap();
            Self { queue, nic, pool, held: Vec::new() }
        }

        /// Runs one poll of a worker that keeps all received frames.
        fn poll(&mut self) -> usize {
            self.queue.reclaim(&mut self.pool);
            self.queue.refill(&mut self.pool);
            let received = self.queue.receive(64, |frame| self.held.push(frame));
            self.queue.flush();
            self.check();
            received
        }

        /// Architecture invariant 4: no frame is lost or doubled.
        fn check(&self) {
            let sum = self.pool.len() + self.held.len() + self.queue.with_kernel() as usize;
            assert_eq!(sum, FRAMES as usize);
        }

        fn collect(&mut self) -> Vec<Vec<u8>> {
            let mut sent = Vec::new();
            self.nic.collect(|packet| sent.push(packet.to_vec()));
            sent
        }
    }

    #[test]
    fn a_packet_goes_in_and_out_without_a_copy() {
        let mut rig = Rig::new();
        assert!(!rig.nic.deliver(&[1; 60]), "the fill ring is still empty");
        for round in 0..100u8 {
            rig.poll();
            assert!(rig.nic.deliver(&[round; 60]));
            assert!(rig.nic.deliver_in_place(100, |data| data.fill(round + 100)));
            assert_eq!(rig.poll(), 2);
            let mut second = rig.held.pop().unwrap();
            let first = rig.held.pop().unwrap();
            assert_eq!((first.data(), first.headroom()), ([round; 60].as_slice(), 256));
            assert!(second.push_front(4) && second.pull_front(2));
            rig.queue.transmit(first).unwrap();
            rig.queue.transmit(second).unwrap();
            assert_eq!(rig.collect(), Vec::<Vec<u8>>::new(), "nothing is sent before the flush");
            assert!(!rig.queue.flush(), "a fake NIC needs no system call");
            let sent = rig.collect();
            assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [60, 102]);
            assert!(sent.iter().flatten().skip(62).all(|&byte| byte == round + 100));
            assert_eq!(rig.queue.outstanding(), 2);
            rig.poll();
            assert_eq!((rig.queue.outstanding(), rig.queue.bad_descriptors()), (0, 0));
        }
    }

    #[test]
    fn a_full_transmit_ring_gives_the_frame_back_until_the_kernel_has_sent() {
        let mut rig = Rig::new();
        let send = |rig: &mut Rig| {
            let mut frame = rig.pool.pop().unwrap();
            assert!(frame.copy_from(&[7; 60]));
            let result = rig.queue.transmit(frame);
            rig.queue.flush();
            result
        };
        for _ in 0..RING {
            send(&mut rig).unwrap();
        }
        for _ in 0..3 {
            let back = send(&mut rig).unwrap_err();
            rig.pool.push(back);
        }
        rig.check();
        assert_eq!(rig.collect().len(), RING as usize);
        send(&mut rig).unwrap();
        assert_eq!(rig.queue.reclaim(&mut rig.pool), RING as usize);
        rig.check();
    }

    #[test]
    fn a_full_receive_ring_and_an_empty_fill_ring_stop_the_nic() {
        let mut rig = Rig::new();
        rig.poll();
        let mut delivered = 0;
        while rig.nic.deliver(&[1; 60]) {
            delivered += 1;
        }
        assert_eq!(delivered, RING, "the RX ring is full");
        assert!(!rig.nic.deliver(&[1; 1793]), "longer than a frame with its headroom");
        assert_eq!(rig.queue.receive(5, |frame| rig.held.push(frame)), 5, "no more than asked for");
        assert_eq!(rig.queue.receive(64, |frame| rig.held.push(frame)), 3);
        for _ in 0..RING {
            assert!(rig.nic.deliver(&[1; 60]), "the second half of the fill ring");
        }
        rig.queue.receive(64, |frame| rig.held.push(frame));
        assert!(!rig.nic.deliver(&[1; 60]), "the fill ring is empty");
        rig.check();
        rig.poll();
        assert!(rig.nic.deliver(&[1; 1792]));
    }

    #[test]
    fn an_empty_pool_refills_what_it_has() {
        let mut rig = Rig::new();
        let kept: Vec<Frame> = (0..FRAMES - 3).filter_map(|_| rig.pool.pop()).collect();
        rig.held.extend(kept);
        assert_eq!(rig.queue.refill(&mut rig.pool), 3);
        assert_eq!(rig.queue.refill(&mut rig.pool), 0);
        rig.check();
    }

    #[test]
    fn lies_about_received_packets_are_counted_and_ignored() {
        let mut rig = Rig::new();
        rig.poll();
        // The stack pops the lowest chunks first: 0..16 are in the fill ring, the rest is ours.
        let lies = [
            (63 * 2048 + 256, 60, "a frame that is in the pool"),
            (64 * 2048, 60, "beyond the memory"),
            (u64::MAX, 60, "far beyond it"),
            (256, 1793, "over the end of the chunk"),
            (256, u32::MAX, "far over it"),
        ];
        for (number, (address, len, name)) in (1..).zip(lies) {
            assert!(rig.nic.deliver_raw(address, len), "{name}");
            assert_eq!(rig.poll(), 0, "{name}");
            assert_eq!(rig.queue.bad_descriptors(), number, "{name}");
        }
        // Chunk 1 is really with the kernel: only the first of the two claims is accepted.
        assert!(rig.nic.deliver_raw(2048 + 256, 60) && rig.nic.deliver_raw(2048 + 256, 60));
        assert_eq!(rig.poll(), 1);
        assert_eq!(rig.queue.bad_descriptors(), 6);
        assert!(rig.nic.deliver(&[1; 60]), "the NIC goes on");
        assert_eq!(rig.poll(), 1);
    }

    #[test]
    fn lies_about_sent_packets_are_counted_and_ignored() {
        let mut rig = Rig::new();
        rig.poll();
        let mut frame = rig.pool.pop().unwrap();
        assert!(frame.copy_from(&[1; 60]));
        rig.queue.transmit(frame).unwrap();
        rig.queue.flush();
        // Chunk 0 is in the fill ring, chunk 16 in the TX ring, and chunk 40 in the pool.
        for address in [0, 40 * 2048, 64 * 2048, u64::MAX] {
            assert!(rig.nic.complete_raw(address));
        }
        rig.poll();
        assert_eq!((rig.queue.bad_descriptors(), rig.queue.outstanding()), (4, 1));
        assert!(rig.nic.complete_raw(16 * 2048) && rig.nic.complete_raw(16 * 2048));
        rig.poll();
        assert_eq!((rig.queue.bad_descriptors(), rig.queue.outstanding()), (5, 0));
        // The same chunk is sent again, so that it is in the TX ring twice, and the NIC completes
        // it twice: one completion too many.
        let mut frame = rig.pool.pop().unwrap();
        assert!(frame.copy_from(&[2; 60]));
        rig.queue.transmit(frame).unwrap();
        rig.queue.flush();
        rig.nic.collect(|_| ());
        rig.poll();
        assert_eq!((rig.queue.bad_descriptors(), rig.queue.outstanding()), (6, 0));
    }

    #[test]
    fn two_queues_of_one_umem_cannot_return_each_others_frames() {
        let mut rig = Rig::new();
        let (umem, mut pool) = Umem::create(FRAMES, 2048).unwrap();
        let (mut first, mut first_nic) = FakeNic::new(&umem, RING).unwrap();
        let (mut second, mut second_nic) = FakeNic::new(&umem, RING).unwrap();
        first.refill(&mut pool);
        assert!(second_nic.deliver_raw(256, 60));
        assert_eq!(second.receive(64, |frame| pool.push(frame)), 0);
        assert_eq!(second.bad_descriptors(), 1);
        // One queue may send a frame that the other received.
        assert!(first_nic.deliver(&[5; 60]));
        first.receive(64, |frame| assert!(second.transmit(frame).is_ok()));
        second.flush();
        assert_eq!(second_nic.collect(|packet| assert_eq!(packet, [5; 60])), 1);
        second.reclaim(&mut pool);
        let with_kernel = first.with_kernel() + second.with_kernel();
        assert_eq!(pool.len() + with_kernel as usize, FRAMES as usize);
        // A frame of another UMEM is not sent.
        let mut foreign = rig.pool.pop().unwrap();
        assert!(foreign.copy_from(&[1; 60]));
        assert!(first.transmit(foreign).is_err());
    }

    /// The rings stay, and what a process knows of them is lost with it.
    #[test]
    fn the_next_user_of_the_rings_goes_on_where_the_last_one_stopped() {
        let (umem, pool) = Umem::create(FRAMES, 2048).unwrap();
        let (queue, nic) = FakeNic::new(&umem, RING).unwrap();
        let mut rig = Rig { queue, nic, pool, held: Vec::new() };
        rig.poll();
        for byte in 1..=3 {
            assert!(rig.nic.deliver(&[byte; 60]));
        }
        assert_eq!(rig.queue.receive(2, |frame| rig.held.push(frame)), 2);
        let (second, first) = (rig.held.pop().unwrap(), rig.held.pop().unwrap());
        rig.queue.transmit(first).unwrap();
        rig.queue.flush();
        rig.pool.push(second);
        rig.queue.suspend();
        let (free, with_kernel) = (rig.pool.len(), rig.queue.with_kernel());
        let file = umem.file().try_clone_to_owned().unwrap();
        let mapped_again = Umem::adopt(file, FRAMES, 2048).unwrap();
        assert_eq!(mapped_again.free_frames().len(), free, "the ledger is in the memory");
        // As if it had never been used: its own numbers are wrong.
        (rig.queue.receiving, rig.queue.transmitting, rig.queue.queued) = (0, 7, 3);
        rig.pool = umem.free_frames();
        while rig.pool.pop().is_some() {}
        rig.queue.resume();
        rig.pool = rig.pool.renewed();
        assert_eq!((rig.pool.len(), rig.queue.with_kernel()), (free, with_kernel));
        assert_eq!(rig.poll(), 1);
        assert_eq!(rig.held.pop().map(|frame| frame.data().to_vec()), Some(vec![3; 60]));
        assert_eq!(rig.collect(), [vec![1; 60]]);
        rig.queue.reclaim(&mut rig.pool);
        assert_eq!((rig.queue.outstanding(), rig.queue.bad_descriptors()), (0, 0));
        let too_small = Umem::adopt(umem.file().try_clone_to_owned().unwrap(), FRAMES * 2, 2048);
        assert!(matches!(too_small, Err(crate::xdp::umem::UmemError::Size { .. })));
    }

    /// The rest must not be taken for a packet of its own.
    #[test]
    fn the_rest_of_a_packet_whose_beginning_another_user_has_received_is_broken() {
        for inside in [false, true] {
            let mut rig = Rig::new();
            rig.poll();
            assert!(rig.nic.deliver_long(&[1; 4000]));
            let first = if inside { 1 } else { 3 };
            assert_eq!(rig.queue.receive(first, |frame| rig.held.push(frame)), 1 - inside as usize);
            rig.held.drain(..).for_each(|frame| rig.pool.push(frame));
            rig.queue.suspend();
            rig.queue.resume();
            rig.pool = rig.pool.renewed();
            assert!(rig.nic.deliver(&[2; 60]));
            assert_eq!(rig.queue.receive(64, |frame| rig.held.push(frame)), 1 + inside as usize);
            let whole: Vec<bool> = rig.held.iter().map(Frame::is_whole).collect();
            assert_eq!(whole, if inside { vec![false, true] } else { vec![true] });
            rig.held.drain(..).for_each(|frame| rig.pool.push(frame));
            rig.check();
        }
    }

    #[test]
    fn packets_without_an_ethernet_header_are_not_sent() {
        let mut rig = Rig::new();
        for len in 0..14 {
            let mut frame = rig.pool.pop().unwrap();
            assert!(frame.copy_from(&vec![0; len]));
            let back = rig.queue.transmit(frame).unwrap_err();
            rig.pool.push(back);
        }
        rig.check();
    }

    #[test]
    fn waiting_ends_at_once_when_something_is_there() {
        let mut rig = Rig::new();
        rig.poll();
        wait([&rig.queue], None, 1);
        assert!(rig.nic.deliver(&[1; 60]));
        let start = std::time::Instant::now();
        wait([&rig.queue], None, 60_000);
        assert!(start.elapsed().as_secs() < 30);
    }

    #[test]
    fn a_queue_can_be_moved_to_its_worker() {
        fn send<T: Send>() {}
        send::<XskQueue>();
        send::<FakeNic>();
        send::<FramePool>();
        send::<Umem>();
    }
}
