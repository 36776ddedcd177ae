//! Client side of a worker: chooses the flow that sends next, and the packet that it sends.

use std::collections::VecDeque;
use std::sync::Arc;

use super::draw::Draw;
use super::pace::Pacer;
use super::packet::{Segment, flags};
use super::settings::{Settings, Traffic};
use super::slots::{Board, Slot, State, client_start, server_start};

/// Time-out of the reply to a SYN or FIN, in ms. Short, so that a lost handshake does not keep a
/// flow out of a short run.
const ANSWER_MS: u32 = 200;
/// Slots tried for one packet before it is withheld, since the others wait for replies.
const TRIES: u32 = 8;
/// Waiting slots examined for one packet.
const LOOKS: u32 = 2;
/// Flags of a data segment (ACK and PSH): the server replies to it, unlike to a bare ACK.
const DATA: u8 = flags::ACK | 0x08;
/// Flags of the last segment of a client that has received the server's FIN.
const LAST: u8 = flags::ACK;

/// Returns whether the server replies to a segment with these flags.
#[inline]
pub const fn wants_answer(flags_of_segment: u8) -> bool {
    flags_of_segment & (flags::SYN | flags::FIN | 0x08) != 0
}

/// A packet to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    /// Flow number.
    pub flow: u32,
    /// Sequence number of the packet in its flow.
    pub sequence: u32,
    /// TCP fields.
    pub segment: Segment,
}

/// Counts of the client side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCounts {
    /// Flows that began: the first ones, and those that replaced others.
    pub flows_opened: u64,
    /// TCP flows whose FIN was answered.
    pub flows_closed: u64,
    /// SYNs retransmitted for want of a reply.
    pub retransmissions: u64,
    /// TCP flows whose FIN was not answered.
    pub given_up: u64,
    /// Packets that were due and not sent, because all flows waited for the end of a handshake.
    pub withheld: u64,
}

impl ClientCounts {
    /// Adds the counts of another worker.
    pub fn add(&mut self, other: &Self) {
        self.flows_opened += other.flows_opened;
        self.flows_closed += other.flows_closed;
        self.retransmissions += other.retransmissions;
        self.given_up += other.given_up;
        self.withheld += other.withheld;
    }
}

/// The clients of one worker: every `workers`-th slot.
#[derive(Debug)]
pub struct Client {
    traffic: Traffic,
    board: Arc<Board>,
    slots: Vec<Slot>,
    /// Number of slots of all workers.
    all: u32,
    draw: Draw,
    /// Slots that wait for a reply, each once; never grows beyond its capacity.
    waiting: VecDeque<u32>,
    renewals: Pacer,
    renewed: u32,
    closing: bool,
    closed: u32,
    counts: ClientCounts,
}

impl Client {
    /// Creates the clients of worker `index`.
    pub fn new(settings: &Settings, board: Arc<Board>, index: u32) -> Self {
        let (all, step) = (settings.flows, settings.workers.max(1));
        let slots: Vec<Slot> = (index..all).step_by(step as usize).map(Slot::new).collect();
        let own = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let tcp = settings.traffic == Traffic::Tcp;
        Self {
            traffic: settings.traffic,
            board,
            all,
            draw: Draw::new(settings.distribution, own, index, step, settings.seed),
            waiting: VecDeque::with_capacity(if tcp { slots.len() } else { 0 }),
            slots,
            renewals: Pacer::never(),
            renewed: 0,
            closing: false,
            closed: 0,
            counts: ClientCounts::default(),
        }
    }

    /// Resets the counts, and replaces flows at the pace of `renewals`. Existing flows stay.
    pub fn begin(&mut self, renewals: Pacer) {
        self.renewals = renewals;
        self.counts = ClientCounts::default();
    }

    /// Only closes flows from now on.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Returns whether there is nothing left to close.
    pub fn is_closed(&self) -> bool {
        self.closed as usize >= self.slots.len() && self.waiting.is_empty()
    }

    /// Returns the counts since [`begin`](Self::begin).
    pub fn counts(&self) -> &ClientCounts {
        &self.counts
    }

    /// Returns the next packet, which will have `payload` bytes; `None` if all flows wait for
    /// replies.
    #[inline]
    pub fn next(&mut self, now_ns: u64, payload: u32) -> Option<Outgoing> {
        if self.traffic == Traffic::Tcp {
            return self.next_segment(now_ns, payload);
        }
        let index = match self.due_renewal(now_ns) {
            Some(index) => {
                let all = self.all;
                self.slots.get_mut(index as usize)?.renew(all);
                index
            }
            None => self.draw.draw(),
        };
        let slot = self.slots.get_mut(index as usize)?;
        let (flow, sequence) = (slot.flow, slot.next_sequence());
        self.counts.flows_opened += u64::from(sequence == 0);
        let segment = match self.traffic {
            Traffic::Syn => {
                let sequence = client_start(flow);
                Segment { sequence, acknowledgement: 0, flags: flags::SYN }
            }
            _ => Segment::default(),
        };
        Some(Outgoing { flow, sequence, segment })
    }

    /// Returns the slot whose flow is to be replaced now, in turn; `None` if none is due.
    #[inline]
    fn due_renewal(&mut self, now: u64) -> Option<u32> {
        if self.renewals.due(now, 1) == 0 {
            return None;
        }
        self.renewals.take(now);
        Some(self.next_in_turn())
    }

    fn next_in_turn(&mut self) -> u32 {
        let index = self.renewed;
        self.renewed = if (index as usize) + 1 < self.slots.len() { index + 1 } else { 0 };
        index
    }

    fn next_segment(&mut self, now_ns: u64, payload: u32) -> Option<Outgoing> {
        let now_ms = u32::try_from(now_ns / 1_000_000).unwrap_or(u32::MAX);
        if let Some(outgoing) = self.look_at_waiting(now_ms, payload) {
            return Some(outgoing);
        }
        if self.closing {
            return self.close_one(now_ms);
        }
        if let Some(outgoing) = self.renew_one(now_ns, now_ms) {
            return Some(outgoing);
        }
        for _ in 0..TRIES {
            let index = self.draw.draw();
            match self.state(index)? {
                State::New if !self.is_waiting(index) => return self.syn(index, now_ms, payload),
                State::Established => return self.data(index, payload),
                _ => {}
            }
        }
        self.counts.withheld += 1;
        None
    }

    /// Ends the next established flow in turn, if one is due to be replaced.
    fn renew_one(&mut self, now_ns: u64, now_ms: u32) -> Option<Outgoing> {
        if self.renewals.due(now_ns, 1) == 0 {
            return None;
        }
        for _ in 0..TRIES {
            let index = self.next_in_turn();
            if self.state(index) == Some(State::Established) {
                self.renewals.take(now_ns);
                return self.fin(index, now_ms);
            }
        }
        None
    }

    fn close_one(&mut self, now_ms: u32) -> Option<Outgoing> {
        for _ in 0..TRIES * LOOKS {
            let index = self.closed;
            let state = self.state(index)?;
            self.closed += 1;
            if state == State::Established {
                return self.fin(index, now_ms);
            }
        }
        None
    }

    fn state(&self, index: u32) -> Option<State> {
        self.slots.get(index as usize).map(|slot| self.board.state(slot.flow))
    }

    fn is_waiting(&self, index: u32) -> bool {
        self.slots.get(index as usize).is_some_and(|slot| slot.waiting)
    }

    /// Takes slots from the front of the list, and puts back those that are to wait longer.
    fn look_at_waiting(&mut self, now_ms: u32, payload: u32) -> Option<Outgoing> {
        for _ in 0..LOOKS {
            let index = self.waiting.pop_front()?;
            let all = self.all;
            let state = self.state(index)?;
            let slot = self.slots.get_mut(index as usize)?;
            slot.waiting = false;
            let overdue = now_ms >= slot.deadline_ms;
            match state {
                State::Established => {}
                State::New if self.closing => {}
                State::New => return self.syn(index, now_ms, payload),
                State::SynSent if overdue && !self.closing => {
                    self.counts.retransmissions += 1;
                    return self.syn(index, now_ms, payload);
                }
                State::SynSent if overdue => {}
                State::FinSent if overdue => {
                    self.counts.given_up += 1;
                    slot.renew(all);
                    self.board.set(slot.flow, State::New);
                    self.wait(index, now_ms);
                }
                State::Closed => return self.last_ack(index, now_ms),
                State::SynSent | State::FinSent => self.wait_on(index),
            }
        }
        None
    }

    /// Appends the slot to the list, with a new deadline.
    fn wait(&mut self, index: u32, now_ms: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.deadline_ms = now_ms.saturating_add(ANSWER_MS);
        }
        self.wait_on(index);
    }

    /// Appends the slot to the list, unless it is there already. So the list never grows beyond its
    /// capacity.
    fn wait_on(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize)
            && !slot.waiting
        {
            slot.waiting = true;
            self.waiting.push_back(index);
        }
    }

    fn syn(&mut self, index: u32, now_ms: u32, payload: u32) -> Option<Outgoing> {
        let slot = self.slots.get_mut(index as usize)?;
        let flow = slot.flow;
        // With data, as a client of TCP Fast Open sends it (RFC 7413).
        slot.sent = 1 + payload;
        let sequence = slot.next_sequence();
        self.counts.flows_opened += u64::from(sequence == 0);
        self.board.set(flow, State::SynSent);
        self.wait(index, now_ms);
        let start = client_start(flow);
        let segment = Segment { sequence: start, acknowledgement: 0, flags: flags::SYN };
        Some(Outgoing { flow, sequence, segment })
    }

    fn data(&mut self, index: u32, payload: u32) -> Option<Outgoing> {
        let outgoing = self.segment(index, DATA)?;
        let slot = self.slots.get_mut(index as usize)?;
        slot.sent = slot.sent.wrapping_add(payload);
        Some(outgoing)
    }

    fn fin(&mut self, index: u32, now_ms: u32) -> Option<Outgoing> {
        let outgoing = self.segment(index, flags::FIN | flags::ACK)?;
        self.board.set(outgoing.flow, State::FinSent);
        self.wait(index, now_ms);
        Some(outgoing)
    }

    /// Resends the bytes of the FIN without the FIN: a spurious retransmission, which carries the
    /// acknowledgement of the server's FIN and our signature. Then puts the next flow into the
    /// slot.
    fn last_ack(&mut self, index: u32, now_ms: u32) -> Option<Outgoing> {
        let outgoing = self.segment(index, LAST)?;
        let all = self.all;
        let slot = self.slots.get_mut(index as usize)?;
        slot.renew(all);
        self.counts.flows_closed += 1;
        self.board.set(slot.flow, State::New);
        if !self.closing {
            self.wait(index, now_ms);
        }
        Some(outgoing)
    }

    /// Returns a segment at the client's position in its stream.
    fn segment(&mut self, index: u32, flags: u8) -> Option<Outgoing> {
        let slot = self.slots.get_mut(index as usize)?;
        let (flow, sequence) = (slot.flow, slot.next_sequence());
        let segment = Segment {
            sequence: client_start(flow).wrapping_add(slot.sent),
            acknowledgement: server_start(flow).wrapping_add(self.board.received(flow)),
            flags,
        };
        Some(Outgoing { flow, sequence, segment })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::draw::Distribution;
    use super::super::settings::tests::request;
    use super::*;

    const PAYLOAD: u32 = 10;
    const MS: u64 = 1_000_000;

    fn client(traffic: Traffic, flows: u64, new_flows: f64) -> (Client, Arc<Board>) {
        let mut request = request();
        (request.traffic, request.flows) = (traffic, flows);
        request.distribution = Distribution::Sequential;
        let settings = Settings::check(request).unwrap();
        let board = Arc::new(Board::new(settings.flows));
        let mut client = Client::new(&settings, Arc::clone(&board), 0);
        client.begin(match new_flows {
            rate if rate > 0.0 => Pacer::new(Some(rate), nanos_between(rate)),
            _ => Pacer::never(),
        });
        (client, board)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small, positive")]
    fn nanos_between(rate: f64) -> u64 {
        (1e9 / rate) as u64
    }

    /// Plays the balancer and the server behind it.
    fn server(board: &Board, sent: &Outgoing, payload: u32) {
        let offset = sent.segment.sequence.wrapping_sub(client_start(sent.flow)) + payload;
        let kind = sent.segment.flags & (flags::SYN | flags::FIN);
        board.record_received(sent.flow, offset + u32::from(kind != 0));
        if kind == flags::SYN {
            board.advance(sent.flow, State::SynSent, State::Established);
        } else if kind == flags::FIN {
            board.advance(sent.flow, State::FinSent, State::Closed);
        }
    }

    #[test]
    fn a_connection_from_syn_to_the_last_ack() {
        let (mut client, board) = client(Traffic::Tcp, 1, 0.0);
        let mut next = |answered: bool| {
            let sent = client.next(0, PAYLOAD);
            if let (Some(sent), true) = (&sent, answered) {
                server(&board, sent, PAYLOAD);
            }
            sent.map(|sent| {
                let place = sent.segment.sequence.wrapping_sub(client_start(0));
                let acked = sent.segment.acknowledgement.wrapping_sub(server_start(0));
                (sent.sequence, sent.segment.flags, place, acked)
            })
        };
        let ack = |acked| acked;
        let syn = next(true).unwrap();
        assert_eq!((syn.0, syn.1, syn.2), (0, flags::SYN, 0));
        assert_eq!(next(true), Some((1, DATA, 11, ack(11))));
        assert_eq!(next(false), Some((2, DATA, 21, ack(21))));
        assert_eq!(next(true), Some((3, DATA, 31, ack(21))), "one answer is missing");
        client.close();
        let mut next = || client.next(0, PAYLOAD);
        let fin = next().unwrap();
        assert_eq!((fin.sequence, fin.segment.flags), (4, flags::FIN | flags::ACK));
        assert_eq!(next(), None, "waits for the server's FIN");
        server(&board, &fin, PAYLOAD);
        let last = next().unwrap();
        assert_eq!((last.sequence, last.segment.flags), (5, LAST));
        assert_eq!(last.segment.sequence, fin.segment.sequence);
        assert_eq!(last.segment.acknowledgement.wrapping_sub(server_start(0)), 52, "the FIN too");
        assert_eq!(next(), None);
        assert!(client.is_closed());
        assert_eq!((client.counts.flows_opened, client.counts.flows_closed), (1, 1));
    }

    #[test]
    fn a_syn_without_an_answer_is_sent_again() {
        let (mut client, board) = client(Traffic::Tcp, 1, 0.0);
        let first = client.next(0, PAYLOAD).unwrap();
        assert_eq!(client.next(199 * MS, PAYLOAD), None);
        let again = client.next(200 * MS, PAYLOAD).unwrap();
        assert_eq!((again.segment, again.sequence), (first.segment, 1));
        server(&board, &again, PAYLOAD);
        assert_eq!(client.next(201 * MS, PAYLOAD).unwrap().segment.flags, DATA);
        assert_eq!((client.counts.retransmissions, client.counts.withheld), (1, 1));
    }

    #[test]
    fn renewed_connections_are_closed_and_opened() {
        let (mut client, board) = client(Traffic::Tcp, 4, 100.0);
        let mut kinds = [0_u32; 4];
        for packet in 0..10_000 {
            // 1000 packets per second.
            let Some(sent) = client.next(packet * MS, PAYLOAD) else { continue };
            server(&board, &sent, PAYLOAD);
            let kind = match sent.segment.flags {
                flags::SYN => 0,
                DATA => 1,
                LAST => 2,
                _ => 3,
            };
            kinds.get_mut(kind).map(|count| *count += 1).unwrap();
        }
        let [syns, data, last, fins] = kinds;
        assert!((990..=1001).contains(&fins), "100 a second for 10 s: {fins}");
        assert!(last.abs_diff(fins) <= 1 && syns.abs_diff(fins + 4) <= 1, "{kinds:?}");
        assert!(data > 6900, "{kinds:?}");
        let counts = client.counts();
        assert_eq!((counts.flows_opened, counts.flows_closed), (u64::from(syns), u64::from(last)));
        assert_eq!((counts.retransmissions, counts.given_up), (0, 0));
    }

    #[test]
    fn a_fin_without_an_answer_is_given_up() {
        let (mut client, board) = client(Traffic::Tcp, 1, 1.0);
        let syn = client.next(0, PAYLOAD).unwrap();
        server(&board, &syn, PAYLOAD);
        let fin = client.next(1000 * MS, PAYLOAD).unwrap();
        assert_eq!(fin.segment.flags, flags::FIN | flags::ACK);
        assert_eq!(client.next(1100 * MS, PAYLOAD), None);
        let next = client.next(1200 * MS, PAYLOAD).unwrap();
        assert_eq!((next.flow, next.segment.flags), (1, flags::SYN), "the slot's next flow");
        assert_eq!(client.counts.given_up, 1);
    }

    #[test]
    fn udp_flows_are_replaced_by_the_clock() {
        let (mut client, _) = client(Traffic::Udp, 10, 100.0);
        let mut flows = std::collections::HashSet::new();
        for packet in 0..1000 {
            let sent = client.next(packet * MS, PAYLOAD).unwrap();
            flows.insert(sent.flow);
        }
        assert_eq!(flows.len(), 109, "10, and one every 10 ms after that");
        assert_eq!(client.counts.flows_opened, 109);
    }

    #[test]
    fn syns_have_a_place_of_their_own_for_each_flow() {
        let (mut client, _) = client(Traffic::Syn, 3, 0.0);
        for flow in [0, 1, 2, 0] {
            let sent = client.next(0, PAYLOAD).unwrap();
            let expected =
                Segment { sequence: client_start(flow), acknowledgement: 0, flags: flags::SYN };
            assert_eq!((sent.flow, sent.segment), (flow, expected));
        }
    }

    #[test]
    fn workers_have_disjoint_slots() {
        let mut request = request();
        (request.flows, request.workers) = (10, 3);
        request.distribution = Distribution::Sequential;
        let settings = Settings::check(request).unwrap();
        let board = Arc::new(Board::new(10));
        let mut seen = Vec::new();
        for index in 0..3 {
            let mut client = Client::new(&settings, Arc::clone(&board), index);
            let own = client.slots.len();
            seen.extend((0..own).map(|_| client.next(0, PAYLOAD).unwrap().flow));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }
}
