//! A worker on fake rings, from receive to transmit, with the traffic of one case.
//!
//! A round: as many packets as the RX ring has slots are written into frames, then the worker polls
//! until it has sent them all, then the fake NIC takes them. Only the polls are timed.

use std::hint::black_box;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast::datapath::queues::WorkerQueue;
use holdfast::datapath::worker::{Parts, Worker};
use holdfast::flow::shared::{SharedTables, TableSizes};
use holdfast::flow::snat::SnatPool;
use holdfast::flow::splices::{Answer, Offer, Place, Splice};
use holdfast::flow::table::{Families, FlowTable};
use holdfast::forwarding::publish::{Publisher, Subscription};
use holdfast::forwarding::{
    ForwardingTable, Local, SchedulerKind, Timeouts, Tunnels, VipSpec, tunnel,
};
use holdfast::net::{Address, FlowKey, Forward, NicIndex, Protocol, TableSecret};
use holdfast::stats::{Drop, LocalReply, WorkerStats};
use holdfast::units::Ticks;
use holdfast::xdp::cpu;
use holdfast::xdp::fake::FakeNic;
use holdfast::xdp::umem::Umem;

use super::cases::{Case, Traffic};
use super::measure::Subject;
use super::packets::{BACKEND_PORT, Random, Template, VIP_PORT, client};
use super::rig::{CLIENT_MAC, Family, Sent, backend_mac, nic_mac, spec};

/// Packets per batch.
pub const BATCH: usize = 64;
/// Slots of the RX and TX rings, and packets in a round: the configuration's default.
const RING: u32 = 2048;
/// `RING` as a number of packets.
pub const ROUND: usize = 2048;
/// Frames of the daemon for one NIC queue: four rings, and those in processing.
pub const FRAMES: u32 = 6 * RING + 64;
/// Backends of the VIP, unless a bench sets another number.
const BACKENDS: u16 = 100;
/// Slots of the Maglev table: the configuration's default.
const TABLE_SIZE: u32 = 65_537;
/// Lifetime of flows that send one SYN: 1 s, and then until the sweep finds them.
const EMBRYONIC: Ticks = Ticks(100);
/// Ticks per round of the sweep.
const SWEEP: u64 = 400;
/// Ticks that a flow with one SYN may live. More while the table grows: the clock hand then has
/// further to go than computed (555 ticks were seen).
const LONGEST_LIFE: u64 = 100 + SWEEP;
/// Share of the table that new flows would fill if all lived that long, in percent.
const NEW_FLOW_LOAD: u64 = 75;
/// A tick of the worker's clock.
const TICK: Duration = Duration::from_millis(10);

/// Source of the worker's time.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The time that the polls took: the packets of a period pay for its share of the sweep.
    Timed,
    /// One tick after this many polls.
    EveryPolls(u64),
}

/// Secret of the hash that chooses backends.
const SECRET: [u8; 16] = [7; 16];
/// The VLAN of tagged packets.
const VLAN: u16 = 100;
/// Datagrams of which fragments come, and capacity for datagrams: so large that none is evicted.
const DATAGRAMS: u64 = 1000;
const DATAGRAM_PLACES: usize = 65_536;
/// Ports of each full-NAT source.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 5536..=65_535;

/// Tables that the workers of one process share: the forwarding table, and the others.
#[derive(Clone)]
pub struct Shared {
    case: Case,
    vip: VipSpec,
    tables: Subscription,
    shared: Arc<SharedTables>,
}

impl Shared {
    /// Creates one VIP with `backends` backends, and flow tables for `capacity` flows each.
    pub fn new(case: Case, workers: usize, backends: u16, capacity: u64) -> (Publisher, Self) {
        let mut vip = spec(0, case.forward, case.family, 1, backends);
        vip.policy.scheduler = SchedulerKind::Maglev { size: TABLE_SIZE };
        // Splices are made by hand, as a bed has no client that reads cookies.
        vip.policy.syn_proxy = case.traffic == Traffic::Cookie;
        vip.spliced = vip.policy.syn_proxy || case.traffic.is_spliced();
        let hour = Ticks(360_000);
        vip.policy.timeouts = Timeouts {
            embryonic: EMBRYONIC,
            established: hour,
            closing: hour,
            udp_first: hour,
            udp: hour,
        };
        let first = ForwardingTable::build(1, SECRET, local(), std::slice::from_ref(&vip), None);
        let (publisher, tables) = Publisher::new(first);
        let sizes = TableSizes {
            clients: 1,
            datagrams: DATAGRAM_PLACES,
            fragment_timeout: Ticks(u32::MAX),
            sources: sources(case, capacity * workers as u64),
            return_hops: 1,
            taken_over: false,
        };
        let (capacity, secret) = (u32::try_from(capacity).unwrap(), TableSecret::new(1));
        let flows = (0..workers)
            .map(|_| Arc::new(FlowTable::new(capacity, secret.clone(), families(case)).unwrap()))
            .collect();
        let shared = SharedTables::new(flows, &secret, sizes).unwrap();
        if vip.spliced {
            shared.splices.populate(families(case)).unwrap();
        }
        (publisher, Self { case, vip, tables, shared })
    }

    /// Builds the successor of `previous` in which this backend is up or down.
    pub fn with_health(
        &mut self,
        backend: usize,
        up: bool,
        previous: &ForwardingTable,
    ) -> ForwardingTable {
        self.vip.backends[backend].up = up;
        let specs = std::slice::from_ref(&self.vip);
        ForwardingTable::build(previous.generation() + 1, SECRET, local(), specs, Some(previous))
    }
}

/// A worker and its traffic.
pub struct Bed {
    case: Case,
    worker: Worker,
    nic: FakeNic,
    stats: Arc<WorkerStats>,
    memory: usize,
    /// The first of the worker's flows, and their number.
    first: u64,
    flows: u64,
    /// Number of established flows.
    established: u64,
    /// The next new flow, and the number of new flows so far.
    unseen: u64,
    opened: u64,
    random: Random,
    packets: Packets,
    clock: Clock,
    now: u32,
    polls: u64,
    unreported: Duration,
}

/// The packets of a case.
struct Packets {
    syn: Template,
    request: Template,
    first_fragment: Template,
    /// Packet that is sent in pinned flows.
    hit: Template,
    replies: Vec<Template>,
    /// Backend of each flow, for replies.
    backends: Vec<u16>,
    /// Full NAT: the source of each flow.
    sources: Vec<([u8; 4], u16)>,
}

impl Packets {
    fn new(case: Case, backends: u16) -> Self {
        let replies = (0..backends).map(|backend| Template::reply(case.family, backend));
        let request = Template::request(case.family, false);
        Self {
            syn: Template::request(case.family, true),
            hit: match case.traffic {
                Traffic::Tagged => request.tagged(VLAN),
                Traffic::Fragment => Template::fragment(true),
                Traffic::Error => Template::error(),
                Traffic::Echo => Template::echo(),
                _ => request,
            },
            request: Template::request(case.family, false),
            first_fragment: Template::fragment(false),
            replies: replies.collect(),
            backends: Vec::new(),
            sources: Vec::new(),
        }
    }
}

impl Bed {
    /// Creates a worker with `flows` established flows, for hits and replies; or, for new flows,
    /// one with a table of `flows` entries in steady state.
    pub fn new(case: Case, flows: u64, clock: Clock) -> Self {
        let (_, shared) = Shared::new(case, 1, BACKENDS, flows);
        Self::worker(&shared, 0, flows, clock)
    }

    /// Creates worker `index` of those that share `shared`, with flows of its own.
    pub fn worker(shared: &Shared, index: u8, flows: u64, clock: Clock) -> Self {
        let mut bed = Self::empty(shared, index, flows, clock);
        match bed.case.traffic {
            Traffic::Open => bed.fill(),
            Traffic::Cookie => {}
            _ => bed.establish(),
        }
        if bed.case.traffic.is_spliced() {
            bed.splice(&shared.shared, index);
        }
        bed.verify();
        bed
    }

    fn empty(shared: &Shared, index: u8, flows: u64, clock: Clock) -> Self {
        let case = shared.case;
        let backends = shared.vip.backends.len();
        let memory = shared.shared.flows[usize::from(index)].memory(families(case));
        let (umem, pool) = Umem::create(FRAMES, 2048).unwrap();
        let stats = Arc::new(WorkerStats::new(1, backends, 1));
        let (xsk, nic) = FakeNic::new(&umem, RING).unwrap();
        let parts = Parts {
            queues: vec![WorkerQueue::new(NicIndex(0), xsk)],
            pool,
            shared: Arc::clone(&shared.shared),
            parked: 0,
            index,
            tables: shared.tables.clone(),
            stats: Arc::clone(&stats),
            batch: BATCH,
        };
        let clock = match (case.traffic, clock) {
            // As fast as the table permits.
            (Traffic::Open, _) => Clock::EveryPolls(polls_per_tick(flows)),
            (_, clock) => clock,
        };
        let first = u64::from(index) * flows;
        Self {
            case,
            worker: Worker::new(parts, Ticks(0)).unwrap(),
            nic,
            stats,
            memory,
            first,
            flows,
            established: 0,
            // Far from the flows of any worker.
            unseen: if case.traffic == Traffic::Open { first } else { 1 << 32 },
            opened: 0,
            random: Random::new(0xbed),
            packets: Packets::new(case, u16::try_from(backends).unwrap()),
            clock,
            now: 0,
            polls: 0,
            unreported: Duration::ZERO,
        }
    }

    /// Changes the traffic from now on.
    pub fn turn_to(&mut self, traffic: Traffic) {
        self.case.traffic = traffic;
        self.opened = 0;
        if traffic == Traffic::Lost {
            self.clock = Clock::EveryPolls(polls_per_tick(self.flows));
        }
    }

    /// Sends replies of the flows of `owner` from now on.
    pub fn answer_for(&mut self, owner: &Self) {
        (self.first, self.flows) = (owner.first, owner.flows);
        self.packets.backends.clone_from(&owner.packets.backends);
    }

    /// Lets time pass without packets, until all remote entries are gone.
    pub fn forget_remotes(&mut self) {
        let start = self.now;
        while self.stats.flow_aliases.get() > 0 {
            self.now += 1;
            self.worker.poll(Ticks(self.now));
            assert!(self.now - start < 100_000, "aliases go");
        }
    }

    /// Returns the memory of the flow table in bytes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Returns the number of flows in the table.
    pub fn active(&self) -> u64 {
        self.stats.flows_active.get()
    }

    /// Opens every flow, and completes its handshake: with NAT by the backend's packet too, else by
    /// another one of the client, without which the flow is not proven.
    fn establish(&mut self) {
        let before = std::mem::replace(&mut self.clock, Clock::EveryPolls(u64::MAX));
        let end = self.first + self.flows;
        for first in (self.first..end).step_by(ROUND) {
            let flows = first..end.min(first + ROUND as u64);
            for flow in flows.clone() {
                self.deliver(flow, |packets| &packets.syn);
            }
            self.poll_and_drop();
            for flow in flows.clone() {
                self.deliver(flow, |packets| &packets.request);
            }
            self.poll_and_note_backends();
            self.prove(flows);
        }
        if self.case.traffic == Traffic::Fragment {
            for flow in self.first..self.first + self.flows.min(DATAGRAMS) {
                self.deliver(flow, |packets| &packets.first_fragment);
            }
            self.poll_and_drop();
        }
        self.established = self.flows;
        self.clock = before;
    }

    /// Makes connections of two handshakes of all flows.
    fn splice(&self, shared: &SharedTables, worker: u8) {
        let table = &shared.flows[usize::from(worker)];
        for flow in self.first..self.first + self.flows {
            let (address, port) = client(self.case.family, flow);
            let key = FlowKey {
                client: address,
                vip: self.case.family.vip().into(),
                client_port: port,
                vip_port: VIP_PORT,
                protocol: Protocol::Tcp,
            };
            let (slot, _) = table.lookup(&table.secret().hash(key.into())).unwrap();
            let place = Place { worker, slot, stamp: table.stamp(slot).unwrap() };
            let offer =
                Offer { mss: 1460, scale: Some(7), sack: true, timestamp: None, window: 500 };
            let answer = Some(Answer { isn: 7, scale: Some(7), clock: 0 });
            shared.splices.record(&place, &Splice { isn: 1, cookie: 2, offer, answer });
        }
    }

    /// Sends the packets that prove established flows.
    fn prove(&mut self, flows: Range<u64>) {
        if self.case.forward.translates() {
            for flow in flows {
                self.deliver_reply(flow - self.first);
            }
        } else {
            for flow in flows {
                self.deliver(flow, |packets| &packets.request);
            }
        }
        self.poll_and_drop();
    }

    /// Opens flows until as many expire as are opened: steady state after five sweeps.
    fn fill(&mut self) {
        let polls = polls_per_tick(self.flows) * SWEEP * 5;
        for _ in 0..=polls * BATCH as u64 / ROUND as u64 {
            self.prepare();
            self.poll_and_drop();
        }
    }

    fn poll_and_drop(&mut self) {
        self.poll(Worker::poll);
        self.nic.collect(|_| {});
    }

    fn poll_and_note_backends(&mut self) {
        self.poll(Worker::poll);
        let full_nat = self.case.forward == Forward::FullNat;
        let Packets { backends, sources, .. } = &mut self.packets;
        self.nic.collect(|bytes| {
            // A backend's MAC ends with its number.
            backends.push(u16::from_be_bytes([bytes[4], bytes[5]]));
            if full_nat {
                let port = u16::from_be_bytes([bytes[34], bytes[35]]);
                sources.push((*bytes[26..].first_chunk().unwrap(), port));
            }
        });
    }

    fn deliver(&mut self, flow: u64, template: impl FnOnce(&Packets) -> &Template) {
        let template = template(&self.packets);
        let delivered =
            self.nic.deliver_in_place(template.len(), |data| template.write(flow, data));
        assert!(delivered, "the fake NIC has a frame and a slot");
    }

    /// Delivers the next packet of the case's traffic; returns its flow.
    #[inline]
    fn deliver_next(&mut self) -> u64 {
        match self.case.traffic {
            Traffic::Hit
            | Traffic::Tagged
            | Traffic::Fragment
            | Traffic::Error
            | Traffic::Echo
            | Traffic::Spliced => {
                let fragments = self.case.traffic == Traffic::Fragment;
                let flows = if fragments { self.flows.min(DATAGRAMS) } else { self.flows };
                let flow = self.first + self.random.below(flows);
                self.deliver(flow, |packets| &packets.hit);
                flow
            }
            Traffic::Cookie => {
                let flow = self.first + self.random.below(self.flows);
                self.deliver(flow, |packets| &packets.syn);
                flow
            }
            Traffic::Reply | Traffic::SplicedReply => {
                let flow = self.random.below(self.flows);
                self.deliver_reply(flow)
            }
            Traffic::FirstReply => {
                let flow = self.opened % self.flows;
                self.opened += 1;
                self.deliver_reply(flow)
            }
            Traffic::Open | Traffic::Lost => {
                let (flow, opens) = (self.unseen, self.case.traffic == Traffic::Open);
                self.unseen += 1;
                self.opened += 1;
                self.deliver(flow, |packets| if opens { &packets.syn } else { &packets.request });
                flow
            }
        }
    }

    /// Delivers a reply of a flow, given by its index among the worker's; returns its number.
    fn deliver_reply(&mut self, place: u64) -> u64 {
        let flow = self.first + place;
        let index = usize::try_from(place).unwrap();
        let template = &self.packets.replies[usize::from(self.packets.backends[index])];
        let to = match self.packets.sources.get(index) {
            Some(&(source, port)) => (Address::from_v4(source), port),
            None => client(self.case.family, flow),
        };
        let delivered =
            self.nic.deliver_in_place(template.len(), |data| template.write_for(to, data));
        assert!(delivered, "the fake NIC has a frame and a slot");
        flow
    }

    /// Polls until a round's packets are processed; returns their number.
    #[inline(always)]
    fn poll(&mut self, poll: impl Fn(&mut Worker, Ticks) -> usize) -> usize {
        let mut packets = 0;
        for _ in 0..ROUND / BATCH {
            packets += poll(&mut self.worker, Ticks(self.now));
            self.polls += 1;
            if let Clock::EveryPolls(polls) = self.clock
                && self.polls.is_multiple_of(polls)
            {
                self.now += 1;
            }
        }
        packets
    }

    /// Polls until a round's packets are processed, and reports the time of each poll; returns the
    /// sum.
    pub fn timed_polls(&mut self, mut each: impl FnMut(usize, Duration)) -> Duration {
        let mut sum = Duration::ZERO;
        for number in 0..ROUND / BATCH {
            let start = Instant::now();
            measured_poll(&mut self.worker, Ticks(self.now));
            let took = start.elapsed();
            each(number, took);
            sum += took;
        }
        sum
    }

    /// Sends a sample, and checks every packet that comes out.
    fn verify(&mut self) {
        let mut sample: Vec<u64> = (0..ROUND).map(|_| self.deliver_next()).collect();
        sample.reverse();
        self.poll(Worker::poll);
        let mut sent = Vec::new();
        self.nic.collect(|bytes| sent.push(Sent { nic: 0, bytes: bytes.to_vec() }));
        assert_eq!(sent.len(), ROUND, "{}: every packet is sent", self.case.name);
        for sent in sent {
            self.verify_one(sample.pop().unwrap(), &sent);
        }
        self.assert_accounted();
    }

    fn verify_one(&self, flow: u64, sent: &Sent) {
        let Case { name, family, traffic, .. } = self.case;
        assert_eq!(sent.source_mac(), nic_mac(0), "{name}");
        let (address, port) = client(family, flow);
        let client = (IpAddr::from(address), port);
        if matches!(traffic, Traffic::Reply | Traffic::SplicedReply) {
            self.verify_reply(client, sent);
            return;
        }
        if traffic == Traffic::Cookie {
            sent.assert_checksums();
            let (tcp, (to, to_port, _)) = (sent.tcp(), sent.destination());
            assert!(tcp.syn && tcp.ack, "{name}");
            assert_eq!((to, to_port), client, "{name}");
            return;
        }
        if traffic == Traffic::Echo {
            assert_eq!(sent.destination_mac(), CLIENT_MAC, "{name}");
            assert_eq!(sent.bytes[34..36], [0, 0], "{name}: an echo reply");
            assert_eq!(sent.bytes[30..34], address.v4_octets(), "{name}");
            assert_eq!(icmp_sums(&sent.bytes[14..]), [0; 2], "{name}");
            return;
        }
        let [.., high, low] = sent.destination_mac();
        let backend = u16::from_be_bytes([high, low]);
        assert_eq!(sent.destination_mac(), backend_mac(backend), "{name}");
        if traffic != Traffic::Open {
            let pinned = self.packets.backends[usize::try_from(flow - self.first).unwrap()];
            assert_eq!(backend, pinned, "{name}: flow {flow} keeps its backend");
        }
        self.verify_request(flow, client, backend, sent);
    }

    fn verify_reply(&self, client: (IpAddr, u16), sent: &Sent) {
        let Case { name, family, .. } = self.case;
        sent.assert_checksums();
        let (to, to_port, ttl) = sent.destination();
        assert_eq!(ttl, 63, "{name}");
        assert_eq!(sent.destination_mac(), CLIENT_MAC, "{name}");
        assert_eq!(sent.source(), (family.vip(), VIP_PORT), "{name}");
        assert_eq!((to, to_port), client, "{name}");
    }

    fn verify_request(&self, flow: u64, client: (IpAddr, u16), backend: u16, sent: &Sent) {
        let Case { name, forward, family, traffic } = self.case;
        let service = (family.backend(backend), BACKEND_PORT);
        if traffic == Traffic::Error {
            let IpAddr::V4(address) = service.0 else { unreachable!("IPv4") };
            assert_eq!(sent.bytes[30..34], address.octets(), "{name}: to the backend");
            assert_eq!(sent.bytes[54..58], address.octets(), "{name}: quotes the backend");
            assert_eq!(icmp_sums(&sent.bytes[14..]), [0; 2], "{name}");
            return;
        }
        let header = if family == Family::V4 { 20 } else { 40 };
        let outer = match forward {
            Forward::Ipip => header,
            // RFC 768 and the GUE header without options.
            Forward::Gue => header + 8 + 4,
            _ => 0,
        };
        if outer > 0 || traffic == Traffic::Fragment {
            // Only outer headers are added or changed.
            let mut data = vec![0; self.packets.hit.len()];
            self.packets.hit.write(flow, &mut data);
            assert_eq!(sent.bytes[14 + outer..], data[14..], "{name}");
            return;
        }
        sent.assert_checksums();
        let (to, to_port, ttl) = sent.destination();
        assert_eq!(ttl, if forward.translates() { 63 } else { 64 }, "{name}");
        match forward {
            // A new flow has any source.
            Forward::FullNat if traffic == Traffic::Open => {
                assert_eq!(sent.source().0, IpAddr::from([198, 19, 0, 0]), "{name}");
            }
            Forward::FullNat => {
                let (source, port) = self.packets.sources[usize::try_from(flow).unwrap()];
                assert_eq!(sent.source(), (source.into(), port), "{name}");
            }
            _ => assert_eq!(sent.source(), client, "{name}"),
        }
        let vip = (family.vip(), VIP_PORT);
        assert_eq!((to, to_port), if forward.translates() { service } else { vip }, "{name}");
    }

    /// Asserts that every received packet was sent, and that its flow is in the table.
    pub fn assert_accounted(&self) {
        let (stats, name) = (&self.stats, self.case.name);
        for &reason in Drop::ALL {
            assert_eq!(stats.drop_counter(reason).get(), 0, "{name}: {}", reason.as_str());
        }
        let replies = [LocalReply::EchoReply, LocalReply::SynCookie];
        let answered: u64 = replies.map(|kind| stats.local_reply_counter(kind).get()).iter().sum();
        assert_eq!(stats.received.get(), stats.transmitted.get() + answered, "{name}");
        assert_eq!(self.worker.frames(), FRAMES as usize, "{name}: lost frames");
        match self.case.traffic {
            Traffic::Open => assert_eq!(stats.flows_new.get(), self.opened, "{name}"),
            Traffic::Cookie => assert_eq!(self.active(), 0, "{name}: no state"),
            Traffic::Lost => assert_eq!(stats.flows_by_hash.get(), self.opened, "{name}"),
            _ => assert_eq!(self.active(), self.established, "{name}"),
        }
    }
}

/// Returns the families that a flow table needs memory for.
fn families(case: Case) -> Families {
    Families { v4: case.family == Family::V4, v6: case.family == Family::V6 }
}

/// Returns the local addresses: sources of tunnels.
fn local() -> Local {
    let sources = |prefix: &str| Some(tunnel::TunnelSources::new(prefix.parse().unwrap()));
    let (source_v4, source_v6) = (sources("198.19.255.0/24"), sources("2001:db8:ff::/64"));
    let tunnels = Tunnels { source_v4, source_v6, ..Tunnels::default() };
    Local { tunnels, macs: vec![nic_mac(0)], ..Local::default() }
}

/// Returns full-NAT sources for `flows` flows.
fn sources(case: Case, flows: u64) -> SnatPool {
    let addresses = match case.forward {
        Forward::FullNat => flows.div_ceil(SOURCE_PORTS.len() as u64),
        _ => 0,
    };
    let addresses = (0..addresses).map(|number| {
        let [.., high, low] = number.to_be_bytes();
        IpAddr::from([198, 19, high, low])
    });
    SnatPool::new(addresses, &SOURCE_PORTS)
}

/// Returns the sums over an IPv4 header and over the ICMP message that follows it: 0 if valid.
fn icmp_sums(packet: &[u8]) -> [u16; 2] {
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    [&packet[..20], &packet[20..len]].map(|bytes| {
        let words = bytes.chunks(2).map(|word| u32::from(word[0]) * 256 + u32::from(word[1]));
        let sum: u32 = words.sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    })
}

/// Returns the polls of new flows per tick with which a table for `flows` flows is never full.
fn polls_per_tick(flows: u64) -> u64 {
    (flows * NEW_FLOW_LOAD / 100 / LONGEST_LIFE / BATCH as u64).max(1)
}

/// Makes the measured poll, with a read of the clock, as `Worker::run` does. Not inlined, so that
/// callgrind can find it; the warm-up calls the worker directly.
#[inline(never)]
pub fn measured_poll(worker: &mut Worker, now: Ticks) -> usize {
    black_box(cpu::monotonic_ms());
    worker.poll(now)
}

impl Subject for Bed {
    fn prepare(&mut self) {
        for _ in 0..ROUND {
            self.deliver_next();
        }
    }

    fn run(&mut self) -> usize {
        self.poll(measured_poll)
    }

    fn finish(&mut self, took: Duration) {
        let sent = self.nic.collect(|_| {});
        if sent != ROUND {
            // Reports which counter it was.
            self.assert_accounted();
        }
        assert_eq!(sent, ROUND, "{}: every packet is sent", self.case.name);
        if matches!(self.clock, Clock::Timed) {
            self.unreported += took;
            while self.unreported >= TICK {
                self.unreported -= TICK;
                self.now += 1;
            }
        }
    }
}
