//! Privileges that the process keeps after its start, as the kernel reports them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::lab::{Config, Family, Holdfast, Lab, SOON, Topology, requests, vip, wait_for};

/// Capabilities of docs/OPERATIONS.md: CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF.
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 38 | 1 << 39;

/// Some lines of a thread's status.
type Facts = BTreeMap<String, String>;

/// Status of each thread, by the thread's name and number.
fn threads(pid: u32) -> BTreeMap<String, Facts> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let facts = entries.filter_map(|entry| {
        // A thread may end meanwhile.
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        let facts: Facts =
            pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect();
        Some((format!("{} {}", facts["Name"], entry.file_name().to_str().unwrap()), facts))
    });
    facts.collect()
}

/// Asserts the privileges of every thread; `seccomp` is `2` (filter) or `0`.
pub fn assert_confined(pid: u32, seccomp: &str) {
    // The last worker may be on its way.
    wait_for("every worker is confined", SOON, || {
        let mut workers = threads(pid).into_iter().filter(|(name, _)| name.starts_with("worker"));
        workers.all(|(_, facts)| u64::from_str_radix(&facts["CapPrm"], 16) == Ok(0))
    });
    let threads = threads(pid);
    assert!(threads.len() >= 3, "control, a worker, the log: {:?}", threads.keys());
    for (name, facts) in threads {
        let set = |name: &str| u64::from_str_radix(&facts[name], 16).unwrap();
        let none = name.starts_with("worker") || name.starts_with("log");
        let expected = if none { 0 } else { KEPT };
        assert_eq!((set("CapPrm"), set("CapEff")), (expected, expected), "{name}: {facts:#?}");
        assert_eq!(set("CapBnd") & !KEPT, 0, "{name}: {facts:#?}");
        assert_eq!(set("CapInh") & !expected, 0, "{name}: {facts:#?}");
        assert_eq!(set("CapAmb") & !expected, 0, "{name}: {facts:#?}");
        assert_eq!(facts["NoNewPrivs"], "1", "{name}");
        assert_eq!(facts["Seccomp"], seccomp, "{name}");
    }
}

#[test]
fn every_thread_keeps_what_it_needs() {
    let lab = Lab::up(Topology::Stick);
    let nat = vip("nat", Family::V4, false);
    let mut config = Config::new(&lab, 2, vec![nat.clone()]);
    for (keys, seccomp) in [("", "2"), ("[security]\nseccomp = false\n", "0")] {
        config.more = keys.to_owned();
        let holdfast = Holdfast::start(&lab, &config);
        requests(&lab, &nat, 0, 50).assert_none_failed("confined");
        assert_confined(holdfast.pid(), seccomp);
        let security = holdfast.status().security;
        let names = ["CAP_BPF", "CAP_IPC_LOCK", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"];
        assert_eq!(security.capabilities, names);
        assert_eq!(security.seccomp, seccomp == "2");
        let filter = if security.seccomp { "filtered" } else { "not filtered" };
        let line = format!("control keeps {}; system calls are {filter}", names.join(", "));
        assert!(holdfast.ok(&["status", "--all"]).contains(&line), "{line}");
        let line =
            format!("control keeps {}; workers none; system calls are {filter}", names.join(", "));
        assert!(holdfast.log().contains(&line), "{}", holdfast.log());
        holdfast.stop();
    }
}

/// Root reads any file at the start, and afterwards those that it may read by their mode.
#[test]
fn a_configuration_of_another_user_is_read_once() {
    let lab = Lab::up(Topology::Stick);
    let config = Config::new(&lab, 1, vec![vip("nat", Family::V4, false)]);
    let path = lab.state().join("holdfast.toml");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    let holdfast = Holdfast::start(&lab, &config);
    let log = holdfast.log();
    assert!(log.contains("a reload will fail") && log.contains("chown"), "{log}");
    let refused = holdfast.refused(&["reload"]);
    assert!(refused.contains("permission denied"), "{refused}");
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    holdfast.ok(&["reload"]);
    holdfast.stop();
}
