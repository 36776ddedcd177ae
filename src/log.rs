//! The log: lines to the standard error stream that never block their writer.
//!
//! A separate thread writes, so that no other thread waits for the reader. A full pipe would block
//! the control thread (write(2) blocks, `pipe(7)`). A pipe without a reader would end the process,
//! as `tracing-subscriber` reports a failed write with `eprintln!`, which panics. A line that
//! cannot be written is lost, and counted.

use std::backtrace::Backtrace;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing_subscriber::fmt::MakeWriter;

/// Number of lines that may wait for a slow reader, in addition to those in its pipe.
const WAITING: usize = 1024;
/// Longest wait for the reader at the end of the process.
pub const LAST_WORDS: Duration = Duration::from_secs(1);
/// Wait between two attempts to write to a non-blocking stream.
const RETRY: Duration = Duration::from_millis(20);

/// Number of lost lines, of all logs of the process.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines lost since the process started, because the log's reader was gone or
/// too slow.
pub fn lines_lost() -> u64 {
    // Relaxed: a counter, which publishes nothing else.
    LOST.load(Ordering::Relaxed)
}

fn count_lost() {
    LOST.fetch_add(1, Ordering::Relaxed);
}

/// A request to the writing thread.
enum Order {
    Write(Vec<u8>),
    /// A reply, sent when all earlier orders are done.
    Answer(Sender<()>),
}

/// A handle of the log, which accepts lines without blocking.
#[derive(Clone)]
pub struct Log {
    orders: Sender<Order>,
}

impl Log {
    /// Creates a log on the standard error stream.
    ///
    /// # Errors
    /// The system's error when the process cannot open another file or start another thread.
    pub fn to_stderr() -> io::Result<Self> {
        Self::to_stderr_by(|| {})
    }

    /// Creates a log on the standard error stream, whose thread calls `prepare` first.
    ///
    /// # Errors
    /// See [`Log::to_stderr`].
    pub fn to_stderr_by(prepare: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        // Not through `io::stderr()`: other users of it would wait for its lock.
        Self::to(File::from(io::stderr().as_fd().try_clone_to_owned()?), prepare)
    }

    fn to(
        sink: impl Write + Send + 'static,
        prepare: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (orders, waiting) = bounded(WAITING);
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            prepare();
            serve(sink, &waiting);
        })?;
        Ok(Self { orders })
    }

    /// Queues `text`, one line or more, for writing; it is lost when the queue is full.
    pub fn line(&self, text: impl Into<Vec<u8>>) {
        if self.orders.try_send(Order::Write(text.into())).is_err() {
            count_lost();
        }
    }

    /// Waits until all earlier lines are written or lost, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let (sender, answer) = bounded(1);
        if self.orders.send_deadline(Order::Answer(sender), end).is_ok() {
            // The result is ignored: unwritten lines cannot be saved at this point.
            let _ = answer.recv_deadline(end);
        }
    }

    /// Routes panic messages through the log: the standard hook would wait for the reader.
    pub fn take_panics(&self) {
        let log = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = thread::current();
            let name = thread.name().unwrap_or("unnamed").to_owned();
            log.line(format!("thread {name}: {panic}\n{}\n", Backtrace::capture()));
            log.flush(LAST_WORDS);
        }));
    }
}

/// `tracing-subscriber` writes each event in one call.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Writes queued lines, until the last sender is gone or the process ends.
fn serve(mut sink: impl Write, orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Write(line) => {
                if write(&mut sink, &line).is_err() {
                    count_lost();
                }
            }
            // The requester may have stopped waiting.
            Order::Answer(sender) => _ = sender.try_send(()),
        }
    }
}

/// Writes all of `line`, like `write_all`, but also waits for a non-blocking stream: another
/// process may have set the mode.
fn write(sink: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match sink.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A single test, as lost lines are counted for the whole process.
    #[test]
    fn lines_are_written_or_lost_and_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = Log::to(writer, || {}).unwrap();
        log.line("one\n");
        log.line(vec![b'x'; 10]);
        log.flush(Duration::from_secs(60));
        let mut read = [0; 14];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one\nxxxxxxxxxx");
        assert_eq!(lines_lost(), 0);

        // The reader hangs: a pipe of 64 KiB is full after the first line, and the channel next.
        let before = lines_lost();
        (0..WAITING + 10).for_each(|_| log.line(vec![b'y'; 100_000]));
        log.flush(Duration::from_millis(1));
        let lost = lines_lost() - before;
        // The thread has taken one line already, or not yet.
        assert!((9..=10).contains(&lost), "{lost}");

        // The reader is gone: no line can wait.
        drop(reader);
        log.flush(Duration::from_secs(60));
        assert_eq!(lines_lost() - before, 10 + u64::try_from(WAITING).unwrap());
        log.line("not read\n");
        log.flush(Duration::from_secs(60));
        assert_eq!(lines_lost() - before, 11 + u64::try_from(WAITING).unwrap());
    }

    /// A stream that accepts one byte at a time, and returns `WouldBlock` before each.
    struct Shy(bool, Sender<u8>);

    impl Write for Shy {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = !self.0;
            match bytes.first().filter(|_| !self.0) {
                None => Err(ErrorKind::WouldBlock.into()),
                Some(&byte) => self.1.send(byte).map(|()| 1).map_err(io::Error::other),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stream_that_does_not_block_gets_whole_lines() {
        let (sender, bytes) = crossbeam_channel::unbounded();
        write(&mut Shy(false, sender), b"whole").unwrap();
        assert_eq!(bytes.into_iter().collect::<Vec<u8>>(), b"whole");
    }
}
