//! `holdfast replay`: runs a capture through the worker itself, without a network, and reports
//! every decision.
//!
//! ```text
//! configuration, neighbours file --setup--> forwarding table, rules of the XDP program
//! capture --> model of the XDP program --> kernel
//!                       |
//!                       +--> offline: the Worker on fake rings, one packet per poll --> frames
//!                                      |
//!                                      +--> changed counters, trace --> Decision --> JSON, pcapng
//! ```
//!
//! This module decides nothing about a packet: verdict, VIP and backend are derived from the
//! worker's own counters, and the reasons are those that the stages record. Like the daemon, this
//! module depends on every plane.

mod capture;
mod counters;
mod decision;
mod error;
mod offline;
mod parked;
mod pcapng;
mod replayer;
mod setup;
mod story;

pub use capture::{Capture, CaptureError, Captured};
pub use decision::{Decision, FlowState, Sent, Verdict};
pub use error::ReplayError;
pub use parked::Late;
pub use replayer::Replay;
pub use story::{Story, StoryError};
