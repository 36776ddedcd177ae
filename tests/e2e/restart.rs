//! Restarts and sudden deaths: the next process finds every pin, client and drain.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use holdfast::control::api::BackendState;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Topology, Transferred, Vip, conversation, requests,
    transfers, tunnel, vip,
};

/// VIPs of every mode and family. `round_robin` does not find the backend of a flow without its pin.
pub fn vips() -> Vec<Vip> {
    let mut vips = Vec::new();
    for family in Family::ALL {
        vips.extend(["dsr", "nat", "full_nat"].map(|forward| vip(forward, family, false)));
        vips.push(tunnel("ipip", family, family));
    }
    for vip in &mut vips {
        vip.keys = "scheduler = \"round_robin\"";
    }
    vips
}

/// Connections to each VIP.
pub const EACH: usize = 12;

/// Asserts that no connection broke; prints the gaps.
pub fn assert_whole(result: &Transferred, holdfast: &Holdfast<'_>) {
    println!("longest time to an answer: {} ms", result.gap_ms);
    for line in holdfast.log().lines().filter(|line| line.contains("nothing was forwarded for")) {
        println!("{line}");
    }
    assert_eq!(result.transfers, 8 * EACH);
    assert_eq!(result.broken, [] as [String; 0], "{}", holdfast.log());
}

#[test]
fn no_connection_breaks_when_holdfast_is_restarted_or_killed() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = vips();
    let config = Config::new(&lab, 2, vips.clone());
    let mut holdfast = Holdfast::start(&lab, &config);
    let busy = transfers(&lab, &vips, 14, EACH);
    for round in 0..4 {
        sleep(Duration::from_secs(1));
        if round % 2 == 0 {
            holdfast.stop();
        } else {
            holdfast.kill();
        }
        holdfast = Holdfast::start(&lab, &config);
        assert!(
            holdfast.log().contains("taken over from an earlier process"),
            "{}",
            holdfast.log()
        );
    }
    assert_whole(&busy.end(), &holdfast);
    holdfast.stop();
}

/// Other workers own other SNAT ports and write other tables, and other sources have other numbers:
/// the pins are imported.
#[test]
fn pins_move_to_the_tables_of_another_configuration() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = vips();
    let before = Config::new(&lab, 2, vips.clone());
    let holdfast = Holdfast::start(&lab, &before);
    let busy = transfers(&lab, &vips, 8, EACH);
    holdfast.stop();
    let after = Config {
        flows: 8192,
        full_nat: "[full_nat]\nsources = [\"198.18.2.47\", \"198.18.2.48/30\", \
                   \"2001:db8:2::47\", \"2001:db8:2::48/126\"]\n",
        ..Config::new(&lab, 1, vips)
    };
    let holdfast = Holdfast::start(&lab, &after);
    assert!(holdfast.log().contains("taken over from an earlier process"), "{}", holdfast.log());
    assert_whole(&busy.end(), &holdfast);
    holdfast.stop();
}

#[test]
fn a_drain_goes_on_after_a_restart() {
    let lab = Lab::up(Topology::Stick);
    let vip = vip("nat", Family::V4, false);
    let config = Config::new(&lab, 2, vec![vip.clone()]);
    let mut holdfast = Holdfast::start(&lab, &config);
    let mut connection = conversation(&lab, &vip);
    let backend = connection.ask();
    holdfast.ok(&["drain", &format!("{}/{backend}", vip.name), "--deadline", "30m"]);
    for kill in [false, true] {
        if kill {
            holdfast.kill();
        } else {
            holdfast.stop();
        }
        holdfast = Holdfast::start(&lab, &config);
        let status = holdfast.backend(&vip.name, &backend);
        assert_eq!(
            (status.state, status.traffic.flows_active),
            (BackendState::Draining, 1),
            "{status:?}"
        );
        let left = status.drain.unwrap().deadline_in_s.unwrap();
        assert!((1700..=1800).contains(&left), "{left} s");
        assert_eq!(connection.ask(), backend, "the connection stays");
        let others: Vec<&str> = BACKENDS.into_iter().filter(|name| **name != *backend).collect();
        requests(&lab, &vip, 0, 30).assert_from("new connections", &others);
    }
    drop(connection);
    holdfast.wait_for_state(&vip.name, &backend, BackendState::Drained);
    holdfast.stop();
}

/// The state of the lab's instance.
fn state(config: &Config) -> PathBuf {
    let name = config.socket.trim_start_matches('/').replace('/', "-");
    Path::new("/dev/shm/holdfast").join(name)
}

/// Memory that cannot be used is not used at all, and the log states the loss.
#[test]
fn damaged_state_is_set_aside_with_a_message() {
    let lab = Lab::up(Topology::Stick);
    let vip = vip("nat", Family::V4, false);
    let config = Config::new(&lab, 1, vec![vip.clone()]);
    let registry = state(&config).join("registry");
    let damage = |path: &Path, at: u64| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"damaged!", at).unwrap();
    };
    let flows = || state(&config).join("tables.1/flows-0");
    let cases: [(&str, &dyn Fn(), &str); 6] = [
        ("registry, text", &|| damage(&registry, 100), "its checksum is wrong"),
        ("registry, empty", &|| std::fs::write(&registry, "").unwrap(), "it is cut short"),
        ("flow table, kind", &|| damage(&flows(), 8), "flows-0: this memory holds no table"),
        ("flow table, size", &|| damage(&flows(), 24), "flows-0: the header is damaged"),
        (
            "flow table, empty",
            &|| drop(File::create(flows()).unwrap()),
            "flows-0: this memory holds no table",
        ),
        (
            "flow table, too short",
            &|| File::options().write(true).open(flows()).unwrap().set_len(1 << 20).unwrap(),
            "flows-0: the header states 65536 entries",
        ),
    ];
    for (name, damage, message) in cases {
        let _ = std::fs::remove_dir_all(state(&config));
        let holdfast = Holdfast::start(&lab, &config);
        requests(&lab, &vip, 0, 10).assert_none_failed(name);
        holdfast.stop();
        damage();
        let holdfast = Holdfast::start(&lab, &config);
        assert!(holdfast.log().contains(message), "{name}: {}", holdfast.log());
        requests(&lab, &vip, 0, 10).assert_none_failed(name);
        holdfast.stop();
        // What replaced it is used again.
        let holdfast = Holdfast::start(&lab, &config);
        assert!(!holdfast.log().contains(message), "{name}: {}", holdfast.log());
        assert!(holdfast.log().contains("taken over from an earlier process"), "{name}");
        holdfast.stop();
    }
}

/// A directory that another user could write is refused; holdfast runs without it.
#[test]
fn state_of_another_user_is_not_used() {
    let lab = Lab::up(Topology::Stick);
    let vip = vip("dsr", Family::V4, false);
    let mut config = Config::new(&lab, 1, vec![vip.clone()]);
    let parent = PathBuf::from(format!("/dev/shm/holdfast-test-{}", std::process::id()));
    std::fs::create_dir(&parent).unwrap();
    std::os::unix::fs::chown(&parent, Some(65_534), None).unwrap();
    config.more = format!("[state]\ndirectory = \"{}\"\n", parent.display());
    let holdfast = Holdfast::start(&lab, &config);
    let log = holdfast.log();
    std::fs::remove_dir_all(&parent).unwrap();
    assert!(log.contains("another user may replace what is in it"), "{log}");
    requests(&lab, &vip, 0, 10).assert_none_failed("without the state");
    holdfast.stop();
}
