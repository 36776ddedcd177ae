//! The SNAT table: one owner of each port; other threads read its entry and mark it.

use std::sync::Arc;

use loom::thread;

use super::{backend, flow_key, next_hop};
use crate::flow::entry::ReturnHop;
use crate::flow::memory::Anonymous;
use crate::flow::snat::{SnatAllocator, SnatFlow, SnatPool, SnatPort, SnatTable};
use crate::net::{Family, TableSecret};
use crate::sync::check;
use crate::units::Ticks;

/// Flow with this number; odd ones were seen from their SYN on.
fn snat_flow(number: u8) -> SnatFlow {
    SnatFlow {
        flow: flow_key(number),
        backend: backend(number),
        return_hop: ReturnHop::of(&next_hop(number)),
        isn: (!number.is_multiple_of(2)).then(|| number.into()),
        answered: false,
        acknowledged: false,
    }
}

/// Returns a table with one port, which a flow has.
fn table(number: u8) -> (Arc<SnatTable>, SnatAllocator, SnatPort) {
    let (secret, pool) =
        (TableSecret::new(1), SnatPool::new(["198.18.9.1".parse().unwrap()], &(1024..=1024)));
    let table = Arc::new(SnatTable::open(&Anonymous, pool, 1, &secret).unwrap());
    let mut allocator = SnatAllocator::new(&table, 0, &secret);
    let id = allocator.bind(&table, Family::V4, &snat_flow(number)).unwrap();
    (table, allocator, id)
}

/// The owner gives a port to another flow while another worker reads its entry.
#[test]
fn a_reader_sees_a_whole_entry_or_none() {
    check(2, || {
        let (table, allocator, id) = table(1);
        let reader = Arc::clone(&table);
        let reader = thread::spawn(move || {
            let Some(read) = reader.read(id) else { return };
            let number = u8::try_from(read.snat_flow.flow.client_port).unwrap();
            assert!(number == 1 || number == 3);
            assert_eq!(read.snat_flow, snat_flow(number));
        });
        allocator.rebind(&table, id, &snat_flow(3));
        reader.join().unwrap();
        assert_eq!(table.read(id).map(|read| read.snat_flow), Some(snat_flow(3)));
    });
}

/// The owner frees a port and gives it to another flow, while other workers mark what they have
/// read.
#[test]
fn a_late_mark_does_not_reach_the_next_flow_of_the_port() {
    check(3, || {
        let (table, mut allocator, id) = table(1);
        let read = table.read(id).unwrap();
        let late = Arc::clone(&table);
        let late = thread::spawn(move || {
            late.notify(&read, Ticks(99));
            late.mark_answered(&read);
        });
        allocator.release(&table, id).unwrap();
        assert_eq!(allocator.bind(&table, Family::V4, &snat_flow(3)), Some(id));
        late.join().unwrap();
        let next = table.read(id).unwrap();
        assert_eq!(next.snat_flow, snat_flow(3));
        assert!(!next.notified_within(Ticks(1000), Ticks(99)));
    });
}

/// Two workers see the backend's answer, and mark it.
#[test]
fn a_mark_that_two_workers_set_is_set() {
    check(3, || {
        let (table, _allocator, id) = table(1);
        let mark = move |table: &SnatTable| {
            let read = table.read(id).unwrap();
            table.mark_answered(&read);
            assert!(table.read(id).unwrap().snat_flow.answered);
        };
        let other = Arc::clone(&table);
        let other = thread::spawn(move || mark(&other));
        mark(&table);
        other.join().unwrap();
        let marked = table.read(id).unwrap().snat_flow;
        assert_eq!(marked, SnatFlow { answered: true, ..snat_flow(1) });
    });
}
