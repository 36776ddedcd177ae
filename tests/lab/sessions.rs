//! Long connections whose every byte is compared; `sessions.py` describes them.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};

use serde::de::DeserializeOwned;

use super::{Lab, Running, Vip};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/sessions.py");
/// TCP port of the servers.
pub const PORT: u16 = 8090;

/// A script that answers commands by lines.
struct Script {
    // Dropping the value ends the process.
    _running: Running,
    commands: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Script {
    fn start(lab: &Lab, host: &str, arguments: &[&str]) -> Self {
        let mut command = lab.command(host, "/usr/bin/python3");
        command.arg(SCRIPT).args(arguments).arg(PORT.to_string());
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let commands = running.0.stdin.take().unwrap();
        let lines = BufReader::new(running.0.stdout.take().unwrap());
        Self { _running: running, commands, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn answer(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        self.line()
    }
}

/// A server on a backend.
pub struct SessionServer(Script);

impl SessionServer {
    /// Starts the server; it listens when this returns.
    pub fn start(lab: &Lab, backend: &str) -> Self {
        let mut script = Script::start(lab, backend, &["serve", backend]);
        assert_eq!(script.line(), "ready", "{backend}");
        Self(script)
    }

    /// Loses all connections without a packet.
    pub fn vanish(&mut self) {
        assert_eq!(self.0.answer("vanish"), "ready");
    }
}

/// Connections of the client.
pub struct Sessions(Script);

impl Sessions {
    /// A client without connections.
    pub fn new(lab: &Lab) -> Self {
        Self(Script::start(lab, "client", &["hold"]))
    }

    /// Opens downloads, talkers that send a byte a second, and silent connections to each VIP from one
    /// of the client's addresses; returns the backends that have them.
    pub fn open(&mut self, pairs: &[(usize, &Vip)], each: [usize; 3]) -> Vec<String> {
        let [downloads, talkers, silent] = each;
        let mut command = format!("open {downloads} {talkers} {silent}");
        for (client, vip) in pairs {
            write!(command, " {},{}", vip.family.client(*client), vip.address()).unwrap();
        }
        self.reply(&command)
    }

    /// Waits until all but the silent ones have got on; returns those that have not, or broke.
    pub fn progress(&mut self) -> Vec<String> {
        self.reply("progress")
    }

    /// Ends every connection; returns those that did not end well.
    pub fn end(&mut self) -> Vec<String> {
        self.reply("end")
    }

    fn reply<T: DeserializeOwned>(&mut self, command: &str) -> T {
        let line = self.0.answer(command);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{command}: {line:?}: {error}"))
    }
}
