//! The reserves of clients (V6), quarantine (P6), and the blocks of the metadata area.

use lockd::ids::ClientId;
use lockd::rules::Rule;
use redb::ReadableTable;
use zerocopy::little_endian::U64;

use super::change::Change;
use super::space::{add, subtract};
use super::stop::Stop;
use crate::proto::Answer;
use crate::refusal::Refusal;
use crate::store::record::{HeldRecord, Why};
use crate::store::{low, pair};
use crate::types::{LunBlock, Run};

/// Runs that one grant has at most.
const GRANT_RUNS: usize = 64;
/// Blocks that one grant has at most: 4 GiB.
const GRANT_BLOCKS: u64 = 1 << 20;
/// A grant takes no more than this part of the free blocks,
const GRANT_SHARE: u64 = 8;
/// unless they are fewer than so many.
const GRANT_LEAST: u64 = 256;
/// The largest number of chunks that one transaction gives to the metadata area.
const CHUNKS_AT_ONCE: u64 = 64;

fn not_reserved() -> Stop {
    Refusal::Invalid("blocks that are not in the caller's reserve".to_owned()).into()
}

impl Change<'_, '_> {
    /// [`crate::proto::Operation::Reserve`]. The grant is durable before the client hears of it: it is in this
    /// transaction (V6).
    pub fn reserve(&mut self, client: ClientId, want: u64) -> Result<Answer, Stop> {
        if want == 0 {
            return Err(Refusal::Invalid("no blocks are wanted".to_owned()).into());
        }
        self.room()?;
        let free = self.free_blocks();
        if free == 0 {
            return Err(Refusal::NoSpace.into());
        }
        let most = (free / GRANT_SHARE).max(GRANT_LEAST.min(free)).min(GRANT_BLOCKS);
        let runs = self.take(want.min(most), GRANT_RUNS)?;
        for run in &runs {
            if self.scene.rules.keeps(Rule::V6) {
                self.tables.reserves_mut()?.insert(pair(client.0, run.start.0), run.len)?;
            }
            add(&mut self.counters.reserved, run.len);
        }
        Ok(Answer::Runs(runs))
    }

    /// The entry of the client's reserve that has `block`.
    fn reserved_at(&self, client: ClientId, block: LunBlock) -> Result<Option<Run>, Stop> {
        let last = self.tables.reserves()?.range(pair(client.0, 0)..=pair(client.0, block.0))?.next_back();
        let Some(row) = last else { return Ok(None) };
        let (key, len) = row?;
        let run = Run { start: LunBlock(low(key.value())), len: len.value() };
        Ok((block < run.end()).then_some(run))
    }

    /// Refuses unless every block of `runs` is in the client's reserve, and none twice among them.
    pub fn check_reserved(&self, client: ClientId, runs: &[Run]) -> Result<(), Stop> {
        let mut sorted = runs.to_vec();
        sorted.sort_unstable();
        if sorted.windows(2).any(|two| two[0].overlaps(two[1])) {
            return Err(Refusal::Invalid("a block is named twice".to_owned()).into());
        }
        for run in sorted {
            if run.len == 0 || run.start.0.checked_add(run.len).is_none() {
                return Err(not_reserved());
            }
            let mut at = run.start;
            while at < run.end() {
                at = self.reserved_at(client, at)?.ok_or_else(not_reserved)?.end();
            }
        }
        Ok(())
    }

    /// Takes `run`, which has been checked, out of the client's reserve.
    pub fn spend(&mut self, client: ClientId, run: Run) -> Result<(), Stop> {
        self.dirty = true;
        let mut at = run.start;
        while at < run.end() {
            let entry = self.reserved_at(client, at)?.ok_or_else(not_reserved)?;
            let end = entry.end().min(run.end());
            self.tables.reserves_mut()?.remove(pair(client.0, entry.start.0))?;
            if entry.start < at {
                self.tables.reserves_mut()?.insert(pair(client.0, entry.start.0), at - entry.start)?;
            }
            if end < entry.end() {
                self.tables.reserves_mut()?.insert(pair(client.0, end.0), entry.end() - end)?;
            }
            at = end;
        }
        subtract(&mut self.counters.reserved, run.len)?;
        Ok(())
    }

    /// [`crate::proto::Operation::Return`]: nothing was sent to these blocks that is not done, so they are free at
    /// once.
    pub fn return_reserve(&mut self, client: ClientId, runs: &[Run]) -> Result<Answer, Stop> {
        self.check_reserved(client, runs)?;
        for run in runs {
            self.spend(client, *run)?;
            self.give(*run)?;
        }
        Ok(Answer::Done)
    }

    /// [`crate::proto::Operation::Quarantine`].
    pub fn quarantine(&mut self, client: ClientId, runs: &[Run]) -> Result<Answer, Stop> {
        self.check_reserved(client, runs)?;
        for run in runs {
            self.spend(client, *run)?;
            if self.scene.rules.keeps(Rule::P6) {
                let record = HeldRecord::new(run.len, Why::Ghost, self.scene.now);
                self.tables.quarantine_mut()?.insert(run.start.0, record)?;
                add(&mut self.counters.quarantined, run.len);
            } else {
                self.give(*run)?;
            }
        }
        Ok(Answer::Done)
    }

    /// The whole reserve of a client that is over is held back, and its slots are forgotten (V6).
    pub fn end_reserve(&mut self, client: ClientId) -> Result<(), Stop> {
        let mut runs = Vec::new();
        for row in self.tables.reserves()?.range(pair(client.0, 0)..=pair(client.0, u64::MAX))? {
            let (key, len) = row?;
            runs.push(Run { start: LunBlock(low(key.value())), len: len.value() });
        }
        for run in runs {
            self.spend(client, run)?;
            self.hold(run, Why::ClientEnded)?;
        }
        let mut slots = Vec::new();
        for row in self.tables.slots()?.range(pair(client.0, 0)..=pair(client.0, u64::MAX))? {
            slots.push(row?.0.value());
        }
        for key in slots {
            self.dirty = true;
            self.tables.slots_mut()?.remove(key)?;
        }
        Ok(())
    }

    /// Takes up to `wanted` chunks from the free blocks for the metadata area, and records them.
    pub fn take_chunks(&mut self, wanted: u64, chunk_blocks: u64) -> Result<Vec<Run>, Stop> {
        let mut chunks = Vec::new();
        for _ in 0..wanted.min(CHUNKS_AT_ONCE) {
            let Some(chunk) = self.take_chunk(chunk_blocks)? else { break };
            self.tables.chunks_mut()?.insert(chunk.start.0, chunk.len)?;
            add(&mut self.counters.metadata, chunk.len);
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    /// Frees what is held back in `pending` and is needed no more, and puts into quarantine what a ghost may reach.
    pub fn release(&mut self, free: &[Run], ghosts: &[Run]) -> Result<(), Stop> {
        for (runs, ghost) in [(free, false), (ghosts, true)] {
            for run in runs {
                let Some(record) = self.tables.pending()?.get(run.start.0)?.map(|record| record.value())
                else {
                    continue;
                };
                // The record may have grown since it was looked at; what was looked at is its start.
                self.dirty = true;
                self.tables.pending_mut()?.remove(run.start.0)?;
                let rest = record.len.get().saturating_sub(run.len);
                if rest > 0 {
                    let record = HeldRecord { len: U64::new(rest), ..record };
                    self.tables.pending_mut()?.insert(run.end().0, record)?;
                }
                subtract(&mut self.counters.pending, run.len)?;
                if ghost {
                    let record = HeldRecord { len: U64::new(run.len), ..record };
                    self.tables.quarantine_mut()?.insert(run.start.0, record)?;
                    add(&mut self.counters.quarantined, run.len);
                } else {
                    self.give(*run)?;
                }
            }
        }
        Ok(())
    }

    /// Frees what is in quarantine and no ghost can reach any more.
    pub fn release_quarantine(&mut self, free: &[Run]) -> Result<(), Stop> {
        for run in free {
            let whole = self.tables.quarantine()?.get(run.start.0)?.map(|record| record.value().len.get());
            if whole == Some(run.len) {
                self.dirty = true;
                self.tables.quarantine_mut()?.remove(run.start.0)?;
                subtract(&mut self.counters.quarantined, run.len)?;
                self.give(*run)?;
            }
        }
        Ok(())
    }

    /// Takes steps at inodes that have neither name nor opener, from `from` on. Returns where to go on.
    pub fn reclaim(&mut self, from: u64) -> Result<Option<u64>, Stop> {
        let mut budget = super::data::STEP_EXTENTS;
        let mut orphans = Vec::new();
        for row in self.tables.orphans()?.range(from..)?.take(budget) {
            orphans.push(row?.0.value());
        }
        for number in &orphans {
            let ino = crate::types::Ino(*number);
            if !self.scene.opens.lock().bury(ino) {
                continue;
            }
            self.dying.push(ino);
            let mut record = self.inode(ino)?;
            let blocks = record.blocks.get();
            if self.remove_inode(ino, &mut record, budget)?.is_none() {
                self.put(ino, &record)?;
                return Ok(Some(*number));
            }
            self.remove_orphan(ino)?;
            // An inode costs a step; its extents are at most its blocks.
            let cost = usize::try_from(blocks).unwrap_or(usize::MAX).saturating_add(1);
            budget = budget.saturating_sub(cost);
            if budget == 0 {
                return Ok(Some(number + 1));
            }
        }
        Ok(orphans.last().filter(|_| orphans.len() == super::data::STEP_EXTENTS).map(|last| last + 1))
    }

    /// Whether anything might become free by itself, soon.
    pub fn expects_space(&self) -> bool {
        self.counters.pending.get() > 0
            || self.counters.orphans.get() > 0
            || self.counters.quarantined.get() > 0
    }
}
