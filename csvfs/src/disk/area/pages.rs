//! Pages that wait to be written, or are being written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::types::BLOCK;

pub(super) const PAGE: usize = 4096;
pub(super) type Page = Box<[u8; PAGE]>;

/// Pages by number (byte offset in the area divided by 4096).
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Written since the last sync.
    dirty: BTreeMap<u64, Page>,
    /// Being sent.
    flying: Arc<BTreeMap<u64, Page>>,
    /// The first page as last written: redb rewrites its first 320 bytes with every commit.
    first: Option<Page>,
    /// Chunks, by index, whose contents are kept in memory while a copy is verified.
    warm: HashMap<u64, Vec<u8>>,
    warm_chunk: u64,
}

impl Pages {
    pub(super) fn dirty_bytes(&self) -> usize {
        self.dirty.len() * PAGE
    }

    /// What was written to a page and may not be on the LUN yet, or is known without asking the LUN.
    pub(super) fn get(&self, page: u64) -> Option<&[u8]> {
        if let Some(found) = self.dirty.get(&page).or_else(|| self.flying.get(&page)) {
            return Some(&found[..]);
        }
        if page == 0
            && let Some(first) = &self.first
        {
            return Some(&first[..]);
        }
        if self.warm.is_empty() {
            return None;
        }
        let chunk = self.warm.get(&(page * BLOCK / self.warm_chunk))?;
        let start = usize::try_from(page * BLOCK % self.warm_chunk).ok()?;
        chunk.get(start..start + PAGE)
    }

    pub(super) fn put(&mut self, page: u64, contents: Page) {
        if !self.warm.is_empty()
            && let Some(chunk) = self.warm.get_mut(&(page * BLOCK / self.warm_chunk))
            && let Ok(start) = usize::try_from(page * BLOCK % self.warm_chunk)
            && let Some(place) = chunk.get_mut(start..start + PAGE)
        {
            place.copy_from_slice(&contents[..]);
        }
        self.dirty.insert(page, contents);
    }

    /// Forgets what was written at or after `page`.
    pub(super) fn cut(&mut self, page: u64) {
        drop(self.dirty.split_off(&page));
    }

    /// Takes all dirty pages to send them; they stay readable until [`Pages::landed`].
    pub(super) fn take(&mut self) -> Arc<BTreeMap<u64, Page>> {
        self.flying = Arc::new(std::mem::take(&mut self.dirty));
        if let Some(first) = self.flying.get(&0) {
            self.first = Some(first.clone());
        }
        Arc::clone(&self.flying)
    }

    pub(super) fn landed(&mut self) {
        self.flying = Arc::default();
    }

    /// Keeps whole chunks in memory, by index; an empty map ends it.
    pub(super) fn warm(&mut self, chunks: HashMap<u64, Vec<u8>>, chunk_size: u64) {
        self.warm = chunks;
        self.warm_chunk = chunk_size;
    }
}
