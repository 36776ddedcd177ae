//! Counters of the data path: one writer each, readable by every thread.
//!
//! Every packet that a worker receives ends in exactly one of `transmitted`, `handed_over`, one
//! kind of [`LocalReply`] or one [`Drop`] reason (architecture invariant 6), so for each worker
//! `received = transmitted + handed_over + answered + sum(drops) + fragments_parked` between two
//! polls.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::net::{Address, Family, VipId};
use crate::units::Ticks;

/// A counter with one writing thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. For the counter's one writer only: a load and a store, no bus lock.
    #[inline]
    pub fn add(&self, n: u64) {
        // Relaxed: a counter publishes only itself.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Subtracts `n` from a gauge. For the gauge's one writer only.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.add(n.wrapping_neg());
    }

    /// Returns the current value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A new flow, reported by a worker for the detection of large sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// VIP of the flow.
    pub vip: VipId,
    /// The client's address, masked as the VIP's affinity prescribes.
    pub source: Address,
}

/// Capacity of the channel. The control thread drains it every 100 ms: 40,000 samples a second per
/// worker, many more than a share needs to be known to a percent.
const SAMPLES: usize = 4096;

/// A bounded channel from one worker to the control thread, for samples that may be lost.
#[derive(Debug)]
pub struct Samples {
    sender: Sender<Sample>,
    receiver: Receiver<Sample>,
}

impl Default for Samples {
    fn default() -> Self {
        let (sender, receiver) = bounded(SAMPLES);
        Self { sender, receiver }
    }
}

impl Samples {
    /// Reports a new flow; the sample is lost if the channel is full. Never waits.
    #[inline]
    pub fn offer(&self, sample: Sample) {
        let _ = self.sender.try_send(sample);
    }

    /// Returns the samples that have arrived.
    pub fn take(&self) -> impl Iterator<Item = Sample> + '_ {
        self.receiver.try_iter().take(SAMPLES)
    }
}

/// Declares an enum of packet outcomes together with their names, so that variant, label and list
/// cannot diverge. The names are the labels in `status --json` and in `docs/COUNTERS.md`.
macro_rules! named {
    (
        $(#[doc = $about:literal])+ $enum:ident
        $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $enum {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl $enum {
            /// All variants, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the counter's name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Returns a description in one sentence.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

named! {
    /// Kind of a local reply. One counter each.
    LocalReply
    /// Echo requests to a VIP that went back as replies.
    EchoReply = "echo_replies",
    /// Packets too long for the next link that went back as fragmentation needed or packet too big.
    TooBig = "icmp_too_big_sent",
    /// Packets without hops left that went back as time exceeded.
    TimeExceeded = "icmp_time_exceeded_sent",
    /// UDP packets without a backend to go to, answered with port unreachable.
    Unreachable = "icmp_unreachable_sent",
    /// TCP segments without a backend to go to, answered with a RST.
    Rejected = "rejects_sent",
    /// SYNs for VIPs with `syn_proxy`, answered with a cookie.
    SynCookie = "syn_cookies_sent",
}

named! {
    /// Reason for which a worker dropped a packet. One counter each.
    Drop
    /// A packet of several frames, of which one is missing or empty, or they are more than 17.
    NotWhole = "not_whole",
    /// Fewer than 14 bytes, or a VLAN tag cut short.
    TruncatedEthernet = "truncated_ethernet",
    /// More than two VLAN tags, or an 802.1ad tag without an 802.1Q tag behind it.
    NestedVlan = "nested_vlan",
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip",
    /// An IPv4 header cut short.
    TruncatedIpv4 = "truncated_ipv4",
    /// IPv4 version or header length is wrong.
    BadIpv4Header = "bad_ipv4_header",
    /// The IPv4 total length is shorter than the header, or longer than the packet: malformed, or cut off by a NIC.
    BadIpv4Length = "bad_ipv4_length",
    /// The checksum of the IPv4 header is wrong.
    BadIpv4Checksum = "bad_ipv4_checksum",
    /// An IPv6 header cut short, or its version is wrong.
    TruncatedIpv6 = "truncated_ipv6",
    /// The IPv6 payload length is longer than the packet: malformed, or cut off by a NIC.
    BadIpv6Length = "bad_ipv6_length",
    /// IPv6 extension headers that are cut short, too many, or of a kind that is not forwarded.
    Ipv6Extension = "ipv6_extension",
    /// A fragment whose offset and length cannot be, or one of an ICMP message.
    Fragment = "fragment",
    /// A first fragment without the whole transport header.
    TinyFragment = "tiny_fragment",
    /// A fragment with bytes that another one has, or behind the end, or another start of its datagram.
    FragmentOverlap = "fragment_overlap",
    /// A later fragment whose first one did not come within 2 s.
    FragmentNoFirst = "fragment_no_first",
    /// A later fragment; the first one of its datagram was dropped.
    FragmentFirstDropped = "fragment_first_dropped",
    /// A later fragment that found too many others waiting, or made room for a newer one.
    FragmentNoRoom = "fragment_no_room",
    /// Neither TCP, UDP nor ICMP, and no VIP takes all protocols of the address.
    UnsupportedProtocol = "unsupported_protocol",
    /// A TCP header cut short.
    TruncatedTcp = "truncated_tcp",
    /// The TCP data offset is below 5 or beyond the segment.
    BadTcpOffset = "bad_tcp_offset",
    /// A TCP flag combination that no stack sends: none, SYN with FIN, or SYN with RST.
    BadTcpFlags = "bad_tcp_flags",
    /// A UDP header cut short.
    TruncatedUdp = "truncated_udp",
    /// The UDP length is below 8 or beyond the IP payload.
    BadUdpLength = "bad_udp_length",
    /// Destination port 0, or source port 0 of TCP.
    ZeroPort = "zero_port",
    /// Source and destination are the same address and port.
    Land = "land",
    /// The source is a multicast, broadcast, loopback, unspecified or IPv4-mapped address.
    BadSource = "bad_source",
    /// The source is an address of a VIP, a tunnel or full NAT: an answer would come back here.
    OwnSource = "own_source",
    /// The next hop of the pinned backend is this box itself.
    Loop = "loop",
    /// The packet is for no VIP and from no NAT backend.
    NoVip = "no_vip",
    /// No backend of the VIP is in service.
    NoBackend = "no_backend",
    /// Every backend of the VIP that is in service has `max_connections` flows.
    BackendsFull = "backends_full",
    /// The packet begins a flow with a VIP or a port that a reload has removed.
    VipRemoved = "vip_removed",
    /// The worker's flow table is full; established flows are not touched.
    TableFull = "table_full",
    /// The flow would be new, and new flows are over their budget.
    NewFlowLimit = "new_flow_limit",
    /// Every backend of the NAT VIP already has a flow from this client address and port.
    NatCollision = "nat_collision",
    /// Mode nat: the client is itself the only backend of the VIP that is in service.
    ClientIsBackend = "client_is_backend",
    /// Mode full_nat: every source address and port that the worker has for the backend's family is
    /// in use.
    NoSourcePort = "no_source_port",
    /// Mode full_nat, between IPv4 and IPv6: it has no counterpart in the other family (a source route,
    /// fragments without a checksum, more than a frame).
    NotTranslatable = "not_translatable",
    /// Mode full_nat: a packet that belongs to no flow that is known here, and begins none.
    RequestNoFlow = "request_no_flow",
    /// From a NAT backend's service port or for a full-NAT source, but no flow is known that it answers.
    ReturnNoFlow = "return_no_flow",
    /// The pinned backend has no known next hop (route or neighbour is missing).
    NoNextHop = "no_next_hop",
    /// TTL or hop limit ran out where holdfast acts as a router (NAT).
    TtlExceeded = "ttl_exceeded",
    /// Longer than the next link carries.
    TooBig = "too_big",
    /// An ICMP message that is cut short, or whose checksum is wrong.
    BadIcmp = "bad_icmp",
    /// An ICMP message of a type that is not forwarded.
    IcmpType = "icmp_type",
    /// An ICMP error about a flow that is not of a VIP.
    IcmpNoFlow = "icmp_no_flow",
    /// VIPs with `syn_proxy`: belongs to no flow that is known here, and proves none.
    NoCookie = "no_cookie",
    /// VIPs with `syn_proxy`: comes before the backend has answered, or does not fit its answer.
    SynProxyWaits = "syn_proxy_waits",
    /// VIPs with `syn_proxy`: opens a flow, and its TCP checksum is wrong.
    BadTcpChecksum = "bad_tcp_checksum",
    /// The answer of a backend that has the flow it was asked about: the flow is pinned.
    AskAnswer = "ask_answer",
    /// In mid-flow without a pin, and the budget of asks is used up.
    AskLimited = "ask_limited",
    /// An answer of no backend that was asked, or about a flow that is not of its VIP.
    BadAnswer = "bad_answer",
    /// A packet of a terminated TCP flow; both ends are sent a RST.
    FlowReset = "flow_reset",
    /// From a client behind two VLAN tags, of which too many pairs are known already (some 4,000).
    VlanPairsFull = "vlan_pairs_full",
    /// A tunnel's packet, which is not put into another tunnel.
    NestedTunnel = "nested_tunnel",
    /// An ICMP error about a tunnel packet of ours, from which the path's MTU was learnt.
    PathMtuLearnt = "path_mtu_learnt",
    /// Another ICMP error about a tunnel packet of ours.
    TunnelError = "tunnel_error",
    /// No room in the frame for a VLAN tag or an outer header.
    NoHeadroom = "no_headroom",
    /// The packet is longer than a frame, and the NIC that it would leave by has no multi-buffer.
    TooLong = "too_long",
    /// The transmit ring of the NIC is full.
    TxFull = "tx_full",
}

/// Counters of one worker. The worker writes, the control thread reads. On cache lines of its own,
/// so that a reader disturbs one worker at a time.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerStats {
    /// Packets taken from RX rings.
    pub received: Counter,
    /// Packets put into TX rings.
    pub transmitted: Counter,
    /// Packets given to another worker.
    pub handed_over: Counter,
    /// Packets returned as a local reply, by kind; see [`WorkerStats::local_replies`].
    local_replies: [Counter; LocalReply::ALL.len()],
    /// Dropped packets by reason; see [`WorkerStats::drops`].
    drops: [Counter; Drop::ALL.len()],
    /// New flows that began as the protocol requires: with a SYN, or any UDP packet.
    pub flows_new: Counter,
    /// Mid-flow TCP packets without a pin here, for which another worker had the pin.
    pub flows_found_elsewhere: Counter,
    /// Mid-flow TCP packets without a pin anywhere, pinned again by hash.
    pub flows_by_hash: Counter,
    /// Flows pinned to the backend that their QUIC connection ID names.
    pub flows_by_cid: Counter,
    /// Datagrams of VIPs with `pin = false`, each placed by the scheduler by itself.
    pub datagrams_placed: Counter,
    /// Pins removed after their connection had ended by FINs or a RST, and its closing time-out.
    pub flows_closed: Counter,
    /// Pins removed because an open flow was idle for longer than its time-out.
    pub flows_idled_out: Counter,
    /// Pins removed because their backend's generation had ended.
    pub flows_stale: Counter,
    /// Pins of unproven flows removed because a new flow found the table full.
    pub flows_evicted: Counter,
    /// Pins removed after their flow was terminated: its ends received a RST, or did not reply to a
    /// probe.
    pub flows_reset: Counter,
    /// RST segments sent to the ends of terminated flows.
    pub resets_sent: Counter,
    /// Probes sent to silent ends of terminated flows; the reply triggers a RST.
    pub probes_sent: Counter,
    /// SYNs and ACKs sent to backends for clients of VIPs with `syn_proxy`, besides those that
    /// packets of clients became.
    pub handshakes_sent: Counter,
    /// Fragments of packets that exceeded the MTU of their path, except for the first of each,
    /// which counts as the packet.
    pub fragments_sent: Counter,
    /// Asks sent: packets in mid-flow without a pin, to lists of backends that may have their flow.
    pub asks_sent: Counter,
    /// ICMP errors forwarded to the end of the flow that they are about.
    pub icmp_errors_forwarded: Counter,
    /// Packets dropped without the ICMP error that they called for, because of the rate limit.
    pub icmp_rate_limited: Counter,
    /// Pins in the table now (a gauge).
    pub flows_active: Counter,
    /// Remote entries in the table now, which name another worker's pin (a gauge).
    pub flow_aliases: Counter,
    /// Later fragments that wait for their first one now (a gauge).
    pub fragments_parked: Counter,
    /// IPv4 SNAT ports in use now (a gauge).
    pub bindings_v4: Counter,
    /// IPv6 SNAT ports in use now (a gauge).
    pub bindings_v6: Counter,
    /// Clients not recorded because proven ones had all slots of their bucket.
    pub clients_full: Counter,
    /// Packets forwarded without a pin, as the table had no room for one.
    pub table_full_unpinned: Counter,
    /// Packets forwarded without a pin, as new flows were over their budget.
    pub new_flow_limit_unpinned: Counter,
    /// New flows of VIPs with watched sources.
    pub samples: Samples,
    /// Batches with at least one packet.
    pub batches: Counter,
    /// Polls that found no packet.
    pub idle_polls: Counter,
    /// Number of sleeps in poll(2).
    pub sleeps: Counter,
    /// Per VIP, by [`VipId`](crate::net::VipId).
    pub vips: Box<[FlowStats]>,
    /// Lifetimes of flows per VIP, by [`VipId`](crate::net::VipId).
    pub lifetimes: Box<[Lifetimes]>,
    /// Per backend, by [`BackendIndex`](crate::net::BackendIndex).
    pub backends: Box<[FlowStats]>,
    /// SYNs (with NAT and full NAT, also first datagrams) without any reply, per backend, by
    /// [`BackendIndex`](crate::net::BackendIndex); counted when their pin is removed. Not in [`FlowStats`], which is one cache line of per-packet
    /// counters.
    pub unanswered: Box<[Counter]>,
    /// New flows that a backend would have got, and did not, as it was at its limit, per backend, by
    /// [`BackendIndex`](crate::net::BackendIndex).
    pub over_limit: Box<[Counter]>,
    /// New flows with a first sign of an answer, per backend, by
    /// [`BackendIndex`](crate::net::BackendIndex), and flows that had lost their pin.
    pub answered: Box<[Counter]>,
    /// Per NIC, by [`NicIndex`](crate::net::NicIndex).
    pub nics: Box<[NicStats]>,
}

/// Counters of a worker per VIP or per backend.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct FlowStats {
    /// Packets from clients that were transmitted to the backend.
    pub packets_in: Counter,
    /// Bytes of these packets, as received, from the Ethernet header on.
    pub bytes_in: Counter,
    /// Packets from the backend that were transmitted to clients (NAT only).
    pub packets_out: Counter,
    /// Bytes of these packets, as received, from the Ethernet header on.
    pub bytes_out: Counter,
    /// Flows that were pinned.
    pub flows_total: Counter,
    /// Flows pinned now (a gauge).
    pub flows_active: Counter,
    /// Packets dropped after the VIP was known.
    pub dropped: Counter,
    /// Flows placed by the scheduler, and not by another rule. Of a VIP with `pin = false`:
    /// datagrams.
    pub flows_scheduled: Counter,
}

impl FlowStats {
    /// Returns every counter with its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let Self {
            packets_in,
            bytes_in,
            packets_out,
            bytes_out,
            flows_total,
            flows_active,
            dropped,
            flows_scheduled,
        } = self;
        [
            ("packets_in", packets_in.get()),
            ("bytes_in", bytes_in.get()),
            ("packets_out", packets_out.get()),
            ("bytes_out", bytes_out.get()),
            ("flows_total", flows_total.get()),
            ("flows_active", flows_active.get()),
            ("dropped", dropped.get()),
            ("flows_scheduled", flows_scheduled.get()),
        ]
        .into_iter()
    }
}

/// Number of classes of time spans: two per octave, so that none is wider than half of its start.
pub const SPANS: usize = 48;
/// Binary logarithm of the width of the first class in ticks (640 ms): the sweep of the flow table
/// takes longer to notice an end.
const FIRST_OCTAVE: u32 = 6;

/// Returns the class of a span, `0..SPANS`; the last one has all from 62 days on.
#[inline]
pub fn span_class(span: Ticks) -> usize {
    let Some(octave) = span.0.checked_ilog2().and_then(|log| log.checked_sub(FIRST_OCTAVE)) else {
        return 0;
    };
    let half = span.0 >> (octave + FIRST_OCTAVE - 1) & 1;
    usize::try_from(1 + 2 * octave + half).map_or(0, |class| class.min(SPANS - 1))
}

/// Returns the shortest span of a class, in ticks; for `SPANS` and above, the end of the last
/// class.
pub fn span_start(class: usize) -> u64 {
    match class.min(SPANS).checked_sub(1) {
        None => 0,
        Some(step) => (2 + (step as u64 & 1)) << (step as u64 / 2 + u64::from(FIRST_OCTAVE) - 1),
    }
}

/// Lifetimes of a VIP's ended flows: number of flows per class of spans. Terminated flows are not
/// included, as they did not end by themselves.
#[derive(Debug)]
#[repr(align(64))]
pub struct Lifetimes([Counter; SPANS]);

impl Default for Lifetimes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Lifetimes {
    /// Counts one flow. For the one writer only.
    #[inline]
    pub fn add(&self, span: Ticks) {
        if let Some(counter) = self.0.get(span_class(span)) {
            counter.add(1);
        }
    }

    /// Returns the number of flows of each class.
    pub fn counts(&self) -> [u64; SPANS] {
        std::array::from_fn(|class| self.0.get(class).map_or(0, Counter::get))
    }
}

/// Counters of a worker per NIC.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct NicStats {
    /// Packets received.
    pub rx_packets: Counter,
    /// Bytes received, from the Ethernet header on.
    pub rx_bytes: Counter,
    /// Packets put into the TX ring.
    pub tx_packets: Counter,
    /// Bytes put into the TX ring.
    pub tx_bytes: Counter,
    /// TX wake-up system calls.
    pub tx_wakeups: Counter,
    /// Descriptors from the kernel that named none of the worker's frames; each is ignored.
    pub bad_descriptors: Counter,
    /// Number of times that no free frame was left for the fill ring.
    pub no_free_frame: Counter,
}

impl NicStats {
    /// Returns every counter with its name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let Self {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            tx_wakeups,
            bad_descriptors,
            no_free_frame,
        } = self;
        [
            ("rx_packets", rx_packets.get()),
            ("rx_bytes", rx_bytes.get()),
            ("tx_packets", tx_packets.get()),
            ("tx_bytes", tx_bytes.get()),
            ("tx_wakeups", tx_wakeups.get()),
            ("bad_descriptors", bad_descriptors.get()),
            ("no_free_frame", no_free_frame.get()),
        ]
        .into_iter()
    }
}

impl WorkerStats {
    /// Creates zeroed counters for up to `vips`, `backends` and `ports` (NICs).
    pub fn new(vips: usize, backends: usize, nics: usize) -> Self {
        fn zeroed<T: Default>(count: usize) -> Box<[T]> {
            (0..count).map(|_| T::default()).collect()
        }
        Self {
            received: Counter::default(),
            transmitted: Counter::default(),
            handed_over: Counter::default(),
            local_replies: std::array::from_fn(|_| Counter::default()),
            drops: std::array::from_fn(|_| Counter::default()),
            flows_new: Counter::default(),
            flows_found_elsewhere: Counter::default(),
            flows_by_hash: Counter::default(),
            flows_by_cid: Counter::default(),
            datagrams_placed: Counter::default(),
            flows_closed: Counter::default(),
            flows_idled_out: Counter::default(),
            flows_stale: Counter::default(),
            flows_evicted: Counter::default(),
            flows_reset: Counter::default(),
            resets_sent: Counter::default(),
            probes_sent: Counter::default(),
            handshakes_sent: Counter::default(),
            fragments_sent: Counter::default(),
            asks_sent: Counter::default(),
            icmp_errors_forwarded: Counter::default(),
            icmp_rate_limited: Counter::default(),
            flows_active: Counter::default(),
            flow_aliases: Counter::default(),
            fragments_parked: Counter::default(),
            bindings_v4: Counter::default(),
            bindings_v6: Counter::default(),
            clients_full: Counter::default(),
            table_full_unpinned: Counter::default(),
            new_flow_limit_unpinned: Counter::default(),
            samples: Samples::default(),
            batches: Counter::default(),
            idle_polls: Counter::default(),
            sleeps: Counter::default(),
            vips: zeroed(vips),
            lifetimes: zeroed(vips),
            backends: zeroed(backends),
            unanswered: zeroed(backends),
            over_limit: zeroed(backends),
            answered: zeroed(backends),
            nics: zeroed(nics),
        }
    }

    /// Sets the gauges of flows, remote entries and SNAT ports to 0, and counts parked fragments as
    /// given up, before their contents are counted again. For the one writer only.
    pub fn clear_gauges(&self) {
        let lists = self.vips.iter().chain(&self.backends).map(|stats| &stats.flows_active);
        let gauges = [&self.flows_active, &self.flow_aliases, &self.bindings_v4, &self.bindings_v6];
        lists.chain(gauges).for_each(|gauge| gauge.sub(gauge.get()));
        let parked = self.fragments_parked.get();
        self.drop_counter(Drop::FragmentNoFirst).add(parked);
        self.fragments_parked.sub(parked);
    }

    /// Returns the gauge of SNAT ports in use, of one family.
    #[inline]
    pub const fn snat_ports(&self, family: Family) -> &Counter {
        match family {
            Family::V4 => &self.bindings_v4,
            Family::V6 => &self.bindings_v6,
        }
    }

    /// Returns the counter of one drop reason.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "the array has one place per reason")]
    pub fn drop_counter(&self, reason: Drop) -> &Counter {
        &self.drops[reason as usize]
    }

    /// Returns the counters of packets and flows with their names in `docs/API.md`, except
    /// [`drops`](Self::drops), [`local_replies`](Self::local_replies), the lists, and the counts of
    /// polls and sleeps.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        // Every field is named, so that none can be forgotten here.
        let Self {
            received,
            transmitted,
            handed_over,
            local_replies,
            drops: _,
            flows_new,
            flows_found_elsewhere,
            flows_by_hash,
            flows_by_cid,
            datagrams_placed,
            flows_closed,
            flows_idled_out,
            flows_stale,
            flows_evicted,
            flows_reset,
            resets_sent,
            probes_sent,
            handshakes_sent,
            icmp_errors_forwarded,
            icmp_rate_limited,
            fragments_sent,
            asks_sent,
            flows_active,
            flow_aliases,
            fragments_parked: _,
            bindings_v4,
            bindings_v6,
            clients_full,
            table_full_unpinned,
            new_flow_limit_unpinned,
            samples: _,
            batches: _,
            idle_polls: _,
            sleeps: _,
            vips: _,
            lifetimes: _,
            backends: _,
            unanswered: _,
            over_limit: _,
            answered: _,
            nics: _,
        } = self;
        let answered = local_replies.iter().map(Counter::get).sum();
        [
            ("received", received.get()),
            ("transmitted", transmitted.get()),
            ("handed_over", handed_over.get()),
            ("answered", answered),
            ("flows_new", flows_new.get()),
            ("flows_found_elsewhere", flows_found_elsewhere.get()),
            ("flows_by_hash", flows_by_hash.get()),
            ("flows_by_cid", flows_by_cid.get()),
            ("datagrams_placed", datagrams_placed.get()),
            ("flows_closed", flows_closed.get()),
            ("flows_idled_out", flows_idled_out.get()),
            ("flows_stale", flows_stale.get()),
            ("flows_evicted", flows_evicted.get()),
            ("flows_reset", flows_reset.get()),
            ("resets_sent", resets_sent.get()),
            ("probes_sent", probes_sent.get()),
            ("handshakes_sent", handshakes_sent.get()),
            ("icmp_errors_forwarded", icmp_errors_forwarded.get()),
            ("icmp_rate_limited", icmp_rate_limited.get()),
            ("fragments_sent", fragments_sent.get()),
            ("asks_sent", asks_sent.get()),
            ("flows_active", flows_active.get()),
            ("flow_aliases", flow_aliases.get()),
            ("bindings_v4", bindings_v4.get()),
            ("bindings_v6", bindings_v6.get()),
            ("clients_full", clients_full.get()),
            ("table_full_unpinned", table_full_unpinned.get()),
            ("new_flow_limit_unpinned", new_flow_limit_unpinned.get()),
        ]
        .into_iter()
    }

    /// Returns every drop reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (Drop, u64)> + '_ {
        Drop::ALL.iter().zip(&self.drops).map(|(&reason, counter)| (reason, counter.get()))
    }

    /// Returns the counter of one kind of local reply.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "the array has one place per kind")]
    pub fn local_reply_counter(&self, reply: LocalReply) -> &Counter {
        &self.local_replies[reply as usize]
    }

    /// Returns every kind of local reply with its count.
    pub fn local_replies(&self) -> impl Iterator<Item = (LocalReply, u64)> + '_ {
        LocalReply::ALL
            .iter()
            .zip(&self.local_replies)
            .map(|(&reply, counter)| (reply, counter.get()))
    }

    /// Returns the received packets that have not yet ended in a counter; 0 between two polls.
    pub fn unaccounted(&self) -> i128 {
        let ended = u128::from(self.transmitted.get())
            + u128::from(self.handed_over.get())
            + self.local_replies().map(|(_, count)| u128::from(count)).sum::<u128>()
            + self.drops().map(|(_, count)| u128::from(count)).sum::<u128>();
        let ended = ended + u128::from(self.fragments_parked.get());
        i128::from(self.received.get()) - i128::try_from(ended).unwrap_or(i128::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_spans_meet_and_are_narrow() {
        for class in 0..SPANS - 1 {
            let (start, end) = (span_start(class), span_start(class + 1));
            assert!(end <= start + (start / 2).max(64), "{class}: {start} to {end}");
            for (ticks, expected) in [(start, class), (end - 1, class), (end, class + 1)] {
                let ticks = Ticks(u32::try_from(ticks).unwrap_or(u32::MAX));
                assert_eq!(span_class(ticks), expected, "{ticks:?}");
            }
        }
        assert_eq!(span_class(Ticks(u32::MAX)), SPANS - 1);
        assert!(span_start(SPANS - 1) > u64::from(Ticks::span(Ticks::MAX_SPAN).0));
    }

    #[test]
    fn lifetimes_are_counted_by_class() {
        let lifetimes = Lifetimes::default();
        for ticks in [0, 63, 64, 1_000_000] {
            lifetimes.add(Ticks(ticks));
        }
        let counts = lifetimes.counts();
        assert_eq!(counts.first_chunk(), Some(&[2, 1]));
        assert_eq!(counts.iter().sum::<u64>(), 4);
    }
}
