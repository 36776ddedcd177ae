//! Fragments of one datagram, in any order, with repetitions, holes and overlaps.
//!
//! ```text
//! mode:1 kind:1 length:2 { op:1 offset:1 length:1 }...
//! kind  bit 0  IPv6    bit 1  TCP    bits 2-7  identification
//! op    bit 0  more fragments    bit 1  another source    bits 2-4  time before
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast::replay::Verdict;

use crate::bytes::Bytes;
use crate::checksum::repair;
use crate::player::with_player;

const FRAGMENTS: usize = 64;

pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let mode = input.byte();
    let (kind, length) = (input.byte(), usize::from(input.word() % 4096));
    let segment: Vec<u8> = segment(kind & 2 != 0, length);
    with_player(mode, |player| {
        // Backends to which fragments of the datagram went.
        let mut backends = BTreeSet::new();
        for _ in 0..FRAGMENTS {
            if input.is_empty() {
                break;
            }
            let op = input.byte();
            let from = usize::from(input.byte()) * 8;
            let len = usize::from(input.byte()) * 8;
            let end = (from + len).min(segment.len());
            let Some(part) = segment.get(from..end) else { continue };
            let wait = u32::from(op >> 2 & 7);
            if wait > 0 {
                player.wait(Duration::from_millis(10_u64.pow(wait.min(4))));
            }
            let mut packet = fragment(kind, op & 2 != 0, from / 8, op & 1 != 0, part);
            repair(&mut packet);
            let decision = player.deliver(0, &packet);
            if op & 2 == 0 && wait == 0 && decision.verdict == Verdict::Transmit {
                backends.extend(decision.backend);
            }
        }
        // Without a pause no time-out has ended the datagram, whose fragments stay together.
        assert!(backends.len() <= 1, "fragments of a datagram at {backends:?}");
    });
}

/// A TCP SYN or UDP datagram from port 12345 to port 80, with data.
fn segment(tcp: bool, data: usize) -> Vec<u8> {
    let mut segment = vec![0x30, 0x39, 0, 80];
    if tcp {
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        segment.extend(u16::try_from(8 + data).unwrap().to_be_bytes());
        // No checksum: what is in the fragments need not fit together.
        segment.extend([0, 0]);
    }
    segment.extend((0..data).map(|index| u8::try_from(index % 251).unwrap()));
    segment
}

fn fragment(kind: u8, other: bool, offset: usize, more: bool, part: &[u8]) -> Vec<u8> {
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0x0c, 1];
    let protocol = if kind & 2 != 0 { 6 } else { 17 };
    let source = 1 + u8::from(other);
    let place = u16::try_from(offset).unwrap();
    if kind & 1 == 0 {
        let len = u16::try_from(20 + part.len()).unwrap().to_be_bytes();
        let [high, low] = (place | u16::from(more) << 13).to_be_bytes();
        packet.extend([8, 0, 0x45, 0, len[0], len[1], 0, kind >> 2, high, low, 64, protocol, 0, 0]);
        packet.extend([192, 168, 1, source, 10, 200, 1, 1]);
    } else {
        let len = u16::try_from(8 + part.len()).unwrap().to_be_bytes();
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], 44, 64]);
        packet.extend([0xfc, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, source]);
        packet.extend([0xfc, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let [high, low] = (place << 3 | u16::from(more)).to_be_bytes();
        packet.extend([protocol, 0, high, low, 0, 0, 0, kind >> 2]);
    }
    packet.extend(part);
    packet
}
