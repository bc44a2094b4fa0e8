//! What the coordinator answers.

use bincode::{Decode, Encode};

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

/// The answer to an operation that was not refused.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// An inode's attributes.
    Entry(Attr),
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
