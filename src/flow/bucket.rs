//! A bucket of a flow table: one cache line with eight slots, each of which names an entry.
//!
//! ```text
//! word   0, 1              2, 3, 4, 5                 6, 7
//!        8 tags of 16 bits 8 entry numbers of 32 bits not used
//! ```
//!
//! A tag is 16 bits of the flow's hash, and never 0, which marks a free slot.

use crate::sync::Ordering;
use crate::xdp::cpu;
use crate::xdp::memory::Line;

/// Slots of a bucket.
pub(super) const SLOTS: u32 = 8;

/// Returns the tag of a flow.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
pub(super) const fn tag_of(hash: u64) -> u16 {
    let tag = hash as u16;
    if tag == 0 { 1 } else { tag }
}

/// A set of slots of a bucket: two bits for each, both set or both clear.
#[derive(Clone, Copy)]
pub(super) struct SlotMask(u32);

impl SlotMask {
    /// Returns the slots that hold `tag`; tag 0 is that of free ones.
    #[inline]
    pub(super) fn with(line: &Line, tag: u16) -> Self {
        let [low, high, ..] = &line.words;
        // Acquire pairs with the release store of `set_slot`: a reader of a tag sees the entry
        // number, and the entry, that came with it.
        let tags = [low.load(Ordering::Acquire), high.load(Ordering::Acquire)];
        Self(cpu::equal_lanes(tags, tag))
    }

    /// Returns the number of the first slot, 0..8; 16 if there is none.
    #[inline]
    pub(super) const fn number(self) -> u32 {
        self.0.trailing_zeros() / 2
    }

    /// Returns the entry that the first slot names.
    #[inline]
    pub(super) fn first(self, line: &Line) -> Option<u32> {
        if self.0 == 0 { None } else { Some(entry_at(line, self.number())) }
    }

    /// Returns the set without its first slot.
    #[inline]
    pub(super) const fn rest(self) -> Self {
        let one_bit_less = self.0 & self.0.wrapping_sub(1);
        Self(one_bit_less & one_bit_less.wrapping_sub(1))
    }
}

/// Returns the first slot in `line` with `tag` and an entry that satisfies `wanted`, and that
/// entry.
#[inline]
pub(super) fn find(line: &Line, tag: u16, wanted: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
    let mut slots = SlotMask::with(line, tag);
    while let Some(entry) = slots.first(line) {
        if wanted(entry) {
            return Some((slots.number(), entry));
        }
        slots = slots.rest();
    }
    None
}

/// Returns a free slot.
pub(super) fn free_slot(line: &Line) -> Option<u32> {
    let slot = SlotMask::with(line, 0).number();
    (slot < SLOTS).then_some(slot)
}

/// Returns the contents of a slot: tag and entry number.
pub(super) fn content(line: &Line, slot: u32) -> (u16, u32) {
    (tag_at(line, slot), entry_at(line, slot))
}

/// Fills a free slot; for the bucket's one writer only. The number is stored before the tag.
pub(super) fn set_slot(line: &Line, slot: u32, tag: u16, entry: u32) {
    if let Some(word) = line.words.get(2 + slot as usize / 2) {
        let shift = 32 * (slot % 2);
        let others = word.load(Ordering::Relaxed) & !(0xffff_ffff << shift);
        // Release pairs with the acquire load in `entry_at`.
        word.store(others | u64::from(entry) << shift, Ordering::Release);
    }
    set_tag(line, slot, tag);
}

/// Frees a slot; for the bucket's one writer only.
pub(super) fn free(line: &Line, slot: u32) {
    set_tag(line, slot, 0);
}

fn set_tag(line: &Line, slot: u32, tag: u16) {
    if let Some(word) = line.words.get(slot as usize / 4) {
        let shift = 16 * (slot % 4);
        let others = word.load(Ordering::Relaxed) & !(0xffff << shift);
        // Release pairs with the acquire loads in `SlotMask::with`.
        word.store(others | u64::from(tag) << shift, Ordering::Release);
    }
}

/// Returns the entry number of a slot.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "half of a word is wanted")]
fn entry_at(line: &Line, slot: u32) -> u32 {
    let word = line.words.get(2 + slot as usize / 2);
    // Acquire pairs with the release store of `set_slot`: a reader that has read the tag of the
    // slot's last flow, and now the number of the next one, sees where the last one has moved to.
    let pair = word.map_or(0, |word| word.load(Ordering::Acquire));
    (pair >> (32 * (slot % 2))) as u32
}

/// Returns the tag of a slot; 0: free.
#[expect(clippy::cast_possible_truncation, reason = "a quarter of a word is wanted")]
fn tag_at(line: &Line, slot: u32) -> u16 {
    let word = line.words.get(slot as usize / 4);
    let tags = word.map_or(0, |word| word.load(Ordering::Relaxed));
    (tags >> (16 * (slot % 4))) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_holds_its_entry() {
        let line = Line::default();
        assert_eq!(free_slot(&line), Some(0));
        for slot in 0..SLOTS {
            // Tags that differ by one bit, and from 0 by one bit: no lane may spill into another.
            set_slot(&line, slot, 0x8000 | 1 << slot, u32::MAX - slot);
        }
        assert_eq!(free_slot(&line), None);
        for slot in 0..SLOTS {
            let (tag, entry) = (0x8000 | 1 << slot, u32::MAX - slot);
            assert_eq!(content(&line, slot), (tag, entry));
            assert_eq!(find(&line, tag, |_| true), Some((slot, entry)));
            free(&line, slot);
            assert_eq!(find(&line, tag, |_| true), None);
            assert_eq!(free_slot(&line), Some(slot));
            set_slot(&line, slot, tag, entry);
        }
    }

    #[test]
    fn equal_tags_are_all_looked_at() {
        let line = Line::default();
        for slot in [1, 4, 7] {
            set_slot(&line, slot, 9, slot);
        }
        for slot in [1, 4, 7] {
            assert_eq!(find(&line, 9, |entry| entry == slot), Some((slot, slot)));
        }
        assert_eq!(find(&line, 9, |entry| entry == 2), None);
    }

    /// The comparison of eight lanes at once against a plain one, for every tag.
    #[test]
    fn all_lanes_are_compared_exactly() {
        let line = Line::default();
        let tags = [1, 0x7fff, 0x8000, 0xffff, 0, 2, 0x8001, 0x7ffe];
        for (slot, tag) in (0..).zip(tags) {
            set_tag(&line, slot, tag);
        }
        for tag in 0..=u16::MAX {
            let expected =
                (0..8).zip(tags).find(|(_, held)| *held == tag).map_or(16, |(slot, _)| slot);
            assert_eq!(SlotMask::with(&line, tag).number(), expected, "tag {tag:#x}");
        }
    }
}
