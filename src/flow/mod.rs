//! Flow tables: five-tuple keys, and the tables that pin flows to backends.
//!
//! A flow is keyed from the client's side: client address and port, VIP address and port, protocol.
//! Replies of a NAT backend are translated to that key before any look-up, so that one entry serves
//! both directions.

mod bucket;
pub mod clients;
pub mod entry;
mod family;
pub mod fragments;
mod header;
mod layout;
pub mod memory;
#[cfg(all(test, holdfast_loom))]
mod models;
pub mod path_mtus;
pub mod qinq;
pub mod return_hops;
pub mod shared;
mod slot;
pub mod snat;
pub mod snat_pool;
pub mod splices;
pub mod table;
pub mod takeover;
pub mod writer;
