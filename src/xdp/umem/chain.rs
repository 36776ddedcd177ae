//! Packets that are longer than a frame: a linked list of the chunks behind the first one.
//!
//! ```text
//!  Frame -------> chunk 7: headers, data --link--> chunk 3: data --link--> chunk 9: data, end
//!  (len, behind)           `len` bytes                   `behind` bytes together
//! ```
//!
//! The [`Frame`] of the first chunk owns all of them: they are freed and sent together with it.
//! Later chunks are read for the checksum of a ping, and never changed: headers are in the first
//! chunk. The links, one per chunk, are kept outside the packet memory, so that only this process
//! writes them.
//! Source: Documentation/networking/af_xdp.rst, "Multi-Buffer Rx" and "Multi-Buffer Tx".

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Frame, FramePool, HEADROOM, Memory};

/// Largest number of frames of a packet. The kernel sends one more (`MAX_SKB_FRAGS` of
/// include/linux/skbuff.h, and the first), and drops a longer packet without returning its frames.
pub const MAX_FRAMES: u32 = 17;

/// Value of [`Frame::behind`] for an incomplete packet.
const BROKEN: u16 = u16::MAX;

/// Link of the last chunk of a packet. No address is as high.
const END: u64 = u64::MAX;

/// Returns the number of frames of `frame_size` bytes that a packet of `len` bytes takes.
pub const fn frames_for(len: usize, frame_size: u32) -> usize {
    len.div_ceil(frame_size as usize - HEADROOM as usize)
}

/// A later chunk of a packet, behind its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::xdp) struct Behind {
    /// Chunk number.
    pub chunk: u32,
    /// Offset of the data from the start of the UMEM, in bytes.
    pub address: u64,
    /// Length of the data in bytes.
    pub len: u16,
}

/// Link of each chunk to the next one: the address of that chunk's data, shifted left by 16 bits,
/// and its length. Relaxed throughout: as with the ledger, moving a frame to another thread
/// provides the ordering.
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
    /// Iterates over the later chunks of a long packet whose first chunk is `chunk`.
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

    /// Whether the packet is complete: no frame is missing, and it has no more frames than allowed.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.behind != BROKEN
    }

    /// Length of the whole packet in bytes, at most 65,535.
    #[inline]
    pub fn packet_len(&self) -> u16 {
        self.len.saturating_add(self.behind)
    }
}

impl FramePool {
    /// Copies `packet` into as many frames as it takes; `None` if it takes more than [`MAX_FRAMES`]
    /// or more than the pool has.
    #[inline]
    pub fn copy(&mut self, packet: &[u8]) -> Option<Frame> {
        let room = (self.memory.chunk_size() - u32::from(HEADROOM)) as usize;
        if packet.len() > room {
            return self.copy_long(packet, room);
        }
        let mut frame = self.pop()?;
        // Always fits: the length was compared with the room.
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

    /// Returns the number of frames of a packet.
    pub fn frames_of(&self, frame: &Frame) -> usize {
        let first = self.memory.chunk_of(frame).filter(|_| frame.is_long());
        1 + first.map_or(0, |chunk| self.memory.behind(chunk).count())
    }

    /// Iterates over the data of the packet's later chunks.
    pub fn behind<'f>(&'f self, frame: &'f Frame) -> impl Iterator<Item = &'f [u8]> {
        let first = self.memory.chunk_of(frame).filter(|_| frame.is_long());
        let chunks = first.into_iter().flat_map(|chunk| self.memory.behind(chunk));
        chunks.map(move |behind| frame.bytes_behind(self.memory, &behind))
    }

    /// Frees the later chunks of a packet, so that the frame's data is the whole packet.
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

/// A packet whose last frame has not arrived yet.
#[derive(Debug, Default)]
pub(in crate::xdp) struct Growing {
    first: Option<Frame>,
    /// Number of the last chunk.
    last: u32,
    frames: u32,
    broken: bool,
    /// Whether more frames are to come.
    open: bool,
}

impl Growing {
    /// A packet of which an earlier process has received the first frames: the rest is broken.
    pub(in crate::xdp) fn without_beginning() -> Self {
        Self { broken: true, open: true, ..Self::default() }
    }

    /// Whether the next frame belongs to a packet that has begun.
    #[inline(always)]
    pub(in crate::xdp) fn is_open(&self) -> bool {
        self.open
    }

    /// Adds the packet's next frame, or `None` for an invalid one; `more` announces further frames.
    /// Returns the packet once it is complete, with its number of frames.
    ///
    /// A packet with a missing or empty frame, or one that is too long, is marked as not
    /// [whole](Frame::is_whole). A packet of more than [`MAX_FRAMES`] is returned in parts of at
    /// most that many frames.
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
        // The later frames of a broken packet are broken too.
        self.broken &= more;
        (packet, std::mem::take(&mut self.frames))
    }

    fn append(&mut self, memory: &Memory, frame: Frame) {
        // Always `Some`: the frame is of this memory.
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
    fn later_chunks_can_be_read() {
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
    fn later_chunks_can_be_cut_off_but_not_covered() {
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
