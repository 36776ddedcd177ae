//! Restarts and sudden deaths: the next process finds every pin, client and drain.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use holdfast::control::api::BackendState;

use crate::lab::{
    BACKENDS, Config, Family, Holdfast, Lab, Running, Topology, conversation, requests, tunnel, vip,
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/transfers.py");
const PORT: &str = "5000";
/// Duration of a transfer, in seconds.
const SECONDS: &str = "14";
/// Transfers through each VIP: a third each sent by the client, by the server, and by the server
/// before the client has sent anything.
const EACH: usize = 24;

/// VIPs of every mode. `round_robin` does not find the backend of a flow without its pin.
fn vips() -> Vec<crate::lab::Vip> {
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

/// A configuration of these VIPs, on the ports of the transfers.
fn config(lab: &Lab, workers: usize, vips: &[crate::lab::Vip]) -> Config {
    let mut config = Config::new(lab, workers, vips.to_vec());
    let sections = config.sections();
    let sections = sections.replace("ports = [80]", "ports = [5000, 5001]");
    config.more = sections.replace("port = 8080\n", "");
    config.vips.clear();
    config
}

/// Transfers in the background.
struct Transfers {
    _servers: Vec<Running>,
    _clients: Running,
    lines: BufReader<ChildStdout>,
}

impl Transfers {
    fn start(lab: &Lab, vips: &[crate::lab::Vip]) -> Self {
        let servers = BACKENDS.map(|backend| {
            let mut command = lab.command(backend, "/usr/bin/python3");
            command.args([SCRIPT, "serve", SECONDS, PORT, "0.0.0.0", "::"]);
            let mut server = Running::start(command.stdout(Stdio::piped()));
            let mut line = String::new();
            let stdout = server.0.stdout.as_mut().unwrap();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            assert_eq!(line.trim(), "listening", "{backend}");
            server
        });
        let mut command = lab.command("client", "/usr/bin/python3");
        command.args([SCRIPT, "run", SECONDS]);
        command.args(vips.iter().map(|vip| {
            let source = vip.family.client(0);
            format!("{},{},{PORT},{source},{EACH}", vip.name, vip.address())
        }));
        let mut clients = Running::start(command.stdout(Stdio::piped()));
        let mut lines = BufReader::new(clients.0.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "running");
        Self { _servers: servers.into(), _clients: clients, lines }
    }

    /// Waits for the end of all transfers; returns those that broke, with their errors.
    fn end(mut self) -> Vec<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        println!("{}", line.trim());
        let result: serde_json::Value = serde_json::from_str(&line).unwrap();
        let mut broken = Vec::new();
        for (name, of) in result.as_object().unwrap() {
            assert_eq!(of["transfers"], EACH, "{name}");
            if of["broken"] != 0 {
                broken.push(format!("{name}: {} broken: {}", of["broken"], of["errors"]));
            }
        }
        broken
    }
}

#[test]
fn no_transfer_breaks_when_holdfast_is_restarted_or_killed() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = vips();
    let config = config(&lab, 2, &vips);
    let mut holdfast = Holdfast::start(&lab, &config);
    let transfers = Transfers::start(&lab, &vips);
    for round in 0..4 {
        sleep(Duration::from_millis(700));
        if round % 2 == 0 {
            holdfast.stop();
        } else {
            holdfast.kill();
        }
        holdfast = Holdfast::start(&lab, &config);
        assert!(holdfast.log().contains("of an earlier process go on"), "{}", holdfast.log());
    }
    assert_eq!(transfers.end(), [] as [String; 0], "{}", holdfast.log());
    holdfast.stop();
}

/// Other workers own other SNAT ports and write other tables; other sources have other numbers: the
/// pins are imported.
#[test]
fn pins_move_to_the_tables_of_another_configuration() {
    let lab = Lab::up(Topology::TwoNic);
    let vips = vips();
    let before = config(&lab, 2, &vips);
    let transfers_and = |after: Config, what: &str| {
        let holdfast = Holdfast::start(&lab, &before);
        let transfers = Transfers::start(&lab, &vips);
        holdfast.stop();
        let holdfast = Holdfast::start(&lab, &after);
        assert!(holdfast.log().contains("of an earlier process go on"), "{what}");
        assert_eq!(transfers.end(), [] as [String; 0], "{what}: {}", holdfast.log());
        holdfast.stop();
    };
    let mut after = config(&lab, 1, &vips);
    after.flows = 8192;
    after.more = after.more.replace("\"198.18.2.48/30\"", "\"198.18.2.47\", \"198.18.2.48/30\"");
    transfers_and(after, "one worker, one source more, a smaller table");
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
        assert!((1700..1800).contains(&left), "{left} s");
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
        assert!(holdfast.log().contains("of an earlier process go on"), "{name}");
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
