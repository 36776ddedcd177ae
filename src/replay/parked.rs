//! Fragments that wait for their first one: which packet of the capture each is, and what becomes of it.
//!
//! The worker numbers what it parks. Whose number is gone after a poll went on, or was given up, in it.

use std::time::Duration;

use super::Replay;
use super::capture::Captured;
use super::counters::Name;
use super::decision::{Decision, Verdict};
use crate::forwarding::PortIndex;
use crate::forwarding::explain::Trace;
use crate::stats::Drop;
use crate::xdp::steer::Steered;

/// A fragment that waits.
pub(super) struct Waiting {
    index: u64,
    nic: PortIndex,
    time: Duration,
    original_len: u32,
    data: Vec<u8>,
    steered: Steered,
    /// What has moved when it came.
    moved: Vec<(Name, i64)>,
}

/// What became of a packet that had to wait.
#[derive(Debug)]
pub struct Late {
    nic: PortIndex,
    original_len: u32,
    data: Vec<u8>,
    /// What that is; its index is that of the packet.
    pub decision: Decision,
}

impl Late {
    /// The packet, as it was in the capture.
    pub fn captured(&self) -> Captured<'_> {
        let Self { nic, original_len, ref data, ref decision } = *self;
        Captured { nic, time: decision.time, original_len, data }
    }
}

impl Replay {
    /// The packet is parked, by this number.
    pub(super) fn park(
        &mut self,
        ticket: u64,
        captured: &Captured<'_>,
        steered: Steered,
        mut moved: Vec<(Name, i64)>,
    ) -> Decision {
        // What was dropped is the one that made room.
        moved.retain(|(name, _)| !matches!(name, Name::Drop(_)));
        for oldest in self.gone() {
            self.give_up(oldest, Drop::FragmentNoRoom);
        }
        let Captured { nic, time, original_len, data } = *captured;
        let (index, data) = (self.index, data.to_vec());
        let waiting = Waiting { index, nic, time, original_len, data, steered, moved };
        self.waiting.insert(ticket, waiting);
        self.bare(captured, Verdict::Parked)
    }

    /// The number of a packet that was just parked.
    pub(super) fn came(&self) -> Option<u64> {
        self.offline.parked().find(|ticket| !self.waiting.contains_key(ticket))
    }

    /// Those that wait no longer, oldest first.
    pub(super) fn gone(&mut self) -> Vec<Waiting> {
        let here: Vec<u64> = self.offline.parked().collect();
        let gone = self.waiting.extract_if(.., |ticket, _| !here.contains(ticket));
        gone.map(|(_, waiting)| waiting).collect()
    }

    /// Lets the worker take up those whose first one has come, one at a time.
    pub(super) fn rejoin(&mut self) {
        while !self.waiting.is_empty() {
            let trace = Trace::default();
            let sent = self.offline.poll(&trace);
            let moved = self.counters.moved(self.offline.stats());
            let mut gone = self.gone().into_iter();
            let Some(waiting) = gone.next() else { return };
            self.end_wait(waiting, &moved, trace, sent);
            // Of one that came by another NIC the worker has taken the next one up as well.
            for waiting in gone {
                self.end_wait(waiting, &moved, Trace::default(), Vec::new());
            }
        }
    }

    pub(super) fn give_up(&mut self, waiting: Waiting, reason: Drop) {
        self.end_wait(waiting, &[(Name::Drop(reason), 1)], Trace::default(), Vec::new());
    }

    fn end_wait(
        &mut self,
        waiting: Waiting,
        moved: &[(Name, i64)],
        trace: Trace,
        sent: Vec<super::Sent>,
    ) {
        let Waiting { index, nic, time, original_len, data, steered, moved: mut all } = waiting;
        for &(name, by) in moved {
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += by,
                None => all.push((name, by)),
            }
        }
        let captured = Captured { nic, time, original_len, data: &data };
        let mut decision = self.bare(&captured, Verdict::Drop);
        decision.index = index;
        decision.ended = self.time.unwrap_or(time);
        let waited = decision.ended.saturating_sub(time).as_millis();
        let mut decision = self.told(decision, steered, &all, trace, sent);
        let why = "a later fragment that came before the first one of its datagram";
        decision.tell("fragments", format!("waited {waited} ms"), why);
        self.late.push(Late { nic, original_len, data, decision });
    }
}
