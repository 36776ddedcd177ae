//! Positions of the headers of an IP packet, whole or truncated (as quoted by an ICMP error).
//!
//! Any bytes are safe. A length field is not compared with the number of bytes present: a quote has
//! fewer. All offsets count from the IP header.

use crate::net::Address;

/// Maximum number of IPv6 extension headers stepped over before the packet is rejected.
const MAX_EXTENSIONS: usize = 8;
/// Length of an IPv4 header without options, in bytes.
pub const V4_LEN: usize = 20;
/// Length of an IPv6 header without extensions, in bytes.
pub const V6_LEN: usize = 40;
/// Length of an IPv6 fragment header, in bytes (RFC 8200 4.5).
pub const FRAGMENT_LEN: usize = 8;

/// Numbers of protocols and extension headers (IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMP_V6: u8 = 58;
    /// Nothing follows (RFC 8200 4.7).
    pub const NO_NEXT_HEADER: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
}

/// Reason why the headers of a packet are unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer bytes than the headers up to the transport header.
    Truncated,
    /// Impossible version, header length or total length.
    Malformed,
    /// Unsupported IPv6 extension headers: a routing header, a second fragment header, or too many.
    Extension,
}

/// Fragment fields of a packet that is a fragment, or (IPv6 only) a whole datagram with a fragment
/// header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Offset of the IPv6 fragment header in bytes; 0 for IPv4, where the IP header has the fields.
    pub header: usize,
    /// Offset of the data in the datagram, in bytes: a multiple of 8.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Identification shared by all fragments of a datagram; 16 bits for IPv4.
    pub identification: u32,
}

/// Positions and fields of a packet's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Protocol of the first header that is neither IP nor a skipped extension. A later fragment
    /// lacks that header.
    pub protocol: u8,
    /// Offset of that header, or of a later fragment's data, in bytes.
    pub transport: usize,
    /// End of the packet by its length field, not before `transport`. The bytes may end earlier.
    pub end: usize,
    /// Fragment fields: for IPv4 if the packet is a fragment, for IPv6 if it has a fragment header.
    pub fragment: Option<Fragment>,
}

impl Headers {
    /// Parses the IP packet at the start of `packet`.
    ///
    /// # Errors
    /// [`HeaderError`]; truncation after these headers is not an error.
    #[inline]
    pub fn of(packet: &[u8]) -> Result<Self, HeaderError> {
        match packet.first().ok_or(HeaderError::Truncated)? >> 4 {
            4 => Self::v4(packet),
            6 => Self::v6(packet),
            _ => Err(HeaderError::Malformed),
        }
    }

    fn v4(packet: &[u8]) -> Result<Self, HeaderError> {
        let header = packet.first_chunk::<V4_LEN>().ok_or(HeaderError::Truncated)?;
        let [version, _, l0, l1, i0, i1, f0, f1, _, protocol, ..] = *header;
        let transport = usize::from(version & 0x0f) * 4;
        let end = usize::from(u16::from_be_bytes([l0, l1]));
        if transport < V4_LEN || end < transport {
            return Err(HeaderError::Malformed);
        }
        if packet.len() < transport {
            return Err(HeaderError::Truncated);
        }
        let word = u16::from_be_bytes([f0, f1]);
        let fragment = (word & 0x3fff != 0).then(|| Fragment {
            header: 0,
            offset: word << 3,
            more: word & 0x2000 != 0,
            identification: u16::from_be_bytes([i0, i1]).into(),
        });
        Ok(Self { protocol, transport, end, fragment })
    }

    fn v6(packet: &[u8]) -> Result<Self, HeaderError> {
        let header = packet.first_chunk::<V6_LEN>().ok_or(HeaderError::Truncated)?;
        let [_, _, _, _, l0, l1, next, ..] = *header;
        let mut headers = Self {
            protocol: next,
            transport: V6_LEN,
            end: V6_LEN + usize::from(u16::from_be_bytes([l0, l1])),
            fragment: None,
        };
        for _ in 0..=MAX_EXTENSIONS {
            if !headers.step(packet)? {
                if headers.end < headers.transport {
                    return Err(HeaderError::Malformed);
                }
                return Ok(headers);
            }
        }
        Err(HeaderError::Extension)
    }

    /// Steps over one IPv6 extension header; false if there is none.
    fn step(&mut self, packet: &[u8]) -> Result<bool, HeaderError> {
        use protocol::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING};
        if self.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Ok(false);
        }
        if self.protocol == ROUTING {
            return Err(HeaderError::Extension);
        }
        if !matches!(self.protocol, HOP_BY_HOP | DESTINATION | FRAGMENT) {
            return Ok(false);
        }
        let rest = packet.get(self.transport..).ok_or(HeaderError::Truncated)?;
        let [next, len, o0, o1, i0, i1, i2, i3] =
            *rest.first_chunk::<8>().ok_or(HeaderError::Truncated)?;
        let mut skipped = FRAGMENT_LEN;
        if self.protocol == FRAGMENT {
            if self.fragment.is_some() {
                return Err(HeaderError::Extension);
            }
            let word = u16::from_be_bytes([o0, o1]);
            self.fragment = Some(Fragment {
                header: self.transport,
                offset: word & 0xfff8,
                more: word & 1 != 0,
                identification: u32::from_be_bytes([i0, i1, i2, i3]),
            });
        } else {
            skipped += usize::from(len) * 8;
        }
        if rest.len() < skipped {
            return Err(HeaderError::Truncated);
        }
        self.protocol = next;
        self.transport += skipped;
        Ok(true)
    }

    /// Whether the packet carries the start of its datagram, and so a transport header.
    #[inline]
    pub fn is_first(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }

    /// Whether the packet is a whole datagram.
    #[inline]
    pub fn is_whole(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0 && !fragment.more)
    }
}

/// Both addresses of an IP header, source first: 8 bytes or 32.
#[inline]
pub fn addresses(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? >> 4 {
        4 => packet.get(12..V4_LEN),
        6 => packet.get(8..V6_LEN),
        _ => None,
    }
}

/// Source and destination address of an IP header.
#[inline]
pub fn ends(packet: &[u8]) -> Option<(Address, Address)> {
    let both = addresses(packet)?;
    if let [s0, s1, s2, s3, d0, d1, d2, d3] = *both {
        return Some((Address::from_v4([s0, s1, s2, s3]), Address::from_v4([d0, d1, d2, d3])));
    }
    let (source, rest) = both.split_first_chunk::<16>()?;
    Some((Address::from_v6(*source), Address::from_v6(*rest.first_chunk()?)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{IpHeaders, Ipv6RawExtHeader, PacketBuilder};
    use proptest::prelude::*;

    use super::*;

    /// IPv6, hop-by-hop options of 8 * (n + 1) bytes, a fragment header, destination options, UDP.
    fn extended(offset: u16, more: bool) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 48, protocol::HOP_BY_HOP, 64];
        packet.extend_from_slice(&[1; 32]);
        packet.extend_from_slice(&[protocol::FRAGMENT, 1]);
        packet.extend_from_slice(&[0; 14]);
        let word = (offset | u16::from(more)).to_be_bytes();
        packet.extend_from_slice(&[protocol::DESTINATION, 0, word[0], word[1], 1, 2, 3, 4]);
        packet.extend_from_slice(&[protocol::UDP, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&[0, 53, 0, 53, 0, 16, 0, 0]);
        packet.extend_from_slice(&[7; 8]);
        packet
    }

    #[test]
    fn v4_with_options_and_as_a_fragment() {
        let mut packet = vec![0x46, 0, 0, 60, 0x12, 0x34, 0x20, 0x03, 64, 17, 0, 0];
        packet.resize(24, 0);
        let headers = Headers::of(&packet).unwrap();
        let fragment = Fragment { header: 0, offset: 24, more: true, identification: 0x1234 };
        let expected = Headers { protocol: 17, transport: 24, end: 60, fragment: Some(fragment) };
        assert_eq!(headers, expected);
        assert!(!headers.is_first() && !headers.is_whole());
        packet[6..8].copy_from_slice(&[0x40, 0]);
        assert_eq!(Headers::of(&packet).unwrap().fragment, None, "DF is no fragment");
        packet[6..8].copy_from_slice(&[0x1f, 0xff]);
        assert_eq!(Headers::of(&packet).unwrap().fragment.unwrap().offset, 65_528);
    }

    #[test]
    fn v6_with_every_extension_that_is_stepped_over() {
        let first = Headers::of(&extended(0, true)).unwrap();
        let fragment = Fragment { header: 56, offset: 0, more: true, identification: 0x0102_0304 };
        let expected = Headers { protocol: 17, transport: 72, end: 88, fragment: Some(fragment) };
        assert_eq!(first, expected);
        assert!(first.is_first() && !first.is_whole());
        assert!(Headers::of(&extended(0, false)).unwrap().is_whole());
        let later = Headers::of(&extended(64, false)).unwrap();
        assert_eq!((later.protocol, later.transport), (protocol::DESTINATION, 64));
    }

    #[test]
    fn headers_that_are_not_stepped_over() {
        let mut routing = extended(0, false);
        routing[6] = protocol::ROUTING;
        assert_eq!(Headers::of(&routing), Err(HeaderError::Extension));
        let mut twice = extended(0, false);
        twice[56] = protocol::FRAGMENT;
        assert_eq!(Headers::of(&twice), Err(HeaderError::Extension));
        let mut many = vec![0; 40 + 8 * 20];
        many[0] = 0x60;
        assert_eq!(Headers::of(&many), Err(HeaderError::Extension));
        let mut beyond = extended(0, false);
        beyond[5] = 31;
        assert_eq!(Headers::of(&beyond), Err(HeaderError::Malformed));
        for (version, len) in [(0x44, 60), (0x45, 19), (0x55, 60)] {
            let mut packet = vec![0; 60];
            (packet[0], packet[3]) = (version, len);
            assert_eq!(Headers::of(&packet), Err(HeaderError::Malformed));
        }
    }

    #[test]
    fn every_truncation_is_an_error_up_to_the_transport_header() {
        let packet = extended(0, true);
        for len in 0..packet.len() {
            let result = Headers::of(&packet[..len]);
            let expected =
                if len < 72 { Err(HeaderError::Truncated) } else { Headers::of(&packet) };
            assert_eq!(result, expected, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(mut bytes: Vec<u8>, version in prop::sample::select(vec![0x45_u8, 0x60])) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if let Ok(headers) = Headers::of(&bytes) {
                prop_assert!(headers.transport <= bytes.len() && headers.transport <= headers.end);
                prop_assert!(addresses(&bytes).is_some());
            }
        }

        #[test]
        fn agrees_with_etherparse(payload in prop::collection::vec(any::<u8>(), 0..64), v6: bool) {
            let mut bytes = Vec::new();
            if v6 {
                let builder = PacketBuilder::ipv6([1; 16], [2; 16], 9);
                builder.udp(1, 2).write(&mut bytes, &payload).unwrap();
                // Hop-by-hop options before the transport header.
                let options = Ipv6RawExtHeader::new_raw(17.into(), &[0; 14]).unwrap();
                let tail = bytes.split_off(40);
                bytes.extend_from_slice(&options.to_bytes());
                bytes.extend_from_slice(&tail);
                bytes[6] = 0;
                let len = u16::try_from(bytes.len() - 40).unwrap();
                bytes[4..6].copy_from_slice(&len.to_be_bytes());
            } else {
                let builder = PacketBuilder::ipv4([1; 4], [2; 4], 9);
                builder.udp(1, 2).write(&mut bytes, &payload).unwrap();
            }
            let (_, theirs) = IpHeaders::from_slice(&bytes).unwrap();
            let ours = Headers::of(&bytes).unwrap();
            prop_assert_eq!(ours.protocol, theirs.ip_number.0);
            prop_assert_eq!(&bytes[ours.transport..ours.end], theirs.payload);
        }
    }
}
