//! Client affinity, a client that is too large for one backend, and `explain`, on a live process.

use std::collections::BTreeSet;

use crate::lab::{
    Config, Family, Holdfast, Lab, SOON, Topology, Vip, download, requests, vip, wait_for,
};

/// JSON document that `explain --json` prints.
fn explain(holdfast: &Holdfast<'_>, vip: &Vip, client: &str) -> serde_json::Value {
    let text = holdfast.ok(&["explain", "--vip", &vip.name, "--client", client, "--json"]);
    serde_json::from_str(&text).unwrap()
}

fn said(explained: &serde_json::Value, stage: &str, text: &str) -> bool {
    let steps = explained["steps"].as_array().unwrap();
    steps.iter().any(|step| step["stage"] == stage && step.to_string().contains(text))
}

/// Address and port in their usual notation.
fn socket(family: Family, client: usize, port: usize) -> String {
    match family {
        Family::V4 => format!("{}:{port}", family.client(client)),
        Family::V6 => format!("[{}]:{port}", family.client(client)),
    }
}

/// Backend that replies to a request from a client's port.
fn answers(lab: &Lab, vip: &Vip, client: usize, port: usize) -> String {
    const REQUEST: &str = "import http.client, sys
vip, client, port = sys.argv[1:]
connection = http.client.HTTPConnection(vip, 80, 5, (client, int(port)))
connection.request('GET', '/id', headers={'Connection': 'close'})
print(connection.getresponse().headers['X-Backend'])";
    let (vip, client, port) = (vip.address(), vip.family.client(client), port.to_string());
    lab.run("client", &["/usr/bin/python3", "-c", REQUEST, &vip, &client, &port]).trim().to_owned()
}

#[test]
fn the_explained_backend_answers() {
    let lab = Lab::up(Topology::TwoNic);
    let mut vips = Vec::new();
    // Long enough that `explain` finds the pin.
    let timeouts = "{ closing_s = 60 }";
    for family in Family::ALL {
        vips.push(Vip { timeouts, ..vip("nat", family, false) });
        let keys = "affinity = \"client\"\nscheduler = \"rendezvous\"";
        vips.push(Vip { keys, timeouts, ..vip("dsr", family, false) });
    }
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vips.clone()));
    // Separate ports for each VIP, as the kernel does not reuse one at once.
    for (ports, vip) in (40_000..).step_by(100).zip(&vips) {
        let mut seen = BTreeSet::new();
        for index in 0..8 {
            let client = socket(vip.family, index, ports + index);
            let new = explain(&holdfast, vip, &client);
            assert!(said(&new, "conntrack", "no worker has this flow"), "{new:#}");
            let backend = new["backend"].as_str().unwrap().to_owned();
            assert_eq!(answers(&lab, vip, index, ports + index), backend, "{new:#}");
            let pinned = explain(&holdfast, vip, &client);
            assert!(said(&pinned, "conntrack", "by rule scheduler"), "{pinned:#}");
            assert_eq!(pinned["backend"], new["backend"]);
            let sent = format!("the next hop of {backend}");
            assert!(said(&pinned, "transmit", &sent), "{pinned:#}");
            seen.insert(backend);
        }
        assert!(seen.len() > 1, "{}: {seen:?}", vip.name);
    }
    let table = holdfast.ok(&["explain", "--vip", "nat4", "--client", "198.51.100.7:40000"]);
    for word in ["STAGE", "classify", "affinity", "scheduler", "rewrite", "transmit"] {
        assert!(table.contains(word), "{word} is not in\n{table}");
    }
    let refused = holdfast.refused(&["explain", "--vip", "mail", "--client", "198.51.100.7:1"]);
    assert!(refused.contains("no VIP is named \"mail\"; there are: dsr4, dsr6, nat4"), "{refused}");
    holdfast.stop();
}

#[test]
fn a_client_that_is_too_large_for_one_backend_is_spread_while_its_download_goes_on() {
    let lab = Lab::up(Topology::Stick);
    let keys = "affinity = \"client\"\nsplit = { min_rate = 5 }";
    let nat = Vip { keys, ..vip("nat", Family::V4, false) };
    let holdfast = Holdfast::start(&lab, &Config::new(&lab, 2, vec![nat.clone()]));
    let mut seen = BTreeSet::new();
    seen.extend(requests(&lab, &nat, 0, 50).by_backend.into_keys());
    assert_eq!(seen.len(), 1, "one client, one backend: {seen:?}");
    let transfer = download(&lab, &nat, Some("8m"));
    assert!(seen.contains(&transfer.backend()));
    let splits = || holdfast.status().vips[0].splits.clone();
    wait_for("the client is split", SOON, || {
        requests(&lab, &nat, 0, 200).assert_none_failed("while it is split");
        !splits().is_empty()
    });
    assert_eq!(splits()[0].source.to_string(), Family::V4.client(0));
    let spread = requests(&lab, &nat, 0, 300);
    spread.assert_from("it is spread", &["b1", "b2", "b3"]);
    let split = explain(&holdfast, &nat, &socket(Family::V4, 0, 50_001));
    assert!(said(&split, "affinity", "is split"), "{split:#}");
    let other = explain(&holdfast, &nat, &socket(Family::V4, 1, 50_001));
    assert!(said(&other, "affinity", "all flows of"), "{other:#}");
    let status = holdfast.ok(&["status"]);
    assert!(status.contains("SPLIT CLIENTS"), "{status}");
    let events = holdfast.ok(&["events", "--json"]);
    assert!(events.contains("\"split\""), "{events}");
    assert!(transfer.ends_well(), "what was open stayed where it was");
    holdfast.stop();
}
