//! Transmission of packets that are longer than a frame: several descriptors (multi-buffer).
//!
//! ```text
//!  TX and RX ring:  | frame 1, more | frame 2, more | frame 3 |  next packet ...
//!                     '------------ one packet --------------'
//! ```
//!
//! Source: Documentation/networking/af_xdp.rst, "Multi-Buffer Rx" and "Multi-Buffer Tx".

use super::{Descriptor, Frame, MAX_FRAMES, SHORTEST, XskQueue};

impl XskQueue {
    /// Returns the largest number of frames of a packet that this queue sends.
    pub(super) fn most_frames(&self) -> u32 {
        if self.io.multi_buffer { MAX_FRAMES } else { 1 }
    }

    /// Whether a packet is complete and has no more frames than this queue sends.
    pub fn can_send(&self, frame: &Frame) -> bool {
        frame.is_whole() && self.frames_of(frame) <= self.most_frames()
    }

    /// Returns the number of frames of a packet; `u32::MAX` for a long packet of another UMEM.
    fn frames_of(&self, frame: &Frame) -> u32 {
        if !frame.is_long() {
            return 1;
        }
        let behind = self.memory.chunk_of(frame).map(|chunk| self.memory.behind(chunk));
        behind.map_or(u32::MAX, |behind| behind.fold(1, |frames, _| frames + 1))
    }

    /// Queues all frames of a long packet, or none. Refuses packets as [`transmit`](Self::transmit)
    /// does.
    #[cold]
    pub(super) fn transmit_long(&mut self, frame: Frame) -> Result<(), Frame> {
        let frames = self.frames_of(&frame);
        let fits = frame.len() >= SHORTEST && self.can_send(&frame);
        if !fits || self.rings.tx.free(frames) < frames {
            return Err(frame);
        }
        let Some(first) = self.memory.chunk_of(&frame) else { return Err(frame) };
        #[expect(clippy::cast_possible_truncation, reason = "a frame is at most 4096 bytes")]
        let len = frame.len() as u32;
        let address = self.memory.give(frame, self.transmit)?;
        self.push_frame(address, len, frames > 1);
        for (number, behind) in (2..).zip(self.memory.behind(first)) {
            self.memory.give_behind(behind.chunk, self.transmit);
            self.push_frame(behind.address, behind.len.into(), number < frames);
        }
        Ok(())
    }

    fn push_frame(&mut self, address: u64, len: u32, more: bool) {
        let options = if more { libc::XDP_PKT_CONTD } else { 0 };
        let pushed = self.rings.tx.push(Descriptor { address, len, options });
        debug_assert!(pushed, "room was looked for");
        self.transmitting += 1;
        self.queued += 1;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop early")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xdp::fake::FakeNic;
    use crate::xdp::socket::Io;
    use crate::xdp::umem::{FramePool, Umem};

    const FRAMES: u32 = 128;
    const RING: u32 = 32;
    /// Bytes of a frame without its headroom.
    const ROOM: usize = 1792;

    /// A multi-buffer queue, its NIC and its pool; the test itself owns the `held` packets.
    struct Rig {
        queue: XskQueue,
        nic: FakeNic,
        pool: FramePool,
        held: Vec<Frame>,
    }

    impl Rig {
        fn new(multi_buffer: bool) -> Self {
            let (umem, mut pool) = Umem::create(FRAMES, 2048).unwrap();
            let io = Io { multi_buffer, ..Io::default() };
            let (mut queue, nic) = FakeNic::with(&umem, RING, io).unwrap();
            queue.refill(&mut pool);
            Self { queue, nic, pool, held: Vec::new() }
        }

        fn receive(&mut self, max: usize) -> usize {
            let received = self.queue.receive(max, |packet| self.held.push(packet));
            self.check();
            received
        }

        /// Architecture invariant 4: no frame is lost or doubled.
        fn check(&self) {
            let held: u32 = self.held.iter().map(|packet| self.queue.frames_of(packet)).sum();
            let sum = self.pool.len() + (held + self.queue.with_kernel()) as usize;
            assert_eq!(sum, FRAMES as usize);
        }

        fn drop_all(&mut self) {
            self.held.drain(..).for_each(|packet| self.pool.push(packet));
            self.check();
        }

        fn collect(&mut self) -> Vec<Vec<u8>> {
            let mut sent = Vec::new();
            self.queue.flush();
            self.nic.collect(|packet| sent.push(packet.to_vec()));
            self.queue.reclaim(&mut self.pool);
            self.check();
            sent
        }
    }

    fn packet(len: usize, seed: u8) -> Vec<u8> {
        (seed..=255).chain(0..seed).cycle().take(len).collect()
    }

    /// Returns the seed of a packet's contents, which makes packets of different lengths differ.
    fn seed_of(len: usize) -> u8 {
        (len % 251).try_into().unwrap()
    }

    #[test]
    fn a_packet_of_several_frames_goes_in_and_out_whole() {
        let mut rig = Rig::new(true);
        let lens = [60, ROOM, ROOM + 1, 9014, 5 * ROOM, 61];
        let packets: Vec<_> = (0..).zip(lens).map(|(seed, len)| packet(len, seed)).collect();
        for sent in &packets {
            assert!(rig.nic.deliver_long(sent));
        }
        assert_eq!(rig.receive(64), lens.len());
        assert_eq!(rig.held.iter().map(|p| usize::from(p.packet_len())).collect::<Vec<_>>(), lens);
        for (received, sent) in rig.held.iter().zip(&packets) {
            assert!(received.is_whole());
            assert_eq!(received.data(), &sent[..sent.len().min(ROOM)]);
        }
        let mut places: Vec<_> = rig.held.drain(..).map(Some).collect();
        let queued = rig.queue.transmit_all(places.iter_mut());
        assert_eq!(queued, (6, lens.iter().sum::<usize>() as u64));
        assert_eq!(rig.collect(), packets);
        assert_eq!((rig.queue.outstanding(), rig.queue.bad_descriptors()), (0, 0));
    }

    #[test]
    fn a_batch_cuts_no_packet() {
        let mut rig = Rig::new(true);
        assert!(rig.nic.deliver(&packet(60, 0)) && rig.nic.deliver_long(&packet(4000, 1)));
        assert!(rig.nic.deliver(&packet(61, 2)));
        assert_eq!(rig.receive(2), 1, "and one frame of the next");
        assert_eq!(rig.receive(1), 0, "its second frame");
        assert_eq!(rig.receive(64), 2);
        let lens: Vec<_> = rig.held.iter().map(Frame::packet_len).collect();
        assert_eq!(lens, [60, 4000, 61]);
        rig.drop_all();
    }

    #[test]
    fn a_packet_is_sent_whole_or_not_at_all() {
        let mut rig = Rig::new(true);
        // 30 of 32 slots.
        for _ in 0..10 {
            let frame = rig.pool.copy(&packet(5000, 3)).unwrap();
            rig.queue.transmit(frame).unwrap();
        }
        let mut places: Vec<_> =
            [60, 5000, 60].map(|len| rig.pool.copy(&packet(len, 4))).into_iter().collect();
        assert_eq!(rig.queue.transmit_all(places.iter_mut()), (1, 60));
        assert!(places[1].is_some() && places[2].is_some(), "the last one does not overtake");
        assert!(rig.queue.is_full());
        rig.held.extend(places.into_iter().flatten());
        assert_eq!(rig.collect().len(), 11);
        let mut places: Vec<_> = rig.held.drain(..).map(Some).collect();
        assert_eq!(rig.queue.transmit_all(places.iter_mut()), (2, 5060));
        assert_eq!(rig.collect().iter().map(Vec::len).collect::<Vec<_>>(), [5000, 60]);
    }

    #[test]
    fn a_queue_without_multi_buffer_sends_no_long_packet() {
        let mut rig = Rig::new(false);
        let mut places: Vec<_> =
            [60, 5000, 61].map(|len| rig.pool.copy(&packet(len, 4))).into_iter().collect();
        assert!(!rig.queue.can_send(places[1].as_ref().unwrap()));
        assert_eq!(rig.queue.transmit_all(places.iter_mut()), (2, 121));
        let back = rig.queue.transmit(places[1].take().unwrap()).unwrap_err();
        rig.held.push(back);
        rig.drop_all();
        assert_eq!(rig.collect().iter().map(Vec::len).collect::<Vec<_>>(), [60, 61]);
    }

    /// Frames of a packet, the bad ones among them, and the expected (frames, completeness) of each
    /// delivered packet.
    #[test]
    fn incomplete_packets_are_marked_and_given_back() {
        for (name, frames, lies, expected) in [
            ("17 frames", 17, &[][..], &[(17, true)][..]),
            ("18 frames", 18, &[], &[(17, false), (1, false)]),
            ("the first is bad", 3, &[0], &[(2, false)]),
            ("one in the middle is bad", 3, &[1], &[(2, false)]),
            ("the last is bad", 3, &[2], &[(2, false)]),
            ("only the first is good", 2, &[1], &[(1, false)]),
            ("all are bad", 2, &[0, 1], &[]),
        ] {
            let mut rig = Rig::new(true);
            for number in 0..frames {
                let more = number + 1 < frames;
                let options = if more { libc::XDP_PKT_CONTD } else { 0 };
                let lie = Descriptor { address: u64::MAX, len: 9, options };
                assert!(match lies.contains(&number) {
                    true => rig.nic.deliver_descriptor(lie),
                    false => rig.nic.deliver_part(100, more),
                });
            }
            assert!(rig.nic.deliver(&[5; 60]));
            rig.receive(64);
            let last = rig.held.pop().unwrap();
            assert_eq!((last.packet_len(), last.is_whole()), (60, true), "{name}: the next packet");
            rig.pool.push(last);
            let reported: Vec<_> =
                rig.held.iter().map(|p| (rig.queue.frames_of(p), p.is_whole())).collect();
            assert_eq!(reported, expected, "{name}");
            assert_eq!(rig.queue.bad_descriptors(), lies.len() as u64, "{name}");
            for packet in std::mem::take(&mut rig.held) {
                let whole = packet.is_whole();
                match rig.queue.transmit(packet) {
                    Ok(()) => assert!(whole, "{name}"),
                    Err(packet) => rig.held.push(packet),
                }
            }
            rig.collect();
            rig.drop_all();
        }
    }

    #[test]
    fn an_empty_frame_in_a_packet_makes_it_not_whole() {
        let mut rig = Rig::new(true);
        assert!(rig.nic.deliver_part(60, true) && rig.nic.deliver_part(0, false));
        assert_eq!(rig.receive(64), 1);
        assert!(!rig.held[0].is_whole());
        rig.drop_all();
    }

    #[test]
    fn a_packet_without_end_holds_no_more_than_its_share() {
        let mut rig = Rig::new(true);
        for _ in 0..10 {
            for _ in 0..RING {
                assert!(rig.nic.deliver_part(ROOM, true));
            }
            rig.receive(64);
            assert!(rig.held.iter().all(|packet| !packet.is_whole()));
            rig.drop_all();
            assert_eq!(rig.queue.refill(&mut rig.pool), RING as usize);
        }
    }

    /// An event of a queue, in any order.
    #[derive(Debug, Clone)]
    enum Step {
        /// A packet of this many bytes arrives.
        Arrive(usize),
        /// A frame of this many bytes arrives; the flag announces more frames of its packet.
        Part(usize, bool),
        /// A descriptor with an arbitrary address arrives.
        Lie(u64, u32, bool),
        /// A completion with an arbitrary address arrives.
        LieSent(u64),
        /// Up to this many frames are received.
        Receive(usize),
        /// All held packets are sent.
        Send,
        /// The NIC sends.
        Collect,
        /// All held packets are dropped.
        Drop,
        /// Free frames go to the fill ring.
        Refill,
    }

    fn step() -> impl Strategy<Value = Step> {
        let address = prop_oneof![
            (0..u64::from(FRAMES), 0..2048_u64).prop_map(|(chunk, at)| chunk * 2048 + at),
            any::<u64>(),
        ];
        prop_oneof![
            4 => (14..12_000_usize).prop_map(Step::Arrive),
            1 => (0..ROOM, any::<bool>()).prop_map(|(len, more)| Step::Part(len, more)),
            1 => (address.clone(), 0..2048_u32, any::<bool>())
                .prop_map(|(address, len, more)| Step::Lie(address, len, more)),
            1 => address.prop_map(Step::LieSent),
            4 => (0..65_usize).prop_map(Step::Receive),
            2 => Just(Step::Send),
            2 => Just(Step::Collect),
            1 => Just(Step::Drop),
            2 => Just(Step::Refill),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 300, failure_persistence: None, ..Default::default()
        })]
        /// For any behaviour of the kernel, no frame is lost or doubled, and a packet is sent
        /// whole.
        #[test]
        fn frames_are_conserved(steps in proptest::collection::vec(step(), 1..100)) {
            let mut rig = Rig::new(true);
            let mut lied = false;
            for step in steps {
                match step {
                    Step::Arrive(len) => {
                        rig.nic.deliver_long(&packet(len, seed_of(len)));
                    }
                    Step::Part(len, more) => {
                        lied = true;
                        rig.nic.deliver_part(len, more);
                    }
                    Step::Lie(address, len, more) => {
                        lied = true;
                        let options = if more { libc::XDP_PKT_CONTD } else { 0 };
                        rig.nic.deliver_descriptor(Descriptor { address, len, options });
                    }
                    Step::LieSent(address) => {
                        lied = true;
                        rig.nic.complete_raw(address);
                    }
                    Step::Receive(max) => prop_assert!(rig.receive(max) <= max),
                    Step::Send => {
                        let mut places: Vec<_> = rig.held.drain(..).map(Some).collect();
                        rig.queue.transmit_all(places.iter_mut());
                        rig.held.extend(places.into_iter().flatten());
                    }
                    Step::Collect => {
                        for sent in rig.collect() {
                            let expected = packet(sent.len(), seed_of(sent.len()));
                            prop_assert!(lied || sent == expected, "{} bytes", sent.len());
                        }
                    }
                    Step::Drop => rig.drop_all(),
                    Step::Refill => {
                        rig.queue.refill(&mut rig.pool);
                    }
                }
                rig.check();
            }
        }
    }
}
