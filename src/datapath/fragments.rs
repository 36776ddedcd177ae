//! Part of the stage classify: which flow is a fragment of?
//!
//! ```text
//! first fragment   has the ports: noted in the datagram table of all workers, goes on
//! later fragment   joins the datagram there, goes on with its ports
//!                  its first one was dropped: dropped
//!                  its first one has not come: parked, and received again when it has
//! ```
//!
//! Fragments go through the stages behind parse one after the other ([`detour`](super::detour)), as what
//! becomes of the first one decides about those behind it in the batch.
//!
//! What is parked stays with the worker that received it, bounded in number and time. A worker looks
//! at the table only when something is parked and some worker has noted a datagram since.
//!
//! Cost: nothing for packets that are no fragments, but one comparison per poll.

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

/// Most parked fragments of one datagram: as many as 64 KiB have on a link of 1280 bytes, and some.
const PER_DATAGRAM: usize = 64;
/// Longest time that a fragment is parked: 2 s. Fragments overtake each other by milliseconds.
pub const PATIENCE: Ticks = Ticks(200);

/// A fragment that waits for its first one.
#[derive(Debug)]
struct Parked {
    frame: Frame,
    key: Key,
    /// Where it came in.
    nic: NicIndex,
    since: Ticks,
    /// The first one has come.
    ready: bool,
    /// Tells it from all others that this worker has parked.
    ticket: u64,
}

/// Records what becomes of a parked fragment, in a replay.
fn tell(wait: Wait, context: &Context<'_>) {
    if let Some(trace) = context.trace {
        trace.note_wait(wait);
    }
}

/// Ends the way of a parked fragment.
fn give_up(parked: Parked, reason: Drop, context: &Context<'_>, pool: &mut FramePool) {
    pool.push(parked.frame);
    context.stats.fragments_parked.sub(1);
    context.stats.drop_counter(reason).add(1);
    tell(Wait::GivenUp(parked.ticket, reason), context);
}

/// The fragments that a worker has parked.
#[derive(Debug)]
pub struct Fragments {
    /// In the order in which they came; never more than `limit`, for which there is room.
    parked: VecDeque<Parked>,
    limit: usize,
    /// The table's generation at the last look.
    looked_at: u64,
    /// How many were parked so far.
    tickets: u64,
}

/// What becomes of a fragment now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is of the flow with this five-tuple.
    Flow(Tuple),
    /// It is parked: its frame is gone.
    Parked,
}

impl Fragments {
    /// For a worker that parks up to `limit` fragments.
    pub fn new(limit: usize) -> Self {
        Self { parked: VecDeque::with_capacity(limit), limit, looked_at: 0, tickets: 0 }
    }

    /// Finds the flow of a fragment, or parks it. A first one is not noted yet: [`record`].
    ///
    /// # Errors
    /// Why it is dropped.
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

    /// Parks a later fragment. The oldest one makes room.
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
        // Its way goes on later, with another record.
        packet.dropped = true;
        Ok(Fate::Parked)
    }

    /// Looks, before a poll, whose first fragment has come, and whose time is over.
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

    /// Puts the fragments that came in by the batch's NIC, and wait no longer, into the first of `places`;
    /// returns how many.
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
            // A double of it may have completed the datagram since: then it waits on, where it is.
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

    /// Whether nothing is parked.
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }

    /// Frames that are parked.
    pub fn frames(&self, pool: &FramePool) -> usize {
        self.parked.iter().map(|parked| pool.frames_of(&parked.frame)).sum()
    }
}

/// The number that a fragment, whose source is about to become another, gets at that: two clients behind
/// one full-NAT source, or two backends behind one VIP, may have chosen the same. `None`: it keeps its
/// own, as its datagram is not known.
#[cold]
pub fn number(frame: &Frame, layout: &HeaderLayout, context: &Context<'_>) -> Option<u32> {
    context.shared.fragments.number(&key(frame, layout)?)
}

/// The datagram that a fragment is of.
fn key(frame: &Frame, layout: &HeaderLayout) -> Option<Key> {
    let packet = frame.data().get(layout.ip()..)?;
    let headers = Headers::of(packet).ok()?;
    let (source, destination) = headers::ends(packet)?;
    let protocol = if source.is_v4() { headers.protocol } else { 0 };
    let identification = headers.fragment?.identification;
    Some(Key { source, destination, identification, protocol })
}

/// The sender's number for the datagram that a fragment is of.
#[cold]
pub fn identification(packet: &Packet) -> Option<u32> {
    Some(key(packet.frame.as_ref()?, &packet.layout)?.identification)
}

/// Notes a datagram that is cut here, of which `packet` is the first fragment by now and `rest` is all
/// others, so that it has a number as if it had come like this. It is complete at once.
#[cold]
pub fn note_cut(packet: &Packet, rest: Span, context: &Context<'_>) {
    let key = packet.frame.as_ref().and_then(|frame| key(frame, &packet.layout));
    let transport = packet.data().get(usize::from(packet.layout.transport)..);
    let ports = transport.and_then(|transport| transport.first_chunk::<4>());
    if let (Some(key), Some(&ports)) = (key, ports) {
        let head = FirstFragment { protocol: packet.flow.protocol(), ports };
        // If the sender uses one number twice at a time, that is the number it has.
        let _ = context.shared.fragments.record(&key, head, rest.offset, context.now);
        context.shared.fragments.join(&key, rest, context.now);
    }
}

/// Gives it that number.
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

/// Notes the flow of a first fragment that is for a VIP, or from a NAT backend.
///
/// # Errors
/// [`Drop::FragmentOverlap`] if its datagram has begun with other ports.
#[cold]
pub fn record(fragment: &FragmentInfo, context: &Context<'_>) -> Result<(), Drop> {
    let Some(head) = fragment.head else { return Ok(()) };
    let recorded =
        context.shared.fragments.record(&fragment.key, head, fragment.span.len, context.now);
    recorded.map_err(|_| Drop::FragmentOverlap)
}
