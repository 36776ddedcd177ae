//! Choice of a backend by client affinity, and splitting of clients that are too large for one
//! backend: real workers and the control thread's splitter in one process.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
#![allow(dead_code, reason = "the rig has more than these tests need")]

use std::net::IpAddr;

use holdfast::config::Split;
use holdfast::control::split::Splitter;
use holdfast::forwarding::{Affinity, SchedulerKind};
use holdfast::net::{Forward, VipId};

mod rig;

use rig::{Family, Rig, spec, tcp_of};

const BACKENDS: u16 = 8;
const CLIENTS: u32 = 50_000;
/// New flows in a window of 2 s.
const WINDOW: u32 = 10_000;

/// A client-affine VIP over eight backends.
fn client_rig(affinity: Affinity) -> Rig {
    let mut vip = spec(0, Forward::Dsr, Family::V4, 1, BACKENDS);
    vip.policy.affinity = affinity;
    vip.sampled = true;
    vip.policy.scheduler = SchedulerKind::Maglev { size: 65_537 };
    Rig::with_flows(1, 1, 200_000, vec![vip])
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from((high * u64::from(bound)) >> 32).unwrap()
    }
}

/// The gateway is client 0; the others are single hosts.
fn client(number: u32) -> IpAddr {
    IpAddr::from((0xc612_0000 + number).to_be_bytes())
}

/// A new flow, and the backend that it was sent to.
type Flow = ((IpAddr, u16), u16);

/// Opens the flows of a window: 40 of 100 from the gateway, the others from any of 50,000 clients.
fn open(rig: &mut Rig, random: &mut Random, taken: &mut u32) -> Vec<Flow> {
    let vip = (Family::V4.vip(), 80);
    let mut flows = Vec::new();
    for _ in 0..WINDOW {
        let from = if random.below(100) < 40 {
            // Consecutive ports of Linux's range for outgoing connections.
            *taken += 1;
            (client(0), u16::try_from(32_768 + *taken % 28_232).unwrap())
        } else {
            (client(1 + random.below(CLIENTS)), u16::try_from(1024 + random.below(60_000)).unwrap())
        };
        let backend = rig.backend_of(&tcp_of(from, vip, "S")).unwrap();
        flows.push((from, backend));
    }
    flows
}

fn max_over_mean(flows: &[Flow]) -> f64 {
    let mut counts = [0_u32; BACKENDS as usize];
    flows.iter().for_each(|(_, backend)| counts[usize::from(*backend)] += 1);
    let mean = f64::from(u32::try_from(flows.len()).unwrap()) / f64::from(BACKENDS);
    f64::from(*counts.iter().max().unwrap()) / mean
}

/// Runs the control thread's step at the end of a window; returns whether the splits changed.
fn judge(rig: &mut Rig, splitter: &mut Splitter) -> bool {
    rig.stats(0).samples.take().for_each(|sample| splitter.observe(sample));
    let table = rig.table();
    let settings = Split { max_load: 1.25, min_rate: 50.0 };
    let vip = table.vip(VipId(0)).unwrap();
    let splits = splitter.judge(vip, &table, &settings, f64::from(WINDOW) / 2.0);
    let changed = splits.is_some();
    if let Some(splits) = splits {
        rig.change(|specs| specs[0].splits = splits);
    }
    changed
}

#[test]
fn a_mega_proxy_is_spread_and_no_flow_of_it_breaks() {
    let mut rig = client_rig(Affinity::Client);
    let (mut random, mut taken, mut splitter) = (Random(9), 0, Splitter::default());
    let mut before = open(&mut rig, &mut random, &mut taken);
    assert!(!judge(&mut rig, &mut splitter), "one window may be chance");
    before.extend(open(&mut rig, &mut random, &mut taken));
    assert!(judge(&mut rig, &mut splitter));
    let after = open(&mut rig, &mut random, &mut taken);
    judge(&mut rig, &mut splitter);
    let (unsplit, split) = (max_over_mean(&before), max_over_mean(&after));
    let parts = splitter.shown(VipId(0))[0].parts;
    println!("max/mean of new flows: {unsplit:.2} unsplit, {split:.2} in {parts} parts");
    assert!(unsplit > 3.5, "{unsplit}: 40 % on one of eight");
    assert!(split <= 1.25, "{split}");
    // Every open flow stays at its backend.
    let vip = (Family::V4.vip(), 80);
    for (from, backend) in before.iter().chain(&after) {
        assert_eq!(rig.backend_of(&tcp_of(*from, vip, "A")), Some(*backend), "{from:?}");
    }
    rig.assert_accounted();
}

/// Number of flows of each backend, over all workers.
fn loads(rig: &Rig, workers: usize) -> Vec<u64> {
    let of = |worker| rig.stats(worker).backends.iter().map(|backend| backend.flows_active.get());
    let mut loads = vec![0; 4];
    (0..workers).for_each(|worker| loads.iter_mut().zip(of(worker)).for_each(|(l, n)| *l += n));
    loads
}

/// Sends new flows, their ports counted from `first`, to the workers in turn.
fn open_flows(rig: &mut Rig, workers: usize, first: u16, count: u16) {
    for port in first..first + count {
        let sent = rig.send(usize::from(port) % workers, 0, &rig::tcp(Family::V4, port, 80, "S"));
        assert_eq!(sent.len(), 1);
    }
}

#[test]
fn workers_give_each_backend_its_weight() {
    for scheduler in rig::SCHEDULERS {
        let mut vip = spec(0, Forward::Dsr, Family::V4, 1, 4);
        vip.policy.scheduler = scheduler;
        (1..).zip(&mut vip.backends).for_each(|(weight, backend)| backend.weight = weight);
        let mut rig = Rig::new(2, 1, vec![vip]);
        open_flows(&mut rig, 2, 1000, 1000);
        for (load, due) in loads(&rig, 2).into_iter().zip([100_u64, 200, 300, 400]) {
            let tolerance = match scheduler {
                SchedulerKind::RoundRobin | SchedulerKind::LeastConnections => 2,
                SchedulerKind::PowerOfTwo { .. } => 15,
                SchedulerKind::Ring { .. } => due * 2 / 5,
                _ => due / 5 + 20,
            };
            assert!(load.abs_diff(due) <= tolerance, "{scheduler}: {load}, due {due}");
        }
    }
}

/// A backend that was out of service comes back empty: schedulers that consider loads fill it
/// first.
#[test]
fn loads_are_what_the_workers_flow_tables_hold() {
    for scheduler in [
        SchedulerKind::LeastConnections,
        SchedulerKind::PowerOfTwo { size: 1009 },
        SchedulerKind::Bounded { size: 1009, e_permille: 250 },
    ] {
        let mut vip = spec(0, Forward::Dsr, Family::V4, 1, 4);
        vip.policy.scheduler = scheduler;
        vip.backends[0].up = false;
        let mut rig = Rig::new(2, 1, vec![vip]);
        open_flows(&mut rig, 2, 1000, 300);
        let before = loads(&rig, 2);
        assert!(before[0] == 0 && before.iter().all(|load| *load <= 127), "{before:?}");
        rig.change(|specs| specs[0].backends[0].up = true);
        open_flows(&mut rig, 2, 2000, 100);
        let after = loads(&rig, 2);
        let enough = match scheduler {
            SchedulerKind::LeastConnections => 98,
            // One of two candidates in every other choice.
            SchedulerKind::PowerOfTwo { .. } => 40,
            _ => 15,
        };
        assert!(after[0] >= enough, "{scheduler}: {before:?}, {after:?}");
    }
}

#[test]
fn clients_have_one_backend_whatever_their_ports() {
    for affinity in [Affinity::Client, Affinity::ClientPrefix { v4: 24, v6: 56 }] {
        let mut rig = client_rig(affinity);
        let mut backend = |host, port| {
            rig.backend_of(&tcp_of((client(host), port), (Family::V4.vip(), 80), "S")).unwrap()
        };
        let mut networks = [None; 40];
        for port in 1000..1010 {
            for (network, first) in (0..).zip(&mut networks) {
                // 256 addresses on: another /24.
                let backend = backend(256 * network, port);
                assert_eq!(*first.get_or_insert(backend), backend, "{affinity:?}");
            }
        }
        let used = networks.iter().flatten().collect::<std::collections::BTreeSet<_>>();
        assert!(used.len() > 4, "they spread: {used:?}");
        let neighbour = backend(7, 1000);
        let same_network = affinity != Affinity::Client;
        assert!(!same_network || Some(neighbour) == networks[0]);
    }
}
