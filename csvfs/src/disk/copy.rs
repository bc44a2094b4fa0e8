//! Whole chunks of the store, read in the area's order with large requests, several in flight; and their copy to a
//! fresh area (V2).

use std::collections::HashMap;
use std::sync::mpsc;

use redirector::buffer::{Buffer, Pool};
use redirector::lun::{Lun, Outcome};

use super::area::{AreaError, Surroundings};
use super::batch::Batch;

/// Requests of each kind in flight.
const DEPTH: usize = 8;

/// One chunk of the store: its index, where it is, and where its copy goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub index: u32,
    pub from: u32,
    pub to: u32,
}

/// What a copy has done.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Bytes copied.
    pub bytes: u64,
    /// Chunks that were kept in memory, by index, so that the check of the copy need not read them again.
    pub kept: Kept,
}

/// Whole chunks in memory, by index.
pub(super) type Kept = HashMap<u64, Vec<u8>>;

/// A part of a chunk that was read.
pub(super) struct Part {
    chunk: Move,
    within: u64,
    buffer: Buffer,
}

impl Part {
    /// Adds the part to what is kept.
    fn keep(&self, kept: &mut Kept) {
        let chunk = kept.entry(self.chunk.index.into()).or_default();
        let start = usize::try_from(self.within).unwrap_or(usize::MAX);
        let end = start + self.buffer.len();
        if chunk.len() < end {
            chunk.resize(end, 0);
        }
        chunk[start..end].copy_from_slice(&self.buffer);
    }
}

/// How to read chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub lun: &'a dyn Lun,
    pub pool: &'a Pool,
    pub chunk_size: u64,
    pub request_max: u64,
}

impl Reader<'_> {
    /// Reads `chunks` of an area that is `len` bytes long and hands over each part, in any order.
    pub(super) fn read(
        self,
        chunks: &[Move],
        len: u64,
        mut visit: impl FnMut(Part) -> Result<(), AreaError>,
    ) -> Result<(), AreaError> {
        let request = self.request_max;
        let mut parts = chunks.iter().flat_map(|chunk| {
            let used = len.saturating_sub(u64::from(chunk.index) * self.chunk_size).min(self.chunk_size);
            (0..used.div_ceil(request)).map(move |i| (*chunk, i * request, request.min(used - i * request)))
        });
        let (sender, receiver) = mpsc::channel();
        let mut reading = 0;
        loop {
            while reading < DEPTH
                && let Some((chunk, within, len)) = parts.next()
            {
                let sender = sender.clone();
                let buffer = self.pool.take(usize::try_from(len).unwrap_or(0));
                let ended = move |outcome: Outcome, buffer| {
                    // Nobody listens any more only after another part has failed.
                    let _ = sender.send((outcome, Part { chunk, within, buffer }));
                };
                self.lun.read(u64::from(chunk.from) * self.chunk_size + within, buffer, Box::new(ended));
                reading += 1;
            }
            if reading == 0 {
                return Ok(());
            }
            let Ok((outcome, part)) = receiver.recv() else { return Ok(()) };
            reading -= 1;
            let offset = u64::from(part.chunk.from) * self.chunk_size + part.within;
            outcome.ok().map_err(|errno| AreaError::Read { offset, errno })?;
            visit(part)?;
        }
    }

    /// Reads `chunks` into memory.
    pub(super) fn keep(self, chunks: &[Move], len: u64) -> Result<Kept, AreaError> {
        let mut kept = Kept::new();
        self.read(chunks, len, |part| {
            part.keep(&mut kept);
            Ok(())
        })?;
        Ok(kept)
    }
}

/// Copies the chunks of an area that is `len` bytes long, and keeps the first `keep_max` bytes or so in memory. The
/// copy is not durable before the next flush.
pub(super) fn copy(
    around: &Surroundings,
    moves: &[Move],
    len: u64,
    keep_max: u64,
) -> Result<Copied, AreaError> {
    let reader = Reader {
        lun: around.lun.as_ref(),
        pool: &around.pool,
        chunk_size: around.label.chunk_size,
        request_max: around.request_max(),
    };
    // A chunk is kept whole or not at all.
    let kept_chunks = keep_max / around.label.chunk_size;
    let mut copied = Copied::default();
    let writes = Batch::default();
    let read = reader.read(moves, len, |part| {
        copied.bytes += part.buffer.len() as u64;
        if u64::from(part.chunk.index) < kept_chunks {
            part.keep(&mut copied.kept);
        }
        around.await_lease()?;
        let to = u64::from(part.chunk.to) * around.label.chunk_size + part.within;
        writes.write(around.lun.as_ref(), to, part.buffer.share(), false);
        Ok(writes.wait_until(DEPTH)?)
    });
    // What is in flight ends before anybody goes on.
    let written = writes.wait();
    read?;
    written?;
    Ok(copied)
}
