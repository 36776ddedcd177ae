//! Destination of a flow's packets, which conntrack or select finds.

use crate::flow::entry::FlowState;
use crate::flow::snat::SnatPort;
use crate::forwarding::table::Backend;
use crate::net::NextHop;

/// Destination of a client's packet.
#[derive(Debug, Clone, Copy)]
pub struct Target<'t> {
    /// The backend.
    pub backend: &'t Backend,
    /// Full NAT: the flow's source address and port towards the backend.
    pub snat_port: Option<SnatPort>,
}

impl<'t> Target<'t> {
    /// Returns the destination of a flow that is pinned to `backend`.
    #[inline(always)]
    pub(super) const fn of(backend: &'t Backend, flow_state: &FlowState) -> Self {
        Self { backend, snat_port: flow_state.snat_port() }
    }
}

/// Both ends of a terminated flow, to which resets and probes are sent.
#[derive(Debug)]
pub struct Terminated<'t> {
    /// The next hop towards the client.
    pub client: NextHop,
    /// The backend and, for full NAT, the flow's SNAT port.
    pub target: Target<'t>,
}
