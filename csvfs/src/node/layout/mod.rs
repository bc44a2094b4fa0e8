//! A file's layout as its owner has it: what the coordinator knows, and what has happened here since.
//!
//! | content | on the LUN | the coordinator knows |
//! |---|---|---|
//! | `Written` | the file's data, maybe shared with other files | the same |
//! | `Unwritten` | whatever an earlier file left; reads as zeros | the same |
//! | `Fresh` | a block of the reserve, given to this place; reads as zeros | a hole |
//! | `Dirty` | the file's data, readable on this node | a hole, an unwritten extent, or the shared block it replaces |
//!
//! A write into a hole makes it `Fresh` before, `Dirty` when it is done; a commit makes it `Written`. `Fresh` blocks
//! beside it are the file's speculation for the writes that follow, so that concurrent writers of a growing file
//! still lay it out in one piece; they go back to the reserve when the file is closed.
//!
//! The whole map is in memory while the file is open: about 60 bytes for each extent.

mod dirty;
mod fill;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::types::{Extent, ExtentState, FileBlock, LunBlock, Run};
use dirty::DirtyRanges;
pub(super) use fill::{Base, Segment, Short};

/// What the coordinator has where a dirty extent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Nothing: the blocks are of the reserve.
    Hole,
    /// The same blocks, unwritten.
    Unwritten,
    /// Other, shared blocks (V11): these are of the reserve.
    Shared,
}

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Written { shared: bool },
    Unwritten { shared: bool },
    Fresh,
    Dirty(Origin),
}

impl Content {
    /// Whether the blocks hold the file's data.
    fn is_data(self) -> bool {
        matches!(self, Self::Written { .. } | Self::Dirty(_))
    }

    /// Whether the blocks belong to the node's reserve, as the coordinator has it.
    fn is_of_reserve(self) -> bool {
        matches!(self, Self::Fresh | Self::Dirty(Origin::Hole | Origin::Shared))
    }
}

/// Consecutive file blocks on consecutive LUN blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) file: FileBlock,
    pub(super) lun: LunBlock,
    pub(super) len: u64,
    pub(super) content: Content,
}

impl Piece {
    fn end(&self) -> FileBlock {
        self.file + self.len
    }

    /// The part of the piece in `range`.
    fn clip(&self, range: &Range<FileBlock>) -> Self {
        let (file, end) = (self.file.max(range.start), self.end().min(range.end));
        Self { file, lun: self.lun + (file - self.file), len: end - file, content: self.content }
    }

    fn run(&self) -> Run {
        Run { start: self.lun, len: self.len }
    }
}

/// What is at a block, and for how many blocks from there on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) len: u64,
    /// Where the data is; `None` reads as zeros.
    pub(super) data: Option<LunBlock>,
    /// Whether whole blocks are written in place, with nothing to note afterwards.
    pub(super) in_place: bool,
}

#[derive(Clone, Copy)]
struct Stored {
    lun: LunBlock,
    len: u64,
    content: Content,
}

/// See the module.
#[derive(Default)]
pub(super) struct Layout {
    pieces: BTreeMap<FileBlock, Stored>,
    dirty: DirtyRanges,
    growth: fill::Growth,
    fresh_blocks: u64,
    new_blocks: u64,
}

impl Layout {
    /// Blocks that the file has here and the coordinator does not know yet.
    pub(super) fn new_blocks(&self) -> u64 {
        self.new_blocks
    }

    /// Blocks kept for writes to come.
    pub(super) fn fresh_blocks(&self) -> u64 {
        self.fresh_blocks
    }

    /// How many separate parts wait for a commit, about.
    pub(super) fn dirty_parts(&self) -> usize {
        self.dirty.len()
    }

    /// How many extents there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Replaces `range` by what the coordinator says that it is.
    pub(super) fn load(&mut self, range: &Range<FileBlock>, extents: &[Extent]) {
        self.cut(range);
        for extent in extents {
            let content = match extent.state {
                ExtentState::Written => Content::Written { shared: extent.shared },
                ExtentState::Unwritten => Content::Unwritten { shared: extent.shared },
            };
            let piece = Piece { file: extent.file, lun: extent.lun, len: extent.len, content };
            if piece.end() > range.start && piece.file < range.end {
                self.put(piece.clip(range));
            }
        }
    }

    /// What is at `block`.
    pub(super) fn at(&self, block: FileBlock) -> Span {
        if let Some((&file, stored)) = self.pieces.range(..=block).next_back()
            && file + stored.len > block
        {
            let skip = block - file;
            return Span {
                len: stored.len - skip,
                data: stored.content.is_data().then(|| stored.lun + skip),
                in_place: matches!(stored.content, Content::Written { shared: false } | Content::Dirty(_)),
            };
        }
        let next = self.pieces.range(block..).next();
        Span { len: next.map_or(u64::MAX, |(&file, _)| file - block), data: None, in_place: false }
    }

    /// The pieces that overlap `range`, clipped to it.
    pub(super) fn pieces(&self, range: Range<FileBlock>) -> impl Iterator<Item = Piece> {
        let first = self.pieces.range(..range.start).next_back().map_or(range.start, |(&file, _)| file);
        let all = self.pieces.range(first..range.end.max(first));
        all.map(|(&file, stored)| Piece { file, lun: stored.lun, len: stored.len, content: stored.content })
            .filter(move |piece| piece.end() > range.start)
            .map({
                let range = range.clone();
                move |piece| piece.clip(&range)
            })
    }

    /// Takes `range` out of the map. What belonged to the reserve is returned, to go back to it.
    pub(super) fn cut(&mut self, range: &Range<FileBlock>) -> Vec<Run> {
        let pieces: Vec<Piece> = self.pieces(range.clone()).collect();
        for piece in &pieces {
            self.carve(*piece);
        }
        self.dirty.remove(range);
        pieces.iter().filter(|piece| piece.content.is_of_reserve()).map(Piece::run).collect()
    }

    /// Takes the `Fresh` blocks of `range` out of the map: they go back to the reserve.
    pub(super) fn cut_fresh(&mut self, range: &Range<FileBlock>) -> Vec<Run> {
        let fresh = self.pieces(range.clone()).filter(|piece| piece.content == Content::Fresh);
        let fresh: Vec<Piece> = fresh.collect();
        for piece in &fresh {
            self.carve(*piece);
        }
        fresh.iter().map(Piece::run).collect()
    }

    /// A write to `len` blocks at `file`, on the LUN at `lun`, is done: what was blank there is data now.
    pub(super) fn written(&mut self, file: FileBlock, lun: LunBlock, len: u64) {
        let blank: Vec<(Piece, Origin)> = self
            .pieces(file..file + len)
            .filter(|piece| piece.lun.0.wrapping_sub(lun.0) == piece.file - file)
            .filter_map(|piece| match piece.content {
                Content::Fresh => Some((piece, Origin::Hole)),
                Content::Unwritten { shared: false } => Some((piece, Origin::Unwritten)),
                _ => None,
            })
            .collect();
        for (piece, origin) in blank {
            self.carve(piece);
            self.put(Piece { content: Content::Dirty(origin), ..piece });
        }
    }

    /// A copy on write is done: the file's data is at `lun` now.
    pub(super) fn replaced(&mut self, file: FileBlock, lun: LunBlock, len: u64) {
        for piece in self.pieces(file..file + len).collect::<Vec<_>>() {
            self.carve(piece);
        }
        self.put(Piece { file, lun, len, content: Content::Dirty(Origin::Shared) });
    }

    /// Takes a part of one piece out.
    fn carve(&mut self, part: Piece) {
        let Some((&file, &stored)) = self.pieces.range(..=part.file).next_back() else { return };
        let whole = Piece { file, lun: stored.lun, len: stored.len, content: stored.content };
        self.pieces.remove(&file);
        self.count(&whole, false);
        for rest in [file..part.file, part.end()..whole.end()] {
            if rest.start < rest.end {
                self.insert(whole.clip(&rest));
            }
        }
    }

    /// Puts a piece where nothing is, merged with its neighbours where they go on.
    fn put(&mut self, mut piece: Piece) {
        if matches!(piece.content, Content::Dirty(_)) {
            self.dirty.add(piece.file..piece.end());
        }
        if let Some((&file, &before)) = self.pieces.range(..piece.file).next_back()
            && file + before.len == piece.file
            && before.lun + before.len == piece.lun
            && before.content == piece.content
        {
            let before = Piece { file, lun: before.lun, len: before.len, content: before.content };
            self.pieces.remove(&file);
            self.count(&before, false);
            piece = Piece { len: before.len + piece.len, ..before };
        }
        if let Some(&after) = self.pieces.get(&piece.end())
            && piece.lun + piece.len == after.lun
            && piece.content == after.content
        {
            let after = Piece { file: piece.end(), lun: after.lun, len: after.len, content: after.content };
            self.pieces.remove(&after.file);
            self.count(&after, false);
            piece.len += after.len;
        }
        self.insert(piece);
    }

    fn insert(&mut self, piece: Piece) {
        self.count(&piece, true);
        let Piece { file, lun, len, content } = piece;
        self.pieces.insert(file, Stored { lun, len, content });
    }

    fn count(&mut self, piece: &Piece, comes: bool) {
        let count = match piece.content {
            Content::Fresh => &mut self.fresh_blocks,
            Content::Dirty(Origin::Hole) => &mut self.new_blocks,
            _ => return,
        };
        *count = if comes { *count + piece.len } else { *count - piece.len };
    }
}
