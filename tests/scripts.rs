//! `scripts/test` runs every step despite failures, and its output ends with the commands to
//! repeat.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// A crate whose tests fail in each way: by name, without a message, and in a library.
const CRATE: [(&str, &str); 4] = [
    (
        "Cargo.toml",
        "[package]\nname = \"failing\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n",
    ),
    ("src/lib.rs", "#[test]\nfn first() { panic!() }\n#[test]\nfn good() {}\n"),
    ("tests/crash.rs", "#[test]\nfn dies() { std::process::abort() }\n"),
    ("tests/last.rs", "mod inner { #[test] fn second() { panic!() } }\n#[test]\nfn good() {}\n"),
];

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn folder(name: &str) -> Folder {
    let folder = std::env::temp_dir().join(format!("holdfast-{name}-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("src")).unwrap();
    std::fs::create_dir_all(folder.join("tests")).unwrap();
    Folder(folder)
}

/// Runs steps as `scripts/test` does, in a folder.
fn steps(folder: &Path, steps: &str) -> Output {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib.sh");
    let code =
        format!("set -euo pipefail; source {library}; {steps}\nreport_failures; echo all passed");
    let mut command = Command::new("bash");
    command.args(["-c", &code]).current_dir(folder);
    // The target folder of this test's own build must not be used for another crate.
    command.env_remove("CARGO_TARGET_DIR").output().unwrap()
}

#[test]
fn every_failed_test_is_listed_with_the_command_that_runs_it_again() {
    let folder = folder("failing");
    for (file, text) in CRATE {
        std::fs::write(folder.0.join(file), text).unwrap();
    }
    let output = steps(&folder.0, "attempt_tests cargo test --offline --no-fail-fast");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let list = said.split("3 FAILED; each with the command that runs it again:\n").nth(1);
    assert_eq!(
        list,
        Some(
            "  src/lib.rs first\n      cargo test --locked --lib -- --exact first\n  \
             tests/crash.rs\n      cargo test --locked --test crash\n  \
             tests/last.rs inner::second\n      cargo test --locked --test last -- --exact inner::second\n"
        ),
        "{said}"
    );
}

/// `wait_aside` returns the exit status of the background command, which ends with the script at
/// the latest.
#[test]
fn background_commands_are_waited_for_or_ended() {
    let folder = folder("aside");
    let text = "start_aside sh -c 'exit 3'; wait_aside || echo \"status $?\"";
    let said = String::from_utf8(steps(&folder.0, text).stdout).unwrap();
    assert_eq!(said, "status 3\nall passed\n");
    let output = steps(&folder.0, "start_aside sh -c 'sleep 600; :'; echo \"$ASIDE_PID\"; exit 4");
    assert_eq!(output.status.code(), Some(4));
    let group = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let is_left = || {
        let found = Command::new("pgrep").args(["--pgroup", &group]).output().unwrap();
        found.status.success()
    };
    let end = Instant::now() + Duration::from_secs(30);
    while is_left() {
        assert!(Instant::now() < end, "processes of group {group} are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A refused download names the server and the reason; a slow start explains a small share.
#[test]
fn quickstart_says_what_it_saw() {
    let folder = folder("quickstart");
    let quickstart = concat!("source ", env!("CARGO_MANIFEST_DIR"), "/scripts/quickstart");
    std::fs::create_dir(folder.0.join("b2")).unwrap();
    let log = "open() \"/big\" failed (13: Permission denied)";
    std::fs::write(folder.0.join("b2/error.log"), format!("earlier\n{log}\n")).unwrap();
    let headers = |status| format!("HTTP/1.1 {status}\r\nServer: nginx\r\nX-Backend: b2\r\n\r\n");
    for (status, said) in [
        ("200 OK", String::new()),
        ("403 Forbidden", format!("HTTP/1.1 403 Forbidden from b2; its nginx says: {log}\n")),
    ] {
        std::fs::write(folder.0.join("download.headers"), headers(status)).unwrap();
        let output = steps(&folder.0, &format!("{quickstart}; refusal_of .; exit"));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), said);
    }
    let spread =
        format!("{quickstart}; spread_of $'200 1 b1\\n200 1 b3\\n200 1 b1\\n500 1 b2' b3; exit");
    let output = steps(&folder.0, &spread);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "b1 2, b3 1 (starts slowly)\n");
}

#[test]
fn a_failed_step_hides_no_later_one_and_what_cannot_be_built_is_listed() {
    let folder = folder("steps");
    let text =
        "attempt lints ls --no-such-option\nattempt good true\nattempt_tests cargo test --offline";
    let output = steps(&folder.0, text);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("==> good"), "{said}");
    let rows = [
        "  lints\n      ls --no-such-option\n",
        "  cargo test --offline\n      cargo test --offline\n",
    ];
    for row in rows {
        assert!(said.contains(row), "{row:?} is missing: {said}");
    }
    let output = steps(&folder.0, "attempt good true");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("all passed\n") && !said.contains("not run"), "{said}");
}

#[test]
fn a_check_that_cannot_run_is_named_at_the_end() {
    let folder = folder("left-out");
    let output = steps(&folder.0, "not_run 'this: for a reason'; attempt good true");
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("\nnot run: this: for a reason\nall passed\n"), "{said}");
}

/// A QEMU that aborts while the guest boots is started again, twice at most; a later abort is not
/// repeated.
#[test]
fn a_guest_is_booted_again_when_qemu_aborts() {
    let guest = concat!("source ", env!("CARGO_MANIFEST_DIR"), "/scripts/guest");
    for (name, aborts, began, status, boots) in [
        ("sound", 0, false, 0, 1),
        ("odd", 2, false, 0, 3),
        ("ill", 9, false, 134, 3),
        ("late", 9, true, 134, 1),
    ] {
        let folder = folder(name);
        std::fs::create_dir(folder.0.join("guest")).unwrap();
        let begin = if began { "touch guest/began; " } else { "" };
        let qemu = format!(
            "echo >>boots; {begin}[ $(wc -l <boots) -gt {aborts} ] || kill -ABRT $$; echo ran"
        );
        let text = format!("{guest}; QEMU=(sh -c '{qemu}'); boot . || echo \"status $?\"; exit");
        let output = steps(&folder.0, &text);
        let said = String::from_utf8(output.stdout).unwrap();
        let expected = if status == 0 { "ran\n".to_owned() } else { format!("status {status}\n") };
        assert_eq!(said, expected, "{name}");
        let counted = std::fs::read_to_string(folder.0.join("boots")).unwrap().lines().count();
        assert_eq!(counted, boots, "{name}");
    }
}
