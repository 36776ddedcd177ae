//! The state that outlives the process, so that a restart finds every pin.
//!
//! ```text
//! [state] directory / instance (named by the control socket), in memory (tmpfs)
//!   lock               held by the running process
//!   handover           socket by which another process takes over
//!   registry           checksum; facts of the tables; VIPs, backends and drains (JSON)
//!   qinq               pairs of VLAN tags
//!   tables.N/          the set of tables that `registry` names
//!     flows-0 ...      flow table of each worker
//!     clients, fragments, snat, return_hops
//! ```
//!
//! The tables are the files themselves, mapped: nothing is copied at the end, so that a process that
//! is killed leaves them as they are. The registry is replaced by a rename before a forwarding
//! table with new indices is published; so no pin refers to an index that the registry lacks.
//!
//! A process that starts continues the set in place if the number of workers, the NICs, the SNAT
//! pool and the sizes are those of the earlier process; else it makes the next set and imports the
//! pins into it. Memory of another boot, of an unknown layout, or damaged is not used: a message
//! states the loss.

mod directory;
mod document;
mod import;
mod tables;

pub use directory::{Directory, StateError, hand_over_socket};
pub use document::{Document, Facts};
pub use import::Loss;
pub use tables::{Tables, open};

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests;
