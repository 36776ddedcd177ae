//! A fake NIC: the kernel's side of a queue's four rings, in ordinary memory.
//!
//! For tests and benches without root: the queue's side is the production code, and this side
//! behaves like the kernel, or returns false descriptors on request.
#![allow(unsafe_code, reason = "works on chunks that the queue has given away, like the kernel")]

use std::ptr::NonNull;

use super::queue::XskQueue;
use super::ring::{Consumer, Descriptor, Producer, in_plain_memory};
use super::socket::{Io, Rings, SocketError, check_ring_size};
use super::umem::{HEADROOM, Memory, Umem};

/// The kernel and the wire for one [`XskQueue`].
pub struct FakeNic {
    memory: &'static Memory,
    fill: Consumer<u64>,
    rx: Producer<Descriptor>,
    tx: Consumer<Descriptor>,
    completion: Producer<u64>,
    /// Chunks named by a false descriptor. They are never accessed again, since that descriptor may
    /// have given them to the queue while they were in a ring of this side.
    tainted: Box<[bool]>,
    /// Data of a packet of several frames that is being sent.
    whole: Vec<u8>,
}

impl FakeNic {
    /// Creates a queue with rings of `ring` slots (fill and completion: twice as many), and its
    /// NIC.
    ///
    /// # Errors
    /// [`SocketError::RingSize`], and [`SocketError::TooManyQueues`] after 127 queues of one UMEM.
    pub fn new(umem: &Umem, ring: u32) -> Result<(XskQueue, Self), SocketError> {
        Self::with(umem, ring, Io::default())
    }

    /// Creates a queue with these settings, and its NIC; see [`new`](Self::new).
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn with(umem: &Umem, ring: u32, io: Io) -> Result<(XskQueue, Self), SocketError> {
        // Close to the wrap, so that every test crosses it.
        const START: u32 = u32::MAX - 100;
        check_ring_size(ring)?;
        let (rx, our_rx) = in_plain_memory(ring, START);
        let (our_tx, tx) = in_plain_memory(ring, START);
        let (our_fill, fill) = in_plain_memory(ring * 2, START);
        let (completion, our_completion) = in_plain_memory(ring * 2, START);
        let rings = Rings { rx: our_rx, tx: our_tx, fill: our_fill, completion: our_completion };
        let memory = umem.memory();
        let queue = XskQueue::new(memory, rings, None, io)
            .ok_or_else(|| SocketError::TooManyQueues { interface: "fake".to_owned(), queue: 0 })?;
        let tainted = vec![false; memory.chunks()].into();
        let nic = Self { memory, fill, rx, tx, completion, tainted, whole: Vec::new() };
        Ok((queue, nic))
    }

    /// Delivers `packet`. Returns false if the fill ring is empty, the RX ring is full, or the
    /// packet exceeds a frame.
    pub fn deliver(&mut self, packet: &[u8]) -> bool {
        self.deliver_in_place(packet.len(), |data| data.copy_from_slice(packet))
    }

    /// Delivers `packet` in as many frames as it takes, as the kernel does for a queue with
    /// multi-buffer. Returns false and delivers nothing if the RX ring lacks room for all of them,
    /// or if the fill ring has too few frames, which are then used up.
    pub fn deliver_long(&mut self, packet: &[u8]) -> bool {
        let room = (self.memory.chunk_size() - u32::from(HEADROOM)) as usize;
        let count = u32::try_from(packet.len().div_ceil(room)).unwrap_or(u32::MAX);
        if self.rx.free(count) < count {
            return false;
        }
        let mut parts = packet.chunks(room).peekable();
        let mut descriptors = Vec::new();
        while let Some(part) = parts.next() {
            let write = |data: &mut [u8]| data.copy_from_slice(part);
            let Some(mut descriptor) = self.fill_frame(part.len(), write) else { return false };
            descriptor.options = if parts.peek().is_some() { libc::XDP_PKT_CONTD } else { 0 };
            descriptors.push(descriptor);
        }
        descriptors.into_iter().all(|descriptor| self.post(descriptor))
    }

    /// Delivers a packet of `len` bytes that `write` fills in place, on top of the frame's stale
    /// contents. Returns false under the conditions of [`deliver`](Self::deliver), without a call
    /// of `write`.
    #[inline]
    pub fn deliver_in_place(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> bool {
        if self.rx.free(1) == 0 {
            return false;
        }
        self.fill_frame(len, write).is_some_and(|descriptor| self.post(descriptor))
    }

    /// Writes `len` bytes into the next frame of the fill ring; `None` if there is no frame or it
    /// is too small.
    #[inline]
    fn fill_frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Option<Descriptor> {
        let room = self.memory.chunk_size() - u32::from(HEADROOM);
        let len = u32::try_from(len).ok().filter(|&len| len <= room)?;
        let address = self.take_filled()? + u64::from(HEADROOM);
        if let Some(mut data) = chunk_bytes(self.memory, address, len) {
            // SAFETY: inside the memory. The queue gave this chunk away through the fill ring, from
            // which it was just taken, and no false descriptor has named it, so that neither a
            // frame nor a ring names it.
            write(unsafe { data.as_mut() });
        }
        Some(Descriptor { address, len, options: 0 })
    }

    /// Puts a descriptor, true or false, on the RX ring; returns false when the ring is full.
    pub fn deliver_raw(&mut self, address: u64, len: u32) -> bool {
        self.deliver_descriptor(Descriptor { address, len, options: 0 })
    }

    /// Puts a descriptor with options, true or false, on the RX ring; returns false when the ring
    /// is full.
    pub fn deliver_descriptor(&mut self, descriptor: Descriptor) -> bool {
        self.taint(descriptor.address);
        self.post(descriptor)
    }

    /// Delivers `len` stale bytes of the next frame of the fill ring, with `more` announcing
    /// further frames of the packet, truly or falsely. Returns false if the RX ring is full, the
    /// fill ring is empty, or `len` exceeds a frame.
    pub fn deliver_part(&mut self, len: usize, more: bool) -> bool {
        if self.rx.free(1) == 0 {
            return false;
        }
        let Some(mut descriptor) = self.fill_frame(len, |_| ()) else { return false };
        descriptor.options = if more { libc::XDP_PKT_CONTD } else { 0 };
        self.post(descriptor)
    }

    /// Puts an address, true or false, on the completion ring; returns false when the ring is full.
    pub fn complete_raw(&mut self, address: u64) -> bool {
        self.taint(address);
        let pushed = self.completion.push(address);
        self.completion.publish();
        pushed
    }

    /// Sends all packets on the TX ring: passes each to `each`, and returns its frames to the
    /// queue. Returns the number of frames. Without calls of it the NIC is stuck, and the TX ring
    /// fills up.
    #[inline]
    pub fn collect(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let room = self.completion.free(self.tx.size());
        let Self { memory, tainted, completion, whole, .. } = self;
        let sent = self.tx.take(room, |packet| {
            let chunk = memory.split(packet.address).map(|(chunk, _)| chunk);
            let more = packet.options & libc::XDP_PKT_CONTD != 0;
            if chunk.and_then(|chunk| tainted.get(chunk)) == Some(&false) {
                let data = chunk_bytes(memory, packet.address, packet.len);
                // SAFETY: inside the memory. The queue gave this chunk away through the TX ring,
                // and gets it back only by the push below; no false descriptor has named it.
                let data = data.map_or(&[][..], |data| unsafe { data.as_ref() });
                if more || !whole.is_empty() {
                    whole.extend_from_slice(data);
                } else {
                    each(data);
                }
            }
            if !more && !whole.is_empty() {
                each(whole);
                whole.clear();
            }
            let pushed = completion.push(packet.address);
            debug_assert!(pushed, "room was looked for above");
        });
        self.completion.publish();
        sent as usize
    }

    /// Takes the next chunk of the fill ring that no false descriptor has named; returns its start.
    fn take_filled(&mut self) -> Option<u64> {
        loop {
            let mut filled = None;
            self.fill.take(1, |address| filled = self.memory.split(address));
            let (chunk, offset) = filled?;
            let start = chunk as u64 * u64::from(self.memory.chunk_size());
            debug_assert!(u64::from(offset) < u64::from(self.memory.chunk_size()));
            if self.tainted.get(chunk) == Some(&false) {
                return Some(start);
            }
        }
    }

    fn post(&mut self, descriptor: Descriptor) -> bool {
        let pushed = self.rx.push(descriptor);
        self.rx.publish();
        pushed
    }

    fn taint(&mut self, address: u64) {
        let chunk = self.memory.split(address).map(|(chunk, _)| chunk);
        if let Some(tainted) = chunk.and_then(|chunk| self.tainted.get_mut(chunk)) {
            *tainted = true;
        }
    }
}

/// Returns `len` bytes of packet memory from `address`; `None` if they exceed the chunk.
fn chunk_bytes(memory: &'static Memory, address: u64, len: u32) -> Option<NonNull<[u8]>> {
    let (_, offset) = memory.split(address)?;
    if len > memory.chunk_size() - u32::from(offset) {
        return None;
    }
    let start = usize::try_from(address).ok()?;
    // SAFETY: `split` has found the address to be inside the mapping.
    let start = unsafe { memory.start().add(start) };
    Some(NonNull::slice_from_raw_parts(start, len as usize))
}
