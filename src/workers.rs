//! The threads of the workers: pinned to their cores, and given orders together.
//!
//! ```text
//!            Run                     pause
//!  waiting --------> first poll, polls ---+
//!   ^  ^ |                                |
//!   |  | | TakeOver                       |
//!   |  +-+ queues, memory, flow table     |
//!   +-------------------------------------+        End: the threads end
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use crossbeam_utils::CachePadded;

use crate::config::{Config, Idle};
use crate::control::WorkerEvent;
use crate::datapath::worker::{Parts, Worker};
use crate::forwarding::publish::prepare_thread;
use crate::privileges;
use crate::units::Ticks;
use crate::xdp::cpu;
use crate::xdp::waker::Waker;

/// A worker, or its components before it has taken over those of another process.
pub enum State {
    /// The components.
    Parts(Box<Parts>),
    /// The worker.
    Worker(Box<Worker>),
}

impl State {
    /// Takes over queues, memory and flow table from their last user.
    fn take_over(self) -> Option<Self> {
        let parts = match self {
            Self::Parts(parts) => *parts,
            Self::Worker(worker) => worker.into_parts(),
        };
        Some(Self::Worker(Box::new(Worker::take_over(parts, now())?)))
    }
}

/// What all threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// To take over from the last user.
    TakeOver,
    /// To poll until [`Threads::pause`].
    Run,
    /// To end.
    End,
}

/// The current order, and the progress of the threads.
#[derive(Debug)]
struct Gate {
    order: Order,
    /// Number of orders so far.
    round: u64,
    /// Threads that have executed the order: [`Order::Run`] after their last poll.
    done: usize,
    /// Threads that have made the first poll of [`Order::Run`].
    running: usize,
    /// Whether a thread could not execute the order.
    failed: bool,
}

/// State that the threads share with their owner.
#[derive(Debug)]
struct Shared {
    /// Whether the workers are to stop polling.
    stop: CachePadded<AtomicBool>,
    wakers: Vec<Waker>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// The threads of all workers.
#[derive(Debug)]
pub struct Threads {
    shared: Arc<Shared>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Starts a pinned thread for every worker, which waits for its first order.
    ///
    /// # Errors
    /// When the operating system refuses a thread or a file.
    pub fn start(
        config: &Config,
        workers: Vec<State>,
        events: &Sender<WorkerEvent>,
    ) -> io::Result<Self> {
        let wakers = workers.iter().map(|_| Waker::new()).collect::<io::Result<_>>()?;
        let gate = Gate { order: Order::Run, round: 0, done: 0, running: 0, failed: false };
        let shared = Arc::new(Shared {
            stop: CachePadded::new(AtomicBool::new(false)),
            wakers,
            gate: Mutex::new(gate),
            changed: Condvar::new(),
        });
        let (may_sleep, seccomp) = (config.workers.idle == Idle::Sleep, config.security.seccomp);
        let placed = config.workers.cores.iter().copied().zip(workers).enumerate();
        let started = placed.map(|(index, (core, state))| {
            let (shared, events) = (Arc::clone(&shared), events.clone());
            let confine = move || {
                cpu::pin_to_core(core).map_err(|error| error.to_string())?;
                privileges::confine_worker(seccomp).map_err(|error| error.to_string())
            };
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || work(index, state, confine, &shared, may_sleep, &events))
        });
        let handles = started.collect::<io::Result<_>>()?;
        Ok(Self { shared, handles: Mutex::new(handles) })
    }

    /// Makes all workers poll; returns whether each has polled once within the time limit.
    pub fn run(&self, limit: Duration) -> bool {
        // Relaxed: the flag publishes nothing else.
        self.shared.stop.store(false, Ordering::Relaxed);
        let all = self.shared.wakers.len();
        self.shared.order(Order::Run);
        self.shared.wait(limit, |gate| gate.running == all)
    }

    /// Makes all workers stop between two polls; returns whether they have within the time limit.
    pub fn pause(&self, limit: Duration) -> bool {
        self.shared.stop();
        let all = self.shared.wakers.len();
        self.shared.wait(limit, |gate| gate.done == all)
    }

    /// Makes all paused workers take over from the last user of their queues; returns whether they
    /// have within the time limit.
    pub fn take_over(&self, limit: Duration) -> bool {
        let all = self.shared.wakers.len();
        self.shared.order(Order::TakeOver);
        self.shared.wait(limit, |gate| gate.done == all || gate.failed) && !self.has_failed()
    }

    fn has_failed(&self) -> bool {
        self.shared.gate().failed
    }

    /// Ends all threads, and waits for their ends.
    pub fn end(&self) {
        self.shared.stop();
        self.shared.order(Order::End);
        let handles = &mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        for handle in handles.drain(..) {
            // A worker that panicked has been reported by now.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        // Relaxed: the flag publishes nothing else.
        self.stop.store(true, Ordering::Relaxed);
        self.wakers.iter().for_each(Waker::wake);
    }

    fn order(&self, order: Order) {
        let mut gate = self.gate();
        let round = gate.round.wrapping_add(1);
        *gate = Gate { order, round, done: 0, running: 0, failed: false };
        self.changed.notify_all();
    }

    /// Waits until `is_reached` holds; returns whether it does at the end of the time limit.
    fn wait(&self, limit: Duration, is_reached: impl Fn(&Gate) -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut gate = self.gate();
        while !is_reached(&gate) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(gate, left);
            (gate, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Waits for the order that follows the order number `round`.
    fn next_order(&self, round: u64) -> (Order, u64) {
        let mut gate = self.gate();
        while gate.round == round {
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        (gate.order, gate.round)
    }

    /// Records the progress of a thread in the order number `round`.
    fn record(&self, round: u64, progress: impl FnOnce(&mut Gate)) {
        let mut gate = self.gate();
        if gate.round == round {
            progress(&mut gate);
            self.changed.notify_all();
        }
    }
}

/// Returns the time on the clock of flow ages: monotonic, and equal in all processes.
pub fn now() -> Ticks {
    Ticks::at_ms(cpu::monotonic_ms())
}

/// Executes the orders for a worker on this thread, once `confine` has confined the thread to its core
/// and to its privileges, until it has to end, or fails.
fn work(
    index: usize,
    mut state: State,
    confine: impl FnOnce() -> Result<(), String>,
    shared: &Shared,
    may_sleep: bool,
    events: &Sender<WorkerEvent>,
) {
    let mut end = End { worker: index, error: "it panicked".to_owned(), shared, events };
    prepare_thread();
    if let Err(error) = confine() {
        end.error = error;
        return;
    }
    let waker = shared.wakers.get(index).filter(|_| may_sleep);
    let mut last = 0;
    loop {
        let (order, round) = shared.next_order(last);
        last = round;
        match order {
            Order::End => return,
            Order::Run => {
                if let State::Worker(worker) = &mut state {
                    poll(worker, waker, shared, round);
                }
                shared.record(round, |gate| gate.done += 1);
            }
            Order::TakeOver => {
                let Some(taken) = state.take_over() else {
                    shared.record(round, |gate| gate.failed = true);
                    end.error = "its flow table is in use".to_owned();
                    return;
                };
                state = taken;
                shared.record(round, |gate| gate.done += 1);
            }
        }
    }
}

/// Polls until the workers have to stop.
fn poll(worker: &mut Worker, waker: Option<&Waker>, shared: &Shared, round: u64) {
    worker.poll(now());
    shared.record(round, |gate| gate.running += 1);
    waker.into_iter().for_each(Waker::clear);
    worker.run(&shared.stop, waker);
    worker.suspend();
}

/// Notifies control when a worker's thread ends without a stop request, also by a panic.
struct End<'a> {
    worker: usize,
    error: String,
    shared: &'a Shared,
    events: &'a Sender<WorkerEvent>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if self.shared.gate().order != Order::End {
            let error = std::mem::take(&mut self.error);
            // The channel has room for one event of each worker.
            let _ = self.events.try_send(WorkerEvent::Failed { worker: self.worker, error });
        }
    }
}
