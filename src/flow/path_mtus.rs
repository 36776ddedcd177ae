//! Path MTUs: the longest outer packets that the paths to tunnel backends take, across all workers.
//!
//! One word per path: a tag of the path, the MTU, and the time at which a router reported it. Fixed
//! memory (32 KiB), any number of readers and writers, no lock. Paths that fall into one word
//! replace each other.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::net::PathKey;
use crate::units::Ticks;

/// Slots of the table: paths of one slot replace each other. A box has tens or hundreds of
/// backends.
const SLOTS: usize = 4096;
/// Time for which a learnt MTU is valid: ten minutes.
const LIFETIME: Ticks = Ticks(60_000);

/// The table of path MTUs. See the module's documentation.
#[derive(Debug)]
pub struct PathMtus(Box<[AtomicU64]>);

impl Default for PathMtus {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl PathMtus {
    /// Returns the longest outer packet that passes the path, in bytes, if it is known.
    #[inline]
    pub fn learnt(&self, path: PathKey, now: Ticks) -> Option<u16> {
        let entry = Entry::from_word(self.slot(path)?.load(Ordering::Relaxed));
        let counts = entry.tag == tag(path) && now.since(entry.at).0 < LIFETIME.0;
        Some(entry.mtu).filter(|&mtu| counts && mtu != 0)
    }

    /// Records the MTU that a router reports of a path, unless a smaller one is known.
    pub fn learn(&self, path: PathKey, mtu: u16, now: Ticks) {
        if self.learnt(path, now).is_none_or(|known| mtu < known)
            && let Some(slot) = self.slot(path)
        {
            // Relaxed: it is one word, and of two workers' values either is right.
            slot.store(Entry { tag: tag(path), mtu, at: now }.word(), Ordering::Relaxed);
        }
    }

    /// Returns a copy, in which an explanation is tried out.
    #[must_use]
    pub fn scratch(&self) -> Self {
        let copy = |slot: &AtomicU64| AtomicU64::new(slot.load(Ordering::Relaxed));
        Self(self.0.iter().map(copy).collect())
    }

    #[inline]
    fn slot(&self, path: PathKey) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(path.0).ok()? & (SLOTS - 1))
    }
}

/// Returns the tag that distinguishes a path from others of its slot.
#[inline]
const fn tag(path: PathKey) -> u16 {
    let [high, low, ..] = path.0.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// One slot, as a word.
struct Entry {
    tag: u16,
    mtu: u16,
    at: Ticks,
}

impl Entry {
    #[inline]
    const fn from_word(word: u64) -> Self {
        let [t0, t1, m0, m1, a0, a1, a2, a3] = word.to_be_bytes();
        Self {
            tag: u16::from_be_bytes([t0, t1]),
            mtu: u16::from_be_bytes([m0, m1]),
            at: Ticks(u32::from_be_bytes([a0, a1, a2, a3])),
        }
    }

    const fn word(&self) -> u64 {
        (self.tag as u64) << 48 | (self.mtu as u64) << 32 | self.at.0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learnt_mtu_counts_for_ten_minutes_and_only_gets_smaller() {
        let paths = PathMtus::default();
        let (path, now) = (PathKey(0x1234_5678), Ticks(u32::MAX - 5));
        assert_eq!(paths.learnt(path, now), None);
        paths.learn(path, 1400, now);
        assert_eq!(paths.learnt(path, now), Some(1400));
        let later = now.after(Ticks(59_999));
        paths.learn(path, 1450, later);
        assert_eq!(paths.learnt(path, later), Some(1400));
        paths.learn(path, 1300, later);
        assert_eq!(paths.learnt(path, later), Some(1300));
        assert_eq!(paths.learnt(path, later.after(Ticks(59_999))), Some(1300));
        assert_eq!(paths.learnt(path, later.after(LIFETIME)), None);
        paths.learn(path, 1450, later.after(LIFETIME));
        assert_eq!(paths.learnt(path, later.after(LIFETIME)), Some(1450));
        let next_year = later.after(Ticks(300 * 24 * 3600 * 100));
        assert_eq!(paths.learnt(path, next_year), None);
    }

    #[test]
    fn paths_of_one_place_are_not_taken_for_each_other() {
        let paths = PathMtus::default();
        let (one, other, now) = (PathKey(0x1111_0007), PathKey(0x2222_0007), Ticks(0));
        paths.learn(one, 1400, now);
        assert_eq!(paths.learnt(other, now), None);
        paths.learn(other, 1300, now);
        assert_eq!((paths.learnt(one, now), paths.learnt(other, now)), (None, Some(1300)));
    }

    #[test]
    fn mtus_learnt_by_a_copy_stay_there() {
        let paths = PathMtus::default();
        let (path, now) = (PathKey(7), Ticks(0));
        paths.learn(path, 1400, now);
        let scratch = paths.scratch();
        assert_eq!(scratch.learnt(path, now), Some(1400));
        scratch.learn(path, 1300, now);
        assert_eq!((scratch.learnt(path, now), paths.learnt(path, now)), (Some(1300), Some(1400)));
    }
}
