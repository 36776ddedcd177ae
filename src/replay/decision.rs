//! What became of a packet, read off what the worker counted and told.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::counters::Name;
use crate::forwarding::explain::{Step, Trace};
use crate::net::NicIndex;
use crate::stats::{Drop, LocalReply};
use crate::xdp::steer::Steered;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was forwarded.
    Transmit,
    /// It was dropped.
    Drop,
    /// The XDP program leaves it to the kernel.
    Kernel,
    /// It was answered.
    Reply,
    /// It was not replayed: the capture does not have all of it.
    Truncated,
    /// None yet: a fragment that waits for its first one, of which [`Replay::late`](super::Replay::late)
    /// tells more.
    Parked,
}

impl Verdict {
    /// As in JSON.
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

/// What the worker knew of the packet's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// The packet was the first of it: it left a pin.
    New,
    /// It had a pin.
    Pinned,
    /// The packet is an ICMP error about it.
    Related,
    /// Nothing, also afterwards.
    None,
}

impl FlowState {
    /// As in JSON.
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
    /// The NIC that it left by.
    pub nic: NicIndex,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What became of a packet, and why.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The packet's number in the capture, from 0.
    pub index: u64,
    /// When it was captured, since the epoch.
    pub time: Duration,
    /// When that became of it: later, if it had to wait.
    pub ended: Duration,
    /// The NIC that it is taken to have come by.
    pub interface: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was dropped, or answered.
    pub reason: Option<&'static str>,
    /// Name of its VIP, once that was known.
    pub vip: Option<String>,
    /// Name of its backend, once that was known.
    pub backend: Option<String>,
    /// What was known of its flow.
    pub flow: FlowState,
    /// Frames that were sent because of it.
    pub sent: Vec<Sent>,
    /// Whether the packet's own frame is among them.
    pub own_frame: bool,
    /// Counters that moved because of it, and by how much.
    pub counters: Vec<(String, i64)>,
    /// Each step of why.
    pub steps: Vec<Step>,
    /// What the worker sent of itself before the packet came.
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

    pub(super) fn tell(&mut self, stage: &str, outcome: impl Into<String>, why: impl Into<String>) {
        let step = Step { stage: stage.to_owned(), outcome: outcome.into(), why: why.into() };
        self.steps.push(step);
    }

    pub(super) fn tell_steering(&mut self, steered: Steered) {
        let why = match steered {
            Steered::ToVip => "its destination is a VIP, or a source of ours",
            Steered::Return => "it comes from a NAT backend, or quotes what went to one",
            Steered::Kernel => return,
        };
        self.tell("xdp", "to the worker", why);
    }

    /// Tells what the stages do not tell by themselves.
    pub(super) fn tell_end(&mut self, reason: Option<Drop>, answer: Option<LocalReply>) {
        let name = self.place();
        match self.flow {
            FlowState::Pinned => self.tell("conntrack", name, "the flow has a pin"),
            FlowState::Related => self.tell("icmp", name, "the flow that the message quotes"),
            FlowState::New | FlowState::None => {}
        }
        if let Some(reason) = reason {
            self.tell("drop", reason.as_str(), reason.describe().trim());
        }
        if let Some(answer) = answer {
            return self.tell("reply", answer.as_str(), answer.describe().trim());
        }
        let frames = self.sent.len();
        if self.verdict == Verdict::Reply {
            let noun = if frames == 1 { "frame" } else { "frames" };
            self.tell("reply", format!("{frames} {noun}"), "sent by the worker itself");
        }
    }

    /// `VIP/BACKEND`, as far as known.
    pub fn place(&self) -> String {
        match (&self.vip, &self.backend) {
            (Some(vip), Some(backend)) => format!("{vip}/{backend}"),
            (Some(vip), None) => vip.clone(),
            _ => "-".to_owned(),
        }
    }

    /// The document that `--json` prints, in one line. `interfaces` are the names of the NICs.
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

/// As one table.
struct Moved<'d>(&'d [(String, i64)]);

impl Serialize for Moved<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, by)| (name, by)))
    }
}

/// What the counters say.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Why it was dropped.
    pub(super) reason: Option<Drop>,
    /// What it was made, to be its own answer.
    pub(super) answer: Option<LocalReply>,
    /// It is an ICMP error, which was forwarded.
    related: bool,
    /// Index of its VIP.
    pub(super) vip: Option<usize>,
    /// Index of its backend.
    pub(super) backend: Option<usize>,
    /// The packet's own frame was sent.
    pub(super) own_frame: bool,
    /// Segments of the worker's own were sent to its ends.
    resets: bool,
    /// It left a pin.
    pinned_now: bool,
}

impl Facts {
    pub(super) fn of(moved: &[(Name, i64)], trace: &Trace) -> Self {
        let mut facts = Self::default();
        for &(name, by) in moved.iter().filter(|(_, by)| *by > 0) {
            match name {
                Name::Drop(reason) => facts.reason = Some(reason),
                Name::LocalReply(answer) => {
                    (facts.answer, facts.own_frame) = (Some(answer), true);
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
            Self { answer: Some(_), .. } | Self { resets: true, own_frame: false, .. } => {
                Verdict::Reply
            }
            Self { own_frame: true, .. } => Verdict::Transmit,
            _ => Verdict::Drop,
        }
    }

    /// Whoever has a VIP and neither missed nor is a reply to nothing has met a pin.
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
