use etherparse::TcpHeaderSlice;
use proptest::prelude::*;

use super::super::testing::*;
use super::*;
use crate::xdp::fake::FakeNic;
use crate::xdp::socket::Io;

fn header(v4: bool) -> Header {
    if v4 {
        let (client, vip) = (Address::from_v4(CLIENT_V4), Address::from_v4(VIP_V4));
        Header::new((client, 31_337), (vip, 80))
    } else {
        let (client, vip) = (Address::from_v6(CLIENT_V6), Address::from_v6(VIP_V6));
        Header::new((client, 31_337), (vip, 80))
    }
}

/// The example of the specification's text, field by field.
#[test]
fn headers_of_both_families() {
    let signature = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";
    let tail = [0x7a, 0x69, 0, 80];
    let v4 = [&signature[..], &[0x21, 0x11, 0, 12], &CLIENT_V4, &VIP_V4, &tail].concat();
    assert_eq!((header(true).bytes(), v4.len()), (&v4[..], V4_LEN));
    let v6 = [&signature[..], &[0x21, 0x21, 0, 36], &CLIENT_V6, &VIP_V6, &tail].concat();
    assert_eq!((header(false).bytes(), v6.len()), (&v6[..], V6_LEN));
    let mixed = Header::new((Address::from_v4(CLIENT_V4), 1), (Address::from_v6(VIP_V6), 2));
    assert_eq!(mixed.bytes().len(), V6_LEN);
}

fn segment(
    v4: bool,
    sequence: u32,
    edit: impl Fn(&mut etherparse::TcpHeader),
    data: &[u8],
) -> Vec<u8> {
    let mut tcp = etherparse::TcpHeader::new(31_337, 80, sequence, 1000);
    (tcp.ack, tcp.acknowledgment_number) = (true, 5);
    edit(&mut tcp);
    let mut bytes = Vec::new();
    from_client(v4).tcp_header(tcp).write(&mut bytes, data).unwrap();
    assert_right(&bytes);
    bytes
}

fn ip_len(v4: bool) -> usize {
    if v4 { 20 } else { 40 }
}

#[test]
fn the_header_goes_in_front_of_the_data() {
    for (v4, len) in [true, false].into_iter().flat_map(|v4| (0..20).map(move |len| (v4, len))) {
        let data = vec![0x5a; len];
        let urgent = |tcp: &mut etherparse::TcpHeader| {
            (tcp.urg, tcp.urgent_pointer) = (len.is_multiple_of(2), 3);
            tcp.set_options_raw(&[1; 12]).unwrap();
        };
        let packet = segment(v4, 78, urgent, &data);
        let (_umem, mut pool) = pool();
        let mut padded = framed(&packet);
        padded.extend_from_slice(&[0xee; 11]);
        let mut frame = frame(&mut pool, &padded);
        insert(&mut frame, 14, &header(v4)).unwrap();
        let after = &frame.data()[14..];
        assert_eq!(frame.data()[..14], padded[..14]);
        assert_right(after);
        let tcp = TcpHeaderSlice::from_slice(&after[ip_len(v4)..]).unwrap();
        let added = u16::try_from(header(v4).bytes().len()).unwrap();
        assert_eq!((tcp.sequence_number(), tcp.options()), (78, &[1; 12][..]));
        assert_eq!(tcp.urgent_pointer(), if tcp.urg() { 3 + added } else { 3 });
        assert_eq!(after[ip_len(v4) + 32..], [header(v4).bytes(), &data].concat());
    }
}

/// Data that continues after the frame is not moved; the checksum covers all of it.
#[test]
fn the_header_goes_in_front_of_data_that_is_longer_than_a_frame() {
    for v4 in [true, false] {
        let data: Vec<u8> = (0..=255).cycle().take(8_500).collect();
        let packet = framed(&segment(v4, 78, |_| {}, &data));
        let (umem, mut pool) = pool();
        let io = Io { multi_buffer: true, ..Io::default() };
        let (mut port, mut nic) = FakeNic::with(&umem, 8, io).unwrap();
        let mut frame = pool.copy(&packet).unwrap();
        assert!(frame.is_long());
        assert_eq!(strip_syn(&mut frame, 14), Err(ProxyError::Malformed));
        insert(&mut frame, 14, &header(v4)).unwrap();
        port.transmit(frame).unwrap();
        port.flush();
        let mut sent = Vec::new();
        nic.collect(|packet| sent.push(packet.to_vec()));
        assert_eq!(sent.len(), 1);
        let after = &sent[0];
        assert_right(&after[14..]);
        assert_eq!(after[14 + ip_len(v4) + 20..], [header(v4).bytes(), &data].concat());
    }
}

#[test]
fn a_syn_loses_its_data_and_fast_open() {
    for (v4, len) in [true, false].into_iter().flat_map(|v4| (0..5).map(move |len| (v4, len))) {
        let syn = |tcp: &mut etherparse::TcpHeader| {
            (tcp.ack, tcp.acknowledgment_number, tcp.syn) = (false, 0, true);
            tcp.set_options_raw(&[2, 4, 5, 0xb4, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]).unwrap();
        };
        let (_umem, mut pool) = pool();
        let mut padded = framed(&segment(v4, 77, syn, &vec![0xc3; len]));
        padded.extend_from_slice(&[0xee; 3]);
        let mut frame = frame(&mut pool, &padded);
        strip_syn(&mut frame, 14).unwrap();
        let after = &frame.data()[14..];
        assert_right(after);
        let tcp = TcpHeaderSlice::from_slice(&after[ip_len(v4)..]).unwrap();
        assert_eq!(tcp.options(), [[2, 4, 5, 0xb4].as_slice(), &[1; 12]].concat());
        assert_eq!((after.len(), tcp.syn()), (ip_len(v4) + 36, true));
    }
}

#[test]
fn packets_other_than_whole_segments_are_left_alone() {
    let whole = framed(&segment(true, 78, |_| {}, b"data"));
    let edit = |at: usize, byte| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    let bad =
        [edit(23, 17), edit(20, 0x20), edit(21, 1), edit(17, 99), edit(46, 0x40), edit(46, 0xf0)];
    let cut = (14..whole.len()).map(|len| whole[..len].to_vec());
    for bytes in bad.into_iter().chain(cut) {
        let (_umem, mut pool) = pool();
        let mut frame = frame(&mut pool, &bytes);
        assert_eq!(insert(&mut frame, 14, &header(true)), Err(ProxyError::Malformed));
        assert_eq!(strip_syn(&mut frame, 14), Err(ProxyError::Malformed));
        assert_eq!(frame.data(), bytes);
    }
    let (_umem, mut pool) = pool();
    let mut frame = frame(&mut pool, &whole);
    let free = frame.headroom() - 27;
    assert!(frame.push_front(free));
    frame.data_mut()[..whole.len()].copy_from_slice(&whole);
    assert_eq!(insert(&mut frame, 14, &header(true)), Err(ProxyError::NoRoom));
    assert_eq!(frame.data()[..whole.len()], whole);
}

const SHIFT: Shift = Shift { isn: 0xffff_fff0, len: 28, answered: true, acknowledged: false };

#[test]
fn numbers_on_the_way_to_the_backend() {
    let known = Shift { acknowledged: true, ..SHIFT };
    let asked = Shift { answered: false, ..SHIFT };
    for (name, shift, offset, rst, expected) in [
        ("long before", SHIFT, 5_u32.wrapping_neg(), false, (Start::Within, 5_u32.wrapping_neg())),
        (
            "up to the start",
            SHIFT,
            3_u32.wrapping_neg(),
            false,
            (Start::Within, 3_u32.wrapping_neg()),
        ),
        ("into it", SHIFT, 2_u32.wrapping_neg(), false, (Start::Overlap, 2_u32.wrapping_neg())),
        ("into it from where the SYN was", SHIFT, 0, false, (Start::Overlap, 0)),
        ("a reset of an older connection", asked, 1000, true, (Start::Within, 1000)),
        ("data before the answer", asked, 1000, false, (Start::Within, 1028)),
        ("the first data", SHIFT, 1, false, (Start::Header, 1)),
        ("a reset at the start", SHIFT, 1, true, (Start::Within, 1)),
        ("the next byte", SHIFT, 2, false, (Start::Within, 30)),
        ("beyond the wrap of SEQ", SHIFT, 1000, false, (Start::Within, 1028)),
        ("the first data again, header known", known, 1, false, (Start::Within, 29)),
        ("4 GiB later", known, 0, false, (Start::Within, 28)),
        ("a reset, header known", known, 1, true, (Start::Within, 29)),
    ] {
        let sequence = SHIFT.isn.wrapping_add(offset);
        let mut packet = segment(true, sequence, |tcp| tcp.rst = rst, b"data");
        let start = shift.to_backend(&mut packet[20..], 4).unwrap();
        assert_right(&packet);
        let shifted = tcp::sequence(&packet[20..]).unwrap().wrapping_sub(SHIFT.isn);
        assert_eq!((start, shifted), expected, "{name}");
    }
}

fn reply(shift: Shift, ack: u32, blocks: &[(u32, u32)]) -> (bool, u32, Vec<(u32, u32)>) {
    let absolute = |offset: u32| SHIFT.isn.wrapping_add(offset).to_be_bytes();
    let len = u8::try_from(2 + 8 * blocks.len()).unwrap();
    // One byte of padding: the numbers are at odd offsets.
    let mut options = vec![1, 5, len];
    options.extend(blocks.iter().flat_map(|&(a, b)| [absolute(a), absolute(b)]).flatten());
    let edit = |tcp: &mut etherparse::TcpHeader| {
        tcp.acknowledgment_number = u32::from_be_bytes(absolute(ack));
        if !blocks.is_empty() {
            tcp.set_options_raw(&options).unwrap();
        }
    };
    let mut packet = segment(false, 9, edit, b"answer");
    let covered = shift.to_client(&mut packet[40..]).unwrap();
    assert_right(&packet);
    let segment = &packet[40..];
    let relative = |number: u32| number.wrapping_sub(SHIFT.isn);
    let mut walk = tcp::Options::of(segment);
    let blocks = walk.next(segment).map_or_else(Vec::new, |place| {
        let numbers = segment[place.at + 2..place.at + place.len].as_chunks::<4>().0.iter();
        let numbers: Vec<u32> = numbers.map(|&n| relative(u32::from_be_bytes(n))).collect();
        numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect()
    });
    assert_eq!(walk.next(segment), None, "nothing but padding behind");
    (covered, relative(tcp::acknowledgment(segment).unwrap()), blocks)
}

#[test]
fn numbers_on_the_way_to_the_client() {
    let known = Shift { acknowledged: true, ..SHIFT };
    let asked = Shift { answered: false, ..SHIFT };
    for (name, shift, ack, blocks, expected) in [
        ("of an older connection", asked, 1000, vec![(5, 9)], (false, 1000, vec![(5, 9)])),
        ("SYN+ACK", SHIFT, 1, vec![], (false, 1, vec![])),
        ("an old one", SHIFT, 0, vec![], (false, 1, vec![])),
        ("a part of the header", SHIFT, 28, vec![], (false, 1, vec![])),
        ("the header", SHIFT, 29, vec![], (true, 1, vec![])),
        ("one byte more", SHIFT, 30, vec![], (true, 2, vec![])),
        ("a gap at the start", SHIFT, 1, vec![(40, 50)], (false, 1, vec![(12, 22)])),
        ("the header out of order", SHIFT, 1, vec![(1, 29)], (false, 1, vec![])),
        ("the header and more", SHIFT, 1, vec![(1, 30)], (false, 1, vec![(1, 2)])),
        (
            "one of three is empty",
            SHIFT,
            1,
            vec![(60, 70), (1, 29), (80, 90)],
            (false, 1, vec![(32, 42), (52, 62)]),
        ),
        ("later", known, 1000, vec![(2000, 3000)], (true, 972, vec![(1972, 2972)])),
        ("4 GiB later", known, 10, vec![], (true, 10_u32.wrapping_sub(28), vec![])),
    ] {
        assert_eq!(reply(shift, ack, &blocks), expected, "{name}");
    }
}

#[test]
fn only_the_answer_to_the_syn_opens_the_stream() {
    const SYN_ACK: u8 = 0x12;
    let known = Shift { acknowledged: true, ..SHIFT };
    let first = SHIFT.isn.wrapping_add(1);
    assert!(SHIFT.is_answer(SYN_ACK, first));
    assert!(!SHIFT.is_answer(0x02, first), "nothing is acknowledged");
    assert!(!SHIFT.is_answer(SYN_ACK, first.wrapping_add(1)), "another SYN is");
    assert!(!known.is_answer(SYN_ACK, first), "its stream has begun");
}

#[test]
fn every_truncation_is_refused() {
    let packet = segment(true, 78, |_| {}, b"");
    for len in 0..20 {
        let mut short = packet[20..20 + len].to_vec();
        assert_eq!((SHIFT.to_backend(&mut short, 0), SHIFT.to_client(&mut short)), (None, None));
        assert_eq!(short, packet[20..20 + len]);
    }
}

/// A receiver that accepts segments continuing its stream, and acknowledges them.
struct Backend {
    isn: u32,
    stream: Vec<u8>,
}

impl Backend {
    fn take(&mut self, packet: &[u8]) {
        assert_right(packet);
        let segment = &packet[20..];
        let offset = tcp::sequence(segment).unwrap().wrapping_sub(self.isn).wrapping_sub(1);
        let offset = usize::try_from(offset).unwrap();
        let data = &segment[20..];
        if offset <= self.stream.len() && offset + data.len() > self.stream.len() {
            self.stream.truncate(offset);
            self.stream.extend_from_slice(data);
        }
    }

    fn acknowledgment(&self) -> u32 {
        self.isn.wrapping_add(1).wrapping_add(u32::try_from(self.stream.len()).unwrap())
    }
}

proptest! {
    /// Segments are lost, duplicated and cut differently; ACKs are lost. In the end the backend has
    /// the header and then the client's stream, and never received an acknowledgment beyond its
    /// data.
    #[test]
    fn the_stream_is_the_header_and_then_the_data(
        isn: u32,
        steps in prop::collection::vec((0_usize..40, 0_usize..40, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let data: Vec<u8> = (0..=255).collect();
        let mut shift = Shift { isn, len: 28, answered: true, acknowledged: false };
        let mut backend = Backend { isn, stream: Vec::new() };
        let mut acked = 0;
        let end = (0, data.len(), false, false);
        for (from, len, lost, ack_lost) in steps.into_iter().chain([end; 8]) {
            // Any range from the acknowledged data to slightly beyond may be sent.
            let from = if len == data.len() { acked } else { acked + from };
            let part = data.get(from..(from + len).min(data.len())).unwrap_or_default();
            let sequence = isn.wrapping_add(1).wrapping_add(u32::try_from(from).unwrap());
            let mut packet = segment(true, sequence, |_| {}, part);
            let start = shift.to_backend(&mut packet[20..], part.len()).unwrap();
            let (_umem, mut pool) = pool();
            let mut frame = frame(&mut pool, &framed(&packet));
            if start == Start::Header {
                insert(&mut frame, 14, &header(true)).unwrap();
            }
            if !lost {
                backend.take(&frame.data()[14..]);
            }
            if !ack_lost {
                let number = backend.acknowledgment();
                let mut reply = segment(true, 9, |tcp| tcp.acknowledgment_number = number, b"");
                shift.acknowledged |= shift.to_client(&mut reply[20..]).unwrap();
                assert_right(&reply);
                let number = tcp::acknowledgment(&reply[20..]).unwrap();
                acked = usize::try_from(number.wrapping_sub(isn).wrapping_sub(1)).unwrap();
                prop_assert!(acked <= backend.stream.len().saturating_sub(28));
            }
        }
        prop_assert_eq!(backend.stream, [header(true).bytes(), &data].concat());
    }

    #[test]
    fn any_bytes_are_safe(bytes: Vec<u8>, answered: bool, acknowledged: bool, data: usize) {
        let shift = Shift { answered, acknowledged, ..SHIFT };
        let (mut one, mut other) = (bytes.clone(), bytes.clone());
        let _ = (shift.to_backend(&mut one, data), shift.to_client(&mut other));
        prop_assert_eq!((one.len(), other.len()), (bytes.len(), bytes.len()));
    }
}
