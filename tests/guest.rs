//! Debian's own kernel takes packets out of our tunnels: the lab, in a throw-away guest with emulated NICs.
//!
//! Needs what `scripts/guest` needs, which fetches a kernel and QEMU once (about 360 MB). Fails loudly when
//! the guest cannot run. One boot for all checks; `tests/guest/tunnels` is what runs in it.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::process::{Command, Stdio};

/// What runs in the guest, from the root of the repository.
const CHECKS: &str = "tests/guest/tunnels";

#[test]
fn a_kernel_takes_packets_out_of_our_tunnels() {
    let mut guest = Command::new("scripts/guest");
    guest.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    guest.args(["--limit", "900", CHECKS, env!("CARGO_BIN_EXE_holdfast")]);
    let output = guest.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
    for mode in ["ipip", "gue"] {
        for families in ["4-over-4", "6-over-6", "4-over-6", "6-over-4"] {
            assert!(said.contains(&format!("{mode}{families}: passed")), "{said}");
        }
    }
}
