//! Parked fragments: the packet of each, and its final decision.
//!
//! The worker numbers the fragments that it parks, and the trace of a poll refers to a fragment by
//! this number (ticket). A poll has one packet: a new one, or one that was parked.

use std::time::Duration;

use super::capture::Captured;
use super::counters::Name;
use super::decision::Decision;
use crate::net::NicIndex;
use crate::xdp::steer::Steered;

/// A parked fragment.
pub(super) struct Waiting {
    pub(super) index: u64,
    pub(super) nic: NicIndex,
    pub(super) time: Duration,
    pub(super) original_len: u32,
    pub(super) data: Vec<u8>,
    pub(super) steered: Steered,
    /// Counters that changed on its arrival.
    pub(super) moved: Vec<(Name, i64)>,
}

/// Final decision on a packet that was parked.
#[derive(Debug)]
pub struct Late {
    pub(super) nic: NicIndex,
    pub(super) original_len: u32,
    pub(super) data: Vec<u8>,
    /// The decision; its index is that of the packet.
    pub decision: Decision,
}

impl Late {
    /// Returns the packet as in the capture.
    pub fn captured(&self) -> Captured<'_> {
        let Self { nic, original_len, ref data, ref decision } = *self;
        Captured { nic, time: decision.time, original_len, data }
    }
}

/// Adds changes to earlier ones; changes that cancel out are removed.
pub(super) fn add(all: &mut Vec<(Name, i64)>, moved: impl IntoIterator<Item = (Name, i64)>) {
    for (name, by) in moved {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += by,
            None => all.push((name, by)),
        }
    }
    all.retain(|(_, by)| *by != 0);
}
