//! Asks: the question which backend has the socket of a TCP packet, and its answer.
//!
//! A box without the pin of a flow sends the packet as GUE to a list of backends, its *hops*. The
//! program of `holdfast backend` looks the flow up there (xdp/backend.bpf.c): a backend that has it
//! delivers the packet, and answers the box; another one passes the packet on to the next hop.
//!
//! ```text
//! IP  UDP  GUE:4   magic:4 next:1 count:1 family:1 flags:1   box:4|16   hop:4|16 * count   tag:8   inner packet
//! ```
//!
//! Between the GUE header and the inner packet is GUE's private data (variant 0,
//! draft-ietf-intarea-gue-09 3.2): a kernel without the program skips it, and decapsulates the packet
//! (Linux: net/ipv4/fou_core.c, `gue_udp_recv`). An answer is the ask as it came, with another magic
//! and tag, from the backend's address, and with the first bytes of the inner packet only.
//!
//! A *hello* asks whether the program is there and knows a VIP. It is the payload of a UDP packet of the
//! kernel, with an address of 16 bytes (an IPv4 address is mapped); its answer has the same length:
//!
//! ```text
//! UDP  GUE:4 (protocol 59)  magic:4 0:1 0:1 family:1 flags:1  VIP:16  tag:8
//! ```
//!
//! The tag is SipHash-2-4 of all of it but `next`, of the minute, and of the flow: without the key of
//! the fleet, neither can backends be made to send packets, nor can a flow be pinned.

use std::hash::Hasher as _;
use std::time::SystemTime;

use arrayvec::ArrayVec;
use siphasher::sip::SipHasher24;

use super::headers::protocol;
use crate::net::{Address, Family, FleetKey, FlowKey, Protocol};

/// Most hops of an ask over IPv4 or IPv6: GUE's length field has room for 31 words.
pub const MAX_HOPS: usize = 16;
const MAX_HOPS_V6: usize = 5;

const ASK: u32 = 0x6866_4131;
const OWNER: u32 = 0x6866_4f31;
const HELLO: u32 = 0x6866_4831;
const WELCOME: u32 = 0x6866_5731;
/// 4-byte words of a hello's private data.
const HELLO_WORDS: u8 = 8;
/// Flag of the answer to a hello: the program was loaded without the VIP.
const VIP_UNKNOWN: u8 = 1;
const GUE_LEN: usize = 4;
const _: () = assert!(HELLO_WORDS as usize * 4 == HEAD + 16 + TAG);
const NOWHERE: Address = Address { high: 0, low: 0 };
/// Flag: the packet is cut off, and only answered.
const PROBE: u8 = 1;
/// Flag: other backends are asked about the packet, too, so that the last hop does not deliver it.
const PART: u8 = 2;

const HEAD: usize = 8;
const TAG: usize = 8;

/// Most hops to backends of this family.
pub const fn most_hops(family: Family) -> usize {
    if family.is_v4() { MAX_HOPS } else { MAX_HOPS_V6 }
}

/// Length of the private data in bytes.
pub const fn len(family: Family, hops: usize) -> usize {
    HEAD + (1 + hops) * address_len(family) + TAG
}

const fn address_len(family: Family) -> usize {
    if family.is_v4() { 4 } else { 16 }
}

/// A question which of several backends has a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Address of this box, for the answer; of the hops' family.
    pub asker: Address,
    /// Backends in the order in which they are asked, the first one included.
    pub hops: ArrayVec<Address, MAX_HOPS>,
    /// Whether the packet is cut off: it is answered, and not delivered.
    pub is_probe: bool,
    /// Whether others are asked, too: if no hop has the flow, none delivers the packet.
    pub is_part: bool,
}

/// Time as a tag has it, in minutes since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minute(pub u64);

impl Minute {
    /// The present one.
    #[expect(clippy::disallowed_methods, reason = "all hosts of a fleet have this clock in common")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs() / 60)
    }

    /// The minutes of which tags count.
    const fn around(self) -> [Self; 3] {
        let Self(minute) = self;
        [Self(minute), Self(minute.wrapping_sub(1)), Self(minute.wrapping_add(1))]
    }
}

impl Ask {
    fn family(&self) -> Family {
        self.asker.family()
    }

    fn head(&self, magic: u32, next: u8) -> [u8; HEAD] {
        let [m0, m1, m2, m3] = magic.to_be_bytes();
        let count = u8::try_from(self.hops.len()).unwrap_or(u8::MAX);
        let family = if self.family().is_v4() { 4 } else { 6 };
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let flags = flag(self.is_probe, PROBE) | flag(self.is_part, PART);
        [m0, m1, m2, m3, next, count, family, flags]
    }

    /// Writes the private data into `to`, which has the length of [`len`]. Returns false if it has
    /// not, or there are too many hops.
    #[must_use]
    pub fn write(&self, to: &mut [u8], flow: &FlowKey, key: &FleetKey, minute: Minute) -> bool {
        let family = self.family();
        if self.hops.len() > most_hops(family) || to.len() != len(family, self.hops.len()) {
            return false;
        }
        let tag = tag(key, minute, &self.head(ASK, 0), self.asker, flow, &self.hops).to_le_bytes();
        let mut bytes = ArrayVec::<u8, { 31 * 4 }>::new();
        // The first hop is the destination of the packet.
        bytes.extend(self.head(ASK, 1));
        let addresses = [self.asker].into_iter().chain(self.hops.iter().copied());
        for address in addresses {
            match family {
                Family::V4 => bytes.extend(address.v4_octets()),
                Family::V6 => bytes.extend(address.octets()),
            }
        }
        bytes.extend(tag);
        to.copy_from_slice(&bytes);
        true
    }
}

/// Length of a hello, and of its answer, as the payload of a UDP packet.
pub const HELLO_LEN: usize = GUE_LEN + HEAD + 16 + TAG;

/// Returns the question to the program of a backend whether it is there and knows `vip`, as the
/// payload of a UDP packet from `asker`, whatever its family.
pub fn hello(
    asker: Address,
    vip: Address,
    FleetKey(key): &FleetKey,
    minute: Minute,
) -> [u8; HELLO_LEN] {
    let head = hello_head(HELLO, 0, asker.family());
    let tag = tag(&FleetKey(*key), minute, &head, asker, &greeted(NOWHERE, vip), &[]);
    let mut bytes = ArrayVec::<u8, HELLO_LEN>::new();
    bytes.extend([HELLO_WORDS, protocol::NO_NEXT_HEADER, 0, 0]);
    bytes.extend(head);
    bytes.extend(vip.octets());
    bytes.extend(tag.to_le_bytes());
    bytes.into_inner().unwrap_or([0; HELLO_LEN])
}

/// What the program of a backend has answered to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Welcome {
    /// It can be asked for flows of the VIP.
    Ready,
    /// It was loaded without the VIP.
    VipUnknown,
}

/// Reads the payload of a UDP packet from `owner`; `None` if it is no right answer to a hello of
/// `asker` about `vip`, within the last minute or two, with one of these keys.
pub fn welcome(
    payload: &[u8],
    (asker, vip, owner): (Address, Address, Address),
    keys: &[FleetKey],
    now: Minute,
) -> Option<Welcome> {
    let payload: &[u8; HELLO_LEN] = payload.try_into().ok()?;
    let head = payload.get(GUE_LEN..)?.first_chunk::<HEAD>()?;
    let [.., flags] = *head;
    let welcome = if flags & VIP_UNKNOWN == 0 { Welcome::Ready } else { Welcome::VipUnknown };
    let is_right = |head: &[u8; HEAD]| {
        let flow = greeted(owner, vip);
        let found = u64::from_le_bytes(*payload.last_chunk()?);
        let tags = keys
            .iter()
            .flat_map(|key| now.around().map(|minute| tag(key, minute, head, asker, &flow, &[])));
        Some(tags.into_iter().any(|tag| tag == found))
    };
    let expected = hello_head(WELCOME, flags, asker.family());
    (*head == expected && is_right(head)?).then_some(welcome)
}

fn hello_head(magic: u32, flags: u8, family: Family) -> [u8; HEAD] {
    let [m0, m1, m2, m3] = magic.to_be_bytes();
    [m0, m1, m2, m3, 0, 0, if family.is_v4() { 4 } else { 6 }, flags]
}

/// In the place of a flow: the VIP, and who answers.
const fn greeted(owner: Address, vip: Address) -> FlowKey {
    FlowKey { client: owner, vip, client_port: 0, vip_port: 0, protocol: Protocol::Tcp }
}

/// The private data of an answer, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    head: [u8; HEAD],
    asker: Address,
    tag: u64,
}

impl Answer {
    /// Reads the private data of a GUE packet; `None` if it is no answer over this family.
    pub fn read(private: &[u8], family: Family) -> Option<Self> {
        let (head, rest) = private.split_first_chunk::<HEAD>()?;
        let [m0, m1, m2, m3, _, count, version, _] = *head;
        let is_v4 = match version {
            4 => true,
            6 => false,
            _ => return None,
        };
        let whole = private.len() == len(family, usize::from(count));
        if u32::from_be_bytes([m0, m1, m2, m3]) != OWNER || is_v4 != family.is_v4() || !whole {
            return None;
        }
        let asker = match family {
            Family::V4 => Address::from_v4(*rest.first_chunk()?),
            Family::V6 => Address::from_v6(*rest.first_chunk()?),
        };
        let tag = u64::from_le_bytes(*rest.last_chunk()?);
        let mut head = *head;
        head[4] = 0;
        Some(Self { head, asker, tag })
    }

    /// Whether the backend with the address `owner` has answered about this flow, within the last
    /// minute or two, with one of these keys.
    pub fn is_by(&self, owner: Address, flow: &FlowKey, keys: &[FleetKey], now: Minute) -> bool {
        let is_right = |key: &FleetKey| {
            now.around()
                .into_iter()
                .any(|minute| tag(key, minute, &self.head, self.asker, flow, &[owner]) == self.tag)
        };
        keys.iter().any(is_right)
    }
}

/// SipHash-2-4 of a message with its minute and flow; addresses are IPv4-mapped.
fn tag(
    FleetKey(key): &FleetKey,
    Minute(minute): Minute,
    head: &[u8; HEAD],
    asker: Address,
    flow: &FlowKey,
    last: &[Address],
) -> u64 {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(head);
    hasher.write(&minute.to_le_bytes());
    for address in [asker, flow.client, flow.vip] {
        hasher.write(&address.octets());
    }
    hasher.write(&flow.client_port.to_be_bytes());
    hasher.write(&flow.vip_port.to_be_bytes());
    hasher.write(&[0; 4]);
    last.iter().for_each(|address| hasher.write(&address.octets()));
    hasher.finish()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    const KEY: FleetKey = FleetKey([7; 16]);
    const NOW: Minute = Minute(30_000_000);

    fn address(family: Family, last: u8) -> Address {
        match family {
            Family::V4 => Address::from_v4([198, 18, 1, last]),
            Family::V6 => Address::from_v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        }
    }

    fn flow(family: Family) -> FlowKey {
        let protocol = Protocol::Tcp;
        let (client, vip) = (address(family, 9), address(family, 20));
        FlowKey { client, vip, client_port: 40_000, vip_port: 80, protocol }
    }

    fn ask(family: Family, hops: u8) -> Ask {
        let hops = (0..hops).map(|hop| address(family, 100 + hop)).collect();
        Ask { asker: address(family, 1), hops, is_probe: false, is_part: false }
    }

    fn written(ask: &Ask, flow: &FlowKey) -> Vec<u8> {
        let mut bytes = vec![0; len(ask.family(), ask.hops.len())];
        assert!(ask.write(&mut bytes, flow, &KEY, NOW));
        bytes
    }

    #[test]
    fn an_ask_has_the_length_that_gue_can_state() {
        for family in [Family::V4, Family::V6] {
            let most = most_hops(family);
            assert!(len(family, most) <= 31 * 4 && len(family, most).is_multiple_of(4));
            let bytes = written(&ask(family, u8::try_from(most).unwrap()), &flow(family));
            assert_eq!(bytes[..4], *b"hfA1");
            assert_eq!(usize::from(bytes[5]), most);
            let few = ask(family, 2);
            for len in 0..len(family, 2) {
                assert!(!few.write(&mut vec![0; len], &flow(family), &KEY, NOW), "{len}");
            }
        }
        let many = ask(Family::V6, 6);
        assert!(!many.write(&mut [0; 128], &flow(Family::V6), &KEY, NOW));
    }

    #[test]
    fn an_answer_is_believed_for_its_backend_flow_minute_and_key_only() {
        for family in [Family::V4, Family::V6] {
            let (asked, flow, owner) = (ask(family, 2), flow(family), address(family, 101));
            let mut bytes = written(&asked, &flow);
            assert_eq!(Answer::read(&bytes, family), None, "an ask is no answer");
            // As the backend's program does it.
            bytes[..4].copy_from_slice(b"hfO1");
            bytes[4] = 2;
            let head = asked.head(OWNER, 0);
            let right = tag(&KEY, NOW, &head, asked.asker, &flow, &[owner]);
            let at = bytes.len() - TAG;
            bytes[at..].copy_from_slice(&right.to_le_bytes());
            let answer = Answer::read(&bytes, family).unwrap();
            let (other, stale) = (FleetKey([8; 16]), |by| Minute(NOW.0.wrapping_add(by)));
            assert!(answer.is_by(owner, &flow, &[other, KEY], stale(1)));
            assert!(answer.is_by(owner, &flow, &[KEY], stale(u64::MAX)));
            assert!(!answer.is_by(owner, &flow, &[KEY], stale(2)), "an old one");
            assert!(!answer.is_by(owner, &flow, &[other], NOW), "of another fleet");
            assert!(!answer.is_by(address(family, 100), &flow, &[KEY], NOW), "of another backend");
            let port = FlowKey { client_port: 40_001, ..flow };
            assert!(!answer.is_by(owner, &port, &[KEY], NOW), "of another flow");
            for cut in 0..bytes.len() {
                assert_eq!(Answer::read(&bytes[..cut], family), None, "{cut}");
            }
        }
    }

    /// The answer of a program to a hello.
    fn answered(hello: &[u8; HELLO_LEN], flags: u8, owner: Address, key: &FleetKey) -> Vec<u8> {
        let mut bytes = hello.to_vec();
        bytes[4..8].copy_from_slice(&WELCOME.to_be_bytes());
        bytes[11] = flags;
        let (asker, vip) = (address(Family::V4, 1), address(Family::V4, 20));
        let head = bytes[4..12].first_chunk::<HEAD>().unwrap();
        let tag = tag(key, NOW, head, asker, &greeted(owner, vip), &[]);
        bytes[28..].copy_from_slice(&tag.to_le_bytes());
        bytes
    }

    #[test]
    fn a_hello_is_answered_by_the_backend_that_it_went_to() {
        let (asker, vip) = (address(Family::V4, 1), address(Family::V4, 20));
        let (owner, other) = (address(Family::V4, 30), address(Family::V4, 31));
        let hello = hello(asker, vip, &KEY, NOW);
        assert_eq!(hello[..12], *b"\x08\x3b\0\0hfH1\0\0\x04\0");
        let who = (asker, vip, owner);
        let keys = [FleetKey([1; 16]), KEY];
        for (flags, welcomed) in [(0, Welcome::Ready), (VIP_UNKNOWN, Welcome::VipUnknown)] {
            let answer = answered(&hello, flags, owner, &KEY);
            for minute in [29_999_999, 30_000_000, 30_000_001] {
                assert_eq!(welcome(&answer, who, &keys, Minute(minute)), Some(welcomed));
            }
            assert_eq!(welcome(&answer, who, &keys, Minute(30_000_002)), None, "too late");
            assert_eq!(welcome(&answer, who, &keys[..1], NOW), None, "another key");
            assert_eq!(welcome(&answer, (asker, vip, other), &keys, NOW), None, "another backend");
            assert_eq!(welcome(&answer, (asker, other, owner), &keys, NOW), None, "another VIP");
            for len in 0..answer.len() {
                assert_eq!(welcome(&answer[..len], who, &keys, NOW), None);
            }
            for at in 4..answer.len() {
                let mut wrong = answer.clone();
                wrong[at] ^= 2;
                if !(12..28).contains(&at) {
                    assert_eq!(welcome(&wrong, who, &keys, NOW), None, "byte {at}");
                }
            }
        }
        assert_eq!(welcome(&hello, who, &keys, NOW), None, "the hello itself");
    }
}
