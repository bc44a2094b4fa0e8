//! What a group of operations has changed, as a record of the redo journal ([`crate::disk::journal`], V12).
//!
//! A record is the rows that were put and taken away, in their order:
//!
//! | bytes | what |
//! |---|---|
//! | 0 | the table's number |
//! | 1 | 1 = put, 0 = taken away |
//! | 2..4 | length of the key |
//! | 4..8 | length of the value |
//! | 8.. | key, value |
//!
//! Rows are put as a whole, so that a record may be applied once more to a store that holds it already. The last row of
//! each record is the store's numbers, with the record's own sequence and epoch: whatever state of the store is durable
//! says which records it holds.

use lockd::ids::Epoch;
use lockd::rules::{Rule, Rules};
use redb::{Database, ReadableTable};
use zerocopy::little_endian::U64;

use super::record::Counters;
use super::{COUNTERS_ROW, Result, StoreError, Tables};
use crate::disk::journal::{Found, Lost, Records};
use crate::disk::open::{Replay, Unapplied};

/// The bytes before key and value.
const HEAD: usize = 8;

/// The changes of one transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Log(Vec<u8>);

impl Log {
    fn row(&mut self, table: u8, kind: u8, key: &[u8], value: &[u8]) {
        // The store itself takes no key and no value as long as that.
        let key_len = u16::try_from(key.len()).unwrap_or(u16::MAX);
        let value_len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&[table, kind]);
        self.0.extend_from_slice(&key_len.to_le_bytes());
        self.0.extend_from_slice(&value_len.to_le_bytes());
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(value);
    }

    /// A row was put.
    pub fn put(&mut self, table: u8, key: &[u8], value: &[u8]) {
        self.row(table, 1, key, value);
    }

    /// A row was taken away.
    pub fn remove(&mut self, table: u8, key: &[u8]) {
        self.row(table, 0, key, &[]);
    }

    /// The record.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One row of a record.
struct Row<'a> {
    table: u8,
    key: &'a [u8],
    /// Nothing if it was taken away.
    value: Option<&'a [u8]>,
}

/// The first row of `bytes`, and what follows.
fn next(bytes: &[u8]) -> Option<(Row<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let key_len = usize::from(u16::from_le_bytes([head[2], head[3]]));
    let value_len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let (key, rest) = rest.split_at_checked(key_len)?;
    let (value, rest) = rest.split_at_checked(usize::try_from(value_len).ok()?)?;
    match head[1] {
        0 if value.is_empty() => Some((Row { table: head[0], key, value: None }, rest)),
        1 => Some((Row { table: head[0], key, value: Some(value) }, rest)),
        _ => None,
    }
}

/// Does again what a record says.
pub(super) fn apply(tables: &mut Tables<'_>, record: &[u8]) -> Result<()> {
    let mut rest = record;
    while !rest.is_empty() {
        let at = record.len() - rest.len();
        let no_row = || StoreError::Damaged(format!("byte {at} of a record of the redo journal is no row"));
        let (row, behind) = next(rest).ok_or_else(no_row)?;
        if !tables.put_raw(row.table, row.key, row.value)? {
            return Err(no_row());
        }
        rest = behind;
    }
    Ok(())
}

/// The numbers of a store.
fn counters(tables: &Tables<'_>) -> Result<Counters> {
    let row = tables.counters()?.get(COUNTERS_ROW)?.map(|row| row.value());
    row.ok_or_else(|| StoreError::Damaged("the store has no counters".to_owned()))
}

/// Applies to `tables` what `found` has that they do not; says how many records that were, and what there was more.
pub(super) fn catch_up(tables: &mut Tables<'_>, found: &Found<'_>) -> Result<(usize, Option<Lost>)> {
    let known = counters(tables)?;
    let (epoch, sequence) = (Epoch(known.journal_epoch.get()), known.journal_sequence.get());
    let Records { list, last, lost } =
        found.after(epoch, sequence).map_err(|error| StoreError::Damaged(error.to_string()))?;
    list.iter().try_for_each(|record| apply(tables, record))?;
    let (records, reached) = (list.len(), counters(tables)?.journal_sequence.get());
    if reached != last {
        return Err(StoreError::Damaged(format!(
            "after {records} records of the redo journal the store holds change {reached}, not {last}"
        )));
    }
    Ok((records, lost))
}

fn replay(database: &Database, found: &Found<'_>, epoch: Option<Epoch>, rules: Rules) -> Result<()> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let mut tables = Tables::of(&transaction);
    let (records, lost) = if rules.keeps(Rule::V12) { catch_up(&mut tables, found)? } else { (0, None) };
    if let Some(lost) = lost {
        return Err(StoreError::Damaged(lost.to_string()));
    }
    if let Some(epoch) = epoch {
        let counters = Counters { journal_epoch: U64::new(epoch.0), ..counters(&tables)? };
        tables.counters_mut()?.insert(COUNTERS_ROW, counters)?;
    }
    drop(tables);
    if records == 0 && epoch.is_none() {
        transaction.abort()?;
        return Ok(());
    }
    transaction.commit()?;
    if records > 0 {
        tracing::info!(records, "the last changes were taken from the redo journal");
    }
    Ok(())
}

/// Applies the journal of a volume when that is opened.
#[must_use]
pub fn replayer(rules: Rules) -> Replay {
    Replay::new(move |database, found, epoch| {
        replay(database, found, epoch, rules).map_err(|error| match error {
            StoreError::Database(error) => Unapplied::Store(error),
            StoreError::Damaged(why) => Unapplied::Journal(why),
        })
    })
}
