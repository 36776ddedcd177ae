//! Forwarding state of the data path: an immutable table, published by pointer.
//!
//! ```text
//! listen key (address, port, protocol) -> VIP -> affinity -> scheduler -> backend -> next hop
//! return key (address, port, protocol) -> NAT backend -> VIP ports that its replies may come from
//! ```
//!
//! The control thread builds a [`ForwardingTable`] from [`VipSpec`]s and publishes it; workers
//! check once per batch for a newer one ([`publish`]). Pure values: no I/O, no clock.

pub mod affinity;
pub mod digest;
pub mod explain;
pub mod history;
pub mod listeners;
pub mod local;
pub mod new_flows;
pub mod old_listeners;
pub mod policy;
pub mod publish;
pub mod quic_lb;
pub mod scheduler;
pub mod server;
mod service;
pub mod share;
mod spec;
pub mod sticky;
pub mod table;
pub mod tunnel;

pub use affinity::{Affinity, ClientKey, Secret, Splits};
pub use listeners::MAX_PREFIX_LENGTHS;
pub use local::{Local, ReplacedHop};
pub use old_listeners::OldListen;
pub use policy::{Ask, FlowTimeouts, Timeouts, VipPolicy};
pub use quic_lb::ServerId;
pub use scheduler::SchedulerKind;
pub use service::{FlowAction, Miss, RESET_TIME, Service};
pub use spec::{BackendSpec, FULL_SHARE, Ports, VipSpec};
pub use sticky::Remember;
pub use table::ForwardingTable;
pub use tunnel::{OuterDf, Tunnels};

/// Maximum number of VIPs in one configuration.
pub const MAX_VIPS: usize = 4096;
/// Maximum number of backends in one configuration, over all VIPs.
pub const MAX_BACKENDS: usize = 16_384;
/// Maximum number of VIP ports that may map to one port of a NAT backend: each costs a new flow,
/// and a reply, a look-up in the table of every worker.
pub const MAX_RETURN_PATHS: usize = 16;
