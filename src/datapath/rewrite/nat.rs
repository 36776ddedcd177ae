//! Part of the stage rewrite: address and port of one side, for mode nat.

use crate::datapath::batch::{FragmentKind, HeaderLayout};
use crate::net::{Address, Family, HashedKey};
use crate::stats::Drop;
use crate::wire::checksum::Delta;
use crate::wire::headers::Headers;
use crate::wire::ip::{self, IpError, Side};
use crate::wire::quoted::{self, Replacement};
use crate::wire::transport;
use crate::xdp::umem::Frame;

/// Replaces the address and port of one side.
#[inline(always)]
pub(super) fn translate(
    frame: &mut Frame,
    layout: &HeaderLayout,
    flow: &HashedKey,
    side: Side,
    address: Address,
    port: u16,
) -> Result<(), Drop> {
    let data = frame.data_mut();
    let family = flow.tuple.family();
    // Parse has checked both headers; the offsets are its own.
    let network = data.get_mut(layout.ip()..).ok_or(Drop::TruncatedEthernet)?;
    let translated = if family.is_v4() {
        ip::rewrite_v4(network, side, address)
    } else {
        ip::rewrite_v6(network, side, address)
    };
    let delta = translated.map_err(|error| unsent(error, family))?;
    if layout.fragment == FragmentKind::Quoting {
        // The end that receives an ICMP error sent the quoted packet.
        let (end, none) = (Some((address, port)), Replacement::default());
        let replacement = match side {
            Side::Destination => Replacement { source: end, ..none },
            Side::Source => Replacement { destination: end, ..none },
        };
        return translate_quote(data, layout, &replacement, delta);
    }
    if layout.fragment == FragmentKind::Later {
        // Ports and checksum are in the first fragment; all fragments need the same change of
        // addresses.
        return Ok(());
    }
    let segment = data.get_mut(usize::from(layout.transport)..).unwrap_or_default();
    if transport::rewrite(flow.protocol(), segment, side, port, delta) {
        Ok(())
    } else {
        Err(Drop::TruncatedTcp)
    }
}

/// Returns the drop reason for an IP header error.
pub(super) const fn unsent(error: IpError, family: Family) -> Drop {
    match error {
        IpError::HopsExceeded => Drop::TtlExceeded,
        IpError::Truncated if family.is_v4() => Drop::TruncatedIpv4,
        IpError::Truncated => Drop::TruncatedIpv6,
    }
}

/// Translates the packet that an ICMP error quotes. `outer` is the change of the outer addresses,
/// which the ICMPv6 checksum covers.
#[cold]
pub(super) fn translate_quote(
    data: &mut [u8],
    layout: &HeaderLayout,
    replacement: &Replacement,
    outer: Delta,
) -> Result<(), Drop> {
    // Bytes after the packet in its frame are no part of the quote.
    let packet = data.get(layout.ip()..).unwrap_or_default();
    let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
    let len = layout.ip() + Headers::of(packet).map_err(|_| Drop::BadIcmp)?.end;
    let message = data.get_mut(usize::from(layout.transport)..len).ok_or(Drop::BadIcmp)?;
    let outer = if v4 { Delta::default() } else { outer };
    quoted::translate(message, replacement, outer).map_err(|_| Drop::BadIcmp)
}
