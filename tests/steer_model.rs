//! The model of the XDP program (`xdp::steer`) against the program itself, which the kernel runs on
//! packets that nobody has sent (`BPF_PROG_TEST_RUN`). Needs root; nothing is attached anywhere.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![expect(unsafe_code, reason = "unshare(2)")]

use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;

use holdfast::flow::{Address, Protocol};
use holdfast::forwarding::ListenKey;
use holdfast::xdp::nic::Nic;
use holdfast::xdp::program::{AttachMode, SteerRules, Steering};
use holdfast::xdp::steer::{SteerModel, Steered};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PACKETS: usize = 50_000;

/// A generator of numbers that are the same in every run (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list.get(self.below(list.len())).unwrap().clone()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "a random byte")]
    fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

fn key(address: &str, port: u16, protocol: Protocol) -> ListenKey {
    let address = Address::from(address.parse::<IpAddr>().unwrap());
    ListenKey { address, port, protocol }
}

fn rules() -> SteerRules {
    let locals = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap().into());
    SteerRules {
        vips: vec![
            key("192.0.2.10", 80, Protocol::Tcp),
            key("192.0.2.10", 443, Protocol::Udp),
            key("192.0.2.11", 0, Protocol::Udp),
            key("2001:db8::10", 80, Protocol::Tcp),
            key("2001:db8::11", 0, Protocol::Tcp),
        ],
        returns: vec![
            key("10.0.0.11", 8080, Protocol::Tcp),
            key("10.0.0.12", 0, Protocol::Udp),
            key("2001:db8:2::11", 8080, Protocol::Tcp),
        ],
        locals: locals.to_vec(),
        ..SteerRules::default()
    }
}

/// A packet that has a chance to be for a VIP, or from a backend; every part is now and then wrong.
fn packet(random: &mut Random) -> Vec<u8> {
    let mut packet = if random.one_in(20) { vec![0xff; 6] } else { MAC.to_vec() };
    packet.extend([2, 0xc, 0, 0, 0, 1]);
    for _ in 0..random.of(&[0, 0, 0, 1, 1, 2, 3]) {
        packet.extend(random.of(&[[0x81, 0x00, 0, 100], [0x88, 0xa8, 0, 200]]));
    }
    let mut transport = random.of(&[8080_u16, 8080, 80, 0, 81]).to_be_bytes().to_vec();
    transport.extend(random.of(&[80_u16, 80, 443, 0, 8080]).to_be_bytes());
    transport.extend((0..random.below(24)).map(|_| 0x50));
    if random.one_in(2) {
        ipv4(&mut packet, &transport, random);
    } else {
        ipv6(&mut packet, &transport, random);
    }
    if random.one_in(4) {
        packet.truncate(14 + random.below(packet.len() - 13));
    }
    for _ in 0..random.of(&[0, 0, 0, 1, 3]) {
        let place = random.below(packet.len());
        *packet.get_mut(place).unwrap() = random.byte();
    }
    packet
}

fn ipv4(packet: &mut Vec<u8>, transport: &[u8], random: &mut Random) {
    const SOURCES: [[u8; 4]; 5] =
        [[10, 0, 0, 11], [10, 0, 0, 11], [10, 0, 0, 12], [192, 0, 2, 10], [198, 51, 100, 7]];
    const DESTINATIONS: [[u8; 4]; 7] = [
        [192, 0, 2, 10],
        [192, 0, 2, 11],
        [192, 0, 2, 1],
        [198, 51, 100, 7],
        [198, 51, 100, 7],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ];
    packet.extend([0x08, 0x00]);
    let words = random.of(&[5, 5, 5, 5, 6, 15, 4, 0]);
    let fragment = random.of(&[0_u16, 0, 0, 0x4000, 0x2000, 0x2001, 0x0001, 0x1fff, 0x8000]);
    packet.extend([0x40 | words, 0, 0, 60, 0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, random.of(&[6, 6, 6, 17, 17, 1, 4, 41, 50]), 0, 0]);
    packet.extend(random.of(&SOURCES));
    packet.extend(random.of(&DESTINATIONS));
    packet.extend((5..words).flat_map(|_| [1; 4]));
    packet.extend(transport);
}

fn ipv6(packet: &mut Vec<u8>, transport: &[u8], random: &mut Random) {
    const SOURCES: [&str; 4] =
        ["2001:db8:2::11", "2001:db8:2::11", "2001:db8:1::7", "::ffff:10.0.0.11"];
    const DESTINATIONS: [&str; 6] = [
        "2001:db8::10",
        "2001:db8::11",
        "2001:db8::1",
        "2001:db8:1::7",
        "ff02::1",
        "::ffff:192.0.2.10",
    ];
    const NEXT: [u8; 15] = [6, 6, 6, 17, 17, 44, 44, 44, 0, 43, 51, 60, 135, 58, 4];
    let next = random.of(&NEXT);
    packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, next, 64]);
    for address in [random.of(&SOURCES), random.of(&DESTINATIONS)] {
        let address: Ipv6Addr = address.parse().unwrap();
        packet.extend(address.octets());
    }
    if next == 44 {
        let offset = random.of(&[0_u16, 0, 1, 8, 9, 0xfff8]);
        packet.extend([random.of(&NEXT), 0]);
        packet.extend(offset.to_be_bytes());
        packet.extend([0, 0, 0, 1]);
    }
    packet.extend(transport);
}

/// The program for a NIC with [`MAC`], in a network namespace of this thread's own, which goes with it.
fn program() -> Steering {
    // SAFETY: takes flags, and changes the namespace of this thread only.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(unshared, 0, "unshare: {}: run as root", std::io::Error::last_os_error());
    let added = Command::new("ip")
        .args(["link", "add", "box0", "address", "02:00:00:00:00:01", "type", "veth"])
        .status();
    assert!(added.unwrap().success(), "ip link add");
    Steering::load(&Nic::open("box0").unwrap(), AttachMode::Auto).unwrap()
}

/// What the program decides.
fn decision(program: &mut Steering, packet: &[u8]) -> Steered {
    let before = program.counters().unwrap();
    program.try_packet(packet).unwrap();
    let after = program.counters().unwrap();
    let moved = [
        (after.steered - before.steered, Steered::ToVip),
        (after.returned - before.returned, Steered::Return),
        (after.passed - before.passed, Steered::Kernel),
    ];
    let decided: Vec<_> = moved.iter().filter(|(count, _)| *count == 1).collect();
    assert_eq!(decided.len(), 1, "one decision: {moved:?}");
    decided.first().unwrap().1
}

#[test]
fn the_model_decides_as_the_program_does() {
    let mut program = program();
    program.sync(&rules()).unwrap();
    let model = SteerModel::new(&rules());
    let mut random = Random(1);
    let mut seen = [0_u32; 3];
    for index in 0..PACKETS {
        let packet = packet(&mut random);
        let (theirs, ours) = (decision(&mut program, &packet), model.decide(MAC, &packet));
        assert_eq!(ours, theirs, "packet {index}: {packet:02x?}");
        *seen.get_mut(theirs as usize).unwrap() += 1;
    }
    assert!(seen.iter().all(|&count| count > 500), "every decision is met often: {seen:?}");
}
