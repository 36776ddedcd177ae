//! Choosing a backend for a flow that has no pin.
//!
//! The lookup table holds every backend that has weight, in service or not. A slot whose backend
//! is out of service is passed over, and the flow's hash is mixed again, a bounded number of times:
//! the flows of the backend that left spread over all others, *no other flow moves*, and a health
//! flap rebuilds nothing. (A rebuilt Maglev table moves 0.2-0.6 % of the survivors' slots.)

use siphasher::sip::SipHasher13;

use super::table::{Backend, ForwardingTable, Vip};
use super::{BackendIndex, Secret};
use crate::flow::FlowKey;

/// Slots that are looked at before the list of backends in service is used.
///
/// With half of the backends out, one flow in 256 gets that far.
const ATTEMPTS: u64 = 8;

/// The affinity hash of a flow: SipHash-1-3 of the five-tuple, keyed by the configuration, so that
/// every box with the same configuration gets the same value.
#[inline]
pub fn affinity_hash(secret: &Secret, key: &FlowKey) -> u64 {
    let mut bytes = [0; 40];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(key.words()) {
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    SipHasher13::new_with_key(secret).hash(&bytes)
}

/// The first backend on the flow's way through the lookup table that `accept` takes.
///
/// Cost: one slot look-up when the first backend is taken; at most 8, then one step through the
/// VIP's backends.
#[inline]
pub fn choose<'t>(
    table: &'t ForwardingTable,
    vip: &Vip,
    hash: u64,
    mut accept: impl FnMut(&Backend) -> bool,
) -> Option<&'t Backend> {
    for attempt in 0..ATTEMPTS {
        let index = vip.lookup.lookup(remix(hash, attempt))?;
        if let Some(backend) = table.backend(index).filter(|backend| accept(backend)) {
            return Some(backend);
        }
    }
    choose_from_list(table, &vip.weighted, hash, accept)
}

/// The same hash for attempt 0, an unrelated one for every other (splitmix64's finalizer).
#[inline]
const fn remix(hash: u64, attempt: u64) -> u64 {
    if attempt == 0 {
        return hash;
    }
    let z = hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The first backend that `accept` takes, from a place in `list` that `hash` gives.
#[cold]
fn choose_from_list<'t>(
    table: &'t ForwardingTable,
    list: &[BackendIndex],
    hash: u64,
    mut accept: impl FnMut(&Backend) -> bool,
) -> Option<&'t Backend> {
    let start = usize::try_from(hash.checked_rem(list.len() as u64)?).ok()?;
    let (head, tail) = list.split_at_checked(start)?;
    tail.iter()
        .chain(head)
        .filter_map(|&index| table.backend(index))
        .find(|backend| accept(backend))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use crate::forwarding::VipId;
    use crate::forwarding::table::testing::{backend, spec};

    fn table(
        backends: u16,
        change: impl Fn(u16, &mut super::super::BackendSpec),
    ) -> ForwardingTable {
        let mut spec = spec(0);
        spec.backends = (0..backends).map(backend).collect();
        for (index, backend) in (0..).zip(&mut spec.backends) {
            change(index, backend);
        }
        ForwardingTable::build(1, [7; 16], &[spec], None)
    }

    fn hashes() -> impl Iterator<Item = u64> {
        (1..20_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn pick(table: &ForwardingTable, hash: u64) -> Option<u16> {
        let vip = table.vip(VipId(0)).unwrap();
        choose(table, vip, hash, |b| b.takes_new).map(|b| b.id.index.0)
    }

    #[test]
    fn a_backend_that_is_down_moves_its_own_flows_only_and_evenly() {
        let before = table(10, |_, _| {});
        let after = table(10, |index, backend| backend.up = index != 3);
        let mut gained = [0_u32; 10];
        for hash in hashes() {
            let (old, new) = (pick(&before, hash).unwrap(), pick(&after, hash).unwrap());
            if old == 3 {
                assert_ne!(new, 3);
                *gained.get_mut(usize::from(new)).unwrap() += 1;
            } else {
                assert_eq!(old, new, "a survivor moved");
            }
        }
        let mean = gained.iter().sum::<u32>() / 9;
        for (index, &count) in gained.iter().enumerate().filter(|(index, _)| *index != 3) {
            assert!(count.abs_diff(mean) < mean / 2, "backend {index}: {count}, mean {mean}");
        }
    }

    #[test]
    fn one_of_many_left_is_found_and_none_is_none() {
        let one = table(100, |index, backend| backend.up = index == 42);
        assert!(hashes().all(|hash| pick(&one, hash) == Some(42)));
        let none = table(3, |_, backend| backend.up = false);
        assert!(hashes().take(100).all(|hash| pick(&none, hash).is_none()));
        let empty = table(0, |_, _| {});
        assert_eq!(pick(&empty, 1), None);
    }

    /// Fixed answers: two boxes, and two versions of holdfast, must agree.
    #[test]
    fn the_affinity_hash_is_siphash_1_3_of_the_key_words_in_network_order() {
        let key = FlowKey {
            client: crate::flow::Address::from_v4([198, 18, 1, 10]),
            vip: crate::flow::Address::from_v4([192, 0, 2, 10]),
            client_port: 40_000,
            vip_port: 80,
            protocol: crate::flow::Protocol::Tcp,
        };
        let bytes: Vec<u8> = key.words().iter().flat_map(|word| word.to_be_bytes()).collect();
        let expected = SipHasher13::new_with_key(&[7; 16]).hash(&bytes);
        assert_eq!(affinity_hash(&[7; 16], &key), expected);
        assert_ne!(affinity_hash(&[8; 16], &key), expected, "keyed");
    }
}
