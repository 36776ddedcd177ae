//! A worker of the traffic generator on fake NICs: it loses nothing, keeps its frames, and neither
//! allocates nor frees once it runs.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast::generator::client::Client;
use holdfast::generator::draw::Distribution;
use holdfast::generator::judge::Judge;
use holdfast::generator::pace::Pacer;
use holdfast::generator::packet::{Common, Template};
use holdfast::generator::settings::{Method, Rate, Request, Settings, Size, Traffic};
use holdfast::generator::slots::Board;
use holdfast::generator::worker::{Live, Parts, Trial, Worker};
use holdfast::xdp::cpu;
use holdfast::xdp::fake::FakeNic;
use holdfast::xdp::umem::Umem;

/// The system's allocator; counts the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RING: u32 = 512;

fn settings(traffic: Traffic, size: Size, distribution: Distribution) -> Settings {
    let request = Request {
        interface: "fake0".to_owned(),
        receive: Some("fake1".to_owned()),
        target: "192.0.2.10:80".parse().unwrap(),
        clients: None,
        traffic,
        method: Method::AfXdp,
        flows: 500,
        distribution,
        new_flows: 2000.0,
        size: Some(size),
        rate: Rate::Packets(20_000.0),
        seconds: 0.3,
        warm_up: 0.0,
        workers: 1,
        cores: vec![],
        replies: true,
        next_hop: None,
        seed: 1,
        own_network: false,
    };
    Settings::check(request).unwrap()
}

fn parts(settings: &Settings) -> (Parts, FakeNic, FakeNic) {
    let (umem, pool) = Umem::create(8 * RING + 128, 2048).unwrap();
    let (client_port, client_nic) = FakeNic::new(&umem, RING).unwrap();
    let (backend_port, backend_nic) = FakeNic::new(&umem, RING).unwrap();
    let common = Common {
        layout: settings.layout,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        client: settings.clients.first(),
        target: settings.target.ip(),
        target_port: settings.target.port(),
    };
    let templates = settings.sizes.iter().map(|&size| Template::new(&common, size).unwrap());
    let board = Arc::new(Board::new(settings.flows));
    let parts = Parts {
        client_port,
        backend_port: Some(backend_port),
        ring: RING,
        frames_each: 1,
        pool,
        templates: templates.collect(),
        clients: settings.clients,
        client: Client::new(settings, Arc::clone(&board), 0),
        judge: Judge::new(settings, board).unwrap(),
        epoch_ns: cpu::monotonic_ns(),
    };
    (parts, client_nic, backend_nic)
}

/// Carries packets from one NIC to the other until it is told to stop.
fn wire(client: &mut FakeNic, backend: &mut FakeNic, stop: &AtomicBool) {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while !stop.load(Ordering::Acquire) {
        client.collect(|packet| packets.push(packet.to_vec()));
        // What does not fit yet waits: this wire loses nothing.
        while let Some(packet) = packets.first() {
            if !backend.deliver(packet) {
                break;
            }
            packets.remove(0);
        }
        std::thread::yield_now();
    }
}

/// Runs a trial on a wire; returns the worker, and how often it allocated or freed meanwhile.
fn run(settings: &Settings) -> (Worker, u64) {
    let (parts, mut client_nic, mut backend_nic) = parts(settings);
    let start = cpu::monotonic_ns() - parts.epoch_ns;
    let mut worker = Worker::new(parts);
    let trial = Trial {
        run: 1,
        start,
        end: start + 300_000_000,
        pacer: Pacer::new(settings.rate_pps, start),
        renewals: Pacer::new(Some(settings.new_flows), start),
        closing: false,
    };
    let (live, stop, over) = (Live::default(), AtomicBool::new(false), AtomicBool::new(false));
    let calls = std::thread::scope(|scope| {
        scope.spawn(|| wire(&mut client_nic, &mut backend_nic, &over));
        let before = CALLS.with(Cell::get);
        worker.run(&trial, &live, &stop);
        let calls = CALLS.with(Cell::get) - before;
        over.store(true, Ordering::Release);
        calls
    });
    assert_eq!(live.sent.load(Ordering::Relaxed), worker.sent().packets);
    (worker, calls)
}

#[test]
fn a_worker_on_a_wire_loses_nothing_and_never_allocates() {
    for (traffic, size, distribution) in [
        (Traffic::Udp, Size::Fixed(64), Distribution::Uniform),
        (Traffic::Udp, Size::Imix, Distribution::Zipf { exponent: 1.0 }),
        (Traffic::Tcp, Size::Fixed(64), Distribution::Sequential),
        (Traffic::Syn, Size::Fixed(100), Distribution::Uniform),
    ] {
        let name = format!("{traffic:?} {size:?}");
        let (worker, calls) = run(&settings(traffic, size, distribution));
        let (sent, received) = (worker.sent(), worker.judge().requests.counts());
        assert!(sent.packets > 1000, "{name}: {sent:?}");
        assert_eq!(received.received, sent.packets, "{name}");
        assert_eq!((received.duplicates, received.reordered, received.violations), (0, 0, 0));
        assert!(worker.client().counts().flows_opened > 100, "{name}");
        assert_eq!(calls, 0, "{name}: allocations");
    }
    assert!(CALLS.with(Cell::get) > 0, "the allocator counts");
}
