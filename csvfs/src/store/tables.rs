//! The tables of one transaction, each opened once.

use std::cell::OnceCell;
use std::fmt;

use redb::{Database, ReadOnlyTable, ReadableDatabase, Table, WriteTransaction};

use super::record::{ClientRecord, Counters, ExtentRecord, HeldRecord, SharedRecord};
use super::{
    CHUNKS, CLIENTS, COUNTERS, COUNTERS_ROW, ENTRIES, EXTENTS, FREE, INODES, ORPHANS, PENDING, QUARANTINE,
    RESERVES, Result, SHARED, SLOTS, StoreError, VERSION, XATTRS,
};

macro_rules! tables {
    ($($name:ident, $name_mut:ident: $definition:ident, $key:ty => $value:ty;)*) => {
        /// All tables of a write transaction. Each is opened when it is first used: opening costs as much as several
        /// insertions, and most operations use four.
        pub struct Tables<'t> {
            transaction: &'t WriteTransaction,
            $($name: OnceCell<Table<'t, $key, $value>>,)*
        }

        impl<'t> Tables<'t> {
            /// The tables of `transaction`.
            #[must_use]
            pub fn of(transaction: &'t WriteTransaction) -> Self {
                Self { transaction, $($name: OnceCell::new(),)* }
            }

            /// Creates the tables that are not there yet.
            pub fn create(&self) -> Result<()> {
                $(self.$name()?;)*
                Ok(())
            }

            $(
                #[doc = concat!("`", stringify!($name), "`, to be read.")]
                pub fn $name(&self) -> Result<&Table<'t, $key, $value>> {
                    if self.$name.get().is_none() {
                        let _ = self.$name.set(self.transaction.open_table($definition)?);
                    }
                    self.$name.get().ok_or_else(unopened)
                }

                #[doc = concat!("`", stringify!($name), "`, to be changed.")]
                pub fn $name_mut(&mut self) -> Result<&mut Table<'t, $key, $value>> {
                    self.$name()?;
                    self.$name.get_mut().ok_or_else(unopened)
                }
            )*
        }
    };
}

fn unopened() -> StoreError {
    StoreError::Damaged("a table was opened twice".to_owned())
}

tables! {
    inodes, inodes_mut: INODES, u64 => &'static [u8];
    entries, entries_mut: ENTRIES, u128 => &'static [u8];
    extents, extents_mut: EXTENTS, u128 => ExtentRecord;
    free, free_mut: FREE, u64 => u64;
    shared, shared_mut: SHARED, u64 => SharedRecord;
    xattrs, xattrs_mut: XATTRS, &'static [u8] => &'static [u8];
    orphans, orphans_mut: ORPHANS, u64 => i64;
    reserves, reserves_mut: RESERVES, u128 => u64;
    pending, pending_mut: PENDING, u64 => HeldRecord;
    quarantine, quarantine_mut: QUARANTINE, u64 => HeldRecord;
    slots, slots_mut: SLOTS, u128 => &'static [u8];
    clients, clients_mut: CLIENTS, u64 => ClientRecord;
    chunks, chunks_mut: CHUNKS, u64 => u64;
    counters, counters_mut: COUNTERS, u8 => Counters;
}

impl fmt::Debug for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
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
