//! A file whose readers wait.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

use super::Running;

/// A file that no other process can open until the value is released or dropped: its open(2) waits,
/// for up to 45 s (`/proc/sys/fs/lease-break-time`).
pub struct HeldFile {
    running: Running,
    lines: BufReader<ChildStdout>,
}

impl HeldFile {
    /// Holds an existing file.
    pub fn new(path: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/hold_file.py");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(&mut command);
        let lines = BufReader::new(running.0.stdout.take().unwrap());
        let mut held = Self { running, lines };
        assert_eq!(held.line(), "held");
        held
    }

    /// Waits until another process waits for the file.
    pub fn wait_until_wanted(&mut self) {
        assert_eq!(self.line(), "asked");
    }

    /// Lets the other process have the file.
    pub fn release(mut self) {
        // The end of the input releases the file.
        drop(self.running.0.stdin.take());
        assert!(self.running.0.wait().unwrap().success());
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}
