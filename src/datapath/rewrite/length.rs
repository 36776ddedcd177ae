//! Part of the stage rewrite: whether a packet fits the link that it leaves by.

use crate::datapath::batch::HeaderLayout;
use crate::wire::headers::Headers;
use crate::xdp::umem::Frame;

/// Whether the packet may leave as it is by a link that carries `mtu` bytes.
#[inline(always)]
pub(super) fn fits(frame: &mut Frame, layout: &HeaderLayout, mtu: u16) -> bool {
    usize::from(frame.packet_len()) <= layout.ip() + usize::from(mtu) || trim(frame, layout, mtu)
}

/// Cuts off what follows the IP packet, if that alone is short enough: what the sender's link added
/// (an Ethernet trailer) is no part of it.
#[cold]
fn trim(frame: &mut Frame, layout: &HeaderLayout, mtu: u16) -> bool {
    if frame.is_long() {
        return false;
    }
    let packet = frame.data().get(layout.ip()..).unwrap_or_default();
    let end = Headers::of(packet).map_or(usize::MAX, |headers| headers.end);
    end <= usize::from(mtu) && frame.set_len(layout.ip() + end)
}
