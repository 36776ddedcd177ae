//! Floods of first packets from forged sources, at a small flow table: established flows lose
//! nothing, and honest clients connect.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use holdfast::control::api::Status;

use crate::lab::{
    BALANCER_MACS, Config, Family, Holdfast, Lab, Running, Topology, Vip, conversation, download,
    requests, udp_requests, vip,
};

const RATE: &str = "2000";
/// Longer than the honest requests take.
const SECONDS: &str = "40";
/// Honest connections during a flood.
const HONEST: usize = 100;

struct Flood(Running);

impl Flood {
    fn start(lab: &Lab, kind: &str, vip: &Vip) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/flood.py");
        let port = if vip.udp { "7" } else { "80" };
        let mut command = lab.command("client", "/usr/bin/python3");
        let target = [script, kind, "eth0", BALANCER_MACS[0], &vip.address(), port];
        command.args(target).args([RATE, SECONDS]).stdout(Stdio::piped());
        let mut running = Running::start(&mut command);
        let mut line = String::new();
        BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "begins", "{kind}");
        Self(running)
    }

    fn is_running(&mut self) -> bool {
        self.0.0.try_wait().unwrap().is_none()
    }
}

/// Share of honest connections to the attacked VIP that must succeed, in per cent. Without room made
/// by unproven flows, hardly any does.
fn bound(vip: &Vip) -> usize {
    match (is_guarded(vip), vip.forward) {
        // A forged packet takes no room.
        (true, _) => 99,
        (_, "nat") => 80,
        _ => 95,
    }
}

fn is_guarded(vip: &Vip) -> bool {
    vip.keys.contains("syn_proxy")
}

/// Whether the flood has all of the table that it can get; or is seen, where it gets nothing.
fn is_at_work(attacked: &Vip, status: &Status) -> bool {
    let refused = || status.drops["no_cookie"] + status.answers["rejects_sent"];
    match is_guarded(attacked) {
        true => status.answers["syn_cookies_sent"] + refused() > 2000,
        false => status.totals.flows_evicted + status.totals.table_full_unpinned > 0,
    }
}

#[test]
fn a_flood_of_first_packets_harms_no_established_and_no_honest_client() {
    let lab = Lab::up(Topology::Stick);
    let guarded = Vip { keys: "syn_proxy = true", ..vip("nat", Family::V4, false) };
    let attacked = [
        ("syn", vip("dsr", Family::V4, false)),
        ("ack", vip("dsr", Family::V4, false)),
        // Where replies are not seen, forged flows can look established.
        ("handshake", vip("ipip", Family::V4, false)),
        ("syn", vip("nat", Family::V4, false)),
        ("ack", vip("nat", Family::V4, false)),
        ("udp", vip("nat", Family::V4, true)),
        ("syn", guarded.clone()),
        ("ack", guarded),
    ];
    // On a port of its own at the backends, so that their kernels are not flooded there. Its share has
    // room for the connections of the flood before, which are closing still.
    let keys = "table_share = 0.25";
    let other = Vip { nat_port: 80, keys, ..vip("full_nat", Family::V4, false) };
    for (kind, attacked) in attacked {
        let name = format!("{kind} {} {}", attacked.name, attacked.keys);
        let vips = vec![attacked.clone(), other.clone()];
        let config = Config { flows: 1024, ..Config::new(&lab, 1, vips) };
        let holdfast = Holdfast::start(&lab, &config);
        let tcp = if attacked.udp { &other } else { &attacked };
        let mut talks = [conversation(&lab, tcp), conversation(&lab, &other)];
        let backends = talks.each_mut().map(|talk| talk.ask());
        let mut transfer = download(&lab, tcp, Some("1m"));
        transfer.backend();

        let mut flood = Flood::start(&lab, kind, &attacked);
        // Before the honest clients come.
        holdfast.wait_until("the flood is at work", |status| is_at_work(&attacked, status));
        let honest = match attacked.udp {
            true => udp_requests(&lab, &attacked, HONEST),
            false => requests(&lab, &attacked, 1, HONEST),
        };
        let others = requests(&lab, &other, 2, HONEST);
        println!("{name}: {} and {} of {HONEST} failed", honest.failed, others.failed);
        assert!(flood.is_running(), "{name}: the flood ended before the requests did");
        assert!(honest.failed * 100 <= HONEST * (100 - bound(&attacked)), "{name}: {honest:?}");
        let Status { totals, drops, .. } = holdfast.status();
        assert!(
            others.failed * 100 <= HONEST,
            "{name}, the other VIP: {others:?}; {totals:?}, {drops:?}"
        );
        if is_guarded(&attacked) {
            assert_eq!(drops["table_full"], 0, "{name}: {totals:?}");
        }
        for (talk, backend) in talks.iter_mut().zip(&backends) {
            assert_eq!(talk.ask(), *backend, "{name}: an established connection");
        }
        assert!(transfer.goes_on(), "{name}: the transfer ended before the flood");
        assert!(transfer.ends_well(), "{name}: an established transfer");
        drop(flood);
        let after = match attacked.udp {
            true => udp_requests(&lab, &attacked, 10),
            false => requests(&lab, &attacked, 1, 10),
        };
        assert_eq!(after.failed, 0, "{name}, after the flood: {after:?}");
        holdfast.stop();
    }
}
