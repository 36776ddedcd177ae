//! The process that started this one, and the program itself.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::control::hand_over::{StartAgain, Started};
use crate::format::reason;

/// Notifies systemd of a state, if it has started this process with `Type=notify`: sd_notify(3).
pub fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        warn!("NOTIFY_SOCKET: {}", reason(&error));
    }
}

fn send(path: &OsString, state: &str) -> io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

/// Notifies systemd that the service goes on in another process.
pub(super) fn main_process_is(pid: u32) {
    notify(&format!("MAINPID={pid}"));
}

/// Returns the function that starts the program of this process again, with the same arguments: the
/// file at its path, which may be another version by now.
pub fn start_again() -> StartAgain {
    // Later the kernel would call a replaced file deleted.
    let program = env::current_exe();
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    Box::new(move || {
        let program: &PathBuf = program.as_ref().map_err(reason)?;
        let mut command = Command::new(program);
        command.args(&arguments).stdin(Stdio::null());
        let failed = |error: io::Error| format!("{}: {}", program.display(), reason(&error));
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id();
        let (failed, failure) = oneshot::channel();
        let wait = move || match child.wait() {
            // The control thread may have ended.
            Ok(status) if !status.success() => _ = failed.send(status.to_string()),
            ended => debug!("process {pid}: {ended:?}"),
        };
        // Without a thread, the process stays a zombie until this one ends.
        let _ = thread::Builder::new().name("child".to_owned()).spawn(wait);
        Ok(Started { pid, failure })
    })
}
