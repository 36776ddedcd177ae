//! One or several workers on fake NICs, and packets that etherparse builds and reads.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use etherparse::{
    IpHeaders, LinkExtSlice, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader,
    TcpOptionElement, TransportSlice, UdpHeader,
};
use holdfast::datapath::explain::Explainer;
use holdfast::datapath::queues::WorkerQueue;
use holdfast::datapath::worker::{Parts, Worker};
use holdfast::flow::clients::Clients;
use holdfast::flow::shared::{SharedTables, TableSizes};
use holdfast::flow::snat::SnatPool;
use holdfast::flow::table::{Families, FlowTable};
use holdfast::forwarding::local::UNLIMITED;
use holdfast::forwarding::publish::Publisher;
use holdfast::forwarding::{
    BackendSpec, FULL_SHARE, FlowAction, ForwardingTable, Local, Ports, SchedulerKind, Service,
    Splits, Timeouts, VipPolicy, VipSpec,
};
use holdfast::net::{
    BackendId, BackendIndex, Forward, NextHop, NicIndex, Protocol, TableSecret, VipId,
};
use holdfast::stats::{Drop, WorkerStats};
use holdfast::units::Ticks;
use holdfast::xdp::fake::FakeNic;
use holdfast::xdp::umem::Umem;

pub const CLIENT_MAC: [u8; 6] = [2, 0xc, 0, 0, 0, 1];
const FRAMES: u32 = 1024;
const RING: u32 = 256;
/// Window of every segment.
#[allow(dead_code, reason = "not every test reads windows")]
pub const WINDOW: u16 = 500;
/// Maximum of fragments that a worker parks.
pub const PARKED: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl From<Family> for holdfast::net::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }
}

impl Family {
    pub fn client(self) -> IpAddr {
        self.pick("198.18.1.10", "2001:db8:1::10")
    }

    pub fn vip(self) -> IpAddr {
        self.pick("192.0.2.10", "2001:db8:100::10")
    }

    pub fn backend(self, index: u16) -> IpAddr {
        match self.pick("198.18.2.0", "2001:db8:2::") {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) + u32::from(index) + 11).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) + u128::from(index) + 11).to_be_bytes()),
        }
    }

    /// Address of a router between client and balancer.
    #[allow(dead_code, reason = "not every test has routers")]
    pub fn router(self) -> IpAddr {
        self.pick("203.0.113.1", "2001:db8:ff::1")
    }

    /// Source address of full-NAT flows.
    pub fn source(self) -> IpAddr {
        self.pick("198.18.9.1", "2001:db8:9::1")
    }

    pub fn pick(self, v4: &str, v6: &str) -> IpAddr {
        if self == Self::V4 { v4 } else { v6 }.parse().unwrap()
    }
}

pub fn nic_mac(nic: usize) -> [u8; 6] {
    [2, 0xf, 0, 0, 0, u8::try_from(nic).unwrap()]
}

pub fn backend_mac(index: u16) -> [u8; 6] {
    let [high, low] = index.to_be_bytes();
    [2, 0xb, 0, 0, high, low]
}

/// Every scheduler.
#[allow(dead_code, reason = "not every test goes through all")]
pub const SCHEDULERS: [SchedulerKind; 7] = [
    SchedulerKind::Maglev { size: 1009 },
    SchedulerKind::Rendezvous,
    SchedulerKind::Ring { virtual_nodes: 160 },
    SchedulerKind::RoundRobin,
    SchedulerKind::LeastConnections,
    SchedulerKind::PowerOfTwo { size: 1009 },
    SchedulerKind::Bounded { size: 1009, e_permille: 250 },
];

/// A TCP VIP on port 80 with backends (NAT port 8080) behind the last of `nics` NICs.
pub fn spec(id: u16, forward: Forward, family: Family, nics: usize, backends: u16) -> VipSpec {
    let backend = |index: u16| BackendSpec {
        id: BackendId { index: BackendIndex(id * 100 + index), generation: 0 },
        name: format!("b{index}"),
        address: family.backend(index),
        port: forward.translates().then_some(8080),
        weight: 1,
        share: FULL_SHARE,
        up: true,
        service: Service::Active,
        flow_action: FlowAction::Keep,
        next_hop: Some(NextHop {
            nic: NicIndex(u8::try_from(nics - 1).unwrap()),
            mac: backend_mac(index),
            vlan: None,
        }),
        mtu: UNLIMITED,
        server_ids: Vec::new(),
        max_flows: None,
        can_be_asked: true,
        removed: false,
    };
    VipSpec {
        id: VipId(id),
        address: family.vip().into(),
        ports: Ports::of(&[80]),
        protocol: Protocol::Tcp,
        forward,
        policy: VipPolicy {
            // 1 s, 10 s, 2 s, 1 s, 1 s.
            timeouts: Timeouts {
                embryonic: Ticks(100),
                established: Ticks(1000),
                closing: Ticks(200),
                udp_first: Ticks(100),
                udp: Ticks(100),
            },
            scheduler: SchedulerKind::Maglev { size: 1009 },
            reject_no_backend: false,
            ..VipPolicy::default()
        },
        splits: Splits::default(),
        spliced: false,
        sampled: false,
        fails_open: false,
        backends: (0..backends).map(backend).collect(),
        old: Vec::new(),
    }
}

/// A TCP segment from the client to the VIP; flags as in tcpdump, `S`, `A`, `F`, `R`.
pub fn tcp(family: Family, client_port: u16, port: u16, flags: &str) -> Vec<u8> {
    build_tcp((CLIENT_MAC, nic_mac(0)), (family.client(), client_port), (family.vip(), port), flags)
}

/// A TCP segment to the VIP from any client of its family.
#[allow(dead_code, reason = "not every test has many clients")]
pub fn tcp_of(client: (IpAddr, u16), vip: (IpAddr, u16), flags: &str) -> Vec<u8> {
    build_tcp((CLIENT_MAC, nic_mac(0)), client, vip, flags)
}

/// A UDP datagram from the client to the VIP, with or without a checksum.
pub fn udp(family: Family, client_port: u16, port: u16, checksum: bool) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = ip_builder((CLIENT_MAC, nic_mac(0)), family.client(), family.vip());
    builder.udp(client_port, port).write(&mut packet, b"query").unwrap();
    if !checksum {
        packet[40..42].fill(0);
    }
    packet
}

/// Ethernet and IP header of a packet from one address to another of its family.
pub fn ip_builder(
    (source_mac, destination_mac): ([u8; 6], [u8; 6]),
    source: IpAddr,
    destination: IpAddr,
) -> PacketBuilderStep<IpHeaders> {
    let builder = PacketBuilder::ethernet2(source_mac, destination_mac);
    match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => builder.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => builder.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("one family"),
    }
}

fn build_tcp(
    macs: ([u8; 6], [u8; 6]),
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    flags: &str,
) -> Vec<u8> {
    segment(macs, source, destination, (1_000, 0, flags), &[], b"hello, world!")
}

/// A TCP segment with these numbers, sequence and acknowledgment, and flags.
pub fn segment(
    macs: ([u8; 6], [u8; 6]),
    (source, source_port): (IpAddr, u16),
    (destination, destination_port): (IpAddr, u16),
    (sequence, acknowledgment, flags): (u32, u32, &str),
    options: &[TcpOptionElement],
    payload: &[u8],
) -> Vec<u8> {
    let mut header = TcpHeader::new(source_port, destination_port, sequence, WINDOW);
    header.acknowledgment_number = acknowledgment;
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.set_options(options).unwrap();
    let mut packet = Vec::new();
    let builder = ip_builder(macs, source, destination);
    builder.tcp_header(header).write(&mut packet, payload).unwrap();
    packet
}

/// The untagged TCP packet with other sequence and acknowledgment numbers. The checksum becomes
/// wrong; no stage verifies it.
pub fn numbered(
    family: Family,
    mut packet: Vec<u8>,
    sequence: u32,
    acknowledgment: u32,
) -> Vec<u8> {
    let tcp = if family == Family::V4 { 34 } else { 54 };
    packet[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
    packet[tcp + 8..tcp + 12].copy_from_slice(&acknowledgment.to_be_bytes());
    packet
}

/// Writes the checksum of the IPv4 header of an untagged frame; leaves IPv6 as it is.
#[allow(dead_code, reason = "not every test changes headers")]
pub fn set_sum(frame: &mut [u8]) {
    if frame[12..14] != [8, 0] {
        return;
    }
    frame[24..26].fill(0);
    let header = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

/// The packet with a VLAN tag.
pub fn tagged(mut packet: Vec<u8>, vlan: Option<u16>) -> Vec<u8> {
    if let Some(vlan) = vlan {
        let [high, low] = vlan.to_be_bytes();
        packet.splice(12..12, [0x81, 0, high, low]);
    }
    packet
}

/// The packet with VLAN tags, from the outermost on: protocol identifier, priority and VLAN.
#[allow(dead_code, reason = "not every test has tags")]
pub fn with_tags(mut packet: Vec<u8>, tags: &[(u16, u16)]) -> Vec<u8> {
    let bytes = tags.iter().flat_map(|(tpid, value)| [tpid.to_be_bytes(), value.to_be_bytes()]);
    packet.splice(12..12, bytes.flatten());
    packet
}

/// A packet that a worker sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub nic: usize,
    pub bytes: Vec<u8>,
}

impl Sent {
    /// The single packet that `rig` sends for `packet`.
    pub fn of(worker: usize, packet: &[u8], rig: &mut Rig) -> Self {
        rig.send(worker, 0, packet).remove(0)
    }

    fn sliced(&self) -> SlicedPacket<'_> {
        SlicedPacket::from_ethernet(&self.bytes).unwrap()
    }

    /// Header, options and payload of a TCP segment, with verified checksums.
    #[allow(dead_code, reason = "not every test reads segments")]
    pub fn segment(&self) -> (TcpHeader, Vec<TcpOptionElement>, Vec<u8>) {
        self.assert_checksums();
        let Some(TransportSlice::Tcp(tcp)) = self.sliced().transport else {
            unreachable!("no TCP: {self:?}")
        };
        let options = tcp.options_iterator().map(Result::unwrap);
        let options = options.filter(|option| *option != TcpOptionElement::Noop).collect();
        (tcp.to_header(), options, tcp.payload().to_vec())
    }

    pub fn destination_mac(&self) -> [u8; 6] {
        *self.bytes.first_chunk().unwrap()
    }

    pub fn source_mac(&self) -> [u8; 6] {
        *self.bytes[6..].first_chunk().unwrap()
    }

    pub fn vlan(&self) -> Option<u16> {
        self.sliced().link_exts.first().map(|tag| match tag {
            LinkExtSlice::Vlan(tag) => tag.vlan_identifier().value(),
            other => unreachable!("{other:?}"),
        })
    }

    /// VLAN tags of the packet, as in [`with_tags`].
    pub fn tags(&self) -> Vec<(u16, u16)> {
        let words = self.bytes[12..].chunks(4);
        let tags = words.map(|word| {
            let [a, b, c, d] = *word.first_chunk().unwrap();
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        });
        tags.take_while(|&(tpid, _)| matches!(tpid, 0x8100 | 0x88a8)).collect()
    }

    fn ports(&self) -> (u16, u16) {
        match self.sliced().transport.unwrap() {
            TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
            TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
            other => unreachable!("{other:?}"),
        }
    }

    /// Source address and port.
    pub fn source(&self) -> (IpAddr, u16) {
        let address = match self.sliced().net.unwrap() {
            NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
            NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
            other => unreachable!("{other:?}"),
        };
        (address, self.ports().0)
    }

    /// Destination address and port, and TTL.
    pub fn destination(&self) -> (IpAddr, u16, u8) {
        let (address, ttl) = match self.sliced().net.unwrap() {
            NetSlice::Ipv4(ip) => (ip.header().destination_addr().into(), ip.header().ttl()),
            NetSlice::Ipv6(ip) => (ip.header().destination_addr().into(), ip.header().hop_limit()),
            other => unreachable!("{other:?}"),
        };
        (address, self.ports().1, ttl)
    }

    pub fn tcp(&self) -> TcpHeader {
        match self.sliced().transport.unwrap() {
            TransportSlice::Tcp(tcp) => tcp.to_header(),
            other => unreachable!("{other:?}"),
        }
    }

    pub fn udp_checksum(&self) -> u16 {
        match self.sliced().transport.unwrap() {
            TransportSlice::Udp(udp) => udp.checksum(),
            other => unreachable!("{other:?}"),
        }
    }

    /// Compares every checksum with etherparse's result.
    pub fn assert_checksums(&self) {
        let sliced = self.sliced();
        let transport = sliced.transport.as_ref().unwrap();
        match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                let (a, b) = (header.source, header.destination);
                match transport {
                    TransportSlice::Tcp(tcp) => {
                        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(a, b).unwrap());
                    }
                    TransportSlice::Udp(udp) => {
                        let header: UdpHeader = udp.to_header();
                        let full = header.calc_checksum_ipv4_raw(a, b, udp.payload());
                        assert_eq!(udp.checksum(), full.unwrap());
                    }
                    other => unreachable!("{other:?}"),
                }
            }
            NetSlice::Ipv6(ip) => {
                let (a, b) = (ip.header().source(), ip.header().destination());
                match transport {
                    TransportSlice::Tcp(tcp) => {
                        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(a, b).unwrap());
                    }
                    TransportSlice::Udp(udp) => {
                        let header: UdpHeader = udp.to_header();
                        let full = header.calc_checksum_ipv6_raw(a, b, udp.payload());
                        assert_eq!(udp.checksum(), full.unwrap());
                    }
                    other => unreachable!("{other:?}"),
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// The backend's reply to this packet: addresses and ports swapped.
    pub fn reply(&self, flags: &str) -> Vec<u8> {
        let (address, port, _) = self.destination();
        let packet = build_tcp(
            (self.destination_mac(), self.source_mac()),
            (address, port),
            self.source(),
            flags,
        );
        with_tags(packet, &self.tags())
    }

    /// The backend's reply to this datagram.
    #[allow(dead_code, reason = "not every test answers datagrams")]
    pub fn udp_reply(&self) -> Vec<u8> {
        let (source, port, _) = self.destination();
        let (destination, destination_port) = self.source();
        let builder = PacketBuilder::ethernet2(self.destination_mac(), self.source_mac());
        let builder = match (source, destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => builder.ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => builder.ipv6(a.octets(), b.octets(), 64),
            _ => unreachable!("one family"),
        };
        let mut packet = Vec::new();
        builder.udp(port, destination_port).write(&mut packet, b"answer").unwrap();
        packet
    }
}

/// Workers on fake NICs.
pub struct Rig {
    workers: Vec<Worker>,
    nics: Vec<Vec<FakeNic>>,
    stats: Vec<Arc<WorkerStats>>,
    shared: Arc<SharedTables>,
    specs: Vec<VipSpec>,
    local: Local,
    publisher: Publisher,
    now: u32,
}

impl Rig {
    pub fn new(workers: usize, nics: usize, specs: Vec<VipSpec>) -> Self {
        Self::with_flows(workers, nics, 4096, specs)
    }

    pub fn with_flows(workers: usize, nics: usize, flows: u32, specs: Vec<VipSpec>) -> Self {
        Self::with_ports(workers, nics, flows, 20_000..=21_999, specs)
    }

    /// A rig with this range of SNAT ports for full-NAT flows.
    pub fn with_ports(
        workers: usize,
        nics: usize,
        flows: u32,
        ports: RangeInclusive<u16>,
        specs: Vec<VipSpec>,
    ) -> Self {
        Self::build(Local::default(), workers, nics, flows, ports, specs)
    }

    /// A rig with these local addresses, MTUs and tunnels.
    pub fn in_box(local: Local, workers: usize, nics: usize, specs: Vec<VipSpec>) -> Self {
        Self::build(local, workers, nics, 4096, 20_000..=21_999, specs)
    }

    /// A rig with one worker, one NIC, and a table of `flows` entries.
    #[allow(dead_code, reason = "not every test has tunnels and a full table")]
    pub fn in_box_with_flows(local: Local, flows: u32, specs: Vec<VipSpec>) -> Self {
        Self::build(local, 1, 1, flows, 20_000..=21_999, specs)
    }

    fn build(
        local: Local,
        workers: usize,
        nics: usize,
        flows: u32,
        ports: RangeInclusive<u16>,
        specs: Vec<VipSpec>,
    ) -> Self {
        let sources = SnatPool::new([Family::V4, Family::V6].map(Family::source), &ports);
        let macs = (0..nics).map(nic_mac).collect();
        let local = Local { macs, ..local };
        // Close to the wrap of the clock, so that every test crosses it.
        let now = u32::MAX - 50;
        let table = ForwardingTable::build(1, [7; 16], local.clone(), &specs, None);
        let (publisher, tables) = Publisher::new(table.recalling(None, Ticks(now)));
        let secret = TableSecret::new(1);
        let flow_tables: Arc<[Arc<FlowTable>]> = (0..workers)
            .map(|_| Arc::new(FlowTable::new(flows, secret.clone(), Families::BOTH).unwrap()))
            .collect();
        let sizes = TableSizes { sources, ..TableSizes::default() };
        let shared = SharedTables::new(flow_tables, &secret, sizes).unwrap();
        shared.splices.populate(Families::BOTH).unwrap();
        let mut rig = Self {
            workers: Vec::new(),
            nics: Vec::new(),
            stats: Vec::new(),
            shared: Arc::clone(&shared),
            specs,
            local,
            publisher,
            now,
        };
        for index in 0..workers {
            let (umem, pool) = Umem::create(FRAMES, 2048).unwrap();
            let stats = Arc::new(WorkerStats::new(4, 400, nics));
            let (queues, fakes): (Vec<_>, Vec<_>) = (0..nics)
                .map(|nic| {
                    let (xsk, fake) = FakeNic::new(&umem, RING).unwrap();
                    (WorkerQueue::new(NicIndex(u8::try_from(nic).unwrap()), xsk), fake)
                })
                .unzip();
            let parts = Parts {
                queues,
                pool,
                shared: Arc::clone(&shared),
                parked: PARKED,
                index: u8::try_from(index).unwrap(),
                tables: tables.clone(),
                stats: Arc::clone(&stats),
                batch: 64,
            };
            rig.workers.push(Worker::new(parts, Ticks(now)).unwrap());
            rig.nics.push(fakes);
            rig.stats.push(stats);
        }
        rig
    }

    /// The publisher and its inputs, for another thread; [`change`](Self::change) must not be
    /// called afterwards.
    #[allow(dead_code, reason = "not every test has a control thread")]
    pub fn take_control(&mut self) -> (Publisher, Vec<VipSpec>) {
        let unused = ForwardingTable::build(0, [7; 16], Local::default(), &[], None);
        let publisher = std::mem::replace(&mut self.publisher, Publisher::new(unused).0);
        (publisher, self.specs.clone())
    }

    /// Publishes changed local addresses, MTUs and tunnels.
    #[allow(dead_code, reason = "not every test has another box")]
    pub fn change_box(&mut self, change: impl FnOnce(&mut Local)) {
        change(&mut self.local);
        self.change(|_| {});
    }

    /// Publishes a changed configuration.
    pub fn change(&mut self, change: impl FnOnce(&mut [VipSpec])) {
        change(&mut self.specs);
        let previous = self.publisher.current();
        let generation = previous.generation() + 1;
        let table = ForwardingTable::build(
            generation,
            [7; 16],
            self.local.clone(),
            &self.specs,
            Some(&previous),
        );
        self.publisher.publish(table.recalling(Some(&previous), Ticks(self.now)));
    }

    /// The VIPs of the table in force.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn specs(&self) -> Vec<VipSpec> {
        self.specs.clone()
    }

    /// The table in force.
    #[allow(dead_code, reason = "not every test reads it")]
    pub fn table(&self) -> Arc<ForwardingTable> {
        self.publisher.current()
    }

    /// The explainer of this rig's flows.
    #[allow(dead_code, reason = "not every test asks")]
    pub fn explainer(&self) -> Explainer {
        Explainer::new(Arc::clone(&self.shared), self.stats.clone()).unwrap()
    }

    /// The present time.
    #[allow(dead_code, reason = "not every test asks")]
    pub fn now(&self) -> Ticks {
        Ticks(self.now)
    }

    /// Advances the clock by ticks of 10 ms and polls the workers in each.
    pub fn advance(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.now = self.now.wrapping_add(1);
            for worker in &mut self.workers {
                worker.poll(Ticks(self.now));
            }
        }
    }

    /// Advances the clock in one step, by ticks of 10 ms.
    #[allow(dead_code, reason = "not every test waits for long")]
    pub fn skip(&mut self, ticks: u32) {
        self.now = self.now.wrapping_add(ticks);
    }

    /// Polls every worker once.
    pub fn idle(&mut self) {
        for worker in &mut self.workers {
            worker.poll(Ticks(self.now));
        }
    }

    /// Packets that `worker` sends when `packet` arrives on `nic`.
    pub fn send(&mut self, worker: usize, nic: usize, packet: &[u8]) -> Vec<Sent> {
        self.send_all(worker, nic, &[packet])
    }

    /// Packets that `worker` sends when `packets` arrive together on `nic`.
    pub fn send_all(
        &mut self,
        worker: usize,
        nic: usize,
        packets: &[impl AsRef<[u8]>],
    ) -> Vec<Sent> {
        for packet in packets {
            self.deliver(worker, nic, packet.as_ref());
        }
        self.poll(worker);
        (0..self.nics[worker].len()).flat_map(|nic| self.collect(worker, nic)).collect()
    }

    /// Delivers a packet, in several frames if it is long.
    pub fn deliver(&mut self, worker: usize, nic: usize, packet: &[u8]) {
        let nic = &mut self.nics[worker][nic];
        // An empty packet takes a frame, too.
        let delivered =
            if packet.is_empty() { nic.deliver(packet) } else { nic.deliver_long(packet) };
        assert!(delivered, "the NIC takes the packet");
    }

    /// Polls one worker once.
    pub fn poll(&mut self, worker: usize) {
        self.workers[worker].poll(Ticks(self.now));
    }

    /// Delivers as many of `packets` as fit, polls, and sends nothing; returns how many.
    pub fn deliver_without_collecting(
        &mut self,
        worker: usize,
        nic: usize,
        packets: &[Vec<u8>],
    ) -> usize {
        let mut delivered = 0;
        for packet in packets {
            delivered += usize::from(self.nics[worker][nic].deliver(packet));
            self.workers[worker].poll(Ticks(self.now));
        }
        delivered
    }

    /// Packets in the TX ring of a NIC.
    pub fn collect(&mut self, worker: usize, nic: usize) -> Vec<Sent> {
        let mut sent = Vec::new();
        self.nics[worker][nic].collect(|bytes| sent.push(Sent { nic, bytes: bytes.to_vec() }));
        sent
    }

    /// The backend (0..100) that a packet is sent to, identified by the MAC; `None` if it is not
    /// sent.
    pub fn backend_of(&mut self, packet: &[u8]) -> Option<u16> {
        let sent = self.send(0, 0, packet);
        sent.first().map(|sent| u16::from(sent.destination_mac()[5]))
    }

    /// The clients table of all workers.
    #[allow(dead_code, reason = "not every test has sticky clients")]
    pub fn clients(&self) -> &Clients {
        &self.shared.clients
    }

    #[allow(dead_code, reason = "not every test looks at all workers")]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn stats(&self, worker: usize) -> &WorkerStats {
        &self.stats[worker]
    }

    pub fn drops(&self, worker: usize, reason: Drop) -> u64 {
        self.stats[worker].drop_counter(reason).get()
    }

    /// Asserts that every packet is in one counter, and no frame is lost.
    pub fn assert_accounted(&self) {
        for (worker, stats) in self.workers.iter().zip(&self.stats) {
            assert_eq!(stats.unaccounted(), 0, "packets without a counter");
            assert_eq!(worker.frames(), FRAMES as usize, "lost frames");
        }
    }
}
