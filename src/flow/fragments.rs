//! The fragment table: the flow that the fragments of a datagram belong to, across all workers.
//!
//! ```text
//! hash of the key --> bucket, four slots of one cache line each:
//!   version:64  progress:64  addresses:256
//!                 tag:16 total:24 seen:24
//!   (identification:32 protocol:8 transport:8 length of the first fragment:16)
//!   (ports:32 recorded:32)
//! ```
//!
//! The first fragment of a datagram has the ports; it *records* them, and the later ones *join*.
//! Only ports and protocol are kept: with them a later fragment is processed like any packet of its
//! flow, in both directions and in every mode.
//!
//! Fixed memory, any number of writers, no lock, and no thread waits. A writer claims a slot by
//! compare-and-swap (its version is odd then); readers check the version before and after. Where
//! two writers meet, one datagram is lost. A new datagram takes a free slot, else one whose
//! datagram is complete or timed out, else the one that was recorded longest ago: a flood evicts
//! its own datagrams.
//!
//! A datagram ends when as many bytes were seen as its last fragment states, so that its
//! identification may be reused at once; else after a time-out (RFC 791 3.2, RFC 8200 4.5).
//!
//! Cost of a look-up: up to four lines.

use crossbeam_utils::CachePadded;

use super::header::{Kind, TableError};
use super::memory::{Parts, TableMemory};
use crate::net::{Address, FiveTuple, Protocol, TableSecret, Tuple};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::units::Ticks;
use crate::xdp::memory::Mapping;

/// The layout of the table, with the hash by which buckets are found.
const KIND: Kind = Kind { name: *b"fragment", version: 1 };

/// Slots of a bucket.
const SLOTS: usize = 4;
/// Memory per datagram, in bytes.
pub const BYTES_PER_DATAGRAM: usize = size_of::<Slot>();
/// In place of TCP or UDP in the slot of a denied datagram, whose first fragment was dropped.
const DENIED: u64 = 0;
/// Attempts to count a fragment while other threads count theirs; then it goes uncounted.
const TRIES: usize = 8;
/// Bits of a number of bytes in `progress`; a datagram has at most 65,535.
const BYTES_BITS: u32 = 24;
const BYTES: u64 = (1 << BYTES_BITS) - 1;
const TAG_SHIFT: u32 = 2 * BYTES_BITS;

/// Key that the fragments of one datagram share (RFC 791 3.2, RFC 8200 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The sender's identification of the datagram; 16 bits for IPv4.
    pub identification: u32,
    /// IPv4: the protocol's number. IPv6: 0, as fragments need not agree on it.
    pub protocol: u8,
}

/// Range of its datagram's bytes that a fragment carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub offset: u16,
    /// Number of bytes; `offset + len` is at most 65,535.
    pub len: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// Contents of the first fragment that the later ones lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstFragment {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Source and destination port, in network byte order.
    pub ports: [u8; 4],
}

/// Result of a look-up for a later fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentLookup {
    /// The flow of the datagram.
    Flow(FirstFragment),
    /// The first fragment has not come yet.
    Unknown,
    /// The first fragment was dropped.
    Denied,
    /// The fragment overlaps another one, or exceeds the datagram's length.
    Overlap,
}

/// Error: another fragment at offset 0 of a known datagram has other ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherPorts;

impl Key {
    /// Returns the five-tuple of the datagram, in the sender's direction.
    #[inline]
    pub fn tuple(&self, head: FirstFragment) -> Tuple {
        let [s0, s1, d0, d1] = head.ports;
        Tuple::from(FiveTuple {
            src: self.source,
            dst: self.destination,
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            protocol: head.protocol,
        })
    }

    fn words(&self) -> [u64; 5] {
        let [a, b] = self.source.words();
        let [c, d] = self.destination.words();
        [a, b, c, d, u64::from(self.identification) << 32 | u64::from(self.protocol) << 24]
    }
}

/// The fragment table. See the module's documentation.
#[derive(Debug)]
pub struct FragmentTable {
    buckets: Mapping<[Slot; SLOTS]>,
    secret: TableSecret,
    timeout: Ticks,
    /// Grows with every datagram that is recorded. On a cache line of its own: workers with parked
    /// fragments read it in every poll.
    recorded: CachePadded<AtomicU64>,
}

crate::shareable_struct! {
    #[derive(Debug, Default)]
    #[repr(C, align(64))]
    struct Slot {
        /// Even: the words are of one datagram; 0: of none. Odd: a thread is writing them.
        version: AtomicU64,
        progress: AtomicU64,
        words: [AtomicU64; 6],
    }
}

/// Contents of a slot.
#[derive(Debug, Clone, Copy)]
struct Entry {
    version: u64,
    key: [u64; 5],
    /// `None`: the first fragment was dropped.
    head: Option<FirstFragment>,
    /// Length of the first fragment, in bytes.
    first: u16,
    recorded: Ticks,
}

impl FragmentTable {
    /// Takes over the table that an earlier process has left, or makes one for `datagrams` datagrams
    /// at a time ([`BYTES_PER_DATAGRAM`] each), which end after `timeout`. `secret` keys its hash, so
    /// that datagrams cannot be aimed at one bucket.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn open(
        memory: &dyn TableMemory,
        datagrams: usize,
        timeout: Ticks,
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let entries = datagrams.div_ceil(SLOTS).max(1);
        let table = Parts { kind: KIND, name: "fragments", entries, secret };
        let (buckets, _) =
            table.open(memory, |bucket: &[Slot; SLOTS]| bucket.iter().for_each(Slot::repair))?;
        Ok(Self { buckets, secret: secret.clone(), timeout, recorded: CachePadded::default() })
    }

    /// Records the first fragment of a datagram, of `len` bytes. A known datagram starts again: its
    /// sender has reused the identification.
    ///
    /// # Errors
    /// [`OtherPorts`]: then nothing is recorded.
    pub fn record(
        &self,
        key: &Key,
        head: FirstFragment,
        len: u16,
        now: Ticks,
    ) -> Result<(), OtherPorts> {
        self.record_fate(key, Some(head), len, now)
    }

    /// Records that the first fragment of a datagram, of `len` bytes, was dropped: later ones are
    /// denied.
    pub fn deny(&self, key: &Key, len: u16, now: Ticks) {
        // A denied datagram has no ports that could differ.
        let _ = self.record_fate(key, None, len, now);
    }

    fn record_fate(
        &self,
        key: &Key,
        head: Option<FirstFragment>,
        len: u16,
        now: Ticks,
    ) -> Result<(), OtherPorts> {
        let Some(bucket) = self.bucket(key) else { return Ok(()) };
        let mut best: Option<((bool, u32), &Slot, u64)> = None;
        for slot in bucket {
            let entry = slot.read();
            let (rank, version) = match entry {
                Some(entry) if self.lives(slot, &entry, now) => {
                    if entry.key == key.words() {
                        if entry.head.zip(head).is_some_and(|(old, new)| old != new) {
                            return Err(OtherPorts);
                        }
                        best = Some(((true, u32::MAX), slot, entry.version));
                        break;
                    }
                    ((false, now.since(entry.recorded).0), entry.version)
                }
                Some(entry) => ((true, now.since(entry.recorded).0), entry.version),
                None => ((true, u32::MAX - 1), slot.version.load(Ordering::Acquire)),
            };
            if best.is_none_or(|(most, ..)| rank > most) {
                best = Some((rank, slot, version));
            }
        }
        if let Some((_, slot, version)) = best {
            slot.write(version, key, head, len, now);
            // Release: a reader of the number sees the slot. Relaxed would do for the count itself.
            self.recorded.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Counts a later fragment for its datagram; returns the datagram's flow, if it is known.
    pub fn join(&self, key: &Key, span: Span, now: Ticks) -> FragmentLookup {
        let Some((slot, entry)) = self.find(key, now) else { return FragmentLookup::Unknown };
        // No other fragment may have bytes of the first, the transport header above all (RFC 1858,
        // RFC 3128).
        if span.offset < entry.first {
            return FragmentLookup::Overlap;
        }
        if !slot.count(&entry, span) {
            return FragmentLookup::Overlap;
        }
        entry.head.map_or(FragmentLookup::Denied, FragmentLookup::Flow)
    }

    /// Returns whether the first fragment of a datagram has come, and not all others.
    pub fn knows(&self, key: &Key, now: Ticks) -> bool {
        self.find(key, now).is_some()
    }

    /// Returns a local identification for a datagram that is in progress or just complete: no other
    /// in progress has it, as long as there are no more slots than numbers (65,536 in IPv4).
    pub fn number(&self, key: &Key) -> Option<u32> {
        let bucket = self.bucket_number(key)?;
        let mut slots = self.buckets.get(bucket)?.iter();
        let slot =
            slots.position(|slot| slot.read().is_some_and(|entry| entry.key == key.words()))?;
        u32::try_from(bucket * SLOTS + slot).ok()
    }

    /// Returns a number that changes whenever a first fragment is recorded; 0 before the first.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.recorded.load(Ordering::Acquire)
    }

    fn bucket_number(&self, key: &Key) -> Option<usize> {
        let hash = self.secret.hash_words::<40>(&key.words());
        let number = (u128::from(hash) * self.buckets.len() as u128) >> 64;
        usize::try_from(number).ok()
    }

    fn bucket(&self, key: &Key) -> Option<&[Slot; SLOTS]> {
        self.buckets.get(self.bucket_number(key)?)
    }

    fn find(&self, key: &Key, now: Ticks) -> Option<(&Slot, Entry)> {
        self.bucket(key)?.iter().find_map(|slot| {
            let entry = slot.read().filter(|entry| entry.key == key.words())?;
            self.lives(slot, &entry, now).then_some((slot, entry))
        })
    }

    fn lives(&self, slot: &Slot, entry: &Entry, now: Ticks) -> bool {
        now.since(entry.recorded).0 <= self.timeout.0 && !slot.is_complete(entry)
    }
}

/// Returns the tag that distinguishes the progress of a slot's datagram from its predecessor's.
const fn tag(version: u64) -> u64 {
    (version >> 1 & 0xffff) << TAG_SHIFT
}

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
impl Slot {
    /// Frees the slot if the earlier process ended in the middle of its change.
    fn repair(&self) {
        // Relaxed: no other thread has the table yet.
        if self.version.load(Ordering::Relaxed) % 2 == 1 {
            self.version.store(0, Ordering::Relaxed);
        }
    }

    /// Reads the contents, if there are any and no thread is writing them.
    fn read(&self) -> Option<Entry> {
        // Acquire pairs with the release store of `write`: a reader of a version sees its words.
        let version = self.version.load(Ordering::Acquire);
        if version == 0 || version % 2 == 1 {
            return None;
        }
        let [a, b, c, d, name, tail] = self.words.each_ref().map(|w| w.load(Ordering::Relaxed));
        // Pairs with the fence of `write`: a reader of a newer word sees another version now.
        fence(Ordering::Acquire);
        if self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        let protocol = match name >> 16 & 0xff {
            DENIED => None,
            number if number == Protocol::Tcp as u64 => Some(Protocol::Tcp),
            _ => Some(Protocol::Udp),
        };
        let ports = ((tail >> 32) as u32).to_be_bytes();
        Some(Entry {
            version,
            key: [a, b, c, d, name & !0xff_ffff],
            head: protocol.map(|protocol| FirstFragment { protocol, ports }),
            first: name as u16,
            recorded: Ticks(tail as u32),
        })
    }

    /// Writes a datagram into the slot, if its version is still `version`.
    fn write(&self, version: u64, key: &Key, head: Option<FirstFragment>, first: u16, now: Ticks) {
        // Another thread has the slot: a second claim would show readers half-written words.
        if version % 2 == 1 {
            return;
        }
        let claimed = version.wrapping_add(1);
        let claim =
            self.version.compare_exchange(version, claimed, Ordering::Acquire, Ordering::Relaxed);
        if claim.is_err() {
            return;
        }
        // Release: a reader of one of these words sees the claim, too, when it checks again.
        fence(Ordering::Release);
        let [a, b, c, d, name] = key.words();
        let (protocol, ports) =
            head.map_or((DENIED, [0; 4]), |head| (head.protocol as u64, head.ports));
        let name = name | protocol << 16 | u64::from(first);
        let tail = u64::from(u32::from_be_bytes(ports)) << 32 | u64::from(now.0);
        for (word, value) in self.words.iter().zip([a, b, c, d, name, tail]) {
            word.store(value, Ordering::Relaxed);
        }
        let next = version.wrapping_add(2).max(2);
        self.progress.store(tag(next) | u64::from(first), Ordering::Relaxed);
        self.version.store(next, Ordering::Release);
    }

    /// Counts the bytes of a later fragment; false if they are more than the datagram can have.
    fn count(&self, entry: &Entry, span: Span) -> bool {
        let end = u64::from(span.offset) + u64::from(span.len);
        let mut progress = self.progress.load(Ordering::Relaxed);
        for _ in 0..TRIES {
            if progress >> TAG_SHIFT << TAG_SHIFT != tag(entry.version) {
                return true;
            }
            let (known, seen) = (progress >> BYTES_BITS & BYTES, progress & BYTES);
            let total = if span.more { known } else { end };
            let seen = seen + u64::from(span.len);
            if known != 0 && known != total || total != 0 && (end > total || seen > total) {
                return false;
            }
            let new = tag(entry.version) | total << BYTES_BITS | seen & BYTES;
            let swap = self.progress.compare_exchange_weak(
                progress,
                new,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swap {
                Ok(_) => return true,
                Err(other) => progress = other,
            }
        }
        true
    }

    /// Returns whether all bytes of the datagram were seen.
    fn is_complete(&self, entry: &Entry) -> bool {
        let progress = self.progress.load(Ordering::Relaxed);
        let (total, seen) = (progress >> BYTES_BITS & BYTES, progress & BYTES);
        progress >> TAG_SHIFT << TAG_SHIFT == tag(entry.version) && total != 0 && seen == total
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop early")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::memory::Anonymous;
    use super::*;

    const NOW: Ticks = Ticks(u32::MAX - 10);
    const TIMEOUT: Ticks = Ticks(3000);

    fn table(datagrams: usize) -> FragmentTable {
        FragmentTable::open(&Anonymous, datagrams, TIMEOUT, &TableSecret::new(1)).unwrap()
    }

    fn key(identification: u32) -> Key {
        let source = Address::from_v4([198, 18, 0, 1]);
        Key { source, destination: Address::from_v6([7; 16]), identification, protocol: 17 }
    }

    fn head(port: u8) -> FirstFragment {
        FirstFragment { protocol: Protocol::Udp, ports: [1, 2, 3, port] }
    }

    fn span(offset: u16, len: u16, more: bool) -> Span {
        Span { offset, len, more }
    }

    #[test]
    fn later_fragments_find_the_flow_until_all_bytes_were_seen() {
        let table = table(64);
        assert_eq!(table.join(&key(1), span(8, 8, true), NOW), FragmentLookup::Unknown);
        assert_eq!(table.generation(), 0);
        assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
        assert_eq!(table.generation(), 1);
        assert!(table.knows(&key(1), NOW) && !table.knows(&key(2), NOW));
        assert_eq!(table.join(&key(1), span(1600, 10, false), NOW), FragmentLookup::Flow(head(4)));
        assert!(table.knows(&key(1), NOW));
        assert_eq!(table.join(&key(1), span(800, 800, true), NOW), FragmentLookup::Flow(head(4)));
        assert!(!table.knows(&key(1), NOW), "complete");
        assert_eq!(table.record(&key(1), head(5), 80, NOW), Ok(()), "the number is free again");
        assert_eq!(table.join(&key(1), span(80, 8, false), NOW), FragmentLookup::Flow(head(5)));
    }

    #[test]
    fn datagrams_that_live_have_numbers_of_their_own() {
        let table = table(4096);
        let mut numbers = std::collections::BTreeSet::new();
        for number in 0..200 {
            assert_eq!(table.number(&key(number)), None);
            assert_eq!(table.record(&key(number), head(4), 800, NOW), Ok(()));
            assert!(numbers.insert(table.number(&key(number)).unwrap()));
        }
        assert_eq!(table.join(&key(0), span(800, 8, false), NOW), FragmentLookup::Flow(head(4)));
        assert!(numbers.contains(&table.number(&key(0)).unwrap()), "also the last fragment has it");
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let table = table(64);
        assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
        let other = Address::from_v4([198, 18, 0, 2]);
        for other in [
            Key { source: other, ..key(1) },
            Key { destination: other, ..key(1) },
            Key { identification: 2, ..key(1) },
            Key { protocol: 6, ..key(1) },
        ] {
            assert!(!table.knows(&other, NOW), "{other:?}");
        }
    }

    #[test]
    fn overlapping_fragments_are_refused() {
        for (name, spans) in [
            ("the transport header", vec![span(8, 800, true)]),
            ("the first fragment's end", vec![span(792, 80, true)]),
            (
                "more bytes than there are",
                vec![span(800, 8, true), span(808, 8, false), span(800, 8, true)],
            ),
            ("behind the end", vec![span(808, 8, false), span(816, 8, true)]),
            ("another end", vec![span(808, 8, false), span(816, 8, false)]),
            ("an end before what was seen", vec![span(800, 80, true), span(800, 8, false)]),
        ] {
            let table = table(64);
            assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
            let (last, before) = spans.split_last().unwrap();
            for span in before {
                assert_eq!(
                    table.join(&key(1), *span, NOW),
                    FragmentLookup::Flow(head(4)),
                    "{name}"
                );
            }
            let joined = table.join(&key(1), *last, NOW);
            let complete = !table.knows(&key(1), NOW);
            assert!(joined == FragmentLookup::Overlap || complete, "{name}: {joined:?}");
        }
    }

    #[test]
    fn fragments_after_a_dropped_first_one_are_denied() {
        let table = table(64);
        assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
        table.deny(&key(1), 800, NOW);
        assert!(table.knows(&key(1), NOW), "waiting fragments are recorded");
        assert_eq!(table.join(&key(1), span(8, 800, true), NOW), FragmentLookup::Overlap);
        assert_eq!(table.join(&key(1), span(800, 800, true), NOW), FragmentLookup::Denied);
        assert_eq!(table.join(&key(1), span(1600, 8, false), NOW), FragmentLookup::Denied);
        assert_eq!(
            table.join(&key(1), span(1600, 8, false), NOW),
            FragmentLookup::Unknown,
            "complete"
        );
        table.deny(&key(2), 800, NOW);
        assert_eq!(table.join(&key(2), span(800, 8, true), NOW), FragmentLookup::Denied);
        assert_eq!(table.record(&key(2), head(9), 800, NOW), Ok(()), "the sender tries again");
        assert_eq!(table.join(&key(2), span(800, 8, true), NOW), FragmentLookup::Flow(head(9)));
    }

    #[test]
    fn a_second_first_fragment_restarts_the_datagram_unless_ports_differ() {
        let table = table(64);
        assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
        assert_eq!(table.record(&key(1), head(5), 800, NOW), Err(OtherPorts));
        assert_eq!(table.join(&key(1), span(800, 800, true), NOW), FragmentLookup::Flow(head(4)));
        assert_eq!(table.record(&key(1), head(4), 80, NOW), Ok(()));
        assert_eq!(table.join(&key(1), span(80, 8, false), NOW), FragmentLookup::Flow(head(4)));
        assert!(!table.knows(&key(1), NOW), "what came before counts no more");
    }

    #[test]
    fn datagrams_end_by_time_across_the_wrap_of_the_clock() {
        let table = table(64);
        assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
        let end = NOW.after(TIMEOUT);
        assert!(table.knows(&key(1), end) && !table.knows(&key(1), end.after(Ticks(1))));
        assert_eq!(table.record(&key(1), head(5), 800, end.after(Ticks(1))), Ok(()));
        assert!(!table.knows(&key(1), end.after(Ticks(300 * 24 * 3600 * 100))), "300 days later");
    }

    #[test]
    fn a_flood_pushes_out_the_oldest_and_the_youngest_stays() {
        let table = table(4);
        for number in 0..1000 {
            let now = NOW.after(Ticks(number));
            assert_eq!(table.record(&key(number), head(4), 800, now), Ok(()));
            assert!(table.knows(&key(number), now));
            assert_eq!(
                (0..=number).filter(|&n| table.knows(&key(n), now)).count(),
                4.min(number as usize + 1)
            );
        }
    }

    #[test]
    fn a_place_that_is_being_written_stays_its_writers() {
        let table = table(1);
        let bucket = table.bucket(&key(1)).unwrap();
        for slot in bucket {
            slot.version.store(3, Ordering::Relaxed);
        }
        assert_eq!(table.record(&key(1), head(4), 800, NOW), Ok(()));
        assert_eq!(bucket.each_ref().map(|slot| slot.version.load(Ordering::Relaxed)), [3; 4]);
        assert!(!table.knows(&key(1), NOW));
    }

    #[test]
    fn many_writers_leave_whole_entries() {
        let table = table(16);
        std::thread::scope(|scope| {
            for worker in 0..4_u32 {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..20_000_u32 {
                        let number = (round * 7 + worker) % 40;
                        // The port identifies the entry's key.
                        let port = u8::try_from(number).unwrap_or(0);
                        let _ = table.record(&key(number), head(port), 800, NOW);
                        match table.join(&key(number), span(800, 8, true), NOW) {
                            FragmentLookup::Flow(found) => assert_eq!(found, head(port)),
                            FragmentLookup::Unknown
                            | FragmentLookup::Overlap
                            | FragmentLookup::Denied => {}
                        }
                    }
                });
            }
        });
    }

    proptest! {
        /// Against a model without a bound.
        #[test]
        fn agrees_with_a_model(
            steps in prop::collection::vec((0_u32..4, 0_u16..6, 1_u16..3, any::<bool>(), any::<bool>()), 0..60),
        ) {
            #[derive(Default)]
            struct Model { seen: u32, total: u32 }
            let (table, mut model) = (table(4096), BTreeMap::<u32, Model>::new());
            for (number, at, len, more, first) in steps {
                let (offset, len) = (at * 8, len * 8);
                let end = u32::from(offset + len);
                if first {
                    prop_assert_eq!(table.record(&key(number), head(1), 8, NOW), Ok(()));
                    model.insert(number, Model { seen: 8, total: 0 });
                    continue;
                }
                let joined = table.join(&key(number), span(offset, len, more), NOW);
                let expected = match model.get_mut(&number) {
                    None => FragmentLookup::Unknown,
                    Some(_) if offset < 8 => FragmentLookup::Overlap,
                    Some(it) => {
                        let total = if more { it.total } else { end };
                        let seen = it.seen + u32::from(len);
                        let other_end = it.total != 0 && it.total != total;
                        if other_end || total != 0 && (end > total || seen > total) {
                            FragmentLookup::Overlap
                        } else {
                            *it = Model { seen, total };
                            FragmentLookup::Flow(head(1))
                        }
                    }
                };
                prop_assert_eq!(joined, expected);
                model.retain(|_, it| it.total == 0 || it.seen != it.total);
            }
        }
    }
}
