//! What a path names, and its geometry.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::kernel::{self, DirectAlignment};
use crate::iscsi::registration::RegistrationError;
use crate::lun::Geometry;

/// The longest request in bytes.
const REQUEST_MAX: u32 = 8 << 20;
/// The block size in bytes where the file system does not say what `O_DIRECT` wants: every one takes it.
const BLOCK_SIZE_SAFE: u32 = 4096;
/// The block size in bytes of a file without `O_DIRECT`.
const BLOCK_SIZE_BUFFERED: u32 = 512;
/// How long a device that is in use is tried again.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// How a file LUN is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Opened for reading only; writes are refused with `EROFS`, and no lock is taken.
    pub read_only: bool,
    /// Requests in flight at most (1 to 4096); further ones wait.
    pub depth: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { read_only: false, depth: 256 }
    }
}

/// Why a file or device could not be opened as a LUN.
#[derive(Debug, thiserror::Error)]
pub enum FileLunError {
    /// The path cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file or device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody on this host has the block device to itself.
    #[error(
        "{path} is in use on this host: it is mounted, part of a volume group, or another csvfs has it open; see lsblk \
         and csvfs status"
    )]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// There is nothing at the path.
    #[error(
        "there is no file {path}: a LUN is not created by opening it; make it first (truncate -s 20G {path})"
    )]
    Missing {
        /// The file or device.
        path: PathBuf,
    },
    /// The path names neither a file nor a block device.
    #[error("{path} is neither a regular file nor a block device, and cannot be a LUN")]
    WrongKind {
        /// The path.
        path: PathBuf,
    },
    /// The file or device has no block to store anything in.
    #[error("{path} is empty ({size} bytes); give it its size first (truncate -s 20G {path})")]
    Empty {
        /// The file or device.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Size, block size or lock could not be found out.
    #[error("cannot use {path} as a LUN: {what}: {source}")]
    Examine {
        /// The file or device.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The device's target does not take this host.
    #[error("{path}: {source}")]
    Registration {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: RegistrationError,
    },
    /// The kernel gives no `io_uring`.
    #[error(
        "cannot do I/O to {path}: io_uring is not available ({source}); see /proc/sys/kernel/io_uring_disabled"
    )]
    Ring {
        /// The file or device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An option is out of its range.
    #[error("depth is {0}; it must be from 1 to 4096 requests")]
    Depth(u16),
}

/// An open file or block device.
#[derive(Debug)]
pub struct Opened {
    pub file: File,
    pub path: PathBuf,
    pub geometry: Geometry,
    pub is_device: bool,
    pub read_only: bool,
    /// Whether the page cache is passed by.
    pub direct: bool,
    /// The alignment in bytes that memory must have.
    pub memory_alignment: usize,
}

impl Opened {
    /// Opens `path`.
    pub fn new(path: &Path, options: Options) -> Result<Self, FileLunError> {
        if !(1..=4096).contains(&options.depth) {
            return Err(FileLunError::Depth(options.depth));
        }
        let path = path.to_path_buf();
        let examine = |what, source| FileLunError::Examine { path: path.clone(), what, source };
        // Looked at before it is opened: opening a FIFO would wait.
        let kind = match fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FileLunError::Missing { path });
            }
            Err(source) => return Err(FileLunError::Open { path, source }),
        };
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(FileLunError::WrongKind { path });
        }
        let (file, direct) = open(&path, options.read_only, is_device)?;
        let alignment = match (direct, kernel::direct_alignment(&file)) {
            (true, Some(Some(alignment))) => Some(alignment),
            (true, None) => Some(DirectAlignment { memory: BLOCK_SIZE_SAFE, offset: BLOCK_SIZE_SAFE }),
            // The flag is accepted and has no effect.
            (true, Some(None)) => {
                kernel::set_direct(&file, false).map_err(|e| examine("switching O_DIRECT off", e))?;
                None
            }
            (false, _) => None,
        };
        let buffered = DirectAlignment { memory: 1, offset: BLOCK_SIZE_BUFFERED };
        let DirectAlignment { memory, offset } = alignment.unwrap_or(buffered);
        if alignment.is_none() {
            tracing::warn!(path = %path.display(), "no O_DIRECT here: the page cache is used, and I/O is slower");
        }
        let (size, block_size) = if is_device {
            let size = kernel::device_size(&file).map_err(|e| examine("asking for its size", e))?;
            let block =
                kernel::device_block_size(&file).map_err(|e| examine("asking for its block size", e))?;
            (size, block)
        } else {
            let size = file.metadata().map_err(|e| examine("asking for its size", e))?.len();
            (size, offset.clamp(BLOCK_SIZE_BUFFERED, BLOCK_SIZE_SAFE))
        };
        if size < u64::from(block_size) {
            return Err(FileLunError::Empty { path, size });
        }
        let trim = !options.read_only
            && if is_device { device_discards(&file) } else { kernel::can_punch(&file, size) };
        let geometry = Geometry {
            size: size - size % u64::from(block_size),
            block_size,
            request_max: REQUEST_MAX,
            trim,
            write_zeroes: true,
            volatile_cache: !is_device || device_caches(&file),
        };
        let memory_alignment = usize::try_from(memory).unwrap_or(4096).max(1);
        let read_only = options.read_only;
        Ok(Self { file, path, geometry, is_device, read_only, direct: alignment.is_some(), memory_alignment })
    }
}

/// Opens `path`, with `O_DIRECT` if there is such a thing here. A block device that is to be written is opened
/// exclusively: not beside a mounted file system on it, a volume group, or another csvfs of this host, whatever device
/// node they came by. (Of other hosts it says nothing.)
fn open(path: &Path, read_only: bool, is_device: bool) -> Result<(File, bool), FileLunError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    let exclusive = if is_device && !read_only { libc::O_EXCL } else { 0 };
    let until = Instant::now() + BUSY_PATIENCE;
    loop {
        let direct = options.clone().custom_flags(libc::O_DIRECT | exclusive).open(path);
        let opened = match direct {
            Ok(file) => Ok((file, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                options.clone().custom_flags(exclusive).open(path).map(|file| (file, false))
            }
            Err(error) => Err(error),
        };
        match opened {
            // A process that was killed has it open until its last request has ended.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && exclusive != 0 => {
                if Instant::now() >= until {
                    return Err(FileLunError::Busy { path: path.to_path_buf() });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => {
                return opened.map_err(|source| FileLunError::Open { path: path.to_path_buf(), source });
            }
        }
    }
}

/// A value from the `queue` directory of a block device in sysfs; a partition has its disk's.
fn queue_value(file: &File, name: &str) -> Option<String> {
    let number = file.metadata().ok()?.rdev();
    let device = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    let read = |queue: &str| fs::read_to_string(format!("{device}/{queue}/{name}"));
    let value = read("queue").or_else(|_| read("../queue")).ok()?;
    Some(value.trim().to_owned())
}

fn device_discards(file: &File) -> bool {
    queue_value(file, "discard_max_bytes").is_some_and(|value| value != "0")
}

/// Whether a completed write may be lost before a flush; yes where the kernel does not say.
fn device_caches(file: &File) -> bool {
    queue_value(file, "write_cache").is_none_or(|value| value != "write through")
}
