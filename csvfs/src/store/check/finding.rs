//! What a check can find, as data; its `Display` explains it in words.

use std::fmt;

use crate::types::{FileBlock, Ino, Kind, Run};

/// Where blocks are, apart from files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// Free.
    Free,
    /// A client's reserve.
    Reserve,
    /// Freed, not yet to be used.
    Pending,
    /// Under a ghost.
    Quarantine,
    /// The metadata area.
    Metadata,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "the free blocks",
            Self::Reserve => "a client's reserve",
            Self::Pending => "the blocks waiting to be freed",
            Self::Quarantine => "the quarantine",
            Self::Metadata => "the metadata area",
        })
    }
}

/// A number of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Count {
    /// The next inode's number.
    NextIno,
    /// Inodes.
    Inodes,
    /// Orphans.
    Orphans,
    /// Blocks of the data region.
    Total,
    /// Blocks in one of the places.
    Blocks(Place),
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NextIno => f.write_str("the next inode's number"),
            Self::Inodes => f.write_str("the number of inodes"),
            Self::Orphans => f.write_str("the number of inodes without a name"),
            Self::Total => f.write_str("the number of blocks"),
            Self::Blocks(place) => write!(f, "the number of blocks of {place}"),
        }
    }
}

/// What is wrong with a directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EntryFault {
    /// The record cannot be read.
    Unreadable,
    /// The directory does not exist.
    NoDirectory,
    /// The inode does not exist.
    NoInode,
    /// The inode is of another type.
    OtherKind(Kind),
    /// The name cannot be one.
    BadName,
    /// The name is not where it is looked for.
    Misplaced,
    /// The directory has the name twice.
    Twice,
    /// The directory that it names has another name already, or is the root.
    SecondName,
    /// The directory that it names says that it lies elsewhere.
    OtherParent(Ino),
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("cannot be read"),
            Self::NoDirectory => f.write_str("is in a directory that does not exist"),
            Self::NoInode => f.write_str("names an inode that does not exist"),
            Self::OtherKind(kind) => write!(f, "has the wrong type; the inode is a {}", word(*kind)),
            Self::BadName => f.write_str("has a name that cannot be one"),
            Self::Misplaced => f.write_str("cannot be found by its name"),
            Self::Twice => f.write_str("has a name that the directory has already"),
            Self::SecondName => f.write_str("is a second name of a directory"),
            Self::OtherParent(parent) => write!(f, "names a directory whose \"..\" is {parent}"),
        }
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "regular file",
        Kind::Directory => "directory",
        Kind::Symlink => "symbolic link",
        Kind::Fifo => "named pipe",
        Kind::Socket => "socket",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
    }
}

/// What is wrong with an extent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExtentFault {
    /// It belongs to no regular file.
    NoFile,
    /// It overlaps the one before it.
    Overlap,
    /// It is empty, or longer than a file.
    BadLength,
    /// It is not within the data region.
    Outside,
    /// It lies on blocks of the metadata area.
    OnMetadata,
    /// Its blocks have further references, and it is not marked so.
    Unmarked,
}

impl fmt::Display for ExtentFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoFile => "belongs to no regular file",
            Self::Overlap => "overlaps the extent before it",
            Self::BadLength => "has an impossible length",
            Self::Outside => "is outside of the blocks for data",
            Self::OnMetadata => "lies on blocks of the metadata area",
            Self::Unmarked => "is not marked as shared, but its blocks have further references",
        })
    }
}

/// What is wrong with the use of a run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockFault {
    /// Nobody has them.
    Lost,
    /// A file has them, and so has something else.
    UsedAnd(Place, Ino),
    /// Two places have them.
    Twice(Place, Place),
    /// As many extents have them as `found`; `counted` are on record.
    References {
        /// How many extents have them.
        found: u64,
        /// How many are on record.
        counted: u64,
    },
    /// They are not blocks for data.
    Outside(Place),
}

/// Something that contradicts the format or itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// An inode's record cannot be read.
    UnreadableInode(Ino),
    /// The root directory is missing, or no directory.
    NoRoot,
    /// An inode has another number of names than it says.
    Links {
        /// The inode.
        ino: Ino,
        /// What it says.
        says: u32,
        /// What was counted: names, and for directories also `.` and the `..` of subdirectories.
        found: u32,
    },
    /// An inode without a name, that is not on the list of those that wait for their last close.
    Unreachable(Ino),
    /// A directory that cannot be reached from the root though it has a name.
    Ring(Ino),
    /// The list of inodes without a name has one that does not exist or has a name.
    NotAnOrphan(Ino),
    /// An inode occupies another number of blocks than it says.
    Blocks {
        /// The inode.
        ino: Ino,
        /// What it says.
        says: u64,
        /// What its extents have.
        found: u64,
    },
    /// A directory entry.
    Entry {
        /// The directory.
        parent: Ino,
        /// The position in it.
        cookie: u64,
        /// The name, as far as it can be shown.
        name: String,
        /// The inode that it names, if it can be read.
        ino: Option<Ino>,
        /// What is wrong.
        fault: EntryFault,
    },
    /// An extent.
    Extent {
        /// The file.
        ino: Ino,
        /// The first file block.
        file: FileBlock,
        /// The blocks on the LUN.
        run: Run,
        /// What is wrong.
        fault: ExtentFault,
    },
    /// Blocks of the data region.
    Space {
        /// Which.
        run: Run,
        /// What is wrong.
        fault: BlockFault,
    },
    /// An extended attribute of an inode that does not exist, or an unreadable access control list.
    Xattr {
        /// The inode.
        ino: Ino,
        /// The attribute's name.
        name: Vec<u8>,
        /// Whether the inode exists.
        exists: bool,
    },
    /// An inode says wrongly whether it has extended attributes or access control lists.
    XattrFlags {
        /// The inode.
        ino: Ino,
        /// The flags as they should be.
        flags: u32,
    },
    /// Slots or reserves of a client that is not on record.
    UnknownClient(u64),
    /// One of the volume's numbers.
    Number {
        /// Which.
        count: Count,
        /// What it says.
        says: u64,
        /// What was counted.
        found: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnreadableInode(ino) => write!(f, "the record of {ino} cannot be read"),
            Self::NoRoot => f.write_str("the root directory is missing"),
            Self::Links { ino, says, found } => {
                write!(f, "{ino} says that it has {says} links, but it has {found}")
            }
            Self::Unreachable(ino) => write!(f, "{ino} has no name and nobody waits for its last close"),
            Self::Ring(ino) => write!(f, "directory {ino} cannot be reached from the root"),
            Self::NotAnOrphan(ino) => {
                write!(f, "{ino} is listed as waiting for its last close, but has a name or does not exist")
            }
            Self::Blocks { ino, says, found } => {
                write!(f, "{ino} says that it occupies {says} blocks, but its extents have {found}")
            }
            Self::Entry { parent, name, fault, .. } => {
                write!(f, "the name {name:?} in directory {parent} {fault}")
            }
            Self::Extent { ino, file, run, fault } => write!(
                f,
                "the extent of {ino} at block {} (LUN blocks {}..{}) {fault}",
                file.0,
                run.start.0,
                run.start.0.saturating_add(run.len)
            ),
            Self::Space { run, fault } => {
                write!(f, "LUN blocks {}..{} ", run.start.0, run.start.0.saturating_add(run.len))?;
                match fault {
                    BlockFault::Lost => f.write_str("belong to nothing"),
                    BlockFault::UsedAnd(place, ino) => write!(f, "belong to {ino} and also to {place}"),
                    BlockFault::Twice(one, other) => write!(f, "belong to {one} and also to {other}"),
                    BlockFault::References { found, counted } => {
                        write!(f, "are referred to by {found} extents, but {counted} are counted")
                    }
                    BlockFault::Outside(place) => {
                        write!(f, "are listed in {place}, but are outside of the blocks for data")
                    }
                }
            }
            Self::Xattr { ino, name, exists } => {
                let name = String::from_utf8_lossy(name);
                let why = if *exists { "cannot be read" } else { "belongs to an inode that does not exist" };
                write!(f, "the extended attribute {name:?} of {ino} {why}")
            }
            Self::XattrFlags { ino, .. } => {
                write!(f, "{ino} says wrongly whether it has extended attributes or access control lists")
            }
            Self::UnknownClient(client) => {
                write!(f, "client c{client} has reserves or slots but is not on record")
            }
            Self::Number { count, says, found } => {
                write!(f, "{count} is {says} on record, but {found} were found")
            }
        }
    }
}
