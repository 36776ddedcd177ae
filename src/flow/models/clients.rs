//! The clients table: several writers and readers in one bucket.

use std::sync::Arc;

use loom::thread;

use super::backend;
use crate::flow::clients::{Clients, Key, Mapping};
use crate::flow::memory::Anonymous;
use crate::net::{Address, TableSecret, VipId};
use crate::sync::check;
use crate::units::Ticks;

/// A table of one bucket.
fn table() -> Arc<Clients> {
    Arc::new(Clients::open(&Anonymous, 1, &TableSecret::new(1)).unwrap())
}

fn key(number: u8) -> Key {
    let client = Address { high: number.into(), low: number.into() };
    Key { vip: VipId(number.into()), client, part: number.into() }
}

/// Mapping of a client: what follows from its number, so that those of two clients do not match.
fn mapping(number: u8) -> Mapping {
    let now = Ticks(number.into());
    Mapping { backend: backend(number), created: now, last_used: now, proven: false }
}

fn assign(table: &Clients, client: u8, backend_number: u8) -> bool {
    let now = Ticks(backend_number.into());
    table.assign(&key(client), backend(backend_number), now, |_, _| false).is_ok()
}

fn all(table: &Clients) -> Vec<(Key, Mapping)> {
    (0..table.positions()).filter_map(|position| table.at(position)).collect()
}

/// Two workers record the same new client with different backends.
#[test]
fn two_writers_make_one_mapping_of_a_client() {
    check(3, || {
        let table = table();
        let other = Arc::clone(&table);
        let other = thread::spawn(move || assign(&other, 1, 2));
        let own = assign(&table, 1, 3);
        let other = other.join().unwrap();
        let all = all(&table);
        let recorded: Vec<_> = [(other, 2), (own, 3)]
            .into_iter()
            .filter(|(done, _)| *done)
            .map(|(_, number)| (key(1), mapping(number)))
            .collect();
        assert!(all.len() == recorded.len().min(1), "{all:?} of {recorded:?}");
        assert!(all.iter().all(|found| recorded.contains(found)), "{all:?} of {recorded:?}");
        assert_eq!(table.find(&key(1)), all.first().map(|(_, mapping)| *mapping));
        assert!(assign(&table, 1, 4), "every claim was given back");
    });
}

/// The same while the slot that both would take is freed.
#[test]
fn two_writers_make_one_mapping_of_a_client_while_another_is_forgotten() {
    check(2, || {
        let table = table();
        assert!(assign(&table, 5, 5));
        let writer = Arc::clone(&table);
        let writer = thread::spawn(move || assign(&writer, 1, 2));
        let forgetter = Arc::clone(&table);
        let forgetter = thread::spawn(move || forgetter.forget(0, &key(5)));
        let own = assign(&table, 1, 3);
        let (other, forgotten) = (writer.join().unwrap(), forgetter.join().unwrap());
        assert!(forgotten, "no writer wants this slot");
        let all = all(&table);
        assert_eq!(all.len(), usize::from(own || other), "{all:?}");
    });
}

/// A new client takes the slot of an old one, which another worker looks up and touches.
#[test]
fn key_and_value_belong_together_and_a_late_touch_proves_no_other_client() {
    check(2, || {
        let table = table();
        for number in 1..=8 {
            assert!(assign(&table, number, number));
        }
        let other = Arc::clone(&table);
        let other = thread::spawn(move || {
            if let Some((found, read)) = other.at(0) {
                let number = u8::try_from(found.part).unwrap();
                assert!(number == 1 || number == 9);
                assert_eq!((found, read), (key(number), mapping(number)));
            }
            other.touch(&key(1), Some(backend(1)), Ticks(99), true);
        });
        // Expired longest ago is client 1; a touch may save it.
        let recorded = assign(&table, 9, 9);
        other.join().unwrap();
        let found = table.find(&key(9));
        assert_eq!(found, recorded.then(|| mapping(9)));
    });
}
