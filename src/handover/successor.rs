//! The new process's side of a hand-over.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::channel::{Channel, ChannelError};
use super::limits;
use super::message::{Files, Hello, Offer, OfferedWorker, PROTOCOL, Reply, Step};
use crate::workers::Threads;

/// Files of a worker of the running process.
#[derive(Debug)]
pub struct WorkerFiles {
    /// Its geometry.
    pub offered: OfferedWorker,
    /// Packet memory.
    pub umem: OwnedFd,
    /// The socket of each queue.
    pub sockets: Vec<OwnedFd>,
}

/// The new process in a hand-over.
#[derive(Debug)]
pub struct Successor {
    channel: Arc<Channel>,
    /// Geometry of the running process; its workers are in `workers`.
    pub offer: Offer,
    /// Lock of the state directory.
    pub state_lock: OwnedFd,
    /// The listening control socket, and its lock.
    pub control: [OwnedFd; 2],
    /// Workers of the running process.
    pub workers: Vec<WorkerFiles>,
}

/// The new process, once it is prepared.
#[derive(Debug)]
pub struct Prepared {
    channel: Arc<Channel>,
}

/// Notifies the running process that the hand-over is given up, wherever that is decided.
#[derive(Debug)]
pub struct Notice {
    channel: Arc<Channel>,
}

impl Successor {
    /// Asks the running process that listens at `path` for everything that it has.
    ///
    /// # Errors
    /// [`ChannelError`]; that process goes on.
    pub fn ask(path: &Path) -> Result<Self, ChannelError> {
        let channel = Channel::connect(path)?;
        channel.send(&Hello { protocol: PROTOCOL }, &[])?;
        let (mut offer, files) = match channel.receive(limits::PREPARE)? {
            (Reply::Refused(reason), _) => return Err(ChannelError::Failed(reason)),
            (Reply::Offer(offer), files) => (offer, files),
        };
        let [state_lock, listener, lock] = files.try_into().map_err(|_| ChannelError::Unknown)?;
        let offered = std::mem::take(&mut offer.workers).into_iter().enumerate();
        let workers = offered.map(|(worker, offered)| {
            let (files, sockets): (Files, Vec<OwnedFd>) = channel.receive(limits::MESSAGE)?;
            let mut sockets = sockets.into_iter();
            let umem = sockets.next().ok_or(ChannelError::Unknown)?;
            let sockets: Vec<OwnedFd> = sockets.collect();
            let fits = files.worker == worker && sockets.len() == offered.queues.len();
            fits.then_some(WorkerFiles { offered, umem, sockets }).ok_or(ChannelError::Unknown)
        });
        let workers = workers.collect::<Result<_, _>>()?;
        info!("taking over from process {}", channel.peer());
        let channel = Arc::new(channel);
        Ok(Self { channel, offer, state_lock, control: [listener, lock], workers })
    }

    /// Returns the part that the switch needs.
    pub fn prepared(self) -> Prepared {
        Prepared { channel: self.channel }
    }

    /// Returns the means to give the hand-over up.
    pub fn notice(&self) -> Notice {
        Notice { channel: Arc::clone(&self.channel) }
    }
}

impl Notice {
    /// Notifies the running process that the hand-over is given up.
    pub fn give_up(&self, reason: &str) {
        // It notices the end of this process, too; after the hand-over it has ended itself.
        let _ = self.channel.step(&Step::Failed(reason.to_owned()));
    }
}

impl Prepared {
    /// Makes the running process stop, and the workers of this one go on in its place.
    ///
    /// # Errors
    /// Text for the operator; the running process goes on.
    pub fn switch(&self, threads: &Threads) -> Result<(), String> {
        self.try_switch(threads).map_err(|error| error.to_string())
    }

    fn try_switch(&self, threads: &Threads) -> Result<(), ChannelError> {
        let failed = |what: &str| ChannelError::Failed(what.to_owned());
        self.channel.step(&Step::Ready)?;
        // The running process first waits for its control thread, which may publish a table.
        self.channel.expect(&Step::Stopped, limits::PREPARE)?;
        if !threads.take_over(limits::WORKERS) {
            return Err(failed("a worker of the new process cannot take over"));
        }
        if !threads.run(limits::WORKERS) {
            return Err(failed("a worker of the new process does not start"));
        }
        self.channel.step(&Step::Forwarding)?;
        info!("process {} has handed over", self.channel.peer());
        Ok(())
    }
}
