//! What a front end asks of the node.
//!
//! Every method returns at once or after a bounded submission wait, and its `done` is called exactly once, on any
//! thread, possibly before the method returns. `done` must not block.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use redirector::buffer::{Buffer, Slice};

use crate::proto::{Allocation, Created, RenameMode, SetAttr, XattrMode};
use crate::refusal::Refusal;
use crate::types::{Attr, DirEntry, Ino, SpaceReport, Timestamp};

/// What is called with the result.
pub type Done<T> = Box<dyn FnOnce(Result<T, Refusal>) + Send>;

/// An open file or directory of this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HandleId(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenMode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Past the page cache (O_DIRECT).
    pub direct: bool,
    /// Set-id bits are cleared by an opening that truncates (the kernel says so).
    pub clear_set_id: bool,
    /// The size becomes zero (O_TRUNC).
    pub truncate: bool,
    /// Only if the name is new (O_EXCL).
    pub exclusive: bool,
    /// The process that opens it; 0 if that is not known.
    pub pid: u32,
}

/// An opened file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The handle for the calls that follow.
    pub handle: HandleId,
    /// The attributes at that moment.
    pub attr: Attr,
    /// The kernel keeps no pages of this file for this open, however it was asked for: other nodes may change it.
    pub direct: bool,
    /// Whether the kernel may keep the pages that it has of this file from earlier: nothing else changed it.
    pub keep_cache: bool,
}

/// The person a request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The permission bits that new inodes do not get.
    pub umask: u32,
}

/// The data of a read: consecutive pieces. Fewer bytes than asked for mean the end of the file.
#[derive(Debug, Default)]
pub struct ReadData {
    /// In order; a piece may be shorter than its buffer's class, never empty.
    pub pieces: Vec<Piece>,
}

/// One piece of a read.
#[derive(Debug)]
pub enum Piece {
    /// The bytes `skip..skip + len` of a buffer.
    Bytes {
        /// Where they are.
        buffer: Buffer,
        /// Bytes to leave out at the start.
        skip: usize,
        /// How many.
        len: usize,
    },
    /// So many zeros: a hole.
    Zeros(usize),
}

/// How a write is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteMode {
    /// At the end of the file, wherever that is now (O_APPEND); the offset is ignored.
    pub append: bool,
    /// Set-id bits are cleared.
    pub clear_set_id: bool,
    /// Durable when done (O_SYNC, O_DSYNC).
    pub sync: bool,
    /// Written back by the kernel's page cache (a shared mapping), not by a caller's write.
    pub from_cache: bool,
}

/// What lseek looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// Data (SEEK_DATA).
    Data,
    /// A hole (SEEK_HOLE).
    Hole,
}

/// The pages that a front end's kernel keeps of open files.
pub trait Pages: Send + Sync + Debug {
    /// Has the kernel write back what programs have changed in its pages of a range of bytes, and drop the pages; then
    /// calls `then`, on a thread of its own. Returns at once. What is written back comes as any write, and is waited for.
    fn drop_range(&self, ino: Ino, bytes: Range<u64>, then: Box<dyn FnOnce() + Send>);

    /// Has the kernel forget the attributes of an inode, or of all, that it was told it may keep for a moment because they
    /// [`stay`](FileService::stays); then calls `then`. That they do not stay must hold before this is called.
    fn drop_attributes(&self, _ino: Option<Ino>, then: Box<dyn FnOnce() + Send>) {
        then();
    }
}

/// The file system as a front end sees it. Offsets and lengths are in bytes.
pub trait FileService: Send + Sync + Debug {
    /// The attributes of a name.
    fn lookup(&self, parent: Ino, name: &[u8], done: Done<Attr>);
    /// The attributes of an inode, as its owner knows them.
    fn get_attr(&self, ino: Ino, done: Done<Attr>);
    /// Whether these are the attributes of their inode, and stay so until [`Pages::drop_attributes`] has been called and
    /// has called back. Asked where other nodes use the volume, too.
    fn stays(&self, _attr: &Attr) -> bool {
        false
    }
    /// Changes attributes and, with `size`, the size.
    fn set_attr(&self, ino: Ino, set: SetAttr, size: Option<u64>, done: Done<Attr>);
    /// A new inode.
    fn create(&self, who: Credentials, parent: Ino, name: &[u8], what: Created, mode: u32, done: Done<Attr>);
    /// A new file, opened; if the name exists, that file is opened, but with `open.exclusive` it is refused.
    fn create_open(
        &self,
        who: Credentials,
        parent: Ino,
        name: &[u8],
        mode: u32,
        open: OpenMode,
        done: Done<Opened>,
    );
    /// A new file without a name, opened (O_TMPFILE).
    fn create_unnamed(&self, who: Credentials, parent: Ino, mode: u32, open: OpenMode, done: Done<Opened>);
    /// A further name.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], done: Done<Attr>);
    /// Takes a name away.
    fn unlink(&self, parent: Ino, name: &[u8], done: Done<()>);
    /// Takes an empty directory away.
    fn remove_directory(&self, parent: Ino, name: &[u8], done: Done<()>);
    /// Renames.
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
        done: Done<()>,
    );
    /// A symbolic link's target.
    fn read_link(&self, ino: Ino, done: Done<Vec<u8>>);
    /// Entries of a directory after `after`, about `budget` bytes of them, and whether they are the last.
    fn read_directory(
        &self,
        ino: Ino,
        after: u64,
        budget: u32,
        attributes: bool,
        done: Done<(Vec<DirEntry>, bool)>,
    );
    /// The parent of a directory (`..`).
    fn parent(&self, ino: Ino, done: Done<Attr>);
    /// An extended attribute.
    fn get_xattr(&self, ino: Ino, name: &[u8], done: Done<Vec<u8>>);
    /// The names of all extended attributes, each followed by NUL.
    fn list_xattr(&self, ino: Ino, done: Done<Vec<u8>>);
    /// Sets an extended attribute.
    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        clear_sgid: bool,
        done: Done<()>,
    );
    /// Removes an extended attribute.
    fn remove_xattr(&self, ino: Ino, name: &[u8], done: Done<()>);
    /// Space and inodes.
    fn space(&self, done: Done<SpaceReport>);
    /// Opens a file, or (for reading) a directory.
    fn open(&self, ino: Ino, mode: OpenMode, done: Done<Opened>);
    /// Closes a handle. Never fails; what was not synced is committed in the background.
    fn release(&self, handle: HandleId);
    /// Reads. Fewer bytes than `len` only at the end of the file.
    fn read(&self, handle: HandleId, offset: u64, len: u32, done: Done<ReadData>);
    /// Writes all of `data`; tells the offset at which it went (that of the end for an append).
    fn write(&self, handle: HandleId, offset: u64, data: Slice, mode: WriteMode, done: Done<u64>);
    /// Makes what was written through any handle of this file durable, with its metadata.
    fn sync(&self, handle: HandleId, done: Done<()>);
    /// As `sync`, but times may stay behind (fdatasync).
    fn sync_data(&self, handle: HandleId, done: Done<()>) {
        self.sync(handle, done);
    }
    /// Makes everything that was written or changed through this node durable (syncfs).
    fn sync_all(&self, done: Done<()>);
    /// Allocates, punches or zeroes a range; `keep_size` as FALLOC_FL_KEEP_SIZE.
    fn allocate(
        &self,
        handle: HandleId,
        offset: u64,
        len: u64,
        how: Allocation,
        keep_size: bool,
        done: Done<()>,
    );
    /// Finds the next data or hole from `offset` on.
    fn seek(&self, handle: HandleId, offset: u64, what: Seek, done: Done<u64>);
    /// Copies a range, by sharing blocks where it can; tells how many bytes were copied.
    fn copy_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
        done: Done<u64>,
    );
    /// The front end has a page cache that opens may use also where other nodes use the volume: it drops pages when told.
    fn has_pages(&self, _pages: Arc<dyn Pages>) {}
    /// Now, as time stamps of this node have it.
    fn now(&self) -> Timestamp;
}
