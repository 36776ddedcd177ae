//! Deny and allow lists: real clients of both families, packets of every kind, changes at run time.

use std::fs;

use holdfast::control::api::{DenyList, Status, VipStatus};

use crate::lab::{
    BALANCER_MACS, Config, Family, Holdfast, Lab, Topology, Vip, conversation, requests, vip,
};

/// The address of a client without its last digits, so that one prefix has clients 0 to 5.
fn first_clients(family: Family) -> &'static str {
    match family {
        Family::V4 => "198.18.1.8/29",
        Family::V6 => "2001:db8:1::10/124",
    }
}

fn vip_of<'s>(status: &'s Status, vip: &Vip) -> &'s VipStatus {
    status.vips.iter().find(|found| found.name == vip.name).unwrap()
}

/// Asserts which of clients 0 and 10 a VIP serves.
fn assert_served(lab: &Lab, vip: &Vip, first: bool, tenth: bool) {
    for (client, served) in [(0, first), (10, tenth)] {
        let (count, what) = (3, format!("{}, client {client}", vip.name));
        let failed = failures(lab, vip, client, count);
        assert_eq!(failed, if served { 0 } else { count }, "{what}");
    }
}

/// Number of connections that fail, of `count` that are opened at the same time.
fn failures(lab: &Lab, vip: &Vip, client: usize, count: usize) -> usize {
    let host = match vip.family {
        Family::V4 => vip.address(),
        Family::V6 => format!("[{}]", vip.address()),
    };
    let interface = vip.family.client(client);
    let line = [
        "curl",
        "-s",
        "--noproxy",
        "*",
        "--globoff",
        "--parallel",
        "--parallel-immediate",
        "--connect-timeout",
        "1.2",
        "--interface",
        &interface,
        "-H",
        "Connection: close",
        "-w",
        "%{http_code}\n",
    ];
    let mut command = lab.command("client", line[0]);
    command.args(&line[1..]);
    for _ in 0..count {
        command.args(["-o", "/dev/null"]).arg(format!("http://{host}/id"));
    }
    let output = command.output().unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    count - answers.lines().filter(|line| *line == "200").count()
}

#[test]
fn lists_of_the_configuration_decide_who_is_served() {
    let lab = Lab::up(Topology::TwoNic);
    let vips: Vec<Vip> = ["dsr", "full_nat"]
        .into_iter()
        .flat_map(|forward| Family::ALL.map(|family| vip(forward, family, false)))
        .collect();
    let file = lab.state().join("deny.txt");
    fs::write(&file, "# none yet\n").unwrap();
    let mut config = Config::new(&lab, 2, vips.clone());
    config.more = format!("[access]\ndeny_file = \"{}\"\n", file.display());
    let holdfast = Holdfast::start(&lab, &config);
    vips.iter().for_each(|vip| assert_served(&lab, vip, true, true));

    let [v4, v6] = Family::ALL.map(first_clients);
    fs::write(&file, format!("# an attack\n{v4} ; of IPv4\n\n  {v6}\n203.0.113.7\n")).unwrap();
    let changed = holdfast.ok(&["reload"]);
    assert!(changed.contains("[access]: deny 0 -> 3 prefixes (3 added, 0 removed)"), "{changed}");
    vips.iter().for_each(|vip| assert_served(&lab, vip, false, true));
    let status = holdfast.status();
    for vip in &vips {
        let found = vip_of(&status, vip);
        assert!(found.denied >= 3 && found.not_allowed == 0, "{found:#?}");
    }
    let denied: u64 = status.vips.iter().map(|vip| vip.denied).sum();
    assert_eq!(status.nics.iter().map(|nic| nic.denied).sum::<u64>(), denied);
    let client = format!("{}:4000", Family::V4.client(0));
    let why = holdfast.ok(&["explain", "--vip", "dsr4", "--client", &client]);
    assert!(why.contains("198.18.1.8/29 is in the deny list of [access]"), "{why}");

    // A deny list of one VIP, and an allow list of another.
    let mut lists = vips.clone();
    lists[0].keys = "deny = [\"198.18.1.20\"]";
    lists[1].keys = "allow = [\"2001:db8:1::10/124\"]";
    holdfast.write_config(&Config::new(&lab, 2, lists));
    holdfast.ok(&["reload"]);
    for (vip, first, tenth) in
        [(&vips[0], true, false), (&vips[1], true, false), (&vips[2], true, true)]
    {
        assert_served(&lab, vip, first, tenth);
    }
    let status = holdfast.status();
    assert!(vip_of(&status, &vips[1]).not_allowed >= 3, "{:#?}", vip_of(&status, &vips[1]));
    let client = format!("[{}]:4000", Family::V6.client(10));
    let why = holdfast.ok(&["explain", "--vip", "dsr6", "--client", &client]);
    assert!(why.contains("the allow list of VIP dsr6 has no prefix with"), "{why}");
    holdfast.assert_packets_accounted_for();
    holdfast.stop();
}

/// Sends a frame of each kind from client 0; returns their names.
fn send_kinds(lab: &Lab, vip: &Vip) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/sources.py");
    let (source, address) = (vip.family.client(0), vip.address());
    let line = ["/usr/bin/python3", script, "eth0", BALANCER_MACS[0], &source, &address];
    lab.run("client", &line).lines().map(str::to_owned).collect()
}

/// Fragments without ports, tags, ICMP and errors of a denied source are dropped like its first
/// packets, and with the lists of a single VIP as well. An allow list does not drop errors, which
/// any router sends.
#[test]
fn every_kind_of_packet_of_a_denied_source_is_dropped() {
    let lab = Lab::up(Topology::Stick);
    for family in Family::ALL {
        let (mut udp, clients) = (vip("dsr", family, true), first_clients(family));
        // TCP and UDP on one VIP: the program finds the lists of a packet without ports.
        udp.keys = "# lists";
        let mut config = Config::new(&lab, 1, vec![udp.clone()]);
        let plain = config.toml().replace("protocol = \"udp\"", "protocol = \"any\"");
        let plain = plain.replace("ports = [7]\n", "");
        let holdfast = Holdfast::start(&lab, &config);
        config.more = String::new();
        for (keys, dropped) in [
            ("deny = [\"PREFIX\"]", "denied"),
            ("allow = [\"203.0.113.0/24\"]", "not_allowed"),
            ("deny = [\"203.0.113.0/24\"]", "none"),
        ] {
            let keys = keys.replace("PREFIX", clients);
            let of_all = format!("{plain}\n[access]\n{keys}\n");
            let scopes = [plain.replace("# lists", &keys), of_all];
            // One is enough to see that other sources pass.
            let scopes = scopes.into_iter().take(if dropped == "none" { 1 } else { 2 });
            for text in scopes {
                holdfast.write_text(&text);
                holdfast.ok(&["reload"]);
                let before = holdfast.status();
                let kinds = send_kinds(&lab, &udp);
                let sent = u64::try_from(kinds.len()).unwrap();
                assert_eq!(sent, 7, "{kinds:?}");
                let (denied, not_allowed, steered) = match dropped {
                    "denied" => (sent, 0, 0),
                    "not_allowed" => (0, sent - 1, 1),
                    _ => (0, 0, sent),
                };
                let drops = |s: &Status| (s.vips[0].denied, s.vips[0].not_allowed);
                let old = drops(&before);
                holdfast.wait_until(&format!("{family:?}, {keys}"), |status| {
                    let now = drops(status);
                    let steered_now = status.nics[0].steered - before.nics[0].steered;
                    (now.0 - old.0, now.1 - old.1) == (denied, not_allowed)
                        && steered_now >= steered
                        && (steered > 1 || steered_now < sent)
                });
            }
        }
        holdfast.stop();
    }
}

#[test]
fn sources_are_denied_and_admitted_at_run_time() {
    let lab = Lab::up(Topology::TwoNic);
    let [nat, dsr] = [vip("nat", Family::V4, false), vip("dsr", Family::V6, false)];
    let config = Config::new(&lab, 2, vec![nat.clone(), dsr.clone()]);
    let holdfast = Holdfast::start(&lab, &config);
    let [v4, v6] = Family::ALL.map(first_clients);

    // At one VIP only, while a connection is open: it goes on when the prefix is removed.
    let mut open = conversation(&lab, &nat);
    let backend = open.ask();
    let text = holdfast.ok(&["deny", "add", v4, "--vip", "nat4"]);
    assert_eq!(text.trim(), "198.18.1.8/29 is denied at VIP nat4");
    assert_served(&lab, &nat, false, true);
    assert_served(&lab, &dsr, true, true);
    holdfast.ok(&["deny", "remove", v4, "--vip", "nat4"]);
    assert_eq!(open.ask(), backend);
    assert_served(&lab, &nat, true, true);

    // At all VIPs, for some time.
    holdfast.ok(&["deny", "add", v6, "--for", "1h"]);
    holdfast.ok(&["deny", "add", v6, "--for", "3"]);
    holdfast.ok(&["deny", "add", v4]);
    assert_served(&lab, &dsr, false, true);
    let list: DenyList = serde_json::from_str(&holdfast.ok(&["deny", "list", "--json"])).unwrap();
    let denied: Vec<_> = list.denied.iter().map(|entry| entry.prefix.to_string()).collect();
    assert_eq!((denied, list.lists[0].prefixes), (vec![v4.to_owned(), v6.to_owned()], 2));
    let client = format!("{}:4000", Family::V4.client(0));
    let why = holdfast.ok(&["explain", "--vip", "nat4", "--client", &client]);
    assert!(why.contains("`holdfast deny add` has put 198.18.1.8/29 on the deny list"), "{why}");
    crate::lab::wait_for("the time of the prefix is over", crate::lab::SOON, || {
        holdfast.ok(&["events"]).contains("deny_ended")
    });
    assert_served(&lab, &dsr, true, true);

    // What is left outlives the process, and what it is not is refused.
    holdfast.stop();
    let holdfast = Holdfast::start(&lab, &config);
    assert_served(&lab, &nat, false, true);
    let error = holdfast.refused(&["deny", "remove", "203.0.113.0/24"]);
    assert!(error.contains("was not denied at run time"), "{error}");
    let error = holdfast.refused(&["deny", "add", "203.0.113.1/24"]);
    assert!(error.contains("write \"203.0.113.0/24\""), "{error}");
    let error = holdfast.refused(&["deny", "add", "203.0.113.0/24", "--vip", "mail"]);
    assert!(error.contains("no VIP is named \"mail\"; there are: dsr6, nat4"), "{error}");
    holdfast.ok(&["deny", "remove", v4]);
    requests(&lab, &nat, 0, 20).assert_none_failed("after the removal");
    holdfast.stop();
}

/// A source above its rate loses packets and connections, and no other source does.
#[test]
fn a_source_is_held_to_its_rate() {
    let lab = Lab::up(Topology::Stick);
    for family in Family::ALL {
        let (mut udp, mut tcp) = (vip("nat", family, true), vip("full_nat", family, false));
        (udp.keys, tcp.keys) = ("rate = { packets = 20 }", "rate = { new_flows = 3 }");
        let holdfast = Holdfast::start(&lab, &Config::new(&lab, 1, vec![udp.clone(), tcp.clone()]));
        let bracketed = |text: String| if text.contains(':') { format!("[{text}]") } else { text };
        let socket = |client| {
            let local = format!("{}:0", bracketed(family.client(client)));
            let socket = lab.udp_socket("client", local.parse().unwrap());
            socket.set_read_timeout(Some(crate::lab::SOON)).unwrap();
            socket.connect(format!("{}:7", bracketed(udp.address()))).unwrap();
            socket
        };
        let flood = socket(0);
        (0..200).for_each(|_| _ = flood.send(b"flood").unwrap());
        // All clients of the lab are one source of IPv6: a /64.
        if family == Family::V4 {
            let other = socket(10);
            other.send(b"honest").unwrap();
            assert!(other.recv(&mut [0; 64]).is_ok(), "another source is served");
        }
        holdfast.wait_until("the flood is cut", |status| {
            let udp = vip_of(status, &udp);
            udp.over_rate > 50 && udp.over_rate + udp.traffic.packets_in >= 200
        });
        requests(&lab, &tcp, 0, 30);
        holdfast.wait_until("new connections are cut", |status| vip_of(status, &tcp).over_rate > 3);
        holdfast.assert_packets_accounted_for();
        holdfast.stop();
    }
}
