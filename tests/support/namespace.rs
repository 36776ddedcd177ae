//! Network namespaces of tests.

#![expect(unsafe_code, reason = "setns(2)")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// Runs `work` on a thread inside a namespace. Sockets that it opens stay in the namespace, also
/// when other threads use them.
pub fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: takes an open descriptor; it changes the namespace of this thread only.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
