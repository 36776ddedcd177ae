//! Differences between two configurations in sentences, and keys that must not change while
//! running.

use std::fmt::{Debug, Display};
use std::hash::Hasher as _;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use siphasher::sip::SipHasher13;

use super::identity;
use crate::config::{
    Announce, Backend, Config, Damping, Drain, Health, Passive, Split, TcpHealth, Vip,
};
use crate::format::counted;
use crate::forwarding::new_flows::{NewFlows, PrefixBudget};
use crate::forwarding::share::WHOLE;
use crate::forwarding::sticky::Sticky;
use crate::forwarding::tunnel::TunnelSources;
use crate::forwarding::{FlowAction, Remember, Tunnels, quic_lb};
use crate::net::{AccessLists, SourceRate};

/// Returns the changed keys that need a restart; empty if a reload can apply the change.
///
/// Workers, sockets and the control socket are created once at the start; another hash would send
/// new flows elsewhere than the other boxes of the fleet do.
pub fn frozen(old: &Config, new: &Config) -> Vec<String> {
    let mut keys = differing(&fixed(old), &fixed(new));
    // A changed key that this list lacks must not pass unnoticed either.
    let same = |a: &Config, b: &Config| {
        (&a.workers, &a.nics, &a.full_nat) == (&b.workers, &b.nics, &b.full_nat)
            && (&a.fragments, &a.control, &a.hash) == (&b.fragments, &b.control, &b.hash)
            && a.state == b.state
    };
    if keys.is_empty() && !same(old, new) {
        keys.push(
            "[workers], [[nic]], [full_nat], [fragments], [control], [state], [security] or [hash]"
                .to_owned(),
        );
    }
    keys
}

/// A key with a hash of its value.
pub type FixedKey = (String, u64);

/// Returns the keys that need a restart to be changed.
pub fn fixed(config: &Config) -> Vec<FixedKey> {
    let mut keys = Vec::new();
    let mut add = |key: &str, value: &dyn Debug| {
        let mut hasher = SipHasher13::new();
        hasher.write(format!("{value:?}").as_bytes());
        keys.push((key.to_owned(), hasher.finish()));
    };
    let workers = &config.workers;
    add("[workers] cores", &workers.cores);
    add("[workers] idle", &workers.idle);
    add("[workers] flows", &workers.flows);
    add("[workers] clients", &workers.clients);
    add("[workers] frames", &workers.frames);
    add("[workers] frame_size", &workers.frame_size);
    add("[workers] batch", &workers.batch);
    add("[workers] tx_budget", &workers.io.tx_budget);
    add("[workers] tx_kick", &workers.io.tx_kick);
    add("[workers] need_wakeup", &workers.io.need_wakeup);
    add("[workers] busy_poll", &workers.io.busy_poll);
    add("[full_nat] sources", &config.full_nat.sources);
    add("[full_nat] ports", &config.full_nat.ports);
    add("[full_nat] announce", &config.full_nat.announce);
    add("[control] socket", &config.control.socket);
    add("[control] on_drained", &config.control.on_drained);
    add("[state] directory", &config.state);
    add("[security] seccomp", &config.security.seccomp);
    add("[fragments] timeout_s", &config.fragments.timeout);
    add("[fragments] datagrams", &config.fragments.datagrams);
    add("[fragments] parked", &config.fragments.parked);
    add("[hash] secret", &config.hash.secret);
    add("[hash] table_size", &config.hash.table_size);
    let names: Vec<&str> = config.nics.iter().map(|nic| nic.interface.as_str()).collect();
    add("[[nic]] interface", &names);
    for nic in &config.nics {
        let name = &nic.interface;
        add(&format!("[[nic]] {name}: mode"), &nic.mode);
        add(&format!("[[nic]] {name}: xdp"), &nic.xdp);
        add(&format!("[[nic]] {name}: queues"), &nic.queues);
        add(&format!("[[nic]] {name}: ring"), &nic.ring);
    }
    keys
}

/// Returns the keys that have another value in `new`. A key that only one of them has is that of a
/// NIC that the other lacks, or of another version.
pub fn differing(old: &[FixedKey], new: &[FixedKey]) -> Vec<String> {
    let before: HashMap<&str, u64> =
        old.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let differs =
        |(key, value): &&FixedKey| before.get(key.as_str()).is_some_and(|before| before != value);
    new.iter().filter(differs).map(|(key, _)| key.clone()).collect()
}

/// Returns one sentence per difference; empty when nothing differs.
pub fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut reported = Vec::new();
    let mut gone: Vec<&Vip> = old.vips.iter().collect();
    let continued = identity::continued(&gone, &new.vips);
    let kept: HashSet<usize> = continued.iter().copied().flatten().collect();
    let mut index = 0..;
    gone.retain(|_| index.next().is_some_and(|index| !kept.contains(&index)));
    // A VIP of another kind under an old name is another VIP, but reported as a change.
    let before: HashMap<&str, &Vip> = gone.iter().map(|vip| (vip.name.as_str(), *vip)).collect();
    let remade = |vip: &Vip| before.get(vip.name.as_str()).copied();
    let added = new.vips.iter().zip(&continued).filter(|(_, known)| known.is_none());
    let added: HashSet<&str> = added.map(|(vip, _)| vip.name.as_str()).collect();
    for vip in gone.iter().filter(|vip| !added.contains(vip.name.as_str())) {
        reported.push(format!("VIP {} removed", vip.name));
    }
    for (vip, known) in new.vips.iter().zip(&continued) {
        match (known.and_then(|index| old.vips.get(index)), remade(vip)) {
            (Some(old), _) => vip_changes(old, vip, &mut reported),
            (None, Some(old)) => {
                vip_changes(old, vip, &mut reported);
                let fate = fate(old.on_remove);
                reported.push(format!(
                    "VIP {}: another VIP from now on; its old flows {fate}",
                    vip.name
                ));
            }
            (None, None) => reported.push(format!("VIP {} added: {}", vip.name, describe(vip))),
        }
    }
    list_changes("[access]", &old.access, &new.access, &mut reported);
    tunnel_changes(&old.tunnels, &new.tunnels, &mut reported);
    fleet_changes(old, new, &mut reported);
    let mut number = |key: &str, a: u32, b: u32| {
        if a != b {
            reported.push(format!("[icmp] {key} {a} -> {b}"));
        }
    };
    number("per_second", old.icmp.per_second, new.icmp.per_second);
    number("burst", old.icmp.burst, new.icmp.burst);
    new_flow_changes(&old.new_flows, &new.new_flows, &mut reported);
    reported
}

fn list_changes(scope: &str, old: &AccessLists, new: &AccessLists, reported: &mut Vec<String>) {
    for (list, a, b) in [("deny", &old.deny, &new.deny), ("allow", &old.allow, &new.allow)] {
        let (added, removed) = (b.without(a).count(), a.without(b).count());
        if (added, removed) != (0, 0) {
            reported.push(format!(
                "{scope}: {list} {} -> {} prefixes ({added} added, {removed} removed)",
                a.len(),
                b.len()
            ));
        }
    }
}

fn new_flow_changes(old: &NewFlows, new: &NewFlows, reported: &mut Vec<String>) {
    let rate = |rate: Option<u32>| rate.map_or_else(|| "no bound".to_owned(), |n| n.to_string());
    let budget = |budget: Option<PrefixBudget>| {
        budget.map_or_else(
            || "no bound".to_owned(),
            |PrefixBudget { v4, v6, per_second }| format!("{per_second} (v4 {v4}, v6 {v6})"),
        )
    };
    for (name, a, b) in [
        ("per_second", rate(old.per_second), rate(new.per_second)),
        ("per_prefix", budget(old.per_prefix), budget(new.per_prefix)),
    ] {
        if a != b {
            reported.push(format!("[new_flows] {name} {a} -> {b}"));
        }
    }
}

/// Keys are not shown.
fn fleet_changes(old: &Config, new: &Config, reported: &mut Vec<String>) {
    let (a, b) = (old.tunnels.fleet, new.tunnels.fleet);
    if a != b {
        let what = match (a, b) {
            (None, _) => "there is a key now",
            (_, None) => "there is no key any longer",
            _ => "other keys",
        };
        reported.push(format!("[fleet] key: {what}"));
    }
    if old.asks != new.asks {
        reported.push(format!("[fleet] asks_per_second {} -> {}", old.asks, new.asks));
    }
}

fn tunnel_changes(old: &Tunnels, new: &Tunnels, reported: &mut Vec<String>) {
    let sources = |sources: Option<TunnelSources>| {
        sources.map_or_else(|| "none".to_owned(), |sources| sources.network().to_string())
    };
    for (name, a, b) in [
        ("source_v4", sources(old.source_v4), sources(new.source_v4)),
        ("source_v6", sources(old.source_v6), sources(new.source_v6)),
        ("gue_port", old.gue_port.to_string(), new.gue_port.to_string()),
        ("df", old.outer_df.as_str().to_owned(), new.outer_df.as_str().to_owned()),
    ] {
        if a != b {
            reported.push(format!("[tunnel] {name} {a} -> {b}"));
        }
    }
}

/// A changed name: of a VIP, or of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// Current name of the VIP.
    pub vip: String,
    /// Current name of the backend; `None` for the VIP itself.
    pub backend: Option<String>,
    /// Previous name.
    pub old: String,
}

/// Returns the VIPs and backends that continue under another name.
pub fn renames(old: &Config, new: &Config) -> Vec<Rename> {
    let mut renames = Vec::new();
    let known = identity::continued(&old.vips.iter().collect::<Vec<_>>(), &new.vips);
    for (vip, before) in new.vips.iter().zip(known) {
        let Some(before) = before.and_then(|index| old.vips.get(index)) else { continue };
        let mut add = |backend: Option<&String>, old: &String| {
            renames.push(Rename {
                vip: vip.name.clone(),
                backend: backend.cloned(),
                old: old.clone(),
            });
        };
        if before.name != vip.name {
            add(None, &before.name);
        }
        let server = |backend: &Backend| (backend.address, backend.port);
        let names: HashMap<_, &String> =
            before.backends.iter().map(|b| (server(b), &b.name)).collect();
        for backend in &vip.backends {
            match names.get(&server(backend)) {
                Some(old) if **old != backend.name => add(Some(&backend.name), old),
                _ => {}
            }
        }
    }
    renames
}

/// Describes the action on the flows of a removed backend, VIP or port.
pub const fn fate(flow_action: FlowAction) -> &'static str {
    match flow_action {
        FlowAction::Keep => "go on until they end",
        FlowAction::Reset => "are reset",
        FlowAction::Rehash => "go to other backends",
    }
}

fn describe(vip: &Vip) -> String {
    let Vip { address, protocol, forward, backends, .. } = vip;
    let (protocol, forward) = (protocol.as_str(), forward.as_str());
    let ports = &vip.ports;
    format!("{address}, {protocol} {ports}, {forward}, {}", counted(backends.len(), "backend"))
}

fn vip_changes(old: &Vip, new: &Vip, reported: &mut Vec<String>) {
    let before = reported.len();
    if old.name != new.name {
        reported.push(format!("VIP {} renamed {}", old.name, new.name));
    }
    let mut field = |name: &str, a: String, b: String| {
        if a != b {
            reported.push(format!("VIP {}: {name} {a} -> {b}", new.name));
        }
    };
    field("address", old.address.to_string(), new.address.to_string());
    field("ports", old.ports.to_string(), new.ports.to_string());
    field("protocol", old.protocol.as_str().to_owned(), new.protocol.as_str().to_owned());
    field("forward", old.forward.as_str().to_owned(), new.forward.as_str().to_owned());
    let (a, b) = (&old.policy, &new.policy);
    field("pin", a.pin.to_string(), b.pin.to_string());
    field("scheduler", a.scheduler.to_string(), b.scheduler.to_string());
    field("affinity", a.affinity.to_string(), b.affinity.to_string());
    field("split", split(old), split(new));
    field("quic", quic(&a.quic), quic(&b.quic));
    field("announce", announce(&old.announce), announce(&new.announce));
    field("health", health(&old.health), health(&new.health));
    field("rate", rate(old.rate), rate(new.rate));
    field("fail_open", old.fail_open.to_string(), new.fail_open.to_string());
    field("withdraw", old.withdraws.to_string(), new.withdraws.to_string());
    field("passive", passive(old.passive), passive(new.passive));
    field("damping", damping(old.damping), damping(new.damping));
    field("drain", drain(&old.drain), drain(&new.drain));
    field("on_down", a.on_down.as_str().to_owned(), b.on_down.as_str().to_owned());
    field("on_remove", old.on_remove.as_str().to_owned(), new.on_remove.as_str().to_owned());
    let on_idle = |idle| word(idle, ["silent", "reset"]);
    field("on_idle", on_idle(a.reset_idle), on_idle(b.reset_idle));
    field("mss", mss(a.mss), mss(b.mss));
    field("table_share", table_share(a.table_share), table_share(b.table_share));
    let on_no_backend = |reject_no_backend| word(reject_no_backend, ["drop", "reject"]);
    field("on_no_backend", on_no_backend(a.reject_no_backend), on_no_backend(b.reject_no_backend));
    let proxy = |proxy| word(proxy, ["none", "v2"]);
    field("proxy", proxy(a.proxy), proxy(b.proxy));
    field("lost.ask", a.ask.as_str().to_owned(), b.ask.as_str().to_owned());
    let recall =
        |policy: &crate::forwarding::VipPolicy| format!("{} s", policy.recall.duration().as_secs());
    field("lost.remember_s", recall(a), recall(b));
    field("syn_proxy", a.syn_proxy.to_string(), b.syn_proxy.to_string());
    let (x, y) = (&a.timeouts, &b.timeouts);
    for (name, x, y) in [
        ("timeouts.embryonic", x.embryonic, y.embryonic),
        ("timeouts.established", x.established, y.established),
        ("timeouts.closing", x.closing, y.closing),
        ("timeouts.udp_first", x.udp_first, y.udp_first),
        ("timeouts.udp", x.udp, y.udp),
    ] {
        field(name, span(x.duration()), span(y.duration()));
    }
    field("sticky", sticky(a.remember), sticky(b.remember));
    field("on_reentry", on_reentry(a.remember), on_reentry(b.remember));
    if a.quic != b.quic && quic(&a.quic) == quic(&b.quic) {
        reported.push(format!("VIP {}: quic: another key", new.name));
    } else if a != b && reported.len() == before {
        // A changed option that this list lacks must not pass unnoticed.
        reported.push(format!("VIP {}: another policy", new.name));
    }
    list_changes(&format!("VIP {}", new.name), &old.access, &new.access, reported);
    backend_changes(old, new, reported);
}

fn backend_changes(old: &Vip, new: &Vip, reported: &mut Vec<String>) {
    let server = |backend: &Backend| (backend.address, backend.port);
    let before: HashMap<_, &Backend> = old.backends.iter().map(|b| (server(b), b)).collect();
    let after: HashSet<_> = new.backends.iter().map(server).collect();
    let gone: Vec<&Backend> =
        old.backends.iter().filter(|backend| !after.contains(&server(backend))).collect();
    let added = |backend: &&Backend| !before.contains_key(&server(backend));
    let vip = &new.name;
    for gone in &gone {
        // A new server of that name is reported below.
        if !new.backends.iter().filter(added).any(|backend| backend.name == gone.name) {
            reported.push(format!("backend {} of VIP {vip} removed", gone.name));
        }
    }
    for backend in &new.backends {
        let Backend { name, weight, .. } = backend;
        let known = before.get(&server(backend)).copied();
        match (known, gone.iter().copied().find(|gone| gone.name == *name)) {
            (Some(old), _) if old.name != *name => {
                reported.push(format!("backend {} of VIP {vip} renamed {name}", old.name));
            }
            (Some(_), _) => {}
            (None, Some(old)) => reported.push(format!(
                "backend {name} of VIP {vip}: {} -> {}; another server, the flows of the old one {}",
                place(old),
                place(backend),
                fate(new.on_remove)
            )),
            (None, None) => {
                let to = place(backend);
                reported.push(format!("backend {name} of VIP {vip} added: {to}, weight {weight}"));
            }
        }
        let Some(old) = known.or_else(|| gone.iter().copied().find(|gone| gone.name == *name))
        else {
            continue;
        };
        if old.weight != *weight {
            reported
                .push(format!("backend {name} of VIP {vip}: weight {} -> {weight}", old.weight));
        }
        if old.max_connections != backend.max_connections {
            let limit =
                |max: Option<u32>| max.map_or_else(|| "none".to_owned(), |max| max.to_string());
            let (a, b) = (limit(old.max_connections), limit(backend.max_connections));
            reported.push(format!("backend {name} of VIP {vip}: max_connections {a} -> {b}"));
        }
        if old.server_ids != backend.server_ids {
            let (a, b) = (server_ids(old), server_ids(backend));
            reported.push(format!("backend {name} of VIP {vip}: server_id {a} -> {b}"));
        }
    }
}

fn rate(rate: Option<SourceRate>) -> String {
    let limit = |n: u32| if n == 0 { "any".to_owned() } else { n.to_string() };
    rate.map_or_else(
        || "off".to_owned(),
        |SourceRate { packets, new_flows }| {
            format!("{} packets, {} new flows a second", limit(packets), limit(new_flows))
        },
    )
}

fn sticky(remember: Option<Remember>) -> String {
    let sticky = remember.and_then(|remember| Some((remember.timeout, remember.sticky?)));
    sticky.map_or_else(
        || "off".to_owned(),
        |(timeout, Sticky { on_drain, on_down })| {
            let (drain, down) = (on_drain.as_str(), on_down.as_str());
            format!("{} (on_drain {drain}, on_down {down})", span(timeout.duration()))
        },
    )
}

fn on_reentry(remember: Option<Remember>) -> String {
    remember.map(|remember| remember.on_reentry).unwrap_or_default().as_str().to_owned()
}

fn split(vip: &Vip) -> String {
    vip.split.map_or_else(
        || "off".to_owned(),
        |Split { max_load, min_rate }| format!("auto (max_load {max_load}, min_rate {min_rate})"),
    )
}

/// Describes QUIC-LB configurations without their keys, because changes are logged.
fn quic(configs: &[quic_lb::Config]) -> String {
    let config = |config: &quic_lb::Config| {
        let quic_lb::Config { rotation, server_id_bytes, nonce_bytes, key } = config;
        let encrypted = if key.is_some() { ", encrypted" } else { "" };
        format!("rotation {rotation} ({server_id_bytes} + {nonce_bytes} bytes{encrypted})")
    };
    let configs: Vec<String> = configs.iter().map(config).collect();
    if configs.is_empty() { "off".to_owned() } else { configs.join(", ") }
}

fn server_ids(backend: &Backend) -> String {
    let ids = &backend.server_ids;
    if ids.is_empty() { "none".to_owned() } else { join(ids) }
}

fn place(backend: &Backend) -> String {
    let Backend { address, port, .. } = backend;
    port.map_or_else(|| address.to_string(), |port| format!("{address} port {port}"))
}

fn join(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns the configuration's word for false or true.
fn word(value: bool, [no, yes]: [&str; 2]) -> String {
    if value { yes } else { no }.to_owned()
}

fn table_share(share: Option<u32>) -> String {
    share.map_or_else(
        || "a part of the common one".to_owned(),
        |share| (f64::from(share) / f64::from(WHOLE)).to_string(),
    )
}

fn mss(mss: Option<u16>) -> String {
    mss.map_or_else(|| "as the ends say".to_owned(), |bytes| format!("at most {bytes}"))
}

fn announce(announce: &Announce) -> String {
    match announce {
        Announce::Interface(name) => name.clone(),
        Announce::None => "none".to_owned(),
    }
}

fn drain(drain: &Drain) -> String {
    let deadline =
        drain.deadline.map_or_else(|| "no deadline".to_owned(), |s| format!("{} at most", span(s)));
    format!("({deadline}, then {}, slow start {})", drain.then.as_str(), span(drain.slow_start))
}

fn passive(passive: Option<Passive>) -> String {
    passive.map_or_else(
        || "off".to_owned(),
        |Passive { unanswered, window }| format!("(unanswered {unanswered} in {})", span(window)),
    )
}

fn damping(damping: Option<Damping>) -> String {
    damping.map_or_else(
        || "off".to_owned(),
        |Damping { hold, longest, steady }| {
            let [hold, longest, steady] = [hold, longest, steady].map(span);
            format!("(hold {hold}, {longest} at most, steady after {steady})")
        },
    )
}

fn health(health: &Health) -> String {
    let Health::Tcp(TcpHealth { interval, timeout, rise, fall, port }) = health else {
        return "none".to_owned();
    };
    let port = port.map_or_else(|| "the backend's port".to_owned(), |port| format!("port {port}"));
    let (interval, timeout) = (span(*interval), span(*timeout));
    format!("tcp ({port}, every {interval}, time-out {timeout}, rise {rise}, fall {fall})")
}

/// Formats a duration, in seconds where they are whole, else in milliseconds.
fn span(span: Duration) -> String {
    match (span.as_secs(), span.as_millis()) {
        (s, ms) if u128::from(s) * 1000 == ms => format!("{s} s"),
        (_, ms) => format!("{ms} ms"),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
pub(crate) mod tests {
    use crate::forwarding::Ports;

    use super::super::state::tests::{backend, tcp_health, vip};
    use super::*;
    use crate::config::{Control, CopyMode, FullNat, Hash, Idle, Io, Nic, Workers, XdpMode};
    use crate::forwarding::local::IcmpRate;
    use crate::forwarding::{Affinity, FlowAction, SchedulerKind, ServerId};
    use crate::net::Forward;
    use crate::units::Ticks;

    /// Returns a configuration of one worker and one NIC.
    pub fn config(vips: Vec<Vip>) -> Config {
        Config {
            workers: Workers {
                cores: vec![0],
                idle: Idle::Sleep,
                flows: 1024,
                clients: 1024,
                frames: None,
                frame_size: None,
                batch: 64,
                io: Io { tx_budget: 256, tx_kick: 1, need_wakeup: true, busy_poll: 0 },
            },
            nics: vec![Nic {
                interface: "eth1".to_owned(),
                mode: CopyMode::Auto,
                xdp: XdpMode::Auto,
                queues: None,
                ring: 2048,
            }],
            asks: 10_000,
            vips,
            fragments: crate::config::Fragments {
                timeout: crate::units::Ticks(3000),
                datagrams: 64,
                parked: 0,
            },
            full_nat: FullNat::default(),
            icmp: IcmpRate::default(),
            new_flows: NewFlows::default(),
            control: Control {
                socket: "/run/holdfast/control.sock".into(),
                on_drained: Vec::new(),
            },
            tunnels: Tunnels::default(),
            state: crate::config::State { directory: None },
            access: AccessLists::default(),
            security: crate::config::Security { seccomp: true },
            hash: Hash { secret: [0; 16], table_size: 251 },
        }
    }

    const QUIC_ADDED: &str = "VIP web: quic off -> rotation 1 (3 + 4 bytes, encrypted)";

    const fn rotation_1(key: u8) -> quic_lb::Config {
        quic_lb::Config { rotation: 1, server_id_bytes: 3, nonce_bytes: 4, key: Some([key; 16]) }
    }

    fn damping_of(hold_s: u64) -> Damping {
        let [hold, longest, steady] = [hold_s, 300, 60].map(Duration::from_secs);
        Damping { hold, longest, steady }
    }

    fn server_id() -> ServerId {
        ServerId::new(&[0xc4, 0x60, 0x5e]).unwrap()
    }

    fn one(change: impl FnOnce(&mut Vip)) -> Vec<String> {
        let old = vip("web", &[backend("a", 1), backend("b", 2)]);
        let mut new = old.clone();
        change(&mut new);
        changes(&config(vec![old]), &config(vec![new]))
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(one(|_| {}), [""; 0]);
        assert_eq!(one(|vip| vip.backends.reverse()), [""; 0], "order does not matter");
    }

    #[test]
    fn a_change_of_the_icmp_rate_is_told() {
        let old = config(Vec::new());
        let mut new = old.clone();
        new.icmp = IcmpRate { per_second: 10, burst: 5 };
        assert_eq!(changes(&old, &new), ["[icmp] per_second 1000 -> 10", "[icmp] burst 50 -> 5"]);
    }

    #[test]
    fn a_change_of_the_budgets_of_new_flows_is_told() {
        let old = config(Vec::new());
        let mut new = old.clone();
        let per_prefix = Some(PrefixBudget { v4: 24, v6: 48, per_second: 7 });
        new.new_flows = NewFlows { per_second: Some(9), per_prefix };
        let told = [
            "[new_flows] per_second no bound -> 9",
            "[new_flows] per_prefix no bound -> 7 (v4 24, v6 48)",
        ];
        assert_eq!(changes(&old, &new), told);
    }

    #[test]
    fn every_difference_is_a_sentence() {
        type Change = fn(&mut Vip);
        let rows: [(Change, &str); 27] = [
            (
                |vip| {
                    let window = Duration::from_secs(5);
                    vip.passive = Some(Passive { unanswered: 0.5, window });
                },
                "VIP web: passive off -> (unanswered 0.5 in 5 s)",
            ),
            (|vip| vip.fail_open = true, "VIP web: fail_open false -> true"),
            (
                |vip| vip.damping = Some(damping_of(5)),
                "VIP web: damping off -> (hold 5 s, 300 s at most, steady after 60 s)",
            ),
            (|vip| vip.policy.pin = false, "VIP web: pin true -> false"),
            (
                |vip| vip.drain.deadline = Some(Duration::from_secs(60)),
                "VIP web: drain (no deadline, then rehash, slow start 0 s) -> (60 s at most, then \
                 rehash, slow start 0 s)",
            ),
            (
                |vip| vip.address = [192, 0, 2, 11].into(),
                "VIP web: address 192.0.2.10 -> 192.0.2.11",
            ),
            (|vip| vip.ports = Ports::of(&[80, 443]), "VIP web: ports 80 -> 80, 443"),
            (|vip| vip.ports = Ports::All, "VIP web: ports 80 -> all"),
            (
                |vip| vip.policy.scheduler = SchedulerKind::Ring { virtual_nodes: 160 },
                "VIP web: scheduler maglev (table_size 251) -> ring (virtual_nodes 160)",
            ),
            (
                |vip| vip.policy.affinity = Affinity::ClientPrefix { v4: 24, v6: 56 },
                "VIP web: affinity flow -> client_prefix (v4 24, v6 56)",
            ),
            (
                |vip| vip.announce = Announce::Interface("lo".to_owned()),
                "VIP web: announce none -> lo",
            ),
            (
                |vip| vip.health = tcp_health(),
                "VIP web: health none -> tcp (the backend's port, every 1 s, time-out 500 ms, \
                 rise 2, fall 3)",
            ),
            (
                |vip| vip.policy.timeouts.established = Ticks(150),
                "VIP web: timeouts.established 1800 s -> 1500 ms",
            ),
            (
                |vip| vip.split = Some(Split { max_load: 1.25, min_rate: 50.0 }),
                "VIP web: split off -> auto (max_load 1.25, min_rate 50)",
            ),
            (|vip| vip.policy.quic = Box::new([rotation_1(7)]), QUIC_ADDED),
            (
                |vip| vip.backends.first_mut().unwrap().server_ids = vec![server_id()],
                "backend a of VIP web: server_id none -> c4605e",
            ),
            (|vip| vip.policy.on_down = FlowAction::Reset, "VIP web: on_down keep -> reset"),
            (|vip| vip.on_remove = FlowAction::Keep, "VIP web: on_remove rehash -> keep"),
            (|vip| vip.name = "www".to_owned(), "VIP web renamed www"),
            (|vip| vip.policy.reset_idle = true, "VIP web: on_idle silent -> reset"),
            (|vip| vip.policy.reject_no_backend = true, "VIP web: on_no_backend drop -> reject"),
            (|vip| vip.policy.syn_proxy = true, "VIP web: syn_proxy false -> true"),
            (
                |vip| vip.policy.table_share = Some(125_000),
                "VIP web: table_share a part of the common one -> 0.125",
            ),
            (|vip| _ = vip.backends.pop(), "backend b of VIP web removed"),
            (
                |vip| vip.backends.push(backend("c", 3)),
                "backend c of VIP web added: 127.0.1.3 port 8080, weight 1",
            ),
            (
                |vip| vip.backends.first_mut().unwrap().weight = 0,
                "backend a of VIP web: weight 1 -> 0",
            ),
            (
                |vip| vip.backends.first_mut().unwrap().port = None,
                "backend a of VIP web: 127.0.1.1 port 8080 -> 127.0.1.1; another server, the flows of \
                 the old one go to other backends",
            ),
        ];
        for (change, expected) in rows {
            assert_eq!(one(change), [expected]);
        }
        assert_eq!(
            one(|vip| vip.forward = Forward::Dsr),
            [
                "VIP web: forward nat -> dsr",
                "VIP web: another VIP from now on; its old flows go to other backends"
            ]
        );
    }

    /// Addresses and ports identify a backend; a changed name is a rename.
    #[test]
    fn names_that_change_hands_are_renames() {
        let swapped = one(|vip| {
            for backend in &mut vip.backends {
                let other = if backend.name == "a" { "b" } else { "a" };
                backend.name = other.to_owned();
            }
        });
        assert_eq!(swapped, ["backend a of VIP web renamed b", "backend b of VIP web renamed a"]);
        let moved = one(|vip| vip.backends.iter_mut().for_each(|b| b.port = Some(8081)));
        assert_eq!(moved.len(), 2, "{moved:?}");
        assert!(moved.iter().all(|reported| reported.contains("another server")), "{moved:?}");
    }

    #[test]
    fn a_key_that_changes_is_not_told() {
        let mut old = vip("web", &[]);
        old.policy.quic = Box::new([rotation_1(7)]);
        let mut new = old.clone();
        new.policy.quic = Box::new([rotation_1(8)]);
        let reported = changes(&config(vec![old]), &config(vec![new]));
        assert_eq!(reported, ["VIP web: quic: another key"]);
    }

    #[test]
    fn vips_come_and_go() {
        let (old, mut new) = (vip("old", &[]), vip("new", &[backend("a", 1)]));
        new.address = [192, 0, 2, 11].into();
        assert_eq!(
            changes(&config(vec![old]), &config(vec![new])),
            ["VIP old removed", "VIP new added: 192.0.2.11, tcp 80, nat, 1 backend"]
        );
    }

    #[test]
    fn keys_that_need_a_restart_are_named() {
        type Change = fn(&mut Config);
        let rows: [(Change, &str); 12] = [
            (|c| c.control.on_drained.push("x".to_owned()), "[control] on_drained"),
            (|c| c.workers.cores.push(1), "[workers] cores"),
            (|c| c.workers.idle = Idle::Busy, "[workers] idle"),
            (|c| c.workers.flows = 1, "[workers] flows"),
            (|c| c.workers.io.busy_poll = 64, "[workers] busy_poll"),
            (|c| c.control.socket = "/x".into(), "[control] socket"),
            (|c| c.state.directory = Some("/x".into()), "[state] directory"),
            (|c| c.security.seccomp = false, "[security] seccomp"),
            (|c| c.hash.secret = [1; 16], "[hash] secret"),
            (|c| c.hash.table_size = 13, "[hash] table_size"),
            (|c| c.nics.clear(), "[[nic]] interface"),
            (|c| c.nics.first_mut().unwrap().mode = CopyMode::Copy, "[[nic]] eth1: mode"),
        ];
        let old = config(vec![]);
        assert_eq!(frozen(&old, &config(vec![vip("web", &[])])), [""; 0]);
        for (change, expected) in rows {
            let mut new = old.clone();
            change(&mut new);
            assert_eq!(frozen(&old, &new), [expected]);
        }
    }
}
