//! The control plane against a real kernel, in network namespaces of its own. Needs root.
//!
//! A test makes two namespaces, `<name>-lb` and `<name>-peer`, with a veth pair between `nic0` and
//! `peer0`, and runs itself again inside the first one, where it is free to change anything.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast::config::{
    Announce, Backend, Config, Control, CopyMode, Drain, Fragments, FullNat, Hash, Health, Idle,
    Io, Nic, TcpHealth, Vip, Workers, XdpMode,
};
use holdfast::control::state::Registry;
use holdfast::control::{
    self, AccessDrops, AccessMaps, AttachedView, HandOver, Inputs, NicNow, NicView, Signals,
    SocketStatistics, SteerCounters, SteeringProgram,
};
use holdfast::flow::shared::{SharedTables, TableSizes};
use holdfast::forwarding::publish::{Publisher, Subscription};
use holdfast::forwarding::{
    FlowAction, ForwardingTable, Local, Ports, SchedulerKind, Timeouts, VipPolicy,
};
use holdfast::net::{
    AccessLists, BackendIndex, Forward, ListEntry, ListKey, NextHop, NicIndex, Protocol,
    SteerRules, TableSecret, VipId,
};
use holdfast::privileges::Kept;
use holdfast::units::Ticks;
use holdfast::xdp::packet::PacketSocket;

/// Set in the process that runs inside the namespace: the name of the two namespaces.
const INSIDE: &str = "HOLDFAST_CONTROL_TEST";
/// Limit of waiting, except for time-outs of the kernel.
const SOON: Duration = Duration::from_secs(30);
/// The kernel verifies a neighbour every 15 s, and gives it up after three further tries.
const VERIFIED: Duration = Duration::from_secs(40);
const NIC_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// Two namespaces and a veth pair. Removed when dropped.
struct Net(String);

impl Net {
    fn up(test: &str) -> Self {
        let net = Self(format!("hfctl{}-{test}", std::process::id()));
        let (lb, peer) = (net.lb(), net.peer());
        run("ip", &["netns", "add", &lb]);
        run("ip", &["netns", "add", &peer]);
        run(
            "ip",
            &[
                "link",
                "add",
                "nic0",
                "address",
                "02:00:00:00:01:01",
                "netns",
                &lb,
                "type",
                "veth",
                "peer",
                "name",
                "peer0",
                "address",
                "02:00:00:00:02:02",
                "netns",
                &peer,
            ],
        );
        for (namespace, interface, host) in [(&lb, "nic0", 1), (&peer, "peer0", 2)] {
            let v4 = format!("198.18.0.{host}/24");
            let v6 = format!("2001:db8:1::{host}/64");
            run("ip", &["-n", namespace, "link", "set", "lo", "up"]);
            run("ip", &["-n", namespace, "link", "set", interface, "up"]);
            run("ip", &["-n", namespace, "address", "add", &v4, "dev", interface]);
            run("ip", &["-n", namespace, "address", "add", &v6, "dev", interface, "nodad"]);
        }
        net
    }

    fn lb(&self) -> String {
        format!("{}-lb", self.0)
    }

    fn peer(&self) -> String {
        format!("{}-peer", self.0)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [self.lb(), self.peer()] {
            // It may not exist.
            let _ = Command::new("ip").args(["netns", "del", &namespace]).output();
        }
        let _ = std::fs::remove_dir_all(std::env::temp_dir().join(&self.0));
    }
}

/// Runs `test` in namespaces of its own.
fn isolated(name: &str, test: impl FnOnce(&Inside)) {
    if let Ok(net) = std::env::var(INSIDE) {
        return test(&Inside { net });
    }
    let uid = run("id", &["-u"]);
    assert_eq!(uid.trim(), "0", "this test makes network namespaces: run it as root");
    let net = Net::up(&name.chars().take(12).collect::<String>());
    let binary = std::env::current_exe().unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &net.lb()]).arg(binary);
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, &net.0);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "inside the namespace:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "nothing ran inside the namespace:\n{stdout}");
}

/// The view from within the balancer's namespace.
struct Inside {
    net: String,
}

impl Inside {
    /// Runs `ip` in the balancer's namespace.
    fn ip(&self, arguments: &str) -> String {
        run("ip", &arguments.split(' ').collect::<Vec<_>>())
    }

    /// Runs `ip` in the peer's namespace.
    fn peer_ip(&self, arguments: &str) -> String {
        let peer = format!("{}-peer", self.net);
        run("ip", &[&["-n", &peer], &arguments.split(' ').collect::<Vec<_>>()[..]].concat())
    }

    /// A command in the peer's namespace.
    fn peer(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-peer", self.net), program]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn peer_sysctl(&self, setting: &str) {
        let status = self.peer("sysctl").args(["-q", "-w", setting]).status().unwrap();
        assert!(status.success(), "sysctl {setting}");
    }

    fn socket(&self) -> PathBuf {
        std::env::temp_dir().join(&self.net).join("control.sock")
    }

    /// Starts control in a thread of this process and waits until it is ready.
    fn start(&self, config: &Config) -> Running {
        let first = ForwardingTable::build(0, config.hash.secret, Local::default(), &[], None);
        let (publisher, tables) = Publisher::new(first);
        let ready = Arc::new(AtomicBool::new(false));
        let (config, socket, told) = (config.clone(), self.socket(), Arc::clone(&ready));
        let thread = std::thread::spawn(move || {
            control::run(inputs(config, &socket, publisher, told), Signals::catch().unwrap())
        });
        wait_for("control is ready", SOON, || {
            ready.load(Ordering::Acquire) || thread.is_finished()
        });
        if thread.is_finished() {
            panic!("control ended: {:?}", thread.join().unwrap());
        }
        Running { thread, tables }
    }

    /// Runs a command of holdfast against the control socket, as from another terminal.
    fn cli(&self, arguments: &[&str]) -> String {
        let socket = self.socket();
        let socket = ["--socket", socket.to_str().unwrap()];
        run(env!("CARGO_BIN_EXE_holdfast"), &[arguments, &socket].concat())
    }

    /// Reply of the control API, with its header.
    fn ask(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: holdfast\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn addresses(&self) -> String {
        self.ip("-o address show dev nic0")
    }
}

/// A running control plane.
struct Running {
    thread: std::thread::JoinHandle<Result<(), control::ControlError>>,
    tables: Subscription,
}

impl Running {
    fn hop(&mut self, backend: u16) -> Option<NextHop> {
        self.tables.current().backend(BackendIndex(backend)).unwrap().next_hop
    }

    fn wait_for_hop(&mut self, backend: u16, limit: Duration, wanted: Option<NextHop>) {
        let what = format!("next hop of backend {backend}: {wanted:?}");
        wait_for(&what, limit, || self.hop(backend) == wanted);
    }

    /// Ends the control plane as an operator does.
    fn stop(self) {
        signal("TERM");
        self.thread.join().unwrap().unwrap();
    }
}

/// Sends a signal to this process.
fn signal(name: &str) {
    run("kill", &["-s", name, &std::process::id().to_string()]);
}

/// A steering without an XDP program.
struct NoProgram;

/// Lists of no program.
struct NoLists;

impl AccessMaps for NoLists {
    fn insert(&mut self, _key: &ListKey, _entry: ListEntry) -> Result<(), String> {
        Ok(())
    }

    fn remove(&mut self, _key: &ListKey) -> Result<(), String> {
        Ok(())
    }
}

impl SteeringProgram for NoProgram {
    fn sync(&mut self, _rules: &SteerRules) -> Result<(), String> {
        Ok(())
    }

    fn attach(&mut self) -> Result<Vec<AttachedView>, String> {
        Ok(vec![AttachedView { xdp: "native".to_owned(), fallbacks: Vec::new() }])
    }

    fn counters(&mut self, _nic: NicIndex) -> SteerCounters {
        SteerCounters::default()
    }

    fn access_drops(&mut self, _vip: VipId) -> AccessDrops {
        AccessDrops::default()
    }

    fn take_lists(&mut self) -> Result<Box<dyn AccessMaps>, String> {
        Ok(Box::new(NoLists))
    }

    fn socket_statistics(&mut self, _nic: NicIndex) -> SocketStatistics {
        SocketStatistics::default()
    }

    fn nic_now(&mut self, _nic: NicIndex) -> Result<NicNow, String> {
        Err("not looked at here".to_owned())
    }

    fn attach_again(&mut self, _nic: NicIndex) -> Result<(), String> {
        Ok(())
    }

    fn guard_again(&mut self, _nic: NicIndex, _ifindex: u32) -> Result<(), String> {
        Ok(())
    }

    fn set_mac(&mut self, _nic: NicIndex, _mac: [u8; 6]) -> Result<(), String> {
        Ok(())
    }

    fn leave(&mut self) {}
}

fn inputs(config: Config, socket: &Path, publisher: Publisher, ready: Arc<AtomicBool>) -> Inputs {
    let (sender, events) = crossbeam_channel::bounded(1);
    let packets = PacketSocket::open().unwrap();
    let reloaded = config.clone();
    Inputs {
        config,
        config_path: PathBuf::from("holdfast.toml"),
        load: Arc::new(move |_| Ok(Config { vips: Vec::new(), ..reloaded.clone() })),
        control_socket: control::admin::claim(socket).unwrap(),
        workers: Vec::new(),
        nics: vec![NicView {
            interface: "nic0".to_owned(),
            ifindex: nic_index(),
            mac: NIC_MAC,
            mtu: 1500,
            driver: "veth".to_owned(),
            mode: "copy".to_owned(),
            multi_buffer: false,
            queues: vec![0],
            rx_queues: 1,
            fallbacks: Vec::new(),
        }],
        registry: Registry::default(),
        save: None,
        privileges: Kept::default(),
        publisher,
        steering: Box::new(NoProgram),
        send_frame: Box::new(move |interface, frame| packets.send(interface, frame)),
        shared: SharedTables::new(Arc::from([]), &TableSecret::new(1), TableSizes::default())
            .unwrap(),
        events,
        clock: Arc::new(|| Ticks(0)),
        explain: Arc::new(|_, _| Err("nothing is forwarded here".to_owned())),
        hand_over: HandOver::default(),
        ready: Box::new(move || {
            // Release: pairs with the test's Acquire. The sender lives until control has started.
            drop(sender);
            ready.store(true, Ordering::Release);
        }),
    }
}

fn config(vips: Vec<Vip>) -> Config {
    Config {
        access: AccessLists::default(),
        workers: Workers {
            cores: vec![0],
            idle: Idle::Sleep,
            flows: 64,
            clients: 1024,
            frames: None,
            frame_size: None,
            batch: 64,
            io: Io { tx_budget: 256, tx_kick: 1, need_wakeup: true, busy_poll: 0 },
        },
        nics: vec![Nic {
            interface: "nic0".to_owned(),
            mode: CopyMode::Auto,
            xdp: XdpMode::Auto,
            queues: None,
            ring: 64,
        }],
        vips,
        fragments: Fragments { timeout: Ticks(3000), datagrams: 64, parked: 0 },
        full_nat: FullNat::default(),
        icmp: Default::default(),
        new_flows: Default::default(),
        control: Control { socket: PathBuf::from("unused"), on_drained: Vec::new() },
        state: holdfast::config::State { directory: None },
        security: holdfast::config::Security { seccomp: true },
        asks: 10_000,
        tunnels: holdfast::forwarding::Tunnels::default(),
        hash: Hash { secret: [0; 16], table_size: 251 },
    }
}

fn vip(name: &str, address: &str, announce: Announce, backends: &[&str]) -> Vip {
    let second = Ticks::seconds(1);
    let backends = (0..).zip(backends).map(|(i, address): (u32, _)| Backend {
        name: format!("b{i}"),
        address: address.parse().unwrap(),
        port: Some(8080),
        weight: 1,
        server_ids: Vec::new(),
        max_connections: None,
    });
    Vip {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        ports: Ports::of(&[80]),
        protocol: Protocol::Tcp,
        policy: VipPolicy {
            scheduler: SchedulerKind::Maglev { size: 251 },
            timeouts: Timeouts {
                embryonic: second,
                established: second,
                closing: second,
                udp_first: second,
                udp: second,
            },
            reject_no_backend: false,
            ..VipPolicy::default()
        },
        split: None,
        forward: Forward::Nat,
        health: Health::None,
        fail_open: false,
        withdraws: false,
        damping: None,
        passive: None,
        drain: Drain { deadline: None, then: FlowAction::Rehash, slow_start: Duration::ZERO },
        on_remove: FlowAction::Rehash,
        announce,
        access: AccessLists::default(),
        rate: None,
        backends: backends.collect(),
    }
}

fn on_nic() -> Announce {
    Announce::Interface("nic0".to_owned())
}

/// The next hop `02:00:00:00:02:<last>`.
fn hop(last: u8) -> Option<NextHop> {
    Some(NextHop { nic: NicIndex(0), mac: [2, 0, 0, 0, 2, last], vlan: None })
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "after {limit:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Adds addresses to `nic0` like a holdfast process that is killed afterwards.
fn leave_behind(addresses: &[&str]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let netlink = control::netlink::Netlink::open().unwrap();
        for address in addresses {
            let added = netlink.add_address(nic_index(), address.parse().unwrap()).await.unwrap();
            assert!(added, "{address} was there before");
        }
    });
}

fn nic_index() -> u32 {
    std::fs::read_to_string("/sys/class/net/nic0/ifindex").unwrap().trim().parse().unwrap()
}

/// A process, killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn next_hops_follow_the_neighbours() {
    isolated("next_hops_follow_the_neighbours", |inside| {
        let mut addresses = vec!["198.18.0.2", "2001:db8:1::2"];
        // A host that is not there yet, this machine itself, and a host without a route.
        addresses.extend(["198.18.0.3", "198.18.0.1", "203.0.113.1"]);
        let vips = addresses.iter().zip(10..).map(|(address, host)| {
            let listen = match address.parse().unwrap() {
                IpAddr::V4(_) => format!("192.0.2.{host}"),
                IpAddr::V6(_) => format!("2001:db8:100::{host}"),
            };
            vip(&format!("vip{host}"), &listen, Announce::None, &[address])
        });
        let mut control = inside.start(&config(vips.collect()));
        control.wait_for_hop(0, SOON, hop(2));
        control.wait_for_hop(1, SOON, hop(2));
        assert_eq!([control.hop(2), control.hop(3), control.hop(4)], [None; 3]);

        // A new host is found although no packet is sent to it.
        inside.peer_ip("address add 198.18.0.3/24 dev peer0");
        control.wait_for_hop(2, SOON, hop(2));

        // A neighbour that changes its MAC and announces the change.
        inside.peer_sysctl("net.ipv4.conf.peer0.arp_notify=1");
        inside.peer_sysctl("net.ipv6.conf.peer0.ndisc_notify=1");
        inside.peer_ip("link set dev peer0 address 02:00:00:00:02:03");
        control.wait_for_hop(0, SOON, hop(3));
        control.wait_for_hop(1, SOON, hop(3));

        // A new route.
        inside.ip("route add 203.0.113.0/24 via 198.18.0.2");
        control.wait_for_hop(4, SOON, hop(3));
        inside.ip("route del 203.0.113.0/24");
        control.wait_for_hop(4, SOON, None);
        control.stop();
    });
}

/// A MAC that changes without an announcement is detected because neighbours in use are verified.
#[test]
fn a_silent_move_is_noticed() {
    isolated("a_silent_move_is_noticed", |inside| {
        // Neighbours go stale after 0.5 to 1.5 s instead of 15 to 45 s.
        let sysctl = "net.ipv4.neigh.nic0.base_reachable_time_ms=1000";
        run("sysctl", &["-q", "-w", sysctl]);
        let config = config(vec![vip("web", "192.0.2.10", Announce::None, &["198.18.0.2"])]);
        let mut control = inside.start(&config);
        control.wait_for_hop(0, SOON, hop(2));
        inside.peer_ip("link set dev peer0 address 02:00:00:00:02:03");
        control.wait_for_hop(0, VERIFIED, hop(3));
        // A neighbour that stays away has no next hop in the end.
        inside.peer_ip("address flush dev peer0");
        control.wait_for_hop(0, VERIFIED, None);
        control.stop();
    });
}

#[test]
fn gateways_and_foreign_interfaces() {
    isolated("gateways_and_foreign_interfaces", |inside| {
        inside.ip("link add other0 type veth peer name other1");
        inside.ip("address add 198.18.9.1/24 dev other0");
        inside.ip("link set other0 up");
        inside.ip("route add 203.0.113.0/24 via inet6 2001:db8:1::2 dev nic0");
        let backends = ["203.0.113.5", "198.18.9.2"];
        let config = config(vec![vip("web", "192.0.2.10", Announce::None, &backends)]);
        let mut control = inside.start(&config);
        control.wait_for_hop(0, SOON, hop(2));
        assert_eq!(control.hop(1), None, "other0 is no NIC of ours");
        control.stop();
    });
}

#[test]
fn health_follows_a_real_server() {
    isolated("health_follows_a_real_server", |inside| {
        let mut web = vip("web", "192.0.2.10", Announce::None, &["198.18.0.2", "2001:db8:1::2"]);
        web.health = Health::Tcp(TcpHealth {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(100),
            rise: 2,
            fall: 2,
            port: None,
        });
        let mut control = inside.start(&config(vec![web]));
        let mut wait_until = |up: bool| {
            for index in [0, 1] {
                wait_for(&format!("backend {index} up: {up}"), SOON, || {
                    control.tables.current().backend(BackendIndex(index)).unwrap().up == up
                });
            }
        };
        wait_until(false);
        let serve = || {
            let script = "import http.server as h\n\
                class S(h.ThreadingHTTPServer):\n address_family = 10\n\
                S(('::', 8080), h.BaseHTTPRequestHandler).serve_forever()";
            Server(inside.peer("python3").args(["-c", script]).spawn().unwrap())
        };
        let server = serve();
        wait_until(true);
        drop(server);
        wait_until(false);
        let _server = serve();
        wait_until(true);
        // Silence counts like a refusal.
        inside.peer_ip("link set peer0 down");
        wait_until(false);
        control.stop();
    });
}

#[test]
fn addresses_come_are_announced_and_go() {
    isolated("addresses_come_are_announced_and_go", |inside| {
        // An operator's address, and two that a killed process left: one still configured, one not.
        inside.ip("address add 192.0.2.12/32 dev nic0");
        leave_behind(&["192.0.2.13", "192.0.2.14"]);
        // The peer's neighbour entries for the VIPs are wrong.
        for address in ["192.0.2.10", "2001:db8:100::10"] {
            let wrong = "lladdr 02:00:00:00:09:09 dev peer0 nud stale";
            inside.peer_ip(&format!("neigh replace {address} {wrong}"));
        }
        let vips = ["192.0.2.10", "2001:db8:100::10", "192.0.2.12", "192.0.2.13", "192.0.2.10"];
        let vips = vips.iter().zip(0..).map(|(address, i)| {
            let mut vip = vip(&format!("vip{i}"), address, on_nic(), &[]);
            vip.ports = Ports::of(&[80 + i]);
            vip
        });
        let control = inside.start(&config(vips.collect()));
        let there = inside.addresses();
        for address in ["192.0.2.10/32", "2001:db8:100::10/128", "192.0.2.12/32", "192.0.2.13/32"] {
            assert!(there.contains(address), "{address}:\n{there}");
        }
        assert!(!there.contains("192.0.2.14"), "an unused leftover:\n{there}");
        let tentative = |line: &str| line.contains("2001:db8:100") && line.contains("tentative");
        assert!(!there.lines().any(tentative), "{there}");

        wait_for("the peer has the announcements", SOON, || {
            let known = inside.peer_ip("neigh show dev peer0");
            ["192.0.2.10 lladdr 02:00:00:00:01:01", "2001:db8:100::10 lladdr 02:00:00:00:01:01"]
                .iter()
                .all(|entry| known.contains(entry))
        });
        inside.peer_ip("neigh flush dev peer0");
        inside.peer_ip("route add 192.0.2.0/24 dev peer0");
        inside.peer_ip("route add 2001:db8:100::/64 dev peer0");
        for address in ["192.0.2.10", "2001:db8:100::10"] {
            let ping = inside.peer("ping").args(["-c", "1", "-W", "5", address]).status().unwrap();
            assert!(ping.success(), "the kernel does not answer for {address}");
        }
        // The machine's own connections do not use a VIP as their source, although its prefix is
        // the longest.
        let route = inside.ip("-6 route get 2001:db8:1::2");
        assert!(route.contains("src 2001:db8:1::1"), "{route}");

        // A link that goes down takes IPv6 addresses with it; they come back.
        inside.ip("link set nic0 down");
        inside.ip("link set nic0 up");
        wait_for("the IPv6 VIP is there again", SOON, || {
            inside.addresses().contains("2001:db8:100::10")
        });
        control.stop();
        let left = inside.addresses();
        for address in ["192.0.2.10", "2001:db8:100::10", "192.0.2.13"] {
            assert!(!left.contains(address), "{address} was not removed:\n{left}");
        }
        assert!(left.contains("192.0.2.12"), "the operator's address is gone:\n{left}");
        assert!(!inside.socket().exists(), "the control socket is still there");
    });
}

#[test]
fn sighup_reloads_and_takes_addresses_away() {
    isolated("sighup_reloads_and_takes_addresses_away", |inside| {
        let config = config(vec![vip("web", "192.0.2.10", on_nic(), &["198.18.0.2"])]);
        let control = inside.start(&config);
        assert!(inside.addresses().contains("192.0.2.10"));
        signal("HUP");
        wait_for("the VIP is gone", SOON, || !inside.addresses().contains("192.0.2.10"));
        control.stop();
    });
}

/// Prints the address of each announcement that arrives on an interface, until the script is
/// terminated.
const LISTENER: &str = "
import ipaddress, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20) # SO_RCVBUFFORCE
s.bind(('peer0', 0))
print('listening', flush=True)
while True:
    frame = s.recv(2048)
    kind = frame[12:14]
    if kind == b'\\x08\\x06' and frame[28:32] == frame[38:42] and frame[20:22] == b'\\0\\1':
        print(ipaddress.ip_address(frame[28:32]), flush=True)
    elif kind == b'\\x86\\xdd' and frame[20] == 58 and frame[54] == 136:
        print(ipaddress.ip_address(frame[62:78]), flush=True)
";

/// A thousand addresses of both families, each of a VIP of its own.
fn thousand() -> Vec<String> {
    let v4 = (0..500).map(|n| format!("10.77.{}.{}", n / 250, 1 + n % 250));
    let v6 = (0..500).map(|n| format!("2001:db8:77::{:x}", n + 1));
    v4.chain(v6).collect()
}

/// Inodes of the packet sockets of this network namespace.
fn packet_sockets() -> HashSet<String> {
    let table = std::fs::read_to_string("/proc/net/packet").unwrap();
    table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().last())
        .map(str::to_owned)
        .collect()
}

/// All announcements arrive, twice, over one socket, and the API replies while they are sent.
#[test]
fn a_thousand_vips_are_announced_by_one_socket_while_the_api_answers() {
    isolated("a_thousand_vips_are_announced_by_one_socket_while_the_api_answers", |inside| {
        let mut listener = inside.peer("/usr/bin/python3");
        let mut listener = listener.args(["-c", LISTENER]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
        let _listener = Server(listener);
        assert_eq!(lines.next().unwrap().unwrap(), "listening");
        let heard = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
        let log = Arc::clone(&heard);
        std::thread::spawn(move || {
            // The kernel's own announcements are about other addresses.
            let ours =
                |line: &String| line.starts_with("10.77.") || line.starts_with("2001:db8:77:");
            for line in lines.map_while(Result::ok).filter(ours) {
                *log.lock().unwrap().entry(line).or_default() += 1;
            }
        });
        let once = || heard.lock().unwrap().len();
        let addresses = thousand();
        let vips = addresses.iter().enumerate().map(|(number, address)| {
            let vip = vip(&format!("vip{number}"), address, on_nic(), &["198.18.0.2"]);
            Vip { forward: Forward::Dsr, ..vip }
        });
        let config = config(vips.collect());

        let (mut sockets, mut answered) = (HashSet::new(), false);
        let control = inside.start(&config);
        let end = Instant::now() + SOON;
        while once() < addresses.len() && Instant::now() < end {
            sockets.extend(packet_sockets());
            answered |= inside.ask("/v1/status").contains("vip999") && once() < addresses.len() / 2;
        }
        assert!(answered, "the API answers before half of the addresses are announced");
        wait_for("every address is announced twice", SOON, || {
            sockets.extend(packet_sockets());
            let heard = heard.lock().unwrap();
            addresses.iter().all(|address| heard.get(address) == Some(&2))
        });
        assert_eq!(sockets.len(), 1, "one socket for all: {sockets:?}");
        let there = inside.addresses();
        assert!(addresses.iter().all(|address| there.contains(&format!(" {address}/"))));
        control.stop();
        let left = inside.addresses();
        assert!(!addresses.iter().any(|address| left.contains(&format!(" {address}/"))), "{left}");
    });
}

/// `check` and the running process report an address of a VIP that leads clients to the kernel.
#[test]
fn addresses_that_lead_clients_to_the_kernel_are_reported() {
    isolated("addresses_that_lead_clients_to_the_kernel_are_reported", |inside| {
        inside.ip("link add other0 type veth peer name other1");
        for link in ["other0", "other1"] {
            inside.ip(&format!("link set {link} up"));
        }
        let elsewhere = Announce::Interface("other0".to_owned());
        let vips = vec![
            vip("web", "192.0.2.10", on_nic(), &["198.18.0.2"]),
            vip("mail", "192.0.2.11", elsewhere, &["198.18.0.2"]),
        ];
        let mut config = config(vips);
        config.full_nat.sources = vec!["198.18.0.1".parse().unwrap()];
        let found = || {
            let found = control::survey::survey(&config, &[]).unwrap();
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let misplaced =
            "VIP mail: 192.0.2.11 belongs to other0, and no [[nic]] receives its frames";
        let answers = "other0, which is no [[nic]], is in 198.18.0.0/24 as nic0 is, and answers ARP for \
                       VIP mail and 1 other VIP";
        let shared =
            "full_nat.sources: 198.18.0.1 is this box's own address on nic0: the kernel uses";
        let expected = [&format!("vip.announce: {misplaced}"), shared];
        let told = found();
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        assert!(told.iter().zip(expected).all(|(told, part)| told.starts_with(part)), "{told:#?}");

        config.full_nat.sources.clear();
        let control = inside.start(&config);
        let events = |kind: &str, text: &str| {
            let kind = format!("\"kind\":\"{kind}\"");
            let events = inside.cli(&["events", "--json"]);
            events.lines().filter(|line| line.contains(&kind) && line.contains(text)).count()
        };
        assert_eq!(events("address_trouble", misplaced), 1);
        assert_eq!(events("address_trouble", answers), 0);
        inside.ip("address add 198.18.0.7/24 dev other0");
        wait_for("the other NIC is told of", SOON, || events("address_trouble", answers) == 1);
        run("sysctl", &["-q", "-w", "net.ipv4.conf.other0.arp_ignore=1"]);
        wait_for("it answers no longer", SOON * 2, || events("address_right", answers) == 1);
        assert_eq!(events("address_trouble", ""), 2);
        control.stop();
    });
}

/// Output of `holdfast check` for the network, without a start.
#[test]
fn survey_finds_what_the_network_lacks() {
    isolated("survey_finds_what_the_network_lacks", |inside| {
        inside.ip("link add eth9 type veth peer name eth10");
        inside.ip("link set eth9 up");
        inside.ip("link set eth10 up");
        inside.ip("address add 203.0.113.1/24 dev eth9");
        inside.ip("link set nic0 mtu 1900");
        let backends = ["198.18.0.2", "198.18.0.1", "10.9.9.9", "203.0.113.7"];
        let config = config(vec![
            vip("web", "192.0.2.10", on_nic(), &backends),
            vip("mail", "198.18.0.255", on_nic(), &["198.18.0.2"]),
            vip("ssh", "198.18.0.1", on_nic(), &["198.18.0.2"]),
        ]);
        let found = control::survey::survey(&config, &[]).unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let expected = [
            "nic.interface: nic0 has an MTU of 1900, and frames of 2048 bytes hold packets of 1770",
            "vip.address: VIP mail: 198.18.0.255 is the broadcast address of the network on nic0",
            "vip.address: VIP ssh: 198.18.0.1 is this box's own address on nic0",
            "vip.backend.address: web/b1 (198.18.0.1): its address is one of this box",
            "vip.backend.address: web/b2 (10.9.9.9): no route to its address",
            "vip.backend.address: web/b3 (203.0.113.7): its route goes out by eth9",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{expected} is not the start of\n{found}");
        }
        assert!(inside.addresses().contains("198.18.0.1"), "nothing is changed");
    });
}

#[test]
fn an_interface_that_is_not_there_is_refused_and_nothing_is_left() {
    isolated("an_interface_that_is_not_there_is_refused_and_nothing_is_left", |inside| {
        let elsewhere = Announce::Interface("nic9".to_owned());
        let vips = vec![
            vip("web", "192.0.2.10", on_nic(), &[]),
            vip("mail", "192.0.2.11", elsewhere, &[]),
        ];
        let config = config(vips);
        let first = ForwardingTable::build(0, config.hash.secret, Local::default(), &[], None);
        let (publisher, _tables) = Publisher::new(first);
        let ready = Arc::new(AtomicBool::new(false));
        let socket = inside.socket();
        let error = control::run(
            inputs(config, &socket, publisher, Arc::clone(&ready)),
            Signals::catch().unwrap(),
        );
        let error = error.unwrap_err().to_string();
        for part in ["192.0.2.11", "nic9 does not exist", "announce"] {
            assert!(error.contains(part), "{part:?} missing from {error:?}");
        }
        assert!(!ready.load(Ordering::Acquire));
        assert!(!inside.addresses().contains("192.0.2.1"), "{}", inside.addresses());
        assert!(!socket.exists());
    });
}
