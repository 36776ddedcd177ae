//! The running process's side of a hand-over: a thread that waits for a new process.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::channel::{Channel, ChannelError, Listener};
use super::limits;
use super::message::{Files, Hello, Offer, OfferedQueue, OfferedWorker, PROTOCOL, Reply, Step};
use super::supervisor;
use crate::control::hand_over::{self, Outcome};
use crate::control::reload::FixedKey;
use crate::format::reason;
use crate::workers::Threads;
use crate::xdp::umem::Umem;

/// Pause after an error of the listening socket, such as too many open files.
const RETRY: Duration = Duration::from_secs(1);

/// What another process gets.
pub struct Estate {
    /// Keys of the configuration that only a restart changes.
    pub fixed: Vec<FixedKey>,
    /// Interface indices of the NICs, in the configuration's order.
    pub nics: Vec<u32>,
    /// Size of a frame in bytes.
    pub frame_size: u32,
    /// What the workers have; gone when this process ends, which closes their sockets.
    pub workers: Weak<Vec<WorkerEstate>>,
    /// Lock of the state directory.
    pub state_lock: OwnedFd,
    /// The listening control socket, and its lock.
    pub control: [OwnedFd; 2],
}

/// What a worker has.
pub struct WorkerEstate {
    /// Packet memory.
    pub umem: Umem,
    /// Its queues.
    pub queues: Vec<OfferedQueue>,
    /// The socket of each queue.
    pub sockets: Vec<OwnedFd>,
}

/// The running process in hand-overs.
pub struct Predecessor {
    estate: Estate,
    threads: Arc<Threads>,
    steps: mpsc::Sender<hand_over::Step>,
}

/// End of an attempt.
enum End {
    /// Failed before anything stopped.
    Cancelled(ChannelError),
    /// The control thread has been given the outcome.
    Decided,
}

/// Returns the error of a hand-over while this process ends.
fn ends() -> ChannelError {
    ChannelError::Failed("this process ends".to_owned())
}

impl From<ChannelError> for End {
    fn from(error: ChannelError) -> Self {
        Self::Cancelled(error)
    }
}

impl Predecessor {
    /// Waits for new processes at `path`, on a thread of its own. The receiver gets the steps for
    /// the control thread.
    ///
    /// # Errors
    /// When the socket cannot be made, or there is no thread.
    pub fn start(
        path: &Path,
        estate: Estate,
        threads: Arc<Threads>,
    ) -> io::Result<mpsc::Receiver<hand_over::Step>> {
        let listener = Listener::open(path)?;
        let path = path.to_owned();
        let (steps, receiver) = mpsc::channel(1);
        let this = Self { estate, threads, steps };
        let serve = move || this.serve(&path, listener);
        thread::Builder::new().name("hand-over".to_owned()).spawn(serve)?;
        Ok(receiver)
    }

    fn serve(&self, path: &Path, mut listener: Listener) {
        // The control thread has ended with its receiver.
        while !self.steps.is_closed() {
            match listener.accept() {
                Ok(channel) if self.hand_over(&channel) => return,
                Ok(_) => {
                    // The other process may have put its own socket there.
                    match Listener::open(path) {
                        Ok(opened) => listener = opened,
                        Err(error) => warn!("{}: {}", path.display(), reason(&error)),
                    }
                }
                Err(error @ ChannelError::Os(_)) => {
                    warn!("hand-over: {error}; tried again after a second");
                    thread::sleep(RETRY);
                }
                Err(error) => debug!("hand-over: {error}"),
            }
        }
    }

    /// Hands over to the process at the other end, if possible; returns whether this one ends.
    fn hand_over(&self, channel: &Channel) -> bool {
        match self.attempt(channel) {
            Ok(handed_over) => handed_over,
            Err(End::Cancelled(error)) => {
                // The other process may have ended.
                let _ = channel.step(&Step::Failed(error.to_string()));
                let reason = error.to_string();
                let _ = self.steps.blocking_send(hand_over::Step::Cancel { reason });
                false
            }
            Err(End::Decided) => false,
        }
    }

    /// Hands over to the process at the other end; returns whether it goes on there.
    fn attempt(&self, channel: &Channel) -> Result<bool, End> {
        let (hello, _): (Hello, _) = channel.receive(limits::MESSAGE)?;
        if let Err(reason) = self.begin(&hello, channel.peer()) {
            channel.send(&Reply::Refused(reason), &[])?;
            return Err(End::Decided);
        }
        self.offer(channel)?;
        channel.expect(&Step::Ready, limits::PREPARE)?;
        let (holding, held) = oneshot::channel();
        let (decide, outcome) = oneshot::channel();
        let hold = hand_over::Step::Hold { holding, outcome };
        self.steps.blocking_send(hold).map_err(|_| ends())?;
        held.blocking_recv().map_err(|_| ends())?;
        let outcome = self.switch(channel);
        let handed_over = matches!(outcome, Outcome::HandedOver { .. });
        if handed_over {
            supervisor::main_process_is(channel.peer());
        }
        // The control thread waits for it.
        let _ = decide.send(outcome);
        Ok(handed_over)
    }

    /// Makes the control thread prepare for a hand-over.
    fn begin(&self, hello: &Hello, pid: u32) -> Result<(), String> {
        if hello.protocol != PROTOCOL {
            return Err(format!(
                "it speaks version {PROTOCOL} of the hand-over, not {}: restart holdfast instead",
                hello.protocol
            ));
        }
        info!("process {pid} asks to take over");
        let (reply, begun) = oneshot::channel();
        let ends = "it is ending";
        self.steps.blocking_send(hand_over::Step::Begin { pid, reply }).map_err(|_| ends)?;
        begun.blocking_recv().map_err(|_| ends)?
    }

    fn offer(&self, channel: &Channel) -> Result<(), ChannelError> {
        let Estate { fixed, nics, frame_size, workers, state_lock, control } = &self.estate;
        let workers = workers.upgrade().ok_or_else(ends)?;
        let worker = |worker: &WorkerEstate| OfferedWorker {
            frames: worker.umem.frames(),
            queues: worker.queues.clone(),
        };
        let offer = Offer {
            protocol: PROTOCOL,
            fixed: fixed.clone(),
            nics: nics.clone(),
            frame_size: *frame_size,
            workers: workers.iter().map(worker).collect(),
        };
        let [listener, lock] = control;
        channel
            .send(&Reply::Offer(offer), &[state_lock.as_fd(), listener.as_fd(), lock.as_fd()])?;
        for (worker, WorkerEstate { umem, sockets, .. }) in workers.iter().enumerate() {
            let sockets = sockets.iter().map(|socket| socket.as_fd());
            let files: Vec<BorrowedFd<'_>> = [umem.file()].into_iter().chain(sockets).collect();
            channel.send(&Files { worker }, &files)?;
        }
        Ok(())
    }

    /// Stops the workers for the other process. The control thread holds.
    fn switch(&self, channel: &Channel) -> Outcome {
        let begin = Instant::now();
        if !self.threads.pause(limits::WORKERS) {
            let reason = "a worker does not stop";
            let _ = channel.step(&Step::Failed(reason.to_owned()));
            // A worker that is late goes on with the others, and need not stop before.
            self.threads.run(limits::WORKERS);
            return Outcome::GoesOn(reason.to_owned());
        }
        let done = channel
            .step(&Step::Stopped)
            .and_then(|()| channel.expect(&Step::Forwarding, limits::STEP));
        match done {
            Ok(()) => Outcome::HandedOver { gap: begin.elapsed() },
            Err(error) => self.take_back(channel, &error),
        }
    }

    /// Takes over from the other process, which has failed.
    fn take_back(&self, channel: &Channel, error: &ChannelError) -> Outcome {
        channel.kill_peer();
        if !channel.wait_for_end(limits::STEP) {
            return Outcome::Failed(format!("{error}, and it cannot be killed"));
        }
        let back = self.threads.take_over(limits::WORKERS) && self.threads.run(limits::WORKERS);
        match back {
            true => Outcome::GoesOn(error.to_string()),
            false => Outcome::Failed(format!("{error}, and its work cannot be continued")),
        }
    }
}
