//! Properties of every scheduler.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use proptest::prelude::*;

use super::testing::{SECRET, TestPool, candidates, hashes, with_weights};
use super::*;
use crate::net::BackendIndex;

/// All schedulers, with tables that are quick to build.
const ALL: [SchedulerKind; 7] = [
    SchedulerKind::Maglev { size: 4093 },
    SchedulerKind::Rendezvous,
    SchedulerKind::Ring { virtual_nodes: 160 },
    SchedulerKind::RoundRobin,
    SchedulerKind::LeastConnections,
    SchedulerKind::PowerOfTwo { size: 4093 },
    SchedulerKind::Bounded { size: 4093, e_permille: 250 },
];

fn built(kind: SchedulerKind, candidates: &[Candidate]) -> Built {
    Built::build(kind, &SECRET, candidates.to_vec(), None)
}

/// Flows per backend, by index, after `flows` placements.
fn placed(kind: SchedulerKind, weights: &[u32], flows: u64, out: &[u16]) -> Vec<u64> {
    let built = built(kind, &with_weights(weights));
    let (active, out) = (vec![0; weights.len()], out.to_vec());
    let mut pool = TestPool { active, out, turn: 0 };
    for hash in hashes(flows) {
        pool.place(built.scheduler(), hash).unwrap();
    }
    pool.active
}

#[test]
fn shares_are_the_weights() {
    const FLOWS: u64 = 60_000;
    for weights in [&[1; 10][..], &[1, 2, 3, 4, 0, 10], &[100, 100, 1]] {
        let sum: u32 = weights.iter().sum();
        for kind in ALL {
            for (share, &weight) in placed(kind, weights, FLOWS, &[]).into_iter().zip(weights) {
                let due = FLOWS as f64 * f64::from(weight) / f64::from(sum);
                // Four standard deviations of chance, plus the error of the scheduler.
                let by_chance = 4.0 * due.sqrt();
                let tolerance = match kind {
                    SchedulerKind::RoundRobin | SchedulerKind::LeastConnections => 1.0,
                    SchedulerKind::Rendezvous => by_chance,
                    SchedulerKind::Maglev { .. } => by_chance + 0.03 * due,
                    // Of 160 points per weight, four standard deviations.
                    SchedulerKind::Ring { .. } => by_chance + 0.32 * due,
                    SchedulerKind::PowerOfTwo { .. } => 0.02 * due,
                    SchedulerKind::Bounded { .. } => (by_chance + 0.03 * due).min(0.25 * due + 1.0),
                };
                assert!((share as f64 - due).abs() <= tolerance, "{kind}: {share}, due {due}");
            }
        }
    }
}

#[test]
fn those_out_of_service_leave_their_share_to_all_others() {
    for kind in ALL {
        let shares = placed(kind, &[1; 10], 30_000, &[2, 3, 4, 7]);
        for (index, share) in (0_u16..).zip(shares) {
            let out = [2, 3, 4, 7].contains(&index);
            assert_eq!(share == 0, out, "{kind}: {share}");
            // 5000 each; a ring gives the share of a removed backend to a few others.
            let fits = (3_500..6_500).contains(&share);
            assert!(out || fits, "{kind}: {index} has {share}");
        }
    }
}

#[test]
fn the_one_that_accepts_is_found_and_none_is_none() {
    for kind in ALL {
        let built = built(kind, &candidates(100));
        let active = vec![1_000; 100];
        let mut one = TestPool {
            active: active.clone(),
            out: (0..100).filter(|&index| index != 42).collect(),
            turn: 0,
        };
        let mut none = TestPool { active, out: (0..100).collect(), turn: 0 };
        for hash in hashes(200).chain([0, u64::MAX]) {
            (one.turn, none.turn) = (hash, hash);
            let scheduler = built.scheduler();
            assert_eq!(scheduler.choose(hash, &mut one), Some(BackendIndex(42)), "{kind}");
            assert_eq!(scheduler.choose(hash, &mut none), None, "{kind}");
        }
    }
}

#[test]
fn without_weight_there_is_no_choice() {
    for kind in ALL {
        for candidates in [with_weights(&[]), with_weights(&[0]), with_weights(&[0, 0, 0])] {
            let built = built(kind, &candidates);
            for hash in [0, 1, u64::MAX] {
                let mut pool = TestPool { turn: hash, ..TestPool::default() };
                assert_eq!(built.scheduler().choose(hash, &mut pool), None, "{kind}");
            }
        }
    }
}

/// Survivors of a removal from the configuration: rendezvous and ring move none of them. Maglev's
/// share is tested with its table.
#[test]
fn survivors_of_a_removal_stay() {
    for kind in [SchedulerKind::Rendezvous, SchedulerKind::Ring { virtual_nodes: 160 }] {
        for count in [3, 10, 100, 1000] {
            let weights: Vec<u32> = (0..count).map(|index| index % 4).collect();
            let all = with_weights(&weights);
            let before = built(kind, &all);
            let gone = BackendIndex(1);
            let rest: Vec<_> = all.into_iter().filter(|c| c.backend != gone).collect();
            let after = built(kind, &rest);
            let mut pool = TestPool::default();
            for hash in hashes(2_000) {
                let old = before.scheduler().choose(hash, &mut pool).unwrap();
                let new = after.scheduler().choose(hash, &mut pool).unwrap();
                assert!(if old == gone { new != gone } else { new == old }, "{kind}, {count}");
            }
        }
    }
}

/// Where the choice depends on the hash, a flap moves only the flows of the backend that is out.
#[test]
fn survivors_of_a_flap_stay() {
    for kind in [ALL[0], ALL[1], ALL[2], ALL[6]] {
        let built = built(kind, &candidates(20));
        let mut out = TestPool { out: vec![3], ..TestPool::default() };
        for hash in hashes(2_000) {
            let old = built.scheduler().choose(hash, &mut TestPool::default()).unwrap();
            let new = built.scheduler().choose(hash, &mut out).unwrap();
            assert!(if old.0 == 3 { new.0 != 3 } else { new == old }, "{kind}");
        }
    }
}

#[test]
fn words() {
    for (kind, expected) in [
        (SchedulerKind::Maglev { size: 251 }, "maglev (table_size 251)"),
        (SchedulerKind::RoundRobin, "round_robin"),
        (SchedulerKind::Ring { virtual_nodes: 160 }, "ring (virtual_nodes 160)"),
        (SchedulerKind::Bounded { size: 251, e_permille: 250 }, "bounded (e 0.25, table_size 251)"),
    ] {
        assert_eq!(kind.to_string(), expected);
        assert!(expected.starts_with(kind.as_str()));
        assert_eq!(kind.table_size().is_some(), expected.contains("table_size"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the weights, loads and refusals: the chosen backend has weight and is not refused,
    /// one is found if any is eligible, and the configuration's order does not matter.
    #[test]
    fn a_choice_is_valid_and_hangs_on_no_order(
        backends in proptest::collection::vec((0_u32..1000, any::<bool>(), 0_u64..1000), 0..20),
        turns in proptest::collection::vec(any::<u64>(), 20),
    ) {
        let weights: Vec<u32> = backends.iter().map(|(weight, ..)| *weight).collect();
        let all = with_weights(&weights);
        let reversed: Vec<_> = all.iter().rev().cloned().collect();
        let out = (0_u16..).zip(&backends).filter(|(_, (_, out, _))| *out);
        let mut pool = TestPool {
            active: backends.iter().map(|(.., active)| *active).collect(),
            out: out.map(|(index, _)| index).collect(),
            turn: 0,
        };
        let possible = backends.iter().any(|&(weight, out, _)| weight > 0 && !out);
        for kind in ALL.map(|kind| match kind {
            SchedulerKind::Ring { .. } => SchedulerKind::Ring { virtual_nodes: 1 },
            SchedulerKind::Maglev { .. } => SchedulerKind::Maglev { size: 251 },
            kind => kind,
        }) {
            let (forth, back) = (built(kind, &all), built(kind, &reversed));
            for &turn in &turns {
                pool.turn = turn;
                let hash = turn.rotate_left(7);
                let chosen = forth.scheduler().choose(hash, &mut pool);
                prop_assert_eq!(chosen, back.scheduler().choose(hash, &mut pool), "{}", kind);
                prop_assert_eq!(chosen.is_some(), possible, "{}", kind);
                if let Some(chosen) = chosen {
                    let &(weight, out, _) = backends.get(usize::from(chosen.0)).unwrap();
                    prop_assert!(weight > 0 && !out, "{}", kind);
                }
            }
        }
    }
}
