//! Questions: answered from the last committed state, on the asking thread.

use super::attributes::{check_xattr_name, list_xattrs};
use super::mapping::{extents, part};
use super::names::{check_name, find};
use super::stop::Stop;
use crate::proto::{Answer, LayoutPart, Operation};
use crate::refusal::Refusal;
use crate::store::cookie::HashKey;
use crate::store::record::{EntryRecord, InodeRecord, XATTRS};
use crate::store::{Snapshot, low, pair, xattr_key};
use crate::types::{DirEntry, Extent, FILE_SIZE_MAX, FileBlock, Ino, Kind, LunBlock, Run, SpaceReport};

/// Bytes of one part of a directory at most.
const DIRECTORY_BUDGET_MAX: u32 = 256 << 10;
/// What an entry costs beside its name, and what its attributes cost, in bytes of a message.
const ENTRY_BYTES: usize = 40;
const ATTR_BYTES: usize = 96;
/// Extents of one part of a layout at most.
const LAYOUT_MAX: usize = 8192;

fn record(snapshot: &Snapshot, ino: Ino) -> Result<InodeRecord, Stop> {
    match snapshot.inodes.get(ino.0)? {
        Some(value) => Ok(InodeRecord::parse(ino, value.value())?.0),
        None => Err(Refusal::NotFound.into()),
    }
}

fn directory(snapshot: &Snapshot, ino: Ino) -> Result<InodeRecord, Stop> {
    let record = record(snapshot, ino)?;
    if record.kind() == Kind::Directory { Ok(record) } else { Err(Refusal::NotDirectory.into()) }
}

/// Answers a question.
pub fn answer(snapshot: &Snapshot, key: &HashKey, operation: &Operation) -> Result<Answer, Stop> {
    match operation {
        Operation::Lookup { parent, name } => {
            check_name(name)?;
            directory(snapshot, *parent)?;
            let found = find(&snapshot.entries, key, *parent, name)?.map_err(|_| Refusal::NotFound)?;
            Ok(Answer::Entry(record(snapshot, found.ino)?.attr(found.ino)))
        }
        Operation::GetAttr { ino } => Ok(Answer::Entry(record(snapshot, *ino)?.attr(*ino))),
        Operation::ReadDirectory { ino, after, budget, attributes } => {
            read_directory(snapshot, *ino, *after, *budget, *attributes)
        }
        Operation::Parent { ino } => {
            let parent = Ino(directory(snapshot, *ino)?.parent.get());
            Ok(Answer::Entry(record(snapshot, parent)?.attr(parent)))
        }
        Operation::ReadLink { ino } => {
            let value = snapshot.inodes.get(ino.0)?.ok_or(Refusal::NotFound)?;
            let (record, target) = InodeRecord::parse(*ino, value.value())?;
            if record.kind() != Kind::Symlink {
                return Err(Refusal::Invalid("not a symbolic link".to_owned()).into());
            }
            Ok(Answer::Bytes(target.to_vec()))
        }
        Operation::GetXattr { ino, name } => {
            check_xattr_name(name)?;
            // Most inodes have none: the kernel asks for each file whether it may be executed with more rights.
            if !record(snapshot, *ino)?.has(XATTRS) {
                return Err(Refusal::NoData.into());
            }
            match snapshot.xattrs.get(xattr_key(ino.0, name).as_slice())? {
                Some(value) => Ok(Answer::Bytes(value.value().to_vec())),
                None => Err(Refusal::NoData.into()),
            }
        }
        Operation::ListXattr { ino } => {
            let any = record(snapshot, *ino)?.has(XATTRS);
            Ok(Answer::Bytes(if any { list_xattrs(&snapshot.xattrs, *ino)? } else { Vec::new() }))
        }
        Operation::Layout { ino, from, limit } => layout(snapshot, *ino, *from, *limit),
        Operation::Space => {
            let counters = &snapshot.counters;
            let free = counters.free.get() + counters.reserved.get() + counters.pending.get();
            let blocks = counters.total.get().saturating_sub(counters.metadata.get());
            Ok(Answer::Space(SpaceReport { blocks, free: free.min(blocks), inodes: counters.inodes.get() }))
        }
        _ => Err(Refusal::Invalid("not a question".to_owned()).into()),
    }
}

fn read_directory(
    snapshot: &Snapshot,
    ino: Ino,
    after: u64,
    budget: u32,
    attributes: bool,
) -> Result<Answer, Stop> {
    directory(snapshot, ino)?;
    let mut left = usize::try_from(budget.min(DIRECTORY_BUDGET_MAX)).unwrap_or(0);
    let mut entries = Vec::new();
    let Some(first) = after.checked_add(1) else { return Ok(Answer::Directory { entries, end: true }) };
    for row in snapshot.entries.range(pair(ino.0, first)..=pair(ino.0, u64::MAX))? {
        let (key, value) = row?;
        let (entry, kind, name) = EntryRecord::parse(value.value())?;
        let cost = ENTRY_BYTES + name.len() + if attributes { ATTR_BYTES } else { 0 };
        // At least one, so that a small budget still gets on.
        if cost > left && !entries.is_empty() {
            return Ok(Answer::Directory { entries, end: false });
        }
        left = left.saturating_sub(cost);
        let attr = if attributes { Some(record(snapshot, entry)?.attr(entry)) } else { None };
        entries.push(DirEntry { cookie: low(key.value()), ino: entry, kind, name: name.to_vec(), attr });
    }
    Ok(Answer::Directory { entries, end: true })
}

fn layout(snapshot: &Snapshot, ino: Ino, from: FileBlock, limit: u32) -> Result<Answer, Stop> {
    let record = record(snapshot, ino)?;
    if record.kind() != Kind::File {
        return Err(Refusal::Invalid("only regular files have a layout".to_owned()).into());
    }
    let limit = usize::try_from(limit).unwrap_or(LAYOUT_MAX).clamp(1, LAYOUT_MAX);
    let end = FileBlock(FILE_SIZE_MAX);
    let stored = extents(&snapshot.extents, ino, from, end, limit + 1)?;
    let mut complete = stored.len() <= limit;
    let mut found = Vec::with_capacity(stored.len());
    for extent in stored.iter().take(limit) {
        let extent = part(extent, from, end);
        if extent.shared {
            by_sharing(snapshot, &extent, &mut found)?
        } else {
            found.push(extent)
        }
        if found.len() >= limit {
            break;
        }
    }
    if found.len() > limit {
        found.truncate(limit);
    }
    let last = found.last().map(Extent::end);
    complete = complete && stored.last().map(|extent| extent.end()) == last;
    Ok(Answer::Layout(LayoutPart { version: record.version.get(), extents: found, complete }))
}

/// Splits an extent that may be shared into parts that are and parts that are not.
fn by_sharing(snapshot: &Snapshot, extent: &Extent, found: &mut Vec<Extent>) -> Result<(), Stop> {
    let run = extent.run();
    let mut at = run.start;
    let mut push = |start: LunBlock, end: LunBlock, shared: bool| {
        let file = extent.file + (start - run.start);
        let alike = found.last_mut().filter(|last| {
            last.end() == file
                && last.shared == shared
                && last.state == extent.state
                && last.lun + last.len == start
        });
        match alike {
            Some(last) => last.len += end - start,
            None => found.push(Extent { file, lun: start, len: end - start, shared, ..*extent }),
        }
    };
    let before = snapshot.shared.range(..run.start.0)?.next_back();
    for row in before.into_iter().chain(snapshot.shared.range(run.start.0..run.end().0)?) {
        let (start, record) = row?;
        let entry = Run { start: LunBlock(start.value()), len: record.value().len.get() };
        if !entry.overlaps(run) {
            continue;
        }
        let (first, end) = (entry.start.max(run.start), entry.end().min(run.end()));
        if at < first {
            push(at, first, false);
        }
        push(first, end, true);
        at = end;
    }
    if at < run.end() {
        push(at, run.end(), false);
    }
    Ok(())
}
