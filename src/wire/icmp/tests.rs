use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice, icmpv4, icmpv6};
use proptest::prelude::*;

use super::super::testing::*;
use super::*;

const V4: [u8; 4] = VIP_V4;

fn source(v4: bool) -> Address {
    if v4 { Address::from_v4(V4) } else { Address::from_v6(VIP_V6) }
}

/// IP packet of the error about `packet`.
fn answered(packet: &[u8], kind: ErrorKind) -> Vec<u8> {
    let (_umem, mut pool) = pool();
    let mut frame = frame(&mut pool, &framed(packet));
    error(&mut frame, 14, source(packet[0] >> 4 == 4), kind).unwrap();
    assert_eq!(frame.data()[..12], framed(packet)[..12], "Ethernet stays");
    frame.data()[14..].to_vec()
}

/// Turns an untagged echo request into its reply.
fn reply(frame: &mut [u8]) -> Result<(), NoReply> {
    let len = frame.len();
    echo_reply(frame, 14, len)
}

#[test]
fn echo_replies_of_both_families_for_every_length() {
    for (v4, len) in [true, false].into_iter().flat_map(|v4| (0..70).map(move |len| (v4, len))) {
        let request = packet(v4, 1, &vec![0xa5; len]);
        let mut bytes = framed(&request);
        bytes.extend_from_slice(&[0xff; 9]);
        reply(&mut bytes).unwrap();
        let reply = &bytes[14..14 + request.len()];
        assert_right(reply);
        assert_eq!(bytes[14 + request.len()..], [0xff; 9], "padding is not touched");
        let sliced = SlicedPacket::from_ip(reply).unwrap();
        match sliced.transport.unwrap() {
            TransportSlice::Icmpv4(icmp) => {
                assert!(matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(id) if id.seq == 9));
                assert_eq!(
                    (&reply[12..16], &reply[16..20], reply[8]),
                    (&V4[..], &CLIENT_V4[..], 64)
                );
            }
            TransportSlice::Icmpv6(icmp) => {
                assert!(matches!(icmp.icmp_type(), Icmpv6Type::EchoReply(id) if id.id == 7));
                assert_eq!((&reply[8..24], &reply[24..40]), (&VIP_V6[..], &CLIENT_V6[..]));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_echo_request_of_several_frames_is_answered_in_the_first() {
    let mut whole = framed(&packet(true, 1, &[0xa5; 3000]));
    let len = whole.len();
    let (first, _) = whole.split_at_mut(1792);
    assert_eq!(echo_reply(first, 14, 1792), Err(NoReply::Malformed), "the rest is missing");
    echo_reply(first, 14, len).unwrap();
    assert_right(&whole[14..]);
}

#[test]
fn packets_other_than_whole_echo_requests_are_left_alone() {
    let edit = |v4, at: usize, byte| {
        let mut bytes = framed(&packet(v4, 1, b"echo"));
        bytes[14 + at] = byte;
        bytes
    };
    for (name, bytes, expected) in [
        ("a reply", edit(true, 20, 0), NoReply::NotEcho),
        ("another code", edit(true, 21, 1), NoReply::NotEcho),
        ("an ICMPv6 reply", edit(false, 40, 129), NoReply::NotEcho),
        ("an error", edit(true, 20, 3), NoReply::IcmpError),
        ("ICMPv6 over IPv4", edit(true, 9, 58), NoReply::IcmpError),
        ("TCP", framed(&packet(true, 6, b"")), NoReply::NotEcho),
        ("a first fragment", edit(true, 6, 0x20), NoReply::Fragment),
        ("a later fragment", edit(true, 7, 1), NoReply::Fragment),
        ("cut short", edit(true, 3, 99), NoReply::Malformed),
        ("too short for ICMP", edit(true, 3, 27), NoReply::Malformed),
        ("from a group", edit(true, 12, 224), NoReply::BadSource),
        ("from no address", edit(true, 12, 0), NoReply::BadSource),
        ("to a group", edit(false, 24, 0xff), NoReply::NotUnicast),
    ] {
        let mut after = bytes.clone();
        assert_eq!(reply(&mut after), Err(expected), "{name}");
        assert_eq!(after, bytes, "{name}");
    }
}

#[test]
fn errors_say_what_they_should_and_are_no_longer_than_they_may() {
    for (len, protocol) in [0, 1, 20, 27, 28, 29, 500, 1232, 1440, 2000]
        .into_iter()
        .flat_map(|len| [(len, 6), (len, 17), (len, 1)])
    {
        let kind = ErrorKind::TooBig { mtu: 1400 };
        let about = packet(true, protocol, &vec![0x5a; len]);
        let answer = answered(&about, kind);
        assert_right(&answer);
        assert!(answer.len() + 14 <= 98, "{} bytes", answer.len());
        assert_eq!(answer[28..], about[..about.len().min(56)], "the quote");
        assert_eq!((&answer[12..16], &answer[16..20]), (&V4[..], &CLIENT_V4[..]));
        let sliced = SlicedPacket::from_ip(&answer).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        let expected = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(expected));

        let about = packet(false, protocol, &vec![0x5a; len]);
        let answer = answered(&about, kind);
        assert_right(&answer);
        assert!(answer.len() <= 1280, "{} bytes", answer.len());
        assert_eq!(answer[48..], about[..about.len().min(1232)], "the quote");
        assert_eq!((&answer[8..24], &answer[24..40]), (&VIP_V6[..], &CLIENT_V6[..]));
        let sliced = SlicedPacket::from_ip(&answer).unwrap();
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("{sliced:?}") };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1400 });
    }
}

#[test]
fn types_and_codes_of_every_error() {
    let of = |v4, kind| {
        let answer = answered(&packet(v4, 17, b"x"), kind);
        let sliced = SlicedPacket::from_ip(&answer).unwrap();
        match sliced.transport {
            Some(TransportSlice::Icmpv4(icmp)) => (Some(icmp.icmp_type()), None),
            Some(TransportSlice::Icmpv6(icmp)) => (None, Some(icmp.icmp_type())),
            other => panic!("{other:?}"),
        }
    };
    let expired = icmpv4::TimeExceededCode::TtlExceededInTransit;
    let unreachable = icmpv4::DestUnreachableHeader::Port;
    for (kind, v4, v6) in [
        (
            ErrorKind::TimeExceeded,
            Icmpv4Type::TimeExceeded(expired),
            Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        ),
        (
            ErrorKind::PortUnreachable,
            Icmpv4Type::DestinationUnreachable(unreachable),
            Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
        ),
        (
            ErrorKind::TooBig { mtu: 600 },
            Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 },
            ),
            Icmpv6Type::PacketTooBig { mtu: 1280 },
        ),
    ] {
        assert_eq!(of(true, kind), (Some(v4), None));
        assert_eq!(of(false, kind), (None, Some(v6)));
    }
}

#[test]
fn padding_is_not_quoted_and_tags_stay() {
    let about = packet(true, 17, b"");
    let (_umem, mut pool) = pool();
    let mut bytes = framed(&about);
    bytes.splice(12..12, [0x81, 0x00, 0x00, 0x64]);
    let link = bytes[..18].to_vec();
    bytes.resize(64, 0xee);
    let mut frame = frame(&mut pool, &bytes);
    error(&mut frame, 18, source(true), ErrorKind::PortUnreachable).unwrap();
    assert_eq!(frame.data()[..18], link);
    assert_right(&frame.data()[18..]);
    assert_eq!(frame.data()[18 + 28..], about, "28 bytes, not the padding");
}

#[test]
fn options_are_quoted_with_8_bytes_of_what_follows() {
    let mut about = packet(true, 17, &[1; 64]);
    about[0] = 0x4f;
    assert_eq!(answered(&about, ErrorKind::TimeExceeded)[28..], about[..68]);
}

#[test]
fn packets_that_must_not_be_answered() {
    let edit = |v4, protocol, at: usize, byte| {
        let mut bytes = framed(&packet(v4, protocol, b"12345678"));
        bytes[at] = byte;
        bytes
    };
    use NoReply::*;
    for (name, bytes, expected) in [
        ("a datagram", edit(true, 17, 14, 0x45), Ok(())),
        ("an echo request", edit(true, 1, 14, 0x45), Ok(())),
        ("an ICMPv6 echo request", edit(false, 1, 14, 0x60), Ok(())),
        ("a first fragment", edit(true, 17, 20, 0x20), Ok(())),
        ("unreachable", edit(true, 1, 34, 3), Err(IcmpError)),
        ("time exceeded", edit(true, 1, 34, 11), Err(IcmpError)),
        ("an unassigned type", edit(true, 1, 34, 77), Err(IcmpError)),
        ("ICMPv6 too big", edit(false, 1, 54, 2), Err(IcmpError)),
        ("ICMPv6 of an unassigned type", edit(false, 1, 54, 127), Err(IcmpError)),
        ("ICMPv6 redirect", edit(false, 1, 54, 137), Err(IcmpError)),
        ("a link-layer group", edit(true, 17, 0, 3), Err(NotUnicast)),
        ("a group", edit(true, 17, 30, 239), Err(NotUnicast)),
        ("broadcast", edit(true, 17, 30, 255), Err(NotUnicast)),
        ("an IPv6 group", edit(false, 17, 38, 0xff), Err(NotUnicast)),
        ("from this network", edit(true, 17, 26, 0), Err(BadSource)),
        ("from loopback", edit(true, 17, 26, 127), Err(BadSource)),
        ("from class E", edit(true, 17, 26, 240), Err(BadSource)),
        ("from an IPv6 group", edit(false, 17, 22, 0xff), Err(BadSource)),
        ("a later fragment", edit(true, 17, 21, 1), Err(Fragment)),
        ("another version", edit(true, 17, 14, 0x55), Err(Malformed)),
    ] {
        assert_eq!(may_reply(&bytes, 14), expected, "{name}");
        let (_umem, mut pool) = pool();
        let mut frame = frame(&mut pool, &bytes);
        let v4 = bytes[12] == 8;
        let result = error(&mut frame, 14, source(v4), ErrorKind::TimeExceeded);
        assert_eq!(result, expected, "{name}");
        if expected.is_err() {
            assert_eq!(frame.data(), bytes, "{name}");
        }
    }
    for low in [0, 1] {
        let mut bytes = framed(&packet(false, 17, b""));
        bytes[22..38].fill(0);
        bytes[37] = low;
        assert_eq!(may_reply(&bytes, 14), Err(BadSource), "unspecified, loopback");
    }
}

#[test]
fn an_answer_of_the_other_family_or_without_room_changes_nothing() {
    let (_umem, mut pool) = pool();
    let bytes = framed(&packet(true, 17, b""));
    let mut frame = frame(&mut pool, &bytes);
    let refused = error(&mut frame, 14, source(false), ErrorKind::TimeExceeded);
    assert_eq!((refused, frame.data()), (Err(NoReply::NoRoom), bytes.as_slice()));
    let free = frame.headroom() - 27;
    assert!(frame.push_front(free));
    frame.data_mut()[..bytes.len()].copy_from_slice(&bytes);
    let refused = error(&mut frame, 14, source(true), ErrorKind::TimeExceeded);
    assert_eq!((refused, &frame.data()[..bytes.len()]), (Err(NoReply::NoRoom), &bytes[..]));
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_right_answer_or_stay(
        mut bytes in prop::collection::vec(any::<u8>(), 0..128),
        start in prop::sample::select(vec![0x45_u8, 0x46, 0x60]),
        protocol in prop::sample::select(vec![1_u8, 6, 17, 58, 0, 44]),
        kind in prop::sample::select(vec![0_u8, 3, 8, 128]),
    ) {
        let v4 = start != 0x60;
        for (at, byte) in [(0, 2), (14, start), (if v4 { 23 } else { 20 }, protocol)] {
            bytes.get_mut(at..=at).unwrap_or_default().fill(byte);
        }
        // Lengths and types that are sometimes right.
        let len = u16::try_from(bytes.len()).unwrap_or(0).saturating_sub(if v4 { 14 } else { 54 });
        let at = if v4 { 16 } else { 18 };
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&len.to_be_bytes());
        }
        let at = if v4 { 34 } else { 54 };
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&[kind, 0]);
        }
        let mut echo = bytes.clone();
        if reply(&mut echo).is_err() {
            prop_assert_eq!(&echo, &bytes);
        }
        let (_umem, mut pool) = pool();
        let mut frame = frame(&mut pool, &bytes);
        match error(&mut frame, 14, source(v4), ErrorKind::TimeExceeded) {
            Ok(()) => assert_right(&frame.data()[14..]),
            Err(_) => prop_assert_eq!(frame.data(), &bytes[..]),
        }
    }
}
