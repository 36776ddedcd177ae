//! A five-tuple in packed words, by family, as flow tables store it.
//!
//! ```text
//! V4   client:32 vip:32                         tail
//! V6   client:128           vip:128             tail
//! tail client port:16 vip port:16 (state:8 owner:8 stamp:8) protocol:8
//! ```
//!
//! The bits in parentheses belong to a table's entries, and are 0 in a tuple. All fields are
//! numbers (host byte order), so that two tuples are the same flow if and only if their words are
//! equal.

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

use super::{Address, Family, FlowKey, ListenKey, Protocol};

/// A packed five-tuple: of a packet, by source and destination ([`FiveTuple`]); of a flow, by
/// client and VIP ([`FlowKey`]). The source of a packet to a VIP is the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuple {
    /// Both addresses are IPv4.
    V4([u64; 2]),
    /// Both addresses are IPv6.
    V6([u64; 5]),
}

/// The bits of a tail word that belong to the tuple.
pub(crate) const TAIL: u64 = 0xffff_ffff_0000_00ff;
/// The bits of a tail word that belong to the destination: port and protocol.
const DST_TAIL: u64 = 0x0000_ffff_0000_00ff;
/// The bits of a tail word that belong to the source: port and protocol.
const SRC_TAIL: u64 = 0xffff_0000_0000_00ff;

/// Returns the tail word, from the first four bytes of a TCP or UDP header.
#[inline]
const fn tail(ports: [u8; 4], protocol: Protocol) -> u64 {
    (u32::from_be_bytes(ports) as u64) << 32 | protocol as u64
}

/// The five-tuple of a packet that is not classified yet. Ports in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FiveTuple {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Source port; 0 where the protocol has no ports.
    pub src_port: u16,
    /// Destination port; 0 where the protocol has no ports.
    pub dst_port: u16,
    /// TCP, UDP or any.
    pub protocol: Protocol,
}

impl Tuple {
    /// Creates an IPv4 tuple from the bytes of packet headers: source and destination address,
    /// source and destination port.
    #[inline]
    pub const fn v4(addresses: [u8; 8], ports: [u8; 4], protocol: Protocol) -> Self {
        Self::V4([u64::from_be_bytes(addresses), tail(ports, protocol)])
    }

    /// Creates an IPv6 tuple from the bytes of packet headers.
    #[inline]
    pub const fn v6(
        source: [u8; 16],
        destination: [u8; 16],
        ports: [u8; 4],
        protocol: Protocol,
    ) -> Self {
        let (source, destination) = (Address::from_v6(source), Address::from_v6(destination));
        let tail = tail(ports, protocol);
        Self::V6([source.high, source.low, destination.high, destination.low, tail])
    }

    #[inline]
    const fn tail(&self) -> u64 {
        match self {
            Self::V4([_, tail]) | Self::V6([.., tail]) => *tail,
        }
    }

    /// Returns TCP, UDP or any.
    #[inline]
    pub const fn protocol(&self) -> Protocol {
        const TCP: u64 = Protocol::Tcp as u64;
        const UDP: u64 = Protocol::Udp as u64;
        // Every tuple was made with one of the three.
        match self.tail() & 0xff {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            _ => Protocol::Any,
        }
    }

    /// Returns whether the addresses are IPv4.
    #[inline]
    pub const fn is_v4(&self) -> bool {
        matches!(self, Self::V4(_))
    }

    /// Returns the family of the addresses.
    #[inline]
    pub const fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// Returns the destination part only: equal for all packets to one VIP and port.
    #[inline]
    #[must_use]
    pub const fn destination(&self) -> Self {
        match *self {
            Self::V4([addresses, tail]) => Self::V4([addresses & 0xffff_ffff, tail & DST_TAIL]),
            Self::V6([_, _, high, low, tail]) => Self::V6([0, 0, high, low, tail & DST_TAIL]),
        }
    }

    /// Returns whether [`Tuple::destination`] of this tuple is `destination`.
    #[inline(always)]
    pub fn goes_to(&self, destination: &Self) -> bool {
        match (self, destination) {
            (Self::V4([addresses, tail]), Self::V4([to, to_tail])) => {
                (addresses ^ to) & 0xffff_ffff | (tail ^ to_tail) & DST_TAIL == 0
            }
            (Self::V6([_, _, high, low, tail]), Self::V6([_, _, to_high, to_low, to_tail])) => {
                (high ^ to_high) | (low ^ to_low) | (tail ^ to_tail) & DST_TAIL == 0
            }
            _ => false,
        }
    }

    /// Returns the tuple of all packets between the two addresses ([`Protocol::Any`]).
    #[inline]
    #[must_use]
    pub const fn without_ports(&self) -> Self {
        const TAIL: u64 = Protocol::Any as u64;
        match *self {
            Self::V4([addresses, _]) => Self::V4([addresses, TAIL]),
            Self::V6([c0, c1, v0, v1, _]) => Self::V6([c0, c1, v0, v1, TAIL]),
        }
    }

    /// Returns the destination as a key that a VIP may listen on.
    #[inline]
    pub const fn listen_key(&self) -> ListenKey {
        let FiveTuple { dst, dst_port, protocol, .. } = self.five_tuple();
        ListenKey { address: dst, port: dst_port, protocol }
    }

    /// Whether [`Tuple::reply_key`] of this tuple is `key`; cheaper, as nothing is unpacked.
    #[inline]
    pub const fn comes_from(&self, key: ListenKey) -> bool {
        let ListenKey { address, port, protocol } = key;
        let port_and_protocol = (port as u64) << 48 | protocol as u64;
        match *self {
            Self::V4([addresses, tail]) => {
                address.is_v4()
                    && (addresses >> 32 ^ address.low & 0xffff_ffff)
                        | (tail & SRC_TAIL ^ port_and_protocol)
                        == 0
            }
            Self::V6([high, low, _, _, tail]) => {
                (high ^ address.high) | (low ^ address.low) | (tail & SRC_TAIL ^ port_and_protocol)
                    == 0
            }
        }
    }

    /// Returns the source as a key that a NAT backend may reply from.
    #[inline]
    pub const fn reply_key(&self) -> ListenKey {
        let FiveTuple { src, src_port, protocol, .. } = self.five_tuple();
        ListenKey { address: src, port: src_port, protocol }
    }

    /// Returns whether source or destination port is 0, as both are in protocols without ports.
    #[inline]
    pub const fn has_zero_port(&self) -> bool {
        let tail = self.tail();
        tail >> 48 == 0 || tail & 0xffff_0000_0000 == 0
    }

    /// Returns whether a port is 0 that must not be: any but the source port of UDP, where 0 means
    /// that no reply is wanted (RFC 768).
    #[inline]
    pub const fn has_forbidden_port(&self) -> bool {
        let tail = self.tail();
        let from_zero = tail >> 48 == 0 && !matches!(self.protocol(), Protocol::Udp);
        tail & 0xffff_0000_0000 == 0 || from_zero
    }

    /// Unpacks the tuple.
    #[inline]
    pub const fn five_tuple(&self) -> FiveTuple {
        let (src, dst) = match *self {
            Self::V4([addresses, _]) => (v4_address(addresses >> 32), v4_address(addresses)),
            Self::V6([s0, s1, d0, d1, _]) => {
                (Address { high: s0, low: s1 }, Address { high: d0, low: d1 })
            }
        };
        let [s0, s1, d0, d1, ..] = self.tail().to_be_bytes();
        FiveTuple {
            src,
            dst,
            src_port: u16::from_be_bytes([s0, s1]),
            dst_port: u16::from_be_bytes([d0, d1]),
            protocol: self.protocol(),
        }
    }

    /// Unpacks the five-tuple of a flow, from the client's side.
    #[inline]
    pub const fn key(&self) -> FlowKey {
        let FiveTuple { src, dst, src_port, dst_port, protocol } = self.five_tuple();
        FlowKey { client: src, vip: dst, client_port: src_port, vip_port: dst_port, protocol }
    }
}

/// Returns the last 32 bits as an IPv4 address.
#[inline]
const fn v4_address(word: u64) -> Address {
    let [.., a, b, c, d] = word.to_be_bytes();
    Address::from_v4([a, b, c, d])
}

impl From<FiveTuple> for Tuple {
    /// Packs a five-tuple. No packet has addresses of two families; their tuple equals that of no
    /// packet.
    #[inline]
    fn from(FiveTuple { src, dst, src_port, dst_port, protocol }: FiveTuple) -> Self {
        let tail =
            u64::from(src_port) << 48 | u64::from(dst_port) << 32 | u64::from(protocol as u8);
        if src.is_v4() && dst.is_v4() {
            return Self::V4([src.low << 32 | dst.low & 0xffff_ffff, tail]);
        }
        Self::V6([src.high, src.low, dst.high, dst.low, tail])
    }
}

impl From<FlowKey> for Tuple {
    /// Packs the five-tuple of the flow's packets to the VIP.
    #[inline]
    fn from(key: FlowKey) -> Self {
        let FlowKey { client, vip, client_port, vip_port, protocol } = key;
        let (src, dst) = (client, vip);
        Self::from(FiveTuple { src, dst, src_port: client_port, dst_port: vip_port, protocol })
    }
}

/// A tuple with its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashedKey {
    /// The five-tuple.
    pub tuple: Tuple,
    pub(crate) hash: u64,
}

impl HashedKey {
    /// A placeholder that no table has.
    pub const NONE: Self = Self { tuple: Tuple::V4([0; 2]), hash: 0 };

    /// Wraps a tuple that is not looked up.
    pub const fn unhashed(tuple: Tuple) -> Self {
        Self { tuple, ..Self::NONE }
    }

    /// Returns the five-tuple, unpacked.
    #[inline]
    pub const fn key(&self) -> FlowKey {
        self.tuple.key()
    }

    /// Returns TCP, UDP or any.
    #[inline]
    pub const fn protocol(&self) -> Protocol {
        self.tuple.protocol()
    }

    /// Returns the hash.
    #[inline]
    pub const fn value(&self) -> u64 {
        self.hash
    }
}

/// Secret of the flow tables of one process. Without it, attackers cannot aim flows at one bucket.
#[derive(Debug, Clone)]
pub struct TableSecret {
    seed: u64,
    secrets: RapidSecrets,
}

impl TableSecret {
    /// Creates the secret from a random seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, secrets: RapidSecrets::seed(seed) }
    }

    /// Returns the seed that the secret was made from.
    pub(crate) const fn seed(&self) -> u64 {
        self.seed
    }

    /// Hashes a tuple: rapidhash v3 of its words. All tables of a process share one secret, so that
    /// a hash is valid in each of them.
    #[inline]
    pub fn hash(&self, tuple: Tuple) -> HashedKey {
        let hash = match &tuple {
            Tuple::V4(words) => self.hash_words::<16>(words),
            Tuple::V6(words) => self.hash_words::<40>(words),
        };
        HashedKey { tuple, hash }
    }

    #[inline]
    pub(crate) fn hash_words<const BYTES: usize>(&self, words: &[u64]) -> u64 {
        let mut bytes = [0; BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        rapidhash_v3_seeded(&bytes, &self.secrets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Vec<FlowKey> {
        let v4 = |bytes| Address::from_v4(bytes);
        let v6 = |byte| Address::from_v6([byte; 16]);
        [(v4([192, 0, 2, 1]), v4([255; 4])), (v6(0xff), v6(0x20)), (v6(0), v6(1))]
            .into_iter()
            .flat_map(|(client, vip)| {
                [Protocol::Tcp, Protocol::Udp, Protocol::Any].into_iter().flat_map(
                    move |protocol| {
                        [(0xffff, 1), (1, 0xffff), (0, 0)].map(|(client_port, vip_port)| FlowKey {
                            client,
                            vip,
                            client_port,
                            vip_port,
                            protocol,
                        })
                    },
                )
            })
            .collect()
    }

    #[test]
    fn keys_there_and_back() {
        for key in keys() {
            let tuple = Tuple::from(key);
            assert_eq!((tuple.key(), tuple.protocol()), (key, key.protocol));
            assert_eq!(tuple.is_v4(), key.client.is_v4());
            assert_eq!(tuple.listen_key().address, key.vip);
            assert_eq!(
                (tuple.reply_key().address, tuple.reply_key().port),
                (key.client, key.client_port)
            );
            assert_eq!(tuple.has_zero_port(), key.vip_port == 0);
        }
    }

    #[test]
    fn only_a_udp_source_may_have_port_0() {
        let at = Address::from_v4([192, 0, 2, 1]);
        for (protocol, client_port, vip_port, forbidden) in [
            (Protocol::Udp, 0, 53, false),
            (Protocol::Udp, 53, 0, true),
            (Protocol::Udp, 0, 0, true),
            (Protocol::Tcp, 0, 80, true),
            (Protocol::Tcp, 80, 0, true),
            (Protocol::Tcp, 1, 1, false),
            (Protocol::Udp, 1, 1, false),
        ] {
            let key = FlowKey { client: at, vip: at, client_port, vip_port, protocol };
            assert_eq!(Tuple::from(key).has_forbidden_port(), forbidden, "{key:?}");
        }
    }

    #[test]
    fn different_keys_are_different_words_and_hashes() {
        let secret = TableSecret::new(1);
        let hashed: Vec<HashedKey> =
            keys().into_iter().map(|key| secret.hash(key.into())).collect();
        for (at, one) in hashed.iter().enumerate() {
            for other in hashed.iter().skip(at + 1) {
                assert_ne!(one.tuple, other.tuple);
                assert_ne!(one.hash, other.hash);
            }
        }
    }

    /// The hash is a part of the layout of flow tables: a process that takes a table over must find
    /// the entries that its predecessor has hashed. If this changes, so must the layout's version.
    #[test]
    fn the_hash_stays_what_it_is() {
        let hash = |tuple| TableSecret::new(7).hash(tuple).hash;
        assert_eq!(hash(Tuple::V4([1, 2])), HASH_V4);
        assert_eq!(hash(Tuple::V6([1, 2, 3, 4, 5])), HASH_V6);
    }

    const HASH_V4: u64 = 16_603_154_554_419_832_430;
    const HASH_V6: u64 = 17_260_434_275_209_196_626;

    #[test]
    fn a_source_is_compared_as_it_is_unpacked() {
        for key in keys() {
            let tuple = Tuple::from(key);
            for other in keys() {
                let source = Tuple::from(other).reply_key();
                assert_eq!(tuple.comes_from(source), tuple.reply_key() == source, "{other:?}");
            }
        }
    }

    #[test]
    fn the_destination_is_equal_for_all_clients_and_only_then() {
        let key = FlowKey {
            client: Address::from_v4([198, 18, 0, 1]),
            vip: Address::from_v4([192, 0, 2, 10]),
            client_port: 1000,
            vip_port: 80,
            protocol: Protocol::Tcp,
        };
        let of = |key: FlowKey| Tuple::from(key).destination();
        let client = Address::from_v4([198, 18, 255, 255]);
        let others = [
            FlowKey { client, client_port: 2, ..key },
            FlowKey { vip_port: 81, ..key },
            FlowKey { vip: client, ..key },
            FlowKey { protocol: Protocol::Udp, ..key },
            FlowKey { client: Address::from_v6([9; 16]), vip: Address::from_v6([9; 16]), ..key },
        ];
        for other in others {
            let goes_to = Tuple::from(other).goes_to(&of(key));
            assert_eq!(goes_to, of(other) == of(key), "{other:?}");
        }
        assert_eq!(of(key), of(FlowKey { client, client_port: 2, ..key }));
        assert_ne!(of(key), of(FlowKey { vip_port: 81, ..key }));
        assert_ne!(of(key), of(FlowKey { vip: client, ..key }));
        assert_ne!(of(key), of(FlowKey { protocol: Protocol::Udp, ..key }));
    }
}
