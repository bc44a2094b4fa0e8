//! A new store from the rows that can still be read of a damaged one.
//!
//! What can be told from the rest is not lost with its page: the numbers, and which blocks are free. What files lose is
//! named by [`losses`]; [`super::check::repair`] then makes the rest whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redb::{Database, ReadableTable};

use super::check::{BlockFault, EntryFault, ExtentFault, Finding, Findings};
use super::record::{EntryRecord, InodeRecord};
use super::redo::catch_up;
use super::{COUNTERS_ROW, Result, Snapshot, StoreError, Tables, VERSION, high};
use crate::disk::journal::Found;
use crate::disk::tree::{BadPage, Row, Walk};
use crate::types::{Ino, Kind, Run};

/// Losses that are named.
pub const LOSSES_MAX: usize = 100_000;
/// Directories above one another in a path that is told.
const DEPTH_MAX: usize = 4096;

fn whole<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

/// What could be read of a damaged store.
#[derive(Debug)]
pub struct Rebuilt {
    /// What the walk over its pages has found; nothing if it had no header.
    pub walk: Option<Walk>,
    /// Why the redo journal could not be used, or not all of it.
    pub journal: Option<String>,
}

/// Fills an empty database with the rows that `feed` hands over, and with what a store must have. `chunks` are those
/// that the chunk map says were given to the metadata area; `found` is the damaged store's redo journal.
///
/// # Errors
/// If the database cannot be written.
pub fn rebuild<E>(
    database: &Database,
    chunks: &[Run],
    found: &Found<'_>,
    feed: impl FnOnce(&mut dyn FnMut(Row<'_>)) -> Result<Option<Walk>, E>,
) -> Result<Result<Rebuilt, E>> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let mut tables = Tables::of(&transaction);
    tables.create()?;
    let mut failed = None;
    let fed = feed(&mut |row| {
        if failed.is_none() {
            let put = Tables::number(row.table).map(|table| tables.put_raw(table, row.key, Some(row.value)));
            failed = put.and_then(Result::err);
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let walk = match fed {
        Ok(walk) => walk,
        Err(error) => return Ok(Err(error)),
    };
    complete(&mut tables, chunks)?;
    // Rows of the journal are newer than any of the store; without the store's numbers nobody knows which those are.
    let journal = match catch_up(&mut tables, found) {
        Ok((_, lost)) => lost.map(|lost| lost.to_string()),
        Err(StoreError::Damaged(why)) => Some(format!("{why}: it is not used")),
        Err(error) => return Err(error),
    };
    drop(tables);
    transaction.commit()?;
    Ok(Ok(Rebuilt { walk, journal }))
}

/// What a store has also when its page was lost.
fn complete(tables: &mut Tables<'_>, chunks: &[Run]) -> Result<()> {
    let counters = tables.counters()?.get(COUNTERS_ROW)?.map(|counters| counters.value());
    let mut counters = counters.unwrap_or_default();
    counters.version.set(VERSION);
    tables.counters_mut()?.insert(COUNTERS_ROW, counters)?;
    for chunk in chunks {
        let before = tables.chunks()?.range(..=chunk.start.0)?.next_back().transpose()?;
        let known = before.is_some_and(|(start, len)| start.value() + len.value() >= chunk.end().0);
        if !known {
            tables.chunks_mut()?.insert(chunk.start.0, chunk.len)?;
        }
    }
    Ok(())
}

/// Says what a bad page held.
#[must_use]
pub fn describe(page: &BadPage) -> String {
    let at = format!("the page at byte {} of the metadata area is damaged", page.at);
    let Some(table) = &page.table else {
        return format!("{at}: it is of the list of tables; whole tables are lost with it");
    };
    let ends = [&page.after, &page.to];
    let files = |what: &str, key: fn(&[u8]) -> Option<u64>| {
        let [from, to] = ends.map(|end| end.as_deref().and_then(key));
        let from = from.map_or_else(|| "the first".to_owned(), |ino| format!("i{ino}"));
        let to = to.map_or_else(|| "the last".to_owned(), |ino| format!("i{ino}"));
        format!("{at}: {what} from {from} to {to}")
    };
    let small = |key: &[u8]| whole(key).map(u64::from_le_bytes);
    let large = |key: &[u8]| whole(key).map(|key| high(u128::from_le_bytes(key)));
    let first = |key: &[u8]| key.first_chunk().map(|ino| u64::from_be_bytes(*ino));
    match table.as_str() {
        "inodes" => files("it held records of inodes", small),
        "entries" => files("it held names in directories", large),
        "extents" => files("it held layouts of files", large),
        "xattrs" => files("it held extended attributes of inodes", first),
        "free" | "shared" | "counters" | "chunks" | "reserves" | "pending" | "quarantine" => {
            format!("{at}: it is of the table {table:?}, which follows from the rest")
        }
        other => format!("{at}: it is of the table {other:?}"),
    }
}

/// Paths of inodes.
#[derive(Debug, Default)]
struct Paths {
    named: HashMap<u64, (u64, String)>,
}

impl Paths {
    /// Reads the names of directories, and of the inodes in `wanted`.
    fn gather(snapshot: &Snapshot, wanted: &BTreeSet<u64>) -> Result<Self> {
        let mut named = HashMap::new();
        for row in snapshot.entries.iter()? {
            let (key, value) = row?;
            if let Ok((ino, kind, name)) = EntryRecord::parse(value.value())
                && (kind == Kind::Directory || wanted.contains(&ino.0))
            {
                named.insert(ino.0, (high(key.value()), String::from_utf8_lossy(name).into_owned()));
            }
        }
        Ok(Self { named })
    }

    fn of(&self, ino: Ino) -> String {
        let (mut at, mut parts) = (ino.0, Vec::new());
        while at != Ino::ROOT.0 && parts.len() < DEPTH_MAX {
            let Some((parent, name)) = self.named.get(&at) else {
                parts.push(format!("(i{at})"));
                break;
            };
            parts.push(name.clone());
            at = *parent;
        }
        parts.reverse();
        let path = parts.join("/");
        if path.starts_with('(') { path } else { format!("/{path}") }
    }
}

/// Names what files have lost, from what a check of the rebuilt store found.
///
/// # Errors
/// If the database cannot be read.
pub fn losses(database: &Database, findings: &Findings) -> Result<Vec<String>> {
    let snapshot = Snapshot::take(database)?;
    let inos = findings.list.iter().filter_map(|finding| match finding {
        Finding::Blocks { ino, .. }
        | Finding::Unreachable(ino)
        | Finding::XattrFlags { ino, .. }
        | Finding::Xattr { ino, .. } => Some(ino.0),
        _ => None,
    });
    let paths = Paths::gather(&snapshot, &inos.collect())?;
    let mut lost = Vec::new();
    let mut foreign: BTreeMap<u64, u64> = BTreeMap::new();
    let mut in_lost: BTreeMap<u64, u64> = BTreeMap::new();
    for finding in &findings.list {
        match finding {
            Finding::Entry { parent, name, ino: Some(ino), fault: EntryFault::NoInode, .. } => {
                let folder = paths.of(*parent);
                let slash = if folder.ends_with('/') { "" } else { "/" };
                lost.push(format!("{folder}{slash}{name} is lost: its record ({ino}) cannot be read"));
            }
            Finding::Entry { parent, fault: EntryFault::NoDirectory, .. } => {
                *in_lost.entry(parent.0).or_default() += 1;
            }
            Finding::Blocks { ino, says, found } if found < says => {
                let path = paths.of(*ino);
                let blocks = says - found;
                lost.push(format!("{path} has lost {blocks} of its {says} blocks: they read as zeros"));
            }
            Finding::Unreachable(ino) => {
                let kind = snapshot.inodes.get(ino.0)?.and_then(|value| {
                    InodeRecord::parse(*ino, value.value()).ok().map(|(record, _)| record.kind())
                });
                let what = if kind == Some(Kind::Directory) { "directory" } else { "file" };
                lost.push(format!("the {what} {ino} has lost its name: it goes to lost+found"));
            }
            Finding::XattrFlags { ino, .. } => {
                lost.push(format!("{} has lost extended attributes or access control lists", paths.of(*ino)));
            }
            Finding::Extent { ino, run, fault: ExtentFault::NoFile, .. } => {
                *foreign.entry(ino.0).or_default() += run.len;
            }
            Finding::NoRoot => lost.push("the record of the root directory cannot be read".to_owned()),
            _ => {}
        }
    }
    lost.extend(in_lost.iter().map(|(ino, names)| {
        format!("the directory i{ino} is lost; {names} names were in it: what they name goes to lost+found")
    }));
    lost.extend(foreign.iter().map(|(ino, blocks)| {
        format!("the contents of the lost file i{ino}, {blocks} blocks, belong to nothing any more")
    }));
    lost.truncate(LOSSES_MAX);
    Ok(lost)
}

/// Findings that only say what follows from lost pages and is mended without any loss.
#[must_use]
pub fn follows(finding: &Finding) -> bool {
    matches!(finding, Finding::Number { .. } | Finding::Space { fault: BlockFault::Lost, .. })
}
