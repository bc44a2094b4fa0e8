//! A request in flight, and what follows each of its completions.

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use io_uring::{opcode, squeue, types};

use super::lock::Lock;
use super::open::Opened;
use super::registration::Registration;
use crate::buffer::{Buffer, Pool, Slice};
use crate::iscsi::registration::RegistrationError;
use crate::lun::{OnDone, OnRead, Outcome};

/// How often a request that the kernel did not take up (no memory, its submitting thread ended) is submitted again.
const RETRIES_MAX: u8 = 100;
/// The size in bytes of the writes that zero a range where nothing else does.
const ZEROS_LEN: usize = 1 << 20;

/// How a range is zeroed, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum ZeroWay {
    ZeroRange,
    PunchHole,
    Write,
}

/// What the requests of one LUN share.
#[derive(Debug)]
pub struct Target {
    pub lock: Lock,
    pub opened: Opened,
    /// The first `ZeroWay` that has not been refused yet.
    zero_way: AtomicU8,
    zeros: OnceLock<Slice>,
    /// As whom this client has registered with the device's target.
    registration: Option<Registration>,
    /// Why the target lets this client write no more, once it has said so.
    refused: OnceLock<&'static str>,
}

impl Target {
    /// What `opened` is, used by a client that registers there if there is a `registration`.
    pub fn new(mut opened: Opened, registration: Option<Registration>) -> Result<Self, RegistrationError> {
        let mut zero_way = ZeroWay::ZeroRange;
        if let Some(registration) = &registration {
            registration.enter(&opened.file)?;
            if !registration.guards_unmap() {
                // The kernel would send UNMAP or WRITE SAME, and one that is late would land.
                (opened.geometry.trim, opened.geometry.write_zeroes) = (false, false);
                zero_way = ZeroWay::Write;
            }
        }
        Ok(Self {
            lock: Lock::default(),
            opened,
            zero_way: AtomicU8::new(zero_way as u8),
            zeros: OnceLock::new(),
            registration,
            refused: OnceLock::new(),
        })
    }

    /// The client leaves, with nothing in flight.
    pub fn leave(&self) {
        if let Some(registration) = self.registration.as_ref().filter(|_| self.refused().is_none()) {
            registration.leave(&self.opened.file);
        }
    }

    /// Why the target lets this client write no more.
    pub fn refused(&self) -> Option<&'static str> {
        self.refused.get().copied()
    }

    /// How a request ends that the kernel refuses with `errno`.
    pub fn failed(&self, errno: i32) -> Outcome {
        // A reservation conflict.
        if errno != libc::EBADE {
            return Outcome::Failed(errno);
        }
        let why = match &self.registration {
            Some(_) => "the target refuses this host's writes: its registration is gone, it is fenced",
            None => {
                "the LUN is reserved by somebody else (RESERVATION CONFLICT): a cluster that fences by scsi-pr uses it, or \
                 another initiator; find out who before anything is written here (csvfs fence-test --release VOLUME ends \
                 a cluster's own reservation)"
            }
        };
        if self.refused.set(why).is_ok() {
            tracing::error!(path = %self.opened.path.display(), "{why}");
        }
        Outcome::Failed(libc::EIO)
    }

    fn zero_way(&self) -> ZeroWay {
        match self.zero_way.load(Ordering::Relaxed) {
            0 => ZeroWay::ZeroRange,
            1 => ZeroWay::PunchHole,
            _ => ZeroWay::Write,
        }
    }

    /// The way after `way`, which the file system or device does not have.
    fn next_zero_way(&self, way: ZeroWay) -> ZeroWay {
        // A device that cannot unmap to zeros writes them for ZeroRange already.
        let next = match way {
            ZeroWay::ZeroRange if !self.opened.is_device => ZeroWay::PunchHole,
            _ => ZeroWay::Write,
        };
        self.zero_way.fetch_max(next as u8, Ordering::Relaxed);
        next
    }

    fn zeros(&self) -> &Slice {
        self.zeros.get_or_init(|| Pool::default().take_zeroed(ZEROS_LEN).share())
    }
}

#[derive(Debug)]
enum Work {
    Read { buffer: Buffer },
    Write { data: Slice, fua: bool },
    Flush,
    Zero { len: u64, way: ZeroWay },
    Trim { len: u64 },
}

/// What is called at the end.
enum Caller {
    Read(OnRead),
    Other(OnDone),
}

/// A request with all that it owns: its memory lives until it has ended.
pub struct Request {
    work: Work,
    offset: u64,
    /// Bytes that are done already.
    done: usize,
    retries: u8,
    caller: Caller,
}

impl Request {
    fn new(work: Work, offset: u64, caller: Caller) -> Self {
        Self { work, offset, done: 0, retries: 0, caller }
    }

    pub fn read(offset: u64, buffer: Buffer, on_read: OnRead) -> Self {
        Self::new(Work::Read { buffer }, offset, Caller::Read(on_read))
    }

    pub fn write(offset: u64, data: Slice, fua: bool, on_done: OnDone) -> Self {
        Self::new(Work::Write { data, fua }, offset, Caller::Other(on_done))
    }

    pub fn flush(on_done: OnDone) -> Self {
        Self::new(Work::Flush, 0, Caller::Other(on_done))
    }

    pub fn zero(range: &Range<u64>, target: &Target, on_done: OnDone) -> Self {
        let work = Work::Zero { len: range.end - range.start, way: target.zero_way() };
        Self::new(work, range.start, Caller::Other(on_done))
    }

    pub fn trim(range: &Range<u64>, on_done: OnDone) -> Self {
        Self::new(Work::Trim { len: range.end - range.start }, range.start, Caller::Other(on_done))
    }

    /// The next submission. It points into the memory that the request owns, which does not move with the request.
    pub fn entry(&mut self, target: &Target) -> squeue::Entry {
        // Every length has been checked against `request_max` or is at most `ZEROS_LEN`.
        let len32 = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let file = types::Fd(descriptor(target));
        let offset = self.offset + self.done as u64;
        match &mut self.work {
            Work::Read { buffer } => {
                let rest = &mut buffer[self.done..];
                opcode::Read::new(file, rest.as_mut_ptr(), len32(rest.len())).offset(offset).build()
            }
            Work::Write { data, fua } => {
                let rest = &data[self.done..];
                let flags = if *fua { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(file, rest.as_ptr(), len32(rest.len()))
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            Work::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Zero { len, way: ZeroWay::Write } => {
                let rest = &target.zeros()[..zero_step(*len, self.done)];
                opcode::Write::new(file, rest.as_ptr(), len32(rest.len())).offset(offset).build()
            }
            Work::Zero { len, way } => {
                let mode = match way {
                    ZeroWay::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
                    ZeroWay::PunchHole | ZeroWay::Write => libc::FALLOC_FL_PUNCH_HOLE,
                } | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(file, *len).offset(offset).mode(mode).build()
            }
            Work::Trim { len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(file, *len).offset(offset).mode(mode).build()
            }
        }
    }

    /// Takes a completion's result. `None`: submit the request again.
    pub fn advance(&mut self, result: i32, target: &Target) -> Option<Outcome> {
        match usize::try_from(result) {
            Ok(bytes) => self.advance_by(bytes, target),
            Err(_) => self.refused(-result, target),
        }
    }

    fn advance_by(&mut self, bytes: usize, target: &Target) -> Option<Outcome> {
        let len = match &self.work {
            Work::Read { buffer } => buffer.len(),
            Work::Write { data, .. } => data.len(),
            Work::Zero { len, way: ZeroWay::Write } => usize::try_from(*len).unwrap_or(usize::MAX),
            Work::Flush | Work::Zero { .. } | Work::Trim { .. } => return Some(Outcome::Done),
        };
        if self.done + bytes >= len {
            return Some(Outcome::Done);
        }
        // A short transfer goes on at a block boundary. None at all: the file has become shorter than the LUN.
        let progress = bytes - bytes % target.opened.geometry.block_size as usize;
        if progress == 0 {
            return Some(Outcome::Failed(libc::EIO));
        }
        self.done += progress;
        None
    }

    fn refused(&mut self, errno: i32, target: &Target) -> Option<Outcome> {
        // The kernel cancels what a thread has queued when that thread ends; it has not been executed.
        if matches!(errno, libc::EAGAIN | libc::EINTR | libc::ECANCELED) && self.retries < RETRIES_MAX {
            self.retries += 1;
            return None;
        }
        match &mut self.work {
            Work::Zero { way, .. } if errno == libc::EOPNOTSUPP && *way != ZeroWay::Write => {
                *way = target.next_zero_way(*way);
                None
            }
            _ => Some(target.failed(errno)),
        }
    }

    /// The range that is a ghost if the outcome is unknown.
    pub fn changes(&self) -> Option<Range<u64>> {
        let len = match &self.work {
            Work::Read { .. } | Work::Flush => return None,
            Work::Write { data, .. } => data.len() as u64,
            Work::Zero { len, .. } | Work::Trim { len } => *len,
        };
        Some(self.offset..self.offset + len)
    }

    /// Tells the caller.
    pub fn end(self, outcome: Outcome) {
        match (self.work, self.caller) {
            (Work::Read { buffer }, Caller::Read(on_read)) => on_read(outcome, buffer),
            (work, Caller::Other(on_done)) => {
                // The memory returns to its pool before the caller's next request looks for some.
                drop(work);
                on_done(outcome);
            }
            (_, Caller::Read(_)) => unreachable!("only a read has a reader's callback"),
        }
    }

    /// Tells the caller that the outcome is unknown, and leaves the memory for ever to the kernel, which may still use
    /// it.
    pub fn abandon(self) {
        match (self.work, self.caller) {
            (Work::Read { buffer }, Caller::Read(on_read)) => {
                let substitute = Pool::default().take_zeroed(buffer.len());
                std::mem::forget(buffer);
                on_read(Outcome::Unknown, substitute);
            }
            (work, Caller::Other(on_done)) => {
                std::mem::forget(work);
                on_done(Outcome::Unknown);
            }
            (_, Caller::Read(_)) => unreachable!("only a read has a reader's callback"),
        }
    }
}

fn descriptor(target: &Target) -> RawFd {
    target.opened.file.as_raw_fd()
}

/// The length in bytes of the next write of zeros, when `done` of `len` are written.
fn zero_step(len: u64, done: usize) -> usize {
    usize::try_from(len - done as u64).unwrap_or(ZEROS_LEN).min(ZEROS_LEN)
}
