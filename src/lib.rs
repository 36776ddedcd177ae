//! holdfast: a layer-4 load balancer on AF_XDP that pins every connection to its backend.
//!
//! Start reading at [`datapath::worker`]: the body of its poll function lists the stages of a
//! packet. `docs/ARCHITECTURE.md` has the planes, the map of the code and the invariants.

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod flow;
pub mod format;
pub mod forwarding;
pub mod generator;
pub mod handover;
pub mod log;
pub mod net;
mod plot;
pub mod privileges;
pub mod replay;
pub mod saved;
pub mod stats;
pub mod steering;
pub mod sync;
pub mod units;
pub mod whatif;
pub mod wire;
pub mod workers;
pub mod xdp;
