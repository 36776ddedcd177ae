//! `holdfast replay`: its decisions, the captures that it reads, and its output.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::fs;
use std::io::Cursor;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use etherparse::{PacketBuilder, TcpHeader};
use holdfast::config::{self, Config, Neighbours};
use holdfast::net::NicIndex;
use holdfast::replay::{
    Capture, CaptureError, Captured, Decision, FlowState, Replay, Story, Verdict,
};
use pcap_parser::pcapng::Block;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{OptionCode, parse_block_le};
use proptest::prelude::*;

const NIC1: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NIC2: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT: [u8; 6] = [2, 0xc, 0, 0, 0, 1];
const ETH1: NicIndex = NicIndex(0);
const ETH2: NicIndex = NicIndex(1);

/// Path of a file of this test.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay").join(name)
}

fn config() -> Config {
    config::load(&path("config.toml")).unwrap()
}

fn neighbours() -> Neighbours {
    config::load_neighbours(&path("neighbours.toml"), &config()).unwrap()
}

fn replay() -> Replay {
    Replay::new(&config(), Some(&neighbours())).unwrap()
}

/// A TCP segment; flags as in tcpdump.
fn tcp(macs: ([u8; 6], [u8; 6]), from: &str, to: &str, flags: &str) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut header = TcpHeader::new(from.port(), to.port(), 1_000, 65_000);
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    let mut packet = Vec::new();
    let builder = PacketBuilder::ethernet2(macs.0, macs.1);
    let builder = match (from, to) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => {
            builder.ipv4(a.ip().octets(), b.ip().octets(), 64)
        }
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            builder.ipv6(a.ip().octets(), b.ip().octets(), 64)
        }
        _ => panic!("one family"),
    };
    builder.tcp_header(header).write(&mut packet, b"hello").unwrap();
    packet
}

fn client(port: u16, flags: &str) -> Vec<u8> {
    tcp((CLIENT, NIC1), &format!("198.51.100.7:{port}"), "192.0.2.10:80", flags)
}

fn backend(port: u16, flags: &str) -> Vec<u8> {
    let macs = ([2, 0, 0, 0, 0, 0x12], NIC2);
    tcp(macs, "10.0.0.12:8080", &format!("198.51.100.7:{port}"), flags)
}

fn dns() -> Vec<u8> {
    let mut packet = Vec::new();
    let (client, vip) = ("2001:db8:1::7", "2001:db8::10");
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    PacketBuilder::ethernet2(CLIENT, NIC1)
        .ipv6(address(client), address(vip), 64)
        .udp(4000, 53)
        .write(&mut packet, b"query")
        .unwrap();
    packet
}

#[test]
fn packets_of_denied_sources_are_dropped_before_the_worker() {
    let denied = |prefix: &str| {
        let mut config = config();
        config.access.deny = [prefix.parse().unwrap()].into_iter().collect();
        let mut replay = Replay::new(&config, Some(&neighbours())).unwrap();
        replay.packet(&captured(ETH1, 0, &dns()))
    };
    let decision = denied("2001:db8:1::/64");
    assert_eq!((decision.verdict, decision.reason), (Verdict::Drop, Some("denied")));
    assert_eq!(decision.counters, [("nics.eth1.denied".to_owned(), 1)]);
    assert_eq!(decision.steps.len(), 1, "{:?}", decision.steps);
    assert_eq!(denied("2001:db8:3::/64").verdict, Verdict::Transmit);
}

/// A datagram in two fragments, of 1200 bytes and the rest.
fn fragments_of_dns() -> [Vec<u8>; 2] {
    let mut whole = dns();
    whole.resize(14 + 40 + 8 + 1400, 0);
    whole[58..60].copy_from_slice(&1408_u16.to_be_bytes());
    [(0..1200, true), (1200..1408, false)].map(|(range, more)| {
        let mut part = whole[..54].to_vec();
        let len = u16::try_from(range.len()).unwrap();
        part[18..20].copy_from_slice(&(8 + len).to_be_bytes());
        part[20] = 44;
        let offset = u16::try_from(range.start).unwrap() | u16::from(more);
        part.extend([&[17, 0][..], &offset.to_be_bytes(), &7_u32.to_be_bytes()].concat());
        part.extend(&whole[54..][range]);
        part
    })
}

#[test]
fn a_fragment_that_overtakes_its_first_one_waits_for_it() {
    let mut replay = replay();
    let [first, later] = fragments_of_dns();
    let decision = replay.packet(&captured(ETH1, 0, &later));
    assert_eq!((decision.verdict, decision.sent.len()), (Verdict::Parked, 0));
    assert!(replay.late().is_empty());
    let decision = replay.packet(&captured(ETH1, 1, &first));
    assert_eq!((decision.index, decision.verdict), (1, Verdict::Transmit));
    assert_eq!(decision.sent.len(), 1, "its own frame");
    let late = replay.late();
    let [late] = &late[..] else { panic!("{late:?}") };
    assert_eq!(late.captured().data, later);
    let Decision { index, verdict, flow, sent, time, ended, .. } = &late.decision;
    assert_eq!((*index, *verdict, *flow), (0, Verdict::Transmit, FlowState::Pinned));
    assert_eq!((sent.len(), *ended - *time), (1, Duration::from_secs(1)));
    assert_eq!(late.decision.backend, decision.backend);
    let counter = |name: &str| {
        let of = late.decision.counters.iter().find(|(of, _)| of == name);
        of.map_or(0, |(_, by)| *by)
    };
    assert_eq!((counter("workers.received"), counter("workers.transmitted")), (1, 1));
    assert_eq!(counter("workers.fragments_parked"), 0);
    assert!(replay.end().is_empty());
}

#[test]
fn a_fragment_waits_no_longer_than_the_worker_does() {
    let mut replay = replay();
    let [_, later] = fragments_of_dns();
    replay.packet(&captured(ETH1, 0, &later));
    // A second fragment, which arrives when the first has waited too long, and is the last packet.
    let mut other = later.clone();
    other[61] = 9;
    assert_eq!(replay.packet(&captured(ETH1, 3, &other)).verdict, Verdict::Parked);
    for (index, late) in [(0, replay.late()), (1, replay.end())] {
        assert_eq!(late.len(), 1);
        let decision = &late[0].decision;
        assert_eq!((decision.index, decision.verdict), (index, Verdict::Drop));
        assert_eq!(decision.reason, Some("fragment_no_first"));
    }
}

fn arp() -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend(CLIENT);
    packet.extend([0x08, 0x06]);
    packet.resize(60, 0);
    packet
}

/// A packet that was captured whole.
fn captured(nic: NicIndex, seconds: u64, data: &[u8]) -> Captured<'_> {
    let original_len = u32::try_from(data.len()).unwrap();
    Captured { nic, time: Duration::from_secs(seconds), original_len, data }
}

/// Decisions on packets, each with its NIC and second.
fn decide(replay: &mut Replay, packets: &[(NicIndex, u64, Vec<u8>)]) -> Vec<Decision> {
    packets.iter().map(|(nic, at, data)| replay.packet(&captured(*nic, *at, data))).collect()
}

fn counter(decision: &Decision, name: &str) -> i64 {
    decision.counters.iter().find(|(found, _)| found == name).map_or(0, |(_, by)| *by)
}

// ---- decisions ----

/// The traffic of the golden test: one packet of each kind.
fn mixed() -> Vec<(NicIndex, u64, Vec<u8>)> {
    let to_lost = tcp((CLIENT, NIC1), "198.51.100.7:5000", "192.0.2.11:80", "S");
    let other_port = tcp((CLIENT, NIC1), "198.51.100.7:5000", "192.0.2.10:81", "S");
    let other_mac = tcp((CLIENT, CLIENT), "198.51.100.7:5000", "192.0.2.10:80", "S");
    let martian = tcp((CLIENT, NIC1), "127.0.0.1:5000", "192.0.2.10:80", "S");
    let to_box = tcp(([2, 0, 0, 0, 0, 0x12], NIC2), "10.0.0.12:8080", "10.0.0.1:5000", "SA");
    let mut cut = client(40_000, "A");
    cut.truncate(40);
    vec![
        (ETH1, 0, client(40_000, "S")),
        (ETH2, 0, backend(40_000, "SA")),
        (ETH1, 0, client(40_000, "A")),
        (ETH1, 1, client(40_001, "A")),
        (ETH1, 1, client(40_002, "R")),
        (ETH1, 1, dns()),
        (ETH1, 2, to_lost),
        (ETH1, 2, other_port),
        (ETH1, 2, other_mac),
        (ETH1, 2, martian),
        (ETH2, 3, backend(50_000, "A")),
        (ETH2, 3, to_box),
        (ETH1, 3, arp()),
        (ETH1, 3, cut),
        // After more than the VIP's time-out of 60 s.
        (ETH1, 62, client(40_000, "A")),
        (ETH1, 62, client(40_000, "R")),
    ]
}

#[test]
fn every_kind_of_packet_gets_its_verdict() {
    use FlowState::{New, None as Nothing, Pinned};
    use Verdict::{Drop, Kernel, Reply, Transmit};
    let decisions = decide(&mut replay(), &mixed());
    let found: Vec<_> = decisions
        .iter()
        .map(|d| (d.verdict, d.reason.unwrap_or("-"), d.place(), d.flow, d.sent.len()))
        .collect();
    let expected = [
        (Transmit, "-", "web/b", New, 1),
        (Transmit, "-", "web/b", Pinned, 1),
        (Transmit, "-", "web/b", Pinned, 1),
        (Transmit, "-", "web/b", New, 1),
        (Transmit, "-", "web/b", Nothing, 1),
        (Transmit, "-", "dns/c", New, 1),
        (Drop, "no_backend", "lost", Nothing, 0),
        (Kernel, "-", "-", Nothing, 0),
        (Kernel, "-", "-", Nothing, 0),
        (Drop, "bad_source", "web", Nothing, 0),
        (Drop, "return_no_flow", "web", Nothing, 0),
        (Kernel, "-", "-", Nothing, 0),
        (Kernel, "-", "-", Nothing, 0),
        (Drop, "bad_ipv4_length", "-", Nothing, 0),
        (Reply, "flow_reset", "web/b", Pinned, 2),
        (Transmit, "-", "web/b", Pinned, 1),
    ];
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let (verdict, reason, place, flow, sent) = *expected;
        assert_eq!(found, &(verdict, reason, place.to_owned(), flow, sent), "packet {index}");
    }
    assert_eq!(found.len(), expected.len());
    let indices: Vec<u64> = decisions.iter().map(|decision| decision.index).collect();
    assert!(indices.iter().copied().eq(0..16), "{indices:?}");
    assert_eq!(decisions[14].unasked.len(), 2, "both ends of the silent flow were probed");
}

#[test]
fn frames_leave_as_the_neighbours_file_says() {
    let decisions = decide(&mut replay(), &mixed());
    let first = &decisions[0].sent[0];
    assert_eq!(first.nic, ETH2);
    assert_eq!(first.bytes[..12], [2, 0, 0, 0, 0, 0x12, 2, 0, 0, 0, 0, 2], "to b, from eth2");
    assert_eq!(first.bytes[12..16], [0x81, 0, 0, 100], "in its VLAN");
    let back = &decisions[1].sent[0];
    assert_eq!((back.nic, &back.bytes[..6]), (ETH1, &CLIENT[..]), "replies go where clients are");
}

#[test]
fn counters_are_those_that_the_packet_moved() {
    let decisions = decide(&mut replay(), &mixed());
    for (index, name, by) in [
        (0, "workers.flows_new", 1),
        (0, "vips.web.backends.b.packets_in", 1),
        (0, "nics.eth1.steered", 1),
        (0, "nics.eth2.tx_packets", 1),
        (1, "vips.web.packets_out", 1),
        (1, "workers.flows_new", 0),
        (3, "workers.flows_by_hash", 1),
        (6, "workers.drops.no_backend", 1),
        (6, "vips.lost.dropped", 1),
        (7, "nics.eth1.passed", 1),
        (7, "workers.received", 0),
        (14, "workers.resets_sent", 2),
        (14, "workers.probes_sent", 0),
    ] {
        assert_eq!(counter(&decisions[index], name), by, "packet {index}: {name}");
    }
}

#[test]
fn reasons_are_reported_step_by_step() {
    let mut packets = mixed();
    // The flow's first slot belongs to a, which is down.
    packets.push((ETH1, 62, client(40_003, "R")));
    let decisions = decide(&mut replay(), &packets);
    let steps = |index: usize| {
        let steps = decisions[index].steps.iter();
        steps.map(|step| format!("{}: {}: {}", step.stage, step.outcome, step.why)).collect()
    };
    let chosen: Vec<String> = steps(decisions.len() - 1);
    for part in ["xdp: to the worker", "not a: down: its health check fails", "b takes it"] {
        assert!(chosen.iter().any(|step| step.contains(part)), "{part}: {chosen:#?}");
    }
    let dropped: Vec<String> = steps(9);
    assert!(dropped.last().unwrap().starts_with("drop: bad_source: The source is"), "{dropped:?}");
    let mut stray = client(40_000, "S");
    stray[5] ^= 1;
    let stray = decide(&mut replay(), &[(NicIndex(0), 0, stray)]);
    assert!(stray[0].steps[0].why.starts_with("its destination MAC is not"), "{stray:?}");
    let pinned: Vec<String> = steps(2);
    assert!(pinned.iter().any(|step| step == "conntrack: web/b: the flow has a pin"), "{pinned:?}");
}

#[test]
fn without_a_neighbours_file_hops_are_invented_and_all_backends_are_up() {
    let mut replay = Replay::new(&config(), None).unwrap();
    // Sent to an unknown MAC: every unicast frame is for the NIC.
    let other_mac = tcp((CLIENT, CLIENT), "198.51.100.7:5000", "192.0.2.11:80", "S");
    let decision = replay.packet(&captured(ETH1, 0, &other_mac));
    assert_eq!((decision.verdict, decision.place().as_str()), (Verdict::Transmit, "lost/gone"));
    let Some(sent) = decision.sent.first() else { panic!("{decision:?}") };
    // Backend number 3 of the file, from 0, by NIC number 0.
    assert_eq!(sent.bytes[..12], [2, 0, 0, 0, 0, 3, 2, 0, 0, 1, 0, 0]);
    let group = tcp((CLIENT, [0xff; 6]), "198.51.100.7:5000", "192.0.2.11:80", "S");
    assert_eq!(replay.packet(&captured(ETH1, 0, &group)).verdict, Verdict::Kernel);
}

/// The reply goes out in the packet's own frame: to a ping, and to a packet with an expired TTL.
#[test]
fn answers_and_icmp_errors_have_verdicts_of_their_own() {
    let mut replay = replay();
    let mut ping = Vec::new();
    PacketBuilder::ethernet2(CLIENT, NIC1)
        .ipv4([198, 51, 100, 7], [192, 0, 2, 10], 64)
        .icmpv4_echo_request(1, 1)
        .write(&mut ping, b"ping")
        .unwrap();
    let decision = replay.packet(&captured(ETH1, 0, &ping));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Reply, Some("echo_replies")));
    assert_eq!(decision.sent[0].bytes[..6], CLIENT);
    // The first packet of a flow, on its last hop, creates no flow.
    let mut tired = client(40_000, "S");
    tired[22] = 1;
    let fixed = etherparse::Ipv4HeaderSlice::from_slice(&tired[14..]).unwrap().to_header();
    tired[24..26].copy_from_slice(&fixed.calc_header_checksum().to_be_bytes());
    let decision = replay.packet(&captured(ETH1, 0, &tired));
    assert_eq!(decision.reason, Some("icmp_time_exceeded_sent"));
    assert_eq!((decision.verdict, decision.flow), (Verdict::Reply, FlowState::None));
    assert_eq!(decision.vip.as_deref(), Some("web"));
    // A router's error about a packet that the VIP sent to the client.
    replay.packet(&captured(ETH1, 1, &client(40_001, "S")));
    let reply = tcp((NIC1, CLIENT), "192.0.2.10:80", "198.51.100.7:40001", "SA");
    let mut error = Vec::new();
    let kind = etherparse::Icmpv4Type::TimeExceeded(
        etherparse::icmpv4::TimeExceededCode::TtlExceededInTransit,
    );
    PacketBuilder::ethernet2(CLIENT, NIC1)
        .ipv4([203, 0, 113, 1], [192, 0, 2, 10], 64)
        .icmpv4(kind)
        .write(&mut error, &reply[14..])
        .unwrap();
    let decision = replay.packet(&captured(ETH1, 1, &error));
    assert_eq!((decision.verdict, decision.flow), (Verdict::Transmit, FlowState::Related));
    assert_eq!(decision.place(), "web/b");
    let step = decision.steps.last().unwrap();
    assert_eq!((step.stage.as_str(), step.outcome.as_str()), ("icmp", "web/b"));
}

#[test]
fn the_state_of_a_backend_is_what_the_file_says() {
    for (state, flow, places) in [
        ("up", "S", &["web/a", "web/b"][..]),
        ("down", "S", &["web/b"]),
        ("draining", "S", &["web/b"]),
        ("draining", "A", &["web/a", "web/b"]),
    ] {
        let text = fs::read_to_string(path("neighbours.toml")).unwrap();
        let text = text.replace("state = \"down\"", &format!("state = \"{state}\""));
        let known = config::parse_neighbours(&text, "n.toml", &config()).unwrap();
        let mut replay = Replay::new(&config(), Some(&known)).unwrap();
        let mut seen: Vec<String> = (0..64)
            .map(|port| replay.packet(&captured(ETH1, 0, &client(40_000 + port, flow))).place())
            .collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, places, "{state}, {flow}");
    }
}

#[test]
fn truncated_and_too_long_packets_are_not_given_to_the_worker() {
    let mut replay = replay();
    let packet = client(40_000, "S");
    let long = Captured { original_len: 1500, ..captured(ETH1, 0, &packet) };
    let decision = replay.packet(&long);
    assert_eq!(decision.verdict, Verdict::Truncated);
    assert_eq!(decision.reason, Some("truncated_capture"));
    assert!(decision.counters.is_empty() && decision.sent.is_empty());
    let mut jumbo = packet.clone();
    jumbo.resize(9000, 0);
    let decision = replay.packet(&captured(ETH1, 0, &jumbo));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Drop, Some("longer_than_a_frame")));
    assert_eq!(replay.packet(&captured(ETH1, 0, &packet)).flow, FlowState::New, "it goes on");
}

#[test]
fn a_nic_with_a_large_mtu_gives_jumbo_frames() {
    let text = fs::read_to_string(path("neighbours.toml")).unwrap();
    let large = text.replace("mac = \"02:00:00:00:00:0", "mtu = 9000\nmac = \"02:00:00:00:00:0");
    let known = config::parse_neighbours(&large, "n.toml", &config()).unwrap();
    let mut replay = Replay::new(&config(), Some(&known)).unwrap();
    let mut jumbo = client(40_000, "S");
    jumbo.resize(9014, 0);
    jumbo[16..18].copy_from_slice(&9000_u16.to_be_bytes());
    let header = etherparse::Ipv4Header::from_slice(&jumbo[14..]).unwrap().0;
    jumbo[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    let decision = replay.packet(&captured(ETH1, 0, &jumbo));
    assert_eq!(decision.verdict, Verdict::Transmit, "{decision:?}");
    assert_eq!(decision.sent[0].bytes.len(), jumbo.len() + 4, "with its VLAN tag");
    for length in [65_536, 4 << 20] {
        jumbo.resize(length, 0);
        let decision = replay.packet(&captured(ETH1, 0, &jumbo));
        assert_eq!(decision.reason, Some("longer_than_a_frame"), "{length}");
    }
}

#[test]
fn the_clock_follows_the_capture_and_never_runs_back() {
    let mut replay = replay();
    let mut at = |seconds, flags| replay.packet(&captured(ETH1, seconds, &client(40_000, flags)));
    assert_eq!(at(1_000_000, "S").flow, FlowState::New);
    assert_eq!(at(1_000_004, "S").flow, FlowState::Pinned, "within the 5 s of a SYN");
    assert_eq!(at(999_000, "S").flow, FlowState::Pinned, "captured out of order");
    assert_eq!(at(1_000_008, "S").flow, FlowState::Pinned, "the clock stood still meanwhile");
    assert_eq!(at(1_000_014, "S").flow, FlowState::New, "it had ended");
    assert_eq!(at(u64::MAX / 2, "S").flow, FlowState::New, "any time will do");
    assert_eq!(at(0, "S").flow, FlowState::Pinned);
}

/// A flow that a later packet finds has not ended, however many packets came between them.
#[test]
fn time_passes_alike_in_many_small_steps_and_in_one_large_one() {
    for steps in [1, 1000] {
        let mut replay = replay();
        replay.packet(&captured(ETH1, 0, &client(40_000, "S")));
        let (mut idled_out, packet) = (0, arp());
        for step in 1..=steps {
            let time = Duration::from_secs(20) * step / steps;
            let decision = replay.packet(&Captured { time, ..captured(ETH1, 0, &packet) });
            idled_out += counter(&decision, "workers.flows_idled_out");
        }
        assert_eq!(idled_out, 0, "what the sweep does belongs to no packet");
        let decision = replay.packet(&captured(ETH1, 20, &client(40_000, "S")));
        assert_eq!(decision.flow, FlowState::New, "{steps} steps");
        assert_eq!(counter(&decision, "workers.flows_active"), 1, "the old pin is long gone");
    }
}

// ---- captures ----

/// Format of a capture.
#[derive(Debug, Clone, Copy)]
struct Dialect {
    big: bool,
    nanoseconds: bool,
}

impl Dialect {
    fn word(self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn half(self, value: u16) -> [u8; 2] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    /// Pcap written by hand: the crate is used as a reader only.
    fn pcap(self, link: u32, packets: &[(NicIndex, u64, Vec<u8>)]) -> Vec<u8> {
        let magic = if self.nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let mut file = Vec::new();
        file.extend(self.word(magic));
        file.extend([self.half(2), self.half(4)].concat());
        for word in [0, 0, 65_535, link] {
            file.extend(self.word(word));
        }
        for (_, seconds, data) in packets {
            let len = u32::try_from(data.len()).unwrap();
            for word in [u32::try_from(*seconds).unwrap(), 500, len, len] {
                file.extend(self.word(word));
            }
            file.extend(data);
        }
        file
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let len = self.word(u32::try_from(body.len() + 12).unwrap());
        [&self.word(kind)[..], &len, &body, &len].concat()
    }

    fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let len = self.half(u16::try_from(value.len()).unwrap());
        let mut option = [&self.half(code)[..], &len, value].concat();
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    /// Pcapng with an interface for each of `names`, in the order of their link types.
    fn pcapng(self, names: &[(&str, u16)], packets: &[(NicIndex, u64, Vec<u8>)]) -> Vec<u8> {
        let header = [&self.word(0x1a2b_3c4d)[..], &self.half(1), &self.half(0), &[0xff; 8]];
        let mut file = self.block(0x0a0d_0d0a, &header.concat());
        for (name, link) in names {
            let resolution = if self.nanoseconds { 9 } else { 6 };
            file.extend(
                self.block(
                    1,
                    &[
                        &self.half(*link)[..],
                        &[0, 0],
                        &self.word(0),
                        &self.option(2, name.as_bytes()),
                        &self.option(9, &[resolution]),
                        &self.option(0, &[]),
                    ]
                    .concat(),
                ),
            );
        }
        // Names of hosts, which no worker would see.
        file.extend(self.block(4, &[0; 4]));
        for (interface, seconds, data) in packets {
            let unit = if self.nanoseconds { 1_000_000_000 } else { 1_000_000 };
            let time = seconds * unit + 500;
            let len = self.word(u32::try_from(data.len()).unwrap());
            let [high, low] = [time >> 32, time & 0xffff_ffff];
            let words = [high, low].map(|half| self.word(u32::try_from(half).unwrap()));
            let interface = self.word(u32::from(interface.0));
            let mut data = data.clone();
            data.resize(data.len().next_multiple_of(4), 0);
            let body = [&interface[..], &words[0], &words[1], &len, &len, &data].concat();
            file.extend(self.block(6, &body));
        }
        file
    }
}

const DIALECTS: [Dialect; 4] = [
    Dialect { big: false, nanoseconds: false },
    Dialect { big: true, nanoseconds: false },
    Dialect { big: false, nanoseconds: true },
    Dialect { big: true, nanoseconds: true },
];
const ETHERNET: u32 = 1;

type Packets = Vec<(NicIndex, Duration, Vec<u8>)>;

/// All packets of a file, and the result at its end.
fn read(file: &[u8]) -> (Packets, Result<(), CaptureError>) {
    let nics = vec!["eth1".to_owned(), "eth2".to_owned()];
    let mut packets = Vec::new();
    let mut capture = match Capture::new(Cursor::new(file), nics, ETH1) {
        Ok(capture) => capture,
        Err(error) => return (packets, Err(error)),
    };
    loop {
        match capture.next_packet() {
            Ok(None) => return (packets, Ok(())),
            Ok(Some(packet)) => packets.push((packet.nic, packet.time, packet.data.to_vec())),
            Err(error) => return (packets, Err(error)),
        }
    }
}

fn expected(dialect: Dialect, nics: bool) -> Packets {
    let unit = if dialect.nanoseconds { 1 } else { 1000 };
    mixed()
        .into_iter()
        .map(|(nic, seconds, data)| {
            let time = Duration::from_secs(seconds) + Duration::from_nanos(500 * unit);
            (if nics { nic } else { ETH1 }, time, data)
        })
        .collect()
}

#[test]
fn captures_of_every_dialect_are_read_alike() {
    for dialect in DIALECTS {
        let (packets, end) = read(&dialect.pcap(ETHERNET, &mixed()));
        end.unwrap();
        assert_eq!(packets, expected(dialect, false), "pcap, {dialect:?}");
        let file = dialect.pcapng(&[("eth1", 1), ("eth2", 1)], &mixed());
        let (packets, end) = read(&file);
        end.unwrap();
        assert_eq!(packets, expected(dialect, true), "pcapng, {dialect:?}");
        // Two sections of other dialects in one file.
        let both = [file, DIALECTS[0].pcapng(&[("eth1", 1), ("eth2", 1)], &mixed())].concat();
        let (packets, end) = read(&both);
        end.unwrap();
        assert_eq!(packets.len(), 2 * mixed().len());
    }
}

#[test]
fn interfaces_are_nics_by_name() {
    let packets = [(NicIndex(0), 0, arp()), (NicIndex(1), 0, arp()), (NicIndex(2), 0, arp())];
    let file = DIALECTS[0].pcapng(&[("eth2", 1), ("any", 1), ("eth1", 1)], &packets);
    let (packets, end) = read(&file);
    end.unwrap();
    let nics: Vec<_> = packets.iter().map(|(nic, ..)| *nic).collect();
    assert_eq!(nics, [ETH2, ETH1, ETH1], "by name, else the first");
}

#[test]
fn only_ethernet_is_replayed() {
    let linux_cooked = 113;
    let (_, end) = read(&DIALECTS[0].pcap(linux_cooked, &mixed()));
    let message = end.unwrap_err().to_string();
    assert!(message.contains("LINUX_SLL (113)") && message.contains("tcpdump -i"), "{message}");
    let file = DIALECTS[0].pcapng(&[("eth1", 1), ("any", 113)], &mixed());
    let (packets, end) = read(&file);
    assert_eq!(packets.len(), 1, "up to the first packet of the other interface");
    assert!(matches!(end, Err(CaptureError::LinkType(_))));
    // The upper bits announce the frame check sequence at the end of every packet.
    let (packets, end) = read(&DIALECTS[0].pcap(0x2400_0001, &mixed()));
    end.unwrap();
    assert_eq!(packets.len(), mixed().len());
}

#[test]
fn a_capture_cut_at_any_byte_is_read_up_to_there() {
    for file in [
        DIALECTS[1].pcap(ETHERNET, &mixed()),
        DIALECTS[2].pcapng(&[("eth1", 1), ("eth2", 1)], &mixed()),
    ] {
        let (whole, _) = read(&file);
        let mut last = 0;
        for cut in 0..file.len() {
            let (packets, _) = read(&file[..cut]);
            assert!(packets.len() >= last && whole.starts_with(&packets), "cut at {cut}");
            last = packets.len();
        }
        assert_eq!(last, whole.len() - 1);
    }
    let file = DIALECTS[0].pcap(ETHERNET, &mixed());
    let message = read(&file[..file.len() - 1]).1.unwrap_err().to_string();
    assert!(message.contains("cut short") && message.contains("after packet 14"), "{message}");
    assert!(matches!(read(b"").1, Err(CaptureError::Format)));
    assert!(matches!(read(b"index,time,verdict\n0,1,drop").1, Err(CaptureError::Format)));
}

/// Every word of a file at its limits, and thousands of random changes: packets or an error, never
/// more bytes than the file has.
#[test]
fn files_that_lie_end_in_an_error_or_in_packets() {
    for file in [
        DIALECTS[0].pcap(ETHERNET, &mixed()),
        DIALECTS[0].pcapng(&[("eth1", 1), ("eth2", 1)], &mixed()),
    ] {
        let check = |file: &[u8], what: &dyn Fn() -> String| {
            let (packets, _) = read(file);
            let bytes: usize = packets.iter().map(|(_, _, data)| data.len()).sum();
            assert!(bytes <= file.len(), "{}: {bytes} bytes", what());
        };
        for place in (0..file.len().min(600)).step_by(2) {
            for value in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, u32::MAX] {
                let mut file = file.clone();
                let end = (place + 4).min(file.len());
                file[place..end].copy_from_slice(&value.to_le_bytes()[..end - place]);
                check(&file, &|| format!("{value:#x} at {place}"));
            }
        }
        let mut seed = 1_u64;
        for round in 0..2000 {
            let mut file = file.clone();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let place = usize::try_from(seed >> 33).unwrap() % file.len();
                file[place] = seed.to_le_bytes()[2];
            }
            check(&file, &|| format!("round {round}"));
        }
    }
}

#[test]
fn interfaces_do_not_pile_up_in_memory() {
    let names = vec![("eth1", 1); 1025];
    let (_, end) = read(&DIALECTS[0].pcapng(&names, &mixed()));
    assert!(matches!(end, Err(CaptureError::Malformed(..))), "{end:?}");
    let long = "x".repeat(60_000);
    let (_, end) = read(&DIALECTS[0].pcapng(&vec![(long.as_str(), 1); 20], &mixed()));
    assert!(matches!(end, Err(CaptureError::Malformed(..))), "{end:?}");
}

// ---- output ----

/// Interface, comment and bytes of a frame in the annotated capture.
type Told = (String, String, Vec<u8>);

/// Annotated capture of a replay, as a file and as rows of interface, comment and bytes.
fn story() -> (Vec<u8>, Vec<Told>) {
    let mut replay = replay();
    let mut file = Vec::new();
    let interfaces = replay.interfaces().to_vec();
    let mut story = Story::new(&mut file, &interfaces, "a note").unwrap();
    for (nic, at, data) in mixed() {
        let captured = captured(nic, at, &data);
        let decision = replay.packet(&captured);
        story.write(&captured, &decision).unwrap();
    }
    story.finish().unwrap();
    let told = read_story(&file);
    (file, told)
}

fn read_story(file: &[u8]) -> Vec<Told> {
    let (mut told, mut names, mut rest) = (Vec::new(), Vec::new(), file);
    while !rest.is_empty() {
        let (behind, block) = parse_block_le(rest).unwrap();
        rest = behind;
        match block {
            Block::SectionHeader(header) => {
                let application = header.shb_userappl().unwrap().unwrap();
                assert!(application.starts_with("holdfast "), "{application}");
            }
            Block::InterfaceDescription(interface) => {
                assert_eq!((interface.linktype.0, interface.if_tsresol), (1, 9));
                names.push(interface.if_name().unwrap().unwrap().to_owned());
            }
            Block::EnhancedPacket(packet) => {
                let comment = &packet.options[0];
                assert_eq!(comment.code, OptionCode::Comment);
                let name = names[packet.if_id as usize].clone();
                let data = packet.packet_data().to_vec();
                told.push((name, comment.as_str().unwrap().to_owned(), data));
            }
            other => panic!("{other:?}"),
        }
    }
    told
}

/// A packet of a capture: NIC, milliseconds, bytes.
type Arrival = (NicIndex, u64, Vec<u8>);

/// Complete output of a replay: a decision and a line of JSON for each packet, and the annotated
/// capture.
fn everything(arrivals: &[Arrival]) -> (Vec<Decision>, Vec<serde_json::Value>, Vec<Told>) {
    let mut replay = replay();
    let (mut file, mut decisions, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    let interfaces = replay.interfaces().to_vec();
    let mut story = Story::new(&mut file, &interfaces, "").unwrap();
    let mut tell = |captured: &Captured<'_>, decision: Decision| {
        story.write(captured, &decision).unwrap();
        if decision.verdict != Verdict::Parked {
            lines.push(serde_json::from_str(&decision.json(&interfaces).unwrap()).unwrap());
            decisions.push(decision);
        }
    };
    for (nic, at, data) in arrivals {
        let captured = Captured { time: Duration::from_millis(*at), ..captured(*nic, 0, data) };
        let decision = replay.packet(&captured);
        tell(&captured, decision);
        replay.late().iter().for_each(|late| tell(&late.captured(), late.decision.clone()));
    }
    replay.end().iter().for_each(|late| tell(&late.captured(), late.decision.clone()));
    story.finish().unwrap();
    (decisions, lines, read_story(&file))
}

/// A fragment of three of the datagram with this number, with a mark that distinguishes it from its
/// duplicates.
fn marked(datagram: u8, part: usize, mark: u16) -> Vec<u8> {
    let mut whole = dns();
    whole.resize(14 + 40 + 8 + 192, 0);
    whole[58..60].copy_from_slice(&200_u16.to_be_bytes());
    let range = [0..64, 64..128, 128..200][part].clone();
    let mut frame = whole[..54].to_vec();
    let len = u16::try_from(range.len()).unwrap();
    frame[18..20].copy_from_slice(&(8 + len).to_be_bytes());
    frame[20] = 44;
    let offset = u16::try_from(range.start).unwrap() | u16::from(part < 2);
    frame.extend([17, 0]);
    frame.extend(offset.to_be_bytes());
    frame.extend([0, 0, 0, datagram]);
    frame.extend(&whole[54..][range]);
    let end = frame.len() - 2;
    frame[end..].copy_from_slice(&mark.to_be_bytes());
    frame
}

/// Asserts that each packet, whether duplicated, lost, late or out of order, on either NIC, has one
/// line, with its own frame or a reason.
fn assert_each_has_its_own(arrivals: &[Arrival]) {
    let (decisions, lines, told) = everything(arrivals);
    let numbers = |of: &mut dyn Iterator<Item = u64>| {
        let mut numbers: Vec<u64> = of.collect();
        numbers.sort_unstable();
        numbers
    };
    let all: Vec<u64> = (0..arrivals.len() as u64).collect();
    assert_eq!(numbers(&mut decisions.iter().map(|decision| decision.index)), all);
    assert_eq!(numbers(&mut lines.iter().map(|line| line["index"].as_u64().unwrap())), all);
    for (decision, line) in decisions.iter().zip(&lines) {
        let (_, _, came) = &arrivals[usize::try_from(decision.index).unwrap()];
        assert_eq!(counter(decision, "workers.received"), 1, "{decision:?}");
        let index = format!("index={} ", decision.index);
        let frames: Vec<_> = told.iter().filter(|(_, said, _)| said.contains(&index)).collect();
        let [(interface, _, frame)] = &frames[..] else { panic!("{decision:?}: {frames:?}") };
        assert_eq!(frame[14..], came[14..], "its own: {decision:?}");
        match decision.verdict {
            Verdict::Transmit => {
                assert_eq!((decision.sent.len(), interface.as_str()), (1, "eth1"));
                assert_eq!(decision.sent[0].bytes[14..], came[14..], "{decision:?}");
                assert_eq!(line["reason"], serde_json::Value::Null);
                assert_eq!(line["out"][0]["length"], came.len());
                assert_eq!(counter(decision, "workers.transmitted"), 1, "{decision:?}");
            }
            Verdict::Drop => {
                let reason = decision.reason.unwrap_or_else(|| panic!("{decision:?}"));
                assert_eq!(line["reason"], reason);
                assert_eq!((decision.sent.len(), interface.as_str()), (0, "dropped"));
                assert_eq!(counter(decision, &format!("workers.drops.{reason}")), 1);
            }
            other => panic!("{other:?}: {decision:?}"),
        }
    }
}

/// Duplicates wait for the first fragment together with those that complete the datagram.
#[test]
fn a_later_fragment_that_is_doubled_before_its_first_one_keeps_its_own_frame() {
    for nics in [[ETH1, ETH1], [ETH1, ETH2], [ETH2, ETH1]] {
        let to = |nic: NicIndex, mut frame: Vec<u8>| {
            frame[..6].copy_from_slice(if nic == ETH1 { &NIC1 } else { &NIC2 });
            frame
        };
        let parts = [(2, 0), (1, 1), (2, 1), (1, 0), (0, 0), (0, 0)];
        let arrivals = (0..).zip(parts).map(|(mark, (part, nic))| {
            (nics[nic], u64::from(mark), to(nics[nic], marked(1, part, mark)))
        });
        let mut arrivals: Vec<Arrival> = arrivals.collect();
        arrivals.push((ETH1, 9, dns()));
        assert_each_has_its_own(&arrivals);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]
    #[test]
    fn fragments_doubled_and_out_of_order_are_reported_one_by_one(
        parts in proptest::collection::vec((1..4_u8, 0..3_usize, 0..2_u8, 0..900_u64), 1..60),
    ) {
        let mut at = 0;
        let arrivals = (0..).zip(parts).map(|(mark, (datagram, part, nic, gap))| {
            // Most arrive close together.
            at += gap.saturating_sub(800) * 10;
            let mut frame = marked(datagram, part, mark);
            frame[..6].copy_from_slice(if nic == 0 { &NIC1 } else { &NIC2 });
            (NicIndex(nic), at, frame)
        });
        assert_each_has_its_own(&arrivals.collect::<Vec<_>>());
    }
}

/// More later fragments than may be parked: the oldest makes room, and its drop has a reason of its
/// own.
#[test]
fn fragments_that_make_room_have_their_own_drop_reason() {
    let arrivals: Vec<Arrival> = (0..300)
        .map(|mark| (ETH1, 0, marked(u8::try_from(mark % 250).unwrap(), 1, mark)))
        .collect();
    assert_each_has_its_own(&arrivals);
    let (decisions, ..) = everything(&arrivals);
    let of = |reason| decisions.iter().filter(|d| d.reason == Some(reason)).count();
    assert_eq!((of("fragment_no_room"), of("fragment_no_first")), (44, 256));
}

/// The checksum of a ping in several frames is verified, too.
#[test]
fn a_jumbo_ping_with_a_wrong_checksum_gets_no_answer() {
    let text = fs::read_to_string(path("neighbours.toml")).unwrap();
    let large = text.replace("mac = \"02:00:00:00:00:0", "mtu = 9000\nmac = \"02:00:00:00:00:0");
    let known = config::parse_neighbours(&large, "n.toml", &config()).unwrap();
    let mut replay = Replay::new(&config(), Some(&known)).unwrap();
    for len in [1751, 4001, 8000] {
        let mut ping = Vec::new();
        PacketBuilder::ethernet2(CLIENT, NIC1)
            .ipv4([198, 51, 100, 7], [192, 0, 2, 10], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut ping, &vec![0x5a; len])
            .unwrap();
        let decision = replay.packet(&captured(ETH1, 0, &ping));
        assert_eq!(decision.reason, Some("echo_replies"), "{len}");
        assert_eq!(decision.sent[0].bytes.len(), ping.len());
        *ping.last_mut().unwrap() ^= 1;
        let decision = replay.packet(&captured(ETH1, 0, &ping));
        assert_eq!((decision.verdict, decision.reason), (Verdict::Drop, Some("bad_icmp")), "{len}");
    }
}

#[test]
fn the_story_has_every_packet_where_it_went() {
    let (_, told) = story();
    let found: Vec<(&str, &str)> = told
        .iter()
        .map(|(interface, comment, _)| {
            let index = comment.split("index=").nth(1).unwrap().split(' ').next().unwrap();
            (interface.as_str(), index)
        })
        .collect();
    let expected = [
        ("eth2", "0"),
        ("eth1", "1"),
        ("eth2", "2"),
        ("eth2", "3"),
        ("eth2", "4"),
        ("eth1", "5"),
        ("dropped", "6"),
        ("kernel", "7"),
        ("kernel", "8"),
        ("dropped", "9"),
        ("dropped", "10"),
        ("kernel", "11"),
        ("kernel", "12"),
        ("dropped", "13"),
        ("eth1", "-"),
        ("eth2", "-"),
        ("dropped", "14"),
        ("eth1", "14"),
        ("eth2", "14"),
        ("eth2", "15"),
    ];
    assert_eq!(found, expected);
    let (_, _, kept) = &told[7];
    assert_eq!(*kept, mixed()[7].2, "what is left to the kernel is as it came");
}

/// A temporary folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("holdfast-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn tshark_reads_the_story() {
    let folder = Folder::new("replay-tshark");
    let file = folder.file("out.pcapng", &story().0);
    let output = Command::new("tshark")
        .args(["-r", &file, "-T", "fields", "-E", "separator=|"])
        .args(["-e", "frame.interface_name", "-e", "frame.comment"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 20, "{text}");
    let first = "eth2|index=0 verdict=transmit vip=web backend=b flow=new reason=-";
    assert!(lines[0].starts_with(first), "{text}");
    let last = "eth2|index=15 verdict=transmit vip=web backend=b flow=pinned reason=-";
    assert!(lines[19].starts_with(last), "{text}");
}

// ---- the command ----

/// Exit code, output and errors.
fn holdfast(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// `holdfast replay` with the files of this test, a capture, and further arguments.
fn command(capture: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let [config, neighbours] =
        ["config.toml", "neighbours.toml"].map(|name| path(name).display().to_string());
    let mut arguments = vec!["replay", "--config", &config, "--neighbours", &neighbours, capture];
    arguments.extend(more);
    holdfast(&arguments)
}

#[test]
fn the_output_is_the_golden_one() {
    let folder = Folder::new("replay-golden");
    let names = [("eth1", 1), ("eth2", 1)];
    let capture = folder.file("in.pcapng", &DIALECTS[2].pcapng(&names, &mixed()));
    let note = "note: no [[neighbour]] tells of lost/gone (10.0.0.13): without a next hop a backend \
                gets nothing\n";
    for (golden, more, aside) in [("golden.jsonl", &["--json"][..], note), ("golden.txt", &[], "")]
    {
        let (code, output, errors) = command(&capture, more);
        assert_eq!((code, errors.as_str()), (Some(0), aside));
        let expected = fs::read_to_string(path(golden)).unwrap();
        for (line, (found, expected)) in output.lines().zip(expected.lines()).enumerate() {
            assert_eq!(found, expected, "{golden}, line {line}");
        }
        assert_eq!(output.lines().count(), expected.lines().count(), "{golden}");
    }
}

#[test]
fn json_has_the_documented_keys() {
    let document = fs::read_to_string(path("../../docs/REPLAY.md")).unwrap();
    let line = fs::read_to_string(path("golden.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    for key in line.as_object().unwrap().keys() {
        assert!(document.contains(&format!("| `{key}` | ")), "docs/REPLAY.md lacks {key}");
    }
}

#[test]
fn mistakes_are_reported_with_the_file_and_exit_code_1() {
    let folder = Folder::new("replay-mistakes");
    let good = DIALECTS[0].pcap(ETHERNET, &mixed());
    let capture = folder.file("in.pcap", &good);
    let cut = folder.file("cut.pcap", &good[..good.len() - 1]);
    let text = folder.file("text.pcap", b"not a capture at all");
    let out = folder.0.join("no/such/folder.pcapng").display().to_string();
    for (row, (code, output, errors), part) in [
        ("no capture", command("/no/such.pcap", &[]), "/no/such.pcap: No such file"),
        ("text", command(&text, &[]), "text.pcap: not a capture"),
        ("out", command(&capture, &["--out", &out]), "folder.pcapng: No such file"),
        (
            "interface",
            command(&capture, &["--interface", "eth9"]),
            "--interface eth9: no [[nic]] of",
        ),
    ] {
        assert_eq!((code, output.as_str()), (Some(1), ""), "{row}");
        assert!(errors.contains(part) && errors.contains("error:"), "{row}: {errors}");
    }
    let (code, output, errors) = command(&cut, &["--json"]);
    assert_eq!((code, output.lines().count()), (Some(1), 15), "what is good is told");
    assert!(errors.contains("cut.pcap: cut short"), "{errors}");
    let config = path("config.toml").display().to_string();
    let bad = folder.file("n.toml", b"[[nic]]\ninterface = \"eth9\"\nmac = \"x\"\n");
    let (code, _, errors) =
        holdfast(&["replay", "--config", &config, "--neighbours", &bad, &capture]);
    assert_eq!(code, Some(1));
    for part in ["n.toml:2:13: nic.interface: \"eth9\"", "n.toml:3:7: nic.mac: \"x\""] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}

#[test]
fn input_files_are_not_overwritten() {
    let folder = Folder::new("replay-inputs");
    let good = DIALECTS[0].pcap(ETHERNET, &mixed());
    let capture = folder.file("in.pcap", &good);
    let link = folder.0.join("link.pcap");
    fs::hard_link(&capture, &link).unwrap();
    for out in [capture.as_str(), link.to_str().unwrap()] {
        let (code, output, errors) = command(&capture, &["--out", out]);
        assert_eq!((code, output.as_str()), (Some(1), ""));
        assert!(errors.contains("would write over it; name another one"), "{errors}");
    }
    assert_eq!(fs::read(&capture).unwrap(), good);
}

#[test]
fn invented_next_hops_are_said_once() {
    let folder = Folder::new("replay-invented");
    let capture = folder.file("in.pcap", &DIALECTS[0].pcap(ETHERNET, &mixed()));
    let config = path("config.toml").display().to_string();
    let (code, output, errors) = holdfast(&["replay", "--config", &config, &capture]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(output.matches("invented").count(), 1, "{output}");
    let (code, output, errors) = holdfast(&["replay", "--config", &config, "--json", &capture]);
    assert_eq!(code, Some(0));
    assert_eq!((output.matches("invented").count(), errors.matches("invented").count()), (0, 1));
    assert_eq!(output.lines().count(), mixed().len(), "one document per packet, nothing else");
}

#[test]
fn a_capture_of_one_nic_may_be_said_to_be_of_another() {
    let folder = Folder::new("replay-interface");
    let capture = folder.file("in.pcap", &DIALECTS[0].pcap(ETHERNET, &mixed()[1..2]));
    // Eth1 has another MAC.
    let (_, output, _) = command(&capture, &["--json"]);
    assert!(output.contains(r#""interface":"eth1","verdict":"kernel""#), "{output}");
    let (_, output, _) = command(&capture, &["--json", "--interface", "eth2"]);
    assert!(output.contains(r#""interface":"eth2","verdict":"drop""#), "{output}");
}
