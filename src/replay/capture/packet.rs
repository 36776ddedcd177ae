//! Parts of both formats: a packet, its NIC, and the reasons to stop.

use std::time::Duration;

use pcap_parser::nom::{self, IResult};
use pcap_parser::{Linktype, PcapError};

use crate::net::NicIndex;

/// NICs of the configuration, indexed by `NicIndex`.
pub(super) struct Nics {
    pub(super) names: Vec<String>,
    /// NIC of packets without a known interface.
    pub(super) default: NicIndex,
}

impl Nics {
    /// Returns the NIC of that name, or the default.
    pub(super) fn named(&self, name: Option<&[u8]>) -> NicIndex {
        let found = (0..).zip(&self.names).find(|(_, nic)| name == Some(nic.as_bytes()));
        found.map_or(self.default, |(index, _)| NicIndex(index))
    }
}

/// Properties of a packet, without its bytes.
pub(super) struct Found {
    pub(super) nic: NicIndex,
    pub(super) time: Option<Duration>,
    pub(super) original_len: u32,
}

/// Reason why a record cannot be used.
pub(super) enum Wrong {
    Malformed(String),
    LinkType(Linktype),
}

impl From<&str> for Wrong {
    fn from(what: &str) -> Self {
        Self::Malformed(what.to_owned())
    }
}

/// Result of pcap-parser on some bytes.
pub(super) type Parsed<'b, T> = IResult<&'b [u8], T, PcapError<&'b [u8]>>;

/// Returns the number of bytes that were parsed; `None` if more are needed.
pub(super) fn len_of<T>(bytes: &[u8], parsed: Parsed<'_, T>) -> Result<Option<usize>, Wrong> {
    match parsed {
        Ok((rest, _)) => Ok(Some(bytes.len() - rest.len())),
        Err(nom::Err::Incomplete(_)) => Ok(None),
        Err(error) => Err(malformed(error)),
    }
}

pub(super) fn malformed(error: nom::Err<PcapError<&[u8]>>) -> Wrong {
    match error {
        // The record is complete by its own length.
        nom::Err::Incomplete(_) => "a block is too short for what it holds".into(),
        _ => "the lengths or numbers of a block contradict each other".into(),
    }
}

pub(super) fn check_link(link: Linktype, bits: u32) -> Result<(), Linktype> {
    let number = Linktype(link.0 & bits.cast_signed());
    if number == Linktype::ETHERNET { Ok(()) } else { Err(link) }
}
