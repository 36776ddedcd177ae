//! The file of the control socket: created at the start, removed at the end.
//!
//! A lock on a neighbouring file (`<socket>.lock`, which stays) shows whether a process is alive.
//! The second line of that file has the device and inode of the process's socket. So a socket that
//! a dead holdfast left behind is replaced; any other file at the path belongs to another program
//! and is left alone.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::error::ControlError;
use crate::format::reason;

/// Remedy for another file at the socket's path.
const MOVE_IT: &str = "holdfast replaces only a socket of its own: remove it if it is not needed";

/// Description of a socket that no holdfast process has created.
const OF_OTHERS: &str = "a socket of another program";

/// The locked control socket. Dropping it removes the socket file, if the file is still the one
/// that was created.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    mark: Mark,
    listener: Option<UnixListener>,
    /// The locked file; closing it releases the lock, unless another process has it, too.
    lock: File,
    /// Whether the socket goes with this process.
    is_own: bool,
}

impl ControlSocket {
    /// Wraps the socket and the lock of a running process, which will hand them over. The socket file
    /// is that process's until [`own`](Self::own).
    ///
    /// # Errors
    /// When the socket file is not there, or a file cannot be used.
    pub fn adopt(path: &Path, listener: OwnedFd, lock: OwnedFd) -> Result<Self, ControlError> {
        let failed = |error: io::Error| ControlError::Socket {
            path: path.to_owned(),
            reason: format!("cannot be taken over: {}", reason(&error)),
        };
        let mark = Mark::of(&fs::symlink_metadata(path).map_err(failed)?);
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true).map_err(failed)?;
        let (listener, lock) = (Some(listener), File::from(lock));
        Ok(Self { path: path.to_owned(), mark, listener, lock, is_own: false })
    }

    /// Makes an adopted socket that of this process.
    pub fn own(&mut self) {
        if !std::mem::replace(&mut self.is_own, true) {
            // Without the note, the socket counts as another program's at a later start.
            let _ = write_note(&mut self.lock, self.mark);
        }
    }

    /// Leaves the socket to another process.
    pub const fn leave(&mut self) {
        self.is_own = false;
    }

    /// Returns copies of listener and lock for another process; `None` after
    /// [`take`](Self::take), or without a free descriptor.
    pub fn duplicate(&self) -> Option<[OwnedFd; 2]> {
        let listener = self.listener.as_ref()?.try_clone().ok()?;
        Some([listener.into(), self.lock.try_clone().ok()?.into()])
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the listener; `None` after the first call.
    pub const fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.is_own {
            return;
        }
        if fs::symlink_metadata(&self.path).is_ok_and(|there| Mark::of(&there) == self.mark) {
            // The file may have gone in the meantime. A file that appears there now is in no
            // process's note.
            let _ = fs::remove_file(&self.path);
            let _ = self.lock.set_len(0);
        }
    }
}

/// Identity of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Contents of the lock file, written by the last process.
#[derive(Debug, Default)]
struct Note {
    pid: String,
    /// Identity of the process's socket; older versions did not write it.
    mark: Option<Mark>,
}

impl Note {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let pid = lines.next().unwrap_or_default().trim().to_owned();
        let mut numbers = lines.next().unwrap_or_default().split(':').map(str::parse);
        let mark = match (numbers.next(), numbers.next()) {
            (Some(Ok(device)), Some(Ok(inode))) => Some(Mark { device, inode }),
            _ => None,
        };
        Self { pid, mark }
    }

    fn is_about(&self, socket: &Metadata) -> bool {
        !self.pid.is_empty() && self.mark.is_none_or(|mark| mark == Mark::of(socket))
    }
}

/// Creates the control socket: makes its directory (0700) if it is missing, locks, and listens
/// (0600).
///
/// # Errors
/// [`ControlError::AlreadyRunning`] if a living process holds the lock, [`ControlError::Socket`] if
/// the socket cannot be created, or another file is there.
pub fn claim(path: &Path) -> Result<ControlSocket, ControlError> {
    let error = |reason| ControlError::Socket { path: path.to_owned(), reason };
    let failed = |what: &str| {
        let what = what.to_owned();
        move |failure: io::Error| error(format!("{what}: {}", reason(&failure)))
    };
    if let Some(what) = other_kind(path) {
        return Err(error(format!("is {what}; {MOVE_IT}")));
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    make_private(directory).map_err(failed("its directory cannot be made"))?;
    let (mut lock, note) = lock(path)?;
    remove_stale(path, &note).map_err(error)?;
    let (listener, mark) = listen(path, directory, &mut lock).map_err(failed("cannot be made"))?;
    let listener = Some(listener);
    Ok(ControlSocket { path: path.to_owned(), mark, listener, lock, is_own: true })
}

/// A file at the socket's path that makes a start fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obstacle {
    /// Description of the file.
    pub what: &'static str,
    /// Remedy.
    pub fix: &'static str,
}

/// Describes a file at the socket's path that no holdfast process has created, or that may be of
/// another user's; `None` if there is none. Neither connects nor changes anything.
pub fn obstacle(path: &Path) -> Option<Obstacle> {
    let of_others =
        |what| Obstacle { what, fix: "remove it if it is not needed, or set another path" };
    if let Some(what) = other_kind(path) {
        return Some(of_others(what));
    }
    obstacle_with(path, fs::read_to_string(lock_path(path)))
}

/// Describes a socket, by the text of its lock file.
fn obstacle_with(path: &Path, note: io::Result<String>) -> Option<Obstacle> {
    let socket = fs::symlink_metadata(path).ok()?;
    let note = match note {
        // It may be in use: nothing to remove.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Some(Obstacle {
                what: "a socket of another user, perhaps of a holdfast that runs",
                fix: "run as that user or as root, or set another path",
            });
        }
        note => Note::parse(&note.unwrap_or_default()),
    };
    (!note.is_about(&socket)).then(|| of_others(OF_OTHERS))
}

const fn of_others(what: &'static str) -> Obstacle {
    Obstacle { what, fix: "remove it if it is not needed, or set another path" }
}

/// Returns whether a holdfast process accepts connections at `path`.
pub fn answers(path: &Path) -> bool {
    obstacle(path).is_none() && UnixStream::connect(path).is_ok()
}

/// Describes the kind of a file that is not a socket; `None` for a socket or no file.
fn other_kind(path: &Path) -> Option<&'static str> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    match () {
        () if kind.is_socket() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_symlink() => Some("a symbolic link"),
        () if kind.is_fifo() => Some("a FIFO"),
        () if kind.is_file() => Some("a regular file"),
        () => Some("a device"),
    }
}

/// Removes the socket that the process of `note` left behind. Any other file is an error.
fn remove_stale(path: &Path, note: &Note) -> Result<(), String> {
    let Ok(socket) = fs::symlink_metadata(path) else { return Ok(()) };
    // Such a socket is not connected to: a connection to a program that accepts none waits for
    // ever.
    if !note.is_about(&socket) {
        return Err(format!("is {OF_OTHERS}; {MOVE_IT}"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| format!("cannot be replaced: {}", reason(&error)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _ => Err(format!("is {OF_OTHERS}, which is in use; {MOVE_IT}")),
    }
}

/// Creates a directory that only its owner can enter. An existing one stays as it is.
fn make_private(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    PathBuf::from(path)
}

fn lock(socket: &Path) -> Result<(File, Note), ControlError> {
    let path = lock_path(socket);
    let failed = |error: io::Error| ControlError::Socket {
        path: path.clone(),
        reason: format!("cannot be locked: {}", reason(&error)),
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    let locked = file.try_lock();
    let mut text = String::new();
    // Without the note, an existing socket counts as another program's, and the message has no pid.
    let _ = file.read_to_string(&mut text);
    let note = Note::parse(&text);
    match locked {
        Ok(()) => Ok((file, note)),
        Err(TryLockError::WouldBlock) => {
            let pid = if note.pid.is_empty() { "unknown".to_owned() } else { note.pid };
            Err(ControlError::AlreadyRunning { path: socket.to_owned(), pid })
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn write_note(file: &mut File, mark: Mark) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let Mark { device, inode } = mark;
    write!(file, "{}\n{device}:{inode}\n", std::process::id())
}

/// Listens with mode 0600 whatever the umask: the socket is created in a private directory, and
/// linked to its path once its mode is right and the lock file records it. Nothing is replaced.
fn listen(path: &Path, directory: &Path, lock: &mut File) -> io::Result<(UnixListener, Mark)> {
    let private = directory.join(format!(".hf{}", std::process::id()));
    // Left by a process that was killed here; in a container every process may have the same pid.
    let _ = fs::remove_file(private.join("s"));
    let _ = fs::remove_dir(&private);
    DirBuilder::new().mode(0o700).create(&private)?;
    let made = listen_in(&private, path, lock);
    let removed = fs::remove_dir(&private);
    let made = made?;
    removed?;
    Ok(made)
}

fn listen_in(private: &Path, path: &Path, lock: &mut File) -> io::Result<(UnixListener, Mark)> {
    let temporary = private.join("s");
    let listener = UnixListener::bind(&temporary)?;
    let mut placed = || {
        fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let mark = Mark::of(&fs::symlink_metadata(&temporary)?);
        write_note(lock, mark)?;
        fs::hard_link(&temporary, path)?;
        Ok(mark)
    };
    let mark: io::Result<Mark> = placed();
    let removed = fs::remove_file(&temporary);
    let mark = mark?;
    removed?;
    Ok((listener, mark))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixDatagram;

    use super::super::admin::tests::Scratch;
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn only_the_owner_can_open_it_and_it_goes_with_its_process() {
        let scratch = Scratch::new();
        let socket = scratch.socket();
        let claim = claim(&socket).unwrap();
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(socket.parent().unwrap()), 0o700);
        let files: Vec<_> = fs::read_dir(socket.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(files.len(), 2, "nothing but socket and lock: {files:?}");
        drop(claim);
        assert!(!socket.exists());
    }

    #[test]
    fn a_second_process_is_refused_with_the_pid_of_the_first() {
        let scratch = Scratch::new();
        let first = claim(&scratch.socket()).unwrap();
        let error = claim(&scratch.socket()).unwrap_err().to_string();
        let pid = format!("holdfast already runs with this socket (pid {})", std::process::id());
        assert!(error.contains(&pid), "{error}");
        assert!(scratch.socket().exists(), "the living one's socket stays");
        drop(first);
        claim(&scratch.socket()).unwrap();
    }

    #[test]
    fn a_dead_process_s_socket_is_replaced() {
        let scratch = Scratch::new();
        let socket = scratch.socket();
        for note in ["this version", "a version without marks"] {
            // As after `kill -9`: neither dropped nor removed.
            let mut dead = claim(&socket).unwrap();
            drop(dead.take());
            dead.path = scratch.0.join("elsewhere");
            drop(dead);
            if note != "this version" {
                fs::write(lock_path(&socket), "1234\n").unwrap();
            }
            assert!(socket.exists(), "left behind");
            assert_eq!(obstacle(&socket), None, "{note}");
            let living = claim(&socket).unwrap();
            assert!(answers(&socket), "a living one's");
            drop(living);
        }
    }

    /// The other program may accept no connections, and a client would wait.
    #[test]
    fn another_program_is_not_asked() {
        let scratch = Scratch::new();
        make_private(&scratch.0).unwrap();
        let other = UnixListener::bind(scratch.socket()).unwrap();
        other.set_nonblocking(true).unwrap();
        assert!(!answers(&scratch.socket()) && claim(&scratch.socket()).is_err());
        assert_eq!(other.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    /// As root, any file can be read, so the error is given.
    #[test]
    fn a_socket_of_another_user_is_not_to_be_removed() {
        let scratch = Scratch::new();
        let _claim = claim(&scratch.socket()).unwrap();
        let seen = obstacle_with(&scratch.socket(), Err(ErrorKind::PermissionDenied.into()));
        let Obstacle { what, fix } = seen.unwrap();
        assert!(what.contains("another user") && !fix.contains("remove"), "{what}; {fix}");
    }

    #[test]
    fn leftovers_of_a_process_killed_while_claiming_do_not_matter() {
        let scratch = Scratch::new();
        let private = scratch.0.join(format!(".hf{}", std::process::id()));
        make_private(&private).unwrap();
        drop(UnixListener::bind(private.join("s")).unwrap());
        let _claim = claim(&scratch.socket()).unwrap();
        assert!(!private.exists());
    }

    /// A file that is not a holdfast socket is refused with a description of it, and left
    /// unchanged.
    #[test]
    fn files_of_other_programs_are_left_alone() {
        type Make = fn(&Path);
        let rows: [(&str, Make); 6] = [
            ("a regular file", |path| fs::write(path, "precious").unwrap()),
            ("a directory", |path| fs::create_dir(path).unwrap()),
            ("a symbolic link", |path| symlink("/nowhere", path).unwrap()),
            (OF_OTHERS, |path| drop(UnixListener::bind(path).unwrap())),
            (OF_OTHERS, |path| {
                std::mem::forget(UnixListener::bind(path).unwrap());
            }),
            (OF_OTHERS, |path| {
                std::mem::forget(UnixDatagram::bind(path).unwrap());
            }),
        ];
        for (what, make) in rows {
            for used_before in [false, true] {
                let scratch = Scratch::new();
                make_private(&scratch.0).unwrap();
                let socket = scratch.socket();
                if used_before {
                    drop(claim(&socket).unwrap());
                }
                make(&socket);
                let before = Mark::of(&fs::symlink_metadata(&socket).unwrap());
                assert!(obstacle(&socket).is_some() && !answers(&socket), "{what}");
                let error = claim(&socket).unwrap_err().to_string();
                assert!(error.contains(what) && error.contains("remove it"), "{error}");
                assert!(error.contains(socket.to_str().unwrap()), "{error}");
                let after = Mark::of(&fs::symlink_metadata(&socket).unwrap());
                assert_eq!(before, after, "{what}");
                let files = fs::read_dir(&scratch.0).unwrap().count();
                assert!(files <= 2, "{what}: nothing else is left");
            }
        }
    }

    /// At the end, too.
    #[test]
    fn a_file_that_replaced_the_socket_stays() {
        let scratch = Scratch::new();
        let socket = scratch.socket();
        let claim = claim(&socket).unwrap();
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "precious").unwrap();
        drop(claim);
        assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    }

    #[test]
    fn a_path_that_cannot_be_made_is_reported() {
        let scratch = Scratch::new();
        make_private(&scratch.0).unwrap();
        let file = scratch.0.join("file");
        fs::write(&file, "").unwrap();
        let error = claim(&file.join("sub").join("control.sock")).unwrap_err().to_string();
        assert!(error.contains("its directory cannot be made"), "{error}");
        assert!(error.contains("[control] socket"), "{error}");
    }
}
