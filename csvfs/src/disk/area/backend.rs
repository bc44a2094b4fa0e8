//! The area as redb's storage.

use std::io;
use std::sync::Arc;

use redb::StorageBackend;
use redirector::blocking;

use super::pages::{PAGE, Page};
use super::{Area, AreaError, DIRTY_MAX};
use crate::disk::map::ChunkMap;
use crate::disk::superblock::Side;
use crate::disk::tree::Wrong;
use crate::types::BLOCK;

/// A part of an area's address space that lies together on the LUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::disk) struct Piece {
    /// Where it starts in the area, in bytes.
    pub area: u64,
    /// Where it is on the LUN; nothing where no chunk has been given.
    pub lun: Option<u64>,
    /// Its length in bytes.
    pub len: u64,
}

/// Cuts `offset..offset + len` of an area into pieces that lie together, each at most `piece_max` long.
pub(in crate::disk) fn pieces(
    map: &ChunkMap,
    side: Side,
    chunk_size: u64,
    offset: u64,
    len: u64,
    piece_max: u64,
) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let within = at % chunk_size;
        let len = (chunk_size - within).min(end - at).min(piece_max);
        let lun = map.locate(side, at / chunk_size).map(|chunk| u64::from(chunk) * chunk_size + within);
        let joined = pieces.last_mut().filter(|last| {
            last.len + len <= piece_max && last.lun.map(|lun| lun + last.len) == lun && lun.is_some()
        });
        match joined {
            Some(last) => last.len += len,
            None => pieces.push(Piece { area: at, lun, len }),
        }
        at += len;
    }
    pieces
}

/// A handle of redb on an [`Area`].
#[derive(Clone, Debug)]
pub struct AreaBackend(pub Arc<Area>);

impl Area {
    fn usable(&self) -> Result<(), AreaError> {
        self.state.lock().broken.clone().map_or(Ok(()), Err)
    }

    /// Reads whole pages; `out` is a multiple of a page long.
    fn read_pages(&self, page: u64, out: &mut [u8]) -> Result<(), AreaError> {
        let mut missing: Vec<Piece> = Vec::new();
        {
            let state = self.state.lock();
            for (page, place) in (page..).zip(out.chunks_exact_mut(PAGE)) {
                if let Some(contents) = state.pages.get(page) {
                    place.copy_from_slice(contents);
                    continue;
                }
                match missing.last_mut() {
                    Some(last) if last.area + last.len == page * BLOCK => last.len += BLOCK,
                    _ => missing.push(Piece { area: page * BLOCK, lun: None, len: BLOCK }),
                }
            }
            let request = self.around.request_max();
            let size = self.around.label.chunk_size;
            missing = missing
                .iter()
                .flat_map(|gap| pieces(&state.map, self.side, size, gap.area, gap.len, request))
                .collect();
        }
        for piece in missing {
            let start = usize::try_from(piece.area - page * BLOCK).unwrap_or(usize::MAX);
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let place = &mut out[start..start + len];
            let Some(offset) = piece.lun else {
                place.fill(0);
                continue;
            };
            let buffer = self.around.pool.take(len);
            let buffer = blocking::read(self.around.lun.as_ref(), offset, buffer)
                .map_err(|errno| AreaError::Read { offset, errno })?;
            place.copy_from_slice(&buffer);
        }
        Ok(())
    }

    /// Reads, and checks pages that are read whole.
    fn read_bytes(&self, offset: u64, out: &mut [u8]) -> Result<(), AreaError> {
        self.usable()?;
        self.fetch(offset, out)?;
        if self.ledger.read(offset, out).is_ok() {
            return Ok(());
        }
        // It may have come wrong over the way.
        self.fetch(offset, out)?;
        let Err(Wrong { table }) = self.ledger.read(offset, out) else {
            tracing::warn!(at = offset, "a page of the metadata store was right only when it was read again");
            return Ok(());
        };
        let error = AreaError::Corrupt { at: offset, offset: self.lun_byte(offset), table };
        tracing::error!(%error);
        self.state.lock().damage.get_or_insert_with(|| error.clone());
        Err(error)
    }

    /// Where on the LUN a byte of the area is.
    pub(in crate::disk) fn lun_byte(&self, offset: u64) -> u64 {
        let size = self.around.label.chunk_size;
        let chunk = self.state.lock().map.locate(self.side, offset / size);
        chunk.map_or(0, |chunk| u64::from(chunk) * size + offset % size)
    }

    /// Reads without a check.
    pub(in crate::disk) fn fetch(&self, offset: u64, out: &mut [u8]) -> Result<(), AreaError> {
        self.check_end(offset, out.len())?;
        let first = offset / BLOCK;
        let start = usize::try_from(offset % BLOCK).unwrap_or(0);
        if start == 0 && out.len().is_multiple_of(PAGE) {
            return self.read_pages(first, out);
        }
        let mut whole = vec![0; (start + out.len()).next_multiple_of(PAGE)];
        self.read_pages(first, &mut whole)?;
        out.copy_from_slice(&whole[start..start + out.len()]);
        Ok(())
    }

    fn check_end(&self, offset: u64, len: usize) -> Result<(), AreaError> {
        let end = self.length();
        if offset.checked_add(len as u64).is_none_or(|last| last > end) {
            return Err(AreaError::Beyond { offset, len, end });
        }
        Ok(())
    }

    /// The length that redb has set, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.state.lock().map.lens[self.side.index()]
    }

    fn write_bytes(&self, offset: u64, data: &[u8]) -> Result<(), AreaError> {
        self.usable()?;
        self.check_end(offset, data.len())?;
        self.ledger.written(offset, data);
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let page = at / BLOCK;
            let start = usize::try_from(at % BLOCK).unwrap_or(0);
            let len = (PAGE - start).min(rest.len());
            let mut contents: Page = Box::new([0; PAGE]);
            if len < PAGE {
                self.read_pages(page, &mut contents[..])?;
            }
            contents[start..start + len].copy_from_slice(&rest[..len]);
            self.put(page, contents)?;
            rest = &rest[len..];
            at += len as u64;
        }
        if self.state.lock().pages.dirty_bytes() > DIRTY_MAX {
            self.send_early()?;
        }
        Ok(())
    }

    /// Buffers a page, and gives its place a chunk if it has none.
    fn put(&self, page: u64, contents: Page) -> Result<(), AreaError> {
        let index = page * BLOCK / self.around.label.chunk_size;
        let mut state = self.state.lock();
        if state.map.locate(self.side, index).is_none() {
            if state.map.grow(self.side, index).is_none() {
                drop(state);
                return Err(self.fail(AreaError::Full));
            }
            state.map_changed = true;
        }
        state.slack = state.slack.saturating_sub(BLOCK);
        state.pages.put(page, contents);
        Ok(())
    }

    fn set_length(&self, len: u64) -> Result<(), AreaError> {
        self.usable()?;
        let mut state = self.state.lock();
        let old = state.map.lens[self.side.index()];
        let len = len.next_multiple_of(BLOCK);
        if len < old {
            // The chunks stay: the area will grow again.
            state.pages.cut(len / BLOCK);
            self.ledger.cut(len);
        }
        if len != old {
            state.map.lens[self.side.index()] = len;
            state.map_changed = true;
        }
        Ok(())
    }
}

impl StorageBackend for AreaBackend {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.usable()?;
        Ok(self.0.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        Ok(self.0.read_bytes(offset, out)?)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        Ok(self.0.set_length(len)?)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(self.0.sync()?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        Ok(self.0.write_bytes(offset, data)?)
    }
}
