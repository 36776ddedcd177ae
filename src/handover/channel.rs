//! A connection between the two processes of a hand-over: messages with files.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::Step;
use crate::format::reason;

/// Longest message in bytes: a queue takes some 60, and there are a few hundred.
const LONGEST: usize = 128 << 10;
/// Most files of a message: `SCM_MAX_FD` of include/net/scm.h.
const MOST_FILES: usize = 253;

/// Reason why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other process has closed the connection.
    #[error("the other process has ended")]
    Ended,
    /// The other process has not replied in time.
    #[error("the other process has not replied in time")]
    Late,
    /// The other process belongs to another user.
    #[error("the other process belongs to user {0}")]
    OtherUser(u32),
    /// The message is of another version.
    #[error("the other process sends what this version does not know; a restart replaces it")]
    Unknown,
    /// The other process has given up.
    #[error("{0}")]
    Failed(String),
    /// A system call failed.
    #[error("{}", reason(.0))]
    Os(#[from] io::Error),
}

impl From<rustix::io::Errno> for ChannelError {
    fn from(error: rustix::io::Errno) -> Self {
        match error {
            rustix::io::Errno::AGAIN => Self::Late,
            rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => Self::Ended,
            other => Self::Os(other.into()),
        }
    }
}

/// A listening socket for new processes.
pub(super) struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, in the place of a socket that an earlier process has left there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = unix_socket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 1)?;
        Ok(Self(socket))
    }

    /// Waits for the next connection of a process of this user or of root.
    pub(super) fn accept(&self) -> Result<Channel, ChannelError> {
        let socket = accept_with(&self.0, SocketFlags::CLOEXEC)?;
        // The listener is good, whatever has become of the other process.
        Channel::over(socket).map_err(|error| ChannelError::Failed(error.to_string()))
    }
}

/// A connection to the other process.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    peer: Pid,
    /// The peer, whichever process has its number later.
    process: OwnedFd,
}

impl Channel {
    /// Connects to the running process that listens at `path`.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn connect(path: &Path) -> Result<Self, ChannelError> {
        let socket = unix_socket()?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::over(socket)
    }

    fn over(socket: OwnedFd) -> Result<Self, ChannelError> {
        let peer = socket_peercred(&socket)?;
        if !peer.uid.is_root() && peer.uid != geteuid() {
            return Err(ChannelError::OtherUser(peer.uid.as_raw()));
        }
        let process = pidfd_open(peer.pid, PidfdFlags::empty())?;
        Ok(Self { socket, peer: peer.pid, process })
    }

    /// Id of the other process.
    pub fn peer(&self) -> u32 {
        self.peer.as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills the other process.
    pub(super) fn kill_peer(&self) {
        // Fails if it has ended.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Waits until the other process has ended; returns whether it has within the time limit.
    pub(super) fn wait_for_end(&self, limit: Duration) -> bool {
        let mut watched = [rustix::event::PollFd::new(&self.process, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec::try_from(limit).ok();
        rustix::event::poll(&mut watched, limit.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Sends a message with files.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn send(
        &self,
        message: &impl Serialize,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let text = serde_json::to_vec(message).map_err(io::Error::from)?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other("too many files for a message").into());
        }
        // A process that has ended must not end this one by SIGPIPE.
        sendmsg(&self.socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Receives a message with its files.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn receive<T: DeserializeOwned>(
        &self,
        limit: Duration,
    ) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(limit))?;
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let received = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let files = files.flatten().collect();
        if received.bytes == 0 {
            return Err(ChannelError::Ended);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ChannelError::Unknown);
        }
        let text = text.get(..received.bytes).unwrap_or_default();
        let message = serde_json::from_slice(text).map_err(|_| ChannelError::Unknown)?;
        Ok((message, files))
    }

    /// Sends a step.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn step(&self, step: &Step) -> Result<(), ChannelError> {
        self.send(step, &[])
    }

    /// Waits for a step of the other process.
    ///
    /// # Errors
    /// [`ChannelError`], also for another step.
    pub fn expect(&self, step: &Step, limit: Duration) -> Result<(), ChannelError> {
        match self.receive(limit)?.0 {
            received if received == *step => Ok(()),
            Step::Failed(reason) => Err(ChannelError::Failed(reason)),
            _ => Err(ChannelError::Unknown),
        }
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::super::message::Hello;
    use super::*;

    /// Both ends of a connection.
    fn pair(name: &str) -> (Channel, Channel) {
        let path = std::env::temp_dir().join(format!("holdfast-{name}-{}", std::process::id()));
        let listener = Listener::open(&path).unwrap();
        let one = Channel::connect(&path).unwrap();
        let other = listener.accept().unwrap();
        // A socket that was left there is replaced.
        drop(Listener::open(&path).unwrap());
        std::fs::remove_file(path).unwrap();
        (one, other)
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn messages_come_with_their_files() {
        let (one, other) = pair("files");
        assert_eq!(one.peer(), std::process::id());
        let path = std::env::temp_dir().join(format!("holdfast-file-{}", std::process::id()));
        let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"contents").unwrap();
        file.rewind().unwrap();
        one.send(&Hello { protocol: 7 }, &[file.as_fd(), file.as_fd()]).unwrap();
        one.step(&Step::Ready).unwrap();
        let (hello, files): (Hello, _) = other.receive(SOON).unwrap();
        assert_eq!((hello.protocol, files.len()), (7, 2));
        other.expect(&Step::Ready, SOON).unwrap();
        let mut text = String::new();
        let received = files.into_iter().next().unwrap();
        File::from(received).read_to_string(&mut text).unwrap();
        assert_eq!(text, "contents");
    }

    #[test]
    fn whatever_else_comes_is_an_error() {
        let (one, other) = pair("errors");
        let late = other.receive::<Hello>(Duration::from_millis(1)).err();
        assert!(matches!(late, Some(ChannelError::Late)), "{late:?}");
        one.step(&Step::Stopped).unwrap();
        let unknown = other.receive::<Hello>(SOON).err();
        assert!(matches!(unknown, Some(ChannelError::Unknown)), "{unknown:?}");
        one.step(&Step::Stopped).unwrap();
        let unknown = other.expect(&Step::Ready, SOON).err();
        assert!(matches!(unknown, Some(ChannelError::Unknown)), "{unknown:?}");
        one.step(&Step::Failed("a reason".to_owned())).unwrap();
        let failed = other.expect(&Step::Ready, SOON).err().map(|error| error.to_string());
        assert_eq!(failed.as_deref(), Some("a reason"));
        drop(one);
        let ended = other.expect(&Step::Ready, SOON).err();
        assert!(matches!(ended, Some(ChannelError::Ended)), "{ended:?}");
        assert!(matches!(other.step(&Step::Ready).err(), Some(ChannelError::Ended)));
    }
}
