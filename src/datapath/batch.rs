//! The packets that a worker carries through all stages together, and what is known of each.

use arrayvec::ArrayVec;

use crate::flow::table::{HashedKey, Slot};
use crate::flow::{Address, FlowKey, Protocol};
use crate::forwarding::{BackendIndex, ListenKey, NextHop, PortIndex, VipId};
use crate::stats::Drop;
use crate::xdp::umem::Frame;

/// Most packets in a batch. More hide no more memory latency, and fall out of the L1 cache.
pub const BATCH: usize = 64;

/// The packets of one poll of one NIC queue: their frames, and beside them what is known of each.
///
/// The records stay where they are from batch to batch; a stage writes its own fields only.
#[derive(Debug)]
pub struct Batch {
    frames: ArrayVec<Frame, BATCH>,
    packets: [Packet; BATCH],
}

impl Default for Batch {
    fn default() -> Self {
        Self { frames: ArrayVec::new(), packets: [Packet::NONE; BATCH] }
    }
}

impl Batch {
    /// Adds a packet that has just been received from `port`; a frame beyond [`BATCH`] comes back.
    #[inline]
    pub fn push(&mut self, frame: Frame, port: PortIndex) -> Result<(), Frame> {
        let received_len = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        let place = self.frames.len();
        self.frames.try_push(frame).map_err(|full| full.element())?;
        if let Some(packet) = self.packets.get_mut(place) {
            packet.port = port;
            packet.received_len = received_len;
            packet.verdict = Verdict::Continue;
            packet.hint = None;
            packet.vip = VipId(u16::MAX);
            packet.way = Way::ToBackend;
            packet.target = Target::Unknown;
            packet.backend = None;
        }
        Ok(())
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The packets that no stage has dropped, in order.
    #[inline]
    pub fn in_flight(&mut self) -> impl Iterator<Item = &mut Packet> {
        let packets = self.packets.iter_mut().take(self.frames.len());
        packets.filter(|packet| packet.verdict == Verdict::Continue)
    }

    /// The same, each with its frame.
    #[inline]
    pub fn in_flight_with_frames(&mut self) -> impl Iterator<Item = (&mut Packet, &mut Frame)> {
        let packets = self.packets.iter_mut().zip(&mut self.frames);
        packets.filter(|(packet, _)| packet.verdict == Verdict::Continue)
    }

    /// Takes all frames out, in order, each with what is known of its packet.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = (Frame, &Packet)> + '_ {
        self.frames.drain(..).zip(&self.packets)
    }
}

/// What the stages have found out about one packet. Its bytes are in its frame.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    /// The NIC that it came from.
    pub port: PortIndex,
    /// Bytes received.
    pub received_len: u16,
    /// What becomes of it.
    pub verdict: Verdict,
    /// By parse.
    pub headers: Headers,
    /// By classify: the flow, from the client's side.
    pub flow: HashedKey,
    /// By prefetch: where in the flow table the flow may be.
    pub hint: Option<Slot>,
    /// By classify.
    pub vip: VipId,
    /// By classify.
    pub way: Way,
    /// By conntrack or select.
    pub target: Target,
    /// By conntrack or select: the backend that the flow is pinned to, for the counters.
    pub backend: Option<BackendIndex>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Later stages look at it.
    Continue,
    /// Goes out of this NIC.
    Transmit(PortIndex),
    /// Later stages skip it; its frame goes back to the pool.
    Drop(Drop),
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a client to a VIP.
    ToBackend,
    /// From a NAT backend, whose service address and port this is, to a client.
    ToClient(ListenKey),
}

/// Where a packet is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Not known yet.
    Unknown,
    /// The flow has no pin: select finds a backend.
    Wanted(Miss),
    /// To this backend.
    Backend(BackendIndex),
    /// Back to the client.
    Client(NextHop),
}

/// Why a flow has no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// It begins: a SYN, or a UDP packet.
    Open,
    /// A TCP packet in the middle of a flow whose pin was lost.
    Midflow,
}

/// Where the headers are, and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Value of the VLAN tag, if there is one.
    pub tag: Option<u16>,
    /// Offset of the IP header in the frame.
    pub ip: u16,
    /// Offset of the TCP or UDP header in the frame.
    pub transport: u16,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// TCP only.
    pub flags: TcpFlags,
    /// Source MAC.
    pub source_mac: [u8; 6],
}

impl Headers {
    const NONE: Self = Self {
        tag: None,
        ip: 0,
        transport: 0,
        source: Address { high: 0, low: 0 },
        destination: Address { high: 0, low: 0 },
        source_port: 0,
        destination_port: 0,
        protocol: Protocol::Udp,
        flags: TcpFlags(0),
        source_mac: [0; 6],
    };

    /// The source as something that a NAT backend may answer from.
    #[inline]
    pub const fn from(&self) -> ListenKey {
        ListenKey { address: self.source, port: self.source_port, protocol: self.protocol }
    }

    /// The destination as something that a VIP may listen on.
    #[inline]
    pub const fn to(&self) -> ListenKey {
        ListenKey {
            address: self.destination,
            port: self.destination_port,
            protocol: self.protocol,
        }
    }

    /// The flow, if the packet comes from its client.
    #[inline]
    pub const fn client_flow(&self) -> FlowKey {
        FlowKey {
            client: self.source,
            vip: self.destination,
            client_port: self.source_port,
            vip_port: self.destination_port,
            protocol: self.protocol,
        }
    }

    /// Where the packet came from on the wire, and so where answers to it go.
    #[inline]
    pub fn came_from(&self, port: PortIndex) -> NextHop {
        let vlan = self.tag.map(|tag| tag & 0x0fff).filter(|&vlan| vlan != 0);
        NextHop { port, mac: self.source_mac, vlan }
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

    /// Whether the segment opens a connection: SYN without ACK.
    #[inline]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }
}

impl Packet {
    /// Of no packet.
    const NONE: Self = Self {
        port: PortIndex(0),
        received_len: 0,
        verdict: Verdict::Continue,
        headers: Headers::NONE,
        flow: HashedKey::NONE,
        hint: None,
        vip: VipId(u16::MAX),
        way: Way::ToBackend,
        target: Target::Unknown,
        backend: None,
    };

    /// Ends the packet's way.
    #[inline]
    pub const fn drop(&mut self, reason: Drop) {
        self.verdict = Verdict::Drop(reason);
    }
}
