//! VLAN tags: one (802.1Q), or two (802.1ad, QinQ).
//!
//! ```text
//! one   8100:2 pcp:3 dei:1 vlan:12
//! two   88a8:2 pcp:3 dei:1 vlan:12  8100:2 pcp:3 dei:1 vlan:12   or 8100 twice (older switches)
//! ```

use std::fmt;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

/// Tag protocol identifiers.
pub mod tpid {
    /// 802.1Q, a customer tag.
    pub const CUSTOMER: u16 = 0x8100;
    /// 802.1ad, a service (provider) tag.
    pub const SERVICE: u16 = 0x88a8;
}

/// Length of a tag in bytes.
pub const TAG_LEN: usize = 4;
/// The VLAN bits of a tag's value; the rest is its priority.
const VLAN: u16 = 0x0fff;

/// The tags of a frame, with their priorities; or those of a next hop, with priorities of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tags {
    /// Value of the only tag, or of the inner one: priority and VLAN.
    pub inner: u16,
    /// The outer tag of two.
    pub outer: Outer,
}

/// The outer tag: its value, by its protocol identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outer {
    /// There is only one tag.
    None,
    /// A tag of [`tpid::SERVICE`].
    Service(u16),
    /// A tag of [`tpid::CUSTOMER`].
    Customer(u16),
}

impl Outer {
    /// Returns the tag's value.
    #[inline]
    pub const fn value(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Service(value) | Self::Customer(value) => Some(value),
        }
    }

    /// Applies `to` to the value.
    #[inline]
    fn map(self, to: impl FnOnce(u16) -> u16) -> Self {
        match self {
            Self::None => Self::None,
            Self::Service(value) => Self::Service(to(value)),
            Self::Customer(value) => Self::Customer(to(value)),
        }
    }

    fn bytes(self) -> Option<[u8; TAG_LEN]> {
        match self {
            Self::None => None,
            Self::Service(value) => Some(tag(tpid::SERVICE, value)),
            Self::Customer(value) => Some(tag(tpid::CUSTOMER, value)),
        }
    }
}

fn tag(tpid: u16, value: u16) -> [u8; TAG_LEN] {
    let ([t0, t1], [v0, v1]) = (tpid.to_be_bytes(), value.to_be_bytes());
    [t0, t1, v0, v1]
}

// Every packet of a batch has room for them.
const _: () = assert!(size_of::<Option<Tags>>() == 6);

impl From<u16> for Tags {
    /// One tag.
    fn from(inner: u16) -> Self {
        Self { inner, outer: Outer::None }
    }
}

impl Tags {
    /// Creates two tags, the outer one of [`tpid::SERVICE`].
    pub const fn two(outer: u16, inner: u16) -> Self {
        Self { inner, outer: Outer::Service(outer) }
    }

    /// Removes the priorities; `None` if that leaves nothing (a tag with VLAN 0 is only a priority,
    /// 802.1Q 9.6).
    #[inline]
    pub fn vlans(self) -> Option<Self> {
        let inner = self.inner & VLAN;
        let outer = self.outer.map(|outer| outer & VLAN);
        (outer != Outer::None || inner != 0).then_some(Self { inner, outer })
    }

    /// Returns the length of the tags in bytes.
    #[inline]
    pub const fn len(self) -> usize {
        if matches!(self.outer, Outer::None) { TAG_LEN } else { 2 * TAG_LEN }
    }

    /// Always false: there is at least one tag.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Returns tags with these VLANs and the priorities of a frame's tags: the inner tag gets that
    /// of the frame's only or inner tag, the outer one that of its outer or only tag.
    pub fn with_priorities_of(self, frame: Option<Self>) -> Self {
        let Some(frame) = frame else { return self };
        let with = |vlan: u16, tag: u16| vlan & VLAN | tag & !VLAN;
        let above = frame.outer.value().unwrap_or(frame.inner);
        let outer = self.outer.map(|vlan| with(vlan, above));
        Self { inner: with(self.inner, frame.inner), outer }
    }

    /// Returns the tags as they are in a frame.
    pub fn bytes(self) -> ArrayVec<u8, { 2 * TAG_LEN }> {
        let inner = tag(tpid::CUSTOMER, self.inner);
        self.outer.bytes().into_iter().chain([inner]).flatten().collect()
    }
}

impl fmt::Display for Tags {
    /// Writes `100`, or `100.200` with the outer one first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer.value() {
            write!(f, "{}.", outer & VLAN)?;
        }
        write!(f, "{}", self.inner & VLAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words() {
        let two = Tags::two(100, 200);
        for (tags, bytes, text) in [
            (Tags::from(100), &[0x81, 0, 0, 100][..], "100"),
            (two, &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 200], "100.200"),
            (
                Tags { outer: Outer::Customer(100), ..two },
                &[0x81, 0, 0, 100, 0x81, 0, 0, 200],
                "100.200",
            ),
        ] {
            assert_eq!((tags.bytes().as_slice(), tags.to_string().as_str()), (bytes, text));
            assert_eq!((tags.len(), tags.is_empty()), (bytes.len(), false));
        }
    }

    #[test]
    fn priorities_stay() {
        let (one, two) = (Tags::from(0xe001), Tags::two(0x6001, 0xa002));
        for (frame, to, expected) in [
            (None, Tags::from(9), Tags::from(9)),
            (Some(one), Tags::from(9), Tags::from(0xe009)),
            (Some(one), Tags::two(8, 9), Tags::two(0xe008, 0xe009)),
            (Some(two), Tags::two(8, 9), Tags::two(0x6008, 0xa009)),
            (Some(two), Tags::from(9), Tags::from(0xa009)),
        ] {
            assert_eq!(to.with_priorities_of(frame), expected, "{frame:?} {to:?}");
        }
        assert_eq!(two.vlans(), Some(Tags::two(1, 2)));
        assert_eq!((one.vlans(), Tags::from(0xe000).vlans()), (Some(Tags::from(1)), None));
    }
}
