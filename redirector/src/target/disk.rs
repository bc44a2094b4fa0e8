//! What the export's requests are executed on: the backing file, and before it, when a test asks for one, a volatile
//! write cache.
//!
//! The cache makes of an orderly file the worst disk that the protocol allows: a completed write is only in memory until
//! a flush (or its own FUA), and [`Disk::lose_cache`] loses it, as a power cut would. It is a switch for tests (rule P9
//! of the clients); with it off, it costs one relaxed load per request.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::backing::{Backing, Zeroing};
use super::stripes::Stripes;

/// The cache's unit, in bytes.
const BLOCK: u64 = 4096;
/// What the cache holds at most, in blocks (256 MiB); beyond that it writes itself out, as any cache may.
const BLOCKS_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Disk {
    backing: Backing,
    /// Requests that overlap are executed one after the other.
    stripes: Stripes,
    is_volatile: AtomicBool,
    cache: Mutex<Cache>,
}

/// Blocks that were written and not flushed, by number.
#[derive(Debug, Default)]
struct Cache {
    blocks: BTreeMap<u64, Box<[u8]>>,
}

/// The blocks that `range` touches, each with the part of the range that lies in it.
fn blocks_of(range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    (range.start / BLOCK..range.end.div_ceil(BLOCK)).map(move |block| {
        let start = (block * BLOCK).max(range.start);
        (block, start..((block + 1) * BLOCK).min(range.end))
    })
}

fn at(offset: u64, base: u64) -> usize {
    usize::try_from(offset - base).unwrap_or(usize::MAX)
}

impl Cache {
    /// The block's contents, fetched from `backing` if it is not cached yet.
    fn block<'a>(&'a mut self, backing: &Backing, block: u64) -> Result<&'a mut [u8], i32> {
        use std::collections::btree_map::Entry;
        match self.blocks.entry(block) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let start = block * BLOCK;
                let length = at((start + BLOCK).min(backing.size()), start);
                let mut bytes = vec![0; length].into_boxed_slice();
                backing.read(&mut bytes, start)?;
                Ok(entry.insert(bytes))
            }
        }
    }

    fn write_out(&mut self, backing: &Backing) -> Result<(), i32> {
        for (block, bytes) in &self.blocks {
            backing.write(bytes, block * BLOCK, false)?;
        }
        backing.flush()?;
        self.blocks.clear();
        Ok(())
    }

    fn make_room(&mut self, backing: &Backing, length: u64) -> Result<(), i32> {
        let wanted = usize::try_from(length / BLOCK + 2).unwrap_or(usize::MAX);
        if self.blocks.len().saturating_add(wanted) > BLOCKS_MAX { self.write_out(backing) } else { Ok(()) }
    }
}

impl Disk {
    pub(super) fn new(backing: Backing) -> Self {
        Self {
            backing,
            stripes: Stripes::new(),
            is_volatile: AtomicBool::new(false),
            cache: Mutex::default(),
        }
    }

    fn is_volatile(&self) -> bool {
        self.is_volatile.load(Ordering::Acquire)
    }

    /// Switches the volatile cache on, or off after writing it out.
    pub(super) fn set_volatile(&self, on: bool) -> Result<(), i32> {
        let mut cache = self.cache.lock();
        if !on {
            cache.write_out(&self.backing)?;
        }
        self.is_volatile.store(on, Ordering::Release);
        Ok(())
    }

    /// Loses what was written and not flushed. Returns how many blocks that were.
    pub(super) fn lose_cache(&self) -> usize {
        std::mem::take(&mut self.cache.lock().blocks).len()
    }

    /// How many blocks a power cut would lose now.
    pub(super) fn cached_blocks(&self) -> usize {
        self.cache.lock().blocks.len()
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), i32> {
        if !self.is_volatile() {
            let _held = self.stripes.read(&(offset..offset + buffer.len() as u64));
            return self.backing.read(buffer, offset);
        }
        let cache = self.cache.lock();
        self.backing.read(buffer, offset)?;
        for (block, part) in blocks_of(offset..offset + buffer.len() as u64) {
            if let Some(bytes) = cache.blocks.get(&block) {
                let base = block * BLOCK;
                buffer[at(part.start, offset)..at(part.end, offset)]
                    .copy_from_slice(&bytes[at(part.start, base)..at(part.end, base)]);
            }
        }
        Ok(())
    }

    /// As [`Disk::read`], but returns false instead of waiting for a disk.
    pub(super) fn read_if_ready(&self, buffer: &mut [u8], offset: u64) -> Result<bool, i32> {
        if self.is_volatile() {
            return self.read(buffer, offset).map(|()| true);
        }
        let _held = self.stripes.read(&(offset..offset + buffer.len() as u64));
        self.backing.read_if_ready(buffer, offset)
    }

    pub(super) fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<(), i32> {
        if !self.is_volatile() {
            let _held = self.stripes.write(&(offset..offset + data.len() as u64));
            return self.backing.write(data, offset, fua);
        }
        let mut cache = self.cache.lock();
        cache.make_room(&self.backing, data.len() as u64)?;
        if fua {
            self.backing.write(data, offset, true)?;
        }
        for (block, part) in blocks_of(offset..offset + data.len() as u64) {
            if fua && !cache.blocks.contains_key(&block) {
                continue;
            }
            let base = block * BLOCK;
            cache.block(&self.backing, block)?[at(part.start, base)..at(part.end, base)]
                .copy_from_slice(&data[at(part.start, offset)..at(part.end, offset)]);
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), i32> {
        if self.is_volatile() {
            return self.cache.lock().write_out(&self.backing);
        }
        self.backing.flush()
    }

    pub(super) fn flushes_quickly(&self) -> bool {
        !self.is_volatile() && self.backing.flushes_quickly()
    }

    pub(super) fn trim(&self, range: Range<u64>, fua: bool) -> Result<(), i32> {
        if self.is_volatile() {
            return self.zero(range, Zeroing { may_punch: true, only_fast: false }, fua);
        }
        let held = self.stripes.write(&range);
        self.backing.trim(range)?;
        drop(held);
        if fua { self.backing.flush() } else { Ok(()) }
    }

    pub(super) fn zero(&self, range: Range<u64>, how: Zeroing, fua: bool) -> Result<(), i32> {
        if self.is_volatile() {
            let mut cache = self.cache.lock();
            let length = range.end - range.start;
            // Too much to keep: a cache may write through whenever it likes.
            if length / BLOCK >= (BLOCKS_MAX / 2) as u64 {
                cache.write_out(&self.backing)?;
                self.backing.zero(range, how)?;
                return self.backing.flush();
            }
            cache.make_room(&self.backing, length)?;
            for (block, part) in blocks_of(range) {
                let base = block * BLOCK;
                cache.block(&self.backing, block)?[at(part.start, base)..at(part.end, base)].fill(0);
            }
            return if fua { cache.write_out(&self.backing) } else { Ok(()) };
        }
        let held = self.stripes.write(&range);
        self.backing.zero(range, how)?;
        drop(held);
        if fua { self.backing.flush() } else { Ok(()) }
    }

    /// Whether `range` is known to be a hole.
    pub(super) fn is_hole(&self, range: &Range<u64>) -> bool {
        !self.is_volatile() && self.backing.is_hole(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 5 * BLOCK + 100;

    fn disk() -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let backing = Backing::open(&dir.path().join("lun.img"), Some(SIZE), false).unwrap();
        (dir, Disk::new(backing))
    }

    fn contents(disk: &Disk) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(SIZE).unwrap()];
        disk.read(&mut all, 0).unwrap();
        all
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>, bool),
        Zero(Range<u64>, bool),
        Flush,
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..SIZE - 1).prop_flat_map(|start| (Just(start), start + 1..=SIZE));
        prop_oneof![
            4 => (range.clone(), any::<u8>(), prop::bool::weighted(0.2)).prop_map(|((start, end), byte, fua)| {
                Step::Write(start, vec![byte; usize::try_from(end - start).unwrap()], fua)
            }),
            1 => (range, prop::bool::weighted(0.2)).prop_map(|((start, end), fua)| Step::Zero(start..end, fua)),
            1 => Just(Step::Flush),
            1 => Just(Step::Crash),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// A FUA zero flushes everything here, which the model knows; a FUA write only itself.
        #[test]
        fn the_volatile_cache_loses_exactly_what_was_not_flushed(steps in prop::collection::vec(step(), 1..24)) {
            let (_dir, disk) = disk();
            disk.set_volatile(true).unwrap();
            let mut seen = contents(&disk);
            let mut durable = seen.clone();
            for step in steps {
                match step {
                    Step::Write(offset, data, fua) => {
                        disk.write(&data, offset, fua).unwrap();
                        let range = at(offset, 0)..at(offset, 0) + data.len();
                        seen[range.clone()].copy_from_slice(&data);
                        if fua {
                            durable[range].copy_from_slice(&data);
                        }
                    }
                    Step::Zero(range, fua) => {
                        disk.zero(range.clone(), Zeroing { may_punch: true, only_fast: false }, fua).unwrap();
                        seen[at(range.start, 0)..at(range.end, 0)].fill(0);
                        if fua {
                            durable.clone_from(&seen);
                        }
                    }
                    Step::Flush => {
                        disk.flush().unwrap();
                        durable.clone_from(&seen);
                    }
                    Step::Crash => {
                        disk.lose_cache();
                        seen.clone_from(&durable);
                    }
                }
                prop_assert!(contents(&disk) == seen);
            }
            disk.set_volatile(false).unwrap();
            prop_assert!(contents(&disk) == seen);
        }
    }

    #[test]
    fn a_read_beside_a_write_of_the_same_block_gives_one_of_the_two() {
        // In memory, where a read waits for nothing that a write holds.
        let dir = tempfile::TempDir::new_in("/dev/shm").unwrap();
        let backing = Backing::open(&dir.path().join("lun.img"), Some(1 << 20), false).unwrap();
        let disk = Disk::new(backing);
        let ends = std::time::Instant::now() + std::time::Duration::from_secs(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for byte in (0..=u8::MAX).cycle() {
                    disk.write(&vec![byte; 64 << 10], 0, false).unwrap();
                    if std::time::Instant::now() > ends {
                        break;
                    }
                }
            });
            let mut block = vec![0; 64 << 10];
            while std::time::Instant::now() < ends {
                assert!(disk.read_if_ready(&mut block, 0).unwrap());
                assert!(block.iter().all(|byte| *byte == block[0]), "a part of each");
            }
        });
    }
}
