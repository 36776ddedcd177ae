//! Wakes a worker that sleeps until a packet arrives: an eventfd that it watches with its queues.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

/// Waker of one worker.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Creates a waker.
    ///
    /// # Errors
    /// The error of eventfd(2): too many open files.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Ends the worker's sleep, or its next one.
    pub fn wake(&self) {
        // Fails only after 2^64 calls without a sleep: it is readable then, too.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the next sleep wait again.
    pub fn clear(&self) {
        // Fails if there was no wake-up, which is what is wanted.
        let _ = read(&self.0, &mut [0; 8]);
    }

    /// The file to watch, which is readable after [`wake`](Self::wake).
    pub fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
