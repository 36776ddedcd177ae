//! The UMEM: packet memory shared with the kernel, divided into chunks, each with one owner.
//!
//! ```text
//!  chunk (2048 or 4096 bytes)
//!  |<- headroom ->|<- data ->|<- tailroom ->|
//!  0              offset     offset + len   chunk size
//! ```
//!
//! A chunk is either *ours*, named by at most one [`Frame`], or *with the kernel*, in one direction
//! of one queue. The ledger, one byte per chunk, records which: an address from a ring becomes a
//! frame only if the ledger assigns its chunk to this side of this ring. Two live frames for one
//! chunk are therefore impossible, whatever the kernel (or a fake) claims.
//!
//! Memory and ledger are one memfd. A later process that maps it ([`Umem::adopt`]) knows from the
//! ledger which frames are free, and which are in the rings of the sockets that it gets with it:
//!
//! ```text
//! | chunks | ledger: a byte per chunk | a byte per queue: inside a packet of several frames |
//! ```
#![allow(unsafe_code, reason = "frames are slices of memory shared with the kernel")]

pub mod chain;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, memfd_create};

use self::chain::{Behind, Links};
use super::os::Region;

/// Free bytes in front of a received packet: `XDP_PACKET_HEADROOM` of include/uapi/linux/bpf.h.
pub const HEADROOM: u16 = 256;

/// Largest number of queues per UMEM over its lifetime: each takes two of the ledger's 255 values.
const MAX_QUEUES: u8 = 127;

/// Size of a page of the huge page pool, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// Reason why packet memory could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// A chunk size that the kernel does not accept.
    #[error("frame size {got}: use 2048 or 4096")]
    FrameSize {
        /// Requested size in bytes.
        got: u32,
    },
    /// No frames, or more than `max`.
    #[error("{got} frames: use between 1 and {max}")]
    FrameCount {
        /// Requested number of frames.
        got: u32,
        /// Largest number of frames.
        max: u32,
    },
    /// The kernel refused the memory.
    #[error(
        "cannot get {bytes} bytes of packet memory: {source}; \
         free memory, raise the memory limit of the service, or configure fewer frames"
    )]
    Memory {
        /// Requested size in bytes.
        bytes: usize,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The file of another process has another size.
    #[error("packet memory of another process has {got} bytes instead of {expected}")]
    Size {
        /// Size of the file in bytes.
        got: u64,
        /// Smallest size in bytes.
        expected: usize,
    },
}

/// The side of the queue that holds a chunk: a value of the ledger, never [`OURS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder(u8);

/// Ledger value of a chunk that is not with the kernel.
const OURS: u8 = 0;

/// Packet memory for one worker. It stays mapped until the process ends, so that a [`Frame`] can be
/// a bare pointer: dropping a `Umem` frees nothing.
pub struct Umem {
    memory: &'static Memory,
}

/// The mapping and its ledger. Aligned to its own cache lines, as it is read for every packet.
#[repr(align(128))]
pub(super) struct Memory {
    region: Region,
    file: OwnedFd,
    /// log2 of the chunk size.
    shift: u32,
    chunk_size: u32,
    /// Holder of each chunk. Relaxed throughout: only the owner of the chunk's one frame changes
    /// the value [`OURS`], and only a holder's one queue changes the holder's value; moving a frame
    /// or a queue to another thread provides the ordering.
    ledger: &'static [AtomicU8],
    /// Whether a process has stopped inside a received packet of several frames, by queue.
    inside_packet: &'static [AtomicU8],
    /// Next chunk of each chunk in a packet that is longer than a frame.
    links: Links,
    /// Number of queues that have been assigned holders.
    queues: AtomicU8,
    on_huge_pages: bool,
}

impl Umem {
    /// Maps `frames` chunks of `frame_size` bytes (2048 or 4096), on huge pages if available, and
    /// returns all of them as free frames.
    ///
    /// Must be called at start, before capabilities are dropped. The memory is never freed.
    ///
    /// # Errors
    /// [`UmemError`], which names the number to change.
    pub fn create(frames: u32, frame_size: u32) -> Result<(Self, FramePool), UmemError> {
        let bytes = checked_size(frames, frame_size)?;
        let (region, file, on_huge_pages) =
            map_memfd(bytes).map_err(|source| UmemError::Memory { bytes, source })?;
        let umem = Self::over(region, file, frames, frame_size, on_huge_pages);
        let pool = umem.free_frames();
        Ok((umem, pool))
    }

    /// Maps the packet memory of another process, which has `frames` chunks of `frame_size` bytes.
    /// [`Umem::free_frames`] returns the free ones once that process has stopped using them.
    ///
    /// # Errors
    /// [`UmemError::Size`] for a file that is too small; else as [`Umem::create`].
    pub fn adopt(file: OwnedFd, frames: u32, frame_size: u32) -> Result<Self, UmemError> {
        let bytes = checked_size(frames, frame_size)?;
        let refused = |source| UmemError::Memory { bytes, source };
        let facts = fstat(&file).map_err(|error| refused(error.into()))?;
        let got = u64::try_from(facts.st_size).unwrap_or_default();
        if got < bytes as u64 {
            return Err(UmemError::Size { got, expected: bytes });
        }
        // A mapping of a file on huge pages is a whole number of them.
        let on_huge_pages = u64::try_from(facts.st_blksize) == Ok(HUGE_PAGE as u64);
        let len = if on_huge_pages { bytes.next_multiple_of(HUGE_PAGE) } else { bytes };
        let region = Region::shared(file.as_fd(), len, 0).map_err(refused)?;
        Ok(Self::over(region, file, frames, frame_size, on_huge_pages))
    }

    /// Wraps a mapping of [`checked_size`] bytes, which stays for good.
    fn over(
        region: Region,
        file: OwnedFd,
        frames: u32,
        frame_size: u32,
        on_huge_pages: bool,
    ) -> Self {
        let chunks = frames as usize;
        let bytes_at = |start: usize, len: usize| -> &'static [AtomicU8] {
            let Some(start) = region.at(start, len) else { return &[] };
            // SAFETY: `at` found the range inside the mapping, which is leaked below; every byte is
            // a valid `AtomicU8`, and is only used atomically, in this process and in others.
            unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), len) }
        };
        let ledger = bytes_at(chunks * frame_size as usize, chunks);
        let inside_packet = bytes_at(chunks * (frame_size as usize + 1), usize::from(MAX_QUEUES));
        let memory: &'static Memory = Box::leak(Box::new(Memory {
            region,
            file,
            shift: frame_size.trailing_zeros(),
            chunk_size: frame_size,
            ledger,
            inside_packet,
            links: Links::new(frames),
            queues: AtomicU8::new(0),
            on_huge_pages,
        }));
        Self { memory }
    }

    /// Returns all frames that are not with the kernel. To be called when no frame of this memory is
    /// alive, in no process.
    ///
    /// Cost: one look at each byte of the ledger.
    pub fn free_frames(&self) -> FramePool {
        let memory = self.memory;
        let is_free = |chunk: &u32| memory.holder_of(*chunk) == Some(OURS);
        let mut free = Vec::with_capacity(memory.chunks());
        // The top of the stack is the first free chunk of the memory.
        free.extend((0..self.frames()).rev().filter(is_free));
        let len = free.len();
        free.resize(memory.chunks(), 0);
        FramePool { memory, free: free.into(), len }
    }

    /// The memfd, to be passed to another process.
    pub fn file(&self) -> BorrowedFd<'static> {
        self.memory.file.as_fd()
    }

    /// Number of chunks.
    #[expect(clippy::cast_possible_truncation, reason = "`create` took the number as a u32")]
    pub fn frames(&self) -> u32 {
        self.memory.ledger.len() as u32
    }

    /// Size of a chunk in bytes.
    pub fn frame_size(&self) -> u32 {
        1 << self.memory.shift
    }

    /// Whether the memory lies on pages of the huge page pool.
    pub fn on_huge_pages(&self) -> bool {
        self.memory.on_huge_pages
    }

    pub(super) fn memory(&self) -> &'static Memory {
        self.memory
    }
}

/// Returns the size of the memory for `frames` chunks, their ledger and the marks of the queues.
fn checked_size(frames: u32, frame_size: u32) -> Result<usize, UmemError> {
    const MAX: u32 = 1 << 24;
    if !matches!(frame_size, 2048 | 4096) {
        return Err(UmemError::FrameSize { got: frame_size });
    }
    if !(1..=MAX).contains(&frames) {
        return Err(UmemError::FrameCount { got: frames, max: MAX });
    }
    Ok(frames as usize * (frame_size as usize + 1) + usize::from(MAX_QUEUES))
}

/// Maps a memfd, which another process can map too; on huge pages if the pool has enough.
fn map_memfd(bytes: usize) -> io::Result<(Region, OwnedFd, bool)> {
    // A file on huge pages must be a whole number of them. Their default size is 2 MiB nearly
    // everywhere; elsewhere the first attempt fails and the second succeeds.
    let huge_bytes = bytes.next_multiple_of(HUGE_PAGE);
    match map_memfd_with(MemfdFlags::HUGETLB, huge_bytes) {
        Ok((region, file)) => Ok((region, file, true)),
        Err(_) => {
            map_memfd_with(MemfdFlags::empty(), bytes).map(|(region, file)| (region, file, false))
        }
    }
}

fn map_memfd_with(flags: MemfdFlags, bytes: usize) -> io::Result<(Region, OwnedFd)> {
    let file = memfd_create(c"holdfast-umem", MemfdFlags::CLOEXEC | flags)?;
    // Allocated here, so that too little memory is an error and not a SIGBUS on first access.
    fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
    Ok((Region::shared(file.as_fd(), bytes, 0)?, file))
}

impl Memory {
    /// Returns the first byte, for registration with the kernel.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.region.start()
    }

    /// Total size of the chunks in bytes.
    pub(super) fn len(&self) -> usize {
        self.ledger.len() << self.shift
    }

    pub(super) fn chunks(&self) -> usize {
        self.ledger.len()
    }

    /// Size of a chunk in bytes.
    #[inline(always)]
    pub(super) fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Returns two ledger values for a new queue, for receive and transmit; `None` after 127
    /// queues.
    pub(super) fn new_holders(&self) -> Option<(Holder, Holder)> {
        // Relaxed: only the number itself matters.
        let queue = self
            .queues
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < MAX_QUEUES).then(|| n + 1))
            .ok()?;
        Some((Holder(2 * queue + 1), Holder(2 * queue + 2)))
    }

    /// Returns the ledger's value of a chunk.
    fn holder_of(&self, chunk: u32) -> Option<u8> {
        Some(self.ledger.get(chunk as usize)?.load(Ordering::Relaxed))
    }

    /// Returns the number of chunks that each of two holders has.
    pub(super) fn held_by(&self, holders: [Holder; 2]) -> [u32; 2] {
        let mut held = [0; 2];
        for entry in self.ledger {
            let value = entry.load(Ordering::Relaxed);
            for (Holder(holder), count) in holders.iter().zip(&mut held) {
                *count += u32::from(value == *holder);
            }
        }
        held
    }

    /// Records whether the queue with this holder stops inside a packet of several frames.
    pub(super) fn set_inside_packet(&self, Holder(receive): Holder, inside: bool) {
        if let Some(mark) = self.inside_packet.get(usize::from(receive / 2)) {
            mark.store(inside.into(), Ordering::Relaxed);
        }
    }

    /// Returns what [`set_inside_packet`](Self::set_inside_packet) has recorded.
    pub(super) fn is_inside_packet(&self, Holder(receive): Holder) -> bool {
        let mark = self.inside_packet.get(usize::from(receive / 2));
        mark.is_some_and(|mark| mark.load(Ordering::Relaxed) != 0)
    }

    /// Splits an address of a descriptor into chunk and offset; `None` for an address beyond the
    /// chunks.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the offset is below 4096")]
    pub(super) fn split(&self, address: u64) -> Option<(usize, u16)> {
        let chunk = usize::try_from(address >> self.shift).ok()?;
        let offset = address & u64::from(self.chunk_size() - 1);
        (chunk < self.ledger.len()).then_some((chunk, offset as u16))
    }

    /// Takes the chunk at `address` back from `holder`, as a frame whose `len` bytes of data begin
    /// there; `None` if `holder` does not hold it, or the data would exceed the chunk.
    #[inline(always)]
    pub(super) fn take(&self, address: u64, len: u32, holder: Holder) -> Option<Frame> {
        let (chunk, offset) = self.split(address)?;
        let entry = self.ledger.get(chunk)?;
        let fits = len <= self.chunk_size() - u32::from(offset);
        if entry.load(Ordering::Relaxed) != holder.0 || !fits {
            return None;
        }
        entry.store(OURS, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "it fits into a chunk")]
        // SAFETY: the chunk exists, the data fits into it, and `holder` held it until the line
        // above, so that no frame named it.
        Some(unsafe { self.frame(chunk, offset, len as u16) })
    }

    /// Gives a frame to `holder`; returns the address of its data for a descriptor. Returns a frame
    /// of another UMEM as the error.
    #[inline(always)]
    pub(super) fn give(&self, frame: Frame, holder: Holder) -> Result<u64, Frame> {
        let start = frame.chunk.addr().get().wrapping_sub(self.start().addr().get());
        let Some(entry) = self.ledger.get(start >> self.shift) else { return Err(frame) };
        entry.store(holder.0, Ordering::Relaxed);
        Ok(start as u64 + u64::from(frame.offset))
    }

    /// Gives a chunk behind a packet's first chunk to `holder`.
    pub(super) fn give_behind(&self, chunk: u32, holder: Holder) {
        if let Some(entry) = self.ledger.get(chunk as usize) {
            entry.store(holder.0, Ordering::Relaxed);
        }
    }

    /// Returns the number of a frame's chunk; `None` for a frame of another UMEM.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "chunks are numbered by a u32")]
    pub(super) fn chunk_of(&self, frame: &Frame) -> Option<u32> {
        let start = frame.chunk.addr().get().wrapping_sub(self.start().addr().get());
        let chunk = start >> self.shift;
        (chunk < self.ledger.len()).then_some(chunk as u32)
    }

    /// Creates the one frame of a chunk.
    ///
    /// # Safety
    /// `chunk` must be below the number of chunks, with `offset + len` inside it; its ledger value
    /// must be [`OURS`], and no other frame may name it.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a chunk has 2048 or 4096 bytes")]
    unsafe fn frame(&self, chunk: usize, offset: u16, len: u16) -> Frame {
        // SAFETY: `chunk` is below the number of chunks that the mapping was created for.
        let start = unsafe { self.start().add(chunk << self.shift) };
        Frame { chunk: start, offset, len, size: self.chunk_size() as u16, behind: 0 }
    }
}

/// A packet, or an empty buffer for one: a chunk of packet memory that this value owns and, if the
/// packet is longer than a frame, the chunks with the rest of it (see [`chain`]).
///
/// Move-only, so that a chunk cannot be queued twice. Must be returned to a [`FramePool`] or a
/// [`XskQueue`](super::queue::XskQueue): a frame that is dropped is lost until the process ends.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost until the process ends"]
pub struct Frame {
    /// First byte of the chunk.
    chunk: NonNull<u8>,
    /// Offset of the data from the start of the chunk; `offset + len <= size`.
    offset: u16,
    /// Length of the data in bytes.
    len: u16,
    /// Size of the chunk in bytes.
    size: u16,
    /// Bytes of the packet behind the data, in chunks that this frame owns too: see [`chain`].
    behind: u16,
}

// SAFETY: a frame owns its chunk like a `Box<[u8]>`, and the memory is never unmapped.
unsafe impl Send for Frame {}
// SAFETY: `&Frame` gives out `&[u8]` only.
unsafe impl Sync for Frame {}

const _: () = assert!(size_of::<Frame>() == 16 && size_of::<Option<Frame>>() == 16);

impl Frame {
    /// Returns the packet from the Ethernet header on, up to the end of the first chunk.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: `offset + len <= size`, so the range lies inside our chunk, which was mapped for
        // good as zeros; the ledger rules out a second frame of it, and that it is with the kernel.
        unsafe {
            std::slice::from_raw_parts(
                self.chunk.as_ptr().add(usize::from(self.offset)),
                usize::from(self.len),
            )
        }
    }

    /// Returns the data of a later chunk of this packet; an empty slice if the chunk is not in
    /// `memory`.
    fn bytes_behind(&self, memory: &Memory, behind: &Behind) -> &[u8] {
        let inside = usize::try_from(behind.address)
            .ok()
            .filter(|start| start.saturating_add(behind.len.into()) <= memory.len());
        let Some(start) = inside else { return &[] };
        // SAFETY: the range lies inside the mapping, which is never unmapped. The chunk belongs to
        // this frame, which is borrowed, and frames change only their first chunk.
        unsafe { std::slice::from_raw_parts(memory.start().as_ptr().add(start), behind.len.into()) }
    }

    /// Returns the data for changes in place.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`, and `self` is borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.chunk.as_ptr().add(usize::from(self.offset)),
                usize::from(self.len),
            )
        }
    }

    /// Length of the data in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether the data is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of free bytes in front of the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.offset)
    }

    /// Number of bytes by which the data can grow at its end; 0 if the packet continues in another
    /// chunk.
    #[inline]
    pub fn tailroom(&self) -> usize {
        if self.is_long() { 0 } else { usize::from(self.size - self.offset - self.len) }
    }

    /// Extends the data by `count` bytes at the front, whose contents are stale. Returns false and
    /// changes nothing if the headroom is too small.
    #[inline]
    #[must_use]
    pub fn push_front(&mut self, count: usize) -> bool {
        let Ok(count) = u16::try_from(count) else { return false };
        let Some(offset) = self.offset.checked_sub(count) else { return false };
        self.offset = offset;
        self.len += count;
        true
    }

    /// Removes `count` bytes from the front. Returns false and changes nothing if the data is
    /// shorter.
    #[inline]
    #[must_use]
    pub fn pull_front(&mut self, count: usize) -> bool {
        let Ok(count) = u16::try_from(count) else { return false };
        let Some(len) = self.len.checked_sub(count) else { return false };
        self.len = len;
        self.offset += count;
        true
    }

    /// Truncates or extends the data at the end; the contents of new bytes are stale. Returns false
    /// and changes nothing if the chunk is too small or the packet continues in another chunk.
    #[inline]
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        let Ok(len) = u16::try_from(len) else { return false };
        if len > self.size - self.offset || self.is_long() {
            return false;
        }
        self.len = len;
        true
    }

    /// Replaces the data by a copy of `packet`, with the usual [`HEADROOM`]. Returns false and
    /// changes nothing if it does not fit or the packet continues in another chunk.
    #[inline]
    #[must_use]
    pub fn copy_from(&mut self, packet: &[u8]) -> bool {
        let Ok(len) = u16::try_from(packet.len()) else { return false };
        if len > self.size - HEADROOM || self.is_long() {
            return false;
        }
        (self.offset, self.len) = (HEADROOM, len);
        self.data_mut().copy_from_slice(packet);
        true
    }
}

/// The free frames of a worker: a stack, so that the next frame is the one still in the cache.
///
/// Holds numbers of chunks that are ours and that no [`Frame`] names.
pub struct FramePool {
    memory: &'static Memory,
    /// One slot per chunk; the first `len` slots are in use.
    free: Box<[u32]>,
    len: usize,
}

impl FramePool {
    /// Returns the pool with all frames that are not with the kernel, as
    /// [`Umem::free_frames`] does.
    pub fn renewed(self) -> Self {
        Umem { memory: self.memory }.free_frames()
    }

    /// Returns an empty frame with [`HEADROOM`] in front; `None` if no frame is free.
    #[inline]
    pub fn pop(&mut self) -> Option<Frame> {
        let chunk = self.pop_chunk()?;
        // SAFETY: a number in the pool names an existing chunk that is ours and has no frame.
        Some(unsafe { self.memory.frame(chunk as usize, HEADROOM, 0) })
    }

    /// Returns a frame to the pool. A frame of another UMEM is lost.
    #[inline]
    pub fn push(&mut self, frame: Frame) {
        if let Some(chunk) = self.memory.chunk_of(&frame) {
            if frame.is_long() {
                self.push_behind(chunk);
            }
            self.push_chunk(chunk);
        }
    }

    /// Gives a free chunk to `holder`; returns its address for a descriptor.
    #[inline(always)]
    pub(super) fn lend(&mut self, holder: Holder) -> Option<u64> {
        let chunk = self.pop_chunk()?;
        self.memory.ledger.get(chunk as usize)?.store(holder.0, Ordering::Relaxed);
        Some(u64::from(chunk) << self.memory.shift)
    }

    /// Takes the chunk at `address` back from `holder`; returns false if `holder` does not hold it.
    #[inline(always)]
    pub(super) fn take_back(&mut self, address: u64, holder: Holder) -> bool {
        let Some((chunk, _)) = self.memory.split(address) else { return false };
        match self.memory.ledger.get(chunk) {
            Some(entry) if entry.load(Ordering::Relaxed) == holder.0 => {
                entry.store(OURS, Ordering::Relaxed);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "chunks are numbered by a u32"
                )]
                self.push_chunk(chunk as u32);
                true
            }
            _ => false,
        }
    }

    /// Whether the pool's frames lie in `memory`.
    #[inline(always)]
    pub(super) fn is_of(&self, memory: &'static Memory) -> bool {
        std::ptr::eq(self.memory, memory)
    }

    #[inline(always)]
    fn pop_chunk(&mut self) -> Option<u32> {
        let top = self.len.checked_sub(1)?;
        let chunk = *self.free.get(top)?;
        self.len = top;
        Some(chunk)
    }

    #[inline(always)]
    fn push_chunk(&mut self, chunk: u32) {
        // There is a slot for every chunk, and no chunk is in the pool twice.
        if let Some(place) = self.free.get_mut(self.len) {
            *place = chunk;
            self.len += 1;
        }
    }

    /// Number of free frames.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no frame is free.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for FramePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FramePool").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_one_free_frame() {
        for size in [2048, 4096] {
            let (umem, mut pool) = Umem::create(8, size).unwrap();
            assert_eq!((umem.frames(), umem.frame_size(), pool.len()), (8, size, 8));
            let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.pop()).collect();
            for (number, frame) in (1..).zip(&mut frames) {
                assert!(frame.set_len(size as usize - 256));
                frame.data_mut().fill(number);
            }
            for (number, frame) in (1..).zip(&frames) {
                assert!(frame.data().iter().all(|&byte| byte == number), "chunks overlap");
            }
            assert!(pool.is_empty() && pool.pop().is_none());
            frames.into_iter().for_each(|frame| pool.push(frame));
            assert_eq!(pool.len(), 8);
        }
    }

    #[test]
    fn impossible_shapes_are_errors_with_a_cure() {
        for (frames, size, part) in
            [(8, 1024, "2048"), (8, 0, "2048"), (0, 2048, "between 1"), (u32::MAX, 4096, "between")]
        {
            let error = Umem::create(frames, size).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn data_stays_inside_the_chunk() {
        let (_umem, mut pool) = Umem::create(1, 2048).unwrap();
        let mut frame = pool.pop().unwrap();
        assert_eq!((frame.headroom(), frame.len(), frame.tailroom()), (256, 0, 1792));
        assert!(frame.copy_from(b"packet"));
        assert!(!frame.push_front(257) && !frame.push_front(usize::MAX));
        assert!(!frame.pull_front(7) && !frame.pull_front(usize::MAX));
        assert!(!frame.set_len(1793) && !frame.set_len(usize::MAX));
        assert_eq!(frame.data(), b"packet", "nothing has changed");
        assert!(frame.pull_front(2) && frame.set_len(3));
        assert_eq!(frame.data(), b"cke");
        assert!(frame.push_front(2) && frame.set_len(6));
        assert_eq!(frame.data(), b"packet");
        assert!(frame.push_front(256) && frame.set_len(2048));
        assert_eq!((frame.headroom(), frame.len(), frame.tailroom()), (0, 2048, 0));
        assert!(!frame.set_len(2049));
        assert!(frame.copy_from(&[7; 1792]) && !frame.copy_from(&[7; 1793]));
        pool.push(frame);
        assert!(pool.pop().unwrap().is_empty(), "a frame from the pool is empty");
    }

    #[test]
    fn the_ledger_gives_a_chunk_back_once_and_to_its_holder_only() {
        let (umem, mut pool) = Umem::create(2, 2048).unwrap();
        let memory = umem.memory();
        let (receive, transmit) = memory.new_holders().unwrap();
        let (other, _) = memory.new_holders().unwrap();
        let mut frame = pool.pop().unwrap();
        assert!(frame.copy_from(b"packet"));
        let address = memory.give(frame, receive).unwrap();
        assert_eq!(address, 256);
        for (name, address, len, holder) in [
            ("the other direction", address, 6, transmit),
            ("another queue", address, 6, other),
            ("a chunk that is ours", 2048, 6, receive),
            ("beyond the end", 4096, 6, receive),
            ("far beyond the end", u64::MAX, 6, receive),
            ("longer than the chunk", address, 1793, receive),
            ("much longer", address, u32::MAX, receive),
        ] {
            assert!(memory.take(address, len, holder).is_none(), "{name}");
        }
        assert_eq!(memory.take(address, 6, receive).unwrap().data(), b"packet");
        assert!(memory.take(address, 6, receive).is_none(), "twice");
    }

    #[test]
    fn a_frame_of_another_umem_comes_back() {
        let (umem, _pool) = Umem::create(1, 2048).unwrap();
        let (_other, mut pool) = Umem::create(1, 2048).unwrap();
        let (receive, _) = umem.memory().new_holders().unwrap();
        assert!(umem.memory().give(pool.pop().unwrap(), receive).is_err());
    }

    #[test]
    fn holders_run_out_instead_of_repeating() {
        let (umem, _pool) = Umem::create(1, 2048).unwrap();
        let holders: Vec<_> = std::iter::from_fn(|| umem.memory().new_holders()).collect();
        let mut values: Vec<u8> = holders.iter().flat_map(|(a, b)| [a.0, b.0]).collect();
        assert!(!values.contains(&OURS));
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), 254);
    }
}
