//! Decision on a packet, derived from the worker's counters and trace.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::counters::Name;
use crate::forwarding::explain::{Step, Trace};
use crate::net::NicIndex;
use crate::stats::{Drop, LocalReply};
use crate::xdp::steer::Steered;

/// Fate of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Forwarded.
    Transmit,
    /// Dropped.
    Drop,
    /// Left to the kernel by the XDP program.
    Kernel,
    /// Replied to locally.
    Reply,
    /// Not replayed: the packet is not completely captured.
    Truncated,
    /// Parked: a fragment that waits for its first fragment. [`Replay::late`](super::Replay::late)
    /// returns the final decision.
    Parked,
}

impl Verdict {
    /// Returns the name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transmit => "transmit",
            Self::Drop => "drop",
            Self::Kernel => "kernel",
            Self::Reply => "reply",
            Self::Truncated => "truncated",
            Self::Parked => "parked",
        }
    }
}

/// State of the packet's flow in the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// New: the packet created a pin.
    New,
    /// The flow had a pin.
    Pinned,
    /// The packet is an ICMP error about the flow.
    Related,
    /// Unknown, also afterwards.
    None,
}

impl FlowState {
    /// Returns the name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pinned => "pinned",
            Self::Related => "related",
            Self::None => "none",
        }
    }
}

/// A frame that the worker sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// NIC that the frame left by.
    pub nic: NicIndex,
    /// Bytes of the frame.
    pub bytes: Vec<u8>,
}

/// Decision on a packet, with the reasons.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The packet's number in the capture, from 0.
    pub index: u64,
    /// Capture time, since the epoch.
    pub time: Duration,
    /// Time of the decision, since the epoch: later than `time` if the packet was parked.
    pub ended: Duration,
    /// NIC that the packet is assumed to have arrived on.
    pub interface: String,
    /// Fate of the packet.
    pub verdict: Verdict,
    /// Reason for the drop or the local reply.
    pub reason: Option<&'static str>,
    /// Name of the VIP, if known.
    pub vip: Option<String>,
    /// Name of the backend, if known.
    pub backend: Option<String>,
    /// State of the flow.
    pub flow: FlowState,
    /// Frames that the packet caused.
    pub sent: Vec<Sent>,
    /// Whether the packet's own frame is among them.
    pub own_frame: bool,
    /// Counters that the packet changed, and by how much.
    pub counters: Vec<(String, i64)>,
    /// Steps of the explanation.
    pub steps: Vec<Step>,
    /// Frames that the worker sent by itself before the packet arrived.
    pub unasked: Vec<Sent>,
}

impl Decision {
    pub(super) fn new(time: Duration, interface: String, verdict: Verdict) -> Self {
        Self {
            index: 0,
            time,
            ended: time,
            interface,
            verdict,
            reason: None,
            vip: None,
            backend: None,
            flow: FlowState::None,
            sent: Vec::new(),
            own_frame: false,
            counters: Vec::new(),
            steps: Vec::new(),
            unasked: Vec::new(),
        }
    }

    pub(super) fn record(
        &mut self,
        stage: &str,
        outcome: impl Into<String>,
        why: impl Into<String>,
    ) {
        let step = Step { stage: stage.to_owned(), outcome: outcome.into(), why: why.into() };
        self.steps.push(step);
    }

    pub(super) fn record_steering(&mut self, steered: Steered) {
        let why = match steered {
            Steered::ToVip => "its destination is a VIP, or a source of ours",
            Steered::Return => "it comes from a NAT backend, or quotes what went to one",
            Steered::Kernel | Steered::Denied | Steered::NotAllowed => return,
        };
        self.record("xdp", "to the worker", why);
    }

    /// Records the steps that the stages do not record themselves.
    pub(super) fn record_end(&mut self, reason: Option<Drop>, reply: Option<LocalReply>) {
        let name = self.place();
        match self.flow {
            FlowState::Pinned => self.record("conntrack", name, "the flow has a pin"),
            FlowState::Related => self.record("icmp", name, "the flow that the message quotes"),
            FlowState::New | FlowState::None => {}
        }
        if let Some(reason) = reason {
            self.record("drop", reason.as_str(), reason.describe().trim());
        }
        if let Some(reply) = reply {
            return self.record("reply", reply.as_str(), reply.describe().trim());
        }
        let frames = self.sent.len();
        if self.verdict == Verdict::Reply {
            let noun = if frames == 1 { "frame" } else { "frames" };
            self.record("reply", format!("{frames} {noun}"), "sent by the worker itself");
        }
    }

    /// Returns `VIP/BACKEND`, as far as known.
    pub fn place(&self) -> String {
        match (&self.vip, &self.backend) {
            (Some(vip), Some(backend)) => format!("{vip}/{backend}"),
            (Some(vip), None) => vip.clone(),
            _ => "-".to_owned(),
        }
    }

    /// Returns the document that `--json` prints, in one line. `interfaces` are the names of the
    /// NICs.
    ///
    /// # Errors
    /// None is expected.
    pub fn json(&self, interfaces: &[String]) -> serde_json::Result<String> {
        let name = |nic: NicIndex| interfaces.get(usize::from(nic.0)).map_or("", String::as_str);
        let out = self.sent.iter();
        serde_json::to_string(&Document {
            index: self.index,
            time: format!("{}.{:09}", self.time.as_secs(), self.time.subsec_nanos()),
            interface: &self.interface,
            verdict: self.verdict,
            reason: self.reason,
            vip: self.vip.as_deref(),
            backend: self.backend.as_deref(),
            flow: self.flow,
            out: out.map(|s| Out { interface: name(s.nic), length: s.bytes.len() }).collect(),
            counters: Moved(&self.counters),
        })
    }
}

#[derive(Serialize)]
struct Document<'d> {
    index: u64,
    time: String,
    interface: &'d str,
    verdict: Verdict,
    reason: Option<&'static str>,
    vip: Option<&'d str>,
    backend: Option<&'d str>,
    flow: FlowState,
    out: Vec<Out<'d>>,
    counters: Moved<'d>,
}

#[derive(Serialize)]
struct Out<'d> {
    interface: &'d str,
    length: usize,
}

/// Counter changes, serialized as one table.
struct Moved<'d>(&'d [(String, i64)]);

impl Serialize for Moved<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, by)| (name, by)))
    }
}

/// Facts derived from the counters.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Reason for the drop.
    pub(super) reason: Option<Drop>,
    /// Kind of local reply that the packet became.
    pub(super) reply: Option<LocalReply>,
    /// Whether the packet is an ICMP error that was forwarded.
    related: bool,
    /// Index of the VIP.
    pub(super) vip: Option<usize>,
    /// Index of the backend.
    pub(super) backend: Option<usize>,
    /// Whether the packet's own frame was sent.
    pub(super) own_frame: bool,
    /// Whether the worker sent segments of its own to the flow's endpoints.
    resets: bool,
    /// Whether the packet created a pin.
    pinned_now: bool,
}

impl Facts {
    pub(super) fn of(moved: &[(Name, i64)], trace: &Trace) -> Self {
        let mut facts = Self::default();
        for &(name, by) in moved.iter().filter(|(_, by)| *by > 0) {
            match name {
                Name::Drop(reason) => facts.reason = Some(reason),
                Name::LocalReply(reply) => {
                    (facts.reply, facts.own_frame) = (Some(reply), true);
                }
                Name::Worker("icmp_errors_forwarded") => facts.related = true,
                Name::Worker("transmitted") => facts.own_frame = by > 0,
                Name::Worker("resets_sent") => facts.resets = true,
                Name::Worker("flows_new" | "flows_by_hash" | "flows_by_cid") => {
                    facts.pinned_now = trace.missed();
                }
                Name::Vip(index, "packets_in" | "packets_out" | "dropped") => {
                    facts.vip = Some(index);
                }
                Name::Backend(index, "packets_in" | "packets_out" | "dropped") => {
                    facts.backend = Some(index);
                }
                _ => {}
            }
        }
        if let Some((vip, backend)) = trace.place() {
            facts.vip = Some(usize::from(vip.0));
            facts.backend = Some(usize::from(backend.0));
        }
        facts
    }

    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self { reply: Some(_), .. } | Self { resets: true, own_frame: false, .. } => {
                Verdict::Reply
            }
            Self { own_frame: true, .. } => Verdict::Transmit,
            _ => Verdict::Drop,
        }
    }

    /// Derives the flow's state: a packet with a VIP that neither missed nor is a reply without a
    /// flow has found a pin.
    pub(super) fn flow(&self, trace: &Trace) -> FlowState {
        match self.vip {
            Some(_) if self.related => FlowState::Related,
            Some(_) if self.pinned_now => FlowState::New,
            Some(_) if !trace.missed() && self.reason != Some(Drop::ReturnNoFlow) => {
                FlowState::Pinned
            }
            _ => FlowState::None,
        }
    }
}
