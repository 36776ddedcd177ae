//! Version-independent fields of QUIC packets (RFC 8999): the position of the destination
//! connection id, and whether the server chose it.

/// QUIC version 1 (RFC 9000 15).
const V1: u32 = 1;
/// QUIC version 2 (RFC 9369 3.1).
const V2: u32 = 0x6b33_43cf;
/// Maximum length of a connection id in both versions, in bytes (RFC 9000 17.2).
pub const MAX_CONNECTION_ID: usize = 20;
/// Header form bit in the first octet: set in a long header (RFC 8999 5.1).
const LONG_HEADER: u8 = 0x80;

/// Destination connection id of a client's UDP payload, if a backend may have chosen it: that of
/// the first packet in the datagram, except in an Initial or 0-RTT packet, where the client chooses
/// the id until a packet of the server arrives.
///
/// A short header does not encode the length of the id: the slice then has up to
/// [`MAX_CONNECTION_ID`] bytes, and the id's first octet encodes how many count. The fixed bit is
/// ignored: endpoints may agree to change it (RFC 9287).
///
/// Cost: a few comparisons; any bytes are safe.
#[inline]
pub fn server_chosen_id(payload: &[u8]) -> Option<&[u8]> {
    let (&first, rest) = payload.split_first()?;
    if first & LONG_HEADER == 0 {
        return Some(rest.get(..MAX_CONNECTION_ID).unwrap_or(rest));
    }
    let (version, rest) = rest.split_first_chunk::<4>()?;
    if !is_server_chosen(first, u32::from_be_bytes(*version)) {
        return None;
    }
    let (&length, rest) = rest.split_first()?;
    let length = usize::from(length);
    if length > MAX_CONNECTION_ID { None } else { rest.get(..length) }
}

/// Whether a long header has a packet type whose id the server chose. Both versions have the same
/// types under different numbers (RFC 9000 17.2, RFC 9369 3.2).
const fn is_server_chosen(first: u8, version: u32) -> bool {
    let initial_and_zero_rtt = match version {
        V1 => [0, 1],
        V2 => [1, 2],
        _ => return false,
    };
    let [initial, zero_rtt] = initial_and_zero_rtt;
    let kind = first >> 4 & 3;
    kind != initial && kind != zero_rtt
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn long(kind: u8, version: u32, id: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc0 | kind << 4];
        packet.extend(version.to_be_bytes());
        packet.push(u8::try_from(id.len()).unwrap());
        packet.extend(id);
        packet.extend(b"\x04abcd and so on");
        packet
    }

    #[test]
    fn long_headers_have_an_id_of_the_servers_after_the_first_flight() {
        const ID: &[u8] = b"7 bytes";
        for (version, name, kind, expected) in [
            (V1, "Initial", 0, None),
            (V1, "0-RTT", 1, None),
            (V1, "Handshake", 2, Some(ID)),
            (V1, "Retry", 3, Some(ID)),
            (V2, "Retry", 0, Some(ID)),
            (V2, "Initial", 1, None),
            (V2, "0-RTT", 2, None),
            (V2, "Handshake", 3, Some(ID)),
            (0, "version negotiation", 2, None),
            (0xff00_001d, "a draft", 2, None),
        ] {
            let packet = long(kind, version, ID);
            assert_eq!(server_chosen_id(&packet), expected, "{version:#x} {name}");
        }
    }

    #[test]
    fn an_id_of_a_long_header_has_at_most_20_bytes_and_none_that_are_not_there() {
        assert_eq!(server_chosen_id(&long(2, V1, &[7; 20])), Some(&[7; 20][..]));
        assert_eq!(server_chosen_id(&long(2, V1, &[7; 21])), None);
        assert_eq!(server_chosen_id(&long(2, V1, &[])), Some(&[][..]));
        let packet = long(2, V1, &[7; 20]);
        for length in 0..26 {
            assert_eq!(server_chosen_id(&packet[..length]), None, "cut to {length}");
        }
    }

    #[test]
    fn a_short_header_gives_what_may_be_the_id() {
        for first in [0x40, 0x00, 0x7f] {
            let packet = [&[first], &[7; 30][..]].concat();
            assert_eq!(server_chosen_id(&packet), Some(&[7; 20][..]));
            assert_eq!(server_chosen_id(&packet[..4]), Some(&[7; 3][..]));
            assert_eq!(server_chosen_id(&packet[..1]), Some(&[][..]));
        }
        assert_eq!(server_chosen_id(&[]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_part_of_themselves_or_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            if let Some(id) = server_chosen_id(&bytes) {
                prop_assert!(id.len() <= MAX_CONNECTION_ID);
                prop_assert!(bytes.windows(id.len().max(1)).any(|part| part == id) || id.is_empty());
            }
        }
    }
}
