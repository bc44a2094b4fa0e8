//! The file or block device as a LUN.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use lockd::ids::ClientId;
use lockd::reservation::device::{Device, Visit, try_out};
use lockd::reservation::{Shown, Trial};

use super::discard::Discarder;
use super::lock::{Exclusive, Holder};
use super::open::{FileLunError, Opened, Options};
use super::registration::Registration;
use super::request::{Request, Target};
use super::ring::Ring;
use crate::buffer::{Buffer, Pool, Slice};
use crate::lun::{Geometry, Lun, OnDone, OnRead, Outcome, Proof};

/// A LUN that is an image file or a block device.
///
/// Dropping it waits until everything in flight has ended (but when it is dropped by what a completion calls), and gives
/// its lock up.
#[derive(Debug)]
pub struct FileLun {
    ring: Arc<Ring>,
    reaper: Option<JoinHandle<()>>,
    discarder: Option<Discarder>,
    /// For what must be copied because its memory is not aligned.
    pool: Pool,
}

impl FileLun {
    /// Opens the file or block device `path`. An exclusive lock is taken if it is free, see
    /// [`FileLun::try_exclusive`]; if it is not, that is no error.
    pub fn open(path: &Path, options: Options) -> Result<Self, FileLunError> {
        Self::open_as(path, options, None)
    }

    /// The same as a client that registers with the target first, which it leaves when it is dropped.
    pub fn open_as(
        path: &Path,
        options: Options,
        registration: Option<Registration>,
    ) -> Result<Self, FileLunError> {
        let opened = Opened::new(path, options)?;
        let target = Target::new(opened, registration)
            .map_err(|source| FileLunError::Registration { path: path.to_path_buf(), source })?;
        let failed = |source| FileLunError::Ring { path: path.to_path_buf(), source };
        let discards = target.opened.is_device && target.opened.geometry.trim;
        let ring = Arc::new(Ring::new(target, options.depth).map_err(failed)?);
        let of_reaper = Arc::clone(&ring);
        let reaper = thread::Builder::new()
            .name("lun-reaper".to_owned())
            .spawn(move || {
                of_reaper.reap();
                // Only now is nothing in flight any more.
                of_reaper.target.lock.release(&of_reaper.target.opened);
                if !of_reaper.is_broken() {
                    of_reaper.target.leave();
                }
            })
            .map_err(failed)?;
        let mut lun = Self { ring, reaper: Some(reaper), discarder: None, pool: Pool::default() };
        if discards {
            lun.discarder = Some(Discarder::start(Arc::clone(&lun.ring)).map_err(failed)?);
        }
        if !options.read_only
            && let Err(holder) = lun.try_exclusive()
        {
            tracing::info!(path = %path.display(), %holder, "the LUN's file is locked by another");
        }
        Ok(lun)
    }

    fn opened(&self) -> &Opened {
        &self.ring.target.opened
    }

    /// Takes the exclusive lock, which this LUN then has until it is dropped: no other `FileLun` of this host (or of
    /// hosts that share the file system, if that supports locks) has it meanwhile. Fails when another has it.
    pub fn try_exclusive(&self) -> Result<Exclusive, Holder> {
        self.ring.target.lock.try_exclusive(self.opened())
    }

    /// Why a request of `len` bytes at `offset` cannot be, as an errno.
    fn check(&self, offset: u64, len: u64, changes: bool) -> Result<(), i32> {
        let geometry = &self.opened().geometry;
        let block = u64::from(geometry.block_size);
        if changes && self.opened().read_only {
            return Err(libc::EROFS);
        }
        if self.ring.target.refused().is_some() {
            return Err(libc::EIO);
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= geometry.size);
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) || !inside {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    /// As `check`, for reads and writes, which have a longest length.
    fn check_transfer(&self, offset: u64, len: usize, changes: bool) -> Result<(), i32> {
        if len > self.opened().geometry.request_max as usize {
            return Err(libc::EINVAL);
        }
        self.check(offset, len as u64, changes)
    }

    /// Checks a range to be zeroed or trimmed, and calls `on_done` if that settles it.
    fn check_range(&self, range: &Range<u64>, on_done: OnDone) -> Option<OnDone> {
        let len = range.end.checked_sub(range.start);
        match len.ok_or(libc::EINVAL).and_then(|len| self.check(range.start, len, true).map(|()| len)) {
            Err(errno) => on_done(Outcome::Failed(errno)),
            Ok(0) => on_done(Outcome::Done),
            Ok(_) => return Some(on_done),
        }
        None
    }
}

impl Lun for FileLun {
    fn geometry(&self) -> Geometry {
        self.opened().geometry
    }

    fn read(&self, offset: u64, buffer: Buffer, on_read: OnRead) {
        match self.check_transfer(offset, buffer.len(), false) {
            Err(errno) => on_read(Outcome::Failed(errno), buffer),
            Ok(()) if buffer.is_empty() => on_read(Outcome::Done, buffer),
            Ok(()) => self.ring.submit(Request::read(offset, buffer, on_read)),
        }
    }

    fn write(&self, offset: u64, data: Slice, fua: bool, on_done: OnDone) {
        match self.check_transfer(offset, data.len(), true) {
            Err(errno) => return on_done(Outcome::Failed(errno)),
            Ok(()) if data.is_empty() => return on_done(Outcome::Done),
            Ok(()) => {}
        }
        let data = if data.as_ptr().addr().is_multiple_of(self.opened().memory_alignment) {
            data
        } else {
            let mut aligned = self.pool.take(data.len());
            aligned.copy_from_slice(&data);
            aligned.share()
        };
        self.ring.submit(Request::write(offset, data, fua, on_done));
    }

    fn flush(&self, on_done: OnDone) {
        if self.opened().read_only {
            return on_done(Outcome::Done);
        }
        if self.ring.target.refused().is_some() {
            return on_done(Outcome::Failed(libc::EIO));
        }
        self.ring.submit(Request::flush(on_done));
    }

    fn zero(&self, range: Range<u64>, on_done: OnDone) {
        if let Some(on_done) = self.check_range(&range, on_done) {
            self.ring.submit(Request::zero(&range, &self.ring.target, on_done));
        }
    }

    fn trim(&self, range: Range<u64>, on_done: OnDone) {
        let Some(on_done) = self.check_range(&range, on_done) else { return };
        match &self.discarder {
            _ if !self.opened().geometry.trim => on_done(Outcome::Done),
            Some(discarder) => discarder.discard(range, on_done),
            None => self.ring.submit(Request::trim(&range, on_done)),
        }
    }

    fn ghosts(&self) -> Vec<Range<u64>> {
        self.ring.ghosts()
    }

    fn prove_ended(&self, _earlier: ClientId) -> Proof {
        self.ring.target.lock.prove_ended(self.opened())
    }

    fn prove_alone(&self) -> Proof {
        self.ring.target.lock.prove_ended(self.opened())
    }

    fn try_reservations(&self, trial: Trial<'_>) -> Result<Shown, String> {
        let opened = self.opened();
        if !opened.is_device {
            return Err(format!("{} is a file, not a disk of a target", opened.path.display()));
        }
        let shown = if opened.read_only {
            Visit::begin(&opened.path, trial.key, &[]).and_then(|visit| try_out(&mut visit.device(), trial))
        } else {
            try_out(&mut Device::claimed(&opened.file), trial)
        };
        shown.map_err(|error| format!("at {}: {error}", opened.path.display()))
    }

    fn is_working(&self) -> bool {
        self.ring.target.refused().is_none()
    }

    fn describe(&self) -> String {
        let opened = self.opened();
        let kind = if opened.is_device { "block device" } else { "file" };
        let how = if opened.direct { "O_DIRECT" } else { "buffered: no O_DIRECT here" };
        let lock = match (opened.read_only, self.ring.target.lock.is_held()) {
            (true, _) => "read-only",
            (false, true) => "locked",
            (false, false) => "not locked: another process has it open",
        };
        let state = match self.ring.target.refused() {
            _ if self.ring.is_broken() => "io_uring has failed",
            Some(why) => why,
            None => "up",
        };
        format!("{kind} {} ({how}, {lock}): {state}", opened.path.display())
    }
}

impl Drop for FileLun {
    fn drop(&mut self) {
        self.discarder = None;
        self.ring.close();
        let reaper = self.reaper.take().filter(|reaper| reaper.thread().id() != thread::current().id());
        // A reaper whose ring has failed may sleep in the kernel for ever.
        if !self.ring.is_broken() && reaper.is_some_and(|reaper| reaper.join().is_err()) {
            tracing::error!("the thread that receives completions panicked");
        }
    }
}
