//! A batch of packets, and the metadata of each packet.

use crate::flow::entry::ReturnHop;
use crate::flow::snat::SnatPort;
use crate::flow::table::Slot;
use crate::net::vlan::Tags;
use crate::net::{BackendIndex, HashedKey, ListenKey, NextHop, NicIndex, VipId};
use crate::stats::LocalReply;
use crate::xdp::umem::Frame;

/// Maximum number of packets in a batch. Larger batches hide no more memory latency, and fall out
/// of the L1 cache.
pub const BATCH: usize = 64;

/// The packets of one poll of one NIC queue.
///
/// The records are reused from batch to batch; each stage writes only its own fields.
#[derive(Debug)]
pub struct Batch {
    packets: Box<[Packet; BATCH]>,
    len: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { packets: Box::new([const { Packet::NONE }; BATCH]), len: 0 }
    }
}

impl Batch {
    /// Replaces the batch, which has no frames left, with the next packets of `receive`, which puts
    /// a frame into each record that it takes from the iterator and returns the number of frames.
    #[inline(always)]
    pub fn fill(&mut self, receive: impl FnOnce(&mut std::slice::IterMut<'_, Packet>) -> usize) {
        self.len = receive(&mut self.packets.iter_mut()).min(BATCH);
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The packets that still have a frame, in order.
    #[inline]
    pub fn in_flight(&mut self) -> impl Iterator<Item = &mut Packet> {
        self.packets().iter_mut().filter(|packet| packet.frame.is_some())
    }

    /// All packets, in order; those not in flight have no frame.
    #[inline]
    pub fn packets(&mut self) -> &mut [Packet] {
        self.packets.get_mut(..self.len).unwrap_or_default()
    }
}

/// Metadata of one packet, written by the stages. Two cache lines.
#[derive(Debug)]
#[repr(align(64))]
pub struct Packet {
    /// The packet's bytes; `None` once it is queued, parked or dropped.
    pub frame: Option<Frame>,
    /// The packet was dropped or parked, so that transmit does not count it.
    pub dropped: bool,
    /// Header offsets, tags, flags and fragment kind, by parse.
    pub layout: HeaderLayout,
    /// Flow key from the client's side, by classify. For a reply to a full-NAT source it is the
    /// packet's own tuple until conntrack finds the flow.
    pub flow: HashedKey,
    /// Slot of the flow table that may hold the flow, by prefetch.
    pub hint: Slot,
    /// The VIP, by classify; for a reply, that of the backend, once that is known.
    pub vip: VipId,
    /// Direction, by classify; narrowed by conntrack.
    pub direction: Direction,
    /// Destination or origin backend, for the counters, by rewrite.
    pub backend: BackendIndex,
    /// Outgoing NIC, by rewrite.
    pub nic: NicIndex,
    /// Bytes as received, by rewrite.
    pub bytes: u16,
    /// Longest IP packet in bytes that would have passed, by rewrite; only for a packet that is too
    /// long ([`Drop::TooBig`](crate::stats::Drop::TooBig)).
    pub limit: u16,
}

/// Direction of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a client to a VIP.
    ToBackend,
    /// From a NAT backend with this service address and port to a client.
    ToClient(ListenKey),
    /// From a full-NAT backend, sent to this SNAT port, to a client.
    ToClientOf(SnatPort),
    /// ICMP error about a flow. With `None` it goes to the backend that sent the quoted packet;
    /// with the service address and port of the NAT backend that the quoted packet was sent to, it
    /// goes to the client. Becomes one of the variants above, with [`FragmentKind::Quoting`], once
    /// the flow is found.
    Related(Option<ListenKey>),
    /// ICMP error that quotes a packet sent from this SNAT port; it goes to the client.
    RelatedTo(SnatPort),
    /// From a client to a VIP without pins; becomes [`Direction::ToBackend`] once a backend is
    /// chosen.
    Unpinned,
    /// From a NAT backend of a VIP without pins, with this service address and port, to a client;
    /// becomes [`Direction::ToClient`].
    UnpinnedReply(ListenKey),
    /// Fragment of a flow not yet known; becomes the direction of the flow.
    Fragment,
    /// Answer of a backend that was asked for a flow.
    Answer,
    /// Back to the packet's sender: the packet was turned into this local reply.
    LocalReply(LocalReply),
}

impl Direction {
    /// Whether the packet goes to a client.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        matches!(self, Self::ToClient(_) | Self::ToClientOf(_))
    }
}

/// Offsets of the headers, and the header fields besides the five-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderLayout {
    /// Offset of the TCP, UDP or ICMP header in the frame, in bytes.
    pub transport: u16,
    /// VLAN tags: one or two, or `None`.
    pub tag: Option<Tags>,
    /// TCP flags; 0 for other protocols.
    pub flags: TcpFlags,
    /// Whole datagram, fragment or ICMP quote.
    pub fragment: FragmentKind,
}

/// Relation of a packet to a datagram of its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentKind {
    /// Whole datagram: the transport header can be read and rewritten.
    Whole,
    /// First fragment of a datagram; has the whole transport header.
    First,
    /// Later fragment of a datagram, without a transport header. Belongs to the flow of the first
    /// one.
    Later,
    /// ICMP error that quotes a packet of the flow.
    Quoting,
}

impl HeaderLayout {
    /// Offset of the IP header in the frame, in bytes.
    #[inline]
    pub const fn ip(&self) -> usize {
        match self.tag {
            None => 14,
            Some(tags) => 14 + tags.len(),
        }
    }
}

/// The TCP flags byte (RFC 9293 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// ACK.
    pub const ACK: u8 = 0x10;

    /// Whether any of `bits` is set.
    #[inline]
    pub const fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// Whether a TCP stack sends this combination: it has FIN, SYN, RST or ACK, and not SYN with
    /// FIN or RST.
    #[inline]
    pub const fn is_sensible(self) -> bool {
        self.any(Self::FIN | Self::SYN | Self::RST | Self::ACK)
            && !(self.any(Self::SYN) && self.any(Self::FIN | Self::RST))
    }

    /// Whether the segment neither opens nor ends a connection: no SYN, FIN or RST. True also of
    /// later fragments, which have no flags.
    #[inline]
    pub const fn goes_on(self) -> bool {
        self.0 & (Self::FIN | Self::SYN | Self::RST) == 0
    }

    /// Whether the segment opens a connection: SYN without ACK.
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }
}

const _: () = assert!(size_of::<Packet>() == 128);

impl Packet {
    /// Record without a packet.
    pub(super) const NONE: Self = Self {
        frame: None,
        dropped: false,
        layout: HeaderLayout {
            transport: 0,
            tag: None,
            flags: TcpFlags(0),
            fragment: FragmentKind::Whole,
        },
        flow: HashedKey::NONE,
        hint: Slot::NOWHERE,
        vip: VipId::NONE,
        direction: Direction::ToBackend,
        backend: BackendIndex(u16::MAX),
        nic: NicIndex(0),
        bytes: 0,
        limit: 0,
    };

    /// Clears VIP and backend, which the record still has from an earlier packet.
    pub const fn forget(&mut self) {
        self.vip = VipId::NONE;
        self.backend = BackendIndex(u16::MAX);
    }

    /// Whether the packet still goes to the other end of its flow: neither dropped nor a local
    /// reply.
    pub const fn goes_on(&self) -> bool {
        !self.dropped && !matches!(self.direction, Direction::LocalReply(_))
    }

    /// The packet's bytes; empty once the frame is gone.
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.frame.as_ref().map_or(&[], Frame::data)
    }

    /// The packet's bytes from the IP header on.
    pub fn network(&self) -> &[u8] {
        self.data().get(self.layout.ip()..).unwrap_or_default()
    }

    /// The packet's bytes from the transport header on.
    #[inline]
    pub fn segment(&self) -> &[u8] {
        self.data().get(usize::from(self.layout.transport)..).unwrap_or_default()
    }

    /// The source MAC address.
    #[inline]
    pub fn source_mac(&self) -> [u8; 6] {
        let Some([_, _, _, _, _, _, a, b, c, d, e, f]) = self.data().first_chunk() else {
            return [0; 6];
        };
        [*a, *b, *c, *d, *e, *f]
    }

    /// Packed previous hop of the packet, received on NIC `port`. `None` if the packet has two tags
    /// and the table of tag pairs is full.
    #[inline(always)]
    pub fn return_hop(&self, nic: NicIndex) -> Option<ReturnHop> {
        let [_, _, _, _, rest @ ..] = self.data().first_chunk::<12>().unwrap_or(&[0; 12]);
        let mac = u64::from_be_bytes(*rest) & 0xffff_ffff_ffff;
        ReturnHop::new(mac, nic, self.layout.tag)
    }

    /// Previous hop of the packet, received on NIC `nic`; local replies to the packet go there.
    #[inline]
    pub fn came_from(&self, nic: NicIndex) -> NextHop {
        let vlan = self.layout.tag.and_then(Tags::vlans);
        NextHop { nic, mac: self.source_mac(), vlan }
    }
}
