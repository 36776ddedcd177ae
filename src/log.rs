//! The log's way to the standard error stream.
//!
//! A thread of its own writes, so that whoever has something to say never waits for the reader: a pipe
//! that is full would stop the control thread (`pipe(7)`: a write blocks), and one whose reader has gone
//! would end the process, as `tracing-subscriber` reports a write that failed with `eprintln!`, which
//! panics. A line that cannot be written is lost, and counted.

use std::backtrace::Backtrace;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for a slow reader, besides those that its pipe holds.
const WAITING: usize = 1024;
/// How long the end of the process waits for a reader.
pub const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between two attempts to write to a stream that is set not to block.
const RETRY: Duration = Duration::from_millis(20);

/// Of all logs of the process: the log is one for the process, and so is what it lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines that were lost since the process started, as the log's reader had gone or was too slow.
pub fn lines_lost() -> u64 {
    // Relaxed: a counter, which publishes nothing else.
    LOST.load(Ordering::Relaxed)
}

fn count_lost() {
    LOST.fetch_add(1, Ordering::Relaxed);
}

/// What the writing thread is asked for.
enum Order {
    Write(Vec<u8>),
    /// An answer when all orders before it are done.
    Answer(Sender<()>),
}

/// Takes lines and returns at once.
#[derive(Clone)]
pub struct Log {
    orders: Sender<Order>,
}

impl Log {
    /// A log on the standard error stream.
    ///
    /// # Errors
    /// When the process has no room for one more open file or thread.
    pub fn to_stderr() -> io::Result<Self> {
        // Not through `io::stderr()`: whoever else prints would wait for its lock.
        Self::to(File::from(io::stderr().as_fd().try_clone_to_owned()?))
    }

    fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (orders, waiting) = bounded(WAITING);
        thread::Builder::new().name("log".to_owned()).spawn(move || serve(sink, &waiting))?;
        Ok(Self { orders })
    }

    /// Writes `text`, one line or more, or loses it.
    pub fn line(&self, text: impl Into<Vec<u8>>) {
        if self.orders.try_send(Order::Write(text.into())).is_err() {
            count_lost();
        }
    }

    /// Waits until everything before has been written or lost, but no longer than `limit`.
    pub fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let (sender, answer) = bounded(1);
        if self.orders.send_deadline(Order::Answer(sender), end).is_ok() {
            // Whatever comes: there is nothing left to do for what was not written.
            let _ = answer.recv_deadline(end);
        }
    }

    /// Makes panics come by here too: the standard hook would wait for the reader.
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

/// `tracing-subscriber` writes each event by one call.
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

/// Ends when the last sender has gone, or with the process.
fn serve(mut sink: impl Write, orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Write(line) => {
                if write(&mut sink, &line).is_err() {
                    count_lost();
                }
            }
            // Who asked may have stopped waiting.
            Order::Answer(sender) => _ = sender.try_send(()),
        }
    }
}

/// As `write_all`, but it waits where the stream would not: another process may have set that.
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

    /// One test, as what is lost is counted for the whole process.
    #[test]
    fn lines_are_written_or_lost_and_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = Log::to(writer).unwrap();
        log.line("one\n");
        log.line(vec![b'x'; 10]);
        log.flush(Duration::from_secs(60));
        let mut read = [0; 14];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one\nxxxxxxxxxx");
        assert_eq!(lines_lost(), 0);

        // The reader hangs: a pipe of 64 KiB is full after the first line, and then the channel.
        let before = lines_lost();
        (0..WAITING + 10).for_each(|_| log.line(vec![b'y'; 100_000]));
        log.flush(Duration::from_millis(1));
        let lost = lines_lost() - before;
        // The thread has taken one, or has not come to it yet.
        assert!((9..=10).contains(&lost), "{lost}");

        // The reader goes: nothing is left that could wait.
        drop(reader);
        log.flush(Duration::from_secs(60));
        assert_eq!(lines_lost() - before, 10 + u64::try_from(WAITING).unwrap());
        log.line("not read\n");
        log.flush(Duration::from_secs(60));
        assert_eq!(lines_lost() - before, 11 + u64::try_from(WAITING).unwrap());
    }

    /// A stream that takes a byte at a time, and says "not now" before each.
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
