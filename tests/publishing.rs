//! Publishing disturbs no traffic: thousands of forwarding tables, published by one thread while a
//! worker forwards on another, lose no packet and break no pin, and the worker frees none.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
#![allow(dead_code, reason = "the rig has more than this test needs")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use holdfast::forwarding::publish::Publisher;
use holdfast::forwarding::{ForwardingTable, Local, VipSpec};
use holdfast::net::Forward;
use holdfast::stats::Drop;
use rig::{Family, Rig, spec, tcp};

mod rig;

const TABLES: u64 = 3000;
const BACKENDS: u16 = 8;
const FLOWS: u16 = 64;

/// Each table has another backend down, or with another weight; every eighth equals the first.
fn publish_all(mut publisher: Publisher, specs: &[VipSpec], published: &AtomicU64) -> Publisher {
    let local = Local { macs: vec![[2, 0xf, 0, 0, 0, 0]], ..Local::default() };
    for number in 1..=TABLES {
        let mut specs = specs.to_vec();
        let backend = &mut specs[0].backends[usize::try_from(number / 2).unwrap() % 8];
        match number % 8 {
            0 => {}
            1 | 3 => backend.weight = 2,
            _ => backend.up = false,
        }
        let previous = publisher.current();
        let table =
            ForwardingTable::build(number + 1, [7; 16], local.clone(), &specs, Some(&previous));
        drop(previous);
        publisher.publish(table);
        published.store(number, Ordering::Release);
        // On one core the worker gets its turn, too.
        thread::yield_now();
    }
    publisher
}

#[test]
fn thousands_of_tables_lose_no_packet_and_break_no_pin() {
    for forward in [Forward::Dsr, Forward::Nat] {
        let mut rig = Rig::new(1, 1, vec![spec(0, forward, Family::V4, 1, BACKENDS)]);
        let mut pinned = Vec::new();
        for port in 1000..1000 + FLOWS {
            rig.send(0, 0, &tcp(Family::V4, port, 80, "S"));
            pinned.push(rig.backend_of(&tcp(Family::V4, port, 80, "A")).unwrap());
        }
        let (publisher, specs) = rig.take_control();
        let published = AtomicU64::new(0);
        let mut publisher = thread::scope(|scope| {
            let control = scope.spawn(|| publish_all(publisher, &specs, &published));
            let mut sent = 0_u16;
            while published.load(Ordering::Acquire) < TABLES {
                let flow = sent % FLOWS;
                sent = sent.wrapping_add(1);
                let backend = rig.backend_of(&tcp(Family::V4, 1000 + flow, 80, "A"));
                assert_eq!(backend, Some(pinned[usize::from(flow)]), "{forward:?}: flow {flow}");
                // A new flow always finds a backend.
                assert!(rig.backend_of(&tcp(Family::V4, 2000 + sent % 512, 80, "S")).is_some());
            }
            control.join().unwrap()
        });
        assert!(rig.backend_of(&tcp(Family::V4, 1000, 80, "A")).is_some(), "the last table");
        publisher.reap();
        assert_eq!(publisher.retained(), 0, "all but the last table are freed, by the publisher");
        for &reason in Drop::ALL {
            assert_eq!(rig.drops(0, reason), 0, "{forward:?}: {}", reason.as_str());
        }
        rig.assert_accounted();
    }
}
