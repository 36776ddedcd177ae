//! Part of the stages conntrack and select: the backend named by a QUIC connection id.
//!
//! Reads: the UDP payload, the VIP's connection id configurations.
//! Cost: nothing for a VIP without them; else see
//! [`QuicLb::backend`](crate::forwarding::quic_lb::QuicLb::backend).

use super::batch::{FragmentKind, Packet};
use super::context::Context;
use crate::forwarding::table::{Backend, BackendFlags};
use crate::net::{BackendIndex, Protocol};
use crate::wire::quic::server_chosen_id;

/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;

/// Returns the backend named by the packet's connection id, if its VIP uses connection ids and that
/// backend still takes packets of existing flows; a draining one does.
#[inline]
pub fn named<'t>(packet: &Packet, context: &Context<'t>) -> Option<&'t Backend> {
    let quic = context.table.vip(packet.vip)?.quic.as_deref()?;
    let index = quic.backend(server_chosen_id(udp_payload(packet)?)?)?;
    context.table.backend(index).filter(|backend| backend.takes_non_syn)
}

/// A NAT backend that may be the origin of a flow's reply.
#[derive(Debug, Clone, Copy)]
pub struct ReplyOrigin {
    /// The backend.
    pub backend: BackendIndex,
    /// Also matches flows pinned to other backends of its VIP, if that VIP uses connection ids: one
    /// client port may then have connections on several backends, and the pin is on the backend
    /// whose packet came last. If false, only flows pinned to the backend itself match.
    pub of_its_vip: bool,
}

impl ReplyOrigin {
    /// Whether flows may match this origin.
    #[inline]
    pub fn exists(self, context: &Context<'_>) -> bool {
        let by_ids = |backend: &Backend| backend.flags.has(BackendFlags::QUIC);
        !self.of_its_vip || context.table.backend(self.backend).is_some_and(by_ids)
    }

    /// Whether the backend may reply for a flow that is pinned to `pinned`.
    #[inline]
    pub fn answers_for(self, pinned: &Backend, context: &Context<'_>) -> bool {
        let shares_vip =
            || context.table.backend(self.backend).is_some_and(|it| it.vip == pinned.vip);
        pinned.id.index == self.backend || (self.of_its_vip && shares_vip())
    }
}

/// Returns the UDP payload. Parsing has checked that it is complete: QUIC is not sent in fragments
/// (RFC 9000 14).
#[inline]
fn udp_payload(packet: &Packet) -> Option<&[u8]> {
    if packet.flow.protocol() != Protocol::Udp || packet.layout.fragment != FragmentKind::Whole {
        return None;
    }
    let datagram = packet.data().get(usize::from(packet.layout.transport)..)?;
    let [_, _, _, _, high, low, ..] = *datagram else { return None };
    datagram.get(UDP_HEADER..usize::from(u16::from_be_bytes([high, low])))
}
