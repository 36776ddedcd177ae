//! Cost of deny and allow lists in the XDP program, which the kernel runs on synthetic packets: time
//! per packet, time to load a list and to change one prefix, memory. docs/ACCESS.md has the figures.
//! Needs root; runs in a network namespace of its own.
//!
//! ```sh
//! cargo bench --bench lists
//! ```

#![expect(clippy::unwrap_used, reason = "a bench stops at the first surprise")]
#![expect(unsafe_code, reason = "unshare(2)")]

use std::process::Command;
use std::time::{Duration, Instant};

use holdfast::net::{
    AccessCheck, Address, ListEntry, ListId, ListKey, ListKind, Listen, ListenKey, ListsPresent,
    Network, PortRange, Protocol, SteerRules, VipId,
};
use holdfast::xdp::nic::Nic;
use holdfast::xdp::program::{AccessMap, AttachMode, Steering};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIP: [u8; 4] = [192, 0, 2, 10];
const LIST: ListId = ListId { vip: None, kind: ListKind::Deny };
/// Runs of one packet: the first one finds cold caches, the others warm ones.
const REPEATED: u32 = 10_000;

/// SplitMix64 (Steele et al. 2014): the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A prefix of 20 to 32 bits outside of 198.18.0.0/15, as in lists of attackers.
    fn prefix(&mut self) -> Network {
        loop {
            let [a, b, c, d, len, ..] = self.next().to_ne_bytes();
            let prefix = Network::of(Address::from_v4([a, b, c, d]), 96 + 20 + len % 13);
            if !(a == 198 && b & 0xfe == 18) {
                return prefix;
            }
        }
    }

    /// An address that no list has.
    fn client(&mut self) -> [u8; 4] {
        let [b, c, d, ..] = self.next().to_ne_bytes();
        [198, 18 | b & 1, c, d]
    }
}

/// A TCP segment to the VIP.
fn packet(source: [u8; 4]) -> Vec<u8> {
    let ethernet = [&MAC[..], &[2, 0xc, 0, 0, 0, 1, 8, 0]].concat();
    let ip = [&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0][..], &source, &VIP].concat();
    let tcp = [&[0x9c, 0x40, 0, 80][..], &[0; 16]].concat();
    let mut packet = [ethernet, ip, tcp].concat();
    packet.resize(60, 0);
    packet
}

fn rules(lists: ListsPresent) -> SteerRules {
    let key = ListenKey { address: Address::from_v4(VIP), port: 80, protocol: Protocol::Tcp };
    let network = Network::single(key.address);
    let listen = Listen { network, protocol: key.protocol, ports: PortRange::single(key.port) };
    let check = AccessCheck {
        listen,
        vip: VipId(0),
        own: ListsPresent::default(),
        lists: None,
        rate: None,
    };
    let checks = if lists.any() { vec![check] } else { Vec::new() };
    SteerRules { vips: vec![key], global_lists: lists, checks, ..SteerRules::default() }
}

fn program() -> Steering {
    // SAFETY: takes flags, and changes the namespace of this thread only.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "unshare: {}: run as root", std::io::Error::last_os_error());
    let line = ["link", "add", "box0", "address", "02:00:00:00:00:01", "type", "veth"];
    assert!(Command::new("ip").args(line).status().unwrap().success());
    Steering::load(&Nic::open("box0").unwrap(), AttachMode::Auto).unwrap()
}

/// Median time of a packet that is not denied: of one after another client, and of one again and
/// again.
fn times(program: &mut Steering, clients: usize) -> (Duration, Duration) {
    let mut random = Random(7);
    let packets: Vec<_> = (0..clients).map(|_| packet(random.client())).collect();
    let mut median = |repeat: u32| {
        let mut times: Vec<Duration> =
            packets.iter().map(|packet| program.time_packet(packet, repeat).unwrap()).collect();
        times.sort_unstable();
        *times.get(times.len() / 2).unwrap()
    };
    (median(1), median(REPEATED))
}

/// Memory of the kernel that is not reclaimable, in KiB.
fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("SUnreclaim:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Processor time of this thread so far; other work on the machine does not count.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Loads a list; returns the time, and the processor time.
fn load(lists: &mut AccessMap, count: usize) -> (Duration, Duration) {
    let mut random = Random(1);
    let prefixes: Vec<Network> = (0..count).map(|_| random.prefix()).collect();
    let (begun, processor) = (Instant::now(), processor_time());
    for prefix in prefixes {
        lists.insert(&ListKey::of(LIST, prefix), ListEntry::Listed).unwrap();
    }
    (begun.elapsed(), processor_time().saturating_sub(processor))
}

fn main() {
    let full = std::env::args().any(|arg| arg == "--bench");
    let (most, clients) = if full { (1_000_000, 2001) } else { (1000, 11) };
    let mut program = program();
    let mut lists = program.take_lists().unwrap();
    let deny = ListsPresent { deny: true, allow: false };
    let report = |what: &str, (other, same): (Duration, Duration)| {
        println!("{what:>20}: {other:>8.0?} a packet of another client, {same:>8.0?} of the same");
    };
    program.sync(&rules(ListsPresent::default())).unwrap();
    report("no list", times(&mut program, clients));
    program.sync(&rules(deny)).unwrap();
    load(&mut lists, 1);
    report("1 prefix", times(&mut program, clients));
    let before = kernel_memory();
    let (took, processor) = load(&mut lists, most);
    let memory = kernel_memory().saturating_sub(before) / 1024;
    report(&format!("{most} prefixes"), times(&mut program, clients));
    println!("{:>20}: {took:.2?}, {processor:.2?} of them on a processor", "loaded in");
    println!("{:>20}: {memory} MiB of kernel memory", "memory");
    let one = Random(2).prefix();
    let begun = Instant::now();
    lists.insert(&ListKey::of(LIST, one), ListEntry::Listed).unwrap();
    lists.remove(&ListKey::of(LIST, one)).unwrap();
    println!("{:>20}: {:.0?}", "one changed in", begun.elapsed() / 2);
}
