//! A worker of the traffic generator on fake NICs: it loses nothing, keeps its frames, neither
//! allocates nor frees once it runs, and reports the errors of a device between the NICs.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

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

#[path = "support/allocator.rs"]
mod allocator;

use allocator::calls_of;

const RING: u32 = 512;
/// Length of a trial in ns, and packets per second in it.
const TRIAL_NS: u64 = 300_000_000;
const RATE: u32 = 20_000;

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
        rate: Rate::Packets(f64::from(RATE)),
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
    let (client_queue, client_nic) = FakeNic::new(&umem, RING).unwrap();
    let (backend_queue, backend_nic) = FakeNic::new(&umem, RING).unwrap();
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
        client_queue,
        backend_queue: Some(backend_queue),
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

/// A device between the two NICs: appends its output for a packet to the queue.
trait Device: FnMut(Vec<u8>, &mut VecDeque<Vec<u8>>) + Send {}
impl<T: FnMut(Vec<u8>, &mut VecDeque<Vec<u8>>) + Send> Device for T {}

/// A device that forwards every packet unchanged.
fn wire(packet: Vec<u8>, out: &mut VecDeque<Vec<u8>>) {
    out.push_back(packet);
}

/// Carries packets from one NIC to the other through a device, until `stop` is set.
fn carry(client: &mut FakeNic, backend: &mut FakeNic, stop: &AtomicBool, mut device: impl Device) {
    let mut packets = VecDeque::new();
    while !stop.load(Ordering::Acquire) {
        client.collect(|packet| device(packet.to_vec(), &mut packets));
        // A packet that does not fit yet waits: nothing is lost here.
        while packets.front().is_some_and(|packet| backend.deliver(packet)) {
            packets.pop_front();
        }
        std::thread::yield_now();
    }
}

/// Runs a trial through a device; returns the worker, and its number of allocator calls in the
/// trial.
fn run(settings: &Settings, device: impl Device) -> (Worker, u64) {
    let (parts, mut client_nic, mut backend_nic) = parts(settings);
    let start = cpu::monotonic_ns() - parts.epoch_ns;
    let mut worker = Worker::new(parts);
    let renewals = match settings.new_flows {
        rate if rate > 0.0 => Pacer::new(Some(rate), start),
        _ => Pacer::never(),
    };
    let trial = Trial {
        run: 1,
        start,
        end: start + TRIAL_NS,
        pacer: Pacer::new(settings.rate_pps, start),
        renewals,
        closing: false,
    };
    let (live, stop, over) = (Live::default(), AtomicBool::new(false), AtomicBool::new(false));
    let calls = std::thread::scope(|scope| {
        scope.spawn(|| carry(&mut client_nic, &mut backend_nic, &over, device));
        let (calls, ()) = calls_of(|| worker.run(&trial, &live, &stop));
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
        let (worker, calls) = run(&settings(traffic, size, distribution), wire);
        let (sent, received) = (worker.sent(), worker.judge().requests.counts());
        assert!(sent.packets > 1000, "{name}: {sent:?}");
        assert_eq!(received.received, sent.packets, "{name}");
        assert_eq!((received.duplicates, received.reordered, received.violations), (0, 0, 0));
        assert!(worker.client().counts().flows_opened > 100, "{name}");
        assert_eq!(calls, 0, "{name}: allocations");
    }
    assert!(allocator::total() > 0, "the allocator counts");
}

/// Errors that a device made, in packets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Errors {
    dropped: u64,
    doubled: u64,
    swapped: u64,
    moved: u64,
}

/// Errs at the third packet of most flows only: by the flow's number it drops the packet, doubles
/// it, swaps it with the flow's next one, or sends it to another backend.
struct Erring<'a> {
    payload: usize,
    seen: HashMap<u32, u32>,
    held: HashMap<u32, Vec<u8>>,
    errors: &'a Mutex<Errors>,
}

impl Erring<'_> {
    fn forward(&mut self, mut packet: Vec<u8>, out: &mut VecDeque<Vec<u8>>) {
        let number = packet.get(self.payload + 2..).and_then(|rest| rest.first_chunk()).unwrap();
        let flow = u32::from_be_bytes(*number);
        let count = self.seen.entry(flow).or_default();
        *count += 1;
        let mut errors = self.errors.lock().unwrap();
        match (*count, flow % 5) {
            (3, 1) => errors.dropped += 1,
            (3, 2) => {
                errors.doubled += 1;
                out.extend([packet.clone(), packet]);
            }
            (3, 3) => {
                self.held.insert(flow, packet);
            }
            (4, 3) => {
                errors.swapped += 1;
                out.push_back(packet);
                out.extend(self.held.remove(&flow));
            }
            (3, 4) => {
                // One violation there and one back.
                errors.moved += 1;
                *packet.get_mut(5).unwrap() = 0x99;
                out.push_back(packet);
            }
            _ => out.push_back(packet),
        }
    }
}

/// With the full signature, and with the short one, which has a sequence number of half the bits.
#[test]
fn each_error_of_a_device_is_counted_exactly() {
    for traffic in [Traffic::Udp, Traffic::Syn] {
        let mut settings = settings(traffic, Size::Fixed(64), Distribution::Sequential);
        (settings.new_flows, settings.replies) = (0.0, false);
        let errors = Mutex::new(Errors::default());
        let (payload, seen, held) = (settings.layout.payload(), HashMap::new(), HashMap::new());
        let mut erring = Erring { payload, seen, held, errors: &errors };
        let (worker, _) = run(&settings, |packet, out| erring.forward(packet, out));
        let (sent, received) = (worker.sent().packets, worker.judge().requests.counts());
        let packets = sent / u64::from(settings.flows);
        assert!(packets > 5, "the flows have gone on after the errors: {sent}");
        let errors = errors.into_inner().unwrap();
        let each = Errors { dropped: 100, doubled: 100, swapped: 100, moved: 100 };
        assert_eq!(errors, each, "500 flows");
        assert_eq!(sent - received.unique(), errors.dropped, "{traffic:?}: lost");
        assert_eq!(received.duplicates, errors.doubled, "{traffic:?}");
        assert_eq!(received.reordered, errors.swapped, "{traffic:?}");
        assert_eq!(received.violations, 2 * errors.moved, "{traffic:?}: there and back");
    }
}

/// Coordinated omission: during a stall of the device the TX ring is full, so most packets that are
/// due in it are sent after it. All of them must include the wait.
#[test]
fn a_stall_shows_in_the_latency_of_every_packet_that_was_due_in_it() {
    const STALL_NS: u64 = 100_000_000;
    let mut settings = settings(Traffic::Udp, Size::Fixed(64), Distribution::Uniform);
    settings.replies = false;
    let begin = cpu::monotonic_ns();
    let stall = OnceLock::new();
    let (worker, _) = run(&settings, |packet, out| {
        // At the first packet.
        let now = cpu::monotonic_ns();
        if stall.set(now).is_ok() {
            while cpu::monotonic_ns() < now + STALL_NS {
                std::thread::yield_now();
            }
        }
        out.push_back(packet);
    });
    // A packet that was due in the first half of the stall waited for at least half of it.
    let from = *stall.get().unwrap();
    let to = (from + STALL_NS / 2).min(begin + TRIAL_NS);
    let due = (to - from) * u64::from(RATE) / 1_000_000_000;
    let latency = &worker.judge().latency;
    let late = latency.len() - latency.count_between(0, STALL_NS / 2 * 99 / 100);
    assert!(late + 1 >= due, "{late} of {due} packets tell the stall");
    assert!(due > u64::from(RING), "more than were sent into the stall");
    assert_eq!(latency.len(), worker.sent().packets, "none is left out");
}
