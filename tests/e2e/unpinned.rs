//! Datagrams of VIPs with `pin = false`, and servers that are clients of their own VIP, with real
//! kernels.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use holdfast::control::api::BackendState;

use crate::lab::{BACKENDS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, udp_requests, vip};

const DATAGRAMS: usize = 300;

fn unpinned(forward: &'static str, family: Family, keys: &'static str) -> Vip {
    Vip { keys, timeouts: "{ closing_s = 1 }", ..vip(forward, family, true) }
}

/// Sends datagrams of `bytes` bytes from one socket, each after the reply to the previous one;
/// returns the number of replies of each backend.
fn ask(socket: &UdpSocket, vip: &Vip, count: usize, bytes: usize) -> BTreeMap<String, usize> {
    let to = match vip.family {
        Family::V4 => format!("{}:7", vip.address()),
        Family::V6 => format!("[{}]:7", vip.address()),
    };
    let mut answers = BTreeMap::new();
    for number in 0..count {
        let sent: Vec<u8> = (0..=255).cycle().skip(number).take(bytes).collect();
        socket.send_to(&sent, &to).unwrap();
        let mut back = vec![0; 65_535];
        let (len, from) = socket.recv_from(&mut back).unwrap();
        assert_eq!(from.to_string(), to, "{}: the answer comes from the VIP", vip.name);
        let (name, echo) = back[..len].split_at(3);
        assert!(echo == sent, "{}: another datagram came back", vip.name);
        let name = String::from_utf8(name.to_vec()).unwrap().trim().to_owned();
        *answers.entry(name).or_default() += 1;
    }
    answers
}

fn client_socket(lab: &Lab, family: Family) -> UdpSocket {
    let local = match family {
        Family::V4 => format!("{}:0", family.client(0)),
        Family::V6 => format!("[{}]:0", family.client(0)),
    };
    let socket = lab.udp_socket("client", local.parse().unwrap());
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// In turn: one socket's datagrams are spread evenly, the replies come from the VIP, the table
/// stays empty, and a drain ends at once.
#[test]
fn datagrams_of_one_socket_are_spread_and_leave_no_flow() {
    let lab = Lab::up(Topology::Stick);
    let vips: Vec<Vip> = ["dsr", "nat"]
        .into_iter()
        .flat_map(|forward| {
            Family::ALL
                .map(|family| unpinned(forward, family, "pin = false\nscheduler = \"round_robin\""))
        })
        .collect();
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    for vip in &vips {
        let name = &vip.name;
        let socket = client_socket(&lab, vip.family);
        let answers = ask(&socket, vip, DATAGRAMS, 100);
        let third = DATAGRAMS / BACKENDS.len();
        let expected: BTreeMap<_, _> =
            BACKENDS.iter().map(|backend| ((*backend).to_owned(), third)).collect();
        assert_eq!(answers, expected, "{name}: in turns");
        // In fragments, in both directions: one backend gets a whole datagram.
        let answers = ask(&socket, vip, 30, 4_000);
        assert!(answers.len() > 1, "{name}: long ones are spread: {answers:?}");
        let told = holdfast.ok(&["flows", "--vip", name]);
        assert!(told.contains("pin = false"), "{told}");
        let client = format!("{}", socket.local_addr().unwrap());
        let told = holdfast.ok(&["explain", "--vip", name, "--client", &client]);
        assert!(told.contains("placed by itself"), "{told}");

        holdfast.ok(&["drain", &format!("{name}/b2"), "--wait"]);
        holdfast.wait_for_state(name, "b2", BackendState::Drained);
        let answers = ask(&socket, vip, 30, 100);
        assert!(!answers.contains_key("b2"), "{name}: at once: {answers:?}");
        holdfast.ok(&["undrain", &format!("{name}/b2")]);
    }
    let status = holdfast.status();
    assert_eq!((status.totals.flows_new, status.totals.flows_active), (0, 0));
    let placed = (DATAGRAMS + 60) * vips.len();
    assert_eq!(status.totals.datagrams_placed, u64::try_from(placed).unwrap());
    for vip in &status.vips {
        assert!(!vip.pin);
        assert_eq!((vip.traffic.flows_total, vip.traffic.dropped), (0, 0), "{vip:#?}");
        assert!(vip.traffic.packets_in >= 360, "{vip:#?}");
    }
    holdfast.stop();
}

/// By the hash: sockets are spread, each keeps its backend, and a reload starts and ends the mode.
#[test]
fn datagrams_by_the_hash_come_from_the_vip_and_a_reload_changes_it() {
    let lab = Lab::up(Topology::TwoNic);
    let vips: Vec<Vip> = ["dsr", "nat"]
        .into_iter()
        .flat_map(|forward| Family::ALL.map(|family| unpinned(forward, family, "pin = false")))
        .collect();
    let mut config = Config::new(&lab, 2, vips.clone());
    let holdfast = Holdfast::start(&lab, &config);
    for vip in &vips {
        udp_requests(&lab, vip, 200).assert_from(&vip.name, &BACKENDS);
        let answers = ask(&client_socket(&lab, vip.family), vip, 30, 100);
        assert_eq!(answers.len(), 1, "{}: one port, one backend: {answers:?}", vip.name);
    }
    assert_eq!(holdfast.status().totals.flows_new, 0);
    for (keys, flows) in [("", true), ("pin = false", false)] {
        config.vips.iter_mut().for_each(|vip| vip.keys = keys);
        holdfast.write_config(&config);
        let told = holdfast.ok(&["reload"]);
        assert!(told.contains("VIP nat4-udp: pin"), "{told}");
        for vip in &vips {
            udp_requests(&lab, vip, 20).assert_none_failed(&vip.name);
        }
        holdfast.wait_until("pins come and go", |status| (status.totals.flows_active > 0) == flows);
    }
    holdfast.stop();
}

/// With `nat` a server never gets itself as its backend, and its neighbours' replies return through
/// the balancer, by a policy rule of the lab. With `full_nat` it may get itself, and needs no rule.
#[test]
fn a_server_is_a_client_of_its_own_vip() {
    let lab = Lab::up(Topology::TwoNic);
    let vips: Vec<Vip> =
        ["nat", "full_nat"].into_iter().map(|mode| vip(mode, Family::V4, false)).collect();
    let mut config = Config::new(&lab, 2, vips.clone());
    let holdfast = Holdfast::start(&lab, &config);
    let ask = |vip: &Vip, count: usize| {
        let url = format!("{}/id?[1-{count}]", vip.url());
        let output = lab.try_run(
            "b1",
            &[
                "curl",
                "--silent",
                "--noproxy",
                "*",
                "--max-time",
                "3",
                "--interface",
                "198.18.2.11",
                "--header",
                "Connection: close",
                "--output",
                "/dev/null",
                "--write-out",
                "%header{x-backend}\n",
                &url,
            ],
        );
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for backend in String::from_utf8(output.stdout).unwrap().lines() {
            *answers.entry(backend.to_owned()).or_default() += 1;
        }
        answers
    };
    let answers = ask(&vips[0], 40);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["b2", "b3"], "nat: {answers:?}");
    let answers = ask(&vips[1], 40);
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["b1", "b2", "b3"], "full_nat: {answers:?}");

    config.vips.iter_mut().for_each(|vip| vip.backends = vec!["b1"]);
    holdfast.write_config(&config);
    holdfast.ok(&["reload"]);
    // Refused at once, like a flow to a VIP without a backend.
    assert_eq!(ask(&vips[0], 1).keys().collect::<Vec<_>>(), [""], "nat: no answer");
    assert_eq!(holdfast.status().answers["rejects_sent"], 1);
    assert_eq!(ask(&vips[1], 5)["b1"], 5, "full_nat");
    holdfast.stop();
}
