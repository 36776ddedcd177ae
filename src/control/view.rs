//! The data path, the NICs and the XDP program as the control thread sees them.
//!
//! The daemon implements these views, so that this plane depends neither on sockets nor on aya.

use std::io;
use std::sync::Arc;

use crate::flow::table::FlowTable;
use crate::net::{ListEntry, ListKey, NicIndex, SteerRules, VipId};
use crate::stats::WorkerStats;
use crate::units::Ticks;

/// Sends one Ethernet frame out of the interface with this index. Never blocks.
pub type SendFrame = Box<dyn FnMut(u32, &[u8]) -> io::Result<()> + Send>;

/// Clock of the flow tables: the source of the [`Ticks`] in their records.
pub type Clock = Arc<dyn Fn() -> Ticks + Send + Sync>;

/// Control's view of a worker: shared state that control only reads.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Core that the worker is pinned to.
    pub core: usize,
    /// Counters of the worker.
    pub stats: Arc<WorkerStats>,
    /// Flow table of the worker.
    pub flows: Arc<FlowTable>,
}

/// Control's view of a NIC; all but its MAC is fixed while the process runs.
#[derive(Debug, Clone)]
pub struct NicView {
    /// Interface name.
    pub interface: String,
    /// Interface index.
    pub ifindex: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU: the longest IP packet that the NIC sends, in bytes.
    pub mtu: u16,
    /// Name of the kernel driver.
    pub driver: String,
    /// Mode of its sockets: `"zero_copy"`, `"copy"` or `"mixed"`.
    pub mode: String,
    /// Whether a packet may span several frames.
    pub multi_buffer: bool,
    /// Indices of the served queues.
    pub queues: Vec<u32>,
    /// Number of receive queues at the start.
    pub rx_queues: u32,
    /// Reasons for which binding or attachment fell back to a lesser mode, in sentences.
    pub fallbacks: Vec<String>,
}

/// Attachment of the XDP program to a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedView {
    /// Mode: `"native"` or `"generic"`.
    pub xdp: String,
    /// Reasons for a lesser mode, or for a missing guard, in sentences.
    pub fallbacks: Vec<String>,
}

/// Packet counters of the XDP program on one NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SteerCounters {
    /// Packets redirected to a worker.
    pub steered: u64,
    /// Packets passed to the kernel.
    pub passed: u64,
    /// Packets dropped because no socket serves their queue.
    pub no_socket: u64,
    /// Packets that missed the XDP program, and were dropped by the guard.
    pub guarded: u64,
    /// Packets for a VIP that were dropped because of the lists.
    pub dropped: AccessDrops,
}

/// Packets for a VIP that the XDP program dropped because of the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccessDrops {
    /// Packets from sources in a deny list.
    pub denied: u64,
    /// Packets from sources that an allow list lacks.
    pub not_allowed: u64,
    /// Packets above the rate of their source.
    pub over_rate: u64,
}

impl AccessDrops {
    /// Returns the packets since an earlier count.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            denied: self.denied.saturating_sub(earlier.denied),
            not_allowed: self.not_allowed.saturating_sub(earlier.not_allowed),
            over_rate: self.over_rate.saturating_sub(earlier.over_rate),
        }
    }
}

/// Deny and allow lists in the XDP programs of all NICs. Used by a thread of its own.
pub trait AccessMaps: Send {
    /// Adds or changes an entry.
    fn insert(&mut self, key: &ListKey, entry: ListEntry) -> Result<(), String>;
    /// Removes an entry, if it is there.
    fn remove(&mut self, key: &ListKey) -> Result<(), String>;
}

/// `XDP_STATISTICS` (linux/if_xdp.h), summed over the sockets of one NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the kernel's fields")]
pub struct SocketStatistics {
    pub rx_dropped: u64,
    pub rx_ring_full: u64,
    pub rx_fill_empty: u64,
    pub rx_invalid: u64,
    pub tx_invalid: u64,
}

/// Interface of control to the XDP program and its sockets.
pub trait SteeringProgram {
    /// Makes the program's maps hold exactly these rules. Keys that stay are present throughout.
    fn sync(&mut self, rules: &SteerRules) -> Result<(), String>;
    /// Attaches the program, and the guard behind it, to every NIC, in order. Called once, after the
    /// first table is published and the first rules are set, so that no packet meets a program
    /// without rules.
    fn attach(&mut self) -> Result<Vec<AttachedView>, String>;
    /// Returns the program's counters of one NIC.
    fn counters(&mut self, nic: NicIndex) -> SteerCounters;
    /// Returns the packets of a VIP that the lists have dropped, summed over all NICs.
    fn access_drops(&mut self, vip: VipId) -> AccessDrops;
    /// Takes the maps of the lists. Called once.
    fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String>;
    /// Returns the kernel's counters of the sockets of one NIC.
    fn socket_statistics(&mut self, nic: NicIndex) -> SocketStatistics;
    /// Returns the current state of one NIC.
    fn nic_now(&mut self, nic: NicIndex) -> Result<NicNow, String>;
    /// Attaches the program to one NIC again, after it was removed.
    fn attach_again(&mut self, nic: NicIndex) -> Result<(), String>;
    /// Attaches the guard of one NIC to an interface: again, or to the one that has taken the NIC's
    /// name.
    fn guard_again(&mut self, nic: NicIndex, ifindex: u32) -> Result<(), String>;
    /// Sets the MAC of one NIC in its program.
    fn set_mac(&mut self, nic: NicIndex, mac: [u8; 6]) -> Result<(), String>;
    /// Leaves programs and guards on the NICs when this value is dropped.
    fn leave(&mut self);
}

/// Current state of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicNow {
    /// The interface has been removed.
    Gone,
    /// An interface with the NIC's index or name exists.
    There {
        /// Interface index.
        ifindex: u32,
        /// MAC address.
        mac: [u8; 6],
        /// Whether the interface is set up.
        up: bool,
        /// Whether the interface has a carrier.
        carrier: bool,
        /// Number of receive queues.
        rx_queues: u32,
        /// XDP program of the interface.
        program: ProgramNow,
        /// Whether the guard is in place, or there was none at the start.
        guarded: bool,
    },
}

/// XDP program of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramNow {
    /// The program of this process.
    Ours,
    /// Another program, by its id.
    Other(u32),
    /// No program.
    None,
}

/// Event that a worker reports to control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The worker has ended, which should never happen.
    Failed {
        /// Index of the worker.
        worker: usize,
        /// Reason of the failure.
        error: String,
    },
}
