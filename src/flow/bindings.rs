//! Bindings: which full-NAT flow has which source address and port. Fixed memory, one line each.
//!
//! ```text
//! slot   isn:32 version:32                   the version is odd while the owner changes the slot
//!        client:128 vip:128
//!        client port:16 vip port:16 flags:8 protocol:8               0: free
//!        backend:16 generation:16 told:32
//!        way back                             where the client is
//! ```
//!
//! The destination of a reply is the number of its slot ([`sources`](super::sources)): nothing is
//! searched. A slot is written by the worker that owns its port, and read by all, sequence-checked
//! like entries of a flow table; `told`, flags and the way back other threads may change.
//!
//! Each worker hands out its own, the one that was free for the longest time first ([`Leases`]): with
//! `n` free ones and `r` new flows a second a port rests for `n / r` seconds before a backend sees it
//! again. Memory: 64 bytes for each address and port, and 4 more for its place among the free ones.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::entry::{Track, WayBack};
use super::sources::owner;
pub use super::sources::{BindingId, MAX_SOURCES, Sources};
use crate::net::{
    Address, BackendId, BackendIndex, FlowKey, ListenKey, NextHop, Protocol, TableSecret,
};
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::memory::{Arena, Line, Mapping, MappingError, Pages};

/// Memory of each binding, in bytes.
pub const BYTES_PER_BINDING: usize = size_of::<Line>() + size_of::<BindingId>();

const VERSION: u64 = 0xffff_ffff;
/// In the word of the ports: `isn` says something.
const NUMBERED: u64 = 1 << 8;
/// In the word of the ports: [`Bound::acknowledged`].
const ACKNOWLEDGED: u64 = 2 << 8;
/// In the word of the ports: [`Bound::answered`].
const ANSWERED: u64 = 4 << 8;
/// In `told`: it was told. The time is kept to two ticks.
const TOLD: u64 = 1;

/// Whose a binding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The flow, from the client's side.
    pub flow: FlowKey,
    /// Its backend.
    pub backend: BackendId,
    /// Where its client is.
    pub way_back: WayBack,
    /// TCP: the sequence number of the client's SYN, if that was seen.
    pub isn: Option<u32>,
    /// The backend has answered the client's SYN, where something is put in front of the client's data.
    pub answered: bool,
    /// The backend has acknowledged what was put in front of the client's data.
    pub acknowledged: bool,
}

impl Bound {
    /// Where the flow's packets are sent, and so where replies come from, if its backend has this address,
    /// and this port where ports are rewritten.
    #[inline]
    pub fn service(&self, address: Address, port: Option<u16>) -> ListenKey {
        let FlowKey { vip_port, protocol, .. } = self.flow;
        ListenKey { address, port: port.unwrap_or(vip_port), protocol }
    }
}

/// A binding as it was read: whose it is, and what else its slot says.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// Which it is.
    pub id: BindingId,
    /// Whose it is.
    pub bound: Bound,
    ports: u64,
    names: u64,
}

impl Lease {
    /// Whether the flow's pin was told of a reply less than `span` ago, when the flow was in its steady
    /// state.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub fn told_within(&self, span: Ticks, now: Ticks) -> bool {
        self.names & TOLD != 0 && now.since(Ticks(self.names as u32 & !1)).0 < span.0
    }
}

/// All bindings: the half that every thread may read.
#[derive(Debug)]
pub struct Bindings {
    sources: Sources,
    workers: u8,
    slots: Mapping<Line>,
}

impl Bindings {
    /// Of these sources, all free.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn new(sources: Sources, workers: u8) -> Result<Self, MappingError> {
        let slots = Mapping::zeroed(sources.len())?;
        Ok(Self { sources, workers: workers.max(1), slots })
    }

    /// The same sources with nothing but these bindings in use, and memory for those only: to try
    /// something in. The worker's leases are of one binding of each family, which is free here; there is
    /// none if all are in use.
    ///
    /// Cost: one look at each binding of the worker that is in use before a free one is found.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn scratch(
        &self,
        used: impl IntoIterator<Item = BindingId>,
        worker: u8,
    ) -> Result<(Self, Leases), MappingError> {
        let len = self.sources.len();
        let arena = Arena::new((len * size_of::<Line>()).max(1), Pages::Ordinary)?;
        let (sources, workers) = (self.sources.clone(), self.workers);
        let scratch = Self { sources, workers, slots: arena.part(0, len)? };
        for id in used {
            scratch.store(id, self.read(id).map(|lease| lease.bound).as_ref());
        }
        let mine = |v4| {
            let mut mine = self.sources.of_worker(worker, workers, v4);
            mine.find(|&id| self.read(id).is_none()).into_iter().collect()
        };
        Ok((scratch, Leases { v4: mine(true), v6: mine(false) }))
    }

    /// The addresses and ports.
    #[inline]
    pub const fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The worker that hands a binding out, and has the pin of its flow.
    #[inline]
    pub fn owner(&self, id: BindingId) -> u8 {
        owner(id.port(), self.workers)
    }

    /// How many bindings of a family a worker has, free or not.
    pub fn share(&self, worker: u8, v4: bool) -> usize {
        self.sources.share(worker, self.workers, v4)
    }

    #[inline]
    fn slot(&self, id: BindingId) -> Option<&Line> {
        self.slots.get(self.sources.place(id)?)
    }

    /// Asks for the line of a binding.
    #[inline]
    pub fn prefetch(&self, id: BindingId) {
        if let Some(slot) = self.slot(id) {
            cpu::prefetch(slot);
        }
    }

    /// Whose a binding is; `None` if it is free, or changes all the time.
    #[inline]
    pub fn read(&self, id: BindingId) -> Option<Lease> {
        let slot = self.slot(id)?;
        let [version, ..] = &slot.words;
        for _ in 0..8 {
            // Acquire pairs with the release store that ends a write: the words below are at least
            // as new as this version.
            let before = version.load(Ordering::Acquire);
            // Relaxed: ordered by the version.
            let words = slot.words.each_ref().map(|word| word.load(Ordering::Relaxed));
            // The loads above are done before the version is looked at again.
            fence(Ordering::Acquire);
            if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
                let [.., ports, names, _] = words;
                return decode(&words).map(|bound| Lease { id, bound, ports, names });
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Notes that the pin of a binding's flow was told of a reply, in its steady state. Any thread; does
    /// nothing if the binding has changed hands since `lease` was read.
    pub fn tell(&self, lease: &Lease, now: Ticks) {
        let [_, _, _, _, _, _, Some(names), _] = self.words(lease.id) else { return };
        let new = lease.names & !0xffff_ffff | u64::from(now.0) & !TOLD | TOLD;
        // A time publishes nothing. A lost race means that somebody else told it.
        let _ = names.compare_exchange(lease.names, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that the backend has answered the client's SYN. Any thread; does nothing if the binding has
    /// another flow's ports since `lease` was read.
    pub fn answer(&self, lease: &Lease) {
        self.mark(lease, ANSWERED);
    }

    /// The same of what was put in front of the client's data: the backend has acknowledged it.
    pub fn acknowledge(&self, lease: &Lease) {
        self.mark(lease, ACKNOWLEDGED);
    }

    fn mark(&self, lease: &Lease, mark: u64) {
        let [_, _, _, _, _, Some(ports), ..] = self.words(lease.id) else { return };
        let new = lease.ports | mark;
        // A lost race means that somebody else noted it: each mark is wanted after the one before.
        let _ = ports.compare_exchange(lease.ports, new, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes where the client's packets come from. Any thread that has just read whose binding it is.
    #[inline]
    pub fn set_way_back(&self, id: BindingId, to: WayBack) {
        let [.., Some(way_back)] = self.words(id) else { return };
        // A way back publishes nothing, and stands for itself. If the binding changes hands just now,
        // its next owner's first packet sets it right.
        if way_back.load(Ordering::Relaxed) != to.0 {
            way_back.store(to.0, Ordering::Relaxed);
        }
    }

    /// Where the client of a flow is.
    #[inline]
    pub fn way_back(&self, track: &Track) -> NextHop {
        let lease = track.binding().and_then(|id| self.read(id));
        lease.map_or_else(|| track.hop(), |lease| lease.bound.way_back.next_hop())
    }

    #[inline]
    fn words(&self, id: BindingId) -> [Option<&AtomicU64>; 8] {
        self.slot(id).map_or([None; 8], |slot| slot.words.each_ref().map(Some))
    }

    /// Writes a slot so that a reader sees all of it or none; its owner only.
    fn store(&self, id: BindingId, bound: Option<&Bound>) {
        let Some(slot) = self.slot(id) else { return };
        let [version, words @ ..] = &slot.words;
        let old = version.load(Ordering::Relaxed);
        version.store(old | 1, Ordering::Relaxed);
        // The odd version is visible before any word that is written below: pairs with the acquire
        // fence of `read`.
        fence(Ordering::Release);
        let (isn, new) = bound.map_or((0, [0; 7]), encode);
        for (word, value) in words.iter().zip(new) {
            word.store(value, Ordering::Relaxed);
        }
        let next = (old | 1).wrapping_add(1) & VERSION;
        version.store(u64::from(isn) << 32 | next, Ordering::Release);
    }
}

fn encode(bound: &Bound) -> (u32, [u64; 7]) {
    let [c0, c1, v0, v1, ports] = bound.flow.words();
    let numbered = if bound.isn.is_some() { NUMBERED } else { 0 };
    let acknowledged = if bound.acknowledged { ACKNOWLEDGED } else { 0 };
    let answered = if bound.answered { ANSWERED } else { 0 };
    let names = u64::from(bound.backend.index.0) << 48 | u64::from(bound.backend.generation) << 32;
    let ports = ports | numbered | answered | acknowledged;
    (bound.isn.unwrap_or_default(), [c0, c1, v0, v1, ports, names, bound.way_back.0])
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
fn decode(words: &[u64; 8]) -> Option<Bound> {
    let [head, c0, c1, v0, v1, ports, names, way_back] = *words;
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
    Some(Bound { flow, backend, way_back: WayBack(way_back), isn, answered, acknowledged })
}

/// A worker's right to hand out its bindings. Methods take the table, which the worker shares.
#[derive(Debug)]
pub struct Leases {
    v4: VecDeque<BindingId>,
    v6: VecDeque<BindingId>,
}

impl Leases {
    /// Of a worker's bindings, which must all be free. The secret says which is the first, so that a
    /// process does not begin with the ports that the one before it began with: backends may
    /// remember those.
    ///
    /// Cost: one step for each.
    pub fn new(bindings: &Bindings, worker: u8, secret: &TableSecret) -> Self {
        let mine = |v4| {
            let all = bindings.sources.of_worker(worker, bindings.workers, v4);
            let mut all: VecDeque<BindingId> = all.collect();
            let turn = secret.hash_words::<16>(&[worker.into(), v4.into()]);
            let len = u64::try_from(all.len()).unwrap_or(u64::MAX).max(1);
            // Less than its length.
            all.rotate_left(usize::try_from(turn % len).unwrap_or_default());
            all
        };
        Self { v4: mine(true), v6: mine(false) }
    }

    /// Free ones, of one family.
    pub fn free(&self, v4: bool) -> usize {
        if v4 { self.v4.len() } else { self.v6.len() }
    }

    /// Binds the source that was free for the longest time, of one family; `None` if all are in use.
    pub fn bind(&mut self, bindings: &Bindings, v4: bool, bound: &Bound) -> Option<BindingId> {
        let id = if v4 { self.v4.pop_front() } else { self.v6.pop_front() }?;
        bindings.store(id, Some(bound));
        Some(id)
    }

    /// Changes whose a binding is that this worker has given.
    pub fn rebind(&self, bindings: &Bindings, id: BindingId, bound: &Bound) {
        bindings.store(id, Some(bound));
    }

    /// Frees a binding that this worker has given; of which family it is. `None` if it was free.
    pub fn release(&mut self, bindings: &Bindings, id: BindingId) -> Option<bool> {
        bindings.read(id)?;
        let (address, _) = bindings.sources.source(id)?;
        bindings.store(id, None);
        let v4 = address.is_v4();
        // There is room for all: every one of them was in here once.
        if v4 {
            self.v4.push_back(id)
        } else {
            self.v6.push_back(id)
        }
        Some(v4)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::net::NicIndex;

    fn bindings(ports: u16, workers: u8) -> Bindings {
        let addresses = ["198.18.9.1", "198.18.9.2", "2001:db8::50"];
        let addresses = addresses.map(|text| text.parse().unwrap());
        let sources = Sources::new(addresses, &(1024..=1023 + ports));
        Bindings::new(sources, workers).unwrap()
    }

    fn bound(number: u16, v6: bool) -> Bound {
        let address = |byte: u8| {
            if v6 { Address::from_v6([byte; 16]) } else { Address::from_v4([byte; 4]) }
        };
        let [high, low] = number.to_be_bytes();
        Bound {
            flow: FlowKey {
                client: address(high ^ 0x55),
                vip: address(low),
                client_port: number,
                vip_port: !number,
                protocol: if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
            },
            backend: BackendId { index: BackendIndex(number), generation: !number },
            way_back: WayBack::new(number.into(), NicIndex(high & 7), Some(u16::from(low).into()))
                .unwrap(),
            isn: number.is_multiple_of(3).then_some(u32::from(number) << 16),
            answered: number.is_multiple_of(7),
            acknowledged: number.is_multiple_of(5),
        }
    }

    proptest! {
        #[test]
        fn a_slot_says_what_was_written(number: u16, v6: bool) {
            let bindings = bindings(1, 1);
            let mut leases = Leases::new(&bindings, 0, &TableSecret::new(1));
            let bound = bound(number, v6);
            let id = leases.bind(&bindings, !v6, &bound).unwrap();
            prop_assert_eq!(bindings.read(id).unwrap().bound, bound);
            prop_assert_eq!(leases.release(&bindings, id), Some(!v6));
            prop_assert!(bindings.read(id).is_none());
        }

        /// Any order of taking and giving back, against a queue: nothing is given twice, what was free
        /// for the longest time comes first, and all can be taken.
        #[test]
        fn leases_are_a_queue(steps in proptest::collection::vec((any::<bool>(), 0..8_usize), 0..200)) {
            let bindings = bindings(4, 1);
            let mut leases = Leases::new(&bindings, 0, &TableSecret::new(1));
            let mut free: VecDeque<BindingId> = leases.v4.clone();
            let mut taken: Vec<BindingId> = Vec::new();
            for (take, which) in steps {
                if take {
                    let id = leases.bind(&bindings, true, &bound(1, false));
                    prop_assert_eq!(id, free.pop_front());
                    taken.extend(id);
                } else if which < taken.len() {
                    let id = taken.swap_remove(which);
                    prop_assert_eq!(leases.release(&bindings, id), Some(true));
                    prop_assert_eq!(leases.release(&bindings, id), None, "not twice");
                    free.push_back(id);
                }
                prop_assert_eq!(leases.free(true), free.len());
                prop_assert_eq!(free.len() + taken.len(), 8);
            }
        }
    }

    #[test]
    fn a_port_rests_until_all_others_have_been_used() {
        let bindings = bindings(100, 2);
        let mut leases = Leases::new(&bindings, 1, &TableSecret::new(1));
        let all = bindings.share(1, true);
        assert_eq!((all, leases.free(true)), (100, 100));
        let mut last_use = HashMap::new();
        for turn in 0..1000_usize {
            let id = leases.bind(&bindings, true, &bound(7, false)).unwrap();
            assert_eq!(bindings.owner(id), 1);
            if let Some(before) = last_use.insert(id, turn) {
                assert_eq!(turn - before, all);
            }
            leases.release(&bindings, id);
        }
    }

    #[test]
    fn another_process_begins_elsewhere() {
        let bindings = bindings(1000, 1);
        let first = |seed| {
            let mut leases = Leases::new(&bindings, 0, &TableSecret::new(seed));
            let id = leases.bind(&bindings, true, &bound(1, false)).unwrap();
            leases.release(&bindings, id);
            id
        };
        let different: std::collections::HashSet<BindingId> = (0..10).map(first).collect();
        assert!(different.len() > 8, "{different:?}");
    }

    #[test]
    fn what_is_tried_changes_nothing() {
        let bindings = bindings(4, 1);
        let mut leases = Leases::new(&bindings, 0, &TableSecret::new(1));
        let used = leases.bind(&bindings, true, &bound(1, false)).unwrap();
        let (scratch, mut tried) = bindings.scratch([used], 0).unwrap();
        assert_eq!(scratch.read(used).unwrap().bound, bound(1, false));
        let id = tried.bind(&scratch, true, &bound(2, false)).unwrap();
        assert_ne!(id, used);
        scratch.set_way_back(used, WayBack(99));
        assert!(
            bindings.read(id).is_none() && tried.bind(&scratch, true, &bound(3, false)).is_none()
        );
        assert_eq!(bindings.read(used).unwrap().bound, bound(1, false));
    }

    #[test]
    fn what_was_told_is_known_for_a_while_and_only_of_the_same_flow() {
        let bindings = bindings(4, 1);
        let mut leases = Leases::new(&bindings, 0, &TableSecret::new(1));
        let id = leases.bind(&bindings, true, &bound(1, false)).unwrap();
        let before = bindings.read(id).unwrap();
        // Across the wrap of the clock.
        let (now, span) = (Ticks(u32::MAX - 1), Ticks(50));
        assert!(!before.told_within(span, now));
        bindings.tell(&before, now);
        let told = bindings.read(id).unwrap();
        assert_eq!(told.bound, before.bound);
        assert!(told.told_within(span, now) && told.told_within(span, Ticks(40)));
        assert!(!told.told_within(span, Ticks(60)));
        leases.rebind(&bindings, id, &bound(2, false));
        bindings.tell(&told, now);
        assert!(!bindings.read(id).unwrap().told_within(span, now));
        bindings.set_way_back(id, WayBack(99));
        assert_eq!(bindings.read(id).unwrap().bound.way_back, WayBack(99));
    }

    /// Readers see whole flows only, and never a flow of another worker's port.
    #[test]
    fn readers_see_all_or_nothing_while_owners_write() {
        let bindings = bindings(2, 2);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let owners: Vec<_> = (0..2_u16)
                .map(|worker| {
                    let bindings = &bindings;
                    scope.spawn(move || {
                        let me = u8::try_from(worker).unwrap();
                        let mut leases = Leases::new(bindings, me, &TableSecret::new(1));
                        for number in 0..20_000_u16 {
                            let own = bound(number / 2 * 2 + worker, false);
                            let id = leases.bind(bindings, true, &own).unwrap();
                            leases.release(bindings, id).unwrap();
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                let ids: Vec<BindingId> =
                    (0..2).flat_map(|worker| bindings.sources.of_worker(worker, 2, true)).collect();
                while !stop.load(Ordering::Relaxed) {
                    for &id in &ids {
                        let Some(lease) = bindings.read(id) else { continue };
                        let number = lease.bound.flow.client_port;
                        assert_eq!(lease.bound, bound(number, false));
                        assert_eq!(u16::from(bindings.owner(id)), number % 2);
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
