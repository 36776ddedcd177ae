//! The hand-over to another process, as the control thread sees it.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Step of a hand-over, by which another process gets what this one has.
#[derive(Debug)]
pub enum Step {
    /// Another process has asked: from now on nothing changes that it would not know of. The
    /// registry is saved for it before the reply.
    Begin {
        /// The other process.
        pid: u32,
        /// An error is a text for the other process.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The control thread does nothing until it gets the outcome.
    Hold {
        /// Confirmation.
        holding: oneshot::Sender<()>,
        /// The outcome; without one, this process goes on.
        outcome: oneshot::Receiver<Outcome>,
    },
    /// The other process has failed before it got anything.
    Cancel {
        /// Text for the log.
        reason: String,
    },
    /// A process that this one has started has failed.
    Failed {
        /// That process.
        pid: u32,
        /// How it has ended.
        how: String,
    },
}

/// Outcome of a hand-over.
#[derive(Debug)]
pub enum Outcome {
    /// The other process forwards: this one ends, and leaves everything as it is.
    HandedOver {
        /// Time in which neither forwarded, at most.
        gap: Duration,
    },
    /// This process goes on, for the reason in the text.
    GoesOn(String),
    /// Neither process can go on, for the reason in the text.
    Failed(String),
}

/// Takes everything over from a running process; an error is a text for the operator.
pub type TakeOver = Box<dyn FnOnce() -> Result<(), String>>;

/// A process that was started to take over from this one.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: u32,
    /// How it has ended, if it has failed; closed after any other end.
    pub failure: oneshot::Receiver<String>,
}

/// Starts the program again, to take over from this process.
pub type StartAgain = Box<dyn FnMut() -> Result<Started, String>>;

/// Means of both processes of a hand-over; by default there is none.
#[derive(Default)]
pub struct HandOver {
    /// Called once the first table is published, if another process forwards until then.
    pub take_over: Option<TakeOver>,
    /// Steps of hand-overs to other processes.
    pub steps: Option<mpsc::Receiver<Step>>,
    /// Called for SIGUSR2.
    pub start_again: Option<StartAgain>,
}
