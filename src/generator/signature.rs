//! Signature at the start of a packet's payload, which identifies the packet after its addresses
//! have been rewritten.
//!
//! ```text
//! offset  0      2            6            10     12                 18
//!         magic  flow number  sequence     run    time sent, ns
//!         short form: 6 bytes
//!         whole form: 18 bytes, as many as an IPv4 UDP frame of 64 bytes has
//! ```
//!
//! A TCP frame of 64 bytes (IPv4) or 84 (IPv6) has room for the short form only. The lower 16 bits
//! of its sequence number are then in the urgent pointer, which has no meaning without the URG flag
//! (RFC 9293, 3.1). The time is omitted, so latency is not measured.

/// Magic of packets from clients.
pub const REQUEST: [u8; 2] = *b"HF";
/// Magic of replies from backends.
pub const REPLY: [u8; 2] = *b"HG";

/// Bytes of the short form.
pub const SHORT: usize = 6;
/// Bytes of the whole form.
pub const WHOLE: usize = 18;

/// Mask of the time: 48 bits, 78 hours.
const TIME_MASK: u64 = (1 << 48) - 1;

/// A packet's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// Flow number.
    pub flow: u32,
    /// Number of the packet in its flow.
    pub sequence: u32,
    /// Number of the trial; a late packet of an earlier trial is not counted.
    pub run: u16,
    /// Intended time of sending, in ns since the generator's start.
    pub time: u64,
}

impl Signature {
    /// Returns run and time in their layout in the packet.
    #[inline]
    pub const fn run_and_time(&self) -> u64 {
        (self.run as u64) << 48 | self.time & TIME_MASK
    }

    /// Returns the whole form, without magic.
    #[inline]
    pub fn bytes(&self) -> [u8; WHOLE - 2] {
        let [f0, f1, f2, f3] = self.flow.to_be_bytes();
        let [s0, s1, s2, s3] = self.sequence.to_be_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = self.run_and_time().to_be_bytes();
        [f0, f1, f2, f3, s0, s1, s2, s3, t0, t1, t2, t3, t4, t5, t6, t7]
    }
}

/// A signature found in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Whole form.
    Whole(Signature),
    /// Short form.
    Short {
        /// Flow number.
        flow: u32,
    },
}

/// Reads magic and signature from the start of a payload, and whether it is a reply. Returns `None`
/// if the payload is not the generator's.
#[inline]
pub fn read(payload: &[u8]) -> Option<(bool, Found)> {
    let &[m0, m1, f0, f1, f2, f3] = payload.first_chunk::<SHORT>()?;
    let reply = match [m0, m1] {
        REQUEST => false,
        REPLY => true,
        _ => return None,
    };
    let flow = u32::from_be_bytes([f0, f1, f2, f3]);
    let Some(&[.., s0, s1, s2, s3, r0, r1, t0, t1, t2, t3, t4, t5]) =
        payload.first_chunk::<WHOLE>()
    else {
        return Some((reply, Found::Short { flow }));
    };
    let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
    let run = u16::from_be_bytes([r0, r1]);
    let time = u64::from_be_bytes([0, 0, t0, t1, t2, t3, t4, t5]);
    Some((reply, Found::Whole(Signature { flow, sequence, run, time })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_read_as_it_was_written() {
        let written = Signature { flow: 0x0102_0304, sequence: 5, run: 6, time: (1 << 48) - 7 };
        let payload = [REQUEST.as_slice(), &written.bytes(), &[9; 30]].concat();
        assert_eq!(read(&payload), Some((false, Found::Whole(written))));
        assert_eq!(payload.get(..SHORT), Some(b"HF\x01\x02\x03\x04".as_slice()));
        for len in 0..WHOLE {
            let found = payload.get(..len).and_then(read);
            let expected = (len >= SHORT).then_some((false, Found::Short { flow: written.flow }));
            assert_eq!(found, expected, "{len} bytes");
        }
    }

    #[test]
    fn the_time_never_reaches_into_the_run() {
        let signature = Signature { flow: 0, sequence: 0, run: 3, time: u64::MAX };
        assert_eq!(signature.run_and_time() >> 48, 3);
    }

    #[test]
    fn other_packets_are_not_ours() {
        assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n"), None);
        assert_eq!(read(&[0; 64]), None);
        assert!(matches!(read(b"HG\0\0\0\x07"), Some((true, Found::Short { flow: 7 }))));
    }
}
