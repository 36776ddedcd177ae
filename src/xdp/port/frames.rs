//! Packets that are longer than a frame: several frames, several descriptors (multi-buffer).
//!
//! ```text
//!  TX and RX ring:  | frame 1, more | frame 2, more | frame 3 |  next packet ...
//!                     '------------ one packet --------------'
//! ```
//!
//! The kernel has it from 6.6 on, for a socket that was bound with
//! [`BindMode::MultiBuffer`](crate::xdp::socket::BindMode). The traffic generator needs it for
//! jumbo frames; the balancer forwards packets of one frame.
//! Source: Documentation/networking/af_xdp.rst, "Multi-Buffer Rx" and "Multi-Buffer Tx".

use arrayvec::ArrayVec;

use super::{Port, SHORTEST};
use crate::xdp::ring::Descriptor;
use crate::xdp::umem::{Frame, FramePool, HEADROOM};

/// Most frames of a packet: 9000 bytes in chunks of 4096 with their headroom.
pub const MAX_FRAMES: usize = 3;

/// A packet: its frames in order, one unless it is longer than a frame.
pub type Frames = ArrayVec<Frame, MAX_FRAMES>;

/// Frames that a packet of `len` bytes takes, of `frame_size` bytes each.
pub const fn frames_for(len: usize, frame_size: u32) -> usize {
    len.div_ceil(frame_size as usize - HEADROOM as usize)
}

/// A copy of `packet`, in as many frames as it takes; `None` if those are more than
/// [`MAX_FRAMES`], or than the pool has.
#[inline]
pub fn copy(pool: &mut FramePool, packet: &[u8]) -> Option<Frames> {
    let mut frames = Frames::new();
    let mut rest = packet;
    while !rest.is_empty() {
        let Some(mut frame) = (if frames.is_full() { None } else { pool.pop() }) else {
            release(pool, frames);
            return None;
        };
        let (part, behind) = rest.split_at(rest.len().min(frame.tailroom()));
        // Always, since it was made to fit.
        let _fits = frame.copy_from(part);
        frames.push(frame);
        rest = behind;
    }
    Some(frames)
}

/// Gives the frames of a packet back.
#[inline]
pub fn release(pool: &mut FramePool, frames: Frames) {
    frames.into_iter().for_each(|frame| pool.push(frame));
}

impl Port {
    /// Queues a packet for [`flush`](Self::flush).
    ///
    /// # Errors
    /// The frames come back, and nothing is queued, when the TX ring has no room for all of them,
    /// there is none, the first is shorter than an Ethernet header, or another is empty. A frame of
    /// another UMEM is lost.
    #[inline]
    pub fn transmit_frames(&mut self, frames: Frames) -> Result<(), Frames> {
        let too_short = frames.first().is_none_or(|frame| frame.len() < SHORTEST)
            || frames.iter().any(Frame::is_empty);
        #[expect(clippy::cast_possible_truncation, reason = "at most 3")]
        let count = frames.len() as u32;
        if too_short || self.rings.tx.free(count) < count {
            return Err(frames);
        }
        for (left, frame) in (0..count).rev().zip(frames) {
            #[expect(clippy::cast_possible_truncation, reason = "a frame is at most 4096 bytes")]
            let len = frame.len() as u32;
            let options = if left > 0 { libc::XDP_PKT_CONTD } else { 0 };
            match self.memory.give(frame, self.transmit) {
                Ok(address) => {
                    let pushed = self.rings.tx.push(Descriptor { address, len, options });
                    debug_assert!(pushed, "room was looked for");
                    self.transmitting += 1;
                    self.queued += 1;
                }
                // Of no use to this port, ever; as in `refill`.
                Err(_foreign) => self.bad_descriptors += 1,
            }
        }
        Ok(())
    }

    /// Takes received packets of up to `max` frames together and shows each to `each`; then the
    /// rest of a packet that `max` would have cut. One of more than [`MAX_FRAMES`] frames is shown
    /// in pieces, of which the first has the headers.
    ///
    /// Cost: as [`receive`](Self::receive), and 56 bytes moved per packet.
    #[inline]
    pub fn receive_frames(&mut self, max: u32, mut each: impl FnMut(Frames)) {
        let (memory, holder) = (self.memory, self.receive);
        let (mut received, mut bad) = (0, 0);
        let mut packet = Frames::new();
        let mut wanted = max;
        loop {
            let mut more = false;
            let taken = self.rings.rx.take(wanted, |descriptor| {
                more = descriptor.options & libc::XDP_PKT_CONTD != 0;
                match memory.take(descriptor.address, descriptor.len, holder) {
                    Some(frame) => {
                        received += 1;
                        packet.push(frame);
                    }
                    None => bad += 1,
                }
                if !packet.is_empty() && (!more || packet.is_full()) {
                    each(std::mem::take(&mut packet));
                }
            });
            // The kernel publishes whole packets.
            if !more || taken == 0 {
                break;
            }
            wanted = 1;
        }
        if !packet.is_empty() {
            each(packet);
        }
        self.receiving = self.receiving.wrapping_sub(received);
        self.bad_descriptors += bad;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use super::*;
    use crate::xdp::ring::{Consumer, Producer, in_plain_memory};
    use crate::xdp::socket::{Io, Rings};
    use crate::xdp::umem::Umem;

    const RING: u32 = 8;
    const MORE: u32 = libc::XDP_PKT_CONTD;

    /// A port whose rings the test plays the kernel of, descriptor by descriptor.
    struct Rig {
        port: Port,
        pool: FramePool,
        filled: Consumer<u64>,
        received: Producer<Descriptor>,
        sent: Consumer<Descriptor>,
        completed: Producer<u64>,
    }

    impl Rig {
        fn new() -> Self {
            let (umem, pool) = Umem::create(32, 2048).unwrap();
            let (received, rx) = in_plain_memory(RING, u32::MAX - 1);
            let (tx, sent) = in_plain_memory(RING, 0);
            let (fill, filled) = in_plain_memory(2 * RING, 0);
            let (completed, completion) = in_plain_memory(2 * RING, 0);
            let rings = Rings { rx, tx, fill, completion };
            let mut port = Port::new(umem.memory(), rings, None, Io::default()).unwrap();
            let mut pool = pool;
            port.refill(&mut pool);
            Self { port, pool, filled, received, sent, completed }
        }

        /// The kernel receives frames with these lengths and options.
        fn deliver(&mut self, frames: &[(u32, u32)]) {
            for &(len, options) in frames {
                let mut address = None;
                self.filled.take(1, |filled| address = Some(filled));
                assert!(self.received.push(Descriptor { address: address.unwrap(), len, options }));
            }
            self.received.publish();
        }

        /// Lengths of the frames of each packet; all frames go back to the pool.
        fn receive(&mut self, max: u32) -> Vec<Vec<usize>> {
            let mut packets = Vec::new();
            self.port.receive_frames(max, |frames| {
                packets.push(frames.iter().map(Frame::len).collect());
                release(&mut self.pool, frames);
            });
            assert_eq!(self.pool.len() + self.port.with_kernel() as usize, 32, "no frame is lost");
            packets
        }

        fn packet(&mut self, lens: &[usize]) -> Frames {
            let frame = |&len: &usize| {
                let mut frame = self.pool.pop().unwrap();
                assert!(frame.set_len(len));
                frame
            };
            lens.iter().map(frame).collect()
        }
    }

    #[test]
    fn frames_of_a_packet_come_together() {
        let mut rig = Rig::new();
        rig.deliver(&[(60, 0), (1700, MORE), (1701, MORE), (9, 0), (61, 0)]);
        assert_eq!(rig.receive(8), [vec![60], vec![1700, 1701, 9], vec![61]]);
        rig.deliver(&[(60, 0), (1700, MORE), (9, 0), (61, 0)]);
        assert_eq!(rig.receive(2), [vec![60], vec![1700, 9]], "no packet is cut");
        assert_eq!(rig.receive(2), [vec![61]]);
        assert_eq!(rig.receive(2), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_packet_of_too_many_frames_is_shown_in_pieces_and_loses_none() {
        let mut rig = Rig::new();
        rig.deliver(&[(1, MORE), (2, MORE), (3, MORE), (4, MORE), (5, 0), (60, 0)]);
        assert_eq!(rig.receive(8), [vec![1, 2, 3], vec![4, 5], vec![60]]);
        rig.deliver(&[(1, MORE)]);
        assert_eq!(rig.receive(8), [[1]], "a kernel that breaks off does not stop us");
        rig.received
            .push(Descriptor { address: u64::MAX, len: 1, options: MORE })
            .then_some(())
            .unwrap();
        rig.deliver(&[(2, 0)]);
        assert_eq!((rig.receive(8), rig.port.bad_descriptors()), (vec![vec![2]], 1));
    }

    #[test]
    fn a_packet_is_sent_whole_or_not_at_all() {
        let mut rig = Rig::new();
        for lens in [&[60][..], &[1700, 1700, 1], &[1700, 99]] {
            let packet = rig.packet(lens);
            rig.port.transmit_frames(packet).unwrap();
        }
        for (lens, reason) in [
            (&[1700, 1700, 99][..], "two slots are free"),
            (&[60, 0], "an empty one"),
            (&[13, 60], "too short"),
            (&[], "nothing"),
        ] {
            let packet = rig.packet(lens);
            let back = rig.port.transmit_frames(packet).unwrap_err();
            assert_eq!(back.len(), lens.len(), "{reason}");
            release(&mut rig.pool, back);
        }
        assert_eq!(rig.port.outstanding(), 6);
        rig.port.flush();
        let mut sent = Vec::new();
        rig.sent.take(RING, |packet| {
            sent.push((packet.len, packet.options));
            assert!(rig.completed.push(packet.address));
        });
        let expected = [(60, 0), (1700, MORE), (1700, MORE), (1, 0), (1700, MORE), (99, 0)];
        assert_eq!(sent, expected);
        rig.completed.publish();
        assert_eq!(rig.port.reclaim(&mut rig.pool), 6);
    }

    #[test]
    fn a_packet_is_copied_into_as_many_frames_as_it_takes() {
        let (_umem, mut pool) = Umem::create(4, 2048).unwrap();
        let packet: Vec<u8> = (0..=255).cycle().take(5377).collect();
        for (len, frames) in [(1, 1), (1792, 1), (1793, 2), (5376, 3)] {
            let copied = copy(&mut pool, &packet[..len]).unwrap();
            assert_eq!((copied.len(), frames_for(len, 2048)), (frames, frames), "{len} bytes");
            assert_eq!(
                copied.iter().flat_map(Frame::data).copied().collect::<Vec<u8>>(),
                packet[..len]
            );
            release(&mut pool, copied);
        }
        assert!(copy(&mut pool, &packet).is_none(), "more than three frames");
        assert_eq!(pool.len(), 4);
        let held = [pool.pop().unwrap(), pool.pop().unwrap()];
        assert!(copy(&mut pool, &packet[..5000]).is_none(), "two frames are left");
        assert_eq!(pool.len(), 2);
        held.into_iter().for_each(|frame| pool.push(frame));
    }
}
