//! Writing: whole blocks that are the file's own go straight to the LUN; everything else is planned first.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, Ordering::SeqCst};

use lockd::rules::Rule;
use redirector::buffer::Slice;
use redirector::lun::Outcome;

use super::Core;
use super::blocks::{Claim, Hold};
use super::file::File;
use super::layout::{Base, Segment, Short};
use super::media::{refusal, worst};
use super::pages::Cover;
use super::task::run;
use crate::refusal::Refusal;
use crate::service::{Done, WriteMode};
use crate::types::{BLOCK, FILE_SIZE_MAX, FileBlock, LunBlock, Run};

/// A write's place: bytes, and the blocks that they touch.
struct Place {
    bytes: Range<u64>,
    blocks: Range<FileBlock>,
}

impl Place {
    fn new(offset: u64, len: usize) -> Self {
        let bytes = offset..offset + len as u64;
        let blocks = FileBlock::holding(bytes.start)..FileBlock::at_or_after(bytes.end);
        Self { bytes, blocks }
    }

    /// The blocks that are written in part: none, the first, the last, or both.
    fn partial(&self) -> Vec<Range<FileBlock>> {
        let mut partial = Vec::new();
        if !self.bytes.start.is_multiple_of(BLOCK) {
            partial.push(self.blocks.start..self.blocks.start + 1);
        }
        let last = FileBlock::holding(self.bytes.end);
        if last < self.blocks.end && (last > self.blocks.start || partial.is_empty()) {
            partial.push(last..last + 1);
        }
        partial
    }

    /// The bytes of the write in `blocks`, counted from its start.
    fn part(&self, blocks: &Range<FileBlock>) -> Range<usize> {
        let start = blocks.start.byte().max(self.bytes.start) - self.bytes.start;
        let end = blocks.end.byte().min(self.bytes.end) - self.bytes.start;
        let index = |at| usize::try_from(at).expect("within a slice's length");
        index(start)..index(end)
    }
}

/// What is sent to the LUN: a part of a segment.
struct Part {
    file: FileBlock,
    lun: LunBlock,
    len: u64,
    base: Base,
    data: Slice,
}

impl Core {
    /// Writes. Whole blocks of one extent that is the file's own pass straight to the LUN, and the completion answers.
    pub(super) fn write(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: Slice,
        mode: WriteMode,
        done: Done<u64>,
    ) {
        match self.try_write_in_place(file, offset, data, mode, done) {
            None => {}
            Some((data, done)) => {
                let (core, file) = (Arc::clone(self), Arc::clone(file));
                run(async move { done(core.write_anywhere(&file, offset, data, mode).await) });
            }
        }
    }

    /// Gives data and `done` back if the write needs more than one request to the LUN.
    fn try_write_in_place(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: Slice,
        mode: WriteMode,
        done: Done<u64>,
    ) -> Option<(Slice, Done<u64>)> {
        let len = data.len() as u64;
        let is_simple = !mode.append
            && !mode.sync
            && len > 0
            && offset.is_multiple_of(BLOCK)
            && len.is_multiple_of(BLOCK)
            && data.len() <= self.media.request_max();
        if !is_simple {
            return Some((data, done));
        }
        let Some(pass) = file.gate.try_enter() else { return Some((data, done)) };
        // Inside the gate the file does not go to another node.
        if !file.loaded.load(Ordering::Acquire) {
            return Some((data, done));
        }
        let blocks = FileBlock::holding(offset)..FileBlock::holding(offset.saturating_add(len));
        if offset.saturating_add(len) > file.size.load(SeqCst) || !self.media.may_write() {
            return Some((data, done));
        }
        let Some(hold) = file.locks.try_hold(Claim::new(&blocks, &[])) else { return Some((data, done)) };
        let span = file.layout.read().at(blocks.start);
        // Under the block locks: a change of another node is noted before it takes them.
        if mode.from_cache && self.options.cluster && file.has_covers() {
            drop(hold);
            return Some((data, done));
        }
        let (Some(lun), true, true) = (span.data, span.in_place, span.len >= blocks.end - blocks.start)
        else {
            return Some((data, done));
        };
        let (core, file) = (Arc::clone(self), Arc::clone(file));
        let on_done = move |outcome| {
            let result = match outcome {
                Outcome::Done => {
                    core.touched(&file, mode.clear_set_id);
                    Ok(offset)
                }
                outcome => Err(refusal("write", outcome)),
            };
            drop(hold);
            done(result);
            drop(pass);
        };
        self.media.start_write(lun, data, on_done);
        None
    }

    /// Any write, by whoever serves the file.
    pub(super) async fn write_anywhere(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: Slice,
        mode: WriteMode,
    ) -> Result<u64, Refusal> {
        loop {
            if file.is_elsewhere() {
                match self.write_there(file, offset, &data, mode).await? {
                    Some(at) => return Ok(at),
                    None => continue,
                }
            }
            match self.write_any(file, offset, data.clone(), mode, None).await {
                Err(error) if self.has_moved(file, &error) => {}
                result => return result,
            }
        }
    }

    /// Any write to a file that this node serves, step by step. `cover`: of another node.
    pub(super) async fn write_any(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        mut data: Slice,
        mode: WriteMode,
        cover: Option<&Cover>,
    ) -> Result<u64, Refusal> {
        let pass = file.gate.enter().await;
        file.owned()?;
        let turn = if mode.append { Some(file.append.take().await) } else { None };
        let offset = if mode.append { file.size.load(SeqCst) } else { offset };
        if mode.from_cache && self.options.cluster {
            // Pages make no file longer: what lies behind the end was cut off by another node.
            let left = file.size.load(SeqCst).saturating_sub(offset);
            data = data.part(0..data.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        }
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX);
        let end = end.ok_or(Refusal::FileTooLarge)?;
        if data.is_empty() {
            return Ok(offset);
        }
        self.load(file).await?;
        if end > file.size.load(SeqCst) {
            self.zero_tail(file).await?;
        }
        if let Some(cover) = cover {
            cover.set(offset..end, Some(data.clone()));
        }
        self.store(file, offset, &data, mode.from_cache && self.options.cluster).await?;
        // The size is published when the data is there: nobody reads what an earlier file left in the blocks.
        file.size.fetch_max(end, SeqCst);
        self.touched(file, mode.clear_set_id);
        drop((turn, pass));
        if mode.sync {
            self.commit(file).await?;
        }
        Ok(offset)
    }

    /// Makes the bytes between the end of the file and the end of its last block zero, once, before the file grows
    /// over them: they are whatever an earlier write or file left there. The caller has passed the gate, or stopped it.
    pub(super) async fn zero_tail(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Refusal> {
        if file.tail_is_zero.load(SeqCst) {
            return Ok(());
        }
        let _tail = file.tail.take().await;
        // No write has grown the file since: each waits here.
        let size = file.size.load(SeqCst);
        let block = FileBlock::holding(size);
        let has_garbage = !size.is_multiple_of(BLOCK) && file.layout.read().at(block).data.is_some();
        if has_garbage && !file.tail_is_zero.load(SeqCst) {
            self.zero_bytes(file, size..(block + 1).byte()).await?;
        }
        file.tail_is_zero.store(true, SeqCst);
        Ok(())
    }

    /// Zeroes bytes of one block by a write.
    pub(super) async fn zero_bytes(
        self: &Arc<Self>,
        file: &Arc<File>,
        bytes: Range<u64>,
    ) -> Result<(), Refusal> {
        let len = usize::try_from(bytes.end - bytes.start).unwrap_or_default();
        let zeros = self.media.pool.take_zeroed(len).share();
        self.store(file, bytes.start, &zeros, false).await?;
        if file.soil() {
            self.list(file);
        }
        Ok(())
    }

    /// Puts data in its place: on the LUN, and in the layout where it was a hole, unwritten or shared. Size and times
    /// are the caller's, and the gate. `from_cache`: written back by the page cache, where other nodes use the file too.
    pub(super) async fn store(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        data: &Slice,
        from_cache: bool,
    ) -> Result<(), Refusal> {
        let place = Place::new(offset, data.len());
        let (hold, segments) = self.plan(file, &place).await?;
        let covered = from_cache.then(|| file.covered(offset, data, &self.media.pool));
        let data = covered.as_ref().unwrap_or(data);
        self.refill_ahead();
        let copies = segments.iter().filter(|segment| matches!(segment.base, Base::Copy(_)));
        let copies: Vec<Run> = copies.map(|copy| Run { start: copy.lun, len: copy.len }).collect();
        let parts = match self.parts(&place, &segments, data).await {
            Ok(parts) => parts,
            Err(error) => {
                self.put_back(copies, false).await;
                return Err(error);
            }
        };
        let mut started = Vec::with_capacity(parts.len());
        for part in &parts {
            started.push(self.media.write(part.lun, part.data.clone()).await);
        }
        let mut result = Ok(());
        let (mut unused, mut haunted, mut blank) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcomes = Vec::with_capacity(parts.len());
        for writing in started {
            outcomes.push(match writing {
                Ok(writing) => (writing.outcome().await, None),
                Err(ended) => (Outcome::Failed(libc::EIO), Some(ended)),
            });
        }
        let parts_dirty = {
            let mut layout = file.layout.write();
            for (part, (outcome, ended)) in parts.iter().zip(outcomes) {
                if outcome == Outcome::Done {
                    match part.base {
                        Base::Own => {}
                        Base::Blank => layout.written(part.file, part.lun, part.len),
                        Base::Copy(_) => layout.replaced(part.file, part.lun, part.len),
                    }
                    continue;
                }
                let run = Run { start: part.lun, len: part.len };
                match (part.base, outcome) {
                    (Base::Copy(_), Outcome::Unknown) => haunted.push(run),
                    (Base::Copy(_), _) => unused.push(run),
                    (Base::Blank, Outcome::Unknown) => blank.push(part.file..part.file + part.len),
                    (Base::Blank | Base::Own, _) => {}
                }
                let error = ended.unwrap_or_else(|| refusal("write", outcome));
                result = result.and(Err(error));
            }
            layout.dirty_parts()
        };
        drop(hold);
        if result.is_err() {
            // What has succeeded is data of the file all the same.
            if file.soil() {
                self.list(file);
            }
            self.put_back(unused, false).await;
            self.put_back(haunted, true).await;
            self.leave_to_ghosts(file, blank).await;
        }
        if parts_dirty > self.options.dirty_parts_max {
            self.commit_soon(file);
        }
        result
    }

    /// P6: fresh blocks under a ghost are taken out of the file, unless another write has made them data meanwhile.
    async fn leave_to_ghosts(self: &Arc<Self>, file: &Arc<File>, ranges: Vec<Range<FileBlock>>) {
        for range in ranges {
            // Writes in flight to the same blocks end first.
            let _hold = file.locks.hold(Claim::alone(&range)).await;
            let fresh = file.layout.write().cut_fresh(&range);
            self.put_back(fresh, true).await;
        }
    }

    /// Locks the blocks and finds out where each part goes; waits for the reserve if it is too small.
    async fn plan(
        self: &Arc<Self>,
        file: &Arc<File>,
        place: &Place,
    ) -> Result<(Hold, Vec<Segment>), Refusal> {
        let rule = self.rules.keeps(Rule::V11);
        let partial = if rule { place.partial() } else { Vec::new() };
        let mut alone = false;
        loop {
            let claim = if alone { Claim::alone(&place.blocks) } else { Claim::new(&place.blocks, &partial) };
            let hold = file.locks.hold(claim).await;
            let filled = {
                let mut layout = file.layout.write();
                if rule && !alone && layout.has_shared(place.blocks.clone()) {
                    // Two copies of one block would end on two mappings.
                    alone = true;
                    continue;
                }
                layout.fill(place.blocks.clone(), &mut self.reserve.stock.lock(), rule)
            };
            match filled {
                Ok(segments) => return Ok((hold, segments)),
                Err(Short(needed)) => {
                    // Who waits for the reserve holds no lock: it may have to be taken back from this very file.
                    drop(hold);
                    self.obtain(needed).await?;
                }
            }
        }
    }

    /// Cuts a write into requests to the LUN: partial blocks are completed with what the block holds (V11), whole
    /// ones are parts of the caller's data, without a copy.
    async fn parts(&self, place: &Place, segments: &[Segment], data: &Slice) -> Result<Vec<Part>, Refusal> {
        let partial = place.partial();
        let mut parts: Vec<Part> = Vec::with_capacity(segments.len() + partial.len());
        let mut reads = Vec::new();
        for segment in segments {
            let end = segment.file + segment.len;
            let mut at = segment.file;
            while at < end {
                let next = partial.iter().find(|block| block.start >= at && block.start < end);
                let (to, is_partial) = match next {
                    Some(block) if block.start == at => (block.end, true),
                    Some(block) => (block.start, false),
                    None => (end, false),
                };
                let skip = at - segment.file;
                let (lun, len) = (segment.lun + skip, to - at);
                let base = match segment.base {
                    Base::Copy(old) => Base::Copy(old.map(|old| old + skip)),
                    base => base,
                };
                let range = place.part(&(at..to));
                if is_partial {
                    let old = match base {
                        Base::Own => Some(lun),
                        Base::Copy(old) => old,
                        Base::Blank => (!self.rules.keeps(Rule::V11)).then_some(lun),
                    };
                    reads.push((parts.len(), range.clone(), old.map(|old| self.media.read_block(old))));
                }
                parts.push(Part { file: at, lun, len, base, data: data.part(range) });
                at = to;
            }
        }
        for (index, range, old) in reads {
            let mut block = match old {
                None => self.media.pool.take_zeroed(4096),
                Some(read) => {
                    let (outcome, block) = read
                        .await
                        .ok_or_else(|| Refusal::Io("the read of a block was dropped".to_owned()))?;
                    if outcome != Outcome::Done {
                        return Err(refusal("read the rest of a block", worst(outcome, outcome)));
                    }
                    block
                }
            };
            let part = &mut parts[index];
            let start = (place.bytes.start + range.start as u64) % BLOCK;
            let start = usize::try_from(start).unwrap_or_default();
            block[start..start + range.len()].copy_from_slice(&part.data);
            part.data = block.share();
        }
        Ok(parts)
    }
}
