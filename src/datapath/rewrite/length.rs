//! Part of the stage rewrite: check of a packet's length against the outgoing MTU.

use crate::datapath::batch::HeaderLayout;
use crate::wire::headers::Headers;
use crate::xdp::umem::Frame;

/// Whether the packet fits a link that carries `mtu` bytes.
#[inline(always)]
pub(super) fn fits(frame: &mut Frame, layout: &HeaderLayout, mtu: u16) -> bool {
    usize::from(frame.packet_len()) <= layout.ip() + usize::from(mtu) || trim(frame, layout, mtu)
}

/// Removes the bytes after the IP packet (an Ethernet trailer), if the packet alone is short
/// enough.
#[cold]
fn trim(frame: &mut Frame, layout: &HeaderLayout, mtu: u16) -> bool {
    if frame.is_long() {
        return false;
    }
    let packet = frame.data().get(layout.ip()..).unwrap_or_default();
    let end = Headers::of(packet).map_or(usize::MAX, |headers| headers.end);
    end <= usize::from(mtu) && frame.set_len(layout.ip() + end)
}
