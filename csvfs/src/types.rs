//! The quantities of a volume, each of its own type.

use std::fmt;
use std::ops::{Add, Range, Sub};

use bincode::{Decode, Encode};

/// The size of a block in bytes: of a file, of the LUN, of the metadata store.
pub const BLOCK: u64 = 4096;
/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// The longest value of an extended attribute, in bytes.
pub const XATTR_VALUE_MAX: usize = 65536;
/// The largest file, in bytes: what a signed 64-bit offset of the kernel's page cache can address, in whole blocks.
pub const FILE_SIZE_MAX: u64 = (1 << 62) - BLOCK;
/// The most links that one inode can have.
pub const LINK_MAX: u32 = 65_000;

/// An inode's number. Never used again, so that it needs no generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {}", self.0)
    }
}

macro_rules! block {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
        pub struct $name(pub u64);

        impl $name {
            /// Where the block starts, in bytes.
            #[must_use]
            pub const fn byte(self) -> u64 {
                self.0 * BLOCK
            }

            /// The block that holds `byte`.
            #[must_use]
            pub const fn holding(byte: u64) -> Self {
                Self(byte / BLOCK)
            }

            /// The first block that starts at or after `byte`.
            #[must_use]
            pub const fn at_or_after(byte: u64) -> Self {
                Self(byte.div_ceil(BLOCK))
            }
        }

        impl Add<u64> for $name {
            type Output = Self;

            fn add(self, blocks: u64) -> Self {
                Self(self.0 + blocks)
            }
        }

        impl Sub for $name {
            type Output = u64;

            fn sub(self, earlier: Self) -> u64 {
                self.0 - earlier.0
            }
        }
    };
}

block!(
    /// A block of a file, counted from its start.
    FileBlock
);
block!(
    /// A block of the LUN, counted from its start.
    LunBlock
);

/// A run of blocks on the LUN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct Run {
    /// The first block.
    pub start: LunBlock,
    /// How many blocks, at least one.
    pub len: u64,
}

impl Run {
    /// The block after the last one.
    #[must_use]
    pub fn end(self) -> LunBlock {
        self.start + self.len
    }

    /// The run as bytes of the LUN.
    #[must_use]
    pub fn bytes(self) -> Range<u64> {
        self.start.byte()..self.end().byte()
    }

    /// Whether the two runs have a block in common.
    #[must_use]
    pub fn overlaps(self, other: Run) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// What the blocks of an extent hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub enum ExtentState {
    /// The file's data.
    Written,
    /// Nothing yet: the blocks belong to the file and read as zeros.
    Unwritten,
}

/// A part of a file's layout: consecutive file blocks on consecutive LUN blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct Extent {
    /// The first file block.
    pub file: FileBlock,
    /// Where it is on the LUN.
    pub lun: LunBlock,
    /// How many blocks, at least one.
    pub len: u64,
    /// Whether the blocks hold data.
    pub state: ExtentState,
    /// Whether other files (or other places of this one) have the same blocks: they are copied on write (V11).
    pub shared: bool,
}

impl Extent {
    /// The file block after the last one.
    #[must_use]
    pub fn end(&self) -> FileBlock {
        self.file + self.len
    }

    /// The blocks on the LUN.
    #[must_use]
    pub fn run(&self) -> Run {
        Run { start: self.lun, len: self.len }
    }
}

/// A time stamp in nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
pub struct Timestamp(pub i64);

/// The type of an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A socket's name.
    Socket = 5,
    /// A character device's name.
    CharDevice = 6,
    /// A block device's name.
    BlockDevice = 7,
}

/// The attributes of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Attr {
    /// Which inode.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
    /// Permissions, set-id and sticky bits: the low 12 bits of `st_mode`.
    pub mode: u32,
    /// How many names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that a device node names, in the kernel's 32-bit encoding; zero for others.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Blocks of 4 KiB that it occupies, allocated but unwritten ones included.
    pub blocks: u64,
    /// Last read, as far as it is kept (relatime).
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Its data is not changed by anybody (V8).
    pub sealed: bool,
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct DirEntry {
    /// The position after this entry: what a later read passes to go on. Stable while the entry exists.
    pub cookie: u64,
    /// The inode.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
    /// Its attributes, if they were asked for.
    pub attr: Option<Attr>,
}

/// What statfs answers. Blocks are of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct SpaceReport {
    /// Blocks for file data in all.
    pub blocks: u64,
    /// Blocks that are free, blocks reserved by nodes included.
    pub free: u64,
    /// Inodes in use.
    pub inodes: u64,
}
