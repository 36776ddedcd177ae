//! Query and result types of `explain`, and the trace of decisions.
//!
//! The data path processes a synthetic packet like any other; each decision is recorded with its
//! reason in a [`Trace`], if there is one. Workers have none, except one that replays a capture.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::net::{BackendIndex, NextHop, Protocol, VipId};
use crate::stats::Drop;

/// The flow and packet to explain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Client endpoint.
    pub client: SocketAddr,
    /// Destination of the flow; of the client's address family.
    pub destination: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// TCP: the segment of the flow to explain.
    pub packet: Segment,
    /// UDP: the payload of the datagram.
    pub payload: Vec<u8>,
}

/// Kind of the TCP segment to explain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Segment {
    /// Mid-flow if the flow has a live pin, else a SYN.
    #[default]
    Likely,
    /// A SYN.
    Syn,
    /// A mid-flow segment: an ACK.
    Midflow,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Stage that decided.
    pub stage: String,
    /// Decision.
    pub outcome: String,
    /// Reason.
    pub why: String,
}

/// Result for the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Decisions, in order.
    pub steps: Vec<Step>,
    /// Backend that receives the packet.
    pub backend: Option<BackendIndex>,
    /// Next hop of the frame.
    pub next_hop: Option<NextHop>,
    /// The frame as sent; empty if it is dropped.
    pub frame: Vec<u8>,
}

/// Fate of a fragment that waits for its first fragment. Each waiting fragment has a number, used
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The packet is parked under this number.
    Begins(u64),
    /// The packet is the fragment with this number, and continues.
    Ends(u64),
    /// The fragment with this number, not the packet, is dropped.
    GivenUp(u64, Drop),
}

/// Recorder of decisions.
#[derive(Debug, Default)]
pub struct Trace {
    steps: RefCell<Vec<Step>>,
    /// Whether the flow has no live pin.
    missed: Cell<bool>,
    /// VIP and backend of the packet that a local reply answers.
    place: Cell<Option<(VipId, BackendIndex)>>,
    waits: RefCell<Vec<Wait>>,
}

impl Trace {
    /// Records a decision, unless it is already recorded: a scheduler may try a backend repeatedly.
    pub fn record(&self, stage: &str, outcome: impl Display, why: impl Display) {
        let (stage, outcome, why) = (stage.to_owned(), outcome.to_string(), why.to_string());
        // No borrow is held while the stages run.
        if let Ok(mut steps) = self.steps.try_borrow_mut() {
            let step = Step { stage, outcome, why };
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
    }

    /// Records that the packet's flow has no live pin.
    pub fn record_miss(&self) {
        self.missed.set(true);
    }

    /// Whether the packet's flow had no live pin.
    pub fn missed(&self) -> bool {
        self.missed.get()
    }

    /// Records VIP and backend of a packet answered by a local reply: their counters omit it.
    pub fn record_slot(&self, vip: VipId, backend: BackendIndex) {
        self.place.set(Some((vip, backend)));
    }

    /// VIP and backend of a packet answered by a local reply; either may be an invalid index.
    pub fn place(&self) -> Option<(VipId, BackendIndex)> {
        self.place.get()
    }

    /// Records the fate of a waiting fragment.
    pub fn record_wait(&self, wait: Wait) {
        // No borrow is held while the stages run.
        if let Ok(mut waits) = self.waits.try_borrow_mut() {
            waits.push(wait);
        }
    }

    /// Takes the recorded fates of waiting fragments, in order; the next call returns later ones.
    pub fn take_waits(&self) -> Vec<Wait> {
        self.waits.take()
    }

    /// The recorded decisions.
    pub fn into_steps(self) -> Vec<Step> {
        self.steps.into_inner()
    }
}
