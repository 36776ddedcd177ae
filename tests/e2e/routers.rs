//! Replies to clients behind routers, when a router is replaced or dies while its clients only
//! listen. Times are printed, not asserted.

use std::time::Instant;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, listeners, speakers, vip,
    wait_for,
};

/// Port of the servers that speak.
const PORT: u16 = 9000;
/// Connections to each VIP.
const EACH: usize = 19;
/// MACs of the router: as `scripts/lab` gives it, and another one.
const MACS: [&str; 2] = ["02:00:00:00:02:fe", "02:00:00:00:03:fe"];
/// The router's addresses.
const ROUTER: [&str; 2] = ["198.18.2.254", "2001:db8:2::fe"];

fn vips(backends: &[&'static str]) -> Vec<Vip> {
    let modes = ["nat", "full_nat"].map(|mode| Family::ALL.map(|family| (mode, family)));
    let vip = |(mode, family)| Vip {
        nat_port: PORT,
        backends: backends.to_vec(),
        ..vip(mode, family, false)
    };
    modes.into_iter().flatten().map(vip).collect()
}

/// Waits until the balancer's kernel has verified the router, which it does for holdfast only.
fn wait_for_router(lab: &Lab) {
    for address in ROUTER {
        wait_for(&format!("{address} is watched"), SOON, || {
            let show = ["ip", "neigh", "show", address, "dev", "eth0", "nud", "reachable"];
            lab.run("lb", &show).contains(MACS[0])
        });
    }
}

/// The texts of all events of a kind.
fn events(holdfast: &Holdfast<'_>, kind: &str) -> Vec<String> {
    let lines = holdfast.ok(&["events", "--json"]);
    let events = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of_kind = events.filter(|event| event["kind"] == kind && event["nic"] == "eth0");
    of_kind.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
}

/// The text of the event for replies that go to the router again.
fn restored() -> String {
    format!("replies go to router {}, MAC {} on eth0, again", ROUTER[0], MACS[0])
}

#[test]
fn replies_follow_a_router_that_gets_another_mac() {
    let lab = Lab::up(Topology::Stick);
    lab.route_clients(&["router"], ROUTER);
    let vips = vips(&BACKENDS);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    let mut servers = speakers(&lab, &BACKENDS, PORT);
    let mut clients = listeners(&lab, &vips, EACH);
    let announce = |on: &str| {
        for key in ["ipv4.conf.eth0.arp_notify", "ipv6.conf.eth0.ndisc_notify"] {
            lab.run("router", &["sysctl", "-q", "-w", &format!("net.{key}={on}")]);
        }
    };
    wait_for_router(&lab);
    let mut round = 0;
    for (name, mac, on) in [
        ("announces another MAC", MACS[1], "1"),
        ("announces its former MAC", MACS[0], "1"),
        ("has another MAC, unannounced", MACS[1], "0"),
    ] {
        announce(on);
        lab.run("router", &["ip", "link", "set", "eth0", "address", mac]);
        let begun = Instant::now();
        round += 1;
        servers.say(round);
        clients.hear(round);
        println!("router {name}: gap {} ms", begun.elapsed().as_millis());
    }
    let told = events(&holdfast, "return_hop_replaced");
    let text = format!("router {}, MAC {} on eth0, no longer has this MAC", ROUTER[0], MACS[0]);
    assert!(told.iter().any(|told| told.starts_with(&text)), "{told:?}");
    assert!(told.iter().all(|told| told.contains("replies to its clients go to 02:00")));
    assert!(events(&holdfast, "return_hop_restored").contains(&restored()));
    holdfast.stop();
}

/// Pins have the router's former MAC, which no address has by then: a process knows it from the
/// process before it only.
#[test]
fn replies_follow_a_router_that_gets_another_mac_around_a_restart() {
    let lab = Lab::up(Topology::Stick);
    lab.route_clients(&["router"], ROUTER);
    let vips = vips(&BACKENDS);
    let config = Config::new(&lab, 2, vips.clone());
    let mut holdfast = Holdfast::start(&lab, &config);
    let mut servers = speakers(&lab, &BACKENDS, PORT);
    let mut clients = listeners(&lab, &vips, EACH);
    for key in ["ipv4.conf.eth0.arp_notify", "ipv6.conf.eth0.ndisc_notify"] {
        lab.run("router", &["sysctl", "-q", "-w", &format!("net.{key}=1")]);
    }
    wait_for_router(&lab);
    let change = |mac| lab.run("router", &["ip", "link", "set", "eth0", "address", mac]);
    for (round, mac, before) in [(1, MACS[1], true), (2, MACS[0], false)] {
        if before {
            change(mac);
        }
        holdfast.kill();
        holdfast = Holdfast::start(&lab, &config);
        if !before {
            change(mac);
        }
        servers.say(round);
        clients.hear(round);
    }
    holdfast.stop();
}

#[test]
fn replies_leave_a_router_that_dies() {
    let lab = Lab::up(Topology::Stick);
    // The second router is known by the packets that come through it only.
    lab.route_clients(&["router", "b3"], ROUTER);
    let vips = vips(&["b1", "b2"]);
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    let mut servers = speakers(&lab, &["b1", "b2"], PORT);
    let mut by_first = listeners(&lab, &vips, EACH);
    lab.use_router(1);
    let mut by_second = listeners(&lab, &vips, EACH);
    wait_for_router(&lab);
    for (round, (name, state)) in (1..).zip([("dies", "down"), ("lives again", "up")]) {
        lab.run("switch", &["ip", "link", "set", "router-eth0", state]);
        let begun = Instant::now();
        servers.say(round);
        by_first.hear(round);
        println!("router {name}: gap {} ms", begun.elapsed().as_millis());
        by_second.hear(round);
    }
    let told = events(&holdfast, "return_hop_replaced");
    assert!(told.iter().any(|told| told.contains("does not reply")), "{told:?}");
    wait_for("replies go to the first router again", SOON, || {
        events(&holdfast, "return_hop_restored").contains(&restored())
    });
    holdfast.stop();
}
