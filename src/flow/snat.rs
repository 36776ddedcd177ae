//! The SNAT table: which flow has which SNAT port (full NAT). Fixed memory, one cache line per
//! port.
//!
//! ```text
//! slot   isn:32 version:32                   the version is odd while the owner changes the slot
//!        client:128 vip:128
//!        client port:16 vip port:16 flags:8 protocol:8               0: free
//!        backend:16 generation:16 notified:32
//!        return hop:64                        next hop towards the client
//! ```
//!
//! The destination of a reply yields the number of its slot ([`snat_pool`](super::snat_pool)),
//! without a search. A slot is written by the worker that owns its port, and read by all,
//! sequence-checked like the entries of a flow table. Other threads may change `notified`, the
//! flags and the return hop.
//!
//! Each worker allocates its own ports, the least recently freed first ([`SnatAllocator`]): with
//! `n` free ports and `r` new flows per second a port rests for `n / r` seconds before a backend
//! sees it again. Memory: 64 bytes for each address and port, and 4 more in the queue of free
//! ports.

use std::collections::VecDeque;

use super::entry::{FlowState, ReturnHop};
use super::header::{Kind, TableError};
use super::memory::{Parts, TableMemory};
use super::snat_pool::owner;
pub use super::snat_pool::{MAX_SOURCES, SnatPool, SnatPort};
use crate::net::{
    Address, BackendId, BackendIndex, Family, FlowKey, ListenKey, NextHop, Protocol, TableSecret,
};
use crate::sync::{AtomicU64, Ordering, fence, spin_loop};
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::memory::{Arena, Line, Mapping, MappingError, Pages};

/// The layout of the table.
const KIND: Kind = Kind { name: *b"snat----", version: 1 };

/// Memory per SNAT port, in bytes.
pub const BYTES_PER_BINDING: usize = size_of::<Line>() + size_of::<SnatPort>();

const VERSION: u64 = 0xffff_ffff;
/// Flag: `isn` is valid.
const NUMBERED: u64 = 1 << 8;
/// Flag: [`SnatFlow::acknowledged`].
const ACKNOWLEDGED: u64 = 2 << 8;
/// Flag: [`SnatFlow::answered`].
const ANSWERED: u64 = 4 << 8;
/// Lowest bit of `notified`: the pin's owner was notified. The time has a resolution of two ticks.
const NOTIFIED: u64 = 1;

/// The flow that a SNAT port is assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnatFlow {
    /// The flow, from the client's side.
    pub flow: FlowKey,
    /// Its backend.
    pub backend: BackendId,
    /// Next hop towards its client.
    pub return_hop: ReturnHop,
    /// TCP: sequence number of the client's SYN, if it was seen.
    pub isn: Option<u32>,
    /// The backend has answered the client's SYN; recorded if a PROXY protocol header precedes the
    /// client's data.
    pub answered: bool,
    /// The backend has acknowledged the PROXY protocol header.
    pub acknowledged: bool,
}

impl SnatFlow {
    /// Returns the destination of the flow's packets, which is the source of its replies, for a
    /// backend at `address`; `port` is set if ports are rewritten.
    #[inline]
    pub fn service(&self, address: Address, port: Option<u16>) -> ListenKey {
        let FlowKey { vip_port, protocol, .. } = self.flow;
        ListenKey { address, port: port.unwrap_or(vip_port), protocol }
    }
}

/// A SNAT entry as it was read: port, flow, and flags.
#[derive(Debug, Clone, Copy)]
pub struct SnatEntry {
    /// The SNAT port.
    pub id: SnatPort,
    /// The flow that has the port.
    pub snat_flow: SnatFlow,
    ports: u64,
    names: u64,
}

impl SnatEntry {
    /// Returns whether the flow's pin was notified of a reply less than `span` ago, in the steady
    /// state of the flow.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub fn notified_within(&self, span: Ticks, now: Ticks) -> bool {
        self.names & NOTIFIED != 0 && now.since(Ticks(self.names as u32 & !1)).0 < span.0
    }
}

/// All SNAT entries: the half that every thread may read.
#[derive(Debug)]
pub struct SnatTable {
    sources: SnatPool,
    workers: u8,
    slots: Mapping<Line>,
}

impl SnatTable {
    /// Takes over the entries of these sources that an earlier process has left, or makes new ones,
    /// all free. Sources and workers must be those of the earlier process.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn open(
        memory: &dyn TableMemory,
        sources: SnatPool,
        workers: u8,
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let table = Parts { kind: KIND, name: "snat", entries: sources.len(), secret };
        let (slots, _) = table.open(memory, repair)?;
        Ok(Self { sources, workers: workers.max(1), slots })
    }

    /// Returns a table of the same sources in which only the ports `used` are in use, with memory
    /// for those only, in which an explanation is tried out. The worker's allocator has one port of
    /// each family that is free in `self`, or none if all are in use.
    ///
    /// Cost: one look at each used port of the worker until a free one is found.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn scratch(
        &self,
        used: impl IntoIterator<Item = SnatPort>,
        worker: u8,
    ) -> Result<(Self, SnatAllocator), MappingError> {
        let len = self.sources.len();
        let arena = Arena::new((len * size_of::<Line>()).max(1), Pages::Ordinary)?;
        let (sources, workers) = (self.sources.clone(), self.workers);
        let scratch = Self { sources, workers, slots: arena.part(0, len)? };
        for id in used {
            scratch.store(id, self.read(id).map(|snat_entry| snat_entry.snat_flow).as_ref());
        }
        let mine = |family| {
            let mut mine = self.sources.of_worker(worker, workers, family);
            mine.find(|&id| self.read(id).is_none()).into_iter().collect()
        };
        Ok((scratch, SnatAllocator { v4: mine(Family::V4), v6: mine(Family::V6), hand: 0 }))
    }

    /// See [`Mapping::let_go`](crate::xdp::memory::Mapping::let_go).
    pub(super) fn let_go(&self) {
        self.slots.let_go();
    }

    /// Frees the entries of a worker that `keep` does not select; before the worker runs.
    pub(super) fn retain(&self, worker: u8, keep: impl Fn(SnatPort) -> bool) {
        for family in Family::BOTH {
            let mine = self.sources.of_worker(worker, self.workers, family);
            for id in mine.filter(|&id| self.read(id).is_some() && !keep(id)) {
                self.store(id, None);
            }
        }
    }

    /// Writes the entry of a flow of an earlier process; before any worker runs.
    pub fn restore(&self, id: SnatPort, snat_flow: &SnatFlow) {
        self.store(id, Some(snat_flow));
    }

    /// The addresses and ports.
    #[inline]
    pub const fn sources(&self) -> &SnatPool {
        &self.sources
    }

    /// The worker that allocates a port, and has the pin of its flow.
    #[inline]
    pub fn owner(&self, id: SnatPort) -> u8 {
        owner(id.port(), self.workers)
    }

    /// Number of ports of a family that a worker has, free or not.
    pub fn share(&self, worker: u8, family: Family) -> usize {
        self.sources.share(worker, self.workers, family)
    }

    #[inline]
    fn slot(&self, id: SnatPort) -> Option<&Line> {
        self.slots.get(self.sources.place(id)?)
    }

    /// Prefetches the line of a SNAT entry.
    #[inline]
    pub fn prefetch(&self, id: SnatPort) {
        if let Some(slot) = self.slot(id) {
            cpu::prefetch(slot);
        }
    }

    /// Returns a consistent copy of an entry; `None` if it is free, or changes during every
    /// attempt.
    #[inline]
    pub fn read(&self, id: SnatPort) -> Option<SnatEntry> {
        let slot = self.slot(id)?;
        let [version, ..] = &slot.words;
        for _ in 0..8 {
            // Acquire pairs with the release store that ends a write: the words below are at least
            // as new as this version.
            let before = version.load(Ordering::Acquire);
            // Relaxed: ordered by the version.
            let words = slot.words.each_ref().map(|word| word.load(Ordering::Relaxed));
            // The loads above are done before the version is read again.
            fence(Ordering::Acquire);
            if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
                let [.., ports, names, _] = words;
                return decode(&words).map(|snat_flow| SnatEntry { id, snat_flow, ports, names });
            }
            spin_loop();
        }
        None
    }

    /// Records that the pin of a port's flow was notified of a reply, in its steady state. Any
    /// thread; does nothing if the entry has another backend or time since `snat_entry` was read.
    pub fn notify(&self, snat_entry: &SnatEntry, now: Ticks) {
        let [_, _, _, _, _, _, Some(names), _] = self.words(snat_entry.id) else { return };
        let new = snat_entry.names & !0xffff_ffff | u64::from(now.0) & !NOTIFIED | NOTIFIED;
        // A time publishes nothing. A lost race means that another thread has notified the pin.
        let _ = names.compare_exchange(snat_entry.names, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Records that the backend has answered the client's SYN. Any thread; does nothing if the
    /// entry has another flow's ports, or other flags, since `snat_entry` was read.
    pub fn mark_answered(&self, snat_entry: &SnatEntry) {
        self.mark(snat_entry, ANSWERED);
    }

    /// Records that the backend has acknowledged the PROXY protocol header. Any thread.
    pub fn acknowledge(&self, snat_entry: &SnatEntry) {
        self.mark(snat_entry, ACKNOWLEDGED);
    }

    fn mark(&self, snat_entry: &SnatEntry, mark: u64) {
        let [_, _, _, _, _, Some(ports), ..] = self.words(snat_entry.id) else { return };
        let new = snat_entry.ports | mark;
        // A lost race means that another thread set the mark: each mark follows the one before.
        let _ = ports.compare_exchange(snat_entry.ports, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Records the return hop. Any thread that has just read the entry.
    #[inline]
    pub fn set_return_hop(&self, id: SnatPort, to: ReturnHop) {
        let [.., Some(return_hop)] = self.words(id) else { return };
        // A return hop publishes nothing, and is complete in itself. If the port is reassigned at
        // this moment, the next flow's first packet corrects it.
        if return_hop.load(Ordering::Relaxed) != to.0 {
            return_hop.store(to.0, Ordering::Relaxed);
        }
    }

    /// Returns the next hop towards the client of a flow.
    #[inline]
    pub fn return_hop(&self, flow_state: &FlowState) -> NextHop {
        let snat_entry = flow_state.snat_port().and_then(|id| self.read(id));
        snat_entry.map_or_else(
            || flow_state.hop(),
            |snat_entry| snat_entry.snat_flow.return_hop.next_hop(),
        )
    }

    #[inline]
    fn words(&self, id: SnatPort) -> [Option<&AtomicU64>; 8] {
        self.slot(id).map_or([None; 8], |slot| slot.words.each_ref().map(Some))
    }

    /// Writes a slot so that a reader sees all of it or none; for its owner only.
    fn store(&self, id: SnatPort, snat_flow: Option<&SnatFlow>) {
        let Some(slot) = self.slot(id) else { return };
        let [version, words @ ..] = &slot.words;
        let old = version.load(Ordering::Relaxed);
        version.store(old | 1, Ordering::Relaxed);
        // The odd version is visible before any word that is written below: pairs with the acquire
        // fence of `read`.
        fence(Ordering::Release);
        let (isn, new) = snat_flow.map_or((0, [0; 7]), encode);
        for (word, value) in words.iter().zip(new) {
            word.store(value, Ordering::Relaxed);
        }
        let next = (old | 1).wrapping_add(1) & VERSION;
        version.store(u64::from(isn) << 32 | next, Ordering::Release);
    }
}

/// Frees the entry if the earlier process ended in the middle of its change.
fn repair(slot: &Line) {
    let [version, words @ ..] = &slot.words;
    // Relaxed: no other thread has the table yet.
    if version.load(Ordering::Relaxed) & 1 != 0 {
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        version.store(0, Ordering::Relaxed);
    }
}

fn encode(snat_flow: &SnatFlow) -> (u32, [u64; 7]) {
    let [c0, c1, v0, v1, ports] = snat_flow.flow.words();
    let numbered = if snat_flow.isn.is_some() { NUMBERED } else { 0 };
    let acknowledged = if snat_flow.acknowledged { ACKNOWLEDGED } else { 0 };
    let answered = if snat_flow.answered { ANSWERED } else { 0 };
    let names =
        u64::from(snat_flow.backend.index.0) << 48 | u64::from(snat_flow.backend.generation) << 32;
    let ports = ports | numbered | answered | acknowledged;
    (snat_flow.isn.unwrap_or_default(), [c0, c1, v0, v1, ports, names, snat_flow.return_hop.0])
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
fn decode(words: &[u64; 8]) -> Option<SnatFlow> {
    let [head, c0, c1, v0, v1, ports, names, return_hop] = *words;
    if ports == 0 {
        return None;
    }
    let flow = FlowKey {
        client: Address { high: c0, low: c1 },
        vip: Address { high: v0, low: v1 },
        client_port: (ports >> 48) as u16,
        vip_port: (ports >> 32) as u16,
        protocol: Protocol::from_number(ports as u8)?,
    };
    let backend =
        BackendId { index: BackendIndex((names >> 48) as u16), generation: (names >> 32) as u16 };
    let isn = (ports & NUMBERED != 0).then_some((head >> 32) as u32);
    let [answered, acknowledged] = [ANSWERED, ACKNOWLEDGED].map(|mark| ports & mark != 0);
    Some(SnatFlow { flow, backend, return_hop: ReturnHop(return_hop), isn, answered, acknowledged })
}

/// Returns a queue of ports that begins with the `turn`th one, counted in rounds.
fn turned(mut ports: VecDeque<SnatPort>, turn: u64) -> VecDeque<SnatPort> {
    let len = u64::try_from(ports.len()).unwrap_or(u64::MAX).max(1);
    // Less than its length.
    ports.rotate_left(usize::try_from(turn % len).unwrap_or_default());
    ports
}

/// The free SNAT ports of a worker. Methods take the table, which the worker shares.
#[derive(Debug)]
pub struct SnatAllocator {
    v4: VecDeque<SnatPort>,
    v6: VecDeque<SnatPort>,
    /// Position of [`SnatAllocator::next`] among the ports.
    hand: usize,
}

impl SnatAllocator {
    /// Takes all free ports of a worker. The secret determines which port is first, so that a
    /// process does not start with the ports that its predecessor started with: backends may
    /// remember those.
    ///
    /// Cost: one step for each port.
    pub fn new(snat_table: &SnatTable, worker: u8, secret: &TableSecret) -> Self {
        let mine = |family| {
            let all = snat_table.sources.of_worker(worker, snat_table.workers, family);
            let free = all.filter(|&id| snat_table.read(id).is_none()).collect();
            turned(free, secret.hash_words::<16>(&[worker.into(), family.is_v4().into()]))
        };
        Self { v4: mine(Family::V4), v6: mine(Family::V6), hand: 0 }
    }

    /// Takes the ports of a worker that are not among `used`, from the `turn`th on. Reads no entry.
    pub fn without(
        snat_table: &SnatTable,
        worker: u8,
        used: impl IntoIterator<Item = SnatPort>,
        turn: u64,
    ) -> Self {
        let sources = &snat_table.sources;
        let mut is_used = vec![false; sources.len()];
        for place in used.into_iter().filter_map(|id| sources.place(id)) {
            is_used.get_mut(place).into_iter().for_each(|used| *used = true);
        }
        let is_free = |id: &SnatPort| {
            sources.place(*id).and_then(|place| is_used.get(place)).is_some_and(|used| !used)
        };
        let mine = |family| {
            let mut free = VecDeque::with_capacity(snat_table.share(worker, family));
            free.extend(sources.of_worker(worker, snat_table.workers, family).filter(is_free));
            turned(free, turn)
        };
        Self { v4: mine(Family::V4), v6: mine(Family::V6), hand: 0 }
    }

    /// Number of free ports of a family.
    pub fn free(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.v4.len(),
            Family::V6 => self.v6.len(),
        }
    }

    /// Returns the next port of a worker, free or not, in a round without end; `None` at its end.
    pub fn next(&mut self, snat_table: &SnatTable, worker: u8, family: Family) -> Option<SnatPort> {
        let (sources, workers) = (&snat_table.sources, snat_table.workers);
        let id = sources.nth_of_worker(worker, workers, family, self.hand);
        self.hand = if id.is_some() { self.hand + 1 } else { 0 };
        id
    }

    /// Assigns the least recently freed port of a family; `None` if all are in use.
    pub fn bind(
        &mut self,
        snat_table: &SnatTable,
        family: Family,
        snat_flow: &SnatFlow,
    ) -> Option<SnatPort> {
        let queue = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let id = queue.pop_front()?;
        snat_table.store(id, Some(snat_flow));
        Some(id)
    }

    /// Reassigns a port that this worker allocated.
    pub fn rebind(&self, snat_table: &SnatTable, id: SnatPort, snat_flow: &SnatFlow) {
        snat_table.store(id, Some(snat_flow));
    }

    /// Frees a port that this worker allocated; returns its family, or `None` if it was
    /// free.
    pub fn release(&mut self, snat_table: &SnatTable, id: SnatPort) -> Option<Family> {
        snat_table.read(id)?;
        let (address, _) = snat_table.sources.source(id)?;
        snat_table.store(id, None);
        let family = address.family();
        // There is room for all: each of them was in the queue before.
        if family.is_v4() {
            self.v4.push_back(id)
        } else {
            self.v6.push_back(id)
        }
        Some(family)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use proptest::prelude::*;

    use super::super::memory::Anonymous;
    use super::*;
    use crate::net::NicIndex;

    fn snat_table(ports: u16, workers: u8) -> SnatTable {
        let addresses = ["198.18.9.1", "198.18.9.2", "2001:db8::50"];
        let addresses = addresses.map(|text| text.parse().unwrap());
        let sources = SnatPool::new(addresses, &(1024..=1023 + ports));
        SnatTable::open(&Anonymous, sources, workers, &TableSecret::new(1)).unwrap()
    }

    fn snat_flow(number: u16, v6: bool) -> SnatFlow {
        let address = |byte: u8| {
            if v6 { Address::from_v6([byte; 16]) } else { Address::from_v4([byte; 4]) }
        };
        let [high, low] = number.to_be_bytes();
        SnatFlow {
            flow: FlowKey {
                client: address(high ^ 0x55),
                vip: address(low),
                client_port: number,
                vip_port: !number,
                protocol: if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
            },
            backend: BackendId { index: BackendIndex(number), generation: !number },
            return_hop: ReturnHop::new(
                number.into(),
                NicIndex(high & 7),
                Some(u16::from(low).into()),
            )
            .unwrap(),
            isn: number.is_multiple_of(3).then_some(u32::from(number) << 16),
            answered: number.is_multiple_of(7),
            acknowledged: number.is_multiple_of(5),
        }
    }

    /// Ports that were in use before come back when they are released, behind all others.
    #[test]
    fn an_allocator_after_a_hand_over_has_the_ports_that_are_free() {
        let snat_table = snat_table(50, 2);
        let mut before = SnatAllocator::new(&snat_table, 0, &TableSecret::new(1));
        let flow = snat_flow(2, false);
        let share = before.free(Family::V4);
        let used: Vec<SnatPort> =
            (0..20).map(|_| before.bind(&snat_table, Family::V4, &flow).unwrap()).collect();
        for turn in [0, 7, 1 << 40] {
            let mut after = SnatAllocator::without(&snat_table, 0, used.iter().copied(), turn);
            assert_eq!(after.free(Family::V4), share - 20);
            let (first, last) = (*used.first().unwrap(), *used.get(1).unwrap());
            after.release(&snat_table, first).unwrap();
            after.release(&snat_table, last).unwrap();
            let given: Vec<SnatPort> =
                std::iter::from_fn(|| after.bind(&snat_table, Family::V4, &flow)).collect();
            assert_eq!(given.len(), share - 18);
            assert!(given.ends_with(&[first, last]));
            let distinct: std::collections::HashSet<_> = given.iter().copied().collect();
            assert_eq!(distinct.len(), given.len());
            assert!(used.iter().skip(2).all(|id| !distinct.contains(id)));
        }
    }

    proptest! {
        #[test]
        fn a_slot_says_what_was_written(number: u16, v6: bool) {
            let snat_table = snat_table(1, 1);
            let mut snat_allocator = SnatAllocator::new(&snat_table, 0, &TableSecret::new(1));
            let snat_flow = snat_flow(number, v6);
            let family = if v6 { Family::V6 } else { Family::V4 };
            let id = snat_allocator.bind(&snat_table, family, &snat_flow).unwrap();
            prop_assert_eq!(snat_table.read(id).unwrap().snat_flow, snat_flow);
            prop_assert_eq!(snat_allocator.release(&snat_table, id), Some(family));
            prop_assert!(snat_table.read(id).is_none());
        }

        /// Any order of allocations and releases, against a queue: no port is allocated twice, the
        /// least recently freed one comes first, and all can be allocated.
        #[test]
        fn leases_are_a_queue(steps in proptest::collection::vec((any::<bool>(), 0..8_usize), 0..200)) {
            let snat_table = snat_table(4, 1);
            let mut snat_allocator = SnatAllocator::new(&snat_table, 0, &TableSecret::new(1));
            let mut free: VecDeque<SnatPort> = snat_allocator.v4.clone();
            let mut taken: Vec<SnatPort> = Vec::new();
            for (take, which) in steps {
                if take {
                    let id = snat_allocator.bind(&snat_table, Family::V4, &snat_flow(1, false));
                    prop_assert_eq!(id, free.pop_front());
                    taken.extend(id);
                } else if which < taken.len() {
                    let id = taken.swap_remove(which);
                    prop_assert_eq!(snat_allocator.release(&snat_table, id), Some(Family::V4));
                    prop_assert_eq!(snat_allocator.release(&snat_table, id), None, "not twice");
                    free.push_back(id);
                }
                prop_assert_eq!(snat_allocator.free(Family::V4), free.len());
                prop_assert_eq!(free.len() + taken.len(), 8);
            }
        }
    }

    #[test]
    fn a_port_rests_until_all_others_have_been_used() {
        let snat_table = snat_table(100, 2);
        let mut snat_allocator = SnatAllocator::new(&snat_table, 1, &TableSecret::new(1));
        let all = snat_table.share(1, Family::V4);
        assert_eq!((all, snat_allocator.free(Family::V4)), (100, 100));
        let mut last_use = HashMap::new();
        for turn in 0..1000_usize {
            let id = snat_allocator.bind(&snat_table, Family::V4, &snat_flow(7, false)).unwrap();
            assert_eq!(snat_table.owner(id), 1);
            if let Some(before) = last_use.insert(id, turn) {
                assert_eq!(turn - before, all);
            }
            snat_allocator.release(&snat_table, id);
        }
    }

    #[test]
    fn another_process_begins_elsewhere() {
        let snat_table = snat_table(1000, 1);
        let first = |seed| {
            let mut snat_allocator = SnatAllocator::new(&snat_table, 0, &TableSecret::new(seed));
            let id = snat_allocator.bind(&snat_table, Family::V4, &snat_flow(1, false)).unwrap();
            snat_allocator.release(&snat_table, id);
            id
        };
        let different: std::collections::HashSet<SnatPort> = (0..10).map(first).collect();
        assert!(different.len() > 8, "{different:?}");
    }

    #[test]
    fn an_explanation_changes_no_entry() {
        let snat_table = snat_table(4, 1);
        let mut snat_allocator = SnatAllocator::new(&snat_table, 0, &TableSecret::new(1));
        let used = snat_allocator.bind(&snat_table, Family::V4, &snat_flow(1, false)).unwrap();
        let (scratch, mut tried) = snat_table.scratch([used], 0).unwrap();
        assert_eq!(scratch.read(used).unwrap().snat_flow, snat_flow(1, false));
        let id = tried.bind(&scratch, Family::V4, &snat_flow(2, false)).unwrap();
        assert_ne!(id, used);
        scratch.set_return_hop(used, ReturnHop(99));
        assert!(
            snat_table.read(id).is_none()
                && tried.bind(&scratch, Family::V4, &snat_flow(3, false)).is_none()
        );
        assert_eq!(snat_table.read(used).unwrap().snat_flow, snat_flow(1, false));
    }

    #[test]
    fn a_notification_counts_for_a_while_and_only_for_its_flow() {
        let snat_table = snat_table(4, 1);
        let mut snat_allocator = SnatAllocator::new(&snat_table, 0, &TableSecret::new(1));
        let id = snat_allocator.bind(&snat_table, Family::V4, &snat_flow(1, false)).unwrap();
        let before = snat_table.read(id).unwrap();
        // Across the wrap of the clock.
        let (now, span) = (Ticks(u32::MAX - 1), Ticks(50));
        assert!(!before.notified_within(span, now));
        snat_table.notify(&before, now);
        let notified = snat_table.read(id).unwrap();
        assert_eq!(notified.snat_flow, before.snat_flow);
        assert!(notified.notified_within(span, now) && notified.notified_within(span, Ticks(40)));
        assert!(!notified.notified_within(span, Ticks(60)));
        snat_allocator.rebind(&snat_table, id, &snat_flow(2, false));
        snat_table.notify(&notified, now);
        assert!(!snat_table.read(id).unwrap().notified_within(span, now));
        snat_table.set_return_hop(id, ReturnHop(99));
        assert_eq!(snat_table.read(id).unwrap().snat_flow.return_hop, ReturnHop(99));
    }

    /// Readers see whole flows only, and never a flow of another worker's port.
    #[test]
    fn readers_see_all_or_nothing_while_owners_write() {
        let snat_table = snat_table(2, 2);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let owners: Vec<_> = (0..2_u16)
                .map(|worker| {
                    let snat_table = &snat_table;
                    scope.spawn(move || {
                        let me = u8::try_from(worker).unwrap();
                        let mut snat_allocator =
                            SnatAllocator::new(snat_table, me, &TableSecret::new(1));
                        for number in 0..20_000_u16 {
                            let own = snat_flow(number / 2 * 2 + worker, false);
                            let id = snat_allocator.bind(snat_table, Family::V4, &own).unwrap();
                            snat_allocator.release(snat_table, id).unwrap();
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                let ids: Vec<SnatPort> = (0..2)
                    .flat_map(|worker| snat_table.sources.of_worker(worker, 2, Family::V4))
                    .collect();
                while !stop.load(Ordering::Relaxed) {
                    for &id in &ids {
                        let Some(snat_entry) = snat_table.read(id) else { continue };
                        let number = snat_entry.snat_flow.flow.client_port;
                        assert_eq!(snat_entry.snat_flow, snat_flow(number, false));
                        assert_eq!(u16::from(snat_table.owner(id)), number % 2);
                    }
                }
            });
            for owner in owners {
                owner.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
