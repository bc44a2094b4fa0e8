//! Where a write goes: in place, into blank blocks, or to a copy.

use std::ops::Range;

use super::super::stock::Stock;
use super::{Content, Layout, Piece};
use crate::types::{FileBlock, LunBlock};

/// The speculation of a file that starts to grow, and the largest, in blocks: 64 KiB and 8 MiB.
const WINDOW_MIN: u64 = 16;
const WINDOW_MAX: u64 = 2048;
/// Speculation stays below this part of the reserve's free blocks.
const WINDOW_SHARE: u64 = 8;

/// How a file has grown so far.
#[derive(Default)]
pub(super) struct Growth {
    /// Where the last blocks that were given to it end: a write that comes here goes on sequentially.
    end: FileBlock,
    window: u64,
}

/// What a part of a block keeps that a write does not cover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Base {
    /// The data that is there: the block is the file's own.
    Own,
    /// Zeros: the block has never been written; it has to be marked when it has.
    Blank,
    /// What the shared block holds (`None`: zeros); the new block takes its place when it has been written (V11).
    Copy(Option<LunBlock>),
}

/// Consecutive blocks that a write goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct Segment {
    pub(in super::super) file: FileBlock,
    pub(in super::super) lun: LunBlock,
    pub(in super::super) len: u64,
    pub(in super::super) base: Base,
}

/// The stock has too few blocks; so many are needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct Short(pub(in super::super) u64);

fn is_shared(content: Content) -> bool {
    matches!(content, Content::Written { shared: true } | Content::Unwritten { shared: true })
}

impl Layout {
    /// Whether a write to `range` has to copy shared blocks.
    pub(in super::super) fn has_shared(&self, range: Range<FileBlock>) -> bool {
        self.pieces(range).any(|piece| is_shared(piece.content))
    }

    /// The segments of a write to `range`; holes are filled from `stock`. Takes all that it needs, or nothing.
    /// `copies`: shared blocks are replaced (V11).
    pub(in super::super) fn fill(
        &mut self,
        range: Range<FileBlock>,
        stock: &mut Stock,
        copies: bool,
    ) -> Result<Vec<Segment>, Short> {
        let pieces: Vec<Piece> = self.pieces(range.clone()).collect();
        let own = pieces.iter().filter(|piece| !copies || !is_shared(piece.content));
        let needed = (range.end - range.start) - own.map(|piece| piece.len).sum::<u64>();
        if needed > stock.free() {
            return Err(Short(needed));
        }
        let mut segments = Vec::with_capacity(pieces.len().max(1));
        let mut at = range.start;
        for piece in pieces {
            self.fill_hole(at..piece.file, stock, &mut segments);
            at = piece.end();
            let base = match piece.content {
                Content::Written { shared: true } if copies => Base::Copy(Some(piece.lun)),
                Content::Unwritten { shared: true } if copies => Base::Copy(None),
                Content::Written { .. } | Content::Dirty(_) => Base::Own,
                Content::Unwritten { .. } | Content::Fresh => Base::Blank,
            };
            match base {
                Base::Copy(old) => copy(&piece, old, stock, &mut segments),
                Base::Own | Base::Blank => {
                    segments.push(Segment { file: piece.file, lun: piece.lun, len: piece.len, base });
                }
            }
        }
        self.fill_hole(at..range.end, stock, &mut segments);
        Ok(segments)
    }

    /// Gives the hole `gap`, and some blocks after it, to the file.
    fn fill_hole(&mut self, gap: Range<FileBlock>, stock: &mut Stock, segments: &mut Vec<Segment>) {
        if gap.start >= gap.end {
            return;
        }
        let hole = self.at(gap.start).len;
        let needed = gap.end - gap.start;
        self.growth.window = match self.growth.window {
            window if gap.start == self.growth.end => (window * 2).clamp(WINDOW_MIN, WINDOW_MAX),
            _ => 0,
        };
        let spare = (stock.free().saturating_sub(needed) / WINDOW_SHARE).min(self.growth.window);
        let mut left = (needed + spare).min(hole);
        let mut file = gap.start;
        let mut near = file.0.checked_sub(1).and_then(|before| {
            let before = self.pieces(FileBlock(before)..file).next()?;
            Some(before.lun + 1)
        });
        while left > 0 {
            let Some(run) = stock.take(left, near) else { break };
            self.put(Piece { file, lun: run.start, len: run.len, content: Content::Fresh });
            if file < gap.end {
                let len = run.len.min(gap.end - file);
                segments.push(Segment { file, lun: run.start, len, base: Base::Blank });
            }
            (file, left, near) = (file + run.len, left - run.len, Some(run.end()));
        }
        assert!(file >= gap.end, "the stock was counted before");
        self.growth.end = file;
    }
}

/// Blocks for a copy of `piece`; they come into the map when they have been written.
fn copy(piece: &Piece, old: Option<LunBlock>, stock: &mut Stock, segments: &mut Vec<Segment>) {
    let (mut file, mut left, mut old) = (piece.file, piece.len, old);
    while left > 0 {
        let run = stock.take(left, None).expect("the stock was counted before");
        segments.push(Segment { file, lun: run.start, len: run.len, base: Base::Copy(old) });
        (file, left, old) = (file + run.len, left - run.len, old.map(|old| old + run.len));
    }
}
