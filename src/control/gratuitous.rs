//! Announcements of addresses on links: gratuitous ARP (RFC 5227) and unsolicited neighbour
//! advertisements (RFC 4861).
//!
//! A separate task sends each announcement twice, [`BATCH`] frames every [`PACE`]. The control loop
//! thus continues however many there are, and no receiver gets more frames at once than it queues:
//! Linux queues 1000 packets per core (`net.core.netdev_max_backlog`), and switches limit the ARP
//! that reaches their processor.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Icmpv6Type, PacketBuilder};
use hashbrown::HashSet;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::debug;

use super::view::SendFrame;

/// Frames per batch.
const BATCH: usize = 50;
/// Time between two batches.
const PACE: Duration = Duration::from_millis(20);
/// Transmissions per announcement: the first frames may be lost while a switch learns.
const TIMES: u8 = 2;
/// Time between the transmissions of one announcement.
const REPEAT: Duration = Duration::from_secs(1);

/// Ethernet broadcast address.
const BROADCAST: [u8; 6] = [0xff; 6];
/// All-nodes multicast address of a link, `ff02::1` (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// MAC of [`ALL_NODES`] (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Hop limit of neighbour discovery packets: the largest one proves that no router forwarded them
/// (RFC 4861 section 7.1.2).
const ND_HOP_LIMIT: u8 = 255;

/// Frames that announce an address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Index of the interface that sends the frames.
    pub ifindex: u32,
    /// Announced address.
    pub address: IpAddr,
    /// Ethernet frames.
    pub frames: Vec<Vec<u8>>,
}

/// Command to the sending task.
#[derive(Debug)]
enum Order {
    Tell(Vec<Announcement>),
    Forget(HashSet<IpAddr>),
}

/// Handle of the sending task, which ends when the handle is dropped.
#[derive(Debug)]
pub struct Advertiser {
    orders: mpsc::UnboundedSender<Order>,
    task: JoinHandle<()>,
}

impl Advertiser {
    /// Starts the task, which transmits frames with `send`.
    pub fn start(send: SendFrame) -> Self {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (first, again) = (VecDeque::new(), VecDeque::new());
        let task = tokio::spawn(Sender { orders: receiver, send, first, again }.run());
        Self { orders, task }
    }

    /// Queues announcements to be sent twice. Never blocks.
    pub fn announce(&self, announcements: Vec<Announcement>) {
        if !announcements.is_empty() {
            // The task lives as long as this handle.
            let _ = self.orders.send(Order::Tell(announcements));
        }
    }

    /// Cancels pending announcements of these addresses, which no longer belong to this box.
    pub fn forget(&self, addresses: HashSet<IpAddr>) {
        let _ = self.orders.send(Order::Forget(addresses));
    }

    /// Ends the task, and drops `send`. Closing its socket takes the kernel some 20 ms.
    pub async fn end(&mut self) {
        self.task.abort();
        // The error states that it was aborted.
        let _ = (&mut self.task).await;
    }
}

/// An announcement and its remaining transmissions.
type Left = (Announcement, u8);

/// State of the task.
struct Sender {
    orders: mpsc::UnboundedReceiver<Order>,
    send: SendFrame,
    /// Announcements that were not sent yet.
    first: VecDeque<Left>,
    /// Repetitions with their due times, earliest first.
    again: VecDeque<(Instant, Left)>,
}

impl Sender {
    async fn run(mut self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.first.is_empty() && self.again.is_empty() {
                let Some(order) = self.orders.recv().await else { return };
                self.take(order);
            }
            while let Ok(order) = self.orders.try_recv() {
                self.take(order);
            }
            pace.tick().await;
            self.send_batch(Instant::now());
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Tell(all) => {
                // What is left of an older one may have another MAC, which the NIC had before.
                let place = |one: &Announcement| (one.ifindex, one.address);
                let told: HashSet<(u32, IpAddr)> = all.iter().map(place).collect();
                self.keep(|one| !told.contains(&place(one)));
                self.first.extend(all.into_iter().map(|one| (one, TIMES)));
            }
            Order::Forget(gone) => self.keep(|one| !gone.contains(&one.address)),
        }
    }

    /// Cancels the announcements that `stays` does not select.
    fn keep(&mut self, stays: impl Fn(&Announcement) -> bool) {
        self.first.retain(|(one, _)| stays(one));
        self.again.retain(|(_, (one, _))| stays(one));
    }

    fn send_batch(&mut self, now: Instant) {
        let mut room = BATCH;
        while room > 0
            && let Some((announcement, left)) = self.next(now)
        {
            room = match self.send(&announcement) {
                Sent::All => room.saturating_sub(announcement.frames.len()),
                // The transmit queue is full. The repetition covers a frame that is lost here.
                Sent::Full => 0,
            };
            if left > 1 {
                self.again.push_back((now + REPEAT, (announcement, left - 1)));
            }
        }
    }

    /// Removes and returns the next announcement that is due.
    fn next(&mut self, now: Instant) -> Option<Left> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        let (due, _) = self.again.front()?;
        if *due <= now { self.again.pop_front().map(|(_, again)| again) } else { None }
    }

    fn send(&mut self, Announcement { ifindex, frames, .. }: &Announcement) -> Sent {
        for frame in frames {
            let Err(error) = (self.send)(*ifindex, frame) else { continue };
            debug!("interface {ifindex}: announcement not sent: {error}");
            // ENOBUFS has no `ErrorKind`.
            if error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(ENOBUFS) {
                return Sent::Full;
            }
        }
        Sent::All
    }
}

/// Errno of a full transmit queue of a link.
const ENOBUFS: i32 = 105;

/// Result of sending an announcement.
enum Sent {
    All,
    Full,
}

/// Returns the frames that announce `address` at `mac`.
pub fn frames(mac: [u8; 6], address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(ip) => [ArpOperation::REQUEST, ArpOperation::REPLY]
            .into_iter()
            .filter_map(|operation| gratuitous_arp(operation, mac, ip))
            .collect(),
        IpAddr::V6(ip) => neighbour_advertisement(mac, ip).into_iter().collect(),
    }
}

/// Builds an ARP announcement (RFC 5227 section 2.3): sender and target are the announced address.
/// Some hosts learn from requests only, others from replies only.
fn gratuitous_arp(operation: ArpOperation, mac: [u8; 6], ip: Ipv4Addr) -> Option<Vec<u8>> {
    // RFC 5227 section 1.1: the target MAC of a request is ignored and should be zero.
    let target = if operation == ArpOperation::REQUEST { [0; 6] } else { mac };
    let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
    let ip = ip.octets();
    let packet = ArpPacket::new(hardware, protocol, operation, &mac, &ip, &target, &ip).ok()?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, BROADCAST).arp(packet).write(&mut frame).ok()?;
    Some(frame)
}

/// Builds an unsolicited neighbour advertisement to all nodes (RFC 4861 section 7.2.6), with the
/// override flag, so that caches with another MAC take this one.
fn neighbour_advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Option<Vec<u8>> {
    let header = NeighborAdvertisementHeader { router: false, solicited: false, r#override: true };
    let mut body = ip.octets().to_vec();
    // Target link-layer address option: type 2, length 1 (x 8 bytes); RFC 4861 section 4.6.1.
    body.extend([2, 1]);
    body.extend(mac);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, ALL_NODES_MAC)
        .ipv6(ip.octets(), ALL_NODES.octets(), ND_HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborAdvertisement(header))
        .write(&mut frame, &body)
        .ok()?;
    Some(frame)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use tokio::time::sleep;

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn ipv4_is_told_by_a_request_and_a_reply() {
        let frames = super::frames(MAC, IpAddr::from([192, 0, 2, 10]));
        let mut seen = Vec::new();
        for frame in &frames {
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let ethernet = packet.link.unwrap().to_header().unwrap();
            let ethernet = ethernet.ethernet2().unwrap();
            assert_eq!((ethernet.source, ethernet.destination), (MAC, BROADCAST));
            let Some(NetSlice::Arp(arp)) = packet.net else { unreachable!("not ARP") };
            assert_eq!(arp.sender_hw_addr(), MAC);
            assert_eq!(arp.sender_protocol_addr(), [192, 0, 2, 10]);
            assert_eq!(arp.target_protocol_addr(), [192, 0, 2, 10]);
            seen.push((arp.operation(), arp.target_hw_addr().to_vec()));
        }
        let expected = [(ArpOperation::REQUEST, vec![0; 6]), (ArpOperation::REPLY, MAC.to_vec())];
        assert_eq!(seen, expected);
    }

    #[test]
    fn ipv6_is_told_by_an_unsolicited_advertisement() {
        let ip: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frames = super::frames(MAC, ip.into());
        let [frame] = frames.as_slice() else { unreachable!("one frame") };
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap();
        assert_eq!(ethernet.ethernet2().unwrap().destination, ALL_NODES_MAC);
        let Some(NetSlice::Ipv6(ipv6)) = packet.net else { unreachable!("not IPv6") };
        assert_eq!(ipv6.header().hop_limit(), 255);
        assert_eq!(ipv6.header().source_addr(), ip);
        assert_eq!(ipv6.header().destination_addr(), ALL_NODES);
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { unreachable!("no ICMP") };
        assert!(icmp.is_checksum_valid(ip.octets(), ALL_NODES.octets()));
        let Icmpv6Type::NeighborAdvertisement(header) = icmp.icmp_type() else {
            unreachable!("another type")
        };
        assert_eq!((header.solicited, header.r#override), (false, true));
        let (target, option) = icmp.payload().split_at(16);
        assert_eq!(target, ip.octets());
        assert_eq!(option, [2, 1, 2, 0, 0, 0, 0, 7]);
    }

    /// Sent frames, each with its time since the start.
    type Log = Arc<Mutex<Vec<(Duration, Vec<u8>)>>>;

    /// A task that sends into the log; every `refused`-th send fails as with a full queue.
    fn advertiser(refused: usize) -> (Advertiser, Log) {
        let log = Log::default();
        let (sink, begun, mut count) = (Arc::clone(&log), Instant::now(), 0);
        let send = move |_: u32, frame: &[u8]| {
            count += 1;
            if refused > 0 && count % refused == 0 {
                return Err(io::Error::from_raw_os_error(ENOBUFS));
            }
            sink.lock().unwrap().push((begun.elapsed(), frame.to_vec()));
            Ok(())
        };
        (Advertiser::start(Box::new(send)), log)
    }

    fn announcements(count: u16) -> Vec<Announcement> {
        let of = |number: u16| Announcement {
            ifindex: 1,
            address: Ipv4Addr::from_bits(number.into()).into(),
            frames: vec![number.to_be_bytes().to_vec()],
        };
        (0..count).map(of).collect()
    }

    fn times(log: &Log, number: u16) -> usize {
        let is_it = |(_, frame): &&(Duration, Vec<u8>)| *frame == number.to_be_bytes();
        log.lock().unwrap().iter().filter(is_it).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_are_sent_twice_in_batches_while_others_go_on() {
        let (advertiser, log) = advertiser(0);
        advertiser.announce(announcements(1000));
        sleep(PACE * 10).await;
        let sent = log.lock().unwrap().len();
        assert!((BATCH..1000).contains(&sent), "{sent}: others have their turn in between");
        sleep(Duration::from_secs(3)).await;
        assert!((0..1000).all(|number| times(&log, number) == usize::from(TIMES)));
        let log = log.lock().unwrap();
        for batch in log.chunk_by(|a, b| a.0 == b.0) {
            assert!(batch.len() <= BATCH, "{} at once", batch.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_goes_is_announced_no_more() {
        let (advertiser, log) = advertiser(0);
        advertiser.announce(announcements(3));
        sleep(PACE * 2).await;
        advertiser.forget(HashSet::from([Ipv4Addr::from_bits(1).into()]));
        sleep(Duration::from_secs(3)).await;
        assert_eq!([times(&log, 0), times(&log, 1), times(&log, 2)], [2, 1, 2]);
    }

    /// A NIC gets another MAC twice within a second: the repetition of the first announcement must not
    /// contradict the second.
    #[tokio::test(start_paused = true)]
    async fn a_newer_announcement_of_an_address_replaces_an_older_one() {
        let (advertiser, log) = advertiser(0);
        let at_mac = |mac: u8| {
            let mut all = announcements(2);
            all.iter_mut().for_each(|one| one.frames = vec![vec![mac]]);
            all
        };
        advertiser.announce(at_mac(1));
        sleep(REPEAT / 2).await;
        advertiser.announce(at_mac(2));
        sleep(Duration::from_secs(3)).await;
        let frames: Vec<u8> =
            log.lock().unwrap().iter().flat_map(|(_, frame)| frame.clone()).collect();
        assert_eq!(frames, [1, 1, 2, 2, 2, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn announcements_that_find_a_full_queue_are_sent_once_more() {
        let (advertiser, log) = advertiser(70);
        advertiser.announce(announcements(100));
        sleep(Duration::from_secs(5)).await;
        let all = (0..100).map(|number| times(&log, number));
        assert_eq!(all.clone().min(), Some(1), "the refused ones by their repetition");
        assert_eq!(all.sum::<usize>(), 200 - 2);
    }
}
