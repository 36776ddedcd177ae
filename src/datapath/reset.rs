//! Slow path, reset: resets both ends of a terminated TCP flow.
//!
//! ```text
//! client --segment SEQ s, ACK a--> flow is terminated: not forwarded (flow_reset)
//!        <--RST SEQ a------------- | ----RST SEQ s, ACK a--> backend
//!
//! silent client <--probe---------- | (the sweep)
//!               ---ACK s, a------> flow is terminated: as above
//! ```
//!
//! A RST is accepted if its SEQ is exactly the one that its receiver expects (RFC 5961 3.2). The
//! segment that triggers the resets has that number: its ACK field for the end that sent it (RFC
//! 9293 3.10.7.1), its SEQ for the other end. A *probe* makes a silent end send such a segment: it
//! is an empty segment outside the end's window, which must be answered with an ACK (RFC 9293
//! 3.10.7.4, first check). So no state is kept per flow, and packets of other flows cost nothing.
//!
//! Segments wait in a [`TxBacklog`] until the end of the poll. They were never received, so they
//! have counters of their own (`resets_sent`, `probes_sent`, `handshakes_sent`).
//!
//! Writes: frames from the pool, TX rings. Cost: at most [`BACKLOG`] segments and as many fragments
//! per poll.

use arrayvec::ArrayVec;

use super::batch::{Direction, Packet, TcpFlags};
use super::context::Context;
use super::queues::Queues;
use super::segment::{Content, Kind, Segment, proxy_shift};
use super::splice;
use super::target::Terminated;
use crate::net::{FlowKey, NicIndex};
use crate::stats::{Drop, LocalReply, WorkerStats};
use crate::wire::headers::Headers;
use crate::wire::ip::is_header_sum_right;
use crate::wire::tcp;
use crate::xdp::umem::{Frame, FramePool};

/// Maximum number of queued segments; more are not sent. An end that gets no reset gets one after
/// its next packet or the next probe.
pub const BACKLOG: usize = 128;
/// Segments per flow: one for each end.
const PER_FLOW: usize = 2;

/// Packets that a worker sends besides those that it received.
#[derive(Debug, Default)]
pub struct TxBacklog {
    /// Resets, probes and handshakes.
    segments: ArrayVec<Segment, BACKLOG>,
    /// Further frames of packets.
    frames: ArrayVec<(Further, NicIndex, Frame), BACKLOG>,
}

/// A frame that leaves because of a packet, besides the packet's own.
#[derive(Debug, Clone, Copy)]
enum Further {
    /// Later fragment of a packet that was too long ([`fragment_out`](super::fragment_out)).
    Fragment,
    /// Copy of a packet for other backends that are asked ([`ask`](super::ask)).
    Ask,
}

impl TxBacklog {
    /// Whether both ends of another flow can be probed.
    pub fn has_room(&self) -> bool {
        self.segments.remaining_capacity() >= PER_FLOW
    }

    /// Number of fragments for which there is room.
    pub const fn room_for_fragments(&self) -> usize {
        self.frames.remaining_capacity()
    }

    /// Queues a rewritten fragment that leaves by `nic`.
    pub fn push_fragment(&mut self, nic: NicIndex, frame: Frame, pool: &mut FramePool) {
        self.push_frame((Further::Fragment, nic, frame), pool);
    }

    /// Queues a copy of a packet, as an ask that leaves by `nic`.
    pub fn push_ask(&mut self, nic: NicIndex, frame: Frame, pool: &mut FramePool) {
        self.push_frame((Further::Ask, nic, frame), pool);
    }

    fn push_frame(&mut self, further: (Further, NicIndex, Frame), pool: &mut FramePool) {
        if let Err(error) = self.frames.try_push(further) {
            pool.push(error.element().2);
        }
    }

    /// Replies to a packet of a terminated flow with one RST for each end; returns the drop reason.
    /// A RST causes no other RST (RFC 9293 3.10.7.1), and a segment without ACK belongs to no
    /// connection.
    #[cold]
    pub fn answer(
        &mut self,
        packet: &mut Packet,
        terminated: &Terminated<'_>,
        context: &Context<'_>,
    ) -> Drop {
        packet.vip = terminated.target.backend.vip;
        packet.backend = terminated.target.backend.id.index;
        if !is_header_sum_right(packet.network()) {
            return Drop::BadIpv4Checksum;
        }
        let flags = packet.layout.flags;
        if flags.any(TcpFlags::ACK)
            && !flags.any(TcpFlags::RST)
            && let Some((sequence, acknowledgment)) = tcp::numbers(packet.segment())
        {
            let reply = packet.direction.is_reply();
            let flow = packet.flow.key();
            let spliced = splice::find_on(&packet.flow, terminated.target.backend, context);
            let numbers = spliced.as_ref().and_then(splice::shift);
            // All numbers are the client's from here on.
            let shift = proxy_shift(&terminated.target, context);
            let back = shift.filter(|_| reply);
            let acknowledgment = back.map_or(acknowledgment, |shift| shift.back(acknowledgment));
            let sequence = match (numbers, spliced) {
                (Some(numbers), _) if reply => numbers.back(sequence),
                // Before the backend's answer, the client has heard of the cookie only.
                (None, Some(splice)) if reply => splice.cookie.wrapping_add(1),
                _ => sequence,
            };
            let kind = Kind::Reset;
            let back = Content { sequence: acknowledgment, acknowledgment: None, kind };
            let onwards = Content { sequence, acknowledgment: Some(acknowledgment), kind };
            let (client, backend) = if reply { (onwards, back) } else { (back, onwards) };
            let forth = |number| numbers.map_or(number, |numbers| numbers.forth(number));
            let sequence = shift.map_or(backend.sequence, |shift| shift.forth(backend.sequence));
            let acknowledgment = backend.acknowledgment.map(forth);
            let backend = Content { sequence, acknowledgment, ..backend };
            self.push(Some(Segment::to_client(&flow, &terminated.client, client, context)));
            self.push(Segment::to_backend(&flow, &terminated.target, backend, context));
        }
        Drop::FlowReset
    }

    /// Probes the ends of a silent flow; only the client where the backend's replies do not pass
    /// this box.
    #[cold]
    pub fn probe(&mut self, flow: &FlowKey, terminated: &Terminated<'_>, context: &Context<'_>) {
        // Any numbers outside the window work, which nearly all are; each probe has others.
        let sequence = context.now.0.wrapping_mul(0x9e37_79b1);
        let content = Content { sequence, acknowledgment: Some(!sequence), kind: Kind::Probe };
        self.push(Some(Segment::to_client(flow, &terminated.client, content, context)));
        if terminated.target.backend.forward.translates() {
            self.push(Segment::to_backend(flow, &terminated.target, content, context));
        }
    }

    /// Queues a segment, if there is one and room for it.
    pub(super) fn push(&mut self, segment: Option<Segment>) {
        if let Some(segment) = segment {
            // A full backlog drops the segment: see `BACKLOG`.
            let _ = self.segments.try_push(segment);
        }
    }

    /// Queues all segments and further frames on the TX rings, as far as there are free frames and room.
    #[inline]
    pub fn send(&mut self, queues: &mut Queues, pool: &mut FramePool, context: &Context<'_>) {
        if !self.segments.is_empty() {
            self.send_segments(queues, pool, context);
        }
        if !self.frames.is_empty() {
            self.send_frames(queues, pool, context.stats);
        }
    }

    #[cold]
    fn send_frames(&mut self, queues: &mut Queues, pool: &mut FramePool, stats: &WorkerStats) {
        for (further, nic, frame) in self.frames.drain(..) {
            let counter = match further {
                Further::Fragment => &stats.fragments_sent,
                Further::Ask => &stats.asks_sent,
            };
            match queues.enqueue_one(nic, frame) {
                Ok(()) => counter.add(1),
                Err(frame) => pool.push(frame),
            }
        }
    }

    #[cold]
    fn send_segments(&mut self, queues: &mut Queues, pool: &mut FramePool, context: &Context<'_>) {
        let stats = context.stats;
        for segment in self.segments.drain(..) {
            let Some(mut frame) = pool.pop() else { continue };
            if !segment.write(&mut frame, context.macs) {
                pool.push(frame);
                continue;
            }
            let counter = match segment.content.kind {
                Kind::Reset => &stats.resets_sent,
                Kind::Probe => &stats.probes_sent,
                Kind::Syn { .. } | Kind::Ack { .. } => &stats.handshakes_sent,
            };
            match queues.enqueue_one(segment.hop.nic, frame) {
                Ok(()) => counter.add(1),
                Err(frame) => pool.push(frame),
            }
        }
    }
}

/// Turns a segment without a backend into a RST that its sender accepts (RFC 9293 3.10.7.1), in its
/// own frame. Returns false if none may be sent.
#[cold]
pub(super) fn refuse(packet: &mut Packet, context: &Context<'_>, pool: &mut FramePool) -> bool {
    let flags = packet.layout.flags;
    let kind = Kind::Reset;
    let refusal = if flags.any(TcpFlags::RST) {
        None
    } else if flags.any(TcpFlags::ACK) {
        let numbers = tcp::numbers(packet.segment());
        numbers.map(|(_, sequence)| Content { sequence, acknowledgment: None, kind })
    } else {
        let end = next_sequence(packet);
        end.map(|end| Content { sequence: 0, acknowledgment: Some(end), kind })
    };
    refusal.is_some_and(|content| answer_with(packet, content, LocalReply::Rejected, context, pool))
}

/// Replaces a client's packet by the answer to it. Returns false, with the packet unchanged, if that
/// fails.
pub(super) fn answer_with(
    packet: &mut Packet,
    content: Content,
    reply: LocalReply,
    context: &Context<'_>,
    pool: &mut FramePool,
) -> bool {
    if !Segment::back(packet, content, context).replace(packet, pool, context.macs) {
        return false;
    }
    packet.nic = context.nic;
    packet.direction = Direction::LocalReply(reply);
    true
}

/// Returns the sequence number after a TCP packet.
fn next_sequence(packet: &Packet) -> Option<u32> {
    let headers = Headers::of(packet.network()).ok()?;
    let segment = packet.segment();
    let payload = headers.end.checked_sub(headers.transport + tcp::data_offset(segment)?)?;
    tcp::next_sequence(segment, u32::try_from(payload).ok()?)
}
