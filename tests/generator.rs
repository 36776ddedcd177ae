//! `holdfast generate` on a real kernel, in network namespaces that each test makes and removes.
//!
//! ```text
//!  wire        one namespace: client0 ===== backend0          nothing in between
//!  device      "gen": client0, backend0  =====  "dut": front, back, with a forwarder that
//!              errs on purpose, or with holdfast
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]
#![expect(unsafe_code, reason = "geteuid(2)")]

use std::collections::VecDeque;
use std::fs::File;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use holdfast::xdp::generate::Catcher;
use holdfast::xdp::nic::Nic;
use holdfast::xdp::queue::XskQueue;
use holdfast::xdp::socket::Io;
use holdfast::xdp::umem::{Frame, FramePool, Umem};
use serde_json::Value;

#[path = "support/namespace.rs"]
mod namespace;

use namespace::in_namespace;

const HOLDFAST: &str = env!("CARGO_BIN_EXE_holdfast");
/// Limit of waiting, which only a failure reaches.
const PATIENCE: Duration = Duration::from_secs(20);

/// Network namespaces, removed when dropped.
struct Spaces(Vec<String>);

impl Spaces {
    fn new(names: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: takes no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        assert_eq!(user, 0, "these tests make network namespaces: run them as root");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("holdfast-gen-{}-{number}", std::process::id());
        let spaces = Self(names.iter().map(|name| format!("{prefix}-{name}")).collect());
        for space in &spaces.0 {
            run(&format!("ip netns add {space}"));
            // No router solicitations or similar packets.
            run(&format!("ip netns exec {space} sysctl -qw net.ipv6.conf.default.disable_ipv6=1"));
        }
        spaces
    }

    /// A veth pair of two queues: NIC and namespace of each end.
    fn connect(&self, a: (&str, usize), b: (&str, usize), number: u32, mtu: u32) {
        let both = format!("numrxqueues 2 numtxqueues 2 mtu {mtu}");
        run(&format!(
            "ip link add {} netns {} address 02:00:00:00:0{number}:01 {both} type veth \
             peer name {} netns {} address 02:00:00:00:0{number}:02 {both}",
            a.0, self.0[a.1], b.0, self.0[b.1]
        ));
        for (nic, space) in [a, b] {
            run(&format!("ip -n {} link set {nic} up", self.0[space]));
            run(&format!("ip netns exec {} ethtool -K {nic} tx off", self.0[space]));
        }
    }

    /// Generator and balancer, connected by two veth pairs.
    fn with_device() -> Self {
        let spaces = Self::new(&["gen", "dut"]);
        spaces.connect(("client0", 0), ("front", 1), 1, 3500);
        spaces.connect(("backend0", 0), ("back", 1), 2, 3500);
        spaces
    }

    /// Report of `holdfast generate`, as JSON.
    fn generate(&self, options: &str) -> Value {
        let output = self.output(options);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{options}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn output(&self, options: &str) -> Output {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0[0], HOLDFAST, "generate", "--json"]);
        command.args(["--interface", "client0", "--receive", "backend0"]);
        command.args(["--warm-up", "0", "--next-hop", "02:00:00:00:01:02"]);
        command.args(options.split(' ')).output().unwrap()
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for space in &self.0 {
            // Namespaces that could not be made need no removal.
            let _ = Command::new("ip").args(["netns", "delete", space]).output();
        }
    }
}

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
}

fn number(document: &Value, pointer: &str) -> u64 {
    let found = document.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no number at {pointer} in {document}"))
}

/// One namespace, with nothing between the two NICs.
fn wire() -> Spaces {
    let spaces = Spaces::new(&["wire"]);
    spaces.connect(("client0", 0), ("backend0", 0), 1, 9000);
    spaces
}

#[test]
fn on_a_wire_every_packet_arrives_once_and_in_order() {
    let spaces = wire();
    for options in [
        "--target 192.0.2.10:80",
        "--target [2001:db8::10]:80",
        "--target 192.0.2.10:80 --size imix --distribution zipf",
        "--target [2001:db8::10]:80 --size 3000 --distribution sequential",
        "--target 192.0.2.10:80 --protocol syn --new-flows 500",
        "--target [2001:db8::10]:80 --protocol syn --size 84",
        "--target 192.0.2.10:80 --workers 2 --flows 3",
    ] {
        all_arrive(&spaces, options);
    }
}

/// Asserts that 1000 packets arrive: none lost, doubled or late.
fn all_arrive(spaces: &Spaces, options: &str) {
    let report = spaces.generate(&format!("{options} --rate 2000 --seconds 0.5"));
    let sent = number(&report, "/sent");
    assert!(sent.abs_diff(1000) <= 2, "all that were due: {options}: {report}");
    assert_eq!(number(&report, "/received"), sent, "{options}: {report}");
    assert_eq!(report["bps_received"], report["bps_sent"], "{options}: {report}");
    for zero in ["lost", "receiver_dropped", "duplicates", "reordered", "affinity_violations"] {
        assert_eq!(number(&report, &format!("/{zero}")), 0, "{options}: {zero}: {report}");
    }
    let backends = report["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 1, "{options}: {report}");
    assert_eq!(backends[0]["mac"], "02:00:00:00:01:02");
}

/// Works from kernel 6.6 on; an older one gets an error that names the version.
#[test]
fn jumbo_frames_lie_in_several_frames_of_memory() {
    let spaces = wire();
    if kernel() < (6, 6) {
        let output = spaces.output("--target 192.0.2.10:80 --size 9000");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("need kernel 6.6"), "{errors}");
        return;
    }
    for options in [
        "--target 192.0.2.10:80 --size 3845",
        "--target 192.0.2.10:80 --size 9000",
        "--target [2001:db8::10]:80 --size 9000 --protocol tcp --flows 50 --workers 2",
    ] {
        all_arrive(&spaces, options);
    }
}

/// Major and minor version of the kernel.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn latency_is_measured_where_the_time_fits_into_the_packet() {
    let spaces = wire();
    let report = spaces.generate("--target 192.0.2.10:80 --rate 2000 --seconds 0.5");
    let latency = &report["latency_us"];
    assert_eq!(number(latency, "/count"), number(&report, "/received"));
    let percentiles = ["min", "p50", "p90", "p99", "p99_9", "p99_99", "max"];
    let values = percentiles.map(|name| latency[name].as_f64().unwrap());
    assert!(values.is_sorted() && values[0] > 0.0, "{latency}");
    let short = "--target 192.0.2.10:80 --protocol tcp --size 64 --rate 2000 --seconds 0.5";
    let report = spaces.generate(short);
    assert_eq!(report["latency_us"], Value::Null);
    assert!(report["not_measured"][0].as_str().unwrap().contains("--size 76"), "{report}");
}

/// Behind DSR, and a wire is like it, replies take another path.
#[test]
fn connections_are_opened_replaced_and_closed() {
    let spaces = wire();
    let report = spaces.generate(
        "--target 192.0.2.10:80 --protocol tcp --flows 20 --new-flows 200 --rate 4000 --seconds 1",
    );
    let connections = &report["connections"];
    let (opened, closed) = (number(connections, "/opened"), number(connections, "/closed"));
    assert!((100..=221).contains(&opened), "{report}");
    assert!(closed <= opened && opened - closed <= 40, "{report}");
    assert_eq!(number(&report, "/lost"), 0, "{report}");
    assert_eq!(number(connections, "/given_up"), 0, "{report}");
}

#[test]
fn the_kernel_sends_what_the_program_makes() {
    let spaces = wire();
    for options in [
        "--target 192.0.2.10:80 --flows 100000",
        "--target 192.0.2.10:80 --protocol tcp --size 200 --rate 5000",
        "--target [2001:db8::10]:80 --protocol syn --size 84 --rate 5000",
    ] {
        let report = spaces.generate(&format!("{options} --method prog-run --seconds 0.5"));
        let (sent, received) = (number(&report, "/sent"), number(&report, "/received"));
        assert!(sent > 100 && received > 100 && received <= sent, "{options}: {report}");
        assert_eq!(number(&report, "/affinity_violations"), 0);
        assert_eq!((&report["latency_us"], &report["duplicates"]), (&Value::Null, &Value::Null));
    }
}

/// The receiver verifies the checksums of packets that the kernel sends: AF_XDP and etherparse.
#[test]
fn packets_of_the_kernel_have_good_checksums_and_many_flows() {
    let spaces = wire();
    let space = spaces.0[0].clone();
    for (target, protocol) in
        [("192.0.2.10:80", "udp"), ("192.0.2.10:80", "tcp"), ("[2001:db8::10]:80", "udp")]
    {
        let ready = AtomicBool::new(false);
        let packets = std::thread::scope(|scope| {
            let thread = scope.spawn(|| in_namespace(&space, || capture("backend0", 500, &ready)));
            wait_for("the capture", || ready.load(Ordering::Acquire));
            // Without --receive the sink is on client0.
            let output = Command::new("ip")
                .args(["netns", "exec", &space, HOLDFAST, "generate", "--interface", "client0"])
                .args(["--method", "prog-run", "--next-hop", "02:00:00:00:01:02", "--warm-up", "0"])
                .args(["--target", target, "--protocol", protocol, "--size", "100"])
                .args(["--flows", "100000", "--rate", "20000", "--seconds", "0.5"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            thread.join().unwrap()
        });
        let mut sources = std::collections::HashSet::new();
        for packet in &packets {
            assert_transport_checksum(packet);
            // End of the IPv6 source address, or of the IPv4 header, and the source port.
            let port = if packet[12..14] == [0x86, 0xdd] { 54 } else { 34 };
            sources.insert([&packet[26..38], &packet[port..port + 2]].concat());
        }
        assert!(sources.len() > packets.len() / 2, "{} of {}", sources.len(), packets.len());
    }
}

/// Asserts that the sum over pseudo header and segment is all ones (RFC 1071).
fn assert_transport_checksum(packet: &[u8]) {
    let ipv6 = packet[12..14] == [0x86, 0xdd];
    let (addresses, transport, protocol) =
        if ipv6 { (22..54, 54, packet[20]) } else { (26..34, 34, packet[23]) };
    let sum = |bytes: &[u8]| -> u32 {
        bytes
            .chunks(2)
            .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)))
            .sum()
    };
    let segment = &packet[transport..];
    let len = u32::try_from(segment.len()).unwrap();
    let all = sum(&packet[addresses]) + u32::from(protocol) + len + sum(segment);
    let folded = (all & 0xffff) + (all >> 16);
    assert_eq!((folded & 0xffff) + (folded >> 16), 0xffff, "{packet:02x?}");
    if !ipv6 {
        let header = sum(&packet[14..34]);
        assert_eq!((header & 0xffff) + (header >> 16), 0xffff, "{packet:02x?}");
    }
}

/// Up to `most` packets of the generator that arrive on queue 0 of a NIC.
fn capture(interface: &str, most: usize, ready: &AtomicBool) -> Vec<Vec<u8>> {
    let nic = Nic::open(interface).unwrap();
    let (umem, mut pool) = Umem::create(4096, 2048).unwrap();
    let mut ports = [0, 1].map(|q| XskQueue::open(&umem, &nic, q, 512, Io::default()).unwrap());
    let _catcher = Catcher::attach(&nic, (0..).zip(&ports)).unwrap();
    let (start, mut packets) = (Instant::now(), Vec::new());
    while packets.len() < most {
        for port in &mut ports {
            port.refill(&mut pool);
            port.receive(64, |frame| {
                packets.push(frame.data().to_vec());
                pool.push(frame);
            });
        }
        ready.store(true, Ordering::Release);
        assert!(start.elapsed() < PATIENCE, "only {} packets arrived", packets.len());
    }
    packets
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Errors that a device made.
#[derive(Debug, Default, PartialEq, Eq)]
struct Errors {
    dropped: u64,
    doubled: u64,
    swapped: u64,
    moved: u64,
}

/// A forwarder from `front` to `back` that errs by plan: of every hundred packets it drops two,
/// doubles three, swaps one with its successor, and sends one to another backend.
struct Device {
    front: XskQueue,
    back: XskQueue,
    pool: FramePool,
    /// Packet that is held back for a swap.
    held: Option<Frame>,
    count: u64,
    errors: Errors,
}

impl Device {
    fn open() -> (Self, [Catcher; 2]) {
        let (front_nic, back_nic) = (Nic::open("front").unwrap(), Nic::open("back").unwrap());
        let (umem, pool) = Umem::create(16_384, 2048).unwrap();
        let front = XskQueue::open(&umem, &front_nic, 0, 2048, Io::default()).unwrap();
        let back = XskQueue::open(&umem, &back_nic, 0, 2048, Io::default()).unwrap();
        let catchers = [(&front_nic, &front), (&back_nic, &back)]
            .map(|(nic, port)| Catcher::attach(nic, [(0, port)]).unwrap());
        let errors = Errors::default();
        (Self { front, back, pool, held: None, count: 0, errors }, catchers)
    }

    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            self.back.reclaim(&mut self.pool);
            self.front.refill(&mut self.pool);
            let mut frames = VecDeque::new();
            self.front.receive(64, |frame| frames.push_back(frame));
            for frame in frames {
                self.forward(frame);
            }
            self.back.flush();
        }
    }

    fn forward(&mut self, mut frame: Frame) {
        let place = self.count % 100;
        self.count += 1;
        match place {
            10 | 60 => {
                self.errors.dropped += 1;
                return self.pool.push(frame);
            }
            20 | 40 | 80 => {
                self.errors.doubled += 1;
                let mut copy = self.pool.pop().unwrap();
                assert!(copy.copy_from(frame.data()));
                self.send(copy);
            }
            // One flow only: the next packet is the flow's next.
            30 => {
                self.errors.swapped += 1;
                self.held = Some(frame);
                return;
            }
            70 => {
                self.errors.moved += 1;
                frame.data_mut()[5] = 0x99;
            }
            _ => {}
        }
        self.send(frame);
        if let Some(held) = self.held.take() {
            self.send(held);
        }
    }

    fn send(&mut self, frame: Frame) {
        self.back.transmit(frame).unwrap();
    }
}

#[test]
fn the_errors_of_a_device_are_reported_one_by_one() {
    let spaces = Spaces::with_device();
    let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            in_namespace(&spaces.0[1], || {
                let (mut device, _catchers) = Device::open();
                ready.store(true, Ordering::Release);
                device.run(&stop);
                (device.count, device.errors)
            })
        });
        wait_for("the device", || ready.load(Ordering::Acquire));
        let report = spaces.generate("--target 192.0.2.10:80 --flows 1 --rate 2000 --seconds 2");
        stop.store(true, Ordering::Release);
        let (count, errors) = device.join().unwrap();
        assert_eq!(number(&report, "/sent"), count, "the device has seen them all: {report}");
        // A packet that was to be swapped with the last packet is still held back.
        let held = u64::from(count % 100 == 31);
        assert_eq!(number(&report, "/lost"), errors.dropped + held, "{report}");
        assert_eq!(number(&report, "/duplicates"), errors.doubled, "{report}");
        assert_eq!(number(&report, "/reordered"), errors.swapped - held, "{report}");
        // A violation there and one back, unless it was the last packet.
        let moves = errors.moved * 2 - u64::from(count % 100 == 71);
        assert_eq!(number(&report, "/affinity_violations"), moves, "{report}");
        assert!(errors.moved >= 9, "{errors:?}");
    });
}

/// holdfast in the other namespace, killed when dropped.
struct Balancer {
    process: Child,
    folder: std::path::PathBuf,
}

impl Balancer {
    fn start(space: &str, forward: &str) -> Self {
        run(&format!("ip -n {space} addr add 198.18.0.2/24 dev front"));
        run(&format!("ip -n {space} addr add 198.18.2.2/24 dev back"));
        let mut backends = String::new();
        for last in [11, 12, 13] {
            run(&format!(
                "ip -n {space} neigh replace 198.18.2.{last} lladdr 02:00:00:00:0b:{last} dev back \
                 nud permanent"
            ));
            backends +=
                &format!("\n[[vip.backend]]\nname = \"b{last}\"\naddress = \"198.18.2.{last}\"\n");
        }
        let folder = std::env::temp_dir().join(space);
        std::fs::create_dir_all(&folder).unwrap();
        let config = format!(
            "[workers]\ncores = [0]\nidle = \"sleep\"\nflows = 65536\nframe_size = 4096\n[control]\nsocket = \
             \"{}/control.sock\"\n[[nic]]\ninterface = \"front\"\n[[nic]]\ninterface = \"back\"\n\
             [[vip]]\nname = \"web\"\naddress = \"192.0.2.10\"\nports = [80]\nforward = \
             \"{forward}\"\nhealth = {{ kind = \"none\" }}\n{backends}",
            folder.display()
        );
        std::fs::write(folder.join("holdfast.toml"), config).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", space, HOLDFAST, "run", "--config"])
            .arg(folder.join("holdfast.toml"))
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut balancer = Self { process, folder };
        wait_for("holdfast", || balancer.is_ready());
        balancer
    }

    fn is_ready(&mut self) -> bool {
        let log = || std::fs::read_to_string(self.folder.join("log")).unwrap();
        assert!(self.process.try_wait().unwrap().is_none(), "holdfast ended: {}", log());
        let Ok(status) = serde_json::from_slice::<Value>(&self.status()) else { return false };
        let backends = status.pointer("/vips/0/backends").and_then(Value::as_array);
        backends.is_some_and(|all| all.iter().all(|backend| !backend["next_hop"].is_null()))
    }
}

impl Balancer {
    fn status(&self) -> Vec<u8> {
        let mut command = Command::new(HOLDFAST);
        command.args(["status", "--json", "--socket"]).arg(self.folder.join("control.sock"));
        command.output().unwrap().stdout
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // The removal of the namespaces ends the rest, even if this fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn through_holdfast_connections_hold_fast_to_their_backends() {
    for (forward, answered) in [("nat", true), ("dsr", false)] {
        let spaces = Spaces::with_device();
        let _balancer = Balancer::start(&spaces.0[1], forward);
        let report = spaces.generate(
            "--target 192.0.2.10:80 --protocol tcp --size 100 --flows 50 --new-flows 100 \
             --rate 3000 --seconds 1",
        );
        for zero in ["lost", "duplicates", "affinity_violations"] {
            assert_eq!(number(&report, &format!("/{zero}")), 0, "{forward}: {zero}: {report}");
        }
        assert!(number(&report, "/connections/closed") >= 30, "{forward}: {report}");
        assert_eq!(report["backends"].as_array().unwrap().len(), 3, "{forward}: {report}");
        let replies = &report["replies"];
        assert_eq!(number(replies, "/received"), number(replies, "/sent"), "{report}");
        assert_eq!(number(replies, "/sent") > 1000, answered, "{forward}: {report}");
        assert_eq!(report["round_trip_us"].is_object(), answered, "{forward}: {report}");
    }
}

/// Offers several times the rate that the balancer carries, twice: it keeps forwarding meanwhile,
/// has all its frames afterwards, and loses nothing.
#[test]
fn after_an_overload_every_packet_comes_through_again() {
    const TARGET: &str = "--target 192.0.2.10:80 --protocol tcp --size 100";
    for forward in ["nat", "dsr"] {
        let spaces = Spaces::with_device();
        let balancer = Balancer::start(&spaces.0[1], forward);
        for _ in 0..2 {
            let flood = format!("{TARGET} --flows 1000 --method prog-run --seconds 2");
            let flood = spaces.generate(&flood);
            assert!(number(&flood, "/lost") > 0, "{forward}: that was no overload: {flood}");
            // More packets than its frames can hold: it did not stop meanwhile.
            assert!(number(&flood, "/received") > 20_000, "{forward}: {flood}");
            let calm = spaces.generate(&format!("{TARGET} --flows 50 --rate 2000 --seconds 1"));
            assert_eq!(number(&calm, "/lost"), 0, "{forward}: {calm}");
            assert!(number(&calm, "/received") > 1000, "{forward}: {calm}");
        }
        let status: Value = serde_json::from_slice(&balancer.status()).unwrap();
        for nic in status["nics"].as_array().unwrap() {
            assert_eq!(number(nic, "/bad_descriptors"), 0, "{forward}: {status}");
            assert_eq!(number(nic, "/kernel_tx_invalid"), 0, "{forward}: {status}");
        }
    }
}

/// Without --next-hop the kernel's neighbour table is used, here with ARP.
#[test]
fn the_next_hop_is_found_by_arp() {
    let spaces = Spaces::with_device();
    let [generator, device] = [&spaces.0[0], &spaces.0[1]];
    let attempt = || {
        Command::new("ip")
            .args(["netns", "exec", generator, HOLDFAST, "generate", "--interface", "client0"])
            .args(["--target", "192.0.2.10:80", "--rate", "100", "--seconds", "0.1"])
            .output()
            .unwrap()
    };
    let errors = |output: Output| String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors(attempt()).contains("no route to 192.0.2.10 out of client0"));
    run(&format!("ip -n {generator} addr add 192.0.2.1/24 dev client0"));
    assert!(errors(attempt()).contains("192.0.2.10 does not answer ARP or ND on client0"));
    run(&format!("ip -n {device} addr add 192.0.2.10/24 dev front"));
    run(&format!("ip -n {generator} neigh flush dev client0"));
    let output = attempt();
    assert!(output.status.success(), "{}", errors(output));
}

#[test]
fn a_frame_that_the_mtu_does_not_let_through_is_refused() {
    let spaces = wire();
    run(&format!("ip -n {} link set backend0 mtu 1400", spaces.0[0]));
    let output = Command::new("ip")
        .args(["netns", "exec", &spaces.0[0], HOLDFAST, "generate", "--interface", "client0"])
        .args(["--receive", "backend0", "--target", "192.0.2.10:80", "--size", "1518"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("backend0 has an MTU of 1400 bytes, so use 64 to 1418"), "{errors}");
}

#[test]
fn a_search_ends_with_a_rate_and_its_trials() {
    let spaces = wire();
    let report = spaces
        .generate("--target 192.0.2.10:80 --search --rate 1000 --seconds 0.2 --loss-bound 0.01");
    let search = &report["search"];
    let best = search["best_pps"].as_f64().unwrap();
    assert!((500.0..=1000.0).contains(&best), "{report}");
    assert!(!search["trials"].as_array().unwrap().is_empty());
    assert_eq!(report["pps_sent"].as_f64().unwrap(), best);
}

#[test]
fn reports_are_written_in_every_form() {
    let spaces = wire();
    let folder = std::env::temp_dir().join(&spaces.0[0]);
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let text = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    let options = "--target 192.0.2.10:80 --rate 1000 --seconds 0.5";
    let (csv, html, svg) = (file("run.csv"), file("run.html"), file("run.svg"));
    spaces.generate(&format!("{options} --csv {csv} --report {html}"));
    spaces.generate(&format!("{options} --report {svg}"));
    assert!(text("run.csv").starts_with("time_s,pps_sent,pps_received,affinity_violations\n0."));
    assert!(text("run.html").contains("affinity violations") && text("run.html").contains("<svg "));
    assert!(text("run.svg").starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Runs `scripts/trafficgen` with these options: success, standard output, standard error.
fn script(options: &str) -> (bool, String, String) {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/trafficgen"))
        .args(options.split(' '))
        .env("HOLDFAST_BINARY", HOLDFAST)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_script_makes_its_own_lab_and_prints_one_document() {
    for (options, backends) in
        [("--json", 3), ("--json --ipv6 --mode nat", 3), ("--json --mode kernel", 1)]
    {
        let options = format!("{options} --idle sleep --seconds 1 --rate 20k");
        let (good, printed, errors) = script(&options);
        assert!(good, "{options}: {errors}");
        let report: Value = serde_json::from_str(&printed).unwrap();
        for rate in ["pps_sent", "pps_received"] {
            assert!(report[rate].as_f64().unwrap() > 0.0, "{options}: {rate}: {report}");
        }
        assert!(number(&report, "/lost") <= number(&report, "/sent"), "{options}: {report}");
        assert_eq!(number(&report, "/affinity_violations"), 0, "{options}: {report}");
        assert!(report["latency_us"]["p99"].as_f64().unwrap() > 0.0, "{options}: {report}");
        assert_eq!(report["backends"].as_array().unwrap().len(), backends, "{options}: {report}");
    }
}

#[test]
fn the_script_refuses_what_its_lab_cannot_do() {
    for (options, part) in [
        ("--target 8.8.8.8:80", "--i-own-this-network"),
        ("--size 9001", "use 64 to 9000"),
        ("--size 9000 --mode nat", "at most 3524 bytes; use --mode kernel"),
        ("--mode magic", "use dsr, nat or kernel"),
    ] {
        let (good, printed, errors) = script(options);
        assert!(!good && printed.is_empty() && errors.contains(part), "{options}: {errors}");
    }
}

#[test]
fn options_out_of_range_are_refused_before_anything_is_opened() {
    let refused = |options: &str| {
        let output = Command::new(HOLDFAST)
            .args(["generate", "--interface", "nosuchnic0"])
            .args(options.split(' '))
            .output()
            .unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{options}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (options, parts) in [
        ("--target 8.8.8.8:53", &["198.18.0.0/15", "--i-own-this-network"][..]),
        ("--target 192.0.2.10:80 --clients 1.0.0.0/24", &["--i-own-this-network"]),
        ("--target 192.0.2.10:80 --rate 1Tbit", &["write packets per second"]),
        ("--target 192.0.2.10:80 --rate 200M", &["use 1 to 100000000 pps"]),
        ("--target 192.0.2.10:80 --size 9001", &["use 64 to 9000 bytes"]),
        ("--target 192.0.2.10:80 --size 4000 --method prog-run", &["64 to 3076", "af-xdp"]),
        ("--target 192.0.2.10:80 --size small", &["write bytes"]),
        ("--target 192.0.2.10:80 --flows 10000001", &["use 1 to 10000000"]),
        ("--target 192.0.2.10:80 --seconds 4000", &["use 0.1 to 3600 s"]),
        ("--target 192.0.2.10:80 --search --loss-bound 1", &["--loss-bound 1: use 0 to 0.5"]),
        ("--target 192.0.2.10:80 --next-hop 02:00", &["02:00:00:00:00:01"]),
        ("--target 192.0.2.10:80 --report run.pdf", &[".html or .svg"]),
        ("--target 192.0.2.10", &["such as 192.0.2.10:80"]),
        ("--target 2001:db8::10", &["such as [2001:db8::10]:80"]),
        // Only the NIC is wrong.
        ("--target 8.8.8.8:53 --i-own-this-network", &["no interface nosuchnic0"]),
    ] {
        let errors = refused(options);
        for part in parts {
            assert!(errors.contains(part), "{options}: {part:?} is not in {errors}");
        }
    }
}
