//! Large tables in memory that another process can map: a memfd, on huge pages if available.
//!
//! ```text
//! arena (one memfd, mapped once)
//! | part of T | part of U | ...          each a `Mapping`, backed by memory once populated
//! ```
//!
//! A flow table is accessed at random, so page faults and TLB misses dominate its cost. An arena
//! therefore begins at a huge page, consists of huge pages if the pool has them or the kernel gives
//! them to shared memory (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`), and each part is
//! populated before its first use.
#![allow(unsafe_code, reason = "turns mapped bytes into values")]

use std::io;
#[cfg(not(holdfast_loom))]
use std::mem::{align_of, needs_drop};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
#[cfg(not(holdfast_loom))]
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::os::{Keeping, Region};
use crate::sync::AtomicU64;

/// Size and alignment of a huge page in bytes, on x86-64, and on aarch64 with 4 KiB pages.
pub const HUGE_PAGE: usize = 2 << 20;

/// Alignment in bytes that every page of all supported kernels has.
const PAGE: usize = 4096;

/// A type that may lie in memory that other processes write to: atomic integers.
///
/// # Safety
/// Every bit pattern, all zeros included, must be a valid value; the type must need no drop, and
/// must change through atomic operations only.
pub unsafe trait Shareable: Sync + Send + 'static {
    /// Returns the value of zeros: in models, where atomics are not plain memory.
    #[cfg(holdfast_loom)]
    fn zeroed() -> Self;
}

macro_rules! shareable_integers {
    ($($integer:ty),+) => {
        $(
            // SAFETY: an atomic integer takes every bit pattern.
            unsafe impl Shareable for $integer {
                #[cfg(holdfast_loom)]
                fn zeroed() -> Self {
                    Self::new(0)
                }
            }
        )+
    };
}

shareable_integers!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

// SAFETY: an array of `Shareable` values takes every bit pattern.
unsafe impl<T: Shareable, const N: usize> Shareable for [T; N] {
    #[cfg(holdfast_loom)]
    fn zeroed() -> Self {
        std::array::from_fn(|_| T::zeroed())
    }
}

/// One cache line of eight words.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Line {
    /// The words, in address order.
    pub words: [AtomicU64; 8],
}

// SAFETY: an array of atomic integers takes every bit pattern.
unsafe impl Shareable for Line {
    #[cfg(holdfast_loom)]
    fn zeroed() -> Self {
        Self { words: Shareable::zeroed() }
    }
}

/// Declares a struct whose fields are all [`Shareable`], and implements [`Shareable`] for it.
///
/// A file without unsafe code can use it to define its own table entries:
///
/// ```
/// holdfast::shareable_struct! {
///     /// Two counters on their own cache line.
///     #[repr(C, align(64))]
///     pub struct Entry {
///         /// Number of packets.
///         pub count: std::sync::atomic::AtomicU32,
///         /// Number of bytes.
///         pub bytes: std::sync::atomic::AtomicU64,
///     }
/// }
/// let entries = holdfast::xdp::memory::Mapping::<Entry>::zeroed(16).unwrap();
/// assert_eq!(entries.len(), 16);
/// ```
#[macro_export]
macro_rules! shareable_struct {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_visibility:vis $field:ident: $type:ty,)+
    }) => {
        $(#[$meta])*
        $visibility struct $name {
            $($(#[$field_meta])* $field_visibility $field: $type,)+
        }

        const _: () = {
            const fn all_shareable<T: $crate::xdp::memory::Shareable>() {}
            $(all_shareable::<$type>();)+
        };

        // SAFETY: each field is `Shareable`, which the constant above checks, and padding may have
        // any value.
        #[allow(unsafe_code, reason = "the claim is checked by the macro itself")]
        unsafe impl $crate::xdp::memory::Shareable for $name {
            #[cfg(holdfast_loom)]
            fn zeroed() -> Self {
                Self { $($field: $crate::xdp::memory::Shareable::zeroed(),)+ }
            }
        }
    };
}

/// Reason why memory for a table could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// `len * size_of::<T>()` exceeds the address space.
    #[error("a table of {len} entries of {entry} bytes is larger than the address space")]
    TooLarge {
        /// Requested number of entries.
        len: usize,
        /// Size of an entry in bytes.
        entry: usize,
    },
    /// A part exceeds its arena, or does not begin at a page.
    #[error("a part of {bytes} bytes at {offset} does not fit into {arena} bytes")]
    Outside {
        /// Offset of the part in bytes.
        offset: usize,
        /// Size of the part in bytes.
        bytes: usize,
        /// Size of the arena in bytes.
        arena: usize,
    },
    /// The kernel refused the memory.
    #[error(
        "cannot get {bytes} bytes of memory for a table: {source}; \
         free memory, raise the memory limit of the service, or configure smaller tables"
    )]
    Refused {
        /// Requested size in bytes.
        bytes: usize,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The kind of pages of an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Pages of the huge page pool (`vm.nr_hugepages`).
    Pool,
    /// The kernel's choice: transparent huge pages if enabled for shared memory.
    Ordinary,
}

/// A memory-backed file, mapped as a whole; unmapped with the last of its parts.
#[derive(Debug)]
#[cfg_attr(holdfast_loom, expect(dead_code, reason = "the parts lie elsewhere"))]
pub struct Arena {
    region: Region,
    /// Bytes of the region in front of the arena, which begins at a huge page.
    skipped: usize,
    bytes: usize,
    file: OwnedFd,
    /// The parts in use, by offset: in models, where they lie in ordinary memory.
    #[cfg(holdfast_loom)]
    parts: Parts,
}

/// Parts of an arena in models: each an `Arc<[T]>`.
#[cfg(holdfast_loom)]
type Parts =
    std::sync::Mutex<std::collections::BTreeMap<usize, Box<dyn std::any::Any + Send + Sync>>>;

impl Arena {
    /// Maps a new memfd of `bytes` zeros (rounded up to whole huge pages) of fixed size, not yet
    /// backed by memory.
    ///
    /// # Errors
    /// [`MappingError::TooLarge`], or [`MappingError::Refused`], for example without a huge page
    /// pool.
    pub fn new(bytes: usize, pages: Pages) -> Result<Arc<Self>, MappingError> {
        let bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE)
            .ok_or(MappingError::TooLarge { len: bytes, entry: 1 })?;
        let flags = match pages {
            Pages::Pool => MemfdFlags::HUGETLB,
            Pages::Ordinary => MemfdFlags::empty(),
        };
        let refused = |source| MappingError::Refused { bytes, source };
        let file = memfd(flags, bytes).map_err(refused)?;
        Self::map(file, bytes)
    }

    /// Maps an empty file in memory (tmpfs or hugetlbfs), which gets a size of `bytes` zeros
    /// (rounded up to whole huge pages), not yet backed by memory.
    ///
    /// # Errors
    /// [`MappingError::TooLarge`], or [`MappingError::Refused`] with the kernel's reason.
    pub fn in_file(file: OwnedFd, bytes: usize) -> Result<Arc<Self>, MappingError> {
        let bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE)
            .ok_or(MappingError::TooLarge { len: bytes, entry: 1 })?;
        let refused =
            |source: rustix::io::Errno| MappingError::Refused { bytes, source: source.into() };
        ftruncate(&file, bytes as u64).map_err(refused)?;
        Self::map(file, bytes)
    }

    /// Maps a file of an earlier process, or from [`Arena::file`]. The file must not shrink while
    /// it is mapped: an access beyond its end kills the process. Memfds are sealed against that; a
    /// file in a directory is protected by its owner and mode.
    ///
    /// # Errors
    /// [`MappingError::Refused`] with the kernel's reason, or [`MappingError::TooLarge`].
    pub fn of_file(file: OwnedFd) -> Result<Arc<Self>, MappingError> {
        let file = std::fs::File::from(file);
        let len = file.metadata().map(|metadata| metadata.len());
        let len = len.map_err(|source| MappingError::Refused { bytes: 0, source })?;
        let bytes = usize::try_from(len)
            .map_err(|_| MappingError::TooLarge { len: usize::MAX, entry: 1 })?;
        Self::map(file.into(), bytes)
    }

    fn map(file: OwnedFd, bytes: usize) -> Result<Arc<Self>, MappingError> {
        let refused = |source| MappingError::Refused { bytes, source };
        let reserved =
            bytes.checked_add(HUGE_PAGE).ok_or(MappingError::TooLarge { len: bytes, entry: 1 })?;
        // Address space is reserved first, so that the file can begin at a huge page.
        let region = Region::reserve(reserved).map_err(refused)?;
        let skipped = region.start().addr().get().wrapping_neg() % HUGE_PAGE;
        region.place(file.as_fd(), skipped, bytes).map_err(refused)?;
        // A kernel without transparent huge pages returns EINVAL; small pages work too, only
        // slower.
        let _ = region.advise(skipped, bytes, Keeping::HugePages);
        Ok(Arc::new(Self {
            region,
            skipped,
            bytes,
            file,
            #[cfg(holdfast_loom)]
            parts: Parts::default(),
        }))
    }

    /// Returns the file, to be passed to another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns `len` values from `offset` bytes on, which must be a whole number of pages.
    ///
    /// # Errors
    /// [`MappingError::Outside`] if they exceed the arena or do not begin at a page;
    /// [`MappingError::TooLarge`] if their size exceeds the address space.
    #[cfg(not(holdfast_loom))]
    pub fn part<T: Shareable>(
        self: &Arc<Self>,
        offset: usize,
        len: usize,
    ) -> Result<Mapping<T>, MappingError> {
        const { Mapping::<T>::FITS };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(MappingError::TooLarge { len, entry: size_of::<T>() })?;
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        let start = self.region.at(self.skipped.saturating_add(offset), bytes);
        match start.filter(|_| inside && offset.is_multiple_of(PAGE)) {
            Some(start) => Ok(Mapping { start: start.cast(), len, arena: Arc::clone(self) }),
            None => Err(MappingError::Outside { offset, bytes, arena: self.bytes }),
        }
    }

    /// Returns the `len` values at `offset`, zeros at first.
    ///
    /// # Errors
    /// [`MappingError::Outside`] if other values are there.
    #[cfg(holdfast_loom)]
    pub fn part<T: Shareable>(
        self: &Arc<Self>,
        offset: usize,
        len: usize,
    ) -> Result<Mapping<T>, MappingError> {
        let mut parts = self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let new = || -> Arc<[T]> { (0..len).map(|_| T::zeroed()).collect() };
        let part = parts.entry(offset).or_insert_with(|| Box::new(new()));
        match part.downcast_ref::<Arc<[T]>>().filter(|part| part.len() == len) {
            Some(part) => Ok(Mapping { part: Arc::clone(part) }),
            None => Err(MappingError::Outside { offset, bytes: len, arena: self.bytes }),
        }
    }
}

/// Creates a memfd of `bytes` zeros, sealed against a change of its size.
fn memfd(flags: MemfdFlags, bytes: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags;
    let file = memfd_create(c"holdfast-table", flags)?;
    ftruncate(&file, bytes as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// A slice of `T` inside an [`Arena`].
#[cfg(not(holdfast_loom))]
pub struct Mapping<T: Shareable> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the memory mapped.
    arena: Arc<Arena>,
}

/// Part of an [`Arena`], in models.
#[cfg(holdfast_loom)]
pub struct Mapping<T: Shareable> {
    part: Arc<[T]>,
}

// SAFETY: `&Mapping<T>` gives out `&[T]` only, and `Shareable` types are `Sync`.
#[cfg(not(holdfast_loom))]
unsafe impl<T: Shareable> Send for Mapping<T> {}
// SAFETY: likewise.
#[cfg(not(holdfast_loom))]
unsafe impl<T: Shareable> Sync for Mapping<T> {}

impl<T: Shareable> Mapping<T> {
    #[cfg(not(holdfast_loom))]
    const FITS: () = {
        assert!(align_of::<T>() <= PAGE, "a mapping is aligned to a page only");
        assert!(!needs_drop::<T>(), "a mapping is freed without dropping its entries");
    };

    /// Allocates `len` zeroed entries in their own arena, backed by memory.
    ///
    /// # Errors
    /// [`MappingError`] when the size is impossible or the kernel has no memory.
    pub fn zeroed(len: usize) -> Result<Self, MappingError> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(MappingError::TooLarge { len, entry: size_of::<T>() })?;
        let part = Arena::new(bytes.max(1), Pages::Ordinary)?.part(0, len)?;
        part.populate()?;
        Ok(part)
    }

    /// Backs all entries with memory, so that no access faults. May be called while they are in
    /// use.
    ///
    /// # Errors
    /// [`MappingError::Refused`] when the kernel lacks memory.
    #[cfg(not(holdfast_loom))]
    pub fn populate(&self) -> Result<(), MappingError> {
        let bytes = self.len * size_of::<T>();
        let region = &self.arena.region;
        let offset = self.start.addr().get() - region.start().addr().get();
        region
            .advise(offset, bytes, Keeping::Populate)
            .map_err(|source| MappingError::Refused { bytes, source })
    }

    /// Removes the entries from the page tables of this process, for it will end: the kernel does
    /// that at the end otherwise, for which a later process waits. They stay in their file, and the
    /// next access to one faults.
    ///
    /// Cost: some 0.2 us for each page.
    #[cfg(not(holdfast_loom))]
    pub fn let_go(&self) {
        let bytes = self.len * size_of::<T>();
        let region = &self.arena.region;
        let offset = self.start.addr().get() - region.start().addr().get();
        // If it fails, nothing has changed.
        let _ = region.advise(offset, bytes, Keeping::LetGo);
    }

    /// Does nothing: in models, all memory is there.
    #[cfg(holdfast_loom)]
    pub fn let_go(&self) {
        let _ = &self.part;
    }

    /// Does nothing: in models, all memory is there.
    ///
    /// # Errors
    /// None.
    #[cfg(holdfast_loom)]
    pub fn populate(&self) -> Result<(), MappingError> {
        Ok(())
    }
}

impl<T: Shareable> Deref for Mapping<T> {
    type Target = [T];

    #[cfg(holdfast_loom)]
    fn deref(&self) -> &[T] {
        &self.part
    }

    #[cfg(not(holdfast_loom))]
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `Arena::part` found `len` entries at `start` inside the mapping, aligned to a
        // page (`FITS`); every bit pattern is valid (`Shareable`), and the entries change only
        // through atomics and stay mapped as long as `self.arena`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Shareable> std::fmt::Debug for Mapping<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    shareable_struct! {
        #[repr(C, align(64))]
        struct Entry {
            small: AtomicU8,
            large: AtomicU64,
        }
    }

    #[test]
    fn is_zeroed_aligned_and_of_its_length() {
        for len in [0, 1, 63, 70_000] {
            let lines = Mapping::<Line>::zeroed(len).unwrap();
            assert_eq!(lines.len(), len);
            assert_eq!(lines.as_ptr().addr() % 64, 0);
            assert!(lines.iter().flat_map(|l| &l.words).all(|w| w.load(Relaxed) == 0));
        }
    }

    #[test]
    fn a_large_one_begins_at_a_huge_page() {
        let lines = Mapping::<Line>::zeroed(HUGE_PAGE / 64).unwrap();
        assert_eq!(lines.as_ptr().addr() % HUGE_PAGE, 0);
        lines.last().unwrap().words.last().unwrap().store(7, Relaxed);
        assert_eq!(lines.last().unwrap().words.last().unwrap().load(Relaxed), 7);
    }

    #[test]
    fn a_struct_of_atomics_can_be_mapped() {
        let entries = Mapping::<Entry>::zeroed(3).unwrap();
        entries.last().unwrap().large.store(1, Relaxed);
        assert_eq!(entries.iter().map(|e| e.large.load(Relaxed)).sum::<u64>(), 1);
        assert_eq!(entries.iter().map(|e| e.small.load(Relaxed)).max(), Some(0));
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let too_large = Mapping::<Line>::zeroed(usize::MAX).unwrap_err();
        assert!(matches!(too_large, MappingError::TooLarge { .. }), "{too_large}");
        let refused = Mapping::<Line>::zeroed(1 << 50).unwrap_err();
        assert!(refused.to_string().contains("smaller tables"), "{refused}");
    }

    #[test]
    fn parts_lie_inside_their_arena_and_begin_at_a_page() {
        let arena = Arena::new(1, Pages::Ordinary).unwrap();
        assert_eq!(arena.bytes(), HUGE_PAGE);
        let lines = HUGE_PAGE / 64;
        assert!(arena.part::<Line>(0, lines).is_ok());
        assert!(arena.part::<Line>(PAGE, lines - PAGE / 64).is_ok());
        for (offset, len) in [(0, lines + 1), (PAGE, lines), (64, 1), (HUGE_PAGE + PAGE, 0)] {
            let outside = arena.part::<Line>(offset, len).unwrap_err();
            assert!(matches!(outside, MappingError::Outside { .. }), "{offset} {len}: {outside}");
        }
        assert!(arena.part::<Line>(usize::MAX - PAGE + 1, 64).is_err());
        assert!(matches!(arena.part::<Line>(0, usize::MAX), Err(MappingError::TooLarge { .. })));
    }

    #[test]
    fn a_file_is_mapped_again_with_its_contents_and_cannot_be_shrunk() {
        let arena = Arena::new(1, Pages::Ordinary).unwrap();
        let words = arena.part::<AtomicU64>(0, 8).unwrap();
        words.last().unwrap().store(7, Relaxed);
        let file = std::fs::File::from(arena.file().try_clone_to_owned().unwrap());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err());
        words.let_go();
        assert_eq!(words.last().unwrap().load(Relaxed), 7);
        drop((arena, words));
        let again = Arena::of_file(file.into()).unwrap().part::<AtomicU64>(0, 8).unwrap();
        again.populate().unwrap();
        assert_eq!(again.last().unwrap().load(Relaxed), 7);
    }
}
