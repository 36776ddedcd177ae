//! The lab of `scripts/lab` and a running holdfast, as values that clean up when dropped.

mod config;
mod fleet;
mod held_file;
mod holdfast;
#[path = "../support/namespace.rs"]
mod namespace;
mod router;
mod sessions;
mod traffic;

use std::ffi::OsStr;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use config::{Config, Family, Vip, tunnel, vip};
pub use fleet::{BOXES, Fleet, fleet_vips};
pub use held_file::HeldFile;
pub use holdfast::{BINARY, Holdfast, log_of};
use namespace::in_namespace;
pub use sessions::{SessionServer, Sessions};
pub use traffic::{
    Blocked, Conversation, Transferred, blocked, conversation, download, listeners, requests,
    speakers, transfers, udp_requests, upload,
};

/// MAC addresses of the balancer, as `scripts/lab` gives them: first (or only) NIC, second NIC.
pub const BALANCER_MACS: [&str; 2] = ["02:00:00:00:01:02", "02:00:00:00:02:02"];
/// The backends.
pub const BACKENDS: [&str; 3] = ["b1", "b2", "b3"];
/// Size of the file to download, in units of 1,000,000 bytes.
const BIG_MB: u32 = 24;
/// Prefix of the names of labs; the rest is the id of the process that made them.
const PREFIX: &str = "hfe";

/// How balancer, clients and backends are connected; see `scripts/lab`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One segment, one NIC.
    Stick,
    /// Clients before, backends behind the balancer.
    TwoNic,
    /// Two balancers and four backends on one segment, behind a router.
    Fleet,
}

impl Topology {
    /// Interfaces of the balancer.
    pub fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::Stick | Self::Fleet => &["eth0"],
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
            Topology::Fleet => "fleet",
        };
        let queues = queues.to_string();
        let big_mb = BIG_MB.to_string();
        let up = ["up", "--topology", topology, "--queues", &queues, "--clients", "20"];
        lab.script(&[&up[..], &["--big-mb", &big_mb]].concat());
        lab
    }

    /// Folder with the files of the lab.
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

    /// A UDP socket in `host`, which any thread may use.
    pub fn udp_socket(&self, host: &str, address: SocketAddr) -> UdpSocket {
        in_namespace(&self.namespace(host), || UdpSocket::bind(address).unwrap())
    }

    /// Runs a command in `host` to its end, successful or not.
    pub fn try_run(&self, host: &str, line: &[&str]) -> Output {
        self.command(host, line[0]).args(&line[1..]).output().unwrap()
    }

    /// Runs a command in `host` and returns its output. Panics if it fails.
    pub fn run(&self, host: &str, line: &[&str]) -> String {
        succeeded(&format!("{host}: {line:?}"), &self.try_run(host, line))
    }

    /// Stops the servers of a backend at once.
    pub fn stop_backend(&self, backend: &str) {
        self.script(&["backend", backend, "stop"]);
    }

    /// Starts the servers of a backend again.
    pub fn start_backend(&self, backend: &str) {
        self.script(&["backend", backend, "start"]);
    }

    /// Removes uploaded files.
    pub fn clear_uploads(&self) {
        for backend in BACKENDS {
            // One backend has the file, the others do not.
            let _ = std::fs::remove_file(self.state().join(backend).join("upload/big"));
        }
    }

    /// Flushes the path MTUs and redirects that a host has learnt from routers.
    pub fn forget_path_mtus(&self, host: &str) {
        for option in ["-4", "-6"] {
            // Backends also have them in the table of their policy rule.
            self.run(host, &["ip", option, "route", "flush", "table", "all", "cache"]);
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
    // With a strict umask of root the lab must serve files to other users, too.
    let closed = ["-c", "umask 077; exec \"$0\" \"$@\"", script];
    let mut command = Command::new("bash");
    let output = command.args(closed).args(arguments).stdin(Stdio::null()).output().unwrap();
    succeeded(&format!("scripts/lab {arguments:?}"), &output);
}

/// Removes labs of killed test processes.
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

/// Standard output of a command. Panics with all of its output if it failed.
pub fn succeeded(what: &str, output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// Standard error of a command. Panics if it succeeded.
pub fn failed(what: &str, output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{what}: succeeded, but should not have\n{stderr}");
    stderr
}

/// A process that ends when the value is dropped.
pub struct Running(pub Child);

impl Running {
    /// Starts the process.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Terminates the process and waits for its end.
    pub fn interrupt(mut self) {
        signal(self.0.id(), "INT");
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a signal, by name, to a process of the test.
pub fn signal(pid: u32, name: &str) {
    let output = Command::new("kill").args(["-s", name, &pid.to_string()]).output().unwrap();
    succeeded(&format!("kill -s {name} {pid}"), &output);
}

/// Polls until `done`. Panics with `what` after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "after {limit:?} still not: {what}");
        std::thread::sleep(POLL);
    }
}

/// Interval of polling.
pub const POLL: Duration = Duration::from_millis(20);
/// Default limit of waiting, which suffices on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);
