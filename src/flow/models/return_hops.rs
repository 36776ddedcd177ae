//! The table of return hops: several writers and readers of one bucket, without claims.

use std::sync::Arc;

use loom::thread;

use super::next_hop;
use crate::flow::entry::ReturnHop;
use crate::flow::memory::Anonymous;
use crate::flow::return_hops::ReturnHops;
use crate::net::{Address, TableSecret};
use crate::sync::check;

/// A table of one bucket.
fn table() -> Arc<ReturnHops> {
    Arc::new(ReturnHops::open(&Anonymous, 1, &TableSecret::new(1)).unwrap())
}

fn client(number: u8) -> Address {
    Address::from_v4([198, 51, 100, number])
}

fn hop(number: u8) -> ReturnHop {
    ReturnHop::of(&next_hop(number))
}

/// Looks a client up: its own hop is found, or none.
fn look(table: &ReturnHops, number: u8) {
    let found = table.find(client(number));
    assert!(found.is_none_or(|found| found == hop(number)), "{number}: {found:?}");
}

/// A client's entry moves back for a new client, while another worker looks the client up.
#[test]
fn a_reader_gives_no_client_the_hop_of_another() {
    check(2, || {
        let table = table();
        table.record(client(1), hop(1));
        let reader = Arc::clone(&table);
        let reader = thread::spawn(move || (1..=2).for_each(|number| look(&reader, number)));
        table.record(client(2), hop(2));
        reader.join().unwrap();
        let found = [1, 2].map(|number| table.find(client(number)));
        assert_eq!(found, [Some(hop(1)), Some(hop(2))]);
    });
}

/// Two workers record clients, and their entries change places.
#[test]
fn two_writers_leave_no_client_the_hop_of_another() {
    check(2, || {
        let table = table();
        table.record(client(1), hop(1));
        let writer = Arc::clone(&table);
        let writer = thread::spawn(move || writer.record(client(2), hop(2)));
        table.record(client(3), hop(3));
        writer.join().unwrap();
        (1..=3).for_each(|number| look(&table, number));
    });
}
