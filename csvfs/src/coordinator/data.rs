//! What owners of files do to their layouts: commit written data, truncate, allocate, punch, zero, clone.

use lockd::ids::ClientId;
use lockd::rules::Rule;
use zerocopy::little_endian::U64;

use super::attributes::clear_set_id;
use super::change::{Change, Verdict};
use super::mapping::{bump, holes, part};
use super::stop::Stop;
use crate::proto::{Allocation, Answer, CommitPart, WrittenRun};
use crate::refusal::Refusal;
use crate::store::pair;
use crate::store::record::{ExtentRecord, InodeRecord};
use crate::types::{
    BLOCK, Extent, ExtentState, FILE_SIZE_MAX, FileBlock, Ino, Kind, LunBlock, Run, Timestamp,
};

/// Extents that one transaction changes for one operation; what is more goes into the next ones.
pub const STEP_EXTENTS: usize = 2048;

/// The block after the last that a file can have.
const END: FileBlock = FileBlock(FILE_SIZE_MAX / BLOCK);

/// What a commit changes beside the layout.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// The new size, if the file grew.
    pub size: Option<u64>,
    /// Time of the last write.
    pub mtime: Option<Timestamp>,
    /// Time of the last read.
    pub atime: Option<Timestamp>,
    /// A write takes set-id bits away.
    pub clear_set_id: bool,
}

/// A consecutive part of a written run, and what it does to the layout.
#[derive(Clone, Copy, Debug)]
struct Segment {
    file: FileBlock,
    lun: LunBlock,
    len: u64,
    /// Blocks of the client's reserve; otherwise the file's own, unwritten so far.
    fresh: bool,
}

impl Segment {
    fn run(&self) -> Run {
        Run { start: self.lun, len: self.len }
    }
}

fn invalid(what: &str) -> Stop {
    Refusal::Invalid(what.to_owned()).into()
}

/// Refuses a range of blocks that no file has.
fn check_range(from: FileBlock, len: u64) -> Result<FileBlock, Stop> {
    if len == 0 {
        return Err(invalid("an empty range of blocks"));
    }
    match from.0.checked_add(len) {
        Some(end) if end <= END.0 => Ok(FileBlock(end)),
        _ => Err(Refusal::FileTooLarge.into()),
    }
}

fn check_size(size: Option<u64>) -> Result<(), Stop> {
    if size.is_some_and(|size| size > FILE_SIZE_MAX) { Err(Refusal::FileTooLarge.into()) } else { Ok(()) }
}

fn grow(record: &mut InodeRecord, size: Option<u64>) {
    record.size = U64::new(record.size.get().max(size.unwrap_or(0)));
}

impl Change<'_, '_> {
    /// [`crate::proto::Operation::Commit`].
    pub fn commit(
        &mut self,
        client: ClientId,
        ino: Ino,
        runs: &[WrittenRun],
        written: Written,
        now: Timestamp,
    ) -> Result<Answer, Stop> {
        let segments = self.commit_checked(ino, runs, written)?;
        let fresh: Vec<Run> = segments.iter().filter(|segment| segment.fresh).map(Segment::run).collect();
        self.check_reserved(client, &fresh)?;
        Ok(Answer::Version(self.commit_now(client, ino, &segments, written, now)?))
    }

    /// [`crate::proto::Operation::CommitSet`]: all is checked before anything is changed.
    pub fn commit_set(&mut self, client: ClientId, parts: &[CommitPart]) -> Result<Answer, Stop> {
        let written = |part: &CommitPart| {
            let CommitPart { size, mtime, atime, clear_set_id, .. } = *part;
            Written { size, mtime, atime, clear_set_id }
        };
        let mut checked = Vec::with_capacity(parts.len());
        for part in parts {
            checked.push(self.commit_checked(part.file.ino, &part.written, written(part))?);
        }
        let fresh: Vec<Run> =
            checked.iter().flatten().filter(|segment| segment.fresh).map(Segment::run).collect();
        self.check_reserved(client, &fresh)?;
        let mut versions = Vec::with_capacity(parts.len());
        for (part, segments) in parts.iter().zip(checked) {
            versions.push(self.commit_now(client, part.file.ino, &segments, written(part), part.now)?);
        }
        Ok(Answer::Versions(versions))
    }

    /// What a commit does to the layout, if it may be done.
    fn commit_checked(&self, ino: Ino, runs: &[WrittenRun], written: Written) -> Result<Vec<Segment>, Stop> {
        let record = self.inode(ino)?;
        if record.kind() != Kind::File && !runs.is_empty() {
            return Err(invalid("only regular files have blocks"));
        }
        check_size(written.size)?;
        self.segments(ino, runs)
    }

    /// A commit that has been checked. The version of the layout after it.
    fn commit_now(
        &mut self,
        client: ClientId,
        ino: Ino,
        segments: &[Segment],
        written: Written,
        now: Timestamp,
    ) -> Result<u64, Stop> {
        let mut record = self.inode(ino)?;
        for segment in segments {
            self.apply_segment(client, ino, &mut record, segment)?;
        }
        if !segments.is_empty() {
            bump(&mut record);
        }
        grow(&mut record, written.size);
        if let Some(atime) = written.atime {
            record.atime.set(atime.0);
        }
        let cleared = written.clear_set_id && clear_set_id(&mut record);
        if let Some(mtime) = written.mtime {
            record.mtime.set(mtime.0);
        }
        if cleared || written.mtime.is_some() || written.size.is_some() {
            // `now` is when the file was written; its inode may have been changed since.
            record.ctime.set(record.ctime.get().max(now.0));
        }
        self.put(ino, &record)?;
        Ok(record.version.get())
    }

    /// What `runs` do to the layout, checked against it.
    fn segments(&self, ino: Ino, runs: &[WrittenRun]) -> Result<Vec<Segment>, Stop> {
        let mut sorted = runs.to_vec();
        sorted.sort_by_key(|run| run.file);
        let mut segments = Vec::new();
        let mut last = FileBlock(0);
        for run in &sorted {
            let end = check_range(run.file, run.len)?;
            if run.file < last {
                return Err(invalid("written runs overlap"));
            }
            if run.lun.0.checked_add(run.len).is_none() {
                return Err(invalid("blocks beyond the end of the LUN"));
            }
            last = end;
            let extents = self.extents(ino, run.file, end, usize::MAX)?;
            let at = |file: FileBlock| run.lun + (file - run.file);
            let segment = |from: FileBlock, to: FileBlock, fresh| Segment {
                file: from,
                lun: at(from),
                len: to - from,
                fresh,
            };
            for (from, to) in holes(&extents, run.file, end) {
                segments.push(segment(from, to, true));
            }
            for extent in &extents {
                let own = part(extent, run.file, end);
                if own.lun != at(own.file) {
                    segments.push(segment(own.file, own.end(), true));
                    continue;
                }
                // V11: what others share is never written in place.
                if self.scene.rules.keeps(Rule::V11) && own.shared && self.is_shared(own.run())? {
                    return Err(invalid("a shared block was written in place"));
                }
                if own.state == ExtentState::Unwritten {
                    segments.push(segment(own.file, own.end(), false));
                }
            }
        }
        Ok(segments)
    }

    fn apply_segment(
        &mut self,
        client: ClientId,
        ino: Ino,
        record: &mut InodeRecord,
        segment: &Segment,
    ) -> Result<(), Stop> {
        let end = segment.file + segment.len;
        let before = self.extents(ino, segment.file, end, usize::MAX)?;
        let new = Extent {
            file: segment.file,
            lun: segment.lun,
            len: segment.len,
            state: ExtentState::Written,
            shared: false,
        };
        if segment.fresh {
            self.unmap(ino, record, &before, segment.file, end)?;
            self.spend(client, segment.run())?;
            super::space::add(&mut record.blocks, segment.len);
            return self.map(ino, new);
        }
        for whole in before {
            let gone = part(&whole, segment.file, end);
            self.replace(ino, &whole, &gone, Some(Extent { state: ExtentState::Written, ..gone }))?;
        }
        Ok(())
    }

    /// [`crate::proto::Operation::Truncate`]. A layout of many extents shrinks in steps, each a truncation by itself.
    pub fn truncate(&mut self, ino: Ino, size: u64, clear: bool, now: Timestamp) -> Result<Verdict, Stop> {
        check_size(Some(size))?;
        let mut record = self.file(ino)?;
        let first = FileBlock::at_or_after(size);
        let rest = self.cut_tail(ino, &mut record, first, STEP_EXTENTS)?;
        let end = rest.map_or(size, |end| end.byte().clamp(size, record.size.get().max(size)));
        record.size = U64::new(end);
        if clear {
            clear_set_id(&mut record);
        }
        record.touch(now);
        self.put(ino, &record)?;
        Ok(if rest.is_some() { Verdict::More(0) } else { Answer::Entry(record.attr(ino)).into() })
    }

    /// Unmaps from the end of the layout down to `first`, at most `limit` extents. If that was not all, the block
    /// from which on nothing is mapped any more.
    fn cut_tail(
        &mut self,
        ino: Ino,
        record: &mut InodeRecord,
        first: FileBlock,
        limit: usize,
    ) -> Result<Option<FileBlock>, Stop> {
        let mut tail = self.last_extents(ino, first, limit + 1)?;
        if tail.is_empty() {
            return Ok(None);
        }
        let more = tail.len() > limit;
        tail.truncate(limit);
        let at = tail.last().map_or(first, |extent| extent.file).max(first);
        tail.reverse();
        self.unmap(ino, record, &tail, first, END)?;
        bump(record);
        Ok(more.then_some(at))
    }

    /// Removes an inode that nobody can reach any more, with up to `limit` extents. If it has more, these are
    /// unmapped, the last ones first, and the answer is `None`: the caller stores the record.
    pub fn remove_inode(
        &mut self,
        ino: Ino,
        record: &mut InodeRecord,
        limit: usize,
    ) -> Result<Option<()>, Stop> {
        self.dirty = true;
        if record.kind() == Kind::File && self.cut_tail(ino, record, FileBlock(0), limit)?.is_some() {
            return Ok(None);
        }
        if record.has(crate::store::record::XATTRS) {
            self.remove_xattrs(ino)?;
        }
        self.touch_attr(ino);
        self.tables.inodes_mut()?.remove(ino.0)?;
        super::space::subtract(&mut self.counters.inodes, 1)?;
        Ok(Some(()))
    }

    /// [`crate::proto::Operation::Allocate`], from block `from` on: the mark of an earlier step, or its start.
    #[expect(clippy::too_many_arguments, reason = "the operation's fields")]
    pub fn allocate(
        &mut self,
        ino: Ino,
        from: FileBlock,
        to: FileBlock,
        how: Allocation,
        size: Option<u64>,
        now: Timestamp,
        mark: u64,
    ) -> Result<Verdict, Stop> {
        let mut record = self.file(ino)?;
        check_size(size)?;
        let whole = from < to;
        if whole {
            check_range(from, to - from)?;
        } else if from > to {
            return Err(invalid("an empty range of blocks"));
        }
        let start = from.max(FileBlock(mark));
        if how != Allocation::Punch && whole {
            self.room()?;
            // All that the file has may lie in the range; what is beyond that, is missing for certain.
            if (to - from).saturating_sub(record.blocks.get()) > self.free_blocks() {
                return Err(Refusal::NoSpace.into());
            }
            self.check_space(ino, how, start, to)?;
        }
        let reached =
            if whole && start < to { self.allocate_step(ino, &mut record, start, to, how)? } else { to };
        if reached < to {
            self.put(ino, &record)?;
            return Ok(Verdict::More(reached.0));
        }
        grow(&mut record, size);
        record.touch(now);
        self.put(ino, &record)?;
        Ok(Answer::Version(record.version.get()).into())
    }

    /// Refuses if more blocks are needed than are free. A layout of very many extents is looked at only as far as one
    /// step goes.
    fn check_space(&self, ino: Ino, how: Allocation, from: FileBlock, to: FileBlock) -> Result<(), Stop> {
        let extents = self.extents(ino, from, to, STEP_EXTENTS)?;
        let mut needed = to - from;
        for extent in &extents {
            let own = part(extent, from, to);
            let replaced = how == Allocation::Zero && own.shared && self.is_shared(own.run())?;
            if !replaced {
                needed -= own.len;
            }
        }
        // Extents beyond the step may need less than assumed here.
        let seen = if extents.len() == STEP_EXTENTS {
            extents.last().map_or(0, |last| to.0 - last.end().0.min(to.0))
        } else {
            0
        };
        if needed - seen > self.free_blocks() { Err(Refusal::NoSpace.into()) } else { Ok(()) }
    }

    /// One step of an allocation. Returns how far it came.
    fn allocate_step(
        &mut self,
        ino: Ino,
        record: &mut InodeRecord,
        from: FileBlock,
        to: FileBlock,
        how: Allocation,
    ) -> Result<FileBlock, Stop> {
        let extents = self.extents(ino, from, to, STEP_EXTENTS)?;
        let to = if extents.len() == STEP_EXTENTS { extents[STEP_EXTENTS - 1].end().min(to) } else { to };
        bump(record);
        match how {
            Allocation::Punch => {
                self.unmap(ino, record, &extents, from, to)?;
                return Ok(to);
            }
            Allocation::Allocate => {}
            Allocation::Zero => {
                for extent in &extents {
                    self.zero_extent(ino, record, extent, &part(extent, from, to))?;
                }
            }
        }
        let mut runs = STEP_EXTENTS;
        let now_mapped = self.extents(ino, from, to, usize::MAX)?;
        for (start, end) in holes(&now_mapped, from, to) {
            let reached = self.fill(ino, record, start, end, runs)?;
            if reached < end {
                return Ok(reached);
            }
            runs = runs.saturating_sub(1).max(1);
        }
        Ok(to)
    }

    /// `gone`, a part of `whole`, reads as zeros from now on: unwritten, or a hole if it is shared.
    fn zero_extent(
        &mut self,
        ino: Ino,
        record: &mut InodeRecord,
        whole: &Extent,
        gone: &Extent,
    ) -> Result<(), Stop> {
        if gone.shared && self.is_shared(gone.run())? {
            return self.unmap(ino, record, &[*whole], gone.file, gone.end());
        }
        if gone.state == ExtentState::Unwritten {
            return Ok(());
        }
        let new = Extent { state: ExtentState::Unwritten, shared: false, ..*gone };
        self.replace(ino, whole, gone, Some(new))
    }

    /// Marks a stored extent as one that may be shared. Its neighbours stay apart from it, so that extents that were
    /// read before are still there.
    fn mark_shared(&mut self, ino: Ino, extent: &Extent) -> Result<(), Stop> {
        self.dirty = true;
        let record = ExtentRecord::of(&Extent { shared: true, ..*extent });
        self.tables.extents_mut()?.insert(pair(ino.0, extent.file.0), record)?;
        Ok(())
    }

    /// [`crate::proto::Operation::Clone`], after `mark` blocks that are cloned already.
    pub fn clone_range(&mut self, clone: &CloneRange, now: Timestamp, mark: u64) -> Result<Verdict, Stop> {
        let CloneRange { source, from, target, to, len, size } = *clone;
        self.file(source)?;
        let mut record = self.file(target)?;
        check_size(size)?;
        let from_end = check_range(from, len)?;
        let to_end = check_range(to, len)?;
        if source == target && from < to_end && to < from_end {
            return Err(invalid("the ranges of one file overlap"));
        }
        self.room()?;

        let start = from + mark;
        let extents = self.extents(source, start, from_end, STEP_EXTENTS)?;
        let old = self.extents(target, to + mark, to_end, STEP_EXTENTS)?;
        let mut end = from_end;
        if extents.len() == STEP_EXTENTS {
            end = end.min(extents[STEP_EXTENTS - 1].end());
        }
        if old.len() == STEP_EXTENTS {
            end = end.min(from + (old[STEP_EXTENTS - 1].end().min(to_end) - to));
        }
        let there = |file: FileBlock| to + (file - from);
        self.unmap(target, &mut record, &old, to + mark, there(end))?;
        // Within one file that may have cut an extent of the source.
        let extents = self.extents(source, start, end, STEP_EXTENTS + 1)?;
        for extent in extents.iter().filter(|extent| extent.state == ExtentState::Written) {
            let shared = part(extent, start, end);
            if !extent.shared {
                self.mark_shared(source, extent)?;
            }
            // V11: counted before anybody can write to it.
            if self.scene.rules.keeps(Rule::V11) {
                self.refer(shared.run())?;
            }
            self.map(target, Extent { file: there(shared.file), shared: true, ..shared })?;
            super::space::add(&mut record.blocks, shared.len);
        }
        bump(&mut record);
        let done = end >= from_end;
        if done {
            grow(&mut record, size);
            record.touch(now);
        }
        self.put(target, &record)?;
        if source != target {
            let mut source_record = self.file(source)?;
            bump(&mut source_record);
            self.put(source, &source_record)?;
        }
        Ok(if done { Answer::Version(record.version.get()).into() } else { Verdict::More(end - from) })
    }
}

/// What is cloned, where to.
#[derive(Clone, Copy, Debug)]
pub struct CloneRange {
    /// The file that has the blocks.
    pub source: Ino,
    /// The first of them.
    pub from: FileBlock,
    /// The file that shares them.
    pub target: Ino,
    /// Where they go.
    pub to: FileBlock,
    /// How many.
    pub len: u64,
    /// The target's new size, if it grows.
    pub size: Option<u64>,
}
