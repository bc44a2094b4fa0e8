//! The file or block device behind the export.
//!
//! I/O goes through the page cache: a completed write survives the death of this process, and a flush makes it survive
//! that of the machine. One process serves a file at a time: it holds the file's lock for as long as it, or any of its
//! threads still inside a system call, lives. So who gets the lock knows that nothing of an earlier server is under way.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::sys;

/// How long a server that starts waits for the last one's threads to leave the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// A flush that is usually quicker than this is not worth handing to another thread.
const QUICK_FLUSH_NS: u64 = 30_000;
/// Zeros that are written where the file system cannot make them.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Why the file behind the export cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// It is not there, and no size was given to create it with.
    #[error("{0} does not exist; give --size to create it")]
    Missing(PathBuf),
    /// An existing file has another size than the one asked for.
    #[error("{path} is {actual} bytes long, but --size says {asked}; leave --size away to serve it as it is")]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        actual: u64,
        /// The size that was asked for.
        asked: u64,
    },
    /// It has no bytes at all.
    #[error("{0} is empty; give it a size, or remove it and give --size to create it")]
    Empty(PathBuf),
    /// It is neither a regular file nor a block device.
    #[error("{0} is neither a regular file nor a block device")]
    Unsuitable(PathBuf),
    /// Another process serves it, or holds its lock.
    #[error("{0} is locked by another process: is another csv-target serving it? Stop that one first")]
    Locked(PathBuf),
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// How a range is to be zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Zeroing {
    /// Whether the range may become a hole.
    pub(super) may_punch: bool,
    /// Fail with `EOPNOTSUPP` rather than write zeros.
    pub(super) only_fast: bool,
}

#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    size: u64,
    is_device: bool,
    /// Whether the file system can read without waiting.
    reads_without_waiting: AtomicBool,
    /// Whether a flush has failed. The kernel then forgets what it could not write, and a second flush would succeed:
    /// so every later one fails too, until a new process (with a new boot id) serves the file.
    has_lost_writes: AtomicBool,
    /// How long a flush takes, a moving average in nanoseconds.
    flush_ns: AtomicU64,
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl Backing {
    /// Opens `path`, or creates it with `size` bytes, sparse.
    pub(super) fn open(path: &Path, size: Option<u64>, read_only: bool) -> Result<Self, BackingError> {
        let system = |doing| move |source| BackingError::System { doing, path: path.to_owned(), source };
        let file = match OpenOptions::new().read(true).write(!read_only).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let Some(size) = size.filter(|_| !read_only) else {
                    return Err(BackingError::Missing(path.to_owned()));
                };
                Self::create(path, size)?
            }
            opened => opened.map_err(system("open"))?,
        };
        let kind = file.metadata().map_err(system("look at"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BackingError::Unsuitable(path.to_owned()));
        }
        Self::lock(&file, path)?;
        let actual = (&file).seek(SeekFrom::End(0)).map_err(system("find the size of"))?;
        match size {
            Some(asked) if asked != actual => {
                Err(BackingError::OtherSize { path: path.to_owned(), actual, asked })
            }
            _ if actual == 0 => Err(BackingError::Empty(path.to_owned())),
            _ => Ok(Self {
                file,
                size: actual,
                is_device: kind.is_block_device(),
                reads_without_waiting: AtomicBool::new(true),
                has_lost_writes: AtomicBool::new(false),
                flush_ns: AtomicU64::new(1_000_000),
            }),
        }
    }

    /// Creates the file whole or not at all: a failed `set_len` leaves nothing that a second start would stumble over.
    fn create(path: &Path, size: u64) -> Result<File, BackingError> {
        let system = |doing| move |source| BackingError::System { doing, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path).map_err(system("create"))?;
        if let Err(source) = file.set_len(size).and_then(|()| file.sync_all()) {
            let _ = std::fs::remove_file(path);
            return Err(system("give its size to")(source));
        }
        tracing::info!(path = %path.display(), size, "created");
        Ok(file)
    }

    fn lock(file: &File, path: &Path) -> Result<(), BackingError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => return Err(BackingError::Locked(path.to_owned())),
                Err(TryLockError::Error(source)) => {
                    return Err(BackingError::System { doing: "lock", path: path.to_owned(), source });
                }
            }
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset`.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), i32> {
        self.file.read_exact_at(buffer, offset).map_err(|error| errno(&error))
    }

    /// Fills `buffer` from `offset` if that needs no waiting for a disk; otherwise returns false.
    pub(super) fn read_if_ready(&self, buffer: &mut [u8], offset: u64) -> Result<bool, i32> {
        if !self.reads_without_waiting.load(Ordering::Relaxed) {
            return self.read(buffer, offset).map(|()| true);
        }
        match sys::read_without_waiting(&self.file, buffer, offset) {
            Ok(read) => Ok(read == buffer.len()),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.reads_without_waiting.store(false, Ordering::Relaxed);
                self.read(buffer, offset).map(|()| true)
            }
            // Whatever it is, the read that may wait will tell.
            Err(_) => Ok(false),
        }
    }

    /// Writes `data` at `offset`, durably if `fua`.
    pub(super) fn write(&self, mut data: &[u8], mut offset: u64, fua: bool) -> Result<(), i32> {
        if !fua {
            return self.file.write_all_at(data, offset).map_err(|error| errno(&error));
        }
        self.check_no_loss()?;
        while !data.is_empty() {
            match sys::write_durably(&self.file, data, offset) {
                Ok(0) => return Err(libc::EIO),
                Ok(written) => {
                    data = &data[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.durability_failed(&error)),
            }
        }
        Ok(())
    }

    /// Makes every completed write durable.
    pub(super) fn flush(&self) -> Result<(), i32> {
        self.check_no_loss()?;
        let begin = Instant::now();
        self.file.sync_data().map_err(|error| self.durability_failed(&error))?;
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX / 8);
        let average = self.flush_ns.load(Ordering::Relaxed);
        self.flush_ns.store((average / 8).saturating_mul(7).saturating_add(took / 8), Ordering::Relaxed);
        Ok(())
    }

    /// Whether a flush is usually so quick that no other request minds waiting for it.
    pub(super) fn flushes_quickly(&self) -> bool {
        self.flush_ns.load(Ordering::Relaxed) < QUICK_FLUSH_NS
    }

    fn check_no_loss(&self) -> Result<(), i32> {
        if self.has_lost_writes.load(Ordering::Acquire) { Err(libc::EIO) } else { Ok(()) }
    }

    fn durability_failed(&self, error: &io::Error) -> i32 {
        // Nothing was lost when there is merely no room for it: the writer is told.
        if !matches!(errno(error), libc::ENOSPC | libc::EDQUOT)
            && !self.has_lost_writes.swap(true, Ordering::AcqRel)
        {
            tracing::error!(%error, "the disk refused a flush; every flush fails until csv-target is restarted");
        }
        errno(error)
    }

    /// Gives the storage of `range` up as far as the disk can. What is read there afterwards is unspecified.
    pub(super) fn trim(&self, range: Range<u64>) -> Result<(), i32> {
        let range = if self.is_device { whole_blocks(&range) } else { range };
        if range.is_empty() {
            return Ok(());
        }
        let length = range.end - range.start;
        match sys::fallocate(&self.file, libc::FALLOC_FL_PUNCH_HOLE, range.start, length) {
            // A trim is a hint.
            Err(error) if is_unsupported(&error) => Ok(()),
            done => done.map_err(|error| errno(&error)),
        }
    }

    /// Makes `range` read as zeros.
    pub(super) fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<(), i32> {
        let length = range.end - range.start;
        let punch = how.may_punch.then_some(libc::FALLOC_FL_PUNCH_HOLE);
        // A device may write zeros one by one for ZERO_RANGE: that is not fast.
        let zero_range = (!self.is_device || !how.only_fast).then_some(libc::FALLOC_FL_ZERO_RANGE);
        for mode in [punch, zero_range].into_iter().flatten() {
            match sys::fallocate(&self.file, mode, range.start, length) {
                // A device refuses ranges that are not whole blocks with EINVAL.
                Err(error) if is_unsupported(&error) || errno(&error) == libc::EINVAL => {}
                done => return done.map_err(|error| errno(&error)),
            }
        }
        if how.only_fast {
            return Err(libc::EOPNOTSUPP);
        }
        let mut offset = range.start;
        while offset < range.end {
            let part = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..part], offset).map_err(|error| errno(&error))?;
            offset += part as u64;
        }
        Ok(())
    }

    /// Whether the file system knows that `range` is a hole.
    pub(super) fn is_hole(&self, range: &Range<u64>) -> bool {
        if self.is_device {
            return false;
        }
        match sys::next_data(&self.file, range.start) {
            Ok(data) => data.is_none_or(|data| data >= range.end),
            Err(_) => false,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

/// The part of `range` that consists of whole blocks of 4096 bytes.
fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    let start = range.start.next_multiple_of(4096);
    start..(range.end / 4096 * 4096).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> (tempfile::TempDir, Backing) {
        let dir = tempfile::tempdir().unwrap();
        let backing = Backing::open(&dir.path().join("lun.img"), Some(size), false).unwrap();
        (dir, backing)
    }

    #[test]
    fn a_missing_file_is_created_only_with_a_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        assert!(matches!(Backing::open(&path, None, false), Err(BackingError::Missing(_))));
        assert!(matches!(Backing::open(&path, Some(1 << 20), true), Err(BackingError::Missing(_))));
        assert_eq!(Backing::open(&path, Some(1 << 20), false).unwrap().size(), 1 << 20);
        assert_eq!(Backing::open(&path, None, false).unwrap().size(), 1 << 20);
        let other = Backing::open(&path, Some(2 << 20), false).unwrap_err();
        assert!(other.to_string().contains("1048576 bytes long, but --size says 2097152"), "{other}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Backing::open(dir.path(), None, true).is_err());
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        assert!(matches!(Backing::open(&empty, None, false), Err(BackingError::Empty(_))));
        assert!(matches!(
            Backing::open(Path::new("/dev/null"), None, false),
            Err(BackingError::Unsuitable(_))
        ));
        let absent = Backing::open(&dir.path().join("no/lun.img"), Some(4096), false).unwrap_err();
        assert!(absent.to_string().starts_with("cannot create"), "{absent}");
        let huge = dir.path().join("huge");
        assert!(Backing::open(&huge, Some(u64::MAX / 2), false).is_err());
        assert!(!huge.exists(), "what could not get its size is not left behind");
    }

    #[test]
    fn one_server_per_file() {
        let (dir, first) = image(1 << 20);
        let path = dir.path().join("lun.img");
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || Backing::open(&path, None, false).map(|backing| backing.size())
        });
        drop(first);
        assert_eq!(waiter.join().unwrap().unwrap(), 1 << 20);
    }

    #[test]
    fn zeroes_and_trims() {
        let (_dir, backing) = image(1 << 20);
        let mut buffer = vec![0; 8192];
        for (may_punch, only_fast) in [(true, false), (false, false), (true, true)] {
            backing.write(&[7; 8192], 0, true).unwrap();
            backing.zero(100..5000, Zeroing { may_punch, only_fast }).unwrap();
            backing.read(&mut buffer, 0).unwrap();
            assert!(buffer[100..5000].iter().all(|byte| *byte == 0));
            assert!(buffer[..100].iter().chain(&buffer[5000..]).all(|byte| *byte == 7));
        }
        assert!(!backing.is_hole(&(0..8192)));
        backing.trim(0..8192).unwrap();
        assert!(backing.is_hole(&(0..8192)));
        backing.flush().unwrap();
    }

    #[test]
    fn whole_blocks_lie_within_the_range() {
        assert_eq!(whole_blocks(&(1..8192)), 4096..8192);
        assert!(whole_blocks(&(1..4097)).is_empty());
        assert!(whole_blocks(&(5000..5001)).is_empty());
    }
}
