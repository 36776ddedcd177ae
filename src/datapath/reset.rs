//! Slow path, reset: resets both ends of a terminated TCP flow.
//!
//! ```text
//! client --segment SEQ s, ACK a--> flow is terminated: not forwarded (flow_reset)
//!        <--RST SEQ a------------- | ----RST SEQ s, ACK a--> backend
//!
//! silent client <--probe---------- | (the sweep)
//!               ---ACK s, a------> flow is terminated: as above
//! ```
//!
//! A RST is accepted if its SEQ is exactly the one that its receiver expects (RFC 5961 3.2). The
//! segment that triggers the resets has that number: its ACK field for the end that sent it (RFC
//! 9293 3.10.7.1), its SEQ for the other end. A *probe* makes a silent end send such a segment: it
//! is an empty segment outside the end's window, which must be answered with an ACK (RFC 9293
//! 3.10.7.4, first check). So no state is kept per flow, and packets of other flows cost nothing.
//!
//! For tunnel modes, segments to the backend go through the tunnel.
//!
//! Segments wait in a [`TxBacklog`] until the end of the poll. They were never received, so they
//! have counters of their own (`resets_sent`, `probes_sent`).
//!
//! Writes: frames from the pool, TX rings. Cost: at most [`BACKLOG`] segments and as many fragments
//! per poll.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};

use super::batch::{Direction, Packet, TcpFlags};
use super::context::{Context, Macs};
use super::queues::Queues;
use super::rewrite::tunnel;
use super::snat::Numbers;
use super::target::{Target, Terminated};
use crate::net::vlan::Tags;
use crate::net::{Address, FlowKey, Forward, NextHop, NicIndex};
use crate::stats::{Drop, LocalReply, WorkerStats};
use crate::wire::headers::Headers;
use crate::wire::ip::is_header_sum_right;
use crate::wire::proxy::Shift;
use crate::wire::tcp;
use crate::wire::tunnel::Outer;
use crate::xdp::umem::{Frame, FramePool};

/// Maximum number of queued segments; more are not sent. An end that gets no reset gets one after
/// its next packet or the next probe.
pub const BACKLOG: usize = 64;
/// Segments per flow: one for each end.
const PER_FLOW: usize = 2;
/// Longest segment in bytes: Ethernet, two VLAN tags, IPv6, TCP.
const LONGEST: usize = 14 + 8 + 40 + 20;
/// Shortest frame in bytes, without its checksum (IEEE 802.3 3.2.7).
const SHORTEST: usize = 60;
const TCP_LEN: u16 = 20;
/// Time-to-live of segments (RFC 1340; most hosts use it).
const HOPS: u8 = 64;

/// TCP numbers and kind of a segment; it has no data.
#[derive(Debug, Clone, Copy)]
struct Content {
    sequence: u32,
    acknowledgment: Option<u32>,
    /// True for a RST, false for a probe.
    reset: bool,
}

/// A TCP segment to send.
#[derive(Debug, Clone, Copy)]
struct Segment {
    hop: NextHop,
    source: (Address, u16),
    destination: (Address, u16),
    content: Content,
    /// Outer headers, if the segment goes through a tunnel.
    outer: Option<Outer>,
}

/// Packets that a worker sends besides those that it received.
#[derive(Debug, Default)]
pub struct TxBacklog {
    /// Resets and probes.
    segments: ArrayVec<Segment, BACKLOG>,
    /// Later fragments of packets that were too long ([`fragment_out`](super::fragment_out)).
    fragments: ArrayVec<(NicIndex, Frame), BACKLOG>,
}

impl TxBacklog {
    /// Whether both ends of another flow can be probed.
    pub fn has_room(&self) -> bool {
        self.segments.remaining_capacity() >= PER_FLOW
    }

    /// Number of fragments for which there is room.
    pub const fn room_for_fragments(&self) -> usize {
        self.fragments.remaining_capacity()
    }

    /// Queues a rewritten fragment that leaves by `nic`.
    pub fn push_fragment(&mut self, nic: NicIndex, frame: Frame, pool: &mut FramePool) {
        if let Err(error) = self.fragments.try_push((nic, frame)) {
            pool.push(error.element().1);
        }
    }

    /// Replies to a packet of a terminated flow with one RST for each end; returns the drop reason.
    /// A RST causes no other RST (RFC 9293 3.10.7.1), and a segment without ACK belongs to no
    /// connection.
    #[cold]
    pub fn answer(
        &mut self,
        packet: &mut Packet,
        terminated: &Terminated<'_>,
        context: &Context<'_>,
    ) -> Drop {
        packet.vip = terminated.target.backend.vip;
        packet.backend = terminated.target.backend.id.index;
        if !is_header_sum_right(packet.network()) {
            return Drop::BadIpv4Checksum;
        }
        let flags = packet.layout.flags;
        if flags.any(TcpFlags::ACK)
            && !flags.any(TcpFlags::RST)
            && let Some((sequence, acknowledgment)) = tcp::numbers(packet.segment())
        {
            let reply = packet.direction.is_reply();
            // All numbers are in the client's sequence space from here on.
            let shift = terminated.shift(context).filter(|_| reply);
            let acknowledgment = shift.map_or(acknowledgment, |shift| shift.back(acknowledgment));
            let back = Content { sequence: acknowledgment, acknowledgment: None, reset: true };
            let acknowledgment = Some(acknowledgment);
            let onwards = Content { sequence, acknowledgment, reset: true };
            let (client, backend) = if reply { (onwards, back) } else { (back, onwards) };
            let flow = packet.flow.key();
            self.push(Some(terminated.to_client(&flow, client, context)));
            self.push(terminated.to_backend(&flow, backend, context));
        }
        Drop::FlowReset
    }

    /// Probes the ends of a silent flow; only the client where the backend's replies do not pass
    /// this box.
    #[cold]
    pub fn probe(&mut self, flow: &FlowKey, terminated: &Terminated<'_>, context: &Context<'_>) {
        // Any numbers outside the window work, which nearly all are; each probe has others.
        let sequence = context.now.0.wrapping_mul(0x9e37_79b1);
        let content = Content { sequence, acknowledgment: Some(!sequence), reset: false };
        self.push(Some(terminated.to_client(flow, content, context)));
        if terminated.target.backend.forward.translates() {
            self.push(terminated.to_backend(flow, content, context));
        }
    }

    fn push(&mut self, segment: Option<Segment>) {
        if let Some(segment) = segment {
            // A full backlog drops the segment: see `BACKLOG`.
            let _ = self.segments.try_push(segment);
        }
    }

    /// Queues all segments and fragments on the TX rings, as far as there are free frames and room.
    #[inline]
    pub fn send(&mut self, queues: &mut Queues, pool: &mut FramePool, context: &Context<'_>) {
        if !self.segments.is_empty() {
            self.send_segments(queues, pool, context);
        }
        if !self.fragments.is_empty() {
            self.send_fragments(queues, pool, context.stats);
        }
    }

    #[cold]
    fn send_fragments(&mut self, queues: &mut Queues, pool: &mut FramePool, stats: &WorkerStats) {
        for (nic, frame) in self.fragments.drain(..) {
            match queues.enqueue_one(nic, frame) {
                Ok(()) => stats.fragments_sent.add(1),
                Err(frame) => pool.push(frame),
            }
        }
    }

    #[cold]
    fn send_segments(&mut self, queues: &mut Queues, pool: &mut FramePool, context: &Context<'_>) {
        let stats = context.stats;
        for segment in self.segments.drain(..) {
            let Some(mut frame) = pool.pop() else { continue };
            if !segment.write(&mut frame, context.macs) {
                pool.push(frame);
                continue;
            }
            match queues.enqueue_one(segment.hop.nic, frame) {
                Ok(()) if segment.content.reset => stats.resets_sent.add(1),
                Ok(()) => stats.probes_sent.add(1),
                Err(frame) => pool.push(frame),
            }
        }
    }
}

impl Terminated<'_> {
    /// Builds a segment from the VIP to the client.
    fn to_client(&self, flow: &FlowKey, content: Content, context: &Context<'_>) -> Segment {
        Segment {
            hop: *context.table.local().return_hop(&self.client, flow.client.family()),
            source: (flow.vip, flow.vip_port),
            destination: (flow.client, flow.client_port),
            content,
            outer: None,
        }
    }

    /// Builds a segment from the client to the backend; `None` if the backend has no next hop,
    /// tunnel source or SNAT port.
    fn to_backend(
        &self,
        flow: &FlowKey,
        content: Content,
        context: &Context<'_>,
    ) -> Option<Segment> {
        let Target { backend, snat_port } = self.target;
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
        let shift = self.shift(context);
        let sequence = shift.map_or(content.sequence, |shift| shift.forth(content.sequence));
        let content = Content { sequence, ..content };
        Some(Segment { hop: backend.next_hop?, source, destination, content, outer })
    }

    /// Returns the shift between the client's and the backend's sequence numbers, with a PROXY
    /// header.
    fn shift(&self, context: &Context<'_>) -> Option<Shift> {
        let Target { backend, snat_port } = self.target;
        Some(Numbers::of(backend, snat_port?, context)?.shift)
    }
}

/// Turns a segment without a backend into a RST that its sender accepts (RFC 9293 3.10.7.1), in its
/// own frame. Returns false if none may be sent.
#[cold]
pub(super) fn refuse(packet: &mut Packet, context: &Context<'_>, pool: &mut FramePool) -> bool {
    let flags = packet.layout.flags;
    let client = packet.came_from(context.nic);
    let refusal = if flags.any(TcpFlags::RST) {
        None
    } else if flags.any(TcpFlags::ACK) {
        let numbers = tcp::numbers(packet.segment());
        numbers.map(|(_, sequence)| Content { sequence, acknowledgment: None, reset: true })
    } else {
        let end = next_sequence(packet);
        end.map(|end| Content { sequence: 0, acknowledgment: Some(end), reset: true })
    };
    let key = packet.flow.key();
    let segment = refusal.map(|content| Segment {
        hop: client,
        source: (key.vip, key.vip_port),
        destination: (key.client, key.client_port),
        content,
        outer: None,
    });
    let bytes = segment.and_then(|segment| segment.bytes(context.macs));
    let (Some(frame), Some(bytes)) = (&mut packet.frame, bytes) else { return false };
    pool.cut(frame);
    packet.nic = context.nic;
    packet.direction = Direction::LocalReply(LocalReply::Rejected);
    frame.copy_from(&bytes)
}

/// Returns the sequence number after a TCP packet.
fn next_sequence(packet: &Packet) -> Option<u32> {
    let headers = Headers::of(packet.network()).ok()?;
    let segment = packet.segment();
    let payload = headers.end.checked_sub(headers.transport + tcp::data_offset(segment)?)?;
    tcp::next_sequence(segment, u32::try_from(payload).ok()?)
}

impl Segment {
    /// Writes the segment into a frame. Returns false if its parts do not fit together, which those
    /// of a flow do.
    fn write(&self, frame: &mut Frame, macs: &Macs) -> bool {
        if !self.bytes(macs).is_some_and(|bytes| frame.copy_from(&bytes)) {
            return false;
        }
        let Some(outer) = &self.outer else { return true };
        let at = 14 + self.hop.vlan.map_or(0, Tags::len);
        tunnel::inner(frame, at).is_some_and(|inner| tunnel::wrap(frame, at, &inner, outer))
    }

    /// Returns the frame without the tunnel. `None` if its parts do not fit together, which those
    /// of a flow do.
    fn bytes(&self, macs: &Macs) -> Option<ArrayVec<u8, LONGEST>> {
        let mut bytes = ArrayVec::new();
        let mut put = |part: &[u8]| bytes.try_extend_from_slice(part).ok();
        let mut tcp = self.tcp();
        match (IpAddr::from(self.source.0), IpAddr::from(self.destination.0)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let ip = Ipv4Header::new(TCP_LEN, HOPS, IpNumber::TCP, source, destination);
                let mut ip = ip.ok()?;
                ip.header_checksum = ip.calc_header_checksum();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &[]).ok()?;
                self.link(EtherType::IPV4, macs, &mut put)?;
                put(&ip.to_bytes())?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ip = Ipv6Header {
                    payload_length: TCP_LEN,
                    next_header: IpNumber::TCP,
                    hop_limit: HOPS,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, &[]).ok()?;
                self.link(EtherType::IPV6, macs, &mut put)?;
                put(&ip.to_bytes())?;
            }
            _ => return None,
        }
        put(&tcp.to_bytes())?;
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
        let Content { sequence, acknowledgment, reset } = self.content;
        // A probe must not look like a zero-window segment; a RST has no window.
        let window = if reset { 0 } else { u16::MAX };
        let mut tcp = TcpHeader::new(self.source.1, self.destination.1, sequence, window);
        tcp.rst = reset;
        tcp.ack = acknowledgment.is_some();
        tcp.acknowledgment_number = acknowledgment.unwrap_or_default();
        tcp
    }
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

    fn segment() -> impl Strategy<Value = Segment> {
        let tags = prop_oneof![
            (1..4095_u16).prop_map(Tags::from),
            (1..4095_u16, 1..4095_u16).prop_map(|(outer, inner)| Tags::two(outer, inner)),
        ];
        let hop = (0..2_u8, any::<[u8; 6]>(), proptest::option::of(tags))
            .prop_map(|(port, mac, vlan)| NextHop { nic: NicIndex(port), mac, vlan });
        let content = (any::<u32>(), any::<Option<u32>>(), any::<bool>()).prop_map(
            |(sequence, acknowledgment, reset)| Content { sequence, acknowledgment, reset },
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
            let Content { sequence, acknowledgment, reset } = segment.content;
            prop_assert_eq!(tcp.sequence_number(), sequence);
            prop_assert_eq!(tcp.ack().then(|| tcp.acknowledgment_number()), acknowledgment);
            prop_assert_eq!(tcp.rst(), reset);
            prop_assert!(!tcp.syn() && !tcp.fin() && tcp.payload().is_empty());
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
        let content = Content { sequence: 1, acknowledgment: None, reset: true };
        let segment = Segment { hop, source: end, destination: end, content, outer: None };
        assert!(segment.bytes(MACS).is_none());
    }
}
