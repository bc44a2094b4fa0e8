//! The answer to one request that the dispatcher took itself.

use std::io::IoSlice;
use std::sync::Arc;

use zerocopy::{Immutable, IntoBytes};

use super::abi::OutHeader;
use super::device::Device;
use crate::refusal::Refusal;
use crate::service::{Piece, ReadData};

/// Zeros for holes, referred to as often as a reply needs.
static ZEROS: [u8; 128 << 10] = [0; 128 << 10];

/// The most parts that one writev takes.
const PARTS_MAX: usize = 1024;

/// The errno of a refusal, positive. A failure of the storage is logged here, once, with its cause.
pub(super) fn errno_of(operation: &'static str, refusal: &Refusal) -> i32 {
    if let Refusal::Io(_) = refusal {
        tracing::error!(operation, "{refusal}");
    }
    refusal.errno()
}

/// The duty to answer one request. Dropped without an answer, it answers EIO: nobody may be left waiting.
#[derive(Debug)]
pub(super) struct Reply {
    device: Arc<Device>,
    unique: u64,
    answered: bool,
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64) -> Self {
        Self { device: Arc::clone(device), unique, answered: false }
    }

    /// Success, with nothing to say.
    pub(super) fn done(mut self) {
        self.send(0, &[]);
    }

    /// Failure with a positive errno.
    pub(super) fn error(mut self, errno: i32) {
        self.send(-errno, &[]);
    }

    /// Failure; `operation` is for the log.
    pub(super) fn refuse(self, operation: &'static str, refusal: &Refusal) {
        self.error(errno_of(operation, refusal));
    }

    /// Success or failure, with nothing to say.
    pub(super) fn result(self, operation: &'static str, result: Result<(), Refusal>) {
        match result {
            Ok(()) => self.done(),
            Err(refusal) => self.refuse(operation, &refusal),
        }
    }

    /// Success with a structure.
    pub(super) fn structure<T: IntoBytes + Immutable>(mut self, body: &T) {
        self.send(0, &[body.as_bytes()]);
    }

    /// Success with two structures in a row.
    pub(super) fn structures<T, U>(mut self, first: &T, second: &U)
    where
        T: IntoBytes + Immutable,
        U: IntoBytes + Immutable,
    {
        self.send(0, &[first.as_bytes(), second.as_bytes()]);
    }

    /// Success with the data of a read: from the buffers it is in, without a copy, and no more than `limit` bytes.
    pub(super) fn data(mut self, data: &ReadData, limit: usize) {
        if let [Piece::Bytes { buffer, skip, len }] = data.pieces.as_slice() {
            return self.send(0, &[&buffer[*skip..*skip + (*len).min(limit)]]);
        }
        let mut parts: Vec<&[u8]> = Vec::with_capacity(data.pieces.len());
        let mut room = limit;
        for piece in &data.pieces {
            match piece {
                Piece::Bytes { buffer, skip, len } => {
                    let len = (*len).min(room);
                    parts.push(&buffer[*skip..*skip + len]);
                    room -= len;
                }
                Piece::Zeros(len) => {
                    let mut left = (*len).min(room);
                    room -= left;
                    while left > 0 {
                        let len = left.min(ZEROS.len());
                        parts.push(&ZEROS[..len]);
                        left -= len;
                    }
                }
            }
        }
        if parts.len() < PARTS_MAX {
            self.send(0, &parts);
        } else {
            self.send(0, &[&parts.concat()]);
        }
    }

    fn send(&mut self, error: i32, body: &[&[u8]]) {
        self.answered = true;
        let len = size_of::<OutHeader>() + body.iter().map(|part| part.len()).sum::<usize>();
        let len = u32::try_from(len).expect("a reply is at most as long as its request asked for");
        let header = OutHeader { len, error, unique: self.unique };
        let mut few = [IoSlice::new(&[]); 4];
        let sent = if body.len() < few.len() {
            few[0] = IoSlice::new(header.as_bytes());
            for (slot, part) in few[1..].iter_mut().zip(body) {
                *slot = IoSlice::new(part);
            }
            self.device.send(&few[..=body.len()])
        } else {
            let header = std::iter::once(header.as_bytes());
            let all: Vec<IoSlice<'_>> = header.chain(body.iter().copied()).map(IoSlice::new).collect();
            self.device.send(&all)
        };
        let Err(failure) = sent else { return };
        // ENOENT: the request was given up; ENODEV: the file system is unmounted. Nobody waits for either.
        if !matches!(failure.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) {
            tracing::error!(unique = self.unique, len, "a reply could not be sent: {failure}");
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.send(-libc::EIO, &[]);
        }
    }
}
