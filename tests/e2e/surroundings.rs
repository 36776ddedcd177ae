//! Surroundings that hang, step, fill up or run out: the process goes on, or says why it cannot.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast::control::api::{HealthState, Status};
use serde_json::Value;

use crate::lab::{
    BACKENDS, BINARY, Config, Family, HeldFile, Holdfast, Lab, SOON, Topology, conversation,
    failed, log_of, requests, succeeded, vip, wait_for,
};

fn start(lab: &Lab) -> (Holdfast<'_>, Config) {
    let config = Config::new(lab, 2, vec![vip("nat", Family::V4, false)]);
    (Holdfast::start(lab, &config), config)
}

/// A file that cannot be read for a while, such as one on a dead file server; then one that must not
/// be read.
#[test]
fn a_configuration_file_that_hangs_does_not_stop_the_control_thread() {
    let lab = Lab::up(Topology::Stick);
    let (holdfast, config) = start(&lab);
    holdfast.write_text(&config.toml().replace("fall = 2", "fall = 3"));
    let mut held = HeldFile::new(holdfast.config());
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| holdfast.ok(&["reload"]));
        held.wait_until_wanted();
        holdfast.signal("HUP");
        holdfast.ok(&["drain", "nat4/b1"]);
        assert_eq!(holdfast.status().vips[0].backends_in_service, 2);
        lab.stop_backend("b2");
        holdfast.wait_for_health("nat4", "b2", HealthState::Down);
        requests(&lab, &config.vips[0], 0, 20).assert_from("meanwhile", &["b3"]);
        assert!(!reload.is_finished());
        held.release();
        assert!(reload.join().unwrap().contains("fall 2) -> "));
    });
    wait_for("the reload by SIGHUP follows", SOON, || {
        holdfast.ok(&["events", "--json"]).matches("\"reload\"").count() == 2
    });

    let fifo = fifo(&lab);
    std::fs::rename(&fifo, holdfast.config()).unwrap();
    let error = holdfast.refused(&["reload"]);
    assert!(error.contains("a FIFO or pipe") && error.contains("nothing was applied"), "{error}");
    requests(&lab, &config.vips[0], 0, 20).assert_from("after the refusal", &["b3"]);
    holdfast.stop();
}

/// Makes a FIFO without a writer.
fn fifo(lab: &Lab) -> PathBuf {
    let fifo = lab.state().join("fifo.toml");
    succeeded("mkfifo", &Command::new("mkfifo").arg(&fifo).output().unwrap());
    fifo
}

/// Starts that fail: a configuration in a FIFO or device, too few files, a full disk.
#[test]
fn a_start_without_what_it_needs_is_an_error_that_says_so() {
    let lab = Lab::up(Topology::Stick);
    // holdfast catches the signal that `timeout` sends by default.
    let limited = ["timeout", "-s", "KILL", "10"];
    let assert_fails = |line: &[&str], parts: &[&str]| {
        let error = failed(&format!("{line:?}"), &lab.try_run("lb", &[&limited, line].concat()));
        for part in parts {
            assert!(error.contains(part), "{line:?}: {part:?} missing from {error}");
        }
    };
    for (path, what) in [(fifo(&lab), "a FIFO or pipe"), ("/dev/zero".into(), "a device")] {
        for command in ["run", "check"] {
            let line = [BINARY, command, "--config", path.to_str().unwrap()];
            assert_fails(&line, &[what, "regular file"]);
        }
    }

    let mut config = Config::new(&lab, 2, vec![vip("nat", Family::V4, false)]);
    let path = lab.state().join("holdfast.toml");
    let path = path.to_str().unwrap();
    std::fs::write(path, config.toml()).unwrap();
    let few = ["prlimit", "--nofile=32:32", BINARY, "run", "--config", path];
    assert_fails(&few, &["LimitNOFILE", "the limit is 32"]);

    config.socket = "/mnt/control.sock".to_owned();
    std::fs::write(path, config.toml()).unwrap();
    // `ip netns exec` gives the shell mounts of its own.
    let script = "mount -t tmpfs -o size=4k none /mnt && head -c 4096 /dev/zero >/mnt/full && \
                  exec \"$0\" run --config \"$1\"";
    assert_fails(&["sh", "-c", script, BINARY, path], &["/mnt/control.sock", "No space left"]);
}

/// A command that the kernel cannot start, as its file cannot be read for a while.
#[test]
fn a_hook_that_cannot_be_started_does_not_stop_the_control_thread() {
    let lab = Lab::up(Topology::Stick);
    let hook = lab.state().join("hook");
    let ran = lab.state().join("ran");
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
    succeeded("chmod", &Command::new("chmod").arg("755").arg(&hook).output().unwrap());
    let control_keys = format!("on_drained = [{hook:?}]");
    let vips = vec![vip("nat", Family::V4, false)];
    let config = Config { control_keys, ..Config::new(&lab, 2, vips) };
    let holdfast = Holdfast::start(&lab, &config);
    let mut held = HeldFile::new(&hook);
    holdfast.ok(&["drain", "nat4/b1"]);
    held.wait_until_wanted();
    assert_eq!(holdfast.status().vips[0].backends_in_service, 2);
    assert!(!ran.exists());
    held.release();
    wait_for("the hook runs", SOON, || ran.exists());
    holdfast.stop();
}

/// Clock ticks that the control thread, the process's first one, has computed for.
fn ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Sets the soft limit of open files.
fn limit_files(pid: u32, number: usize) {
    let (pid, limit) = (format!("--pid={pid}"), format!("--nofile={number}:"));
    succeeded("prlimit", &Command::new("prlimit").args([pid, limit]).output().unwrap());
}

/// No descriptors are free; then clients connect and say nothing, more than are served.
#[test]
fn clients_of_the_api_keep_no_other_out() {
    let lab = Lab::up(Topology::Stick);
    let (holdfast, config) = start(&lab);
    without_descriptors(&lab, &holdfast, &config);
    silent_clients(&holdfast, &config);
    holdfast.stop();
}

fn silent_clients(holdfast: &Holdfast<'_>, config: &Config) {
    let connect = || UnixStream::connect(&config.socket).unwrap();
    let mut silent: Vec<UnixStream> = (0..64).map(|_| connect()).collect();
    for _ in 0..3 {
        holdfast.status();
        silent.extend((0..32).map(|_| connect()));
    }
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "the oldest one was closed");
    let last = silent.last_mut().unwrap();
    last.write_all(b"GET /v1/status HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    assert!(serde_json::from_str::<Status>(body).is_ok(), "{answer}");
}

fn without_descriptors(lab: &Lab, holdfast: &Holdfast<'_>, config: &Config) {
    let pid = holdfast.pid();
    // Checks open sockets, too: they come and go.
    limit_files(pid, open_files(pid) / 2);
    let mut waiting = UnixStream::connect(&config.socket).unwrap();
    waiting.write_all(b"GET /v1/status HTTP/1.0\r\n\r\n").unwrap();
    wait_for("the failure is logged", SOON, || holdfast.log().contains("accepts no connections"));
    let before = ticks(pid);
    std::thread::sleep(Duration::from_secs(1));
    // 100 a second.
    assert!(ticks(pid) - before < 50, "the control thread spins");
    assert_eq!(holdfast.log().matches("accepts no connections").count(), 1);
    for backend in BACKENDS {
        wait_for("checks fail", SOON, || holdfast.log().contains(&format!("backend {backend} of")));
    }
    limit_files(pid, 1024);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
    for backend in BACKENDS {
        holdfast.wait_for_health("nat4", backend, HealthState::Up);
    }
    requests(lab, &config.vips[0], 0, 50).assert_from("afterwards", &BACKENDS);
}

/// The soft limit of open files, which is too low here, is raised.
#[test]
fn a_log_on_a_full_disk_loses_lines_and_stops_nothing() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 2, vec![vip("nat", Family::V4, false)]);
    let mut command = lab.command("lb", "prlimit");
    command.args(["--nofile=32:", BINARY]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let holdfast = Holdfast::start_by(&lab, &config, command, full.into());
    assert!(holdfast.status().log_lines_lost > 0);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", holdfast.pid())).unwrap();
    let row = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: usize = row.split_whitespace().nth(3).unwrap().parse().unwrap();
    // The API's connections are yet to come.
    assert!(open_files(holdfast.pid()) + 80 <= soft, "{row}");
    lab.stop_backend("b2");
    holdfast.wait_for_health("nat4", "b2", HealthState::Down);
    requests(&lab, &config.vips[0], 0, 50).assert_from("with a full disk", &["b1", "b3"]);
    assert!(holdfast.ok(&["events"]).contains("b2"), "events are kept");
    holdfast.stop();
}

/// The wall clock steps by 20 years at every reading, back and forth: only displayed times do.
#[test]
fn steps_of_the_clock_change_displayed_times_only() {
    let lab = Lab::up(Topology::Stick);
    let library = lab.state().join("clock_steps.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/clock_steps.c");
    let mut clang = Command::new("clang");
    clang.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
    succeeded("clang", &clang.output().unwrap());
    let nat = vip("nat", Family::V4, false);
    let config = Config::new(&lab, 2, vec![nat.clone()]);
    let mut command = lab.command("lb", BINARY);
    command.env("LD_PRELOAD", &library);
    let log = std::fs::File::create(log_of(&lab)).unwrap();
    let holdfast = Holdfast::start_by(&lab, &config, command, log.into());
    let mut open = conversation(&lab, &nat);
    let backend = open.ask();
    let drained = format!("nat4/{backend}");
    holdfast.ok(&["drain", &drained, "--deadline", "60s"]);
    lab.stop_backend(BACKENDS.into_iter().find(|name| *name != backend).unwrap());
    wait_for("a check fails", SOON, || holdfast.log().contains("is down"));
    assert_eq!(open.ask(), backend);
    let flows = holdfast.ok(&["flows", "--backend", &backend, "--json"]);
    let flow: Value = serde_json::from_str(flows.lines().next().unwrap()).unwrap();
    assert!(flow["age_ms"].as_u64().unwrap() < 60_000, "{flow}");
    let status = holdfast.status();
    assert!(status.uptime_s < 60, "{}", status.uptime_s);
    let left = holdfast.backend("nat4", &backend).deadline_in_s.unwrap();
    assert!((1..=60).contains(&left), "{left}");
    let years = log_years(&holdfast.log());
    assert!(years.len() > 1, "the clock did not step: {years:?}");
    holdfast.ok(&["drain", &drained, "--deadline", "1s"]);
    wait_for("the deadline", SOON, || holdfast.log().contains("deadline, 1 flow left"));
    holdfast.stop();
}

/// Years in which lines of the log begin.
fn log_years(log: &str) -> BTreeSet<String> {
    log.lines().filter_map(|line| Some(line.get(..4)?.to_owned())).collect()
}
