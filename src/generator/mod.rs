//! The traffic generator: plays clients and backends around a load balancer, and judges it.
//!
//! ```text
//!   Draw --which flow--> Slots --which packet--> Template --frame--> client-side NIC
//!    ^                     ^                                              |
//!  Pacer: when?            | handshake done, FIN answered          the balancer
//!                          |                                              |
//!   Tracker <--- Arrival <-+---- what comes back, or out of the backend-side NIC
//!   (loss, order, duplicates, affinity, latency)
//! ```
//!
//! Each packet carries a [`signature`], so that it is known again after a balancer has rewritten
//! its addresses. A [`worker`] does all of the above for one queue of each NIC, without allocating
//! or sharing more than a few atomics; the [`engine`] owns the workers and runs trials; [`search`]
//! looks for the highest rate without loss; [`blast`] sends from inside the kernel instead.
//! [`settings`] says what may be asked for, and [`report`] what came of it.

pub mod addresses;
pub mod arrival;
pub mod blast;
pub mod client;
pub mod draw;
pub mod engine;
pub mod judge;
pub mod layout;
pub mod next_hop;
pub mod outcome;
pub mod pace;
pub mod packet;
pub mod report;
pub mod sampler;
pub mod search;
pub mod settings;
pub mod signature;
pub mod slots;
pub mod tracker;
pub mod tuple;
pub mod worker;
