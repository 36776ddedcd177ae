//! Checksums of a whole frame, computed from scratch: the oracle of the packet targets, and the
//! repair of their inputs. Shares no code with holdfast.

use std::ops::Range;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// Every checksum is right.
    Right,
    /// A checksum is wrong.
    Wrong,
    /// Cut off, a fragment, or of a protocol without a known checksum.
    Unknown,
}

/// Destination port of GUE.
const GUE: u16 = 6080;

/// Checks a frame, and the packet inside a tunnel packet.
pub fn check(frame: &[u8]) -> Sums {
    walk(&mut frame.to_vec(), false)
}

/// Sets the checksums of a frame right, as far as they are known.
pub fn repair(frame: &mut [u8]) {
    walk(frame, true);
}

fn walk(frame: &mut [u8], repair: bool) -> Sums {
    let mut at = 12;
    loop {
        match frame.get(at..at + 2) {
            Some([0x81, 0x00] | [0x88, 0xa8]) => at += 4,
            Some([0x08, 0x00] | [0x86, 0xdd]) => return ip(frame, at + 2, repair),
            _ => return Sums::Unknown,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn ip(frame: &mut [u8], at: usize, repair: bool) -> Sums {
    match frame.get(at).map(|byte| byte >> 4) {
        Some(4) => ipv4(frame, at, repair),
        Some(6) => ipv6(frame, at, repair),
        _ => Sums::Unknown,
    }
}

fn ipv4(frame: &mut [u8], at: usize, repair: bool) -> Sums {
    let header = usize::from(frame[at] & 15) * 4;
    if header < 20 || frame.len() < at + header {
        return Sums::Unknown;
    }
    let (len, fragment) = (usize::from(word(frame, at + 2)), word(frame, at + 6) & 0x3fff);
    if len < header || frame.len() < at + len {
        return Sums::Unknown;
    }
    if repair {
        put(frame, at + 10, at..at + header, 0);
    } else if sum(&frame[at..at + header], 0) != 0xffff {
        return Sums::Wrong;
    }
    if fragment != 0 {
        return Sums::Unknown;
    }
    let (protocol, addresses) = (frame[at + 9], at + 12..at + 20);
    transport(frame, protocol, addresses, at + header..at + len, repair)
}

fn ipv6(frame: &mut [u8], at: usize, repair: bool) -> Sums {
    if frame.len() < at + 40 {
        return Sums::Unknown;
    }
    let end = at + 40 + usize::from(word(frame, at + 4));
    let (mut next, mut from) = (frame[at + 6], at + 40);
    if frame.len() < end {
        return Sums::Unknown;
    }
    // Hop-by-hop options and destination options. With a routing header the sum has another address.
    while matches!(next, 0 | 60) && from + 8 <= end {
        next = frame[from];
        from += 8 + usize::from(frame[from + 1]) * 8;
    }
    if from > end {
        return Sums::Unknown;
    }
    transport(frame, next, at + 8..at + 40, from..end, repair)
}

fn transport(
    frame: &mut [u8],
    protocol: u8,
    addresses: Range<usize>,
    segment: Range<usize>,
    repair: bool,
) -> Sums {
    let (place, pseudo) = match (protocol, addresses.len()) {
        (4 | 41, _) => return ip(frame, segment.start, repair),
        (6, _) => (16, true),
        (17, _) => (6, true),
        (1, 8) => (2, false),
        (58, 32) => (2, true),
        _ => return Sums::Unknown,
    };
    if segment.len() < place + 2 || (protocol == 6 && segment.len() < 20) {
        return Sums::Unknown;
    }
    if protocol == 17
        && (segment.len() < 8 || usize::from(word(frame, segment.start + 4)) != segment.len())
    {
        return Sums::Unknown;
    }
    let length = u32::try_from(segment.len()).unwrap_or(0);
    let mut start = 0;
    if pseudo {
        start = fold(
            u64::from(sum(&frame[addresses.clone()], 0)) + u64::from(length) + u64::from(protocol),
        );
    }
    let at = segment.start + place;
    let is_v4 = addresses.len() == 8;
    let without = protocol == 17 && word(frame, at) == 0;
    if repair && !without {
        put(frame, at, segment.clone(), start);
        if protocol == 17 && word(frame, at) == 0 {
            frame[at..at + 2].fill(0xff);
        }
    } else if without && !is_v4 && word(frame, segment.start + 2) != GUE {
        // RFC 8200 8.1; tunnels may do without (RFC 6935).
        return Sums::Wrong;
    } else if !without && sum(&frame[segment.clone()], start) != 0xffff {
        return Sums::Wrong;
    }
    if protocol == 17 && word(frame, segment.start + 2) == GUE && segment.len() > 12 {
        return ip(frame, segment.start + 12, repair);
    }
    Sums::Right
}

/// Sets the checksum at `at` over `range`.
fn put(frame: &mut [u8], at: usize, range: Range<usize>, start: u16) {
    frame[at..at + 2].fill(0);
    let value = !sum(&frame[range], start);
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The one's complement sum (RFC 1071).
fn sum(bytes: &[u8], start: u16) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u64::from(high) << 8 | u64::from(low),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    fold(words.sum::<u64>() + u64::from(start))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}
