//! The locks that one owner holds on one file.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use super::lock::{LockMode, LockRequest};
use super::range::ByteRange;
use crate::ids::GrantId;

/// A part of a grant that is still held; it starts at its key in [`Held`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(super) struct Piece {
    /// The last byte.
    pub(super) end: u64,
    pub(super) mode: LockMode,
    pub(super) pid: u32,
    pub(super) grant: GrantId,
}

/// How many pieces a change takes away and adds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Change {
    pub(super) removed: usize,
    pub(super) added: usize,
}

/// Disjoint pieces by their first byte.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(super) struct Held {
    pieces: BTreeMap<u64, Piece>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// All pieces as (first byte, piece), in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Piece)> {
        self.pieces.iter().map(|(start, piece)| (*start, piece))
    }

    /// The pieces that have a byte in `range`, in order. Pieces from decoded bytes may be malformed: such are skipped.
    pub(super) fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, &Piece)> {
        let before = self.pieces.range(..range.start()).next_back().map(|(start, _)| *start);
        let from = before.unwrap_or(range.start());
        let near = self.pieces.range(from..=range.end());
        near.filter_map(move |(start, piece)| {
            let bytes = ByteRange::new(*start, piece.end)?;
            bytes.overlaps(range).then_some((bytes, piece))
        })
    }

    /// The first piece in `range` that keeps another owner from having it in `mode`.
    pub(super) fn conflict(&self, range: ByteRange, mode: LockMode) -> Option<(ByteRange, &Piece)> {
        self.overlapping(range)
            .find(|(_, piece)| mode == LockMode::Exclusive || piece.mode == LockMode::Exclusive)
    }

    /// `bytes`, a piece in `mode`, together with its neighbours in the same mode: as programs see it.
    pub(super) fn merged(&self, bytes: ByteRange, mode: LockMode) -> ByteRange {
        let (mut start, mut end) = (bytes.start(), bytes.end());
        for (first, piece) in self.pieces.range(..start).rev() {
            if piece.mode != mode || piece.end.checked_add(1) != Some(start) {
                break;
            }
            start = *first;
        }
        for (first, piece) in self.pieces.range(bytes.end()..).filter(|(first, _)| **first > bytes.end()) {
            if piece.mode != mode || end.checked_add(1) != Some(*first) {
                break;
            }
            end = piece.end;
        }
        ByteRange::new(start, end).unwrap_or(bytes)
    }

    /// What [`Held::carve`] would do.
    pub(super) fn carving(&self, range: ByteRange, through: GrantId) -> Change {
        let mut change = Change::default();
        for (bytes, _) in self.overlapping(range).filter(|(_, piece)| piece.grant <= through) {
            change.removed += 1;
            change.added += usize::from(bytes.before(range).is_some());
            change.added += usize::from(bytes.after(range).is_some());
        }
        change
    }

    /// Takes away what was granted in `range` by grants up to `through`; what sticks out of `range` stays.
    pub(super) fn carve(&mut self, range: ByteRange, through: GrantId) -> Change {
        let change = self.carving(range, through);
        let hit: Vec<(ByteRange, Piece)> = self
            .overlapping(range)
            .filter(|(_, piece)| piece.grant <= through)
            .map(|(bytes, piece)| (bytes, *piece))
            .collect();
        for (bytes, piece) in hit {
            self.pieces.remove(&bytes.start());
            for rest in [bytes.before(range), bytes.after(range)].into_iter().flatten() {
                self.pieces.insert(rest.start(), Piece { end: rest.end(), ..piece });
            }
        }
        change
    }

    /// Adds a lock on bytes that have been carved out before.
    pub(super) fn put(&mut self, lock: &LockRequest, grant: GrantId) {
        let piece = Piece { end: lock.range.end(), mode: lock.mode, pid: lock.pid, grant };
        self.pieces.insert(lock.range.start(), piece);
    }
}
