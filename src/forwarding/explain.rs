//! What a question about one flow, and its answer, are made of.
//!
//! The data path answers by doing what it does with packets, to a made-up one; while it does, the
//! places that decide something tell a [`Trace`] why, if there is one. Workers have none, but for one that
//! replays a capture.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::net::{BackendIndex, NextHop, Protocol, VipId};
use crate::stats::Drop;

/// Which flow is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who opens it, or has opened it.
    pub client: SocketAddr,
    /// Where it is opened to; of the client's address family.
    pub destination: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Which packet of it, if it is TCP.
    pub packet: Segment,
    /// What a UDP packet carries.
    pub payload: Vec<u8>,
}

/// Which TCP segment is asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Segment {
    /// One in mid-flow if the flow has a living pin, else a SYN.
    #[default]
    Likely,
    /// A SYN.
    Syn,
    /// One in mid-flow: an ACK.
    Midflow,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The stage that decided.
    pub stage: String,
    /// What.
    pub outcome: String,
    /// Why.
    pub why: String,
}

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The decisions, in their order.
    pub steps: Vec<Step>,
    /// The backend that it is sent to.
    pub backend: Option<BackendIndex>,
    /// Where the frame goes.
    pub next_hop: Option<NextHop>,
    /// The frame as it leaves; empty for one that is dropped.
    pub frame: Vec<u8>,
}

/// What became of a fragment that waits for its first one; each has a number, which is used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The packet is parked, by this number.
    Begins(u64),
    /// The packet is the fragment of this number, and goes on.
    Ends(u64),
    /// The fragment of this number is dropped. It is not the packet.
    GivenUp(u64, Drop),
}

/// Collects decisions.
#[derive(Debug, Default)]
pub struct Trace {
    steps: RefCell<Vec<Step>>,
    /// The flow has no pin that lives.
    missed: Cell<bool>,
    /// Whose packet it was that was answered.
    place: Cell<Option<(VipId, BackendIndex)>>,
    waits: RefCell<Vec<Wait>>,
}

impl Trace {
    /// Notes a decision, once: a scheduler may ask for a backend again and again.
    pub fn tell(&self, stage: &str, outcome: impl Display, why: impl Display) {
        let (stage, outcome, why) = (stage.to_owned(), outcome.to_string(), why.to_string());
        // Nobody holds it while the stages run.
        if let Ok(mut steps) = self.steps.try_borrow_mut() {
            let step = Step { stage, outcome, why };
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
    }

    /// Notes that the packet's flow has no pin that lives.
    pub fn record_miss(&self) {
        self.missed.set(true);
    }

    /// Whether the packet's flow had no pin that lives.
    pub fn missed(&self) -> bool {
        self.missed.get()
    }

    /// Notes whose packet it is that is answered: VIPs and backends do not count it.
    pub fn note_place(&self, vip: VipId, backend: BackendIndex) {
        self.place.set(Some((vip, backend)));
    }

    /// VIP and backend of a packet that was answered; each may be none that there is.
    pub fn place(&self) -> Option<(VipId, BackendIndex)> {
        self.place.get()
    }

    /// Notes what became of a fragment that waits.
    pub fn note_wait(&self, wait: Wait) {
        // No borrow lives while the stages run.
        if let Ok(mut waits) = self.waits.try_borrow_mut() {
            waits.push(wait);
        }
    }

    /// What became of fragments that wait, in its order; the next call tells what comes after that.
    pub fn take_waits(&self) -> Vec<Wait> {
        self.waits.take()
    }

    /// What was noted.
    pub fn into_steps(self) -> Vec<Step> {
        self.steps.into_inner()
    }
}
