//! How an area's pages and the chunk map get onto the LUN.

use std::collections::BTreeMap;

use redirector::plug;

use super::pages::{PAGE, Page};
use super::{Area, AreaError, FUA_REQUESTS_MAX};
use crate::disk::batch::Batch;
use crate::disk::layout;
use crate::disk::map::ChunkMap;
use crate::types::BLOCK;

/// Requests that are sent together, after one look at the lease.
const TOGETHER_MAX: usize = 16;

/// The right to send: one thread at a time has it.
struct Turn<'a>(&'a Area);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().busy = false;
        self.0.changed.notify_all();
    }
}

/// One request: where on the LUN, and the pages that make it up.
struct Joined<'a> {
    lun: u64,
    pages: Vec<&'a Page>,
}

impl Area {
    fn turn(&self) -> Result<Turn<'_>, AreaError> {
        let mut state = self.state.lock();
        while state.busy && state.broken.is_none() {
            self.changed.wait(&mut state);
        }
        if let Some(cause) = &state.broken {
            return Err(cause.clone());
        }
        state.busy = true;
        Ok(Turn(self))
    }

    /// Makes everything that was written durable; see the module's text for order and cost.
    pub fn sync(&self) -> Result<(), AreaError> {
        let _turn = self.turn()?;
        self.sync_in_turn().map_err(|error| self.fail(error))
    }

    fn sync_in_turn(&self) -> Result<(), AreaError> {
        let (pages, map, unflushed) = {
            let mut state = self.state.lock();
            let map = state.map_changed.then(|| {
                state.map_changed = false;
                state.map.generation += 1;
                state.map.clone()
            });
            (state.pages.take(), map, std::mem::take(&mut state.unflushed))
        };
        let requests = self.join(&pages);
        let volatile = self.around.lun.geometry().volatile_cache;
        let fua = volatile && map.is_none() && !unflushed && requests.len() <= FUA_REQUESTS_MAX;
        let first = Batch::default();
        let encoded = map.as_ref().map(|map| map.encode(self.around.label.uuid));
        if let Some(encoded) = &encoded {
            self.send_map(&first, 0, encoded)?;
        }
        self.send(&first, &requests, fua)?;
        first.wait()?;
        let second = Batch::default();
        if let Some(encoded) = &encoded {
            self.send_map(&second, 1, encoded)?;
        }
        if volatile && !fua && (unflushed || !requests.is_empty()) {
            second.flush(self.around.lun.as_ref());
        }
        second.wait()?;
        self.state.lock().pages.landed();
        Ok(())
    }

    /// Sends what is buffered without making it durable: the buffer is full.
    pub(super) fn send_early(&self) -> Result<(), AreaError> {
        let _turn = self.turn()?;
        let pages = {
            let mut state = self.state.lock();
            state.unflushed = true;
            state.pages.take()
        };
        let batch = Batch::default();
        let sent = self.send(&batch, &self.join(&pages), false);
        sent.and_then(|()| Ok(batch.wait()?)).map_err(|error| self.fail(error))?;
        self.state.lock().pages.landed();
        Ok(())
    }

    /// Joins pages that lie together on the LUN.
    fn join<'a>(&self, pages: &'a BTreeMap<u64, Page>) -> Vec<Joined<'a>> {
        let size = self.around.label.chunk_size;
        let most = usize::try_from(self.around.request_max() / BLOCK).unwrap_or(1);
        let state = self.state.lock();
        let mut joined: Vec<Joined<'a>> = Vec::new();
        for (page, contents) in pages {
            let chunk = state.map.locate(self.side, page * BLOCK / size);
            let chunk = chunk.expect("a page was given a chunk when it was buffered");
            let lun = u64::from(chunk) * size + page * BLOCK % size;
            match joined.last_mut() {
                Some(last)
                    if last.pages.len() < most && last.lun + last.pages.len() as u64 * BLOCK == lun =>
                {
                    last.pages.push(contents);
                }
                _ => joined.push(Joined { lun, pages: vec![contents] }),
            }
        }
        joined
    }

    fn send(&self, batch: &Batch, requests: &[Joined<'_>], fua: bool) -> Result<(), AreaError> {
        for requests in requests.chunks(TOGETHER_MAX) {
            self.await_lease()?;
            plug::together(|| {
                for request in requests {
                    let mut buffer = self.around.pool.take(request.pages.len() * PAGE);
                    for (place, page) in buffer.chunks_exact_mut(PAGE).zip(&request.pages) {
                        place.copy_from_slice(&page[..]);
                    }
                    batch.write(self.around.lun.as_ref(), request.lun, buffer.share(), fua);
                }
            });
        }
        Ok(())
    }

    fn send_map(&self, batch: &Batch, copy: usize, encoded: &[u8]) -> Result<(), AreaError> {
        let request = usize::try_from(self.around.request_max()).unwrap_or(PAGE);
        let mut at = layout::byte(layout::MAPS_AT[copy]);
        for part in encoded.chunks(request) {
            let mut buffer = self.around.pool.take(part.len());
            buffer.copy_from_slice(part);
            self.await_lease()?;
            batch.write(self.around.lun.as_ref(), at, buffer.share(), true);
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Changes the chunk map and makes the change durable, both copies.
    pub(in crate::disk) fn change_map(&self, change: impl FnOnce(&mut ChunkMap)) -> Result<(), AreaError> {
        let _turn = self.turn()?;
        let encoded = {
            let mut state = self.state.lock();
            change(&mut state.map);
            state.map.generation += 1;
            state.map_changed = false;
            state.map.encode(self.around.label.uuid)
        };
        let written = (0..2).try_for_each(|copy| {
            let batch = Batch::default();
            self.send_map(&batch, copy, &encoded)?;
            Ok(batch.wait()?)
        });
        written.map_err(|error| self.fail(error))
    }
}
