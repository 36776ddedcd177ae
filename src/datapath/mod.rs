//! The data path: one worker per core, which runs every packet to completion.
//!
//! ```text
//! receive -> parse -> classify -> conntrack -> select -> rewrite -> transmit
//! ```
//!
//! One file or folder per stage, in the order of the diagram. Receive and transmit handle a
//! [`batch::Batch`]; the stages between them handle one packet at a time. A worker runs each batch
//! through five passes: [`receive`], [`passes`] (parse and classify), [`conntrack::prefetch`],
//! [`passes`] again ([`forward`]), [`transmit`]. Slow paths serve packets that are not forwarded
//! along a pin: [`detour`], [`icmp`], [`local_reply`], [`reset`], [`syn_proxy`].
//!
//! Stages read a [`context::Context`] and write [`resources::Resources`]. After start-up the packet
//! path does not allocate, lock, log or block, except for traces; its only system calls are ring
//! wake-ups. An idle worker may sleep.

mod ask;
pub mod batch;
pub mod classify;
pub mod clients;
pub mod conntrack;
pub mod context;
mod cookie;
pub mod detour;
pub mod explain;
pub mod forward;
pub mod fragment_out;
pub mod fragments;
mod handshakes;
pub mod icmp;
pub mod limiter;
pub mod local_reply;
mod new_flows;
pub mod parse;
pub mod passes;
pub mod path_mtu;
pub mod queues;
pub mod quic;
pub mod receive;
pub mod reset;
pub mod resources;
pub mod rewrite;
mod segment;
pub mod select;
pub mod snat;
mod splice;
pub mod syn_proxy;
pub mod target;
#[cfg(test)]
mod testing;
mod token_bucket;
pub mod transmit;
pub mod unpinned;
pub mod worker;
