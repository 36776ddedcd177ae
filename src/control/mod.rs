//! The control thread: health, drain, reload, neighbours, announcements and the control API.
//!
//! One thread owns everything that changes ([`controller`]): VIPs and backends ([`state`]), what
//! their checks say ([`health`]), where frames for them go ([`neighbour`]), which addresses are
//! put on NICs ([`announce`]) and who drains ([`drain`]) or comes back ([`slow_start`]). Each change ends in a new forwarding
//! table, built and published there. What it needs of the planes below comes in through
//! [`Inputs`], so that this plane knows neither sockets nor the XDP program:
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
/// Sends one Ethernet frame out of the interface with this index, without waiting.
pub type SendFrame = Box<dyn FnMut(u32, &[u8]) -> io::Result<()> + Send>;
/// The flow tables' clock: the one whose [`Ticks`] their records carry.
pub type Clock = Arc<dyn Fn() -> Ticks + Send + Sync>;

/// Everything that the control thread works with; the daemon fills it.
pub struct Inputs {
    /// What the process was started with.
    pub config: Config,
    /// Where it came from; a reload reads it again.
    pub config_path: PathBuf,
    /// How it is read.
    pub load: Load,
    /// The control socket, claimed early so that a second process fails before it opens NICs.
    pub control_socket: ControlSocket,
    /// The workers, in the configuration's order.
    pub workers: Vec<WorkerView>,
    /// The NICs, in the configuration's order.
    pub nics: Vec<NicView>,
    /// Where new forwarding tables go.
    pub publisher: Publisher,
    /// The XDP program and its sockets.
    pub steering: Box<dyn SteeringPort>,
    /// How addresses are announced.
    pub send_frame: SendFrame,
    /// The tables that all workers share.
    pub shared: Arc<SharedTables>,
    /// What happens to workers.
    pub events: crossbeam_channel::Receiver<WorkerEvent>,
    /// The clock of the flow tables.
    pub clock: Clock,
    /// Who says what becomes of a packet.
    pub explain: explain::Explain,
    /// Called once, when the first table is published, steered and announced.
    pub ready: Box<dyn FnOnce()>,
}

/// What control sees of a worker. All of it is shared and only read here.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// The core that it is pinned to.
    pub core: usize,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// Its flow table.
    pub flows: Arc<FlowTable>,
}

/// What control sees of a NIC; fixed while the process runs.
#[derive(Debug, Clone)]
pub struct NicView {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Longest IP packet that it sends, in bytes.
    pub mtu: u16,
    /// Kernel driver.
    pub driver: String,
    /// `"zero_copy"`, `"copy"` or `"mixed"`.
    pub mode: String,
    /// Whether a packet may lie in several frames.
    pub multi_buffer: bool,
    /// Queues that are served.
    pub queues: Vec<u32>,
    /// Queues that it had.
    pub rx_queues: u32,
    /// Why it is bound or attached in a lesser way than was hoped for, in sentences.
    pub fallbacks: Vec<String>,
}

/// How the XDP program was attached to a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedView {
    /// `"native"` or `"generic"`.
    pub xdp: String,
    /// Why it is less than was hoped for, in one sentence.
    pub fallback: Option<String>,
}

/// Packets that the XDP program counted on one NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteerCounters {
    /// Given to a worker.
    pub steered: u64,
    /// Left to the kernel.
    pub passed: u64,
    /// Dropped because no socket serves their queue.
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

/// The XDP program and its sockets, as far as control uses them.
pub trait SteeringPort {
    /// Makes the program's maps hold exactly these rules; keys that stay are never gone between.
    fn sync(&mut self, rules: &SteerRules) -> Result<(), String>;
    /// Attaches the program to every NIC, in their order. Called once, with the first table
    /// published and the first rules set, so that no packet meets a program that knows nothing.
    fn attach(&mut self) -> Result<Vec<AttachedView>, String>;
    /// The program's counters of one NIC.
    fn counters(&mut self, nic: NicIndex) -> SteerCounters;
    /// The kernel's counters of one NIC's sockets.
    fn socket_statistics(&mut self, nic: NicIndex) -> SocketStatistics;
    /// What has become of one NIC.
    fn nic_now(&mut self, nic: NicIndex) -> Result<NicNow, String>;
}

/// What has become of a NIC since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicNow {
    /// It has been removed.
    Gone,
    /// There is one of its index or name.
    There {
        /// Its index.
        ifindex: u32,
        /// Its MAC.
        mac: [u8; 6],
        /// Whether it has been set up.
        up: bool,
        /// Whether there is a carrier.
        carrier: bool,
        /// Queues that receive.
        rx_queues: u32,
        /// Its XDP program.
        program: ProgramNow,
    },
}

/// The XDP program of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramNow {
    /// Ours.
    Ours,
    /// Another one, by its id.
    Other(u32),
    /// None.
    None,
}

/// What a worker tells control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// It has ended, which it never should.
    Failed {
        /// Its index.
        worker: usize,
        /// Why.
        error: String,
    },
}

/// What an operator asks for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Why the control thread could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// tokio could not be started.
    #[error("control thread: {0}; raise the limit of open files (ulimit -n) if it is reached")]
    Runtime(io::Error),
    /// No netlink socket.
    #[error("netlink: {0}; holdfast needs it for routes, neighbours and addresses")]
    Netlink(String),
    /// Somebody else has the control socket.
    #[error(
        "holdfast already runs with this socket (pid {pid}): {}; stop that process, or set another \
         [control] socket",
        path.display()
    )]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
        /// What the other process wrote into its lock file.
        pid: String,
    },
    /// The control socket cannot be made.
    #[error("control socket {}: {reason}; set [control] socket to a path that can be made", path.display())]
    Socket {
        /// The socket, its lock file or its directory.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A VIP's address cannot be put where `announce` says.
    #[error("{0}")]
    Announce(#[from] announce::AnnounceError),
    /// More VIPs or backends than there are indices.
    #[error("{0}")]
    Full(#[from] state::Full),
    /// The XDP program's maps could not be filled.
    #[error("XDP program: the rules for VIPs could not be set: {0}")]
    Steering(String),
    /// The XDP program could not be attached.
    #[error("XDP program: {0}")]
    Attach(String),
    /// A worker has ended; without it, its queues are dead.
    #[error("worker {worker} has failed: {error}; holdfast stops, start it again")]
    Worker {
        /// Its index.
        worker: usize,
        /// Why.
        error: String,
    },
}

/// Runs the control thread until SIGTERM or SIGINT, then removes what it made: addresses and the
/// control socket. Blocks.
///
/// # Errors
/// When it cannot start, or when a worker has failed. What it made is removed also then.
pub fn run(inputs: Inputs, signals: Signals) -> Result<(), ControlError> {
    let Signals { runtime, streams, .. } = signals;
    runtime.block_on(async { serve(inputs, merge(streams)).await })
}

/// As [`run`], on the caller's runtime and with the caller's signals.
///
/// # Errors
/// As [`run`].
pub async fn serve(inputs: Inputs, signals: mpsc::Receiver<Signal>) -> Result<(), ControlError> {
    controller::serve(inputs, signals).await
}

/// The signals of the process: caught from the first moment of a start on, and carried out when the control
/// thread serves. None of them ends the process by itself.
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
    /// When the process has no room for what tokio needs.
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

    /// Whether a stop was asked for already, so that a start can be left before it changes anything.
    pub fn stop_is_asked(&self) -> bool {
        // Relaxed: the flag publishes nothing else.
        self.stop.load(Ordering::Relaxed)
    }
}

/// The signals as one channel.
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
