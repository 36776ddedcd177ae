//! Headers inside a frame, rewritten in place. No unsafe, no allocation, no panic.
//!
//! etherparse parses headers ([`crate::datapath::parse`]). These modules cover the remaining tasks:
//! changing bytes and patching checksums incrementally.

pub mod ask;
pub mod checksum;
pub mod ethernet;
pub mod headers;
pub mod icmp;
pub mod ip;
pub mod proxy;
pub mod quic;
pub mod quoted;
pub mod siit;
pub mod splice;
pub mod syn;
pub mod tcp;
pub mod transport;
pub mod tunnel;

#[cfg(test)]
mod testing;
