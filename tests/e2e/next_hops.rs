//! Next hops of backends when the kernel loses its neighbours. Times are printed, not asserted.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, requests, vip, wait_for,
};

/// Time between two datagrams.
const PACE: Duration = Duration::from_millis(2);
/// Time for which an echo is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Datagrams with numbers from one socket to a VIP that echoes them.
struct Stream {
    sent: Vec<Instant>,
    /// Numbers and times of the echoes, as they came.
    echoes: Vec<(usize, Instant)>,
}

impl Stream {
    /// Sends until `end`, and receives the echoes.
    fn run(socket: &UdpSocket, end: &AtomicBool) -> Self {
        socket.set_nonblocking(true).unwrap();
        let mut stream = Self { sent: Vec::new(), echoes: Vec::new() };
        let mut last = Instant::now();
        while !end.load(Ordering::Relaxed) || last.elapsed() < PATIENCE {
            if !end.load(Ordering::Relaxed) {
                let number = stream.sent.len().to_string();
                // Fails for an earlier datagram that was refused.
                let _ = socket.send(number.as_bytes());
                last = Instant::now();
                stream.sent.push(last);
            }
            let mut buffer = [0; 64];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = std::str::from_utf8(&buffer[..length]).unwrap();
                let number = text.split(' ').nth(1).unwrap().parse().unwrap();
                stream.echoes.push((number, Instant::now()));
            }
            thread::sleep(PACE);
        }
        stream
    }

    /// Number of datagrams without an echo.
    fn lost(&self) -> usize {
        let mut echoed = vec![false; self.sent.len()];
        self.echoes.iter().for_each(|&(number, _)| echoed[number] = true);
        echoed.iter().filter(|&&echoed| !echoed).count()
    }

    /// Time from `begin` to the first datagram since then that was echoed.
    fn gap_after(&self, begin: Instant) -> Duration {
        let mut numbers: Vec<_> = self.echoes.iter().map(|&(number, _)| number).collect();
        numbers.sort_unstable();
        let after = numbers.iter().map(|&number| self.sent[number]).find(|&at| at >= begin);
        after.unwrap_or_else(|| panic!("no echo after the outage")) - begin
    }
}

/// Runs `meanwhile` beside a stream to each of these VIPs.
fn streams(lab: &Lab, vips: &[crate::lab::Vip], meanwhile: impl FnOnce()) -> Vec<Stream> {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let start = |vip: &crate::lab::Vip| {
            let any: IpAddr = vip.family.client(0).parse().unwrap();
            let socket = lab.udp_socket("client", SocketAddr::new(any, 0));
            socket.connect((vip.address().parse::<IpAddr>().unwrap(), 7)).unwrap();
            let end = &end;
            scope.spawn(move || Stream::run(&socket, end))
        };
        let running: Vec<_> = vips.iter().map(start).collect();
        // A panic here must not leave the streams running.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        end.store(true, Ordering::Relaxed);
        let streams = running.into_iter().map(|stream| stream.join().unwrap()).collect();
        result.map(|()| streams).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn next_hops_outlive_the_kernels_neighbours() {
    let lab = Lab::up(Topology::TwoNic);
    let udp = Family::ALL.map(|family| vip("nat", family, true));
    let web = vip("nat", Family::V4, false);
    let config = Config::new(&lab, 2, [&udp[..], std::slice::from_ref(&web)].concat());
    let holdfast = Holdfast::start(&lab, &config);

    let flushed = streams(&lab, &udp, || {
        for _ in 0..30 {
            lab.run("lb", &["ip", "neigh", "flush", "dev", "back"]);
            requests(&lab, &web, 0, 8).assert_none_failed("new flows after a flush");
        }
    });
    for stream in &flushed {
        println!("flush: {} of {} datagrams lost", stream.lost(), stream.sent.len());
        assert_eq!(stream.lost(), 0);
    }
    assert_eq!(without_next_hop(&holdfast), 0);
    // Health checks fail without a carrier. Next hops are tested here.
    holdfast.write_text(&config.toml().replace("fall = 2", "fall = 100"));
    for _ in 0..10 {
        // Resolver and announcer read the kernel's tables at the same time.
        lab.run("lb", &["ip", "neigh", "flush", "dev", "back"]);
        holdfast.ok(&["reload"]);
    }
    assert!(!holdfast.log().contains("netlink"), "{}", holdfast.log());

    let carrier = |state: &str| {
        lab.run("switch", &["ip", "link", "set", "lb-back", state]);
        Instant::now()
    };
    let mut back = Instant::now();
    let flap = streams(&lab, &udp, || {
        carrier("down");
        thread::sleep(Duration::from_millis(300));
        back = carrier("up");
        thread::sleep(PATIENCE);
    });
    print_gaps("flap", &flap, back);
    assert_eq!(without_next_hop(&holdfast), 0, "next hops are kept");

    let cut = streams(&lab, &udp, || {
        carrier("down");
        // Health checks make the kernel try.
        wait_for("the kernel takes the backends for gone", SOON, || {
            let failed = ["ip", "neigh", "show", "dev", "back", "nud", "failed"];
            lab.run("lb", &failed).lines().count() >= BACKENDS.len()
        });
        holdfast.wait_until("new flows avoid the backends", |status| {
            let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
            backends.all(|backend| {
                let why = backend.next_hop_detail.contains("back has no carrier");
                backend.next_hop.is_none() && why
            })
        });
        back = carrier("up");
        thread::sleep(PATIENCE);
    });
    print_gaps("cut", &cut, back);
    holdfast.stop();
}

fn print_gaps(what: &str, streams: &[Stream], back: Instant) {
    for stream in streams {
        println!("{what}: forwarding {} ms after the carrier", stream.gap_after(back).as_millis());
    }
}

/// Number of packets that were dropped for want of a next hop.
fn without_next_hop(holdfast: &Holdfast<'_>) -> u64 {
    let workers = holdfast.status().workers;
    workers.iter().filter_map(|worker| worker.drops.get("no_next_hop")).sum()
}
