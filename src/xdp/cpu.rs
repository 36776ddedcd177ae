//! The processor: cores, prefetch, and a clock that costs no system call.
#![allow(unsafe_code, reason = "a prefetch instruction, and the clock's C interface")]

use core_affinity::CoreId;

/// Why a thread could not be pinned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// Not a core of this machine, or not one that this process may use.
    #[error("core {core} is not available to this process; available: {available:?}")]
    NoSuchCore {
        /// Core asked for.
        core: usize,
        /// Cores that would do.
        available: Vec<usize>,
    },
    /// The kernel said no.
    #[error("the kernel refused to pin this thread to core {core}; check the service's cpuset")]
    Refused {
        /// Core asked for.
        core: usize,
    },
}

/// The cores that the calling thread may run on, in ascending order.
pub fn available_cores() -> Vec<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.into_iter().map(|core| core.id).collect()
}

/// Pins the calling thread to `core`.
///
/// # Errors
/// [`CpuError`], which lists the cores that would do.
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

/// Asks for the cache line of `value`, and goes on without waiting for it.
///
/// Cost: one instruction. Does nothing on processors other than x86-64 and aarch64.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    let pointer = std::ptr::from_ref(value).cast::<i8>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on the cache, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(pointer);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) pointer,
            options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = pointer;
}

/// Which of the eight 16-bit lanes of `lanes` equal `value`: two bits for each lane, both set or
/// both clear, those of the lowest lane of the first word first.
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
        // SAFETY: SSE2 is a part of x86-64, and these functions take values only.
        let mask = unsafe {
            let lanes = _mm_set_epi64x(high, low);
            _mm_movemask_epi8(_mm_cmpeq_epi16(lanes, _mm_set1_epi16(value.cast_signed())))
        };
        mask.cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    equal_lanes_by_words(lanes, value)
}

/// The same in plain arithmetic: a 16-bit lane of `lanes ^ value` is zero where they are equal, and
/// `(lane & 0x7fff) + 0x7fff | lane` has its top bit clear for zero only.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[allow(clippy::cast_possible_truncation, reason = "a byte is left")]
fn equal_lanes_by_words(lanes: [u64; 2], value: u16) -> u32 {
    const ONES: u64 = u64::MAX / 0xffff;
    const TOPS: u64 = ONES << 15;
    let four = |lanes: u64| {
        let differing = lanes ^ (ONES * u64::from(value));
        let nonzero = ((differing & !TOPS) + !TOPS) | differing;
        let equal = (!nonzero & TOPS) >> 15;
        // The lanes' bits, 16 apart, side by side at the top; two of each.
        (equal.wrapping_mul(1 << 48 | 1 << 34 | 1 << 20 | 1 << 6) >> 48 & 0x55) as u32 * 3
    };
    let [low, high] = lanes;
    four(low) | four(high) << 8
}

/// Milliseconds of `CLOCK_MONOTONIC`: since boot, without jumps, comparable between processes.
///
/// Cost: about 20 ns, in the vDSO; meant for once per batch.
#[inline]
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Nanoseconds of the same clock.
///
/// Cost: about 20 ns.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // rustix looks the vDSO up by itself, and crashes under valgrind, which hides it.
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
        // /proc/uptime also counts time in suspend, so it may only be ahead.
        #[expect(clippy::cast_precision_loss, reason = "an uptime in seconds")]
        let monotonic_s = first as f64 / 1000.0;
        assert!(monotonic_s <= uptime_s + 1.0, "{monotonic_s} against {uptime_s}");
    }

    /// Both ways of comparing against the plain one, for every value.
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
