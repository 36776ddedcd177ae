//! Part of the stage rewrite: addresses and ports of both sides, for mode full_nat.

use super::nat::{translate_quote, unsent};
use crate::datapath::batch::{Part, Shape};
use crate::flow::Address;
use crate::flow::tuple::HashedKey;
use crate::stats::Drop;
use crate::wire::quoted::Replacement;
use crate::wire::{ip, transport};
use crate::xdp::umem::Frame;

/// Replaces the addresses and ports of both sides.
#[inline]
pub(super) fn translate(
    frame: &mut Frame,
    shape: &Shape,
    flow: &HashedKey,
    source: (Address, u16),
    destination: (Address, u16),
) -> Result<(), Drop> {
    let data = frame.data_mut();
    let v4 = flow.tuple.is_v4();
    // Parse has found both headers whole; the offsets are its own.
    let network = data.get_mut(shape.ip()..).ok_or(Drop::TruncatedEthernet)?;
    let translated = if v4 {
        ip::readdress_v4(network, source.0, destination.0)
    } else {
        ip::readdress_v6(network, source.0, destination.0)
    };
    let delta = translated.map_err(|error| unsent(error, v4))?;
    if shape.part == Part::Quoting {
        // What goes to an end was sent by it.
        let (source, destination) = (Some(destination), Some(source));
        let replacement = Replacement { source, destination, ..Replacement::default() };
        return translate_quote(data, shape, &replacement, delta);
    }
    if shape.part == Part::Later {
        // Ports and checksum are in the first one: the same change of addresses is right for all.
        return Ok(());
    }
    let segment = data.get_mut(usize::from(shape.transport)..).unwrap_or_default();
    let ports = (source.1, destination.1);
    if transport::readdress(flow.protocol(), segment, ports, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}
