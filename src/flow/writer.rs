//! The writing half of a flow table: insertion, removal, changes, and the sweep.

use std::sync::{Arc, atomic};

use arrayvec::ArrayVec;

use super::bucket::{self, SLOTS, tag_of};
use super::entry::{self, FlowState, Pin};
use super::family::{Common, Family, FamilyTable, Hit, flow_state_of};
use super::table::{FlowTable, Slot};
use crate::net::{HashedKey, Protocol, TAIL, TableSecret, Tuple};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::units::Ticks;
use crate::xdp::memory::Line;

/// Maximum number of flows that are moved, one after the other, to make room for a new one. At the
/// load that tables are made for this is enough (test
/// `filling_emptying_and_filling_again_reaches_the_full_capacity`).
const MOVES: u32 = 2;

/// Entries that the sweep removes together: their bucket lines are prefetched while it goes on.
const TOGETHER: usize = 16;

/// Entries that the search for one to remove visits beyond the flow's buckets: bounds the cost of a
/// new flow at a full table to some microseconds.
const LOOKS: u32 = 64;

/// The writing half of a flow table. One per table.
#[derive(Debug)]
pub struct FlowWriter {
    table: Arc<FlowTable>,
    /// ID of the writer in the header.
    owner: u64,
    v4: Free,
    v6: Free,
    /// Next entry that [`FlowWriter::sweep`] visits: those of IPv4, then those of IPv6.
    hand: u32,
}

/// Free entries of one family.
#[derive(Debug, Default)]
struct Free {
    /// First of the entries that were freed; they are chained through their `link` word.
    first: Option<u32>,
    /// Entries from here on were never used.
    unused: u32,
    /// Number of entries in use.
    used: u32,
    /// Next entry that [`Free::victim`] visits.
    hand: u32,
}

/// Order in which entries make room for others: higher ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The flow is unproven and silent, or it has ended.
    Silent,
    /// The flow has not proven itself.
    Unproven,
}

/// Search for an entry that may be removed for a flow with this hash.
struct Victim<R> {
    hash: u64,
    now: Ticks,
    /// Also while entries are free.
    anywhere: bool,
    rank: R,
}

impl<R: Fn(Protocol, &Pin) -> Option<Rank>> Victim<R> {
    /// Returns the rank and the age of an entry, if it may be removed. Not its silence: a flood's
    /// flows would stay young by the SYN-ACKs that backends repeat.
    fn rank<F: Family>(&self, table: &FamilyTable<F>, number: u32) -> Option<(Rank, u32)> {
        let entry = table.entry(number)?;
        // Relaxed: other threads write only times and states of the entry.
        let protocol = protocol_of(F::common(entry).tail.load(Ordering::Relaxed))?;
        let created = table.creations.get(number as usize)?.load(Ordering::Relaxed);
        let pin = Pin::from_words(flow_state_of::<F>(entry), created);
        let age = self.now.since(pin.created).0;
        (self.rank)(protocol, &pin).map(|rank| (rank, age))
    }
}

/// Decision on an entry that [`FlowWriter::sweep`] visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Keeps the entry.
    Keep,
    /// Removes the entry.
    Remove,
    /// Stops the sweep; the next one visits this entry first. For an entry that needs work for
    /// which there is no room now.
    Later,
}

/// Error: the table has no room for another flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl FlowWriter {
    /// Takes the writing half of a table, with all its flows; `None` while another writer has it.
    ///
    /// Cost: one look at every bucket and entry that was ever used.
    pub fn new(table: Arc<FlowTable>) -> Option<Self> {
        let owner = new_owner();
        table.header.take_writer(owner).then(|| Self::adopt(table, owner))
    }

    /// Takes the writing half from a writer that the caller knows to be gone, perhaps killed in the
    /// middle of a change: half-written entries are removed. Otherwise as [`FlowWriter::new`].
    pub fn take_over(table: Arc<FlowTable>) -> Self {
        let owner = new_owner();
        table.header.seize_writer(owner);
        Self::adopt(table, owner)
    }

    /// Records what another writer needs to [continue](Self::continue_from) at once. Called between
    /// two changes; this writer may go on, as long as no other has continued.
    pub fn suspend(&self) {
        self.table.header.leave_notes(self.owner, [self.v4.note(), self.v6.note()]);
    }

    /// Takes the writing half from a writer that is suspended, perhaps in another process; `None` if
    /// there is none, or what it has recorded is impossible.
    ///
    /// Cost: none that depends on the number of flows.
    pub fn continue_from(table: Arc<FlowTable>) -> Option<Self> {
        let [v4, v6] = table.header.notes()?;
        let v4 = Free::of_note(&table.v4, v4)?;
        let v6 = Free::of_note(&table.v6, v6)?;
        let owner = new_owner();
        table.header.seize_writer(owner);
        Some(Self { table, owner, v4, v6, hand: 0 })
    }

    fn adopt(table: Arc<FlowTable>, owner: u64) -> Self {
        let v4 = Free::adopt(&table.v4, table.secret());
        let v6 = Free::adopt(&table.v6, table.secret());
        Self { table, owner, v4, v6, hand: 0 }
    }

    /// The shared half.
    #[inline]
    pub fn table(&self) -> &FlowTable {
        &self.table
    }

    /// The shared half, to be kept.
    pub fn shared(&self) -> Arc<FlowTable> {
        Arc::clone(&self.table)
    }

    /// Number of entries in use.
    pub fn len(&self) -> u32 {
        self.v4.used + self.v6.used
    }

    /// Returns whether no entry is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of entries of the key's family that are in use.
    pub fn used(&self, key: &HashedKey) -> u32 {
        if key.tuple.is_v4() { self.v4.used } else { self.v6.used }
    }

    /// Number of entries that were ever used: the range of [`FlowWriter::sweep`].
    #[inline]
    pub fn span(&self) -> u32 {
        self.v4.unused + self.v6.unused
    }

    /// Adds an entry. The caller has checked that its key is not in the table yet.
    ///
    /// # Errors
    /// [`Full`] when no entry is free, or the flow's two buckets and all that could make room in
    /// them are full. Nothing has changed then.
    pub fn insert(&mut self, key: &HashedKey, pin: &Pin) -> Result<Slot, Full> {
        match &key.tuple {
            Tuple::V4(words) => self.v4.insert(&self.table.v4, words, key.hash, pin),
            Tuple::V6(words) => self.v6.insert(&self.table.v6, words, key.hash, pin),
        }
    }

    /// Removes an entry to make room for a flow: among the entries that the flow's two buckets name,
    /// the oldest of the highest rank; if there is none, and no entry at all is free (or `anywhere`),
    /// the next one of the highest rank in a bounded number. Returns the removed entry.
    ///
    /// Cost: one look at up to 16 entries, and then at up to [`LOOKS`].
    #[cold]
    pub fn evict(
        &mut self,
        key: &HashedKey,
        now: Ticks,
        anywhere: bool,
        rank: impl Fn(Protocol, &Pin) -> Option<Rank>,
    ) -> Option<Pin> {
        let secret = self.table.secret();
        let find = Victim { hash: key.hash, now, anywhere, rank };
        if key.tuple.is_v4() {
            let number = self.v4.victim(&self.table.v4, &find)?;
            self.v4.remove(&self.table.v4, number, secret)
        } else {
            let number = self.v6.victim(&self.table.v6, &find)?;
            self.v6.remove(&self.table.v6, number, secret)
        }
    }

    /// Returns the sequence number of a pin ([`Pin::sequence`]), if it has one.
    #[cold]
    pub fn sequence(&self, slot: Slot) -> Option<u32> {
        // Relaxed: only this thread writes it.
        let created = self.creation(slot)?.load(Ordering::Relaxed);
        entry::sequence_of(created)
    }

    /// Replaces the sequence number of a pin; without one, the pin counts as created at `now`.
    #[cold]
    pub fn set_sequence(&self, slot: Slot, sequence: Option<u32>, now: Ticks) {
        let Some(created) = self.creation(slot) else { return };
        let old = created.load(Ordering::Relaxed);
        // Relaxed: no other word changes. A reader that sees two values reads again.
        created.store(entry::with_sequence(old, sequence, now), Ordering::Relaxed);
    }

    fn creation(&self, slot: Slot) -> Option<&AtomicU64> {
        let number = slot.number() as usize;
        if slot.is_v6() {
            self.table.v6.creations.get(number)
        } else {
            self.table.v4.creations.get(number)
        }
    }

    /// Overwrites an entry. Changes that other threads made since it was read are lost: for remote
    /// entries, which they do not change.
    pub fn update(&self, slot: Slot, key: &HashedKey, pin: &Pin) {
        match &key.tuple {
            Tuple::V4(words) => store(&self.table.v4, slot.number(), Some((words, pin))),
            Tuple::V6(words) => store(&self.table.v6, slot.number(), Some((words, pin))),
        }
    }

    /// Removes an entry; returns its contents.
    pub fn remove(&mut self, slot: Slot) -> Option<Pin> {
        let secret = self.table.secret();
        if slot.is_v6() {
            self.v6.remove(&self.table.v6, slot.number(), secret)
        } else {
            self.v4.remove(&self.table.v4, slot.number(), secret)
        }
    }

    /// Visits the next `count` entries, and removes those for which `look` decides so, at most
    /// `removals`. `look` gets each entry with a function that returns its tuple; `removed` gets
    /// each removed entry. Returns the number of visited entries.
    ///
    /// A clock hand: goes around the table without end. Cost: one entry after the other, read in
    /// order.
    pub fn sweep(
        &mut self,
        count: u32,
        removals: u32,
        mut look: impl FnMut(Protocol, &Hit<'_>, &dyn Fn() -> Tuple) -> Verdict,
        mut removed: impl FnMut(Protocol, &Pin),
    ) -> u32 {
        let mut left = removals;
        let mut shown = 0;
        while shown < count && left > 0 {
            // Entries beyond `unused` never held a flow.
            if self.hand >= self.span() {
                self.hand = 0;
            }
            let (from, most) = (self.hand, count - shown);
            let look = &mut look;
            let removed = &mut removed;
            let secret = self.table.secret();
            let passed = match from.checked_sub(self.v4.unused) {
                None => self.v4.sweep(&self.table.v4, secret, from, most, &mut left, look, removed),
                Some(from) => {
                    self.v6.sweep(&self.table.v6, secret, from, most, &mut left, look, removed)
                }
            };
            if passed == 0 {
                // Stopped at once, or an empty table: there is nothing to visit.
                return if left == 0 { shown } else { count };
            }
            self.hand += passed;
            shown += passed;
        }
        shown
    }
}

impl Drop for FlowWriter {
    fn drop(&mut self) {
        // A suspended writer keeps its right, with which its record would go.
        if self.table.header.notes().is_none() {
            self.table.header.give_writer(self.owner);
        }
    }
}

/// Returns an ID that no other writer on this machine has: process and number.
fn new_owner() -> u64 {
    static NEXT: atomic::AtomicU64 = atomic::AtomicU64::new(1);
    // Relaxed: only the number itself matters.
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Free {
    /// Packs the first free entry and the number of entries in use.
    fn note(&self) -> u64 {
        u64::from(self.used) << 32 | self.first.map_or(0, |first| u64::from(first) + 1)
    }

    /// Unpacks [`Free::note`]; `None` if it is impossible.
    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    fn of_note<F: Family>(table: &FamilyTable<F>, note: u64) -> Option<Self> {
        let (first, used) = ((note as u32).checked_sub(1), (note >> 32) as u32);
        let unused = table.ever_used();
        let fits = first.is_none_or(|first| first < unused) && used <= unused;
        fits.then_some(Self { first, unused, used, hand: 0 })
    }

    /// Collects the entries in use of a table that an earlier writer left, and removes its
    /// half-done changes: slots that name an entry that is missing or named twice, and entries that
    /// no slot names.
    fn adopt<F: Family>(table: &FamilyTable<F>, secret: &TableSecret) -> Self {
        let mut free = Self { unused: table.ever_used(), ..Self::default() };
        if free.unused == 0 {
            return free;
        }
        for (bucket, line) in table.buckets.iter().enumerate() {
            for slot in 0..SLOTS {
                let (tag, number) = bucket::content(line, slot);
                if tag != 0 && Self::whole(table, secret, number) != Some((bucket, slot)) {
                    bucket::free(line, slot);
                }
            }
        }
        for number in (0..free.unused).rev() {
            let Some(entry) = table.entry(number) else { continue };
            if Self::whole(table, secret, number).is_some() {
                free.used += 1;
            } else {
                store(table, number, None);
                free.chain::<F>(entry, number);
            }
        }
        free
    }

    /// Returns the bucket and slot that name an entry, if it is whole: in use, and not half
    /// written.
    fn whole<F: Family>(
        table: &FamilyTable<F>,
        secret: &TableSecret,
        number: u32,
    ) -> Option<(usize, u32)> {
        let words = F::words(table.entry(number)?);
        // Relaxed: the earlier writer is gone.
        let version = table.creations.get(number as usize)?.load(Ordering::Relaxed);
        if version & 1 != 0 || F::tail(&words) == 0 {
            return None;
        }
        let hash = secret.hash(F::tuple(words)).hash;
        let found = table.view().find(&words, hash)?;
        (found.number == number).then_some((found.bucket, found.slot))
    }

    fn insert<F: Family>(
        &mut self,
        table: &FamilyTable<F>,
        words: &F::Words,
        hash: u64,
        pin: &Pin,
    ) -> Result<Slot, Full> {
        let number = self.next(table).ok_or(Full)?;
        let tag = tag_of(hash);
        let first = table.view().first_bucket(hash);
        let (line, slot) = free_slot(table, first)
            .or_else(|| free_slot(table, table.view().other_bucket(first, tag)))
            .or_else(|| (0..=MOVES).find_map(|depth| make_slot(table, first, depth)))
            .ok_or(Full)?;
        self.take(table, number);
        store(table, number, Some((words, pin)));
        bucket::set_slot(line, slot, tag, number);
        self.used += 1;
        Ok(Slot::new(F::FLAG, number))
    }

    /// Returns the entry that is removed for a flow ([`FlowWriter::evict`]).
    fn victim<F: Family>(
        &mut self,
        table: &FamilyTable<F>,
        find: &Victim<impl Fn(Protocol, &Pin) -> Option<Rank>>,
    ) -> Option<u32> {
        let (view, tag) = (table.view(), tag_of(find.hash));
        let first = view.first_bucket(find.hash);
        let buckets = [first, view.other_bucket(first, tag)];
        let lines = buckets.into_iter().filter_map(|bucket| table.buckets.get(bucket));
        let named = lines.flat_map(|line| (0..SLOTS).map(|slot| bucket::content(line, slot)));
        let numbers = named.filter(|&(tag, _)| tag != 0).map(|(_, number)| number);
        let old = numbers.filter_map(|number| Some((find.rank(table, number)?, number)));
        if let Some((_, number)) = old.max() {
            return Some(number);
        }
        if self.next(table).is_some() && !find.anywhere {
            // The buckets are full, not the table.
            return None;
        }
        self.next_victim(table, find)
    }

    /// Moves the hand to the next entry of the highest rank, or by [`LOOKS`] entries; returns the
    /// first one of the highest rank that it has met.
    fn next_victim<F: Family>(
        &mut self,
        table: &FamilyTable<F>,
        find: &Victim<impl Fn(Protocol, &Pin) -> Option<Rank>>,
    ) -> Option<u32> {
        let mut silent = None;
        for _ in 0..LOOKS {
            let number = self.hand;
            self.hand = if number + 1 >= self.unused { 0 } else { number + 1 };
            match find.rank(table, number) {
                Some((Rank::Unproven, _)) => return Some(number),
                Some((Rank::Silent, _)) => silent = silent.or(Some(number)),
                None => {}
            }
        }
        silent
    }

    fn remove<F: Family>(
        &mut self,
        table: &FamilyTable<F>,
        number: u32,
        secret: &TableSecret,
    ) -> Option<Pin> {
        let entry = table.entry(number)?;
        let words = F::words(entry);
        if F::tail(&words) == 0 {
            return None;
        }
        let created = table.creations.get(number as usize)?.load(Ordering::Relaxed);
        let pin = Pin::from_words(flow_state_of::<F>(entry), created);
        let hash = secret.hash(F::tuple(words)).hash;
        if let Some((line, slot)) = table.view().named(number, hash) {
            bucket::free(line, slot);
        }
        store(table, number, None);
        self.chain::<F>(entry, number);
        self.used -= 1;
        Some(pin)
    }

    /// Sweeps as [`FlowWriter::sweep`] does, up to the end of this family.
    #[expect(clippy::too_many_arguments, reason = "the parts of one call, taken apart by family")]
    fn sweep<F: Family>(
        &mut self,
        table: &FamilyTable<F>,
        secret: &TableSecret,
        from: u32,
        count: u32,
        removals: &mut u32,
        mut look: impl FnMut(Protocol, &Hit<'_>, &dyn Fn() -> Tuple) -> Verdict,
        mut removed: impl FnMut(Protocol, &Pin),
    ) -> u32 {
        let end = self.unused.min(from.saturating_add(count));
        let mut victims = ArrayVec::<(u32, Protocol), TOGETHER>::new();
        let mut passed = end.saturating_sub(from);
        for number in from..end {
            let Some(entry) = table.entry(number) else { break };
            // Relaxed: other threads write only times and states of the entry.
            let tail = F::common(entry).tail.load(Ordering::Relaxed);
            let Some(protocol) = protocol_of(tail) else { continue };
            let verdict =
                look(protocol, &Hit::new::<F>(number, entry), &|| F::tuple(F::words(entry)));
            if verdict == Verdict::Keep {
                continue;
            }
            if verdict == Verdict::Later || *removals == 0 {
                *removals = 0;
                passed = number - from;
                break;
            }
            *removals -= 1;
            table.view().prefetch_bucket(secret.hash(F::tuple(F::words(entry))).hash);
            victims.push((number, protocol));
            if victims.is_full() {
                self.remove_all(table, secret, &mut victims, &mut removed);
            }
        }
        self.remove_all(table, secret, &mut victims, &mut removed);
        passed
    }

    fn remove_all<F: Family>(
        &mut self,
        table: &FamilyTable<F>,
        secret: &TableSecret,
        victims: &mut ArrayVec<(u32, Protocol), TOGETHER>,
        mut removed: impl FnMut(Protocol, &Pin),
    ) {
        for (number, protocol) in victims.drain(..) {
            if let Some(pin) = self.remove(table, number, secret) {
                removed(protocol, &pin);
            }
        }
    }

    /// Returns the entry that the next flow gets.
    fn next<F: Family>(&self, table: &FamilyTable<F>) -> Option<u32> {
        self.first.or_else(|| (self.unused < table.capacity()).then_some(self.unused))
    }

    /// Takes the entry that [`Free::next`] has returned.
    fn take<F: Family>(&mut self, table: &FamilyTable<F>, number: u32) {
        if self.first != Some(number) {
            self.unused += 1;
            table.set_ever_used(self.unused);
            return;
        }
        let link = table.entry(number).map_or(0, |entry| F::link(entry).load(Ordering::Relaxed));
        self.first = u32::try_from(link).ok().and_then(|link| link.checked_sub(1));
    }

    /// Puts a cleared entry at the head of the free entries.
    fn chain<F: Family>(&mut self, entry: &F::Entry, number: u32) {
        let next = self.first.map_or(0, |next| u64::from(next) + 1);
        // Relaxed: only the writer reads it.
        F::link(entry).store(next, Ordering::Relaxed);
        self.first = Some(number);
    }
}

/// Returns the protocol of an entry from its tail word; `None` if it is free.
#[inline]
fn protocol_of(tail: u64) -> Option<Protocol> {
    const ANY: u8 = Protocol::Any as u8;
    let [.., protocol] = tail.to_be_bytes();
    match protocol {
        ANY => Some(Protocol::Any),
        protocol => Protocol::from_number(protocol),
    }
}

fn free_slot<F: Family>(table: &FamilyTable<F>, bucket: usize) -> Option<(&Line, u32)> {
    let line = table.buckets.get(bucket)?;
    bucket::free_slot(line).map(|slot| (line, slot))
}

/// Frees a slot in a full bucket: moves one of its flows to that flow's other bucket, where up to
/// `depth` more flows may have to be moved in turn (cuckoo hashing).
#[cold]
fn make_slot<F: Family>(table: &FamilyTable<F>, bucket: usize, depth: u32) -> Option<(&Line, u32)> {
    let line = table.buckets.get(bucket)?;
    for slot in 0..SLOTS {
        let (tag, number) = bucket::content(line, slot);
        let other = table.view().other_bucket(bucket, tag);
        let target = free_slot(table, other)
            .or_else(|| depth.checked_sub(1).and_then(|depth| make_slot(table, other, depth)));
        let Some((target, free)) = target else { continue };
        // The moves may have come around to this bucket.
        if other == bucket || bucket::content(line, slot) != (tag, number) {
            return free_slot(table, bucket);
        }
        // The new slot is filled first: a reader may see the flow twice, and misses it only if it
        // moves against the reader's order (see `FamilyTable::lookup`).
        bucket::set_slot(target, free, tag, number);
        bucket::free(line, slot);
        return Some((line, slot));
    }
    None
}

/// Writes all of an entry (`None` frees it) so that a reader sees all of it or none, with a new
/// stamp, so that another thread's pending change does not apply to the new contents.
fn store<F: Family>(table: &FamilyTable<F>, number: u32, contents: Option<(&F::Words, &Pin)>) {
    let (Some(entry), Some(created)) = (table.entry(number), table.creations.get(number as usize))
    else {
        return;
    };
    let old = created.load(Ordering::Relaxed);
    created.store(old | 1, Ordering::Relaxed);
    // The odd version is visible before any word that is written below: pairs with the acquire
    // fence of `FamilyTable::read`.
    fence(Ordering::Release);
    let version = ((old | 1) + 1) & entry::VERSION;
    let Common { hop, tail, backend_word } = F::common(entry);
    let mut new_created = version;
    if let Some((words, pin)) = contents {
        let FlowState { hop: new_hop, tail: state, backend_word: new_word } = pin.flow_state;
        let stamp = version << (entry::STAMP_SHIFT - 1) & entry::STAMP;
        F::set_addresses(entry, words);
        hop.store(new_hop, Ordering::Relaxed);
        backend_word.store(new_word, Ordering::Relaxed);
        tail.store(F::tail(words) | state & !entry::STAMP & !TAIL | stamp, Ordering::Relaxed);
        new_created |= pin.created();
    } else {
        tail.store(0, Ordering::Relaxed);
    }
    // Release: those words are visible before the even version.
    created.store(new_created, Ordering::Release);
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use std::sync::atomic::AtomicBool;

    use hashbrown::HashMap;
    use proptest::prelude::*;

    use super::super::entry::{ConntrackEntry, ReturnHop, State};
    use super::super::header;
    use super::super::slot;
    use super::super::table::{Families, TableError};
    use super::*;
    use crate::net::{Address, BackendId, BackendIndex, FlowKey, NextHop, NicIndex, VipId};
    use crate::xdp::memory::{Arena, Pages};

    /// Even numbers are IPv4 flows, odd ones IPv6.
    fn key(number: u32) -> FlowKey {
        let address = |bytes: [u8; 4]| {
            if number.is_multiple_of(2) {
                return Address::from_v4(bytes);
            }
            Address { high: 0x2001_0db8_0000_0000, low: u32::from_be_bytes(bytes).into() }
        };
        FlowKey {
            client: address(number.to_be_bytes()),
            vip: address([192, 0, 2, 10]),
            client_port: 1024,
            vip_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn pin(backend: u16) -> Pin {
        let hop = NextHop { nic: NicIndex(2), mac: [2, 0, 0, 0, 0, 9], vlan: Some(100.into()) };
        let id = BackendId { index: BackendIndex(backend), generation: backend };
        let pin = Pin::new(VipId(3), id, State::ESTABLISHED, 1, &hop, Ticks(5));
        pin.with_last_seen(Ticks(u32::from(backend)))
    }

    fn table(capacity: u32) -> FlowWriter {
        let table = FlowTable::new(capacity, TableSecret::new(1), Families::BOTH).unwrap();
        FlowWriter::new(Arc::new(table)).unwrap()
    }

    impl FlowWriter {
        fn add(&mut self, number: u32, backend: u16) -> Result<Slot, Full> {
            let key = self.hashed(number);
            self.insert(&key, &pin(backend))
        }

        fn hashed(&self, number: u32) -> HashedKey {
            self.table.secret().hash(key(number).into())
        }

        fn found(&self, number: u32) -> Option<Pin> {
            self.table.lookup(&self.hashed(number)).map(|(_, pin)| pin)
        }

        fn find(&self, number: u32) -> Option<Slot> {
            self.hit(number).map(|hit| hit.slot)
        }

        fn hit(&self, number: u32) -> Option<Hit<'_>> {
            self.table.view().find_at(&self.hashed(number), Slot::NOWHERE)
        }

        fn get(&self, slot: Slot) -> Option<Pin> {
            self.table.read(slot).map(|entry| entry.pin)
        }

        /// Removes all entries that `keep` does not accept.
        fn purge(&mut self, keep: impl Fn(&FlowState) -> bool) -> u32 {
            let before = self.len();
            let all = self.span();
            self.sweep(all, u32::MAX, |_, hit, _| keep_if(keep(&hit.flow_state)), |_, _| {});
            before - self.len()
        }
    }

    const fn keep_if(keep: bool) -> Verdict {
        if keep { Verdict::Keep } else { Verdict::Remove }
    }

    /// Entries, free ones and their number are those of the writer before.
    #[test]
    fn a_writer_continues_where_another_is_suspended() {
        let mut before = table(64);
        let slots: Vec<Slot> = (0..40).map(|number| before.add(number, 1).unwrap()).collect();
        for slot in slots.iter().step_by(3) {
            before.remove(*slot).unwrap();
        }
        assert!(FlowWriter::continue_from(before.shared()).is_none(), "it is at work");
        before.suspend();
        let mut after = FlowWriter::continue_from(before.shared()).unwrap();
        assert_eq!((after.len(), after.span()), (before.len(), before.span()));
        drop(before);
        for number in 0..40 {
            assert_eq!(after.found(number).is_some(), number % 3 != 0, "{number}");
        }
        let added = (100..).take_while(|&number| after.add(number, 2).is_ok()).count();
        let v4 = after.v4.used;
        assert!(added > 60 && after.len() as usize == 26 + added, "{added}, {v4}");
        assert!(FlowWriter::continue_from(after.shared()).is_none(), "what was recorded is old");
        let again = FlowWriter::take_over(after.shared());
        assert_eq!(again.len(), after.len(), "nothing is half done");
    }

    #[test]
    fn impossible_records_of_a_suspended_writer_are_refused() {
        let mut writer = table(64);
        for number in 0..10 {
            writer.add(number, 1).unwrap();
        }
        for (name, used, first) in
            [("used", 6, None), ("first", 5, Some(5)), ("first", 5, Some(99))]
        {
            (writer.v4.used, writer.v4.first) = (used, first);
            writer.suspend();
            assert!(FlowWriter::continue_from(writer.shared()).is_none(), "{name}");
        }
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut writer = table(8);
        for (number, protocol) in [
            (6, Protocol::Udp),
            (7, Protocol::Udp),
            (8, Protocol::Tcp),
            (9, Protocol::Any),
            (10, Protocol::Any),
        ] {
            let wanted = FlowKey { protocol, ..key(number) };
            let hashed = writer.table.secret().hash(wanted.into());
            let slot = writer.insert(&hashed, &pin(9)).unwrap();
            assert_eq!(writer.table.lookup(&hashed), Some((slot, pin(9))));
            assert_eq!(writer.table.read(slot), Some(ConntrackEntry { key: wanted, pin: pin(9) }));
            assert_eq!(hashed.key(), wanted);
            for hint in [Slot::NOWHERE, slot, Slot::new(slot::V6_FLAG, 5)] {
                let found = writer.table.view().find_at(&hashed, hint).unwrap();
                assert_eq!((found.slot, found.flow_state), (slot, pin(9).flow_state), "{hint:?}");
            }
            let view = writer.table.view();
            let in_first = view.prefetch_entry(&hashed);
            let hint = in_first.or_else(|| view.prefetch_entry_elsewhere(&hashed));
            assert_eq!(hint, Some(slot));
        }
        let positions = 0..writer.table.positions();
        assert_eq!(positions.filter_map(|at| writer.table.pin_at(at)).count(), 5);
        assert_eq!(writer.purge(|_| false), 5, "whatever the protocol");
    }

    #[test]
    fn a_full_table_refuses_and_keeps_what_it_has() {
        let mut writer = table(1000);
        let held = (0..1_000_000).step_by(2).take_while(|&n| writer.add(n, 1).is_ok()).count();
        assert_eq!(held, 1000, "every entry can be used at the table's load");
        assert_eq!(writer.add(2_000_000, 1), Err(Full));
        assert!((0..2000).step_by(2).all(|n| writer.found(n).is_some()));
        assert!(writer.add(1, 1).is_ok(), "the other family has room of its own");
        let slot = writer.find(500).unwrap();
        assert_eq!(writer.remove(slot), Some(pin(1)));
        assert_eq!(writer.remove(slot), None);
        assert!(writer.found(500).is_none());
        assert!(writer.add(2_000_000, 1).is_ok());
    }

    /// The load at which buckets overflow must lie above the load that the table is made for.
    #[test]
    fn filling_emptying_and_filling_again_reaches_the_full_capacity() {
        let mut writer = table(100_000);
        for round in 0..3 {
            let first = round * 200_000;
            let full = (first..first + 200_000).filter(|&n| writer.add(n, 1).is_err()).count();
            assert_eq!(full, 0, "round {round}");
            assert_eq!(writer.len(), 200_000);
            assert_eq!(writer.purge(|_| false), 200_000);
            assert!(writer.is_empty());
        }
    }

    /// The clock hand visits every entry once per round, in steps of any size, in both families.
    #[test]
    fn a_sweep_is_bounded_and_shows_every_entry_once_in_a_round() {
        let mut writer = table(100);
        assert_eq!(
            writer.sweep(50, 50, |_, _, _| Verdict::Keep, |_, _| {}),
            50,
            "nothing is there"
        );
        for number in 0..100 {
            writer.add(number, u16::try_from(number).unwrap()).unwrap();
        }
        for step in [1, 7, 64, 99, 100] {
            let mut seen = vec![0; 100];
            let mut left = 100;
            while left > 0 {
                let record = |_, hit: &Hit<'_>, tuple: &dyn Fn() -> Tuple| {
                    let index = hit.flow_state.backend().index.0;
                    assert_eq!(tuple(), Tuple::from(key(index.into())));
                    seen[usize::from(index)] += 1;
                    Verdict::Keep
                };
                left -= writer.sweep(step.min(left), 9, record, |_, _| {});
            }
            assert!(seen.iter().all(|&times| times == 1), "in steps of {step}");
        }
        // IPv4 flows, the even ones, come first.
        let not_four = |_, hit: &Hit<'_>, _: &dyn Fn() -> Tuple| {
            if hit.flow_state.backend().index.0 == 4 { Verdict::Later } else { Verdict::Keep }
        };
        assert_eq!(writer.sweep(100, 9, not_four, |_, _| {}), 2, "stops before it");
        assert_eq!(writer.sweep(100, 9, not_four, |_, _| {}), 0, "and is there still");
        assert_eq!(
            writer.sweep(98, 9, |_, _, _| Verdict::Keep, |_, _| {}),
            98,
            "until it may pass"
        );
        let mut removed = Vec::new();
        let shown = writer.sweep(100, 10, |_, _, _| Verdict::Remove, |_, pin| removed.push(*pin));
        assert_eq!((shown, removed.len(), writer.len()), (10, 10, 90), "removals are bounded");
    }

    /// At a full table an entry that may go is found wherever it is, the oldest one of the flow's
    /// buckets first; without one nothing is removed.
    #[test]
    fn a_full_table_gives_up_an_entry_that_may_go() {
        let mut writer = table(1000);
        for number in 0..2000 {
            writer.add(number, 1).unwrap();
        }
        let new = writer.hashed(2000);
        assert_eq!(writer.evict(&new, Ticks(0), false, |_, _| None), None);
        assert_eq!(writer.add(2000, 1), Err(Full));
        // One of 1,000 may go: the search finds it after some flows.
        let slot = writer.find(500).unwrap();
        let pin = writer.table.read(slot).unwrap().pin;
        let marked = Pin { flow_state: pin.flow_state.with_state(State::RST), ..pin };
        writer.update(slot, &writer.hashed(500), &marked);
        for rank in [Rank::Silent, Rank::Unproven] {
            let may_go =
                |_: Protocol, pin: &Pin| pin.flow_state.state().has(State::RST).then_some(rank);
            let found =
                (0..1000 / LOOKS + 1).find_map(|_| writer.evict(&new, Ticks(0), false, may_go));
            assert_eq!(found, Some(marked), "{rank:?}");
            if rank == Rank::Silent {
                writer.insert(&writer.hashed(500), &marked).unwrap();
            }
        }
        assert_eq!((writer.found(500), writer.len()), (None, 1999));
        writer.add(2000, 2).unwrap();
        // All may go: each new flow finds room at once.
        for number in (2002..3000).step_by(2) {
            let new = writer.hashed(number);
            assert!(writer.evict(&new, Ticks(0), false, |_, _| Some(Rank::Unproven)).is_some());
            writer.add(number, 3).unwrap();
        }
        assert_eq!(writer.len(), 2000);
    }

    /// Of the entries of a flow's buckets, the highest rank goes, however young it is.
    #[test]
    fn the_rank_of_an_entry_counts_before_its_age() {
        let mut writer = table(1000);
        for number in (0..2000).step_by(2) {
            let key = writer.hashed(number);
            let age = Ticks(u32::MAX / 2 - number);
            let state = if number < 1000 { State::ESTABLISHED } else { State(0) };
            let pin = Pin { created: age, ..pin(1) };
            let flow_state = pin.flow_state.with_state(state);
            writer.insert(&key, &Pin { flow_state, ..pin }).unwrap();
        }
        let rank = |_: Protocol, pin: &Pin| {
            Some(match pin.flow_state.state() {
                State::ESTABLISHED => Rank::Unproven,
                _ => Rank::Silent,
            })
        };
        for number in (2000..2200).step_by(2) {
            let pin =
                writer.evict(&writer.hashed(number), Ticks(u32::MAX / 2), false, rank).unwrap();
            // All but some of 16 entries: nearly always one of them is of the higher rank.
            assert_eq!(pin.flow_state.state(), State::ESTABLISHED, "{number}");
        }
    }

    #[test]
    fn a_sequence_number_takes_the_place_of_the_time_until_it_goes() {
        let mut writer = table(8);
        for number in [0, 1] {
            let key = writer.hashed(number);
            let first = pin(1).with_sequence(Some(u32::MAX)).by(entry::Rule::QuicCid);
            let slot = writer.insert(&key, &first).unwrap();
            let read = writer.get(slot).unwrap();
            assert_eq!(
                (read.sequence, read.created),
                (Some(u32::MAX), read.flow_state.last_seen())
            );
            assert_eq!(writer.sequence(slot), Some(u32::MAX));
            writer.set_sequence(slot, Some(7), Ticks(9));
            assert_eq!(writer.get(slot).unwrap().sequence, Some(7));
            writer.set_sequence(slot, None, Ticks(9));
            let last = writer.get(slot).unwrap();
            assert_eq!(last, Pin { created: Ticks(9), sequence: None, ..first });
        }
    }

    /// A later process takes the table over from its file: every flow is there, except those that
    /// were half written when the earlier process died, and no slot is lost.
    #[test]
    fn a_table_is_taken_over_from_its_file() {
        let arena = Arena::new(FlowTable::bytes(1000), Pages::Ordinary).unwrap();
        let secret = TableSecret::new(7);
        let left = FlowTable::create(Arc::clone(&arena), 1000, secret, Families::BOTH).unwrap();
        let mut writer = FlowWriter::new(Arc::new(left)).unwrap();
        for number in 0..2000 {
            writer.add(number, 1).unwrap();
        }
        for number in (0..2000).step_by(3) {
            let slot = writer.find(number).unwrap();
            writer.remove(slot).unwrap();
        }
        assert!(FlowWriter::new(Arc::clone(&writer.table)).is_none(), "one writer at a time");
        // As if the process had died: in the middle of writing one entry, ...
        let torn = writer.find(1).unwrap().number();
        writer.table.v6.creations[torn as usize].fetch_or(1, Ordering::Relaxed);
        // ... between clearing a slot and its entry, and between an entry and its slot, ...
        for (number, clear_slot) in [(2, true), (4, false)] {
            let hashed = writer.hashed(number);
            let Tuple::V4(words) = hashed.tuple else { unreachable!() };
            let found = writer.table.v4.view().find(&words, hashed.hash).unwrap();
            if clear_slot {
                bucket::free(&writer.table.v4.buckets[found.bucket], found.slot);
            } else {
                store(&writer.table.v4, found.number, None);
            }
        }
        // ... and while a flow moved to its other bucket.
        let hashed = writer.hashed(8);
        let Tuple::V4(words) = hashed.tuple else { unreachable!() };
        let found = writer.table.v4.view().find(&words, hashed.hash).unwrap();
        let other = writer.table.v4.view().other_bucket(found.bucket, tag_of(hashed.hash));
        let line = &writer.table.v4.buckets[other];
        let twice = bucket::free_slot(line).unwrap();
        bucket::set_slot(line, twice, tag_of(hashed.hash), found.number);

        std::mem::forget(writer);
        let table = Arc::new(FlowTable::attach(arena).unwrap());
        assert_eq!(table.capacity(), 1000);
        assert!(FlowWriter::new(Arc::clone(&table)).is_none(), "to map it is not to take it over");
        let mut writer = FlowWriter::take_over(Arc::clone(&table));
        assert!(FlowWriter::new(table).is_none());
        let lost = |number: u32| number.is_multiple_of(3) || [1, 2, 4].contains(&number);
        for number in 0..2000 {
            assert_eq!(writer.found(number), (!lost(number)).then(|| pin(1)), "{number}");
        }
        let left = (0..2000).filter(|&number| !lost(number)).count();
        assert_eq!(writer.len() as usize, left);
        for number in (0..2000).filter(|&number| lost(number)) {
            writer.add(number, 2).unwrap();
        }
        assert_eq!(writer.add(2000, 2), Err(Full), "full to the last entry");
        assert_eq!(writer.purge(|_| false), 2000);
    }

    #[test]
    fn a_replaced_writer_does_not_release_the_table() {
        let first = table(8);
        let shared = Arc::clone(&first.table);
        let second = FlowWriter::take_over(Arc::clone(&shared));
        drop(first);
        assert!(FlowWriter::new(Arc::clone(&shared)).is_none(), "the second has it");
        drop(second);
        assert!(FlowWriter::new(shared).is_some());
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let change = |word: usize, value: u64| {
            let arena = Arena::new(FlowTable::bytes(8), Pages::Ordinary).unwrap();
            let secret = TableSecret::new(7);
            FlowTable::create(Arc::clone(&arena), 8, secret, Families::BOTH).unwrap();
            let header = arena.part::<Line>(0, 2).unwrap();
            header[0].words[word].store(value, Ordering::Relaxed);
            // A checksum that fits, except for a damaged header.
            if word != 4 {
                header::seal(&arena);
            }
            FlowTable::attach(arena).map(|_| ()).unwrap_err()
        };
        assert!(matches!(change(0, 7), TableError::NotATable));
        assert!(matches!(change(1, 0), TableError::NotATable));
        let other = change(2, 99);
        assert!(other.to_string().contains("layout 99"), "{other}");
        for flows in [0, 7, 1_000_000, 1 << 31, u64::MAX] {
            assert!(matches!(change(3, flows), TableError::Size { .. }), "{flows}");
        }
        assert!(matches!(change(4, 8), TableError::Damaged), "another seed");
        assert!(matches!(change(5, 1), TableError::OtherBoot));
        let empty = Arena::new(1, Pages::Ordinary).unwrap();
        assert!(matches!(FlowTable::attach(empty), Err(TableError::NotATable)));
    }

    /// A family takes no memory before it is needed.
    #[test]
    fn memory_is_that_of_the_families_that_are_wanted() {
        let v4 = Families { v4: true, v6: false };
        let arena = Arena::new(FlowTable::bytes(1_000_000), Pages::Ordinary).unwrap();
        let resident = || {
            let file = std::fs::File::from(arena.file().try_clone_to_owned().unwrap());
            std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
        };
        let secret = TableSecret::new(1);
        let table = FlowTable::create(Arc::clone(&arena), 1_000_000, secret, v4).unwrap();
        let writer = FlowWriter::new(Arc::new(table)).unwrap();
        let positions = 0..writer.table.positions();
        assert_eq!(positions.filter_map(|at| writer.table.pin_at(at)).count(), 0);
        let (first, huge) = (resident(), 4 * crate::xdp::memory::HUGE_PAGE as u64);
        assert!(first >= writer.table.memory(v4) as u64);
        assert!(first <= writer.table.memory(v4) as u64 + huge, "{first}");
        writer.table.populate(Families::BOTH).unwrap();
        assert!(resident() >= writer.table.memory(Families::BOTH) as u64);
    }

    #[test]
    fn state_and_times_change_in_place() {
        let mut writer = table(8);
        let slot = writer.add(1, 1).unwrap();
        writer.hit(1).unwrap().touch(Ticks(77));
        assert_eq!(writer.get(slot).unwrap().flow_state.last_seen(), Ticks(77));
        writer.hit(1).unwrap().set_state(State::FIN_CLIENT);
        assert_eq!(writer.get(slot).unwrap().flow_state.state(), State::FIN_CLIENT);
        let table = Arc::clone(&writer.table);
        let read = table.read(slot).unwrap().pin.flow_state;
        table.change_state(slot, &writer.hashed(1), &read, State::FIN_BACKEND, State(0));
        table.touch(slot, &read, Ticks(99));
        let now = writer.get(slot).unwrap().flow_state;
        assert!(now.state().has(State::FIN_CLIENT.with(State::FIN_BACKEND)));
        assert_eq!(now.last_seen(), Ticks(99));
        let hop = NextHop { nic: NicIndex(1), mac: [4; 6], vlan: None };
        writer.hit(1).unwrap().set_return_hop(ReturnHop(entry::encode_hop(&hop)));
        let moved = writer.get(slot).unwrap().flow_state;
        assert_eq!((moved.hop(), moved.state()), (hop, now.state()));
        table.change_state(slot, &writer.hashed(1), &moved, State::RST, State::FIN_CLIENT);
        let reset = State::RST.with(State::FIN_BACKEND);
        assert_eq!(writer.get(slot).unwrap().flow_state.state(), reset, "the entry is the same");
        let moved = writer.get(slot).unwrap().flow_state;
        let back = NextHop { mac: [6; 6], ..hop };
        table.change_hop(slot, &moved, &back);
        assert_eq!(writer.get(slot).unwrap().flow_state.hop(), back);
        table.change_hop(slot, &moved, &hop);
        assert_eq!(writer.get(slot).unwrap().flow_state.hop(), back, "that was outdated");
    }

    #[test]
    fn a_late_touch_does_not_reach_the_next_flow_of_the_entry() {
        let mut writer = table(8);
        let slot = writer.add(1, 1).unwrap();
        let old = writer.table.read(slot).unwrap().pin.flow_state;
        writer.remove(slot);
        assert_eq!(writer.add(3, 2), Ok(slot), "the entry is used again");
        let fresh = writer.get(slot).unwrap();
        writer.table.touch(slot, &old, Ticks(99));
        writer.table.change_state(slot, &writer.hashed(3), &old, State::RST, State(0));
        assert_eq!(writer.get(slot), Some(fresh));
    }

    #[test]
    fn the_two_buckets_of_a_flow_lead_to_each_other() {
        for capacity in [8, 9, 1000, 12_345] {
            let writer = table(capacity);
            let half = writer.table.v4.view();
            for hash in (0..1000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                let first = half.first_bucket(hash);
                let other = half.other_bucket(first, tag_of(hash));
                assert!(other < half.buckets.len());
                assert_eq!(half.other_bucket(other, tag_of(hash)), first);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u32, u16),
        Remove(u32),
        Update(u32, u16),
        Sweep(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..400_u32, 0..50_u16).prop_map(|(n, b)| Step::Insert(n, b)),
            2 => (0..400_u32).prop_map(Step::Remove),
            2 => (0..400_u32, 0..50_u16).prop_map(|(n, b)| Step::Update(n, b)),
            1 => (0..50_u16).prop_map(Step::Sweep),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        /// The table against a hash map, over random operations, near and beyond its capacity.
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec(step(), 1..2000)) {
            let mut writer = table(128);
            let mut model: HashMap<u32, u16> = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert(n, _) if model.contains_key(&n) => {}
                    Step::Insert(n, b) => match writer.add(n, b) {
                        Ok(_) => drop(model.insert(n, b)),
                        Err(Full) => {
                            let same = model.keys().filter(|key| *key % 2 == n % 2).count();
                            prop_assert!(same >= 120, "full at {same}");
                        }
                    },
                    Step::Remove(n) => {
                        let slot = writer.find(n);
                        prop_assert_eq!(slot.is_some(), model.remove(&n).is_some());
                        if let Some(slot) = slot { writer.remove(slot); }
                    }
                    Step::Update(n, b) => {
                        let slot = writer.find(n);
                        if let (Some(slot), Some(value)) = (slot, model.get_mut(&n)) {
                            let key = writer.hashed(n);
                            writer.update(slot, &key, &pin(b));
                            *value = b;
                        }
                    }
                    Step::Sweep(backend) => {
                        writer.purge(|flow_state| flow_state.backend().index.0 != backend);
                        model.retain(|_, value| *value != backend);
                    }
                }
                prop_assert_eq!(writer.len() as usize, model.len());
            }
            for n in 0..400 {
                prop_assert_eq!(writer.found(n).map(|pin| pin.flow_state.backend().index.0), model.get(&n).copied());
            }
        }
    }

    /// Like `behaves_like_a_map`, over millions of operations, in a table that is nearly always
    /// full.
    #[test]
    fn behaves_like_a_map_over_millions_of_operations() {
        const FLOWS: u32 = 20_000;
        let mut writer = table(FLOWS / 2);
        let mut model: HashMap<u32, u16> = HashMap::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u32| {
            // xorshift64* (Vigna 2016).
            random ^= random >> 12;
            random ^= random << 25;
            random ^= random >> 27;
            let high = random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
            u32::try_from((high * u64::from(below)) >> 32).unwrap()
        };
        let mut refused = 0;
        for step in 0..2_000_000_u32 {
            // 1.2 flows compete for each entry.
            let number = next(FLOWS / 5 * 6);
            let backend = u16::try_from(next(50)).unwrap();
            match (writer.find(number), next(10)) {
                (Some(slot), 0) => {
                    assert_eq!(writer.remove(slot).unwrap(), pin(model.remove(&number).unwrap()));
                }
                (Some(slot), _) => {
                    let hashed = writer.hashed(number);
                    writer.update(slot, &hashed, &pin(backend));
                    model.insert(number, backend).unwrap();
                }
                (None, _) => match writer.add(number, backend) {
                    Ok(_) => assert_eq!(model.insert(number, backend), None),
                    Err(Full) => refused += 1,
                },
            }
            if step.is_multiple_of(200_000) {
                writer.purge(|flow_state| flow_state.backend().index.0 != backend);
                model.retain(|_, value| *value != backend);
                let same = |n| writer.found(n) == model.get(&n).map(|&backend| pin(backend));
                assert!((0..FLOWS / 5 * 6).all(same), "after {step} steps");
            }
            assert_eq!(writer.len() as usize, model.len());
        }
        assert!(refused > 1000, "it was full at times: {refused}");
    }

    /// Readers in another thread see whole entries only: here, `generation == index` always.
    #[test]
    fn readers_never_see_half_of_an_entry() {
        let mut writer = table(8);
        let slot = writer.add(1, 0).unwrap();
        let table = Arc::clone(&writer.table);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    if let Some(ConntrackEntry { pin, .. }) = table.read(slot) {
                        let BackendId { index, generation } = pin.flow_state.backend();
                        assert_eq!(index.0, generation);
                        assert_eq!(pin.flow_state.last_seen(), Ticks(u32::from(generation)));
                        seen += 1;
                    }
                }
                seen
            });
            for n in 0..300_000_u32 {
                let key = writer.hashed(1);
                writer.update(slot, &key, &pin(u16::try_from(n % 1000).unwrap()));
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }
}
