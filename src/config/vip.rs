//! `[[vip]]`: an address that clients connect to, and its backends.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use toml::de::DeValue;

use super::access::RawAccess;
use super::affinity::RawAffinity;
use super::backend::RawBackend;
use super::checked::{Announce, Backend, Health, TcpHealth, Vip};
use super::choice::Choice;
use super::damping::RawDamping;
use super::drain::RawDrain;
use super::health::RawHealth;
use super::key_path::{KeyPath, Located, Value};
use super::lost::RawLost;
use super::passive::RawPassive;
use super::rate::RawRate;
use super::report::Report;
use super::scheduler::{RawScheduler, check_affinity};
use super::split::RawSplit;
use super::sticky::{RawSticky, on_reentry, remember};
use super::timeouts::RawTimeouts;
use super::{pin, policy, quic, share};
use crate::forwarding::{Ports, VipPolicy};
use crate::net::{Forward, Network, PortRange, Protocol};

/// Default protocol: most VIPs are TCP.
const PROTOCOL: Protocol = Protocol::Tcp;

/// The section as written, without its backends, which are read one by one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawVip {
    name: Option<String>,
    address: Option<String>,
    ports: Option<RawPorts>,
    protocol: Option<String>,
    forward: Option<String>,
    pin: Option<bool>,
    scheduler: Choice<RawScheduler>,
    affinity: Choice<RawAffinity>,
    split: Choice<RawSplit>,
    health: RawHealth,
    passive: Option<RawPassive>,
    lost: RawLost,
    damping: RawDamping,
    fail_open: Option<bool>,
    withdraw: Option<String>,
    timeouts: RawTimeouts,
    table_share: Option<f64>,
    sticky: Option<RawSticky>,
    on_reentry: Option<String>,
    drain: RawDrain,
    on_down: Option<String>,
    on_remove: Option<String>,
    on_idle: Option<String>,
    mss: Option<i64>,
    on_no_backend: Option<String>,
    proxy: Option<String>,
    syn_proxy: Option<bool>,
    announce: Option<String>,
    rate: Option<RawRate>,
    deny: Option<Vec<String>>,
    deny_file: Option<String>,
    allow: Option<Vec<String>>,
    allow_file: Option<String>,
    /// Removed and read separately; present so that messages list it with the other keys.
    quic: Option<IgnoredAny>,
    backend: Option<IgnoredAny>,
}

/// `ports` as written.
#[derive(Debug)]
enum RawPorts {
    Word(String),
    One(i64),
    List(Vec<RawPort>),
}

/// One element of a `ports` list.
#[derive(Debug)]
enum RawPort {
    Word(String),
    Number(i64),
}

impl<'de> Deserialize<'de> for RawPorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = RawPorts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of ports, such as [80, 443], or \"all\"")
            }

            fn visit_str<E>(self, word: &str) -> Result<RawPorts, E> {
                Ok(RawPorts::Word(word.to_owned()))
            }

            fn visit_i64<E>(self, port: i64) -> Result<RawPorts, E> {
                Ok(RawPorts::One(port))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawPorts, A::Error> {
                let mut ports = Vec::new();
                while let Some(port) = list.next_element()? {
                    ports.push(port);
                }
                Ok(RawPorts::List(ports))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

impl<'de> Deserialize<'de> for RawPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = RawPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port such as 80, or a range such as \"8000-8999\"")
            }

            fn visit_str<E>(self, word: &str) -> Result<RawPort, E> {
                Ok(RawPort::Word(word.to_owned()))
            }

            fn visit_i64<E>(self, port: i64) -> Result<RawPort, E> {
                Ok(RawPort::Number(port))
            }
        }
        deserializer.deserialize_any(Read)
    }
}

/// Defaults from other sections.
#[derive(Clone, Copy)]
pub(super) struct Defaults<'a> {
    /// Interface that announces the address: the first NIC.
    pub(super) nic: Option<&'a str>,
    /// Slots of a Maglev lookup table.
    pub(super) table_size: u32,
}

/// Reads and checks one `[[vip]]` with its backends. The VIP is `None` if it has no address for the
/// other rules to use.
pub(super) fn check(
    mut section: Value<'_>,
    key_path: &KeyPath,
    defaults: Defaults<'_>,
    report: &mut Report<'_>,
) -> (Option<Located<Vip>>, Vec<Located<Backend>>) {
    let [backends, quic] = ["backend", "quic"].map(|list| match section.get_mut() {
        DeValue::Table(table) => table.remove(list),
        _ => None,
    });
    let raw: RawVip = report.read(section, key_path);
    let forward = forward(raw.forward.as_deref(), &key_path.key("forward"), report);
    let backends = check_backends(backends, &key_path.key("backend"), forward, report);
    let values = backends.iter().map(|backend| backend.value.clone()).collect();
    let mut vip = raw.check(key_path, forward, defaults, values, report);
    if let Some(vip) = &mut vip {
        let affinity = vip.policy.affinity;
        vip.policy.quic =
            quic::check(quic, &key_path.key("quic"), affinity, &backends, report).into();
    }
    (vip.map(|value| Located { value, key_path: key_path.clone() }), backends)
}

fn check_backends(
    list: Option<Value<'_>>,
    key_path: &KeyPath,
    forward: Option<Forward>,
    report: &mut Report<'_>,
) -> Vec<Located<Backend>> {
    let list = report.tables(list, key_path);
    if list.is_empty() {
        report.missing(key_path, "add at least one [[vip.backend]] under this [[vip]]");
    }
    let mut backends = Vec::with_capacity(list.len());
    for (index, section) in list.into_iter().enumerate() {
        let key_path = key_path.index(index);
        let raw: RawBackend = report.read(section, &key_path);
        let backend = raw.check(&key_path, forward, report);
        backends.extend(backend.map(|value| Located { value, key_path }));
    }
    backends
}

impl RawVip {
    fn check(
        self,
        key_path: &KeyPath,
        forward: Option<Forward>,
        defaults: Defaults<'_>,
        backends: Vec<Backend>,
        report: &mut Report<'_>,
    ) -> Option<Vip> {
        let name = report.name(&key_path.key("name"), self.name);
        let address = report.network(&key_path.key("address"), self.address.as_deref());
        let protocol = protocol(self.protocol, &key_path.key("protocol"), report);
        let ports = ports(self.ports, protocol, &key_path.key("ports"), report);
        if let (Some(forward), Some(address)) = (forward, address) {
            translatable(forward, address, protocol, key_path, report);
        }
        let scheduler_at = key_path.key("scheduler");
        let scheduler = self.scheduler.0.check(&scheduler_at, defaults.table_size, report);
        let affinity_at = key_path.key("affinity");
        let affinity = self.affinity.0.check(&affinity_at, protocol, report);
        let split = self.split.0.check(&key_path.key("split"), report);
        let health = self.health.check(&key_path.key("health"), protocol, report);
        let damping = self.damping.check(&key_path.key("damping"), report);
        let timeouts = self.timeouts.check(&key_path.key("timeouts"), report);
        let sticky = self.sticky.map(|raw| raw.check(&key_path.key("sticky"), protocol, report));
        let on_reentry = on_reentry(self.on_reentry, &key_path.key("on_reentry"), report);
        let remember = remember(sticky, on_reentry, timeouts.of(protocol).established);
        // The affinity defines the client of a mapping, independent of the scheduler.
        check_affinity(&affinity_at, affinity, scheduler, remember.is_some(), report);
        let on_remove = self.on_remove.as_deref();
        let on_remove = policy::ending(on_remove, &key_path.key("on_remove"), protocol, report);
        let needs = pin::Needs {
            protocol,
            forward,
            scheduler,
            affinity,
            sticky: sticky.is_some(),
            on_reentry,
            udp_timeout: self.timeouts.names_udp(),
            on_remove,
        };
        let pin = pin::check(self.pin, key_path, &needs, report);
        let share_at = key_path.key("table_share");
        let table_share = share::check(self.table_share, &share_at, pin, report);
        let passive_at = key_path.key("passive");
        let passive =
            self.passive.map(|raw| raw.check(&passive_at, (protocol, forward), pin, report));
        let withdraw_at = key_path.key("withdraw");
        let withdraws = policy::withdraw(self.withdraw.as_deref(), &withdraw_at, report);
        let lost_at = key_path.key("lost");
        let chooses = (scheduler, remember.is_some());
        let lost = self.lost.check(&lost_at, (protocol, forward), chooses, report);
        let drain = self.drain.check(&key_path.key("drain"), protocol, report);
        let on_down = self.on_down.as_deref();
        let on_down = policy::on_down(on_down, &key_path.key("on_down"), protocol, report);
        let on_idle = self.on_idle.as_deref();
        let reset_idle = policy::reset_idle(on_idle, &key_path.key("on_idle"), protocol, report);
        let mss = mss(self.mss, &key_path.key("mss"), protocol, report);
        let proxy_at = key_path.key("proxy");
        let proxy = proxy(self.proxy.as_deref(), &proxy_at, forward, protocol, report);
        let syn_proxy_at = key_path.key("syn_proxy");
        let syn_proxy = syn_proxy(self.syn_proxy, &syn_proxy_at, forward, protocol, report);
        let reject_no_backend = self.on_no_backend.as_deref();
        let reject_no_backend =
            policy::reject_no_backend(reject_no_backend, &key_path.key("on_no_backend"), report);
        let announce_at = key_path.key("announce");
        let prefix = address.filter(|address| !address.is_single());
        let nic = defaults.nic.filter(|_| prefix.is_none());
        let announce = announce(self.announce, &announce_at, nic, report);
        if let Some(prefix) = prefix.filter(|_| announce != Announce::None) {
            // It would be up to 16,777,216 addresses.
            let what = format!("{prefix} is a prefix: the kernel does not answer ARP for it");
            report.error(&announce_at, what, "leave the key out, and route the prefix to this box");
        }
        let rate_at = key_path.key("rate");
        let rate = self.rate.map(|raw| raw.check(&rate_at, protocol, report));
        let (deny, deny_file) = (self.deny, self.deny_file);
        let (allow, allow_file) = (self.allow, self.allow_file);
        let access = RawAccess { deny, deny_file, allow, allow_file }.check(key_path, report);
        let ported = protocol != Protocol::Any;
        if let (Some(Ports::All), Health::Tcp(tcp), true) = (&ports, &health, ported) {
            check_port_known(tcp, &backends, &key_path.key("health").key("port"), report);
        }
        Some(Vip {
            // Values that replace missing ones break no further rule.
            name: name.unwrap_or_default(),
            address: address?,
            ports: ports.unwrap_or(Ports::List(Vec::new())),
            protocol,
            forward: forward.unwrap_or(Forward::Dsr),
            policy: VipPolicy {
                pin,
                scheduler,
                affinity,
                timeouts,
                remember,
                on_down,
                reset_idle,
                reject_no_backend,
                proxy,
                syn_proxy,
                ask: lost.ask,
                recall: lost.recall,
                table_share,
                mss,
                quic: Box::default(),
            },
            split,
            health,
            // Refusal is the safe answer where no backend is known to serve.
            fail_open: self.fail_open.unwrap_or(false),
            withdraws,
            damping,
            passive,
            drain,
            on_remove,
            announce,
            access,
            rate,
            backends,
        })
    }
}

/// Checks that the check or every backend names a port: a VIP on all ports has no first port to
/// check.
fn check_port_known(
    tcp: &TcpHealth,
    backends: &[Backend],
    key_path: &KeyPath,
    report: &mut Report<'_>,
) {
    let unknown = backends.iter().find(|backend| backend.port.is_none());
    if let (None, Some(backend)) = (tcp.port, unknown) {
        let what = format!(
            "missing: ports = \"all\" names no port at which backend \"{}\" could be checked",
            backend.name
        );
        let fix = "write health = { port = 80 } or another, or health = { kind = \"none\" }";
        report.error(key_path, what, fix);
    }
}

fn ports(
    raw: Option<RawPorts>,
    protocol: Protocol,
    key_path: &KeyPath,
    report: &mut Report<'_>,
) -> Option<Ports> {
    const FIX: &str = "write a list such as [80, 443], or \"all\"";
    match raw {
        None if protocol == Protocol::Any => return Some(Ports::All),
        None => report.missing(key_path, FIX),
        Some(RawPorts::Word(word)) if word == "all" => return Some(Ports::All),
        Some(_) if protocol == Protocol::Any => {
            let what = "protocol = \"any\" takes all packets of an address, with ports or without";
            report.error(key_path, what, "leave the key out");
            return Some(Ports::All);
        }
        Some(RawPorts::Word(word)) if word.contains('-') => {
            return range(&word, key_path, report).map(|range| Ports::List(vec![range]));
        }
        Some(RawPorts::Word(word)) => {
            report.error(key_path, format!("\"{word}\" is no list of ports"), FIX);
        }
        Some(RawPorts::One(port)) => {
            report.error(key_path, "one number where a list is wanted", &format!("write [{port}]"));
        }
        Some(RawPorts::List(list)) if list.is_empty() => report.error(key_path, "no port", FIX),
        Some(RawPorts::List(list)) => return Some(Ports::List(port_list(&list, key_path, report))),
    }
    None
}

fn port_list(list: &[RawPort], key_path: &KeyPath, report: &mut Report<'_>) -> Vec<PortRange> {
    // By their last ports: ranges in this map do not overlap.
    let mut seen: BTreeMap<u16, PortRange> = BTreeMap::new();
    let mut ports = Vec::with_capacity(list.len());
    for (index, port) in list.iter().enumerate() {
        let at = key_path.index(index);
        let Some(range) = port_or_range(port, &at, report) else { continue };
        let next = seen.range(range.first..).next().map(|(_, other)| *other);
        match next.filter(|other| other.meets(range)) {
            Some(other) if other.is_single() && range.is_single() => {
                let what = format!("port {range} is listed twice");
                report.error(&at, what, "list each port once");
            }
            Some(other) => {
                let what = format!("{range} meets {other} of the same list");
                report.error(&at, what, "list each port once");
            }
            None => {
                seen.insert(range.last, range);
                ports.push(range);
            }
        }
    }
    ports
}

fn port_or_range(port: &RawPort, key_path: &KeyPath, report: &mut Report<'_>) -> Option<PortRange> {
    match port {
        RawPort::Word(word) => range(word, key_path, report),
        RawPort::Number(0) => {
            report.error(key_path, "0 is no port", "use 1 to 65535, or ports = \"all\"");
            None
        }
        RawPort::Number(number) => {
            let port = report.integer(key_path, Some(*number), 0, 1..=u16::MAX);
            (port != 0).then_some(port.into())
        }
    }
}

/// Parses a range of two ports; a single port has one way to be written.
fn range(word: &str, key_path: &KeyPath, report: &mut Report<'_>) -> Option<PortRange> {
    let range = word.parse().ok().filter(|_| word.contains('-'));
    if range.is_none() {
        let fix = "write two ports from 1 to 65535, the lower one first, such as \"8000-8999\"";
        report.error(key_path, format!("\"{word}\" is no range of ports"), fix);
    }
    range
}

fn protocol(raw: Option<String>, key_path: &KeyPath, report: &mut Report<'_>) -> Protocol {
    const WORDS: &[(&str, Protocol)] =
        &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("any", Protocol::Any)];
    raw.and_then(|word| report.word(key_path, &word, WORDS, &[])).unwrap_or(PROTOCOL)
}

fn forward(raw: Option<&str>, key_path: &KeyPath, report: &mut Report<'_>) -> Option<Forward> {
    const WORDS: &[(&str, Forward)] = &[
        ("dsr", Forward::Dsr),
        ("nat", Forward::Nat),
        ("full_nat", Forward::FullNat),
        ("ipip", Forward::Ipip),
        ("gue", Forward::Gue),
    ];
    let Some(word) = raw else {
        let fix = "say how packets reach the backends: \"dsr\" rewrites the destination MAC alone, \
                   \"nat\" the destination address, \"full_nat\" both addresses, and \"ipip\" and \
                   \"gue\" are tunnels (\"dsr\", \"ipip\" and \"gue\" need the VIP's address on each \
                   backend's loopback)";
        report.missing(key_path, fix);
        return None;
    };
    report.word(key_path, word, WORDS, &[])
}

/// Checks that addresses and ports of replies can be translated back.
fn translatable(
    forward: Forward,
    address: Network,
    protocol: Protocol,
    key_path: &KeyPath,
    report: &mut Report<'_>,
) {
    let word = forward.as_str();
    if protocol == Protocol::Any && forward.translates() {
        let what = format!(
            "\"{word}\" with protocol = \"any\": there are no ports by which replies could be told apart"
        );
        report.error(&key_path.key("forward"), what, "use \"dsr\", \"ipip\" or \"gue\"");
    } else if forward == Forward::Nat && !address.is_single() {
        let what = format!(
            "{address} with forward = \"nat\": replies would not tell which of the addresses the \
             client had connected to"
        );
        let fix = "use forward = \"full_nat\", \"dsr\", \"ipip\" or \"gue\"";
        report.error(&key_path.key("address"), what, fix);
    }
}

/// Reads `proxy`: whether backends get a PROXY header.
fn proxy(
    raw: Option<&str>,
    key_path: &KeyPath,
    forward: Option<Forward>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> bool {
    const WORDS: &[(&str, bool)] = &[("none", false), ("v2", true)];
    let wanted = raw.and_then(|word| report.word(key_path, word, WORDS, &[])).unwrap_or_default();
    if wanted && forward.is_some_and(|forward| forward != Forward::FullNat) {
        let what = "a PROXY header where backends see the client's address anyway";
        report.error(key_path, what, "remove the key, or use forward = \"full_nat\"");
    } else if wanted && protocol != Protocol::Tcp {
        let fix = "remove the key: it is for protocol = \"tcp\"";
        report.error(key_path, "a PROXY header has no place in datagrams", fix);
    }
    wanted
}

/// Reads `syn_proxy`: whether clients prove themselves before a backend sees them. Replies must pass
/// this box, as their numbers are translated.
fn syn_proxy(
    raw: Option<bool>,
    key_path: &KeyPath,
    forward: Option<Forward>,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> bool {
    let wanted = raw.unwrap_or_default();
    if wanted && protocol != Protocol::Tcp {
        let fix = "remove the key, or use protocol = \"tcp\"";
        report.error(key_path, "only TCP has handshakes", fix);
    } else if wanted && forward.is_some_and(|forward| !forward.translates()) {
        let what = "the replies of backends do not pass this box";
        let fix = "remove the key, or use forward = \"nat\" or \"full_nat\"";
        report.error(key_path, what, fix);
    }
    wanted
}

pub(super) fn announce(
    raw: Option<String>,
    key_path: &KeyPath,
    default: Option<&str>,
    report: &mut Report<'_>,
) -> Announce {
    match raw {
        Some(word) if word == "none" => Announce::None,
        Some(name) => {
            report.interface(key_path, &name);
            Announce::Interface(name)
        }
        None => default.map_or(Announce::None, |name| Announce::Interface(name.to_owned())),
    }
}

/// Reads the MSS: at least 536, which every host accepts (RFC 9293 3.7.1), at most 65,495, the most
/// that IPv4 carries.
fn mss(
    raw: Option<i64>,
    key_path: &KeyPath,
    protocol: Protocol,
    report: &mut Report<'_>,
) -> Option<u16> {
    let mss = raw.map(|bytes| report.integer(key_path, Some(bytes), 1220, 536..=65_495))?;
    if protocol != Protocol::Tcp {
        report.error(key_path, "only TCP has segments", "remove it, or use protocol = \"tcp\"");
    }
    Some(mss)
}
