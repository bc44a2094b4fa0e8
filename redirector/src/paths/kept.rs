//! Completed writes that a flush has not covered yet, kept for a target that restarts (P9). Pure.

use std::collections::VecDeque;
use std::ops::Range;

use crate::buffer::Slice;

/// Entries at most: the cost of many small ones.
const ENTRIES_MAX: usize = 1 << 16;

/// A completed change.
#[derive(Clone, Debug)]
pub enum Change {
    /// These bytes were written at an offset.
    Write(u64, Slice),
    /// This range was zeroed.
    Zero(Range<u64>),
}

impl Change {
    /// The bytes of the LUN that it changed.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        match self {
            Self::Write(offset, data) => *offset..offset + data.len() as u64,
            Self::Zero(range) => range.clone(),
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::Write(_, data) => data.len(),
            Self::Zero(_) => 0,
        }
    }
}

/// Bytes that are worth a flush which costs little.
const EARLY: usize = 1 << 20;

/// The changes that the target may lose when it restarts, in the order of their completion.
#[derive(Debug)]
pub struct Kept {
    changes: VecDeque<(u64, Change)>,
    bytes: usize,
    bytes_max: usize,
    last: u64,
    /// The last change that was not kept for want of room.
    missing: u64,
    /// Bytes kept that a flush is worth.
    flush_at: usize,
    flush_asked: bool,
}

impl Kept {
    /// Nothing kept; at most `bytes_max` bytes later.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            changes: VecDeque::new(),
            bytes: 0,
            bytes_max,
            last: 0,
            missing: 0,
            flush_at: bytes_max / 2,
            flush_asked: false,
        }
    }

    /// Keeps a completed change, or at the bound remembers that one is missing. Whether a flush should be made: once
    /// when half of the room is taken, or what [`Kept::flush_early`] has said.
    pub fn keep(&mut self, change: Change) -> bool {
        self.last += 1;
        let cost = change.cost();
        if self.bytes + cost > self.bytes_max || self.changes.len() >= ENTRIES_MAX {
            self.missing = self.last;
        } else {
            self.bytes += cost;
            self.changes.push_back((self.last, change));
        }
        let full = self.bytes >= self.flush_at || self.changes.len() >= ENTRIES_MAX / 2;
        full && !std::mem::replace(&mut self.flush_asked, true)
    }

    /// Whether a flush is worth while for a little: where every change is durable by itself, it costs nothing, and a switch to
    /// another target has less to replay.
    pub fn flush_early(&mut self, early: bool) {
        self.flush_at = if early { EARLY.min(self.bytes_max / 2) } else { self.bytes_max / 2 };
    }

    /// The number of the last completed change: what a flush that starts now covers.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// A flush is done that covers the changes up to `covers`: they are not needed any more.
    pub fn flushed(&mut self, covers: u64) {
        while let Some((number, change)) = self.changes.front()
            && *number <= covers
        {
            self.bytes -= change.cost();
            self.changes.pop_front();
        }
        if self.missing <= covers {
            self.missing = 0;
        }
        self.flush_asked = false;
    }

    /// A flush that was asked for did not come about; it is asked for again.
    pub fn not_flushed(&mut self) {
        self.flush_asked = false;
    }

    /// All changes that a restarted target may have lost, in batches: within one, none overlaps another, so that its
    /// members may be executed in any order.
    #[must_use]
    pub fn batches(&self, batch_max: usize) -> Vec<Vec<Change>> {
        let mut batches = Vec::new();
        let mut batch: Vec<Change> = Vec::new();
        let mut taken = std::collections::BTreeMap::new();
        for (_, change) in &self.changes {
            let range = change.range();
            let before = taken.range(..range.end).next_back();
            let overlaps = before.is_some_and(|(_, end)| *end > range.start);
            if overlaps || batch.len() >= batch_max {
                batches.push(std::mem::take(&mut batch));
                taken.clear();
            }
            taken.insert(range.start, range.end);
            batch.push(change.clone());
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// Forgets all: none of it may be written any more.
    pub fn abandon(&mut self) {
        self.changes.clear();
        self.bytes = 0;
    }

    /// Whether something is missing that a restarted target may have lost.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.missing != 0
    }

    /// Forgets what is missing: the next flush reports it.
    pub fn reported(&mut self) {
        self.missing = 0;
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    fn write(pool: &Pool, offset: u64, len: usize) -> Change {
        Change::Write(offset, pool.take(len).share())
    }

    #[test]
    fn a_flush_covers_what_was_completed_before_it() {
        let pool = Pool::default();
        let mut kept = Kept::new(16384);
        kept.keep(write(&pool, 0, 4096));
        let covers = kept.last();
        kept.keep(write(&pool, 4096, 512));
        kept.flushed(covers);
        assert_eq!(kept.bytes(), 512);
        kept.flushed(covers);
        assert_eq!(kept.bytes(), 512);
    }

    #[test]
    fn at_the_bound_a_flush_is_asked_for_and_what_is_missing_is_known() {
        let pool = Pool::default();
        let mut kept = Kept::new(16384);
        assert!(!kept.keep(write(&pool, 0, 4096)));
        assert!(kept.keep(write(&pool, 0, 4096)), "half full");
        assert!(!kept.keep(write(&pool, 0, 8192)), "asked already");
        assert!(!kept.is_incomplete());
        let covers = kept.last();
        kept.keep(write(&pool, 0, 4096));
        assert!(kept.is_incomplete());
        kept.flushed(covers);
        assert!(kept.is_incomplete(), "the missing one came after that flush began");
        kept.flushed(kept.last());
        assert!(!kept.is_incomplete());
        assert_eq!(kept.bytes(), 0);
    }

    #[test]
    fn overlapping_changes_come_in_different_batches() {
        let pool = Pool::default();
        let mut kept = Kept::new(1 << 20);
        kept.keep(write(&pool, 0, 4096));
        kept.keep(write(&pool, 8192, 4096));
        kept.keep(Change::Zero(4096..8192));
        kept.keep(write(&pool, 2048, 4096));
        kept.keep(write(&pool, 65536, 4096));
        let starts: Vec<Vec<u64>> = kept
            .batches(64)
            .iter()
            .map(|batch| batch.iter().map(|change| change.range().start).collect())
            .collect();
        assert_eq!(starts, [vec![0, 8192, 4096], vec![2048, 65536]]);
        assert_eq!(kept.batches(1).len(), 5);
    }
}
