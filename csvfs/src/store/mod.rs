//! The volume's metadata as tables of a redb database.
//!
//! | table | key | value |
//! |---|---|---|
//! | `inodes` | inode | [`record::InodeRecord`], link target |
//! | `entries` | directory << 64 + cookie | [`record::EntryRecord`], name |
//! | `extents` | inode << 64 + file block | [`record::ExtentRecord`] |
//! | `free` | LUN block | length in blocks |
//! | `shared` | LUN block | [`record::SharedRecord`] |
//! | `xattrs` | inode (big-endian), name | value |
//! | `orphans` | inode | since when (ns of civil time) |
//! | `reserves` | client << 64 + LUN block | length in blocks |
//! | `pending`, `quarantine` | LUN block | [`record::HeldRecord`] |
//! | `slots` | client << 64 + slot | [`record::SlotRecord`], the reply's frame |
//! | `clients` | client | [`record::ClientRecord`] |
//! | `chunks` | LUN block | length in blocks |
//! | `counters` | 0 | [`record::Counters`] |
//!
//! Numbers are keys of redb's own integer types, which order by value; so a directory, a file's layout and a client's
//! reserve are ranges. Every block of the data region is in exactly one of `free`, `reserves`, `pending`, `quarantine`,
//! `chunks`, or the extents of files; a block of several extents is in `shared` with their number.

pub mod bulk;
pub mod check;
pub mod cookie;
mod dump;
pub mod initial;
pub mod rebuild;
pub mod record;
pub mod redo;
mod tables;

#[cfg(test)]
mod tests;

use redb::TableDefinition;

pub use dump::dump;
pub use initial::initialise;
pub use tables::{Changing, Snapshot, Tables};

use record::{ClientRecord, Counters, ExtentRecord, HeldRecord, SharedRecord};

/// The version of this layout of tables.
pub const VERSION: u64 = 1;

/// `inodes`
pub const INODES: TableDefinition<u64, &[u8]> = TableDefinition::new("inodes");
/// `entries`
pub const ENTRIES: TableDefinition<u128, &[u8]> = TableDefinition::new("entries");
/// `extents`
pub const EXTENTS: TableDefinition<u128, ExtentRecord> = TableDefinition::new("extents");
/// `free`
pub const FREE: TableDefinition<u64, u64> = TableDefinition::new("free");
/// `shared`
pub const SHARED: TableDefinition<u64, SharedRecord> = TableDefinition::new("shared");
/// `xattrs`
pub const XATTRS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("xattrs");
/// `orphans`
pub const ORPHANS: TableDefinition<u64, i64> = TableDefinition::new("orphans");
/// `reserves`
pub const RESERVES: TableDefinition<u128, u64> = TableDefinition::new("reserves");
/// `pending`
pub const PENDING: TableDefinition<u64, HeldRecord> = TableDefinition::new("pending");
/// `quarantine`
pub const QUARANTINE: TableDefinition<u64, HeldRecord> = TableDefinition::new("quarantine");
/// `slots`
pub const SLOTS: TableDefinition<u128, &[u8]> = TableDefinition::new("slots");
/// `clients`
pub const CLIENTS: TableDefinition<u64, ClientRecord> = TableDefinition::new("clients");
/// `chunks`
pub const CHUNKS: TableDefinition<u64, u64> = TableDefinition::new("chunks");
/// `counters`
pub const COUNTERS: TableDefinition<u8, Counters> = TableDefinition::new("counters");

/// The key of the only row of `counters`.
pub const COUNTERS_ROW: u8 = 0;

/// The store failed, or holds what it cannot hold.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database could not read or write.
    #[error("the metadata store failed: {0}")]
    Database(#[source] Box<redb::Error>),
    /// A record contradicts the format or another record.
    #[error("the metadata is damaged: {0}; unmount and run csvfs fsck")]
    Damaged(String),
}

impl StoreError {
    /// What the store lies on has failed.
    pub fn below(error: impl Into<std::io::Error>) -> Self {
        Self::Database(Box::new(redb::Error::Io(error.into())))
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// What operations on the store return.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The key of two numbers, ordered by the first, then the second.
#[must_use]
pub const fn pair(high: u64, low: u64) -> u128 {
    (high as u128) << 64 | low as u128
}

/// The second number of a key.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
pub const fn low(key: u128) -> u64 {
    key as u64
}

/// The first number of a key.
#[must_use]
pub const fn high(key: u128) -> u64 {
    low(key >> 64)
}

/// The key of an extended attribute.
#[must_use]
pub fn xattr_key(ino: u64, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&ino.to_be_bytes());
    key.extend_from_slice(name);
    key
}
