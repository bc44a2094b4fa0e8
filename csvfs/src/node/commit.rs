//! Commits: what has been written is flushed, and then made known to the coordinator (V5).

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::rules::Rule;
use redirector::lun::Outcome;

use super::Core;
use super::file::{File, Phase};
use super::media::refusal;
use super::open::Handle;
use super::task::{promise, run};
use super::turn::Held;
use crate::proto::{Answer, Operation, WrittenRun};
use crate::refusal::Refusal;
use crate::types::FileBlock;

/// Written runs in one message.
pub(super) const RUNS_MAX: usize = 4096;

impl Core {
    /// Commits everything that has been written to the file before this call. Callers that come while a commit runs
    /// share the next one.
    pub(super) async fn commit(self: &Arc<Self>, file: &Arc<File>) -> Result<(), Refusal> {
        let (sender, receiver) = promise();
        let starts = {
            let mut commits = file.commits.lock();
            commits.waiting.push(sender);
            !std::mem::replace(&mut commits.running, true)
        };
        if starts {
            let (core, file) = (Arc::clone(self), Arc::clone(file));
            run(async move { core.commit_all(&file).await });
        }
        receiver.await.unwrap_or_else(|| Err(Refusal::Io("the commit was dropped".to_owned())))
    }

    async fn commit_all(self: &Arc<Self>, file: &Arc<File>) {
        loop {
            let turn = file.turn.take().await;
            let waiting = {
                let mut commits = file.commits.lock();
                commits.running = !commits.waiting.is_empty();
                std::mem::take(&mut commits.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let result = self.commit_now(file, &turn).await;
            drop(turn);
            waiting.into_iter().for_each(|waiter| waiter.send(result.clone()));
        }
    }

    /// Starts a commit for which nobody waits. A failure is told to the next sync of each handle.
    pub(super) fn commit_soon(self: &Arc<Self>, file: &Arc<File>) {
        if file.commits.lock().running {
            return;
        }
        let (core, file) = (Arc::clone(self), Arc::clone(file));
        run(async move {
            if let Err(error) = core.commit(&file).await {
                tracing::error!(ino = file.ino.0, %error, "what was written could not be committed; it is tried again");
            }
        });
    }

    /// Commits under the caller's turn.
    pub(super) async fn commit_now(self: &Arc<Self>, file: &Arc<File>, _turn: &Held) -> Result<(), Refusal> {
        file.listed.store(false, SeqCst);
        let is_written = file.dirty.swap(false, SeqCst);
        if !is_written && !file.marks.is_dirty() {
            return Ok(());
        }
        if file.is_elsewhere() {
            // It was committed before it went there.
            return Ok(());
        }
        let result = self.flush_and_tell(file, is_written).await;
        if result.is_err() {
            file.marks.failed();
            file.failures.fetch_add(1, SeqCst);
            if file.soil() {
                self.list(file);
            }
        } else {
            file.marks.committed();
        }
        result
    }

    async fn flush_and_tell(self: &Arc<Self>, file: &Arc<File>, is_written: bool) -> Result<(), Refusal> {
        let owned = file.owned()?;
        // Collected before the flush: all of this has completed, so the flush covers it (V5).
        let noted = file.marks.begin();
        let size = file.size.load(SeqCst);
        let (runs, replaces) = file.layout.read().dirty_runs(FileBlock(0), usize::MAX);
        let first_flushes = self.rules.keeps(Rule::V5);
        if first_flushes && is_written {
            self.flush().await?;
        }
        if replaces {
            // With the commit the blocks that were replaced may become free: nobody reads them any more (V7).
            file.gate.grace().await;
        }
        let grown = (size > file.known_size.load(SeqCst)).then_some(size);
        let mut messages: Vec<&[WrittenRun]> = runs.chunks(RUNS_MAX).collect();
        if messages.is_empty() && (grown.is_some() || !noted.is_empty()) {
            messages.push(&[]);
        }
        let last = messages.len().saturating_sub(1);
        for (index, written) in messages.into_iter().enumerate() {
            let is_last = index == last;
            let operation = Operation::Commit {
                file: owned,
                written: written.to_vec(),
                size: grown.filter(|_| is_last),
                mtime: noted.mtime.filter(|_| is_last),
                atime: noted.atime.filter(|_| is_last),
                clear_set_id: noted.clear_set_id && is_last,
                // When the file was changed, not when that is told: nobody sees a time move by itself.
                now: noted.mtime.unwrap_or_else(|| self.now()),
            };
            match self.channel.call(operation).await? {
                Answer::Version(version) => file.version.fetch_max(version, SeqCst),
                other => return Err(super::channel::unexpected(&other)),
            };
            file.layout.write().committed(written);
        }
        if let Some(size) = grown {
            file.known_size.store(size, SeqCst);
        }
        if !first_flushes && is_written {
            self.flush().await?;
        }
        Ok(())
    }

    pub(super) async fn flush(&self) -> Result<(), Refusal> {
        match self.media.flush().await {
            Outcome::Done => Ok(()),
            outcome => Err(refusal("flush", outcome)),
        }
    }

    /// The file has been written and that has been noted: times, dirtiness.
    #[inline]
    pub(super) fn touched(&self, file: &Arc<File>, clear_set_id: bool) {
        if file.touch(self.now(), clear_set_id) {
            self.list(file);
        }
    }

    /// Something was noted about the file, and nothing written.
    pub(super) fn noted(&self, file: &Arc<File>) {
        if file.wants_listing() {
            self.list(file);
        }
    }

    /// Puts the file on the list of those that the background commits.
    pub(super) fn list(&self, file: &Arc<File>) {
        self.dirty.lock().push(file.ino);
    }

    /// Makes what was written through any handle of the file durable, and tells this handle of failures that it has not
    /// been told of. With `data_only` times may stay behind: data in its old place then costs a flush and no message.
    pub(super) async fn sync(self: &Arc<Self>, handle: &Handle, data_only: bool) -> Result<(), Refusal> {
        let file = &handle.file;
        if !file.is_regular() {
            // Names are durable when they are acknowledged.
            return Ok(());
        }
        self.counters.sync();
        let result = loop {
            if file.is_elsewhere() {
                match self.sync_there(file, data_only).await {
                    Ok(None) => continue,
                    Ok(Some(())) => break Ok(()),
                    Err(error) => break Err(error),
                }
            }
            match self.sync_file(file, data_only).await {
                Err(error) if self.has_moved(file, &error) => {}
                result => break result,
            }
        };
        let failures = file.failures.load(SeqCst);
        let told = handle.failures.swap(failures, SeqCst);
        if result.is_ok() && told != failures {
            return Err(Refusal::Io("what was written before could not be committed at first".to_owned()));
        }
        result
    }

    /// Makes what was written to a file that this node serves durable.
    pub(super) async fn sync_file(
        self: &Arc<Self>,
        file: &Arc<File>,
        data_only: bool,
    ) -> Result<(), Refusal> {
        let in_place = || {
            file.size.load(SeqCst) <= file.known_size.load(SeqCst)
                && file.layout.read().dirty_runs(FileBlock(0), 1).0.is_empty()
        };
        if data_only && in_place() {
            let flushed = self.flush().await;
            if flushed.is_err() {
                file.failures.fetch_add(1, SeqCst);
            }
            flushed
        } else {
            self.commit(file).await
        }
    }

    /// Commits every file, and tells the first failure.
    pub(super) async fn sync_all(self: &Arc<Self>) -> Result<(), Refusal> {
        let mut result = Ok(());
        for file in self.files.values() {
            if file.is_regular() && !file.nameless.load(SeqCst) {
                let synced = if file.is_elsewhere() {
                    self.sync_there(&file, false).await.map(|_| ())
                } else {
                    self.commit(&file).await
                };
                result = result.and(synced);
            }
        }
        result.and(self.flush().await)
    }

    /// Commits all dirty files, in the background. They share their flushes, and the coordinator's transactions.
    pub(super) fn commit_dirty(self: &Arc<Self>) {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        for file in dirty.into_iter().filter_map(|ino| self.files.get(ino)) {
            let is_open = file.life.lock().phase == Phase::Open;
            if is_open && !file.nameless.load(SeqCst) {
                self.commit_soon(&file);
            } else {
                file.listed.store(false, SeqCst);
            }
        }
    }
}
