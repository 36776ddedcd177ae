//! Signals at any moment: none kills the process, and a stop reports the flows that it breaks.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{
    Config, Family, Holdfast, Lab, SOON, Topology, Vip, download, log_of, signal, vip, wait_for,
};

/// A reload that is requested during a start is carried out after it.
#[test]
fn sighup_during_a_start_reloads_when_it_is_ready() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);
    let mut holdfast = Holdfast::start_held(&lab, &config, |pid| signal(pid, "HUP"));
    wait_for("the reload of the start", SOON, || {
        holdfast.responds() && holdfast.ok(&["events", "--json"]).contains("\"reload\"")
    });
    holdfast.stop();
}

#[test]
fn sigterm_and_sigint_during_a_start_end_it_cleanly() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);
    for name in ["TERM", "INT"] {
        let mut holdfast = Holdfast::start_held(&lab, &config, |pid| signal(pid, name));
        holdfast.assert_ends_well();
        let log = holdfast.log();
        assert!(log.contains("stopped before it was ready"), "SIG{name}: {log}");
        let left = lab.run("lb", &["ip", "-details", "addr", "show"]);
        for trace in ["prog/xdp", "192.0.2."] {
            assert!(!left.contains(trace), "SIG{name} left {trace:?}:\n{left}");
        }
        let socket = std::path::Path::new(&config.socket);
        assert!(!socket.exists(), "SIG{name} left {}", config.socket);
    }
}

/// Without the state, `dsr` flows keep their backends by the hash, and the others are cut.
#[test]
fn a_stop_reports_how_many_flows_it_breaks() {
    let vips = ["dsr", "nat", "full_nat"].map(|forward| vip(forward, Family::V4, false));
    for (state, message) in [
        ("", "3 flows pinned: they go on when holdfast starts again"),
        ("[state]\ndirectory = \"none\"\n", "2 flows of nat and full_nat pinned"),
    ] {
        // Clients of an earlier stop would still repeat the ends of their connections.
        let lab = Lab::up(Topology::Stick);
        let config = Config { more: state.to_owned(), ..Config::new(&lab, 2, vips.to_vec()) };
        let log = log_of_stop(&lab, &config, &vips);
        assert!(log.contains(message), "{log}");
    }
}

/// The log of a stop with a download through each VIP.
fn log_of_stop(lab: &Lab, config: &Config, vips: &[Vip]) -> String {
    let holdfast = Holdfast::start(lab, config);
    // The second and third downloads overwrite the file: only their beginning matters.
    let _transfers: Vec<_> = vips.iter().map(|vip| download(lab, vip, Some("1m"))).collect();
    for vip in vips {
        holdfast.wait_until("the download is established", |_| {
            let flows = holdfast.ok(&["flows", "--vip", &vip.name, "--json"]);
            flows.contains("\"established\"")
        });
    }
    holdfast.stop();
    std::fs::read_to_string(log_of(lab)).unwrap()
}

/// The kernel's verifier gives up at a signal, and is started again.
#[test]
fn signals_throughout_a_start_do_not_fail_it() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);
    let mut sender = None;
    let mut holdfast = Holdfast::start_held(&lab, &config, |pid| {
        sender = Some(thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end {
                signal(pid, "HUP");
            }
        }));
    });
    wait_for("a start among signals", SOON, || holdfast.responds());
    sender.unwrap().join().unwrap();
    holdfast.stop();
}
