//! Reading: what the layout has as data comes from the LUN, everything else is zeros.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, Ordering::SeqCst};

use parking_lot::Mutex;
use redirector::buffer::Buffer;
use redirector::lun::Outcome;

use super::Core;
use super::file::File;
use super::gate::Pass;
use super::media::refusal;
use super::task::run;
use crate::proto::{Answer, Operation};
use crate::refusal::Refusal;
use crate::service::{Done, Piece, ReadData, Seek};
use crate::types::{BLOCK, FileBlock, LunBlock};

/// Extents in one part of a layout.
const PART_EXTENTS: u32 = 4096;

/// One step of a read: consecutive bytes.
enum Step {
    Zeros(usize),
    /// `len` bytes after the first `skip` of the blocks from `at` on.
    Data {
        at: LunBlock,
        skip: usize,
        len: usize,
    },
}

/// A read of several parts; the last that arrives answers.
struct Joint {
    missing: AtomicUsize,
    state: Mutex<(Vec<Piece>, Option<Refusal>)>,
    answer: Mutex<Option<(Pass, Done<ReadData>)>>,
}

fn bytes(count: u64) -> usize {
    usize::try_from(count).expect("a request's length is 32 bits")
}

fn piece(buffer: Buffer, skip: usize, len: usize) -> Piece {
    Piece::Bytes { buffer, skip, len }
}

impl Core {
    /// Reads. The request passes straight to the LUN, and its completion answers, unless the gate is stopped, the
    /// layout is not here or the lease has lapsed.
    pub(super) fn read(self: &Arc<Self>, file: &Arc<File>, offset: u64, len: u32, done: Done<ReadData>) {
        // In this order: inside the gate the file does not go to another node.
        if let Some(pass) = file.gate.try_enter()
            && file.loaded.load(Ordering::Acquire)
        {
            return self.read_now(file, pass, offset, len, done);
        }
        let (core, file) = (Arc::clone(self), Arc::clone(file));
        run(async move {
            loop {
                if file.is_elsewhere() && !file.lent.load(SeqCst) {
                    match core.read_there(&file, offset, len).await {
                        Ok(None) => continue,
                        Ok(Some(data)) => return done(Ok(data)),
                        Err(error) => return done(Err(error)),
                    }
                }
                let pass = file.gate.enter().await;
                let ready = if file.lent.load(SeqCst) { Ok(()) } else { file.owned().map(drop) };
                let ready = match ready {
                    Ok(()) => core.load(&file).await,
                    error => error,
                };
                match ready {
                    Ok(()) => return core.read_now(&file, pass, offset, len, done),
                    Err(error) if core.has_moved(&file, &error) => {}
                    Err(error) => return done(Err(error)),
                }
            }
        });
    }

    fn read_now(self: &Arc<Self>, file: &Arc<File>, pass: Pass, offset: u64, len: u32, done: Done<ReadData>) {
        let size = file.size.load(SeqCst);
        let end = offset.saturating_add(u64::from(len)).min(size);
        if offset >= end {
            return self.answer(pass, done, Ok(ReadData::default()));
        }
        if self.options.atime && file.marks.wants_atime() && !file.lent.load(Ordering::Relaxed) {
            file.marks.read(self.now());
            self.noted(file);
        }
        match self.steps(file, offset, end).as_mut_slice() {
            [Step::Zeros(len)] => {
                self.answer(pass, done, Ok(ReadData { pieces: vec![Piece::Zeros(*len)] }));
            }
            [Step::Data { at, skip, len }] => {
                let (core, skip, len) = (Arc::clone(self), *skip, *len);
                let buffer = self.media.pool.take((skip + len).next_multiple_of(bytes(BLOCK)));
                let on_read = move |outcome, buffer| {
                    let data = match outcome {
                        Outcome::Done => Ok(ReadData { pieces: vec![piece(buffer, skip, len)] }),
                        outcome => Err(refusal("read", outcome)),
                    };
                    core.answer(pass, done, data);
                };
                self.media.start_read(*at, buffer, on_read);
            }
            steps => self.read_parts(pass, steps, done),
        }
    }

    /// What has to be done to read `offset..end`. One lock, held for the look-up.
    fn steps(&self, file: &File, offset: u64, end: u64) -> Vec<Step> {
        let request_max = self.media.request_max() as u64;
        let mut steps = Vec::with_capacity(1);
        let mut at = offset;
        let layout = file.layout.read();
        while at < end {
            let block = FileBlock::holding(at);
            let span = layout.at(block);
            let skip = at - block.byte();
            let reach = span.len.saturating_mul(BLOCK);
            let Some(lun) = span.data else {
                let len = bytes((reach - skip).min(end - at));
                match steps.last_mut() {
                    Some(Step::Zeros(before)) => *before += len,
                    _ => steps.push(Step::Zeros(len)),
                }
                at += len as u64;
                continue;
            };
            let len = bytes((reach.min(request_max) - skip).min(end - at));
            steps.push(Step::Data { at: lun, skip: bytes(skip), len });
            at += len as u64;
        }
        steps
    }

    fn read_parts(self: &Arc<Self>, pass: Pass, steps: &[Step], done: Done<ReadData>) {
        let pieces = steps.iter().map(|step| match step {
            Step::Zeros(len) | Step::Data { len, .. } => Piece::Zeros(*len),
        });
        let joint = Arc::new(Joint {
            // One more, for this thread: nobody answers before all are sent.
            missing: AtomicUsize::new(1),
            state: Mutex::new((pieces.collect(), None)),
            answer: Mutex::new(Some((pass, done))),
        });
        for (index, step) in steps.iter().enumerate() {
            let Step::Data { at, skip, len } = *step else { continue };
            joint.missing.fetch_add(1, Ordering::AcqRel);
            let (core, joint) = (Arc::clone(self), Arc::clone(&joint));
            let buffer = self.media.pool.take((skip + len).next_multiple_of(bytes(BLOCK)));
            let on_read = move |outcome, buffer| {
                {
                    let mut state = joint.state.lock();
                    match outcome {
                        Outcome::Done => state.0[index] = piece(buffer, skip, len),
                        outcome => state.1 = Some(refusal("read", outcome)),
                    }
                }
                core.part_is_here(&joint);
            };
            self.media.start_read(at, buffer, on_read);
        }
        self.part_is_here(&joint);
    }

    fn part_is_here(self: &Arc<Self>, joint: &Joint) {
        if joint.missing.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let (pieces, failed) = std::mem::take(&mut *joint.state.lock());
        let answer = joint.answer.lock().take();
        if let Some((pass, done)) = answer {
            self.answer(pass, done, failed.map_or(Ok(ReadData { pieces }), Err));
        }
    }

    /// L3: a read is answered under the lease, or when it has been won back.
    fn answer(self: &Arc<Self>, pass: Pass, done: Done<ReadData>, data: Result<ReadData, Refusal>) {
        if self.media.has_lease() {
            done(data);
            drop(pass);
            return;
        }
        let core = Arc::clone(self);
        run(async move {
            let lease = core.media.lease().await;
            done(lease.and(data));
            drop(pass);
        });
    }

    /// Loads the file's layout, if it is not here.
    pub(super) async fn load(&self, file: &File) -> Result<(), Refusal> {
        if file.loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        let _loading = file.loading.take().await;
        if !file.loaded.load(Ordering::Acquire) {
            self.reload(file, FileBlock(0)..FileBlock(u64::MAX)).await?;
            file.loaded.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Asks the coordinator what is at `range`, part by part, and puts that into the layout. What the layout had there
    /// is known to the coordinator, or nothing.
    pub(super) async fn reload(&self, file: &File, range: std::ops::Range<FileBlock>) -> Result<(), Refusal> {
        let mut from = range.start;
        let lent_on = file.lent.load(SeqCst).then(|| self.channel.number());
        while from < range.end {
            let ask = Operation::Layout { ino: file.ino, from, limit: PART_EXTENTS };
            // A layout that is lent is one coordinator's to lend.
            let answer = match lent_on {
                Some(line) => self.channel.call_on(line, ask).await?,
                None => self.channel.call(ask).await?,
            };
            let Answer::Layout(part) = answer else {
                return Err(Refusal::Io(format!("the layout of {} is not understood", file.ino)));
            };
            let reached = part.extents.last().map(crate::types::Extent::end);
            let to = match reached {
                Some(end) if !part.complete => end.min(range.end),
                _ => range.end,
            };
            if to <= from {
                return Err(Refusal::Io(format!("the layout of {} does not go on", file.ino)));
            }
            file.layout.write().load(&(from..to), &part.extents);
            file.version.fetch_max(part.version, SeqCst);
            from = to;
        }
        Ok(())
    }

    /// Finds the next data or hole. Unwritten blocks are a hole, and so is what lies behind the end.
    pub(super) async fn seek(
        self: &Arc<Self>,
        file: &Arc<File>,
        offset: u64,
        what: Seek,
    ) -> Result<u64, Refusal> {
        loop {
            if file.is_elsewhere() {
                match self.seek_there(file, offset, what).await? {
                    Some(at) => return Ok(at),
                    None => continue,
                }
            }
            match self.seek_here(file, offset, what).await {
                Err(error) if self.has_moved(file, &error) => {}
                result => return result,
            }
        }
    }

    /// The same, of a file that this node serves.
    pub(super) async fn seek_here(&self, file: &File, offset: u64, what: Seek) -> Result<u64, Refusal> {
        let _pass = file.gate.enter().await;
        file.owned()?;
        self.load(file).await?;
        let size = file.size.load(SeqCst);
        let mut at = offset;
        let layout = file.layout.read();
        while at < size {
            let block = FileBlock::holding(at);
            let span = layout.at(block);
            if span.data.is_some() == (what == Seek::Data) {
                return Ok(at);
            }
            at = block.0.saturating_add(span.len).saturating_mul(BLOCK);
        }
        match what {
            Seek::Hole if offset < size => Ok(size),
            Seek::Hole | Seek::Data => Err(Refusal::BeyondEnd),
        }
    }
}
