//! Traffic of clients: requests, downloads, datagrams.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;

use super::{BACKENDS, Family, Lab, Running, SOON, Vip, wait_for};

/// Results of a number of requests.
#[derive(Debug, Default)]
pub struct Answers {
    /// No answer, or a wrong one.
    pub failed: usize,
    /// Right answers by backend.
    pub by_backend: BTreeMap<String, usize>,
}

impl Answers {
    /// Panics unless every request had the right answer.
    pub fn assert_none_failed(&self, what: &str) {
        assert_eq!(self.failed, 0, "{what}: {self:?}");
    }

    /// Panics unless every request had the right answer, from exactly these backends.
    pub fn assert_from(&self, what: &str, backends: &[&str]) {
        self.assert_none_failed(what);
        let seen: Vec<&str> = self.by_backend.keys().map(String::as_str).collect();
        assert_eq!(seen, backends, "{what}: {self:?}");
    }
}

/// curl in the client's namespace, without a proxy that the environment may name: the lab has none.
fn curl(lab: &Lab) -> Command {
    let mut command = lab.command("client", "curl");
    command.args(["--silent", "--noproxy", "*"]);
    command
}

/// `count` requests, each over a connection of its own, eight at a time, from the client's
/// `client`-th address.
pub fn requests(lab: &Lab, vip: &Vip, client: usize, count: usize) -> Answers {
    let mut command = curl(lab);
    command.args(["--parallel", "--parallel-max", "8", "--max-time", "5", "--output", "/dev/null"]);
    command.args(["--header", "Connection: close", "--interface", &vip.family.client(client)]);
    command.args(["--write-out", "%{http_code} %{num_connects} %header{x-backend}\\n"]);
    let output = command.arg(format!("{}/id?[1-{count}]", vip.url())).output().unwrap();
    let mut answers = Answers { failed: count, ..Answers::default() };
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some(backend) = line.strip_prefix("200 1 ") {
            answers.failed -= 1;
            *answers.by_backend.entry(backend.to_owned()).or_default() += 1;
        }
    }
    answers
}

/// `count` datagrams, each from a socket of its own; each must come back from the VIP's address.
pub fn udp_requests(lab: &Lab, vip: &Vip, count: usize) -> Answers {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/udp_client.py");
    let count_text = count.to_string();
    let text = lab.run("client", &["/usr/bin/python3", script, &vip.address(), "7", &count_text]);
    let mut answers = Answers { failed: count, ..Answers::default() };
    for backend in text.lines() {
        answers.failed -= 1;
        *answers.by_backend.entry(backend.to_owned()).or_default() += 1;
    }
    answers
}

/// A download of `/big` in the background.
pub struct Download {
    running: Running,
    headers: PathBuf,
    body: PathBuf,
    expected: String,
}

/// Starts a download; `rate` limits it, such as `8m` for 8 MB/s.
pub fn download(lab: &Lab, vip: &Vip, rate: Option<&str>) -> Download {
    let (headers, body) = (lab.state().join("headers"), lab.state().join("body"));
    // A new folder has no files of an earlier download.
    File::create(&headers).unwrap();
    let mut command = curl(lab);
    // curl gives up after 3 s without data.
    command.args(["--max-time", "30", "--speed-limit", "1000", "--speed-time", "3"]);
    command.args(["--interface", &vip.family.client(0)]);
    command.arg("--dump-header").arg(&headers).arg("--output").arg(&body);
    command.arg(format!("{}/big?rate={}", vip.url(), rate.unwrap_or("")));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let running = Running::start(&mut command);
    Download { running, headers, body, expected: lab.big_sha256() }
}

impl Download {
    /// The backend that serves the download; waits for the header of the response.
    pub fn backend(&self) -> String {
        let mut backend = None;
        wait_for("the download begins", SOON, || {
            let headers = std::fs::read_to_string(&self.headers).unwrap();
            let mut lines = headers.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(key, _)| key.eq_ignore_ascii_case("x-backend"));
            backend = found.map(|(_, value)| value.to_owned());
            backend.is_some()
        });
        backend.unwrap()
    }

    /// Returns whether the download is still running.
    pub fn goes_on(&mut self) -> bool {
        self.running.0.try_wait().unwrap().is_none()
    }

    /// Waits for the end of the download; returns whether the whole file arrived, unchanged.
    pub fn ends_well(mut self) -> bool {
        let status = self.running.0.wait().unwrap();
        status.success() && sha256(&self.body) == self.expected
    }
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

/// Uploads the big file; returns whether a backend has it, unchanged.
pub fn upload(lab: &Lab, vip: &Vip) -> bool {
    let mut command = curl(lab);
    command.args(["--max-time", "30", "--interface", &vip.family.client(0), "--upload-file"]);
    command.arg(lab.state().join("big")).arg(format!("{}/upload/", vip.url()));
    let went = command.output().unwrap().status.success();
    let stored = |backend| lab.state().join(backend).join("upload/big");
    let stored = BACKENDS.into_iter().map(stored).find(|file| file.exists());
    went && stored.is_some_and(|file| sha256(&file) == lab.big_sha256())
}

/// Connections that are busy for some seconds; `transfers.py` describes them.
pub struct Transfers {
    running: Running,
    lines: BufReader<ChildStdout>,
}

/// Results of transfers.
#[derive(Debug, Deserialize)]
pub struct Transferred {
    /// Number of connections.
    pub transfers: usize,
    /// Connections that broke, each with its reason.
    pub broken: Vec<String>,
    /// Longest time to the answer of a small request, in milliseconds.
    pub gap_ms: u64,
}

/// Opens `count` connections to each VIP; returns when all are under way.
pub fn transfers(lab: &Lab, vips: &[Vip], seconds: u32, count: usize) -> Transfers {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/transfers.py");
    let mut command = lab.command("client", "/usr/bin/python3");
    command.arg(script).arg(lab.state().join("big"));
    command.args([seconds.to_string(), count.to_string()]).args(vips.iter().map(Vip::address));
    let mut running = Running::start(command.stdout(Stdio::piped()));
    let mut lines = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "running\n");
    Transfers { running, lines }
}

impl Transfers {
    /// Waits for the end of all connections.
    pub fn end(mut self) -> Transferred {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(self.running.0.wait().unwrap().success());
        serde_json::from_str(&line).unwrap()
    }
}

/// A connection with a client that waits for its end.
pub struct Blocked {
    _running: Running,
    lines: BufReader<ChildStdout>,
}

/// Opens a connection; the script describes the behaviour of the client in each `mode`.
pub fn blocked(lab: &Lab, vip: &Vip, mode: &str) -> Blocked {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/blocked_client.py");
    let mut command = lab.command("client", "/usr/bin/python3");
    let source = vip.family.client(0);
    command.args([script, &vip.address(), &source, mode]).stdout(Stdio::piped());
    let mut running = Running::start(&mut command);
    let lines = BufReader::new(running.0.stdout.take().unwrap());
    let mut blocked = Blocked { _running: running, lines };
    assert_eq!(blocked.line(), "connected");
    blocked
}

impl Blocked {
    /// Waits for the end of the connection: an error by its name, or "closed".
    pub fn end(mut self) -> String {
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

/// An HTTP connection that stays open.
pub struct Conversation {
    // Dropping the value ends the process and closes its pipes.
    _running: Running,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// Opens a connection.
pub fn conversation(lab: &Lab, vip: &Vip) -> Conversation {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/keepalive_client.py");
    let mut command = lab.command("client", "/usr/bin/python3");
    command.args([script, &vip.address()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running::start(&mut command);
    let questions = running.0.stdin.take().unwrap();
    let answers = BufReader::new(running.0.stdout.take().unwrap());
    Conversation { _running: running, questions, answers }
}

impl Conversation {
    /// Sends one request over the connection; returns the backend that answered, or the error.
    pub fn ask(&mut self) -> String {
        self.questions.write_all(b"\n").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

/// Servers that speak on all of their connections at a word.
pub struct Speakers(Vec<(Running, ChildStdin)>);

/// Starts a server on `port` of each backend.
pub fn speakers(lab: &Lab, backends: &[&str], port: u16) -> Speakers {
    let start = |backend: &&str| {
        let mut command = lab.command(backend, "/usr/bin/python3");
        command.args([PUSH, "serve", &port.to_string()]);
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut ready = String::new();
        let stdout = running.0.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        assert_eq!(ready.trim(), "ready");
        let words = running.0.stdin.take().unwrap();
        (running, words)
    };
    Speakers(backends.iter().map(start).collect())
}

impl Speakers {
    /// Sends a number on every connection.
    pub fn say(&mut self, number: u32) {
        for (_, words) in &mut self.0 {
            writeln!(words, "{number}").unwrap();
        }
    }
}

/// Connections of the client, which only listens.
pub struct Listeners {
    // Dropping the value ends the process.
    _running: Running,
    lines: BufReader<ChildStdout>,
}

const PUSH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/push.py");

/// Opens `count` connections to each VIP.
pub fn listeners(lab: &Lab, vips: &[Vip], count: usize) -> Listeners {
    let mut command = lab.command("client", "/usr/bin/python3");
    command.args([PUSH, "hold", &count.to_string()]).args(vips.iter().map(Vip::address));
    let mut running = Running::start(command.stdout(Stdio::piped()));
    let lines = BufReader::new(running.0.stdout.take().unwrap());
    let mut listeners = Listeners { _running: running, lines };
    assert_eq!(listeners.line(), "open");
    listeners
}

impl Listeners {
    /// Waits until this number has arrived on every connection. Panics if one ends.
    pub fn hear(&mut self, number: u32) {
        assert_eq!(self.line(), format!("all {number}"));
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Family {
    /// `-4` or `-6`, the option of commands.
    pub fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}
