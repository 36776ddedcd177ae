//! Settings of a run: checked once, so that the other modules can rely on them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::addresses::{is_lab, is_lab_address, lab_ranges};
use super::draw::Distribution;
use super::layout::{FCS, Layout};
use super::signature::{SHORT, WHOLE};
use super::tuple::Clients;
use crate::xdp::generate::BLAST_MAX;

/// Most concurrent flows. A flow takes 24 bytes in every worker (48 with replies), and 20 to 44
/// bytes once, depending on traffic and distribution.
pub const MAX_FLOWS: u64 = 10_000_000;
/// Bounds of a rate in packets per second.
pub const RATE_PPS: (f64, f64) = (1.0, 1e8);
/// Bounds of a rate in bits per second.
pub const RATE_BITS: (f64, f64) = (1e3, 4e11);
/// Bounds of a frame's size in bytes, with FCS (RFC 2544; 9000 for jumbo frames).
pub const SIZES: (u64, u64) = (64, 9000);
/// Bounds of a run's length in seconds.
pub const SECONDS: (f64, f64) = (0.1, 3600.0);
/// Most workers, each with its own queue.
pub const MAX_WORKERS: u64 = 64;
/// IMIX: sizes, and their number in twelve packets (7:4:1, as in RFC 6985's example).
const IMIX: [(usize, usize); 3] = [(64, 7), (594, 4), (1518, 1)];

/// Kinds of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// UDP datagrams.
    Udp,
    /// TCP connections: the generator plays client and server, and both keep state.
    Tcp,
    /// TCP SYNs only.
    Syn,
}

impl Traffic {
    /// Returns the name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Syn => "syn",
        }
    }
}

/// Methods of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// AF_XDP: everything is measured.
    AfXdp,
    /// BPF_PROG_RUN in the kernel: more packets, fewer measurements.
    ProgRun,
}

impl Method {
    /// Returns the name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AfXdp => "af-xdp",
            Self::ProgRun => "prog-run",
        }
    }
}

/// Requested rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Packets per second.
    Packets(f64),
    /// Bits per second, of frames with FCS, without preamble and gap.
    Bits(f64),
    /// As many packets as possible.
    Max,
}

/// Frame sizes, with FCS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// One size for all frames.
    Fixed(u64),
    /// 64, 594 and 1518 bytes in the proportion 7:4:1.
    Imix,
}

/// Unchecked settings, as requested.
#[derive(Debug, Clone)]
pub struct Request {
    /// Interface name of the client-side NIC.
    pub interface: String,
    /// Interface name of the backend-side NIC, if it is a different one.
    pub receive: Option<String>,
    /// Address and port of the VIP.
    pub target: SocketAddr,
    /// Prefix of the clients' addresses; `None`: a default one.
    pub clients: Option<IpNet>,
    /// Kind of packets.
    pub traffic: Traffic,
    /// Method of sending.
    pub method: Method,
    /// Concurrent flows.
    pub flows: u64,
    /// Distribution of packets over flows.
    pub distribution: Distribution,
    /// Flows replaced by new ones, per second.
    pub new_flows: f64,
    /// Frame size; `None`: the shortest with which the method measures everything that it can.
    pub size: Option<Size>,
    /// Requested rate.
    pub rate: Rate,
    /// Length of a run, or of each trial of a search, in seconds.
    pub seconds: f64,
    /// Length of the warm-up run, which is not counted, in seconds.
    pub warm_up: f64,
    /// Number of workers, each with a queue of each NIC.
    pub workers: u64,
    /// Cores of the workers, in order; empty: chosen by the scheduler.
    pub cores: Vec<usize>,
    /// Whether backends reply to UDP, too.
    pub replies: bool,
    /// MAC of the next hop; `None`: resolved from the kernel's routes.
    pub next_hop: Option<[u8; 6]>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Whether addresses outside the lab ranges are allowed.
    pub own_network: bool,
}

/// Checked settings of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Interface name of the client-side NIC.
    pub interface: String,
    /// Interface name of the backend-side NIC, if it is a different one.
    pub receive: Option<String>,
    /// Address and port of the VIP.
    pub target: SocketAddr,
    /// Addresses and ports of the clients.
    pub clients: Clients,
    /// Kind of packets.
    pub traffic: Traffic,
    /// Header layout.
    pub layout: Layout,
    /// Method of sending.
    pub method: Method,
    /// Concurrent flows; at least one per worker.
    pub flows: u32,
    /// Distribution of packets over flows.
    pub distribution: Distribution,
    /// Flows replaced by new ones, per second.
    pub new_flows: f64,
    /// Frame sizes in bytes with FCS, in the order in which they are sent.
    pub sizes: Vec<usize>,
    /// Requested frame size.
    pub size: Size,
    /// Packets per second; `None`: as many as possible.
    pub rate_pps: Option<f64>,
    /// Length of a run.
    pub duration: Duration,
    /// Length of the warm-up run; may be 0.
    pub warm_up: Duration,
    /// Number of workers.
    pub workers: u32,
    /// Cores of the workers, in order; empty: chosen by the scheduler.
    pub cores: Vec<usize>,
    /// Whether backends reply.
    pub replies: bool,
    /// MAC of the next hop; `None`: resolved from the kernel's routes.
    pub next_hop: Option<[u8; 6]>,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Reasons for which a request is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// An address is outside the lab ranges.
    #[error(
        "{what} {address} is outside the documentation, benchmarking and private ranges ({}); if \
         that network is yours and may be loaded, say so with --i-own-this-network",
        lab_ranges()
    )]
    NotALab {
        /// Option that has the address.
        what: &'static str,
        /// The address or prefix.
        address: String,
    },
    /// A number is out of its range.
    #[error("{option} {got}: use {range}{unit}{reason}")]
    OutOfRange {
        /// Name of the option.
        option: &'static str,
        /// Value in the request.
        got: String,
        /// Smallest and largest value.
        range: String,
        /// Unit, with a leading blank.
        unit: &'static str,
        /// Reason for the range, if it is not obvious.
        reason: String,
    },
    /// Two options contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

impl Settings {
    /// Checks a request.
    ///
    /// # Errors
    /// The first [`Refusal`].
    pub fn check(request: Request) -> Result<Self, Refusal> {
        let ipv6 = request.target.is_ipv6();
        let layout = Layout { ipv6, tcp: request.traffic != Traffic::Udp };
        let net = request.clients.unwrap_or_else(|| default_clients(ipv6));
        check_addresses(&request, net)?;
        let clients = Clients::new(net);
        let workers = in_range("--workers", request.workers, (1, MAX_WORKERS), "")?;
        check_cores(&request)?;
        let most = MAX_FLOWS.min(u64::from(clients.space()));
        let reason = if most < MAX_FLOWS {
            format!(": {net} has no more addresses and ports; use a shorter prefix for --clients")
        } else {
            String::new()
        };
        let flows = ranged("--flows", request.flows, (u64::from(workers), most), "", reason)?;
        let shortest = Size::Fixed(shortest_measured(layout, request.method) as u64);
        let size = request.size.unwrap_or(shortest);
        let sizes = sizes(size, layout, request.method)?;
        check_floats(&request)?;
        check_combination(&request)?;
        Ok(Self {
            rate_pps: packets_per_second(request.rate, &sizes)?,
            interface: request.interface,
            receive: request.receive,
            target: request.target,
            clients,
            traffic: request.traffic,
            layout,
            method: request.method,
            flows,
            distribution: request.distribution,
            new_flows: request.new_flows,
            sizes,
            size,
            duration: Duration::from_secs_f64(request.seconds),
            warm_up: Duration::from_secs_f64(request.warm_up),
            workers,
            cores: request.cores,
            replies: request.replies || request.traffic == Traffic::Tcp,
            next_hop: request.next_hop,
            seed: request.seed,
        })
    }

    /// Returns the mean frame size in bytes, with FCS.
    pub fn mean_size(&self) -> f64 {
        mean(&self.sizes)
    }

    /// Returns the values that cannot be measured, and the reasons, one sentence each.
    pub fn not_measured(&self) -> Vec<String> {
        if self.method == Method::ProgRun {
            return vec![
                "duplicates, reordering and latency: BPF_PROG_RUN sends packets without sequence \
                 number and time; use --method af-xdp"
                    .to_owned(),
                format!(
                    "affinity of flows other than the first {}",
                    crate::xdp::generate::WATCHED_FLOWS
                ),
            ];
        }
        let smallest = self.sizes.iter().min().copied().unwrap_or(0);
        let whole = smallest_with_time(self.layout);
        if smallest >= whole {
            return Vec::new();
        }
        vec![format!(
            "latency of frames of {smallest} bytes: their payload has no room for the time; use \
             --size {whole} or more"
        )]
    }
}

fn check_addresses(request: &Request, clients: IpNet) -> Result<(), Refusal> {
    let target = request.target.ip();
    if target.is_ipv4() != clients.network().is_ipv4() {
        return Err(Refusal::Contradiction(format!(
            "--clients {clients} and --target {target} are of different families; give both as \
             IPv4 or both as IPv6"
        )));
    }
    if unusable(target) || request.target.port() == 0 {
        return Err(Refusal::Contradiction(format!(
            "--target {}: give the unicast address and port of a VIP",
            request.target
        )));
    }
    if request.own_network {
        return Ok(());
    }
    if !is_lab_address(target) {
        return Err(Refusal::NotALab { what: "--target", address: target.to_string() });
    }
    if !is_lab(clients) {
        return Err(Refusal::NotALab { what: "--clients", address: clients.to_string() });
    }
    Ok(())
}

fn unusable(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(ip) if ip.is_broadcast());
    address.is_multicast() || address.is_unspecified() || address.is_loopback() || broadcast
}

fn check_cores(request: &Request) -> Result<(), Refusal> {
    let (cores, workers) = (request.cores.len() as u64, request.workers);
    if cores == 0 || cores == workers {
        return Ok(());
    }
    Err(Refusal::Contradiction(format!(
        "--cores names {cores} core(s) for {workers} worker(s); name one for each, or none"
    )))
}

fn check_floats(request: &Request) -> Result<(), Refusal> {
    float_in_range("--seconds", request.seconds, SECONDS, " s")?;
    float_in_range("--warm-up", request.warm_up, (0.0, SECONDS.1), " s")?;
    float_in_range("--new-flows", request.new_flows, (0.0, 1e7), " per second")?;
    if let Distribution::Zipf { exponent } = request.distribution {
        float_in_range("--zipf-exponent", exponent, (0.01, 10.0), "")?;
    }
    let numbers = request.flows as f64 + request.new_flows * (request.seconds + request.warm_up);
    if numbers > f64::from(u32::MAX / 2) {
        return Err(Refusal::Contradiction(format!(
            "--new-flows {} for {} s would be over {} flows; make one of them smaller",
            request.new_flows,
            request.seconds,
            u32::MAX / 2
        )));
    }
    Ok(())
}

fn check_combination(request: &Request) -> Result<(), Refusal> {
    let contradiction = |text: &str| Err(Refusal::Contradiction(text.to_owned()));
    if request.receive.as_ref() == Some(&request.interface) {
        return contradiction("--receive is the same NIC as --interface; leave it out");
    }
    if request.method == Method::AfXdp {
        return Ok(());
    }
    if matches!(request.distribution, Distribution::Zipf { .. }) {
        return contradiction(
            "--method prog-run draws flows uniformly or in turn; use --method af-xdp for zipf",
        );
    }
    if request.replies || request.new_flows > 0.0 || request.size == Some(Size::Imix) {
        return contradiction(
            "--method prog-run has no --replies, no --new-flows and no --size imix; use --method \
             af-xdp for them",
        );
    }
    Ok(())
}

/// Returns the smallest frame size with which packets can be counted.
fn smallest(layout: Layout) -> usize {
    let signature = if layout.tcp { SHORT } else { WHOLE };
    (layout.payload() + signature + FCS).max(64)
}

/// Returns the smallest frame size that has room for the time of sending, too.
fn smallest_with_time(layout: Layout) -> usize {
    (layout.payload() + WHOLE + FCS).max(64)
}

/// Returns the smallest frame size with which a method measures everything that it can.
fn shortest_measured(layout: Layout, method: Method) -> usize {
    match method {
        Method::AfXdp => smallest_with_time(layout),
        Method::ProgRun => smallest(layout),
    }
}

fn sizes(size: Size, layout: Layout, method: Method) -> Result<Vec<usize>, Refusal> {
    let smallest = smallest(layout);
    let largest = match method {
        Method::AfXdp => SIZES.1,
        Method::ProgRun => (BLAST_MAX + FCS) as u64,
    };
    match size {
        Size::Imix => {
            let counted = IMIX.map(|(size, count)| (size.max(smallest), count));
            Ok(spread(&counted))
        }
        Size::Fixed(size) => {
            let (low, high) = (smallest as u64, largest);
            let reason = match size {
                _ if size < SIZES.0 || size > SIZES.1 => String::new(),
                _ if size < low => format!(
                    ": with these headers a shorter frame has no room for the {} bytes by which \
                     packets are known again",
                    smallest - layout.payload() - FCS
                ),
                _ => format!(
                    ": --method prog-run makes frames of one memory page; use --method af-xdp for \
                     up to {}",
                    SIZES.1
                ),
            };
            let size = ranged("--size", size, (low, high), " bytes with FCS", reason)?;
            Ok(vec![size as usize])
        }
    }
}

/// Spreads the counted sizes evenly over the round.
fn spread(counted: &[(usize, usize)]) -> Vec<usize> {
    let round: usize = counted.iter().map(|(_, count)| count).sum();
    let mut places: Vec<(usize, usize)> = counted
        .iter()
        .flat_map(|&(size, count)| {
            (0..count).map(move |i| ((2 * i + 1) * round / (2 * count), size))
        })
        .collect();
    places.sort_unstable();
    places.into_iter().map(|(_, size)| size).collect()
}

fn mean(sizes: &[usize]) -> f64 {
    sizes.iter().sum::<usize>() as f64 / sizes.len().max(1) as f64
}

fn packets_per_second(rate: Rate, sizes: &[usize]) -> Result<Option<f64>, Refusal> {
    match rate {
        Rate::Max => Ok(None),
        Rate::Packets(pps) => float_in_range("--rate", pps, RATE_PPS, " pps").map(Some),
        Rate::Bits(bits) => {
            let bits = float_in_range("--rate", bits, RATE_BITS, " bit/s")?;
            let pps = bits / (mean(sizes) * 8.0);
            float_in_range("--rate", pps, RATE_PPS, " pps").map(Some)
        }
    }
}

fn default_clients(ipv6: bool) -> IpNet {
    match ipv6 {
        true => IpNet::new_assert(IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 0]), 64),
        false => IpNet::new_assert(IpAddr::from([198, 18, 128, 0]), 17),
    }
}

fn in_range(
    option: &'static str,
    got: u64,
    bounds: (u64, u64),
    unit: &'static str,
) -> Result<u32, Refusal> {
    ranged(option, got, bounds, unit, String::new())
}

fn ranged(
    option: &'static str,
    got: u64,
    (low, high): (u64, u64),
    unit: &'static str,
    reason: String,
) -> Result<u32, Refusal> {
    match u32::try_from(got) {
        Ok(number) if (low..=high).contains(&got) => Ok(number),
        _ => Err(Refusal::OutOfRange {
            option,
            got: got.to_string(),
            range: format!("{low} to {high}"),
            unit,
            reason,
        }),
    }
}

/// Checks that a number is in its range.
///
/// # Errors
/// [`Refusal::OutOfRange`], also for NaN.
pub fn float_in_range(
    option: &'static str,
    got: f64,
    (low, high): (f64, f64),
    unit: &'static str,
) -> Result<f64, Refusal> {
    if (low..=high).contains(&got) {
        return Ok(got);
    }
    let (got, range) = (got.to_string(), format!("{low} to {high}"));
    Err(Refusal::OutOfRange { option, got, range, unit, reason: String::new() })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(super) mod tests {
    use super::*;

    /// A plain request: 1000 UDP flows of 64-byte frames at 1000 pps.
    pub fn request() -> Request {
        Request {
            interface: "client0".to_owned(),
            receive: None,
            target: "192.0.2.10:80".parse().unwrap(),
            clients: None,
            traffic: Traffic::Udp,
            method: Method::AfXdp,
            flows: 1000,
            distribution: Distribution::Uniform,
            new_flows: 0.0,
            size: Some(Size::Fixed(64)),
            rate: Rate::Packets(1000.0),
            seconds: 1.0,
            warm_up: 0.0,
            workers: 1,
            cores: vec![],
            replies: false,
            next_hop: None,
            seed: 1,
            own_network: false,
        }
    }

    fn refusal(change: impl FnOnce(&mut Request)) -> String {
        let mut request = request();
        change(&mut request);
        Settings::check(request).map(|_| "accepted".to_owned()).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        for (message, refusal) in [
            ("--flows 0: use 1 to 10000000", refusal(|r| r.flows = 0)),
            ("--flows 10000001: use 1 to 10000000", refusal(|r| r.flows = 10_000_001)),
            ("--flows 1: use 2 to 10000000", refusal(|r| (r.flows, r.workers) = (1, 2))),
            (
                "--flows 64001: use 1 to 64000: 198.18.0.1/32 has no more addresses and ports; use \
              a shorter prefix for --clients",
                refusal(|r| {
                    r.flows = 64_001;
                    r.clients = Some("198.18.0.1/32".parse().unwrap());
                }),
            ),
            (
                "--size 63: use 64 to 9000 bytes with FCS",
                refusal(|r| r.size = Some(Size::Fixed(63))),
            ),
            (
                "--size 9001: use 64 to 9000 bytes with FCS",
                refusal(|r| r.size = Some(Size::Fixed(9001))),
            ),
            ("--rate 0.5: use 1 to 100000000 pps", refusal(|r| r.rate = Rate::Packets(0.5))),
            (
                "--rate 100000001: use 1 to 100000000 pps",
                refusal(|r| r.rate = Rate::Packets(100_000_001.0)),
            ),
            ("--rate 10: use 1000 to 400000000000 bit/s", refusal(|r| r.rate = Rate::Bits(10.0))),
            ("--rate NaN: use 1 to 100000000 pps", refusal(|r| r.rate = Rate::Packets(f64::NAN))),
            ("--seconds 0: use 0.1 to 3600 s", refusal(|r| r.seconds = 0.0)),
            ("--seconds 3601: use 0.1 to 3600 s", refusal(|r| r.seconds = 3601.0)),
            ("--warm-up -1: use 0 to 3600 s", refusal(|r| r.warm_up = -1.0)),
            ("--workers 65: use 1 to 64", refusal(|r| r.workers = 65)),
            (
                "--new-flows 10000001: use 0 to 10000000 per second",
                refusal(|r| r.new_flows = 10_000_001.0),
            ),
            (
                "--zipf-exponent 0: use 0.01 to 10",
                refusal(|r| r.distribution = Distribution::Zipf { exponent: 0.0 }),
            ),
        ] {
            assert_eq!(refusal, message);
        }
    }

    #[test]
    fn sizes_that_a_layout_or_method_cannot_have_say_why() {
        let v6 = |r: &mut Request| r.target = "[2001:db8::1]:80".parse().unwrap();
        for (start, reason, refusal) in [
            ("--size 64: use 84 to 9000", "has no room for the 18 bytes", refusal(v6)),
            (
                "--size 3500: use 64 to 3076",
                "use --method af-xdp for up to 9000",
                refusal(|r| {
                    (r.size, r.method) = (Some(Size::Fixed(3500)), Method::ProgRun);
                }),
            ),
        ] {
            assert!(refusal.starts_with(start) && refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn without_a_size_frames_are_the_shortest_that_tell_everything() {
        for (target, traffic, method, size) in [
            ("192.0.2.10:80", Traffic::Udp, Method::AfXdp, 64),
            ("192.0.2.10:80", Traffic::Tcp, Method::AfXdp, 76),
            ("[2001:db8::1]:80", Traffic::Udp, Method::AfXdp, 84),
            ("[2001:db8::1]:80", Traffic::Syn, Method::AfXdp, 96),
            ("192.0.2.10:80", Traffic::Tcp, Method::ProgRun, 64),
            ("[2001:db8::1]:80", Traffic::Tcp, Method::ProgRun, 84),
        ] {
            let mut plain = request();
            (plain.target, plain.traffic, plain.method) =
                (target.parse().unwrap(), traffic, method);
            plain.size = None;
            let settings = Settings::check(plain).unwrap();
            assert_eq!(settings.sizes, [size], "{target} {traffic:?} {method:?}");
            assert_eq!(settings.not_measured().is_empty(), method == Method::AfXdp);
        }
    }

    #[test]
    fn addresses_outside_a_lab_ask_for_a_word() {
        for (what, refusal) in [
            ("--target 8.8.8.8 is outside", refusal(|r| r.target = "8.8.8.8:53".parse().unwrap())),
            (
                "--target 2606:4700::1 is outside",
                refusal(|r| r.target = "[2606:4700::1]:53".parse().unwrap()),
            ),
            (
                "--clients 8.8.8.0/24 is outside",
                refusal(|r| r.clients = Some("8.8.8.0/24".parse().unwrap())),
            ),
        ] {
            assert!(refusal.starts_with(what), "{refusal}");
            assert!(refusal.contains("198.18.0.0/15") && refusal.contains("--i-own-this-network"));
        }
        let owned = |address: &str| {
            let target = address.parse().unwrap();
            refusal(|r| (r.target, r.own_network) = (target, true))
        };
        assert_eq!(owned("8.8.8.8:53"), "accepted");
        for address in ["224.0.0.1:53", "127.0.0.1:53", "0.0.0.0:53", "255.255.255.255:1"] {
            assert!(owned(address).contains("unicast"), "{address}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        for (part, refusal) in [
            ("different families", refusal(|r| r.clients = Some("fd00::/64".parse().unwrap()))),
            ("same NIC", refusal(|r| r.receive = Some("client0".to_owned()))),
            ("name one for each", refusal(|r| r.cores = vec![0, 1])),
            ("unicast address and port", refusal(|r| r.target.set_port(0))),
            ("over 2147483647 flows", refusal(|r| (r.new_flows, r.seconds) = (1e6, 3600.0))),
            (
                "zipf",
                refusal(|r| {
                    r.method = Method::ProgRun;
                    r.distribution = Distribution::Zipf { exponent: 1.0 };
                }),
            ),
            ("no --replies", refusal(|r| (r.method, r.replies) = (Method::ProgRun, true))),
        ] {
            assert!(refusal.contains(part), "{part:?} is not in {refusal:?}");
        }
    }

    #[test]
    fn a_bit_rate_counts_frames_with_fcs() {
        let mut bits = request();
        bits.rate = Rate::Bits(512_000.0);
        assert_eq!(Settings::check(bits).unwrap().rate_pps, Some(1000.0));
        let mut max = request();
        max.rate = Rate::Max;
        assert_eq!(Settings::check(max).unwrap().rate_pps, None);
    }

    #[test]
    fn imix_is_seven_four_one() {
        let mut mixed = request();
        mixed.size = Some(Size::Imix);
        let settings = Settings::check(mixed.clone()).unwrap();
        let count = |size| settings.sizes.iter().filter(|&&s| s == size).count();
        assert_eq!((count(64), count(594), count(1518), settings.sizes.len()), (7, 4, 1, 12));
        assert!((settings.mean_size() - 361.8).abs() < 0.1);
        mixed.target = "[2001:db8::1]:80".parse().unwrap();
        let settings = Settings::check(mixed).unwrap();
        assert_eq!(settings.sizes.iter().min(), Some(&84), "IPv6 needs more");
    }

    #[test]
    fn limits_of_a_short_frame_are_reported() {
        let said = |traffic, size| {
            let mut short = request();
            (short.traffic, short.size) = (traffic, Some(Size::Fixed(size)));
            Settings::check(short).unwrap().not_measured()
        };
        assert_eq!(said(Traffic::Udp, 64), Vec::<String>::new());
        assert!(said(Traffic::Tcp, 64).concat().contains("--size 76 or more"));
        assert_eq!(said(Traffic::Syn, 76), Vec::<String>::new());
    }
}
