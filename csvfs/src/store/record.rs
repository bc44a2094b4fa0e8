//! The records of the store, as they lie in its tables: little-endian, of fixed size but for the tails noted.
//!
//! | record | bytes | tail |
//! |---|---|---|
//! | [`InodeRecord`] | 96 | a symbolic link's target |
//! | [`EntryRecord`] | 9 | the name |
//! | [`ExtentRecord`] | 24 | |
//! | [`SharedRecord`] | 16 | |
//! | [`HeldRecord`] | 24 | |
//! | [`ClientRecord`] | 16 | |
//! | [`SlotRecord`] | 8 | the reply's frame |
//! | [`Counters`] | 96 | |

use redb::{TypeName, Value};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::StoreError;
use crate::types::{Attr, BLOCK, Extent, ExtentState, FileBlock, Ino, Kind, LunBlock, Timestamp};

/// The inode has an access ACL that its mode does not say in full.
pub const ACCESS_ACL: u32 = 1;
/// The directory has a default ACL.
pub const DEFAULT_ACL: u32 = 2;
/// The inode has extended attributes.
pub const XATTRS: u32 = 4;
/// The inode was made without a name and may still be given one.
pub const LINKABLE: u32 = 8;
/// The file is sealed: its data is not changed by anybody, until it is unsealed (V8).
pub const SEALED: u32 = 16;

/// An inode: the fixed part. A symbolic link's target follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InodeRecord {
    /// [`Kind`] as a number.
    pub kind: u8,
    /// Zero.
    pub zero: u8,
    /// Permissions: the low 12 bits of `st_mode`.
    pub mode: U16,
    /// Names.
    pub nlink: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// A device node's device.
    pub rdev: U32,
    /// [`ACCESS_ACL`], [`DEFAULT_ACL`], [`XATTRS`], [`LINKABLE`], [`SEALED`].
    pub flags: U32,
    /// Length in bytes (not kept for directories).
    pub size: U64,
    /// Blocks mapped.
    pub blocks: U64,
    /// Last read.
    pub atime: I64,
    /// Last change of the contents.
    pub mtime: I64,
    /// Last change of the inode.
    pub ctime: I64,
    /// Creation.
    pub btime: I64,
    /// Changes with every change of the layout.
    pub version: U64,
    /// A directory's parent.
    pub parent: U64,
    /// Room for a project (quotas).
    pub project: U64,
}

impl InodeRecord {
    /// A new inode with all its times `now`.
    #[must_use]
    pub fn new(kind: Kind, mode: u32, uid: u32, gid: u32, now: Timestamp) -> Self {
        let now = I64::new(now.0);
        Self {
            kind: kind as u8,
            zero: 0,
            mode: bits(mode),
            nlink: U32::new(1),
            uid: U32::new(uid),
            gid: U32::new(gid),
            rdev: U32::ZERO,
            flags: U32::ZERO,
            size: U64::ZERO,
            blocks: U64::ZERO,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            version: U64::ZERO,
            parent: U64::ZERO,
            project: U64::ZERO,
        }
    }

    /// Splits a stored value into the record and its tail.
    pub fn parse(ino: Ino, value: &[u8]) -> Result<(Self, &[u8]), StoreError> {
        match Self::read_from_prefix(value) {
            Ok((record, tail)) if kind_of(record.kind).is_some() => Ok((record, tail)),
            _ => Err(StoreError::Damaged(format!("the record of {ino} is not an inode"))),
        }
    }

    /// The type. Records come from [`InodeRecord::parse`] or [`InodeRecord::new`], so that it is always one.
    #[must_use]
    pub fn kind(&self) -> Kind {
        kind_of(self.kind).unwrap_or(Kind::File)
    }

    /// Whether all bits of `flag` are set.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.flags.get() & flag == flag
    }

    /// Sets or clears `flag`.
    pub fn set(&mut self, flag: u32, on: bool) {
        let flags = self.flags.get();
        self.flags.set(if on { flags | flag } else { flags & !flag });
    }

    /// The permission bits.
    #[must_use]
    pub fn permissions(&self) -> u32 {
        u32::from(self.mode.get())
    }

    /// Sets the permission bits.
    pub fn set_permissions(&mut self, mode: u32) {
        self.mode = bits(mode);
    }

    /// Contents and inode have changed.
    pub fn touch(&mut self, now: Timestamp) {
        self.mtime.set(now.0);
        self.ctime.set(now.0);
    }

    /// The attributes as messages carry them.
    #[must_use]
    pub fn attr(&self, ino: Ino) -> Attr {
        let kind = self.kind();
        Attr {
            ino,
            kind,
            mode: self.permissions(),
            nlink: self.nlink.get(),
            uid: self.uid.get(),
            gid: self.gid.get(),
            rdev: self.rdev.get(),
            size: if kind == Kind::Directory { BLOCK } else { self.size.get() },
            blocks: self.blocks.get(),
            atime: Timestamp(self.atime.get()),
            mtime: Timestamp(self.mtime.get()),
            ctime: Timestamp(self.ctime.get()),
            btime: Timestamp(self.btime.get()),
            sealed: self.has(SEALED),
        }
    }
}

fn bits(mode: u32) -> U16 {
    U16::new(u16::try_from(mode & 0o7777).unwrap_or(0))
}

/// The type that `number` stands for.
#[must_use]
pub fn kind_of(number: u8) -> Option<Kind> {
    Some(match number {
        1 => Kind::File,
        2 => Kind::Directory,
        3 => Kind::Symlink,
        4 => Kind::Fifo,
        5 => Kind::Socket,
        6 => Kind::CharDevice,
        7 => Kind::BlockDevice,
        _ => return None,
    })
}

/// A directory entry: the fixed part. The name follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EntryRecord {
    /// The inode.
    pub ino: U64,
    /// Its [`Kind`].
    pub kind: u8,
}

impl EntryRecord {
    /// Splits a stored value into inode, type and name.
    pub fn parse(value: &[u8]) -> Result<(Ino, Kind, &[u8]), StoreError> {
        let damaged = || StoreError::Damaged("a directory entry is not one".to_owned());
        let (record, name) = Self::read_from_prefix(value).map_err(|_| damaged())?;
        let kind = kind_of(record.kind).ok_or_else(damaged)?;
        Ok((Ino(record.ino.get()), kind, name))
    }

    /// The stored value.
    #[must_use]
    pub fn value(ino: Ino, kind: Kind, name: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(size_of::<Self>() + name.len());
        value.extend_from_slice(Self { ino: U64::new(ino.0), kind: kind as u8 }.as_bytes());
        value.extend_from_slice(name);
        value
    }
}

/// Makes a fixed-size record a value of a table: its bytes.
macro_rules! stored {
    ($record:ident) => {
        impl Value for $record {
            type SelfType<'a> = $record;
            type AsBytes<'a> = &'a [u8];

            fn fixed_width() -> Option<usize> {
                Some(size_of::<Self>())
            }

            fn from_bytes<'a>(data: &'a [u8]) -> Self
            where
                Self: 'a,
            {
                // The table's fixed width makes `data` as long as the record.
                let mut record = <Self as zerocopy::FromZeros>::new_zeroed();
                let bytes = record.as_mut_bytes();
                let len = bytes.len().min(data.len());
                bytes[..len].copy_from_slice(&data[..len]);
                record
            }

            fn as_bytes<'a, 'b: 'a>(value: &'a Self) -> &'a [u8]
            where
                Self: 'b,
            {
                IntoBytes::as_bytes(value)
            }

            fn type_name() -> TypeName {
                TypeName::new(concat!("csvfs::", stringify!($record)))
            }
        }
    };
}

/// The extent holds data.
pub const WRITTEN: u32 = 1;
/// The extent's blocks may have further references: the table of shared runs says which.
pub const MAYBE_SHARED: u32 = 2;

/// An extent of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtentRecord {
    /// The first LUN block.
    pub lun: U64,
    /// Blocks.
    pub len: U64,
    /// [`WRITTEN`], [`MAYBE_SHARED`].
    pub flags: U32,
    /// Zero.
    pub zero: U32,
}
stored!(ExtentRecord);

impl ExtentRecord {
    /// The record of `extent`.
    #[must_use]
    pub fn of(extent: &Extent) -> Self {
        let written = if extent.state == ExtentState::Written { WRITTEN } else { 0 };
        let shared = if extent.shared { MAYBE_SHARED } else { 0 };
        Self {
            lun: U64::new(extent.lun.0),
            len: U64::new(extent.len),
            flags: U32::new(written | shared),
            zero: U32::ZERO,
        }
    }

    /// The extent at file block `file`; `shared` means that it may be.
    #[must_use]
    pub fn at(self, file: FileBlock) -> Extent {
        let flags = self.flags.get();
        Extent {
            file,
            lun: LunBlock(self.lun.get()),
            len: self.len.get(),
            state: if flags & WRITTEN != 0 { ExtentState::Written } else { ExtentState::Unwritten },
            shared: flags & MAYBE_SHARED != 0,
        }
    }
}

/// A run of blocks with more than one reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SharedRecord {
    /// Blocks.
    pub len: U64,
    /// References, at least two.
    pub count: U64,
}
stored!(SharedRecord);

/// Why blocks are held back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Why {
    /// A file gave them up.
    Freed = 1,
    /// The client in whose reserve they were has ended.
    ClientEnded = 2,
    /// A ghost may still write to them (P6).
    Ghost = 3,
}

/// A run of blocks that must not be used yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HeldRecord {
    /// Blocks.
    pub len: U64,
    /// Since when, in nanoseconds of civil time.
    pub since: I64,
    /// [`Why`] as a number.
    pub why: U32,
    /// Zero.
    pub zero: U32,
}
stored!(HeldRecord);

impl HeldRecord {
    /// `len` blocks held back.
    #[must_use]
    pub fn new(len: u64, why: Why, since: i64) -> Self {
        Self { len: U64::new(len), since: I64::new(since), why: U32::new(why as u32), zero: U32::ZERO }
    }
}

/// The client is over: it is answered no more.
pub const ENDED: u32 = 1;

/// A client that has changed the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ClientRecord {
    /// Its session.
    pub session: U64,
    /// [`ENDED`].
    pub flags: U32,
    /// Zero.
    pub zero: U32,
}
stored!(ClientRecord);

/// A reply slot: the fixed part. The frame of the reply follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SlotRecord {
    /// The sequence of the last command.
    pub sequence: U64,
}

impl SlotRecord {
    /// The stored value.
    #[must_use]
    pub fn value(sequence: u64, reply: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(size_of::<Self>() + reply.len());
        value.extend_from_slice(&sequence.to_le_bytes());
        value.extend_from_slice(reply);
        value
    }

    /// Splits a stored value into the sequence and the reply's frame.
    pub fn parse(value: &[u8]) -> Result<(u64, &[u8]), StoreError> {
        let (record, reply) = Self::read_from_prefix(value)
            .map_err(|_| StoreError::Damaged("a reply slot is not one".to_owned()))?;
        Ok((record.sequence.get(), reply))
    }
}

/// The numbers of a volume. One record, written with every group of operations.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Counters {
    /// The version of the store's layout: [`super::VERSION`].
    pub version: U64,
    /// The next inode's number.
    pub next_ino: U64,
    /// Inodes.
    pub inodes: U64,
    /// Inodes without a name that are not reclaimed yet.
    pub orphans: U64,
    /// Blocks of the data region, those given to the metadata area included.
    pub total: U64,
    /// Blocks that anybody may be given.
    pub free: U64,
    /// Blocks in the reserves of clients.
    pub reserved: U64,
    /// Blocks freed, and not yet to be used.
    pub pending: U64,
    /// Blocks in quarantine.
    pub quarantined: U64,
    /// Blocks given to the metadata area.
    pub metadata: U64,
    /// The epoch of the records in the redo journal that go on from this state.
    pub journal_epoch: U64,
    /// The last record of the redo journal that this state holds.
    pub journal_sequence: U64,
}
stored!(Counters);
