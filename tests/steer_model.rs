//! The model of the XDP program (`xdp::steer`) against the program itself, which the kernel runs on
//! synthetic packets (`BPF_PROG_TEST_RUN`). Needs root; no program is attached.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![expect(unsafe_code, reason = "unshare(2)")]

use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use holdfast::net::{
    AccessCheck, AccessLists, Address, Family, ListEntry, ListId, ListKey, ListKind, Listen,
    ListenKey, ListsPresent, Network, PortRange, Protocol, SourceRate, SteerRules, VipId,
};
use holdfast::xdp::nic::Nic;
use holdfast::xdp::program::{AttachMode, Steering};
use holdfast::xdp::steer::{ModelLists, SteerModel, Steered};

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

fn network(text: &str) -> Network {
    text.parse().unwrap()
}

fn listen(text: &str, protocol: Protocol, first: u16, last: u16) -> Listen {
    Listen { network: network(text), protocol, ports: PortRange { first, last } }
}

/// Every kind of rule, prefixes within prefixes, and local addresses within them.
fn rules() -> SteerRules {
    let all = u16::MAX;
    let locals = ["192.0.2.1", "192.0.2.40", "10.0.0.1", "2001:db8::1", "2001:db8:9::1"];
    SteerRules {
        vips: vec![
            key("192.0.2.10", 80, Protocol::Tcp),
            key("192.0.2.10", 443, Protocol::Udp),
            key("192.0.2.11", 0, Protocol::Udp),
            key("192.0.2.40", 80, Protocol::Tcp),
            key("2001:db8::10", 80, Protocol::Tcp),
            key("2001:db8::11", 0, Protocol::Tcp),
        ],
        networks: vec![
            listen("192.0.2.32/28", Protocol::Tcp, 0, all),
            listen("192.0.2.40/30", Protocol::Udp, 400, 500),
            listen("192.0.2.12", Protocol::Any, 0, all),
            listen("192.0.2.11", Protocol::Tcp, 8000, 8999),
            listen("2001:db8:9::/96", Protocol::Udp, 1, 443),
            listen("2001:db8:9::/120", Protocol::Any, 0, all),
        ],
        returns: vec![
            key("10.0.0.11", 8080, Protocol::Tcp),
            key("10.0.0.12", 0, Protocol::Udp),
            key("2001:db8:2::11", 8080, Protocol::Tcp),
        ],
        return_ranges: vec![
            listen("10.0.0.12", Protocol::Tcp, 80, 90),
            listen("2001:db8:2::11", Protocol::Udp, 8000, 8999),
        ],
        sources: vec![
            (network("10.0.0.48/28"), PortRange { first: 1024, last: all }),
            (network("2001:db8:8::/120"), PortRange { first: 0, last: all }),
        ],
        tunnels: vec![network("10.0.0.64/28"), network("2001:db8:7::/96")],
        gue_port: 6080,
        locals: locals.map(|text| text.parse::<IpAddr>().unwrap().into()).to_vec(),
        ..SteerRules::default()
    }
}

fn lists(deny: &[&str], allow: &[&str]) -> AccessLists {
    let list = |texts: &[&str]| texts.iter().map(|text| network(text)).collect();
    AccessLists { deny: list(deny), allow: list(allow) }
}

/// Lists of all VIPs, and of some. The numbers are those of [`checks`].
fn all_lists() -> ModelLists {
    let own = [
        (0, lists(&["10.0.0.8/29"], &[])),
        (2, lists(&[], &["198.51.100.0/24"])),
        (4, lists(&["2001:db8:2::/64"], &[])),
        // One has an address within the other's prefix, and the same lists.
        (6, lists(&["10.0.0.11"], &[])),
        (7, lists(&["10.0.0.11"], &[])),
        (8, lists(&["10.0.0.11"], &["10.0.0.12"])),
        (9, lists(&["198.51.100.7"], &[])),
        (10, lists(&["10.0.0.11"], &["2001:db8:2::/48", "::/0"])),
    ];
    ModelLists {
        global: lists(
            &["10.0.0.12", "2001:db8:1::/48"],
            &["10.0.0.0/8", "198.51.100.7", "2001:db8::/32"],
        ),
        own: own.into_iter().map(|(vip, lists)| (VipId(vip), lists)).collect(),
    }
}

/// Every listener of `rules` with a number, the last two with one number: a VIP has one list for all
/// its prefixes.
fn checks(rules: &SteerRules, lists: &ModelLists) -> Vec<AccessCheck> {
    let single = |key: &ListenKey| Listen {
        network: Network::single(key.address),
        protocol: key.protocol,
        ports: if key.port == 0 { PortRange::ALL } else { PortRange::single(key.port) },
    };
    let listens = rules.vips.iter().map(single).chain(rules.networks.iter().copied());
    let number = |(index, listen)| {
        let vip = VipId(if index == 11 { 10 } else { index });
        let own = lists.own.get(&vip).map(AccessLists::present).unwrap_or_default();
        let alike = |first: &u16| lists.own.get(&VipId(*first)) == lists.own.get(&vip);
        let first = (0..).find(alike).map(VipId).filter(|vip| lists.own.contains_key(vip));
        AccessCheck { listen, vip, own, lists: first, rate: None }
    };
    (0..).zip(listens).map(number).collect()
}

/// Fills the lists of the program.
fn fill(program: &mut Steering, lists: &ModelLists) {
    let mut map = program.take_lists().unwrap();
    let own = lists.own.iter().map(|(vip, lists)| (Some(*vip), lists));
    for (vip, lists) in own.chain([(None, &lists.global)]) {
        for (kind, list) in [(ListKind::Deny, &lists.deny), (ListKind::Allow, &lists.allow)] {
            let id = ListId { vip, kind };
            if kind == ListKind::Allow && !list.is_empty() {
                for family in [Family::V4, Family::V6] {
                    map.insert(&ListKey::all(id, family), ListEntry::Others).unwrap();
                }
            }
            for prefix in list.iter() {
                map.insert(&ListKey::of(id, prefix), ListEntry::Listed).unwrap();
            }
        }
    }
}

/// A packet that may be for a VIP or from a backend; every part is sometimes wrong.
fn packet(random: &mut Random) -> Vec<u8> {
    let mut packet = if random.one_in(20) { vec![0xff; 6] } else { MAC.to_vec() };
    packet.extend([2, 0xc, 0, 0, 0, 1]);
    for _ in 0..random.of(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 3]) {
        packet.extend(random.of(&[[0x81, 0x00, 0, 100], [0x88, 0xa8, 0, 200]]));
    }
    if random.one_in(2) {
        packet.extend([0x08, 0x00]);
        ipv4(&mut packet, random, false);
    } else {
        packet.extend([0x86, 0xdd]);
        ipv6(&mut packet, random, false);
    }
    if random.one_in(6) {
        packet.truncate(14 + random.below(packet.len() - 13));
    }
    for _ in 0..random.of(&[0, 0, 0, 0, 0, 1, 3]) {
        let place = random.below(packet.len());
        *packet.get_mut(place).unwrap() = random.byte();
    }
    packet
}

/// Ports, and some bytes after them.
fn transport(packet: &mut Vec<u8>, random: &mut Random) {
    for port in
        [random.of(&[8080_u16, 8080, 80, 0, 85]), random.of(&[80_u16, 443, 0, 8080, 6080, 450])]
    {
        packet.extend(port.to_be_bytes());
    }
    packet.extend((0..random.below(24)).map(|_| 0x50));
}

/// An ICMP message, which quotes a packet of the same family.
fn icmp(packet: &mut Vec<u8>, random: &mut Random, v4: bool) {
    let kind = if v4 {
        random.of(&[8, 3, 3, 11, 12, 0, 5, 13])
    } else {
        random.of(&[128, 1, 2, 3, 4, 0, 5, 129, 135])
    };
    packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    if v4 {
        ipv4(packet, random, true);
    } else {
        ipv6(packet, random, true);
    }
}

fn ipv4(packet: &mut Vec<u8>, random: &mut Random, quoted: bool) {
    const BACKENDS: [[u8; 4]; 4] =
        [[10, 0, 0, 11], [10, 0, 0, 11], [10, 0, 0, 12], [198, 51, 100, 7]];
    const DESTINATIONS: [[u8; 4]; 14] = [
        [192, 0, 2, 10],
        [192, 0, 2, 11],
        [192, 0, 2, 12],
        [192, 0, 2, 33],
        [192, 0, 2, 40],
        [192, 0, 2, 41],
        [192, 0, 2, 1],
        [10, 0, 0, 1],
        [10, 0, 0, 50],
        [10, 0, 0, 65],
        [198, 51, 100, 7],
        [198, 51, 100, 7],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ];
    let words = random.of(&[5, 5, 5, 5, 5, 5, 6, 15, 4, 0]);
    let fragment = random.of(&[0_u16, 0, 0, 0, 0x4000, 0x2000, 0x2001, 0x0001, 0x1fff, 0x8000]);
    packet.extend([0x40 | words, 0, 0, 60, 0, 1]);
    packet.extend(fragment.to_be_bytes());
    let protocol = random.of(&[6, 6, 6, 17, 17, 1, 1, 4, 41, 50, 58, 132]);
    packet.extend([64, protocol, 0, 0]);
    packet.extend(random.of(&BACKENDS));
    packet.extend(if quoted { random.of(&BACKENDS) } else { random.of(&DESTINATIONS) });
    packet.extend((5..words).flat_map(|_| [1; 4]));
    if protocol == 1 && !quoted {
        icmp(packet, random, true);
    } else {
        transport(packet, random);
    }
}

fn ipv6(packet: &mut Vec<u8>, random: &mut Random, quoted: bool) {
    const BACKENDS: [&str; 4] =
        ["2001:db8:2::11", "2001:db8:2::11", "2001:db8:1::7", "::ffff:10.0.0.11"];
    const DESTINATIONS: [&str; 11] = [
        "2001:db8::10",
        "2001:db8::11",
        "2001:db8::1",
        "2001:db8:9::1",
        "2001:db8:9::2",
        "2001:db8:9::abcd",
        "2001:db8:8::1",
        "2001:db8:7::1",
        "2001:db8:1::7",
        "ff02::1",
        "::ffff:192.0.2.10",
    ];
    const NEXT: [u8; 16] = [6, 6, 6, 17, 17, 44, 44, 58, 58, 0, 43, 51, 60, 135, 4, 132];
    let mut next = random.of(&NEXT);
    packet.extend([0x60, 0, 0, 0, 0, 60, next, 64]);
    let to = if quoted { random.of(&BACKENDS) } else { random.of(&DESTINATIONS) };
    for address in [random.of(&BACKENDS), to] {
        let address: Ipv6Addr = address.parse().unwrap();
        packet.extend(address.octets());
    }
    // As many as are skipped, and one more.
    for _ in 0..5 {
        let behind = random.of(&NEXT);
        match next {
            44 => {
                let offset = random.of(&[0_u16, 0, 1, 8, 9, 0xfff8]);
                packet.extend([behind, 0]);
                packet.extend(offset.to_be_bytes());
                packet.extend([0, 0, 0, 1]);
            }
            0 | 60 => {
                let words = random.of(&[0_u8, 0, 0, 1, 5, 200]);
                packet.extend([behind, words, 1, 4, 0, 0, 0, 0]);
                // Rarely as long as it says.
                packet.extend((0..if words == 200 { 8 } else { words }).flat_map(|_| [1; 8]));
            }
            _ => break,
        }
        next = behind;
    }
    if next == 58 && !quoted {
        icmp(packet, random, false);
    } else {
        transport(packet, random);
    }
}

/// The program for a NIC with [`MAC`], in a network namespace of this thread, which ends with the
/// thread.
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

/// Decision of the XDP program.
fn decision(program: &mut Steering, packet: &[u8]) -> Steered {
    let before = program.counters().unwrap();
    program.try_packet(packet).unwrap();
    let after = program.counters().unwrap();
    let moved = [
        (after.steered - before.steered, Steered::ToVip),
        (after.returned - before.returned, Steered::Return),
        (after.passed - before.passed, Steered::Kernel),
        (after.dropped.denied - before.dropped.denied, Steered::Denied),
        (after.dropped.not_allowed - before.dropped.not_allowed, Steered::NotAllowed),
    ];
    let decided: Vec<_> = moved.iter().filter(|(count, _)| *count == 1).collect();
    assert_eq!(decided.len(), 1, "one decision: {moved:?}");
    decided.first().unwrap().1
}

/// The guard runs on the loopback, the MAC of which is all zeros.
fn to_loopback(mut packet: Vec<u8>) -> Vec<u8> {
    let (destination, _) = packet.split_first_chunk_mut::<6>().unwrap();
    if *destination == MAC {
        *destination = [0; 6];
    }
    packet
}

/// Whether a packet has an ICMP message, which the guard leaves to the kernel.
fn is_icmp(packet: &[u8]) -> bool {
    let mut network = packet.get(12..).unwrap();
    for _ in 0..2 {
        if matches!(network, [0x81, 0x00, ..] | [0x88, 0xa8, ..]) {
            network = network.get(4..).unwrap_or_default();
        }
    }
    match network {
        [0x08, 0x00, ip @ ..] => ip.get(9) == Some(&1),
        [0x86, 0xdd, ip @ ..] => {
            let (mut next, mut at) = (ip.get(6), 40);
            for _ in 0..4 {
                let Some([behind, words, ..]) = ip.get(at..at + 8) else { break };
                if !matches!(next, Some(0 | 60)) {
                    break;
                }
                (next, at) = (Some(behind), at + 8 + 8 * usize::from(*words));
            }
            next == Some(&58)
        }
        _ => false,
    }
}

#[test]
fn the_guard_drops_what_the_program_redirects() {
    let mut program = program();
    program.sync(&rules()).unwrap();
    let model = SteerModel::new(&rules());
    let mut random = Random(2);
    let (mut dropped, mut left) = (0, 0);
    for index in 0..PACKETS {
        let packet = packet(&mut random);
        // The kernel refuses to run a program on a packet without whole headers.
        if packet.len() < 60 {
            continue;
        }
        let redirected = model.decide(MAC, &packet) != Steered::Kernel && !is_icmp(&packet);
        let drops = program.try_guard(&to_loopback(packet.clone())).unwrap();
        assert_eq!(drops, redirected, "packet {index}: {packet:02x?}");
        *if drops { &mut dropped } else { &mut left } += 1;
    }
    assert!(dropped > 1000 && left > 1000, "{dropped} dropped, {left} left to the kernel");
    assert_eq!(program.counters().unwrap().guarded, dropped);
}

#[test]
fn the_guard_ends_some_time_after_its_process() {
    let mut program = program();
    program.sync(&rules()).unwrap();
    let mut random = Random(3);
    let packets: Vec<_> = (0..2000).map(|_| to_loopback(packet(&mut random))).collect();
    let packets: Vec<_> = packets.into_iter().filter(|packet| packet.len() >= 60).collect();
    let dropped = |program: &mut Steering| {
        packets.iter().filter(|packet| program.try_guard(packet).unwrap()).count()
    };
    let before = dropped(&mut program);
    assert!(before > 100, "{before}");
    program.end_guard(Duration::from_secs(60)).unwrap();
    assert_eq!(dropped(&mut program), before, "not yet");
    program.end_guard(Duration::ZERO).unwrap();
    assert_eq!(dropped(&mut program), 0);
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
    assert!(seen.iter().all(|&count| count > 1000), "every decision is met often: {seen:?}");
}

/// Headers before a TCP header, each with its number.
type Extensions<'e> = &'e [(u8, &'e [u8])];

/// A SYN of 2001:db8:bad::1 to a port of 2001:db8::10, behind extension headers.
fn behind(extensions: Extensions<'_>, port: u16) -> Vec<u8> {
    let mut packet = [&MAC[..], &[2, 0xc, 0, 0, 0, 1, 0x86, 0xdd]].concat();
    let first = extensions.first().map_or(6, |(number, _)| *number);
    packet.extend([0x60, 0, 0, 0, 0, 60, first, 64]);
    for address in ["2001:db8:bad::1", "2001:db8::10"] {
        packet.extend(address.parse::<Ipv6Addr>().unwrap().octets());
    }
    let next = extensions.iter().skip(1).map(|(number, _)| *number).chain([6]);
    for ((_, rest), next) in extensions.iter().zip(next) {
        packet.push(next);
        packet.extend(*rest);
    }
    packet.extend([0x9c, 0x40]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

/// Two VIPs have an address, and one of them a deny list.
#[test]
fn ipv6_extensions_hide_no_packet_from_the_list_of_its_vip() {
    const OPTIONS: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    const LONG: &[u8] = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const FIRST: &[u8] = &[0, 0, 1, 0, 0, 0, 7];
    const LATER: &[u8] = &[0, 0, 9, 0, 0, 0, 7];
    let address = network("2001:db8::10");
    let lists = ModelLists {
        own: [(VipId(0), lists(&["2001:db8:bad::/48"], &[]))].into_iter().collect(),
        ..ModelLists::default()
    };
    let check = |vip, port| AccessCheck {
        listen: Listen {
            network: address,
            protocol: Protocol::Tcp,
            ports: PortRange::single(port),
        },
        vip: VipId(vip),
        own: ListsPresent { deny: vip == 0, allow: false },
        lists: (vip == 0).then_some(VipId(0)),
        rate: None,
    };
    let rules = SteerRules {
        vips: [80, 443].map(|port| key("2001:db8::10", port, Protocol::Tcp)).to_vec(),
        checks: vec![check(0, 80), check(1, 443)],
        ..SteerRules::default()
    };
    let mut program = program();
    program.sync(&rules).unwrap();
    fill(&mut program, &lists);
    let rows: [(Extensions<'_>, Steered); 8] = [
        (&[], Steered::Denied),
        (&[(0, OPTIONS)], Steered::Denied),
        (&[(60, LONG)], Steered::Denied),
        (&[(0, LONG), (60, OPTIONS), (44, FIRST), (60, OPTIONS)], Steered::Denied),
        (&[(44, FIRST)], Steered::Denied),
        // Of no use without the first one.
        (&[(60, OPTIONS), (44, LATER)], Steered::ToVip),
        // What the worker drops.
        (&[(60, OPTIONS); 5], Steered::ToVip),
        (&[(43, OPTIONS)], Steered::ToVip),
    ];
    for (extensions, expected) in rows {
        assert_eq!(decision(&mut program, &behind(extensions, 80)), expected, "{extensions:?}");
        let other = decision(&mut program, &behind(extensions, 443));
        assert_eq!(other, Steered::ToVip, "the other VIP: {extensions:?}");
    }
}

/// A TCP segment to 192.0.2.10:80.
fn segment(source: [u8; 4], flags: u8) -> Vec<u8> {
    let ethernet = [&MAC[..], &[2, 0xc, 0, 0, 0, 1, 8, 0]].concat();
    let ip = [&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0][..], &source, &[192, 0, 2, 10]].concat();
    let tcp = [&[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags][..], &[0; 6]].concat();
    [ethernet, ip, tcp].concat()
}

/// Number of segments of a source that the program drops for its rate, of so many.
fn over_rate(program: &mut Steering, source: [u8; 4], flags: u8, count: usize) -> u64 {
    let before = program.counters().unwrap();
    (0..count).for_each(|_| program.try_packet(&segment(source, flags)).unwrap());
    let after = program.counters().unwrap();
    let passed = after.steered - before.steered;
    let dropped = after.dropped.over_rate - before.dropped.over_rate;
    assert_eq!(passed + dropped, u64::try_from(count).unwrap());
    dropped
}

/// The program counts by the second, and the test may be stopped for longer: bounds are loose.
#[test]
fn the_program_drops_what_a_source_sends_above_its_rate() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let mut program = program();
    let mut rules = rules();
    rules.checks = checks(&rules, &ModelLists::default());
    rules.checks.first_mut().unwrap().rate = Some(SourceRate { packets: 500, new_flows: 5 });
    program.sync(&rules).unwrap();
    assert_eq!(over_rate(&mut program, [198, 51, 100, 1], SYN, 5), 0);
    assert!(over_rate(&mut program, [198, 51, 100, 1], SYN, 400) > 300, "SYNs");
    assert_eq!(over_rate(&mut program, [198, 51, 100, 2], SYN, 5), 0, "another source");
    assert_eq!(over_rate(&mut program, [198, 51, 100, 3], ACK, 500), 0);
    assert!(over_rate(&mut program, [198, 51, 100, 3], ACK, 5000) > 2500, "packets");
    let dropped = program.access_drops(VipId(0)).unwrap();
    assert_eq!(dropped.over_rate, program.counters().unwrap().dropped.over_rate);
    rules.checks.clear();
    program.sync(&rules).unwrap();
    assert_eq!(over_rate(&mut program, [198, 51, 100, 3], SYN, 1000), 0, "no limit any longer");
}

#[test]
fn the_model_applies_lists_as_the_program_does() {
    let lists = all_lists();
    let mut rules = rules();
    rules.checks = checks(&rules, &lists);
    rules.global_lists = lists.global.present();
    let mut program = program();
    program.sync(&rules).unwrap();
    fill(&mut program, &lists);
    let model = SteerModel::new(&rules).with_lists(lists.clone());
    // Without the lists of all VIPs, those of single ones decide more often.
    let mut own = rules.clone();
    own.global_lists = ListsPresent::default();
    let own_model = SteerModel::new(&own)
        .with_lists(ModelLists { global: AccessLists::default(), own: lists.own });
    let mut random = Random(4);
    for (rules, model) in [(rules, model), (own, own_model)] {
        program.sync(&rules).unwrap();
        let mut seen = [0_u32; 5];
        for index in 0..PACKETS {
            let packet = packet(&mut random);
            let (theirs, ours) = (decision(&mut program, &packet), model.decide(MAC, &packet));
            assert_eq!(ours, theirs, "packet {index}: {packet:02x?}");
            *seen.get_mut(theirs as usize).unwrap() += 1;
        }
        assert!(seen.iter().all(|&count| count > 100), "every decision is met often: {seen:?}");
    }
    let dropped = program.access_drops(VipId(0)).unwrap();
    assert!(dropped.denied > 10 && dropped.not_allowed > 0, "{dropped:?}");
}
