//! Part of the stage rewrite: address and port of one side, for mode nat.

use crate::datapath::batch::Shape;
use crate::flow::Address;
use crate::flow::tuple::HashedKey;
use crate::stats::Drop;
use crate::wire::ip::{self, IpError, Side};
use crate::wire::transport;
use crate::xdp::umem::Frame;

/// Replaces the address and port of one side.
#[inline(always)]
pub(super) fn translate(
    frame: &mut Frame,
    shape: &Shape,
    flow: &HashedKey,
    side: Side,
    address: Address,
    port: u16,
) -> Result<(), Drop> {
    let data = frame.data_mut();
    let v4 = flow.tuple.is_v4();
    // Parse has found both headers whole; the offsets are its own.
    let network = data.get_mut(shape.ip()..).ok_or(Drop::TruncatedEthernet)?;
    let translated = if v4 {
        ip::rewrite_v4(network, side, address)
    } else {
        ip::rewrite_v6(network, side, address)
    };
    let delta = translated.map_err(|error| match error {
        IpError::HopsExceeded => Drop::TtlExceeded,
        IpError::Truncated if v4 => Drop::TruncatedIpv4,
        IpError::Truncated => Drop::TruncatedIpv6,
    })?;
    let segment = data.get_mut(usize::from(shape.transport)..).unwrap_or_default();
    if transport::rewrite(flow.protocol(), segment, side, port, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}
