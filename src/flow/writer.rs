//! The writing half of a flow table: insertion, removal, changes, and the sweep.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::bucket::{self, PLACES, tag_of};
use super::entry::{self, Entry, Pin, State};
use super::table::{FlowTable, HashedKey, Slot, decode, load, pin_of, word};
use crate::forwarding::NextHop;
use crate::units::Ticks;
use crate::xdp::memory::Line;

/// Flows that may have to move, one after the other, before a new one has a place. At the load
/// that tables are made for this is enough
/// (test `filling_emptying_and_filling_again_reaches_the_full_capacity`).
const MOVES: u32 = 2;

/// The writing half of a flow table. One per table.
#[derive(Debug)]
pub struct FlowWriter {
    table: Arc<FlowTable>,
    /// First of the entries that were freed; they are chained through their `LINK` word.
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

    /// What an entry that was found says. Cheaper than [`FlowTable::read`]: the writer needs no
    /// sequence check.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<Pin> {
        Some(pin_of(&load(self.table.entries.get(slot.0 as usize)?)))
    }

    /// Adds an entry whose key is not in the table yet (the caller has looked).
    ///
    /// # Errors
    /// [`Full`] when no entry is free, or the flow's two buckets and all that could make room in
    /// them are full. Nothing has changed then.
    pub fn insert(&mut self, key: &HashedKey, pin: &Pin) -> Result<Slot, Full> {
        let slot = self.free_slot().ok_or(Full)?;
        let tag = tag_of(key.hash);
        let first = self.table.first_bucket(key.hash);
        let other = self.table.other_bucket(first, tag);
        let (bucket, place) = self
            .free_place(first)
            .or_else(|| self.free_place(other))
            .or_else(|| (0..=MOVES).find_map(|depth| self.make_place(first, depth)))
            .ok_or(Full)?;
        // The link to the next free entry lies where the key will be.
        let next = self.link(slot);
        self.update(slot, key, pin);
        bucket::set_place(bucket, place, tag, slot);
        self.take_slot(slot, next);
        self.len += 1;
        Ok(slot)
    }

    /// Overwrites what an entry says. Other threads' changes since it was read are lost: for
    /// aliases, which they do not change.
    pub fn update(&self, slot: Slot, key: &HashedKey, pin: &Pin) {
        let [c0, c1, v0, v1, tail] = key.words;
        self.store(slot, [pin.hop, c0, c1, v0, v1, tail | pin.tail, pin.place, pin.times]);
    }

    /// Notes that a packet of the entry came at `now`.
    #[inline]
    pub fn seen(&self, slot: Slot, pin: &Pin, now: Ticks) {
        if pin.last_seen() != now
            && let Some(times) = self.table.word(slot, word::TIMES)
        {
            // Relaxed: a time publishes nothing.
            times.store(pin.with_last_seen(now).times, Ordering::Relaxed);
        }
    }

    /// Changes the entry's state from `old` to `new`. Other bits, that other threads set at the
    /// same time, are not lost.
    pub fn set_state(&self, slot: Slot, old: State, new: State) {
        let (set, clear) = (new.without(old), old.without(new));
        if let Some(tail) = self.table.word(slot, word::TAIL) {
            // Relaxed: state bits publish nothing.
            tail.fetch_or(u64::from(set.0) << entry::STATE_SHIFT, Ordering::Relaxed);
            tail.fetch_and(!(u64::from(clear.0) << entry::STATE_SHIFT), Ordering::Relaxed);
        }
    }

    /// Changes where the client's packets come from.
    pub fn set_hop(&self, slot: Slot, hop: &NextHop) {
        if let Some(line) = self.table.entries.get(slot.0 as usize) {
            Self::write(line, |[word, ..]| {
                word.store(entry::encode_hop(hop), Ordering::Relaxed);
                None
            });
        }
    }

    /// Removes an entry.
    pub fn remove(&mut self, slot: Slot) {
        let words = self.table.entries.get(slot.0 as usize).map(load);
        let Some(entry) = words.and_then(|words| decode(&words)) else { return };
        let key = self.table.secret().hash(entry.key);
        let tag = tag_of(key.hash);
        let first = self.table.first_bucket(key.hash);
        for bucket in [first, self.table.other_bucket(first, tag)] {
            if let Some(line) = self.table.buckets.get(bucket)
                && let Some((place, _)) = bucket::find(line, tag, |found| found == slot)
            {
                bucket::free(line, place);
                break;
            }
        }
        self.clear(slot);
        self.len -= 1;
    }

    /// Shows the next `count` entries to `keep`, and removes those that it does not want, at most
    /// `removals` of them; returns how many it has shown.
    ///
    /// A clock hand: it goes around the table without end. Cost: one line per entry, read in order.
    pub fn sweep(
        &mut self,
        count: u32,
        removals: u32,
        mut keep: impl FnMut(&Entry) -> bool,
    ) -> u32 {
        let mut removed = 0;
        for shown in 0..count {
            if removed == removals {
                return shown;
            }
            // Entries beyond `unused` never held a flow.
            if self.hand >= self.unused {
                self.hand = 0;
            }
            let slot = Slot(self.hand);
            self.hand += 1;
            let words = self.table.entries.get(slot.0 as usize).map(load);
            if let Some(entry) = words.and_then(|words| decode(&words))
                && !keep(&entry)
            {
                self.remove(slot);
                removed += 1;
            }
        }
        count
    }

    fn free_slot(&self) -> Option<Slot> {
        self.free.or_else(|| (self.unused < self.table.capacity()).then_some(Slot(self.unused)))
    }

    /// The free entry after `slot`, if `slot` was freed.
    fn link(&self, slot: Slot) -> Option<Slot> {
        let link = self.table.word(slot, word::LINK)?.load(Ordering::Relaxed);
        u32::try_from(link).ok().and_then(|link| link.checked_sub(1)).map(Slot)
    }

    /// Takes `slot`, which [`FlowWriter::free_slot`] has given, out of the free ones.
    fn take_slot(&mut self, slot: Slot, next: Option<Slot>) {
        if self.free == Some(slot) {
            self.free = next;
        } else {
            self.unused += 1;
        }
    }

    fn free_place(&self, bucket: usize) -> Option<(&Line, u32)> {
        let line = self.table.buckets.get(bucket)?;
        bucket::free_place(line).map(|place| (line, place))
    }

    /// Frees a place in a full bucket: moves one of its flows to that flow's other bucket, where
    /// up to `depth` more flows may have to make room in turn (cuckoo hashing).
    #[cold]
    fn make_place(&self, bucket: usize, depth: u32) -> Option<(&Line, u32)> {
        let line = self.table.buckets.get(bucket)?;
        for place in 0..PLACES {
            let (tag, slot) = bucket::content(line, place);
            let other = self.table.other_bucket(bucket, tag);
            let target = self
                .free_place(other)
                .or_else(|| depth.checked_sub(1).and_then(|depth| self.make_place(other, depth)));
            let Some((target, free)) = target else { continue };
            // Making room may have come around to this very bucket.
            if other == bucket || bucket::content(line, place) != (tag, slot) {
                return self.free_place(bucket);
            }
            // In the new place first: a reader may see it twice, and misses it only if it moves against
            // the reader's own way (see `FlowTable::lookup`).
            bucket::set_place(target, free, tag, slot);
            bucket::free(line, place);
            return Some((line, place));
        }
        None
    }

    /// Frees an entry: no key, and a link to the next free one.
    fn clear(&mut self, slot: Slot) {
        let next = self.free.map_or(0, |slot| u64::from(slot.0) + 1);
        self.store(slot, [0, next, 0, 0, 0, 0, 0, 0]);
        self.free = Some(slot);
    }

    /// Writes all of an entry, with a new stamp, so that a change in another thread's hands misses
    /// the new contents.
    fn store(&self, slot: Slot, words: [u64; 8]) {
        let Some(line) = self.table.entries.get(slot.0 as usize) else { return };
        let [hop, c0, c1, v0, v1, tail, place, times] = words;
        Self::write(line, |[w_hop, w_c0, w_c1, w_v0, w_v1, w_tail, w_place, w_times]| {
            let stamp = w_place.load(Ordering::Relaxed) << (entry::STAMP_SHIFT - 1);
            let tail = tail & !entry::STAMP | stamp & entry::STAMP;
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
            Some(place & !entry::VERSION)
        });
    }

    /// Lets `change` write words of an entry so that a reader sees all of it or none of it. What it
    /// returns becomes the `place` word.
    fn write(line: &Line, change: impl FnOnce(&[std::sync::atomic::AtomicU64; 8]) -> Option<u64>) {
        let [.., w_place, _] = &line.words;
        let old = w_place.load(Ordering::Relaxed);
        w_place.store(old | 1, Ordering::Relaxed);
        // The odd version is visible before any word that `change` writes: pairs with the acquire
        // fence of `FlowTable::read`.
        fence(Ordering::Release);
        let place = change(&line.words).unwrap_or(old & !entry::VERSION);
        // Release: those words are visible before the even version.
        let version = ((old & entry::VERSION) + 2) & (entry::VERSION - 1);
        w_place.store(place | version, Ordering::Release);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::AtomicBool;

    use hashbrown::HashMap;
    use proptest::prelude::*;

    use super::super::table::TableSecret;
    use super::super::{Address, FlowKey, Protocol};
    use super::*;
    use crate::forwarding::{BackendId, BackendIndex, PortIndex, VipId};

    fn key(number: u32) -> FlowKey {
        FlowKey {
            client: Address::from_v4(number.to_be_bytes()),
            vip: Address::from_v4([192, 0, 2, 10]),
            client_port: 1024,
            vip_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn pin(backend: u16) -> Pin {
        let hop = NextHop { port: PortIndex(2), mac: [2, 0, 0, 0, 0, 9], vlan: Some(100) };
        let id = BackendId { index: BackendIndex(backend), generation: backend };
        let pin = Pin::new(VipId(3), id, State::ESTABLISHED, 1, &hop, Ticks(5));
        pin.with_last_seen(Ticks(u32::from(backend)))
    }

    fn table(capacity: u32) -> FlowWriter {
        let table = FlowTable::new(capacity, TableSecret::new(1)).unwrap();
        FlowWriter::new(Arc::new(table)).unwrap()
    }

    impl FlowWriter {
        fn add(&mut self, number: u32, backend: u16) -> Result<Slot, Full> {
            let key = self.hashed(number);
            self.insert(&key, &pin(backend))
        }

        fn hashed(&self, number: u32) -> HashedKey {
            self.table.secret().hash(key(number))
        }

        fn found(&self, number: u32) -> Option<Pin> {
            self.table.lookup(&self.hashed(number)).map(|(_, pin)| pin)
        }
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let mut writer = table(8);
        let mut wanted = key(7);
        wanted.client = Address { high: u64::MAX, low: 1 };
        wanted.protocol = Protocol::Udp;
        let hashed = writer.table.secret().hash(wanted);
        let slot = writer.insert(&hashed, &pin(9)).unwrap();
        assert_eq!(writer.get(slot), Some(pin(9)));
        assert_eq!(writer.table.lookup(&hashed), Some((slot, pin(9))));
        assert_eq!(writer.table.pin_at(slot.0), Some(Entry { key: wanted, pin: pin(9) }));
        assert_eq!(hashed.key(), wanted);
        for hint in [None, Some(slot), Some(Slot(0)), Some(Slot(u32::MAX))] {
            assert_eq!(writer.table.find_at(&hashed, hint), Some(slot));
        }
        assert_eq!(writer.table.prefetch_entry(&hashed), Some(slot));
    }

    #[test]
    fn a_full_table_refuses_and_keeps_what_it_has() {
        let mut writer = table(1000);
        let held = (0..1_000_000).take_while(|&n| writer.add(n, 1).is_ok()).count();
        assert_eq!(held, 1000, "every entry can be used at the table's load");
        assert_eq!(writer.add(2_000_000, 1), Err(Full));
        assert!((0..1000).all(|n| writer.found(n).is_some()));
        writer.sweep(1000, 1000, |entry| entry.key != key(500));
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
            assert_eq!(writer.sweep(100_000, 100_000, |_| false), 100_000);
            assert!(writer.is_empty());
        }
    }

    #[test]
    fn state_and_times_change_in_place() {
        let mut writer = table(8);
        let slot = writer.add(1, 1).unwrap();
        let seen = writer.get(slot).unwrap();
        writer.seen(slot, &seen, Ticks(77));
        assert_eq!(writer.get(slot).unwrap().last_seen(), Ticks(77));
        writer.set_state(slot, State::ESTABLISHED, State::FIN_CLIENT);
        assert_eq!(writer.get(slot).unwrap().state(), State::FIN_CLIENT);
        let table = Arc::clone(&writer.table);
        let read = table.read(slot).unwrap().pin;
        table.change_state(slot, &writer.hashed(1), &read, State::FIN_BACKEND, State(0));
        table.touch(slot, &read, Ticks(99));
        let now = writer.get(slot).unwrap();
        assert!(now.state().has(State::FIN_CLIENT.with(State::FIN_BACKEND)));
        assert_eq!(now.last_seen(), Ticks(99));
        let hop = NextHop { port: PortIndex(1), mac: [4; 6], vlan: None };
        writer.set_hop(slot, &hop);
        let moved = writer.get(slot).unwrap();
        assert_eq!((moved.hop(), moved.state()), (hop, now.state()));
        table.change_state(slot, &writer.hashed(1), &moved, State::RST, State::FIN_CLIENT);
        let reset = State::RST.with(State::FIN_BACKEND);
        assert_eq!(writer.get(slot).unwrap().state(), reset, "the entry is the same");
        let moved = writer.get(slot).unwrap();
        let back = NextHop { mac: [6; 6], ..hop };
        table.change_hop(slot, &moved, &back);
        assert_eq!(writer.get(slot).unwrap().hop(), back);
        table.change_hop(slot, &moved, &hop);
        assert_eq!(writer.get(slot).unwrap().hop(), back, "that was outdated");
    }

    #[test]
    fn a_late_touch_does_not_reach_the_next_flow_of_the_entry() {
        let mut writer = table(8);
        let slot = writer.add(1, 1).unwrap();
        let old = writer.table.read(slot).unwrap().pin;
        writer.remove(slot);
        assert_eq!(writer.add(2, 2), Ok(slot), "the entry is used again");
        let fresh = writer.get(slot).unwrap();
        writer.table.touch(slot, &old, Ticks(99));
        writer.table.change_state(slot, &writer.hashed(2), &old, State::RST, State(0));
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
                        let slot = writer.table.find(&writer.hashed(n));
                        prop_assert_eq!(slot.is_some(), model.remove(&n).is_some());
                        if let Some(slot) = slot { writer.remove(slot); }
                    }
                    Step::Update(n, b) => {
                        let slot = writer.table.find(&writer.hashed(n));
                        if let (Some(slot), Some(value)) = (slot, model.get_mut(&n)) {
                            let key = writer.hashed(n);
                            writer.update(slot, &key, &pin(b));
                            *value = b;
                        }
                    }
                    Step::Sweep(backend) => {
                        writer.sweep(256, 256, |entry| entry.pin.backend().index.0 != backend);
                        model.retain(|_, value| *value != backend);
                    }
                }
                prop_assert_eq!(writer.len() as usize, model.len());
            }
            for n in 0..400 {
                prop_assert_eq!(writer.found(n).map(|pin| pin.backend().index.0), model.get(&n).copied());
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
                    if let Some(Entry { pin, .. }) = table.read(slot) {
                        let BackendId { index, generation } = pin.backend();
                        assert_eq!(index.0, generation);
                        assert_eq!(pin.last_seen(), Ticks(u32::from(generation)));
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
