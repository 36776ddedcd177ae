//! Packets that are longer than a frame: the chunks that follow the first one, as a list.
//!
//! ```text
//!  Frame ------> chunk 7: headers, payload --link--> chunk 3: payload --link--> chunk 9: payload, end
//!  (len, behind)          `len` bytes                        `behind` bytes together
//! ```
//!
//! The [`Frame`] of the first chunk owns them all: it is given back, and sent, with what is behind it.
//! What is in there is read for the checksum of a ping, and never changed: headers are in the first chunk.
//! The links are kept beside the packet memory, one per chunk, where nobody else can write them.
//! Source: Documentation/networking/af_xdp.rst, "Multi-Buffer Rx" and "Multi-Buffer Tx".

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Frame, FramePool, HEADROOM, Memory};

/// Most frames of a packet: the kernel sends one more (`MAX_SKB_FRAGS` of include/linux/skbuff.h,
/// and the first), and drops a longer packet without giving its frames back.
pub const MAX_FRAMES: u32 = 17;

/// [`Frame::behind`] of a packet that is not whole.
const BROKEN: u16 = u16::MAX;

/// No chunk follows. No address is as high.
const END: u64 = u64::MAX;

/// Frames that a packet of `len` bytes takes, of `frame_size` bytes each.
pub const fn frames_for(len: usize, frame_size: u32) -> usize {
    len.div_ceil(frame_size as usize - HEADROOM as usize)
}

/// A chunk that is not a packet's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::xdp) struct Behind {
    /// Its number.
    pub chunk: u32,
    /// Bytes from the start of the UMEM to its data.
    pub address: u64,
    /// Bytes of data.
    pub len: u16,
}

/// Per chunk, which one follows: its data's address, shifted by 16, and length. Relaxed throughout:
/// as with the ledger, who moves a frame to another thread brings the order along.
pub(super) struct Links(Box<[AtomicU64]>);

impl Links {
    pub(super) fn new(chunks: u32) -> Self {
        Self((0..chunks).map(|_| AtomicU64::new(END)).collect())
    }

    fn set(&self, chunk: u32, next: u64) {
        if let Some(link) = self.0.get(chunk as usize) {
            link.store(next, Ordering::Relaxed);
        }
    }

    fn get(&self, chunk: u32) -> Option<u64> {
        let next = self.0.get(chunk as usize)?.load(Ordering::Relaxed);
        (next != END).then_some(next)
    }
}

impl Memory {
    /// The chunks of a packet behind its first, `chunk`, of which something is known to be behind.
    pub(in crate::xdp) fn behind(&self, chunk: u32) -> impl Iterator<Item = Behind> + use<'_> {
        let mut last = chunk;
        let next = move || {
            let link = self.links.get(last)?;
            let (address, len) = (link >> 16, u16::try_from(link & 0xffff).ok()?);
            last = u32::try_from(address >> self.shift).ok()?;
            Some(Behind { chunk: last, address, len })
        };
        std::iter::from_fn(next).take(MAX_FRAMES as usize - 1)
    }
}

impl Frame {
    /// Whether the packet is longer than its [`data`](Self::data).
    #[inline(always)]
    pub fn is_long(&self) -> bool {
        self.behind != 0
    }

    /// Whether no frame of the packet is missing, and those that are there are not too many.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.behind != BROKEN
    }

    /// Bytes of the whole packet, 65,535 at most.
    #[inline]
    pub fn packet_len(&self) -> u16 {
        self.len.saturating_add(self.behind)
    }
}

impl FramePool {
    /// A copy of `packet`, in as many frames as it takes; `None` if those are more than
    /// [`MAX_FRAMES`], or than the pool has.
    #[inline]
    pub fn copy(&mut self, packet: &[u8]) -> Option<Frame> {
        let room = (self.memory.chunk_size() - u32::from(HEADROOM)) as usize;
        if packet.len() > room {
            return self.copy_long(packet, room);
        }
        let mut frame = self.pop()?;
        // Always, as it has the room.
        let _fits = frame.copy_from(packet);
        Some(frame)
    }

    fn copy_long(&mut self, packet: &[u8], room: usize) -> Option<Frame> {
        let count = packet.len().div_ceil(room);
        if count > MAX_FRAMES as usize || count > self.len() {
            return None;
        }
        let memory = self.memory;
        let mut growing = Growing::default();
        let mut parts = packet.chunks(room).peekable();
        while let Some(part) = parts.next() {
            let mut frame = self.pop()?;
            let _fits = frame.copy_from(part);
            if let (Some(whole), _) = growing.add(memory, Some(frame), parts.peek().is_some()) {
                return Some(whole);
            }
        }
        None
    }

    /// Frames that a packet takes.
    pub fn frames_of(&self, frame: &Frame) -> usize {
        let first = self.memory.chunk_of(frame).filter(|_| frame.is_long());
        1 + first.map_or(0, |chunk| self.memory.behind(chunk).count())
    }

    /// What of the frame's packet is behind its data, chunk by chunk.
    pub fn behind<'f>(&'f self, frame: &'f Frame) -> impl Iterator<Item = &'f [u8]> {
        let first = self.memory.chunk_of(frame).filter(|_| frame.is_long());
        let chunks = first.into_iter().flat_map(|chunk| self.memory.behind(chunk));
        chunks.map(move |behind| frame.bytes_behind(self.memory, &behind))
    }

    /// Gives back what is behind the frame's data, so that the data is the whole packet.
    pub fn cut(&mut self, frame: &mut Frame) {
        if let Some(chunk) = self.memory.chunk_of(frame).filter(|_| frame.is_long()) {
            self.push_behind(chunk);
        }
        frame.behind = 0;
    }

    #[cold]
    pub(super) fn push_behind(&mut self, first: u32) {
        let memory = self.memory;
        for behind in memory.behind(first) {
            self.push_chunk(behind.chunk);
        }
    }
}

/// A packet whose last frame has not come yet.
#[derive(Debug, Default)]
pub(in crate::xdp) struct Growing {
    first: Option<Frame>,
    /// Chunk of its last frame.
    last: u32,
    frames: u32,
    broken: bool,
    /// More is to come.
    open: bool,
}

impl Growing {
    /// Whether the next frame belongs to a packet that has begun.
    #[inline(always)]
    pub(in crate::xdp) fn is_open(&self) -> bool {
        self.open
    }

    /// Adds the packet's next frame, `None` for one that cannot be had; `more` are to come. Returns
    /// the packet when it is complete, and of how many frames it is.
    ///
    /// One that misses a frame, has an empty one, or is too long, is marked as not
    /// [whole](Frame::is_whole). If it has more than [`MAX_FRAMES`], it comes in such pieces.
    #[cold]
    pub(in crate::xdp) fn add(
        &mut self,
        memory: &Memory,
        frame: Option<Frame>,
        more: bool,
    ) -> (Option<Frame>, u32) {
        match frame {
            Some(frame) => self.append(memory, frame),
            None => self.broken = true,
        }
        self.open = more;
        self.broken |= more && self.frames == MAX_FRAMES;
        if more && self.frames < MAX_FRAMES {
            return (None, 0);
        }
        let mut packet = self.first.take();
        if let Some(packet) = packet.as_mut().filter(|_| self.broken) {
            packet.behind = BROKEN;
        }
        // What is still to come of a broken packet is no better.
        self.broken &= more;
        (packet, std::mem::take(&mut self.frames))
    }

    fn append(&mut self, memory: &Memory, frame: Frame) {
        // Always there: a frame of this memory.
        let Some(chunk) = memory.chunk_of(&frame) else { return };
        memory.links.set(chunk, END);
        self.frames += 1;
        self.broken |= frame.is_empty();
        let last = std::mem::replace(&mut self.last, chunk);
        let Some(first) = &mut self.first else {
            self.first = Some(frame);
            return;
        };
        let address = (u64::from(chunk) << memory.shift) + u64::from(frame.offset);
        memory.links.set(last, address << 16 | u64::from(frame.len));
        first.behind = first.behind.saturating_add(frame.len);
        self.broken |= first.packet_len() == u16::MAX;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    use crate::xdp::umem::Umem;

    #[test]
    fn a_packet_is_copied_into_as_many_frames_as_it_takes() {
        let (_umem, mut pool) = Umem::create(20, 2048).unwrap();
        let packet: Vec<u8> = (0..=255).cycle().take(17 * 1792 + 1).collect();
        for (len, frames) in [(1, 1), (1792, 1), (1793, 2), (5376, 3), (17 * 1792, 17)] {
            let copied = pool.copy(&packet[..len]).unwrap();
            assert_eq!((20 - pool.len(), frames_for(len, 2048)), (frames, frames), "{len} bytes");
            assert_eq!(usize::from(copied.packet_len()), len);
            assert_eq!((copied.is_long(), copied.is_whole()), (frames > 1, true), "{len} bytes");
            assert_eq!(copied.data(), &packet[..len.min(1792)]);
            pool.push(copied);
            assert_eq!(pool.len(), 20, "{len} bytes");
        }
        assert!(pool.copy(&packet).is_none(), "more than 17 frames");
        let held: Vec<Frame> = (0..18).filter_map(|_| pool.pop()).collect();
        assert!(pool.copy(&packet[..5000]).is_none(), "two frames are left");
        assert_eq!(pool.len(), 2);
        held.into_iter().for_each(|frame| pool.push(frame));
    }

    #[test]
    fn what_is_behind_can_be_read() {
        let (_umem, mut pool) = Umem::create(4, 2048).unwrap();
        let packet: Vec<u8> = (0..=255).cycle().take(4001).collect();
        let frame = pool.copy(&packet).unwrap();
        let parts: Vec<&[u8]> = [frame.data()].into_iter().chain(pool.behind(&frame)).collect();
        assert_eq!((parts.len(), parts.concat()), (3, packet));
        pool.push(frame);
        let short = pool.copy(&[1; 100]).unwrap();
        assert_eq!(pool.behind(&short).count(), 0);
        pool.push(short);
    }

    #[test]
    fn what_is_behind_can_be_cut_off_but_not_covered() {
        let (_umem, mut pool) = Umem::create(4, 2048).unwrap();
        let mut frame = pool.copy(&[7; 4000]).unwrap();
        assert!(!frame.set_len(10) && !frame.copy_from(&[1]), "what is behind would be lost");
        assert_eq!(frame.tailroom(), 0);
        assert!(frame.push_front(50) && frame.pull_front(4));
        assert_eq!((frame.len(), frame.packet_len()), (1792 + 46, 4046));
        pool.cut(&mut frame);
        assert_eq!((pool.len(), frame.packet_len(), frame.is_long()), (3, 1838, false));
        pool.cut(&mut frame);
        assert!(frame.set_len(10));
        pool.push(frame);
        assert_eq!(pool.len(), 4);
    }

    #[test]
    fn a_packet_may_not_be_longer_than_its_length_can_say() {
        let (_umem, mut pool) = Umem::create(20, 4096).unwrap();
        let longest = pool.copy(&[1; 17 * 3840]).unwrap();
        assert_eq!((longest.packet_len(), longest.is_whole()), (65_280, true));
        pool.push(longest);
        let memory = pool.memory;
        let mut growing = Growing::default();
        for more in (0..17).rev().map(|left| left > 0) {
            let mut frame = pool.pop().unwrap();
            assert!(frame.push_front(256) && frame.set_len(4000));
            if let (Some(packet), frames) = growing.add(memory, Some(frame), more) {
                assert_eq!((frames, packet.is_whole(), more), (17, false, false));
                pool.push(packet);
            }
        }
        assert_eq!(pool.len(), 20);
    }
}
