//! What a node asks of the coordinator.

use bincode::{Decode, Encode};
use lockd::ids::Epoch;
use lockd::machine::Cookie;

use super::Owned;
use crate::types::{FileBlock, Ino, LunBlock, Run, Timestamp};

/// What a new inode is.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Created {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device (the kernel's 32-bit device number).
    CharDevice(u32),
    /// A block device (the kernel's 32-bit device number).
    BlockDevice(u32),
}

/// Changes of attributes; what is `None` stays. Size has its own operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct SetAttr {
    /// New permission bits (12 bits). An access ACL's mask follows.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New time of last read.
    pub atime: Option<Timestamp>,
    /// New time of last change.
    pub mtime: Option<Timestamp>,
    /// New change time of the inode; `now` of the operation if not given.
    pub ctime: Option<Timestamp>,
    /// Clear set-user-id, and set-group-id where the group may execute, as a write or a change of owner does.
    pub clear_set_id: bool,
}

/// How rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Refuses (RENAME_NOREPLACE).
    NoReplace,
    /// Swaps the two (RENAME_EXCHANGE).
    Exchange,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum XattrMode {
    /// Created or replaced.
    Set,
    /// Created only (XATTR_CREATE).
    Create,
    /// Replaced only (XATTR_REPLACE).
    Replace,
}

/// What fallocate does to whole blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Allocation {
    /// Holes get blocks, unwritten.
    Allocate,
    /// The blocks are given back: a hole.
    Punch,
    /// The range has blocks and reads as zeros: existing ones become unwritten, shared ones are replaced.
    Zero,
}

/// Data that a node has written and flushed, and where: to be made readable (V5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WrittenRun {
    /// The first file block.
    pub file: FileBlock,
    /// Where the data is: an unwritten extent of the file at this place, or blocks of the client's reserve.
    pub lun: LunBlock,
    /// How many blocks.
    pub len: u64,
}

/// A file that a client opens, or holds open and declares anew when it attaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Declared {
    /// The inode.
    pub ino: Ino,
    /// Open for writing.
    pub write: bool,
    /// As its owner the client serves it, for a coordinator that does not know that.
    pub served: Option<Served>,
}

/// By which right, and in which term, a client serves a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Served {
    /// The epoch of its ownership.
    pub epoch: Epoch,
    /// The term.
    pub tenure: u64,
    /// The first term from which on each has handed over to the next.
    pub since: u64,
}

/// What is handed on of a file from one coordinator's node to the next: all of its data is committed. Of one that has an
/// owner it holds only if that one does not serve it yet.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Kept {
    /// The file.
    pub ino: Ino,
    /// It had an owner when this was written.
    pub owned: bool,
    /// As in [`Served`].
    pub since: u64,
    /// The slots of its remote users.
    pub slots: Vec<u8>,
}

/// What the coordinator's node hands on when that coordinator ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bequest {
    /// The epoch of the store's opening by that coordinator. It holds only for who opens the store next: another one that has
    /// had it open may have served the files, so that with it was lost what is not committed (P9).
    pub left: Epoch,
    /// The files.
    pub kept: Vec<Kept>,
}

/// How a client wants to own files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Claim {
    /// Only if nobody else has them open for writing, and their server has no use for them.
    pub automatic: bool,
    /// They stay until they are released explicitly.
    pub pinned: bool,
    /// Their server has offered them under this cookie: all of them, or none.
    pub offer: Option<Cookie>,
}

/// The slots of a file's remote users, encoded.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct FileSlots {
    /// Of which file.
    pub ino: Ino,
    /// See [`Operation::Close`].
    pub slots: Vec<u8>,
}

/// One file's part of [`Operation::CommitSet`]: the fields of [`Operation::Commit`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CommitPart {
    /// Which file.
    pub file: Owned,
    /// What has been written and flushed.
    pub written: Vec<WrittenRun>,
    /// The new size, if the file grew.
    pub size: Option<u64>,
    /// Time of the last write, if it has changed.
    pub mtime: Option<Timestamp>,
    /// Time of the last read, if it has changed.
    pub atime: Option<Timestamp>,
    /// A write takes set-id bits away.
    pub clear_set_id: bool,
    /// When the file was changed.
    pub now: Timestamp,
}

#[expect(missing_docs, reason = "the fields are described with their operation")]
/// An operation on the volume's metadata. Names are bytes without `/` and NUL, never `.` or `..`, and not empty.
/// `now` is the asking node's civil time.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Operation {
    // Questions: no slot, answered from the last committed state.
    /// The attributes of a name. Answer: `Entry`.
    Lookup { parent: Ino, name: Vec<u8> },
    /// The attributes of an inode. Answer: `Entry`.
    GetAttr { ino: Ino },
    /// Entries after cookie `after` (0: from the start), at most `budget` bytes of names and attributes. `.` and `..`
    /// are not among them. Answer: `Directory`.
    ReadDirectory { ino: Ino, after: u64, budget: u32, attributes: bool },
    /// The parent of a directory. Answer: `Entry`.
    Parent { ino: Ino },
    /// A symbolic link's target. Answer: `Bytes`.
    ReadLink { ino: Ino },
    /// An extended attribute's value. Answer: `Bytes`.
    GetXattr { ino: Ino, name: Vec<u8> },
    /// All names, each followed by NUL. Answer: `Bytes`.
    ListXattr { ino: Ino },
    /// Extents from file block `from` on, at most `limit`. Answer: `Layout`.
    Layout { ino: Ino, from: FileBlock, limit: u32 },
    /// Answer: `Space`.
    Space,

    // Changes: in a slot, executed once.
    /// A new name for a new inode. `umask` is applied, or the parent's default ACL. If the name exists, is a file and
    /// `exclusive` is not set, the answer is that file. With `open` the client also holds it open. Answer: `Entry`.
    Create {
        parent: Ino,
        name: Vec<u8>,
        what: Created,
        mode: u32,
        umask: u32,
        uid: u32,
        gid: u32,
        exclusive: bool,
        open: bool,
        now: Timestamp,
    },
    /// A new file without a name, held open by the client (O_TMPFILE). Answer: `Entry`.
    CreateUnnamed { parent: Ino, mode: u32, umask: u32, uid: u32, gid: u32, now: Timestamp },
    /// A further name. Answer: `Entry`.
    Link { ino: Ino, parent: Ino, name: Vec<u8>, now: Timestamp },
    /// Takes away a name that is not a directory's. Answer: `Removed`.
    Unlink { parent: Ino, name: Vec<u8>, now: Timestamp },
    /// Takes away an empty directory. Answer: `Removed`.
    RemoveDirectory { parent: Ino, name: Vec<u8>, now: Timestamp },
    /// Answer: `Removed` with the inode that lost its name, or `Done`.
    Rename {
        parent: Ino,
        name: Vec<u8>,
        new_parent: Ino,
        new_name: Vec<u8>,
        mode: RenameMode,
        now: Timestamp,
    },
    /// Answer: `Entry`.
    SetAttr { ino: Ino, set: SetAttr, now: Timestamp },
    /// `clear_sgid`: setting an access ACL by a caller outside the group takes away set-group-id. Answer: `Done`.
    SetXattr { ino: Ino, name: Vec<u8>, value: Vec<u8>, mode: XattrMode, clear_sgid: bool, now: Timestamp },
    /// Answer: `Done`.
    RemoveXattr { ino: Ino, name: Vec<u8>, now: Timestamp },
    /// The client holds the inode open, for writing or not: it outlives its last name. May be repeated, to change
    /// `write`. Answer: `Opened`.
    Open { ino: Ino, write: bool },
    /// The client's last handles of these are closed. Whoever served a file has committed it, and hands over the `slots`
    /// of its remote users. Answer: `Done`.
    Close { files: Vec<FileSlots> },
    /// The client is here and can be called back. Leases that it had are over, and what it holds open is this, in several
    /// parts if it is much; `kept` is what a coordinator's node hands on that has left the store in the epoch `left`
    /// ([`Bequest`]). The last part is answered when everybody who
    /// may have been leased something by an earlier coordinator has done the same, or is over (V9). Answer: `Done`.
    Attach { first: bool, last: bool, open: Vec<Declared>, left: Epoch, kept: Vec<Kept> },
    /// Who serves a file that somebody holds open; answered when it is not on its way from one server to another.
    /// Answer: `Opened`.
    Serving { ino: Ino },
    /// As many openings. Answer: `OpenedSet`, of the first of them: as many as fit into a message, and at least one. Those
    /// behind are asked for again.
    OpenSet { files: Vec<Declared> },
    /// The client wants to own files that it holds open, or a part of them: those that one server has. Answer: `Moved`.
    Acquire { files: Vec<Ino>, claim: Claim },
    /// Files are to be nobody's: who owns them gives them back, or a part of them: those that one server has. Answer:
    /// `Moved`.
    Release { files: Vec<Ino> },
    /// The slots of remote users that go with files on their way, before the server's answer that is too long with them.
    /// Answer: `Done`.
    HandSlots { journey: u64, slots: Vec<FileSlots> },
    /// Data has been written and flushed (V5). `size` is the new size if the file grew, `mtime` and `atime` what
    /// changed; `clear_set_id` as in [`SetAttr`]. Answer: `Version` of the layout.
    Commit {
        file: Owned,
        written: Vec<WrittenRun>,
        size: Option<u64>,
        mtime: Option<Timestamp>,
        atime: Option<Timestamp>,
        clear_set_id: bool,
        now: Timestamp,
    },
    /// Seals a file, or unseals it. Its server has stopped, drained and committed it. It is unsealed when every node that
    /// reads it directly has returned its layout (V8). Answer: `Entry`.
    Seal { file: Owned, seal: bool, now: Timestamp },
    /// Several commits, of different files: all or none of them. Answer: `Versions`.
    CommitSet { parts: Vec<CommitPart> },
    /// Sets the size; blocks wholly beyond it are freed. The owner has stopped and drained the file (V8), and zeroed
    /// what becomes readable. Answer: `Entry`.
    Truncate { file: Owned, size: u64, clear_set_id: bool, now: Timestamp },
    /// Whole blocks `from..to` are allocated, punched or zeroed; `size` is the new size if it grows. Answer: `Version`.
    Allocate {
        file: Owned,
        from: FileBlock,
        to: FileBlock,
        how: Allocation,
        size: Option<u64>,
        now: Timestamp,
    },
    /// `len` blocks of `source` from `from` on become those of `target` from `to` on, shared (reflink). `size` is the
    /// target's new size if it grows. Both are stopped and drained by their owner. Answer: `Version` of the target.
    Clone {
        source: Owned,
        from: FileBlock,
        target: Owned,
        to: FileBlock,
        len: u64,
        size: Option<u64>,
        now: Timestamp,
    },
    /// Blocks for the client's reserve: as many as `want` or fewer, in few runs (V6). Answer: `Runs`.
    Reserve { want: u64 },
    /// Blocks of the client's reserve that it gives back, unused. Answer: `Done`.
    Return { runs: Vec<Run> },
    /// Blocks of the client's reserve under a ghost (P6): kept out of use. Answer: `Done`.
    Quarantine { runs: Vec<Run> },
}

impl Operation {
    /// Whether the operation changes the volume: it then comes in a slot and is executed once.
    #[must_use]
    pub fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Lookup { .. }
                | Self::GetAttr { .. }
                | Self::ReadDirectory { .. }
                | Self::Parent { .. }
                | Self::ReadLink { .. }
                | Self::GetXattr { .. }
                | Self::ListXattr { .. }
                | Self::Layout { .. }
                | Self::Space
                | Self::Serving { .. }
        )
    }
}
