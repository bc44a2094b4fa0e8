//! The commit of several files at once: one flush for all of them, and as few messages as they fit into (V5).

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use lockd::rules::Rule;

use super::Core;
use super::channel::unexpected;
use super::commit::RUNS_MAX;
use super::file::File;
use crate::proto::{Answer, CommitPart, Operation, Owned, WrittenRun};
use crate::refusal::Refusal;
use crate::types::{FileBlock, Timestamp};

/// Bytes of one message, about, of one part and of one of its runs: well below
/// [`FRAME_MAX`](crate::proto::codec::FRAME_MAX).
const MESSAGE_BYTES: usize = 512 << 10;
const PART_BYTES: usize = 96;
const RUN_BYTES: usize = 24;

/// A file that has something to commit, and what.
struct Pending {
    file: Arc<File>,
    owned: Owned,
    runs: Vec<WrittenRun>,
    replaces: bool,
    grown: Option<u64>,
    mtime: Option<Timestamp>,
    atime: Option<Timestamp>,
    clear_set_id: bool,
    now: Timestamp,
}

impl Pending {
    /// In parts of bounded length; what changes beside the layout goes with the last.
    fn parts(&self) -> Vec<CommitPart> {
        let part = |written: &[WrittenRun], is_last: bool| CommitPart {
            file: self.owned,
            written: written.to_vec(),
            size: self.grown.filter(|_| is_last),
            mtime: self.mtime.filter(|_| is_last),
            atime: self.atime.filter(|_| is_last),
            clear_set_id: self.clear_set_id && is_last,
            now: self.now,
        };
        if self.runs.is_empty() {
            return vec![part(&[], true)];
        }
        let chunks = self.runs.chunks(RUNS_MAX);
        let count = chunks.len();
        chunks.enumerate().map(|(index, written)| part(written, index + 1 == count)).collect()
    }
}

impl Core {
    /// Commits what is pending of these files, whose turns the caller has.
    pub(super) async fn commit_set(self: &Arc<Self>, files: &[Arc<File>]) -> Result<(), Refusal> {
        let mut pending = Vec::new();
        let mut is_written = false;
        for file in files {
            let Ok(owned) = file.owned() else { continue };
            file.listed.store(false, SeqCst);
            let written = file.dirty.swap(false, SeqCst);
            if !written && !file.marks.is_dirty() {
                continue;
            }
            is_written |= written;
            // Collected before the flush: all of this has completed, so the flush covers it (V5).
            let noted = file.marks.begin();
            let size = file.size.load(SeqCst);
            let (runs, replaces) = file.layout.read().dirty_runs(FileBlock(0), usize::MAX);
            let grown = (size > file.known_size.load(SeqCst)).then_some(size);
            pending.push(Pending {
                owned,
                file: Arc::clone(file),
                runs,
                replaces,
                grown,
                mtime: noted.mtime,
                atime: noted.atime,
                clear_set_id: noted.clear_set_id,
                now: noted.mtime.unwrap_or_else(|| self.now()),
            });
        }
        if pending.is_empty() {
            return Ok(());
        }
        let result = self.tell_set(&pending, is_written).await;
        for Pending { file, .. } in pending {
            if result.is_ok() {
                file.marks.committed();
                continue;
            }
            file.marks.failed();
            file.failures.fetch_add(1, SeqCst);
            if file.soil() {
                self.list(&file);
            }
        }
        result
    }

    async fn tell_set(self: &Arc<Self>, pending: &[Pending], is_written: bool) -> Result<(), Refusal> {
        let first_flushes = self.rules.keeps(Rule::V5);
        if first_flushes && is_written {
            self.flush().await?;
        }
        for Pending { file, .. } in pending.iter().filter(|pending| pending.replaces) {
            // With the commit the blocks that were replaced may become free: nobody reads them any more (V7).
            file.gate.grace().await;
        }
        let parts = pending.iter().flat_map(|pending| {
            let useful = !pending.runs.is_empty()
                || pending.grown.is_some()
                || pending.mtime.is_some()
                || pending.atime.is_some()
                || pending.clear_set_id;
            let parts = if useful { pending.parts() } else { Vec::new() };
            parts.into_iter().map(|part| (&pending.file, part))
        });
        let (mut message, mut room) = (Vec::new(), MESSAGE_BYTES);
        for (file, part) in parts {
            let bytes = PART_BYTES + RUN_BYTES * part.written.len();
            if bytes > room && !message.is_empty() {
                self.send_parts(std::mem::take(&mut message)).await?;
                room = MESSAGE_BYTES;
            }
            room = room.saturating_sub(bytes);
            message.push((file, part));
        }
        if !message.is_empty() {
            self.send_parts(message).await?;
        }
        if !first_flushes && is_written {
            self.flush().await?;
        }
        Ok(())
    }

    async fn send_parts(&self, message: Vec<(&Arc<File>, CommitPart)>) -> Result<(), Refusal> {
        let (files, parts): (Vec<_>, Vec<_>) = message.into_iter().unzip();
        let versions = match self.channel.call(Operation::CommitSet { parts: parts.clone() }).await? {
            Answer::Versions(versions) if versions.len() == parts.len() => versions,
            other => return Err(unexpected(&other)),
        };
        for ((file, part), version) in files.into_iter().zip(parts).zip(versions) {
            file.version.fetch_max(version, SeqCst);
            file.layout.write().committed(&part.written);
            if let Some(size) = part.size {
                file.known_size.store(size, SeqCst);
            }
        }
        Ok(())
    }
}
