//! Starts that must fail: the error names fault, place and cure, and nothing is left behind.

use crate::e2e::guard::guard;
use crate::e2e::privileges::assert_confined;
use crate::lab::{Config, Family, Holdfast, Lab, Topology, failed, log_of, requests, vip};

fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} missing from {error:?}");
    }
}

fn assert_untouched(lab: &Lab) {
    let links = lab.run("lb", &["ip", "-details", "addr", "show"]);
    for trace in ["prog/xdp", "192.0.2.", "2001:db8:100:"] {
        assert!(!links.contains(trace), "a refused start left {trace:?}:\n{links}");
    }
}

#[test]
fn a_nic_that_cannot_be_used() {
    let lab = Lab::with_queues(Topology::Stick, 1);
    let good = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);

    let missing = Config { interfaces: vec!["eth7".to_owned()], ..good.clone() };
    assert_says(&Holdfast::start_fails(&lab, &missing), &["eth7"]);
    assert_untouched(&lab);

    let queues = Config { cores: vec![0, 1], ..good.clone() };
    assert_says(&Holdfast::start_fails(&lab, &queues), &["eth0", "queue", "cores"]);
    assert_untouched(&lab);

    let zero_copy = Config { nic_keys: "mode = \"zero_copy\"", ..good };
    assert_says(&Holdfast::start_fails(&lab, &zero_copy), &["eth0", "veth", "mode = \"copy\""]);
    assert_untouched(&lab);
    assert_eq!(guard(&lab, "eth0"), "");
}

#[test]
fn a_second_process_is_refused_and_the_first_goes_on() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    // With a state, it would take over from the first.
    let more = "[state]\ndirectory = \"none\"\n".to_owned();
    let config = Config { more, ..Config::new(&lab, 2, vec![nat.clone()]) };
    let first = Holdfast::start(&lab, &config);

    assert_says(&Holdfast::start_fails(&lab, &config), &[&config.socket]);
    let socket = lab.state().join("other.sock").to_str().unwrap().to_owned();
    let other = Config { socket, ..config };
    assert_says(&Holdfast::start_fails(&lab, &other), &["eth0"]);

    requests(&lab, &nat, 0, 50).assert_none_failed("after the refused starts");
    first.stop();
}

#[test]
fn without_root() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);
    // A readable place for all users: the build may be in a folder of root's.
    let (binary, file) = (lab.state().join("holdfast"), lab.state().join("holdfast.toml"));
    std::fs::copy(env!("CARGO_BIN_EXE_holdfast"), &binary).unwrap();
    std::fs::write(&file, config.toml()).unwrap();
    let (binary, file) = (binary.to_str().unwrap(), file.to_str().unwrap());
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let line = [&nobody[..], &["--inh-caps=-all", binary, "run", "--config", file]].concat();
    assert_says(&failed("a start as another user", &lab.try_run("lb", &line)), &["root"]);
    assert_untouched(&lab);
}

/// Command line of a user other than root, with some capabilities and hardly any lockable memory.
fn unprivileged<'a>(capabilities: &'a str, binary: &'a str) -> Vec<&'a str> {
    let user =
        ["prlimit", "--memlock=65536:65536", "setpriv", "--reuid", "65534", "--regid", "65534"];
    let rights = ["--clear-groups", "--inh-caps", capabilities, "--ambient-caps", capabilities];
    [&user[..], &rights, &["--bounding-set", capabilities, binary]].concat()
}

/// Asserts that other programs of the user see no thread's environment, for which they have to be
/// permitted to trace it (`environ_open`, fs/proc/base.c).
fn assert_not_traced(lab: &Lab, pid: u32) {
    let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    for thread in threads.map(|entry| entry.unwrap().path()) {
        let file = thread.join("environ").to_str().unwrap().to_owned();
        let error = failed("a trace", &lab.try_run("lb", &[&user[..], &["cat", &file]].concat()));
        assert_says(&error, &["Permission denied"]);
    }
}

/// The capabilities that docs/OPERATIONS.md lists ("Kernel") suffice for another user, and each is
/// needed.
#[test]
fn the_documented_capabilities_are_those_that_are_needed() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let binary = lab.state().join("holdfast");
    std::fs::copy(env!("CARGO_BIN_EXE_holdfast"), &binary).unwrap();
    let binary = binary.to_str().unwrap();
    let own = lab.state().join("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(65534), Some(65534)).unwrap();
    let socket = own.join("control.sock").to_str().unwrap().to_owned();
    let config = Config { socket, ..Config::new(&lab, 1, vec![nat.clone()]) };

    let document = include_str!("../../docs/OPERATIONS.md");
    let item = document.split("\n## Kernel\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let list = item.split("with\n").nth(1).unwrap().split(", who").next().unwrap();
    let names = list.split([',', ' ', '\n']).filter_map(|word| word.strip_prefix("CAP_"));
    let names: Vec<String> = names.map(str::to_lowercase).collect();
    assert_eq!(names.len(), 5, "{list:?}");
    let without = |missing: Option<&String>| {
        let rest = names.iter().filter(|name| Some(*name) != missing);
        rest.fold("-all".to_owned(), |list, name| format!("{list},+{name}"))
    };

    let enough = without(None);
    let line = unprivileged(&enough, binary);
    let start = || {
        let mut command = lab.command("lb", line[0]);
        command.args(&line[1..]);
        command
    };
    let log = std::fs::File::create(log_of(&lab)).unwrap();
    let holdfast = Holdfast::start_by(&lab, &config, start(), log.into());
    requests(&lab, &nat, 0, 50).assert_none_failed("without root");
    assert_confined(holdfast.pid(), "2");
    assert_not_traced(&lab, holdfast.pid());
    holdfast.kill();

    // It finds its own XDP program on the NIC, and takes its place.
    let log = std::fs::File::create(log_of(&lab)).unwrap();
    let holdfast = Holdfast::start_by(&lab, &config, start(), log.into());
    requests(&lab, &nat, 0, 50).assert_none_failed("after a kill");
    holdfast.stop();
    assert_untouched(&lab);

    let file = lab.state().join("holdfast.toml");
    let run = ["run", "--config", file.to_str().unwrap()];
    for name in &names {
        let less = without(Some(name));
        let line = [&["timeout", "20"], &unprivileged(&less, binary)[..], &run].concat();
        let error = failed(&format!("a start without {name}"), &lab.try_run("lb", &line));
        let name = format!("CAP_{}", name.to_uppercase());
        let missing = format!("{name} is missing");
        assert_says(&error, &[&missing, &format!("AmbientCapabilities={name}")]);
        assert_untouched(&lab);
    }
}

#[test]
fn commands_without_a_process_say_what_to_do() {
    let lab = Lab::up(Topology::Stick);
    let binary = env!("CARGO_BIN_EXE_holdfast");
    for command in ["status", "flows", "reload"] {
        let line = [binary, command, "--socket", "/run/holdfast-none.sock"];
        let error = failed(command, &lab.try_run("lb", &line));
        assert_says(&error, &["/run/holdfast-none.sock", "holdfast run"]);
    }
}
