//! The packets that a worker carries through all stages together, and what is known of each.

use crate::flow::entry::ReturnHop;
use crate::flow::snat::SnatPort;
use crate::flow::table::Slot;
use crate::net::HashedKey;
use crate::net::vlan::Tags;
use crate::net::{BackendIndex, ListenKey, NextHop, NicIndex, VipId};
use crate::stats::LocalReply;
use crate::xdp::umem::Frame;

/// Most packets in a batch. More hide no more memory latency, and fall out of the L1 cache.
pub const BATCH: usize = 64;

/// The packets of one poll of one NIC queue.
///
/// The records stay where they are from batch to batch; a stage writes its own fields only.
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
    /// Takes the next packets of `receive`, which gives a frame to each place that it is shown and
    /// returns how many it gave, into the places of the last ones, whose frames are all gone.
    #[inline(always)]
    pub fn fill(&mut self, receive: impl FnOnce(&mut std::slice::IterMut<'_, Packet>) -> usize) {
        self.len = receive(&mut self.packets.iter_mut()).min(BATCH);
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The packets that no stage has dropped, in order.
    #[inline]
    pub fn in_flight(&mut self) -> impl Iterator<Item = &mut Packet> {
        self.packets().iter_mut().filter(|packet| packet.frame.is_some())
    }

    /// All packets, in order; of those that are not in flight the frame is gone.
    #[inline]
    pub fn packets(&mut self) -> &mut [Packet] {
        self.packets.get_mut(..self.len).unwrap_or_default()
    }
}

/// What the stages have found out about one packet. Two lines.
#[derive(Debug)]
#[repr(align(64))]
pub struct Packet {
    /// Its bytes, until its way ends.
    pub frame: Option<Frame>,
    /// It ended by a drop.
    pub dropped: bool,
    /// By parse.
    pub layout: HeaderLayout,
    /// By classify: the flow, from the client's side; for a full-NAT source it is conntrack that finds it,
    /// and the tuple is the packet's own until then.
    pub flow: HashedKey,
    /// By prefetch: where in the flow table the flow may be.
    pub hint: Slot,
    /// By classify; of its backend, once that is known.
    pub vip: VipId,
    /// By classify.
    pub direction: Direction,
    /// By rewrite: the backend that it goes to or comes from, for the counters.
    pub backend: BackendIndex,
    /// By rewrite: the NIC that it leaves by.
    pub nic: NicIndex,
    /// By rewrite: bytes as received.
    pub bytes: u16,
    /// By rewrite, when that found it too long ([`Drop::TooBig`](crate::stats::Drop::TooBig)): bytes of an
    /// IP packet that would have passed.
    pub limit: u16,
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a client to a VIP.
    ToBackend,
    /// From a NAT backend, whose service address and port this is, to a client.
    ToClient(ListenKey),
    /// From a full-NAT backend, for this source of ours, to a client.
    ToClientOf(SnatPort),
    /// An ICMP error about a flow, until it is known whose: it then becomes one of the above, and
    /// the packet's part [`FragmentKind::Quoting`]. It goes to the backend that sent what it quotes, or, if the
    /// quoted packet was for the NAT backend with this service address and port, to the client.
    Related(Option<ListenKey>),
    /// The same, if what it quotes came from this full-NAT source: it goes to the client.
    RelatedTo(SnatPort),
    /// From a client to a VIP without pins; becomes [`Direction::ToBackend`] when it is placed.
    Unpinned,
    /// From a NAT backend of such a VIP, with this service address and port, to a client; becomes
    /// [`Direction::ToClient`].
    UnpinnedReply(ListenKey),
    /// A fragment's, until its flow is known: it then becomes one of the first three.
    Fragment,
    /// Back to where it came from, as it has been made its own answer.
    LocalReply(LocalReply),
}

impl Direction {
    /// Whether it is the way to a client.
    #[inline(always)]
    pub const fn is_reply(self) -> bool {
        matches!(self, Self::ToClient(_) | Self::ToClientOf(_))
    }
}

/// Where the headers are, and what they say besides the five-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderLayout {
    /// Offset of the TCP or UDP header in the frame.
    pub transport: u16,
    /// Its VLAN tags, if there are any.
    pub tag: Option<Tags>,
    /// TCP only.
    pub flags: TcpFlags,
    /// What of its flow it carries.
    pub fragment: FragmentKind,
}

/// What of its flow a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentKind {
    /// A whole datagram: the transport header can be read and rewritten.
    Whole,
    /// The first fragment of one: it has the whole transport header.
    First,
    /// A later fragment of one: no transport header. The flow is that of the first one.
    Later,
    /// An ICMP error that quotes a packet of the flow.
    Quoting,
}

impl HeaderLayout {
    /// Offset of the IP header in the frame.
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

    /// Whether some stack sends this: not without FIN, SYN, RST and ACK, nor SYN with FIN or RST.
    #[inline]
    pub const fn is_sensible(self) -> bool {
        self.any(Self::FIN | Self::SYN | Self::RST | Self::ACK)
            && !(self.any(Self::SYN) && self.any(Self::FIN | Self::RST))
    }

    /// Whether the segment neither opens nor ends a connection: ACK, without SYN, FIN, RST.
    #[inline]
    pub const fn goes_on(self) -> bool {
        self.0 & (Self::FIN | Self::SYN | Self::RST | Self::ACK) == Self::ACK
    }

    /// Whether the segment opens a connection: SYN without ACK.
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }
}

const _: () = assert!(size_of::<Packet>() == 128);

impl Packet {
    /// Of no packet.
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

    /// Forgets VIP and backend, which the record still has of an earlier packet.
    pub const fn forget(&mut self) {
        self.vip = VipId::NONE;
        self.backend = BackendIndex(u16::MAX);
    }

    /// Whether it is on its way to the other end of its flow: neither dropped nor its own answer.
    pub const fn goes_on(&self) -> bool {
        !self.dropped && !matches!(self.direction, Direction::LocalReply(_))
    }

    /// Its bytes; none after its way has ended.
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.frame.as_ref().map_or(&[], Frame::data)
    }

    /// The same from the IP header on.
    pub fn network(&self) -> &[u8] {
        self.data().get(self.layout.ip()..).unwrap_or_default()
    }

    /// From the transport header on.
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

    /// Where the packet, received on `port`, came from on the wire, packed; `None` if it has two tags,
    /// and there are too many such pairs.
    #[inline(always)]
    pub fn return_hop(&self, port: NicIndex) -> Option<ReturnHop> {
        let [_, _, _, _, rest @ ..] = self.data().first_chunk::<12>().unwrap_or(&[0; 12]);
        let mac = u64::from_be_bytes(*rest) & 0xffff_ffff_ffff;
        ReturnHop::new(mac, port, self.layout.tag)
    }

    /// Where the packet, received on `port`, came from on the wire, and so where answers to it go.
    #[inline]
    pub fn came_from(&self, port: NicIndex) -> NextHop {
        let vlan = self.layout.tag.and_then(Tags::vlans);
        NextHop { nic: port, mac: self.source_mac(), vlan }
    }
}
