//! `[control]`: the control API.

use std::path::PathBuf;

use serde::Deserialize;

use super::checked::Control;
use super::key_path::KeyPath;
use super::report::Report;

/// Default control socket, also of the command line. /run is emptied at boot.
pub const SOCKET: &str = "/run/holdfast/control.sock";
/// Longest path in bytes: `sun_path` of unix(7) has 108 bytes, one of them the NUL.
const MAX_SOCKET: usize = 107;

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawControl {
    socket: Option<String>,
    on_drained: Option<Vec<String>>,
}

impl RawControl {
    /// Checks the section.
    pub(super) fn check(self, key_path: &KeyPath, report: &mut Report<'_>) -> Control {
        let socket = self.socket.unwrap_or_else(|| SOCKET.to_owned());
        let at = key_path.key("socket");
        if !socket.starts_with('/') || socket.ends_with('/') {
            let what = format!("\"{socket}\" is not the absolute path of a file");
            report.error(&at, what, &format!("use one such as \"{SOCKET}\""));
        }
        if socket.len() > MAX_SOCKET {
            let what = format!("{} bytes are too long for a Unix socket", socket.len());
            report.error(&at, what, "use a path of at most 107 bytes");
        }
        let on_drained = command(self.on_drained, &key_path.key("on_drained"), report);
        Control { socket: PathBuf::from(socket), on_drained }
    }
}

/// Checks a command that is run without a shell: the program and its arguments.
fn command(raw: Option<Vec<String>>, key_path: &KeyPath, report: &mut Report<'_>) -> Vec<String> {
    let Some(words) = raw else { return Vec::new() };
    if words.first().is_none_or(String::is_empty) {
        let fix = "name a program and its arguments, such as [\"/usr/local/bin/drained\", \"--quiet\"], \
                   or leave the key out";
        report.error(key_path, "no program", fix);
    }
    if words.iter().any(|word| word.contains('\0')) {
        report.error(key_path, "a NUL character", "no argument of a program can have one");
    }
    words
}
