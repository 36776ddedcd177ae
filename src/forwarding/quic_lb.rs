//! Connection ids that name a backend (QUIC-LB, draft-ietf-quic-load-balancers-21).
//!
//! ```text
//! first octet: 3 bits config rotation, 5 bits length of the rest
//! then server id and nonce, together 5 to 19 bytes:
//!     no key              as they are
//!     key, 16 bytes       one block of AES-128
//!     key, other lengths  a Feistel network of four rounds, AES-128 in each
//! ```
//!
//! The server generates such ids ([`Codec::encode`]), the balancer decodes them
//! ([`QuicLb::backend`]). The encryption hides the server of a connection from observers but
//! authenticates nothing: anyone who has seen an id can send it, and a random id occasionally
//! decodes to a server.

use std::fmt;

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use arrayvec::ArrayVec;
use hashbrown::HashMap;

use serde::{Deserialize, Serialize};

use crate::net::BackendIndex;
use crate::wire::quic::MAX_CONNECTION_ID;

/// Number of config rotations; the eighth value, 0b111, marks ids that name no server.
pub const ROTATIONS: usize = 7;
/// Minimum length of a nonce in bytes. Each id of a server has its own nonce.
pub const MIN_NONCE: usize = 4;
/// Maximum length of server id and nonce together, in bytes.
pub const MAX_PLAINTEXT: usize = MAX_CONNECTION_ID - 1;
/// Maximum length of a server id, in bytes.
pub const MAX_SERVER_ID: usize = MAX_PLAINTEXT - MIN_NONCE;
/// Bytes of an AES block.
const BLOCK: usize = 16;

/// Connection id as issued by a server.
pub type ConnectionId = ArrayVec<u8, MAX_CONNECTION_ID>;

/// Name of a backend in connection ids: 1 to 15 opaque bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServerId {
    /// The bytes in order, padded with zeros at the end.
    bytes: u128,
    len: u8,
}

impl ServerId {
    /// Creates a server id; `None` if `bytes` is empty or longer than 15.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let len = u8::try_from(bytes.len()).ok().filter(|&len| len > 0)?;
        let mut block = [0; BLOCK];
        block.get_mut(..MAX_SERVER_ID)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { bytes: u128::from_be_bytes(block), len })
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Always false: an id has at least one byte.
    pub const fn is_empty(&self) -> bool {
        false
    }

    fn padded(self) -> [u8; BLOCK] {
        self.bytes.to_be_bytes()
    }
}

/// Hex digits, as in the configuration.
impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.padded().iter().take(self.len()).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerId({self})")
    }
}

/// One QUIC-LB configuration: format of the connection ids of one rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Config rotation, 0 to 6: the first three bits of an id.
    pub rotation: u8,
    /// Length of the server id in bytes, at least 1.
    pub server_id_bytes: u8,
    /// Length of the nonce in bytes, at least 4.
    pub nonce_bytes: u8,
    /// AES-128 key; `None`: plaintext.
    pub key: Option<[u8; 16]>,
}

/// Encoder and decoder of the connection ids of one configuration.
#[derive(Debug)]
pub struct Codec {
    rotation: u8,
    server_id_len: usize,
    /// Length of server id and nonce together, in bytes.
    len: u8,
    cipher: Option<Aes128>,
}

impl Codec {
    /// Prepares a configuration; `None` if its rotation is above 6 or its lengths are out of
    /// bounds.
    pub fn new(config: &Config) -> Option<Self> {
        let server_id_len = usize::from(config.server_id_bytes);
        let len = config.server_id_bytes.saturating_add(config.nonce_bytes);
        let fits = server_id_len > 0
            && usize::from(config.nonce_bytes) >= MIN_NONCE
            && usize::from(len) <= MAX_PLAINTEXT;
        (fits && usize::from(config.rotation) < ROTATIONS).then(|| Self {
            rotation: config.rotation,
            server_id_len,
            len,
            cipher: config.key.map(|key| Aes128::new(&key.into())),
        })
    }

    /// Length of server id and nonce together, in bytes.
    fn len(&self) -> usize {
        self.len.into()
    }

    /// Connection id of `server` with this nonce; `None` if their lengths differ from the
    /// configuration's. The first octet encodes the length.
    ///
    /// A nonce must not repeat; without a key it must also look random.
    pub fn encode(&self, server: ServerId, nonce: &[u8]) -> Option<ConnectionId> {
        if server.len() != self.server_id_len || server.len() + nonce.len() != self.len() {
            return None;
        }
        let mut text = [0; MAX_PLAINTEXT];
        let (id, rest) = text.split_at_mut_checked(self.server_id_len)?;
        id.copy_from_slice(server.padded().get(..self.server_id_len)?);
        rest.get_mut(..nonce.len())?.copy_from_slice(nonce);
        match &self.cipher {
            None => {}
            Some(cipher) if self.len() == BLOCK => {
                cipher.encrypt_block(text.first_chunk_mut::<BLOCK>()?.into());
            }
            Some(cipher) => {
                let mut halves = Halves::split(&text, self.len);
                for pass in 1..=4 {
                    halves.pass(cipher, pass);
                }
                text = halves.join();
            }
        }
        let mut id = ConnectionId::new();
        id.push(self.rotation << 5 | self.len);
        id.try_extend_from_slice(text.get(..self.len())?).ok()?;
        Some(id)
    }

    /// Server id of a connection id of this configuration; bytes after the encoded part are
    /// ignored. `None` if the id is too short.
    ///
    /// Cost: negligible without a key; one AES block with 16 bytes; else three, or four if the
    /// server id is longer than the nonce, in sequence.
    #[inline]
    pub fn decode(&self, id: &[u8]) -> Option<ServerId> {
        let (_, bytes) = id.split_first()?;
        let bytes = bytes.get(..self.len())?;
        let mut text = [0; MAX_PLAINTEXT];
        text.get_mut(..self.len())?.copy_from_slice(bytes);
        match &self.cipher {
            None => {}
            Some(cipher) if self.len() == BLOCK => {
                cipher.decrypt_block(text.first_chunk_mut::<BLOCK>()?.into());
            }
            Some(cipher) => {
                let mut halves = Halves::split(&text, self.len);
                for pass in [4, 3, 2] {
                    halves.pass(cipher, pass);
                }
                if self.server_id_len > self.len() / 2 {
                    halves.pass(cipher, 1);
                }
                text = halves.join();
            }
        }
        ServerId::new(text.get(..self.server_id_len)?)
    }
}

/// The two halves of server id and nonce, each of up to 10 bytes at the front of a block. With an
/// odd length the middle byte is divided between them.
struct Halves {
    left: u128,
    right: u128,
    /// Bits of a block that belong to the left half, and to the right half.
    masks: [u128; 2],
    /// Length of both halves together in bytes, 5 to 19.
    len: u8,
}

impl Halves {
    /// Splits the first `len` bytes of `text`; the other bytes are 0.
    #[inline]
    fn split(text: &[u8; MAX_PLAINTEXT], len: u8) -> Self {
        let (front, back) = wide(text);
        let shift = Self::shift(len);
        // A half has 20 to 76 bits; of an odd length, 4 modulo 8.
        let bits = 4 * u32::from(len);
        let skipped = bits - shift;
        let masks = [!(u128::MAX >> bits), !(u128::MAX >> bits) >> skipped];
        let [left, right] = masks;
        let both = [front & left, (front << shift | back >> (128 - shift)) & right];
        let [left, right] = both;
        Self { left, right, masks, len }
    }

    /// Inverse of [`split`](Self::split).
    #[inline]
    fn join(&self) -> [u8; MAX_PLAINTEXT] {
        let shift = Self::shift(self.len);
        let front = (self.left | self.right >> shift).to_be_bytes();
        let back = (self.right << (128 - shift)).to_be_bytes();
        let mut text = [0; MAX_PLAINTEXT];
        text.iter_mut().zip(front.iter().chain(&back)).for_each(|(to, from)| *to = *from);
        text
    }

    /// Number of bits before the byte in which the right half begins: 16 to 72.
    #[inline]
    const fn shift(len: u8) -> u32 {
        8 * (len as u32 / 2)
    }

    /// One round: odd rounds change the right half by the left half, even rounds the left by the
    /// right. Each is its own inverse.
    #[inline]
    fn pass(&mut self, cipher: &Aes128, pass: u8) {
        let [left_mask, right_mask] = self.masks;
        let (from, to, mask) = if pass % 2 == 1 {
            (self.left, &mut self.right, right_mask)
        } else {
            (self.right, &mut self.left, left_mask)
        };
        // Section 5.4.2.2, "expand": the half, zeros, the length of both halves, the number of the
        // pass.
        let block = from | u128::from(self.len) << 8 | u128::from(pass);
        let mut block = block.to_be_bytes();
        cipher.encrypt_block((&mut block).into());
        *to ^= u128::from_be_bytes(block) & mask;
    }
}

/// The bytes as two blocks, padded with zeros.
#[inline]
fn wide(text: &[u8; MAX_PLAINTEXT]) -> (u128, u128) {
    let mut bytes = [0; 2 * BLOCK];
    bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    let [front, back] = [bytes.first_chunk(), bytes.last_chunk()].map(|half| half.copied());
    let number = |half: Option<[u8; BLOCK]>| u128::from_be_bytes(half.unwrap_or_default());
    (number(front), number(back))
}

/// Connection-id state of a VIP: up to seven configurations, and the backend of each server id.
#[derive(Debug)]
pub struct QuicLb {
    codecs: [Option<Codec>; ROTATIONS],
    /// Backends by server id. Ids of different lengths differ: one map serves all configurations.
    servers: HashMap<ServerId, BackendIndex>,
}

impl QuicLb {
    /// Builds the state of a VIP with these configurations, the last of each rotation, and the
    /// server ids of its backends.
    pub fn new(
        configs: &[Config],
        servers: impl IntoIterator<Item = (ServerId, BackendIndex)>,
    ) -> Self {
        let mut codecs = [const { None }; ROTATIONS];
        for config in configs {
            if let Some(codec) = codecs.get_mut(usize::from(config.rotation)) {
                *codec = Codec::new(config);
            }
        }
        Self { codecs, servers: servers.into_iter().collect() }
    }

    /// The backend named by a connection id: the rotation is configured, the id is long enough, and
    /// a backend has the server id. Bytes after the id are ignored.
    ///
    /// Cost: that of [`Codec::decode`] and one look-up in a hash map. No allocation.
    #[inline]
    pub fn backend(&self, id: &[u8]) -> Option<BackendIndex> {
        let rotation = id.first()? >> 5;
        let codec = self.codecs.get(usize::from(rotation))?.as_ref()?;
        self.servers.get(&codec.decode(id)?).copied()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "8f95f09245765f80256934e50c66207f";

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    fn config(rotation: u8, server_id_bytes: usize, nonce_bytes: usize, key: &str) -> Config {
        Config {
            rotation,
            server_id_bytes: u8::try_from(server_id_bytes).unwrap(),
            nonce_bytes: u8::try_from(nonce_bytes).unwrap(),
            key: (!key.is_empty()).then(|| hex(key).try_into().unwrap()),
        }
    }

    fn server(text: &str) -> ServerId {
        ServerId::new(&hex(text)).unwrap()
    }

    /// Appendix B of the draft, the example of its section 5.4.2, and `shared/conformance` C.
    #[test]
    fn known_answers() {
        const EXAMPLE_KEY: &str = "fdf726a9893ec05c0632d3956680baf0";
        for (rotation, key, id, nonce, expected) in [
            (0, "", "c4605e", "4504cc4f", "07c4605e4504cc4f"),
            (0, KEY, "ed793a", "ee080dbf", "0720b1d07b359d3c"),
            (1, KEY, "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2"),
            (2, KEY, "ed793a51d49b8f5f", "ee080dbf48c0d1e5", "504dd2d05a7b0de9b2b9907afb5ecf8cc3"),
            (
                0,
                KEY,
                "ed793a51d49b8f5fab",
                "ee080dbf48c0d1e55d",
                "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc",
            ),
            (0, EXAMPLE_KEY, "31441a", "9c69c275", "0767947d29be054a"),
        ] {
            let config = config(rotation, id.len() / 2, nonce.len() / 2, key);
            let codec = Codec::new(&config).unwrap();
            let made = codec.encode(server(id), &hex(nonce)).unwrap();
            assert_eq!(made.as_slice(), hex(expected), "{rotation} {id} {nonce}");
            assert_eq!(codec.decode(&hex(expected)), Some(server(id)), "{expected}");
        }
    }

    #[test]
    fn configurations_within_and_beyond_the_bounds() {
        for (rotation, server_id, nonce, good) in [
            (0, 1, 4, true),
            (6, 15, 4, true),
            (6, 1, 18, true),
            (7, 1, 4, false),
            (0, 0, 8, false),
            (0, 8, 3, false),
            (0, 16, 4, false),
            (0, 1, 19, false),
            (0, 255, 255, false),
        ] {
            let made = Codec::new(&config(rotation, server_id, nonce, KEY));
            assert_eq!(made.is_some(), good, "{rotation} {server_id} {nonce}");
        }
        let codec = Codec::new(&config(0, 3, 4, "")).unwrap();
        assert!(codec.encode(server("c4605e"), &[0; 5]).is_none(), "nonce too long");
        assert!(codec.encode(server("c4605e11"), &[0; 4]).is_none(), "server id too long");
        assert!(codec.encode(server("c460"), &[0; 5]).is_none(), "server id too short");
    }

    #[test]
    fn server_ids_are_equal_only_with_their_lengths() {
        assert_ne!(server("c4"), server("c400"));
        assert_eq!(server("c40060").to_string(), "c40060");
        assert!(ServerId::new(&[]).is_none() && ServerId::new(&[1; 16]).is_none());
        assert_eq!(ServerId::new(&[1; 15]).unwrap().len(), 15);
    }

    /// Three rotations at once: plain, one block, and four passes, with ids of three lengths.
    fn three() -> (Vec<Config>, QuicLb) {
        let configs = vec![config(0, 3, 4, ""), config(1, 8, 8, KEY), config(6, 10, 5, KEY)];
        let servers = (0..50)
            .flat_map(|index| [3, 8, 10].map(|len| (id_of(index, len), BackendIndex(index))));
        let quic = QuicLb::new(&configs, servers);
        (configs, quic)
    }

    fn id_of(index: u16, len: usize) -> ServerId {
        let [high, low] = index.to_be_bytes();
        let mut bytes = vec![low, 0x5a, high];
        bytes.resize(len, 0x77);
        ServerId::new(&bytes).unwrap()
    }

    #[test]
    fn every_rotation_names_every_backend() {
        let (configs, quic) = three();
        for config in configs {
            let codec = Codec::new(&config).unwrap();
            for index in 0..50 {
                let server = id_of(index, usize::from(config.server_id_bytes));
                let nonce = vec![0x3c; usize::from(config.nonce_bytes)];
                let mut id = codec.encode(server, &nonce).unwrap().to_vec();
                assert_eq!(quic.backend(&id), Some(BackendIndex(index)));
                // The server may use the length bits and the bytes after the id as it likes.
                id[0] ^= 0x1f;
                id.extend([1, 2, 3]);
                assert_eq!(quic.backend(&id), Some(BackendIndex(index)));
            }
        }
    }

    #[test]
    fn ids_that_name_no_server() {
        let (_, quic) = three();
        let good = hex("07005a0001020304");
        assert_eq!(quic.backend(&good), Some(BackendIndex(0)));
        for length in 0..good.len() {
            assert_eq!(quic.backend(&good[..length]), None, "cut to {length}");
        }
        assert_eq!(quic.backend(&hex("07335a0001020304")), None, "no such server");
        assert_eq!(quic.backend(&hex("47005a0001020304")), None, "no such rotation");
        assert_eq!(quic.backend(&hex("e7005a0001020304")), None, "unroutable, 0b111");
    }

    proptest! {
        /// Every pair of lengths, with and without a key: `decode` recovers the server id.
        #[test]
        fn decode_reverses_encode(
            rotation in 0_u8..7,
            key in any::<Option<[u8; 16]>>(),
            server in proptest::collection::vec(any::<u8>(), 1..=15),
            nonce in proptest::collection::vec(any::<u8>(), 4..=18),
        ) {
            let nonce = &nonce[..nonce.len().min(19 - server.len())];
            let config = Config { key, ..config(rotation, server.len(), nonce.len(), "") };
            let codec = Codec::new(&config).unwrap();
            let server = ServerId::new(&server).unwrap();
            let id = codec.encode(server, nonce).unwrap();
            prop_assert_eq!(id.len(), 1 + server.len() + nonce.len());
            prop_assert_eq!(usize::from(id[0]), usize::from(rotation) << 5 | (id.len() - 1));
            prop_assert_eq!(codec.decode(&id), Some(server));
        }

        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let (_, quic) = three();
            if let Some(backend) = quic.backend(&bytes) {
                prop_assert!(backend.0 < 50 && bytes[0] >> 5 != 7);
            }
        }
    }
}
