//! The part of a flow table that holds the flows of one address family.
//!
//! Any thread may call the functions of this module; those for the writer only are in
//! [`writer`](super::writer).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::bucket::{self, SlotMask, tag_of};
use super::entry::{self, ConntrackEntry, EntryV4, EntryV6, FlowState, Pin, ReturnHop, State};
use super::header;
use super::layout::Span;
use super::slot::{Slot, V6_FLAG};
use crate::net::{NextHop, TAIL, Tuple};
use crate::sync::{AtomicU64, Ordering, fence, spin_loop};
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::memory::{Arena, Line, Mapping, MappingError, Shareable};

/// The words of an entry that both families have.
pub(super) struct Common<'e> {
    pub hop: &'e AtomicU64,
    pub tail: &'e AtomicU64,
    pub backend_word: &'e AtomicU64,
}

/// Differences between the families: the layout of a tuple in an entry.
pub(super) trait Family {
    /// An entry.
    type Entry: Shareable;
    /// The words of an entry's [`Tuple`].
    type Words: Copy + PartialEq;
    /// Flag bit in the [`Slot`]s of this family.
    const FLAG: u32;
    /// Index of the family's count of used entries in the second line of the header.
    const MARK: usize;

    fn common(entry: &Self::Entry) -> Common<'_>;
    /// Returns the tuple of an entry; all zeros in a free one, except for the `link` word.
    fn words(entry: &Self::Entry) -> Self::Words;
    fn holds(entry: &Self::Entry, words: &Self::Words) -> bool;
    /// Writes the addresses, not the tail.
    fn set_addresses(entry: &Self::Entry, words: &Self::Words);
    /// Returns the word of a free entry that holds the number of the next free one, plus 1. It is
    /// an address word, which no other thread writes.
    fn link(entry: &Self::Entry) -> &AtomicU64;
    fn tuple(words: Self::Words) -> Tuple;
    fn tail(words: &Self::Words) -> u64;
}

/// IPv4.
#[derive(Debug)]
pub(super) struct V4;
/// IPv6.
#[derive(Debug)]
pub(super) struct V6;

// Relaxed, here and below: the callers order these accesses, where it matters, by the version.
use Ordering::Relaxed;

impl Family for V4 {
    type Entry = EntryV4;
    type Words = [u64; 2];
    const FLAG: u32 = 0;
    const MARK: usize = 0;

    #[inline]
    fn common(entry: &EntryV4) -> Common<'_> {
        let [hop, _, tail, backend_word] = &entry.words;
        Common { hop, tail, backend_word }
    }

    #[inline]
    fn words(entry: &EntryV4) -> [u64; 2] {
        let [_, addresses, tail, _] = &entry.words;
        [addresses.load(Relaxed), tail.load(Relaxed) & TAIL]
    }

    #[inline]
    fn holds(entry: &EntryV4, words: &[u64; 2]) -> bool {
        let ([a, t], [b, u]) = (Self::words(entry), *words);
        (a ^ b) | (t ^ u) == 0
    }

    #[inline]
    fn set_addresses(entry: &EntryV4, words: &[u64; 2]) {
        let ([_, addresses, ..], [value, _]) = (&entry.words, *words);
        addresses.store(value, Relaxed);
    }

    #[inline]
    fn link(entry: &EntryV4) -> &AtomicU64 {
        let [_, link, ..] = &entry.words;
        link
    }

    #[inline]
    fn tuple(words: [u64; 2]) -> Tuple {
        Tuple::V4(words)
    }

    #[inline]
    fn tail(&[_, tail]: &[u64; 2]) -> u64 {
        tail
    }
}

impl Family for V6 {
    type Entry = EntryV6;
    type Words = [u64; 5];
    const FLAG: u32 = V6_FLAG;
    const MARK: usize = 1;

    #[inline]
    fn common(entry: &EntryV6) -> Common<'_> {
        let [hop, _, _, _, _, tail, backend_word, _] = &entry.words;
        Common { hop, tail, backend_word }
    }

    #[inline]
    fn words(entry: &EntryV6) -> [u64; 5] {
        let [_, c0, c1, v0, v1, tail, ..] = &entry.words;
        let [c0, c1, v0, v1] = [c0, c1, v0, v1].map(|word| word.load(Relaxed));
        [c0, c1, v0, v1, tail.load(Relaxed) & TAIL]
    }

    #[inline]
    fn holds(entry: &EntryV6, words: &[u64; 5]) -> bool {
        let ([a, b, c, d, e], [v, w, x, y, z]) = (Self::words(entry), *words);
        (a ^ v) | (b ^ w) | (c ^ x) | (d ^ y) | (e ^ z) == 0
    }

    #[inline]
    fn set_addresses(entry: &EntryV6, words: &[u64; 5]) {
        let ([_, c0, c1, v0, v1, ..], [a, b, c, d, _]) = (&entry.words, *words);
        for (word, value) in [(c0, a), (c1, b), (v0, c), (v1, d)] {
            word.store(value, Relaxed);
        }
    }

    #[inline]
    fn link(entry: &EntryV6) -> &AtomicU64 {
        let [_, link, ..] = &entry.words;
        link
    }

    #[inline]
    fn tuple(words: [u64; 5]) -> Tuple {
        Tuple::V6(words)
    }

    #[inline]
    fn tail(&[.., tail]: &[u64; 5]) -> u64 {
        tail
    }
}

/// Buckets and entries of one family.
#[derive(Debug)]
pub(super) struct FamilyTable<F: Family> {
    pub(super) buckets: Mapping<Line>,
    pub(super) entries: Mapping<F::Entry>,
    /// The `created` word of each entry: stored apart, as packets do not need it.
    pub(super) creations: Mapping<AtomicU64>,
    header: Mapping<Line>,
    populated: AtomicBool,
}

impl<F: Family> FamilyTable<F> {
    /// Creates the table over a part of the arena that is not yet backed by memory.
    pub(super) fn new(arena: &Arc<Arena>, span: &Span) -> Result<Self, MappingError> {
        Ok(Self {
            buckets: arena.part(span.buckets_at, span.buckets)?,
            entries: arena.part(span.entries_at, span.entries)?,
            creations: arena.part(span.creations_at, span.entries)?,
            header: arena.part(0, header::LINES)?,
            populated: AtomicBool::new(false),
        })
    }

    /// Returns the number of the first entry that was never used. Kept in the header, so that no
    /// thread reads empty memory and thereby makes the kernel allocate it.
    pub(super) fn ever_used(&self) -> u32 {
        // Relaxed: a bound for the one writer.
        let mark = self.mark().map_or(0, |mark| mark.load(Relaxed));
        u32::try_from(mark).unwrap_or(u32::MAX).min(self.capacity())
    }

    /// Moves that bound; for the writer only, before it uses the entry.
    pub(super) fn set_ever_used(&self, entries: u32) {
        if let Some(mark) = self.mark() {
            mark.store(entries.into(), Relaxed);
        }
    }

    fn mark(&self) -> Option<&AtomicU64> {
        self.header.get(1)?.words.get(F::MARK)
    }

    pub(super) fn capacity(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn populate(&self) -> Result<(), MappingError> {
        // Relaxed: done twice at worst.
        if !self.populated.load(Relaxed) {
            self.buckets.populate()?;
            self.entries.populate()?;
            self.creations.populate()?;
            self.populated.store(true, Relaxed);
        }
        Ok(())
    }

    /// See [`Mapping::let_go`].
    pub(super) fn let_go(&self) {
        self.buckets.let_go();
        self.entries.let_go();
        self.creations.let_go();
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.buckets) + size_of_val(&*self.entries) + size_of_val(&*self.creations)
    }

    pub(super) fn entry(&self, number: u32) -> Option<&F::Entry> {
        self.entries.get(number as usize)
    }

    #[inline(always)]
    pub(super) fn view(&self) -> View<'_, F> {
        View { buckets: &self.buckets, entries: &self.entries }
    }

    /// Reads as [`FamilyTable::read`] does, but touches no memory that was never used: for walks
    /// over all entries.
    pub(super) fn read_used(&self, number: u32) -> Option<ConntrackEntry> {
        if number < self.ever_used() { self.read(number) } else { None }
    }

    /// Returns a consistent copy of an entry; `None` if it is free, or changes during every
    /// attempt.
    pub(super) fn read(&self, number: u32) -> Option<ConntrackEntry> {
        let (entry, created) = (self.entry(number)?, self.creations.get(number as usize)?);
        for _ in 0..8 {
            // Acquire pairs with the release store that ends a write: the words below are at least
            // as new as this version.
            let before = created.load(Ordering::Acquire);
            let (words, flow_state) = (F::words(entry), flow_state_of::<F>(entry));
            // The loads above are done before the version is read again.
            fence(Ordering::Acquire);
            if before & 1 == 0 && created.load(Relaxed) == before {
                // A free entry has no protocol.
                let used = F::tail(&words) != 0;
                let pin = Pin::from_words(flow_state, before);
                return used.then(|| ConntrackEntry { key: F::tuple(words).key(), pin });
            }
            spin_loop();
        }
        None
    }

    /// Returns the `created` word of an entry that is in use and not being written, marked so that
    /// it is not 0.
    pub(super) fn stamp(&self, number: u32) -> Option<u64> {
        // Acquire: what the writer did before is visible.
        let created = self.creations.get(number as usize)?.load(Ordering::Acquire);
        let used = created & 1 == 0 && F::tail(&F::words(self.entry(number)?)) != 0;
        used.then_some(created | 1)
    }

    /// Returns the entry of a tuple, for threads other than the writer's.
    pub(super) fn lookup(&self, words: &F::Words, hash: u64) -> Option<(Slot, Pin)> {
        // A flow that moves from its second bucket to its first between the two look-ups is missed
        // by both: the first bucket is searched again.
        let view = self.view();
        let again = || view.find_in(view.first_bucket(hash), words, tag_of(hash));
        let number = view.find(words, hash).or_else(again)?.number;
        let entry = self.read(number)?;
        // The entry may have been reused between finding and reading.
        let same = Tuple::from(entry.key) == F::tuple(*words);
        same.then_some((Slot::new(F::FLAG, number), entry.pin))
    }

    pub(super) fn touch(&self, number: u32, flow_state: &FlowState, now: Ticks) {
        if let Some(entry) = self.entry(number) {
            let word = F::common(entry).backend_word;
            let new = flow_state.with_last_seen(now).backend_word;
            // A time publishes nothing. A lost race means that another thread touched the entry.
            let _ = word.compare_exchange(flow_state.backend_word, new, Relaxed, Relaxed);
        }
    }

    pub(super) fn change_hop(&self, number: u32, flow_state: &FlowState, hop: &NextHop) {
        if let Some(entry) = self.entry(number) {
            let new = flow_state.with_hop(hop).hop;
            // A return hop publishes nothing, and is complete in itself.
            let _ = F::common(entry).hop.compare_exchange(flow_state.hop, new, Relaxed, Relaxed);
        }
    }

    pub(super) fn change_state(
        &self,
        number: u32,
        words: &F::Words,
        flow_state: &FlowState,
        set: State,
        clear: State,
    ) {
        let Some(entry) = self.entry(number) else { return };
        let tail = F::common(entry).tail;
        let mut old = F::tail(words) | flow_state.tail;
        // A few tries: the only competitors are other state changes.
        for _ in 0..4 {
            let new = (old | u64::from(set.0) << entry::STATE_SHIFT)
                & !(u64::from(clear.0) << entry::STATE_SHIFT);
            // State bits publish nothing.
            match tail.compare_exchange(old, new, Relaxed, Relaxed) {
                Err(now) if now & !entry::STATE == old & !entry::STATE => old = now,
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// The parts of a family's table that look-ups touch: copied once per batch, so that their
/// addresses are not loaded again for each packet.
pub(super) struct View<'t, F: Family> {
    pub(super) buckets: &'t [Line],
    entries: &'t [F::Entry],
}

impl<F: Family> Clone for View<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F: Family> Copy for View<'_, F> {}

impl<'t, F: Family> View<'t, F> {
    #[inline(always)]
    pub(super) fn entry(&self, number: u32) -> Option<&'t F::Entry> {
        self.entries.get(number as usize)
    }

    #[inline(always)]
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        if let Some(line) = self.buckets.get(self.first_bucket(hash)) {
            cpu::prefetch(line);
        }
    }

    #[inline(always)]
    pub(super) fn prefetch_entry(&self, hash: u64) -> Option<Slot> {
        let (first, tag) = (self.first_bucket(hash), tag_of(hash));
        let line = self.buckets.get(first)?;
        if let Some(number) = SlotMask::with(line, tag).first(line) {
            cpu::prefetch(self.entry(number)?);
            return Some(Slot::new(F::FLAG, number));
        }
        if let Some(line) = self.buckets.get(self.other_bucket(first, tag)) {
            cpu::prefetch(line);
        }
        None
    }

    #[inline]
    pub(super) fn prefetch_entry_elsewhere(&self, hash: u64) -> Option<Slot> {
        let tag = tag_of(hash);
        let line = self.buckets.get(self.other_bucket(self.first_bucket(hash), tag))?;
        let number = SlotMask::with(line, tag).first(line)?;
        cpu::prefetch(self.entry(number)?);
        Some(Slot::new(F::FLAG, number))
    }

    /// Returns the slot that names an entry whose tuple has this hash.
    pub(super) fn named(&self, number: u32, hash: u64) -> Option<(&'t Line, u32)> {
        let (first, tag) = (self.first_bucket(hash), tag_of(hash));
        [first, self.other_bucket(first, tag)].into_iter().find_map(|bucket| {
            let line = self.buckets.get(bucket)?;
            bucket::find(line, tag, |named| named == number).map(|(slot, _)| (line, slot))
        })
    }

    /// Returns the entry of a tuple, and the slot that names it.
    pub(super) fn find(&self, words: &F::Words, hash: u64) -> Option<Found> {
        let (first, tag) = (self.first_bucket(hash), tag_of(hash));
        let other = || self.find_in(self.other_bucket(first, tag), words, tag);
        self.find_in(first, words, tag).or_else(other)
    }

    #[inline]
    fn find_in(&self, bucket: usize, words: &F::Words, tag: u16) -> Option<Found> {
        let line = self.buckets.get(bucket)?;
        let holds = |number| self.entry(number).is_some_and(|entry| F::holds(entry, words));
        let (slot, number) = bucket::find(line, tag, holds)?;
        Some(Found { bucket, slot, number })
    }

    /// Returns the entry of a tuple, if it is the one at `hint`, with its contents, which are
    /// consistent only for the writer.
    #[inline(always)]
    pub(super) fn at(&self, words: &F::Words, hint: Slot) -> Option<Hit<'t>> {
        let entry = self.entry(hint.number())?;
        F::holds(entry, words).then(|| Hit::new::<F>(hint.number(), entry))
    }

    /// Returns the entry of a tuple; `hint` is tried first.
    #[inline]
    pub(super) fn find_at(&self, words: &F::Words, hash: u64, hint: Slot) -> Option<Hit<'t>> {
        self.at(words, hint).or_else(|| {
            let number = self.find(words, hash)?.number;
            Some(Hit::new::<F>(number, self.entry(number)?))
        })
    }

    #[inline(always)]
    pub(super) fn first_bucket(&self, hash: u64) -> usize {
        let bucket = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        usize::try_from(bucket).unwrap_or_default()
    }

    /// Returns the other bucket of a flow, from either of them: `other(other(b)) == b`.
    #[inline(always)]
    pub(super) fn other_bucket(&self, bucket: usize, tag: u16) -> usize {
        let n = self.buckets.len();
        let mixed = (u64::from(u32::from(tag).wrapping_mul(0x9e37_79b1)) * n as u64) >> 32;
        let sum = usize::try_from(mixed).unwrap_or_default();
        if sum >= bucket { sum - bucket } else { sum + n - bucket }
    }
}

/// Number of an entry, and the bucket and slot that name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub bucket: usize,
    pub slot: u32,
    pub number: u32,
}

/// An entry that was found, for the writer's thread: its contents, and the words through which they
/// can be changed.
pub struct Hit<'t> {
    /// The entry's slot.
    pub slot: Slot,
    /// The entry's contents.
    pub flow_state: FlowState,
    words: Common<'t>,
}

impl<'t> Hit<'t> {
    #[inline(always)]
    pub(super) fn new<F: Family>(number: u32, entry: &'t F::Entry) -> Self {
        let slot = Slot::new(F::FLAG, number);
        Self { slot, flow_state: flow_state_of::<F>(entry), words: F::common(entry) }
    }

    /// Records that a packet of the flow came at `now`.
    #[inline(always)]
    pub fn touch(&self, now: Ticks) {
        if self.flow_state.last_seen() != now {
            // A time publishes nothing.
            self.words
                .backend_word
                .store(self.flow_state.with_last_seen(now).backend_word, Relaxed);
        }
    }

    /// Changes the flow's state to `new`. Other bits that other threads set at the same time are
    /// not lost.
    pub fn set_state(&self, new: State) {
        let old = self.flow_state.state();
        if old == new {
            return;
        }
        let (set, clear) = (new.without(old), old.without(new));
        // State bits publish nothing.
        self.words.tail.fetch_or(u64::from(set.0) << entry::STATE_SHIFT, Relaxed);
        self.words.tail.fetch_and(!(u64::from(clear.0) << entry::STATE_SHIFT), Relaxed);
    }

    /// Records the return hop.
    #[inline(always)]
    pub fn set_return_hop(&self, to: ReturnHop) {
        if self.flow_state.hop != to.0 {
            // A return hop publishes nothing, and is complete in itself.
            self.words.hop.store(to.0, Relaxed);
        }
    }
}

/// Returns an entry's contents besides its tuple.
#[inline]
pub(super) fn flow_state_of<F: Family>(entry: &F::Entry) -> FlowState {
    let Common { hop, tail, backend_word } = F::common(entry);
    FlowState {
        hop: hop.load(Relaxed),
        tail: tail.load(Relaxed) & !TAIL,
        backend_word: backend_word.load(Relaxed),
    }
}
