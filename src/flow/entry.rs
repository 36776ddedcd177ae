//! Contents of a flow table entry besides the tuple: four words, packed as they are stored.

use std::fmt;

use super::qinq;
use super::snat_pool::SnatPort;
use crate::net::vlan::{Outer, Tags};
use crate::net::{BackendId, BackendIndex, FlowKey, Forward, MAX_NICS, NextHop, NicIndex, VipId};
use crate::sync::AtomicU64;
use crate::units::Ticks;
use crate::xdp::memory::Line;

crate::shareable_struct! {
    /// An IPv4 entry: hop, both addresses, tail, backend word. Two to a cache line.
    #[derive(Debug)]
    #[repr(C, align(32))]
    pub(super) struct EntryV4 {
        pub(super) words: [AtomicU64; 4],
    }
}

/// An IPv6 entry: hop, client address (2 words), VIP address (2), tail, backend word, and an unused
/// word.
pub(super) type EntryV6 = Line;

/// State of a flow: bits of the entry's `state` field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State(pub u8);

impl State {
    /// TCP: the client has completed the handshake.
    pub const ESTABLISHED: Self = Self(1);
    /// UDP and [`Protocol::Any`](crate::net::Protocol::Any): no packets were seen but the first,
    /// and those that follow it at once. The bit is that of [`State::ESTABLISHED`] in TCP: a flow
    /// in steady state has no bit set, so that one comparison suffices.
    pub const FIRST: Self = Self(1);
    /// A FIN of the client was seen.
    pub const FIN_CLIENT: Self = Self(2);
    /// A FIN of the backend was seen.
    pub const FIN_BACKEND: Self = Self(4);
    /// A RST was seen, and no packet of the client since.
    pub const RST: Self = Self(8);
    /// Not a pin, but a remote entry: names the worker that has the pin.
    pub const REMOTE: Self = Self(16);
    /// The flow is terminated: senders receive a RST. Never cleared.
    pub const TERMINATED: Self = Self(32);
    /// A SYN-ACK of the backend was seen, and no packet of the client since. UDP: the first datagram
    /// got a reply, and the flow has not continued. In a terminated flow the bit counts probes.
    pub const ANSWERED: Self = Self(64);
    /// Only one end of the flow was seen. TCP: established by a client that anyone may have forged.
    /// UDP: continued by the backend alone. In a terminated flow the bit counts probes.
    pub const UNPROVEN: Self = Self(128);
    /// TCP: the flow had lost its pin, and no proof of it was seen since.
    pub const PICKED_UP: Self = Self::ANSWERED.with(Self::UNPROVEN);
    /// The lower of the two bits that count probes.
    const PROBE: u8 = 64;
    /// Highest count of probes.
    pub const MAX_PROBES: u8 = 3;

    /// Returns whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Returns whether a TCP flow in this state has ended: by a RST or both FINs; where replies are
    /// not seen, by the client's FIN, until a later packet revokes it.
    #[inline]
    pub const fn is_closing(self, forward: Forward) -> bool {
        let fins = if forward.translates() {
            Self::FIN_CLIENT.with(Self::FIN_BACKEND)
        } else {
            Self::FIN_CLIENT
        };
        self.has(Self::RST) || self.has(fins)
    }

    /// Returns the state with [`State::TERMINATED`] set.
    #[must_use]
    pub const fn cut(self) -> Self {
        if self.has(Self::TERMINATED) {
            self
        } else {
            self.without(Self::ANSWERED.with(Self::UNPROVEN)).with(Self::TERMINATED)
        }
    }

    /// Returns whether a TCP flow in this state must prove itself by the client's sequence numbers,
    /// where replies are not seen.
    #[inline]
    pub const fn is_doubted(self) -> bool {
        !self.has(Self::ESTABLISHED) || self.has(Self::UNPROVEN)
    }

    /// Returns the number of probes sent to a terminated flow.
    #[inline]
    pub const fn probes(self) -> u8 {
        self.0 / Self::PROBE
    }

    /// Counts one more probe, up to [`State::MAX_PROBES`].
    #[must_use]
    pub const fn with_probe(self) -> Self {
        if self.probes() < Self::MAX_PROBES { Self(self.0 + Self::PROBE) } else { self }
    }

    /// Sets `bits`.
    #[inline]
    #[must_use]
    pub const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    /// Clears `bits`.
    #[inline]
    #[must_use]
    pub const fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }
}

/// The part of a flow's entry that every packet needs: three words.
///
/// ```text
/// hop           MAC:48 nic:4 vlan:12                    VLAN 0: untagged (802.1Q 9.6)
///               MAC:48 15:4 pair:12                     QinQ: number of the pair of tags, from 1
///               snat port:32 0:16 15:4 0:12             full NAT: return hop is in the SNAT entry
/// tail          (tuple:32) state:8 owner:8 stamp:8 (tuple:8)    the tuple's bits are 0 here
/// backend_word  backend:16 generation:16 last seen:32           ticks
/// ```
///
/// Copied as it is stored; fields are decoded on access, as most packets need few of them.
#[derive(Clone, Copy)]
pub struct FlowState {
    pub(super) hop: u64,
    pub(super) tail: u64,
    pub(super) backend_word: u64,
}

pub(super) const STATE_SHIFT: u32 = 24;
pub(super) const STATE: u64 = 0xff << STATE_SHIFT;
const OWNER_SHIFT: u32 = 16;
const OWNER: u64 = 0xff << OWNER_SHIFT;
pub(super) const STAMP_SHIFT: u32 = 8;
/// NIC number in `hop` words that name a SNAT port or a pair of tags: no NIC has it.
const SNAT: u64 = 0xf << 12;
/// The bits of NIC and VLAN.
const LINK_BITS: u64 = 0xffff;
const _: () = assert!(MAX_NICS <= 15);
/// Changes whenever the table writes the entry; managed by the table.
pub(super) const STAMP: u64 = 0xff << STAMP_SHIFT;

#[expect(clippy::cast_possible_truncation, reason = "fields are cut out of words")]
impl FlowState {
    /// The backend and its generation.
    #[inline]
    pub const fn backend(&self) -> BackendId {
        BackendId {
            index: BackendIndex((self.backend_word >> 48) as u16),
            generation: (self.backend_word >> 32) as u16,
        }
    }

    /// State of the flow.
    #[inline]
    pub const fn state(&self) -> State {
        State((self.tail >> STATE_SHIFT) as u8)
    }

    /// The worker that has the pin; in a remote entry, another worker.
    #[inline]
    pub const fn owner(&self) -> u8 {
        (self.tail >> OWNER_SHIFT) as u8
    }

    /// Next hop towards the client, from which its packets come. Not valid for a flow with a SNAT
    /// port.
    #[inline]
    pub fn hop(&self) -> NextHop {
        ReturnHop(self.hop).next_hop()
    }

    /// Full NAT: the flow's SNAT port, whose entry has the return hop.
    #[inline]
    pub const fn snat_port(&self) -> Option<SnatPort> {
        if self.hop & LINK_BITS == SNAT { Some(SnatPort((self.hop >> 32) as u32)) } else { None }
    }

    /// Returns whether the client's packets come from `hop`.
    #[inline]
    pub fn comes_from(&self, hop: &NextHop) -> bool {
        self.hop == encode_hop(hop)
    }

    /// Time of the flow's last packet.
    #[inline]
    pub const fn last_seen(&self) -> Ticks {
        Ticks(self.backend_word as u32)
    }

    /// Replaces the state.
    #[inline]
    #[must_use]
    pub const fn with_state(self, state: State) -> Self {
        Self { tail: self.tail & !STATE | (state.0 as u64) << STATE_SHIFT, ..self }
    }

    /// Replaces the return hop.
    #[inline]
    #[must_use]
    pub fn with_hop(self, hop: &NextHop) -> Self {
        Self { hop: encode_hop(hop), ..self }
    }

    /// Replaces the return hop by a SNAT port.
    #[must_use]
    pub const fn with_snat_port(self, id: SnatPort) -> Self {
        Self { hop: (id.0 as u64) << 32 | SNAT, ..self }
    }

    /// Sets the time of the last packet.
    #[inline]
    #[must_use]
    pub const fn with_last_seen(self, now: Ticks) -> Self {
        Self { backend_word: self.backend_word & !0xffff_ffff | now.0 as u64, ..self }
    }
}

/// Compares all but the stamp: the number of writes to an entry does not matter.
impl PartialEq for FlowState {
    fn eq(&self, other: &Self) -> bool {
        let same_tail = (self.tail ^ other.tail) & !STAMP == 0;
        self.hop == other.hop && same_tail && self.backend_word == other.backend_word
    }
}

impl Eq for FlowState {}

impl fmt::Debug for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowState")
            .field("backend", &self.backend())
            .field("state", &self.state())
            .field("owner", &self.owner())
            .field("hop", &self.hop())
            .field("snat_port", &self.snat_port())
            .field("last_seen", &self.last_seen())
            .finish()
    }
}

/// All that is known of a flow: the words that packets need, and those that only control and the
/// flow's end need.
///
/// ```text
/// created  created:32 vip:16 0:1 rule:3 (version:12)         ticks
///          sequence:32 vip:16 1:1 rule:3 (version:12)        until the flow has proven itself
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Backend, state and return hop.
    pub flow_state: FlowState,
    /// The VIP.
    pub vip: VipId,
    /// Time at which the flow was pinned; or, while it has a `sequence`, of its last packet.
    pub created: Ticks,
    /// TCP, where replies are not seen, until the flow has proven itself: the sequence number that
    /// its later ones are compared with.
    pub sequence: Option<u32>,
    /// Rule by which the backend was chosen.
    pub rule: Rule,
}

/// Rule by which a flow's backend was chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// The VIP's scheduler.
    #[default]
    Scheduler,
    /// The VIP's scheduler, for a flow whose pin was lost.
    Midflow,
    /// The client's earlier backend.
    Sticky,
    /// The least loaded backend, for a client that returns after a long time.
    Freest,
    /// The backend that a QUIC connection ID names.
    QuicCid,
    /// The backend that has said that it has the flow.
    Asked,
}

impl Rule {
    /// Returns the name used in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Midflow => "midflow",
            Self::Sticky => "sticky",
            Self::Freest => "freest",
            Self::QuicCid => "quic_cid",
            Self::Asked => "asked",
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::Midflow,
            2 => Self::Sticky,
            3 => Self::Freest,
            4 => Self::QuicCid,
            5 => Self::Asked,
            // No other value is written.
            _ => Self::Scheduler,
        }
    }
}

const RULE_SHIFT: u32 = 12;
/// Mark of a `created` word that has a sequence number.
const SEQUENCE: u64 = 1 << 15;
/// The bits of `created` that count writes; managed by the table.
pub(super) const VERSION: u64 = 0xfff;

impl Pin {
    /// Creates the pin of a flow of `vip` that worker `owner` pins to `backend` at `now`.
    pub fn new(
        vip: VipId,
        backend: BackendId,
        state: State,
        owner: u8,
        hop: &NextHop,
        now: Ticks,
    ) -> Self {
        let flow_state = FlowState {
            hop: encode_hop(hop),
            tail: u64::from(state.0) << STATE_SHIFT | u64::from(owner) << OWNER_SHIFT,
            backend_word: u64::from(backend.index.0) << 48
                | u64::from(backend.generation) << 32
                | u64::from(now.0),
        };
        Self { flow_state, vip, created: now, sequence: None, rule: Rule::default() }
    }

    /// Sets the time of the last packet.
    #[must_use]
    pub const fn with_last_seen(self, now: Ticks) -> Self {
        Self { flow_state: self.flow_state.with_last_seen(now), ..self }
    }

    /// Replaces the return hop by a SNAT port.
    #[must_use]
    pub const fn with_snat_port(self, id: SnatPort) -> Self {
        Self { flow_state: self.flow_state.with_snat_port(id), ..self }
    }

    /// Sets the worker that has the pin, and the return hop: for a pin that moves to another table.
    #[must_use]
    pub fn owned_by(self, owner: u8, hop: &NextHop) -> Self {
        let tail = self.flow_state.tail & !OWNER | u64::from(owner) << OWNER_SHIFT;
        Self { flow_state: FlowState { tail, ..self.flow_state }.with_hop(hop), ..self }
    }

    /// Sets the rule.
    #[must_use]
    pub const fn by(self, rule: Rule) -> Self {
        Self { rule, ..self }
    }

    /// Sets the sequence number that later ones are compared with.
    #[must_use]
    pub const fn with_sequence(self, sequence: Option<u32>) -> Self {
        Self { sequence, ..self }
    }

    /// Returns the `created` word without its version.
    pub(super) fn created(&self) -> u64 {
        let rest = u64::from(self.vip.0) << 16 | (self.rule as u64) << RULE_SHIFT;
        with_sequence(rest, self.sequence, self.created)
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub(super) const fn from_words(flow_state: FlowState, created: u64) -> Self {
        let sequence = sequence_of(created);
        Self {
            flow_state,
            vip: VipId((created >> 16) as u16),
            created: if sequence.is_some() {
                flow_state.last_seen()
            } else {
                Ticks((created >> 32) as u32)
            },
            sequence,
            rule: Rule::from_bits(created >> RULE_SHIFT),
        }
    }
}

/// Returns the sequence number in a `created` word.
pub(super) const fn sequence_of(created: u64) -> Option<u32> {
    if created & SEQUENCE != 0 { Some((created >> 32) as u32) } else { None }
}

/// Replaces the first field of a `created` word by the sequence number or, without one, the time.
pub(super) const fn with_sequence(word: u64, sequence: Option<u32>, created: Ticks) -> u64 {
    let rest = word & (0xffff_ffff & !SEQUENCE);
    match sequence {
        Some(sequence) => (sequence as u64) << 32 | SEQUENCE | rest,
        None => (created.0 as u64) << 32 | rest,
    }
}

#[inline]
pub(super) fn encode_hop(hop: &NextHop) -> u64 {
    let [a, b, c, d, e, f] = hop.mac;
    let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    let return_hop = ReturnHop::new(mac, hop.nic, hop.vlan);
    // Callers that need the return hop have checked before that its tags have a number.
    return_hop.unwrap_or(ReturnHop(mac << 16 | u64::from(hop.nic.0 & 0xf) << 12)).0
}

/// Next hop towards a client, packed as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnHop(pub(super) u64);

impl ReturnHop {
    /// Packs a MAC address (as a number of 48 bits), a NIC and tags; priorities are ignored. `None`
    /// for two tags when no number is left for the pair.
    #[inline(always)]
    pub fn new(mac: u64, nic: NicIndex, tags: Option<Tags>) -> Option<Self> {
        let link = match tags {
            Some(tags) if tags.outer != Outer::None => SNAT | u64::from(qinq::number(nic, tags)?.0),
            one => {
                let vlan = one.map_or(0, |tags| tags.inner & 0xfff);
                u64::from(nic.0 & 0xf) << 12 | u64::from(vlan)
            }
        };
        Some(Self(mac << 16 | link))
    }

    /// Packs a next hop whose tags have a number, or need none.
    pub fn of(hop: &NextHop) -> Self {
        Self(encode_hop(hop))
    }

    /// Unpacks the next hop.
    #[inline]
    pub fn next_hop(self) -> NextHop {
        let [a, b, c, d, e, f, _, _] = self.0.to_be_bytes();
        let mac = [a, b, c, d, e, f];
        let vlan = (self.0 & 0xfff) as u16;
        if self.0 & SNAT == SNAT
            && let Some((port, tags)) = qinq::pair(qinq::Number(vlan))
        {
            return NextHop { nic: port, mac, vlan: Some(tags) };
        }
        let port = NicIndex((self.0 >> 12 & 0xf) as u8);
        NextHop { nic: port, mac, vlan: (vlan != 0).then(|| vlan.into()) }
    }
}

/// Copy of a flow table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// The five-tuple.
    pub key: FlowKey,
    /// The entry's contents.
    pub pin: Pin,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_they_went_in() {
        let backend = BackendId { index: BackendIndex(0xfffe), generation: 0xabcd };
        let pair = Tags { inner: 1, outer: Outer::Customer(4094) };
        for vlan in [None, Some(1.into()), Some(4095.into()), Some(Tags::two(7, 0)), Some(pair)] {
            let hop = NextHop { nic: NicIndex(14), mac: [0xff, 2, 3, 4, 5, 6], vlan };
            let pin = Pin::new(VipId(0x1234), backend, State::RST, 250, &hop, Ticks(u32::MAX));
            let flow_state = pin.flow_state.with_last_seen(Ticks(7)).with_state(State::FIN_CLIENT);
            assert_eq!((flow_state.backend(), flow_state.owner()), (backend, 250));
            assert_eq!((flow_state.state(), flow_state.hop()), (State::FIN_CLIENT, hop));
            assert_eq!(flow_state.last_seen(), Ticks(7));
            assert!(flow_state.comes_from(&hop));
            assert!(!flow_state.comes_from(&NextHop { vlan: Some(9.into()), ..hop }));
            assert_eq!(
                (flow_state.snat_port(), flow_state.with_snat_port(SnatPort(3)).hop().vlan),
                (None, None)
            );
            let tags = vlan.map(|tags| Tags { inner: tags.inner | 0xf000, ..tags });
            let return_hop = ReturnHop::new(0xff02_0304_0506, hop.nic, tags);
            assert_eq!(return_hop, Some(ReturnHop(flow_state.hop)));
            for rule in [Rule::Scheduler, Rule::Midflow, Rule::Sticky, Rule::Freest, Rule::QuicCid]
            {
                let pin = pin.by(rule);
                assert_eq!(Pin::from_words(pin.flow_state, pin.created() | VERSION), pin);
            }
        }
    }

    #[test]
    fn probes_do_not_change_the_other_bits() {
        let mut state = State::ESTABLISHED.with(State::TERMINATED);
        for probes in [0, 1, 2, 3, 3] {
            assert_eq!((state.probes(), state.0 & 63), (probes, 33));
            state = state.with_probe();
        }
    }

    #[test]
    fn closing_is_a_reset_or_every_fin_that_can_be_seen() {
        let fins = State::FIN_CLIENT.with(State::FIN_BACKEND);
        for (state, nat, dsr) in [
            (State::ESTABLISHED, false, false),
            (State::RST, true, true),
            (State::FIN_CLIENT, false, true),
            (State::FIN_BACKEND, false, false),
            (fins, true, true),
            (State::RST.without(State::RST), false, false),
        ] {
            assert_eq!(state.is_closing(Forward::Nat), nat, "{state:?}");
            assert_eq!(state.is_closing(Forward::Dsr), dsr, "{state:?}");
        }
    }
}
