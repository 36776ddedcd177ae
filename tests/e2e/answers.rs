//! Backends that are up according to their checks, but do not reply to clients.

use holdfast::control::api::HealthState;
use serde_json::Value;

use crate::lab::{
    BACKENDS, BALANCER_MACS, Config, Family, Holdfast, Lab, SOON, Topology, Vip, vip, wait_for,
};

/// Opens many connections at once, waits a little longer than until the first repetition of a SYN,
/// and closes the unanswered ones without a packet.
const CLIENT: &str = "
import select, socket, sys, time
vip, count = sys.argv[1], int(sys.argv[2])
sockets = []
for _ in range(count):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setblocking(False)
    s.connect_ex((vip, 80))
    sockets.append(s)
time.sleep(1.2)
print(len(select.select([], sockets, [], 0)[1]))
";

/// Number of these connections.
const CONNECTIONS: u64 = 150;

pub fn connect(lab: &Lab, vip: &Vip) -> u64 {
    let count = CONNECTIONS.to_string();
    let line = ["/usr/bin/python3", "-c", CLIENT, &vip.address(), &count];
    lab.run("client", &line).trim().parse().unwrap()
}

/// Events of a kind: VIP and backend.
pub fn events(holdfast: &Holdfast<'_>, kind: &str) -> Vec<(String, String)> {
    let text = holdfast.ok(&["events", "--json"]);
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let word = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let wanted = events.filter(|event| event["kind"] == kind);
    wanted.map(|event| (word(&event, "vip"), word(&event, "backend"))).collect()
}

/// A VIP that is missing on one loopback (dsr), and a backend with a route to the clients past the
/// balancer (nat): their checks succeed.
#[test]
fn a_backend_that_answers_no_client_is_named() {
    let lab = Lab::up(Topology::Stick);
    let of = |forward| Vip {
        timeouts: "{ embryonic_s = 1, closing_s = 1 }",
        ..vip(forward, Family::V4, false)
    };
    let (dsr, nat) = (of("dsr"), of("nat"));
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![dsr.clone(), nat.clone()]));
    lab.run("b2", &["ip", "addr", "del", &format!("{}/32", dsr.address()), "dev", "lo"]);
    lab.run("b3", &["ip", "rule", "del", "from", &Family::V4.backend("b3"), "lookup", "100"]);
    let silent = [(&dsr, "b2", "on its loopback"), (&nat, "b3", "lead through this box")];
    for (vip, _, _) in silent {
        let connected = connect(&lab, vip);
        assert!((1..CONNECTIONS).contains(&connected), "{}: {connected} connected", vip.name);
    }
    for (vip, name, question) in silent {
        wait_for(&format!("{}/{name} is named", vip.name), SOON * 3, || {
            let backend = holdfast.backend(&vip.name, name);
            !backend.hint.is_empty() && backend.syns_unanswered == backend.traffic.flows_total
        });
        let status = holdfast.status();
        let found = status.vips.iter().find(|found| found.name == vip.name).unwrap();
        for backend in &found.backends {
            assert_eq!(backend.health, HealthState::Up, "{backend:#?}");
            if backend.name == name {
                assert!(backend.hint.contains(question), "{backend:#?}");
            } else {
                // A busy machine may exceed the time-out occasionally.
                assert!(backend.syns_unanswered < 10 && backend.hint.is_empty(), "{backend:#?}");
            }
        }
    }
    let mut named = events(&holdfast, "syns_unanswered");
    named.sort();
    let expected = silent.map(|(vip, name, _)| (vip.name.clone(), name.to_owned()));
    assert_eq!(named, expected);
    let table = holdfast.ok(&["status"]);
    assert!(table.contains("recent SYNs were not answered"), "{table}");
    holdfast.stop();
}

/// A flood from forged sources leaves SYNs without a reply at every backend: no backend is
/// reported.
#[test]
fn a_flood_of_syns_accuses_no_backend() {
    let lab = Lab::up(Topology::Stick);
    let dsr =
        Vip { timeouts: "{ embryonic_s = 1, closing_s = 1 }", ..vip("dsr", Family::V4, false) };
    let dsr = Vip { keys: "passive = {}", ..dsr };
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![dsr.clone()]));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/syn_flood.py");
    lab.run(
        "client",
        &["/usr/bin/python3", script, "eth0", BALANCER_MACS[0], &dsr.address(), "3000"],
    );
    let counted =
        || holdfast.status().vips[0].backends.iter().map(|b| b.syns_unanswered).sum::<u64>();
    wait_for("the flood is counted", SOON * 3, || counted() >= 2500);
    // Backends are judged every second.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    for backend in &holdfast.status().vips[0].backends {
        assert!(backend.syns_unanswered > 500, "{backend:#?}");
        assert_eq!(backend.hint, "", "{backend:#?}");
    }
    assert_eq!(holdfast.status().vips[0].backends.len(), BACKENDS.len());
    assert_eq!(events(&holdfast, "syns_unanswered"), []);
    assert_eq!(events(&holdfast, "passive_out"), []);
    holdfast.stop();
}
