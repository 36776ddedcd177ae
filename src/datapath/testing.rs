//! Fixtures for unit tests of single stages: tables, contexts, and packets built by etherparse.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use etherparse::PacketBuilder;

use super::batch::Packet;
use super::classify::{LastVip, classify};
use super::conntrack::Conntrack;
use super::context::{Context, Identification};
use super::parse::{Parsed, parse};
use crate::flow::entry::FlowState;
use crate::flow::shared::{SharedTables, TableSizes};
use crate::flow::snat::{SnatAllocator, SnatPool};
use crate::flow::table::{Families, FlowTable};
use crate::forwarding::local::UNLIMITED;
use crate::forwarding::policy::Timeouts;
use crate::forwarding::{
    BackendSpec, FULL_SHARE, FlowAction, ForwardingTable, Local, Ports, SchedulerKind, Service,
    Splits, VipPolicy, VipSpec,
};
use crate::net::{
    BackendId, BackendIndex, Forward, NextHop, NicIndex, Protocol, TableSecret, VipId,
};
use crate::stats::{Drop, WorkerStats};
use crate::units::Ticks;
use crate::xdp::umem::{FramePool, Umem};

pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 10);
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Source address of full-NAT flows.
pub(super) const SNAT: Ipv4Addr = Ipv4Addr::new(198, 18, 9, 1);
/// SNAT ports of all workers together.
pub(super) const SNAT_PORTS: std::ops::RangeInclusive<u16> = 20_000..=20_003;
const CLIENT_MAC: [u8; 6] = [2, 0xc, 0, 0, 0, 1];
const NIC_MAC: [u8; 6] = [2, 0xf, 0, 0, 0, 0];

/// Address of a backend.
pub(super) const fn backend(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 2, 11 + index)
}

/// A TCP VIP on port 80 with backends, with NAT on port 8080. Time-outs: embryonic 1 s, established
/// 10 s, closing 2 s, UDP 1 s.
pub(super) fn vip(forward: Forward, backends: u8) -> VipSpec {
    let backend = |index: u8| BackendSpec {
        id: BackendId { index: BackendIndex(index.into()), generation: 0 },
        name: format!("b{index}"),
        address: backend(index).into(),
        port: forward.translates().then_some(8080),
        weight: 1,
        share: FULL_SHARE,
        up: true,
        service: Service::Active,
        flow_action: FlowAction::Keep,
        next_hop: Some(NextHop { nic: NicIndex(0), mac: [2, 0xb, 0, 0, 0, index], vlan: None }),
        mtu: UNLIMITED,
        server_ids: Vec::new(),
        max_flows: None,
        can_be_asked: true,
        removed: false,
    };
    VipSpec {
        id: VipId(0),
        address: IpAddr::from(VIP).into(),
        ports: Ports::of(&[80]),
        protocol: Protocol::Tcp,
        forward,
        policy: VipPolicy {
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

/// Returns the VIP with a changed policy.
pub(super) fn with(vip: VipSpec, change: impl FnOnce(&mut VipPolicy)) -> VipSpec {
    let mut vip = vip;
    change(&mut vip.policy);
    vip.spliced |= vip.policy.syn_proxy;
    vip
}

/// Tables that workers share, and frames for packets.
pub(super) struct Bed {
    pub table: ForwardingTable,
    pub shared: Arc<SharedTables>,
    pub stats: Vec<WorkerStats>,
    identification: Identification,
    pool: FramePool,
}

impl Bed {
    pub fn new(workers: u8, specs: &[VipSpec]) -> Self {
        Self::after(false, workers, specs)
    }

    /// Returns a bed with the pins of an earlier process, if `taken_over`.
    pub fn after(taken_over: bool, workers: u8, specs: &[VipSpec]) -> Self {
        let secret = TableSecret::new(1);
        let table = |_| Arc::new(FlowTable::new(64, secret.clone(), Families::BOTH).unwrap());
        let sizes = TableSizes {
            clients: 100,
            datagrams: 16,
            fragment_timeout: Ticks(100),
            sources: SnatPool::new([IpAddr::from(SNAT)], &SNAT_PORTS),
            return_hops: 100,
            taken_over,
        };
        let flows = (0..workers).map(table).collect();
        let shared = SharedTables::new(flows, &secret, sizes).unwrap();
        shared.splices.populate(Families::BOTH).unwrap();
        Self {
            table: ForwardingTable::build(1, [7; 16], Local::default(), specs, None),
            shared,
            stats: (0..workers).map(|_| WorkerStats::new(4, 8, 1)).collect(),
            identification: Identification::of(0),
            pool: Umem::create(256, 2048).unwrap().1,
        }
    }

    /// Publishes another forwarding table.
    pub fn publish(&mut self, specs: &[VipSpec]) {
        self.table = ForwardingTable::build(2, [7; 16], Local::default(), specs, None);
    }

    pub fn context(&self, worker: u8, now: u32) -> Context<'_> {
        let worker_index = worker;
        let worker = usize::from(worker);
        Context {
            table: &self.table,
            flows: self.shared.flows.get(worker).unwrap().view(),
            shared: &self.shared,
            macs: &[NIC_MAC],
            identification: &self.identification,
            worker: worker_index,
            nic: NicIndex(0),
            now: Ticks(now),
            stats: self.stats.get(worker).unwrap(),
            trace: None,
        }
    }

    /// Returns a worker's allocator of SNAT ports.
    pub fn snat_allocator(&self, worker: u8) -> SnatAllocator {
        SnatAllocator::new(&self.shared.snat_table, worker, &TableSecret::new(1))
    }

    pub fn conntrack(&self, worker: u8) -> Conntrack {
        let stats = self.stats.get(usize::from(worker)).unwrap();
        Conntrack::new(&self.shared, worker, stats, Ticks(0)).unwrap()
    }

    /// Returns the entry of the packet's flow in a worker's table.
    pub fn track(&self, worker: u8, packet: &Packet) -> Option<FlowState> {
        let (_, pin) = self.shared.flows.get(usize::from(worker)).unwrap().lookup(&packet.flow)?;
        Some(pin.flow_state)
    }

    /// Returns a packet, parsed and classified.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Packet, Drop> {
        let mut frame = self.pool.pop().unwrap();
        assert!(frame.copy_from(bytes));
        let mut packet = Packet { frame: Some(frame), ..Packet::NONE };
        let Parsed::Flow(tuple) = parse(&mut packet)? else { unreachable!("a whole datagram") };
        let secret = TableSecret::new(1);
        let mut last = LastVip::NONE;
        classify(&mut packet, tuple, &self.context(0, 0), &secret, &mut last)?;
        Ok(packet)
    }

    /// Returns a segment of the client to the VIP; flags as in tcpdump: `S`, `A`, `F`, `R`.
    pub fn request(&mut self, port: u16, flags: &str) -> Packet {
        self.receive(&tcp((CLIENT, port), (VIP, 80), flags)).unwrap()
    }

    /// Returns a segment of a NAT backend to the client.
    pub fn reply(&mut self, from: u8, port: u16, flags: &str) -> Packet {
        self.receive(&tcp((backend(from), 8080), (CLIENT, port), flags)).unwrap()
    }
}

/// Returns a TCP segment without data, SEQ 1000.
pub(super) fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: &str) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(from.1, to.1, 1000, 65_000);
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, NIC_MAC);
    let mut bytes = Vec::new();
    let builder = builder.ipv4(from.0.octets(), to.0.octets(), 64);
    builder.tcp_header(header).write(&mut bytes, &[]).unwrap();
    bytes
}

/// Returns a UDP datagram.
pub(super) fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(CLIENT_MAC, NIC_MAC);
    let mut bytes = Vec::new();
    let builder = builder.ipv4(from.0.octets(), to.0.octets(), 64);
    builder.udp(from.1, to.1).write(&mut bytes, b"query").unwrap();
    bytes
}
