//! Attributes in the kernel's words, and in fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use super::abi::{Attributes, StatxOut, StatxTime};
use crate::types::{Attr, BLOCK, Kind, Timestamp};

/// The size of the blocks that `st_blocks` counts.
const SECTOR: u64 = 512;
const NANOS: i64 = 1_000_000_000;
/// What `statx` is told: the basic fields and the time of creation.
const STATX_KNOWN: u32 = libc::STATX_BASIC_STATS | libc::STATX_BTIME;

/// The block size as the kernel is told.
#[expect(clippy::cast_possible_truncation, reason = "4096 fits")]
pub(super) const BLOCK_SIZE: u32 = BLOCK as u32;

/// The type bits of `st_mode`.
pub(super) fn type_bits(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Directory => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// Seconds, rounded down, and nanoseconds since 1970.
fn seconds(time: Timestamp) -> (i64, u32) {
    let nanos = u32::try_from(time.0.rem_euclid(NANOS)).expect("a remainder of 10^9 fits");
    (time.0.div_euclid(NANOS), nanos)
}

/// A time of the kernel; what does not fit is the first or last time that does.
pub(super) fn timestamp(seconds: i64, nanos: u32) -> Timestamp {
    Timestamp(seconds.saturating_mul(NANOS).saturating_add(i64::from(nanos)))
}

fn system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// A mode: type and permissions have 16 bits.
fn low_16(mode: u32) -> u16 {
    (mode & 0xffff) as u16
}

/// As the kernel has them.
pub(super) fn kernel_attributes(attr: &Attr) -> Attributes {
    let (atime, atime_nanos) = seconds(attr.atime);
    let (mtime, mtime_nanos) = seconds(attr.mtime);
    let (ctime, ctime_nanos) = seconds(attr.ctime);
    Attributes {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks * (BLOCK / SECTOR),
        atime,
        mtime,
        ctime,
        atime_nanos,
        mtime_nanos,
        ctime_nanos,
        mode: type_bits(attr.kind) | attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        block_size: BLOCK_SIZE,
        flags: 0,
    }
}

/// As fuser has them.
pub(super) fn fuser_attributes(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks * (BLOCK / SECTOR),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: low_16(attr.mode & 0o7777),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// As `statx` has them, valid for `validity`.
pub(super) fn statx(attr: &Attr, validity: Duration) -> StatxOut {
    let time = |time| {
        let (seconds, nanos) = seconds(time);
        StatxTime { seconds, nanos, reserved: 0 }
    };
    StatxOut {
        attr_valid: validity.as_secs(),
        attr_valid_nanos: validity.subsec_nanos(),
        flags: 0,
        spare: [0; 2],
        mask: STATX_KNOWN,
        block_size: BLOCK_SIZE,
        attributes: 0,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: low_16(type_bits(attr.kind) | attr.mode),
        spare0: 0,
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks * (BLOCK / SECTOR),
        attributes_mask: 0,
        atime: time(attr.atime),
        btime: time(attr.btime),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: libc::major(u64::from(attr.rdev)),
        rdev_minor: libc::minor(u64::from(attr.rdev)),
        dev_major: 0,
        dev_minor: 0,
        spare2: [0; 14],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_positive_nanoseconds() {
        assert_eq!(seconds(Timestamp(-1)), (-1, 999_999_999));
        assert_eq!(timestamp(-1, 999_999_999), Timestamp(-1));
        assert_eq!(seconds(Timestamp(1_500_000_000)), (1, 500_000_000));
        assert_eq!(timestamp(i64::MAX, 0), Timestamp(i64::MAX));
        assert_eq!(timestamp(i64::MIN, 5), Timestamp(i64::MIN + 5));
        assert!(system_time(Timestamp(i64::MIN)) < UNIX_EPOCH);
    }
}
