//! The data path: one worker per core, which runs every packet to completion.
//!
//! ```text
//! receive -> parse -> classify -> conntrack -> select -> rewrite -> transmit
//! ```
//!
//! One file per stage, in the order in which a packet meets them, and side doors ([`detour`], [`icmp`], [`answer`],
//! [`reset`]). The worker takes a [`batch::Batch`] through them in five passes: [`receive`], [`passes`] (parse and
//! classify), [`conntrack::prefetch`], [`passes`] again ([`forward`]), [`transmit`]. Stages read a
//! [`context::Context`] and write [`resources::Resources`]. After start-up nothing here allocates, locks, logs,
//! blocks or makes a system call other than ring wake-ups.

pub mod batch;
pub mod classify;
pub mod clients;
pub mod conntrack;
pub mod context;
pub mod detour;
pub mod explain;
pub mod forward;
pub mod fragment_out;
pub mod fragments;
pub mod icmp;
pub mod limiter;
pub mod local_reply;
pub mod parse;
pub mod passes;
pub mod path_mtu;
pub mod ports;
pub mod quic;
pub mod receive;
pub mod reset;
pub mod resources;
pub mod rewrite;
pub mod select;
pub mod snat;
pub mod target;
#[cfg(test)]
mod testing;
pub mod transmit;
pub mod unpinned;
pub mod worker;
