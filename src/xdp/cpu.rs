//! Processor access: cores, prefetch, and a clock without a system call.
#![allow(unsafe_code, reason = "a prefetch instruction, and the clock's C interface")]

use core_affinity::CoreId;

/// Reason why a thread could not be pinned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The machine lacks the core, or this process may not use it.
    #[error("core {core} is not available to this process; available: {available:?}")]
    NoSuchCore {
        /// Requested core.
        core: usize,
        /// Available cores.
        available: Vec<usize>,
    },
    /// The kernel refused.
    #[error("the kernel refused to pin this thread to core {core}; check the service's cpuset")]
    Refused {
        /// Requested core.
        core: usize,
    },
}

/// Returns the cores that the calling thread may run on, in ascending order.
pub fn available_cores() -> Vec<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.into_iter().map(|core| core.id).collect()
}

/// Pins the calling thread to `core`.
///
/// # Errors
/// [`CpuError`]; for a missing core it lists the available ones.
pub fn pin_to_core(core: usize) -> Result<(), CpuError> {
    let available = available_cores();
    if !available.contains(&core) {
        return Err(CpuError::NoSuchCore { core, available });
    }
    if !core_affinity::set_for_current(CoreId { id: core }) {
        return Err(CpuError::Refused { core });
    }
    Ok(())
}

/// Prefetches the cache line of `value` without waiting for it.
///
/// Cost: one instruction. Does nothing on processors other than x86-64 and aarch64.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    let pointer = std::ptr::from_ref(value).cast::<i8>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch only affects the cache, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(pointer);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: likewise.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) pointer,
            options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = pointer;
}

/// Compares the eight 16-bit lanes of `lanes` with `value`. Returns two bits for each lane, both
/// set if it is equal and both clear otherwise, from the lowest lane of the first word on.
///
/// Cost: about eight instructions with SSE2, which every x86-64 processor has.
#[inline(always)]
pub fn equal_lanes(lanes: [u64; 2], value: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi16,
        };
        let [low, high] = lanes.map(u64::cast_signed);
        // SAFETY: SSE2 is part of x86-64, and these functions take values only.
        let mask = unsafe {
            let lanes = _mm_set_epi64x(high, low);
            _mm_movemask_epi8(_mm_cmpeq_epi16(lanes, _mm_set1_epi16(value.cast_signed())))
        };
        mask.cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    equal_lanes_by_words(lanes, value)
}

/// Implements [`equal_lanes`] in plain arithmetic: a 16-bit lane of `lanes ^ value` is zero where
/// they are equal, and `(lane & 0x7fff) + 0x7fff | lane` has its top bit clear for zero only.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[allow(clippy::cast_possible_truncation, reason = "a byte is left")]
fn equal_lanes_by_words(lanes: [u64; 2], value: u16) -> u32 {
    const ONES: u64 = u64::MAX / 0xffff;
    const TOPS: u64 = ONES << 15;
    let four = |lanes: u64| {
        let differing = lanes ^ (ONES * u64::from(value));
        let nonzero = ((differing & !TOPS) + !TOPS) | differing;
        let equal = (!nonzero & TOPS) >> 15;
        // Gathers the lanes' bits, which are 16 apart, at the top; then doubles each.
        (equal.wrapping_mul(1 << 48 | 1 << 34 | 1 << 20 | 1 << 6) >> 48 & 0x55) as u32 * 3
    };
    let [low, high] = lanes;
    four(low) | four(high) << 8
}

/// Returns milliseconds of `CLOCK_MONOTONIC`: since boot, without jumps, comparable between
/// processes.
///
/// Cost: about 20 ns, in the vDSO; meant for once per batch.
#[inline]
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Returns nanoseconds of `CLOCK_MONOTONIC`.
///
/// Cost: about 20 ns, in the vDSO.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // rustix resolves the vDSO without libc, and crashes under valgrind, which hides it.
    // SAFETY: `time` is a live timespec. The clock exists on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    // The kernel's values are never negative.
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_a_core_it_may_use() {
        let core = *available_cores().last().unwrap();
        std::thread::spawn(move || {
            pin_to_core(core).unwrap();
            assert_eq!(available_cores(), [core]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_core_that_is_not_there_is_an_error_that_lists_the_others() {
        let error = pin_to_core(1_000_000).unwrap_err();
        assert_eq!(error, CpuError::NoSuchCore { core: 1_000_000, available: available_cores() });
    }

    #[test]
    fn the_clock_does_not_run_backwards_and_agrees_with_the_kernel() {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime_s: f64 = text.split(' ').next().unwrap().parse().unwrap();
        let (first, second) = (monotonic_ms(), monotonic_ms());
        assert!(first <= second);
        // /proc/uptime also counts time in suspend, so only it may be ahead.
        #[expect(clippy::cast_precision_loss, reason = "an uptime in seconds")]
        let monotonic_s = first as f64 / 1000.0;
        assert!(monotonic_s <= uptime_s + 1.0, "{monotonic_s} against {uptime_s}");
    }

    /// Compares both implementations with a plain loop, for every value.
    #[test]
    fn all_lanes_are_compared_exactly() {
        let lanes = [1, 0x7fff, 0x8000, 0xffff, 0, 2, 0x8001, 0x7ffe_u16];
        let words = [&lanes[..4], &lanes[4..]]
            .map(|four| four.iter().rev().fold(0_u64, |word, &lane| word << 16 | u64::from(lane)));
        for value in 0..=u16::MAX {
            let expected = (0..8).zip(lanes).filter(|(_, lane)| *lane == value);
            let expected = expected.fold(0, |mask, (place, _)| mask | 3 << (2 * place));
            assert_eq!(equal_lanes(words, value), expected, "{value:#x}");
            assert_eq!(equal_lanes_by_words(words, value), expected, "{value:#x}");
        }
        assert_eq!(equal_lanes([0; 2], 0), 0xffff);
        assert_eq!(equal_lanes_by_words([0; 2], 0), 0xffff);
    }

    #[test]
    fn prefetch_takes_any_reference() {
        prefetch(&0u64);
        prefetch::<[u8]>(&[]);
    }
}
