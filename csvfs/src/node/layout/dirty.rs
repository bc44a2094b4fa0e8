//! Which parts of a layout wait for a commit.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Content, Layout, Origin, Piece};
use crate::proto::WrittenRun;
use crate::types::FileBlock;

/// Ranges of file blocks in which dirty extents lie; merged where they touch.
#[derive(Default)]
pub(super) struct DirtyRanges(BTreeMap<FileBlock, FileBlock>);

impl DirtyRanges {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, mut range: Range<FileBlock>) {
        if let Some((&start, &end)) = self.0.range(..=range.start).next_back()
            && end >= range.start
        {
            range = start..range.end.max(end);
        }
        while let Some((&start, &end)) = self.0.range(range.start..=range.end).next() {
            self.0.remove(&start);
            range.end = range.end.max(end);
        }
        self.0.insert(range.start, range.end);
    }

    pub(super) fn remove(&mut self, range: &Range<FileBlock>) {
        if range.start >= range.end {
            return;
        }
        if let Some((&start, &end)) = self.0.range(..range.start).next_back()
            && end > range.start
        {
            self.0.insert(start, range.start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
        }
        while let Some((&start, &end)) = self.0.range(range.start..range.end).next() {
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
        }
    }

    fn from(&self, block: FileBlock) -> impl Iterator<Item = Range<FileBlock>> {
        let first = self.0.range(..=block).next_back().map_or(block, |(&start, _)| start);
        self.0
            .range(first..)
            .map(move |(&start, &end)| start.max(block)..end)
            .filter(|range| range.start < range.end)
    }
}

impl Layout {
    /// The first `limit` dirty runs from `from` on, and whether some of them replace shared blocks.
    pub(in super::super) fn dirty_runs(&self, from: FileBlock, limit: usize) -> (Vec<WrittenRun>, bool) {
        let mut replaces = false;
        let mut runs = Vec::new();
        'ranges: for range in self.dirty.from(from) {
            for Piece { file, lun, len, content } in self.pieces(range) {
                let Content::Dirty(origin) = content else { continue };
                if runs.len() == limit {
                    break 'ranges;
                }
                replaces |= origin == Origin::Shared;
                runs.push(WrittenRun { file, lun, len });
            }
        }
        (runs, replaces)
    }

    /// The coordinator has committed `runs`.
    pub(in super::super) fn committed(&mut self, runs: &[WrittenRun]) {
        for run in runs {
            let range = run.file..run.file + run.len;
            let known: Vec<Piece> = self
                .pieces(range.clone())
                .filter(|piece| matches!(piece.content, Content::Dirty(_)))
                .filter(|piece| piece.lun.0.wrapping_sub(run.lun.0) == piece.file - run.file)
                .collect();
            self.dirty.remove(&range);
            for piece in known {
                self.carve(piece);
                self.put(Piece { content: Content::Written { shared: false }, ..piece });
            }
        }
    }
}
