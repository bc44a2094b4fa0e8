//! Which blocks are whose: free, held back, shared.

use redb::ReadableTable;

use super::change::Change;
use super::stop::Stop;
use crate::store::record::{HeldRecord, SharedRecord, Why};
use crate::store::{Result, StoreError};
use crate::types::{LunBlock, Run};
use lockd::rules::Rule;
use zerocopy::little_endian::U64;

/// How many free extents one search looks at before it takes the longest that it saw.
const SEARCH_MAX: usize = 128;
/// How many free extents one search for a chunk looks at; the next goes on where it ended.
const CHUNK_SEARCH_MAX: usize = 4096;

fn damaged(run: Run, what: &str) -> StoreError {
    StoreError::Damaged(format!("LUN blocks {}..{} {what}", run.start.0, run.end().0))
}

/// Adds to a number of the volume.
pub fn add(counter: &mut U64, blocks: u64) {
    counter.set(counter.get().wrapping_add(blocks));
}

/// Takes from a number of the volume.
pub fn subtract(counter: &mut U64, blocks: u64) -> Result<()> {
    match counter.get().checked_sub(blocks) {
        Some(rest) => {
            counter.set(rest);
            Ok(())
        }
        None => Err(StoreError::Damaged("a count of blocks or inodes would fall below zero".to_owned())),
    }
}

impl Change<'_, '_> {
    /// How many blocks may be given out.
    pub fn free_blocks(&self) -> u64 {
        self.counters.free.get()
    }

    /// Takes up to `want` free blocks, in at most `runs_max` runs, as long ones as a bounded search finds. All that is
    /// wanted is found if it is free and `runs_max` allows.
    pub fn take(&mut self, want: u64, runs_max: usize) -> Result<Vec<Run>, Stop> {
        let mut taken: Vec<Run> = Vec::new();
        let mut missing = want.min(self.free_blocks());
        while missing > 0 && taken.len() < runs_max {
            let found = self.search(missing)?;
            if found.is_empty() {
                return Err(
                    StoreError::Damaged(format!("{missing} blocks are counted as free but are not")).into()
                );
            }
            for run in found {
                if missing == 0 || taken.len() == runs_max {
                    break;
                }
                let part = Run { start: run.start, len: run.len.min(missing) };
                self.cut_free(run, part)?;
                self.hints.data = part.end().0;
                missing -= part.len;
                taken.push(part);
            }
        }
        Ok(taken)
    }

    /// The first free extent from the cursor on that has `want` blocks, or the ones that were seen, longest first.
    fn search(&self, want: u64) -> Result<Vec<Run>, Stop> {
        let mut seen = Vec::new();
        let cursor = self.hints.data;
        for range in [cursor..u64::MAX, 0..cursor] {
            for row in self.tables.free()?.range(range)? {
                let (start, len) = row?;
                let run = Run { start: LunBlock(start.value()), len: len.value() };
                if run.len >= want {
                    return Ok(vec![run]);
                }
                seen.push(run);
                if seen.len() == SEARCH_MAX {
                    break;
                }
            }
            if seen.len() == SEARCH_MAX {
                break;
            }
        }
        seen.sort_by_key(|run| std::cmp::Reverse(run.len));
        Ok(seen)
    }

    /// Takes a free chunk of `blocks` blocks that starts at a multiple of `blocks`, if a bounded search finds one.
    pub fn take_chunk(&mut self, blocks: u64) -> Result<Option<Run>, Stop> {
        let cursor = self.hints.chunk;
        let mut looked = 0;
        let mut found = None;
        'search: for range in [cursor..u64::MAX, 0..cursor] {
            for row in self.tables.free()?.range(range)? {
                let (start, len) = row?;
                let run = Run { start: LunBlock(start.value()), len: len.value() };
                let first = LunBlock(run.start.0.next_multiple_of(blocks));
                if first + blocks <= run.end() {
                    found = Some((run, Run { start: first, len: blocks }));
                    break 'search;
                }
                self.hints.chunk = run.start.0 + 1;
                looked += 1;
                if looked == CHUNK_SEARCH_MAX {
                    break 'search;
                }
            }
        }
        let Some((run, chunk)) = found else { return Ok(None) };
        self.cut_free(run, chunk)?;
        self.hints.chunk = chunk.end().0;
        Ok(Some(chunk))
    }

    /// Takes `part` out of the free extent `run`.
    fn cut_free(&mut self, run: Run, part: Run) -> Result<(), Stop> {
        self.dirty = true;
        self.tables.free_mut()?.remove(run.start.0)?;
        if run.start < part.start {
            self.tables.free_mut()?.insert(run.start.0, part.start - run.start)?;
        }
        if part.end() < run.end() {
            self.tables.free_mut()?.insert(part.end().0, run.end() - part.end())?;
        }
        subtract(&mut self.counters.free, part.len)?;
        Ok(())
    }

    /// Makes `run` free, joined with its neighbours.
    pub fn give(&mut self, run: Run) -> Result<(), Stop> {
        self.dirty = true;
        let Run { mut start, len } = run;
        let mut end = start + len;
        let before = self.tables.free()?.range(..run.start.0)?.next_back().transpose()?;
        if let Some((key, value)) = before.map(|(key, value)| (key.value(), value.value())) {
            if key + value > start.0 {
                return Err(damaged(run, "are freed twice").into());
            }
            if key + value == start.0 {
                start = LunBlock(key);
            }
        }
        let after = self.tables.free()?.range(run.start.0..)?.next().transpose()?;
        if let Some((key, value)) = after.map(|(key, value)| (key.value(), value.value())) {
            if key < end.0 {
                return Err(damaged(run, "are freed twice").into());
            }
            if key == end.0 {
                end = LunBlock(key + value);
                self.tables.free_mut()?.remove(key)?;
            }
        }
        self.tables.free_mut()?.insert(start.0, end - start)?;
        add(&mut self.counters.free, len);
        Ok(())
    }

    /// Holds `run` back: nobody uses it any more, but a reader, a trim or a ghost may still reach it (V7).
    pub fn hold(&mut self, run: Run, why: Why) -> Result<(), Stop> {
        if !self.scene.rules.keeps(Rule::V7) {
            return self.give(run);
        }
        self.dirty = true;
        let now = self.scene.now;
        // Runs that are freed one after the other are mostly neighbours: one record for both.
        let before = self.tables.pending()?.range(..run.start.0)?.next_back().transpose()?;
        let joined = before.map(|(key, value)| (key.value(), value.value())).filter(|(key, record)| {
            key + record.len.get() == run.start.0
                && record.why.get() == why as u32
                && record.since.get() == now
        });
        let whole = match joined {
            Some((key, record)) => Run { start: LunBlock(key), len: record.len.get() + run.len },
            None => run,
        };
        if self.tables.pending_mut()?.insert(whole.start.0, HeldRecord::new(whole.len, why, now))?.is_some()
            && joined.is_none()
        {
            return Err(damaged(run, "are freed twice").into());
        }
        add(&mut self.counters.pending, run.len);
        Ok(())
    }

    /// The pieces of `run` by their number of references, those of one reference included.
    fn pieces(&self, run: Run) -> Result<Vec<(Run, u64)>, Stop> {
        let mut pieces = Vec::new();
        let mut at = run.start;
        let mut note = |start: u64, record: SharedRecord, at: &mut LunBlock| {
            let entry = Run { start: LunBlock(start), len: record.len.get() };
            if !entry.overlaps(run) {
                return;
            }
            let (from, to) = (entry.start.max(run.start), entry.end().min(run.end()));
            if *at < from {
                pieces.push((Run { start: *at, len: from - *at }, 1));
            }
            pieces.push((Run { start: from, len: to - from }, record.count.get()));
            *at = to;
        };
        if let Some(row) = self.tables.shared()?.range(..run.start.0)?.next_back() {
            let (start, record) = row?;
            note(start.value(), record.value(), &mut at);
        }
        for row in self.tables.shared()?.range(run.start.0..run.end().0)? {
            let (start, record) = row?;
            note(start.value(), record.value(), &mut at);
        }
        if at < run.end() {
            pieces.push((Run { start: at, len: run.end() - at }, 1));
        }
        Ok(pieces)
    }

    /// Cuts the entry of the shared table that covers `block` in two there.
    fn split_shared(&mut self, block: LunBlock) -> Result<(), Stop> {
        let Some(row) = self.tables.shared()?.range(..block.0)?.next_back() else { return Ok(()) };
        let (start, record) = row.map(|(start, record)| (start.value(), record.value()))?;
        let end = start + record.len.get();
        if end <= block.0 {
            return Ok(());
        }
        let part = |len: u64| SharedRecord { len: U64::new(len), count: record.count };
        self.tables.shared_mut()?.insert(start, part(block.0 - start))?;
        self.tables.shared_mut()?.insert(block.0, part(end - block.0))?;
        Ok(())
    }

    /// Joins the entry of the shared table that starts at `block` with the one before it, if they are alike.
    fn join_shared(&mut self, block: LunBlock) -> Result<(), Stop> {
        let Some(second) = self.tables.shared()?.get(block.0)?.map(|record| record.value()) else {
            return Ok(());
        };
        let Some(row) = self.tables.shared()?.range(..block.0)?.next_back() else { return Ok(()) };
        let (start, first) = row.map(|(start, record)| (start.value(), record.value()))?;
        if start + first.len.get() != block.0 || first.count != second.count {
            return Ok(());
        }
        self.tables.shared_mut()?.remove(block.0)?;
        let len = U64::new(first.len.get() + second.len.get());
        self.tables.shared_mut()?.insert(start, SharedRecord { len, count: first.count })?;
        Ok(())
    }

    /// Gives every piece of `run` the number of references that `count` makes of the present one; fewer than two need
    /// no entry. Returns the pieces that lost their last one.
    fn recount(&mut self, run: Run, count: impl Fn(u64) -> u64) -> Result<Vec<Run>, Stop> {
        self.dirty = true;
        let pieces = self.pieces(run)?;
        self.split_shared(run.start)?;
        self.split_shared(run.end())?;
        let mut gone = Vec::new();
        for (piece, old) in &pieces {
            let new = count(*old);
            if new == 0 {
                gone.push(*piece);
            }
            if new >= 2 {
                let record = SharedRecord { len: U64::new(piece.len), count: U64::new(new) };
                self.tables.shared_mut()?.insert(piece.start.0, record)?;
            } else if *old >= 2 {
                self.tables.shared_mut()?.remove(piece.start.0)?;
            }
        }
        for (piece, _) in pieces {
            self.join_shared(piece.start)?;
        }
        self.join_shared(run.end())?;
        Ok(gone)
    }

    /// One more extent has `run`.
    pub fn refer(&mut self, run: Run) -> Result<(), Stop> {
        self.recount(run, |count| count + 1).map(|_| ())
    }

    /// One extent less has `run`. Blocks that had no other are held back and then freed. `shared`: others may have it.
    pub fn drop_reference(&mut self, run: Run, shared: bool) -> Result<(), Stop> {
        if !shared {
            return self.hold(run, Why::Freed);
        }
        for gone in self.recount(run, |count| count - 1)? {
            self.hold(gone, Why::Freed)?;
        }
        Ok(())
    }

    /// Whether any block of `run` has more than one reference.
    pub fn is_shared(&self, run: Run) -> Result<bool, Stop> {
        Ok(self.pieces(run)?.iter().any(|(_, count)| *count > 1))
    }
}
