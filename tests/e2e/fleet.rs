//! Fleet: connections go on when the route moves to a box that has no pin of them, in every mode that
//! can ask backends, with real kernels and the program of `holdfast backend`.

use std::collections::BTreeSet;
use std::hash::Hasher as _;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::SystemTime;

use etherparse::PacketBuilder;
use siphasher::sip::SipHasher24;

use holdfast::control::api::HealthState;

use crate::lab::{Family, Fleet, Lab, SOON, Topology, fleet_vips, wait_for};

const ASK: &str = "lost = { ask = \"history\" }";
/// After so many seconds a box asks those only that its tables have chosen since.
const PAST_S: u64 = 15;
const ASK_KNOWN_PAST: &str = "lost = { ask = \"history\", remember_s = 15 }";
const NEVER: &str = "lost = { ask = \"never\" }";
/// Downloads, talkers and silent connections to each VIP.
const EACH: [usize; 3] = [5, 2, 1];
/// Connections that are opened later.
const LATE: [usize; 3] = [2, 1, 0];

/// Opens connections, which go to each of these servers, and to no other one.
fn open(fleet: &mut Fleet<'_>, servers: &[&str]) -> Vec<String> {
    let opened = fleet.open(EACH);
    let seen: BTreeSet<&str> = opened.iter().map(String::as_str).collect();
    assert_eq!(seen, servers.iter().copied().collect());
    opened
}

/// Opens some more connections: too few to meet every server.
fn open_late(fleet: &mut Fleet<'_>, servers: &[&str]) {
    let opened = fleet.open(LATE);
    assert!(opened.iter().all(|server| servers.contains(&server.as_str())), "{opened:?}");
}

/// Waits until the boxes run for longer than they remember.
fn wait_for_a_past(fleet: &Fleet<'_>) {
    for running in &fleet.boxes {
        wait_for("the past is known", 2 * SOON, || running.status().uptime_s > PAST_S);
    }
}

/// Weight 4 for the first backend of each VIP.
fn heavier(text: String) -> String {
    text.replace("name = \"b1\"\n", "name = \"b1\"\nweight = 4\n")
}

/// A backend is added, weights change, one is drained, also for connections that begin meanwhile.
#[test]
fn connections_go_on_at_another_box_whatever_has_changed_since_they_began() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK_KNOWN_PAST));
    let first = open(&mut fleet, &["b1", "b2", "b3"]).len() as u64;
    fleet.assert_progress("at the first box");
    wait_for_a_past(&fleet);
    fleet.set_backends(&["b1", "b2", "b3", "b4"]);
    fleet.flip_to(1);
    fleet.assert_progress("a backend was added");
    // A flow is asked about until its answer has come, not for each of its packets.
    let (answers, received) =
        (fleet.drops(1, "ask_answer"), fleet.boxes[1].status().totals.received);
    assert!(
        (1..=first).contains(&answers),
        "{answers} of {first} flows, mostly to the same backend"
    );
    fleet.assert_progress("a backend was added, later");
    assert_eq!(fleet.drops(1, "ask_answer"), answers, "pinned");
    assert!(fleet.boxes[1].status().totals.received > received + 10 * first);
    assert!(fleet.programs("passed_on") > 0 && fleet.programs("owned") > 0);

    open_late(&mut fleet, &["b1", "b2", "b3", "b4"]);
    fleet.edit = heavier;
    fleet.reload();
    fleet.flip_to(0);
    fleet.assert_progress("weights were changed");

    fleet.drain("drain", "b2");
    open_late(&mut fleet, &["b1", "b3", "b4"]);
    fleet.flip_to(1);
    fleet.assert_progress("a backend drains, at both boxes");
    open_late(&mut fleet, &["b1", "b3", "b4"]);
    fleet.drain("undrain", "b2");
    fleet.flip_to(0);
    fleet.assert_progress("no backend drains");
    fleet.end();
}

/// Keeps the second box from checking a backend, and waits until it believes it down.
fn cannot_check_b2(lab: &Lab, fleet: &Fleet<'_>) {
    let rules = "table inet lab {
        chain output {
            type filter hook output priority 0
            tcp dport 80 ip daddr 198.18.2.12 drop
            tcp dport 80 ip6 daddr 2001:db8:2::12 drop
        }
    }";
    let file = lab.state().join("health.nft");
    std::fs::write(&file, rules).unwrap();
    lab.run("lb2", &["nft", "-f", file.to_str().unwrap()]);
    for vip in &fleet.vips {
        fleet.boxes[1].wait_for_health(&vip.name, "b2", HealthState::Down);
    }
}

#[test]
fn connections_go_on_at_a_box_that_believes_their_backend_down() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK_KNOWN_PAST));
    cannot_check_b2(&lab, &fleet);
    wait_for_a_past(&fleet);
    open(&mut fleet, &["b1", "b2", "b3"]);
    fleet.flip_to(1);
    fleet.assert_progress("at the box that believes a backend down");
    fleet.end();
}

/// The other way round: the box without pins has never sent elsewhere what the other one did.
#[test]
fn connections_go_on_at_a_box_that_believes_more_backends_up() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK_KNOWN_PAST));
    cannot_check_b2(&lab, &fleet);
    wait_for_a_past(&fleet);
    fleet.flip_to(1);
    open(&mut fleet, &["b1", "b3"]);
    fleet.flip_to(0);
    fleet.assert_progress("at the box that believes a backend up");
    fleet.end();
}

/// What the other tests would see if nothing were asked.
#[test]
fn connections_break_at_another_box_that_does_not_ask() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(NEVER));
    open(&mut fleet, &["b1", "b2", "b3"]);
    fleet.set_backends(&["b1", "b2", "b3", "b4"]);
    fleet.assert_progress("pins tell");
    fleet.flip_to(1);
    let broken = fleet.sessions.progress();
    assert!(!broken.is_empty(), "the hash does not tell");
    assert!(broken.iter().all(|why| why.contains("ConnectionResetError")), "{broken:#?}");
    assert_eq!(fleet.drops(0, "ask_answer") + fleet.drops(1, "ask_answer"), 0);
}

/// A router in front of the clients reports to the other box that packets are too long. Each download
/// has a client address of its own, as kernels remember path MTUs by address.
#[test]
fn a_path_mtu_message_that_arrives_at_another_box_reaches_the_backend() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK));
    let of = |family| fleet.vips.iter().filter(move |vip| vip.family == family);
    let pairs = |family| (0_usize..).zip((0..6).flat_map(move |_| of(family)));
    let pairs: Vec<_> = Family::ALL.into_iter().flat_map(pairs).collect();
    let servers: BTreeSet<String> = fleet.sessions.open(&pairs, [1, 0, 0]).into_iter().collect();
    assert_eq!(servers.len(), 3, "{servers:?}");
    fleet.set_backends(&["b1", "b2", "b3", "b4"]);
    fleet.assert_progress("at the first box");
    lab.report_path_mtu_to("lb2", 1300);
    fleet.assert_progress("a router reports an MTU to the second box");
    let [first, second] = [0, 1].map(|number| fleet.boxes[number].status().totals);
    assert_eq!(first.icmp_errors_forwarded, 0);
    assert!(second.asks_sent > 0, "{second:?}");
    fleet.end();
}

/// A host that has started again knows nothing of its connections: its kernel resets them, though
/// the box that they arrive at has others to ask, too.
#[test]
fn connections_that_no_backend_has_are_reset() {
    let lab = Lab::up(Topology::Fleet);
    let mut fleet = Fleet::start(&lab, fleet_vips(ASK));
    let opened = open(&mut fleet, &["b1", "b2", "b3"]);
    fleet.assert_progress("at the first box");
    let gone = opened.iter().filter(|server| *server == "b1").count();
    fleet.set_backends(&["b1", "b2", "b3", "b4"]);
    fleet.servers[0].vanish();
    fleet.flip_to(1);
    // Each speaks at the end.
    let broken = fleet.sessions.end();
    assert_eq!(broken.len(), gone, "{broken:#?}");
    for why in &broken {
        assert!(why.contains(" at b1: ConnectionResetError"), "{why}");
    }
    assert!(fleet.programs("last") > 0, "none of them was asked about");
}

/// An ask or an answer over IPv4 about a flow of [`CLIENT`], made without the product's code.
struct Message {
    magic: [u8; 4],
    count: u8,
    /// What is signed at the end: hops of an ask, the owner of an answer.
    last: Vec<Ipv4Addr>,
    minute: u64,
    key: [u8; 16],
}

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 1, 10), 40_000);
const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 11), 8090);
const BOX: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 2);
const RIGHT_KEY: [u8; 16] = [7; 16];

impl Message {
    /// An ask with one hop.
    fn ask(minute: u64) -> Self {
        let last = vec![Ipv4Addr::new(198, 18, 2, 11)];
        Self { magic: *b"hfA1", count: 1, last, minute, key: RIGHT_KEY }
    }

    /// The UDP payload: GUE header, private data, and a TCP segment of the client to the VIP.
    fn bytes(&self) -> Vec<u8> {
        let head = |next| [&self.magic[..], &[next, self.count, 4, 0]].concat();
        let mut signed = head(0);
        signed.extend(self.minute.to_le_bytes());
        for address in [BOX, *CLIENT.ip(), *VIP.ip()] {
            signed.extend(address.to_ipv6_mapped().octets());
        }
        signed.extend([CLIENT.port().to_be_bytes(), VIP.port().to_be_bytes()].concat());
        signed.extend([0; 4]);
        for address in &self.last {
            signed.extend(address.to_ipv6_mapped().octets());
        }
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&signed);
        let mut private = head(1);
        private.extend(BOX.octets());
        for _ in 0..self.count {
            private.extend(self.last[0].octets());
        }
        private.extend(hasher.finish().to_le_bytes());
        let words = u8::try_from(private.len() / 4).unwrap();
        [&[words, 4, 0, 0], &private[..], &segment()].concat()
    }
}

/// An IPv4 packet with a TCP segment: ACK.
fn segment() -> Vec<u8> {
    let builder = PacketBuilder::ipv4(CLIENT.ip().octets(), VIP.ip().octets(), 64)
        .tcp(CLIENT.port(), VIP.port(), 1000, 512)
        .ack(2000);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[]).unwrap();
    bytes
}

#[expect(clippy::disallowed_methods, reason = "tags have the time of day")]
fn minute() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_secs() / 60
}

/// RSTs that a backend's kernel has sent.
fn resets(lab: &Lab, backend: &str) -> u64 {
    let text = lab.run(backend, &["nstat", "-asz", "TcpOutRsts"]);
    let line = text.lines().find(|line| line.starts_with("TcpOutRsts")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Neither do backends send packets for strangers, nor do boxes pin flows for them.
#[test]
fn strangers_can_neither_ask_nor_answer() {
    let lab = Lab::up(Topology::Fleet);
    let fleet = Fleet::start(&lab, fleet_vips(ASK));
    let socket = lab.udp_socket("client", "198.18.1.10:0".parse().unwrap());
    let is_counted = |bytes: &[u8], counter: &str| {
        let (before, reset) = (fleet.program("b1", counter), resets(&lab, "b1"));
        socket.send_to(bytes, "198.18.2.11:6080").unwrap();
        wait_for(counter, SOON, || fleet.program("b1", counter) > before);
        resets(&lab, "b1") > reset
    };
    let now = minute();
    assert!(is_counted(&Message::ask(now).bytes(), "last"), "a right one is delivered, and reset");
    let replayed = Message::ask(now - 2).bytes();
    assert!(!is_counted(&replayed, "bad_tag"), "of two minutes ago");
    let strange = Message { key: [8; 16], ..Message::ask(now) }.bytes();
    assert!(!is_counted(&strange, "bad_tag"), "another key");
    let mut diverted = Message::ask(now).bytes();
    diverted[4 + 8 + 4 + 3] = 12;
    assert!(!is_counted(&diverted, "bad_tag"), "another hop");
    let mut random = Message::ask(now).bytes();
    for (at, byte) in (0_u8..).zip(&mut random[8..28]) {
        *byte = at.wrapping_mul(151).wrapping_add(89);
    }
    assert!(!is_counted(&random, "malformed"), "random bytes");

    let owner = Ipv4Addr::new(198, 18, 2, 11);
    let answer = || Message { magic: *b"hfO1", last: vec![owner], ..Message::ask(minute()) };
    let backend = lab.udp_socket("b1", "198.18.2.11:0".parse().unwrap());
    let is_believed = |socket: &UdpSocket, bytes: &[u8]| {
        let before = fleet.boxes[0].status();
        socket.send_to(bytes, (BOX, 6080)).unwrap();
        let mut believed = None;
        wait_for("the answer is counted", SOON, || {
            let drops = fleet.boxes[0].status().drops;
            let more = |reason: &str| drops[reason] > before.drops[reason];
            believed = (more("ask_answer") || more("bad_answer")).then(|| more("ask_answer"));
            believed.is_some()
        });
        believed.unwrap()
    };
    let mut wrong = answer().bytes();
    let tag = 4 + 8 + 4 + 4;
    wrong[tag] ^= 1;
    assert!(!is_believed(&backend, &wrong), "a wrong tag");
    let strange = Message { key: [8; 16], ..answer() }.bytes();
    assert!(!is_believed(&backend, &strange), "another key");
    let replayed = Message { minute: minute() - 2, ..answer() }.bytes();
    assert!(!is_believed(&backend, &replayed), "of two minutes ago");
    let other = lab.udp_socket("b2", "198.18.2.12:0".parse().unwrap());
    assert!(!is_believed(&other, &answer().bytes()), "of another backend");
    let flows = || fleet.boxes[0].ok(&["flows", "--client", "198.18.1.10/32", "--json"]);
    assert_eq!(flows(), "", "no flow is pinned");
    assert!(is_believed(&backend, &answer().bytes()), "a right one");
    assert!(flows().contains("\"b1\""), "{}", flows());
    fleet.end();
}

/// Choices that follow from nothing that another box knows.
#[test]
fn connections_of_schedulers_without_a_hash_go_on_at_another_box() {
    for keys in [
        concat!("lost = { ask = \"all\" }\n", "scheduler = \"round_robin\""),
        concat!("lost = { ask = \"all\" }\n", "scheduler = \"round_robin\"\nsticky = {}"),
    ] {
        let lab = Lab::up(Topology::Fleet);
        let mut fleet = Fleet::start(&lab, fleet_vips(keys));
        let opened = fleet.open(EACH);
        let first = opened.len() as u64;
        fleet.flip_to(1);
        fleet.assert_progress(keys);
        let answers = fleet.drops(1, "ask_answer");
        assert!((1..=3 * first).contains(&answers), "{answers} of {first} flows");
        fleet.set_backends(&["b1", "b2", "b3", "b4"]);
        fleet.open(LATE);
        fleet.flip_to(0);
        fleet.assert_progress(keys);
        fleet.end();
    }
}
