//! A file as a stream, with a contiguous read-ahead window.

use std::io::{self, ErrorKind, Read};

/// Bytes of read-ahead, which also bound a packet or block: 16 times libpcap's MAXIMUM_SNAPLEN.
const BUFFER: usize = 4 << 20;

pub(super) struct Window<R> {
    file: R,
    buffer: Box<[u8]>,
    /// Range of the window within the buffer, in bytes.
    start: usize,
    end: usize,
}

impl<R: Read> Window<R> {
    pub(super) fn new(file: R) -> Self {
        Self { file, buffer: vec![0; BUFFER].into(), start: 0, end: 0 }
    }

    /// Returns the bytes that were read and not yet consumed.
    pub(super) fn data(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Advances the front of the window.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Reads more bytes; returns false at the end of the file, or when the window is full.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            match self.file.read(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => {
                    let read = result?;
                    self.end += read;
                    return Ok(read > 0);
                }
            }
        }
    }
}
