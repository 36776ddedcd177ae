use etherparse::{Icmpv4Type, Icmpv6Type, Ipv4Header, SlicedPacket, TransportSlice, icmpv4};
use proptest::prelude::*;

use super::super::testing::*;
use super::messages::{Message, to_icmp, to_icmp_v6};
use super::*;
use crate::net::{Address, Family};
use crate::wire::tcp;

const POOL_V4: [u8; 4] = [10, 0, 0, 48];
const BACKEND_V4: [u8; 4] = [10, 0, 0, 11];
const POOL_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50];
const BACKEND_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11];

/// From the pool to the backend, in the family other than `from_v4`; quotes go from VIP to client.
fn target(from_v4: bool) -> Target {
    let [pool, backend, vip, client] = if from_v4 {
        [POOL_V6, BACKEND_V6, VIP_V6, CLIENT_V6].map(Address::from_v6)
    } else {
        [POOL_V4, BACKEND_V4, VIP_V4, CLIENT_V4].map(Address::from_v4)
    };
    Target {
        source: (pool, 2001),
        destination: (backend, 8080),
        quoted: Some(Quote {
            source: (vip, 80),
            destination: (client, 31_337),
            sequence: 28,
            mtu: 1500,
        }),
        identification: 0x4242,
        mtu: 4000,
    }
}

/// The packet with the correct checksum in its IPv4 header.
fn with_header_sum(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let len = usize::from(packet[0] & 0xf) * 4;
    if packet[0] >> 4 == 4 && (20..=packet.len()).contains(&len) {
        packet[10..12].fill(0);
        let sum = !sum(&[&packet[..len]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn translated(packet: &[u8], target: &Target) -> Result<Vec<u8>, SiitError> {
    translated_as_it_is(&with_header_sum(packet), target)
}

fn translated_as_it_is(packet: &[u8], target: &Target) -> Result<Vec<u8>, SiitError> {
    let (_umem, mut pool) = pool();
    let mut bytes = framed(packet);
    bytes.extend_from_slice(&[0xee; 7]);
    let mut frame = frame(&mut pool, &bytes);
    let result = translate(&mut frame, 14, target);
    if result.is_err() {
        assert_eq!(frame.data(), bytes, "an error changes nothing");
    } else {
        assert_eq!(frame.data()[..12], bytes[..12]);
        let to_v4 = target.source.0.is_v4();
        assert_eq!(frame.data()[12..14], if to_v4 { [8, 0] } else { [0x86, 0xdd] });
    }
    result.map(|()| frame.data()[14..].to_vec())
}

#[test]
fn segments_and_echoes_of_every_length_both_ways() {
    for (from_v4, protocol, len) in [true, false]
        .into_iter()
        .flat_map(|v4| [6, 17, 1].map(|protocol| (v4, protocol)))
        .flat_map(|(v4, protocol)| (0..40).map(move |len| (v4, protocol, len)))
    {
        let payload: Vec<u8> = (0..len).collect();
        let before = packet(from_v4, protocol, &payload);
        let after = translated(&before, &target(from_v4)).unwrap();
        assert_right(&after);
        let sliced = SlicedPacket::from_ip(&after).unwrap();
        let ports = match sliced.transport.unwrap() {
            TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
            TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => (echo.id, echo.seq),
                other => panic!("{other:?}"),
            },
            TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
                Icmpv6Type::EchoRequest(echo) => (echo.id, echo.seq),
                other => panic!("{other:?}"),
            },
        };
        assert_eq!(ports, if protocol == 1 { (7, 9) } else { (2001, 8080) });
        assert!(after.ends_with(&payload));
        if from_v4 {
            assert_eq!(
                (after[7], &after[8..24], &after[24..40]),
                (63, &POOL_V6[..], &BACKEND_V6[..])
            );
        } else {
            assert_eq!(
                (after[8], &after[12..16], &after[16..20]),
                (63, &POOL_V4[..], &BACKEND_V4[..])
            );
            assert_eq!(after[4..8], [0x42, 0x42, 0, 0], "short ones may be fragmented");
        }
    }
}

#[test]
fn the_class_goes_along_and_long_packets_are_not_to_be_fragmented() {
    let mut before = packet(true, 17, &[0; 8]);
    before[1] = 0x8c;
    assert_eq!(translated(&before, &target(true)).unwrap()[..2], [0x68, 0xc0]);
    let mut before = packet(false, 17, &[0; 1240]);
    (before[0], before[1]) = (0x68, 0xcf);
    let after = translated(&before, &target(false)).unwrap();
    assert_eq!((after[1], &after[6..8]), (0x8c, &[0x40, 0][..]));
    assert_right(&after);
}

#[test]
fn options_and_extensions_do_not_come_along() {
    let mut with_options = packet(true, 17, b"data");
    with_options.splice(20..20, [148, 4, 0, 0]);
    (with_options[0], with_options[3]) = (0x46, with_options[3] + 4);
    let after = translated(&with_options, &target(true)).unwrap();
    assert_eq!(after, translated(&packet(true, 17, b"data"), &target(true)).unwrap());
    let mut with_extensions = packet(false, 17, b"data");
    with_extensions.splice(40..40, [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
    (with_extensions[6], with_extensions[5]) = (0, with_extensions[5] + 16);
    let after = translated(&with_extensions, &target(false)).unwrap();
    assert_eq!(after, translated(&packet(false, 17, b"data"), &target(false)).unwrap());
    // A source route with its pointer behind its end is only a record.
    for (route, pointer, expected) in [
        (131, 4, Err(SiitError::SourceRoute)),
        (137, 8, Err(SiitError::SourceRoute)),
        (131, 9, Ok(())),
    ] {
        let mut routed = packet(true, 17, b"data");
        routed.splice(20..20, [1, route, 8, pointer, 9, 9, 9, 9, 9, 1, 1, 0]);
        (routed[0], routed[3]) = (0x48, routed[3] + 12);
        routed[22] = 8;
        assert_eq!(translated(&routed, &target(true)).map(|_| ()), expected, "{route} {pointer}");
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_one() {
    for len in 0..9 {
        let mut before = packet(true, 17, &vec![0xab; len]);
        before[26..28].fill(0);
        let after = translated(&before, &target(true)).unwrap();
        assert_right(&after);
        before[6] = 0x20;
        assert_eq!(translated(&before, &target(true)), Err(SiitError::NoChecksum));
    }
}

/// Fragments of a packet with plain headers of 20 or 40 bytes, with 16 bytes of data each.
fn fragments(v4: bool, whole: &[u8]) -> Vec<Vec<u8>> {
    let (head, data) = whole.split_at(if v4 { 20 } else { 40 });
    let count = data.len().div_ceil(16);
    let parts = data.chunks(16).enumerate().map(|(index, part)| {
        let (more, offset) = (index + 1 < count, u16::try_from(index * 2).unwrap());
        if v4 {
            let mut ip = Ipv4Header::from_slice(head).unwrap().0;
            ip.total_len = u16::try_from(20 + part.len()).unwrap();
            (ip.identification, ip.dont_fragment, ip.more_fragments) = (0xbeef, false, more);
            ip.fragment_offset = offset.try_into().unwrap();
            ip.header_checksum = ip.calc_header_checksum();
            return [&ip.to_bytes(), part].concat();
        }
        // By hand: etherparse 0.19 writes the flag to another place than RFC 8200 4.5 has it.
        let [o0, o1] = (offset << 3 | u16::from(more)).to_be_bytes();
        let extension = [head[6], 0, o0, o1, 0, 1, 0xbe, 0xef];
        let mut head = head.to_vec();
        head[4..6].copy_from_slice(&u16::try_from(8 + part.len()).unwrap().to_be_bytes());
        head[6] = 44;
        [&head, extension.as_slice(), part].concat()
    });
    parts.collect()
}

/// Reassembles fragments that are in order, after checks of their headers.
fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut head = Vec::new();
    for (index, bytes) in fragments.iter().enumerate() {
        let headers = Headers::of(bytes).unwrap();
        let fragment = headers.fragment.unwrap();
        assert_eq!(usize::from(fragment.offset), data.len());
        assert_eq!(fragment.more, index + 1 < fragments.len());
        assert_eq!(fragment.identification & 0xffff, 0xbeef);
        assert_eq!(headers.end, bytes.len());
        data.extend_from_slice(&bytes[headers.transport..]);
        head = bytes[..if bytes[0] >> 4 == 4 { 20 } else { 40 }].to_vec();
        if head.len() == 20 {
            assert_eq!(sum(&[&head]), 0xffff);
            head[6..8].fill(0);
        } else {
            head[6] = headers.protocol;
        }
    }
    let len = data.len() + if head.len() == 20 { 20 } else { 0 };
    let at = if head.len() == 20 { 2 } else { 4 };
    head[at..at + 2].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    if head.len() == 20 {
        head[10..12].fill(0);
        let sum = !sum(&[&head]);
        head[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    [head, data].concat()
}

#[test]
fn fragments_stay_fragments_of_one_datagram() {
    for from_v4 in [true, false] {
        let whole = packet(from_v4, 17, &(0..50).collect::<Vec<u8>>());
        let parts: Vec<_> = fragments(from_v4, &whole)
            .iter()
            .map(|part| translated(part, &target(from_v4)).unwrap())
            .collect();
        assert_eq!(parts.len(), 4);
        let together = reassembled(&parts);
        assert_right(&together);
        let expected = translated(&whole, &target(from_v4)).unwrap();
        let skip = if from_v4 { 0 } else { 12 };
        assert_eq!(together[skip..], expected[skip..]);
    }
}

#[test]
fn messages_in_icmp_v6() {
    let none = &[][..];
    let long = [0x45, 0, 5, 0xdc];
    for (old, quote, expected) in [
        ((3, 0, 0), none, Some((1, 0, 0))),
        ((3, 1, 0), none, Some((1, 0, 0))),
        ((3, 2, 0), none, Some((4, 1, 6))),
        ((3, 3, 0), none, Some((1, 4, 0))),
        ((3, 4, 1400), none, Some((2, 0, 1420))),
        ((3, 4, 0x0005_0000 | 576), none, Some((2, 0, 1280))),
        ((3, 4, 0), &long, Some((2, 0, 1512))),
        ((3, 4, 0), none, Some((2, 0, 1280))),
        ((3, 5, 0), none, Some((1, 0, 0))),
        ((3, 9, 0), none, Some((1, 1, 0))),
        ((3, 13, 0), none, Some((1, 1, 0))),
        ((3, 14, 0), none, None),
        ((3, 15, 0), none, Some((1, 1, 0))),
        ((3, 16, 0), none, None),
        ((4, 0, 0), none, None),
        ((5, 1, 0), none, None),
        ((11, 0, 0), none, Some((3, 0, 0))),
        ((11, 1, 0), none, Some((3, 1, 0))),
        ((12, 0, 0), none, Some((4, 0, 0))),
        ((12, 0, 1 << 24), none, Some((4, 0, 1))),
        ((12, 0, 2 << 24), none, Some((4, 0, 4))),
        ((12, 0, 5 << 24), none, None),
        ((12, 2, 8 << 24), none, Some((4, 0, 7))),
        ((12, 0, 9 << 24), none, Some((4, 0, 6))),
        ((12, 0, 10 << 24), none, None),
        ((12, 0, 15 << 24), none, Some((4, 0, 8))),
        ((12, 0, 19 << 24), none, Some((4, 0, 24))),
        ((12, 0, 20 << 24), none, None),
        ((12, 1, 0), none, None),
        ((13, 0, 0), none, None),
    ] {
        let (kind, code, word) = old;
        let new = to_icmp_v6(Message { kind, code, word }, quote);
        assert_eq!(new.map(|new| (new.kind, new.code, new.word)), expected, "{old:?}");
    }
}

#[test]
fn messages_in_icmp() {
    for (old, expected) in [
        ((1, 0, 0), Some((3, 1, 0))),
        ((1, 1, 0), Some((3, 10, 0))),
        ((1, 2, 0), Some((3, 1, 0))),
        ((1, 3, 0), Some((3, 1, 0))),
        ((1, 4, 0), Some((3, 3, 0))),
        ((1, 5, 0), None),
        ((2, 0, 1280), Some((3, 4, 1260))),
        ((2, 0, 0), Some((3, 4, 1260))),
        ((2, 0, 1279), Some((3, 4, 1260))),
        ((2, 0, u32::MAX), Some((3, 4, 0xffff - 20))),
        ((3, 0, 0), Some((11, 0, 0))),
        ((3, 1, 0), Some((11, 1, 0))),
        ((4, 0, 0), Some((12, 0, 0))),
        ((4, 0, 3), None),
        ((4, 0, 5), Some((12, 0, 2 << 24))),
        ((4, 0, 6), Some((12, 0, 9 << 24))),
        ((4, 0, 7), Some((12, 0, 8 << 24))),
        ((4, 0, 23), Some((12, 0, 12 << 24))),
        ((4, 0, 39), Some((12, 0, 16 << 24))),
        ((4, 0, 40), None),
        ((4, 1, 6), Some((3, 2, 0))),
        ((4, 2, 0), None),
        ((135, 0, 0), None),
        ((137, 0, 0), None),
    ] {
        let (kind, code, word) = old;
        let new = to_icmp(Message { kind, code, word });
        assert_eq!(new.map(|new| (new.kind, new.code, new.word)), expected, "{old:?}");
    }
}

/// RFC 7915 4.2, 5.2: at most the MTUs of the links on both sides.
#[test]
fn no_error_reports_more_than_the_links_carry() {
    for (family, reported, to, beyond, expected) in [
        (Family::V6, 1520, 1500, 1500, 1500),
        (Family::V6, 1520, 9000, 1500, 1520),
        (Family::V6, 1420, 1500, 1500, 1420),
        (Family::V6, 1520, 1500, 1400, 1420),
        (Family::V6, 1280, 1000, 1000, 1280),
        (Family::V4, 1480, 1500, 1500, 1480),
        (Family::V4, 8980, 1500, 9000, 1500),
        (Family::V4, 8980, 9000, 1500, 1480),
        (Family::V4, 1260, 1000, 9000, 1000),
        (Family::V4, 1260, 1500, 10, 0),
    ] {
        let (kind, code) = if family.is_v4() { (3, 4) } else { (2, 0) };
        let capped = Message { kind, code, word: reported }.capped(family, to, beyond);
        assert_eq!(capped.word, expected, "{family:?}: {reported}, {to}, {beyond}");
    }
    for (family, kind, code) in
        [(Family::V4, 3, 3), (Family::V4, 12, 0), (Family::V6, 4, 0), (Family::V4, 2, 0)]
    {
        let message = Message { kind, code, word: 24 << 24 };
        assert_eq!(message.capped(family, 1500, 1500), message, "it tells no MTU");
    }
}

#[test]
fn a_header_with_a_wrong_checksum_is_not_translated() {
    for protocol in [1, 6, 17] {
        for at in 10..20 {
            let mut bytes = packet(true, protocol, b"query");
            bytes[at] ^= 1;
            let result = translated_as_it_is(&bytes, &target(true));
            assert_eq!(result, Err(SiitError::BadHeaderChecksum), "{protocol}, byte {at}");
        }
    }
}

/// An error from a router to the pool, which quotes `quote`, too big for 1400 bytes.
fn too_big(v4: bool, quote: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = from_client(v4);
    if v4 {
        let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        builder
            .icmpv4(Icmpv4Type::DestinationUnreachable(header))
            .write(&mut bytes, quote)
            .unwrap();
    } else {
        builder.icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 }).write(&mut bytes, quote).unwrap();
    }
    bytes
}

#[test]
fn errors_with_their_quotes_cut_short_at_every_byte() {
    for (from_v4, protocol) in [(true, 6), (true, 17), (false, 6), (false, 17)] {
        let original = packet(from_v4, protocol, b"the data of it");
        let (old, new) = if from_v4 { (20, 40) } else { (40, 20) };
        for len in 0..=original.len() {
            let result = translated(&too_big(from_v4, &original[..len]), &target(from_v4));
            if len < old + 8 {
                assert_eq!(result, Err(SiitError::Malformed), "{len} bytes");
                continue;
            }
            let after = result.unwrap();
            assert_right(&after);
            let (kind, mtu): (_, u16) = if from_v4 { ([2, 0], 1420) } else { ([3, 4], 1380) };
            assert_eq!(after[new..new + 2], kind);
            assert_eq!(after[new + 6..new + 8], mtu.to_be_bytes());
            let quote = &after[new + 8..];
            assert_eq!(quote.len(), new + len - old);
            assert_eq!(quote[if from_v4 { 7 } else { 8 }], 64, "the hops are as they were quoted");
            let ports = [quote[new], quote[new + 1], quote[new + 2], quote[new + 3]];
            assert_eq!(ports, [0, 80, 0x7a, 0x69]);
            if protocol == 6 {
                assert_eq!(tcp::sequence(&quote[new..]), Some(0x0102_0304 + 28));
            }
            if len == original.len() {
                assert_right(quote);
            }
        }
    }
}

#[test]
fn errors_are_no_longer_than_they_may() {
    let quote = packet(true, 6, &[7; 1400]);
    let after = translated(&too_big(true, &quote), &target(true)).unwrap();
    assert_eq!(after.len(), 1280);
    assert_right(&after);
    let quote = packet(false, 6, &[7; 1100]);
    let after = translated(&too_big(false, &quote), &target(false)).unwrap();
    assert_eq!(after.len(), 576);
    assert_right(&after);
}

#[test]
fn data_after_a_quote_is_dropped() {
    let quote = packet(true, 17, &[7; 200]);
    let mut message = too_big(true, &[&quote[..128], &[0x20, 0, 1, 2, 0, 4, 9, 9]].concat());
    message[25] = 32;
    let fixed = u16::from_be_bytes([message[22], message[23]]);
    let fixed = Delta::default().replace_u16(0, 32).apply(fixed);
    message[22..24].copy_from_slice(&fixed.to_be_bytes());
    let after = translated(&message, &target(true)).unwrap();
    assert_right(&after);
    assert_eq!(after.len(), 48 + 40 + 108);
}

#[test]
fn packets_that_are_not_translated() {
    let edit = |v4, protocol, at: usize, byte| {
        let mut bytes = packet(v4, protocol, b"12345678");
        bytes[at] = byte;
        bytes
    };
    let error = |v4, at: usize, byte| {
        let mut quote = packet(v4, 17, b"12345678");
        quote[at] = byte;
        too_big(v4, &quote)
    };
    let mut damaged = too_big(true, &packet(true, 17, b"12345678"));
    damaged[60] ^= 1;
    use SiitError::*;
    for (name, bytes, expected) in [
        ("TTL 1", edit(true, 6, 8, 1), HopsExceeded),
        ("hop limit 0", edit(false, 6, 7, 0), HopsExceeded),
        ("ESP", edit(true, 6, 9, 50), Protocol),
        ("ICMPv6 over IPv4", edit(true, 1, 9, 58), Protocol),
        ("ICMP over IPv6", edit(false, 1, 6, 1), Protocol),
        ("a fragment of an echo", edit(true, 1, 6, 0x20), Fragment),
        ("a timestamp", edit(true, 1, 20, 13), Message),
        ("a neighbour solicitation", edit(false, 1, 40, 135), Message),
        ("a routing header", edit(false, 6, 6, 43), Malformed),
        ("longer than it is", edit(true, 6, 2, 9), Malformed),
        ("a short header", edit(true, 6, 3, 39), Malformed),
        ("a damaged error", damaged, BadChecksum),
        ("about a later fragment", error(true, 7, 1), Fragment),
        ("about ESP", error(false, 6, 50), Protocol),
        ("about nothing known", error(true, 0, 0x75), Malformed),
        ("about the other family", too_big(true, &packet(false, 17, b"12345678")), Family),
    ] {
        assert_eq!(translated(&bytes, &target(bytes[0] >> 4 == 4)), Err(expected), "{name}");
    }
    let whole = packet(true, 17, b"");
    assert_eq!(translated(&whole, &target(false)), Err(Family));
    let nobody_asked = Target { quoted: None, ..target(true) };
    let bytes = too_big(true, &packet(true, 17, b"12345678"));
    assert_eq!(translated(&bytes, &nobody_asked), Err(Message));
}

#[test]
fn too_long_for_the_link() {
    for (from_v4, len, mtu, expected) in [
        (true, 1472, 1520, Ok(())),
        (true, 1473, 1520, Err(SiitError::TooBig { mtu: 1500 })),
        (true, 1472, 1500, Err(SiitError::TooBig { mtu: 1480 })),
        (false, 1472, 1500, Ok(())),
        (false, 1473, 1500, Err(SiitError::TooBig { mtu: 1520 })),
    ] {
        let target = Target { mtu, ..target(from_v4) };
        let result = translated(&packet(from_v4, 17, &vec![0; len]), &target).map(|_| ());
        assert_eq!(result, expected, "{len} bytes for {mtu}");
    }
}

proptest! {
    #[test]
    fn there_and_back_again(
        v4: bool,
        protocol in prop::sample::select(vec![1_u8, 6, 17]),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        class: u8,
    ) {
        let mut before = packet(v4, protocol, &payload);
        if v4 {
            before[1] = class;
            before[10..12].fill(0);
            let sum = !sum(&[&before[..20]]);
            before[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            (before[0], before[1]) = (0x60 | class >> 4, class << 4);
        }
        let there = translated(&before, &target(v4)).unwrap();
        assert_right(&there);
        let (client, vip) = if v4 {
            (Address::from_v4(CLIENT_V4), Address::from_v4(VIP_V4))
        } else {
            (Address::from_v6(CLIENT_V6), Address::from_v6(VIP_V6))
        };
        let home = Target { source: (client, 31_337), destination: (vip, 80), ..target(!v4) };
        let back = translated(&there, &home).unwrap();
        assert_right(&back);
        // Two hops fewer; identification and flags are set by the translation.
        if v4 {
            prop_assert_eq!((&back[..4], &back[12..]), (&before[..4], &before[12..]));
            prop_assert_eq!(back[8], before[8] - 2);
        } else {
            prop_assert_eq!((&back[..7], &back[8..]), (&before[..7], &before[8..]));
            prop_assert_eq!(back[7], before[7] - 2);
        }
    }

    #[test]
    fn any_bytes_end_right_or_unchanged(
        mut bytes in prop::collection::vec(any::<u8>(), 1..200),
        start in prop::sample::select(vec![0x45_u8, 0x46, 0x60]),
        protocol in prop::sample::select(vec![1_u8, 6, 17, 58, 0, 44]),
        fragment: bool,
    ) {
        let v4 = start != 0x60;
        bytes[0] = start;
        let mut put = |at: usize, new: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + new.len()) {
                place.copy_from_slice(new);
            }
        };
        put(if v4 { 9 } else { 6 }, &[protocol]);
        if v4 && !fragment {
            put(6, &[0, 0]);
        }
        let len = u16::try_from(bytes.len() - if v4 { 0 } else { bytes.len().min(40) }).unwrap();
        let mut put = |at: usize, new: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + new.len()) {
                place.copy_from_slice(new);
            }
        };
        put(if v4 { 2 } else { 4 }, &len.to_be_bytes());
        if let Ok(after) = translated(&bytes, &target(v4)) {
            let headers = Headers::of(&after).unwrap();
            prop_assert_eq!(headers.end, after.len());
            prop_assert_eq!(after[0] >> 4, if v4 { 6 } else { 4 });
        }
    }
}
