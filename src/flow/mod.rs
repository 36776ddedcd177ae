//! Flows: the key that names a connection, and the table that pins it to its backend.
//!
//! A flow is always named from the client's side: client address and port, VIP address and port,
//! protocol. Replies of a NAT backend are turned into that key before any look-up, so that one
//! entry serves both directions.

mod bucket;
pub mod clients;
pub mod entry;
mod family;
pub mod fragments;
mod layout;
pub mod path_mtus;
mod qinq;
pub mod return_hops;
pub mod shared;
mod slot;
pub mod snat;
pub mod snat_pool;
pub mod table;
pub mod writer;
