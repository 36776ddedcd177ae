//! IPv4 and IPv6 headers: replacement of addresses and decrement of the hop count.

use super::checksum::{self, Delta, Full};
use crate::net::Address;

/// Address field to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// Reason why a header cannot be rewritten; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpError {
    /// Fewer bytes than a header.
    Truncated,
    /// TTL or hop limit is 0 or 1: a router must not forward it (RFC 1812 5.3.1, RFC 8200 3).
    HopsExceeded,
}

/// Whether the checksum of the IP header at the start of `packet` is correct; true for IPv6, which
/// has none.
pub fn is_header_sum_right(packet: &[u8]) -> bool {
    match packet.first() {
        // Without options: five words. Their sum is independent of the byte order (RFC 1071 2 (B)).
        Some(0x45) => packet.first_chunk::<20>().is_some_and(|header| {
            let (words, _) = header.as_chunks::<4>();
            let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
            let sum = (sum & 0xffff_ffff) + (sum >> 32);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            (sum & 0xffff) + (sum >> 16) == 0xffff
        }),
        Some(first) if first >> 4 == 4 => {
            let header = packet.get(..usize::from(first & 0xf) * 4);
            header.is_some_and(|header| checksum::of(&Full::new().add_slice(header)) == 0)
        }
        _ => true,
    }
}

/// Replaces one address of the IPv4 header at the start of `packet`, decrements its TTL, and
/// patches its checksum. Returns the change for a transport checksum.
#[inline]
pub fn rewrite_v4(packet: &mut [u8], side: Side, address: Address) -> Result<Delta, IpError> {
    let header = packet.first_chunk_mut::<20>().ok_or(IpError::Truncated)?;
    let [_, _, _, _, _, _, _, _, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let fewer = ttl.checked_sub(1).filter(|&fewer| fewer > 0).ok_or(IpError::HopsExceeded)?;
    let (a0, a1, a2, a3) = match side {
        Side::Source => (s0, s1, s2, s3),
        Side::Destination => (d0, d1, d2, d3),
    };
    let new = address.v4_octets();
    let delta = Delta::default().replace_v4([*a0, *a1, *a2, *a3], new);
    let old_word = u16::from_be_bytes([*ttl, *protocol]);
    let new_word = u16::from_be_bytes([fewer, *protocol]);
    let sum = delta.replace_u16(old_word, new_word).apply(u16::from_be_bytes([*c0, *c1]));
    [*a0, *a1, *a2, *a3] = new;
    *ttl = fewer;
    [*c0, *c1] = sum.to_be_bytes();
    Ok(delta)
}

/// Replaces one address of the IPv6 header at the start of `packet` and decrements its hop limit.
/// Returns the change for a transport checksum; the header itself has none.
#[inline]
pub fn rewrite_v6(packet: &mut [u8], side: Side, address: Address) -> Result<Delta, IpError> {
    let header = packet.first_chunk_mut::<40>().ok_or(IpError::Truncated)?;
    let (head, addresses) = header.split_at_mut(8);
    let hops = head.last_mut().ok_or(IpError::Truncated)?;
    let fewer = hops.checked_sub(1).filter(|&fewer| fewer > 0).ok_or(IpError::HopsExceeded)?;
    let (source, destination) = addresses.split_at_mut(16);
    let bytes = match side {
        Side::Source => source,
        Side::Destination => destination,
    };
    let bytes = bytes.first_chunk_mut::<16>().ok_or(IpError::Truncated)?;
    let new = address.octets();
    let delta = Delta::default().replace_v6(*bytes, new);
    *bytes = new;
    *hops = fewer;
    Ok(delta)
}

/// Like [`rewrite_v4`], for both addresses, with one TTL decrement.
#[inline]
pub fn readdress_v4(
    packet: &mut [u8],
    source: Address,
    destination: Address,
) -> Result<Delta, IpError> {
    let delta = rewrite_v4(packet, Side::Source, source)?;
    let header = packet.first_chunk_mut::<20>().ok_or(IpError::Truncated)?;
    let [_, _, _, _, _, _, _, _, _, _, c0, c1, _, _, _, _, d0, d1, d2, d3] = header;
    let new = destination.v4_octets();
    let more = Delta::default().replace_v4([*d0, *d1, *d2, *d3], new);
    let sum = more.apply(u16::from_be_bytes([*c0, *c1]));
    [*d0, *d1, *d2, *d3] = new;
    [*c0, *c1] = sum.to_be_bytes();
    Ok(delta.and(more))
}

/// Like [`rewrite_v6`], for both addresses, with one hop limit decrement.
#[inline]
pub fn readdress_v6(
    packet: &mut [u8],
    source: Address,
    destination: Address,
) -> Result<Delta, IpError> {
    let delta = rewrite_v6(packet, Side::Source, source)?;
    let header = packet.first_chunk_mut::<40>().ok_or(IpError::Truncated)?;
    let (_, bytes) = header.split_at_mut(24);
    let bytes = bytes.first_chunk_mut::<16>().ok_or(IpError::Truncated)?;
    let new = destination.octets();
    let delta = delta.replace_v6(*bytes, new);
    *bytes = new;
    Ok(delta)
}

/// Writes the length of the IP packet at the start of `packet` into its header: `len` bytes
/// including the header, at most 65,535. A truncated header is unchanged.
#[inline]
pub fn set_len(packet: &mut [u8], len: usize) {
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let field = u16::try_from(if v4 { len } else { len.saturating_sub(40) });
    let new = field.unwrap_or(u16::MAX);
    if !v4 {
        if let Some([_, _, _, _, l0, l1, ..]) = packet.first_chunk_mut::<40>() {
            [*l0, *l1] = new.to_be_bytes();
        }
    } else if let Some([_, _, l0, l1, _, _, _, _, _, _, c0, c1, ..]) =
        packet.first_chunk_mut::<20>()
    {
        let delta = Delta::default().replace_u16(u16::from_be_bytes([*l0, *l1]), new);
        [*c0, *c1] = delta.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
        [*l0, *l1] = new.to_be_bytes();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{Ipv4Header, Ipv4HeaderSlice, Ipv6Header, Ipv6HeaderSlice};

    use super::*;

    fn v4(ttl: u8) -> Vec<u8> {
        let mut header =
            Ipv4Header::new(20, ttl, etherparse::IpNumber::TCP, [198, 18, 0, 1], [192, 0, 2, 10])
                .unwrap();
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    }

    #[test]
    fn v4_checksum_stays_right_for_every_ttl() {
        for ttl in 2..=255 {
            let mut bytes = v4(ttl);
            rewrite_v4(&mut bytes, Side::Destination, Address::from_v4([10, 0, 0, 1])).unwrap();
            rewrite_v4(&mut bytes, Side::Source, Address::from_v4([255, 255, 0, 1]))
                .unwrap_or_default();
            let slice = Ipv4HeaderSlice::from_slice(&bytes).unwrap();
            assert_eq!(slice.header_checksum(), slice.to_header().calc_header_checksum(), "{ttl}");
            assert_eq!(slice.destination(), [10, 0, 0, 1]);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen() {
        let mut options = v4(64);
        options[0] = 0x46;
        options.extend([1, 1, 1, 0]);
        options[10..12].fill(0);
        let sum = checksum::of(&Full::new().add_slice(&options));
        options[10..12].copy_from_slice(&sum.to_be_bytes());
        for header in [v4(64), options] {
            let behind = [&header[..], &[1, 2, 3]].concat();
            assert!(is_header_sum_right(&behind));
            for bit in 0..header.len() * 8 {
                let mut broken = behind.clone();
                broken[bit / 8] ^= 1 << (bit % 8);
                // The first byte also determines whether there is a checksum, and its extent.
                assert!(bit < 8 || !is_header_sum_right(&broken), "bit {bit}");
            }
            for len in 1..header.len() {
                assert!(!is_header_sum_right(&header[..len]), "{len} bytes");
            }
        }
        assert!(is_header_sum_right(&Ipv6Header::default().to_bytes()));
    }

    #[test]
    fn hops_that_run_out_change_nothing() {
        for ttl in [0, 1] {
            let mut bytes = v4(ttl);
            let result = rewrite_v4(&mut bytes, Side::Source, Address::from_v4([10, 0, 0, 1]));
            assert_eq!((result, bytes), (Err(IpError::HopsExceeded), v4(ttl)));
            let header = Ipv6Header { hop_limit: ttl, ..Default::default() }.to_bytes();
            let mut bytes = header;
            let result = rewrite_v6(&mut bytes, Side::Source, Address::from_v6([1; 16]));
            assert_eq!((result, bytes), (Err(IpError::HopsExceeded), header));
        }
    }

    #[test]
    fn v6_addresses_and_hop_limit() {
        let mut bytes = Ipv6Header { hop_limit: 64, ..Default::default() }.to_bytes();
        rewrite_v6(&mut bytes, Side::Source, Address::from_v6([1; 16])).unwrap();
        rewrite_v6(&mut bytes, Side::Destination, Address::from_v6([2; 16])).unwrap();
        let slice = Ipv6HeaderSlice::from_slice(&bytes).unwrap();
        assert_eq!(
            (slice.source(), slice.destination(), slice.hop_limit()),
            ([1; 16], [2; 16], 62)
        );
    }

    #[test]
    fn both_addresses_at_once_are_one_hop() {
        for ttl in [2, 64, 255] {
            let mut bytes = v4(ttl);
            let ends = [[10, 0, 0, 1], [255; 4]].map(Address::from_v4);
            let [source, destination] = ends;
            readdress_v4(&mut bytes, source, destination).unwrap();
            let slice = Ipv4HeaderSlice::from_slice(&bytes).unwrap();
            assert_eq!(slice.header_checksum(), slice.to_header().calc_header_checksum(), "{ttl}");
            assert_eq!((slice.source(), slice.destination()), ([10, 0, 0, 1], [255; 4]));
            assert_eq!(slice.ttl(), ttl - 1);
        }
        let mut bytes = Ipv6Header { hop_limit: 64, ..Default::default() }.to_bytes();
        let [source, destination] = [[1; 16], [2; 16]].map(Address::from_v6);
        readdress_v6(&mut bytes, source, destination).unwrap();
        let slice = Ipv6HeaderSlice::from_slice(&bytes).unwrap();
        assert_eq!(
            (slice.source(), slice.destination(), slice.hop_limit()),
            ([1; 16], [2; 16], 63)
        );
    }

    #[test]
    fn every_truncation_is_an_error() {
        for len in 0..20 {
            let mut bytes = vec![0xff; len];
            let result = rewrite_v4(&mut bytes, Side::Source, Address::default());
            assert_eq!(result, Err(IpError::Truncated));
        }
        for len in 0..40 {
            let mut bytes = vec![0xff; len];
            let result = rewrite_v6(&mut bytes, Side::Source, Address::default());
            assert_eq!(result, Err(IpError::Truncated));
        }
    }
}
