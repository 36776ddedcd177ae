//! Flow table: pins flows to backends. Fixed memory, one writer, readable by every thread.
//!
//! ```text
//!  hash of the flow key
//!    | high bits                        low 16 bits = tag, never 0
//!    v
//!  bucket lines (64 bytes each)                     entry lines (64 bytes each)
//!  +----------------------------------------+       +-------------------------------------------+
//!  | 8 x tag:16 | 8 x entry number:32 | -:128|  -->  | hop  client(2)  vip(2)  tail  pin  times  |
//!  +----------------------------------------+       +-------------------------------------------+
//!    a flow is in one of two buckets:                 tail  = client port:16 vip port:16 state:8
//!    b1 = high bits, b2 = mix(tag) - b1 (mod n)               owner:8 stamp:8 protocol:8
//!                                                     pin   = backend:16 generation:16 vip:16 version:16
//!                                                     times = created:32 last seen:32 (ticks)
//!                                                     hop   = MAC:48 nic:4 vlan:12
//! ```
//!
//! A look-up touches one bucket line and one entry line (two bucket lines for the few flows that
//! did not fit into their first). Every word is an atomic: plain loads and stores on x86-64 and
//! aarch64, and no data race. Entries are sequence-checked by the `version` in `pin`: odd while
//! the writer changes the entry. Other threads may read everything, and write two things only:
//! `last seen` and bits of `state`, by compare-and-swap against what they have read.
//!
//! Memory: 64 bytes an entry and 9.4 bytes of bucket (8 places a bucket, filled to 85 %), for
//! either family. All of it is mapped and touched at start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

use crate::flow::{Address, FlowKey, Protocol};
use crate::forwarding::{BackendId, BackendIndex, Forward, NextHop, PortIndex, VipId};
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::memory::{Line, Mapping, MappingError};

/// Places in a bucket.
const PLACES: u32 = 8;
/// Buckets are made for this share of places in use, in percent.
const LOAD_PERCENT: usize = 85;
/// Flows that may have to move, one after the other, before a new one has a place. At the load
/// above this is enough (test `filling_emptying_and_filling_again_reaches_the_full_capacity`).
const MOVES: u32 = 2;

/// Where a flow is in its life: bits in the entry's `state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State(pub u8);

impl State {
    /// The client has answered the handshake.
    pub const ESTABLISHED: Self = Self(1);
    /// A FIN from the client was seen.
    pub const FIN_CLIENT: Self = Self(2);
    /// A FIN from the backend was seen.
    pub const FIN_BACKEND: Self = Self(4);
    /// A RST was seen, and no packet of the client after it.
    pub const RST: Self = Self(8);
    /// Not a pin: a note of where another worker's pin is.
    pub const ALIAS: Self = Self(16);

    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Whether a TCP flow in this state has ended: a RST, or both FINs; with `dsr`, where replies
    /// are not seen, the client's FIN. Packets that still come keep it alive a while.
    #[inline]
    pub const fn is_closing(self, forward: Forward) -> bool {
        let fins = match forward {
            Forward::Nat => Self::FIN_CLIENT.with(Self::FIN_BACKEND),
            Forward::Dsr => Self::FIN_CLIENT,
        };
        self.has(Self::RST) || self.has(fins)
    }

    /// With `bits` set.
    #[inline]
    #[must_use]
    pub const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    /// With `bits` cleared.
    #[inline]
    #[must_use]
    pub const fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }
}

/// One entry, as copied out of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The five-tuple.
    pub key: FlowKey,
    /// The VIP.
    pub vip: VipId,
    /// The pin: backend and generation.
    pub backend: BackendId,
    /// Where it is in its life.
    pub state: State,
    /// The worker that has the pin; for an alias, another one.
    pub owner: u8,
    /// Where the client's packets come from, and so where replies go.
    pub hop: NextHop,
    /// When it was pinned.
    pub created: Ticks,
    /// When its last packet came.
    pub last_seen: Ticks,
    /// Changes whenever the entry is written anew; set by the table.
    pub stamp: u8,
}

/// A flow key in the form in which it is stored, with its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashedKey {
    words: [u64; 5],
    hash: u64,
}

impl HashedKey {
    /// A place holder that no table has.
    pub const NONE: Self = Self { words: [0; 5], hash: 0 };

    /// The five-tuple.
    #[inline]
    pub fn key(&self) -> FlowKey {
        let [client_high, client_low, vip_high, vip_low, tail] = self.words;
        FlowKey {
            client: Address { high: client_high, low: client_low },
            vip: Address { high: vip_high, low: vip_low },
            client_port: high_u16(tail),
            vip_port: high_u16(tail << 16),
            protocol: self.protocol(),
        }
    }

    /// TCP or UDP.
    #[inline]
    pub const fn protocol(&self) -> Protocol {
        let [.., tail] = self.words;
        // `TableSecret::hash` made the words of a key, which has one of the two.
        if tail & 0xff == Protocol::Udp as u64 { Protocol::Udp } else { Protocol::Tcp }
    }
}

/// The secret of the flow tables of one process. Attackers who do not know it cannot aim flows at
/// one bucket.
#[derive(Debug, Clone)]
pub struct TableSecret(RapidSecrets);

impl TableSecret {
    /// From a random seed.
    pub fn new(seed: u64) -> Self {
        Self(RapidSecrets::seed(seed))
    }

    /// Hashes a key: rapidhash v3 of its five words. All tables of a process share one secret, so a
    /// hash serves to look into any of them.
    #[inline]
    pub fn hash(&self, key: FlowKey) -> HashedKey {
        let words = key.words();
        let mut bytes = [0; 40];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        HashedKey { words, hash: rapidhash_v3_seeded(&bytes, &self.0) }
    }
}

/// Number of an entry in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// The shared half of a flow table: what every thread may read.
#[derive(Debug)]
pub struct FlowTable {
    secret: TableSecret,
    buckets: Mapping<Line>,
    entries: Mapping<Line>,
}

/// Words of an entry line.
mod word {
    pub const HOP: usize = 0;
    pub const TAIL: usize = 5;
    pub const PIN: usize = 6;
    pub const TIMES: usize = 7;
}

const TAIL_KEY: u64 = 0xffff_ffff_0000_00ff;
const TAIL_STATE_SHIFT: u32 = 24;
const TAIL_STATE: u64 = 0xff << TAIL_STATE_SHIFT;
const TAIL_OWNER_SHIFT: u32 = 16;
const TAIL_STAMP_SHIFT: u32 = 8;
const TAIL_STAMP: u64 = 0xff << TAIL_STAMP_SHIFT;

impl FlowTable {
    /// Maps a table for `capacity` flows (at least 8).
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn new(capacity: u32, secret: TableSecret) -> Result<Self, MappingError> {
        let entries = capacity.max(PLACES) as usize;
        let buckets = (entries * 100).div_ceil(PLACES as usize * LOAD_PERCENT).max(2);
        Ok(Self { secret, buckets: Mapping::zeroed(buckets)?, entries: Mapping::zeroed(entries)? })
    }

    /// Number of entries.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of memory, all of it in use from the start.
    pub fn memory(&self) -> usize {
        (self.buckets.len() + self.entries.len()) * size_of::<Line>()
    }

    /// The secret of this table's hashes.
    pub fn secret(&self) -> &TableSecret {
        &self.secret
    }

    /// First stage of a batched look-up: asks for the bucket line.
    #[inline]
    pub fn prefetch_bucket(&self, key: &HashedKey) {
        if let Some(line) = self.buckets.get(self.first_bucket(key.hash)) {
            cpu::prefetch(line);
        }
    }

    /// Second stage: asks for the entry line, if the first bucket has the tag; says where it
    /// looked, which [`FlowTable::find_at`] takes as a hint.
    #[inline]
    pub fn prefetch_entry(&self, key: &HashedKey) -> Option<Slot> {
        let bucket = self.first_bucket(key.hash);
        let tag = tag_of(key.hash);
        let places = self.buckets.get(bucket).map_or(Places(0), |line| Places::with(line, tag));
        if let Some(slot) = places.first(self.buckets.get(bucket)?) {
            cpu::prefetch(self.entries.get(slot.0 as usize)?);
            return Some(slot);
        }
        if let Some(line) = self.buckets.get(self.other_bucket(bucket, tag)) {
            cpu::prefetch(line);
        }
        None
    }

    /// The entry of a key. Any thread may call it; in other threads than the writer's the answer
    /// may be outdated when it arrives, so [`FlowTable::read`] checks again.
    #[inline]
    pub fn find(&self, key: &HashedKey) -> Option<Slot> {
        let tag = tag_of(key.hash);
        let first = self.first_bucket(key.hash);
        self.find_in(first, tag, &key.words)
            .or_else(|| self.find_in(self.other_bucket(first, tag), tag, &key.words))
    }

    /// As [`FlowTable::find`], for who has a hint where the entry may be.
    #[inline]
    pub fn find_at(&self, key: &HashedKey, hint: Option<Slot>) -> Option<Slot> {
        hint.filter(|slot| self.holds(*slot, &key.words)).or_else(|| self.find(key))
    }

    /// A consistent copy of an entry; `None` if it is free, or changes all the time.
    #[inline]
    pub fn read(&self, slot: Slot) -> Option<Entry> {
        let line = self.entries.get(slot.0 as usize)?;
        for _ in 0..8 {
            let Some(pin) = line.words.get(word::PIN) else { break };
            // Acquire pairs with the release store that ends a write: the words below are at
            // least as new as this version.
            let before = pin.load(Ordering::Acquire);
            let words = load(line);
            // The loads above are done before the version is looked at again.
            fence(Ordering::Acquire);
            if before & 1 == 0 && pin.load(Ordering::Relaxed) == before {
                return decode(&words);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// A copy of the entry of a key, for threads other than the writer's.
    pub fn lookup(&self, key: &HashedKey) -> Option<(Slot, Entry)> {
        let slot = self.find(key)?;
        self.read(slot).filter(|entry| entry.key.words() == key.words).map(|entry| (slot, entry))
    }

    /// The pin (no alias) at position `number` of the table, if one is there.
    pub fn pin_at(&self, number: u32) -> Option<Entry> {
        self.read(Slot(number)).filter(|entry| !entry.state.has(State::ALIAS))
    }

    /// Notes that a packet of the flow in `entry` (as read from `slot`) came at `now`. Any thread;
    /// does nothing if the entry has changed hands since.
    pub fn touch(&self, slot: Slot, entry: &Entry, now: Ticks) {
        if let Some(times) = self.word(slot, word::TIMES) {
            let (old, new) =
                (times_word(entry.created, entry.last_seen), times_word(entry.created, now));
            // Relaxed: a time publishes nothing. A lost race means that somebody else touched it.
            let _ = times.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Sets bits of the flow's state. Any thread; does nothing if the entry has changed hands since
    /// `entry` was read from `slot`.
    pub fn add_state(&self, slot: Slot, entry: &Entry, bits: State) {
        let Some(tail) = self.word(slot, word::TAIL) else { return };
        let mut old = tail_word(entry);
        // A few tries: the only competitors are the owner's own state changes.
        for _ in 0..4 {
            let new = old | u64::from(bits.0) << TAIL_STATE_SHIFT;
            // Relaxed: state bits publish nothing.
            match tail.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) if now & !TAIL_STATE == old & !TAIL_STATE => old = now,
                Err(_) => return,
            }
        }
    }

    fn word(&self, slot: Slot, word: usize) -> Option<&AtomicU64> {
        self.entries.get(slot.0 as usize)?.words.get(word)
    }

    #[inline]
    fn first_bucket(&self, hash: u64) -> usize {
        let bucket = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        usize::try_from(bucket).unwrap_or_default()
    }

    /// The other bucket of a flow, from either of them: `other(other(b)) == b`.
    #[inline]
    fn other_bucket(&self, bucket: usize, tag: u16) -> usize {
        let n = self.buckets.len();
        let mixed = (u64::from(u32::from(tag).wrapping_mul(0x9e37_79b1)) * n as u64) >> 32;
        let sum = usize::try_from(mixed).unwrap_or_default();
        if sum >= bucket { sum - bucket } else { sum + n - bucket }
    }

    #[inline]
    fn find_in(&self, bucket: usize, tag: u16, words: &[u64; 5]) -> Option<Slot> {
        let line = self.buckets.get(bucket)?;
        let mut places = Places::with(line, tag);
        while let Some(slot) = places.first(line) {
            if self.holds(slot, words) {
                return Some(slot);
            }
            places = places.rest();
        }
        None
    }

    /// Whether the entry has this key. A torn read can only be wrong in other threads than the
    /// writer's, and those check again.
    #[inline]
    fn holds(&self, slot: Slot, words: &[u64; 5]) -> bool {
        let Some(line) = self.entries.get(slot.0 as usize) else { return false };
        let [_, c0, c1, v0, v1, tail, _, _] = load(line);
        let [k0, k1, k2, k3, k4] = *words;
        (c0 ^ k0) | (c1 ^ k1) | (v0 ^ k2) | (v1 ^ k3) | ((tail & TAIL_KEY) ^ k4) == 0
    }
}

/// Places of a bucket: the top bit of each 16 of 128.
#[derive(Clone, Copy)]
struct Places(u128);

impl Places {
    const ONES: u128 = u128::MAX / 0xffff;
    const TOPS: u128 = Self::ONES << 15;

    /// The places that hold `tag`; tag 0 is that of free ones.
    ///
    /// All eight are compared at once: a 16-bit lane of `tags ^ tag` is zero where they are equal,
    /// and `(lane & 0x7fff) + 0x7fff | lane` has its top bit clear for zero only.
    #[inline]
    fn with(line: &Line, tag: u16) -> Self {
        let [low, high, ..] = &line.words;
        // Acquire pairs with the release store of `FlowWriter::set_place`: who sees a tag sees the
        // entry number, and the entry, that came with it.
        let tags = u128::from(low.load(Ordering::Acquire))
            | u128::from(high.load(Ordering::Acquire)) << 64;
        let differing = tags ^ (Self::ONES * u128::from(tag));
        let nonzero = ((differing & !Self::TOPS) + !Self::TOPS) | differing;
        Self(!nonzero & Self::TOPS)
    }

    /// Number of the first place, 0..8; 8 if there is none.
    #[inline]
    const fn number(self) -> u32 {
        self.0.trailing_zeros() / 16
    }

    /// The entry that the first place names.
    #[inline]
    fn first(self, line: &Line) -> Option<Slot> {
        if self.0 == 0 { None } else { Some(slot_of(line, self.number())) }
    }

    /// All but the first.
    #[inline]
    const fn rest(self) -> Self {
        Self(self.0 & self.0.wrapping_sub(1))
    }
}

/// The entry number of a place.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "half of a word is wanted")]
fn slot_of(line: &Line, place: u32) -> Slot {
    let word = line.words.get(2 + place as usize / 2);
    // Relaxed: ordered by the acquire load of the tag.
    let pair = word.map_or(0, |word| word.load(Ordering::Relaxed));
    Slot((pair >> (32 * (place % 2))) as u32)
}

/// The tag of a place; 0: free.
#[expect(clippy::cast_possible_truncation, reason = "a quarter of a word is wanted")]
fn tag_at(line: &Line, place: u32) -> u16 {
    let word = line.words.get(place as usize / 4);
    let tags = word.map_or(0, |word| word.load(Ordering::Relaxed));
    (tags >> (16 * (place % 4))) as u16
}

/// The writing half of a flow table. One per table.
#[derive(Debug)]
pub struct FlowWriter {
    table: Arc<FlowTable>,
    /// First of the entries that were freed; they are chained through their `HOP` word.
    free: Option<Slot>,
    /// Entries from here on were never used.
    unused: u32,
    /// Next entry that [`FlowWriter::sweep`] looks at.
    hand: u32,
    len: u32,
}

/// The table has no room for another flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl FlowWriter {
    /// Takes the writing half of an empty table.
    ///
    /// The caller must take it once: two writers would overwrite each other's flows (memory stays
    /// safe). `None` if the table is not empty.
    pub fn new(table: Arc<FlowTable>) -> Option<Self> {
        let used = table.entries.iter().any(|line| load(line) != [0; 8]);
        (!used).then_some(Self { table, free: None, unused: 0, hand: 0, len: 0 })
    }

    /// The shared half.
    #[inline]
    pub fn table(&self) -> &FlowTable {
        &self.table
    }

    /// Entries in use.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no entry is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries that were ever in use: as far as [`FlowWriter::sweep`] goes.
    #[inline]
    pub fn span(&self) -> u32 {
        self.unused
    }

    /// A copy of an entry, cheaper than [`FlowTable::read`]: the writer needs no sequence check.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<Entry> {
        decode(&load(self.table.entries.get(slot.0 as usize)?))
    }

    /// Adds an entry whose key is not in the table yet (the caller has looked).
    ///
    /// # Errors
    /// [`Full`] when no entry is free, or the flow's two buckets and all that could make room in
    /// them are full. Nothing has changed then.
    pub fn insert(&mut self, key: &HashedKey, entry: &Entry) -> Result<Slot, Full> {
        let slot = self.free_slot().ok_or(Full)?;
        let tag = tag_of(key.hash);
        let first = self.table.first_bucket(key.hash);
        let other = self.table.other_bucket(first, tag);
        let (bucket, place) = self
            .free_place(first)
            .or_else(|| self.free_place(other))
            .or_else(|| (0..=MOVES).find_map(|depth| self.make_place(first, depth)))
            .ok_or(Full)?;
        self.take_slot(slot);
        self.write(slot, entry);
        self.set_place(bucket, place, tag, slot);
        self.len += 1;
        Ok(slot)
    }

    /// Overwrites the entry at `slot` with another one of the same key.
    pub fn update(&mut self, slot: Slot, entry: &Entry) {
        self.write(slot, entry);
    }

    /// Notes that a packet of the entry came at `now`.
    #[inline]
    pub fn seen(&self, slot: Slot, entry: &Entry, now: Ticks) {
        if entry.last_seen != now
            && let Some(times) = self.table.word(slot, word::TIMES)
        {
            // Relaxed: a time publishes nothing.
            times.store(times_word(entry.created, now), Ordering::Relaxed);
        }
    }

    /// Replaces the entry's state. Bits that another thread sets at the same time are not lost:
    /// the exchange is repeated on what they have written.
    pub fn set_state(&self, slot: Slot, old: State, new: State) {
        let (set, clear) = (new.0 & !old.0, old.0 & !new.0);
        if let Some(tail) = self.table.word(slot, word::TAIL) {
            // Relaxed: state bits publish nothing.
            tail.fetch_or(u64::from(set) << TAIL_STATE_SHIFT, Ordering::Relaxed);
            tail.fetch_and(!(u64::from(clear) << TAIL_STATE_SHIFT), Ordering::Relaxed);
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, slot: Slot) {
        let Some(entry) = self.get(slot) else { return };
        let key = self.table.secret.hash(entry.key);
        let tag = tag_of(key.hash);
        let first = self.table.first_bucket(key.hash);
        for bucket in [first, self.table.other_bucket(first, tag)] {
            if let Some(place) = self.place_of(bucket, tag, slot) {
                self.free(bucket, place);
                break;
            }
        }
        self.clear(slot);
        self.len -= 1;
    }

    /// Shows the next `count` entries to `keep`, and removes those that it does not want.
    ///
    /// A clock hand: it goes around the table without end. Cost: one line per entry, read in order.
    pub fn sweep(&mut self, count: u32, mut keep: impl FnMut(&Entry) -> bool) {
        for _ in 0..count {
            // Entries beyond `unused` never held a flow.
            if self.hand >= self.unused {
                self.hand = 0;
            }
            let slot = Slot(self.hand);
            self.hand += 1;
            if let Some(entry) = self.get(slot)
                && !keep(&entry)
            {
                self.remove(slot);
            }
        }
    }

    fn free_slot(&self) -> Option<Slot> {
        self.free.or_else(|| (self.unused < self.table.capacity()).then_some(Slot(self.unused)))
    }

    /// Takes `slot`, which [`FlowWriter::free_slot`] has given, out of the free ones.
    fn take_slot(&mut self, slot: Slot) {
        if self.free == Some(slot) {
            let next =
                self.table.word(slot, word::HOP).map_or(0, |hop| hop.load(Ordering::Relaxed));
            self.free = u32::try_from(next).ok().and_then(|next| next.checked_sub(1)).map(Slot);
        } else {
            self.unused += 1;
        }
    }

    fn line(&self, bucket: usize) -> Option<&Line> {
        self.table.buckets.get(bucket)
    }

    fn place_of(&self, bucket: usize, tag: u16, slot: Slot) -> Option<u32> {
        let line = self.line(bucket)?;
        let mut places = Places::with(line, tag);
        while let Some(found) = places.first(line) {
            if found == slot {
                return Some(places.number());
            }
            places = places.rest();
        }
        None
    }

    fn free_place(&self, bucket: usize) -> Option<(usize, u32)> {
        let place = Places::with(self.line(bucket)?, 0).number();
        (place < PLACES).then_some((bucket, place))
    }

    /// Frees a place in a full bucket: moves one of its flows to that flow's other bucket, where
    /// up to `depth` more flows may have to make room in turn (cuckoo hashing).
    #[cold]
    fn make_place(&self, bucket: usize, depth: u32) -> Option<(usize, u32)> {
        for place in 0..PLACES {
            let (tag, slot) = self.content(bucket, place)?;
            let other = self.table.other_bucket(bucket, tag);
            let target = self
                .free_place(other)
                .or_else(|| depth.checked_sub(1).and_then(|depth| self.make_place(other, depth)));
            let Some((other, free)) = target else { continue };
            // Making room may have come around to this very bucket.
            if other == bucket || self.content(bucket, place) != Some((tag, slot)) {
                return self.free_place(bucket);
            }
            // In the new place first: a reader may see it twice, but never miss it.
            self.set_place(other, free, tag, slot);
            self.free(bucket, place);
            return Some((bucket, place));
        }
        None
    }

    fn content(&self, bucket: usize, place: u32) -> Option<(u16, Slot)> {
        let line = self.line(bucket)?;
        Some((tag_at(line, place), slot_of(line, place)))
    }

    /// Lets a free place name an entry. The number is there before the tag is.
    fn set_place(&self, bucket: usize, place: u32, tag: u16, slot: Slot) {
        let Some(line) = self.line(bucket) else { return };
        if let Some(word) = line.words.get(2 + place as usize / 2) {
            let shift = 32 * (place % 2);
            let others = word.load(Ordering::Relaxed) & !(0xffff_ffff << shift);
            // Relaxed: ordered by the release store of the tag.
            word.store(others | u64::from(slot.0) << shift, Ordering::Relaxed);
        }
        self.set_tag(line, place, tag);
    }

    fn free(&self, bucket: usize, place: u32) {
        if let Some(line) = self.line(bucket) {
            self.set_tag(line, place, 0);
        }
    }

    fn set_tag(&self, line: &Line, place: u32, tag: u16) {
        if let Some(word) = line.words.get(place as usize / 4) {
            let shift = 16 * (place % 4);
            let others = word.load(Ordering::Relaxed) & !(0xffff << shift);
            // Release pairs with the acquire loads in `Places::with`.
            word.store(others | u64::from(tag) << shift, Ordering::Release);
        }
    }

    /// Writes an entry so that a reader sees all of it or none of it.
    fn write(&self, slot: Slot, entry: &Entry) {
        self.store(slot, encode(entry));
    }

    /// Frees an entry: no key, and a link to the next free one.
    fn clear(&mut self, slot: Slot) {
        let next = self.free.map_or(0, |slot| u64::from(slot.0) + 1);
        self.store(slot, [next, 0, 0, 0, 0, 0, 0, 0]);
        self.free = Some(slot);
    }

    fn store(&self, slot: Slot, words: [u64; 8]) {
        let Some(line) = self.table.entries.get(slot.0 as usize) else { return };
        let [hop, c0, c1, v0, v1, tail, pin, times] = words;
        let [w_hop, w_c0, w_c1, w_v0, w_v1, w_tail, w_pin, w_times] = &line.words;
        let version = w_pin.load(Ordering::Relaxed) & 0xffff;
        // A new stamp, so that a change in another thread's hands misses the new contents.
        let tail = tail & !TAIL_STAMP | (version << (TAIL_STAMP_SHIFT - 1)) & TAIL_STAMP;
        w_pin.store(pin | (version | 1), Ordering::Relaxed);
        // The odd version is visible before any of the words below: pairs with the acquire fence
        // of `FlowTable::read`.
        fence(Ordering::Release);
        for (word, value) in [
            (w_hop, hop),
            (w_c0, c0),
            (w_c1, c1),
            (w_v0, v0),
            (w_v1, v1),
            (w_tail, tail),
            (w_times, times),
        ] {
            word.store(value, Ordering::Relaxed);
        }
        // Release: the words above are visible before the even version.
        let version = (version + 2) & 0xfffe;
        w_pin.store(pin | version, Ordering::Release);
    }
}

#[inline]
fn load(line: &Line) -> [u64; 8] {
    // Relaxed: the callers order these loads, where it matters, around the version in `pin`.
    std::array::from_fn(|word| line.words.get(word).map_or(0, |w| w.load(Ordering::Relaxed)))
}

/// The low bits of a hash, but never 0.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
const fn tag_of(hash: u64) -> u16 {
    let tag = hash as u16;
    if tag == 0 { 1 } else { tag }
}

/// The first 16 bits of a word.
#[inline]
const fn high_u16(word: u64) -> u16 {
    (word >> 48) as u16
}

const fn times_word(created: Ticks, last_seen: Ticks) -> u64 {
    (created.0 as u64) << 32 | last_seen.0 as u64
}

const fn tail_word(entry: &Entry) -> u64 {
    let [.., tail] = entry.key.words();
    tail | (entry.state.0 as u64) << TAIL_STATE_SHIFT
        | (entry.owner as u64) << TAIL_OWNER_SHIFT
        | (entry.stamp as u64) << TAIL_STAMP_SHIFT
}

fn encode(entry: &Entry) -> [u64; 8] {
    let [c0, c1, v0, v1, _] = entry.key.words();
    let pin = u64::from(entry.backend.index.0) << 48
        | u64::from(entry.backend.generation) << 32
        | u64::from(entry.vip.0) << 16;
    let hop = encode_hop(&entry.hop);
    [hop, c0, c1, v0, v1, tail_word(entry), pin, times_word(entry.created, entry.last_seen)]
}

/// `MAC:48 nic:4 vlan:12`; VLAN 0 (no VLAN, 802.1Q 9.6) stands for untagged.
fn encode_hop(hop: &NextHop) -> u64 {
    let [a, b, c, d, e, f] = hop.mac;
    let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    mac << 16 | u64::from(hop.port.0 & 0xf) << 12 | u64::from(hop.vlan.unwrap_or(0) & 0xfff)
}

fn decode_hop(word: u64) -> NextHop {
    let [a, b, c, d, e, f, _, _] = word.to_be_bytes();
    let vlan = (word & 0xfff) as u16;
    NextHop {
        port: PortIndex((word >> 12 & 0xf) as u8),
        mac: [a, b, c, d, e, f],
        vlan: Some(vlan).filter(|&vlan| vlan != 0),
    }
}

/// `None` for a free entry.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
fn decode(words: &[u64; 8]) -> Option<Entry> {
    let [hop, c0, c1, v0, v1, tail, pin, times] = *words;
    Some(Entry {
        key: FlowKey::from_words([c0, c1, v0, v1, tail & TAIL_KEY])?,
        vip: VipId((pin >> 16) as u16),
        backend: BackendId {
            index: BackendIndex((pin >> 48) as u16),
            generation: (pin >> 32) as u16,
        },
        state: State((tail >> TAIL_STATE_SHIFT) as u8),
        owner: (tail >> TAIL_OWNER_SHIFT) as u8,
        hop: decode_hop(hop),
        created: Ticks((times >> 32) as u32),
        last_seen: Ticks(times as u32),
        stamp: (tail >> TAIL_STAMP_SHIFT) as u8,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::AtomicBool;

    use hashbrown::HashMap;
    use proptest::prelude::*;

    use super::*;
    use crate::flow::{Address, Protocol};

    fn key(number: u32) -> FlowKey {
        FlowKey {
            client: Address::from_v4(number.to_be_bytes()),
            vip: Address::from_v4([192, 0, 2, 10]),
            client_port: 1024,
            vip_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn entry(number: u32, backend: u16) -> Entry {
        Entry {
            key: key(number),
            vip: VipId(3),
            backend: BackendId { index: BackendIndex(backend), generation: backend },
            state: State::ESTABLISHED,
            owner: 1,
            hop: NextHop { port: PortIndex(2), mac: [2, 0, 0, 0, 0, 9], vlan: Some(100) },
            created: Ticks(5),
            last_seen: Ticks(u32::from(backend)),
            stamp: 0,
        }
    }

    fn table(capacity: u32) -> FlowWriter {
        let table = FlowTable::new(capacity, TableSecret::new(1)).unwrap();
        FlowWriter::new(Arc::new(table)).unwrap()
    }

    impl FlowWriter {
        fn add(&mut self, number: u32, backend: u16) -> Result<Slot, Full> {
            let key = self.table.secret.hash(key(number));
            self.insert(&key, &entry(number, backend))
        }

        fn found(&self, number: u32) -> Option<Entry> {
            self.table.lookup(&self.table.secret.hash(key(number))).map(|(_, entry)| entry)
        }
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut writer = table(8);
        let mut wanted = entry(7, 9);
        wanted.hop.vlan = None;
        wanted.key.client = Address { high: u64::MAX, low: 1 };
        wanted.key.protocol = Protocol::Udp;
        let key = writer.table.secret.hash(wanted.key);
        let slot = writer.insert(&key, &wanted).unwrap();
        assert_eq!(writer.get(slot), Some(wanted));
        assert_eq!(writer.table.lookup(&key), Some((slot, wanted)));
        assert_eq!(writer.table.pin_at(slot.0), Some(wanted));
    }

    #[test]
    fn a_full_table_refuses_and_keeps_what_it_has() {
        let mut writer = table(1000);
        let held = (0..1_000_000).take_while(|&n| writer.add(n, 1).is_ok()).count();
        assert_eq!(held, 1000, "every entry can be used at the table's load");
        assert_eq!(writer.add(2_000_000, 1), Err(Full));
        assert!((0..1000).all(|n| writer.found(n).is_some()));
        writer.sweep(1000, |entry| entry.key != key(500));
        assert!(writer.found(500).is_none());
        assert!(writer.add(2_000_000, 1).is_ok());
    }

    /// The load at which buckets overflow must lie above the load that the table is made for.
    #[test]
    fn filling_emptying_and_filling_again_reaches_the_full_capacity() {
        let mut writer = table(100_000);
        for round in 0..3 {
            let first = round * 100_000;
            let full = (first..first + 100_000).filter(|&n| writer.add(n, 1).is_err()).count();
            assert_eq!(full, 0, "round {round}");
            assert_eq!(writer.len(), 100_000);
            writer.sweep(100_000, |_| false);
            assert!(writer.is_empty());
        }
    }

    #[test]
    fn state_and_times_change_in_place() {
        let mut writer = table(8);
        let slot = writer.add(1, 1).unwrap();
        let seen = writer.get(slot).unwrap();
        writer.seen(slot, &seen, Ticks(77));
        assert_eq!(writer.get(slot).unwrap().last_seen, Ticks(77));
        writer.set_state(slot, State::ESTABLISHED, State::FIN_CLIENT);
        assert_eq!(writer.get(slot).unwrap().state, State::FIN_CLIENT);
        let table = Arc::clone(&writer.table);
        let read = table.read(slot).unwrap();
        table.add_state(slot, &read, State::FIN_BACKEND);
        table.touch(slot, &read, Ticks(99));
        let now = writer.get(slot).unwrap();
        assert!(now.state.has(State::FIN_CLIENT.with(State::FIN_BACKEND)));
        assert_eq!(now.last_seen, Ticks(99));
    }

    #[test]
    fn a_late_touch_does_not_reach_the_next_flow_of_the_entry() {
        let mut writer = table(8);
        let slot = writer.add(1, 1).unwrap();
        let old = writer.table.read(slot).unwrap();
        writer.remove(slot);
        assert_eq!(writer.add(2, 2), Ok(slot), "the entry is used again");
        let fresh = writer.get(slot).unwrap();
        writer.table.touch(slot, &old, Ticks(99));
        writer.table.add_state(slot, &old, State::RST);
        assert_eq!(writer.get(slot), Some(fresh));
    }

    #[test]
    fn the_two_buckets_of_a_flow_lead_to_each_other() {
        for capacity in [8, 9, 1000, 12_345] {
            let writer = table(capacity);
            for hash in (0..1000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
                let first = writer.table.first_bucket(hash);
                let other = writer.table.other_bucket(first, tag_of(hash));
                assert!(other < writer.table.buckets.len());
                assert_eq!(writer.table.other_bucket(other, tag_of(hash)), first);
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
            let mut writer = table(256);
            let mut model: HashMap<u32, u16> = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert(n, _) if model.contains_key(&n) => {}
                    Step::Insert(n, b) => match writer.add(n, b) {
                        Ok(_) => drop(model.insert(n, b)),
                        Err(Full) => prop_assert!(model.len() >= 250, "full at {}", model.len()),
                    },
                    Step::Remove(n) => {
                        let slot = writer.table.find(&writer.table.secret.hash(key(n)));
                        prop_assert_eq!(slot.is_some(), model.remove(&n).is_some());
                        if let Some(slot) = slot { writer.remove(slot); }
                    }
                    Step::Update(n, b) => {
                        let slot = writer.table.find(&writer.table.secret.hash(key(n)));
                        if let (Some(slot), Some(value)) = (slot, model.get_mut(&n)) {
                            writer.update(slot, &entry(n, b));
                            *value = b;
                        }
                    }
                    Step::Sweep(backend) => {
                        writer.sweep(256, |entry| entry.backend.index.0 != backend);
                        model.retain(|_, value| *value != backend);
                    }
                }
                prop_assert_eq!(writer.len() as usize, model.len());
            }
            for n in 0..400 {
                prop_assert_eq!(writer.found(n).map(|e| e.backend.index.0), model.get(&n).copied());
            }
        }
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
                    if let Some(entry) = table.read(slot) {
                        assert_eq!(entry.backend.index.0, entry.backend.generation);
                        assert_eq!(entry.last_seen, Ticks(u32::from(entry.backend.generation)));
                        seen += 1;
                    }
                }
                seen
            });
            for n in 0..300_000_u32 {
                writer.update(slot, &entry(1, u16::try_from(n % 1000).unwrap()));
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }
}
