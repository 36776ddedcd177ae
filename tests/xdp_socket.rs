//! The `xdp` layer on a real kernel: sockets, rings and the XDP program, on a veth pair between
//! two network namespaces that each test makes and removes.
//!
//! ```text
//!  namespace "peer"                         namespace "box"
//!  192.0.2.2  peer0 ======== veth ======== box0  192.0.2.1   (2 queues, XDP, AF_XDP)
//!                                                192.0.2.10  is the VIP
//! ```
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]
#![expect(unsafe_code, reason = "geteuid(2)")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::programs::{ProgramInfo, loaded_programs};
use etherparse::{IpFragOffset, IpNumber, PacketBuilder, VlanId};
use holdfast::net::{Address, Listen, ListenKey, PortRange, Protocol};
use holdfast::xdp::nic::Nic;
use holdfast::xdp::packet::PacketSocket;
use holdfast::xdp::program::{
    AccessDrops, AttachMode, Attached, GUARD_NAME, PROGRAM_NAME, ProgramError, SteerCounters,
    SteerRules, Steering,
};
use holdfast::xdp::queue::{XskQueue, wait};
use holdfast::xdp::socket::{BindMode, Io, SocketError};
use holdfast::xdp::umem::{Frame, FramePool, Umem};

#[path = "support/namespace.rs"]
mod namespace;

use namespace::in_namespace;

const BOX: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const VIP_PORT: u16 = 8080;
const BOX_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const FRAMES: u32 = 4096;
const RING: u32 = 512;
/// Limit of waiting, which only a failure reaches.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two namespaces and the veth pair between them; removed when dropped.
struct Lab {
    inside: String,
    outside: String,
}

impl Lab {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: takes no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        assert_eq!(user, 0, "these tests make network namespaces: run them as root");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("holdfast-xdp-{}-{number}-{side}", std::process::id());
        let lab = Self { inside: name("box"), outside: name("peer") };
        lab.build();
        lab
    }

    fn build(&self) {
        let (inside, outside) = (self.inside.as_str(), self.outside.as_str());
        run(&["ip", "netns", "add", inside]);
        run(&["ip", "netns", "add", outside]);
        for namespace in [inside, outside] {
            // No router solicitations or similar among the packets that are counted.
            let key = "net.ipv6.conf.default.disable_ipv6=1";
            run(&["ip", "netns", "exec", namespace, "sysctl", "-qw", key]);
        }
        run(&[
            "ip",
            "-n",
            inside,
            "link",
            "add",
            "box0",
            "address",
            "02:00:00:00:00:01",
            "numrxqueues",
            "2",
            "numtxqueues",
            "2",
            "type",
            "veth",
            "peer",
            "name",
            "peer0",
            "address",
            "02:00:00:00:00:02",
            "numrxqueues",
            "2",
            "numtxqueues",
            "2",
            "netns",
            outside,
        ]);
        run(&["ip", "-n", inside, "address", "add", "192.0.2.1/24", "dev", "box0"]);
        run(&["ip", "-n", outside, "address", "add", "192.0.2.2/24", "dev", "peer0"]);
        run(&["ip", "-n", inside, "link", "set", "lo", "up"]);
        run(&["ip", "-n", inside, "link", "set", "box0", "up"]);
        run(&["ip", "-n", outside, "link", "set", "peer0", "up"]);
        for address in ["192.0.2.1", "192.0.2.10"] {
            run(&[
                "ip",
                "-n",
                outside,
                "neigh",
                "replace",
                address,
                "lladdr",
                "02:00:00:00:00:01",
                "dev",
                "peer0",
            ]);
        }
        run(&[
            "ip",
            "-n",
            inside,
            "neigh",
            "replace",
            "192.0.2.2",
            "lladdr",
            "02:00:00:00:00:02",
            "dev",
            "box0",
        ]);
        // veth leaves checksums to a later device; XDP does not pass on that they are missing.
        run(&["ip", "netns", "exec", outside, "ethtool", "-K", "peer0", "tx", "off"]);
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(&self.inside, work)
    }

    fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(&self.outside, work)
    }

    /// The XDP program on the box's NIC, as `ip` reports it.
    fn program(&self) -> String {
        let link = run(&["ip", "-n", &self.inside, "-d", "link", "show", "dev", "box0"]);
        let xdp = link.lines().filter(|line| line.contains("prog/xdp"));
        xdp.map(|line| line.trim().to_owned()).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            // Namespaces that could not be made need no removal.
            let _ = Command::new("ip").args(["netns", "delete", namespace]).output();
        }
    }
}

/// Runs a program; returns its output.
fn run(words: &[&str]) -> String {
    let (program, arguments) = words.split_first().unwrap();
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", words.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Repeats `step` until it returns true.
fn until(what: &str, mut step: impl FnMut() -> bool) {
    let start = Instant::now();
    while !step() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
    }
}

fn vip_key() -> ListenKey {
    ListenKey { address: address(VIP), port: VIP_PORT, protocol: Protocol::Udp }
}

fn address(ip: Ipv4Addr) -> Address {
    Address::from_v4(ip.octets())
}

fn rules() -> SteerRules {
    SteerRules { vips: vec![vip_key()], locals: vec![address(BOX)], ..SteerRules::default() }
}

/// Sockets, frames and program of a worker, without the worker.
struct Bench {
    ports: Vec<XskQueue>,
    pool: FramePool,
    steering: Steering,
}

impl Bench {
    /// Starts on the box, with the rules of [`rules`].
    fn start(mode: AttachMode) -> Self {
        Self::start_with(mode, Io { mode: BindMode::Copy, ..Io::default() })
    }

    fn start_with(mode: AttachMode, io: Io) -> Self {
        let bench = Self::open("box0", mode, io, &rules());
        let nic = Nic::open("box0").unwrap();
        assert_eq!((nic.rx_queues(), nic.driver(), nic.mac()), (2, "veth", BOX_MAC));
        assert!(nic.is_up() && nic.mtu() == 1500);
        bench
    }

    /// Opens two sockets and attaches the program.
    fn open(name: &str, mode: AttachMode, io: Io, rules: &SteerRules) -> Self {
        let (umem, mut pool) = Umem::create(FRAMES, 2048).unwrap();
        let nic = Nic::open(name).unwrap();
        let mut steering = Steering::load(&nic, mode).unwrap();
        let prepared = steering.prepare().unwrap();
        let open = |queue| XskQueue::open(&umem, &nic, queue, RING, io).unwrap();
        let mut ports = vec![open(0), open(1)];
        for (queue, port) in (0..).zip(&mut ports) {
            assert!(!port.zero_copy() && !port.is_fake());
            port.refill(&mut pool);
            steering.set_socket(queue, port).unwrap();
        }
        steering.sync(rules).unwrap();
        assert_eq!(steering.attach().unwrap(), prepared, "sockets were bound for this mode");
        Self { ports, pool, steering }
    }

    /// Polls every port once; `each` gets a received frame, and returns the frame to send or to
    /// release.
    fn poll(&mut self, mut each: impl FnMut(Frame) -> Result<Frame, Frame>) {
        wait(&self.ports, None, 10);
        for port in &mut self.ports {
            port.reclaim(&mut self.pool);
            port.refill(&mut self.pool);
            let mut batch = Vec::new();
            port.receive(64, |frame| batch.push(frame));
            for frame in batch {
                let unsent = each(frame).and_then(|frame| port.transmit(frame));
                if let Err(frame) = unsent {
                    self.pool.push(frame);
                }
            }
            port.flush();
            assert_eq!(port.bad_descriptors(), 0);
        }
        let with_kernel: u32 = self.ports.iter().map(XskQueue::with_kernel).sum();
        assert_eq!(self.pool.len() + with_kernel as usize, FRAMES as usize, "a frame is lost");
    }
}

/// Swaps source and destination of a UDP packet: checksums stay right, as a sum has no order.
fn turn_around(mut frame: Frame) -> Frame {
    let data = frame.data_mut();
    for (a, b, len) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        (a..a + len).zip(b..b + len).for_each(|(a, b)| data.swap(a, b));
    }
    frame
}

fn packets_go_both_ways(mode: AttachMode, expected: Attached) {
    let lab = Lab::new();
    let client = lab.outside(|| {
        let socket = UdpSocket::bind((PEER, 5000)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    let server = lab.inside(|| {
        let socket = UdpSocket::bind((BOX, VIP_PORT)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    lab.inside(move || {
        let mut bench = Bench::start(mode);
        assert_eq!(bench.steering.mode(), Some(expected));
        let mut buffer = [0; 2048];

        // For a VIP: to the socket, and back.
        for number in 0..200u32 {
            client.send_to(&number.to_be_bytes(), (VIP, VIP_PORT)).unwrap();
            let mut received = 0;
            until("a packet for the VIP", || {
                bench.poll(|frame| {
                    received += 1;
                    assert_eq!(frame.headroom(), 256);
                    Ok(turn_around(frame))
                });
                received > 0
            });
            assert_eq!(received, 1);
            let (len, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from, SocketAddr::from((VIP, VIP_PORT)));
            assert_eq!(buffer.get(..len).unwrap(), number.to_be_bytes());
        }
        until("the last completion", || {
            bench.poll(Err);
            bench.ports.iter().all(|port| port.outstanding() == 0)
        });

        // Not for a VIP: to the kernel, though the port is the same.
        client.send_to(b"to the kernel", (BOX, VIP_PORT)).unwrap();
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer.get(..len).unwrap(), b"to the kernel");
        assert_eq!(from, SocketAddr::from((PEER, 5000)));
        bench.poll(|_| panic!("this was not for a VIP"));

        let counters = bench.steering.counters().unwrap();
        assert_eq!((counters.steered, counters.returned, counters.no_socket), (200, 0, 0));
        for port in &bench.ports {
            let statistics = port.statistics().unwrap();
            assert_eq!((statistics.rx_dropped, statistics.tx_invalid), (0, 0));
        }
    });
    assert_eq!(lab.program(), "", "a dropped Steering leaves no program");
}

#[test]
fn packets_go_both_ways_in_native_mode() {
    packets_go_both_ways(AttachMode::Native, Attached::Native);
}

#[test]
fn packets_go_both_ways_in_generic_mode() {
    packets_go_both_ways(AttachMode::Generic, Attached::Generic);
}

#[test]
fn packets_go_both_ways_in_the_mode_that_auto_finds() {
    packets_go_both_ways(AttachMode::Auto, Attached::Native);
}

#[test]
fn a_full_transmit_ring_drains_over_several_polls() {
    let lab = Lab::new();
    lab.inside(|| {
        let io = Io { tx_budget: 32, ..Io::default() };
        let mut bench = Bench::start_with(AttachMode::Native, io);
        let mut queued = 0;
        while let Some(mut frame) = bench.pool.pop() {
            assert!(frame.copy_from(&udp(PEER, VIP, VIP_PORT)));
            let Err(back) = bench.ports.first_mut().unwrap().transmit(frame) else {
                queued += 1;
                continue;
            };
            bench.pool.push(back);
            break;
        }
        assert_eq!(queued, RING, "the ring takes what it was made for");
        until("all completions", || {
            bench.poll(Err);
            bench.ports.iter().all(|port| port.outstanding() == 0)
        });
    });
}

#[test]
fn fewer_packets_than_tx_kick_wait_only_as_long_as_more_are_added() {
    let lab = Lab::new();
    lab.inside(|| {
        let io = Io { tx_kick: 3, ..Io::default() };
        let mut bench = Bench::start_with(AttachMode::Native, io);
        let mut poll = |sends: bool| {
            let port = bench.ports.first_mut().unwrap();
            if sends {
                let mut frame = bench.pool.pop().unwrap();
                assert!(frame.copy_from(&udp(PEER, VIP, VIP_PORT)));
                port.transmit(frame).unwrap();
            }
            port.flush()
        };
        let polls = [true, true, true, true, false, true, false, false];
        let kicks = [false, false, true, false, true, false, true, false];
        assert_eq!(polls.map(&mut poll), kicks);
    });
}

/// Runs a function when dropped, also when a test fails.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Both sides send at once, as fast as they can: frames are conserved, and neither side gets stuck.
fn reflect_under_full_load(io: Io) {
    const ENOUGH: u64 = 100_000;
    let lab = Lab::new();
    let done = AtomicBool::new(false);
    let sent_back = std::thread::scope(|scope| {
        let reflector = scope.spawn(|| {
            lab.inside(|| {
                let mut bench = Bench::start_with(AttachMode::Native, io);
                let mut reflected = 0u64;
                while !done.load(Ordering::Relaxed) {
                    bench.poll(|frame| {
                        reflected += 1;
                        Ok(turn_around(frame))
                    });
                }
                reflected
            })
        });
        let _stop = OnDrop(|| done.store(true, Ordering::Relaxed));
        let received = lab.outside(|| {
            let all = ListenKey { address: address(PEER), port: 0, protocol: Protocol::Udp };
            let rules = SteerRules { vips: vec![all], ..SteerRules::default() };
            let mut bench = Bench::open("peer0", AttachMode::Native, io, &rules);
            let packet = udp(PEER, VIP, VIP_PORT);
            let mut received = 0;
            until("packets that come back", || {
                for port in &mut bench.ports {
                    // Some stay free to receive into.
                    while bench.pool.len() > RING as usize
                        && let Some(mut frame) = bench.pool.pop()
                    {
                        assert!(frame.copy_from(&packet));
                        if let Err(frame) = port.transmit(frame) {
                            bench.pool.push(frame);
                            break;
                        }
                    }
                }
                bench.poll(|frame| {
                    received += 1;
                    Err(frame)
                });
                received >= ENOUGH
            });
            done.store(true, Ordering::Relaxed);
            received
        });
        let reflected = reflector.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (reflected, received)
    });
    let (reflected, received) = sent_back;
    assert!(received <= reflected, "{received} of {reflected}");
}

#[test]
fn a_reflector_under_full_load_keeps_every_frame_with_any_setting() {
    let default = Io::default();
    reflect_under_full_load(default);
    reflect_under_full_load(Io { tx_budget: 32, ..default });
    reflect_under_full_load(Io { tx_budget: 32_768, tx_kick: 32_768, ..default });
    reflect_under_full_load(Io { need_wakeup: false, ..default });
    reflect_under_full_load(Io { busy_poll: 64, ..default });
}

/// Attaches a program with sockets in `lab`, and ends like a killed process: the sockets close, but
/// the program is not detached.
fn leave_a_program(lab: &Lab, mode: AttachMode) {
    lab.inside(|| {
        let Bench { steering, ports, .. } = Bench::start(mode);
        std::mem::forget(steering);
        drop(ports);
    });
}

#[test]
fn the_program_of_a_killed_process_drops_vip_packets_and_is_replaced() {
    let lab = Lab::new();
    // The kernel would answer for the VIP if it received the packets.
    run(&["ip", "-n", &lab.inside, "address", "add", "192.0.2.10/32", "dev", "lo"]);
    for (left, mode, expected) in [
        (AttachMode::Native, AttachMode::Auto, Attached::Native),
        (AttachMode::Generic, AttachMode::Auto, Attached::Generic),
        (AttachMode::Generic, AttachMode::Native, Attached::Native),
        (AttachMode::Native, AttachMode::Generic, Attached::Generic),
    ] {
        leave_a_program(&lab, left);
        let before = lab.program();
        assert!(before.contains(PROGRAM_NAME), "{before}");

        let kernel = lab.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, VIP_PORT)).unwrap());
        kernel.set_read_timeout(Some(PATIENCE)).unwrap();
        lab.outside(|| {
            let client = UdpSocket::bind((PEER, 0)).unwrap();
            client.send_to(b"for the VIP", (VIP, VIP_PORT)).unwrap();
            client.send_to(b"for the box", (BOX, VIP_PORT)).unwrap();
        });
        let mut buffer = [0; 64];
        let len = kernel.recv(&mut buffer).unwrap();
        assert_eq!(buffer.get(..len).unwrap(), b"for the box", "the VIP's packet is dropped");

        lab.inside(|| {
            let bench = Bench::start(mode);
            assert_eq!(bench.steering.mode(), Some(expected), "{left:?}, then {mode:?}");
            let kept = (left, mode) == (AttachMode::Generic, AttachMode::Auto);
            assert_eq!(bench.steering.fallback_reason().is_some(), kept);
            let after = lab.program();
            assert!(after.contains(PROGRAM_NAME) && after != before, "{before} -> {after}");
        });
        assert_eq!(lab.program(), "", "the replacement is removed at a clean stop");
    }
}

/// Sockets are bound while a program is attached, so that the XDP mode is certain: our program
/// without rules, or the one that a killed process left.
#[test]
fn before_sockets_are_bound_a_program_is_attached_that_changes_nothing() {
    let lab = Lab::new();
    for (left, expected) in
        [(None, Attached::Native), (Some(AttachMode::Generic), Attached::Generic)]
    {
        if let Some(mode) = left {
            leave_a_program(&lab, mode);
        }
        let before = lab.program();
        let mut steering =
            lab.inside(|| Steering::load(&Nic::open("box0").unwrap(), AttachMode::Auto).unwrap());
        assert_eq!(steering.prepare().unwrap(), expected, "{left:?}");
        let attached = lab.program();
        assert!(attached.contains(PROGRAM_NAME), "{attached}");
        assert_eq!(attached == before, left.is_some(), "{before} -> {attached}");
        if left.is_none() {
            let kernel = lab.inside(|| UdpSocket::bind((BOX, VIP_PORT)).unwrap());
            kernel.set_read_timeout(Some(PATIENCE)).unwrap();
            lab.outside(|| {
                let client = UdpSocket::bind((PEER, 0)).unwrap();
                client.send_to(b"still the kernel's", (BOX, VIP_PORT)).unwrap();
            });
            let mut buffer = [0; 64];
            kernel.recv(&mut buffer).unwrap();
            assert_eq!(steering.counters().unwrap().steered, 0);
        }
        drop(steering);
        assert_eq!(lab.program(), before, "a start that fails leaves what it found");
    }
}

/// The verifier's work is a part of each start, in which nothing is forwarded. It was 57 ms before the
/// program was divided into functions that the verifier goes through once.
#[test]
fn the_verifier_goes_through_few_instructions() {
    let lab = Lab::new();
    let mut steering =
        lab.inside(|| Steering::load(&Nic::open("box0").unwrap(), AttachMode::Auto).unwrap());
    // Without an interface the guard is loaded all the same.
    let _ = steering.try_guard(&[0; 64]);
    let verified = |wanted: &dyn Fn(&ProgramInfo) -> bool| {
        let mut programs = loaded_programs().filter_map(Result::ok);
        programs.find(wanted).unwrap().verified_instruction_count().unwrap()
    };
    let steer = verified(&|program| program.id() == steering.id());
    let guard = verified(&|program| program.name() == GUARD_NAME.as_bytes());
    assert!((1000..12_000).contains(&steer), "{steer} for the XDP program");
    assert!((500..12_000).contains(&guard), "{guard} for the guard");
}

#[test]
fn a_foreign_program_is_refused_and_left_alone() {
    let lab = Lab::new();
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(&lab.inside);
    std::fs::create_dir(&folder).unwrap();
    let (source, object) = (folder.join("other.c"), folder.join("other.o"));
    std::fs::write(
        &source,
        "__attribute__((section(\"xdp\"), used)) int other_prog(void *c) { return c ? 2 : 2; }\n\
         char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n",
    )
    .unwrap();
    let (source, object) = (source.to_str().unwrap(), object.to_str().unwrap());
    run(&["clang", "-O2", "-g", "-target", "bpf", "-c", source, "-o", object]);
    run(&[
        "ip",
        "-n",
        &lab.inside,
        "link",
        "set",
        "dev",
        "box0",
        "xdpgeneric",
        "obj",
        object,
        "sec",
        "xdp",
    ]);
    std::fs::remove_dir_all(&folder).unwrap();
    let before = lab.program();
    assert!(before.contains("other_prog"), "{before}");

    lab.inside(|| {
        let nic = Nic::open("box0").unwrap();
        let mut steering = Steering::load(&nic, AttachMode::Auto).unwrap();
        let error = steering.prepare().unwrap_err();
        assert!(matches!(error, ProgramError::Foreign { .. }), "{error}");
        for part in ["other_prog", "generic", "ip link set dev box0 xdpgeneric off"] {
            assert!(error.to_string().contains(part), "{part:?} missing from {error}");
        }
    });
    assert_eq!(lab.program(), before);
    run(&["ip", "-n", &lab.inside, "link", "set", "dev", "box0", "xdpgeneric", "off"]);
    lab.inside(|| drop(Bench::start(AttachMode::Auto)));
}

#[test]
fn refusals_of_the_kernel_are_reported_with_their_cure() {
    let lab = Lab::new();
    lab.inside(|| {
        let (umem, _pool) = Umem::create(FRAMES, 2048).unwrap();
        let nic = Nic::open("box0").unwrap();
        let refusal = |queue, mode| {
            let io = Io { mode, ..Io::default() };
            XskQueue::open(&umem, &nic, queue, RING, io).err().unwrap()
        };

        let error = refusal(2, BindMode::Copy);
        assert!(matches!(error, SocketError::NoSuchQueue { queues: 2, .. }), "{error}");

        let error = refusal(0, BindMode::ZeroCopy).to_string();
        assert_eq!(
            error,
            "box0 queue 0: bind(XDP_ZEROCOPY) refused (EOPNOTSUPP): driver veth has no zero copy; \
             set mode = \"copy\" for this NIC"
        );

        let first = XskQueue::open(&umem, &nic, 0, RING, Io::default()).unwrap();
        assert!(!first.zero_copy());
        let error = refusal(0, BindMode::Auto);
        assert!(matches!(error, SocketError::Busy { queue: 0, .. }), "{error}");

        // Waits for an owner that is about to close.
        let open = std::thread::scope(|scope| {
            scope.spawn(move || drop(first));
            XskQueue::open(&umem, &nic, 0, RING, Io::default())
        });
        assert!(open.is_ok(), "{:?}", open.err());
    });
}

#[test]
fn rules_can_be_changed_while_packets_flow() {
    let lab = Lab::new();
    let client = lab.outside(|| UdpSocket::bind((PEER, 5000)).unwrap());
    let kernel = lab.inside(|| UdpSocket::bind((BOX, 7000)).unwrap());
    kernel.set_read_timeout(Some(PATIENCE)).unwrap();
    lab.inside(|| {
        let mut bench = Bench::start(AttachMode::Native);
        let on_box = |port| ListenKey { address: address(BOX), port, protocol: Protocol::Udp };
        for vips in [vec![on_box(7000)], vec![on_box(0)], vec![on_box(7000), vip_key()]] {
            bench.steering.sync(&SteerRules { vips, ..SteerRules::default() }).unwrap();
            client.send_to(b"steered", (BOX, 7000)).unwrap();
            let mut received = 0;
            until("a packet for the new VIP", || {
                bench.poll(|frame| {
                    received += 1;
                    Err(frame)
                });
                received > 0
            });
            bench.steering.sync(&rules()).unwrap();
            client.send_to(b"passed", (BOX, 7000)).unwrap();
            let mut buffer = [0; 64];
            let len = kernel.recv(&mut buffer).unwrap();
            assert_eq!(buffer.get(..len).unwrap(), b"passed");
        }
    });
}

/// A UDP packet from port 5000.
fn udp(source: Ipv4Addr, destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(PEER_MAC, BOX_MAC)
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(5000, port);
    let mut bytes = Vec::new();
    packet.write(&mut bytes, b"payload").unwrap();
    bytes
}

/// A backend's reply from `port`, as a UDP packet.
fn answer(source: Ipv4Addr, port: u16, destination: Ipv4Addr) -> Vec<u8> {
    let mut bytes = udp(source, destination, 5000);
    bytes.splice(34..36, port.to_be_bytes());
    bytes
}

fn tcp(destination: Ipv4Addr, port: u16) -> Vec<u8> {
    let packet = PacketBuilder::ethernet2(PEER_MAC, BOX_MAC)
        .ipv4(PEER.octets(), destination.octets(), 64)
        .tcp(5000, port, 1, 1024);
    let mut bytes = Vec::new();
    packet.write(&mut bytes, &[]).unwrap();
    bytes
}

const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const PEER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn udp6(destination: [u8; 16], port: u16) -> Vec<u8> {
    let packet =
        PacketBuilder::ethernet2(PEER_MAC, BOX_MAC).ipv6(PEER6, destination, 64).udp(5000, port);
    let mut bytes = Vec::new();
    packet.write(&mut bytes, b"payload").unwrap();
    bytes
}

/// Inserts an extension header of 8 bytes between an IPv6 header and its payload.
fn with_extension(mut bytes: Vec<u8>, kind: u8, header: [u8; 8]) -> Vec<u8> {
    bytes.splice(20..21, [kind]);
    bytes.splice(54..54, header);
    bytes
}

/// Sets the fragment field of an IPv4 header.
fn as_fragment(mut bytes: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    let offset = IpFragOffset::try_new(offset).unwrap().value();
    bytes.splice(20..22, (offset | u16::from(more) << 13).to_be_bytes());
    bytes
}

/// Inserts VLAN tags after the addresses of a frame.
fn tagged(mut bytes: Vec<u8>, tags: usize) -> Vec<u8> {
    for tag in 0..tags {
        let kind: [u8; 2] = if tag == 0 { [0x81, 0] } else { [0x88, 0xa8] };
        let id = VlanId::try_new(7).unwrap().value().to_be_bytes();
        bytes.splice(12..12, kind.into_iter().chain(id));
    }
    bytes
}

fn cut(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.truncate(len);
    bytes
}

fn changed(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes.splice(at..=at, [value]);
    bytes
}

const STEERED: &str = "steered";
const RETURNED: &str = "returned";
const PASSED: &str = "passed";

/// One row per rule of the program: name, expected verdict, packet. There is no socket, so
/// redirected packets are dropped and counted as redirected.
#[test]
fn the_program_steers_what_is_for_workers_and_passes_the_rest() {
    const FRAGMENT: u8 = IpNumber::IPV6_FRAGMENTATION_HEADER.0;
    const OPTIONS: u8 = IpNumber::IPV6_HEADER_HOP_BY_HOP.0;
    let [udp_number, tcp_number, icmp6] = [IpNumber::UDP.0, IpNumber::TCP.0, IpNumber::IPV6_ICMP.0];
    let backend = Ipv4Addr::new(192, 0, 2, 77);
    let open_backend = Ipv4Addr::new(192, 0, 2, 78);
    let client = Ipv4Addr::new(198, 51, 100, 1);
    let all_ports = Ipv4Addr::new(192, 0, 2, 11);
    let fragment = |next, offset: u8| [next, 0, 0, offset, 0, 0, 0, 1];

    let rows: &[(&str, &str, Vec<u8>)] = &[
        ("a VIP's port", STEERED, udp(PEER, VIP, VIP_PORT)),
        ("a frame for another MAC", PASSED, changed(udp(PEER, VIP, VIP_PORT), 5, 9)),
        ("a frame for everybody", PASSED, changed(udp(PEER, VIP, VIP_PORT), 0, 0xff)),
        ("another port of it", PASSED, udp(PEER, VIP, VIP_PORT + 1)),
        ("the other protocol", PASSED, tcp(VIP, VIP_PORT)),
        ("a VIP with all ports", STEERED, tcp(all_ports, 1)),
        ("the box itself", PASSED, udp(PEER, BOX, VIP_PORT)),
        ("IPv6", STEERED, udp6(VIP6, VIP_PORT)),
        ("another IPv6 port", PASSED, udp6(VIP6, VIP_PORT + 1)),
        ("another IPv6 address", PASSED, udp6(PEER6, VIP_PORT)),
        ("one VLAN tag", STEERED, tagged(udp(PEER, VIP, VIP_PORT), 1)),
        ("two VLAN tags", STEERED, tagged(udp6(VIP6, VIP_PORT), 2)),
        ("three VLAN tags", PASSED, tagged(udp(PEER, VIP, VIP_PORT), 3)),
        ("a VLAN tag that is cut short", PASSED, cut(tagged(udp(PEER, VIP, VIP_PORT), 1), 16)),
        ("an unknown ICMP type", PASSED, changed(udp(PEER, VIP, VIP_PORT), 23, 1)),
        ("an unknown ICMPv6 type", PASSED, changed(udp6(VIP6, VIP_PORT), 20, icmp6)),
        ("ARP", PASSED, changed(udp(PEER, VIP, VIP_PORT), 13, 6)),
        ("an IP header that is cut short", PASSED, cut(udp(PEER, VIP, VIP_PORT), 33)),
        ("an IPv6 header that is cut short", PASSED, cut(udp6(VIP6, VIP_PORT), 53)),
        ("ports that are cut short", STEERED, cut(udp(PEER, VIP, VIP_PORT), 37)),
        ("other ports that are cut short", STEERED, cut(udp(PEER, VIP, 1), 34)),
        ("cut short, the box itself", PASSED, cut(udp(PEER, BOX, VIP_PORT), 37)),
        ("cut short, the other protocol", PASSED, cut(tcp(VIP, VIP_PORT), 37)),
        ("IPv6 ports that are cut short", STEERED, cut(udp6(VIP6, VIP_PORT), 57)),
        ("a wrong IPv4 header length", STEERED, changed(udp(PEER, VIP, VIP_PORT), 14, 0x44)),
        ("IPv4 options", STEERED, {
            let mut bytes = changed(udp(PEER, VIP, VIP_PORT), 14, 0x46);
            bytes.splice(34..34, [1; 4]);
            bytes
        }),
        ("the first fragment", STEERED, as_fragment(udp(PEER, VIP, VIP_PORT), 0, true)),
        ("a first fragment, another port", STEERED, as_fragment(udp(PEER, VIP, 1), 0, true)),
        ("a later fragment", STEERED, as_fragment(udp(PEER, VIP, VIP_PORT), 100, true)),
        ("the last fragment", STEERED, as_fragment(udp(PEER, VIP, VIP_PORT), 100, false)),
        ("a fragment of the other protocol", PASSED, as_fragment(tcp(VIP, VIP_PORT), 100, true)),
        ("a fragment for the box", PASSED, as_fragment(udp(PEER, BOX, VIP_PORT), 100, true)),
        (
            "an IPv6 fragment",
            STEERED,
            with_extension(udp6(VIP6, 1), FRAGMENT, fragment(udp_number, 8)),
        ),
        (
            "the first IPv6 fragment",
            STEERED,
            with_extension(udp6(VIP6, 1), FRAGMENT, fragment(udp_number, 1)),
        ),
        (
            "an IPv6 fragment of the other protocol",
            PASSED,
            with_extension(udp6(VIP6, 1), FRAGMENT, fragment(tcp_number, 8)),
        ),
        (
            "an IPv6 fragment of ICMPv6",
            PASSED,
            with_extension(udp6(VIP6, 1), FRAGMENT, fragment(icmp6, 8)),
        ),
        (
            "an IPv6 fragment that is cut short",
            STEERED,
            cut(with_extension(udp6(VIP6, 1), FRAGMENT, fragment(icmp6, 8)), 58),
        ),
        (
            "an IPv6 fragment for no VIP",
            PASSED,
            with_extension(udp6(PEER6, 1), FRAGMENT, fragment(udp_number, 8)),
        ),
        (
            "an IPv6 extension header",
            STEERED,
            with_extension(udp6(VIP6, VIP_PORT), OPTIONS, [udp_number, 0, 1, 4, 0, 0, 0, 0]),
        ),
        (
            "an IPv6 extension header for no VIP",
            PASSED,
            with_extension(udp6(PEER6, VIP_PORT), OPTIONS, [udp_number, 0, 1, 4, 0, 0, 0, 0]),
        ),
        ("a backend's answer", RETURNED, answer(backend, 53, client)),
        ("from its other port", PASSED, answer(backend, 54, client)),
        ("from a backend with all ports", RETURNED, answer(open_backend, 54, client)),
        ("its answer to a health check", PASSED, answer(backend, 53, BOX)),
        ("its answer to many", PASSED, answer(backend, 53, Ipv4Addr::new(224, 0, 0, 251))),
        ("its answer to all", PASSED, answer(backend, 53, Ipv4Addr::BROADCAST)),
        ("its answer in a broadcast frame", PASSED, changed(answer(backend, 53, client), 0, 0xff)),
        (
            "the first fragment of an answer",
            RETURNED,
            as_fragment(answer(backend, 53, client), 0, true),
        ),
        (
            "a later fragment of an answer",
            RETURNED,
            as_fragment(answer(backend, 53, client), 100, true),
        ),
        ("an answer that is cut short", PASSED, cut(answer(backend, 53, client), 37)),
        ("a backend as a client of a VIP", STEERED, udp(backend, VIP, VIP_PORT)),
    ];

    let key = |ip, port, protocol| ListenKey { address: address(ip), port, protocol };
    let on_v6 =
        ListenKey { address: Address::from_v6(VIP6), port: VIP_PORT, protocol: Protocol::Udp };
    let rules = SteerRules {
        vips: vec![vip_key(), on_v6, key(all_ports, 0, Protocol::Tcp)],
        returns: vec![key(backend, 53, Protocol::Udp), key(open_backend, 0, Protocol::Udp)],
        locals: vec![address(BOX), address(VIP)],
        ..SteerRules::default()
    };
    judge(rows, &rules);
}

/// Sends the packet of every row to a program with these rules, and verifies its counters.
fn judge(rows: &[(&str, &str, Vec<u8>)], rules: &SteerRules) {
    let lab = Lab::new();
    let mut steering =
        lab.inside(|| Steering::load(&Nic::open("box0").unwrap(), AttachMode::Native)).unwrap();
    steering.sync(rules).unwrap();
    steering.attach().unwrap();
    let peer = lab.outside(|| Nic::open("peer0")).unwrap().index();
    let packets = lab.outside(PacketSocket::open).unwrap();
    let mut before = steering.counters().unwrap();
    for (name, expected, packet) in rows {
        packets.send(peer, packet).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut after = before;
        until(name, || {
            after = steering.counters().unwrap();
            after != before
        });
        let one = u64::from;
        let wanted = SteerCounters {
            steered: before.steered + one(*expected == STEERED),
            returned: before.returned + one(*expected == RETURNED),
            passed: before.passed + one(*expected == PASSED),
            no_socket: before.no_socket + one(*expected != PASSED),
            guarded: 0,
            dropped: AccessDrops::default(),
        };
        // Counters are read CPU by CPU, and written CPU by CPU.
        until(name, || {
            after = steering.counters().unwrap();
            assert!(after.steered <= wanted.steered && after.returned <= wanted.returned, "{name}");
            assert!(after.passed <= wanted.passed, "{name}: passed, not {expected}");
            after == wanted
        });
        before = after;
    }
}

/// A packet of any protocol, with `payload` after the IP header.
fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, BOX_MAC)
        .ipv4(source.octets(), destination.octets(), 64)
        .write(&mut bytes, IpNumber(protocol), payload)
        .unwrap();
    bytes
}

fn ip6(destination: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, BOX_MAC)
        .ipv6(PEER6, destination, 64)
        .write(&mut bytes, IpNumber(next), payload)
        .unwrap();
    bytes
}

/// An ICMP message of this type that quotes an Ethernet frame's packet, or the beginning of it.
fn icmp(kind: u8, quoted: &[u8]) -> Vec<u8> {
    let header = [kind, 0, 0, 0, 0, 0, 0, 0];
    header.iter().chain(quoted.get(14..).unwrap_or_default()).copied().collect()
}

/// Rows for addresses that prefixes match, for ICMP, and for packets returning to local addresses.
#[test]
fn the_program_steers_by_prefixes_ranges_and_quoted_packets() {
    const ICMP: u8 = IpNumber::ICMP.0;
    const ICMP6: u8 = IpNumber::IPV6_ICMP.0;
    const ESP: u8 = IpNumber::ENCAPSULATING_SECURITY_PAYLOAD.0;
    const SCTP: u8 = IpNumber::SCTP.0;
    const GRE: u8 = IpNumber::GRE.0;
    const FRAGMENT: u8 = IpNumber::IPV6_FRAGMENTATION_HEADER.0;
    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let (client, elsewhere) = (v4("198.51.100.1"), v4("198.51.100.2"));
    // A VIP /28 with TCP ports 8000-8999. One of its addresses also has UDP 53, and one is a local
    // address of this box.
    let (inside, exact, own) = (v4("203.0.113.5"), v4("203.0.113.6"), v4("203.0.113.7"));
    let (all, any, pool, tunnel) =
        (v4("192.0.2.64"), v4("192.0.2.11"), v4("10.0.0.50"), v4("10.0.0.1"));
    let (nat, nat_range) = (v4("10.0.1.1"), v4("10.0.1.2"));
    let any6 = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let nat6 = [0x20, 1, 0xd, 0xb8, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let to = |destination, port| tcp(destination, port);
    let error = |destination, quoted: &[u8]| ip(PEER, destination, ICMP, &icmp(3, quoted));
    let options = |mut quoted: Vec<u8>| {
        quoted.splice(14..15, [0x46]);
        quoted.splice(34..34, [1; 4]);
        quoted
    };
    let fragment = [IpNumber::UDP.0, 0, 0, 8, 0, 0, 0, 1];

    let rows: &[(&str, &str, Vec<u8>)] = &[
        ("the first port of a range", STEERED, to(inside, 8000)),
        ("the last port of a range", STEERED, to(inside, 8999)),
        ("the port before a range", PASSED, to(inside, 7999)),
        ("the port after a range", PASSED, to(inside, 9000)),
        ("a range, the other protocol", PASSED, udp(PEER, inside, 8000)),
        ("the first address of a prefix", STEERED, to(v4("203.0.113.0"), 8500)),
        ("the last address of a prefix", STEERED, to(v4("203.0.113.15"), 8500)),
        ("the address before a prefix", PASSED, to(v4("203.0.112.255"), 8500)),
        ("the address after a prefix", PASSED, to(v4("203.0.113.16"), 8500)),
        ("an address with a port of its own", STEERED, udp(PEER, exact, 53)),
        ("the port of its prefix", STEERED, to(exact, 8500)),
        ("an address of this box in a prefix", PASSED, to(own, 8500)),
        ("all ports of a prefix", STEERED, udp(PEER, all, 1)),
        ("all ports, the other protocol", PASSED, to(all, 1)),
        ("a fragment for a prefix", STEERED, as_fragment(to(inside, 1), 9, true)),
        ("a fragment, the other protocol", PASSED, as_fragment(udp(PEER, inside, 1), 9, true)),
        ("cut short, for a prefix", STEERED, cut(to(inside, 8000), 37)),
        ("ESP to a VIP without it", PASSED, ip(PEER, inside, ESP, &[0; 8])),
        ("ESP", STEERED, ip(PEER, any, ESP, &[0; 8])),
        ("SCTP", STEERED, ip(PEER, any, SCTP, &[0; 12])),
        ("GRE", STEERED, ip(PEER, any, GRE, &[0; 4])),
        ("TCP to all protocols", STEERED, to(any, 7)),
        ("UDP to all protocols", STEERED, udp(PEER, any, 7)),
        ("a fragment of ESP", STEERED, as_fragment(ip(PEER, any, ESP, &[0; 8]), 9, true)),
        ("IPv6 ESP", STEERED, ip6(any6, ESP, &[0; 8])),
        ("IPv6 AH", STEERED, ip6(any6, IpNumber::AUTHENTICATION_HEADER.0, &[0; 16])),
        ("IPv6 without next header", STEERED, ip6(any6, IpNumber::IPV6_NO_NEXT_HEADER.0, &[])),
        ("an IPv6 fragment of ESP", STEERED, ip6(any6, FRAGMENT, &[ESP, 0, 0, 8, 0, 0, 0, 1])),
        ("neighbour discovery", PASSED, ip6(any6, ICMP6, &icmp(135, &[]))),
        ("an advertisement", PASSED, ip6(any6, ICMP6, &icmp(136, &[]))),
        ("echo to a VIP", STEERED, ip(PEER, inside, ICMP, &icmp(8, &[]))),
        ("echo to all protocols", STEERED, ip6(any6, ICMP6, &icmp(128, &[]))),
        ("an echo reply to a VIP", PASSED, ip(PEER, any, ICMP, &icmp(0, &[]))),
        ("a redirect to a VIP", PASSED, ip(PEER, any, ICMP, &icmp(5, &[]))),
        ("echo that is cut short", PASSED, ip(PEER, inside, ICMP, &[8, 0, 0, 0])),
        (
            "a fragment of an echo",
            PASSED,
            as_fragment(ip(PEER, inside, ICMP, &icmp(8, &[])), 0, true),
        ),
        ("echo to this box", PASSED, ip(PEER, own, ICMP, &icmp(8, &[]))),
        ("unreachable", STEERED, error(inside, &udp(inside, client, 9))),
        ("time exceeded", STEERED, ip(PEER, inside, ICMP, &icmp(11, &[]))),
        ("parameter problem", STEERED, ip(PEER, inside, ICMP, &icmp(12, &[]))),
        ("packet too big", STEERED, ip6(any6, ICMP6, &icmp(2, &[]))),
        ("to a full-NAT source", STEERED, to(pool, 2000)),
        ("to one, UDP", STEERED, udp(PEER, pool, 65_535)),
        ("to one, below its ports", PASSED, to(pool, 1023)),
        ("a fragment to one", STEERED, as_fragment(udp(PEER, pool, 2000), 9, false)),
        ("an error to one", STEERED, error(pool, &[])),
        ("echo to one", PASSED, ip(PEER, pool, ICMP, &icmp(8, &[]))),
        ("TCP to a tunnel source", PASSED, to(tunnel, 2000)),
        ("an error about IPIP", STEERED, error(tunnel, &ip(tunnel, nat, 4, &[]))),
        ("an error about IPv6 in IPv4", STEERED, error(tunnel, &ip(tunnel, nat, 41, &[]))),
        ("an error about GUE", STEERED, error(tunnel, &udp(tunnel, elsewhere, 6080))),
        ("an error about other UDP", PASSED, error(tunnel, &udp(tunnel, elsewhere, 53))),
        ("an error about TCP of this box", PASSED, error(tunnel, &tcp(elsewhere, 80))),
        ("an error of a NAT backend", RETURNED, error(client, &udp(client, nat, 53))),
        ("the same with options", RETURNED, error(client, &options(udp(client, nat, 53)))),
        ("the same for a range", RETURNED, error(client, &tcp(nat_range, 8999))),
        ("the same below the range", PASSED, error(client, &tcp(nat_range, 7999))),
        ("the same about another port", PASSED, error(client, &udp(client, nat, 54))),
        ("the same to this box", PASSED, error(tunnel, &udp(tunnel, nat, 53))),
        ("about a fragment", RETURNED, error(client, &as_fragment(udp(client, nat, 1), 9, true))),
        ("quoting too little", PASSED, error(client, &cut(udp(client, nat, 53), 33))),
        ("quoting no ports", PASSED, error(client, &cut(udp(client, nat, 53), 37))),
        (
            "quoting a wrong header length",
            PASSED,
            error(client, &changed(udp(client, nat, 53), 14, 0x44)),
        ),
        ("an IPv6 error of a NAT backend", RETURNED, ip6(PEER6, ICMP6, &icmp(1, &udp6(nat6, 53)))),
        (
            "the same about a fragment",
            RETURNED,
            ip6(PEER6, ICMP6, &icmp(3, &with_extension(udp6(nat6, 53), FRAGMENT, fragment))),
        ),
        ("an IPv6 error that quotes nothing", PASSED, ip6(PEER6, ICMP6, &icmp(1, &[]))),
        ("a range's answer", RETURNED, {
            let mut bytes = ip(nat_range, client, IpNumber::TCP.0, &[0; 20]);
            bytes.splice(34..36, 8000u16.to_be_bytes());
            bytes
        }),
        ("a fragment of an answer", RETURNED, as_fragment(answer(nat, 1, client), 9, false)),
        ("the first fragment", RETURNED, as_fragment(answer(nat, 1, client), 0, true)),
        ("a fragment to this box", PASSED, as_fragment(answer(nat, 1, tunnel), 9, false)),
        (
            "a fragment of another protocol",
            PASSED,
            as_fragment(ip(nat, client, IpNumber::TCP.0, &[0; 20]), 9, false),
        ),
    ];

    let network = |text: &str| text.parse().unwrap();
    let listen = |text, protocol, first, last| Listen {
        network: network(text),
        protocol,
        ports: PortRange { first, last },
    };
    let key = |address, port, protocol| ListenKey { address, port, protocol };
    let rules = SteerRules {
        vips: vec![key(address(exact), 53, Protocol::Udp)],
        networks: vec![
            listen("203.0.113.0/28", Protocol::Tcp, 8000, 8999),
            listen("192.0.2.64/26", Protocol::Udp, 0, u16::MAX),
            listen("192.0.2.11", Protocol::Any, 0, u16::MAX),
            listen("2001:db8:9::/96", Protocol::Any, 0, u16::MAX),
        ],
        returns: vec![
            key(address(nat), 53, Protocol::Udp),
            key(Address::from_v6(nat6), 53, Protocol::Udp),
        ],
        return_ranges: vec![listen("10.0.1.2", Protocol::Tcp, 8000, 8999)],
        sources: vec![(network("10.0.0.48/28"), PortRange { first: 1024, last: u16::MAX })],
        tunnels: vec![network("10.0.0.1")],
        gue_port: 6080,
        locals: [BOX, own, tunnel, exact].map(address).into(),
        ..SteerRules::default()
    };
    judge(rows, &rules);
}
