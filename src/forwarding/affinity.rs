//! Affinity: groups flows that go to one backend.
//!
//! The affinity key of a flow is hashed with the configuration's secret, so that every box with the
//! same configuration gets the same value. Keys of a client hold neither port nor VIP: a client has
//! one backend in all VIPs that have the same backends, on every box.
//!
//! ```text
//! flow, quic_cid   five-tuple
//! client           client address                 part 1
//! client_prefix    client address, masked         part 1
//! client_ports     client address                 part 2^bits | port / (65536 / 2^bits)
//! a split source   client address (or masked)     part 2^n | share of its ports, of 2^n
//! ```

use siphasher::sip::SipHasher13;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::net::{Address, FlowKey};

/// The key of every hash that chooses a backend: 16 bytes from the configuration.
pub type Secret = [u8; 16];

/// Maximum number of bits that divide the ports of a split source: blocks of [`BLOCK`] ports.
pub const MAX_SPLIT: u8 = 10;

/// Ports in a block, which a split keeps together. Large gateways assign each subscriber a block of
/// ports (RFC 7422), so the flows of a subscriber keep one backend.
const BLOCK: u16 = 1 << (16 - MAX_SPLIT as u16);

/// Flow attributes that form the affinity key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// The five-tuple: every flow is on its own.
    Flow,
    /// The client's address.
    Client,
    /// The client's network.
    ClientPrefix {
        /// Prefix length for IPv4, 0..=32.
        v4: u8,
        /// Prefix length for IPv6, 0..=128.
        v6: u8,
    },
    /// The client's address and the range of its port: 2^`bits` ranges of equal size.
    ClientPorts {
        /// Base-2 logarithm of the number of ranges, 1..=15.
        bits: u8,
    },
    /// The QUIC connection id, in packets that carry one issued by a server; else like
    /// [`Affinity::Flow`].
    QuicCid,
}

/// Client identity used for affinity and sticky look-ups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// Address of the client, or of its network.
    pub client: Address,
    /// Part of the client's ports, numbered as in a binary heap: 1 is all ports, 2 and 3 are the
    /// halves, and so on.
    pub part: u16,
}

impl Affinity {
    /// Client identity of a flow.
    pub fn client_key(self, key: &FlowKey, splits: &Splits) -> ClientKey {
        let client = match self {
            Self::ClientPrefix { v4, v6 } => mask(key.client, v4, v6),
            Self::Flow | Self::Client | Self::ClientPorts { .. } | Self::QuicCid => key.client,
        };
        let part = match self {
            Self::ClientPorts { bits } => range(key.client_port, bits),
            _ => share(key.client_port, splits.bits(client)),
        };
        ClientKey { client, part }
    }

    /// Affinity hash of a flow: SipHash-1-3 of its affinity key, words in network byte order.
    #[inline(always)]
    pub fn hash(self, secret: &Secret, key: &FlowKey, splits: &Splits) -> u64 {
        match self {
            Self::Flow | Self::QuicCid => hash_words::<40>(secret, &key.words()),
            Self::Client | Self::ClientPrefix { .. } | Self::ClientPorts { .. } => {
                self.client_key(key, splits).hash(secret)
            }
        }
    }

    /// Configuration keyword.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Client => "client",
            Self::ClientPrefix { .. } => "client_prefix",
            Self::ClientPorts { .. } => "client_ports",
            Self::QuicCid => "quic_cid",
        }
    }

    /// Whether all flows of one client (or of its network or port range) belong together.
    pub const fn is_of_client(self) -> bool {
        matches!(self, Self::Client | Self::ClientPrefix { .. } | Self::ClientPorts { .. })
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.as_str();
        match *self {
            Self::Flow | Self::Client | Self::QuicCid => f.write_str(word),
            Self::ClientPrefix { v4, v6 } => write!(f, "{word} (v4 {v4}, v6 {v6})"),
            Self::ClientPorts { bits } => write!(f, "{word} (ranges {})", 1_u32 << bits.min(16)),
        }
    }
}

impl ClientKey {
    /// Affinity hash of all flows of the client.
    pub fn hash(&self, secret: &Secret) -> u64 {
        let [high, low] = self.client.words();
        hash_words::<24>(secret, &[high, low, self.part.into()])
    }
}

/// Hashes all words in one call, at half the cost of word by word. `BYTES` is 8 per word.
fn hash_words<const BYTES: usize>(secret: &Secret, words: &[u64]) -> u64 {
    let mut bytes = [0; BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    SipHasher13::new_with_key(secret).hash(&bytes)
}

/// Derives an unrelated hash (splitmix64's finalizer, Steele et al. 2014).
#[inline]
pub const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Masks an address to its network.
fn mask(address: Address, v4: u8, v6: u8) -> Address {
    let bits = if address.is_v4() { 96 + u32::from(v4.min(32)) } else { u32::from(v6.min(128)) };
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Address::from_v6((u128::from_be_bytes(address.octets()) & mask).to_be_bytes())
}

/// Heap number of the range that contains a port, of 2^bits ranges.
fn range(port: u16, bits: u8) -> u16 {
    let bits = u32::from(bits.min(15));
    1 << bits | port.checked_shr(16 - bits).unwrap_or(0)
}

/// Heap number of the share that contains a port, of 2^bits shares: blocks of ports, distributed
/// evenly whichever ports the gateway uses (Fibonacci hashing, Knuth vol. 3, 6.4).
fn share(port: u16, bits: u8) -> u16 {
    let bits = u32::from(bits.min(MAX_SPLIT));
    let dealt = u32::from(port / BLOCK).wrapping_mul(0x9e37_79b9);
    let share = dealt.checked_shr(32 - bits).unwrap_or(0);
    1 << bits | u16::try_from(share).unwrap_or(0)
}

/// Sources with flows spread over several backends, because one backend lacks the capacity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Splits(Box<[(Address, u8)]>);

impl Splits {
    /// Creates the set from (masked) addresses, each with n for 2^n parts, n at most [`MAX_SPLIT`].
    pub fn new(mut sources: Vec<(Address, u8)>) -> Self {
        sources.sort_unstable_by_key(|(source, _)| source.words());
        Self(sources.into())
    }

    /// Base-2 logarithm of the number of parts of a source; 0: not split.
    #[inline]
    pub fn bits(&self, source: Address) -> u8 {
        if self.0.is_empty() {
            return 0;
        }
        let found = self.0.binary_search_by_key(&source.words(), |(source, _)| source.words());
        found.ok().and_then(|at| self.0.get(at)).map_or(0, |(_, bits)| *bits)
    }

    /// All split sources, each with the logarithm of its parts.
    pub fn iter(&self) -> impl Iterator<Item = (Address, u8)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;

    const SECRET: Secret = [7; 16];

    fn key(client: &str, client_port: u16) -> FlowKey {
        let client: std::net::IpAddr = client.parse().unwrap_or([0; 4].into());
        let vip = Address::from_v4([192, 0, 2, 10]);
        FlowKey { client: client.into(), vip, client_port, vip_port: 80, protocol: Protocol::Tcp }
    }

    fn hash(affinity: Affinity, key: &FlowKey) -> u64 {
        affinity.hash(&SECRET, key, &Splits::default())
    }

    /// Known answers: two boxes, and two versions of holdfast, must agree.
    #[test]
    fn the_hash_is_siphash_1_3_of_the_key_s_words_in_network_order() {
        let key = key("198.18.1.10", 40_000);
        let bytes: Vec<u8> = key.words().iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(hash(Affinity::Flow, &key), SipHasher13::new_with_key(&SECRET).hash(&bytes));
        let client = [0_u64, 0xffff_c612_010a, 1];
        let bytes: Vec<u8> = client.iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(hash(Affinity::Client, &key), SipHasher13::new_with_key(&SECRET).hash(&bytes));
        assert_ne!(
            Affinity::Flow.hash(&[8; 16], &key, &Splits::default()),
            hash(Affinity::Flow, &key)
        );
    }

    #[test]
    fn keys_of_a_client_hold_no_port_and_no_vip() {
        let one = key("198.18.1.10", 1);
        let other = FlowKey {
            client_port: 2,
            vip_port: 443,
            vip: one.client,
            protocol: Protocol::Udp,
            ..one
        };
        for affinity in [Affinity::Client, Affinity::ClientPrefix { v4: 24, v6: 56 }] {
            assert_eq!(hash(affinity, &one), hash(affinity, &other), "{affinity:?}");
        }
        assert_ne!(hash(Affinity::Flow, &one), hash(Affinity::Flow, &other));
    }

    #[test]
    fn prefixes_of_both_families() {
        let prefix = Affinity::ClientPrefix { v4: 24, v6: 56 };
        let same = |a, b| hash(prefix, &key(a, 1)) == hash(prefix, &key(b, 2));
        assert!(same("198.18.1.10", "198.18.1.250"));
        assert!(!same("198.18.1.10", "198.18.2.10"));
        assert!(same("2001:db8:0:1ff::1", "2001:db8:0:100::2"));
        assert!(!same("2001:db8:0:1ff::1", "2001:db8:0:200::1"));
        let all = Affinity::ClientPrefix { v4: 0, v6: 0 };
        assert_eq!(hash(all, &key("198.18.1.10", 1)), hash(all, &key("203.0.113.1", 1)));
        let whole = Affinity::ClientPrefix { v4: 32, v6: 128 };
        assert_eq!(
            hash(whole, &key("2001:db8::1", 1)),
            hash(Affinity::Client, &key("2001:db8::1", 1))
        );
    }

    #[test]
    fn ranges_of_ports() {
        let ports = Affinity::ClientPorts { bits: 4 };
        let part = |port| ports.client_key(&key("198.18.1.10", port), &Splits::default()).part;
        assert_eq!([part(0), part(4095), part(4096), part(65_535)], [16, 16, 17, 31]);
        assert_eq!(ports.to_string(), "client_ports (ranges 16)");
    }

    #[test]
    fn a_split_deals_out_blocks_of_ports_evenly() {
        let gateway = key("198.18.1.10", 0).client;
        for bits in 1..=MAX_SPLIT {
            let splits = Splits::new(vec![(gateway, bits), (Address::from_v4([1, 2, 3, 4]), 3)]);
            let part = |port| Affinity::Client.client_key(&key("198.18.1.10", port), &splits).part;
            let mut counts = vec![0_u32; 1 << bits];
            // The ephemeral ports of Linux.
            for port in 32_768..61_000 {
                let index = usize::from(part(port)) - (1 << bits);
                if let Some(count) = counts.get_mut(index) {
                    *count += 1;
                }
            }
            assert_eq!(counts.iter().sum::<u32>(), 61_000 - 32_768);
            let most = counts.iter().max().copied().unwrap_or(0);
            assert!(f64::from(most) < 2.5 * 28_232.0 / f64::from(1_u32 << bits), "{bits}: {most}");
            assert_eq!(part(BLOCK), part(2 * BLOCK - 1), "a block stays together");
        }
        let other =
            Affinity::Client.client_key(&key("198.18.1.11", 9), &Splits::new(vec![(gateway, 5)]));
        assert_eq!(other.part, 1);
    }
}
