//! The lab of `scripts/lab` and a running holdfast, as values that clean up when they go.

mod config;
mod holdfast;
mod router;
mod traffic;

use std::ffi::OsStr;
use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use config::{Config, Family, Vip, tunnel, vip};
pub use holdfast::{BINARY, Holdfast, log_of};
pub use traffic::{Blocked, blocked, conversation, download, requests, udp_requests, upload};

/// MAC addresses of the balancer, as `scripts/lab` gives them: first (or only) NIC, second NIC.
pub const BALANCER_MACS: [&str; 2] = ["02:00:00:00:01:02", "02:00:00:00:02:02"];
/// The backends.
pub const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];
/// Size of the file to download, in units of 1,000,000 bytes.
const BIG_MB: u32 = 24;
/// Labs end with this: the process that made them can be told from their name.
const PREFIX: &str = "hfe";

/// How balancer, clients and backends are connected; see `scripts/lab`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One segment, one NIC.
    Stick,
    /// Clients before, backends behind the balancer.
    TwoNic,
}

impl Topology {
    /// Interfaces of the balancer.
    pub fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::Stick => &["eth0"],
            Self::TwoNic => &["front", "back"],
        }
    }
}

/// A lab. One at a time; removed when dropped.
pub struct Lab {
    name: String,
    /// How it is connected.
    pub topology: Topology,
    // Last, so that the next test starts after the removal.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// A lab with two queues per NIC of the balancer.
    pub fn up(topology: Topology) -> Self {
        Self::with_queues(topology, 2)
    }

    /// A lab with `queues` queues per NIC of the balancer.
    pub fn with_queues(topology: Topology, queues: u32) -> Self {
        // A test that failed while it held the lock has still removed its lab.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        remove_leftovers();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            name: format!("{PREFIX}{}-{count}", std::process::id()),
            topology,
            _alone: alone,
        };
        let topology = match topology {
            Topology::Stick => "stick",
            Topology::TwoNic => "two-nic",
        };
        let queues = queues.to_string();
        let big_mb = BIG_MB.to_string();
        let up = ["up", "--topology", topology, "--queues", &queues, "--clients", "20"];
        lab.script(&[&up[..], &["--big-mb", &big_mb]].concat());
        lab
    }

    /// Where the lab keeps its files.
    pub fn state(&self) -> PathBuf {
        Path::new("/var/lib/holdfast-lab").join(&self.name)
    }

    /// The digest of the file that backends serve as `/big`.
    pub fn big_sha256(&self) -> String {
        std::fs::read_to_string(self.state().join("big.sha256")).unwrap().trim().to_owned()
    }

    /// The namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    /// A command in the namespace of `host`; its process id is that of the program itself.
    pub fn command(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// A UDP socket in `host`. It stays there, whatever thread uses it.
    #[expect(unsafe_code, reason = "setns(2)")]
    pub fn udp_socket(&self, host: &str, address: SocketAddr) -> UdpSocket {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(host))).unwrap();
        let thread = std::thread::spawn(move || {
            // SAFETY: takes an open descriptor; it changes the namespace of this thread only.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
            UdpSocket::bind(address).unwrap()
        });
        thread.join().unwrap()
    }

    /// Runs a command in `host` to its end, whatever that is.
    pub fn try_run(&self, host: &str, line: &[&str]) -> Output {
        self.command(host, line[0]).args(&line[1..]).output().unwrap()
    }

    /// Runs a command in `host` and returns what it printed. Panics when it fails.
    pub fn run(&self, host: &str, line: &[&str]) -> String {
        succeeded(&format!("{host}: {line:?}"), &self.try_run(host, line))
    }

    /// Stops the servers of a backend at once.
    pub fn stop_backend(&self, backend: &str) {
        self.script(&["backend", backend, "stop"]);
    }

    /// Starts them again.
    pub fn start_backend(&self, backend: &str) {
        self.script(&["backend", backend, "start"]);
    }

    /// Removes what was uploaded.
    pub fn clear_uploads(&self) {
        for backend in BACKENDS {
            // Of one there is a file, of the others none.
            let _ = std::fs::remove_file(self.state().join(backend).join("upload/big"));
        }
    }

    /// Makes a host forget what routers have told it.
    pub fn forget_path_mtus(&self, host: &str) {
        for option in ["-4", "-6"] {
            self.run(host, &["ip", option, "route", "flush", "cache"]);
        }
    }

    fn script(&self, arguments: &[&str]) {
        run_script(&[&["--name", &self.name], arguments].concat());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.script(&["down"]);
    }
}

fn run_script(arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lab");
    // Made by a root whose files only root may read, the lab must serve them all the same.
    let closed = ["-c", "umask 077; exec \"$0\" \"$@\"", script];
    let mut command = Command::new("bash");
    let output = command.args(closed).args(arguments).stdin(Stdio::null()).output().unwrap();
    succeeded(&format!("scripts/lab {arguments:?}"), &output);
}

/// Removes labs whose test process was killed.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir("/var/lib/holdfast-lab") else { return };
    for entry in entries {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            run_script(&["--name", &name, "down"]);
        }
    }
}

/// What a command printed. Panics with everything it said when it failed.
pub fn succeeded(what: &str, output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// What a command said on stderr. Panics when it succeeded.
pub fn failed(what: &str, output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{what}: succeeded, but should not have\n{stderr}");
    stderr
}

/// A process that is ended when the value goes.
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Asks it to end, and waits.
    pub fn interrupt(mut self) {
        signal(self.0.id(), "INT");
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal, by name, to a process of ours.
pub fn signal(pid: u32, name: &str) {
    let output = Command::new("kill").args(["-s", name, &pid.to_string()]).output().unwrap();
    succeeded(&format!("kill -s {name} {pid}"), &output);
}

/// Polls until `done`. Panics, saying `what`, after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "after {limit:?} still not: {what}");
        std::thread::sleep(POLL);
    }
}

/// Between two looks at whatever is waited for.
pub const POLL: Duration = Duration::from_millis(20);
/// Most things happen within this time, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(10);
