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
//! the writer changes the entry. Other threads may read everything, and write three things only:
//! `hop`, `last seen` and bits of `state`, by compare-and-swap against what they have read.
//!
//! Memory: 64 bytes an entry and 9.4 bytes of bucket (8 places a bucket, filled to 85 %), for
//! either family. All of it is mapped and touched at start.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

use super::bucket::{self, PLACES, Places, tag_of};
use super::entry::{self, Entry, Pin, State};
use super::{Address, FlowKey, Protocol};
use crate::forwarding::NextHop;
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::memory::{Line, Mapping, MappingError};

/// Buckets are made for this share of places in use, in percent.
const LOAD_PERCENT: usize = 85;

/// A flow key in the form in which it is stored, with its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashedKey {
    pub(super) words: [u64; 5],
    pub(super) hash: u64,
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

/// The first 16 bits of a word.
#[inline]
const fn high_u16(word: u64) -> u16 {
    (word >> 48) as u16
}

/// Number of an entry in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub(super) u32);

/// The shared half of a flow table: what every thread may read.
#[derive(Debug)]
pub struct FlowTable {
    secret: TableSecret,
    pub(super) buckets: Mapping<Line>,
    pub(super) entries: Mapping<Line>,
}

/// Words of an entry line; the key's addresses are words 1 to 4.
pub(super) mod word {
    pub const HOP: usize = 0;
    /// Of a free entry: the number of the next free one, plus 1. Never written by other threads.
    pub const LINK: usize = 1;
    pub const TAIL: usize = 5;
    pub const PLACE: usize = 6;
    pub const TIMES: usize = 7;
}

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
    #[inline]
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
        let (first, tag) = (self.first_bucket(key.hash), tag_of(key.hash));
        let line = self.buckets.get(first)?;
        if let Some(slot) = Places::with(line, tag).first(line) {
            cpu::prefetch(self.entries.get(slot.0 as usize)?);
            return Some(slot);
        }
        if let Some(line) = self.buckets.get(self.other_bucket(first, tag)) {
            cpu::prefetch(line);
        }
        None
    }

    /// The entry of a key. Any thread may call it; in other threads than the writer's the answer
    /// may be outdated when it arrives, so [`FlowTable::read`] checks again.
    pub fn find(&self, key: &HashedKey) -> Option<Slot> {
        let (first, tag) = (self.first_bucket(key.hash), tag_of(key.hash));
        self.find_in(first, key).or_else(|| self.find_in(self.other_bucket(first, tag), key))
    }

    #[inline]
    fn find_in(&self, bucket: usize, key: &HashedKey) -> Option<Slot> {
        let line = self.buckets.get(bucket)?;
        let found = bucket::find(line, tag_of(key.hash), |slot| self.holds(slot, key));
        found.map(|(_, slot)| slot)
    }

    /// As [`FlowTable::find`], for who has a hint where the entry may be.
    #[inline]
    pub fn find_at(&self, key: &HashedKey, hint: Option<Slot>) -> Option<Slot> {
        match hint {
            Some(slot) if self.holds(slot, key) => Some(slot),
            _ => self.find(key),
        }
    }

    /// A consistent copy of an entry; `None` if it is free, or changes all the time.
    pub fn read(&self, slot: Slot) -> Option<Entry> {
        let line = self.entries.get(slot.0 as usize)?;
        for _ in 0..8 {
            let Some(place) = line.words.get(word::PLACE) else { break };
            // Acquire pairs with the release store that ends a write: the words below are at
            // least as new as this version.
            let before = place.load(Ordering::Acquire);
            let words = load(line);
            // The loads above are done before the version is looked at again.
            fence(Ordering::Acquire);
            if before & 1 == 0 && place.load(Ordering::Relaxed) == before {
                return decode(&words);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The entry of a key, for threads other than the writer's.
    pub fn lookup(&self, key: &HashedKey) -> Option<(Slot, Pin)> {
        // A flow that moves from its other bucket to its first, between the two looks, is missed by
        // both: the first is looked at again.
        let slot = self.find(key).or_else(|| self.find_in(self.first_bucket(key.hash), key))?;
        let entry = self.read(slot)?;
        (entry.key.words() == key.words).then_some((slot, entry.pin))
    }

    /// The pin (no alias) at position `number` of the table, if one is there.
    pub fn pin_at(&self, number: u32) -> Option<Entry> {
        self.read(Slot(number)).filter(|entry| !entry.pin.state().has(State::ALIAS))
    }

    /// Notes that a packet of the flow that `pin` was read of came at `now`. Any thread; does
    /// nothing if the entry has changed hands since.
    pub fn touch(&self, slot: Slot, pin: &Pin, now: Ticks) {
        if let Some(times) = self.word(slot, word::TIMES) {
            let new = pin.with_last_seen(now).times;
            // Relaxed: a time publishes nothing. A lost race means that somebody else touched it.
            let _ = times.compare_exchange(pin.times, new, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Changes where the client's packets come from. Any thread; does nothing if the entry has
    /// changed hands since `pin` was read from `slot`.
    pub fn change_hop(&self, slot: Slot, pin: &Pin, hop: &NextHop) {
        if let Some(word) = self.word(slot, word::HOP) {
            let new = pin.with_hop(hop).hop;
            // Relaxed: a way back publishes nothing, and stands for itself.
            let _ = word.compare_exchange(pin.hop, new, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Sets and clears bits of the flow's state. Any thread; does nothing if the entry has changed
    /// hands since `pin` was read from `slot`.
    pub fn change_state(&self, slot: Slot, key: &HashedKey, pin: &Pin, set: State, clear: State) {
        if pin.state().with(set).without(clear) == pin.state() {
            return;
        }
        let Some(tail) = self.word(slot, word::TAIL) else { return };
        let [.., key_tail] = key.words;
        let mut old = key_tail | pin.tail;
        // A few tries: the only competitors are other state changes.
        for _ in 0..4 {
            let new = (old | u64::from(set.0) << entry::STATE_SHIFT)
                & !(u64::from(clear.0) << entry::STATE_SHIFT);
            // Relaxed: state bits publish nothing.
            match tail.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Err(now) if now & !entry::STATE == old & !entry::STATE => old = now,
                Ok(_) | Err(_) => return,
            }
        }
    }

    #[inline]
    pub(super) fn word(&self, slot: Slot, word: usize) -> Option<&AtomicU64> {
        self.entries.get(slot.0 as usize)?.words.get(word)
    }

    #[inline]
    pub(super) fn first_bucket(&self, hash: u64) -> usize {
        let bucket = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        usize::try_from(bucket).unwrap_or_default()
    }

    /// The other bucket of a flow, from either of them: `other(other(b)) == b`.
    #[inline]
    pub(super) fn other_bucket(&self, bucket: usize, tag: u16) -> usize {
        let n = self.buckets.len();
        let mixed = (u64::from(u32::from(tag).wrapping_mul(0x9e37_79b1)) * n as u64) >> 32;
        let sum = usize::try_from(mixed).unwrap_or_default();
        if sum >= bucket { sum - bucket } else { sum + n - bucket }
    }

    /// Whether the entry has this key. A torn read can only be wrong in other threads than the
    /// writer's, and those check again.
    #[inline]
    fn holds(&self, slot: Slot, key: &HashedKey) -> bool {
        let Some(line) = self.entries.get(slot.0 as usize) else { return false };
        let [_, c0, c1, v0, v1, tail, _, _] = load(line);
        let [k0, k1, k2, k3, k4] = key.words;
        (c0 ^ k0) | (c1 ^ k1) | (v0 ^ k2) | (v1 ^ k3) | ((tail & entry::TAIL_KEY) ^ k4) == 0
    }
}

#[inline]
pub(super) fn load(line: &Line) -> [u64; 8] {
    // Relaxed: the callers order these loads, where it matters, around the version.
    line.words.each_ref().map(|word| word.load(Ordering::Relaxed))
}

/// What an entry line says besides its key.
#[inline]
pub(super) fn pin_of(words: &[u64; 8]) -> Pin {
    let [hop, .., tail, place, times] = *words;
    Pin { hop, tail: tail & !entry::TAIL_KEY, place: place & !entry::VERSION, times }
}

/// `None` for a free entry.
#[inline]
pub(super) fn decode(words: &[u64; 8]) -> Option<Entry> {
    let [_, c0, c1, v0, v1, tail, ..] = *words;
    let key = FlowKey::from_words([c0, c1, v0, v1, tail & entry::TAIL_KEY])?;
    Some(Entry { key, pin: pin_of(words) })
}
