//! Debian's own kernel takes packets out of our tunnels, and tags from our frames: the lab, in a throw-away
//! guest with emulated NICs.
//!
//! Needs what `scripts/guest` needs, which fetches a kernel and QEMU once (about 360 MB). Fails loudly when
//! the guest cannot run. One boot for all checks; `tests/guest/tunnels` is what runs in it.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::process::{Command, Stdio};

/// What runs in the guest, from the root of the repository.
const CHECKS: &str = "tests/guest/tunnels";

#[test]
fn a_kernel_takes_packets_out_of_our_tunnels_and_vlans() {
    let mut guest = Command::new("scripts/guest");
    guest.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    guest.args(["--limit", "900", CHECKS, env!("CARGO_BIN_EXE_holdfast")]);
    let output = guest.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    for check in ["ipip4-over-4", "ipip6-over-6", "gue4-over-4", "gue6-over-6", "vlan-10-to-20"] {
        assert!(said.contains(&format!("{check}: passed")), "{check}\n{said}");
    }
}
