//! AF_XDP rings: the producer and the consumer half, over kernel or ordinary memory.
//!
//! ```text
//!            consumer index         producer index
//!               v                       v
//!   ... free | ready ready ready ready | free ...     index & mask picks the slot
//! ```
//!
//! Indices run freely and wrap at 2^32; only `index & mask` addresses memory. The producer fills
//! slots and then advances its index; the consumer reads slots and then advances its own. Each half
//! caches the other's index and reads it again only when the cached one is exhausted, because
//! another core wrote that line last. One half of each kernel ring is ours; a fake NIC has both.
//! Source: Documentation/networking/af_xdp.rst, "Rings"; net/xdp/xsk_queue.h.
#![allow(unsafe_code, reason = "the ring is memory shared with the kernel")]

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_utils::CachePadded;

use super::os::Region;

/// An entry of an RX or TX ring: `struct xdp_desc` of include/uapi/linux/if_xdp.h.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Descriptor {
    /// Offset of the packet from the start of the UMEM, in bytes.
    pub address: u64,
    /// Length of the packet in bytes.
    pub len: u32,
    /// `XDP_PKT_CONTD` and other flags; 0 without multi-buffer.
    pub options: u32,
}

/// The entry of a ring slot.
///
/// # Safety
/// Every bit pattern must be a valid value, since the kernel writes slots too.
pub unsafe trait Entry: Copy + Default + Send {}

// SAFETY: an integer takes every bit pattern.
unsafe impl Entry for u64 {}
// SAFETY: a struct of integers takes every bit pattern.
unsafe impl Entry for Descriptor {}

/// Offsets of the parts of a ring inside its mapping, in bytes.
pub(super) type Offsets = rustix::net::xdp::XdpRingOffset;

/// Bounds of the number of slots of a ring. The kernel has no upper bound; this one keeps sums of
/// four rings inside 32 bits.
pub(super) const SLOTS: std::ops::RangeInclusive<u32> = 2..=1 << 20;

/// Memory of a ring, as accessed by either half.
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    /// Number of slots, a power of two.
    size: u32,
    /// Owner of the memory, which keeps the pointers valid.
    _owner: Owner<T>,
}

enum Owner<T> {
    Kernel { _region: Region },
    Plain { _memory: Arc<PlainMemory<T>> },
}

/// A ring in ordinary memory. As in the kernel's rings, each index has its own cache line: one side
/// writes it and the other reads it.
struct PlainMemory<T> {
    producer: CachePadded<AtomicU32>,
    consumer: CachePadded<AtomicU32>,
    flags: CachePadded<AtomicU32>,
    slots: Box<[UnsafeCell<T>]>,
}

// SAFETY: the one producer writes a slot while it is free, and the one consumer reads it while it
// is ready; the indices hand it over (see the orderings in `publish` and `take`).
unsafe impl<T: Entry> Sync for PlainMemory<T> {}

// SAFETY: the pointers are to memory that `_owner` keeps, and a half moves as a whole.
unsafe impl<T: Entry> Send for Shared<T> {}

impl<T: Entry> Shared<T> {
    /// Returns a view of a ring that the kernel has laid out in `region`; `None` if it exceeds the
    /// region.
    fn kernel(region: Region, offsets: &Offsets, size: u32) -> Option<Self> {
        let at = |offset: u64, bytes: usize, align: usize| {
            let start = region.at(usize::try_from(offset).ok()?, bytes)?;
            start.addr().get().is_multiple_of(align).then_some(start)
        };
        let index = |offset| at(offset, size_of::<u32>(), align_of::<u32>()).map(NonNull::cast);
        let bytes = usize::try_from(size).ok()?.checked_mul(size_of::<T>())?;
        Some(Self {
            producer: index(offsets.producer)?,
            consumer: index(offsets.consumer)?,
            flags: index(offsets.flags?)?,
            slots: at(offsets.desc, bytes, align_of::<T>())?.cast(),
            size: SLOTS.contains(&size).then_some(size).filter(|s| s.is_power_of_two())?,
            _owner: Owner::Kernel { _region: region },
        })
    }

    fn plain(memory: &Arc<PlainMemory<T>>, size: u32) -> Self {
        let slots: *const UnsafeCell<T> = memory.slots.as_ptr();
        Self {
            producer: NonNull::from(&*memory.producer),
            consumer: NonNull::from(&*memory.consumer),
            flags: NonNull::from(&*memory.flags),
            // An `UnsafeCell<T>` may be written through a shared pointer, and has the layout of
            // `T`.
            slots: NonNull::new(slots.cast_mut().cast()).unwrap_or(NonNull::dangling()),
            size,
            _owner: Owner::Plain { _memory: Arc::clone(memory) },
        }
    }

    #[inline(always)]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: valid and aligned for the life of `self` (`_owner`), and only used atomically.
        unsafe { self.producer.as_ref() }
    }

    #[inline(always)]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline(always)]
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.flags.as_ref() }
    }

    /// Returns the slot of a freely running index.
    #[inline(always)]
    fn slot(&self, index: u32) -> NonNull<T> {
        let slot = (index & (self.size - 1)) as usize;
        // SAFETY: `size` is a power of two, so `slot < size`, and that many slots are mapped.
        unsafe { self.slots.add(slot) }
    }
}

/// Creates a ring in ordinary memory and returns both halves, for a fake NIC. Indices begin at
/// `start`.
///
/// `size` is rounded up to a power of two inside the bounds of a ring.
pub fn in_plain_memory<T: Entry>(size: u32, start: u32) -> (Producer<T>, Consumer<T>) {
    let size = size.clamp(*SLOTS.start(), *SLOTS.end()).next_power_of_two();
    let memory = Arc::new(PlainMemory {
        producer: CachePadded::new(start.into()),
        consumer: CachePadded::new(start.into()),
        flags: CachePadded::default(),
        slots: (0..size).map(|_| UnsafeCell::new(T::default())).collect(),
    });
    let half = || Shared::plain(&memory, size);
    (Producer::new(half()), Consumer::new(half()))
}

/// The write side of one ring. Not `Clone`: two writers would fill the same slots.
pub struct Producer<T: Entry> {
    ring: Shared<T>,
    /// Our index, ahead of the shared one by the unpublished entries.
    next: u32,
    /// Last known index of the consumer.
    seen: u32,
}

impl<T: Entry> Producer<T> {
    fn new(ring: Shared<T>) -> Self {
        // Relaxed: only this half changes its index.
        let next = ring.producer().load(Ordering::Relaxed);
        let seen = ring.consumer().load(Ordering::Acquire);
        Self { ring, next, seen }
    }

    /// Returns the write side of a kernel ring (TX or fill); `None` if the layout is impossible.
    ///
    /// # Safety
    /// `region` maps a ring with entries of type `T` at `offsets`, with at least `size` slots, and
    /// no other code of this process takes its write side.
    pub(super) unsafe fn kernel(region: Region, offsets: &Offsets, size: u32) -> Option<Self> {
        Shared::kernel(region, offsets, size).map(Self::new)
    }

    /// Reads both indices again, after another process has used this side of the ring.
    pub(super) fn resync(&mut self) {
        // Relaxed: only this side changes its index, and the other process has stopped.
        self.next = self.ring.producer().load(Ordering::Relaxed);
        self.seen = self.ring.consumer().load(Ordering::Acquire);
    }

    /// Number of slots, a power of two.
    pub fn size(&self) -> u32 {
        self.ring.size
    }

    /// Returns the number of free slots; reads the consumer's index again only when fewer than
    /// `wanted` are known.
    #[inline]
    pub fn free(&mut self, wanted: u32) -> u32 {
        let known = self.free_known();
        if known >= wanted {
            return known;
        }
        // Acquire pairs with the release in the consumer's `take`: the consumer has read the slots
        // that it gives back, so they may be overwritten.
        self.seen = self.ring.consumer().load(Ordering::Acquire);
        self.free_known()
    }

    /// A consumer index ahead of ours (a false claim) leaves no slot free, rather than too many.
    #[inline(always)]
    fn free_known(&self) -> u32 {
        self.ring.size.saturating_sub(self.next.wrapping_sub(self.seen))
    }

    /// Writes `entry` into the next free slot without publishing it; returns false when the ring is
    /// full.
    #[inline]
    #[must_use]
    pub fn push(&mut self, entry: T) -> bool {
        if self.free(1) == 0 {
            return false;
        }
        // SAFETY: the slot lies inside the ring; it is free, so the consumer does not read it
        // before `publish` moves the index past it.
        unsafe { self.ring.slot(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Pushes the entry that `make` creates from `value`, as [`push`](Self::push) does. `make` is
    /// called only if a slot is free.
    ///
    /// # Errors
    /// `value` when the ring is full, or the value that `make` returns.
    #[inline(always)]
    pub fn push_made<V>(
        &mut self,
        value: V,
        make: impl FnOnce(V) -> Result<T, V>,
    ) -> Result<(), V> {
        if self.free(1) == 0 {
            return Err(value);
        }
        let entry = make(value)?;
        // SAFETY: as in `push`.
        unsafe { self.ring.slot(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Writes entries from `next` into free slots without publishing them, until `next` returns
    /// `None`, `most` entries are written or the ring is full; returns the number of entries.
    #[inline(always)]
    pub fn push_up_to(&mut self, most: u32, mut next: impl FnMut() -> Option<T>) -> u32 {
        let most = self.free(most).min(most);
        let start = self.next;
        for ahead in 0..most {
            let Some(entry) = next() else { break };
            // SAFETY: as in `push`; there are `most` free slots.
            unsafe { self.ring.slot(start.wrapping_add(ahead)).write(entry) };
            self.next = start.wrapping_add(ahead + 1);
        }
        self.next.wrapping_sub(start)
    }

    /// Publishes all pushed entries to the consumer. Called once per batch.
    #[inline]
    pub fn publish(&mut self) {
        // Release pairs with the acquire in the consumer's `ready`: slots are written before it.
        self.ring.producer().store(self.next, Ordering::Release);
    }

    /// Number of entries, published or not, that the consumer has not taken yet, by its current
    /// index.
    #[inline]
    pub fn pending(&self) -> u32 {
        // Relaxed: a number to act on, not a permission to access slots.
        let consumer = self.ring.consumer().load(Ordering::Relaxed);
        self.next.wrapping_sub(consumer).min(self.ring.size)
    }

    /// Whether the kernel sleeps and needs a system call to process this ring.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        // Relaxed: a hint. It is read after `publish`; the next poll sees a flag that is raised
        // just after, since it reads the flag again while anything is pending.
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// The read side of one ring. Not `Clone`: two readers would both take the same slots.
pub struct Consumer<T: Entry> {
    ring: Shared<T>,
    /// Our index; the kernel never writes it.
    next: u32,
    /// Last known index of the producer.
    seen: u32,
}

impl<T: Entry> Consumer<T> {
    fn new(ring: Shared<T>) -> Self {
        // Relaxed: only this half changes its index.
        let next = ring.consumer().load(Ordering::Relaxed);
        Self { ring, next, seen: next }
    }

    /// Returns the read side of a kernel ring (RX or completion); `None` if the layout is
    /// impossible.
    ///
    /// # Safety
    /// The conditions of [`Producer::kernel`], for the read side.
    pub(super) unsafe fn kernel(region: Region, offsets: &Offsets, size: u32) -> Option<Self> {
        Shared::kernel(region, offsets, size).map(Self::new)
    }

    /// Reads the index of this side again, after another process has used it.
    pub(super) fn resync(&mut self) {
        // Relaxed: only this side changes its index, and the other process has stopped.
        self.next = self.ring.consumer().load(Ordering::Relaxed);
        self.seen = self.next;
    }

    /// Number of slots, a power of two.
    pub fn size(&self) -> u32 {
        self.ring.size
    }

    /// Whether no entry is ready, by the producer's current index.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // Relaxed: a number to act on, not a permission to access slots.
        self.ring.producer().load(Ordering::Relaxed) == self.next
    }

    /// Returns the number of ready entries, at most `wanted`; reads the producer's index again only
    /// when fewer are known.
    #[inline]
    pub fn ready(&mut self, wanted: u32) -> u32 {
        if self.ready_known() < wanted {
            // Acquire pairs with the producer's release: slots below the index are written before
            // it.
            self.seen = self.ring.producer().load(Ordering::Acquire);
        }
        self.ready_known().min(wanted)
    }

    /// A producer that claims more entries than the ring holds is granted one ring's worth.
    #[inline(always)]
    fn ready_known(&self) -> u32 {
        self.seen.wrapping_sub(self.next).min(self.ring.size)
    }

    /// Passes up to `max` ready entries to `each`, in order; returns their number.
    ///
    /// Cost: at most one acquire load and one release store, independent of the number.
    #[inline]
    pub fn take(&mut self, max: u32, mut each: impl FnMut(T)) -> u32 {
        let ready = self.ready(max);
        if ready == 0 {
            return 0;
        }
        for ahead in 0..ready {
            let slot = self.ring.slot(self.next.wrapping_add(ahead));
            // SAFETY: the slot lies inside the ring and holds a valid `T`, whatever its bits
            // (`Entry`); the producer does not write it again before our index moves, below.
            each(unsafe { slot.read() });
        }
        self.next = self.next.wrapping_add(ready);
        // Release: our reads above end before the producer may reuse the slots.
        self.ring.consumer().store(self.next, Ordering::Release);
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(consumer: &mut Consumer<u64>, max: u32) -> Vec<u64> {
        let mut out = Vec::new();
        let count = consumer.take(max, |entry| out.push(entry));
        assert_eq!(out.len(), count as usize);
        out
    }

    #[test]
    fn entries_come_out_in_order_across_the_index_wrap() {
        for start in [0, u32::MAX - 5, u32::MAX, 1 << 31] {
            let (mut producer, mut consumer) = in_plain_memory::<u64>(4, start);
            for round in 0..10 {
                for entry in [round, round + 100, round + 200] {
                    assert!(producer.push(entry));
                }
                assert_eq!(taken(&mut consumer, 8), [0_u64; 0], "nothing is there before publish");
                producer.publish();
                assert_eq!(producer.pending(), 3);
                assert_eq!(taken(&mut consumer, 2), [round, round + 100], "from {start}");
                assert_eq!(taken(&mut consumer, 8), [round + 200], "from {start}");
                assert_eq!(producer.pending(), 0);
            }
        }
    }

    #[test]
    fn a_full_ring_takes_nothing_until_the_consumer_moves() {
        let (mut producer, mut consumer) = in_plain_memory::<u64>(4, u32::MAX - 1);
        for entry in 0..4 {
            assert!(producer.push(entry));
        }
        producer.publish();
        assert!(!producer.push(4));
        assert_eq!(producer.free(1), 0);
        assert_eq!(taken(&mut consumer, 1), [0]);
        assert!(producer.push(4), "the index is read again when the ring looks full");
        assert!(!producer.push(5));
        producer.publish();
        assert_eq!(taken(&mut consumer, 9), [1, 2, 3, 4]);
    }

    #[test]
    fn a_lying_producer_cannot_overrun_the_ring() {
        let (producer, mut consumer) = in_plain_memory::<u64>(4, 0);
        for claim in [1_000, u32::MAX, 1 << 31] {
            producer.ring.producer().store(claim, Ordering::Release);
            assert_eq!(taken(&mut consumer, 64).len(), 4, "claimed {claim}");
        }
    }

    #[test]
    fn a_lying_consumer_cannot_make_room() {
        let (mut producer, consumer) = in_plain_memory::<u64>(4, 0);
        for claim in [1, 1_000, 1 << 31] {
            consumer.ring.consumer().store(claim, Ordering::Release);
            producer.seen = claim;
            assert_eq!(producer.free(4), 0, "claimed {claim}");
            assert!(!producer.push(1));
            assert!(producer.pending() <= 4);
        }
    }

    #[test]
    fn the_wakeup_flag_is_the_kernels_bit_0() {
        let (producer, _consumer) = in_plain_memory::<u64>(4, 0);
        for (flags, expected) in [(0, false), (1, true), (2, false), (3, true)] {
            producer.ring.flags().store(flags, Ordering::Relaxed);
            assert_eq!(producer.needs_wakeup(), expected);
        }
    }

    #[test]
    fn sizes_are_powers_of_two_inside_the_bounds() {
        for (asked, got) in [(0, 2), (3, 4), (1000, 1024), (u32::MAX, 1 << 20)] {
            assert_eq!(in_plain_memory::<u64>(asked, 0).0.size(), got);
        }
    }

    #[test]
    fn two_threads_pass_every_entry_once() {
        let (mut producer, mut consumer) = in_plain_memory::<u64>(8, u32::MAX - 1000);
        const LAST: u64 = 20_000;
        let writer = std::thread::spawn(move || {
            let mut next = 1;
            while next <= LAST {
                while next <= LAST && producer.push(next) {
                    next += 1;
                }
                producer.publish();
                std::thread::yield_now();
            }
        });
        let mut expected = 1;
        while expected <= LAST {
            consumer.take(8, |entry| {
                assert_eq!(entry, expected);
                expected += 1;
            });
            std::thread::yield_now();
        }
        assert!(writer.join().is_ok());
    }
}
