//! Splices: the numbers of connections at VIPs with `syn_proxy`, of which this box has answered the
//! client's SYN and sends another one to the backend.
//!
//! ```text
//! line      stamp:64                          the `created` word of the flow's entry; 0: none
//!           client's ISN:32 cookie:32         sequence numbers: of its SYN, of our answer
//!           timestamp:32 mss:16 window:16     of the client's ACK
//!           0:58 sack:1 timestamps:1 scale:4  of the client's SYN; scale 15: none
//!           backend's ISN:32 0:23 answered:1 0:4 scale:4     before the answer: cookie:32 0:32
//!           0:31 answered:1 clock:32                         before the answer: 0:32 cookie:32
//! ```
//!
//! There is one line for each entry of the flow tables, at the same number, so that a splice needs
//! no look-up of its own and lives as long as its pin: the stamp is a word of the entry that changes
//! with each pin. The worker that has the pin writes the line; any worker may add the backend's
//! answer, once, by compare-and-swap.
//!
//! Memory: 64 bytes per entry, which a family takes when the first VIP with `syn_proxy` is
//! configured ([`Splices::populate`]). Cost: one line per packet of such a VIP.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::header::{Kind, TableError};
use super::memory::{Parts, TableMemory};
use super::slot::Slot;
use super::table::{Families, FlowTable};
use crate::net::TableSecret;
use crate::sync::{Ordering, fence};
use crate::xdp::memory::{Line, Mapping};

/// The layout of the lines.
const KIND: Kind = Kind { name: *b"splices-", version: 1 };

/// Memory per entry, in bytes.
pub const BYTES_PER_SPLICE: usize = size_of::<Line>();

/// Mark of an answered splice, in both words of the answer.
const ANSWERED: u64 = 1 << 8;
const TIMED: u64 = 1 << 32;
/// A scale of 15 stands for none: the largest one is 14 (RFC 7323 2.3).
const UNSCALED: u64 = 15;
const TIMESTAMPS: u64 = 1 << 4;
const SACK: u64 = 1 << 5;

/// A connection that consists of two handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Splice {
    /// Sequence number of the client's SYN, and of ours to the backend.
    pub isn: u32,
    /// Sequence number of our answer to the client.
    pub cookie: u32,
    /// What the client can do.
    pub offer: Offer,
    /// The backend's side, once it has answered.
    pub answer: Option<Answer>,
}

/// What a client can do, by the options of its SYN and the ACK that followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Maximum segment size in bytes.
    pub mss: u16,
    /// Window scale (0 to 14), if it scales windows.
    pub scale: Option<u8>,
    /// Whether it takes selective acknowledgments.
    pub sack: bool,
    /// Its newest timestamp, if it uses them.
    pub timestamp: Option<u32>,
    /// Window of its ACK, as it was written.
    pub window: u16,
}

/// The backend's side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Its initial sequence number.
    pub isn: u32,
    /// Its window scale, if it scales windows.
    pub scale: Option<u8>,
    /// Our clock less the backend's, in timestamps.
    pub clock: u32,
}

/// Place of a splice: worker, entry, and the stamp of the entry's pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The worker that has the pin.
    pub worker: u8,
    /// The pin's entry in that worker's table.
    pub slot: Slot,
    /// The stamp ([`FlowTable::stamp`]).
    pub stamp: u64,
}

/// The splices of all workers.
#[derive(Debug)]
pub struct Splices {
    v4: Lines,
    v6: Lines,
    /// Entries of each family in a worker's table.
    capacity: usize,
}

#[derive(Debug)]
struct Lines {
    lines: Mapping<Line>,
    /// Whether they are those of an earlier process.
    found: bool,
    populated: AtomicBool,
}

impl Lines {
    fn open(
        memory: &dyn TableMemory,
        name: &'static str,
        entries: usize,
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let table = Parts { kind: KIND, name, entries, secret };
        // A line that was half-written has no stamp.
        let (lines, found) = table.reserve(memory)?;
        Ok(Self { lines, found, populated: AtomicBool::new(false) })
    }

    fn populate(&self) -> Result<(), TableError> {
        // Relaxed: done twice at worst.
        if !self.populated.load(Ordering::Relaxed) {
            self.lines.populate()?;
            self.populated.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Splices {
    /// Takes over the splices that an earlier process has left, or reserves lines for the entries of
    /// these tables, not yet backed by memory.
    ///
    /// # Errors
    /// When there is too little address space.
    pub fn open(
        memory: &dyn TableMemory,
        flows: &[Arc<FlowTable>],
        secret: &TableSecret,
    ) -> Result<Self, TableError> {
        let capacity = flows.first().map_or(0, |table| table.capacity() as usize);
        let entries = flows.len() * capacity;
        let open = |name| Lines::open(memory, name, entries, secret);
        Ok(Self { v4: open("splices_v4")?, v6: open("splices_v6")?, capacity })
    }

    /// Whether these are the splices of an earlier process. If not, that had none, or they are lost.
    pub fn are_found(&self) -> bool {
        self.v4.found && self.v6.found
    }

    /// Backs the lines of `families` with memory, as far as they are not: to be called before the
    /// first flow that needs one. Any thread, also while the lines are in use.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn populate(&self, families: Families) -> Result<(), TableError> {
        if families.v4 {
            self.v4.populate()?;
        }
        if families.v6 {
            self.v6.populate()?;
        }
        Ok(())
    }

    /// See [`Mapping::let_go`].
    pub(super) fn let_go(&self) {
        for lines in [&self.v4, &self.v6] {
            if lines.populated.load(Ordering::Relaxed) {
                lines.lines.let_go();
            }
        }
    }

    /// Writes the splice of a pin; for the worker that has it. Does nothing for a family without
    /// memory.
    pub fn record(&self, place: &Place, splice: &Splice) {
        let lines = self.lines(place.slot);
        // A line without memory would fault, and might find none.
        if !lines.populated.load(Ordering::Relaxed) {
            return;
        }
        let Some(line) = self.line(place) else { return };
        let [stamp, words @ ..] = &line.words;
        stamp.store(0, Ordering::Relaxed);
        // The missing stamp is visible before any word that is written below: pairs with the
        // acquire fence of `read`.
        fence(Ordering::Release);
        for (word, value) in words.iter().zip(encode(splice)) {
            word.store(value, Ordering::Relaxed);
        }
        stamp.store(place.stamp, Ordering::Release);
    }

    /// Returns the splice of a pin, if it has one.
    #[inline]
    pub fn read(&self, place: &Place) -> Option<Splice> {
        if !self.lines(place.slot).populated.load(Ordering::Relaxed) {
            return None;
        }
        let [stamp, words @ ..] = &self.line(place)?.words;
        // Acquire pairs with the release store of the stamp.
        if stamp.load(Ordering::Acquire) != place.stamp {
            return None;
        }
        // The answer's first word is published behind its second one.
        let words = words.each_ref().map(|word| word.load(Ordering::Acquire));
        fence(Ordering::Acquire);
        (stamp.load(Ordering::Relaxed) == place.stamp).then(|| decode(&words))
    }

    /// Adds the backend's answer to the splice that was read as `splice`, and returns the one that
    /// holds: the first. Any worker. `None` if the entry belongs to another flow by now.
    pub fn answer(&self, place: &Place, splice: &Splice, answer: &Answer) -> Option<Answer> {
        let [_, _, _, _, numbers, clock, ..] = &self.line(place)?.words;
        let [before, untimed] = answer_words(splice.cookie, None);
        let [after, timed] = answer_words(splice.cookie, Some(answer));
        // A line of another flow has another cookie there. Of two answers at a time, the one that
        // comes first gives the clock.
        let _ = clock.compare_exchange(untimed, timed, Ordering::Relaxed, Ordering::Relaxed);
        // Release: the clock is visible with the answer.
        let _ = numbers.compare_exchange(before, after, Ordering::Release, Ordering::Relaxed);
        self.read(place)?.answer
    }

    fn lines(&self, slot: Slot) -> &Lines {
        if slot.is_v6() { &self.v6 } else { &self.v4 }
    }

    fn line(&self, place: &Place) -> Option<&Line> {
        let number = place.slot.number() as usize;
        let at = usize::from(place.worker) * self.capacity + number;
        self.lines(place.slot).lines.get(at).filter(|_| number < self.capacity)
    }
}

/// Words of a line behind the stamp.
fn encode(splice: &Splice) -> [u64; 7] {
    let Splice { isn, cookie, offer, answer } = *splice;
    let Offer { mss, scale, sack, timestamp, window } = offer;
    let ends = u64::from(isn) << 32 | u64::from(cookie);
    let sizes =
        u64::from(timestamp.unwrap_or_default()) << 32 | u64::from(mss) << 16 | u64::from(window);
    let options = scale.map_or(UNSCALED, u64::from)
        | if timestamp.is_some() { TIMESTAMPS } else { 0 }
        | if sack { SACK } else { 0 };
    let [numbers, clock] = answer_words(cookie, answer.as_ref());
    [ends, sizes, options, numbers, clock, 0, 0]
}

/// The two words of the answer.
fn answer_words(cookie: u32, answer: Option<&Answer>) -> [u64; 2] {
    match answer {
        None => [u64::from(cookie) << 32, u64::from(cookie)],
        Some(&Answer { isn, scale, clock }) => [
            u64::from(isn) << 32 | ANSWERED | scale.map_or(UNSCALED, u64::from),
            TIMED | u64::from(clock),
        ],
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
fn decode(words: &[u64; 7]) -> Splice {
    let [ends, sizes, options, numbers, clock, ..] = *words;
    let scale = |word: u64| Some((word & 15) as u8).filter(|_| word & 15 != UNSCALED);
    Splice {
        isn: (ends >> 32) as u32,
        cookie: ends as u32,
        offer: Offer {
            mss: (sizes >> 16) as u16,
            scale: scale(options),
            sack: options & SACK != 0,
            timestamp: (options & TIMESTAMPS != 0).then_some((sizes >> 32) as u32),
            window: sizes as u16,
        },
        answer: (numbers & ANSWERED != 0 && clock & TIMED != 0).then(|| Answer {
            isn: (numbers >> 32) as u32,
            scale: scale(numbers),
            clock: clock as u32,
        }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::flow::memory::Anonymous;

    fn flows(workers: usize) -> Vec<Arc<FlowTable>> {
        let table = || FlowTable::new(64, TableSecret::new(1), Families::BOTH).unwrap();
        (0..workers).map(|_| Arc::new(table())).collect()
    }

    fn splices() -> Splices {
        Splices::open(&Anonymous, &flows(2), &TableSecret::new(1)).unwrap()
    }

    fn place(worker: u8, slot: Slot, stamp: u64) -> Place {
        Place { worker, slot, stamp }
    }

    const SPLICE: Splice = Splice {
        isn: 1,
        cookie: 2,
        offer: Offer { mss: 1460, scale: Some(7), sack: true, timestamp: Some(3), window: 512 },
        answer: None,
    };
    const ANSWER: Answer = Answer { isn: 9, scale: Some(14), clock: u32::MAX };

    prop_compose! {
        fn any_splice()(
            isn: u32, cookie: u32, mss: u16, window: u16, sack: bool,
            scale in prop::option::of(0..=14_u8),
            timestamp in prop::option::of(any::<u32>()),
            answer in prop::option::of((any::<u32>(), prop::option::of(0..=14_u8), any::<u32>())),
        ) -> Splice {
            let answer = answer.map(|(isn, scale, clock)| Answer { isn, scale, clock });
            Splice { isn, cookie, offer: Offer { mss, scale, sack, timestamp, window }, answer }
        }
    }

    proptest! {
        #[test]
        fn what_is_recorded_is_read(splice in any_splice()) {
            prop_assert_eq!(decode(&encode(&splice)), splice);
        }
    }

    #[test]
    fn every_entry_of_every_worker_has_a_line_of_its_own() {
        let splices = splices();
        splices.populate(Families::BOTH).unwrap();
        let slots = [Slot::new(0, 0), Slot::new(0, 63), Slot::new(super::super::slot::V6_FLAG, 63)];
        let places: Vec<Place> =
            (0..2).flat_map(|worker| slots.map(|slot| place(worker, slot, 7))).collect();
        for (cookie, it) in (0..).zip(&places) {
            splices.record(it, &Splice { cookie, ..SPLICE });
        }
        for (cookie, it) in (0..).zip(&places) {
            assert_eq!(splices.read(it), Some(Splice { cookie, ..SPLICE }));
            assert_eq!(splices.read(&Place { stamp: 8, ..*it }), None, "of another pin");
        }
        let beyond = place(0, Slot::new(0, 64), 7);
        splices.record(&beyond, &SPLICE);
        assert_eq!(splices.read(&beyond), None, "not another worker's first");
        assert_eq!(splices.read(&place(0, Slot::NOWHERE, 7)), None);
    }

    #[test]
    fn the_first_answer_holds_and_another_flow_gets_none() {
        let splices = splices();
        splices.populate(Families::BOTH).unwrap();
        let here = place(1, Slot::new(0, 5), 4);
        splices.record(&here, &SPLICE);
        assert_eq!(splices.answer(&here, &SPLICE, &ANSWER), Some(ANSWER));
        let other = Answer { isn: 10, clock: 1, scale: None };
        assert_eq!(splices.answer(&here, &SPLICE, &other), Some(ANSWER));
        // The entry is used again between a look and the answer.
        let next = Place { stamp: 6, ..here };
        splices.record(&next, &Splice { cookie: 77, ..SPLICE });
        assert_eq!(splices.answer(&here, &SPLICE, &ANSWER), None);
        assert_eq!(splices.read(&next).unwrap().answer, None);
    }

    #[test]
    fn without_memory_nothing_is_recorded() {
        let splices = splices();
        let here = place(0, Slot::new(0, 5), 4);
        splices.record(&here, &SPLICE);
        assert_eq!(splices.read(&here), None);
        splices.populate(Families { v4: true, v6: false }).unwrap();
        splices.record(&here, &SPLICE);
        assert_eq!(splices.read(&here), Some(SPLICE));
    }
}
