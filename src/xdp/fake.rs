//! A fake NIC: the kernel's side of a queue's four rings, in ordinary memory.
//!
//! For tests and benches without root: the queue's side is the production code, and this side
//! does what the kernel does, or lies when asked to.
#![allow(unsafe_code, reason = "works on chunks that the queue has given away, like the kernel")]

use std::ptr::NonNull;

use super::queue::XskQueue;
use super::ring::{Consumer, Descriptor, Producer, in_plain_memory};
use super::socket::{Io, Rings, SocketError, check_ring_size};
use super::umem::{HEADROOM, Memory, Umem};

/// Plays the kernel and the wire for one [`XskQueue`].
pub struct FakeNic {
    memory: &'static Memory,
    fill: Consumer<u64>,
    rx: Producer<Descriptor>,
    tx: Consumer<Descriptor>,
    completion: Producer<u64>,
    /// Chunks that a lie has named. They are never touched again, since the lie may have given
    /// them to the queue while they were in a ring of ours.
    tainted: Box<[bool]>,
    /// A packet of several frames that is being sent.
    whole: Vec<u8>,
}

impl FakeNic {
    /// A queue with rings of `ring` slots (fill and completion: twice as many), and its NIC.
    ///
    /// # Errors
    /// [`SocketError::RingSize`], and [`SocketError::TooManyQueues`] after 127 queues of one UMEM.
    pub fn new(umem: &Umem, ring: u32) -> Result<(XskQueue, Self), SocketError> {
        Self::with(umem, ring, Io::default())
    }

    /// As [`new`](Self::new), for a queue with these settings.
    ///
    /// # Errors
    /// As [`new`](Self::new).
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

    /// Lets `packet` arrive: false if the fill ring is empty, the RX ring is full, or the packet
    /// does not fit into a frame.
    pub fn deliver(&mut self, packet: &[u8]) -> bool {
        self.deliver_in_place(packet.len(), |data| data.copy_from_slice(packet))
    }

    /// Lets `packet` arrive in as many frames as it takes, as the kernel does for a queue with
    /// multi-buffer: false, and nothing arrives, if the RX ring has no room for all of them, and if the
    /// fill ring has too few, which are then used up.
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

    /// Lets a packet of `len` bytes arrive that `write` makes in place, out of whatever the
    /// frame last held. False as for [`deliver`](Self::deliver), and `write` was not called.
    #[inline]
    pub fn deliver_in_place(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> bool {
        if self.rx.free(1) == 0 {
            return false;
        }
        self.fill_frame(len, write).is_some_and(|descriptor| self.post(descriptor))
    }

    /// Writes `len` bytes into the next frame of the fill ring, if there is one and they fit.
    #[inline]
    fn fill_frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Option<Descriptor> {
        let room = self.memory.chunk_size() - u32::from(HEADROOM);
        let len = u32::try_from(len).ok().filter(|&len| len <= room)?;
        let address = self.take_filled()? + u64::from(HEADROOM);
        if let Some(mut data) = chunk_bytes(self.memory, address, len) {
            // SAFETY: inside the memory; the queue gave this chunk away through the fill ring, from
            // which it was taken just now, and no lie has named it, so that neither a frame nor a
            // ring names it.
            write(unsafe { data.as_mut() });
        }
        Some(Descriptor { address, len, options: 0 })
    }

    /// Puts a descriptor on the RX ring, true or not; false when the ring is full.
    pub fn deliver_raw(&mut self, address: u64, len: u32) -> bool {
        self.deliver_descriptor(Descriptor { address, len, options: 0 })
    }

    /// As [`deliver_raw`](Self::deliver_raw), with options.
    pub fn deliver_descriptor(&mut self, descriptor: Descriptor) -> bool {
        self.taint(descriptor.address);
        self.post(descriptor)
    }

    /// Takes the next frame of the fill ring, `len` bytes of it as they are, and says that `more` of its
    /// packet are to come, true or not; false when a ring does not have it.
    pub fn deliver_part(&mut self, len: usize, more: bool) -> bool {
        if self.rx.free(1) == 0 {
            return false;
        }
        let Some(mut descriptor) = self.fill_frame(len, |_| ()) else { return false };
        descriptor.options = if more { libc::XDP_PKT_CONTD } else { 0 };
        self.post(descriptor)
    }

    /// Puts an address on the completion ring, true or not; false when the ring is full.
    pub fn complete_raw(&mut self, address: u64) -> bool {
        self.taint(address);
        let pushed = self.completion.push(address);
        self.completion.publish();
        pushed
    }

    /// Sends everything on the TX ring: shows each packet to `each`, and gives the frames back.
    /// Returns how many frames. Who does not call it has a NIC that is stuck, and a TX ring that fills.
    #[inline]
    pub fn collect(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let room = self.completion.free(self.tx.size());
        let Self { memory, tainted, completion, whole, .. } = self;
        let sent = self.tx.take(room, |packet| {
            let chunk = memory.split(packet.address).map(|(chunk, _)| chunk);
            let more = packet.options & libc::XDP_PKT_CONTD != 0;
            if chunk.and_then(|chunk| tainted.get(chunk)) == Some(&false) {
                let data = chunk_bytes(memory, packet.address, packet.len);
                // SAFETY: inside the memory; the queue gave this chunk away through the TX ring,
                // and gets it back only by the line below; no lie has named it.
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

    /// The start of the next chunk of the fill ring that no lie has named.
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

/// `len` bytes of packet memory from `address`; `None` if they are not inside one chunk.
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
