//! A running holdfast.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::Instant;

use holdfast::control::api::{BackendState, BackendStatus, HealthState, Status};

use super::{Config, HeldFile, Lab, POLL, SOON, failed, signal, succeeded, wait_for};

/// The binary that cargo built for these tests.
pub const BINARY: &str = env!("CARGO_BIN_EXE_holdfast");

/// A process in a balancer's namespace. Killed when dropped, if it was not stopped.
pub struct Holdfast<'l> {
    lab: &'l Lab,
    host: &'static str,
    child: Child,
    socket: String,
    config: PathBuf,
}

impl<'l> Holdfast<'l> {
    /// Starts holdfast and waits until every backend is up.
    pub fn start(lab: &'l Lab, config: &Config) -> Self {
        // Truncated, and then appended to, as several processes may write it.
        File::create(log_of(lab)).unwrap();
        Self::start_by(lab, config, lab.command("lb", BINARY), log_file(lab).into())
    }

    /// Starts holdfast on a box of a fleet and waits until every backend is up.
    pub fn start_on(lab: &'l Lab, host: &'static str, socket: &str, config: &str) -> Self {
        let path = lab.state().join(format!("{host}.toml"));
        let log = File::create(log_on(lab, host)).unwrap();
        Self::start_from(
            lab,
            (host, socket),
            (path, config),
            (lab.command(host, BINARY), log.into()),
        )
    }

    /// Starts holdfast by a command that ends with the binary, with another file for the log.
    pub fn start_by(lab: &'l Lab, config: &Config, command: Command, log: Stdio) -> Self {
        let path = lab.state().join("holdfast.toml");
        Self::start_from(lab, ("lb", &config.socket), (path, &config.toml()), (command, log))
    }

    fn start_from(
        lab: &'l Lab,
        (host, socket): (&'static str, &str),
        (path, config): (PathBuf, &str),
        (mut command, log): (Command, Stdio),
    ) -> Self {
        std::fs::write(&path, config).unwrap();
        command.arg("run").arg("--config").arg(&path);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut this = Self { lab, host, child, socket: socket.to_owned(), config: path };
        wait_for("holdfast answers", SOON, || this.responds());
        this.wait_until("every backend is up", |status| {
            let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
            backends.all(|b| b.health == HealthState::Up && b.next_hop.is_some())
        });
        this
    }

    /// Starts another process with this configuration, and waits until it has taken over.
    pub fn replace(&mut self, config: &Config) {
        self.write_config(config);
        let new = self.spawn();
        let (old, pid) = (std::mem::replace(&mut self.child, new), self.pid());
        self.wait_for_successor(old, |now| now == pid);
    }

    /// Makes the process start another one, and waits until that has taken over. It is not a child
    /// of the test.
    pub fn replace_itself(&mut self) {
        let old = self.running_pid();
        self.signal_running("USR2");
        wait_for("another process has taken over", SOON, || self.running_pid() != old);
        assert!(self.cli(&["status"]).status.success(), "{}", self.log());
    }

    /// Starts another process and kills it as soon as it has begun to take over; returns the log.
    pub fn replace_in_vain(&self, config: &Config) -> String {
        self.write_config(config);
        let before = self.log().matches("this process goes on").count();
        let began = self.log().matches("asks to take over").count() + 1;
        let mut new = self.spawn();
        self.wait_for_log("asks to take over", began);
        new.kill().unwrap();
        new.wait().unwrap();
        self.wait_for_log("this process goes on", before + 1);
        self.log()
    }

    /// Runs `successor.py` as far as `step`; returns its output.
    pub fn fake_successor(&self, step: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/successor.py");
        let name = self.socket.trim_start_matches('/').replace('/', "-");
        let path = format!("/dev/shm/holdfast/{name}/handover");
        // Killed by holdfast if it hangs, or as it ends.
        let output = self.lab.try_run("lb", &["/usr/bin/python3", script, &path, step]);
        assert!(output.stderr.is_empty(), "{step}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a text is in the log so many times.
    pub fn wait_for_log(&self, text: &str, times: usize) {
        wait_for(&format!("{times} x {text:?} in the log"), SOON, || {
            self.log().matches(text).count() >= times
        });
    }

    fn spawn(&self) -> Child {
        let mut command = self.lab.command("lb", BINARY);
        command.arg("run").arg("--config").arg(&self.config);
        command.stdout(Stdio::null()).stderr(log_file(self.lab)).spawn().unwrap()
    }

    /// Waits until the process number `is_new` serves, and `old` has ended well.
    fn wait_for_successor(&mut self, mut old: Child, is_new: impl Fn(u32) -> bool) {
        wait_for("the new process has taken over", SOON, || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the new process ended: {status}\n{}", self.log());
            }
            self.running_pid().is_some_and(&is_new)
        });
        wait_for("the old process ends", SOON, || {
            let ended = old.try_wait().unwrap();
            assert!(ended.is_none_or(|status| status.success()), "{ended:?}\n{}", self.log());
            ended.is_some()
        });
        assert!(self.responds(), "{}", self.log());
    }

    /// Id of the process that has the control socket.
    fn running_pid(&self) -> Option<u32> {
        let note = std::fs::read_to_string(format!("{}.lock", self.socket)).ok()?;
        note.lines().next()?.parse().ok()
    }

    /// Sends a signal to the process that has the control socket.
    fn signal_running(&self, name: &str) {
        signal(self.running_pid().unwrap(), name);
    }

    /// Starts holdfast with a configuration that cannot be read until `meanwhile`, called with the
    /// process id, returns. Does not wait for the end of the start.
    pub fn start_held(lab: &'l Lab, config: &Config, meanwhile: impl FnOnce(u32)) -> Self {
        let path = lab.state().join("holdfast.toml");
        std::fs::write(&path, config.toml()).unwrap();
        let mut held = HeldFile::new(&path);
        let log = File::create(log_of(lab)).unwrap();
        let mut command = lab.command("lb", BINARY);
        command.arg("run").arg("--config").arg(&path).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap();
        held.wait_until_wanted();
        meanwhile(child.id());
        held.release();
        Self { lab, host: "lb", child, socket: config.socket.clone(), config: path }
    }

    /// Starts holdfast, which must fail; returns its message.
    pub fn start_fails(lab: &Lab, config: &Config) -> String {
        let path = lab.state().join("refused.toml");
        std::fs::write(&path, config.toml()).unwrap();
        let path = path.to_str().unwrap();
        // The time limit ends holdfast if it starts nevertheless.
        let line = ["timeout", "10", BINARY, "run", "--config", path];
        failed("a start that must fail", &lab.try_run("lb", &line))
    }

    /// Whether holdfast serves its control socket. Panics if the process has ended.
    pub fn responds(&mut self) -> bool {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("holdfast ended: {status}\n{}", self.log());
        }
        self.cli(&["status", "--json"]).status.success()
    }

    /// The log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_on(self.lab, self.host)).unwrap_or_default()
    }

    /// Runs a subcommand against this process.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let line = [&[BINARY], arguments, &["--socket", &self.socket]].concat();
        self.lab.try_run(self.host, &line)
    }

    /// Runs a subcommand that must succeed; returns its output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        succeeded(&format!("holdfast {arguments:?}"), &self.cli(arguments))
    }

    /// Runs a subcommand that must fail; returns its message.
    pub fn refused(&self, arguments: &[&str]) -> String {
        failed(&format!("holdfast {arguments:?}"), &self.cli(arguments))
    }

    /// The status document.
    pub fn status(&self) -> Status {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// The status of one backend.
    pub fn backend(&self, vip: &str, backend: &str) -> BackendStatus {
        let status = self.status();
        let vip = status.vips.into_iter().find(|v| v.name == vip).unwrap();
        vip.backends.into_iter().find(|b| b.name == backend).unwrap()
    }

    /// Waits until the status satisfies a condition.
    pub fn wait_until(&self, what: &str, mut wanted: impl FnMut(&Status) -> bool) {
        let mut last = None;
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            last = Some(status);
            sleep(POLL);
        }
        panic!("after {SOON:?} still not: {what}\n{last:#?}\n{}", self.log());
    }

    /// Waits until a backend's health check reports this state.
    pub fn wait_for_health(&self, vip: &str, backend: &str, health: HealthState) {
        wait_for(&format!("{vip}/{backend} {health:?}"), SOON, || {
            self.backend(vip, backend).health == health
        });
    }

    /// Waits until a backend is active, draining or drained.
    pub fn wait_for_state(&self, vip: &str, backend: &str, state: BackendState) {
        let end = Instant::now() + SOON;
        while self.backend(vip, backend).state != state {
            let flows = || self.ok(&["flows", "--vip", vip, "--backend", backend]);
            assert!(Instant::now() < end, "{vip}/{backend}: still not {state:?}:\n{}", flows());
            sleep(POLL);
        }
    }

    /// Asserts that every received packet is in one counter, in every worker.
    pub fn assert_packets_accounted_for(&self) {
        self.wait_until("received = transmitted + handed over + answered + dropped", |status| {
            status.workers.iter().all(|worker| {
                let totals = &worker.totals;
                let dropped: u64 = worker.drops.values().sum();
                totals.dropped == dropped
                    && totals.received
                        == totals.transmitted + totals.handed_over + totals.answered + dropped
            })
        });
        for nic in self.status().nics {
            assert_eq!(nic.bad_descriptors, 0, "{nic:#?}");
            assert_eq!(nic.kernel_rx_invalid + nic.kernel_tx_invalid, 0, "{nic:#?}");
        }
    }

    /// Replaces the configuration file without a reload.
    pub fn write_config(&self, config: &Config) {
        std::fs::write(&self.config, config.toml()).unwrap();
    }

    /// Replaces the configuration file by any text.
    pub fn write_text(&self, text: &str) {
        std::fs::write(&self.config, text).unwrap();
    }

    /// Id of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Path of the configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Sends a signal to the process.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Stops holdfast cleanly; every packet must have been counted.
    pub fn stop(mut self) {
        self.assert_packets_accounted_for();
        self.signal("TERM");
        self.assert_ends_well();
    }

    /// Waits for the process to end by itself, with success.
    pub fn assert_ends_well(&mut self) {
        let status = self.wait_end();
        assert!(status.success(), "holdfast ended with {status}\n{}", self.log());
    }

    /// Waits for the process to end by itself, with exit code 1; returns its log.
    pub fn ends_for_a_start(mut self) -> String {
        let status = self.wait_end();
        assert_eq!(status.code(), Some(1), "{}", self.log());
        self.log()
    }

    /// Kills the process, which cannot clean up.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn wait_end(&mut self) -> ExitStatus {
        let mut ended = None;
        wait_for("holdfast ends", SOON, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap()
    }
}

/// The log of a holdfast in the lab, to be appended to.
fn log_file(lab: &Lab) -> File {
    File::options().create(true).append(true).open(log_of(lab)).unwrap()
}

/// Path of the log of a holdfast in the lab.
pub fn log_of(lab: &Lab) -> PathBuf {
    log_on(lab, "lb")
}

fn log_on(lab: &Lab, host: &str) -> PathBuf {
    lab.state().join(if host == "lb" { "holdfast.log".to_owned() } else { format!("{host}.log") })
}

impl Drop for Holdfast<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("holdfast's log:\n{}", self.log());
        }
        if self.child.try_wait().is_ok_and(|ended| ended.is_some())
            && let Some(pid) = self.running_pid()
            && pid != self.child.id()
        {
            // It has started its own successor, which is no child of this process.
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
