//! A LUN for callers that wait: opening a volume, fsck, the metadata store.

use std::ops::Range;
use std::sync::mpsc;

use crate::buffer::{Buffer, Slice};
use crate::lun::{Lun, OnDone, Outcome};
use crate::plug;
use crate::stand_in;

fn wait(start: impl FnOnce(OnDone)) -> Result<(), i32> {
    let (sender, receiver) = mpsc::sync_channel(1);
    start(Box::new(move |outcome| {
        let _ = sender.send(outcome);
    }));
    plug::flush();
    stand_in::receive(&receiver).unwrap_or(Outcome::Unknown).ok()
}

/// Fills `buffer` from `offset`. Errors are positive errnos.
pub fn read(lun: &dyn Lun, offset: u64, buffer: Buffer) -> Result<Buffer, i32> {
    let (sender, receiver) = mpsc::sync_channel(1);
    lun.read(
        offset,
        buffer,
        Box::new(move |outcome, buffer| {
            let _ = sender.send((outcome, buffer));
        }),
    );
    plug::flush();
    let (outcome, buffer) = stand_in::receive(&receiver).map_err(|_| libc::EIO)?;
    outcome.ok().map(|()| buffer)
}

/// Writes `data` at `offset`.
pub fn write(lun: &dyn Lun, offset: u64, data: Slice, fua: bool) -> Result<(), i32> {
    wait(|done| lun.write(offset, data, fua, done))
}

/// Flushes what has been written.
pub fn flush(lun: &dyn Lun) -> Result<(), i32> {
    wait(|done| lun.flush(done))
}

/// Zeroes `range`.
pub fn zero(lun: &dyn Lun, range: Range<u64>) -> Result<(), i32> {
    wait(|done| lun.zero(range, done))
}
