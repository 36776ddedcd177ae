//! Loading of a BPF program in spite of signals.

use std::io;
use std::time::{Duration, Instant};

use aya::programs::ProgramError;

/// Longest time for which signals may interrupt the verifier, which takes some milliseconds.
const LOAD_PATIENCE: Duration = Duration::from_secs(10);

/// Calls `load`, and retries when a signal interrupts the verifier. That fails with `EAGAIN`
/// (`do_check` in kernel/bpf/verifier.c), independent of the program.
pub(super) fn load_in_spite_of_signals(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let end = Instant::now() + LOAD_PATIENCE;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            loaded => return loaded,
        }
    }
}
