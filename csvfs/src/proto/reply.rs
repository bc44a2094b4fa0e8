//! What the coordinator answers.

use bincode::{Decode, Encode};
use lockd::ids::{ClientId, Epoch, SessionId};

use super::{Key, Reply};
use crate::refusal::Refusal;
use crate::types::{Attr, DirEntry, Extent, Ino, Run, SpaceReport};

/// A part of a file's layout.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LayoutPart {
    /// The version of the whole layout: it changes with every change of a mapping.
    pub version: u64,
    /// Extents in order, without overlap.
    pub extents: Vec<Extent>,
    /// Whether these are all up to the end of the file.
    pub complete: bool,
}

/// A term of service of a file: who executes what is done to its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Term {
    /// The session under which the server lives.
    pub session: SessionId,
    /// The server.
    pub client: ClientId,
    /// The number of the term: given out once, rising.
    pub tenure: u64,
    /// The first term from which on each has handed over to the next: nothing that was written in it is lost.
    pub since: u64,
    /// The epoch of the server's ownership; none if nobody owns the file, and the coordinator's node serves it.
    pub owned: Option<Epoch>,
}

/// A file that has been opened.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct OpenedFile {
    /// Its attributes as committed.
    pub attr: Attr,
    /// Who serves it; none while it moves.
    pub term: Option<Term>,
    /// For its server: the slots of its remote users.
    pub slots: Vec<u8>,
}

/// A reply and what goes with it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Answered {
    /// The reply.
    pub reply: Reply,
    /// What the asker may have cached and has to forget (V9).
    pub outdated: Vec<Key>,
    /// The asker has the lease of the name that it asked for, which is there or absent (V9).
    pub leased_name: bool,
    /// The asker has the lease of the attributes in the reply (V9).
    pub leased_attr: bool,
    /// Attributes of directories that the operation has changed, as they are after it; the asker has their leases (V9).
    pub directories: Vec<Attr>,
    /// The asker has the lease of all names of these directories: of a new one, which is empty, and of one whose names it
    /// knew, with what the operation has done to them (V9).
    pub all_names: Vec<Ino>,
}

impl From<Reply> for Answered {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            outdated: Vec::new(),
            leased_name: false,
            leased_attr: false,
            directories: Vec::new(),
            all_names: Vec::new(),
        }
    }
}

/// The answer to an operation that was not refused.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// An inode's attributes.
    Entry(Attr),
    /// An inode's attributes as committed; it is being written, and its server knows better (none while it moves).
    Elsewhere(Attr, Option<Term>),
    /// An inode is open; a new one by its creation.
    Opened {
        /// Its attributes as committed.
        attr: Attr,
        /// Who serves it.
        term: Term,
        /// For its server: the slots of its remote users.
        slots: Vec<u8>,
    },
    /// The first of several openings.
    OpenedSet(Vec<Result<OpenedFile, Refusal>>),
    /// These of the files that were asked for are as they are to be.
    Moved(Vec<Ino>),
    /// The versions of layouts after the operation, in the order of its parts.
    Versions(Vec<u64>),
    /// Entries of a directory, and whether they are the last.
    Directory {
        /// In the order of their cookies.
        entries: Vec<DirEntry>,
        /// Whether the directory ends here.
        end: bool,
    },
    /// A link's target, an attribute's value, a list of names.
    Bytes(Vec<u8>),
    /// A part of a layout.
    Layout(LayoutPart),
    /// Blocks that now belong to the client's reserve.
    Runs(Vec<Run>),
    /// Space and inodes.
    Space(SpaceReport),
    /// The version of a layout after the operation.
    Version(u64),
    /// A name is gone; the inode that had it, and the links it has left.
    Removed {
        /// The inode.
        ino: Ino,
        /// Links left; with zero it lives only as long as it is open.
        nlink: u32,
    },
}
