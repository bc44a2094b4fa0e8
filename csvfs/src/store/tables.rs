//! The tables of one transaction, each opened once.

use std::borrow::Borrow;
use std::cell::OnceCell;
use std::fmt;

use redb::{
    AccessGuard, Database, Key, ReadOnlyTable, ReadableDatabase, StorageError, Table, TableHandle, Value,
    WriteTransaction,
};

use super::record::{ClientRecord, Counters, ExtentRecord, HeldRecord, SharedRecord};
use super::redo::Log;
use super::{
    CHUNKS, CLIENTS, COUNTERS, COUNTERS_ROW, ENTRIES, EXTENTS, FREE, INODES, ORPHANS, PENDING, QUARANTINE,
    RESERVES, Result, SHARED, SLOTS, StoreError, VERSION, XATTRS,
};

macro_rules! tables {
    ($($number:literal: $name:ident, $name_mut:ident: $definition:ident, $key:ty => $value:ty;)*) => {
        /// All tables of a write transaction. Each is opened when it is first used: opening costs as much as several
        /// insertions, and most operations use four.
        pub struct Tables<'t> {
            transaction: &'t WriteTransaction,
            log: Option<Log>,
            $($name: OnceCell<Table<'t, $key, $value>>,)*
        }

        impl<'t> Tables<'t> {
            /// The tables of `transaction`.
            #[must_use]
            pub fn of(transaction: &'t WriteTransaction) -> Self {
                Self { transaction, log: None, $($name: OnceCell::new(),)* }
            }

            /// The tables of `transaction`, whose changes are noted for the redo journal.
            #[must_use]
            pub fn logged(transaction: &'t WriteTransaction) -> Self {
                Self { log: Some(Log::default()), ..Self::of(transaction) }
            }

            /// The changes so far, if they are noted.
            pub fn take_log(&mut self) -> Log {
                self.log.take().unwrap_or_default()
            }

            /// The number by which the redo journal knows the table called `name`.
            #[must_use]
            pub fn number(name: &str) -> Option<u8> {
                $(if name == $definition.name() { return Some($number); })*
                None
            }

            /// Puts a row where it was, or takes it away; says whether there is such a table, and its keys and values
            /// are like these.
            pub fn put_raw(&mut self, table: u8, key: &[u8], value: Option<&[u8]>) -> Result<bool> {
                match table {
                    $($number => {
                        if !fits::<$key>(key) || value.is_some_and(|value| !fits::<$value>(value)) {
                            return Ok(false);
                        }
                        let key = <$key as Value>::from_bytes(key);
                        match value {
                            Some(value) => {
                                let value = <$value as Value>::from_bytes(value);
                                self.$name_mut()?.insert(key, value)?;
                            }
                            None => drop(self.$name_mut()?.remove(key)?),
                        }
                    })*
                    _ => return Ok(false),
                }
                Ok(true)
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
                pub fn $name_mut(&mut self) -> Result<Changing<'_, 't, $key, $value>> {
                    self.$name()?;
                    let table = self.$name.get_mut().ok_or_else(unopened)?;
                    Ok(Changing { table, number: $number, log: self.log.as_mut() })
                }
            )*
        }
    };
}

fn unopened() -> StoreError {
    StoreError::Damaged("a table was opened twice".to_owned())
}

/// Whether `bytes` can be a key or value of the type.
fn fits<V: Value>(bytes: &[u8]) -> bool {
    V::fixed_width().is_none_or(|width| width == bytes.len())
}

/// A table that is changed.
pub struct Changing<'a, 't, K: Key + 'static, V: Value + 'static> {
    table: &'a mut Table<'t, K, V>,
    number: u8,
    log: Option<&'a mut Log>,
}

impl<K: Key + 'static, V: Value + 'static> fmt::Debug for Changing<'_, '_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changing").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<'a, K: Key + 'static, V: Value + 'static> Changing<'a, '_, K, V> {
    /// Puts a row; returns the value that was there.
    pub fn insert<'k, 'v>(
        self,
        key: impl Borrow<K::SelfType<'k>>,
        value: impl Borrow<V::SelfType<'v>>,
    ) -> Result<Option<AccessGuard<'a, V>>, StorageError> {
        if let Some(log) = self.log {
            let (key, value) = (K::as_bytes(key.borrow()), V::as_bytes(value.borrow()));
            log.put(self.number, key.as_ref(), value.as_ref());
        }
        self.table.insert(key, value)
    }

    /// Takes a row away; returns its value.
    pub fn remove<'k>(
        self,
        key: impl Borrow<K::SelfType<'k>>,
    ) -> Result<Option<AccessGuard<'a, V>>, StorageError> {
        if let Some(log) = self.log {
            log.remove(self.number, K::as_bytes(key.borrow()).as_ref());
        }
        self.table.remove(key)
    }
}

// The numbers are those of the redo journal's records: they stay what they are.
tables! {
    1: inodes, inodes_mut: INODES, u64 => &'static [u8];
    2: entries, entries_mut: ENTRIES, u128 => &'static [u8];
    3: extents, extents_mut: EXTENTS, u128 => ExtentRecord;
    4: free, free_mut: FREE, u64 => u64;
    5: shared, shared_mut: SHARED, u64 => SharedRecord;
    6: xattrs, xattrs_mut: XATTRS, &'static [u8] => &'static [u8];
    7: orphans, orphans_mut: ORPHANS, u64 => i64;
    8: reserves, reserves_mut: RESERVES, u128 => u64;
    9: pending, pending_mut: PENDING, u64 => HeldRecord;
    10: quarantine, quarantine_mut: QUARANTINE, u64 => HeldRecord;
    11: slots, slots_mut: SLOTS, u128 => &'static [u8];
    12: clients, clients_mut: CLIENTS, u64 => ClientRecord;
    13: chunks, chunks_mut: CHUNKS, u64 => u64;
    14: counters, counters_mut: COUNTERS, u8 => Counters;
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
