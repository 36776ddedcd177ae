//! Splices: one writer, readers, and answers of several workers.

use std::sync::Arc;

use loom::thread;

use crate::flow::memory::Anonymous;
use crate::flow::slot::Slot;
use crate::flow::splices::{Answer, Offer, Place, Splice, Splices};
use crate::flow::table::{Families, FlowTable};
use crate::net::TableSecret;
use crate::sync::check;

fn splices() -> Arc<Splices> {
    let secret = TableSecret::new(1);
    let table = Arc::new(FlowTable::new(8, secret.clone(), Families::default()).unwrap());
    let splices = Splices::open(&Anonymous, &[table], &secret).unwrap();
    splices.populate(Families { v4: true, v6: false }).unwrap();
    Arc::new(splices)
}

fn place(stamp: u64) -> Place {
    Place { worker: 0, slot: Slot::new(0, 3), stamp }
}

/// Splice of a flow: its fields follow from its number, so that those of two flows do not match.
fn splice(number: u8) -> Splice {
    let (word, half) = (u32::from(number), u16::from(number));
    let (scale, timestamp) = (Some(number), Some(word));
    let offer = Offer { mss: half, scale, sack: true, timestamp, window: half };
    Splice { isn: word, cookie: word, offer, answer: None }
}

fn answer(number: u8) -> Answer {
    Answer { isn: number.into(), scale: Some(number), clock: number.into() }
}

/// The entry is used for another flow while another worker reads its splice.
#[test]
fn a_reader_sees_all_of_a_splice_or_none() {
    check(3, || {
        let splices = splices();
        splices.record(&place(1), &splice(1));
        let reader = Arc::clone(&splices);
        let reader = thread::spawn(move || {
            for number in [1, 2] {
                let found = reader.read(&place(number.into()));
                assert!(found.is_none_or(|found| found == splice(number)), "{found:?}");
            }
        });
        splices.record(&place(2), &splice(2));
        reader.join().unwrap();
        assert_eq!(splices.read(&place(2)), Some(splice(2)));
    });
}

/// A backend repeats its answer, which arrives at two workers at other times of their clocks.
#[test]
fn two_answers_are_one_for_all() {
    check(3, || {
        let splices = splices();
        splices.record(&place(1), &splice(1));
        let other = Arc::clone(&splices);
        let other = thread::spawn(move || {
            let later = Answer { clock: 9, ..answer(5) };
            other.answer(&place(1), &splice(1), &later)
        });
        let here = splices.answer(&place(1), &splice(1), &answer(5));
        let there = other.join().unwrap();
        assert!(here.is_some() && here == there, "{here:?} {there:?}");
        assert_eq!(splices.read(&place(1)).unwrap().answer, here);
    });
}

/// The backend's answer comes while the entry is used for another flow.
#[test]
fn a_late_answer_does_not_reach_the_next_flow_of_the_entry() {
    check(3, || {
        let splices = splices();
        splices.record(&place(1), &splice(1));
        let late = Arc::clone(&splices);
        let late = thread::spawn(move || {
            let kept = late.answer(&place(1), &splice(1), &answer(5));
            assert!(kept.is_none_or(|kept| kept == answer(5)), "{kept:?}");
        });
        splices.record(&place(2), &splice(2));
        late.join().unwrap();
        assert_eq!(splices.read(&place(2)), Some(splice(2)), "without an answer");
    });
}
