//! Large tables in memory that another process could map: a memfd, on huge pages if there are any.
//!
//! ```text
//! arena (one memfd, mapped once)
//! | part of T | part of U | ...          each a `Mapping`, backed by memory when it is populated
//! ```
//!
//! A flow table is read at random, so page faults and TLB misses are its cost: an arena begins at a
//! huge page, is made of huge pages if the pool has them or the kernel gives them to shared memory
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`), and a part is populated before it is used.
#![allow(unsafe_code, reason = "turns mapped bytes into values")]

use std::io;
use std::mem::{align_of, needs_drop, size_of};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::os::{Keeping, Region};

/// Size and alignment of a huge page on x86-64, and on aarch64 with 4 KiB pages.
pub const HUGE_PAGE: usize = 2 << 20;

/// Alignment that every page of the kernels that we support has.
const PAGE: usize = 4096;

/// A type that may lie in memory of which other processes write a part: atomic integers.
///
/// # Safety
/// Every bit pattern, all zeros among them, must be a valid value; the type must need no drop, and
/// change through atomic operations only.
pub unsafe trait Shareable: Sync + Send {}

// SAFETY: an atomic integer takes every bit pattern.
unsafe impl Shareable for AtomicU8 {}
// SAFETY: an atomic integer takes every bit pattern.
unsafe impl Shareable for AtomicU16 {}
// SAFETY: an atomic integer takes every bit pattern.
unsafe impl Shareable for AtomicU32 {}
// SAFETY: an atomic integer takes every bit pattern.
unsafe impl Shareable for AtomicU64 {}
// SAFETY: an array of such integers, too.
unsafe impl<T: Shareable, const N: usize> Shareable for [T; N] {}

/// One cache line of eight words.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Line {
    /// The words, in address order.
    pub words: [AtomicU64; 8],
}

// SAFETY: an array of atomic integers, as above.
unsafe impl Shareable for Line {}

/// Declares a struct whose fields are all [`Shareable`], and makes it so too.
///
/// A file without unsafe code can thus lay out its own table entries:
///
/// ```
/// holdfast::shareable_struct! {
///     /// Two counters on a line of their own.
///     #[repr(C, align(64))]
///     pub struct Entry {
///         /// How often.
///         pub count: std::sync::atomic::AtomicU32,
///         /// How much.
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

        // SAFETY: each field is `Shareable`, which the constant above checks, and padding may
        // hold anything.
        #[allow(unsafe_code, reason = "the claim is checked by the macro itself")]
        unsafe impl $crate::xdp::memory::Shareable for $name {}
    };
}

/// Why memory for a table could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// `len * size_of::<T>()` does not fit the address space.
    #[error("a table of {len} entries of {entry} bytes is larger than the address space")]
    TooLarge {
        /// Entries asked for.
        len: usize,
        /// Bytes of one.
        entry: usize,
    },
    /// A part does not lie inside its arena, or not at a page.
    #[error("a part of {bytes} bytes at {offset} does not fit into {arena} bytes")]
    Outside {
        /// First byte of the part.
        offset: usize,
        /// Its size.
        bytes: usize,
        /// Bytes of the whole.
        arena: usize,
    },
    /// The kernel refused.
    #[error(
        "cannot get {bytes} bytes of memory for a table: {source}; \
         free memory, raise the memory limit of the service, or configure smaller tables"
    )]
    Refused {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Which pages an arena is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Those of the huge page pool (`vm.nr_hugepages`).
    Pool,
    /// The kernel's choice: transparent huge pages where shared memory may have them.
    Ordinary,
}

/// A file in memory, mapped as a whole, and unmapped with the last of its parts.
#[derive(Debug)]
pub struct Arena {
    region: Region,
    /// Bytes of the region in front of the arena, which begins at a huge page.
    skipped: usize,
    bytes: usize,
    file: OwnedFd,
}

impl Arena {
    /// Maps a new memfd of `bytes` zeros (rounded up to whole huge pages), not yet backed by memory,
    /// whose size nobody can change.
    ///
    /// # Errors
    /// [`MappingError::Refused`]: too large, or the kernel has no huge page pool.
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

    /// Maps a file that [`Arena::file`] gave out, here or in an earlier process. Nobody may shrink
    /// it while it is mapped; a memfd of ours is sealed against that.
    ///
    /// # Errors
    /// [`MappingError::Refused`] says what the kernel has against it.
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
        // Addresses first, so that the file can begin at a huge page.
        let region = Region::reserve(reserved).map_err(refused)?;
        let skipped = region.start().addr().get().wrapping_neg() % HUGE_PAGE;
        region.place(file.as_fd(), skipped, bytes).map_err(refused)?;
        // A kernel without transparent huge pages says EINVAL; small pages work too, only slower.
        let _ = region.advise(skipped, bytes, Keeping::HugePages);
        Ok(Arc::new(Self { region, skipped, bytes, file }))
    }

    /// The file, to be given to another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `len` values from `offset` bytes on, which must be a whole number of pages.
    ///
    /// # Errors
    /// [`MappingError::Outside`] when they do not lie inside.
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
}

/// A memfd of `bytes` zeros, sealed against another size.
fn memfd(flags: MemfdFlags, bytes: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags;
    let file = memfd_create(c"holdfast-table", flags)?;
    ftruncate(&file, bytes as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// A slice of `T` inside an [`Arena`].
pub struct Mapping<T: Shareable> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the memory mapped.
    arena: Arc<Arena>,
}

// SAFETY: `&Mapping<T>` gives out `&[T]` only, and `Shareable` types are `Sync`.
unsafe impl<T: Shareable> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Shareable> Sync for Mapping<T> {}

impl<T: Shareable> Mapping<T> {
    const FITS: () = {
        assert!(align_of::<T>() <= PAGE, "a mapping is aligned to a page only");
        assert!(!needs_drop::<T>(), "a mapping is freed without dropping its entries");
    };

    /// `len` zeroed entries in an arena of their own, backed by memory.
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

    /// Backs all of it with memory, so that no access faults. May be called while it is in use.
    ///
    /// # Errors
    /// [`MappingError::Refused`] when there is too little.
    pub fn populate(&self) -> Result<(), MappingError> {
        let bytes = self.len * size_of::<T>();
        let region = &self.arena.region;
        let offset = self.start.addr().get() - region.start().addr().get();
        region
            .advise(offset, bytes, Keeping::Populate)
            .map_err(|source| MappingError::Refused { bytes, source })
    }
}

impl<T: Shareable> Deref for Mapping<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `Arena::part` found `len` entries at `start` inside the mapping, aligned to a page
        // (`FITS`); whatever is there is valid (`Shareable`), changes only through atomics, and
        // stays mapped as long as `self.arena`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Shareable> std::fmt::Debug for Mapping<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping").field("len", &self.len).finish_non_exhaustive()
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
    fn a_file_is_mapped_again_with_what_was_written_and_cannot_be_shrunk() {
        let arena = Arena::new(1, Pages::Ordinary).unwrap();
        let words = arena.part::<AtomicU64>(0, 8).unwrap();
        words.last().unwrap().store(7, Relaxed);
        let file = std::fs::File::from(arena.file().try_clone_to_owned().unwrap());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err());
        drop((arena, words));
        let again = Arena::of_file(file.into()).unwrap().part::<AtomicU64>(0, 8).unwrap();
        again.populate().unwrap();
        assert_eq!(again.last().unwrap().load(Relaxed), 7);
    }
}
