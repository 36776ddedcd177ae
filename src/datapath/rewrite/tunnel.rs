//! Part of the stage rewrite: encapsulation, for the modes ipip and gue.
//!
//! ```text
//! before  |headroom            |link|inner packet|Ethernet padding|
//! after   |headroom|link|outer      |inner packet|
//! ```
//!
//! Cost: the inner packet stays where it is; the link header moves into the headroom. One hash of
//! the flow.

use crate::datapath::batch::HeaderLayout;
use crate::datapath::context::Context;
use crate::datapath::path_mtu::inner_limit;
use crate::forwarding::OuterDf;
use crate::forwarding::table::Backend;
use crate::net::{Family, Forward, Tuple};
use crate::stats::Drop;
use crate::wire::tunnel::{Inner, Outer, overhead};
use crate::xdp::umem::Frame;

/// Encapsulates the packet for the backend.
///
/// # Errors
/// The reason for which it cannot be sent; the frame is then unchanged.
#[inline(never)]
pub(super) fn encapsulate(
    frame: &mut Frame,
    layout: &HeaderLayout,
    flow: Tuple,
    backend: &Backend,
    context: &Context<'_>,
) -> Result<(), Drop> {
    let at = layout.ip();
    // Parse has checked that it is whole.
    let inner = inner(frame, at).ok_or(Drop::TruncatedEthernet)?;
    if inner.is_tunnel(context.table.local().tunnels.gue_port) {
        return Err(Drop::NestedTunnel);
    }
    let outer = outer(flow, inner.dont_fragment, backend, context).ok_or(Drop::NoBackend)?;
    if wrap(frame, at, &inner, &outer) { Ok(()) } else { Err(Drop::NoHeadroom) }
}

/// Longest inner packet in bytes of the tunnel to a backend: the least MTU of route, NIC and learnt
/// path, less the outer headers.
#[inline]
pub(super) fn limit(family: Family, backend: &Backend, context: &Context<'_>) -> u16 {
    let overhead = overhead(backend.address.family(), backend.forward == Forward::Gue);
    let learnt = context.shared.path_mtus.learnt(backend.path, context.now);
    let known = backend.mtu.saturating_sub(overhead);
    known.min(inner_limit(learnt, overhead, family))
}

/// Returns the outer headers of a flow's packet; `None` if this box has no source address for them,
/// which the configuration check prevents.
#[inline]
pub(in crate::datapath) fn outer(
    flow: Tuple,
    inner_df: bool,
    backend: &Backend,
    context: &Context<'_>,
) -> Option<Outer> {
    let tunnels = &context.table.local().tunnels;
    let hash = context.table.entropy().hash(flow);
    let source = tunnels.sources(backend.address)?.of(hash);
    let [.., l0, l1, l2, _, _] = hash.to_be_bytes();
    let dont_fragment = match tunnels.outer_df {
        OuterDf::Inner => inner_df,
        OuterDf::Set => true,
        OuterDf::Clear => false,
    };
    Some(Outer {
        source,
        destination: backend.address,
        gue: (backend.forward == Forward::Gue).then(|| tunnels.gue_ports(hash)),
        private: 0,
        flow_label: u32::from_be_bytes([0, l0 & 0x0f, l1, l2]),
        dont_fragment,
        // A packet that is never fragmented needs none (RFC 6864 4.1).
        identification: if dont_fragment { 0 } else { context.identification.next() },
    })
}

/// Inserts the outer headers between the link header of `at` bytes and the inner packet, and
/// removes the bytes after that. Returns false, with the frame unchanged, if there is no headroom.
#[inline]
#[must_use]
pub(in crate::datapath) fn wrap(
    frame: &mut Frame,
    at: usize,
    inner: &Inner,
    outer: &Outer,
) -> bool {
    let added = usize::from(outer.overhead());
    if !frame.push_front(added) {
        return false;
    }
    let data = frame.data_mut();
    data.copy_within(added..added + at, 0);
    if let Some(ether_type) = data.get_mut(at - 2..at) {
        ether_type.copy_from_slice(&outer.ether_type());
    }
    let header = data.get_mut(at..at + added).unwrap_or_default();
    // A packet that is longer than a frame has no padding.
    outer.write(header, inner)
        && (frame.is_long() || frame.set_len(at + added + usize::from(inner.len)))
}

/// Reads the packet after a link header of `at` bytes.
#[inline]
pub(in crate::datapath) fn inner(frame: &Frame, at: usize) -> Option<Inner> {
    let behind = usize::from(frame.packet_len()).checked_sub(frame.len())?;
    Inner::read(frame.data().get(at..)?, behind)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    use crate::net::Address;
    use crate::xdp::umem::Umem;

    /// 14 bytes of link header, 20 of IPv4, and Ethernet padding.
    fn packet() -> Vec<u8> {
        let mut bytes = vec![0xee; 60];
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        bytes[14..18].copy_from_slice(&[0x45, 0, 0, 20]);
        bytes[20..24].copy_from_slice(&[0, 0, 64, 59]);
        bytes
    }

    #[test]
    fn headers_go_into_the_headroom_as_long_as_there_is_some() {
        let outer = Outer {
            source: Address::from_v6([0xfd; 16]),
            destination: Address::from_v6([0xfc; 16]),
            gue: Some((0xc000, 6080)),
            private: 0,
            flow_label: 0,
            dont_fragment: true,
            identification: 0,
        };
        let (_, mut pool) = Umem::create(1, 2048).unwrap();
        let mut frame = pool.pop().unwrap();
        assert!(frame.copy_from(&packet()));
        let mut times = 0;
        while let Some(inner) = inner(&frame, 14) {
            let before = frame.data().to_vec();
            if !wrap(&mut frame, 14, &inner, &outer) {
                assert_eq!(frame.data(), before, "what cannot be sent is left as it is");
                break;
            }
            times += 1;
            assert_eq!(frame.len(), 34 + 52 * times, "without padding");
            assert_eq!(frame.data()[..12], packet()[..12]);
            assert_eq!(frame.data()[12..14], [0x86, 0xdd]);
            assert_eq!(frame.data()[frame.len() - 20..], packet()[14..34]);
        }
        // 256 bytes of headroom.
        assert_eq!((times, frame.headroom()), (4, 48));
        pool.push(frame);
    }
}
