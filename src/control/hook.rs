//! `[control] on_drained`: a command that runs when a backend is drained.
//!
//! It runs concurrently with the control thread, which never waits for it: not even for its start,
//! which blocks for as long as the program's file cannot be read (`nfs(5)`). It gets no shell and no
//! input, and inherits no file but the log: all other files of holdfast are closed on exec.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::format::reason;

/// Maximum number of commands that run at one time; further ones wait.
const AT_ONCE: usize = 4;
/// Time limit of a command; a command that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(60);

/// `HOLDFAST_...` environment variables of the command.
pub type Environment = Vec<(&'static str, String)>;

/// The hook command, with the limits for its runs.
#[derive(Debug)]
pub struct Hook {
    /// Program and arguments; empty without a hook.
    command: Arc<[String]>,
    permits: Arc<Semaphore>,
    limit: Duration,
}

impl Hook {
    /// Creates a hook that runs `command`, a program and its arguments; an empty `command` runs
    /// nothing.
    pub fn new(command: &[String]) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self { command: command.into(), permits, limit: LIMIT }
    }

    /// Runs the command in the background; `about` names the subject in the log. Must be called on
    /// a tokio runtime.
    pub fn run(&self, about: String, environment: Environment) {
        if self.command.is_empty() {
            return;
        }
        let (command, permits) = (Arc::clone(&self.command), Arc::clone(&self.permits));
        let limit = self.limit;
        tokio::spawn(async move {
            let Ok(permit) = permits.acquire_owned().await else { return };
            let begun = thread::Builder::new().name("on_drained".to_owned()).spawn(move || {
                report(&about, finish_here(&command, environment, limit));
                drop(permit);
            });
            if let Err(error) = begun {
                warn!("[control] on_drained: no thread to run it: {}", reason(&error));
            }
        });
    }
}

fn report(about: &str, result: Result<(), Failure>) {
    match result {
        Ok(()) => debug!("on_drained for {about}: done"),
        Err(error) => warn!("[control] on_drained for {about}: {error}"),
    }
}

/// Runs the command on this thread until it ends or reaches the limit.
fn finish_here(
    command: &[String],
    environment: Environment,
    limit: Duration,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let failed =
        |error| Failure::Start(command.first().cloned().unwrap_or_default(), reason(&error));
    runtime.map_err(failed)?.block_on(finish(command, environment, limit))
}

/// Failure of a command.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0} cannot be run: {1}; see that it is there and may be executed")]
    Start(String, String),
    #[error("{0} failed: {1}")]
    Status(String, ExitStatus),
    #[error("{0} was killed: it took longer than {1:?}")]
    Limit(String, Duration),
}

/// Runs the command until it ends or reaches the limit.
async fn finish(
    command: &[String],
    environment: Environment,
    limit: Duration,
) -> Result<(), Failure> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let failed = |error| Failure::Start(program.clone(), reason(&error));
    let mut command = Command::new(program);
    command.args(arguments).envs(environment).stdin(Stdio::null()).current_dir("/");
    // A process group of its own: Ctrl-C stops holdfast without the command.
    command.process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Failure::Status(program.clone(), status)),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => {
            // Kills the process and its children. A kill fails only if the process has just ended.
            let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            let _ = child.kill().await;
            Err(Failure::Limit(program.clone(), limit))
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;

    use super::*;

    async fn ends(words: &[&str], limit: Duration) -> Result<(), String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let environment = vec![("HOLDFAST_VIP", "web".to_owned())];
        finish(&words, environment, limit).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_command_gets_its_arguments_as_they_are_and_an_environment() {
        let script =
            "test \"$HOLDFAST_VIP\" = web && test \"$1\" = '$x *' && test ! -t 0 && ! read line";
        assert_eq!(ends(&["sh", "-c", script, "sh", "$x *"], LIMIT).await, Ok(()));
    }

    #[tokio::test]
    async fn failures_are_told() {
        let failed = ends(&["sh", "-c", "exit 3"], LIMIT).await.unwrap_err();
        assert_eq!(failed, "sh failed: exit status: 3");
        let missing = ends(&["/nowhere/drained"], LIMIT).await.unwrap_err();
        assert!(missing.starts_with("/nowhere/drained cannot be run: No such file"), "{missing}");
        let slow = ends(&["sleep", "1000"], Duration::from_millis(20)).await.unwrap_err();
        assert!(slow.starts_with("sleep was killed"), "{slow}");
    }

    /// Killing a shell alone does not kill the processes that it waits for.
    #[tokio::test]
    async fn processes_that_the_command_started_are_killed_with_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let link = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
        // The pipe ends when the last process that has it open has ended.
        let script = "exec >\"$1\"; sleep 1000 & sleep 1000";
        let words = ["sh", "-c", script, "sh", &link];
        let error = ends(&words, Duration::from_secs(1)).await.unwrap_err();
        assert!(error.contains("was killed"), "{error}");
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    /// An inherited socket would stay open in the command.
    #[tokio::test]
    async fn nothing_of_ours_is_open_in_the_command() {
        let ours = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", ours.as_raw_fd())).unwrap();
        let script = "! ls -l /proc/self/fd | grep -F \"$1\"";
        assert_eq!(ends(&["sh", "-c", script, "sh", link.to_str().unwrap()], LIMIT).await, Ok(()));
    }
}
