//! Reasons for which the control thread ends.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Reason for which the control thread could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The tokio runtime could not be started.
    #[error("control thread: {0}; raise the limit of open files (ulimit -n) if it is reached")]
    Runtime(io::Error),
    /// Netlink could not be opened or queried.
    #[error("netlink: {0}; holdfast needs it for routes, neighbours and addresses")]
    Netlink(String),
    /// Another process holds the control socket.
    #[error(
        "holdfast already runs with this socket (pid {pid}): {}; stop that process, or set another \
         [control] socket",
        path.display()
    )]
    AlreadyRunning {
        /// Path of the socket.
        path: PathBuf,
        /// Process id that the other process wrote into its lock file.
        pid: String,
    },
    /// The control socket cannot be created.
    #[error("control socket {}: {reason}; set [control] socket to a path that can be made", path.display())]
    Socket {
        /// Path of the socket, its lock file or its directory.
        path: PathBuf,
        /// Reason of the failure.
        reason: String,
    },
    /// The address of a VIP cannot be put on the interface that `announce` names.
    #[error("{0}")]
    Announce(#[from] AnnounceError),
    /// There are more VIPs or backends than indices.
    #[error("{0}")]
    Full(#[from] Full),
    /// The maps of the XDP program could not be filled.
    #[error("XDP program: the rules for VIPs could not be set: {0}")]
    Steering(String),
    /// The XDP program could not be attached.
    #[error("XDP program: {0}")]
    Attach(String),
    /// A NIC has changed in a way that only a start can follow.
    #[error("NIC {interface}: {text}")]
    Nic {
        /// Name of the NIC.
        interface: String,
        /// Text of the fault.
        text: String,
    },
    /// The running process could not be taken over.
    #[error(
        "the process that runs has not handed over: {0}; it goes on; to replace it, stop it first"
    )]
    NotTakenOver(String),
    /// A process that was to take over has died too late.
    #[error("hand-over: {0}; holdfast stops, start it again")]
    HandOver(String),
    /// A worker has ended, and its queues are dead.
    #[error("worker {worker} has failed: {error}; holdfast stops, start it again")]
    Worker {
        /// Index of the worker.
        worker: usize,
        /// Reason of the failure.
        error: String,
    },
}

/// Reasons for which an address cannot be announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// The interface does not exist.
    #[error(
        "address {address}: interface {interface} does not exist; set announce to one that \
         does, or to \"none\""
    )]
    NoInterface {
        /// Address of the VIP, or a full-NAT source.
        address: IpAddr,
        /// Interface named by `announce`.
        interface: String,
    },
    /// The kernel refused to add the address.
    #[error(
        "address {address} cannot be added to {interface}: {reason}; holdfast needs \
         CAP_NET_ADMIN, and for IPv6 net.ipv6.conf.{interface}.disable_ipv6 = 0"
    )]
    Refused {
        /// Address of the VIP, or a full-NAT source.
        address: IpAddr,
        /// Interface name.
        interface: String,
        /// The kernel's error.
        reason: String,
    },
    /// The netlink request itself failed.
    #[error("addresses cannot be listed: netlink: {0}")]
    Netlink(String),
}

/// Error: more VIPs or backends than the forwarding table has room for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{count} {what}: holdfast has room for {room}; spread them over several boxes")]
pub struct Full {
    /// `"VIPs"` or `"backends"`.
    pub what: &'static str,
    /// Configured number.
    pub count: usize,
    /// Maximum number.
    pub room: usize,
}
