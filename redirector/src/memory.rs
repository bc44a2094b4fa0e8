//! LUNs in memory, for tests and the simulation.
//!
//! [`MemoryLun`] does what it is asked, at once. [`FaultyLun`] stands before another LUN and fails, loses or holds the
//! requests that a test chooses. Both work on an [`Image`], whose copies are cheap.

mod faulty;
mod image;
#[cfg(test)]
mod tests;

pub use faulty::{Asked, Fault, FaultyLun, Kind};
pub use image::{Image, PAGE_SIZE};

use std::ops::Range;

use lockd::ids::ClientId;
use parking_lot::RwLock;

use crate::buffer::{Buffer, Slice};
use crate::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

/// The geometry that LUNs in memory have unless told otherwise: blocks of 512 bytes, requests up to 8 MiB.
#[must_use]
pub fn geometry(size: u64) -> Geometry {
    Geometry {
        size,
        block_size: 512,
        request_max: 8 << 20,
        trim: true,
        write_zeroes: true,
        volatile_cache: true,
    }
}

/// Whether a request of `len` bytes at `offset` is possible with `geometry`; if not, `EINVAL`.
pub(crate) fn check(geometry: &Geometry, offset: u64, len: u64) -> Result<(), i32> {
    let block = u64::from(geometry.block_size);
    let inside = offset.checked_add(len).is_some_and(|end| end <= geometry.size);
    let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block);
    if inside && aligned { Ok(()) } else { Err(libc::EINVAL) }
}

/// As `check`, for reads and writes, which have a longest length.
pub(crate) fn check_transfer(geometry: &Geometry, offset: u64, len: usize) -> Result<(), i32> {
    if len > geometry.request_max as usize {
        return Err(libc::EINVAL);
    }
    check(geometry, offset, len as u64)
}

/// As `check`, for ranges.
pub(crate) fn check_range(geometry: &Geometry, range: &Range<u64>) -> Result<(), i32> {
    let len = range.end.checked_sub(range.start).ok_or(libc::EINVAL)?;
    check(geometry, range.start, len)
}

pub(crate) fn outcome(result: Result<(), i32>) -> Outcome {
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

/// A LUN in this process's memory: a test device. Sparse; every request is executed, and its caller called, before the
/// method returns. Trimmed ranges read as zeros.
#[derive(Debug)]
pub struct MemoryLun {
    geometry: Geometry,
    image: RwLock<Image>,
}

impl MemoryLun {
    /// A LUN of `size` bytes, all zero.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self::with_geometry(geometry(size), Image::default())
    }

    /// A LUN that begins with the contents of `image`.
    #[must_use]
    pub fn with_geometry(geometry: Geometry, image: Image) -> Self {
        Self { geometry, image: RwLock::new(image) }
    }

    /// The contents as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Image {
        self.image.read().clone()
    }

    /// Puts other contents in the place of all there is.
    pub fn restore(&self, image: Image) {
        *self.image.write() = image;
    }
}

impl Lun for MemoryLun {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, mut buffer: Buffer, on_read: OnRead) {
        let checked = check_transfer(&self.geometry, offset, buffer.len());
        if checked.is_ok() {
            self.image.read().read(offset, &mut buffer);
        }
        on_read(outcome(checked), buffer);
    }

    fn write(&self, offset: u64, data: Slice, _fua: bool, on_done: OnDone) {
        let checked = check_transfer(&self.geometry, offset, data.len());
        if checked.is_ok() {
            self.image.write().write(offset, &data);
        }
        drop(data);
        on_done(outcome(checked));
    }

    fn flush(&self, on_done: OnDone) {
        on_done(Outcome::Done);
    }

    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        let checked = check_range(&self.geometry, &range);
        if checked.is_ok() {
            self.image.write().fill(range, 0);
        }
        on_done(outcome(checked));
    }

    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        self.zero(range, on_done);
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        Proof::Ended("memory of this process: nothing is on its way".to_owned())
    }

    fn prove_alone(&self) -> Proof {
        Proof::Ended("memory of this process: nobody else can reach it".to_owned())
    }

    fn describe(&self) -> String {
        format!("{} bytes of memory (a test device)", self.geometry.size)
    }
}
