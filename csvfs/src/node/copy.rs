//! Copying a range between files: whole blocks are shared (reflink), the rest is read and written.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use redirector::buffer::Slice;

use super::Core;
use super::channel::unexpected;
use super::file::File;
use super::task::promise;
use crate::proto::{Answer, Operation};
use crate::refusal::Refusal;
use crate::service::{Piece, ReadData, WriteMode};
use crate::types::{BLOCK, FILE_SIZE_MAX, FileBlock};

/// One step of a copy of data, and the most that one request copies: the caller asks again for the rest.
const STEP: u64 = 256 << 10;
const DATA_MAX: u64 = 8 << 20;

impl Core {
    /// Copies at most `len` bytes; how many it were. Less than asked for means the end of the source, or that the
    /// caller has to ask again.
    pub(super) async fn copy_range(
        self: &Arc<Self>,
        source: &Arc<File>,
        from: u64,
        target: &Arc<File>,
        to: u64,
        len: u64,
    ) -> Result<u64, Refusal> {
        for file in [source, target] {
            if !file.is_regular() {
                file.owned()?;
            }
        }
        // Blocks are shared by the one node that serves both.
        let here = !source.is_elsewhere() && !target.is_elsewhere();
        let len =
            if here { len.min(source.size.load(SeqCst).saturating_sub(from)) } else { len.min(DATA_MAX) };
        if len == 0 {
            return Ok(0);
        }
        if to.checked_add(len).is_none_or(|end| end > FILE_SIZE_MAX) {
            return Err(Refusal::FileTooLarge);
        }
        if Arc::ptr_eq(source, target) && from < to + len && to < from + len {
            return Err(Refusal::Invalid("the ranges overlap".to_owned()));
        }
        if here && from.is_multiple_of(BLOCK) && to.is_multiple_of(BLOCK) {
            match self.share(source, from, target, to, len).await {
                Ok(0) => {}
                Err(error) if self.has_moved(source, &error) || self.has_moved(target, &error) => {}
                result => return result,
            }
        }
        self.copy_data(source, from, target, to, len.min(DATA_MAX)).await
    }

    /// Shares the whole blocks of the range, and the source's last one if it ends the target too. Zero: none.
    async fn share(
        self: &Arc<Self>,
        source: &Arc<File>,
        from: u64,
        target: &Arc<File>,
        to: u64,
        len: u64,
    ) -> Result<u64, Refusal> {
        // In the order of their numbers, so that two copies in opposite directions never wait for each other.
        let (one, other) = if source.ino <= target.ino { (source, target) } else { (target, source) };
        let one_still = self.hold_still(one).await;
        let other_still = if Arc::ptr_eq(one, other) { None } else { Some(self.hold_still(other).await) };
        let (source_owned, target_owned) = (source.owned()?, target.owned()?);
        target.check_unsealed()?;
        self.load(source).await?;
        self.load(target).await?;
        let (source_size, target_size) = (source.size.load(SeqCst), target.size.load(SeqCst));
        let len = len.min(source_size.saturating_sub(from));
        let ends_both = from + len == source_size && to + len >= target_size;
        let blocks = if ends_both { len.div_ceil(BLOCK) } else { len / BLOCK };
        if blocks == 0 {
            return Ok(0);
        }
        let copied = len.min(blocks * BLOCK);
        let grown = (to + copied > target_size).then_some(to + copied);
        if grown.is_some() && to > target_size {
            self.zero_tail(target).await?;
        }
        // The coordinator shares what it knows: everything is committed before.
        self.commit_now(one, &one_still.turn).await?;
        if let Some(still) = &other_still {
            self.commit_now(other, &still.turn).await?;
        }
        let (from, to) = (FileBlock::holding(from), FileBlock::holding(to));
        let fresh = target.layout.write().cut_fresh(&(to..to + blocks));
        self.put_back(fresh, false).await;
        let fresh = source.layout.write().cut_fresh(&(from..from + blocks));
        self.put_back(fresh, false).await;
        let operation = Operation::Clone {
            source: source_owned,
            from,
            target: target_owned,
            to,
            len: blocks,
            size: grown,
            now: self.now(),
        };
        match self.call(operation).await? {
            Answer::Version(version) => target.version.fetch_max(version, SeqCst),
            other => return Err(unexpected(&other)),
        };
        target.marks.forget(true, false, false);
        self.reload(source, from..from + blocks).await?;
        self.reload(target, to..to + blocks).await?;
        if let Some(size) = grown {
            target.size.store(size, SeqCst);
            target.known_size.store(size, SeqCst);
            // The last block is a copy of the source's, with whatever lies behind its end.
            target.tail_is_zero.store(size.is_multiple_of(BLOCK), SeqCst);
        }
        Ok(copied)
    }

    /// Copies bytes by way of this node's memory.
    async fn copy_data(
        self: &Arc<Self>,
        source: &Arc<File>,
        from: u64,
        target: &Arc<File>,
        to: u64,
        len: u64,
    ) -> Result<u64, Refusal> {
        let mut copied = 0;
        while copied < len {
            let step = (len - copied).min(STEP - (to + copied) % BLOCK);
            let (sender, receiver) = promise();
            let step_len = u32::try_from(step).unwrap_or_default();
            self.read(source, from + copied, step_len, Box::new(move |data| sender.send(data)));
            let data =
                receiver.await.unwrap_or_else(|| Err(Refusal::Io("the read was dropped".to_owned())))?;
            let data = self.gather(&data);
            let read = data.len() as u64;
            if read > 0 {
                let (sender, receiver) = promise();
                let mode = WriteMode::default();
                self.write(target, to + copied, data, mode, Box::new(move |done| sender.send(done)));
                receiver.await.unwrap_or_else(|| Err(Refusal::Io("the write was dropped".to_owned())))?;
            }
            copied += read;
            if read < step {
                break;
            }
        }
        Ok(copied)
    }

    fn gather(&self, data: &ReadData) -> Slice {
        let len = data.pieces.iter().map(|piece| match piece {
            Piece::Bytes { len, .. } | Piece::Zeros(len) => *len,
        });
        let mut all = self.media.pool.take_zeroed(len.sum());
        let mut at = 0;
        for piece in &data.pieces {
            match piece {
                Piece::Bytes { buffer, skip, len } => {
                    all[at..at + len].copy_from_slice(&buffer[*skip..skip + len]);
                    at += len;
                }
                Piece::Zeros(len) => at += len,
            }
        }
        all.share()
    }
}
