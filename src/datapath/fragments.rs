//! Part of the stage classify: the flow of a fragment.
//!
//! ```text
//! first fragment   has the ports: recorded in the fragment table of all workers, goes on
//! later fragment   found there: goes on with the ports of the first one
//!                  its first one was dropped: dropped
//!                  its first one has not come: parked, and received again when it has
//! ```
//!
//! Fragments go through the stages after parse one at a time ([`detour`](super::detour)), as the
//! outcome of a first fragment decides about later ones in the same batch.
//!
//! Parked fragments stay with the worker that received them, bounded in number and time. A worker
//! reads the fragment table for them only when a first fragment was recorded since its last look.
//!
//! Cost: one comparison per poll, and nothing for packets that are not fragments.

use std::collections::VecDeque;

use super::batch::{HeaderLayout, Packet};
use super::context::Context;
use super::parse::FragmentInfo;
use crate::flow::fragments::{FirstFragment, FragmentLookup, Key, Span};
use crate::forwarding::explain::Wait;
use crate::net::{NicIndex, Tuple};
use crate::stats::Drop;
use crate::units::Ticks;
use crate::wire::checksum::{self, Delta};
use crate::wire::headers::{self, Headers};
use crate::wire::ip::is_header_sum_right;
use crate::xdp::umem::{Frame, FramePool};

/// Maximum number of parked fragments per datagram: 64 KiB on a link of 1280 bytes, with some
/// reserve.
const PER_DATAGRAM: usize = 64;
/// Longest time that a fragment is parked: 2 s. Reordering delays fragments by milliseconds.
pub const PATIENCE: Ticks = Ticks(200);

/// A fragment that waits for its first fragment.
#[derive(Debug)]
struct Parked {
    frame: Frame,
    key: Key,
    /// NIC that received it.
    nic: NicIndex,
    since: Ticks,
    /// The first fragment has come.
    ready: bool,
    /// Number of this fragment, unique among those that this worker has parked.
    ticket: u64,
}

/// Records the outcome of a parked fragment, in a replay.
fn tell(wait: Wait, context: &Context<'_>) {
    if let Some(trace) = context.trace {
        trace.record_wait(wait);
    }
}

/// Drops a parked fragment.
fn give_up(parked: Parked, reason: Drop, context: &Context<'_>, pool: &mut FramePool) {
    pool.push(parked.frame);
    context.stats.fragments_parked.sub(1);
    context.stats.drop_counter(reason).add(1);
    tell(Wait::GivenUp(parked.ticket, reason), context);
}

/// The fragments that a worker has parked.
#[derive(Debug)]
pub struct Fragments {
    /// Parked fragments in order of arrival, up to `limit`; allocated up front.
    parked: VecDeque<Parked>,
    limit: usize,
    /// Generation of the fragment table at the last look.
    looked_at: u64,
    /// Number of fragments parked so far.
    tickets: u64,
}

/// Outcome of a fragment's look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The fragment belongs to the flow with this five-tuple.
    Flow(Tuple),
    /// The fragment is parked; its frame is gone.
    Parked,
}

impl Fragments {
    /// Creates the store of a worker that parks up to `limit` fragments.
    pub fn new(limit: usize) -> Self {
        Self { parked: VecDeque::with_capacity(limit), limit, looked_at: 0, tickets: 0 }
    }

    /// Maximum number of parked fragments.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Finds the flow of a fragment, or parks it. Does not record a first fragment: see [`record`].
    ///
    /// # Errors
    /// The reason for which the fragment is dropped.
    #[cold]
    pub fn flow_of(
        &mut self,
        packet: &mut Packet,
        fragment: &FragmentInfo,
        context: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<Fate, Drop> {
        if !is_header_sum_right(packet.network()) {
            return Err(Drop::BadIpv4Checksum);
        }
        if let Some(head) = fragment.head {
            return Ok(Fate::Flow(fragment.key.tuple(head)));
        }
        match context.shared.fragments.join(&fragment.key, fragment.span, context.now) {
            FragmentLookup::Flow(head) => Ok(Fate::Flow(fragment.key.tuple(head))),
            FragmentLookup::Overlap => Err(Drop::FragmentOverlap),
            FragmentLookup::Denied => Err(Drop::FragmentFirstDropped),
            FragmentLookup::Unknown => self.park(packet, fragment.key, context, pool),
        }
    }

    /// Parks a later fragment. If the store is full, the oldest fragment is dropped.
    fn park(
        &mut self,
        packet: &mut Packet,
        key: Key,
        context: &Context<'_>,
        pool: &mut FramePool,
    ) -> Result<Fate, Drop> {
        if self.limit == 0 {
            return Err(Drop::FragmentNoFirst);
        }
        if self.parked.iter().filter(|parked| parked.key == key).count() >= PER_DATAGRAM {
            return Err(Drop::FragmentNoRoom);
        }
        if self.parked.len() >= self.limit
            && let Some(oldest) = self.parked.pop_front()
        {
            give_up(oldest, Drop::FragmentNoRoom, context, pool);
        }
        if let Some(frame) = packet.frame.take() {
            let Context { nic, now, .. } = *context;
            let ticket = self.tickets;
            self.tickets += 1;
            self.parked.push_back(Parked { frame, key, nic, since: now, ready: false, ticket });
            context.stats.fragments_parked.add(1);
            tell(Wait::Begins(ticket), context);
        }
        // The fragment is received again later, with another record.
        packet.dropped = true;
        Ok(Fate::Parked)
    }

    /// Marks, before a poll, parked fragments that can be received again, and drops those that have
    /// waited for more than [`PATIENCE`].
    #[inline]
    pub fn look(&mut self, context: &Context<'_>, pool: &mut FramePool) {
        if !self.parked.is_empty() {
            self.look_at_all(context, pool);
        }
    }

    #[cold]
    fn look_at_all(&mut self, context: &Context<'_>, pool: &mut FramePool) {
        let (datagrams, now) = (&context.shared.fragments, context.now);
        while let Some(oldest) = self.parked.front()
            && now.since(oldest.since).0 > PATIENCE.0
            && let Some(oldest) = self.parked.pop_front()
        {
            give_up(oldest, Drop::FragmentNoFirst, context, pool);
        }
        let generation = datagrams.generation();
        if generation != std::mem::replace(&mut self.looked_at, generation) {
            for parked in self.parked.iter_mut().filter(|parked| !parked.ready) {
                parked.ready = datagrams.knows(&parked.key, now);
            }
        }
    }

    /// Moves the marked fragments that arrived on the batch's NIC into the first of `places`;
    /// returns the number moved.
    #[inline]
    pub fn rejoin<'p>(
        &mut self,
        places: &mut impl Iterator<Item = &'p mut Packet>,
        context: &Context<'_>,
    ) -> usize {
        if self.parked.is_empty() { 0 } else { self.rejoin_all(places, context) }
    }

    #[cold]
    fn rejoin_all<'p>(
        &mut self,
        places: &mut impl Iterator<Item = &'p mut Packet>,
        context: &Context<'_>,
    ) -> usize {
        let datagrams = &context.shared.fragments;
        let (mut count, mut index) = (0, 0);
        while let Some(parked) = self.parked.get_mut(index) {
            // A duplicate may have completed the datagram since then: the fragment stays parked.
            parked.ready = parked.ready && datagrams.knows(&parked.key, context.now);
            if !parked.ready || parked.nic != context.nic {
                index += 1;
                continue;
            }
            let Some(place) = places.next() else { break };
            let Some(parked) = self.parked.remove(index) else { break };
            place.frame = Some(parked.frame);
            place.dropped = false;
            context.stats.fragments_parked.sub(1);
            tell(Wait::Ends(parked.ticket), context);
            count += 1;
        }
        count
    }

    /// Whether no fragment is parked.
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Number of frames of the parked fragments.
    pub fn frames(&self, pool: &FramePool) -> usize {
        self.parked.iter().map(|parked| pool.frames_of(&parked.frame)).sum()
    }
}

/// Returns the new identification of a fragment before its source address is translated: two
/// clients behind one full-NAT source, or two backends behind one VIP, may have chosen the same
/// number. `None` if the datagram is not recorded: the fragment keeps its number.
#[cold]
pub fn number(frame: &Frame, layout: &HeaderLayout, context: &Context<'_>) -> Option<u32> {
    context.shared.fragments.number(&key(frame, layout)?)
}

/// Returns the key of the fragment's datagram.
fn key(frame: &Frame, layout: &HeaderLayout) -> Option<Key> {
    let packet = frame.data().get(layout.ip()..)?;
    let headers = Headers::of(packet).ok()?;
    let (source, destination) = headers::ends(packet)?;
    let protocol = if source.is_v4() { headers.protocol } else { 0 };
    let identification = headers.fragment?.identification;
    Some(Key { source, destination, identification, protocol })
}

/// Returns the sender's identification of the fragment's datagram.
#[cold]
pub fn identification(packet: &Packet) -> Option<u32> {
    Some(key(packet.frame.as_ref()?, &packet.layout)?.identification)
}

/// Records a datagram that is fragmented here, so that it gets an identification like a received
/// one. `packet` is now its first fragment; `rest` spans all others. The datagram is complete at
/// once.
#[cold]
pub fn record_cut(packet: &Packet, rest: Span, context: &Context<'_>) {
    let key = packet.frame.as_ref().and_then(|frame| key(frame, &packet.layout));
    let transport = packet.data().get(usize::from(packet.layout.transport)..);
    let ports = transport.and_then(|transport| transport.first_chunk::<4>());
    if let (Some(key), Some(&ports)) = (key, ports) {
        let head = FirstFragment { protocol: packet.flow.protocol(), ports };
        // A record under the same number stays: the sender uses that number twice.
        let _ = context.shared.fragments.record(&key, head, rest.offset, context.now);
        context.shared.fragments.join(&key, rest, context.now);
    }
}

/// Writes the identification `number` into a fragment.
#[cold]
pub fn renumber(frame: &mut Frame, layout: &HeaderLayout, number: u32) {
    let Some(packet) = frame.data_mut().get_mut(layout.ip()..) else { return };
    let Ok(Headers { fragment: Some(fragment), .. }) = Headers::of(packet) else { return };
    if packet.first().is_some_and(|first| first >> 4 == 4) {
        let [.., low0, low1] = number.to_be_bytes();
        let delta = checksum::replace(packet, 4, &[low0, low1], Delta::default());
        let _ = checksum::patch(packet, 10, delta, Delta::default());
    } else {
        let at = fragment.header + 4;
        let _ = checksum::replace(packet, at, &number.to_be_bytes(), Delta::default());
    }
}

/// Records the flow of a first fragment that is for a VIP or from a NAT backend.
///
/// # Errors
/// [`Drop::FragmentOverlap`] if its datagram was recorded with other ports.
#[cold]
pub fn record(fragment: &FragmentInfo, context: &Context<'_>) -> Result<(), Drop> {
    let Some(head) = fragment.head else { return Ok(()) };
    let recorded =
        context.shared.fragments.record(&fragment.key, head, fragment.span.len, context.now);
    recorded.map_err(|_| Drop::FragmentOverlap)
}
