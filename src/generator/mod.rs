//! Traffic generator: plays clients and backends around a load balancer, and evaluates it.
//!
//! ```text
//!   Draw -----flow-----> Slots ----packet----> Template --frame--> client-side NIC
//!    ^                     ^                                              |
//!  Pacer: due packets      | handshake done, FIN answered          the balancer
//!                          |                                              |
//!   Tracker <--- Arrival <-+---- packets that come back, or reach the backend-side NIC
//!   (loss, order, duplicates, affinity, latency)
//! ```
//!
//! Each packet carries a [`signature`], which identifies it after a balancer has rewritten its
//! addresses. A [`worker`] does all of the above for one queue of each NIC, without allocating or
//! sharing more than a few atomics. The [`engine`] owns the workers and runs trials; [`search`]
//! finds the highest rate without loss; [`blast`] sends from inside the kernel instead.
//! [`settings`] checks the requested run, and [`report`] presents its outcome.

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
