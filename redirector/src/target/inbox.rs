//! The bytes that a connection has received and not yet used: many small requests per system call.

use std::io;

use super::channel::Channel;

/// Its size in bytes: the longest piece that it can hold.
pub(super) const CAPACITY: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// The bytes that wait.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops the first `count` bytes.
    pub(super) fn used(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Receives until `count` bytes wait, at most [`CAPACITY`]. False when the peer closed before.
    pub(super) fn need(&mut self, channel: &Channel, count: usize) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + count > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.len() < count {
            match channel.read(&mut self.bytes[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Fills `out` with what waits and what comes next. False when the peer closed before.
    pub(super) fn fill(&mut self, channel: &Channel, out: &mut [u8]) -> io::Result<bool> {
        let waiting = self.len().min(out.len());
        out[..waiting].copy_from_slice(&self.bytes()[..waiting]);
        self.used(waiting);
        let mut filled = waiting;
        while filled < out.len() {
            match channel.read(&mut out[filled..]) {
                Ok(0) => return Ok(false),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Drops the next `count` bytes. False when the peer closed before.
    pub(super) fn skip(&mut self, channel: &Channel, mut count: u64) -> io::Result<bool> {
        loop {
            let waiting = u64::try_from(self.len()).unwrap_or(u64::MAX).min(count);
            self.used(usize::try_from(waiting).unwrap_or(usize::MAX));
            count -= waiting;
            if count == 0 {
                return Ok(true);
            }
            if !self.need(channel, 1)? {
                return Ok(false);
            }
        }
    }
}
