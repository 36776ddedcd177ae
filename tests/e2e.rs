//! End-to-end: the real binary, real AF_XDP sockets, real kernel TCP, in namespaces of its own.
//!
//! Needs root and the packages that `scripts/test` installs; fails loudly without them. Tests run
//! one at a time, as they measure and the machine may be small: each makes a lab and removes it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

mod lab;

mod e2e {
    mod affinity;
    pub mod answers;
    mod deny;
    mod drain;
    mod errors;
    mod failures;
    mod fleet;
    mod floods;
    mod forwarding;
    mod fragments;
    pub mod full_nat;
    pub mod guard;
    mod half_closed;
    mod handover;
    mod health;
    mod icmp;
    mod jumbo;
    pub mod kernel;
    mod lifecycle;
    mod limits;
    mod log;
    mod malformed;
    mod next_hops;
    mod nic_changes;
    pub mod oracle;
    pub mod privileges;
    mod quic;
    mod random_packets;
    mod reload;
    mod resets;
    pub mod restart;
    mod routers;
    mod signals;
    mod sticky;
    mod surroundings;
    mod syn_proxy;
    mod tunnel;
    mod unpinned;
    mod vips;
}
