//! Parked fragments: the packet of each, and its final decision.
//!
//! The worker numbers the fragments that it parks, and the trace of a poll refers to a fragment by
//! this number (ticket). A poll has one packet: a new one, or one that was parked.

use std::time::Duration;

use super::Replay;
use super::capture::Captured;
use super::counters::Name;
use super::decision::{Decision, Verdict};
use crate::forwarding::explain::{Trace, Wait};
use crate::net::NicIndex;
use crate::xdp::steer::Steered;

/// A parked fragment.
pub(super) struct Waiting {
    index: u64,
    nic: NicIndex,
    time: Duration,
    original_len: u32,
    data: Vec<u8>,
    steered: Steered,
    /// Counters that changed on its arrival.
    moved: Vec<(Name, i64)>,
}

/// Final decision on a packet that was parked.
#[derive(Debug)]
pub struct Late {
    nic: NicIndex,
    original_len: u32,
    data: Vec<u8>,
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

impl Replay {
    /// Records that the worker parked the packet under `ticket`.
    pub(super) fn park(
        &mut self,
        ticket: u64,
        captured: &Captured<'_>,
        steered: Steered,
        moved: Vec<(Name, i64)>,
    ) -> Decision {
        let Captured { nic, time, original_len, data } = *captured;
        let (index, data) = (self.index, data.to_vec());
        let waiting = Waiting { index, nic, time, original_len, data, steered, moved };
        self.waiting.insert(ticket, waiting);
        self.bare(captured, Verdict::Parked)
    }

    /// Lets the worker process the fragments whose first fragment has arrived, one at a time.
    pub(super) fn rejoin(&mut self) {
        let nics = (0..).map(NicIndex).take(self.interfaces().len());
        nics.for_each(|nic| while !self.waiting.is_empty() && self.rejoin_one(nic) {});
    }

    /// Lets the worker process one parked fragment of this NIC; returns false if there is none.
    fn rejoin_one(&mut self, nic: NicIndex) -> bool {
        let trace = Trace::default();
        let sent = self.offline.poll(nic, &trace);
        let moved = self.counters.moved(self.offline.stats());
        let ended = trace.take_waits().into_iter().find_map(|wait| match wait {
            Wait::Ends(ticket) => self.waiting.remove(&ticket),
            Wait::Begins(_) | Wait::GivenUp(..) => None,
        });
        if let Some(waiting) = ended {
            self.end_wait(waiting, &moved, trace, sent);
            return true;
        }
        false
    }

    /// Ends the wait of fragments that the worker has dropped meanwhile, and removes their counters
    /// from `moved`.
    pub(super) fn give_up(&mut self, waits: &[Wait], moved: &mut Vec<(Name, i64)>) {
        for wait in waits {
            if let Wait::GivenUp(ticket, reason) = wait
                && let Some(waiting) = self.waiting.remove(ticket)
            {
                add(moved, [(Name::Drop(*reason), -1)]);
                let its = [(Name::Drop(*reason), 1)];
                self.end_wait(waiting, &its, Trace::default(), Vec::new());
            }
        }
    }

    fn end_wait(
        &mut self,
        waiting: Waiting,
        moved: &[(Name, i64)],
        trace: Trace,
        sent: Vec<super::Sent>,
    ) {
        let Waiting { index, nic, time, original_len, data, steered, moved: mut all } = waiting;
        add(&mut all, moved.iter().copied());
        let captured = Captured { nic, time, original_len, data: &data };
        let mut decision = self.bare(&captured, Verdict::Drop);
        decision.index = index;
        decision.ended = self.time.unwrap_or(time);
        let waited = decision.ended.saturating_sub(time).as_millis();
        let mut decision = self.reported(decision, steered, &all, trace, sent);
        let why = "a later fragment that came before the first one of its datagram";
        decision.record("fragments", format!("waited {waited} ms"), why);
        self.late.push(Late { nic, original_len, data, decision });
    }
}

/// Adds changes to earlier ones; changes that cancel out are removed.
fn add(all: &mut Vec<(Name, i64)>, moved: impl IntoIterator<Item = (Name, i64)>) {
    for (name, by) in moved {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += by,
            None => all.push((name, by)),
        }
    }
    all.retain(|(_, by)| *by != 0);
}
