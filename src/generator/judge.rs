//! Receiving side of a worker: evaluates a packet that comes out of the balancer, and plays the
//! backend or the client that receives it.

use std::sync::Arc;

use hashbrown::HashMap;
use hdrhistogram::{CreationError, Histogram};

use super::arrival::{self, Arrival, BackendKey, server_segment};
use super::client::wants_answer;
use super::layout::Layout;
use super::packet::flags;
use super::settings::{Settings, Traffic};
use super::signature::Found;
use super::slots::{Board, State, client_start, server_start};
use super::tracker::{BackendNumber, Sequence, Tracker};
use crate::net::Address;

/// Largest number of distinct backends; further ones are counted as the last one.
const MAX_BACKENDS: usize = 4096;
/// Longest latency recorded, in ns; longer ones count as this.
const LONGEST_NS: u64 = 60_000_000_000;

/// Histogram of latencies, in ns.
pub type Latency = Histogram<u64>;

/// Creates an empty histogram of fixed size: three digits, from 1 ns to 60 s.
///
/// # Errors
/// Never, with these bounds.
pub fn latency() -> Result<Latency, CreationError> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3)
}

/// The backends that a worker has seen.
#[derive(Debug, Default)]
pub struct Backends {
    numbers: HashMap<BackendKey, BackendNumber>,
    /// Packets of each backend, indexed by its number minus 1.
    packets: Vec<(BackendKey, u64)>,
}

impl Backends {
    fn new() -> Self {
        Self {
            numbers: HashMap::with_capacity(MAX_BACKENDS),
            packets: Vec::with_capacity(MAX_BACKENDS),
        }
    }

    /// Counts a packet for `key`. Returns the number of that backend.
    #[inline]
    fn count(&mut self, key: BackendKey) -> BackendNumber {
        let number = self.numbers.get(&key).copied().unwrap_or_else(|| self.add(key));
        if let Some((_, packets)) = self.packets.get_mut(usize::from(number) - 1) {
            *packets += 1;
        }
        number
    }

    #[cold]
    fn add(&mut self, key: BackendKey) -> BackendNumber {
        if self.packets.len() < MAX_BACKENDS {
            self.packets.push((key, 0));
        }
        let number = BackendNumber::try_from(self.packets.len()).unwrap_or(BackendNumber::MAX);
        if self.numbers.len() < MAX_BACKENDS {
            self.numbers.insert(key, number);
        }
        number
    }

    /// Returns the backend with a number, and its packets.
    pub fn get(&self, number: BackendNumber) -> Option<&(BackendKey, u64)> {
        self.packets.get(usize::from(number).checked_sub(1)?)
    }

    /// Returns all backends with their packets.
    pub fn iter(&self) -> impl Iterator<Item = &(BackendKey, u64)> {
        self.packets.iter()
    }

    fn begin(&mut self) {
        self.packets.iter_mut().for_each(|(_, packets)| *packets = 0);
    }
}

/// Counts of the receiving side that the trackers do not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JudgeCounts {
    /// Packets that cannot be parsed, or are of another layout than the run's.
    pub unreadable: u64,
    /// Packets of an earlier trial.
    pub stale: u64,
}

/// Evaluates the packets that arrive at one worker.
#[derive(Debug)]
pub struct Judge {
    layout: Layout,
    traffic: Traffic,
    target: Address,
    target_port: u16,
    /// Whether backends reply.
    answers: bool,
    board: Arc<Board>,
    run: u16,
    /// Packets that arrived at backends, or were echoed by servers other than the generator.
    pub requests: Tracker,
    /// Packets that arrived at clients.
    pub replies: Option<Tracker>,
    /// Packets of each backend.
    pub backends: Backends,
    /// Time from the intended sending of a request to its arrival.
    pub latency: Latency,
    /// Time from the intended sending of a request to the arrival of its reply.
    pub round_trip: Latency,
    /// Packets that are in none of the above.
    pub counts: JudgeCounts,
}

impl Judge {
    /// Creates the receiving side of one worker.
    ///
    /// # Errors
    /// Those of [`latency`].
    pub fn new(settings: &Settings, board: Arc<Board>) -> Result<Self, CreationError> {
        Ok(Self {
            layout: settings.layout,
            traffic: settings.traffic,
            target: settings.target.ip().into(),
            target_port: settings.target.port(),
            answers: settings.replies,
            board,
            run: 0,
            requests: Tracker::new(settings.flows),
            replies: settings.replies.then(|| Tracker::new(settings.flows)),
            backends: Backends::new(),
            latency: latency()?,
            round_trip: latency()?,
            counts: JudgeCounts::default(),
        })
    }

    /// Resets the counts, for the trial `run`.
    pub fn begin(&mut self, run: u16) {
        self.run = run;
        self.requests.begin();
        if let Some(replies) = &mut self.replies {
            replies.begin();
        }
        self.backends.begin();
        self.latency.reset();
        self.round_trip.reset();
        self.counts = JudgeCounts::default();
    }

    /// Evaluates a packet of `len` bytes that arrived at `now`, in ns since the generator's start;
    /// `frame` is its first frame. Returns true if it has become a reply, to be sent out of the NIC
    /// on which it arrived.
    #[inline]
    #[must_use]
    pub fn arrive(&mut self, frame: &mut [u8], len: usize, now: u64) -> bool {
        let Some(arrival) = arrival::read(frame, self.layout) else {
            self.counts.unreadable += 1;
            return false;
        };
        if let Found::Whole(signature) = arrival.signature
            && signature.run != self.run
        {
            self.counts.stale += 1;
            return false;
        }
        if arrival.reply {
            self.reply(len, &arrival, now);
            false
        } else {
            self.request(frame, len, &arrival, now)
        }
    }

    fn request(&mut self, frame: &mut [u8], len: usize, arrival: &Arrival, now: u64) -> bool {
        // A server other than the generator has sent our own bytes back.
        let echoed = arrival.source == self.target && arrival.source_port == self.target_port;
        let backend = if echoed { 0 } else { self.backends.count(arrival.to) };
        let flow = note(&mut self.requests, &mut self.latency, arrival, backend, len, now);
        if echoed || !self.answers {
            return false;
        }
        if self.traffic == Traffic::Tcp && !wants_answer(arrival.segment.flags) {
            return false;
        }
        let payload = payload_len(len, self.layout);
        // With DSR the backend has the VIP's address, and its replies bypass the balancer.
        if arrival.to.address == self.target {
            let place = arrival.segment.sequence.wrapping_sub(client_start(flow));
            self.answered(flow, place, payload, arrival.segment.flags);
            return false;
        }
        let offset = server_start(flow).wrapping_sub(client_start(flow));
        let segment = server_segment(arrival.segment, payload, offset);
        arrival::answer(frame, self.layout, arrival.segment, segment)
    }

    fn reply(&mut self, len: usize, arrival: &Arrival, now: u64) {
        let Some(replies) = &mut self.replies else { return };
        let flow = note(replies, &mut self.round_trip, arrival, 0, len, now);
        let place = arrival.segment.sequence.wrapping_sub(server_start(flow));
        self.answered(flow, place, payload_len(len, self.layout), arrival.segment.flags);
    }

    /// Delivers the server's reply to the client: `payload` bytes from `place` in its stream.
    fn answered(&mut self, flow: u32, place: u32, payload: u32, flags_of_segment: u8) {
        if self.traffic != Traffic::Tcp {
            return;
        }
        let kind = flags_of_segment & (flags::SYN | flags::FIN);
        self.board.record_received(flow, place.wrapping_add(payload) + u32::from(kind != 0));
        match kind {
            flags::SYN => self.board.advance(flow, State::SynSent, State::Established),
            flags::FIN => self.board.advance(flow, State::FinSent, State::Closed),
            _ => false,
        };
    }
}

/// Counts a packet, and records its latency if the signature has the time. Returns the flow number.
#[inline]
fn note(
    tracker: &mut Tracker,
    latency: &mut Latency,
    arrival: &Arrival,
    backend: BackendNumber,
    len: usize,
    now: u64,
) -> u32 {
    match arrival.signature {
        Found::Whole(signature) => {
            tracker.note(signature.flow, Sequence::Whole(signature.sequence), backend, len);
            latency.saturating_record(now.saturating_sub(signature.time));
            signature.flow
        }
        Found::Short { flow } => {
            tracker.note(flow, Sequence::Low(arrival.urgent), backend, len);
            flow
        }
    }
}

#[inline]
fn payload_len(packet: usize, layout: Layout) -> u32 {
    u32::try_from(packet.saturating_sub(layout.payload())).unwrap_or(0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::super::packet::tests::{assert_checksums, common};
    use super::super::packet::{Segment, Template};
    use super::super::settings::Size;
    use super::super::settings::tests::request;
    use super::super::signature::Signature;
    use super::super::tuple::Source;
    use super::*;

    struct Rig {
        judge: Judge,
        template: Template,
        board: Arc<Board>,
    }

    impl Rig {
        fn new(traffic: Traffic, replies: bool) -> Self {
            let mut request = request();
            (request.traffic, request.flows, request.replies) = (traffic, 16, replies);
            request.target = "192.0.2.10:4433".parse().unwrap();
            request.size = Some(Size::Fixed(100));
            let settings = Settings::check(request).unwrap();
            let board = Arc::new(Board::new(16));
            let mut judge = Judge::new(&settings, Arc::clone(&board)).unwrap();
            judge.begin(7);
            let template = Template::new(&common(false, settings.layout.tcp), 100).unwrap();
            Self { judge, template, board }
        }

        fn arrive(&mut self, packet: &mut [u8], now: u64) -> bool {
            self.judge.arrive(packet, packet.len(), now)
        }

        /// Builds a packet as the client sends it.
        fn packet(&self, flow: u32, sequence: u32, flags: u8) -> Vec<u8> {
            let mut bytes = self.template.bytes().to_vec();
            let signature = Signature { flow, sequence, run: 7, time: 1000 };
            let segment = Segment { sequence: client_start(flow), acknowledgement: 0, flags };
            let source = Source { tail: 0xc612_8001, port: 1024 };
            self.template.write(&mut bytes, source, segment, &signature);
            bytes
        }
    }

    /// Rewrites a packet as NAT does: another destination address, with a patched checksum.
    fn translated(mut packet: Vec<u8>, backend: u8, tcp: bool) -> Vec<u8> {
        let side = crate::wire::ip::Side::Destination;
        let address = Address::from_v4([198, 18, 2, backend]);
        let delta = crate::wire::ip::rewrite_v4(&mut packet[14..], side, address).unwrap();
        let protocol = if tcp { crate::net::Protocol::Tcp } else { crate::net::Protocol::Udp };
        let segment = &mut packet[34..];
        assert!(crate::wire::transport::rewrite(protocol, segment, side, 8080, delta));
        packet
    }

    #[test]
    fn latency_is_counted_from_the_intended_time() {
        let mut rig = Rig::new(Traffic::Udp, false);
        let mut packet = rig.packet(3, 0, 0);
        assert!(!rig.arrive(&mut packet, 51_000));
        assert_eq!((rig.judge.latency.len(), rig.judge.latency.max() / 100), (1, 500));
        assert_eq!(rig.judge.requests.counts().received, 1);
    }

    #[test]
    fn a_flow_at_two_backends_is_seen_by_mac_and_by_address() {
        let mut rig = Rig::new(Traffic::Udp, false);
        for (sequence, backend) in [(0, 11), (1, 11), (2, 12)] {
            let mut packet = translated(rig.packet(1, sequence, 0), backend, false);
            assert!(!rig.arrive(&mut packet, 2000));
        }
        assert_eq!(rig.judge.requests.counts().violations, 1, "by address");
        for (sequence, mac) in [(0, 1), (1, 1), (2, 2)] {
            let mut packet = rig.packet(2, sequence, 0);
            packet[5] = mac;
            assert!(!rig.arrive(&mut packet, 2000));
        }
        assert_eq!(rig.judge.requests.counts().violations, 2, "by MAC");
        let packets: Vec<u64> = rig.judge.backends.iter().map(|(_, packets)| *packets).collect();
        assert_eq!(packets, [2, 1, 2, 1]);
    }

    #[test]
    fn packets_of_another_trial_and_strangers_do_not_count() {
        let mut rig = Rig::new(Traffic::Udp, false);
        let mut packet = rig.packet(1, 0, 0);
        rig.judge.begin(8);
        assert!(!rig.arrive(&mut packet, 2000));
        assert!(!rig.arrive(&mut [0; 60], 2000));
        assert_eq!(rig.judge.counts, JudgeCounts { unreadable: 1, stale: 1 });
        assert_eq!(rig.judge.requests.counts().received, 0);
    }

    #[test]
    fn a_nat_backend_answers_through_the_balancer() {
        for traffic in [Traffic::Udp, Traffic::Tcp] {
            let tcp = traffic == Traffic::Tcp;
            let mut rig = Rig::new(traffic, true);
            rig.board.set(5, State::SynSent);
            let mut packet = translated(rig.packet(5, 0, flags::SYN), 11, tcp);
            assert!(rig.arrive(&mut packet, 3000), "an answer");
            assert_checksums(&packet);
            assert_eq!(packet[26..30], [198, 18, 2, 11], "from the backend's address");
            assert_eq!(rig.board.state(5), State::SynSent, "not received yet");
            assert!(!rig.arrive(&mut packet, 9000), "at the client");
            let replies = rig.judge.replies.as_ref().unwrap().counts();
            assert_eq!((replies.received, rig.judge.round_trip.len()), (1, 1));
            if tcp {
                assert_eq!((rig.board.state(5), rig.board.received(5)), (State::Established, 43));
            }
        }
    }

    #[test]
    fn a_dsr_backend_answers_past_the_balancer() {
        let mut rig = Rig::new(Traffic::Tcp, true);
        rig.board.set(5, State::SynSent);
        let mut syn = rig.packet(5, 0, flags::SYN);
        assert!(!rig.arrive(&mut syn, 3000));
        assert_eq!(rig.board.state(5), State::Established);
        rig.board.set(5, State::FinSent);
        let mut fin = rig.packet(5, 1, flags::FIN | flags::ACK);
        assert!(!rig.arrive(&mut fin, 3000));
        assert_eq!(rig.board.state(5), State::Closed);
    }

    #[test]
    fn an_echo_of_another_server_is_received_without_a_backend() {
        let mut rig = Rig::new(Traffic::Udp, false);
        let mut packet = rig.packet(1, 0, 0);
        packet[26..30].copy_from_slice(&[192, 0, 2, 10]);
        packet[34..36].copy_from_slice(&4433_u16.to_be_bytes());
        assert!(!rig.arrive(&mut packet, 2000));
        assert_eq!(rig.judge.requests.counts().received, 1);
        assert_eq!(rig.judge.backends.iter().count(), 0);
    }
}
