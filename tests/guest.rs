//! Tests that need Debian's own kernel with all its modules, or a real driver: in a throw-away
//! guest with emulated NICs.
//!
//! Needs the packages of `scripts/guest`, which downloads a kernel and QEMU once (about 360 MB).
//! Fails loudly when the guest cannot run. One boot for each script of `tests/guest`, which runs in
//! it.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// One guest at a time: each has four emulated CPUs.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `checks` of `tests/guest` in a guest; its output must contain each line of `expected`.
fn in_guest(options: &[&str], checks: &str, expected: &[&str]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut guest = Command::new("scripts/guest");
    guest.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    guest.args(["--limit", "1800"]).args(options).args([checks, env!("CARGO_BIN_EXE_holdfast")]);
    let output = guest.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    for line in expected {
        assert!(said.lines().any(|said| said.starts_with(line)), "{line}\n{said}");
    }
}

#[test]
fn a_kernel_takes_packets_out_of_our_tunnels_and_vlans() {
    let modes = ["ipip4-over-4: passed", "ipip6-over-6: passed", "gue4-over-4: passed"];
    let others = ["gue6-over-6: passed", "vlan-10-to-20: passed"];
    in_guest(&[], "tests/guest/tunnels", &[&modes[..], &others].concat());
}

#[test]
fn packets_of_all_lengths_pass_a_nic_in_each_mode() {
    let forwards = ["zero-copy", "small-frames", "generic", "mtu-3000", "bond"];
    let refused = ["small-frames-insisting", "vrf", "dummy", "bond-native"];
    let warned = ["vlan", "macvlan", "bridge", "bond-member"];
    let lines = forwards.map(|name| format!("{name}: passed")).into_iter();
    let lines = lines.chain(refused.map(|name| format!("{name}: exit code 1")));
    let lines: Vec<_> = lines.chain(warned.map(|name| format!("{name}: exit code 0"))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    in_guest(&["--pairs", "2"], "tests/guest/nics", &lines);
}
