//! Pairs of VLAN tags (QinQ) of clients' packets: each pair of a NIC gets a number that fits into a
//! flow's `hop` word, which has 12 bits for VLANs.
//!
//! One table for all workers that only grows: a slot is claimed once and never changes, so that a
//! number denotes one pair until the machine is booted. It is full after some 4,000 pairs, or when
//! the [`PROBES`] slots of a pair are taken: then the flow is dropped with a reason of its own.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::header::{Kind, TableError};
use super::memory::{Parts, TableMemory};
use crate::net::vlan::{Outer, Tags};
use crate::net::{NicIndex, TableSecret};
use crate::xdp::memory::Mapping;

/// Numbers have 12 bits; 0 is none.
const SLOTS: usize = 4096;
/// Slots that are probed for a pair: bounds the cost of a packet.
const PROBES: usize = 32;
/// A slot that is taken.
const USED: u32 = 1 << 31;
const SERVICE: u32 = 1 << 24;

/// The layout of the table.
const KIND: Kind = Kind { name: *b"qinq----", version: 1 };

/// The pairs of this process, unless they outlive it.
static PAIRS: [AtomicU32; SLOTS] = [const { AtomicU32::new(0) }; SLOTS];
/// The pairs that outlive the process.
static SHARED: OnceLock<Mapping<AtomicU32>> = OnceLock::new();

/// Takes over the pairs that an earlier process has left, or makes a table of pairs that a later
/// process finds. To be called once, before the first packet.
///
/// # Errors
/// When there is too little memory.
pub fn share(memory: &dyn TableMemory) -> Result<(), TableError> {
    // The pairs belong to all sets of tables of this boot, so no secret ties them to one.
    let secret = TableSecret::new(0);
    let table = Parts { kind: KIND, name: "qinq", entries: SLOTS, secret: &secret };
    let (pairs, _) = table.open(memory, |_: &AtomicU32| ())?;
    // Called twice, the first table stays.
    let _ = SHARED.set(pairs);
    Ok(())
}

/// Number of a pair: 1..=4095.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number(pub(super) u16);

/// Returns the number of a pair, assigned now if it has none; `None` if there is no room, or `tags`
/// is not a pair.
pub(super) fn number(nic: NicIndex, tags: Tags) -> Option<Number> {
    match SHARED.get() {
        Some(pairs) => number_in(pairs, nic, tags),
        None => number_in(&PAIRS, nic, tags),
    }
}

/// Returns the pair with a number.
pub(super) fn pair(number: Number) -> Option<(NicIndex, Tags)> {
    match SHARED.get() {
        Some(pairs) => pair_in(pairs, number),
        None => pair_in(&PAIRS, number),
    }
}

fn number_in(pairs: &[AtomicU32], nic: NicIndex, tags: Tags) -> Option<Number> {
    let (outer, service) = match tags.outer {
        Outer::None => return None,
        Outer::Service(outer) => (outer, SERVICE),
        Outer::Customer(outer) => (outer, 0),
    };
    let (inner, outer) = (u32::from(tags.inner & 0xfff), u32::from(outer & 0xfff));
    let word = USED | u32::from(nic.0 & 0xf) << 25 | service | outer << 12 | inner;
    let start = word.wrapping_mul(0x9e37_79b1) as usize >> 20;
    for slot in (start..start + PROBES).map(|slot| slot % SLOTS).filter(|&n| n != 0) {
        // Relaxed: the word publishes nothing else.
        let (taken, relaxed) = (pairs.get(slot)?, Ordering::Relaxed);
        let mut there = taken.load(relaxed);
        if there == 0 {
            there = taken.compare_exchange(0, word, relaxed, relaxed).err().unwrap_or(word);
        }
        if there == word {
            return u16::try_from(slot).ok().map(Number);
        }
    }
    None
}

fn pair_in(pairs: &[AtomicU32], Number(number): Number) -> Option<(NicIndex, Tags)> {
    let word = pairs.get(usize::from(number))?.load(Ordering::Relaxed);
    let (outer, inner) = ((word >> 12 & 0xfff) as u16, (word & 0xfff) as u16);
    let outer = if word & SERVICE != 0 { Outer::Service(outer) } else { Outer::Customer(outer) };
    let tags = Tags { inner, outer };
    (word & USED != 0).then_some((NicIndex((word >> 25 & 0xf) as u8), tags))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_pair_keeps_its_number_until_all_are_given() {
        let pairs: Vec<AtomicU32> = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        let mut given = Vec::new();
        for outer in 0..64 {
            for inner in 0..128 {
                let nic = NicIndex(u8::try_from(inner % 15).unwrap());
                let (outer, inner) = (outer * 64, inner * 32);
                let customer = Tags { inner, outer: Outer::Customer(outer) };
                let tags = if inner % 64 == 0 { Tags::two(outer, inner) } else { customer };
                given.extend(number_in(&pairs, nic, tags).map(|number| (number, nic, tags)));
            }
        }
        assert!((3_500..=4_095).contains(&given.len()), "{}", given.len());
        for &(number, nic, tags) in &given {
            assert!((1..4096).contains(&number.0));
            assert_eq!(pair_in(&pairs, number), Some((nic, tags)));
            assert_eq!(number_in(&pairs, nic, tags), Some(number));
        }
        assert_eq!(number_in(&pairs, NicIndex(0), Tags::from(7)), None, "one tag needs no number");
        assert_eq!(pair_in(&pairs, Number(0)), None);
    }
}
