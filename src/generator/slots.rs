//! State of the flows at the client side.
//!
//! A *slot* holds one of the concurrent flows. A flow that ends makes room for the next one in its
//! slot, whose number is larger by the number of slots. So a flow number gives both flow and slot.
//!
//! ```text
//!          SYN            SYN-ACK arrives         FIN           FIN-ACK arrives     last ACK
//!   New ---------> SynSent -----------> Established ---> FinSent --------------> Closed ---> New
//!                   |  ^                                  |                          (next flow)
//!                   +--+ again, after 200 ms              +--> New, given up after 200 ms
//! ```
//!
//! The owner of a slot advances it when it sends. The worker that receives the reply, perhaps
//! another one, advances it by a compare-and-swap on the [`Board`]. UDP and SYN-only flows need no
//! board.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::draw::mix;

/// State of a TCP client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing has been sent.
    New,
    /// SYN sent.
    SynSent,
    /// SYN-ACK received.
    Established,
    /// FIN sent.
    FinSent,
    /// The server's FIN-ACK received; the last ACK is not sent yet.
    Closed,
}

impl State {
    const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            0 => Self::New,
            1 => Self::SynSent,
            2 => Self::Established,
            3 => Self::FinSent,
            _ => Self::Closed,
        }
    }
}

/// TCP states of all slots, shared by all workers.
#[derive(Debug)]
pub struct Board {
    /// Flow number << 32 | state.
    states: Box<[AtomicU64]>,
    /// Bytes of the server's stream that have arrived, its SYN and FIN included.
    received: Box<[AtomicU32]>,
}

impl Board {
    /// Creates a board with this number of slots.
    pub fn new(slots: u32) -> Self {
        let states = (0..u64::from(slots)).map(|number| AtomicU64::new(number << 32)).collect();
        Self { states, received: (0..slots).map(|_| AtomicU32::new(0)).collect() }
    }

    fn index(&self, flow: u32) -> usize {
        flow as usize % self.states.len().max(1)
    }

    /// Returns the state of a flow; `New` for a flow that its slot has not reached or has left.
    #[inline]
    pub fn state(&self, flow: u32) -> State {
        // Relaxed, here and below: a state publishes nothing but itself.
        let word = self.states.get(self.index(flow)).map_or(0, |word| word.load(Ordering::Relaxed));
        if word >> 32 == u64::from(flow) { State::from_bits(word) } else { State::New }
    }

    /// Sets the state of a flow in a slot of the caller.
    #[inline]
    pub fn set(&self, flow: u32, state: State) {
        let index = self.index(flow);
        if let Some(word) = self.states.get(index) {
            word.store(u64::from(flow) << 32 | state as u64, Ordering::Relaxed);
        }
        if state == State::New
            && let Some(received) = self.received.get(index)
        {
            received.store(0, Ordering::Relaxed);
        }
    }

    /// Advances a flow if it is in the state `from`. Returns whether it was.
    #[inline]
    pub fn advance(&self, flow: u32, from: State, to: State) -> bool {
        let word = |state: State| u64::from(flow) << 32 | state as u64;
        self.states.get(self.index(flow)).is_some_and(|place| {
            place
                .compare_exchange(word(from), word(to), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Records that the server's stream has reached `bytes`.
    #[inline]
    pub fn record_received(&self, flow: u32, bytes: u32) {
        if let Some(received) = self.received.get(self.index(flow)) {
            received.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    /// Returns the bytes of the server's stream that have arrived.
    #[inline]
    pub fn received(&self, flow: u32) -> u32 {
        self.received.get(self.index(flow)).map_or(0, |bytes| bytes.load(Ordering::Relaxed))
    }
}

/// Returns the client's initial sequence number of a flow.
#[inline]
pub const fn client_start(flow: u32) -> u32 {
    (mix(flow as u64) >> 32) as u32
}

/// Returns the server's initial sequence number of a flow.
#[inline]
pub const fn server_start(flow: u32) -> u32 {
    (mix(flow as u64 | 1 << 32) >> 32) as u32
}

/// State of a slot that only its owner uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Number of the flow in the slot.
    pub flow: u32,
    /// Sequence number of the flow's next packet.
    pub sequence: u32,
    /// Bytes sent by the client, SYN and FIN included.
    pub sent: u32,
    /// Whether the slot is in the list of those that wait for a reply.
    pub waiting: bool,
    /// Deadline of the reply, in ms since the generator's start.
    pub deadline_ms: u32,
}

impl Slot {
    /// Creates a slot with its first flow.
    pub const fn new(flow: u32) -> Self {
        Self { flow, sequence: 0, sent: 0, waiting: false, deadline_ms: 0 }
    }

    /// Puts the next flow into the slot; `slots` is the number of slots.
    #[inline]
    pub fn renew(&mut self, slots: u32) {
        *self = Self { waiting: self.waiting, ..Self::new(self.flow.wrapping_add(slots)) };
    }

    /// Returns the sequence number of the packet that is sent now.
    #[inline]
    pub fn next_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_answer_moves_a_flow_on() {
        let board = Board::new(4);
        assert_eq!((0..4).map(|flow| board.state(flow)).collect::<Vec<_>>(), [State::New; 4]);
        board.set(6, State::SynSent);
        assert!(!board.advance(2, State::SynSent, State::Established), "an earlier flow");
        assert!(!board.advance(10, State::SynSent, State::Established), "a later flow");
        assert!(!board.advance(6, State::FinSent, State::Closed), "another state");
        assert!(board.advance(6, State::SynSent, State::Established));
        assert!(!board.advance(6, State::SynSent, State::Established), "twice");
        assert_eq!((board.state(6), board.state(2)), (State::Established, State::New));
    }

    #[test]
    fn every_state_survives_the_board() {
        let board = Board::new(1);
        for state in [State::New, State::SynSent, State::Established, State::FinSent, State::Closed]
        {
            board.set(u32::MAX, state);
            assert_eq!(board.state(u32::MAX), state);
        }
    }

    #[test]
    fn a_new_flow_has_received_nothing() {
        let board = Board::new(2);
        board.record_received(1, 100);
        board.record_received(1, 40);
        assert_eq!((board.received(1), board.received(0)), (100, 0));
        board.set(3, State::New);
        assert_eq!(board.received(3), 0);
    }

    #[test]
    fn a_slot_counts_its_packets_and_is_renewed() {
        let mut slot = Slot::new(5);
        assert_eq!((slot.next_sequence(), slot.next_sequence()), (0, 1));
        (slot.sent, slot.waiting) = (99, true);
        slot.renew(10);
        assert_eq!(slot, Slot { waiting: true, ..Slot::new(15) });
    }
}
