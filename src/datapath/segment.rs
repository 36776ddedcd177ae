//! TCP segments that a worker makes itself: resets, probes, and the handshakes of VIPs with
//! `syn_proxy`.
//!
//! A [`Segment`] is built into a frame of its own ([`Segment::write`]), or into that of the packet
//! which it answers ([`Segment::replace`]). For tunnel modes, segments to the backend go through the
//! tunnel.
//!
//! Writes: frames. Cost: the whole headers, with their checksums.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};

use super::batch::Packet;
use super::context::{Context, Macs};
use super::rewrite::tunnel;
use super::snat::Numbers;
use super::target::Target;
use crate::net::vlan::Tags;
use crate::net::{Address, FlowKey, Forward, NextHop};
use crate::wire::proxy::{Header, Shift, V6_LEN};
use crate::wire::syn::{SynOptions, Timestamps};
use crate::wire::tunnel::Outer;
use crate::xdp::umem::{Frame, FramePool};

/// Longest segment in bytes: Ethernet, two VLAN tags, IPv6, TCP with options, a PROXY header.
const LONGEST: usize = 14 + 8 + 40 + 20 + 20 + V6_LEN;
/// Shortest frame in bytes, without its checksum (IEEE 802.3 3.2.7).
const SHORTEST: usize = 60;
/// Time-to-live of segments (RFC 1340; most hosts use it).
const HOPS: u8 = 64;

/// TCP numbers and kind of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub sequence: u32,
    pub acknowledgment: Option<u32>,
    pub kind: Kind,
}

/// Kind of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A RST.
    Reset,
    /// An empty segment outside the window.
    Probe,
    /// A SYN, or with an acknowledgment a SYN+ACK.
    Syn {
        /// Window, which is not scaled.
        window: u16,
        /// Options.
        options: SynOptions,
    },
    /// The ACK that ends a handshake.
    Ack {
        /// Window, as it is written.
        window: u16,
        /// Timestamps, if the connection has them.
        timestamps: Option<Timestamps>,
        /// PROXY header: the first data.
        header: Option<Header>,
    },
}

/// A TCP segment to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub hop: NextHop,
    pub source: (Address, u16),
    pub destination: (Address, u16),
    pub content: Content,
    /// Outer headers, if the segment goes through a tunnel.
    pub outer: Option<Outer>,
}

impl Segment {
    /// Builds a segment from the VIP to the client behind `hop`.
    pub fn to_client(
        flow: &FlowKey,
        hop: &NextHop,
        content: Content,
        context: &Context<'_>,
    ) -> Self {
        Self {
            hop: *context.table.local().return_hop(hop, flow.client.family()),
            source: (flow.vip, flow.vip_port),
            destination: (flow.client, flow.client_port),
            content,
            outer: None,
        }
    }

    /// Builds the answer to a packet, from where it was sent to, along the way that it came.
    pub fn back(packet: &Packet, content: Content, context: &Context<'_>) -> Self {
        let key = packet.flow.key();
        Self {
            hop: packet.came_from(context.nic),
            source: (key.vip, key.vip_port),
            destination: (key.client, key.client_port),
            content,
            outer: None,
        }
    }

    /// Builds a segment from the client to the backend; `None` if the backend has no next hop,
    /// tunnel source or SNAT port. The numbers are the backend's.
    pub fn to_backend(
        flow: &FlowKey,
        target: &Target<'_>,
        content: Content,
        context: &Context<'_>,
    ) -> Option<Self> {
        let Target { backend, snat_port } = *target;
        let outer = if backend.forward.tunnels() {
            Some(tunnel::outer((*flow).into(), false, backend, context)?)
        } else {
            None
        };
        let destination = match backend.forward {
            Forward::Dsr | Forward::Ipip | Forward::Gue => (flow.vip, flow.vip_port),
            Forward::Nat | Forward::FullNat => {
                (backend.address, backend.port.unwrap_or(flow.vip_port))
            }
        };
        let source = match snat_port {
            Some(id) => context.shared.snat_table.sources().source(id)?,
            None => (flow.client, flow.client_port),
        };
        Some(Self { hop: backend.next_hop?, source, destination, content, outer })
    }

    /// Writes the segment into a frame. Returns false if its parts do not fit together, which those
    /// of a flow do.
    pub fn write(&self, frame: &mut Frame, macs: &Macs) -> bool {
        if !self.bytes(macs).is_some_and(|bytes| frame.copy_from(&bytes)) {
            return false;
        }
        let Some(outer) = &self.outer else { return true };
        let at = 14 + self.hop.vlan.map_or(0, Tags::len);
        tunnel::inner(frame, at).is_some_and(|inner| tunnel::wrap(frame, at, &inner, outer))
    }

    /// Replaces the packet by the segment, in its own frame. Returns false if that fails, with the
    /// packet unchanged.
    pub fn replace(&self, packet: &mut Packet, pool: &mut FramePool, macs: &Macs) -> bool {
        let bytes = self.bytes(macs);
        let (Some(frame), Some(bytes)) = (&mut packet.frame, bytes) else { return false };
        pool.cut(frame);
        frame.copy_from(&bytes)
    }

    /// Returns the frame without the tunnel. `None` if its parts do not fit together, which those
    /// of a flow do.
    fn bytes(&self, macs: &Macs) -> Option<ArrayVec<u8, LONGEST>> {
        let mut bytes = ArrayVec::new();
        let mut put = |part: &[u8]| bytes.try_extend_from_slice(part).ok();
        let mut tcp = self.tcp();
        let header = match &self.content.kind {
            Kind::Ack { header: Some(header), .. } => header.bytes(),
            _ => &[],
        };
        let len = u16::try_from(tcp.header_len() + header.len()).ok()?;
        match (IpAddr::from(self.source.0), IpAddr::from(self.destination.0)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let ip = Ipv4Header::new(len, HOPS, IpNumber::TCP, source, destination);
                let mut ip = ip.ok()?;
                ip.header_checksum = ip.calc_header_checksum();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, header).ok()?;
                self.link(EtherType::IPV4, macs, &mut put)?;
                put(&ip.to_bytes())?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    payload_length: len,
                    next_header: IpNumber::TCP,
                    hop_limit: HOPS,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, header).ok()?;
                self.link(EtherType::IPV6, macs, &mut put)?;
                put(&ip.to_bytes())?;
            }
            _ => return None,
        }
        put(&tcp.to_bytes())?;
        put(header)?;
        let padding = [0; SHORTEST];
        let padding = padding.get(bytes.len()..).unwrap_or_default();
        bytes.try_extend_from_slice(padding).ok()?;
        Some(bytes)
    }

    fn link(
        &self,
        network: EtherType,
        macs: &Macs,
        mut put: impl FnMut(&[u8]) -> Option<()>,
    ) -> Option<()> {
        put(&self.hop.mac)?;
        put(macs.get(usize::from(self.hop.nic.0))?)?;
        if let Some(tags) = self.hop.vlan {
            put(&tags.bytes())?;
        }
        put(&network.0.to_be_bytes())?;
        Some(())
    }

    fn tcp(&self) -> TcpHeader {
        let Content { sequence, acknowledgment, kind } = self.content;
        let (window, options) = match kind {
            Kind::Reset => (0, ArrayVec::new()),
            // It must not look like a zero-window segment.
            Kind::Probe => (u16::MAX, ArrayVec::new()),
            Kind::Syn { window, options } => (window, options.to_bytes()),
            Kind::Ack { window, timestamps, .. } => {
                let alone = SynOptions { mss: None, scale: None, sack: false, timestamps };
                (window, alone.to_bytes())
            }
        };
        let mut tcp = TcpHeader::new(self.source.1, self.destination.1, sequence, window);
        // At most 20 bytes, in whole words.
        let _ = tcp.set_options_raw(&options);
        tcp.rst = kind == Kind::Reset;
        tcp.syn = matches!(kind, Kind::Syn { .. });
        tcp.ack = acknowledgment.is_some();
        tcp.acknowledgment_number = acknowledgment.unwrap_or_default();
        tcp
    }
}

/// Returns the shift between the client's and the backend's sequence numbers, with a PROXY header.
pub(super) fn proxy_shift(target: &Target<'_>, context: &Context<'_>) -> Option<Shift> {
    Some(Numbers::of(target.backend, target.snat_port?, context)?.shift)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::net::NicIndex;

    const MACS: &Macs = &[[2, 0xf, 0, 0, 0, 0], [2, 0xf, 0, 0, 0, 1]];

    fn address() -> impl Strategy<Value = (Address, Address)> {
        let v4 =
            any::<[[u8; 4]; 2]>().prop_map(|[a, b]| (Address::from_v4(a), Address::from_v4(b)));
        let v6 = any::<[[u8; 15]; 2]>().prop_map(|pair| {
            // No IPv4-mapped address.
            let [a, b] = pair.map(|rest| {
                let mut bytes = [0x20; 16];
                bytes[1..].copy_from_slice(&rest);
                Address::from_v6(bytes)
            });
            (a, b)
        });
        prop_oneof![v4, v6]
    }

    fn kind() -> impl Strategy<Value = Kind> {
        let timestamps = proptest::option::of(
            any::<[u32; 2]>().prop_map(|[value, echo]| Timestamps { value, echo }),
        );
        let options = (any::<Option<u16>>(), proptest::option::of(0..=14_u8), any::<bool>());
        let syn = (any::<u16>(), options, timestamps.clone()).prop_map(
            |(window, (mss, scale, sack), timestamps)| Kind::Syn {
                window,
                options: SynOptions { mss, scale, sack, timestamps },
            },
        );
        let header = (address(), any::<bool>())
            .prop_map(|((a, b), with)| with.then(|| Header::new((a, 1), (b, 2))));
        let ack = (any::<u16>(), timestamps, header)
            .prop_map(|(window, timestamps, header)| Kind::Ack { window, timestamps, header });
        prop_oneof![Just(Kind::Reset), Just(Kind::Probe), syn, ack]
    }

    fn segment() -> impl Strategy<Value = Segment> {
        let tags = prop_oneof![
            (1..4095_u16).prop_map(Tags::from),
            (1..4095_u16, 1..4095_u16).prop_map(|(outer, inner)| Tags::two(outer, inner)),
        ];
        let hop = (0..2_u8, any::<[u8; 6]>(), proptest::option::of(tags))
            .prop_map(|(port, mac, vlan)| NextHop { nic: NicIndex(port), mac, vlan });
        let content = (any::<u32>(), any::<Option<u32>>(), kind()).prop_map(
            |(sequence, acknowledgment, kind)| Content { sequence, acknowledgment, kind },
        );
        (hop, address(), any::<[u16; 2]>(), content).prop_map(|(hop, (a, b), ports, content)| {
            let (source, destination) = ((a, ports[0]), (b, ports[1]));
            Segment { hop, source, destination, content, outer: None }
        })
    }

    proptest! {
        /// etherparse reads back the same fields, and computes both checksums alike.
        #[test]
        fn segments_are_well_formed(segment in segment()) {
            let bytes = segment.bytes(MACS).unwrap();
            prop_assert!(bytes.len() >= SHORTEST);
            let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
            let vlans: Vec<u16> = packet.vlan_ids().iter().map(|vlan| vlan.value()).collect();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
                unreachable!("{packet:?}")
            };
            let (source, destination, checksum): (IpAddr, IpAddr, _) = match packet.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
                    let checksum = tcp.calc_checksum_ipv4(header.source, header.destination);
                    (header.source.into(), header.destination.into(), checksum.unwrap())
                }
                NetSlice::Ipv6(ip) => {
                    let (source, destination) = (ip.header().source(), ip.header().destination());
                    let checksum = tcp.calc_checksum_ipv6(source, destination);
                    (source.into(), destination.into(), checksum.unwrap())
                }
                other => unreachable!("{other:?}"),
            };
            prop_assert_eq!(tcp.checksum(), checksum);
            prop_assert_eq!((Address::from(source), tcp.source_port()), segment.source);
            prop_assert_eq!((Address::from(destination), tcp.destination_port()), segment.destination);
            let Content { sequence, acknowledgment, kind } = segment.content;
            prop_assert_eq!(tcp.sequence_number(), sequence);
            prop_assert_eq!(tcp.ack().then(|| tcp.acknowledgment_number()), acknowledgment);
            prop_assert_eq!(tcp.rst(), kind == Kind::Reset);
            prop_assert_eq!(tcp.syn(), matches!(kind, Kind::Syn { .. }));
            prop_assert!(!tcp.fin());
            match kind {
                Kind::Syn { window, options } => {
                    prop_assert_eq!((tcp.window_size(), SynOptions::of(tcp.slice())), (window, options));
                }
                Kind::Ack { window, timestamps, header } => {
                    prop_assert_eq!(tcp.window_size(), window);
                    prop_assert_eq!(Timestamps::find(tcp.slice()), timestamps);
                    let expected = header.as_ref().map_or(&[][..], Header::bytes);
                    prop_assert_eq!(tcp.payload(), expected);
                }
                Kind::Reset | Kind::Probe => prop_assert!(tcp.payload().is_empty()),
            }
            let tags = segment.hop.vlan;
            let expected = tags.into_iter().flat_map(|tags| {
                tags.outer.value().into_iter().chain([tags.inner])
            });
            prop_assert_eq!(vlans, Vec::from_iter(expected));
            prop_assert_eq!(&bytes[..6], &segment.hop.mac[..]);
            prop_assert_eq!(&bytes[6..12], &MACS[usize::from(segment.hop.nic.0)][..]);
        }
    }

    #[test]
    fn a_nic_that_is_not_there_is_no_frame() {
        let hop = NextHop { nic: NicIndex(2), mac: [2; 6], vlan: None };
        let end = (Address::from_v4([192, 0, 2, 1]), 80);
        let content = Content { sequence: 1, acknowledgment: None, kind: Kind::Reset };
        let segment = Segment { hop, source: end, destination: end, content, outer: None };
        assert!(segment.bytes(MACS).is_none());
    }
}
