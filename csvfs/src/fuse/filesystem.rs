//! The requests that come by way of fuser.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use fuser::{
    CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, OpenFlags, RenameFlags, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
};

use super::attributes::{BLOCK_SIZE, fuser_attributes};
use super::connection::Connection;
use super::directory;
use super::inbox::WRITE_MAX;
use super::reply::errno_of;
use crate::proto::{Allocation, Created, RenameMode};
use crate::refusal::Refusal;
use crate::service::{Credentials, Done, HandleId, OpenMode, Seek};
use crate::types::{Attr, BLOCK, Ino, NAME_MAX, SYMLINK_MAX};

/// How many requests of the background (readahead, asynchronous direct I/O) the kernel sends before it waits.
const BACKGROUND_MAX: u16 = 512;
const CONGESTED_AT: u16 = 384;
/// The longest name, as statfs tells it.
#[expect(clippy::cast_possible_truncation, reason = "255 fits")]
const NAME_LEN: u32 = NAME_MAX as u32;

/// What we ask of the kernel if it has it. Not FUSE_ATOMIC_O_TRUNC: with it, an open for reading with O_TRUNC empties a
/// program that is being executed before the kernel finds that it must not.
const WANTED: &[InitFlags] = &[
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_DONT_MASK,
    // Pages are ours to invalidate: nobody else changes a file that the kernel caches.
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_SETXATTR_EXT,
];
/// Without these the file system would be wrong or much too slow.
const NEEDED: InitFlags = InitFlags::FUSE_POSIX_LOCKS
    .union(InitFlags::FUSE_FLOCK_LOCKS)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2);

/// The front end as fuser sees it.
#[derive(Debug)]
pub(super) struct Front {
    connection: Arc<Connection>,
}

impl Front {
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        Self { connection: Arc::clone(connection) }
    }

    /// Answers with an entry.
    fn entry(&self, operation: &'static str, reply: ReplyEntry) -> Done<Attr> {
        let connection = Arc::clone(&self.connection);
        Box::new(move |result| match result {
            Ok(attr) => {
                let validity = &connection.validity;
                let (attributes, entry) = (validity.attributes(&attr), validity.entry());
                reply.entry_with_ttls(&attributes, &entry, &fuser_attributes(&attr), Generation(0));
            }
            Err(refusal) => reply.error(errno(operation, &refusal)),
        })
    }

    fn create(
        &self,
        who: Credentials,
        parent: INodeNo,
        name: &OsStr,
        what: Created,
        mode: u32,
        reply: ReplyEntry,
    ) {
        let Some(name) = checked(name) else { return reply.error(Errno::ENAMETOOLONG) };
        let done = self.entry("create", reply);
        self.connection.service.create(who, Ino(parent.0), name, what, mode & 0o7777, done);
    }
}

fn errno(operation: &'static str, refusal: &Refusal) -> Errno {
    Errno::from_i32(errno_of(operation, refusal))
}

/// Answers with success or failure.
fn empty(operation: &'static str, reply: ReplyEmpty) -> Done<()> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(refusal) => reply.error(errno(operation, &refusal)),
    })
}

/// Answers with a value for a buffer of `room` bytes, or its length if `room` is zero.
fn value(operation: &'static str, room: u32, reply: ReplyXattr) -> Done<Vec<u8>> {
    Box::new(move |result| match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if room == 0 => reply.size(len),
            Ok(len) if len <= room => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
        Err(refusal) => reply.error(errno(operation, &refusal)),
    })
}

/// A name's bytes if it is not too long.
fn checked(name: &OsStr) -> Option<&[u8]> {
    let name = name.as_bytes();
    (name.len() <= NAME_MAX).then_some(name)
}

fn credentials(request: &Request, umask: u32) -> Credentials {
    Credentials { uid: request.uid(), gid: request.gid(), umask }
}

impl Filesystem for Front {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let has = config.capabilities();
        if !has.contains(NEEDED) {
            let lacks: Vec<_> = (NEEDED & !has).iter_names().map(|(name, _)| name).collect();
            let text = format!("this kernel's FUSE lacks {}; Linux 6.1 or newer is needed", lacks.join(", "));
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let wanted = WANTED.iter().copied().fold(InitFlags::empty(), InitFlags::union);
        let wanted = (wanted | self.connection.wanted()) & has;
        let refused = |value: &str| io::Error::other(format!("fuser refuses {value}"));
        config.add_capabilities(wanted).map_err(|flags| refused(&format!("{flags:?}")))?;
        let write_max = u32::try_from(WRITE_MAX).map_err(io::Error::other)?;
        config.set_max_write(write_max).map_err(|_| refused("max_write"))?;
        config.set_max_background(BACKGROUND_MAX).map_err(|_| refused("max_background"))?;
        config.set_congestion_threshold(CONGESTED_AT).map_err(|_| refused("congestion_threshold"))?;
        self.connection.agreed(wanted);
        Ok(())
    }

    /// Only what the dispatcher leaves: the names of a file handle that outlived the kernel's memory of it (NFS), and
    /// names that are too long.
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = checked(name) else { return reply.error(Errno::ENAMETOOLONG) };
        let (service, done) = (&self.connection.service, self.entry("lookup", reply));
        match name {
            b"." => service.get_attr(Ino(parent.0), done),
            b".." => service.parent(Ino(parent.0), done),
            name => service.lookup(Ino(parent.0), name, done),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let done: Done<Vec<u8>> = Box::new(move |result| match result {
            Ok(target) => reply.data(&target),
            Err(refusal) => reply.error(errno("readlink", &refusal)),
        });
        self.connection.service.read_link(Ino(ino.0), done);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let what = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Created::File,
            libc::S_IFIFO => Created::Fifo,
            libc::S_IFSOCK => Created::Socket,
            libc::S_IFCHR => Created::CharDevice(rdev),
            libc::S_IFBLK => Created::BlockDevice(rdev),
            _ => return reply.error(Errno::EINVAL),
        };
        self.create(credentials(request, umask), parent, name, what, mode, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.create(credentials(request, umask), parent, name, Created::Directory, mode, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        if target.len() > SYMLINK_MAX {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let what = Created::Symlink(target.to_vec());
        self.create(credentials(request, 0), parent, name, what, 0o777, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some(name) = checked(name) else { return reply.error(Errno::ENAMETOOLONG) };
        self.connection.service.unlink(Ino(parent.0), name, empty("unlink", reply));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some(name) = checked(name) else { return reply.error(Errno::ENAMETOOLONG) };
        self.connection.service.remove_directory(Ino(parent.0), name, empty("rmdir", reply));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (Some(name), Some(new_name)) = (checked(name), checked(new_name)) else {
            return reply.error(Errno::ENAMETOOLONG);
        };
        let mode = match flags.bits() {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let done = empty("rename", reply);
        self.connection.service.rename(Ino(parent.0), name, Ino(new_parent.0), new_name, mode, done);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = checked(name) else { return reply.error(Errno::ENAMETOOLONG) };
        self.connection.service.link(Ino(ino.0), Ino(parent.0), name, self.entry("link", reply));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mode = OpenMode { read: true, ..OpenMode::default() };
        let done: Done<crate::service::Opened> = Box::new(move |result| match result {
            Ok(opened) => reply.opened(FileHandle(opened.handle.0), FopenFlags::empty()),
            Err(refusal) => reply.error(errno("opendir", &refusal)),
        });
        self.connection.service.open(Ino(ino.0), mode, done);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        after: u64,
        reply: ReplyDirectory,
    ) {
        directory::read(&self.connection, Ino(ino.0), after, reply);
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        after: u64,
        reply: ReplyDirectoryPlus,
    ) {
        directory::read(&self.connection, Ino(ino.0), after, reply);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.connection.service.release(HandleId(handle.0));
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let (service, done) = (&self.connection.service, empty("fsync", reply));
        if data_only {
            service.sync_data(HandleId(handle.0), done);
        } else {
            service.sync(HandleId(handle.0), done);
        }
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.connection.service.sync(HandleId(handle.0), empty("fsyncdir", reply));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let done: Done<crate::types::SpaceReport> = Box::new(move |result| match result {
            Ok(space) => {
                // Inodes are made as they are needed, and take less than a block each: an estimate.
                let inodes = space.inodes.saturating_add(space.free);
                reply.statfs(
                    space.blocks,
                    space.free,
                    space.free,
                    inodes,
                    space.free,
                    BLOCK_SIZE,
                    NAME_LEN,
                    BLOCK_SIZE,
                );
            }
            Err(refusal) => reply.error(errno("statfs", &refusal)),
        });
        self.connection.service.space(done);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        let done = value("getxattr", room, reply);
        self.connection.service.get_xattr(Ino(ino.0), name.as_bytes(), done);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, room: u32, reply: ReplyXattr) {
        self.connection.service.list_xattr(Ino(ino.0), value("listxattr", room, reply));
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.connection.service.remove_xattr(Ino(ino.0), name.as_bytes(), empty("removexattr", reply));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let how = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Allocation::Allocate,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocation::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocation::Zero,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let done = empty("fallocate", reply);
        self.connection.service.allocate(HandleId(handle.0), offset, len, how, keep_size, done);
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let done: Done<u64> = Box::new(move |result| match result {
            Ok(found) => match i64::try_from(found) {
                Ok(found) => reply.offset(found),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            // lseek(2) has one word for "none after here" and "beyond the end".
            Err(Refusal::NoData | Refusal::BeyondEnd) => reply.error(Errno::ENXIO),
            Err(refusal) => reply.error(errno("lseek", &refusal)),
        });
        self.connection.service.seek(HandleId(handle.0), offset, what, done);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        // This form's answer has 32 bits; whole blocks, so that they can go on being shared.
        let len = len.min(u64::from(u32::MAX) / BLOCK * BLOCK);
        let done: Done<u64> = Box::new(move |result| match result {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(refusal) => reply.error(errno("copy_file_range", &refusal)),
        });
        self.connection.service.copy_range(
            HandleId(from.0),
            from_offset,
            HandleId(to.0),
            to_offset,
            len,
            done,
        );
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
