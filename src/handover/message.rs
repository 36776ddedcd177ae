//! Messages of a hand-over: JSON, each one packet of a Unix socket, some with files.

use serde::{Deserialize, Serialize};

use crate::control::reload::FixedKey;

/// Version of the protocol. Any change to messages, to the order of steps or to the layout of the
/// packet memory takes the next number.
pub const PROTOCOL: u32 = 1;

/// First message of the new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
}

/// Reply to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The running process prepares the hand-over. Files: the lock of the state directory, the
    /// listening control socket, and its lock.
    Offer(Offer),
    /// It does not, for the reason in the text.
    Refused(String),
}

/// Geometry of the running process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Keys of its configuration that only a restart changes.
    pub fixed: Vec<FixedKey>,
    /// Interface indices of its NICs, in the configuration's order.
    pub nics: Vec<u32>,
    /// Size of a frame in bytes.
    pub frame_size: u32,
    /// Its workers, in the configuration's order. One message with [`Files`] follows for each.
    pub workers: Vec<OfferedWorker>,
}

/// Geometry of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedWorker {
    /// Number of frames of its packet memory.
    pub frames: u32,
    /// Its queues, in the order in which it polls them.
    pub queues: Vec<OfferedQueue>,
}

/// Geometry of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedQueue {
    /// Index of the NIC in the configuration.
    pub nic: u8,
    /// Number of the queue.
    pub queue: u32,
    /// Slots of its RX and TX rings.
    pub ring: u32,
    /// Whether a packet may have several frames.
    pub multi_buffer: bool,
}

/// Files of a worker: its packet memory, and the socket of each queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Index of the worker.
    pub worker: usize,
}

/// Step of a hand-over after [`Reply::Offer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The new process is prepared.
    Ready,
    /// The workers of the running process have stopped.
    Stopped,
    /// Each worker of the new process has polled.
    Forwarding,
    /// The sender gives the hand-over up, for the reason in the text.
    Failed(String),
}
