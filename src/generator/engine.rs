//! Owner of the workers: opens NICs and sockets, runs trials, and sums up their results.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_utils::CachePadded;
use hdrhistogram::CreationError;

use super::arrival::{BackendKey, address_of};
use super::client::{Client, ClientCounts};
use super::judge::{Judge, latency};
use super::layout::{ETHERNET, FCS};
use super::next_hop::{self, NextHopError};
use super::outcome::{BackendShare, Connections, Outcome, Percentiles, Replies, Sample};
use super::pace::Pacer;
use super::packet::{Common, Template};
use super::sampler::{LOOK, Progress, Sampler, Totals};
use super::settings::{Settings, Traffic};
use super::slots::Board;
use super::tracker::{BackendNumber, Counts};
use super::worker::{Live, Parts, Trial, Worker};
use crate::xdp::cpu::{self, CpuError};
use crate::xdp::generate::Catcher;
use crate::xdp::nic::{Nic, NicError};
use crate::xdp::program::ProgramError;
use crate::xdp::queue::XskQueue;
use crate::xdp::socket::{Io, SocketError};
use crate::xdp::umem::chain::frames_for;
use crate::xdp::umem::{FramePool, Umem, UmemError};

/// Entries of RX and TX rings.
const RING: u32 = 2048;
/// Frames for each queue: the capacity of fill and RX ring, TX and completion ring.
const FRAMES_PER_QUEUE: u32 = 4 * RING;
/// Frames held by a worker itself.
const FRAMES_IN_HAND: u32 = 128;
/// Time for all threads to start before the first packet, in ns.
const LEAD_NS: u64 = 20_000_000;
/// Longest time for closing connections at the end.
const CLOSING: Duration = Duration::from_secs(2);

/// Reasons for which a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A NIC does not exist or cannot be used.
    #[error("{0}")]
    Nic(#[from] NicError),
    /// A NIC is down.
    #[error("{interface} is down; set it up: `ip link set {interface} up`")]
    Down {
        /// Interface name.
        interface: String,
    },
    /// Packets are longer than the NIC's MTU allows.
    #[error(
        "--size {size}: {interface} has an MTU of {mtu} bytes, so use 64 to {largest} bytes with \
         FCS, or raise the MTU (`ip link set {interface} mtu N`)"
    )]
    Mtu {
        /// Interface name.
        interface: String,
        /// MTU of the NIC, in bytes.
        mtu: u32,
        /// Requested frame size, in bytes with FCS.
        size: usize,
        /// Largest frame size that fits, in bytes with FCS.
        largest: usize,
    },
    /// The next hop cannot be resolved.
    #[error("{0}")]
    NextHop(#[from] NextHopError),
    /// Packet memory cannot be created.
    #[error("{0}")]
    Umem(#[from] UmemError),
    /// A socket cannot be opened.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// An XDP program failed.
    #[error("{0}")]
    Program(#[from] ProgramError),
    /// A worker cannot be pinned to its core.
    #[error("{0}")]
    Cpu(#[from] CpuError),
    /// A histogram cannot be created.
    #[error("cannot make a histogram: {0}")]
    Histogram(#[from] CreationError),
    /// No packet of that size can be built.
    #[error("--size {size}: no packet of that size can be built")]
    Template {
        /// Requested frame size, in bytes with FCS.
        size: usize,
    },
    /// A worker thread has ended early.
    #[error("a worker thread has ended early")]
    Worker,
}

/// Opens NICs and checks that they can carry the run's packets.
///
/// # Errors
/// [`EngineError`].
pub fn open_nics(settings: &Settings) -> Result<(Nic, Option<Nic>), EngineError> {
    let client = Nic::open(&settings.interface)?;
    let backend = settings.receive.as_deref().map(Nic::open).transpose()?;
    for nic in [Some(&client), backend.as_ref()].into_iter().flatten() {
        check_nic(nic, settings)?;
    }
    Ok((client, backend))
}

fn check_nic(nic: &Nic, settings: &Settings) -> Result<(), EngineError> {
    let interface = nic.name().to_owned();
    if !nic.is_up() {
        return Err(EngineError::Down { interface });
    }
    let size = settings.sizes.iter().max().copied().unwrap_or(0);
    let largest = nic.mtu() as usize + ETHERNET + FCS;
    if size > largest {
        return Err(EngineError::Mtu { interface, mtu: nic.mtu(), size, largest });
    }
    Ok(())
}

/// Builds the packet templates of a run, in the order of their sizes.
///
/// # Errors
/// [`EngineError`]: no next hop, or no such packet.
pub fn templates(settings: &Settings, nic: &Nic) -> Result<Vec<Template>, EngineError> {
    let destination_mac = match settings.next_hop {
        Some(mac) => mac,
        None => next_hop::resolve(nic, settings.target.ip())?,
    };
    let common = Common {
        layout: settings.layout,
        source_mac: nic.mac(),
        destination_mac,
        client: settings.clients.first(),
        target: settings.target.ip(),
        target_port: settings.target.port(),
    };
    let build = |&size: &usize| Template::new(&common, size).ok_or(EngineError::Template { size });
    settings.sizes.iter().map(build).collect()
}

/// A generator that is ready to run.
pub struct Engine {
    settings: Settings,
    workers: Vec<Worker>,
    live: Vec<CachePadded<Live>>,
    /// Keep the programs attached.
    _catchers: Vec<Catcher>,
    epoch_ns: u64,
    run: u16,
}

impl Engine {
    /// Opens NICs, sockets and programs. Must be called in the network namespace of the NICs.
    ///
    /// # Errors
    /// [`EngineError`]; each states the remedy.
    pub fn open(settings: Settings) -> Result<Self, EngineError> {
        let (client, backend) = open_nics(&settings)?;
        let templates: Arc<[Template]> = templates(&settings, &client)?.into();
        let slots = if settings.traffic == Traffic::Tcp { settings.flows } else { 1 };
        let board = Arc::new(Board::new(slots));
        let memory = FrameUse::of(&settings);
        let epoch_ns = cpu::monotonic_ns();
        let mut workers = Vec::new();
        for index in 0..settings.workers {
            let (client_queue, backend_queue, pool) =
                open_ports(&memory, &client, backend.as_ref(), index)?;
            workers.push(Worker::new(Parts {
                client_queue,
                backend_queue,
                ring: RING,
                frames_each: memory.frames_each,
                pool,
                templates: Arc::clone(&templates),
                clients: settings.clients,
                client: Client::new(&settings, Arc::clone(&board), index),
                judge: Judge::new(&settings, Arc::clone(&board))?,
                epoch_ns,
            }));
        }
        let catchers = catch(&client, backend.as_ref(), &workers)?;
        let live = workers.iter().map(|_| CachePadded::default()).collect();
        Ok(Self { settings, workers, live, _catchers: catchers, epoch_ns, run: 0 })
    }

    /// Sends at `rate` packets per second (`None`: as fast as possible) for `duration`, and returns
    /// the outcome. Calls `progress` about once a second. Ends early when `stop` is set.
    ///
    /// # Errors
    /// [`EngineError::Cpu`] if a worker cannot be pinned.
    pub fn trial(
        &mut self,
        rate: Option<f64>,
        duration: Duration,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, EngineError> {
        let trials = self.plan(rate, duration, false);
        let dropped_before = self.receiver_dropped();
        let (samples, seconds) = self.run_all(&trials, duration, stop, progress)?;
        let overrun = self.workers.iter().map(|worker| worker.sent().overrun_ns).max();
        let seconds = seconds + overrun.unwrap_or(0) as f64 / 1e9;
        let mut outcome = self.add_up(rate, seconds);
        outcome.receiver_dropped = Some(self.receiver_dropped() - dropped_before);
        outcome.samples = samples;
        Ok(outcome)
    }

    /// Closes open connections, for 2 s at most.
    ///
    /// # Errors
    /// Those of [`trial`](Self::trial).
    pub fn close(&mut self, rate: Option<f64>) -> Result<(), EngineError> {
        if self.settings.traffic != Traffic::Tcp {
            return Ok(());
        }
        let trials = self.plan(rate, CLOSING, true);
        self.run_all(&trials, CLOSING, &AtomicBool::new(false), &mut |_| ()).map(drop)
    }

    /// Plans the trial of every worker. Their shares of the rate do not coincide in time.
    fn plan(&mut self, rate: Option<f64>, duration: Duration, closing: bool) -> Vec<Trial> {
        self.run = self.run.wrapping_add(1);
        let workers = f64::from(self.settings.workers);
        let start = cpu::monotonic_ns().saturating_sub(self.epoch_ns) + LEAD_NS;
        let span = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let renewals = |start| match self.settings.new_flows {
            // The first replacement is due one interval after the start.
            rate if rate > 0.0 => Pacer::new(Some(rate / workers), start + nanos(workers / rate)),
            _ => Pacer::never(),
        };
        let offset = |index: u32| rate.map_or(0, |rate| nanos(f64::from(index) / rate));
        let trial = |index| Trial {
            run: self.run,
            start: start + offset(index),
            end: start.saturating_add(span),
            pacer: Pacer::new(rate.map(|rate| rate / workers), start + offset(index)),
            renewals: renewals(start + offset(index)),
            closing,
        };
        (0..self.settings.workers).map(trial).collect()
    }

    /// Runs all workers and samples them meanwhile. Returns the samples, and the time in which
    /// packets were sent, in seconds.
    fn run_all(
        &mut self,
        trials: &[Trial],
        duration: Duration,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(Vec<Sample>, f64), EngineError> {
        let (live, cores) = (&self.live, &self.settings.cores);
        live.iter().for_each(|live| live.reset());
        let mut sampler = Sampler::new(duration);
        let epoch_ns = self.epoch_ns;
        let start = trials.first().map_or(0, |trial| trial.start);
        let mut seconds = duration.as_secs_f64();
        thread::scope(|scope| {
            let all = self.workers.iter_mut().zip(trials).zip(live).enumerate();
            let threads: Vec<_> = all
                .map(|(index, ((worker, trial), live))| {
                    let core = cores.get(index).copied();
                    scope.spawn(move || {
                        core.map_or(Ok(()), cpu::pin_to_core)?;
                        worker.run(trial, live, stop);
                        Ok::<(), CpuError>(())
                    })
                })
                .collect();
            let mut stopped = false;
            while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(LOOK);
                let now = cpu::monotonic_ns().saturating_sub(epoch_ns);
                let elapsed = now.saturating_sub(start) as f64 / 1e9;
                // Relaxed: the flag publishes nothing else.
                if !stopped && stop.load(Ordering::Relaxed) {
                    stopped = true;
                    seconds = seconds.min(elapsed);
                }
                sampler.look(totals(live, elapsed), progress);
            }
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| EngineError::Worker)?.map_err(EngineError::from)
            })
        })?;
        Ok((sampler.samples, seconds))
    }

    fn add_up(&self, rate: Option<f64>, seconds: f64) -> Outcome {
        let mut outcome = Outcome::new(&self.settings, rate);
        let mut received = Counts::default();
        let mut sent = (0, 0);
        let mut client = ClientCounts::default();
        for worker in &self.workers {
            let counts = worker.sent();
            received.add(worker.judge().requests.counts());
            sent = (sent.0 + counts.packets, sent.1 + counts.bytes);
            client.add(worker.client().counts());
            let behind = (counts.behind_ns as f64 / 10.0).round() / 100.0;
            outcome.generator_behind_us = outcome.generator_behind_us.max(behind);
        }
        outcome.set_packets(seconds, sent, &received);
        outcome.duplicates = Some(received.duplicates);
        outcome.reordered = Some(received.reordered);
        outcome.affinity_violations = Some(received.violations + self.violations_between_workers());
        outcome.backends = self.shares();
        outcome.withheld = client.withheld;
        outcome.connections = Some(Connections {
            opened: client.flows_opened,
            closed: client.flows_closed,
            retransmissions: client.retransmissions,
            given_up: client.given_up,
        });
        outcome.replies = self.settings.replies.then(|| self.replies());
        outcome.latency_us = self.percentiles(|judge| &judge.latency);
        outcome.round_trip_us = self.percentiles(|judge| &judge.round_trip);
        outcome
    }

    fn receiver_dropped(&self) -> u64 {
        self.workers.iter().map(Worker::receiver_dropped).sum()
    }

    fn replies(&self) -> Replies {
        let mut received = Counts::default();
        let mut replies = Replies::default();
        for worker in &self.workers {
            if let Some(tracker) = &worker.judge().replies {
                received.add(tracker.counts());
            }
            replies.sent += worker.sent().replies;
            replies.not_sent += worker.sent().replies_dropped;
        }
        Replies {
            received: received.received,
            lost: replies.sent.saturating_sub(received.unique()),
            duplicates: received.duplicates,
            reordered: received.reordered,
            ..replies
        }
    }

    fn percentiles(&self, which: impl Fn(&Judge) -> &super::judge::Latency) -> Option<Percentiles> {
        let mut all = latency().ok()?;
        for worker in &self.workers {
            // All histograms have identical bounds, so this cannot fail.
            all.add(which(worker.judge())).ok()?;
        }
        Percentiles::of(&all)
    }

    /// Sums the packets of each backend over all workers, sorted by address and MAC.
    fn shares(&self) -> Vec<BackendShare> {
        let mut shares: Vec<BackendShare> = Vec::new();
        for (key, packets) in self.workers.iter().flat_map(|worker| worker.judge().backends.iter())
        {
            let (mac, address) = (mac_text(key.mac), address_of(key).to_string());
            match shares.iter_mut().find(|share| share.mac == mac && share.address == address) {
                Some(share) => share.packets += packets,
                None => shares.push(BackendShare { mac, address, packets: *packets }),
            }
        }
        shares.sort_by(|a, b| (&a.address, &a.mac).cmp(&(&b.address, &b.mac)));
        shares.retain(|share| share.packets > 0);
        shares
    }

    /// Counts flows whose packets arrived at several workers, at different backends. No single
    /// worker can detect these.
    fn violations_between_workers(&self) -> u64 {
        let Some((first, others)) = self.workers.split_first() else { return 0 };
        if others.is_empty() {
            return 0;
        }
        let key = |worker: &Worker, number: BackendNumber| -> Option<BackendKey> {
            worker.judge().backends.get(number).map(|(key, _)| *key)
        };
        let seen = |worker: &Worker| -> Vec<Seen> {
            let flows = worker.judge().requests.flows();
            flows.map(|entry| entry.map(|(flow, number)| (flow, key(worker, number)))).collect()
        };
        let mut newest = seen(first);
        let mut violations = 0;
        for worker in others {
            for (known, found) in newest.iter_mut().zip(seen(worker)) {
                violations += u64::from(differ(*known, found));
                *known = newer(*known, found);
            }
        }
        violations
    }
}

/// Sums the live counters of all workers.
fn totals(live: &[CachePadded<Live>], time_s: f64) -> Totals {
    live.iter().fold(Totals { time_s, ..Totals::default() }, |sum, live| Totals {
        // Relaxed: numbers for people.
        sent: sum.sent + live.sent.load(Ordering::Relaxed),
        received: sum.received + live.received.load(Ordering::Relaxed),
        violations: sum.violations + live.violations.load(Ordering::Relaxed),
        ..sum
    })
}

/// The newest flow of a slot, and its backend.
type Seen = Option<(u32, Option<BackendKey>)>;

/// Returns the later of two flows of a slot.
fn newer(a: Seen, b: Seen) -> Seen {
    std::cmp::max_by_key(a, b, |seen| seen.map(|(flow, _)| flow))
}

/// Returns whether two workers saw one flow at different backends.
fn differ(a: Seen, b: Seen) -> bool {
    matches!((a, b), (Some((flow, Some(key))), Some((other, Some(other_key))))
        if flow == other && key != other_key)
}

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::try_from_secs_f64(seconds).unwrap_or_default().as_nanos())
        .unwrap_or(u64::MAX)
}

/// Formats a MAC as `aa:bb:cc:dd:ee:ff`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Use of memory frames by the packets of a run.
struct FrameUse {
    frame_size: u32,
    /// Frames of the longest packet.
    frames_each: u32,
    /// Set only where it is needed: older kernels and some drivers do not support multi-buffer.
    multi_buffer: bool,
}

impl FrameUse {
    fn of(settings: &Settings) -> Self {
        let longest = settings.sizes.iter().max().copied().unwrap_or(0).saturating_sub(FCS);
        let frame_size = if frames_for(longest, 2048) <= 1 { 2048 } else { 4096 };
        let frames = frames_for(longest, frame_size);
        let frames_each = u32::try_from(frames).unwrap_or(u32::MAX);
        Self { frame_size, frames_each, multi_buffer: frames > 1 }
    }
}

/// Opens a socket on each NIC, and creates the packet memory that both share.
fn open_ports(
    memory: &FrameUse,
    client: &Nic,
    backend: Option<&Nic>,
    queue: u32,
) -> Result<(XskQueue, Option<XskQueue>, FramePool), EngineError> {
    let ports = 1 + u32::from(backend.is_some());
    let (umem, pool) = Umem::create(ports * FRAMES_PER_QUEUE + FRAMES_IN_HAND, memory.frame_size)?;
    let io = Io { multi_buffer: memory.multi_buffer, ..Io::default() };
    let open = |nic: &Nic| XskQueue::open(&umem, nic, queue, RING, io);
    Ok((open(client)?, backend.map(open).transpose()?, pool))
}

/// Attaches a program to each NIC.
fn catch(
    client: &Nic,
    backend: Option<&Nic>,
    workers: &[Worker],
) -> Result<Vec<Catcher>, ProgramError> {
    let mut catchers =
        vec![Catcher::attach(client, (0..).zip(workers.iter().map(Worker::client_queue)))?];
    if let Some(backend) = backend {
        catchers.push(Catcher::attach(
            backend,
            (0..).zip(workers.iter().filter_map(Worker::backend_queue)),
        )?);
    }
    Ok(catchers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Address;

    fn key(last: u8) -> Option<BackendKey> {
        Some(BackendKey { mac: [2; 6], address: Address::from_v4([10, 0, 0, last]) })
    }

    #[test]
    fn only_one_flow_at_two_backends_differs() {
        for (name, a, b, expected) in [
            ("one worker only", Some((1, key(1))), None, false),
            ("the same backend", Some((1, key(1))), Some((1, key(1))), false),
            ("two backends", Some((1, key(1))), Some((1, key(2))), true),
            ("another flow of the slot", Some((1, key(1))), Some((5, key(2))), false),
            ("backend unknown", Some((1, key(1))), Some((1, None)), false),
        ] {
            assert_eq!(differ(a, b), expected, "{name}");
        }
    }
}
