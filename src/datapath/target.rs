//! Destination of a flow's packets, which conntrack or select finds.

use crate::flow::bindings::BindingId;
use crate::flow::entry::Track;
use crate::forwarding::table::Backend;
use crate::net::NextHop;

/// Destination of a client's packet.
#[derive(Debug, Clone, Copy)]
pub struct Target<'t> {
    /// Its backend.
    pub backend: &'t Backend,
    /// Full NAT: the flow's source address and port towards the backend.
    pub binding: Option<BindingId>,
}

impl<'t> Target<'t> {
    /// Destination of the packets of a flow that is pinned to `backend`.
    #[inline(always)]
    pub(super) const fn of(backend: &'t Backend, track: &Track) -> Self {
        Self { backend, binding: track.binding() }
    }
}

/// Both ends of a terminated flow, to which resets and probes are sent.
#[derive(Debug)]
pub struct Cut<'t> {
    /// The next hop towards the client.
    pub client: NextHop,
    /// The backend's end.
    pub target: Target<'t>,
}
