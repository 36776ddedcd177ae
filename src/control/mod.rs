//! The control thread: health, drain, reload, neighbours, announcements and the control API.
//!
//! One thread owns all state that changes ([`controller`]): VIPs and backends ([`state`]), results
//! of their health checks ([`health`]), next hops ([`neighbour`]), addresses put on NICs
//! ([`announce`]), drains ([`drain`]) and slow starts ([`slow_start`]). Each change ends in a new
//! forwarding table, built and published there. [`Inputs`] provides all that this plane needs from
//! the planes below, so that it depends neither on sockets nor on the XDP program:
//!
//! ```text
//!   signals   control socket   check results   netlink    clock    workers' events
//!      |            |               |             |          |            |
//!      +------------+-------+-------+-------------+----------+------------+
//!                           |
//!                   the loop of `controller` --> ForwardingTable --> workers
//!                           |
//!                           +--> SteeringProgram (maps of the XDP program), addresses of NICs
//! ```

pub mod admin;
pub mod announce;
pub mod answering;
pub mod api;
pub mod client_hops;
pub mod clients;
pub mod connections;
pub mod control_socket;
pub mod controller;
pub mod counters;
pub mod damping;
pub mod denied;
pub mod drain;
pub mod error;
pub mod estimate;
pub mod events;
pub mod explain;
pub mod flow_rates;
pub mod flows;
pub mod forecast;
pub mod gratuitous;
pub mod hand_over;
pub mod health;
pub mod hello;
pub mod hook;
pub mod identity;
pub mod inbound;
mod inputs;
pub mod limit;
pub mod list_loader;
pub mod lists;
pub mod neighbour;
pub mod netlink;
pub mod nic_faults;
pub mod own_ports;
pub mod passive;
pub mod pins;
pub mod refusal;
pub mod reload;
pub mod removed;
mod repeated;
pub mod routers;
pub mod saved;
mod signals;
pub mod slow_start;
pub mod split;
pub mod state;
pub mod status;
pub mod survey;
mod view;
pub mod withdrawal;

use tokio::sync::mpsc;

use crate::net::SteerRules;

use signals::merge;

pub use admin::ControlSocket;
pub use error::ControlError;
pub use hand_over::HandOver;
pub use inputs::{Inputs, Load, Save};
pub use signals::{Signal, Signals};
pub use view::{
    AccessDrops, AccessMaps, AttachedView, Clock, NicNow, NicView, ProgramNow, SendFrame,
    SocketStatistics, SteerCounters, SteeringProgram, WorkerEvent, WorkerView,
};

/// Runs the control thread until SIGTERM or SIGINT, then removes the addresses and the control
/// socket that it created. Blocks.
///
/// # Errors
/// When the thread cannot start, or a worker has failed. Addresses and socket are removed in these
/// cases, too.
pub fn run(inputs: Inputs, signals: Signals) -> Result<(), ControlError> {
    let Signals { runtime, streams, .. } = signals;
    runtime.block_on(async { serve(inputs, merge(streams)).await })
}

/// Runs the control thread as [`run`] does, on the caller's runtime and with the caller's signals.
///
/// # Errors
/// The errors of [`run`].
pub async fn serve(inputs: Inputs, signals: mpsc::Receiver<Signal>) -> Result<(), ControlError> {
    controller::serve(inputs, signals).await
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests;
