//! The hand-over: another process takes sockets, packet memory, tables and locks over from this one,
//! by file descriptors, and goes on where it stops.
//!
//! ```text
//!  running process                         new process
//!     | <------------- hello ------------------ |   `holdfast run` finds the lock taken
//!     | changes are refused from now on; the    |
//!     | registry is saved                       |
//!     | -- offer: geometry, keys; files ------> |   reads the configuration, maps everything, loads
//!     | forwards                                |   XDP programs, looks up next hops
//!     | <------------- ready ------------------ |
//!     | the control thread holds, workers stop  |
//!     | ------------- stopped ----------------> |
//!     |                                         |   workers take over, and poll once
//!     | <------------- forwarding ------------- |
//!    ends, leaves everything as it is           |   own XDP programs and guards replace the old
//!                                                   ones, addresses stay
//! ```
//!
//! Up to *stopped*, the new process has changed nothing. If it fails then, also if it does not reply
//! in time, it is killed, so that two never forward, and the workers of the running process take
//! over from it, as it would have from them. Each wait has a limit ([`limits`]).
//!
//! The new process may be another version. Both state the version of this protocol, and whatever the
//! other one states is checked: sizes, numbers of files and their contents. The ledger of the packet
//! memory (`xdp::umem`) names one holder of each frame, so that none is lost or used twice.

mod channel;
pub mod message;
mod predecessor;
mod successor;
mod supervisor;

pub use channel::{Channel, ChannelError};
pub use predecessor::{Estate, Predecessor, WorkerEstate};
pub use successor::{Prepared, Successor, WorkerFiles};
pub use supervisor::{notify, start_again};

/// Limits of waits.
pub mod limits {
    use std::time::Duration;

    /// Wait for a message that is sent at once.
    pub const MESSAGE: Duration = Duration::from_secs(1);
    /// Time for the new process to prepare itself, while the running one forwards.
    pub const PREPARE: Duration = Duration::from_secs(30);
    /// Wait for the workers to stop, to take over, or to poll for the first time.
    pub const WORKERS: Duration = Duration::from_secs(2);
    /// Wait for the next step of the other process while nothing forwards.
    pub const STEP: Duration = Duration::from_secs(2);
}
