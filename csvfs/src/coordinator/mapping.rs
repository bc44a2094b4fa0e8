//! The layout of a file: which LUN blocks its blocks are.

use redb::ReadableTable;
use zerocopy::little_endian::U64;

use super::change::Change;
use super::stop::Stop;
use crate::store::record::{ExtentRecord, InodeRecord};
use crate::store::{low, pair};
use crate::types::{Extent, ExtentState, FileBlock, Ino, Run};

/// The extents of `ino` that have a block in `from..to`, in order, at most `limit`.
pub fn extents<T>(
    table: &T,
    ino: Ino,
    from: FileBlock,
    to: FileBlock,
    limit: usize,
) -> Result<Vec<Extent>, Stop>
where
    T: ReadableTable<u128, ExtentRecord>,
{
    let mut found = Vec::new();
    if from >= to || limit == 0 {
        return Ok(found);
    }
    if let Some(row) = table.range(pair(ino.0, 0)..pair(ino.0, from.0))?.next_back() {
        let (key, record) = row?;
        let extent = record.value().at(FileBlock(low(key.value())));
        if extent.end() > from {
            found.push(extent);
        }
    }
    for row in table.range(pair(ino.0, from.0)..pair(ino.0, to.0))? {
        if found.len() >= limit {
            break;
        }
        let (key, record) = row?;
        found.push(record.value().at(FileBlock(low(key.value()))));
    }
    Ok(found)
}

/// A part of an extent.
pub fn part(extent: &Extent, from: FileBlock, to: FileBlock) -> Extent {
    let (start, end) = (extent.file.max(from), extent.end().min(to));
    Extent { file: start, lun: extent.lun + (start - extent.file), len: end - start, ..*extent }
}

/// A record of the layout's next version.
pub fn bump(record: &mut InodeRecord) {
    record.version = U64::new(record.version.get() + 1);
}

/// The extents of `ino` that have a block from `first` on, the last first, at most `limit`.
fn last_extents<T>(table: &T, ino: Ino, first: FileBlock, limit: usize) -> Result<Vec<Extent>, Stop>
where
    T: ReadableTable<u128, ExtentRecord>,
{
    let mut found = Vec::new();
    for row in table.range(pair(ino.0, 0)..=pair(ino.0, u64::MAX))?.rev().take(limit) {
        let (key, record) = row?;
        let extent = record.value().at(FileBlock(low(key.value())));
        if extent.end() <= first {
            break;
        }
        found.push(extent);
    }
    Ok(found)
}

impl Change<'_, '_> {
    /// The extents of `ino` with a block from `first` on, the last first, at most `limit`.
    pub fn last_extents(&self, ino: Ino, first: FileBlock, limit: usize) -> Result<Vec<Extent>, Stop> {
        last_extents(self.tables.extents()?, ino, first, limit)
    }

    /// The extents of `ino` with a block in `from..to`, at most `limit`.
    pub fn extents(
        &self,
        ino: Ino,
        from: FileBlock,
        to: FileBlock,
        limit: usize,
    ) -> Result<Vec<Extent>, Stop> {
        extents(self.tables.extents()?, ino, from, to, limit)
    }

    /// Takes the parts within `from..to` of `extents` out of the layout, and drops their references.
    pub fn unmap(
        &mut self,
        ino: Ino,
        record: &mut InodeRecord,
        extents: &[Extent],
        from: FileBlock,
        to: FileBlock,
    ) -> Result<(), Stop> {
        for extent in extents {
            let gone = part(extent, from, to);
            self.replace(ino, extent, &gone, None)?;
            self.drop_reference(gone.run(), gone.shared)?;
            super::space::subtract(&mut record.blocks, gone.len)?;
        }
        Ok(())
    }

    /// Replaces `gone`, a part of the stored extent `whole`, by `new` or by a hole. References stay as they are.
    pub fn replace(
        &mut self,
        ino: Ino,
        whole: &Extent,
        gone: &Extent,
        new: Option<Extent>,
    ) -> Result<(), Stop> {
        self.dirty = true;
        if whole.file == gone.file {
            self.tables.extents_mut()?.remove(pair(ino.0, whole.file.0))?;
        } else {
            self.store_extent(ino, &part(whole, whole.file, gone.file))?;
        }
        if gone.end() < whole.end() {
            self.store_extent(ino, &part(whole, gone.end(), whole.end()))?;
        }
        match new {
            Some(new) => self.map(ino, new),
            None => Ok(()),
        }
    }

    fn store_extent(&mut self, ino: Ino, extent: &Extent) -> Result<(), Stop> {
        self.tables.extents_mut()?.insert(pair(ino.0, extent.file.0), ExtentRecord::of(extent))?;
        Ok(())
    }

    /// Puts `extent` into a hole of the layout, joined with its neighbours where file and LUN go on alike.
    pub fn map(&mut self, ino: Ino, mut extent: Extent) -> Result<(), Stop> {
        self.dirty = true;
        let alike = |first: &Extent, second: &Extent| {
            first.end() == second.file
                && first.lun + first.len == second.lun
                && first.state == second.state
                && first.shared == second.shared
        };
        let before = self.tables.extents()?.range(pair(ino.0, 0)..pair(ino.0, extent.file.0))?.next_back();
        let left = before.transpose()?.map(|(key, record)| record.value().at(FileBlock(low(key.value()))));
        if let Some(left) = left.filter(|left| alike(left, &extent)) {
            extent = Extent { len: left.len + extent.len, ..left };
        }
        let next = pair(ino.0, extent.end().0);
        let after = self.tables.extents()?.get(next)?.map(|record| record.value().at(extent.end()));
        if let Some(right) = after.filter(|right| alike(&extent, right)) {
            self.tables.extents_mut()?.remove(next)?;
            extent.len += right.len;
        }
        self.store_extent(ino, &extent)
    }

    /// Takes free blocks and maps them unwritten into the hole `from..to`, in at most `runs_max` runs. Returns up to
    /// where it came.
    pub fn fill(
        &mut self,
        ino: Ino,
        record: &mut InodeRecord,
        from: FileBlock,
        to: FileBlock,
        runs_max: usize,
    ) -> Result<FileBlock, Stop> {
        let mut at = from;
        for run in self.take(to - from, runs_max)? {
            self.map(ino, unwritten(at, run))?;
            at = at + run.len;
            super::space::add(&mut record.blocks, run.len);
        }
        Ok(at)
    }
}

fn unwritten(file: FileBlock, run: Run) -> Extent {
    Extent { file, lun: run.start, len: run.len, state: ExtentState::Unwritten, shared: false }
}

/// The holes between `extents` within `from..to`.
pub fn holes(extents: &[Extent], from: FileBlock, to: FileBlock) -> Vec<(FileBlock, FileBlock)> {
    let mut holes = Vec::new();
    let mut at = from;
    for extent in extents {
        if extent.file > at {
            holes.push((at, extent.file.min(to)));
        }
        at = at.max(extent.end());
    }
    if at < to {
        holes.push((at, to));
    }
    holes
}
