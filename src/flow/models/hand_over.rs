//! Hand-over of a flow table from one writer to the next, perhaps in another process.

use std::sync::Arc;

use loom::thread;

use super::{entry, flow_table, flow_writer, hashed, pin};
use crate::flow::writer::FlowWriter;
use crate::sync::check;

/// A writer changes the table and suspends; another one continues as soon as it can.
#[test]
fn a_writer_continues_with_all_that_the_suspended_one_has_written() {
    check(2, || {
        let mut before = flow_writer(8);
        let slot = before.insert(&hashed(2), &pin(2)).unwrap();
        let table = before.shared();
        let successor = thread::spawn(move || {
            // Without a message from the other process: `None` while it is at work.
            let Some(mut after) = FlowWriter::continue_from(Arc::clone(&table)) else { return };
            assert_eq!((after.len(), after.span()), (1, 2));
            assert_eq!(table.lookup(&hashed(2)), None);
            let (kept, found) = table.lookup(&hashed(4)).unwrap();
            assert_eq!(found, pin(4));
            let new = after.insert(&hashed(6), &pin(6)).unwrap();
            assert!(new == slot && new != kept, "the entry that was freed");
            assert_eq!(table.read(kept), Some(entry(4)));
            assert_eq!(table.read(new), Some(entry(6)));
            assert!(FlowWriter::continue_from(table).is_none(), "its record is old now");
        });
        before.insert(&hashed(4), &pin(4)).unwrap();
        before.remove(slot);
        before.suspend();
        drop(before);
        successor.join().unwrap();
    });
}

/// Two writers want the table, and each gives it back.
#[test]
fn one_writer_at_a_time_and_the_next_sees_what_the_last_has_written() {
    check(2, || {
        let table = flow_table(8);
        let work = |number: u8, other: u8| {
            let table = Arc::clone(&table);
            move || {
                let Some(mut writer) = FlowWriter::new(Arc::clone(&table)) else { return false };
                let others = writer.len();
                assert_eq!(table.lookup(&hashed(other)).is_some(), others == 1);
                writer.insert(&hashed(number), &pin(number)).unwrap();
                assert_eq!(writer.len(), others + 1);
                true
            }
        };
        let other = thread::spawn(work(2, 4));
        let (own, other) = (work(4, 2)(), other.join().unwrap());
        assert!(own || other, "one of them gets it");
        for (number, has_written) in [(2, other), (4, own)] {
            let found = table.lookup(&hashed(number)).map(|(_, pin)| pin);
            assert_eq!(found, has_written.then(|| pin(number)));
        }
        assert!(FlowWriter::new(table).is_some(), "both have given it back");
    });
}

/// A writer ends while another one takes its place, as after a failed hand-over.
#[test]
fn a_replaced_writer_does_not_release_the_table() {
    check(3, || {
        let first = flow_writer(8);
        let table = first.shared();
        let second = thread::spawn(move || FlowWriter::take_over(table));
        let table = first.shared();
        drop(first);
        let second = second.join().unwrap();
        assert!(FlowWriter::new(Arc::clone(&table)).is_none(), "the second has it");
        drop(second);
        assert!(FlowWriter::new(table).is_some());
    });
}
