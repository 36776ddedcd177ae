//! What a flow table keeps of a flow besides its tuple: four words, packed as they are stored.

use std::fmt;
use std::sync::atomic::AtomicU64;

use super::qinq;
use super::snat_pool::SnatPort;
use crate::net::FlowKey;
use crate::net::vlan::{Outer, Tags};
use crate::net::{BackendId, BackendIndex, Forward, MAX_NICS, NextHop, NicIndex, VipId};
use crate::units::Ticks;
use crate::xdp::memory::Line;

crate::shareable_struct! {
    /// An IPv4 flow: hop, both addresses, tail, place. Two to a line.
    #[derive(Debug)]
    #[repr(C, align(32))]
    pub(super) struct EntryV4 {
        pub(super) words: [AtomicU64; 4],
    }
}

/// An IPv6 flow: hop, client's address (2), VIP's address (2), tail, place, and a word that is not
/// used.
pub(super) type EntryV6 = Line;

/// Where a flow is in its life: bits in the entry's `state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State(pub u8);

impl State {
    /// TCP: the client has answered the handshake.
    pub const ESTABLISHED: Self = Self(1);
    /// UDP, and all protocols together: nothing was seen yet but its first packet, and what belongs to
    /// that. The bit is the one that TCP uses for [`State::ESTABLISHED`]: a flow that goes on has no bit
    /// set, so that one comparison tells.
    pub const FIRST: Self = Self(1);
    /// A FIN from the client was seen.
    pub const FIN_CLIENT: Self = Self(2);
    /// A FIN from the backend was seen.
    pub const FIN_BACKEND: Self = Self(4);
    /// A RST was seen, and no packet of the client after it.
    pub const RST: Self = Self(8);
    /// Not a pin: a note of where another worker's pin is.
    pub const REMOTE: Self = Self(16);
    /// The flow is cut: whoever sends is told by a RST. Once so, so for good.
    pub const TERMINATED: Self = Self(32);
    /// The backend was seen to answer the SYN, or the flow had lost its pin, and so was answered before; and
    /// the client was not seen since. In a flow that is cut, the bit counts probes.
    pub const ANSWERED: Self = Self(64);
    /// The least of the two bits that count probes.
    const PROBE: u8 = 64;
    /// Most probes that are counted.
    pub const MAX_PROBES: u8 = 3;

    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// Whether a TCP flow in this state has ended: a RST, or both FINs; where replies are not
    /// seen, the client's FIN, until a later packet takes it back.
    #[inline]
    pub const fn is_closing(self, forward: Forward) -> bool {
        let fins = if forward.translates() {
            Self::FIN_CLIENT.with(Self::FIN_BACKEND)
        } else {
            Self::FIN_CLIENT
        };
        self.has(Self::RST) || self.has(fins)
    }

    /// Cut for good.
    #[must_use]
    pub const fn cut(self) -> Self {
        if self.has(Self::TERMINATED) {
            self
        } else {
            self.without(Self::ANSWERED).with(Self::TERMINATED)
        }
    }

    /// How many probes a flow that is cut was sent.
    #[inline]
    pub const fn probes(self) -> u8 {
        self.0 / Self::PROBE
    }

    /// With one probe more, of [`State::MAX_PROBES`] at most.
    #[must_use]
    pub const fn with_probe(self) -> Self {
        if self.probes() < Self::MAX_PROBES { Self(self.0 + Self::PROBE) } else { self }
    }

    /// With `bits` set.
    #[inline]
    #[must_use]
    pub const fn with(self, bits: Self) -> Self {
        Self(self.0 | bits.0)
    }

    /// With `bits` cleared.
    #[inline]
    #[must_use]
    pub const fn without(self, bits: Self) -> Self {
        Self(self.0 & !bits.0)
    }
}

/// What every packet of a flow wants to know of it: three words of its entry.
///
/// ```text
/// hop    MAC:48 nic:4 vlan:12                         VLAN 0 stands for untagged (802.1Q 9.6)
///        MAC:48 15:4 pair:12                          two tags: their number, from 1 on
///        binding:32 0:16 15:4 0:12                    full NAT: its binding has the way back
/// tail   (tuple:32) state:8 owner:8 stamp:8 (tuple:8) the tuple's bits are 0 here
/// place  backend:16 generation:16 last seen:32        ticks
/// ```
///
/// Copied as it is and taken apart only where a field is wanted: most packets want few of them.
#[derive(Clone, Copy)]
pub struct FlowState {
    pub(super) hop: u64,
    pub(super) tail: u64,
    pub(super) backend_word: u64,
}

pub(super) const STATE_SHIFT: u32 = 24;
pub(super) const STATE: u64 = 0xff << STATE_SHIFT;
const OWNER_SHIFT: u32 = 16;
pub(super) const STAMP_SHIFT: u32 = 8;
/// In a `hop` word that names a binding or a pair of tags: a NIC that there cannot be.
const BOUND: u64 = 0xf << 12;
/// The bits of NIC and VLAN.
const PLACE_BITS: u64 = 0xffff;
const _: () = assert!(MAX_NICS <= 15);
/// Changes whenever an entry is written anew; the table's business.
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

    /// Where the flow is in its life.
    #[inline]
    pub const fn state(&self) -> State {
        State((self.tail >> STATE_SHIFT) as u8)
    }

    /// The worker that has the pin; for an alias, another one.
    #[inline]
    pub const fn owner(&self) -> u8 {
        (self.tail >> OWNER_SHIFT) as u8
    }

    /// Where the client's packets come from, and so where replies go; unless the flow is bound.
    #[inline]
    pub fn hop(&self) -> NextHop {
        ReturnHop(self.hop).next_hop()
    }

    /// Full NAT: what the flow is bound to; its client's way back is there.
    #[inline]
    pub const fn snat_port(&self) -> Option<SnatPort> {
        if self.hop & PLACE_BITS == BOUND { Some(SnatPort((self.hop >> 32) as u32)) } else { None }
    }

    /// Whether the client's packets come from `hop`.
    #[inline]
    pub fn comes_from(&self, hop: &NextHop) -> bool {
        self.hop == encode_hop(hop)
    }

    /// When its last packet came.
    #[inline]
    pub const fn last_seen(&self) -> Ticks {
        Ticks(self.backend_word as u32)
    }

    /// The same with another state.
    #[inline]
    #[must_use]
    pub const fn with_state(self, state: State) -> Self {
        Self { tail: self.tail & !STATE | (state.0 as u64) << STATE_SHIFT, ..self }
    }

    /// The same with another way back.
    #[inline]
    #[must_use]
    pub fn with_hop(self, hop: &NextHop) -> Self {
        Self { hop: encode_hop(hop), ..self }
    }

    /// The same, bound to a source of this box.
    #[must_use]
    pub const fn with_binding(self, id: SnatPort) -> Self {
        Self { hop: (id.0 as u64) << 32 | BOUND, ..self }
    }

    /// The same, seen at `now`.
    #[inline]
    #[must_use]
    pub const fn with_last_seen(self, now: Ticks) -> Self {
        Self { backend_word: self.backend_word & !0xffff_ffff | now.0 as u64, ..self }
    }
}

/// Two are equal if they say the same: how often their entries were written does not matter.
impl PartialEq for FlowState {
    fn eq(&self, other: &Self) -> bool {
        let same_tail = (self.tail ^ other.tail) & !STAMP == 0;
        self.hop == other.hop && same_tail && self.backend_word == other.backend_word
    }
}

impl Eq for FlowState {}

impl fmt::Debug for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Track")
            .field("backend", &self.backend())
            .field("state", &self.state())
            .field("owner", &self.owner())
            .field("hop", &self.hop())
            .field("binding", &self.snat_port())
            .field("last_seen", &self.last_seen())
            .finish()
    }
}

/// All that is known of a flow: what packets want, and what only control and the end of the flow
/// ask for.
///
/// ```text
/// birth  created:32 vip:16 rule:4 (version:12)        ticks
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Where the flow is pinned, where it is in its life, where its client is.
    pub flow_state: FlowState,
    /// The VIP.
    pub vip: VipId,
    /// When it was pinned.
    pub created: Ticks,
    /// By what rule its backend was chosen.
    pub rule: Rule,
}

/// By what rule the backend of a flow was chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// The VIP's scheduler.
    #[default]
    Scheduler,
    /// The same, for a flow whose pin was lost.
    Midflow,
    /// The client had this backend already.
    Sticky,
    /// The client came back after a long time: the least loaded backend.
    Freest,
    /// A QUIC connection id names it.
    QuicCid,
}

impl Rule {
    /// As it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Midflow => "midflow",
            Self::Sticky => "sticky",
            Self::Freest => "freest",
            Self::QuicCid => "quic_cid",
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 0xf {
            1 => Self::Midflow,
            2 => Self::Sticky,
            3 => Self::Freest,
            4 => Self::QuicCid,
            // Nobody writes others.
            _ => Self::Scheduler,
        }
    }
}

const RULE_SHIFT: u32 = 12;
/// The part of `created` that counts writes; the table's business.
pub(super) const VERSION: u64 = 0xfff;

impl Pin {
    /// A flow of `vip` that worker `owner` pins to `backend` now.
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
        Self { flow_state, vip, created: now, rule: Rule::default() }
    }

    /// The same, seen at `now`.
    #[must_use]
    pub const fn with_last_seen(self, now: Ticks) -> Self {
        Self { flow_state: self.flow_state.with_last_seen(now), ..self }
    }

    /// The same, bound to a source of this box.
    #[must_use]
    pub const fn with_binding(self, id: SnatPort) -> Self {
        Self { flow_state: self.flow_state.with_binding(id), ..self }
    }

    /// The same, chosen by `rule`.
    #[must_use]
    pub const fn by(self, rule: Rule) -> Self {
        Self { rule, ..self }
    }

    /// The `created` word, without a version.
    pub(super) fn created(&self) -> u64 {
        u64::from(self.created.0) << 32
            | u64::from(self.vip.0) << 16
            | (self.rule as u64) << RULE_SHIFT
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of a word")]
    pub(super) const fn from_words(flow_state: FlowState, created: u64) -> Self {
        Self {
            flow_state,
            vip: VipId((created >> 16) as u16),
            created: Ticks((created >> 32) as u32),
            rule: Rule::from_bits(created >> RULE_SHIFT),
        }
    }
}

#[inline]
pub(super) fn encode_hop(hop: &NextHop) -> u64 {
    let [a, b, c, d, e, f] = hop.mac;
    let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    let return_hop = ReturnHop::new(mac, hop.nic, hop.vlan);
    // Who needs the way back has looked before whether its tags have a number.
    return_hop.unwrap_or(ReturnHop(mac << 16 | u64::from(hop.nic.0 & 0xf) << 12)).0
}

/// Where a client's packets come from, packed as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReturnHop(pub(super) u64);

impl ReturnHop {
    /// From a MAC address as a number of 48 bits, a NIC, and tags, whose priorities do not count.
    /// `None` if they are two, and there are too many such pairs.
    #[inline(always)]
    pub fn new(mac: u64, port: NicIndex, tags: Option<Tags>) -> Option<Self> {
        let backend_word = match tags {
            Some(tags) if tags.outer != Outer::None => {
                BOUND | u64::from(qinq::number(port, tags)?.0)
            }
            one => {
                let vlan = one.map_or(0, |tags| tags.inner & 0xfff);
                u64::from(port.0 & 0xf) << 12 | u64::from(vlan)
            }
        };
        Some(Self(mac << 16 | backend_word))
    }

    /// Taken apart.
    #[inline]
    pub fn next_hop(self) -> NextHop {
        let [a, b, c, d, e, f, _, _] = self.0.to_be_bytes();
        let mac = [a, b, c, d, e, f];
        let vlan = (self.0 & 0xfff) as u16;
        if self.0 & BOUND == BOUND
            && let Some((port, tags)) = qinq::pair(qinq::Number(vlan))
        {
            return NextHop { nic: port, mac, vlan: Some(tags) };
        }
        let port = NicIndex((self.0 >> 12 & 0xf) as u8);
        NextHop { nic: port, mac, vlan: (vlan != 0).then(|| vlan.into()) }
    }
}

/// A flow as it is copied out of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// The five-tuple.
    pub key: FlowKey,
    /// What is known of it.
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
                (flow_state.snat_port(), flow_state.with_binding(SnatPort(3)).hop().vlan),
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
    fn probes_are_counted_beside_the_other_bits() {
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
