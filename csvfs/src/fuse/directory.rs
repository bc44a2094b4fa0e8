//! Reading a directory: `.` and `..`, then the entries of the file system, until the kernel's buffer is full.
//!
//! The position after `.` is 1 and that after `..` is 2; the file system's own positions follow, two higher. fuser
//! does not tell how large the kernel's buffer is (it refuses the entry that does not fit), so that a fixed amount is
//! asked for: what a reader of 32 KiB, the C library's buffer, takes at once.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::attributes::{file_type, fuser_attributes};
use super::connection::Connection;
use super::reply::errno_of;
use crate::refusal::Refusal;
use crate::types::{Attr, DirEntry, Ino};

/// Entries are asked for in parts of about this many bytes.
const BUDGET: u32 = 32 << 10;
/// The positions that `.` and `..` take.
const DOTS: u64 = 2;

/// Attributes of a directory of which only the number matters: the kernel does not look at those of `.` and `..`.
pub(super) fn no_attributes(ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A reply that entries are added to.
pub(super) trait Listing: Send + 'static {
    /// Whether entries come with their attributes.
    const ATTRIBUTES: bool;

    /// Adds `.` or `..`; whether it did not fit.
    fn add_dots(&mut self, ino: Ino, position: u64, name: &str) -> bool;

    /// Adds an entry; whether it did not fit.
    fn add(&mut self, entry: &DirEntry, position: u64, connection: &Connection) -> Result<bool, Refusal>;

    /// Answers with what was added.
    fn send(self);

    /// Answers with an error.
    fn fail(self, errno: Errno);
}

impl Listing for ReplyDirectory {
    const ATTRIBUTES: bool = false;

    fn add_dots(&mut self, ino: Ino, position: u64, name: &str) -> bool {
        ReplyDirectory::add(self, INodeNo(ino.0), position, FileType::Directory, name)
    }

    fn add(&mut self, entry: &DirEntry, position: u64, _connection: &Connection) -> Result<bool, Refusal> {
        let name = OsStr::from_bytes(&entry.name);
        Ok(ReplyDirectory::add(self, INodeNo(entry.ino.0), position, file_type(entry.kind), name))
    }

    fn send(self) {
        self.ok();
    }

    fn fail(self, errno: Errno) {
        self.error(errno);
    }
}

impl Listing for ReplyDirectoryPlus {
    const ATTRIBUTES: bool = true;

    fn add_dots(&mut self, ino: Ino, position: u64, name: &str) -> bool {
        let ino = INodeNo(ino.0);
        ReplyDirectoryPlus::add(
            self,
            ino,
            position,
            name,
            &Duration::ZERO,
            &no_attributes(ino),
            Generation(0),
        )
    }

    fn add(&mut self, entry: &DirEntry, position: u64, connection: &Connection) -> Result<bool, Refusal> {
        let Some(attr) = &entry.attr else {
            return Err(Refusal::Io(format!("the entry of {} came without its attributes", entry.ino)));
        };
        // fuser has one time for the name and the attributes: the shorter one.
        let valid = connection.validity.attributes(attr).min(connection.validity.entry());
        let name = OsStr::from_bytes(&entry.name);
        let ino = INodeNo(entry.ino.0);
        let attributes = fuser_attributes(attr);
        Ok(ReplyDirectoryPlus::add(self, ino, position, name, &valid, &attributes, Generation(0)))
    }

    fn send(self) {
        self.ok();
    }

    fn fail(self, errno: Errno) {
        self.error(errno);
    }
}

fn fail<L: Listing>(reply: L, refusal: &Refusal) {
    reply.fail(Errno::from_i32(errno_of("readdir", refusal)));
}

/// Answers with the entries of `ino` after position `after`.
pub(super) fn read<L: Listing>(connection: &Arc<Connection>, ino: Ino, after: u64, reply: L) {
    if after >= DOTS {
        return read_entries(connection, ino, after - DOTS, reply, false);
    }
    if ino == Ino::ROOT {
        return read_from_dots(connection, ino, ino, after, reply);
    }
    let held = Arc::clone(connection);
    let done = move |result: Result<Attr, Refusal>| match result {
        Ok(parent) => read_from_dots(&held, ino, parent.ino, after, reply),
        // A directory that is unlinked but still open has no parent and no entries; `..` still has to be something.
        Err(Refusal::NotFound) => read_from_dots(&held, ino, ino, after, reply),
        Err(refusal) => fail(reply, &refusal),
    };
    connection.service.parent(ino, Box::new(done));
}

fn read_from_dots<L: Listing>(connection: &Arc<Connection>, ino: Ino, parent: Ino, after: u64, mut reply: L) {
    if (after == 0 && reply.add_dots(ino, 1, ".")) || reply.add_dots(parent, 2, "..") {
        return reply.send();
    }
    read_entries(connection, ino, 0, reply, true);
}

fn read_entries<L: Listing>(connection: &Arc<Connection>, ino: Ino, after: u64, mut reply: L, started: bool) {
    let held = Arc::clone(connection);
    let done = move |result: Result<(Vec<DirEntry>, bool), Refusal>| {
        let (entries, end) = match result {
            Ok(part) => part,
            Err(refusal) => return fail(reply, &refusal),
        };
        if entries.is_empty() && !end && !started {
            let refusal = Refusal::Io(format!("directory {ino} has more entries but does not give them"));
            return fail(reply, &refusal);
        }
        for entry in &entries {
            let Some(position) = entry.cookie.checked_add(DOTS) else {
                return fail(reply, &Refusal::Io(format!("position {} of {ino} is too large", entry.cookie)));
            };
            match reply.add(entry, position, &held) {
                Ok(false) => {}
                Ok(true) => break,
                Err(refusal) => return fail(reply, &refusal),
            }
        }
        reply.send();
    };
    connection.service.read_directory(ino, after, BUDGET, L::ATTRIBUTES, Box::new(done));
}
