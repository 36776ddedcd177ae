//! Configurations for the lab, as values and as TOML.

use std::fmt::Write as _;

use super::{BACKENDS, Lab, Topology};

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The client's address number `index`.
    pub fn client(self, index: usize) -> String {
        match self {
            Self::V4 => format!("198.18.1.{}", 10 + index),
            Self::V6 => format!("2001:db8:1::{}", 10 + index),
        }
    }

    /// The balancer's own address on the client's side.
    pub fn balancer(self) -> &'static str {
        match self {
            Self::V4 => "198.18.1.2",
            Self::V6 => "2001:db8:1::2",
        }
    }

    /// The address of a backend.
    pub fn backend(self, backend: &str) -> String {
        let number = backend.trim_start_matches('b');
        match self {
            Self::V4 => format!("198.18.2.1{number}"),
            Self::V6 => format!("2001:db8:2::1{number}"),
        }
    }

    fn digit(self) -> u8 {
        if self == Self::V4 { 4 } else { 6 }
    }

    fn vip(self, number: u32) -> String {
        match self {
            Self::V4 => format!("192.0.2.{number}"),
            Self::V6 => format!("2001:db8:100::{number}"),
        }
    }
}

/// A VIP of the lab; its `name` is `dsr4` or `nat6-udp`, for example.
#[derive(Debug, Clone)]
pub struct Vip {
    /// Mode and family, with `-udp` for UDP.
    pub name: String,
    /// `dsr`, `nat` or `full_nat`.
    pub forward: &'static str,
    /// Family of the VIP.
    pub family: Family,
    /// Family of its backends.
    pub inner: Family,
    /// HTTP over TCP, or UDP echo.
    pub udp: bool,
    /// Its backends, of `b1`, `b2`, `b3`.
    pub backends: Vec<&'static str>,
    /// `timeouts`, as TOML.
    pub timeouts: &'static str,
    /// `drain`, as TOML.
    pub drain: &'static str,
    /// More keys, as TOML.
    pub keys: &'static str,
    /// NAT: port of the backends, other than the VIP's, so that ports are rewritten too.
    pub nat_port: u16,
}

/// A VIP with all backends.
pub fn vip(forward: &'static str, family: Family, udp: bool) -> Vip {
    let name = format!("{forward}{}{}", family.digit(), if udp { "-udp" } else { "" });
    // A short time-out lets a test see the end of a drain.
    let timeouts = "{ closing_s = 1, udp_s = 60 }";
    // Without slow start a backend that comes back has its full share at once.
    let drain = "{ slow_start_s = 0 }";
    let (backends, nat_port) = (BACKENDS.to_vec(), if udp { 7007 } else { 8080 });
    let inner = family;
    Vip { name, forward, family, inner, udp, backends, timeouts, drain, keys: "", nat_port }
}

/// A TCP VIP behind a tunnel, `ipip` or `gue`, to backends at addresses of the family `outer`.
pub fn tunnel(forward: &'static str, family: Family, outer: Family) -> Vip {
    let vip = vip(forward, family, false);
    Vip { name: format!("{}-over-{}", vip.name, outer.digit()), inner: outer, ..vip }
}

impl Vip {
    /// Every mode, family and protocol.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for forward in ["dsr", "nat", "full_nat"] {
            for family in Family::ALL {
                all.extend([false, true].map(|udp| vip(forward, family, udp)));
            }
        }
        all
    }

    /// The address of the VIP.
    pub fn address(&self) -> String {
        // Backends have .10 to .19 on their loopback, for DSR and tunnels.
        self.family.vip(match (self.forward, self.inner == self.family) {
            ("dsr", _) => 10,
            ("ipip", true) => 11,
            ("ipip", false) => 12,
            ("gue", true) => 13,
            ("gue", false) => 14,
            ("nat", _) => 20,
            (_, true) => 30,
            (_, false) => 31,
        })
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        match self.family {
            Family::V4 => format!("http://{}", self.address()),
            Family::V6 => format!("http://[{}]", self.address()),
        }
    }

    /// Whether backends listen on another port than the VIP.
    fn translates(&self) -> bool {
        self.forward.ends_with("nat")
    }

    fn toml(&self) -> String {
        let (protocol, port) = if self.udp { ("udp", 7) } else { ("tcp", 80) };
        let Self { name, forward, timeouts, drain, keys, .. } = self;
        let address = self.address();
        let mut text = format!(
            r#"
[[vip]]
name = "{name}"
address = "{address}"
ports = [{port}]
protocol = "{protocol}"
forward = "{forward}"
timeouts = {timeouts}
drain = {drain}
{keys}
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2, port = 80 }}
"#
        );
        for backend in &self.backends {
            let address = self.inner.backend(backend);
            write!(text, "[[vip.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n")
                .unwrap();
            if self.translates() {
                writeln!(text, "port = {}", self.nat_port).unwrap();
            }
        }
        text
    }
}

/// Source addresses of full-NAT flows in the lab.
const SOURCES: &str = r#"
[full_nat]
sources = ["198.18.2.48/30", "2001:db8:2::48/126"]
"#;

/// Outer source addresses of tunnels in the lab.
const TUNNEL: &str = r#"
[tunnel]
source_v4 = "198.18.2.2"
source_v6 = "2001:db8:2::2"
"#;

/// A complete configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Cores, with one worker on each.
    pub cores: Vec<usize>,
    /// Entries of each worker's flow table.
    pub flows: usize,
    /// More keys of `[workers]`, as TOML.
    pub worker_keys: &'static str,
    /// Interfaces to serve.
    pub interfaces: Vec<String>,
    /// More keys for every `[[nic]]`, as TOML.
    pub nic_keys: &'static str,
    /// Path of the control socket.
    pub socket: String,
    /// VIPs.
    pub vips: Vec<Vip>,
    /// More sections, as TOML.
    pub more: String,
    /// `[full_nat]`, if a VIP needs it, as TOML.
    pub full_nat: &'static str,
    /// More keys of `[control]`, as TOML.
    pub control_keys: String,
}

impl Config {
    /// A configuration for a lab, with `workers` workers on the first cores.
    pub fn new(lab: &Lab, workers: usize, vips: Vec<Vip>) -> Self {
        let interfaces = lab.topology.interfaces().iter().map(|&name| name.to_owned()).collect();
        let socket = lab.state().join("control.sock").to_str().unwrap().to_owned();
        let cores = (0..workers).collect();
        let (control_keys, more) = (String::new(), String::new());
        let (worker_keys, nic_keys) = ("", "");
        let (flows, full_nat) = (65_536, SOURCES);
        Self {
            cores,
            flows,
            worker_keys,
            interfaces,
            nic_keys,
            socket,
            vips,
            more,
            full_nat,
            control_keys,
        }
    }

    /// The sections that depend on the VIPs, as TOML.
    pub fn sections(&self) -> String {
        let some = |modes: &[&str]| self.vips.iter().any(|vip| modes.contains(&vip.forward));
        let full_nat = if some(&["full_nat"]) { self.full_nat } else { "" };
        let tunnels = if some(&["ipip", "gue"]) { TUNNEL } else { "" };
        let vips: String = self.vips.iter().map(Vip::toml).collect();
        format!("{full_nat}{tunnels}{vips}")
    }

    /// The configuration as TOML.
    pub fn toml(&self) -> String {
        let Self { cores, flows, worker_keys, socket, control_keys, nic_keys: keys, .. } = self;
        let mut text = format!("[workers]\ncores = {cores:?}\nidle = \"sleep\"\nflows = {flows}\n");
        writeln!(text, "{worker_keys}").unwrap();
        writeln!(text, "[control]\nsocket = \"{socket}\"\n{control_keys}").unwrap();
        for interface in &self.interfaces {
            writeln!(text, "[[nic]]\ninterface = \"{interface}\"\n{keys}").unwrap();
        }
        text + &self.sections() + &self.more
    }
}

impl Topology {
    /// Those with one balancer.
    pub const ALL: [Self; 2] = [Self::Stick, Self::TwoNic];
}
