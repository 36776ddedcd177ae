//! Test helpers of this directory: sample packets, and an independent check of rewritten packets
//! that shares no code with the module under test.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may stop early")]

use etherparse::{Ipv4HeaderSlice, PacketBuilder, PacketBuilderStep};

use crate::xdp::umem::{Frame, FramePool, Umem};

pub const CLIENT_V4: [u8; 4] = [198, 18, 0, 1];
pub const VIP_V4: [u8; 4] = [192, 0, 2, 10];
pub const CLIENT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34];
pub const VIP_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

/// One's complement sum over `parts`, word by word (RFC 1071 4.1); 0xffff if they contain their
/// checksum.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | c.get(1).map_or(0, |&b| b.into()));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The headers of an IP packet from the client to the VIP.
pub fn from_client(v4: bool) -> PacketBuilderStep<etherparse::IpHeaders> {
    if v4 {
        PacketBuilder::ipv4(CLIENT_V4, VIP_V4, 64)
    } else {
        PacketBuilder::ipv6(CLIENT_V6, VIP_V6, 64)
    }
}

/// A TCP segment, UDP datagram or echo request from the client to the VIP.
pub fn packet(v4: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = from_client(v4);
    match (protocol, v4) {
        (6, _) => builder.tcp(31_337, 80, 0x0102_0304, 1000).write(&mut bytes, payload),
        (17, _) => builder.udp(31_337, 80).write(&mut bytes, payload),
        (_, true) => builder.icmpv4_echo_request(7, 9).write(&mut bytes, payload),
        (_, false) => builder.icmpv6_echo_request(7, 9).write(&mut bytes, payload),
    }
    .unwrap();
    bytes
}

/// `packet` behind an Ethernet header.
pub fn framed(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&[2, 0, 0, 0, 0, 1], &[2, 0, 0, 0, 0, 2], ethertype.as_slice(), packet].concat()
}

/// A frame that contains `bytes`.
pub fn frame(pool: &mut FramePool, bytes: &[u8]) -> Frame {
    let mut frame = pool.pop().unwrap();
    assert!(frame.copy_from(bytes));
    frame
}

/// A small UMEM and its frame pool.
pub fn pool() -> (Umem, FramePool) {
    Umem::create(4, 4096).unwrap()
}

/// Checks length and checksums of a whole IP packet without IPv6 extension headers.
pub fn assert_right(packet: &[u8]) {
    let (both, transport, protocol) = if packet[0] >> 4 == 4 {
        let ip = Ipv4HeaderSlice::from_slice(packet).unwrap();
        assert_eq!(usize::from(ip.total_len()), packet.len(), "total length");
        assert_eq!(sum(&[ip.slice()]), 0xffff, "IPv4 header checksum");
        (&packet[12..20], ip.slice().len(), packet[9])
    } else {
        let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        assert_eq!(len + 40, packet.len(), "payload length");
        (&packet[8..40], 40, packet[6])
    };
    let segment = &packet[transport..];
    let len = u32::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [both, &len, &[0, 0, 0, protocol]].concat();
    match protocol {
        17 if segment[6..8] == [0, 0] => assert_eq!(both.len(), 8, "no checksum over IPv6"),
        1 => assert_eq!(sum(&[segment]), 0xffff, "ICMP checksum"),
        _ => assert_eq!(sum(&[&pseudo, segment]), 0xffff, "checksum of protocol {protocol}"),
    }
}
