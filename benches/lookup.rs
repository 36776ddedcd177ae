//! The flow table alone, compared with hashbrown's with the same keys, hash and entry size.
//!
//! Batches of 64, as a worker makes them: hash all and prefetch the bucket lines, prefetch the
//! entry lines, then look up. A line of a found entry is read. hashbrown has no prefetch: its
//! look-ups of a batch follow each other in a tight loop, so that the processor overlaps as many as
//! it can; with `one by one` each look-up waits for the one before, as in a design of one packet at
//! a time.
//!
//! ```sh
//! cargo bench --bench lookup                    # a table
//! cargo bench --bench lookup -- --json --quick
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench stops at the first surprise"
)]

mod support;

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use holdfast::flow::entry::{Pin, State};
use holdfast::flow::table::{Families, FlowTable, Hit, Slot};
use holdfast::flow::writer::{FlowWriter, Verdict};
use holdfast::net::{
    BackendId, BackendIndex, HashedKey, NextHop, NicIndex, TableSecret, Tuple, VipId,
};
use holdfast::units::Ticks;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};
use support::bed::{BATCH, ROUND};
use support::measure::{Plan, Samples, Subject, interleave};
use support::packets::{Random, flow_key};
use support::report::{Document, Row};
use support::rig::Family;
use support::{Args, args, pin_to_core, say};

const FULL: Plan = Plan { repetitions: 21, rounds: 100 };
const QUICK: Plan = Plan { repetitions: 7, rounds: 50 };
/// Seed of the hash, in both tables.
const SEED: u64 = 1;
const SMOKE: Plan = Plan { repetitions: 2, rounds: 2 };
/// Rows of the document.
const ROWS: [&str; 4] = ["lookup", "lookup_miss", "insert", "insert_expire"];

fn main() -> Result<(), Box<dyn Error>> {
    let Some(args) = args::<Args>() else { return smoke() };
    pin_to_core(args.core)?;
    let plan = if args.quick { QUICK } else { FULL };
    let mut document = Document::default();
    for flows in [1_000_000, 10_000_000] {
        say(&format!("  flow table alone, {flows} flows"));
        document.rows.extend(measure(plan, flows));
    }
    document.rows.sort_by_key(|row| ROWS.iter().position(|name| *name == row.name));
    document.print(args.json)?;
    Ok(())
}

fn measure(plan: Plan, flows: u64) -> Vec<Row> {
    let (mut ours, filled_ours) = OurTable::filled(flows);
    let (mut theirs, filled_theirs) = Hashbrown::filled(flows);
    let look = |wanted: Wanted, order: Order| {
        let ours = &mut OurLookup { table: &ours, keys: Keys::new(wanted, flows), found: 0 };
        let theirs =
            &mut TheirLookup { table: &theirs, keys: Keys::new(wanted, flows), order, found: 0 };
        interleave(plan, &mut [ours, theirs])
    };
    let (hit, one_by_one) =
        (look(Wanted::Present, Order::Batch), look(Wanted::Present, Order::OneByOne));
    let miss = look(Wanted::Absent, Order::Batch);
    let replace = interleave(
        plan,
        &mut [
            &mut OurReplace { table: &mut ours, next: flows, keys: Vec::new() },
            &mut TheirReplace { table: &mut theirs, next: flows, flows, keys: Vec::new() },
        ],
    );
    vec![
        Row::new(ROWS[0], flows, hit.ns(0)).with_hashbrown(hit.ns(1), Some(one_by_one.ns(1))),
        Row::new(ROWS[1], flows, miss.ns(0)).with_hashbrown(miss.ns(1), None),
        Row::new(ROWS[2], flows, filled_ours.ns(0)).with_hashbrown(filled_theirs.ns(0), None),
        Row::new(ROWS[3], flows, replace.ns(0)).with_hashbrown(replace.ns(1), None),
    ]
}

fn pin() -> Pin {
    let backend = BackendId { index: BackendIndex(7), generation: 0 };
    let hop = NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 0, 1], vlan: None };
    Pin::new(VipId(0), backend, State::ESTABLISHED, 0, &hop, Ticks(0))
}

/// Kind of keys that are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Present,
    Absent,
}

/// The keys of a round.
struct Keys {
    wanted: Wanted,
    flows: u64,
    random: Random,
    keys: Vec<Tuple>,
}

impl Keys {
    fn new(wanted: Wanted, flows: u64) -> Self {
        Self { wanted, flows, random: Random::new(0x100c), keys: Vec::with_capacity(ROUND) }
    }

    fn prepare(&mut self) {
        let first = if self.wanted == Wanted::Present { 0 } else { 1 << 40 };
        self.keys.clear();
        for _ in 0..ROUND {
            self.keys.push(tuple(first + self.random.below(self.flows)));
        }
    }

    fn check(&self, found: usize) {
        let expected = if self.wanted == Wanted::Present { ROUND } else { 0 };
        assert_eq!(found, expected, "flows that were found");
    }
}

// ---- ours ----

struct OurTable {
    writer: FlowWriter,
    secret: TableSecret,
}

impl OurTable {
    /// Fills the table to its capacity, with buckets that are 85 % full. Filling is timed.
    fn filled(flows: u64) -> (Self, Samples) {
        let secret = TableSecret::new(SEED);
        let v4 = Families { v4: true, v6: false };
        let table = FlowTable::new(u32::try_from(flows).unwrap(), secret.clone(), v4).unwrap();
        let writer = FlowWriter::new(Arc::new(table)).unwrap();
        let mut table = Self { writer, secret };
        let mut fill = Fill::new(flows, |keys: &[Tuple]| table.insert(keys));
        let samples = fill.timed();
        fill.rest();
        assert_eq!(u64::from(table.writer.len()), flows);
        (table, samples)
    }

    /// Inserts as a worker does: prefetch, look-ups that find nothing, insertions.
    fn insert(&mut self, keys: &[Tuple]) {
        let batch = self.prefetched(keys);
        for (key, hint) in &batch {
            let view = self.writer.table().view();
            assert!(view.find_at(key, *hint).is_none(), "a new flow");
            self.writer.insert(key, &pin()).unwrap();
        }
    }

    /// Runs the stages before a look-up.
    #[inline(always)]
    fn prefetched(&self, keys: &[Tuple]) -> ArrayVec<(HashedKey, Slot), BATCH> {
        let table = self.writer.table().view();
        let mut batch = ArrayVec::new();
        for key in keys {
            let key = self.secret.hash(*key);
            table.prefetch_bucket(&key);
            batch.push((key, Slot::NOWHERE));
        }
        let mut elsewhere = ArrayVec::<_, BATCH>::new();
        for (key, hint) in &mut batch {
            match table.prefetch_entry(key) {
                Some(slot) => *hint = slot,
                None => elsewhere.push((key, hint)),
            }
        }
        for (key, hint) in elsewhere {
            *hint = table.prefetch_entry_elsewhere(key).unwrap_or(Slot::NOWHERE);
        }
        batch
    }
}

struct OurLookup<'t> {
    table: &'t OurTable,
    keys: Keys,
    found: usize,
}

impl Subject for OurLookup<'_> {
    fn prepare(&mut self) {
        self.keys.prepare();
    }

    fn run(&mut self) -> usize {
        self.found = 0;
        for keys in self.keys.keys.chunks(BATCH) {
            self.found += our_batch(self.table, black_box(keys));
        }
        ROUND
    }

    fn finish(&mut self, _took: Duration) {
        self.keys.check(self.found);
    }
}

/// Looks up one batch; returns the number of found entries.
#[inline(never)]
fn our_batch(table: &OurTable, keys: &[Tuple]) -> usize {
    let batch = table.prefetched(keys);
    let view = table.writer.table().view();
    let found = batch.iter().filter_map(|(key, hint)| view.find_at(key, *hint));
    found.filter(|hit| black_box(hit.flow_state.backend().index) == BackendIndex(7)).count()
}

/// Removes the oldest flows by the sweep, and inserts as many new ones.
struct OurReplace<'t> {
    table: &'t mut OurTable,
    next: u64,
    keys: Vec<Tuple>,
}

impl Subject for OurReplace<'_> {
    fn prepare(&mut self) {
        self.keys = keys(self.next..self.next + ROUND as u64);
        self.next += ROUND as u64;
    }

    fn run(&mut self) -> usize {
        for keys in self.keys.chunks(BATCH) {
            // Freed entries are ahead of the clock hand; most are in use.
            let room = self.table.writer.table().capacity() - u32::try_from(BATCH).unwrap();
            while self.table.writer.len() > room {
                let over = self.table.writer.len() - room;
                let idle = |last: Ticks| black_box(last) == Ticks(0);
                let look = |_, hit: &Hit<'_>, _: &dyn Fn() -> Tuple| {
                    if idle(hit.flow_state.last_seen()) { Verdict::Remove } else { Verdict::Keep }
                };
                self.table.writer.sweep(512, over, look, |_, _| {});
            }
            self.table.insert(keys);
        }
        ROUND
    }

    fn finish(&mut self, _took: Duration) {}
}

// ---- hashbrown ----

/// The words of an IPv4 tuple, and padding to 32 bytes.
type Theirs = ([u64; 2], [u64; 2]);

struct Hashbrown {
    table: hashbrown::HashTable<Theirs>,
    secret: RapidSecrets,
}

/// The hash of `TableSecret`, which is private.
#[inline]
fn hash(secret: &RapidSecrets, words: &[u64; 2]) -> u64 {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    rapidhash_v3_seeded(&bytes, secret)
}

fn words(tuple: Tuple) -> [u64; 2] {
    let Tuple::V4(words) = tuple else { unreachable!("only IPv4 flows are made") };
    words
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Look-ups do not depend on each other.
    Batch,
    /// Each look-up waits for the one before.
    OneByOne,
}

impl Hashbrown {
    /// Fills a table with capacity for the flows from the start. (Its load follows from powers of
    /// two.)
    fn filled(flows: u64) -> (Self, Samples) {
        let table = hashbrown::HashTable::with_capacity(usize::try_from(flows).unwrap() + ROUND);
        let mut table = Self { table, secret: RapidSecrets::seed(SEED) };
        let mut fill = Fill::new(flows, |keys: &[Tuple]| table.insert(keys));
        let samples = fill.timed();
        fill.rest();
        assert_eq!(table.table.len() as u64, flows);
        (table, samples)
    }

    fn insert(&mut self, keys: &[Tuple]) {
        let secret = &self.secret;
        for key in keys {
            let words = words(*key);
            let hashed = hash(secret, &words);
            assert!(self.table.find(hashed, |theirs| theirs.0 == words).is_none(), "a new flow");
            // After removals an insertion rehashes the table now and then.
            self.table.insert_unique(hashed, (words, [7, 0]), |theirs| hash(secret, &theirs.0));
        }
    }

    fn remove(&mut self, key: &Tuple) {
        let words = words(*key);
        let found = self.table.find_entry(hash(&self.secret, &words), |theirs| theirs.0 == words);
        assert!(found.is_ok_and(|found| found.remove().0.0 == words), "an old flow");
    }
}

struct TheirLookup<'t> {
    table: &'t Hashbrown,
    keys: Keys,
    order: Order,
    found: usize,
}

impl Subject for TheirLookup<'_> {
    fn prepare(&mut self) {
        self.keys.prepare();
    }

    fn run(&mut self) -> usize {
        self.found = 0;
        for keys in self.keys.keys.chunks(BATCH) {
            self.found += match self.order {
                Order::Batch => their_batch(self.table, black_box(keys)),
                Order::OneByOne => their_chain(self.table, black_box(keys)),
            };
        }
        ROUND
    }

    fn finish(&mut self, _took: Duration) {
        self.keys.check(self.found);
    }
}

#[inline(never)]
fn their_batch(Hashbrown { table, secret }: &Hashbrown, keys: &[Tuple]) -> usize {
    let find = |key: &Tuple| {
        let words = words(*key);
        table.find(hash(secret, &words), |theirs| theirs.0 == words)
    };
    keys.iter().filter_map(find).filter(|theirs| black_box(theirs.1[0]) == 7).count()
}

#[inline(never)]
fn their_chain(Hashbrown { table, secret }: &Hashbrown, keys: &[Tuple]) -> usize {
    let (mut found, mut carried) = (0, 0);
    for key in keys {
        let words = words(*key);
        // Always 0, but the processor has to wait for the last entry to know it.
        let hash = hash(secret, &words).wrapping_add(carried);
        if let Some(theirs) = table.find(hash, |theirs| theirs.0 == words) {
            found += usize::from(theirs.1[0] == 7);
            carried = black_box(theirs.1[1]);
        }
    }
    found
}

struct TheirReplace<'t> {
    table: &'t mut Hashbrown,
    next: u64,
    flows: u64,
    keys: Vec<Tuple>,
}

impl Subject for TheirReplace<'_> {
    fn prepare(&mut self) {
        self.keys = keys(self.next..self.next + ROUND as u64);
        self.next += ROUND as u64;
    }

    fn run(&mut self) -> usize {
        // hashbrown has no clock hand: the oldest flow is given.
        let oldest = self.next - ROUND as u64 - self.flows;
        for (keys, first) in self.keys.chunks(BATCH).zip((oldest..).step_by(BATCH)) {
            for old in first..first + BATCH as u64 {
                self.table.remove(&tuple(old));
            }
            self.table.insert(keys);
        }
        ROUND
    }

    fn finish(&mut self, _took: Duration) {}
}

// ---- filling ----

/// Inserts flows 0, 1, 2... batch by batch; rounds are timed.
struct Fill<I> {
    insert: I,
    next: u64,
    flows: u64,
    keys: Vec<Tuple>,
}

impl<I: FnMut(&[Tuple])> Fill<I> {
    fn new(flows: u64, insert: I) -> Self {
        Self { insert, next: 0, flows, keys: Vec::new() }
    }

    /// Inserts in all rounds that fit, in up to 20 repetitions.
    fn timed(&mut self) -> Samples {
        let rounds = usize::try_from(self.flows).unwrap() / ROUND - 1;
        let repetitions = rounds.clamp(1, 20);
        interleave(Plan { repetitions, rounds: rounds / repetitions }, &mut [self])
    }

    /// Inserts the remaining flows.
    fn rest(&mut self) {
        while self.next < self.flows {
            let next = (self.next + BATCH as u64).min(self.flows);
            (self.insert)(&keys(self.next..next));
            self.next = next;
        }
    }
}

impl<I: FnMut(&[Tuple])> Subject for Fill<I> {
    fn prepare(&mut self) {
        self.keys = keys(self.next..self.next + ROUND as u64);
        self.next += ROUND as u64;
    }

    fn run(&mut self) -> usize {
        self.keys.chunks(BATCH).for_each(|keys| (self.insert)(keys));
        ROUND
    }

    fn finish(&mut self, _took: Duration) {}
}

fn keys(flows: std::ops::Range<u64>) -> Vec<Tuple> {
    flows.map(tuple).collect()
}

fn tuple(flow: u64) -> Tuple {
    flow_key(Family::V4, flow).into()
}

/// Under `cargo test`: every row works, and the document has the keys that its readers need.
fn smoke() -> Result<(), Box<dyn Error>> {
    let document = Document { rows: measure(SMOKE, 20_000) };
    let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&document)?)?;
    let rows = json["rows"].as_array().ok_or("no rows")?;
    for name in ROWS {
        let row = rows.iter().find(|row| row["name"] == name).ok_or("a row is missing")?;
        for key in ["flows", "ns_per_packet", "hashbrown_ns"] {
            assert!(row[key].as_f64().is_some_and(|number| number > 0.0), "{name}: {key}");
        }
    }
    println!("lookup: {} rows, as expected", rows.len());
    Ok(())
}
