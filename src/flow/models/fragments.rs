//! The fragment table: several writers and readers of one bucket.

use std::sync::Arc;

use loom::thread;

use crate::flow::fragments::{FirstFragment, FragmentLookup, FragmentTable, Key, Span};
use crate::flow::memory::Anonymous;
use crate::net::{Address, Protocol, TableSecret};
use crate::sync::check;
use crate::units::Ticks;

const TIMEOUT: Ticks = Ticks(1000);
/// Length of each first fragment.
const FIRST: u16 = 8;

/// A table of one bucket, in which all slots are taken by datagrams 1..=4, the oldest first.
fn table() -> Arc<FragmentTable> {
    let table = FragmentTable::open(&Anonymous, 4, TIMEOUT, &TableSecret::new(1)).unwrap();
    for number in 1..=4 {
        record(&table, number);
    }
    Arc::new(table)
}

fn key(number: u8) -> Key {
    let source = Address::from_v4([198, 51, 100, number]);
    let destination = Address::from_v4([192, 0, 2, number]);
    Key { source, destination, identification: number.into(), protocol: 17 }
}

fn head(number: u8) -> FirstFragment {
    FirstFragment { protocol: Protocol::Udp, ports: [number; 4] }
}

fn record(table: &FragmentTable, number: u8) {
    table.record(&key(number), head(number), FIRST, Ticks(number.into())).unwrap();
}

fn join(table: &FragmentTable, number: u8, offset: u16, more: bool) -> FragmentLookup {
    table.join(&key(number), Span { offset, len: 8, more }, Ticks(10))
}

fn knows(table: &FragmentTable, number: u8) -> bool {
    table.knows(&key(number), Ticks(10))
}

/// Joins two fragments of a datagram of which only the first one was seen.
fn complete(table: &FragmentTable, number: u8) {
    let flow = FragmentLookup::Flow(head(number));
    assert_eq!(join(table, number, FIRST + 8, false), flow);
    assert!(knows(table, number), "8 bytes are missing");
    assert_eq!(join(table, number, FIRST, true), flow);
    assert!(!knows(table, number), "all bytes were seen");
}

/// A new datagram takes the slot of the oldest one, of which another worker has a later fragment.
#[test]
fn a_later_fragment_finds_its_own_datagram_or_none() {
    check(2, || {
        let table = table();
        let reader = Arc::clone(&table);
        let reader = thread::spawn(move || {
            let found = join(&reader, 1, FIRST, true);
            let is_own = found == FragmentLookup::Flow(head(1));
            assert!(is_own || found == FragmentLookup::Unknown, "{found:?}");
        });
        record(&table, 5);
        reader.join().unwrap();
        complete(&table, 5);
    });
}

/// Two workers record new datagrams in the slot of the oldest one.
#[test]
fn two_writers_leave_whole_datagrams() {
    check(2, || {
        let table = table();
        let writer = Arc::clone(&table);
        let writer = thread::spawn(move || record(&writer, 5));
        record(&table, 6);
        writer.join().unwrap();
        // One of two that claim the same slot at once is lost.
        let known: Vec<u8> = [5, 6].into_iter().filter(|&number| knows(&table, number)).collect();
        assert!(!known.is_empty());
        known.into_iter().for_each(|number| complete(&table, number));
    });
}

/// Two workers count the last two fragments of a datagram.
#[test]
fn every_fragment_is_counted() {
    check(3, || {
        let table = table();
        let other = Arc::clone(&table);
        let flow = FragmentLookup::Flow(head(1));
        let other = thread::spawn(move || assert_eq!(join(&other, 1, FIRST + 8, false), flow));
        assert_eq!(join(&table, 1, FIRST, true), flow);
        other.join().unwrap();
        assert!(!table.knows(&key(1), Ticks(10)), "all bytes were seen");
    });
}

/// A worker with a parked fragment looks for the first one when the generation changes.
#[test]
fn a_reader_of_the_generation_knows_the_datagram() {
    check(3, || {
        let table = table();
        let before = table.generation();
        let reader = Arc::clone(&table);
        let reader = thread::spawn(move || {
            for _poll in 0..2 {
                if reader.generation() != before {
                    assert!(knows(&reader, 5));
                }
            }
        });
        record(&table, 5);
        reader.join().unwrap();
        assert!(knows(&table, 5));
    });
}
