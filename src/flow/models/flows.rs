//! The flow table: one writer; other threads read entries, and change time, return hop and state.

use loom::thread;

use super::{entry, flow_key, flow_writer, hashed, next_hop, pin};
use crate::flow::bucket::{self, SLOTS, tag_of};
use crate::flow::entry::State;
use crate::flow::family::FamilyTable;
use crate::flow::family::V4;
use crate::flow::writer::FlowWriter;
use crate::net::{HashedKey, Tuple};
use crate::sync::check;
use crate::units::Ticks;

/// An entry is overwritten while another thread reads it.
fn a_reader_sees_a_whole_entry(old: u8, new: u8) {
    let mut writer = flow_writer(8);
    let slot = writer.insert(&hashed(old), &pin(old)).unwrap();
    let table = writer.shared();
    let reader = thread::spawn(move || {
        let Some(read) = table.read(slot) else { return };
        let number = u8::try_from(read.key.client_port).unwrap();
        assert!(number == old || number == new);
        assert_eq!(read, entry(number));
    });
    writer.update(slot, &hashed(new), &pin(new));
    reader.join().unwrap();
    assert_eq!(writer.table().read(slot), Some(entry(new)));
}

#[test]
fn a_reader_sees_a_whole_ipv4_entry_or_none() {
    check(2, || a_reader_sees_a_whole_entry(2, 4));
}

#[test]
fn a_reader_sees_a_whole_ipv6_entry_or_none() {
    check(2, || a_reader_sees_a_whole_entry(1, 3));
}

/// An entry is freed and used again while another thread looks one of both flows up.
fn a_look_up_finds_its_own_flow(number: u8) {
    let mut writer = flow_writer(8);
    let slot = writer.insert(&hashed(2), &pin(2)).unwrap();
    let table = writer.shared();
    let reader = thread::spawn(move || {
        let found = table.lookup(&hashed(number));
        assert!(found.is_none_or(|found| found == (slot, pin(number))), "{found:?}");
    });
    assert_eq!(writer.remove(slot), Some(pin(2)));
    assert_eq!(writer.insert(&hashed(4), &pin(4)), Ok(slot));
    reader.join().unwrap();
    assert_eq!(writer.table().lookup(&hashed(4)), Some((slot, pin(4))));
}

#[test]
fn a_look_up_finds_the_flow_that_goes_or_none() {
    check(2, || a_look_up_finds_its_own_flow(2));
}

#[test]
fn a_look_up_finds_the_flow_that_comes_or_none() {
    check(2, || a_look_up_finds_its_own_flow(4));
}

/// The buckets of a flow.
fn buckets(table: &FamilyTable<V4>, key: &HashedKey) -> (usize, usize) {
    let first = table.view().first_bucket(key.hash);
    (first, table.view().other_bucket(first, tag_of(key.hash)))
}

/// Returns an IPv4 flow with such buckets.
fn flow_in(table: &FamilyTable<V4>, wanted: impl Fn(usize, usize) -> bool) -> HashedKey {
    let mut keys = (0..=254).step_by(2).map(hashed);
    keys.find(|key| Some(buckets(table, key)).is_some_and(|(a, b)| wanted(a, b))).unwrap()
}

/// Fills the free slots of a bucket with slots that name no flow, of which the other bucket is `other`.
fn fill(table: &FamilyTable<V4>, bucket: usize, other: usize) {
    let line = table.buckets.get(bucket).unwrap();
    let tag = (1..).find(|&tag| table.view().other_bucket(bucket, tag) == other).unwrap();
    for slot in (0..SLOTS).filter(|&slot| bucket::content(line, slot).0 == 0) {
        // The last entry is never used here.
        bucket::set_slot(line, slot, tag, table.capacity() - 1);
    }
}

/// Returns a table with a flow in its first or its other bucket, that flow, and another flow, for
/// which the first one has to move to its other bucket.
fn crowded(in_first: bool) -> (FlowWriter, HashedKey, HashedKey) {
    // Three buckets.
    let mut writer = flow_writer(16);
    let shared = writer.shared();
    let table = &shared.v4;
    let moving = flow_in(table, |first, other| first != other);
    let (first, other) = buckets(table, &moving);
    let (from, to) = if in_first { (first, other) } else { (other, first) };
    let new = flow_in(table, |a, b| a == from && b != to);
    if !in_first {
        fill(table, first, first);
    }
    writer.insert(&moving, &pin(2)).unwrap();
    if !in_first {
        let line = table.buckets.get(first).unwrap();
        (0..SLOTS).for_each(|slot| bucket::free(line, slot));
    }
    fill(table, from, from);
    let other = buckets(table, &new).1;
    fill(table, other, other);
    (writer, moving, new)
}

/// A flow is moved to its other bucket while another thread looks it up.
fn a_flow_that_moves_is_found(in_first: bool) {
    let (mut writer, moving, new) = crowded(in_first);
    let place = |writer: &FlowWriter| {
        let Tuple::V4(words) = moving.tuple else { unreachable!() };
        writer.table().v4.view().find(&words, moving.hash).unwrap()
    };
    let before = place(&writer);
    let table = writer.shared();
    let reader = thread::spawn(move || {
        assert_eq!(table.lookup(&moving).map(|(_, pin)| pin), Some(pin(2)));
    });
    writer.insert(&new, &pin(4)).unwrap();
    reader.join().unwrap();
    let after = place(&writer);
    assert!(after.number == before.number && after.bucket != before.bucket, "it has moved");
    assert!(writer.table().lookup(&new).is_some());
}

#[test]
fn a_flow_that_moves_from_its_first_bucket_is_found() {
    check(2, || a_flow_that_moves_is_found(true));
}

#[test]
fn a_flow_that_moves_to_its_first_bucket_is_found() {
    check(2, || a_flow_that_moves_is_found(false));
}

/// A flow makes room for one that makes room for a new one, while another thread looks it up.
#[test]
fn a_flow_is_found_though_its_slot_goes_to_another_that_moves() {
    check(2, || {
        let mut writer = flow_writer(16);
        let table = writer.shared();
        let last = flow_in(&table.v4, |first, other| first != other);
        let (second, third) = buckets(&table.v4, &last);
        let first = 3 - second - third;
        let middle = flow_in(&table.v4, |a, b| (a, b) == (first, second));
        let new = flow_in(&table.v4, |a, b| a == first && b != third && [a, b] != [first, second]);
        writer.insert(&last, &pin(2)).unwrap();
        writer.insert(&middle, &pin(4)).unwrap();
        fill(&table.v4, first, first);
        fill(&table.v4, second, second);
        let reader = writer.shared();
        let reader = thread::spawn(move || {
            assert_eq!(reader.lookup(&last).map(|(_, pin)| pin), Some(pin(2)));
        });
        writer.insert(&new, &pin(6)).unwrap();
        reader.join().unwrap();
        for (key, number) in [(last, 2), (middle, 4), (new, 6)] {
            assert_eq!(table.lookup(&key).map(|(_, pin)| pin), Some(pin(number)));
        }
        let line = table.v4.buckets.get(third).unwrap();
        assert_eq!(bucket::content(line, 0).0, tag_of(last.hash), "both have moved");
    });
}

/// Another thread changes a flow that it has read, while the flow's entry goes to the next one.
#[test]
fn a_late_change_does_not_reach_the_next_flow_of_the_entry() {
    check(3, || {
        let mut writer = flow_writer(8);
        let slot = writer.insert(&hashed(2), &pin(2)).unwrap();
        let table = writer.shared();
        let read = table.read(slot).unwrap().pin.flow_state;
        let late = thread::spawn(move || {
            table.touch(slot, &read, Ticks(99));
            table.change_hop(slot, &read, &next_hop(99));
            table.change_state(slot, &hashed(2), &read, State::RST, State::ESTABLISHED);
        });
        writer.remove(slot);
        assert_eq!(writer.insert(&hashed(4), &pin(4)), Ok(slot));
        late.join().unwrap();
        assert_eq!(writer.table().read(slot), Some(entry(4)));
    });
}

/// The same with the next connection of the same client, which differs in the stamp only.
#[test]
fn a_late_state_does_not_reach_the_next_connection_of_the_client() {
    check(3, || {
        let mut writer = flow_writer(8);
        let slot = writer.insert(&hashed(2), &pin(2)).unwrap();
        let table = writer.shared();
        let read = table.read(slot).unwrap().pin.flow_state;
        let late = thread::spawn(move || {
            table.change_state(slot, &hashed(2), &read, State::RST, State(0));
        });
        writer.remove(slot);
        assert_eq!(writer.insert(&hashed(2), &pin(2)), Ok(slot));
        late.join().unwrap();
        assert_eq!(writer.table().read(slot), Some(entry(2)));
    });
}

/// The flow's own worker and two others set bits of its state.
#[test]
fn no_change_of_the_state_is_lost() {
    check(3, || {
        let mut writer = flow_writer(8);
        let slot = writer.insert(&hashed(2), &pin(2)).unwrap();
        let read = writer.table().read(slot).unwrap().pin.flow_state;
        let others = [State::FIN_BACKEND, State::RST].map(|bit| {
            let table = writer.shared();
            thread::spawn(move || table.change_state(slot, &hashed(2), &read, bit, State(0)))
        });
        let hit = writer.table().view().at(&hashed(2), slot).unwrap();
        hit.set_state(hit.flow_state.state().with(State::FIN_CLIENT));
        others.into_iter().for_each(|other| other.join().unwrap());
        let fins = State::FIN_CLIENT.with(State::FIN_BACKEND);
        let all = State::ESTABLISHED.with(fins).with(State::RST);
        let entry = writer.table().read(slot).unwrap();
        assert_eq!((entry.key, entry.pin.flow_state.state()), (flow_key(2), all));
    });
}
