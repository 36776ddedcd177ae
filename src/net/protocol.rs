//! Transport protocols that a VIP can have.

use serde::{Deserialize, Serialize};

/// Transport protocol; the value is the IP protocol number (IANA), except for [`Protocol::Any`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    /// All protocols of an address, whatever their number: a flow is then all packets from a client
    /// to it, without ports. (255 is reserved by IANA; 0 marks free entries of flow tables.)
    Any = 255,
    /// TCP (RFC 9293).
    Tcp = 6,
    /// UDP (RFC 768).
    Udp = 17,
}

impl Protocol {
    /// Returns `"tcp"`, `"udp"` or `"any"`, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Returns the protocol with an IP protocol number, if it is TCP or UDP.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}
