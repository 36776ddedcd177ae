//! Large zeroed tables: anonymous memory on huge pages, present before the first packet.
//!
//! A flow table is read at random, so page faults and TLB misses are its cost; this mapping is
//! aligned for transparent huge pages and populated when it is made.
#![allow(unsafe_code, reason = "turns mapped bytes into values")]

use std::io;
use std::mem::{align_of, needs_drop, size_of};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use super::os::Region;

/// Size and alignment of a transparent huge page on x86-64, and on aarch64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Alignment that every page of the kernels that we support has.
const PAGE: usize = 4096;

/// A type of which all-zero bytes are a valid value.
///
/// # Safety
/// All-zero bytes must be a valid value, and the type must need no drop.
pub unsafe trait Zeroable {}

// SAFETY: an atomic integer of zeros is 0.
unsafe impl Zeroable for AtomicU8 {}
// SAFETY: an atomic integer of zeros is 0.
unsafe impl Zeroable for AtomicU16 {}
// SAFETY: an atomic integer of zeros is 0.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: an atomic integer of zeros is 0.
unsafe impl Zeroable for AtomicU64 {}
// SAFETY: an array of zeros is zero in each element.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {}

/// One cache line of eight words.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Line {
    /// The words, in address order.
    pub words: [AtomicU64; 8],
}

// SAFETY: an array of atomic integers, as above.
unsafe impl Zeroable for Line {}

/// Declares a struct whose fields are all [`Zeroable`], and makes it so too.
///
/// A file without unsafe code can thus lay out its own table entries:
///
/// ```
/// holdfast::zeroable_struct! {
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
macro_rules! zeroable_struct {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field_visibility:vis $field:ident: $type:ty,)+
    }) => {
        $(#[$meta])*
        $visibility struct $name {
            $($(#[$field_meta])* $field_visibility $field: $type,)+
        }

        const _: () = {
            const fn all_zeroable<T: $crate::xdp::memory::Zeroable>() {}
            $(all_zeroable::<$type>();)+
        };

        // SAFETY: each field is `Zeroable`, which the constant above checks, and padding may
        // hold anything.
        #[allow(unsafe_code, reason = "the claim is checked by the macro itself")]
        unsafe impl $crate::xdp::memory::Zeroable for $name {}
    };
}

/// Why a table could not be mapped.
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
    /// The kernel refused.
    #[error(
        "cannot map {bytes} bytes for a table of {len} entries: {source}; \
         free memory, raise the memory limit of the service, or configure smaller tables"
    )]
    Refused {
        /// Entries asked for.
        len: usize,
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A fixed slice of `T` in memory of its own: zeroed, aligned to a huge page where it fills one,
/// backed by memory from the start. Freed when dropped.
pub struct Mapping<T: Zeroable> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the memory mapped.
    _region: Region,
}

// SAFETY: the mapping owns its `T`s like a `Box<[T]>`.
unsafe impl<T: Zeroable + Send> Send for Mapping<T> {}
// SAFETY: `&Mapping<T>` gives out `&[T]` only.
unsafe impl<T: Zeroable + Sync> Sync for Mapping<T> {}

impl<T: Zeroable> Mapping<T> {
    const FITS: () = {
        assert!(align_of::<T>() <= PAGE, "a mapping is aligned to a page only");
        assert!(!needs_drop::<T>(), "a mapping is freed without dropping its entries");
    };

    /// Maps `len` zeroed entries.
    ///
    /// # Errors
    /// [`MappingError`] when the size is impossible or the kernel has no memory.
    pub fn zeroed(len: usize) -> Result<Self, MappingError> {
        const { Self::FITS };
        let too_large = || MappingError::TooLarge { len, entry: size_of::<T>() };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(too_large)?.max(1);
        // Room to begin at a huge page; what lies before it is never touched, so it costs nothing.
        let slack = if bytes >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let reserved = bytes.checked_add(slack).ok_or_else(too_large)?;
        let refused = |source| MappingError::Refused { len, bytes, source };
        let region = Region::anonymous(reserved).map_err(refused)?;
        let skipped = region.start().addr().get().wrapping_neg() % slack.max(1);
        // A kernel without transparent huge pages says EINVAL; small pages work too, only slower.
        let _ = region.advise(skipped, bytes, libc::MADV_HUGEPAGE);
        region.advise(skipped, bytes, libc::MADV_POPULATE_WRITE).map_err(refused)?;
        // SAFETY: `skipped < slack`, and `bytes + slack` were mapped.
        let start = unsafe { region.start().add(skipped) }.cast();
        Ok(Self { start, len, _region: region })
    }
}

impl<T: Zeroable> Deref for Mapping<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` mapped `len` entries at `start`, aligned to a page (`FITS`), as zeros,
        // which are valid (`Zeroable`); they change only through `&T` and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Zeroable> std::fmt::Debug for Mapping<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapping").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    zeroable_struct! {
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
}
