//! The replay of one packet after another.

use std::collections::BTreeMap;
use std::time::Duration;

use super::capture::Captured;
use super::counters::{Counters, Name};
use super::decision::{Decision, Facts, Sent, Verdict};
use super::error::ReplayError;
use super::offline::Offline;
use super::parked::{Late, Waiting, add};
use super::setup::{Setup, setup};
use crate::config::{Config, Neighbours};
use crate::datapath::fragments::PATIENCE;
use crate::forwarding::explain::{Step, Trace, Wait};
use crate::net::NicIndex;
use crate::stats::{Drop, LocalReply, WorkerStats};
use crate::units::{TICK_MS, Ticks};
use crate::xdp::steer::{SteerModel, Steered};

/// Longest step of the clock between two packets. All time-outs have expired by then, and the clock
/// of the data path does not reach further than 248 days.
const LONGEST_GAP: Duration = Duration::from_secs(31 * 24 * 3600);

/// Replays packets, in the order of their capture.
pub struct Replay {
    steer: SteerModel,
    /// MAC of each NIC; `None`: unknown, so every unicast frame counts as addressed to the NIC.
    nic_macs: Vec<Option<[u8; 6]>>,
    offline: Offline,
    counters: Counters,
    index: u64,
    /// Time of the previous packet, since the epoch.
    time: Option<Duration>,
    /// Time since the first packet.
    elapsed: Duration,
    /// Parked fragments, by their tickets.
    waiting: BTreeMap<u64, Waiting>,
    /// Decisions on fragments that are no longer parked.
    late: Vec<Late>,
}

impl Replay {
    /// Creates a replay. Without `neighbours` every backend is up and has an invented MAC, see
    /// [`setup`].
    ///
    /// # Errors
    /// [`ReplayError`]: too many VIPs or backends, or no memory.
    pub fn new(config: &Config, neighbours: Option<&Neighbours>) -> Result<Self, ReplayError> {
        let Setup { steer, nic_macs, offline, names } = setup(config, neighbours)?;
        let counters = Counters::new(names, offline.stats());
        let (index, time, elapsed) = (0, None, Duration::ZERO);
        let (waiting, late) = (BTreeMap::new(), Vec::new());
        Ok(Self { steer, nic_macs, offline, counters, index, time, elapsed, waiting, late })
    }

    /// Returns the names of the NICs, by `NicIndex`.
    pub fn interfaces(&self) -> &[String] {
        &self.counters.names().nics
    }

    /// Returns the worker's counters.
    pub fn stats(&self) -> &WorkerStats {
        self.offline.stats()
    }

    /// Returns the number of frames of the worker and of the rings: a constant.
    pub fn frames(&self) -> usize {
        self.offline.frames()
    }

    /// Replays the next packet. The verdict on a parked fragment is [`Verdict::Parked`];
    /// [`late`](Self::late) returns the final decisions on such fragments.
    pub fn packet(&mut self, captured: &Captured<'_>) -> Decision {
        let unasked = self.advance(captured.time);
        let mut decision = self.decide(captured);
        (decision.index, decision.unasked) = (self.index, unasked);
        self.index += 1;
        self.rejoin();
        decision
    }

    /// Returns the final decisions on parked fragments since the last call.
    pub fn late(&mut self) -> Vec<Late> {
        std::mem::take(&mut self.late)
    }

    /// Advances the clock after the last packet until no fragment is parked.
    pub fn end(&mut self) -> Vec<Late> {
        let patience = u64::from(PATIENCE.0 + 1) * TICK_MS;
        if let (false, Some(time)) = (self.waiting.is_empty(), self.time) {
            self.advance(time + Duration::from_millis(patience));
        }
        self.late()
    }

    /// Advances the clock to `time`. Returns frames that no packet caused: probes of flows that a
    /// policy terminates.
    fn advance(&mut self, time: Duration) -> Vec<Sent> {
        let before = self.time.unwrap_or(time);
        // For packets that were captured out of order, the later time counts.
        self.time = Some(before.max(time));
        self.elapsed += time.saturating_sub(before).min(LONGEST_GAP);
        let tick_ns = u128::from(TICK_MS) * 1_000_000;
        #[expect(clippy::cast_possible_truncation, reason = "a point wraps by design")]
        let now = Ticks((self.elapsed.as_nanos() / tick_ns) as u32);
        if now == self.offline.now() {
            return Vec::new();
        }
        let trace = Trace::default();
        let sent = self.offline.advance(now, &trace);
        // These changes belong to no packet, or to fragments that were parked for too long.
        let mut moved = self.counters.moved(self.offline.stats());
        self.give_up(&trace.take_waits(), &mut moved);
        sent
    }

    fn decide(&mut self, captured: &Captured<'_>) -> Decision {
        let Captured { nic, original_len, data, .. } = *captured;
        if data.len() < original_len as usize {
            let why = format!("{} of {original_len} bytes were captured", data.len());
            return self.untouched(captured, Verdict::Truncated, "truncated_capture", why);
        }
        let steered = self.steer.decide(self.mac_for(nic, data), data);
        if steered == Steered::Kernel {
            let name = Name::Nic(usize::from(nic.0), "passed");
            let mut decision = self.bare(captured, Verdict::Kernel);
            decision.counters.push((self.counters.names().text(name), 1));
            decision.record("xdp", "left to the kernel", self.why_kernel(nic, data));
            return decision;
        }
        if let Some((reason, why)) = steered.dropped() {
            let name = Name::Nic(usize::from(nic.0), reason);
            let mut decision = self.bare(captured, Verdict::Drop);
            decision.reason = Some(reason);
            decision.counters.push((self.counters.names().text(name), 1));
            decision.record("xdp", format!("dropped: {reason}"), why);
            return decision;
        }
        let trace = Trace::default();
        let Some(sent) = self.offline.packet(nic, data, &trace) else {
            let why =
                format!("{} bytes do not fit into a frame of [workers] frame_size", data.len());
            return self.untouched(captured, Verdict::Drop, "longer_than_a_frame", why);
        };
        let mut moved = self.counters.moved(self.offline.stats());
        let waits = trace.take_waits();
        // Fragments that were dropped to make room for this one.
        self.give_up(&waits, &mut moved);
        for wait in waits {
            if let Wait::Begins(ticket) = wait {
                return self.park(ticket, captured, steered, moved);
            }
        }
        let decision = self.bare(captured, Verdict::Drop);
        self.reported(decision, steered, &moved, trace, sent)
    }

    /// Builds the decision on a packet that changed the counters by `moved`.
    fn reported(
        &self,
        mut decision: Decision,
        steered: Steered,
        moved: &[(Name, i64)],
        trace: Trace,
        sent: Vec<Sent>,
    ) -> Decision {
        let facts = Facts::of(moved, &trace);
        let names = self.counters.names();
        let reply = facts.reply.map(LocalReply::as_str);
        decision.verdict = facts.verdict();
        decision.reason = facts.reason.map(Drop::as_str).or(reply);
        decision.vip = facts.vip.and_then(|vip| names.vip(vip)).map(str::to_owned);
        decision.backend = facts.backend.and_then(|index| names.backend(index)).map(str::to_owned);
        decision.flow = facts.flow(&trace);
        decision.own_frame = facts.own_frame;
        decision.counters = moved.iter().map(|(name, by)| (names.text(*name), *by)).collect();
        let nic = self.interfaces().iter().position(|name| *name == decision.interface);
        let steered_name = names.text(Name::Nic(nic.unwrap_or_default(), "steered"));
        decision.counters.push((steered_name, 1));
        decision.sent = sent;
        decision.record_steering(steered);
        decision.steps.extend(trace.into_steps());
        decision.record_end(facts.reason, facts.reply);
        decision
    }

    /// Returns the MAC that the XDP program of a NIC accepts.
    fn mac_for(&self, nic: NicIndex, data: &[u8]) -> [u8; 6] {
        let known = self.nic_macs.get(usize::from(nic.0)).copied().flatten();
        let destination =
            data.first_chunk().copied().filter(|[first, ..]: &[u8; 6]| first & 1 == 0);
        known.or(destination).unwrap_or_default()
    }

    /// Returns the reason why the XDP program leaves a packet to the kernel.
    fn why_kernel(&self, nic: NicIndex, data: &[u8]) -> &'static str {
        let known = self.nic_macs.get(usize::from(nic.0)).copied().flatten();
        match data.first_chunk::<6>() {
            // A group address, such as ARP's broadcast, belongs to no NIC.
            Some(to) if to[0] & 1 == 0 && known.is_some_and(|mac| mac != *to) => {
                "its destination MAC is not that of the NIC ([[nic]] mac in the neighbours file)"
            }
            _ => "for no VIP or source of ours, and from no NAT backend",
        }
    }

    fn bare(&self, captured: &Captured<'_>, verdict: Verdict) -> Decision {
        let interface = self.interfaces().get(usize::from(captured.nic.0));
        Decision::new(captured.time, interface.cloned().unwrap_or_default(), verdict)
    }

    /// Builds the decision on a packet that neither the XDP program nor the worker processed.
    fn untouched(
        &self,
        captured: &Captured<'_>,
        verdict: Verdict,
        reason: &'static str,
        why: String,
    ) -> Decision {
        let mut decision = self.bare(captured, verdict);
        decision.reason = Some(reason);
        let step = Step { stage: "capture".to_owned(), outcome: reason.to_owned(), why };
        decision.steps.push(step);
        decision
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

    fn end_wait(&mut self, waiting: Waiting, moved: &[(Name, i64)], trace: Trace, sent: Vec<Sent>) {
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
