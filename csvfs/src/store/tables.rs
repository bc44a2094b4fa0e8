//! The tables of one transaction, each opened once.

use std::fmt;

use redb::{Database, ReadOnlyTable, ReadableDatabase, Table, WriteTransaction};

use super::record::{ClientRecord, Counters, ExtentRecord, HeldRecord, SharedRecord};
use super::{
    CHUNKS, CLIENTS, COUNTERS, COUNTERS_ROW, ENTRIES, EXTENTS, FREE, INODES, ORPHANS, PENDING, QUARANTINE,
    RESERVES, Result, SHARED, SLOTS, StoreError, VERSION, XATTRS,
};

/// All tables of a write transaction.
#[expect(missing_docs, reason = "named as in the module's table of tables")]
pub struct Tables<'t> {
    pub inodes: Table<'t, u64, &'static [u8]>,
    pub entries: Table<'t, u128, &'static [u8]>,
    pub extents: Table<'t, u128, ExtentRecord>,
    pub free: Table<'t, u64, u64>,
    pub shared: Table<'t, u64, SharedRecord>,
    pub xattrs: Table<'t, &'static [u8], &'static [u8]>,
    pub orphans: Table<'t, u64, i64>,
    pub reserves: Table<'t, u128, u64>,
    pub pending: Table<'t, u64, HeldRecord>,
    pub quarantine: Table<'t, u64, HeldRecord>,
    pub slots: Table<'t, u128, &'static [u8]>,
    pub clients: Table<'t, u64, ClientRecord>,
    pub chunks: Table<'t, u64, u64>,
    pub counters: Table<'t, u8, Counters>,
}

impl fmt::Debug for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl<'t> Tables<'t> {
    /// Opens every table, creating those that are missing.
    pub fn open(transaction: &'t WriteTransaction) -> Result<Self> {
        Ok(Self {
            inodes: transaction.open_table(INODES)?,
            entries: transaction.open_table(ENTRIES)?,
            extents: transaction.open_table(EXTENTS)?,
            free: transaction.open_table(FREE)?,
            shared: transaction.open_table(SHARED)?,
            xattrs: transaction.open_table(XATTRS)?,
            orphans: transaction.open_table(ORPHANS)?,
            reserves: transaction.open_table(RESERVES)?,
            pending: transaction.open_table(PENDING)?,
            quarantine: transaction.open_table(QUARANTINE)?,
            slots: transaction.open_table(SLOTS)?,
            clients: transaction.open_table(CLIENTS)?,
            chunks: transaction.open_table(CHUNKS)?,
            counters: transaction.open_table(COUNTERS)?,
        })
    }
}

/// All tables of a read transaction: a committed state that does not change.
#[expect(missing_docs, reason = "named as in the module's table of tables")]
pub struct Snapshot {
    pub inodes: ReadOnlyTable<u64, &'static [u8]>,
    pub entries: ReadOnlyTable<u128, &'static [u8]>,
    pub extents: ReadOnlyTable<u128, ExtentRecord>,
    pub free: ReadOnlyTable<u64, u64>,
    pub shared: ReadOnlyTable<u64, SharedRecord>,
    pub xattrs: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub orphans: ReadOnlyTable<u64, i64>,
    pub reserves: ReadOnlyTable<u128, u64>,
    pub pending: ReadOnlyTable<u64, HeldRecord>,
    pub quarantine: ReadOnlyTable<u64, HeldRecord>,
    pub slots: ReadOnlyTable<u128, &'static [u8]>,
    pub clients: ReadOnlyTable<u64, ClientRecord>,
    pub chunks: ReadOnlyTable<u64, u64>,
    /// The numbers as of this state.
    pub counters: Counters,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// The state of the last commit.
    pub fn take(database: &Database) -> Result<Self> {
        let transaction = database.begin_read()?;
        let counters = transaction
            .open_table(COUNTERS)?
            .get(COUNTERS_ROW)?
            .ok_or_else(|| StoreError::Damaged("the store has no counters".to_owned()))?
            .value();
        if counters.version.get() != VERSION {
            let version = counters.version.get();
            return Err(StoreError::Damaged(format!(
                "the store's layout is version {version}, not {VERSION}"
            )));
        }
        Ok(Self {
            inodes: transaction.open_table(INODES)?,
            entries: transaction.open_table(ENTRIES)?,
            extents: transaction.open_table(EXTENTS)?,
            free: transaction.open_table(FREE)?,
            shared: transaction.open_table(SHARED)?,
            xattrs: transaction.open_table(XATTRS)?,
            orphans: transaction.open_table(ORPHANS)?,
            reserves: transaction.open_table(RESERVES)?,
            pending: transaction.open_table(PENDING)?,
            quarantine: transaction.open_table(QUARANTINE)?,
            slots: transaction.open_table(SLOTS)?,
            clients: transaction.open_table(CLIENTS)?,
            chunks: transaction.open_table(CHUNKS)?,
            counters,
        })
    }
}
