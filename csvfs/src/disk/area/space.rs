//! Room for the area to grow, and for its copy.

use super::Area;
use crate::disk::map::{ChunkMap, ChunkUse};
use crate::disk::space::{MetadataSpace, SpaceError};
use crate::types::{BLOCK, Run};

/// Spare bytes that a volume keeps at least, if it is large enough.
const SPARE_FLOOR: u64 = 16 << 20;

/// How many chunks of each kind a volume should have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::disk) struct Budget {
    /// Spare chunks, beside those in use.
    pub spare: u64,
    /// Below so many spare chunks it is scarce.
    pub scarce: u64,
}

impl Budget {
    /// For a volume of `chunks` chunks of `chunk_size` bytes, `used` of them by the store.
    pub(in crate::disk) fn new(chunk_size: u64, chunks: u64, used: u64) -> Self {
        let floor = (SPARE_FLOOR / chunk_size).min(chunks / 16).max(4);
        Self { spare: floor.max(used / 4), scarce: (floor / 2).max(2) }
    }
}

impl Area {
    fn budget(&self, map: &ChunkMap) -> (Budget, u64) {
        let used = map.area(self.side).count() as u64;
        (Budget::new(self.around.label.chunk_size, map.chunks() as u64, used), used)
    }

    /// How many spare chunks the area should have, beside those in use.
    pub(in crate::disk) fn spare_wanted(&self) -> usize {
        let state = self.state.lock();
        usize::try_from(self.budget(&state.map).0.spare).unwrap_or(usize::MAX)
    }

    /// Chunks that will hold a copy: the reserve, and what will soon be reserve.
    fn for_copy(map: &ChunkMap) -> u64 {
        (map.reserve().len() + map.spent().len()) as u64
    }
}

impl MetadataSpace for Area {
    fn chunk_blocks(&self) -> u64 {
        self.around.label.chunk_size / BLOCK
    }

    fn wanted(&self) -> u64 {
        let state = self.state.lock();
        let (budget, used) = self.budget(&state.map);
        let spare = (state.map.spare().len() as u64).max(budget.spare);
        let more_spare = spare - state.map.spare().len() as u64;
        // Asked for in portions: not a chunk each time that one is used.
        let copies = (used + state.map.journal(self.side).count() as u64 + spare)
            .saturating_sub(Self::for_copy(&state.map));
        if more_spare * 2 < budget.spare && copies * 2 < budget.spare { 0 } else { more_spare + copies }
    }

    fn is_scarce(&self) -> bool {
        let state = self.state.lock();
        let (spare, scarce) = (state.map.spare().len() as u64, self.budget(&state.map).0.scarce);
        // Free pages may lie so that a large value still needs a new chunk: half is for deletions alone.
        spare < scarce / 2 || spare < scarce && state.slack < scarce * self.around.label.chunk_size
    }

    fn measured(&self, used: u64) {
        let mut state = self.state.lock();
        let chunks = self.budget(&state.map).1;
        state.slack = (chunks * self.around.label.chunk_size).saturating_sub(used);
    }

    fn trouble(&self) -> Option<String> {
        let state = self.state.lock();
        state.broken.as_ref().or(state.damage.as_ref()).map(ToString::to_string)
    }

    fn offer(&self, chunks: &[Run]) -> Result<(), SpaceError> {
        let chunk_blocks = self.chunk_blocks();
        let known: Vec<u32> = {
            let state = self.state.lock();
            let starts = chunks.iter().flat_map(|run| {
                let first = run.start.0.div_ceil(chunk_blocks);
                first..run.end().0 / chunk_blocks
            });
            let numbers = starts.filter_map(|chunk| u32::try_from(chunk).ok());
            numbers.filter(|chunk| state.map.usage(*chunk) == Some(ChunkUse::Data)).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        let changed = self.change_map(|map| {
            for chunk in known {
                // Whoever came in between has offered the same.
                if map.usage(chunk) != Some(ChunkUse::Data) {
                    continue;
                }
                let needed = (map.all_of(self.side).len() + map.spare().len()) as u64;
                let usage = if Self::for_copy(map) < needed { ChunkUse::Reserve } else { ChunkUse::Spare };
                map.assign(chunk, usage);
            }
        });
        changed.map_err(|error| SpaceError(error.errno()))
    }
}
