//! Changes of a layout that the coordinator makes while the owner holds still (V8): truncate, allocate, punch, zero.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::rules::Rule;

use super::Core;
use super::channel::unexpected;
use super::file::File;
use super::gate::Stop;
use super::pages::Cover;
use super::turn::Held;
use crate::proto::{Allocation, Answer, Operation};
use crate::refusal::Refusal;
use crate::types::{Attr, BLOCK, FILE_SIZE_MAX, FileBlock};

/// A file whose owner holds still; it goes on when this is dropped.
#[must_use]
pub(super) struct Still {
    pub(super) turn: Held,
    /// None only when rule V8 is switched off by a test.
    _stop: Option<Stop>,
}

impl Core {
    /// V8: stops the file and drains it: no request is in flight, and none becomes a ghost's (P7).
    pub(super) async fn hold_still(self: &Arc<Self>, file: &Arc<File>) -> Still {
        let turn = file.turn.take().await;
        if !self.rules.keeps(Rule::V8) {
            return Still { turn, _stop: None };
        }
        let stop = file.gate.stop();
        file.gate.drain().await;
        self.media.wait_for_ghosts(|| file.runs()).await;
        Still { turn, _stop: Some(stop) }
    }

    /// Sets the size, by whoever serves the file.
    pub(super) async fn set_size(
        self: &Arc<Self>,
        file: &Arc<File>,
        size: u64,
        clear_set_id: bool,
    ) -> Result<Attr, Refusal> {
        loop {
            if file.is_elsewhere() {
                match self.resize_there(file, size, clear_set_id).await? {
                    Some(attr) => return Ok(attr),
                    None => continue,
                }
            }
            match self.resize(file, size, clear_set_id, None).await {
                Err(error) if self.has_moved(file, &error) => {}
                result => return result,
            }
        }
    }

    /// Sets the size of a file that this node serves. `cover`: for another node.
    pub(super) async fn resize(
        self: &Arc<Self>,
        file: &Arc<File>,
        size: u64,
        clear_set_id: bool,
        cover: Option<&Cover>,
    ) -> Result<Attr, Refusal> {
        if size > FILE_SIZE_MAX {
            return Err(Refusal::FileTooLarge);
        }
        let still = self.hold_still(file).await;
        let owned = file.owned()?;
        let old = file.size.load(SeqCst);
        let cut = FileBlock::at_or_after(size);
        if size > old {
            self.load(file).await?;
            self.zero_tail(file).await?;
        }
        // What is cut need not be committed before.
        let keeps_dirty = file.layout.read().dirty_runs(FileBlock(0), 1).0.iter().any(|run| run.file < cut);
        if keeps_dirty || size > old {
            self.commit_now(file, &still.turn).await?;
        }
        let forgotten = file.marks.forget(true, false, clear_set_id);
        let truncate = Operation::Truncate { file: owned, size, clear_set_id, now: self.now() };
        let mut attr = match self.entry(truncate).await {
            Ok(attr) => attr,
            Err(error) => {
                file.marks.restore(forgotten);
                return Err(error);
            }
        };
        // Also when the file grows or stays as it is: blocks may have been allocated beyond the end.
        let cut = file.layout.write().cut(&(cut..FileBlock(u64::MAX)));
        self.put_back(cut, false).await;
        if size < old {
            file.tail_is_zero.store(size.is_multiple_of(BLOCK), SeqCst);
        }
        file.size.store(size, SeqCst);
        file.known_size.store(size, SeqCst);
        if let Some(cover) = cover.filter(|_| size < old) {
            // While the gate is stopped: no page is written back between the cut and this.
            cover.set(size..u64::MAX, None);
        }
        file.apply(&mut attr);
        Ok(attr)
    }

    /// Allocates, punches or zeroes `offset..offset + len`, by whoever serves the file.
    pub(super) async fn allocate(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        len: u64,
        how: Allocation,
        keep_size: bool,
    ) -> Result<(), Refusal> {
        loop {
            if file.is_elsewhere() {
                match self.allocate_there(file, offset, len, how, keep_size).await? {
                    Some(()) => return Ok(()),
                    None => continue,
                }
            }
            match self.allocate_here(file, offset, len, (how, keep_size), None).await {
                Err(error) if self.has_moved(file, &error) => {}
                result => return result,
            }
        }
    }

    /// The same in a file that this node serves. `cover`: for another node.
    pub(super) async fn allocate_here(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        len: u64,
        (how, keep_size): (Allocation, bool),
        cover: Option<&Cover>,
    ) -> Result<(), Refusal> {
        if len == 0 {
            return Err(Refusal::Invalid("an empty range".to_owned()));
        }
        let end = offset.checked_add(len).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Refusal::FileTooLarge)?;
        let still = self.hold_still(file).await;
        let owned = file.owned()?;
        self.load(file).await?;
        let size = file.size.load(SeqCst);
        let grows = (how != Allocation::Punch && !keep_size && end > size).then_some(end);
        if grows.is_some() {
            self.zero_tail(file).await?;
        }
        let (from, to) = match how {
            Allocation::Allocate => (FileBlock::holding(offset), FileBlock::at_or_after(end)),
            // What lies beyond the end of the file in its last block is nobody's.
            _ if end >= size => (FileBlock::at_or_after(offset), FileBlock::at_or_after(end)),
            _ => (FileBlock::at_or_after(offset), FileBlock::holding(end)),
        };
        if how != Allocation::Allocate {
            self.zero_edges(file, offset..end.min(size), from, to).await?;
        }
        // The coordinator changes what it knows, so it has to know everything.
        self.commit_now(file, &still.turn).await?;
        let all = FileBlock(0)..FileBlock(u64::MAX);
        let fresh = file.layout.write().cut_fresh(&all);
        self.put_back(fresh, false).await;
        if from < to || grows.is_some() {
            let to = to.max(from);
            let operation = Operation::Allocate { file: owned, from, to, how, size: grows, now: self.now() };
            match self.call(operation).await? {
                Answer::Version(version) => file.version.fetch_max(version, SeqCst),
                other => return Err(unexpected(&other)),
            };
            file.marks.forget(true, false, false);
            if from < to {
                self.reload(file, from..to).await?;
            }
        }
        if let Some(size) = grows {
            file.size.store(size, SeqCst);
            file.known_size.store(size, SeqCst);
        }
        if let Some(cover) = cover.filter(|_| how != Allocation::Allocate) {
            // While the gate is stopped: no page is written back between the change and this.
            cover.set(offset..end, None);
        }
        if from >= to {
            self.touched(file, false);
        }
        Ok(())
    }

    /// Zeroes the parts of `bytes` outside of the whole blocks `from..to`, where there is data.
    async fn zero_edges(
        self: &Arc<Self>,
        file: &Arc<File>,
        bytes: std::ops::Range<u64>,
        from: FileBlock,
        to: FileBlock,
    ) -> Result<(), Refusal> {
        let edges = if from > to || (from == to && FileBlock::holding(bytes.start) == to) {
            // All of it lies within one block.
            [bytes.clone(), 0..0]
        } else {
            [bytes.start..from.byte().min(bytes.end), to.byte().max(bytes.start)..bytes.end]
        };
        for edge in edges.into_iter().filter(|edge| edge.start < edge.end) {
            if file.layout.read().at(FileBlock::holding(edge.start)).data.is_some() {
                self.zero_bytes(file, edge).await?;
            }
        }
        Ok(())
    }
}
