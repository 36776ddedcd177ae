//! The control thread: health, drain, reload, neighbours, announcements and the control API.
//!
//! One thread owns all state that changes ([`controller`]): VIPs and backends ([`state`]), results
//! of their health checks ([`health`]), next hops ([`neighbour`]), addresses put on NICs
//! ([`announce`]), drains ([`drain`]) and slow starts ([`slow_start`]). Each change ends in a new
//! forwarding table, built and published there. [`Inputs`] provides all that this plane needs from
//! the planes below, so that it depends neither on sockets nor on the XDP program:
//!
//! ```text
//!   signals   control socket   check results   netlink    clock    workers' events
//!      |            |               |             |          |            |
//!      +------------+-------+-------+-------------+----------+------------+
//!                           |
//!                   the loop of `controller` --> ForwardingTable --> workers
//!                           |
//!                           +--> SteeringPort (maps of the XDP program), addresses of NICs
//! ```

pub mod admin;
pub mod announce;
pub mod answering;
pub mod api;
pub mod clients;
pub mod control_socket;
pub mod controller;
pub mod counters;
pub mod drain;
pub mod estimate;
pub mod events;
pub mod explain;
pub mod flow_rates;
pub mod flows;
pub mod forecast;
pub mod gratuitous;
pub mod health;
pub mod hook;
pub mod identity;
pub mod inbound;
pub mod neighbour;
pub mod netlink;
pub mod nic_faults;
pub mod own_ports;
pub mod pins;
pub mod refusal;
pub mod reload;
pub mod removed;
pub mod slow_start;
pub mod split;
pub mod state;
pub mod status;
pub mod survey;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::runtime::Runtime;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::flow::shared::SharedTables;
use crate::flow::table::FlowTable;
use crate::forwarding::publish::Publisher;
use crate::net::{NicIndex, SteerRules};
use crate::stats::WorkerStats;
use crate::units::Ticks;

pub use admin::ControlSocket;

/// Reads and checks a configuration file; errors are texts for the operator, one per mistake.
pub type Load = Box<dyn Fn(&Path) -> Result<Config, Vec<String>>>;
/// Sends one Ethernet frame out of the interface with this index. Never blocks.
pub type SendFrame = Box<dyn FnMut(u32, &[u8]) -> io::Result<()> + Send>;
/// Clock of the flow tables: the source of the [`Ticks`] in their records.
pub type Clock = Arc<dyn Fn() -> Ticks + Send + Sync>;

/// Inputs of the control thread, filled by the daemon.
pub struct Inputs {
    /// Configuration at the start.
    pub config: Config,
    /// Path of the configuration file; a reload reads it again.
    pub config_path: PathBuf,
    /// Reader of the configuration file.
    pub load: Load,
    /// Control socket, locked early so that a second process fails before it opens NICs.
    pub control_socket: ControlSocket,
    /// Workers, in the configuration's order.
    pub workers: Vec<WorkerView>,
    /// NICs, in the configuration's order.
    pub nics: Vec<NicView>,
    /// Publisher of forwarding tables.
    pub publisher: Publisher,
    /// XDP program and its sockets.
    pub steering: Box<dyn SteeringProgram>,
    /// Sender of the frames that announce addresses.
    pub send_frame: SendFrame,
    /// Tables shared by all workers.
    pub shared: Arc<SharedTables>,
    /// Events of workers.
    pub events: crossbeam_channel::Receiver<WorkerEvent>,
    /// Clock of the flow tables.
    pub clock: Clock,
    /// Runs a packet through the stages of the data path, for `explain`.
    pub explain: explain::Explain,
    /// Called once, when the first table is published, steered and announced.
    pub ready: Box<dyn FnOnce()>,
}

/// Control's view of a worker: shared state that control only reads.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Core that the worker is pinned to.
    pub core: usize,
    /// Counters of the worker.
    pub stats: Arc<WorkerStats>,
    /// Flow table of the worker.
    pub flows: Arc<FlowTable>,
}

/// Control's view of a NIC; fixed while the process runs.
#[derive(Debug, Clone)]
pub struct NicView {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU: the longest IP packet that the NIC sends, in bytes.
    pub mtu: u16,
    /// Name of the kernel driver.
    pub driver: String,
    /// Mode of its sockets: `"zero_copy"`, `"copy"` or `"mixed"`.
    pub mode: String,
    /// Whether a packet may span several frames.
    pub multi_buffer: bool,
    /// Indices of the served queues.
    pub queues: Vec<u32>,
    /// Number of receive queues at the start.
    pub rx_queues: u32,
    /// Reasons for which binding or attachment fell back to a lesser mode, in sentences.
    pub fallbacks: Vec<String>,
}

/// Attachment of the XDP program to a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedView {
    /// Mode: `"native"` or `"generic"`.
    pub xdp: String,
    /// Reason for the lesser mode, in one sentence.
    pub fallback: Option<String>,
}

/// Packet counters of the XDP program on one NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteerCounters {
    /// Packets redirected to a worker.
    pub steered: u64,
    /// Packets passed to the kernel.
    pub passed: u64,
    /// Packets dropped because no socket serves their queue.
    pub no_socket: u64,
}

/// `XDP_STATISTICS` (linux/if_xdp.h), summed over the sockets of one NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the kernel's fields")]
pub struct SocketStatistics {
    pub rx_dropped: u64,
    pub rx_ring_full: u64,
    pub rx_fill_empty: u64,
    pub rx_invalid: u64,
    pub tx_invalid: u64,
}

/// Interface of control to the XDP program and its sockets.
pub trait SteeringProgram {
    /// Makes the program's maps hold exactly these rules. Keys that stay are present throughout.
    fn sync(&mut self, rules: &SteerRules) -> Result<(), String>;
    /// Attaches the program to every NIC, in order. Called once, after the first table is published
    /// and the first rules are set, so that no packet meets a program without rules.
    fn attach(&mut self) -> Result<Vec<AttachedView>, String>;
    /// Returns the program's counters of one NIC.
    fn counters(&mut self, nic: NicIndex) -> SteerCounters;
    /// Returns the kernel's counters of the sockets of one NIC.
    fn socket_statistics(&mut self, nic: NicIndex) -> SocketStatistics;
    /// Returns the current state of one NIC.
    fn nic_now(&mut self, nic: NicIndex) -> Result<NicNow, String>;
}

/// Current state of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicNow {
    /// The interface has been removed.
    Gone,
    /// An interface with the NIC's index or name exists.
    There {
        /// Interface index.
        ifindex: u32,
        /// MAC address.
        mac: [u8; 6],
        /// Whether the interface is set up.
        up: bool,
        /// Whether the interface has a carrier.
        carrier: bool,
        /// Number of receive queues.
        rx_queues: u32,
        /// XDP program of the interface.
        program: ProgramNow,
    },
}

/// XDP program of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramNow {
    /// The program of this process.
    Ours,
    /// Another program, by its id.
    Other(u32),
    /// No program.
    None,
}

/// Event that a worker reports to control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The worker has ended, which should never happen.
    Failed {
        /// Index of the worker.
        worker: usize,
        /// Reason of the failure.
        error: String,
    },
}

/// Request of an operator by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Reason for which the control thread could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The tokio runtime could not be started.
    #[error("control thread: {0}; raise the limit of open files (ulimit -n) if it is reached")]
    Runtime(io::Error),
    /// Netlink could not be opened or queried.
    #[error("netlink: {0}; holdfast needs it for routes, neighbours and addresses")]
    Netlink(String),
    /// Another process holds the control socket.
    #[error(
        "holdfast already runs with this socket (pid {pid}): {}; stop that process, or set another \
         [control] socket",
        path.display()
    )]
    AlreadyRunning {
        /// Path of the socket.
        path: PathBuf,
        /// Process id that the other process wrote into its lock file.
        pid: String,
    },
    /// The control socket cannot be created.
    #[error("control socket {}: {reason}; set [control] socket to a path that can be made", path.display())]
    Socket {
        /// Path of the socket, its lock file or its directory.
        path: PathBuf,
        /// Reason of the failure.
        reason: String,
    },
    /// The address of a VIP cannot be put on the interface that `announce` names.
    #[error("{0}")]
    Announce(#[from] announce::AnnounceError),
    /// There are more VIPs or backends than indices.
    #[error("{0}")]
    Full(#[from] state::Full),
    /// The maps of the XDP program could not be filled.
    #[error("XDP program: the rules for VIPs could not be set: {0}")]
    Steering(String),
    /// The XDP program could not be attached.
    #[error("XDP program: {0}")]
    Attach(String),
    /// A worker has ended, and its queues are dead.
    #[error("worker {worker} has failed: {error}; holdfast stops, start it again")]
    Worker {
        /// Index of the worker.
        worker: usize,
        /// Reason of the failure.
        error: String,
    },
}

/// Runs the control thread until SIGTERM or SIGINT, then removes the addresses and the control
/// socket that it created. Blocks.
///
/// # Errors
/// When the thread cannot start, or a worker has failed. Addresses and socket are removed in these
/// cases, too.
pub fn run(inputs: Inputs, signals: Signals) -> Result<(), ControlError> {
    let Signals { runtime, streams, .. } = signals;
    runtime.block_on(async { serve(inputs, merge(streams)).await })
}

/// Runs the control thread as [`run`] does, on the caller's runtime and with the caller's signals.
///
/// # Errors
/// The errors of [`run`].
pub async fn serve(inputs: Inputs, signals: mpsc::Receiver<Signal>) -> Result<(), ControlError> {
    controller::serve(inputs, signals).await
}

/// Signals of the process: caught from the start on, and handled when the control thread serves. No
/// signal ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    runtime: Runtime,
    streams: Vec<(Signal, unix::Signal)>,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Catches SIGTERM, SIGINT and SIGHUP.
    ///
    /// # Errors
    /// When the process lacks a resource that tokio needs.
    pub fn catch() -> Result<Self, ControlError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ControlError::Runtime)?;
        let stop = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            flag::register(number, Arc::clone(&stop)).map_err(ControlError::Runtime)?;
        }
        let entered = runtime.enter();
        let streams = [
            (Signal::Stop, SignalKind::terminate()),
            (Signal::Stop, SignalKind::interrupt()),
            (Signal::Reload, SignalKind::hangup()),
        ];
        let streams = streams.map(|(meaning, kind)| Ok((meaning, signal(kind)?)));
        let streams: Result<_, _> = streams.into_iter().collect();
        let streams = streams.map_err(ControlError::Runtime)?;
        drop(entered);
        Ok(Self { runtime, streams, stop })
    }

    /// Returns whether a stop was requested, so that a start can be abandoned before it changes
    /// anything.
    pub fn stop_is_asked(&self) -> bool {
        // Relaxed: the flag publishes nothing else.
        self.stop.load(Ordering::Relaxed)
    }
}

/// Merges the signals into one channel.
fn merge(streams: Vec<(Signal, unix::Signal)>) -> mpsc::Receiver<Signal> {
    let (sender, receiver) = mpsc::channel(4);
    for (meaning, mut stream) in streams {
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(meaning).await.is_ok() {}
        });
    }
    receiver
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests;
