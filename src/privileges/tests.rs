//! Threads that confine themselves, as the kernel reports them and as they find out.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::chroot;
use std::thread;

use super::*;

/// Value of a key in the status of the calling thread.
fn own_status(key: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    value.trim().to_owned()
}

fn in_a_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    thread::spawn(run).join().unwrap()
}

#[test]
fn a_worker_has_no_capabilities() {
    in_a_thread(|| {
        // Without the filter, which would deny the reads.
        confine_worker(false).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            // A user without CAP_SETPCAP cannot reduce the bounding set.
            if set != "CapBnd" || rustix::process::geteuid().is_root() {
                assert_eq!(own_status(set), "0000000000000000", "{set}");
            }
        }
        assert_eq!((own_status("NoNewPrivs"), own_status("Seccomp")), ("1".into(), "0".into()));
    });
}

#[test]
fn a_worker_makes_no_other_system_calls() {
    in_a_thread(|| {
        let mut open = File::create("/dev/null").unwrap();
        let path = "/proc/self/status";
        File::open(path).unwrap();
        confine_worker(true).unwrap();
        let denied = File::open(path).unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EPERM));
        assert_eq!(open.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(std::process::Command::new("true").status().is_err());
        assert!(
            rustix::net::socketpair(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::DGRAM,
                rustix::net::SocketFlags::empty(),
                None,
            )
            .is_err()
        );
        // The allocator and the clock serve it as before.
        let large = vec![1_u8; 64 << 20];
        assert_eq!(large.last(), Some(&1));
        thread::sleep(std::time::Duration::from_millis(1));
    });
}

#[test]
fn a_worker_wakes_sockets_and_sends_no_data() {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
    in_a_thread(|| {
        let (one, _other) =
            socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::empty(), None).unwrap();
        confine_worker(true).unwrap();
        assert_eq!(send(&one, &[], SendFlags::DONTWAIT), Ok(0));
        assert!(send(&one, b"data", SendFlags::DONTWAIT).is_err());
    });
}

#[test]
fn the_log_writes_and_opens_nothing() {
    in_a_thread(|| {
        let mut open = File::create("/dev/null").unwrap();
        confine_log(true).unwrap();
        open.write_all(b"a line\n").unwrap();
        assert!(File::open("/dev/null").is_err());
    });
}

#[test]
fn the_process_runs_programs_and_administers_nothing() {
    in_a_thread(|| {
        assert_eq!(chroot("").unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let kept = confine_process(true).unwrap();
        assert!(kept.seccomp);
        let denied = chroot("/").unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
        // A program that the thread starts has one filter, as it finds the one of its parent.
        let filters = own_status("Seccomp_filters");
        confine_process(true).unwrap();
        assert_eq!(own_status("Seccomp_filters"), filters);
        assert_eq!(own_status("Seccomp"), "2");
        let output = std::process::Command::new("unshare").args(["--net", "true"]).output();
        assert!(!output.unwrap().status.success(), "inherited by programs");
        assert!(std::process::Command::new("true").status().unwrap().success());
        if rustix::process::geteuid().is_root() {
            let all: u64 = NEEDED.iter().map(|needed| 1_u64 << needed.number).sum();
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                assert_eq!(own_status(set), format!("{all:016x}"), "{set}");
            }
            let names: Vec<&str> = kept.capabilities.iter().map(String::as_str).collect();
            let expected =
                ["CAP_BPF", "CAP_IPC_LOCK", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"];
            assert_eq!(names, expected);
        }
    });
}
