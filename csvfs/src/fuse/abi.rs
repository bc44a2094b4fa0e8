//! The structures of the kernel's FUSE protocol (`include/uapi/linux/fuse.h`, version 7.40 and what later kernels
//! send) for the requests that the dispatcher answers itself. Their byte order is the machine's.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The kinds of requests that the dispatcher knows.
pub(super) mod opcode {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const SETXATTR: u32 = 21;
    pub(in super::super) const FLUSH: u32 = 25;
    pub(in super::super) const GETLK: u32 = 31;
    pub(in super::super) const SETLK: u32 = 32;
    pub(in super::super) const SETLKW: u32 = 33;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const INTERRUPT: u32 = 36;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const SYNCFS: u32 = 50;
    pub(in super::super) const TMPFILE: u32 = 51;
    pub(in super::super) const STATX: u32 = 52;
    pub(in super::super) const COPY_FILE_RANGE_64: u32 = 53;
}

/// [`WriteIn::write_flags`]: written back by the page cache.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// [`WriteIn::write_flags`]: clear the set-id bits.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// [`OpenIn::open_flags`] and [`CreateIn::open_flags`]: clear the set-id bits if the file is truncated.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// [`SetXattrIn::setxattr_flags`]: take away set-group-id when an access ACL is set.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// [`ReleaseIn::release_flags`]: the file had flock locks, `lock_owner` tells whose.
pub(super) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// [`LkIn::lk_flags`]: a flock, not a byte range.
pub(super) const LK_FLOCK: u32 = 1 << 0;

/// [`OpenOut::open_flags`]: past the page cache.
pub(super) const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// [`OpenOut::open_flags`]: the pages that the kernel has of the file are still right.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// [`OpenOut::open_flags`]: direct writes within the file need not wait for each other.
pub(super) const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// [`OutHeader::error`] of a notification: pages of an inode are to be dropped.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

/// [`SetAttrIn::valid`]: which fields count.
pub(super) mod fattr {
    pub(in super::super) const MODE: u32 = 1 << 0;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
    pub(in super::super) const CTIME: u32 = 1 << 10;
    pub(in super::super) const KILL_SUIDGID: u32 = 1 << 11;
}

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            pub(super) struct $name { $(pub(super) $field: $kind,)* }
        )*
    };
}

structures! {
    /// Before each request.
    InHeader {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        total_extlen: u16,
        padding: u16,
    }

    /// Before each reply (`error` zero or a negative errno) and notification (`unique` zero, `error` its code).
    OutHeader {
        len: u32,
        error: i32,
        unique: u64,
    }

    /// The notification [`NOTIFY_INVAL_INODE`]: `len` 0 means up to the end.
    InvalInodeOut {
        ino: u64,
        offset: i64,
        len: i64,
    }

    /// READ.
    ReadIn {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }

    /// WRITE; the data follows.
    WriteIn {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }

    /// The answer to WRITE.
    WriteOut {
        size: u32,
        padding: u32,
    }

    /// OPEN.
    OpenIn {
        flags: u32,
        open_flags: u32,
    }

    /// The answer to OPEN.
    OpenOut {
        fh: u64,
        open_flags: u32,
        backing_id: i32,
    }

    /// CREATE and TMPFILE; the name follows.
    CreateIn {
        flags: u32,
        mode: u32,
        umask: u32,
        open_flags: u32,
    }

    /// RELEASE.
    ReleaseIn {
        fh: u64,
        flags: u32,
        release_flags: u32,
        lock_owner: u64,
    }

    /// FLUSH: a descriptor was closed.
    FlushIn {
        fh: u64,
        unused: u32,
        padding: u32,
        lock_owner: u64,
    }

    /// A byte range, its end included, and who holds it how.
    FileLock {
        start: u64,
        end: u64,
        kind: u32,
        pid: u32,
    }

    /// GETLK, SETLK and SETLKW.
    LkIn {
        fh: u64,
        owner: u64,
        lock: FileLock,
        lk_flags: u32,
        padding: u32,
    }

    /// The answer to GETLK.
    LkOut {
        lock: FileLock,
    }

    /// INTERRUPT.
    InterruptIn {
        unique: u64,
    }

    /// SETATTR.
    SetAttrIn {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atime_nanos: u32,
        mtime_nanos: u32,
        ctime_nanos: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }

    /// SETXATTR as of FUSE_SETXATTR_EXT; name and value follow.
    SetXattrIn {
        size: u32,
        flags: u32,
        setxattr_flags: u32,
        padding: u32,
    }

    /// SETXATTR before FUSE_SETXATTR_EXT.
    SetXattrInShort {
        size: u32,
        flags: u32,
    }

    /// Attributes of an inode. Blocks are of 512 bytes.
    Attributes {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atime_nanos: u32,
        mtime_nanos: u32,
        ctime_nanos: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        block_size: u32,
        flags: u32,
    }

    /// The answer to SETATTR.
    AttrOut {
        valid: u64,
        valid_nanos: u32,
        dummy: u32,
        attributes: Attributes,
    }

    /// The first part of the answer to CREATE and TMPFILE; an [`OpenOut`] follows.
    EntryOut {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nanos: u32,
        attr_valid_nanos: u32,
        attributes: Attributes,
    }

    /// A time in STATX.
    StatxTime {
        seconds: i64,
        nanos: u32,
        reserved: i32,
    }

    /// The answer to STATX. Blocks are of 512 bytes.
    StatxOut {
        attr_valid: u64,
        attr_valid_nanos: u32,
        flags: u32,
        spare: [u64; 2],
        mask: u32,
        block_size: u32,
        attributes: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        spare0: u16,
        ino: u64,
        size: u64,
        blocks: u64,
        attributes_mask: u64,
        atime: StatxTime,
        btime: StatxTime,
        ctime: StatxTime,
        mtime: StatxTime,
        rdev_major: u32,
        rdev_minor: u32,
        dev_major: u32,
        dev_minor: u32,
        spare2: [u64; 14],
    }

    /// COPY_FILE_RANGE_64.
    CopyRangeIn {
        fh_in: u64,
        offset_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        offset_out: u64,
        len: u64,
        flags: u64,
    }

    /// The answer to COPY_FILE_RANGE_64.
    CopyRangeOut {
        copied: u64,
    }
}

/// The length of a request that is nothing but its header.
#[expect(clippy::cast_possible_truncation, reason = "40 fits")]
pub(super) const IN_HEADER_LEN: u32 = size_of::<InHeader>() as u32;

/// The length of the part of a request that is read apart from a write's data: the header and [`WriteIn`].
pub(super) const HEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(HEAD, 80);
        assert_eq!(size_of::<OpenIn>(), 8);
        assert_eq!(size_of::<OpenOut>(), 16);
        assert_eq!(size_of::<CreateIn>(), 16);
        assert_eq!(size_of::<ReleaseIn>(), 24);
        assert_eq!(size_of::<FlushIn>(), 24);
        assert_eq!(size_of::<LkIn>(), 48);
        assert_eq!(size_of::<SetAttrIn>(), 88);
        assert_eq!(size_of::<Attributes>(), 88);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<StatxOut>(), 288);
        assert_eq!(size_of::<CopyRangeIn>(), 56);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_write_request_has_its_golden_bytes() {
        let bytes: Vec<u8> = [
            &[0x50, 0x10, 0, 0, 16, 0, 0, 0][..],
            &[8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0],
            &[0xe8, 3, 0, 0, 0xe9, 3, 0, 0, 0x2a, 0, 0, 0, 0, 0, 0, 0],
            &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0],
            &[0, 0x10, 0, 0, 4, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let (header, rest) = InHeader::read_from_prefix(&bytes).unwrap();
        assert_eq!((header.len, header.opcode, header.unique), (4176, opcode::WRITE, 0x0102_0304_0506_0708));
        assert_eq!((header.nodeid, header.uid, header.gid, header.pid), (2, 1000, 1001, 42));
        let (write, rest) = WriteIn::read_from_prefix(rest).unwrap();
        assert!(rest.is_empty());
        assert_eq!((write.fh, write.offset, write.size), (9, 8192, 4096));
        assert_eq!((write.write_flags, write.lock_owner, write.flags), (WRITE_KILL_SUIDGID, 0x11, 0x401));
    }
}
