//! The configuration: TOML as written -> checked values that the program relies on.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::flow::Protocol;
use crate::forwarding::{Forward, Ports, Secret};

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[workers]`.
    pub workers: Workers,
    /// `[[nic]]`, in the file's order; a `PortIndex` is an index into this.
    pub nics: Vec<Nic>,
    /// `[[vip]]`, in the file's order.
    pub vips: Vec<Vip>,
    /// `[control]`.
    pub control: Control,
    /// `[hash]`.
    pub hash: Hash,
}

/// `[workers]`: the threads of the data path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// One worker per core, pinned to it.
    pub cores: Vec<usize>,
    /// What a worker does when no packet is there.
    pub idle: Idle,
    /// Entries of each worker's flow table.
    pub flows: usize,
    /// UMEM frames of each worker; `None`: as many as its rings can hold (see `Config::frames`).
    pub frames: Option<u32>,
    /// Bytes per UMEM frame: 2048 or 4096.
    pub frame_size: u32,
    /// Packets per batch, 1..=64.
    pub batch: usize,
}

/// `idle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Poll without end.
    Busy,
    /// Block in poll(2).
    Sleep,
}

/// `[[nic]]`: one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Interface name.
    pub interface: String,
    /// Zero copy, copy, or whichever can be had.
    pub mode: CopyMode,
    /// Native XDP, generic XDP, or whichever can be had.
    pub xdp: XdpMode,
    /// The queues to serve; `None`: all. Queue number `i` of this list is served by worker
    /// `i % workers`.
    pub queues: Option<Vec<u32>>,
    /// Entries of each RX and TX ring (a power of two); fill and completion rings hold twice that.
    pub ring: u32,
}

/// `mode` of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// Refuse to start without zero copy.
    ZeroCopy,
    /// Copy, even where zero copy could be had.
    Copy,
    /// Zero copy if the driver has it, else copy; says what it got.
    Auto,
}

/// `xdp` of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// Refuse to start without native XDP.
    Native,
    /// Generic (skb) XDP.
    Generic,
    /// Native if the driver has it, else generic; says what it got.
    Auto,
}

/// `[[vip]]`: an address that clients connect to.
#[derive(Debug, Clone, PartialEq)]
pub struct Vip {
    /// Unique name.
    pub name: String,
    /// Address that clients connect to.
    pub address: IpAddr,
    /// Ports that clients connect to.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forward: Forward,
    /// Health check of its backends.
    pub health: Health,
    /// Idle time-outs of its flows.
    pub timeouts: Timeouts,
    /// Where the address is put so that the kernel answers ARP and ND for it.
    pub announce: Announce,
    /// Backends, in the file's order.
    pub backends: Vec<Backend>,
}

/// `announce` of a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Announce {
    /// On this interface (default: the first NIC).
    Interface(String),
    /// Not at all: somebody else does it.
    None,
}

/// `health` of a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Backends count as up.
    None,
    /// A TCP connection is opened and closed.
    Tcp(TcpHealth),
}

/// `health = { kind = "tcp", .. }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpHealth {
    /// Time between the starts of two checks.
    pub interval: Duration,
    /// A check fails after this time without an answer.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take a backend down.
    pub fall: u32,
    /// Port to connect to; `None`: the backend's port, else the VIP's first.
    pub port: Option<u16>,
}

/// `timeouts` of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, after a SYN and before the client has answered the handshake.
    pub embryonic: Duration,
    /// TCP, established.
    pub established: Duration,
    /// TCP, after both FINs (or the client's, where replies are not seen), or after a RST.
    pub closing: Duration,
    /// UDP.
    pub udp: Duration,
}

/// `[[vip.backend]]`: a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Name, unique in its VIP.
    pub name: String,
    /// Its own address.
    pub address: IpAddr,
    /// NAT: its port; `None`: the port that the client connected to.
    pub port: Option<u16>,
    /// Share of new flows relative to the other backends; 0 takes none.
    pub weight: u32,
}

/// `[control]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Path of the control socket.
    pub socket: PathBuf,
}

/// `[hash]`: what every box of a fleet must have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hash {
    /// Key of the hashes that choose a backend.
    pub secret: Secret,
    /// Size of the Maglev lookup tables, a prime.
    pub table_size: u32,
}
