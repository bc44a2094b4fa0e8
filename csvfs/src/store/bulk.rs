//! Fills a new store with very many files, for measurements: as many operations would make, in seconds.

use redb::{Database, ReadableTable};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::cookie::HashKey;
use super::record::{EntryRecord, ExtentRecord, InodeRecord, WRITTEN};
use super::{COUNTERS_ROW, Result, StoreError, Tables, pair};
use crate::types::{BLOCK, Ino, Kind, LunBlock, Timestamp};

/// Files per directory.
pub const DIRECTORY_FILES: u64 = 1000;
/// Files that one transaction makes.
const TRANSACTION_FILES: u64 = 50_000;

/// Makes `files` files of one written block each, `f0`, `f1`, ... in directories `d0`, `d1`, ... of
/// [`DIRECTORY_FILES`] files below the root. No coordinator may serve the store.
///
/// # Errors
/// If the store fails, or its longest free extent has fewer than `files` blocks.
pub fn load(database: &Database, key: &HashKey, files: u64, now: Timestamp) -> Result<()> {
    let mut done = 0;
    while done < files {
        let some = (files - done).min(TRANSACTION_FILES);
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        load_some(&mut Tables::of(&transaction), key, done, some, now)?;
        transaction.commit()?;
        done += some;
    }
    Ok(())
}

fn entry(
    tables: &mut Tables<'_>,
    key: &HashKey,
    parent: u64,
    name: &str,
    ino: u64,
    kind: Kind,
) -> Result<()> {
    for cookie in key.cookies(name.as_bytes()) {
        let place = pair(parent, cookie);
        if tables.entries()?.get(place)?.is_none() {
            let value = EntryRecord::value(Ino(ino), kind, name.as_bytes());
            tables.entries_mut()?.insert(place, value.as_slice())?;
            return Ok(());
        }
    }
    Err(StoreError::Damaged(format!("no position is free for {name:?}")))
}

fn load_some(tables: &mut Tables<'_>, key: &HashKey, first: u64, files: u64, now: Timestamp) -> Result<()> {
    let mut counters =
        tables.counters()?.get(COUNTERS_ROW)?.map(|counters| counters.value()).unwrap_or_default();
    let mut longest = (0, 0);
    for row in tables.free()?.iter()? {
        let (start, len) = row?;
        longest = longest.max((len.value(), start.value()));
    }
    let (len, start) = longest;
    if len < files {
        return Err(StoreError::Damaged(format!(
            "{files} blocks in a row are wanted, but at most {len} are free"
        )));
    }
    tables.free_mut()?.remove(start)?;
    if len > files {
        tables.free_mut()?.insert(start + files, len - files)?;
    }
    counters.free.set(counters.free.get() - files);

    let mut next = counters.next_ino.get();
    let (mut directory, mut directories) = (0, 0);
    for i in 0..files {
        if i == 0 || (first + i).is_multiple_of(DIRECTORY_FILES) {
            directory = next;
            next += 1;
            directories += 1;
            let mut record = InodeRecord::new(Kind::Directory, 0o755, 0, 0, now);
            record.nlink = U32::new(2);
            record.parent = U64::new(Ino::ROOT.0);
            tables.inodes_mut()?.insert(directory, record.as_bytes())?;
            let name = format!("d{}", (first + i) / DIRECTORY_FILES);
            entry(tables, key, Ino::ROOT.0, &name, directory, Kind::Directory)?;
        }
        let mut record = InodeRecord::new(Kind::File, 0o644, 0, 0, now);
        record.size = U64::new(BLOCK);
        record.blocks = U64::new(1);
        tables.inodes_mut()?.insert(next, record.as_bytes())?;
        let extent = ExtentRecord {
            lun: U64::new(LunBlock(start + i).0),
            len: U64::new(1),
            flags: U32::new(WRITTEN),
            zero: U32::ZERO,
        };
        tables.extents_mut()?.insert(pair(next, 0), extent)?;
        entry(tables, key, directory, &format!("f{}", first + i), next, Kind::File)?;
        next += 1;
    }
    let root = tables.inodes()?.get(Ino::ROOT.0)?.map(|value| value.value().to_vec());
    if let Some(value) = root {
        let (mut record, _) = InodeRecord::parse(Ino::ROOT, &value)?;
        record.nlink.set(record.nlink.get() + directories);
        tables.inodes_mut()?.insert(Ino::ROOT.0, record.as_bytes())?;
    }
    counters.inodes.set(counters.inodes.get() + next - counters.next_ino.get());
    counters.next_ino.set(next);
    tables.counters_mut()?.insert(COUNTERS_ROW, counters)?;
    Ok(())
}
