//! The clients table: the backend of each client at a VIP, across its connections and all workers.
//!
//! ```text
//! hash of (VIP, client, part) --> bucket, five cache lines:
//!   line 0       8 heads    last used:32 version:20 tag:8 flags:4
//!   lines 1..5   8 bodies   client:128 (VIP:16 part:16 backend:16 generation:16) (created:32 0:32)
//! ```
//!
//! Fixed memory, any number of writers, no lock. A writer of a body first *claims* its head by
//! compare-and-swap, and releases it with the next version; readers check the version before and
//! after. No thread waits: a writer that meets a claim in its bucket leaves the bucket alone, and
//! the client's next packet or connection makes the record instead. At most one claim of a bucket
//! is acted upon, so that no client is recorded twice.
//!
//! A *proven* mapping (the client has completed a handshake) that has not expired cannot be
//! evicted. A new client takes a free slot, else that of the mapping that expired longest ago, else
//! that of the least recently used unproven mapping: a flood of forged SYNs evicts its own records.
//! Expired mappings stay until then, so that a returning client is recognised.
//!
//! Cost of a look-up: one line of heads, and one body if the client is known.

use super::header::{Kind, TableError};
use super::memory::{Anonymous, Parts, TableMemory};
use crate::net::{Address, BackendId, BackendIndex, TableSecret, VipId};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::units::Ticks;
use crate::xdp::memory;

/// The layout of the table, with the hash by which buckets are found.
const KIND: Kind = Kind { name: *b"clients-", version: 1 };

/// Slots of a bucket: their heads fill a cache line.
const SLOTS: usize = 8;
/// Slots per client that the table is sized for: with half of the slots taken, 1 new client in 100
/// finds its bucket full (Poisson).
const SLOTS_PER_CLIENT: usize = 2;
/// Memory per client, in bytes.
pub const BYTES_PER_CLIENT: usize = size_of::<Bucket>() / SLOTS * SLOTS_PER_CLIENT;

/// The slot holds a mapping.
const USED: u64 = 1;
/// The mapping is proven.
const PROVEN: u64 = 2;
/// A thread is writing the body.
const CLAIMED: u64 = 4;
const TAG_SHIFT: u32 = 4;
const TAG: u64 = 0xff << TAG_SHIFT;
const VERSION_SHIFT: u32 = 12;
/// A torn read goes unnoticed only if a million changes of the slot happen during it.
const VERSION: u64 = 0xf_ffff << VERSION_SHIFT;
const USED_SHIFT: u32 = 32;

/// Client identity that a mapping belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The VIP.
    pub vip: VipId,
    /// The client's address, or its prefix with the other bits 0.
    pub client: Address,
    /// Part of the clients behind that address; 1 if they are not divided.
    pub part: u16,
}

/// Record of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Its backend.
    pub backend: BackendId,
    /// Time at which the client was first sent to this backend.
    pub created: Ticks,
    /// Time of the last recorded packet of its flows.
    pub last_used: Ticks,
    /// The client has completed a handshake (TCP), or sent for more than a second (UDP).
    pub proven: bool,
}

/// Reason why a client was not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRecorded {
    /// All slots of the bucket hold proven mappings that have not expired.
    Full,
    /// Another worker was writing in the bucket.
    Busy,
}

/// The clients table. See the module's documentation.
#[derive(Debug)]
pub struct Clients {
    buckets: memory::Mapping<Bucket>,
    secret: TableSecret,
}

crate::shareable_struct! {
    #[derive(Debug, Default)]
    #[repr(C, align(64))]
    struct Bucket {
        heads: [AtomicU64; SLOTS],
        bodies: [Body; SLOTS],
    }
}

crate::shareable_struct! {
    #[derive(Debug, Default)]
    #[repr(C)]
    struct Body {
        high: AtomicU64,
        low: AtomicU64,
        names: AtomicU64,
        created: AtomicU64,
    }
}

/// A slot of a bucket.
#[derive(Clone, Copy)]
struct Slot<'a> {
    head: &'a AtomicU64,
    body: &'a Body,
}

impl Clients {
    /// Takes over the table that an earlier process has left, or makes one for `clients` clients:
    /// [`BYTES_PER_CLIENT`] each. `secret` keys its hash, so that clients cannot be aimed at one
    /// bucket.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn open(
        memory: &dyn TableMemory,
        clients: usize,
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let buckets = clients.saturating_mul(SLOTS_PER_CLIENT).div_ceil(SLOTS).max(1);
        let table = Parts { kind: KIND, name: "clients", entries: buckets, secret };
        let (buckets, _) = table.open(memory, Bucket::repair)?;
        Ok(Self { buckets, secret: secret.clone() })
    }

    /// Returns the mapping of a client, expired or not.
    pub fn find(&self, key: &Key) -> Option<Mapping> {
        let (bucket, tag) = self.bucket(key)?;
        bucket.find(key, tag).map(|(_, _, mapping)| mapping)
    }

    /// Records that a client is sent to `backend` now, whatever backend it had before. A known
    /// client stays proven if its mapping has not expired; `lives` decides that for any mapping of
    /// the bucket.
    ///
    /// # Errors
    /// [`NotRecorded`]; nothing has changed then.
    pub fn assign(
        &self,
        key: &Key,
        backend: BackendId,
        now: Ticks,
        lives: impl Fn(&Key, &Mapping) -> bool,
    ) -> Result<(), NotRecorded> {
        let (bucket, tag) = self.bucket(key).ok_or(NotRecorded::Full)?;
        let own = bucket.find(key, tag);
        let proven = own.is_some_and(|(_, _, old)| old.proven && lives(key, &old));
        let mapping = Mapping { backend, created: now, last_used: now, proven };
        let (slot, head) = match own {
            Some((slot, head, _)) => (slot, head),
            None => bucket.victim(now, lives)?,
        };
        bucket.write(slot, head, key, tag, &mapping)
    }

    /// Records a mapping of an earlier table; returns false if there is no room. Before any worker
    /// runs.
    pub fn restore(&self, key: &Key, mapping: &Mapping) -> bool {
        let Some((bucket, tag)) = self.bucket(key) else { return false };
        bucket.victim(mapping.last_used, |_, _| true).is_ok_and(|(slot, head)| {
            head & USED == 0 && bucket.write(slot, head, key, tag, mapping).is_ok()
        })
    }

    /// Returns a separate table for one client, with its mapping in this one.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn scratch(&self, key: &Key) -> Result<Self, TableError> {
        let scratch = Self::open(&Anonymous, 1, &self.secret)?;
        if let (Some(mapping), Some((bucket, tag))) = (self.find(key), scratch.bucket(key))
            && let Some(slot) = bucket.slots().next()
        {
            // No other thread has the table yet.
            let _ = bucket.write(slot, 0, key, tag, &mapping);
        }
        Ok(scratch)
    }

    /// Records a packet of a client that has `backend` (`None`: any backend); `proven` if the
    /// packet shows that the client's address is not forged. A client that has another backend by
    /// now, or was forgotten, is left as it is.
    ///
    /// Returns whether the client is known.
    pub fn touch(&self, key: &Key, backend: Option<BackendId>, now: Ticks, proven: bool) -> bool {
        let Some((bucket, tag)) = self.bucket(key) else { return false };
        let Some((slot, head, mapping)) = bucket.find(key, tag) else { return false };
        if backend.is_none_or(|backend| backend == mapping.backend) {
            let last_used = mapping.last_used.after(now.since(mapping.last_used));
            let flags = if proven { PROVEN } else { 0 };
            let new = head & (VERSION | TAG | USED | PROVEN) | flags | used_at(last_used);
            if new != head {
                // A thread that changed the head in between has updated the slot.
                let _ = slot.swap(head, new);
            }
        }
        true
    }

    /// Number of slots: positions for [`Clients::at`].
    pub fn positions(&self) -> usize {
        self.buckets.len() * SLOTS
    }

    /// Returns the mapping at a position, if there is one.
    pub fn at(&self, position: usize) -> Option<(Key, Mapping)> {
        self.slot(position)?.read().map(|(_, key, mapping)| (key, mapping))
    }

    /// Removes the mapping at a position if it is still that of `key`; returns whether it did.
    pub fn forget(&self, position: usize, key: &Key) -> bool {
        let Some(slot) = self.slot(position) else { return false };
        let Some((head, found, _)) = slot.read() else { return false };
        found == *key && slot.swap(head, next_version(head))
    }

    fn slot(&self, position: usize) -> Option<Slot<'_>> {
        self.buckets.get(position / SLOTS)?.slots().nth(position % SLOTS)
    }

    /// Returns the bucket of a client, and its tag at its bits of a head.
    fn bucket(&self, key: &Key) -> Option<(&Bucket, u64)> {
        let hash = self.secret.hash_words::<24>(&[key.client.high, key.client.low, key.name()]);
        let number = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        let bucket = self.buckets.get(usize::try_from(number).ok()?)?;
        Some((bucket, hash << TAG_SHIFT & TAG))
    }
}

impl Key {
    /// Returns VIP and part, as the upper half of a word.
    fn name(&self) -> u64 {
        u64::from(self.vip.0) << 48 | u64::from(self.part) << 32
    }
}

impl Bucket {
    /// Frees the slots in the middle of whose change the earlier process ended.
    fn repair(&self) {
        for head in &self.heads {
            // Relaxed: no other thread has the table yet.
            let value = head.load(Ordering::Relaxed);
            if value & CLAIMED != 0 {
                head.store(next_version(value), Ordering::Relaxed);
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.heads.iter().zip(&self.bodies).map(|(head, body)| Slot { head, body })
    }

    /// Returns the client's slot, its head, and its mapping.
    fn find(&self, key: &Key, tag: u64) -> Option<(Slot<'_>, u64, Mapping)> {
        let tagged = |slot: &Slot<'_>| {
            slot.head.load(Ordering::Relaxed) & (TAG | USED | CLAIMED) == tag | USED
        };
        self.slots().filter(tagged).find_map(|slot| {
            let (head, found, mapping) = slot.read()?;
            (found == *key).then_some((slot, head, mapping))
        })
    }

    /// Returns the slot that a new client gets, and its head.
    fn victim(
        &self,
        now: Ticks,
        lives: impl Fn(&Key, &Mapping) -> bool,
    ) -> Result<(Slot<'_>, u64), NotRecorded> {
        let mut error = NotRecorded::Full;
        let mut best = None;
        for slot in self.slots() {
            let head = slot.head.load(Ordering::Acquire);
            if head & (USED | CLAIMED) == 0 {
                return Ok((slot, head));
            }
            let Some((head, key, mapping)) = slot.read() else {
                error = NotRecorded::Busy;
                continue;
            };
            let expired = !lives(&key, &mapping);
            if expired || !mapping.proven {
                let rank = (expired, now.since(mapping.last_used).0);
                if best.is_none_or(|(most, _, _)| rank > most) {
                    best = Some((rank, slot, head));
                }
            }
        }
        best.map(|(_, slot, head)| (slot, head)).ok_or(error)
    }

    /// Writes a slot whose head is still `head`.
    fn write(
        &self,
        slot: Slot<'_>,
        head: u64,
        key: &Key,
        tag: u64,
        mapping: &Mapping,
    ) -> Result<(), NotRecorded> {
        if !slot.swap(head, head | CLAIMED) {
            return Err(NotRecorded::Busy);
        }
        if self.is_contested(slot, key, tag) {
            slot.head.store(head, Ordering::Release);
            return Err(NotRecorded::Busy);
        }
        // Release: a reader of one of these words sees the claim, too, when it checks the head
        // again.
        fence(Ordering::Release);
        slot.body.write(key, mapping);
        let flags = USED | if mapping.proven { PROVEN } else { 0 };
        let version = next_version(head) & VERSION;
        slot.head.store(version | tag | flags | used_at(mapping.last_used), Ordering::Release);
        Ok(())
    }

    /// Returns whether another thread writes in this bucket, or has just recorded the same client.
    ///
    /// Of two threads that claim at the same time, at least one sees the other's claim or its
    /// result: claims, and the checks after them, are in one order (`SeqCst`).
    fn is_contested(&self, claimed: Slot<'_>, key: &Key, tag: u64) -> bool {
        let others = || self.slots().filter(|slot| !std::ptr::eq(slot.head, claimed.head));
        others().any(|slot| slot.head.load(Ordering::SeqCst) & CLAIMED != 0)
            || self.find(key, tag).is_some()
    }
}

impl Slot<'_> {
    /// Returns head, key and mapping, if there is a mapping and no thread is writing it.
    fn read(&self) -> Option<(u64, Key, Mapping)> {
        // Acquire pairs with the release store of `write`: a reader of a version sees its body.
        let head = self.head.load(Ordering::Acquire);
        if head & (USED | CLAIMED) != USED {
            return None;
        }
        let (key, backend, created) = self.body.read();
        // Pairs with the fence of `write`: a reader of a newer word sees another head now.
        fence(Ordering::Acquire);
        let still = self.head.load(Ordering::Relaxed);
        if (head ^ still) & (VERSION | CLAIMED) != 0 {
            return None;
        }
        let proven = head & PROVEN != 0;
        Some((head, key, Mapping { backend, created, last_used: last_used(head), proven }))
    }

    /// Changes the head from `old` to `new`; `false` if it has changed since.
    fn swap(&self, old: u64, new: u64) -> bool {
        self.head.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
impl Body {
    fn write(&self, key: &Key, mapping: &Mapping) {
        let BackendId { index, generation } = mapping.backend;
        let names = key.name() | u64::from(index.0) << 16 | u64::from(generation);
        for (word, value) in [
            (&self.high, key.client.high),
            (&self.low, key.client.low),
            (&self.names, names),
            (&self.created, u64::from(mapping.created.0)),
        ] {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn read(&self) -> (Key, BackendId, Ticks) {
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let names = word(&self.names);
        let key = Key {
            vip: VipId((names >> 48) as u16),
            client: Address { high: word(&self.high), low: word(&self.low) },
            part: (names >> 32) as u16,
        };
        let index = BackendIndex((names >> 16) as u16);
        let backend = BackendId { index, generation: names as u16 };
        (key, backend, Ticks(word(&self.created) as u32))
    }
}

const fn used_at(ticks: Ticks) -> u64 {
    (ticks.0 as u64) << USED_SHIFT
}

const fn last_used(head: u64) -> Ticks {
    Ticks((head >> USED_SHIFT) as u32)
}

/// Returns the head of a free slot, one version later.
const fn next_version(head: u64) -> u64 {
    head.wrapping_add(1 << VERSION_SHIFT) & VERSION
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use hashbrown::{HashMap, HashSet};

    use super::*;

    const TIMEOUT: u32 = 1000;

    fn table(clients: usize) -> Clients {
        Clients::open(&Anonymous, clients, &TableSecret::new(7)).unwrap()
    }

    fn key(number: u64) -> Key {
        let [.., a, b, c, d] = number.to_be_bytes();
        // Two VIPs and two parts: all of a key counts.
        let (vip, part) = (VipId(u16::from(d & 1)), 1 + u16::from(d >> 1 & 1));
        Key { vip, client: Address::from_v4([a, b, c, d & !3]), part }
    }

    fn backend(index: u16) -> BackendId {
        BackendId { index: BackendIndex(index), generation: index.wrapping_mul(3) }
    }

    fn is_alive(now: Ticks) -> impl Fn(&Key, &Mapping) -> bool + Copy {
        move |_, mapping| now.since(mapping.last_used).0 <= TIMEOUT
    }

    fn all(table: &Clients) -> Vec<(Key, Mapping)> {
        (0..table.positions()).filter_map(|position| table.at(position)).collect()
    }

    /// A pseudo-random sequence (splitmix64).
    fn numbers(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    #[test]
    fn memory_is_as_documented() {
        assert_eq!((size_of::<Bucket>(), BYTES_PER_CLIENT), (320, 80));
        assert_eq!(table(65_536).positions(), 131_072);
    }

    #[test]
    fn a_client_is_known_as_it_was_noted_until_it_is_forgotten() {
        let table = table(16);
        let (one, now) = (Key { client: Address::from_v6([0xfe; 16]), ..key(u64::MAX) }, Ticks(7));
        assert_eq!(table.find(&one), None);
        assert!(!table.touch(&one, Some(backend(1)), now, true), "a touch adds no client");
        table.assign(&one, backend(0xfffe), now, is_alive(now)).unwrap();
        let recorded =
            Mapping { backend: backend(0xfffe), created: now, last_used: now, proven: false };
        assert_eq!(table.find(&one), Some(recorded));
        assert_eq!(all(&table), [(one, recorded)]);
        for other in [
            Key { vip: VipId(9), ..one },
            Key { part: 9, ..one },
            Key { client: Address { high: 0, ..one.client }, ..one },
        ] {
            assert_eq!(table.find(&other), None, "{other:?}");
        }

        assert!(table.touch(&one, Some(backend(0xfffe)), Ticks(9), true));
        assert!(table.touch(&one, Some(backend(0xfffe)), Ticks(8), false), "an older clock");
        assert!(
            table.touch(&one, Some(backend(3)), Ticks(20), true),
            "an old flow, on its old backend"
        );
        let used = Mapping { last_used: Ticks(9), proven: true, ..recorded };
        assert_eq!(table.find(&one), Some(used));

        let position = (0..table.positions()).find(|&at| table.at(at).is_some()).unwrap();
        assert!(!table.forget(position, &Key { part: 9, ..one }));
        assert!(table.forget(position, &one));
        assert!(!table.forget(position, &one));
        assert!(!table.forget(usize::MAX, &one));
        assert_eq!((table.find(&one), all(&table)), (None, Vec::new()));
    }

    #[test]
    fn a_client_stays_proven_while_its_mapping_lives() {
        let (table, one) = (table(16), key(1));
        table.assign(&one, backend(1), Ticks(0), is_alive(Ticks(0))).unwrap();
        table.touch(&one, Some(backend(1)), Ticks(0), true);
        let row = |now: u32, proven, name: &str| {
            table.assign(&one, backend(2), Ticks(now), is_alive(Ticks(now))).unwrap();
            let mapping = table.find(&one).unwrap();
            assert_eq!((mapping.created, mapping.proven), (Ticks(now), proven), "{name}");
        };
        row(TIMEOUT, true, "moved while it lived");
        row(3 * TIMEOUT, false, "came back");
        assert_eq!(all(&table).len(), 1);
    }

    /// One bucket, to show which mapping a new client replaces.
    #[test]
    fn free_then_expired_then_unproven_places_are_taken_and_proven_ones_never() {
        let table = table(1);
        let assign = |number: u64, now: u32| {
            table.assign(&key(number * 4), backend(1), Ticks(now), is_alive(Ticks(now)))
        };
        let prove = |number: u64, now: u32| {
            table.touch(&key(number * 4), Some(backend(1)), Ticks(now), true);
        };
        let known = |numbers: &[u64]| {
            let mut found: Vec<u64> =
                (0..100).filter(|number| table.find(&key(number * 4)).is_some()).collect();
            found.sort_unstable();
            assert_eq!(found, numbers);
        };
        for number in 0..8 {
            assign(number, 10 + u32::try_from(number).unwrap()).unwrap();
        }
        prove(0, 30);
        prove(2, 20);
        // None is expired: the least recently used unproven ones are replaced.
        assign(20, 40).unwrap();
        assign(21, 41).unwrap();
        known(&[0, 2, 4, 5, 6, 7, 20, 21]);
        // Expired ones first, the oldest before all, proven or not.
        let later = TIMEOUT + 25;
        known(&[0, 2, 4, 5, 6, 7, 20, 21]);
        for (number, gone) in [(30, 4), (31, 5), (32, 6), (33, 7), (34, 2)] {
            assign(number, later).unwrap();
            assert_eq!(table.find(&key(gone * 4)), None, "{number} took the place of another");
        }
        known(&[0, 20, 21, 30, 31, 32, 33, 34]);
        for number in [0, 20, 21, 30, 31, 32, 33, 34] {
            prove(number, later);
        }
        assert_eq!(assign(50, later), Err(NotRecorded::Full));
        known(&[0, 20, 21, 30, 31, 32, 33, 34]);
        // A known client needs no further slot.
        assign(20, later).unwrap();
    }

    /// Against a map without bounds: a client that is found has its last recorded mapping; one that
    /// is not found was refused or replaced, and was unproven or expired then.
    #[test]
    fn random_operations_agree_with_a_map() {
        let (table, mut next) = (table(64), numbers(1));
        let mut model: HashMap<Key, Mapping> = HashMap::new();
        let (mut refused, mut found) = (0, 0);
        for step in 0..200_000_u32 {
            let now = Ticks(step / 16);
            let lives = is_alive(now);
            let key = key(next() % 200);
            let id = backend(u16::try_from(next() % 4).unwrap());
            match next() % 8 {
                0..3 => {
                    let proven = model.get(&key).is_some_and(|old| old.proven && lives(&key, old));
                    let new = Mapping { backend: id, created: now, last_used: now, proven };
                    match table.assign(&key, id, now, lives) {
                        Ok(()) => _ = model.insert(key, new),
                        Err(error) => {
                            assert_eq!(error, NotRecorded::Full);
                            assert_eq!(table.find(&key), None);
                            refused += 1;
                        }
                    }
                }
                3..6 => {
                    let proven = next() % 2 == 0;
                    let known = table.touch(&key, Some(id), now, proven);
                    if let Some(old) = model.get_mut(&key).filter(|old| known && old.backend == id)
                    {
                        old.last_used = now;
                        old.proven |= proven;
                    }
                }
                6 if next() % 16 == 0 => {
                    if let Some(position) = (0..table.positions())
                        .find(|&at| table.at(at).is_some_and(|(found, _)| found == key))
                    {
                        assert!(table.forget(position, &key));
                        model.remove(&key);
                    }
                }
                _ => {}
            }
            match (table.find(&key), model.get(&key)) {
                (Some(mapping), Some(expected)) => {
                    assert_eq!(mapping, *expected);
                    found += 1;
                }
                (Some(_), None) => unreachable!("made up"),
                (None, Some(gone)) => {
                    assert!(!(gone.proven && lives(&key, gone)), "a proven one gave way");
                    model.remove(&key);
                }
                (None, None) => {}
            }
        }
        assert!(refused > 100 && found > 10_000, "both were seen: {refused}, {found}");
    }

    /// Threads write and read few slots; key and value always belong together, no client is
    /// recorded twice, and no thread waits.
    #[test]
    fn threads_never_see_half_of_a_mapping_nor_make_two_of_one_client() {
        const OPERATIONS: u32 = 100_000;
        let table = table(8);
        let of = |key: &Key, n: u64| {
            let index = u16::try_from((key.client.low & 0xff) << 4 | n & 0xf).unwrap();
            backend(index)
        };
        let check = |key: &Key, mapping: &Mapping| {
            let BackendId { index, generation } = mapping.backend;
            assert_eq!(u64::from(index.0 >> 4), key.client.low & 0xff, "another client's backend");
            assert_eq!(generation, index.0.wrapping_mul(3), "half a backend");
            assert_eq!(mapping.created.0 % 64, u32::from(index.0 % 64), "another one's time");
        };
        let work = |seed: u64| {
            let mut next = numbers(seed);
            let mut recorded = 0_u32;
            for _ in 0..OPERATIONS {
                let key = key(next() % 40);
                let id = of(&key, next());
                // Any time that matches the backend; expired or not does not matter.
                let now =
                    Ticks(u32::try_from(next() % 64).unwrap() * 64 + u32::from(id.index.0 % 64));
                match next() % 8 {
                    0..3 => {
                        let noted_now = table.assign(&key, id, now, |key, mapping| {
                            check(key, mapping);
                            next_bool(mapping)
                        });
                        recorded += u32::from(noted_now.is_ok());
                    }
                    3 => _ = table.touch(&key, Some(id), now, true),
                    4 => {
                        let at = usize::try_from(next()).unwrap() % table.positions();
                        if let Some((key, mapping)) = table.at(at) {
                            check(&key, &mapping);
                            table.forget(at, &key);
                        }
                    }
                    _ => {
                        if let Some(mapping) = table.find(&key) {
                            check(&key, &mapping);
                        }
                    }
                }
            }
            recorded
        };
        let recorded: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=3).map(|seed| scope.spawn(move || work(seed))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(recorded > OPERATIONS / 4, "writers went on: {recorded}");
        let left = all(&table);
        let distinct: HashSet<Key> = left.iter().map(|(key, _)| *key).collect();
        assert_eq!(distinct.len(), left.len(), "a client is there twice");
        let claimed = |bucket: &Bucket| {
            bucket.heads.iter().any(|head| head.load(Ordering::Relaxed) & CLAIMED != 0)
        };
        assert!(!table.buckets.iter().any(claimed), "every claim was given back");
    }

    /// An arbitrary verdict on whether a mapping is expired, so that all kinds of slots are taken.
    fn next_bool(mapping: &Mapping) -> bool {
        !mapping.last_used.0.is_multiple_of(3)
    }

    /// Number of clients that find no room when as many come as the table is sized for.
    #[test]
    fn a_table_has_room_for_the_clients_that_it_is_sized_for() {
        let (table, now) = (table(65_536), Ticks(0));
        let mut refused = 0;
        for number in 0..65_536 {
            let key = key(number * 4);
            match table.assign(&key, backend(1), now, is_alive(now)) {
                Ok(()) => _ = table.touch(&key, Some(backend(1)), now, true),
                Err(_) => refused += 1,
            }
        }
        println!("65,536 clients: {refused} found no room");
        assert!(refused < 65_536 / 100, "{refused} found no room");
        cost(&table);
    }

    /// Prints the cost of look-ups; asserts nothing, as machines differ.
    fn cost(table: &Clients) {
        const ROUNDS: u64 = 1_000_000;
        let mut next = numbers(3);
        for (name, base) in [("known clients", 0), ("unknown clients", 1 << 20)] {
            let keys: Vec<Key> = (0..ROUNDS).map(|_| key((base + next() % 65_536) * 4)).collect();
            let start = Instant::now();
            let known = keys.iter().filter(|key| black_box(table.find(key)).is_some()).count();
            let each = start.elapsed().as_nanos() / u128::from(ROUNDS);
            println!("{name}: {each} ns per look-up, {known} found");
        }
    }
}
