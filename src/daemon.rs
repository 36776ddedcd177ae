//! `holdfast run`: creates and connects all planes; the only module that depends on each of them.
//!
//! ```text
//! XDP program is loaded, machine is looked at    at the same time; nothing outside has changed yet
//! claim the control socket
//! XDP program on the NICs                        without rules: the kernel keeps every packet
//! memory, sockets, workers                       bound, but no packet is steered to them
//! privileges are dropped (src/privileges)
//! control: first table -> rules -> program of a killed process is replaced -> VIP addresses
//! ... until SIGTERM; then in reverse order
//! ```
//!
//! If a process runs already, it hands over ([`handover`](crate::handover)) after the first table:
//! sockets, memory and tables are its own, and its program takes the place of a killed process's.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, Scope, ScopedJoinHandle};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::config::driver::{self, Binding, Misfit, NicFacts};
use crate::config::{self, Config, CopyMode, Nic as NicConfig, XdpMode};
use crate::control::saved::Moment;
use crate::control::{
    self, ControlError, ControlSocket, HandOver, Inputs, NicView, Signals, WorkerView, reload,
};
use crate::datapath::explain::Explainer;
use crate::datapath::queues::WorkerQueue;
use crate::datapath::worker::{Parts, Worker};
use crate::flow::shared::SharedTables;
use crate::flow::table::{FlowTable, TableError};
use crate::format::{counted, reason};
use crate::forwarding::local::UNLIMITED;
use crate::forwarding::publish::{Publisher, Subscription};
use crate::forwarding::{ForwardingTable, Local, MAX_BACKENDS, MAX_VIPS};
use crate::handover::message::OfferedQueue;
use crate::handover::{
    self, ChannelError, Estate, Predecessor, Prepared, Successor, WorkerEstate, WorkerFiles,
};
use crate::net::NicIndex;
use crate::privileges::{self, PrivilegesError};
use crate::saved::{self, Directory, Document, Facts, StateError};
use crate::stats::WorkerStats;
use crate::steering::{Steered, Steerings};
use crate::workers::{State, Threads, now};
use crate::xdp::cpu::{self, CpuError};
use crate::xdp::nic::{Nic, NicError};
use crate::xdp::packet::PacketSocket;
use crate::xdp::program::{AttachMode, Attached, ProgramError, Steering};
use crate::xdp::queue::XskQueue;
use crate::xdp::socket::{BindMode, Io, Monitor, SocketError};
use crate::xdp::umem::{FramePool, Umem, UmemError};
use tokio::time::Instant;

/// Reason why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The control plane failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An interface cannot be used.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// Fewer queues than workers, or a configured queue that does not exist.
    #[error("{interface}: {reason}")]
    Queues {
        /// Name of the interface.
        interface: String,
        /// Problem and remedy.
        reason: String,
    },
    /// A NIC that receives nothing, or would truncate packets.
    #[error("{}; {}", .0.what, .0.fix)]
    Misfit(Misfit),
    /// Packet memory could not be allocated.
    #[error("[workers]: {0}")]
    Umem(#[from] UmemError),
    /// Memory for the tables could not be allocated.
    #[error("tables: {0}")]
    Tables(#[from] TableError),
    /// The directory of the state cannot be used.
    #[error("[state] directory: {0}")]
    State(#[from] StateError),
    /// An AF_XDP socket could not be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The XDP program could not be loaded or attached.
    #[error(transparent)]
    Program(Box<ProgramError>),
    /// A worker could not be pinned.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The operating system refused a thread, a socket or a random number.
    #[error("{what}: {source}")]
    Os {
        /// Attempted operation.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// Privileges could not be dropped.
    #[error(transparent)]
    Privileges(#[from] PrivilegesError),
    /// A worker could not be created.
    #[error("worker {0} could not be made: its flow table is in use")]
    Worker(usize),
}

impl From<ProgramError> for DaemonError {
    fn from(error: ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

/// A NIC that holdfast serves.
struct ServedNic {
    nic: Nic,
    /// The served queues; worker `i % workers` serves the one at index `i`.
    queues: Vec<u32>,
    steering: Steering,
    /// Driver, MTU and XDP mode, which restrict the configuration.
    facts: NicFacts,
    /// Bind mode of its sockets.
    bind: BindMode,
    /// Reasons why XDP or the sockets fall short of the preferred mode.
    fallbacks: Vec<String>,
    /// Whether its sockets accept packets of several frames.
    multi_buffer: bool,
    /// Whether zero copy is active, by socket.
    zero_copy: Vec<bool>,
    monitors: Vec<Monitor>,
}

/// A NIC of the configuration, and its XDP program, which is not attached yet.
struct LoadedNic {
    nic: Nic,
    steering: Steering,
    /// The served queues.
    queues: Vec<u32>,
    /// Reason for another XDP mode than the preferred one.
    fallback: Option<String>,
}

/// The NICs of a configuration, each with a thread that loads its program: that takes a processor
/// some 15 ms, and nothing is forwarded meanwhile.
pub struct Programs(Vec<std::io::Result<JoinHandle<Result<LoadedNic, DaemonError>>>>);

impl Programs {
    /// Begins to load the programs of all NICs. Changes nothing outside of the process.
    pub fn load(config: &Config) -> Self {
        let workers = config.workers.cores.len();
        let load = |wanted: &NicConfig| {
            let wanted = wanted.clone();
            thread::Builder::new().spawn(move || load_program(&wanted, workers))
        };
        Self(config.nics.iter().map(load).collect())
    }

    /// Waits until the programs are loaded.
    fn wait(self) -> Result<Vec<LoadedNic>, DaemonError> {
        let wait = |thread: std::io::Result<JoinHandle<_>>| {
            let thread = thread
                .map_err(|source| DaemonError::Os { what: "cannot start a thread", source })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        self.0.into_iter().map(wait).collect()
    }
}

/// Runs holdfast with the configuration at `path` until `signals` request a stop, or another process
/// takes over. If another process runs already, takes over from it.
///
/// # Errors
/// [`DaemonError`] when the start or a worker fails. Everything that was set up has been removed by
/// then.
pub fn run(
    config: Config,
    path: &Path,
    signals: Signals,
    programs: Programs,
) -> Result<(), DaemonError> {
    let (control_socket, predecessor) = claim(&config)?;
    let notice = predecessor.as_ref().map(Successor::notice);
    let result = run_after(config, path, signals, programs, (control_socket, predecessor));
    match (&result, notice) {
        (Ok(()), _) => info!("stopped"),
        (Err(error), Some(notice)) => notice.give_up(&error.to_string()),
        (Err(_), None) => {}
    }
    result
}

/// Runs holdfast, after `predecessor` has handed over, if there is one.
fn run_after(
    config: Config,
    path: &Path,
    signals: Signals,
    programs: Programs,
    (control_socket, mut predecessor): (ControlSocket, Option<Successor>),
) -> Result<(), DaemonError> {
    let inherited = predecessor.as_mut().map(|successor| std::mem::take(&mut successor.workers));
    let takes_over = inherited.is_some();
    // Neither needs the other, and each takes a processor some time.
    let (tables, prepared) = thread::scope(|scope| {
        let tables = started(scope, || open_tables(&config, predecessor.as_ref()));
        let inherited = inherited.unwrap_or_default();
        let prepared = prepare(&config, programs, predecessor.as_ref(), inherited);
        (tables.and_then(joined), prepared)
    });
    let PreparedNics { mut nics, frame_size, places, memory } = prepared?;
    let packets = PacketSocket::open()
        .map_err(|source| DaemonError::Os { what: "no packet socket, to announce", source })?;
    let (directory, tables) = tables?;
    let saved::Tables { shared, registry, set, continues, losses } = tables;
    losses.iter().for_each(|loss| warn!("state: {loss}"));
    // Without the backends of the pins, workers would remove them as stale.
    let specs = registry.specs();
    let first = ForwardingTable::build(0, config.hash.secret, Local::default(), &specs, None);
    let (publisher, tables) = Publisher::new(first);
    let (events, failures) = crossbeam_channel::bounded(config.workers.cores.len());
    let (mut parts, mut estates, mut views) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (memory, sockets)) in memory.into_iter().zip(places).enumerate() {
        views.extend(view(&config, index, &memory.stats, &shared.flows));
        let core = config.workers.cores.get(index).copied().unwrap_or_default();
        let made = on_core(core, || {
            make_parts(&config, index, &mut nics, (&shared, &tables), memory, sockets)
        })?;
        parts.push(made.0);
        estates.push(made.1);
    }
    let workers = each_on_its_core(&config, parts, |index, parts| {
        let parts = parts.ok_or(DaemonError::Worker(index))?;
        new_worker(index, parts, takes_over)
    })?;
    if continues && predecessor.is_none() {
        let pins: u64 = views.iter().map(|worker| worker.stats.flows_active.get()).sum();
        info!("state: {} taken over from an earlier process", counted(pins, "flow"));
    }
    let explain = explainer(&shared, &views)?;
    // It would keep the first table alive.
    drop(tables);
    let nic_views: Vec<NicView> = nics.iter().map(nic_view).collect();
    let steered = |ServedNic { nic, steering, monitors, .. }| Steered { nic, steering, monitors };
    let steerings = nics.into_iter().map(steered).collect();
    if signals.stop_is_asked() {
        info!("stopped before it was ready, as a signal asked for");
        return Ok(());
    }
    let privileges = privileges::confine_process(config.security.seccomp)?;
    info!("{privileges}");
    if let Err(error) = File::open(path) {
        warn!(
            "{}: {}: a reload will fail, as root's right to read files of others has been dropped; \
             chown it to root",
            path.display(),
            reason(&error)
        );
    }
    let threads = Threads::start(&config, workers, &events)
        .map_err(|source| DaemonError::Os { what: "cannot start a worker", source })?;
    let threads = Arc::new(threads);
    let take_over = match predecessor {
        Some(successor) => Some(take_over(successor.prepared(), Arc::clone(&threads))),
        None => {
            threads.run(Duration::ZERO);
            None
        }
    };
    let estates = Arc::new(estates);
    let estate = directory.as_ref().and_then(|directory| {
        let nics = nic_views.iter().map(|nic| nic.ifindex).collect();
        estate(&config, directory, &control_socket, (nics, frame_size), &estates)
    });
    let (closing, closed) = crossbeam_channel::bounded(1);
    let close = {
        let (threads, shared) = (Arc::clone(&threads), Arc::clone(&shared));
        // Without a thread the sockets are closed at the end of the process, one after the other.
        Box::new(move || _ = close(threads, estates, shared).map(|thread| closing.send(thread)))
    };
    let inputs = Inputs {
        config_path: path.to_owned(),
        load: Arc::new(|path| config::load(path).map_err(|errors| errors.messages())),
        workers: views,
        nics: nic_views,
        registry,
        save: directory.map(|directory| saver(directory, set, &config, &shared)),
        publisher,
        shared,
        steering: Box::new(Steerings::new(steerings, close)),
        send_frame: Box::new(move |interface, frame| packets.send(interface, frame)),
        events: failures,
        clock: Arc::new(now),
        explain,
        privileges,
        hand_over: HandOver {
            take_over,
            steps: estate.and_then(|estate| heirs(&config, estate, &threads)),
            start_again: config.state.directory.is_some().then(handover::start_again),
        },
        ready: Box::new(|| {
            info!("ready");
            handover::notify("READY=1");
        }),
        control_socket,
        config,
    };
    let result = control::run(inputs, signals);
    threads.end();
    for thread in closed.try_iter() {
        // A panic there has been reported, and the process ends.
        let _ = JoinHandle::join(thread);
    }
    Ok(result?)
}

/// Creates the control socket, or asks the process that has it for a hand-over.
fn claim(config: &Config) -> Result<(ControlSocket, Option<Successor>), DaemonError> {
    let socket = &config.control.socket;
    let running = match control::admin::claim(socket) {
        Err(running @ ControlError::AlreadyRunning { .. }) => running,
        claimed => return Ok((claimed?, None)),
    };
    let Some(parent) = &config.state.directory else { return Err(running.into()) };
    let successor = match Successor::ask(&saved::hand_over_socket(parent, socket)) {
        Ok(successor) => successor,
        // No process listens: it starts, ends, or is of a version without hand-over.
        Err(ChannelError::Os(error)) => {
            debug!("hand-over: {error}");
            return Err(running.into());
        }
        Err(error) => return Err(ControlError::NotTakenOver(error.to_string()).into()),
    };
    let differing = reload::differing(&successor.offer.fixed, &reload::fixed(config));
    if !differing.is_empty() {
        let reason = format!("{} cannot change at a hand-over", differing.join(", "));
        successor.notice().give_up(&reason);
        return Err(not_taken_over(reason));
    }
    let [listener, lock] = &successor.control;
    let copy = |file: &OwnedFd| {
        file.try_clone().map_err(|source| DaemonError::Os { what: "too many files", source })
    };
    let control_socket = ControlSocket::adopt(socket, copy(listener)?, copy(lock)?)?;
    Ok((control_socket, Some(successor)))
}

fn not_taken_over(reason: String) -> DaemonError {
    ControlError::NotTakenOver(reason).into()
}

/// Checks that the NICs and the packet memory are those of the running process.
fn check_offer(
    successor: &Successor,
    nics: &[ServedNic],
    frame_size: u32,
) -> Result<(), DaemonError> {
    let offer = &successor.offer;
    let what = if offer.frame_size != frame_size {
        "the frame size would be another: the MTU of a NIC has changed"
    } else if !nics.iter().map(|served| served.nic.index()).eq(offer.nics.iter().copied()) {
        "a NIC is another device by now"
    } else {
        return Ok(());
    };
    Err(not_taken_over(what.to_owned()))
}

/// Creates the function that makes the running process stop, and this one go on in its place.
fn take_over(successor: Prepared, threads: Arc<Threads>) -> control::hand_over::TakeOver {
    Box::new(move || successor.switch(&threads))
}

/// Collects what a later process gets; `None` if that is not possible.
fn estate(
    config: &Config,
    directory: &Directory,
    control_socket: &ControlSocket,
    (nics, frame_size): (Vec<u32>, u32),
    workers: &Arc<Vec<WorkerEstate>>,
) -> Option<Estate> {
    let workers = Arc::downgrade(workers);
    let fixed = reload::fixed(config);
    let state_lock = directory.lock().ok()?;
    let control = control_socket.duplicate()?;
    Some(Estate { fixed, nics, frame_size, workers, state_lock, control })
}

/// Ends the workers, and closes their sockets, on a thread of its own. For each socket the kernel
/// waits until no packet is on its way to it (net/xdp/xsk.c, `xsk_unbind_dev`: `synchronize_net`),
/// some 20 ms, in which nothing is forwarded any longer: so they are closed at the same time, and
/// while the programs are removed and memory is freed.
fn close(
    threads: Arc<Threads>,
    workers: Arc<Vec<WorkerEstate>>,
    shared: Arc<SharedTables>,
) -> std::io::Result<JoinHandle<()>> {
    let end = move || {
        threads.end();
        // If a process that takes over is being sent the sockets now, they are closed after that.
        let sockets = Arc::into_inner(workers).into_iter().flatten();
        let sockets = sockets.flat_map(|worker| worker.sockets);
        let close = |socket| thread::Builder::new().spawn(move || drop::<OwnedFd>(socket));
        let closing: Vec<_> = sockets.filter_map(|socket| close(socket).ok()).collect();
        shared.let_go();
        drop(shared);
        closing.into_iter().for_each(|thread| _ = thread.join());
    };
    thread::Builder::new().name("close".to_owned()).spawn(end)
}

/// Waits for processes that take over; returns the steps for the control thread. Without them, only
/// a restart replaces this process.
fn heirs(
    config: &Config,
    estate: Estate,
    threads: &Arc<Threads>,
) -> Option<mpsc::Receiver<control::hand_over::Step>> {
    let parent = config.state.directory.as_ref()?;
    let path = saved::hand_over_socket(parent, &config.control.socket);
    match Predecessor::start(&path, estate, Arc::clone(threads)) {
        Ok(steps) => Some(steps),
        Err(error) => {
            warn!("{}: {}; no hand-over to another process", path.display(), reason(&error));
            None
        }
    }
}

fn random_seed() -> Result<u64, DaemonError> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|source| DaemonError::Os { what: "/dev/urandom", source })?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Opens a NIC and loads a program for it.
fn load_program(wanted: &NicConfig, workers: usize) -> Result<LoadedNic, DaemonError> {
    let nic = Nic::open(&wanted.interface)?;
    driver::receives(wanted, nic.driver()).map_err(DaemonError::Misfit)?;
    let queues = served_queues(wanted, &nic, workers)?;
    let (mode, fallback) = driver::attach_mode(wanted, nic.driver());
    let mode = match mode {
        XdpMode::Native => AttachMode::Native,
        XdpMode::Generic => AttachMode::Generic,
        XdpMode::Auto => AttachMode::Auto,
    };
    let steering = Steering::load(&nic, mode)?;
    Ok(LoadedNic { nic, steering, queues, fallback })
}

/// NICs with their programs attached, and the memory of the workers.
struct PreparedNics {
    nics: Vec<ServedNic>,
    /// Frame size of the memory in bytes.
    frame_size: u32,
    /// The queues of each worker.
    places: Vec<Vec<(NicIndex, u32)>>,
    memory: Vec<WorkerMemory>,
}

/// Attaches the programs, and creates the packet memory: its frame size depends on their XDP mode;
/// or takes over that of the running process.
fn prepare(
    config: &Config,
    programs: Programs,
    predecessor: Option<&Successor>,
    inherited: Vec<WorkerFiles>,
) -> Result<PreparedNics, DaemonError> {
    let nics = programs.wait()?.into_iter().map(attach_first);
    let mut nics = nics.collect::<Result<Vec<_>, _>>()?;
    let frame_size = bind_modes(config, &mut nics)?;
    if let Some(successor) = predecessor {
        check_offer(successor, &nics, frame_size)?;
    }
    let places = places(config, &nics);
    let memory = each_on_its_core(config, inherited, |index, files| {
        let sockets = places.get(index).map_or(&[][..], Vec::as_slice);
        packet_memory(config, frame_size, sockets, nics.len(), files)
    })?;
    Ok(PreparedNics { nics, frame_size, places, memory })
}

/// Attaches the program, without rules, to a NIC that has none.
fn attach_first(loaded: LoadedNic) -> Result<ServedNic, DaemonError> {
    let LoadedNic { nic, mut steering, queues, fallback } = loaded;
    let generic = steering.prepare()? == Attached::Generic;
    let facts = NicFacts { driver: nic.driver().to_owned(), mtu: nic.mtu(), generic };
    if !nic.is_up() {
        warn!("{0} is down; bring it up with: ip link set {0} up", nic.name());
    }
    Ok(ServedNic {
        nic,
        queues,
        steering,
        facts,
        bind: BindMode::Copy,
        fallbacks: Vec::from_iter(fallback),
        multi_buffer: false,
        zero_copy: Vec::new(),
        monitors: Vec::new(),
    })
}

/// Selects the bind mode of each NIC's sockets; returns the frame size of packet memory in bytes.
fn bind_modes(config: &Config, nics: &mut [ServedNic]) -> Result<u32, DaemonError> {
    let facts: Vec<NicFacts> = nics.iter().map(|served| served.facts.clone()).collect();
    let frame_size = config.frame_size(&facts);
    for (wanted, served) in config.nics.iter().zip(nics) {
        let Binding { mode, lost } =
            driver::binding(wanted, &served.facts, frame_size).map_err(DaemonError::Misfit)?;
        served.bind = match mode {
            CopyMode::ZeroCopy => BindMode::ZeroCopy,
            CopyMode::Copy => BindMode::Copy,
            CopyMode::Auto => BindMode::Auto,
        };
        served.fallbacks.extend(lost.map(|Misfit { what, fix }| format!("{what}; {fix}")));
        served.multi_buffer = served.facts.mtu > driver::largest_mtu(frame_size);
    }
    Ok(frame_size)
}

/// Returns the served queues of a NIC; every worker needs one to transmit.
fn served_queues(wanted: &NicConfig, nic: &Nic, workers: usize) -> Result<Vec<u32>, DaemonError> {
    let there = nic.rx_queues();
    let queues = wanted.queues.clone().unwrap_or_else(|| (0..there).collect());
    let error = |reason| DaemonError::Queues { interface: nic.name().to_owned(), reason };
    if let Some(missing) = queues.iter().find(|&&queue| queue >= there) {
        return Err(error(format!(
            "queue {missing} does not exist, the NIC has {there}; change [[nic]] queues"
        )));
    }
    if queues.len() < workers {
        return Err(error(format!(
            "too few queues: {} for {workers} workers, and each needs one to transmit; \
             ethtool -L {} combined {workers}, or fewer [workers] cores",
            queues.len(),
            nic.name()
        )));
    }
    Ok(queues)
}

/// Opens the directory of the state. Without one, pins end with this process.
fn state_directory(config: &Config) -> Result<Option<Directory>, DaemonError> {
    let Some(parent) = &config.state.directory else { return Ok(None) };
    match Directory::open(parent, &config.control.socket) {
        Ok(directory) => Ok(Some(directory)),
        Err(error @ StateError::InUse(_)) => Err(error.into()),
        Err(error) => {
            warn!("state: {error}; without it, a restart of this process loses every pin");
            Ok(None)
        }
    }
}

/// Opens the tables: in the directory of the state, if there is one and it has room.
fn open_tables(
    config: &Config,
    predecessor: Option<&Successor>,
) -> Result<(Option<Directory>, saved::Tables), DaemonError> {
    let moment = Moment { instant: Instant::now(), ticks: now() };
    let seed = random_seed()?;
    let open = |directory: Option<&Directory>| {
        saved::open(directory, config, seed, &moment, &|worker, make| {
            let core = config.workers.cores.get(worker).copied().unwrap_or_default();
            // A core that cannot be used is reported when its worker is made.
            on_core(core, || Ok(make())).unwrap_or_else(|_| make())
        })
    };
    if let (Some(successor), Some(parent)) = (predecessor, &config.state.directory) {
        let lock = successor.state_lock.try_clone();
        let lock = lock.map_err(|source| DaemonError::Os { what: "too many files", source })?;
        let directory = Directory::adopt(parent, &config.control.socket, lock)?;
        return match open(Some(&directory)) {
            Ok(tables) if tables.continues && tables.losses.is_empty() => {
                Ok((Some(directory), tables))
            }
            Ok(tables) => Err(not_taken_over(tables.losses.join("; "))),
            Err(error) => Err(not_taken_over(error.to_string())),
        };
    }
    let directory = state_directory(config)?;
    match open(directory.as_ref()) {
        Err(error) if directory.is_some() => {
            warn!("state: {error}; the tables are made outside of it: a restart loses every pin");
            directory.iter().for_each(Directory::clear);
            Ok((None, open(None)?))
        }
        tables => Ok((directory, tables?)),
    }
}

/// Creates the saver of the registry. The first save removes the tables of earlier sets, because
/// nothing refers to them from then on.
fn saver(directory: Directory, set: u32, config: &Config, shared: &SharedTables) -> control::Save {
    let facts = Facts::of(config);
    let seed = shared.flows.first().map_or(0, |flows| flows.secret().seed());
    let mut first = true;
    Box::new(move |registry| {
        let document = Document::new(set, seed, facts.clone(), registry.clone());
        directory.write(&document.to_bytes()?)?;
        if std::mem::take(&mut first) {
            directory.keep_only(set);
        }
        Ok(())
    })
}

/// Runs `make` on a core, so that its memory lies on that core's NUMA node: the kernel allocates
/// pages on the node of the first access.
fn on_core<T: Send>(
    core: usize,
    make: impl FnOnce() -> Result<T, DaemonError> + Send,
) -> Result<T, DaemonError> {
    let pinned = || {
        cpu::pin_to_core(core)?;
        make()
    };
    thread::scope(|scope| started(scope, pinned).and_then(joined))
}

/// Runs `make` for every worker at once, each on its core for the reason of [`on_core`], with the
/// input of the same index, if there is one.
fn each_on_its_core<I: Send, T: Send>(
    config: &Config,
    inputs: Vec<I>,
    make: impl Fn(usize, Option<I>) -> Result<T, DaemonError> + Sync,
) -> Result<Vec<T>, DaemonError> {
    let (make, mut inputs) = (&make, inputs.into_iter());
    thread::scope(|scope| {
        let start = |(index, &core)| {
            let input = inputs.next();
            started(scope, move || {
                cpu::pin_to_core(core)?;
                make(index, input)
            })
        };
        let threads: Vec<_> = config.workers.cores.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.and_then(joined)).collect()
    })
}

/// Starts a thread.
fn started<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    run: impl FnOnce() -> T + Send + 's,
) -> Result<ScopedJoinHandle<'s, T>, DaemonError> {
    let thread = thread::Builder::new().spawn_scoped(scope, run);
    thread.map_err(|source| DaemonError::Os { what: "cannot start a thread", source })
}

/// Waits for a thread; a panic goes on in this one.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns the queues that each worker serves.
fn places(config: &Config, nics: &[ServedNic]) -> Vec<Vec<(NicIndex, u32)>> {
    let workers = config.workers.cores.len();
    let of_worker = |index: usize| {
        let of_nic = |(nic, served): (u8, &ServedNic)| {
            let mine = served.queues.iter().skip(index).step_by(workers);
            mine.map(|&queue| (NicIndex(nic), queue)).collect::<Vec<_>>()
        };
        (0..).zip(nics).flat_map(of_nic).collect()
    };
    (0..workers).map(of_worker).collect()
}

/// Memory of a worker, and the sockets of the running process, if there is one.
struct WorkerMemory {
    umem: Umem,
    pool: FramePool,
    stats: Arc<WorkerStats>,
    inherited: Vec<(OfferedQueue, OwnedFd)>,
}

/// Creates the packet memory and the counters of a worker with these queues, or takes the memory of
/// the running process.
fn packet_memory(
    config: &Config,
    frame_size: u32,
    sockets: &[(NicIndex, u32)],
    nics: usize,
    files: Option<WorkerFiles>,
) -> Result<WorkerMemory, DaemonError> {
    let stats = Arc::new(WorkerStats::new(MAX_VIPS, MAX_BACKENDS, nics));
    let Some(WorkerFiles { offered, umem, sockets: files }) = files else {
        let needed = config.frames_needed(sockets.iter().map(|(nic, _)| *nic));
        // At most 65,536.
        let more = u32::try_from(config.fragments.parked).unwrap_or(u32::MAX);
        let frames = config.workers.frames.unwrap_or(needed.saturating_add(more));
        let (umem, pool) = Umem::create(frames, frame_size)?;
        return Ok(WorkerMemory { umem, pool, stats, inherited: Vec::new() });
    };
    let queues = offered.queues.iter().map(|queue| (NicIndex(queue.nic), queue.queue));
    if !queues.eq(sockets.iter().copied()) {
        return Err(not_taken_over("the queues of a NIC have changed".to_owned()));
    }
    let umem = Umem::adopt(umem, offered.frames, frame_size)?;
    let pool = umem.free_frames();
    Ok(WorkerMemory {
        umem,
        pool,
        stats,
        inherited: offered.queues.into_iter().zip(files).collect(),
    })
}

/// Creates the components of a worker, with a socket on each of its queues: new ones, or those of the
/// running process. Also returns what a later process gets.
fn make_parts(
    config: &Config,
    index: usize,
    nics: &mut [ServedNic],
    (shared, tables): (&Arc<SharedTables>, &Subscription),
    memory: WorkerMemory,
    sockets: Vec<(NicIndex, u32)>,
) -> Result<(Parts, WorkerEstate), DaemonError> {
    let WorkerMemory { umem, pool, stats, inherited } = memory;
    let mut inherited = inherited.into_iter();
    let (mut queues, mut estate) = (Vec::new(), (Vec::new(), Vec::new()));
    for (nic, queue) in sockets {
        let at = usize::from(nic.0);
        let (Some(served), Some(wanted)) = (nics.get_mut(at), config.nics.get(at)) else {
            continue;
        };
        let inherited = inherited.next();
        let xsk = open_queue(&umem, served, wanted, config.workers.io, queue, inherited)?;
        let copy = xsk.duplicate();
        let copy = copy.map_err(|source| DaemonError::Os { what: "too many sockets", source })?;
        let (ring, multi_buffer) = (wanted.ring, xsk.multi_buffer());
        estate.0.push(OfferedQueue { nic: nic.0, queue, ring, multi_buffer });
        estate.1.extend(copy);
        queues.push(WorkerQueue::new(nic, xsk));
    }
    let parts = Parts {
        queues,
        pool,
        shared: Arc::clone(shared),
        parked: config.fragments.parked,
        index: u8::try_from(index).map_err(|_| DaemonError::Worker(index))?,
        tables: tables.clone(),
        stats,
        batch: config.workers.batch,
    };
    let (queues, sockets) = estate;
    Ok((parts, WorkerEstate { umem, queues, sockets }))
}

/// Creates a worker, unless it has to take over first.
fn new_worker(index: usize, parts: Parts, takes_over: bool) -> Result<State, DaemonError> {
    if takes_over {
        return Ok(State::Parts(Box::new(parts)));
    }
    let worker = Worker::new(parts, now()).ok_or(DaemonError::Worker(index))?;
    Ok(State::Worker(Box::new(worker)))
}

fn open_queue(
    umem: &Umem,
    served: &mut ServedNic,
    wanted: &NicConfig,
    io: config::Io,
    queue: u32,
    inherited: Option<(OfferedQueue, OwnedFd)>,
) -> Result<XskQueue, DaemonError> {
    let mode = served.bind;
    let config::Io { need_wakeup, tx_budget, tx_kick, busy_poll } = io;
    let multi_buffer = served.multi_buffer;
    let io = Io { mode, multi_buffer, need_wakeup, tx_budget, tx_kick, busy_poll };
    let xsk = match inherited {
        Some((offered, socket)) => {
            served.multi_buffer = offered.multi_buffer;
            let io = Io { multi_buffer: offered.multi_buffer, ..io };
            XskQueue::adopt(umem, &served.nic, queue, offered.ring, io, socket)?
        }
        None => new_queue(umem, served, wanted, io, queue)?,
    };
    served.steering.set_socket(queue, &xsk)?;
    served.zero_copy.push(xsk.zero_copy());
    let monitor = xsk.monitor();
    let monitor = monitor.map_err(|source| DaemonError::Os { what: "too many sockets", source })?;
    served.monitors.extend(monitor);
    Ok(xsk)
}

fn new_queue(
    umem: &Umem,
    served: &mut ServedNic,
    wanted: &NicConfig,
    io: Io,
    queue: u32,
) -> Result<XskQueue, DaemonError> {
    match XskQueue::open(umem, &served.nic, queue, wanted.ring, io) {
        Err(error @ SocketError::NoMultiBuffer { .. }) => {
            let (name, mtu) = (served.nic.name(), served.nic.mtu());
            warn!("{error}; {name} has an MTU of {mtu}: the kernel will drop what does not fit");
            served.multi_buffer = false;
            let io = Io { multi_buffer: false, ..io };
            Ok(XskQueue::open(umem, &served.nic, queue, wanted.ring, io)?)
        }
        opened => Ok(opened?),
    }
}

fn view(
    config: &Config,
    index: usize,
    stats: &Arc<WorkerStats>,
    flows: &[Arc<FlowTable>],
) -> Option<WorkerView> {
    let core = *config.workers.cores.get(index)?;
    Some(WorkerView { core, stats: Arc::clone(stats), flows: Arc::clone(flows.get(index)?) })
}

fn nic_view(served: &ServedNic) -> NicView {
    let mode = match (served.zero_copy.contains(&true), served.zero_copy.contains(&false)) {
        (true, true) => "mixed",
        (true, false) => "zero_copy",
        (false, _) => "copy",
    };
    NicView {
        interface: served.nic.name().to_owned(),
        ifindex: served.nic.index(),
        mac: served.nic.mac(),
        mtu: u16::try_from(served.nic.mtu()).unwrap_or(UNLIMITED),
        driver: served.nic.driver().to_owned(),
        mode: mode.to_owned(),
        multi_buffer: served.multi_buffer,
        queues: served.queues.clone(),
        rx_queues: served.nic.rx_queues(),
        fallbacks: served.fallbacks.clone(),
    }
}

/// Creates the function behind `explain`, which answers one question at a time.
fn explainer(
    shared: &Arc<SharedTables>,
    workers: &[WorkerView],
) -> Result<control::explain::Explain, DaemonError> {
    let stats = workers.iter().map(|worker| Arc::clone(&worker.stats)).collect();
    let explainer = Explainer::new(Arc::clone(shared), stats)?;
    let explainer = Mutex::new(explainer);
    Ok(Arc::new(move |question, table| {
        let mut explainer =
            explainer.lock().map_err(|_| "an earlier question failed".to_owned())?;
        explainer.explain(question, table, now()).map_err(|error| error.to_string())
    }))
}
