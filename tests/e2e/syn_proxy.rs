//! VIPs with `syn_proxy`: the kernels of clients and backends, which each have a handshake with the
//! balancer.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use holdfast::control::api::HealthState;

use super::full_nat::{assert_client_is_known, lose_none, lose_packets};
use super::oracle::capture;
use crate::lab::{
    BACKENDS, BALANCER_MACS, Blocked, Config, Conversation, Family, Holdfast, Lab, Running, SOON,
    Topology, Vip, blocked, conversation, download, requests, succeeded, transfers, vip, wait_for,
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/exchange.py");
const FLOOD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/flood.py");
const BROKEN_SYNS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/syn_flood.py");
/// Bytes of an exchange in each direction: more than the windows hold.
const BYTES: &str = "3000000";
/// A port on which no backend listens.
const CLOSED: u16 = 8099;

/// A VIP with `syn_proxy`.
fn guarded(forward: &'static str, family: Family) -> Vip {
    Vip { keys: "syn_proxy = true", ..vip(forward, family, false) }
}

/// nat and full_nat in both families.
fn translating() -> Vec<Vip> {
    let modes = ["nat", "full_nat"].map(|mode| Family::ALL.map(|family| guarded(mode, family)));
    modes.into_iter().flatten().collect()
}

/// A full-NAT VIP with backends of the other family.
fn crossed(family: Family) -> Vip {
    let (name, inner) = match family {
        Family::V4 => ("full_nat4to6", Family::V6),
        Family::V6 => ("full_nat6to4", Family::V4),
    };
    Vip { name: name.to_owned(), inner, ..guarded("full_nat", family) }
}

fn with_proxy(vip: Vip) -> Vip {
    Vip { keys: "syn_proxy = true\nproxy = \"v2\"", nat_port: 8081, ..vip }
}

/// For each VIP another one of its kind on port 9000, with `exchange.py` on b1.
fn exchanges(vips: &[Vip]) -> String {
    let section = |vip: &Vip| {
        let port = if vip.nat_port == 8081 { 9001 } else { 9000 };
        let Vip { name, forward, keys, .. } = vip;
        let (address, backend) = (vip.address(), vip.inner.backend("b1"));
        format!(
            r#"
[[vip]]
name = "{name}-exchange"
address = "{address}"
ports = [9000]
forward = "{forward}"
{keys}
health = {{ kind = "tcp", interval_ms = 100, timeout_ms = 100, rise = 2, fall = 2, port = 80 }}
[[vip.backend]]
name = "b1"
address = "{backend}"
port = {port}
"#
        )
    };
    vips.iter().map(section).collect()
}

/// A configuration with the VIPs and [`exchanges`].
fn with_exchanges(lab: &Lab, vips: &[Vip]) -> Config {
    Config { more: exchanges(vips), ..Config::new(lab, 2, vips.to_vec()) }
}

/// Starts `exchange.py` on b1, without and with PROXY headers.
fn exchange_servers(lab: &Lab) -> [Running; 2] {
    [("serve", "9000"), ("serve-proxy", "9001")].map(|(mode, port)| {
        let mut command = lab.command("b1", "/usr/bin/python3");
        command.args([SCRIPT, mode, port]).stdout(Stdio::piped());
        let mut running = Running::start(&mut command);
        let mut line = String::new();
        BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        running
    })
}

/// A client of `exchange.py`; it `ask`s (the server speaks first) or `tell`s.
fn exchange(lab: &Lab, vip: &Vip, mode: &str, bytes: &str) -> Command {
    let mut command = lab.command("client", "/usr/bin/python3");
    command.args([SCRIPT, mode, &vip.address(), "9000", bytes]);
    command
}

/// One exchange with each VIP, all at a time.
fn assert_exchanges(lab: &Lab, vips: &[Vip], (mode, bytes): (&str, &str), what: &str) {
    let start = |vip| exchange(lab, vip, mode, bytes).stderr(Stdio::piped()).spawn().unwrap();
    let clients: Vec<_> = vips.iter().map(|vip| (&vip.name, start(vip))).collect();
    for (name, client) in clients {
        succeeded(&format!("{name}, {what}: {mode}"), &client.wait_with_output().unwrap());
    }
}

/// SYNs that were answered with a cookie.
fn cookies(holdfast: &Holdfast<'_>) -> u64 {
    holdfast.status().answers["syn_cookies_sent"]
}

/// Adds a table of nftables with this rule for incoming packets, until [`forget`].
fn rule(lab: &Lab, host: &str, table: &str, hook: &str, rule: &str) {
    lab.run(host, &["nft", "add", "table", "inet", table]);
    let chain = format!("{{ type filter hook {hook} priority 0; }}");
    lab.run(host, &["nft", "add", "chain", "inet", table, "input", &chain]);
    lab.run(host, &["nft", "add", "rule", "inet", table, "input", rule]);
}

fn forget(lab: &Lab, host: &str, table: &str) {
    lab.run(host, &["nft", "delete", "table", "inet", table]);
}

/// Counts the packets that backends get on their NAT port; health checks use another one.
fn count_at_backends(lab: &Lab) {
    for backend in BACKENDS {
        rule(lab, backend, "seen", "input", "tcp dport 8080 counter");
    }
}

/// Packets that the backends got since [`count_at_backends`].
fn seen_by_backends(lab: &Lab) -> u64 {
    let seen = |backend| {
        let rules = lab.run(backend, &["nft", "list", "table", "inet", "seen"]);
        let (_, count) = rules.split_once("counter packets ").unwrap();
        count.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    BACKENDS.into_iter().map(seen).sum()
}

/// The kernels at both ends have used selective acknowledgments and timestamps, and discarded
/// hardly any: they are ignored, and a transfer is slow only, if their numbers are wrong.
fn assert_acknowledges_selectively(lab: &Lab) {
    for host in ["client", "b1"] {
        let count = |name: &str| {
            let told = lab.run(host, &["nstat", "-asz", &format!("TcpExt{name}")]);
            let line = told.lines().find(|line| line.starts_with("TcpExt")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        assert!(count("TCPSackRecovery") > 0, "{host}");
        // A few are: a retransmission may take another queue, and overtake what was sent before.
        for discarded in ["TCPSACKDiscard", "PAWSEstab"] {
            assert!(count(discarded) < 10, "{host}: {discarded} {}", count(discarded));
        }
    }
}

/// Every mode and pair of families, with and without PROXY headers, also while packets are lost. A
/// judge sees the packets of requests, and of an exchange that the server begins.
#[test]
fn every_mode_and_family_and_proxy_headers_over_a_lossy_link() {
    let lab = Lab::up(Topology::TwoNic);
    let _servers = exchange_servers(&lab);
    let mut vips = translating();
    vips.extend(Family::ALL.map(crossed));
    let proxied = vips.iter().filter(|vip| vip.forward == "full_nat").cloned();
    let proxied: Vec<Vip> = proxied.map(with_proxy).collect();
    for (vips, proxy) in [(vips, false), (proxied, true)] {
        let holdfast = Holdfast::start(&lab, &with_exchanges(&lab, &vips));
        let captures = ["client", "b1"].map(|host| capture(&lab, host, "eth0"));
        let proxied = format!("proxy {proxy}");
        let what = |vip: &Vip| format!("{}, {proxied}", vip.name);
        for vip in &vips {
            requests(&lab, vip, 0, 100).assert_from(&what(vip), &BACKENDS);
        }
        assert_exchanges(&lab, &vips, ("ask", "300000"), &proxied);
        for capture in captures {
            capture.assert_well_formed(1000);
        }
        let status = holdfast.status();
        let expected = u64::try_from(vips.len() * 101).unwrap();
        assert_eq!(status.totals.flows_new, expected, "{:#?}", status.totals);
        assert_eq!(cookies(&holdfast), expected);
        for reason in ["no_cookie", "bad_tcp_checksum", "return_no_flow"] {
            assert_eq!(status.drops[reason], 0, "{:#?}", status.drops);
        }
        for vip in &vips {
            assert!(download(&lab, vip, None).ends_well(), "{}: download", what(vip));
            if proxy {
                assert_client_is_known(&lab, vip, &what(vip));
            }
        }
        lose_packets(&lab);
        // A client that lost its ACK learns that only when it has something to send.
        assert_exchanges(&lab, &vips, ("tell", "8000000"), &format!("{proxied}, with losses"));
        lose_none(&lab);
        // With PROXY headers a backend also reports bytes of the header that came twice.
        if !proxy {
            assert_acknowledges_selectively(&lab);
        }
        let drops = holdfast.status().drops;
        for reason in ["no_source_port", "not_translatable", "bad_tcp_checksum", "no_headroom"] {
            assert_eq!(drops[reason], 0, "{drops:#?}");
        }
        holdfast.stop();
    }
}

/// What the kernel of `host` has agreed with its peer on the only connection with this filter.
fn agreed(lab: &Lab, host: &str, filter: &[&str]) -> [bool; 3] {
    let line = [&["ss", "-Htino", "state", "established"], filter].concat();
    let told = lab.run(host, &line);
    let words: Vec<&str> = told.split_whitespace().collect();
    let scales = words.iter().any(|word| word.starts_with("wscale:"));
    [words.contains(&"ts"), words.contains(&"sack"), scales]
}

/// Settings by sysctl, and the hosts that have them.
type Row<'a> = (Vec<(&'a str, &'a str)>, &'a [&'a str]);

/// Options that one end has switched off, or sets in another way.
#[test]
fn options_that_an_end_lacks() {
    const OFF: [&str; 3] = ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"];
    let lab = Lab::up(Topology::Stick);
    let _servers = exchange_servers(&lab);
    let vips = [guarded("nat", Family::V4), crossed(Family::V6)];
    let holdfast = Holdfast::start(&lab, &with_exchanges(&lab, &vips));
    let mut rows: Vec<Row<'_>> = vec![(vec![], &[])];
    let (client, backends): (&[&str], &[&str]) = (&["client"], &BACKENDS);
    let both: &[&str] = &["client", "b1", "b2", "b3"];
    for key in OFF {
        rows.extend([client, backends, both].map(|hosts| (vec![(key, "0")], hosts)));
    }
    rows.push((OFF.map(|key| (key, "0")).to_vec(), both));
    // Windows in steps of 16 KiB and of one byte, and congestion notification.
    let wide = ("tcp_rmem", "4096 1000000 1073725440");
    let narrow = ("tcp_rmem", "4096 32000 60000");
    rows.extend([client, backends].map(|hosts| (vec![wide], hosts)));
    rows.extend([client, backends].map(|hosts| (vec![narrow], hosts)));
    rows.push((vec![("tcp_ecn", "1")], both));
    for (settings, hosts) in &rows {
        let what = format!("{settings:?} at {hosts:?}");
        let mut before = Vec::new();
        for host in *hosts {
            for (key, value) in settings {
                let key = format!("net.ipv4.{key}");
                before.push((*host, format!("{key}={}", lab.run(host, &["sysctl", "-n", &key]))));
                lab.run(host, &["sysctl", "-q", "-w", &format!("{key}={value}")]);
            }
        }
        for vip in &vips {
            let what = format!("{}, {what}", vip.name);
            let mut talk = conversation(&lab, vip);
            let backend = talk.ask();
            let has = |hosts: &[&str], end: &str, key: &str| {
                !hosts.contains(&end) || !settings.contains(&(key, "0"))
            };
            // The client is told what it offers; the backend is offered what the client offered.
            let by_client = OFF.map(|key| has(hosts, "client", key));
            let by_both = OFF.map(|key| has(hosts, "client", key) && has(hosts, &backend, key));
            assert_eq!(agreed(&lab, "client", &["dport = :80"]), by_client, "{what}: client");
            assert_eq!(agreed(&lab, &backend, &["sport = :8080"]), by_both, "{what}: {backend}");
            drop(talk);
            let closed =
                || lab.run(&backend, &["ss", "-Htn", "state", "established", "sport = :8080"]);
            wait_for("the backend closes", SOON, || closed().is_empty());
        }
        assert_exchanges(&lab, &vips, ("ask", BYTES), &what);
        for (host, setting) in before {
            lab.run(host, &["sysctl", "-q", "-w", setting.trim()]);
        }
    }
    holdfast.stop();
}

/// Packets of `kind`, at 2,000 a second from forged addresses; returns how many.
fn flood(lab: &Lab, kind: &str, vip: &Vip) -> u64 {
    let target = ["eth0", BALANCER_MACS[0], &vip.address(), "80", "2000", "1"];
    let told = lab.run("client", &[&["/usr/bin/python3", FLOOD, kind][..], &target].concat());
    told.lines().last().unwrap().parse().unwrap()
}

#[test]
fn no_backend_sees_a_client_that_has_not_proven_itself() {
    let lab = Lab::up(Topology::Stick);
    let vips = translating();
    // One worker, so that there is one limit of refusals.
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vips.clone()));
    count_at_backends(&lab);
    let of = |name: &str| {
        let status = holdfast.status();
        status.answers.get(name).or_else(|| status.drops.get(name)).copied().unwrap()
    };
    let (nat, full_nat) = (&vips[0], &vips[2]);
    assert_eq!(flood(&lab, "syn", nat), 2000);
    let broken = ["eth0", BALANCER_MACS[0], &nat.address(), "100"];
    lab.run("client", &[&["/usr/bin/python3", BROKEN_SYNS][..], &broken].concat());
    assert_eq!(flood(&lab, "ack", nat), 2000);
    // A thousand SYNs, and a thousand ACKs that only guess what they acknowledge.
    assert_eq!(flood(&lab, "handshake", full_nat), 2000);
    holdfast.wait_until("all have been counted", |_| of("no_cookie") + of("rejects_sent") == 3000);
    assert_eq!((of("syn_cookies_sent"), of("bad_tcp_checksum")), (3000, 100));
    // The limit of refusals is 1,000 a second and a burst.
    assert!(of("rejects_sent") > 200 && of("no_cookie") > 0, "{}", of("rejects_sent"));
    // Kernels that never get an answer, in both families.
    rule(&lab, "client", "deaf", "input", "tcp sport 80 tcp flags & (syn|ack) == syn|ack drop");
    for vip in &vips {
        let before = cookies(&holdfast);
        let curl = ["curl", "-s", "--noproxy", "*", "--max-time", "0.5", &vip.url()];
        // A time-out.
        assert_eq!(lab.try_run("client", &curl).status.code(), Some(28), "{}", vip.name);
        assert!(cookies(&holdfast) > before, "{}", vip.name);
    }
    forget(&lab, "client", "deaf");
    assert_eq!(seen_by_backends(&lab), 0);
    let totals = holdfast.status().totals;
    assert_eq!((totals.flows_new, totals.flows_active), (0, 0), "{totals:#?}");
    assert_eq!(holdfast.ok(&["flows", "--json"]).trim(), "");
    for vip in &vips {
        requests(&lab, vip, 0, 60).assert_from(&vip.name, &BACKENDS);
    }
    assert!(seen_by_backends(&lab) > 0);
    holdfast.stop();
}

/// Asks on every connection; each stays at its backend.
fn assert_go_on(talks: &mut [(Conversation, String)], what: &str) {
    for (talk, backend) in talks {
        assert_eq!(talk.ask(), *backend, "{what}");
    }
}

/// Opens a connection of which the client's last packet of the handshake does not arrive until
/// `meanwhile` has run; returns what the server said. For IPv4.
fn with_a_late_ack(lab: &Lab, vip: &Vip, meanwhile: impl FnOnce()) -> String {
    // An address that no other connection has.
    let client = vip.family.client(1);
    let late = format!("ip saddr {client} tcp flags & (syn|ack) == ack counter drop");
    rule(lab, "client", "late", "output", &late);
    let curl = ["--silent", "--noproxy", "*", "--max-time", "20", "--interface", &client];
    let mut command = lab.command("client", "curl");
    command.args(curl).arg(vip.url()).stdout(Stdio::piped());
    let mut running = Running::start(&mut command);
    wait_for("the client has the cookie", SOON, || {
        !lab.run("client", &["nft", "list", "table", "inet", "late"]).contains("packets 0 ")
    });
    meanwhile();
    forget(lab, "client", "late");
    let mut answer = String::new();
    BufReader::new(running.0.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    answer.trim().to_owned()
}

/// Restarts, sudden deaths, hand-overs, reloads that switch `syn_proxy` off and on, and an import.
#[test]
fn connections_go_on_through_restarts_hand_overs_and_reloads() {
    const EACH: usize = 12;
    let lab = Lab::up(Topology::TwoNic);
    let mut vips = translating();
    for vip in &mut vips {
        // Which does not find the backend of a flow without its pin.
        vip.keys = "scheduler = \"round_robin\"\nsyn_proxy = true";
    }
    let config = Config::new(&lab, 2, vips.clone());
    let unguarded = |vip: &Vip| Vip { keys: "scheduler = \"round_robin\"", ..vip.clone() };
    let off = Config::new(&lab, 2, vips.iter().map(unguarded).collect());
    let reload = |holdfast: &Holdfast<'_>, config: &Config, told: &str| {
        holdfast.write_config(config);
        let printed = holdfast.ok(&["reload"]);
        assert!(printed.contains(told), "{printed}");
    };
    let mut holdfast = Holdfast::start(&lab, &config);
    let busy = transfers(&lab, &vips, 16, EACH);
    // Retransmissions that fall into one gap after the other are far apart.
    let settle = || sleep(Duration::from_secs(1));
    let open = |vip: &Vip| {
        let mut talk = conversation(&lab, vip);
        let backend = talk.ask();
        (talk, backend)
    };
    let mut talks: Vec<_> = vips.iter().map(open).collect();
    holdfast.stop();
    holdfast = Holdfast::start(&lab, &config);
    assert_go_on(&mut talks, "restart");
    settle();
    holdfast.kill();
    holdfast = Holdfast::start(&lab, &config);
    assert_go_on(&mut talks, "sudden death");
    holdfast.replace(&config);
    assert_go_on(&mut talks, "hand-over");
    // Splices without syn_proxy, and with it again.
    reload(&holdfast, &off, "syn_proxy");
    assert_go_on(&mut talks, "switched off");
    let before = cookies(&holdfast);
    for vip in &vips {
        requests(&lab, vip, 0, 20).assert_none_failed(&vip.name);
    }
    assert_eq!(cookies(&holdfast), before, "switched off");
    talks.extend(vips.iter().map(open));
    settle();
    holdfast.kill();
    holdfast = Holdfast::start(&lab, &off);
    assert_go_on(&mut talks, "sudden death while it is switched off");
    reload(&holdfast, &config, "syn_proxy");
    assert_go_on(&mut talks, "switched on");
    for vip in &vips {
        requests(&lab, vip, 0, 20).assert_none_failed(&vip.name);
    }
    assert_eq!(cookies(&holdfast), 80, "switched on");
    talks.extend(vips.iter().map(open));
    // Other tables. A client that has a cookie of the earlier process is known.
    let other = Config { flows: 8192, ..Config::new(&lab, 1, vips.clone()) };
    let mut next = None;
    settle();
    let answer = with_a_late_ack(&lab, &vips[0], || {
        holdfast.kill();
        next = Some(Holdfast::start(&lab, &other));
    });
    let mut holdfast = next.unwrap();
    assert!(BACKENDS.contains(&answer.as_str()), "{answer}");
    assert_go_on(&mut talks, "import");
    holdfast.replace_itself();
    assert_go_on(&mut talks, "hand-over by SIGUSR2");
    let result = busy.end();
    println!("longest time to an answer: {} ms", result.gap_ms);
    assert_eq!(result.transfers, vips.len() * EACH);
    assert_eq!(result.broken, [] as [String; 0], "{}", holdfast.log());
    assert_go_on(&mut talks, "at the end");
    for vip in &vips {
        requests(&lab, vip, 0, 20).assert_none_failed(&vip.name);
    }
}

/// Connections of `host`'s kernel on this local port.
fn established(lab: &Lab, host: &str, port: u16) -> usize {
    let filter = format!("sport = :{port}");
    lab.run(host, &["ss", "-Htn", "state", "established", &filter]).lines().count()
}

/// A backend that refuses, one that answers late, one that goes away, and none.
#[test]
fn backends_that_refuse_answer_late_or_go_away() {
    let lab = Lab::up(Topology::TwoNic);
    let _servers = exchange_servers(&lab);
    let mut refusing = translating();
    for vip in &mut refusing {
        vip.nat_port = CLOSED;
    }
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, refusing.clone()));
    for vip in &refusing {
        let begun = Instant::now();
        let curl = ["curl", "-s", "--noproxy", "*", "--max-time", "5", &vip.url()];
        let code = lab.try_run("client", &curl).status.code();
        // curl: reset; or refused, if that came before curl saw the connection.
        assert!(code == Some(56) || code == Some(7), "{}: {code:?}", vip.name);
        assert!(begun.elapsed() < Duration::from_secs(1), "{}: {:?}", vip.name, begun.elapsed());
    }
    let status = holdfast.status();
    assert_eq!(status.drops["return_no_flow"], 0, "{:#?}", status.drops);
    holdfast.stop();

    let mut vips = translating();
    for vip in &mut vips {
        vip.backends = vec!["b1"];
        vip.keys = "syn_proxy = true\non_idle = \"reset\"";
        vip.timeouts = "{ established_s = 4 }";
    }
    let holdfast = Holdfast::start(&lab, &with_exchanges(&lab, &vips));
    // The SYN is repeated after one second, and again after two more; a client with something to
    // send asks more often.
    rule(&lab, "b1", "late", "input", "tcp dport 9000 tcp flags & (syn|ack) == syn counter drop");
    let waiting: Vec<_> = ["ask", "tell"]
        .into_iter()
        .flat_map(|mode| vips.iter().map(move |vip| (mode, vip)))
        .map(|(mode, vip)| {
            let mut command = exchange(&lab, vip, mode, "300000");
            (mode, vip, Running::start(command.stderr(Stdio::inherit())))
        })
        .collect();
    sleep(Duration::from_millis(1500));
    forget(&lab, "b1", "late");
    for (mode, vip, mut client) in waiting {
        let ended = client.0.wait().unwrap();
        assert!(ended.success(), "{mode}, {}: a backend that answers late", vip.name);
    }

    // A client that goes away in the middle: its RST reaches the backend.
    for vip in &vips {
        let transfer = download(&lab, vip, Some("1m"));
        transfer.backend();
        assert_eq!(established(&lab, "b1", 8080), 1, "{}", vip.name);
        drop(transfer);
        wait_for("the backend learns that its client is gone", SOON, || {
            established(&lab, "b1", 8080) == 0
        });
    }
    // Both ends of a flow that idles out.
    let clients: Vec<(&str, &str, Blocked)> = vips
        .iter()
        .flat_map(|vip| ["silent", "asked"].map(|mode| (vip.name.as_str(), mode, vip)))
        .map(|(name, mode, vip)| (name, mode, blocked(&lab, vip, mode)))
        .collect();
    wait_for("b1 has the connections", SOON, || established(&lab, "b1", 8080) == clients.len());
    for (name, mode, client) in clients {
        assert_eq!(client.end(), "ECONNRESET", "{name}, {mode}");
    }
    wait_for("the backend is told", SOON, || established(&lab, "b1", 8080) == 0);
    // No backend at all.
    lab.stop_backend("b1");
    holdfast.wait_until("b1 is down", |status| {
        let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
        backends.all(|backend| backend.health == HealthState::Down)
    });
    for vip in &vips {
        let curl = ["curl", "-s", "--noproxy", "*", "--max-time", "5", &vip.url()];
        // curl: could not connect; 28 would be a time-out.
        assert_eq!(lab.try_run("client", &curl).status.code(), Some(7), "{}", vip.name);
    }
    holdfast.stop();
}

/// A router on the clients' side reports to the backend, another one on the backends' side to the
/// client.
#[test]
fn both_directions_find_the_mtu_of_a_router() {
    const MTU: u16 = 1300;
    let lab = Lab::up(Topology::Stick);
    let _servers = exchange_servers(&lab);
    let mut vips = translating();
    vips.extend(Family::ALL.map(crossed));
    let holdfast = Holdfast::start(&lab, &with_exchanges(&lab, &vips));
    let forwarded = || holdfast.status().totals.icmp_errors_forwarded;
    let goes_by_router = |wanted: bool| {
        holdfast.wait_until("packets to the backends go by the router, or directly", |status| {
            let mut backends = status.vips.iter().flat_map(|vip| &vip.backends);
            let router = |mac: &str| mac == "02:00:00:00:02:fe";
            backends.all(|it| it.next_hop.as_ref().is_some_and(|hop| router(&hop.mac) == wanted))
        });
    };
    for family in Family::ALL {
        lab.route_to_backends(family, MTU);
    }
    goes_by_router(true);
    for vip in &vips {
        let before = forwarded();
        assert_exchanges(&lab, std::slice::from_ref(vip), ("tell", BYTES), "narrow");
        assert!(forwarded() > before, "{}: no error reached the client", vip.name);
        lab.forget_path_mtus("client");
    }
    for (family, backend) in Family::ALL.into_iter().flat_map(|it| BACKENDS.map(|to| (it, to))) {
        let route = ["ip", family.option(), "route", "del", &family.backend(backend)];
        lab.run("lb", &route);
    }
    goes_by_router(false);
    lab.route_clients(&["router"], Family::ALL.map(Family::router));
    for (option, network) in [("-4", "198.18.3.0/24"), ("-6", "2001:db8:3::/64")] {
        // The metric of the route that there is.
        let metric = if option == "-4" { "0" } else { "256" };
        let route = ["ip", option, "route", "replace", network, "dev", "far", "metric", metric];
        lab.run("router", &[&route[..], &["mtu", &MTU.to_string()]].concat());
    }
    for vip in &vips {
        let before = forwarded();
        assert_exchanges(&lab, std::slice::from_ref(vip), ("ask", BYTES), "narrow");
        assert!(forwarded() > before, "{}: no error reached the backend", vip.name);
        for backend in BACKENDS {
            lab.forget_path_mtus(backend);
        }
    }
    holdfast.stop();
}
