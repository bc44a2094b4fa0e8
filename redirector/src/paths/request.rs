//! A request on its way: owned by whoever has it at the moment, so that a lost connection can hand it back whole.

use std::fmt;
use std::ops::Range;

use lockd::clock::BootTime;

use crate::buffer::{Buffer, Slice};
use crate::lun::{OnDone, OnRead, Outcome};

/// What is to be done, with all that is needed to do it again.
pub enum Command {
    /// Read into the buffer.
    Read(u64, Buffer, OnRead),
    /// Write at an offset; with `true` durable when done.
    Write(u64, Slice, bool, OnDone),
    /// Make completed writes durable.
    Flush(OnDone),
    /// Zero a range.
    Zero(Range<u64>, OnDone),
    /// Discard a range.
    Trim(Range<u64>, OnDone),
}

/// A request and its history.
#[derive(Debug)]
pub struct Request {
    /// What is to be done.
    pub command: Command,
    /// When the caller gave it to us; the hold time counts from here.
    pub born: BootTime,
    /// Names the request among ghosts once its outcome has been unknown; zero before.
    pub token: u64,
    /// For a flush: the last kept write that it covers (P9).
    pub covers: u64,
    /// Nobody asked for it but the path itself.
    pub background: bool,
    /// It is a peer's (R1): never held, re-issued or kept here.
    pub carried: bool,
    /// For a flush that only makes one write durable: what was written.
    pub after: Option<Range<u64>>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, range) = match self {
            Self::Read(offset, buffer, _) => ("read", *offset..offset + buffer.len() as u64),
            Self::Write(offset, data, ..) => ("write", *offset..offset + data.len() as u64),
            Self::Flush(_) => ("flush", 0..0),
            Self::Zero(range, _) => ("zero", range.clone()),
            Self::Trim(range, _) => ("trim", range.clone()),
        };
        write!(f, "{name} {range:?}")
    }
}

impl Request {
    /// A request that begins its life.
    #[must_use]
    pub fn new(command: Command, born: BootTime) -> Self {
        Self { command, born, token: 0, covers: 0, background: false, carried: false, after: None }
    }

    /// The bytes of the LUN that it changes, if it changes any.
    #[must_use]
    pub fn changes(&self) -> Option<Range<u64>> {
        match &self.command {
            Command::Read(..) | Command::Flush(_) => None,
            Command::Write(offset, data, ..) => Some(*offset..offset + data.len() as u64),
            Command::Zero(range, _) | Command::Trim(range, _) => Some(range.clone()),
        }
    }

    /// The bytes that a read asks for.
    #[must_use]
    pub fn read_len(&self) -> usize {
        match &self.command {
            Command::Read(_, buffer, _) => buffer.len(),
            _ => 0,
        }
    }

    /// The bytes that are sent with it.
    #[must_use]
    pub fn data_len(&self) -> usize {
        match &self.command {
            Command::Write(_, data, ..) => data.len(),
            _ => 0,
        }
    }

    /// Tells the caller how it ended.
    pub fn finish(self, outcome: Outcome) {
        match self.command {
            Command::Read(_, buffer, on_read) => on_read(outcome, buffer),
            Command::Write(.., on_done)
            | Command::Flush(on_done)
            | Command::Zero(_, on_done)
            | Command::Trim(_, on_done) => on_done(outcome),
        }
    }

    /// Tells the caller that it will not be tried any longer: what may have changed the LUN is unknown, all else has
    /// failed.
    pub fn give_up(self) {
        let unknown = self.token != 0 && self.changes().is_some();
        self.finish(if unknown { Outcome::Unknown } else { Outcome::Failed(libc::EIO) });
    }
}
