//! The system calls that std does not have, each as a safe function on an open file.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `BLKGETSIZE64` of `linux/fs.h`: `_IOR(0x12, 114, size_t)`. The libc crate does not have it.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
/// `BLKDISCARD` of `linux/fs.h`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// `F_SETSIG` of `asm-generic/fcntl.h`, which the libc crate does not have either.
const F_SETSIG: libc::c_int = 10;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// How memory and offsets must be aligned for `O_DIRECT`, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectAlignment {
    pub memory: u32,
    pub offset: u32,
}

/// What the file system says about `O_DIRECT` on `file`: `Some(None)` that it has none, `None` nothing (before Linux
/// 6.1).
pub fn direct_alignment(file: &File) -> Option<Option<DirectAlignment>> {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the empty path is a C string, and the kernel writes one `statx` to `status`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            status.as_mut_ptr(),
        )
    };
    check(result).ok()?;
    // SAFETY: zeroed above, and every bit pattern is a `statx`.
    let status = unsafe { status.assume_init() };
    if status.stx_mask & libc::STATX_DIOALIGN == 0 {
        return None;
    }
    let alignment = DirectAlignment { memory: status.stx_dio_mem_align, offset: status.stx_dio_offset_align };
    Some((alignment.offset != 0).then_some(alignment))
}

/// The size of a block device in bytes.
pub fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to its argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// The logical block size of a block device in bytes.
pub fn device_block_size(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int to its argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Discards `range` (bytes) of a block device. Waits for the device.
pub fn discard(file: &File, range: &Range<u64>) -> io::Result<()> {
    let argument = [range.start, range.end - range.start];
    // SAFETY: BLKDISCARD reads two u64, start and length, from its argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, argument.as_ptr()) })?;
    Ok(())
}

/// Whether holes can be punched into `file`; tried behind its end, where it changes nothing.
pub fn can_punch(file: &File, size: u64) -> bool {
    let Ok(behind) = libc::off_t::try_from(size) else { return false };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: only integers are passed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, behind, 4096) }).is_ok()
}

/// Switches `O_DIRECT` of an open file on or off.
pub fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    // SAFETY: only integers are passed.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if direct { flags | libc::O_DIRECT } else { flags & !libc::O_DIRECT };
    // SAFETY: as above.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) })?;
    Ok(())
}

/// The magic number of the file system that `file` is on (statfs(2)).
pub fn filesystem_magic(file: &File) -> io::Result<u32> {
    let mut status = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open and the kernel writes one `statfs`.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: zeroed above, and every bit pattern is a `statfs`.
    let magic = unsafe { status.assume_init() }.f_type;
    // The type of `f_type` differs between architectures; the numbers have 32 bits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::unnecessary_cast)]
    Ok(magic as u32)
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    // SAFETY: a `flock` of zeros is valid: from 0, to the end, no process.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or(libc::c_short::MAX);
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0);
    lock
}

/// Takes the open file description's write lock on all of `file`; false if another one has a lock on any of it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: F_OFD_SETLK reads one `flock`.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives up the lock of `try_lock`.
pub fn unlock(file: &File) -> io::Result<()> {
    let lock = whole_file(libc::F_UNLCK);
    // SAFETY: as in `try_lock`.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })?;
    Ok(())
}

/// Whether `file` is the only open file description of its inode in this kernel: those of other processes, of the
/// kernel's own services (loop devices, nfsd), of mappings and of requests in flight count.
///
/// The kernel grants a write lease only then (fcntl(2)). It is given back at once; somebody who opens the file in this
/// moment waits a moment. The signal that would tell us of him is set to one that is ignored.
pub fn is_only_open(file: &File) -> io::Result<bool> {
    let descriptor = file.as_raw_fd();
    // SAFETY: only integers are passed; in the next calls too.
    check(unsafe { libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: as above.
    let granted = check(unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_WRLCK) });
    match granted {
        Ok(_) => {
            // SAFETY: as above.
            check(unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK) })?;
            Ok(true)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => Ok(false),
        Err(error) => Err(error),
    }
}
